/* vsock between real Unix sockets and a fake driver. */
#include "vmm/vsock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "tests/unit/fake_driver.h"

#define ALL UINT64_MAX
#define CID 3
#define PORT 1024u
#define RX_BUFS 64u
#define RX_LEN 4096u
#define TX_AREA (FAKE_HEAP + 0x400000) /* packets in turn, 64 KiB each */
#define TX_PACKETS 128
#define BUF_ALLOC (64u << 10) /* of the guest's socket */

static struct fake_driver d;
static struct vsock vs;
static int epoll_fd;
static char path[64];
static uint64_t rx_at[VIRTQ_SIZE_MAX]; /* buffer of a head */
static uint64_t last_token;	       /* given to the loop */
static uint64_t later_ns;	       /* added to the clock */

uint64_t __real_io_now_ns(void);
uint64_t __wrap_io_now_ns(void);

uint64_t
__wrap_io_now_ns(void)
{
	return __real_io_now_ns() + later_ns;
}

static int
loop_add(void *ctx, int fd, uint32_t events, uint64_t token)
{
	struct epoll_event ev = {.events = events, .data.u64 = token};

	(void)ctx;
	assert_true(token & VSOCK_TOKEN);
	last_token = token;
	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static int
loop_mod(void *ctx, int fd, uint32_t events, uint64_t token)
{
	struct epoll_event ev = {.events = events, .data.u64 = token};

	(void)ctx;
	return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &ev) ? -errno : 0;
}

static void
loop_del(void *ctx, int fd)
{
	(void)ctx;
	assert_int_equal(epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL), 0);
}

static const struct vsock_loop loop = {loop_add, loop_mod, loop_del, NULL};

/* Runs the main loop until it would wait. One that never would is a busy loop: a bug. */
static void
run_loop(void)
{
	struct epoll_event ev[16];
	int n, i, turns = 0;

	while ((n = epoll_wait(epoll_fd, ev, 16, 0)) > 0) {
		for (i = 0; i < n; i++)
			vsock_handle_event(&vs, ev[i].data.u64, ev[i].events);
		if (++turns > 20000)
			fail_msg("the loop never rests");
	}
}

static void
give_rx_buffers(unsigned n)
{
	while (n--) {
		uint64_t at = FAKE_HEAP + RX_LEN * (uint64_t)d.q[VSOCK_RX].next_desc;
		struct fake_buf buf = {at, RX_LEN, true};

		rx_at[fake_add(&d, VSOCK_RX, &buf, 1)] = at;
	}
	fake_kick(&d, VSOCK_RX);
}

static void
give_event_buffers(unsigned n)
{
	while (n--) {
		struct fake_buf buf = {FAKE_HEAP + 0x300000 + 16u * n, 4, true};

		fake_add(&d, VSOCK_EVENT, &buf, 1);
	}
	fake_kick(&d, VSOCK_EVENT);
}

static int
listener(void)
{
	struct err e = {0};
	int fd;

	unlink(path);
	if (io_unix_listen(path, SOCK_STREAM, 64, &fd, &e))
		fail_msg("%s", e.msg);
	return fd;
}

static void
start(int kick_fd)
{
	struct err e = {0};

	strcpy(path, "/tmp/test_vsock.XXXXXX");
	close(mkstemp(path));
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	fake_driver_init(&d);
	if (vsock_init(&vs, &d.mem, fake_irq(&d), CID, listener(), kick_fd, &loop, &e))
		fail_msg("%s", e.msg);
	assert_true(fake_start(&d, &vs.dev, ALL));
	give_event_buffers(4);
}

static int
setup(void **state)
{
	(void)state;
	start(-1);
	give_rx_buffers(RX_BUFS);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	vsock_destroy(&vs);
	fake_driver_done(&d);
	close(epoll_fd);
	unlink(path);
	return 0;
}

/* The guest's next packet; false when there is none. Its buffer is given again. */
static bool
guest_receive(struct vsock_hdr *hdr, void *data, size_t cap)
{
	uint32_t head, len;

	if (!fake_used(&d, VSOCK_RX, &head, &len))
		return false;
	assert_true(len >= sizeof(*hdr) && len <= RX_LEN);
	fake_peek(&d, rx_at[head], hdr, sizeof(*hdr));
	assert_int_equal(hdr->len, len - sizeof(*hdr));
	assert_int_equal(hdr->dst_cid, CID);
	if (hdr->len) {
		assert_true(hdr->len <= cap);
		fake_peek(&d, rx_at[head] + sizeof(*hdr), data, hdr->len);
	}
	return true;
}

static void
guest_send_raw(const struct vsock_hdr *hdr, const void *data, uint32_t len)
{
	static unsigned packets;
	const uint64_t at = TX_AREA + 0x10000ull * (packets++ % TX_PACKETS);
	struct fake_buf bufs[] = {
		{at, sizeof(*hdr), false}, {at + sizeof(*hdr), len, false}};

	fake_poke(&d, at, hdr, sizeof(*hdr));
	if (len)
		fake_poke(&d, at + sizeof(*hdr), data, len);
	fake_add(&d, VSOCK_TX, bufs, len ? 2 : 1);
	fake_kick(&d, VSOCK_TX);
}

struct guest_sock { /* the guest's end */
	uint32_t host_port, guest_port;
	uint32_t received; /* fwd_cnt */
	uint32_t sent, host_fwd, host_alloc;
};

static void
guest_send(
	struct guest_sock *s, uint16_t op, uint32_t flags, const void *data, uint32_t len)
{
	struct vsock_hdr hdr = {
		.src_cid = CID,
		.dst_cid = VSOCK_HOST_CID,
		.src_port = s->guest_port,
		.dst_port = s->host_port,
		.len = len,
		.type = VSOCK_TYPE_STREAM,
		.op = op,
		.flags = flags,
		.buf_alloc = BUF_ALLOC,
		.fwd_cnt = s->received,
	};

	s->sent += op == VSOCK_OP_RW ? len : 0;
	guest_send_raw(&hdr, data, len);
}

/* The next packet, which must be of this op for this socket. */
static struct vsock_hdr
expect(struct guest_sock *s, uint16_t op)
{
	struct vsock_hdr hdr;
	uint8_t data[RX_LEN];

	if (!guest_receive(&hdr, data, sizeof(data)))
		fail_msg("no packet where op %u was expected", op);
	give_rx_buffers(1);
	assert_int_equal(hdr.op, op);
	if (s) {
		assert_int_equal(hdr.src_port, s->host_port);
		assert_int_equal(hdr.dst_port, s->guest_port);
		s->host_fwd = hdr.fwd_cnt;
		s->host_alloc = hdr.buf_alloc;
	}
	return hdr;
}

static void
expect_nothing(void)
{
	struct vsock_hdr hdr;
	uint8_t data[RX_LEN];

	if (guest_receive(&hdr, data, sizeof(data)))
		fail_msg("an unexpected packet of op %u", hdr.op);
}

static int
dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(addr.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void
say(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* What lies in the socket now, terminated. */
static const char *
heard(int fd)
{
	static char buf[256];
	ssize_t n = recv(fd, buf, sizeof(buf) - 1, MSG_DONTWAIT);

	buf[n > 0 ? n : 0] = '\0';
	return buf;
}

static bool
at_end(int fd)
{
	char c;
	ssize_t n = recv(fd, &c, 1, MSG_DONTWAIT);

	return n == 0 || (n < 0 && errno == ECONNRESET);
}

/* A whole connection: the client's descriptor, the guest's end in s. */
static int
connected(struct guest_sock *s)
{
	struct vsock_hdr hdr;
	char want[32];
	int fd = dial();

	say(fd, "CONNECT 1024\n");
	run_loop();
	hdr = expect(NULL, VSOCK_OP_REQUEST);
	assert_int_equal(hdr.dst_port, PORT);
	assert_int_equal(hdr.src_cid, VSOCK_HOST_CID);
	assert_int_equal(hdr.type, VSOCK_TYPE_STREAM);
	assert_int_equal(hdr.buf_alloc, VSOCK_BUF_BYTES);
	*s = (struct guest_sock){.host_port = hdr.src_port,
		.guest_port = PORT,
		.host_alloc = hdr.buf_alloc};
	guest_send(s, VSOCK_OP_RESPONSE, 0, NULL, 0);
	run_loop();
	snprintf(want, sizeof(want), "OK %u\n", s->host_port);
	assert_string_equal(heard(fd), want);
	return fd;
}

static void
a_client_and_the_guest_talk(void **state)
{
	struct guest_sock s;
	struct vsock_hdr hdr;
	uint8_t data[64];
	int fd;

	(void)state;
	fd = connected(&s);
	assert_int_equal(vs.connections, 1);
	say(fd, "hello");
	run_loop();
	assert_true(guest_receive(&hdr, data, sizeof(data)));
	give_rx_buffers(1);
	assert_int_equal(hdr.op, VSOCK_OP_RW);
	assert_memory_equal(data, "hello", 5);
	s.received += 5;
	guest_send(&s, VSOCK_OP_RW, 0, "goodbye", 7);
	assert_string_equal(heard(fd), "goodbye");
	expect_nothing();
	/* The guest closes; what it said last arrives first. */
	guest_send(&s, VSOCK_OP_RW, 0, "!", 1);
	guest_send(&s, VSOCK_OP_SHUTDOWN, 3, NULL, 0);
	expect(&s, VSOCK_OP_RST);
	assert_string_equal(heard(fd), "!");
	assert_true(at_end(fd));
	assert_int_equal(vs.connections, 0);
	close(fd);
}

static void
what_follows_the_line_at_once_is_the_guests(void **state)
{
	struct guest_sock s = {.guest_port = PORT};
	struct vsock_hdr hdr;
	uint8_t data[64];
	int fd = dial();

	(void)state;
	say(fd, "CONNECT 1024\nfirst words");
	run_loop();
	hdr = expect(NULL, VSOCK_OP_REQUEST);
	s.host_port = hdr.src_port;
	guest_send(&s, VSOCK_OP_RESPONSE, 0, NULL, 0);
	assert_true(guest_receive(&hdr, data, sizeof(data)));
	assert_int_equal(hdr.len, 11);
	assert_memory_equal(data, "first words", 11);
	close(fd);
}

static void
a_line_in_pieces_is_read(void **state)
{
	int fd = dial();
	const char *p;
	char c[2] = {0};

	(void)state;
	for (p = "CONNECT 4294967294\n"; *p; p++) {
		expect_nothing();
		c[0] = *p;
		say(fd, c);
		run_loop();
	}
	assert_int_equal(expect(NULL, VSOCK_OP_REQUEST).dst_port, 4294967294u);
	close(fd);
}

static void
a_bad_line_is_answered_by_a_sentence(void **state)
{
	static const char *const bad[] = {"CONNECT \n", "CONNECT 0\n",
		"CONNECT 4294967295\n", "CONNECT 99999999999999999999\n", "CONNECT -1\n",
		"CONNECT 12 \n", "connect 12\n", "\n", "GET / HTTP/1.1\r\n",
		"CONNECT 12\r\n", "CONNECT 00000000000000000000000000000000000001\n"};
	size_t i;
	int fd;

	(void)state;
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		fd = dial();
		say(fd, bad[i]);
		run_loop();
		assert_memory_equal(heard(fd), "ERR ", 4);
		assert_true(at_end(fd));
		close(fd);
	}
	expect_nothing();
	assert_int_equal(vs.connections, 0);
}

static void
a_port_nobody_listens_on_is_refused(void **state)
{
	struct guest_sock s = {.guest_port = 5};
	int fd = dial();

	(void)state;
	say(fd, "CONNECT 5\n");
	run_loop();
	s.host_port = expect(NULL, VSOCK_OP_REQUEST).src_port;
	guest_send(&s, VSOCK_OP_RST, 0, NULL, 0);
	assert_non_null(strstr(heard(fd), "nothing listens"));
	assert_true(at_end(fd));
	assert_int_equal(vs.connections, 0);
	expect_nothing();
	close(fd);
}

static void
without_a_driver_a_client_is_refused(void **state)
{
	int fd = dial();

	(void)state;
	fake_write(&d, VIRTIO_MMIO_STATUS, 0);
	say(fd, "CONNECT 5\n");
	run_loop();
	assert_non_null(strstr(heard(fd), "not ready"));
	assert_true(at_end(fd));
	close(fd);
}

static void
a_connection_from_the_guest_is_refused(void **state)
{
	struct guest_sock s = {.host_port = 80, .guest_port = 4000};
	struct vsock_hdr hdr;

	(void)state;
	guest_send(&s, VSOCK_OP_REQUEST, 0, NULL, 0);
	hdr = expect(&s, VSOCK_OP_RST);
	assert_int_equal(hdr.src_cid, VSOCK_HOST_CID);
	/* An unknown type, an unknown destination; never an answer to a reset, nor to a
	 * forged sender. */
	hdr = (struct vsock_hdr){.src_cid = CID, .dst_cid = 9, .type = 77, .op = 1};
	guest_send_raw(&hdr, NULL, 0);
	hdr = expect(NULL, VSOCK_OP_RST);
	assert_int_equal(hdr.src_cid, 9);
	assert_int_equal(hdr.type, 77);
	guest_send(&s, VSOCK_OP_RST, 0, NULL, 0);
	hdr = (struct vsock_hdr){.src_cid = 8, .dst_cid = 2, .type = 1, .op = 1};
	guest_send_raw(&hdr, NULL, 0);
	expect_nothing();
}

static void
a_client_that_ends_its_side_still_hears(void **state)
{
	struct guest_sock s;
	struct vsock_hdr hdr;
	uint8_t data[64];
	int fd;

	(void)state;
	fd = connected(&s);
	say(fd, "last");
	shutdown(fd, SHUT_WR);
	run_loop();
	assert_true(guest_receive(&hdr, data, sizeof(data)));
	give_rx_buffers(1);
	assert_int_equal(hdr.op, VSOCK_OP_RW);
	hdr = expect(&s, VSOCK_OP_SHUTDOWN);
	assert_int_equal(hdr.flags, VSOCK_SHUTDOWN_SEND);
	guest_send(&s, VSOCK_OP_RW, 0, "answer", 6);
	assert_string_equal(heard(fd), "answer");
	assert_false(at_end(fd));
	guest_send(&s, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_SEND, NULL, 0);
	assert_true(at_end(fd));
	run_loop();
	/* Both sides are done: it is told so, and answers with a reset. */
	hdr = expect(&s, VSOCK_OP_SHUTDOWN);
	assert_int_equal(hdr.flags, 3);
	guest_send(&s, VSOCK_OP_RST, 0, NULL, 0);
	assert_int_equal(vs.connections, 0);
	close(fd);
}

static void
a_guest_that_ends_its_side_still_hears(void **state)
{
	struct guest_sock s;
	struct vsock_hdr hdr;
	uint8_t data[64];
	int fd;

	(void)state;
	fd = connected(&s);
	guest_send(&s, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_SEND, NULL, 0);
	assert_true(at_end(fd));
	say(fd, "more");
	run_loop();
	assert_true(guest_receive(&hdr, data, sizeof(data)));
	assert_memory_equal(data, "more", 4);
	guest_send(&s, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_RCV, NULL, 0);
	give_rx_buffers(1);
	expect(&s, VSOCK_OP_RST);
	assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
	assert_int_equal(vs.connections, 0);
	close(fd);
}

static void
a_client_that_leaves_is_heard_to_the_end(void **state)
{
	struct guest_sock s;
	struct vsock_hdr hdr;
	static uint8_t sent[30000], got[30000], data[RX_LEN];
	size_t n = 0, i;
	int fd;

	(void)state;
	fd = connected(&s);
	for (i = 0; i < sizeof(sent); i++)
		sent[i] = (uint8_t)(i * 31 + i / 256);
	assert_int_equal(send(fd, sent, sizeof(sent), 0), sizeof(sent));
	close(fd);
	run_loop();
	while (guest_receive(&hdr, data, sizeof(data)) && hdr.op == VSOCK_OP_RW) {
		memcpy(got + n, data, hdr.len);
		n += hdr.len;
	}
	assert_int_equal(n, sizeof(sent));
	assert_memory_equal(got, sent, sizeof(sent));
	assert_int_equal(hdr.op, VSOCK_OP_SHUTDOWN);
	assert_int_equal(hdr.flags, 3);
	/* What the guest still says is dropped. */
	guest_send(&s, VSOCK_OP_RW, 0, "hello?", 6);
	assert_int_equal(vs.connections, 1);
	guest_send(&s, VSOCK_OP_RST, 0, NULL, 0);
	assert_int_equal(vs.connections, 0);
	run_loop();
}

static void
the_guests_credit_is_respected(void **state)
{
	struct guest_sock s;
	struct vsock_hdr hdr;
	static uint8_t sent[200000], got[200000], data[RX_LEN];
	size_t n = 0, i, put = 0;
	unsigned requests = 0;
	ssize_t r;
	int fd;

	(void)state;
	fd = connected(&s);
	for (i = 0; i < sizeof(sent); i++)
		sent[i] = (uint8_t)(i * 17 + i / 256);
	while (n < sizeof(sent)) {
		r = send(fd, sent + put, sizeof(sent) - put, MSG_DONTWAIT);
		put += r > 0 ? (size_t)r : 0;
		run_loop();
		while (guest_receive(&hdr, data, sizeof(data))) {
			give_rx_buffers(1);
			if (hdr.op == VSOCK_OP_CREDIT_REQUEST) {
				requests++;
				continue;
			}
			assert_int_equal(hdr.op, VSOCK_OP_RW);
			memcpy(got + n, data, hdr.len);
			n += hdr.len;
			assert_true(n - s.received <= BUF_ALLOC);
		}
		run_loop();
		assert_true(n == sizeof(sent) || n - s.received == BUF_ALLOC);
		s.received = (uint32_t)n;
		guest_send(&s, VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
	}
	assert_memory_equal(got, sent, sizeof(sent));
	assert_true(requests >= 2 && requests <= 4);
	close(fd);
}

static void
a_slow_reader_holds_the_guest_back_and_loses_nothing(void **state)
{
	struct guest_sock s;
	struct vsock_hdr hdr;
	static uint8_t sent[1000000], got[1000000], data[RX_LEN];
	uint32_t n = 0, len, free_bytes;
	size_t i, have = 0;
	ssize_t r;
	int fd;

	(void)state;
	fd = connected(&s);
	for (i = 0; i < sizeof(sent); i++)
		sent[i] = (uint8_t)(i * 13 + i / 256);
	while (have < sizeof(sent)) {
		for (;;) { /* all its credit */
			free_bytes = s.host_alloc - (s.sent - s.host_fwd);
			len = free_bytes < 30000 ? free_bytes : 30000;
			if (len > sizeof(sent) - n)
				len = (uint32_t)(sizeof(sent) - n);
			if (len == 0)
				break;
			guest_send(&s, VSOCK_OP_RW, 0, sent + n, len);
			n += len;
			while (guest_receive(&hdr, data, sizeof(data))) {
				give_rx_buffers(1);
				assert_int_equal(hdr.op, VSOCK_OP_CREDIT_UPDATE);
				s.host_fwd = hdr.fwd_cnt;
			}
		}
		r = recv(fd, got + have, 7777, MSG_DONTWAIT);
		assert_true(r > 0);
		have += (size_t)r;
		run_loop();
		while (guest_receive(&hdr, data, sizeof(data))) {
			give_rx_buffers(1);
			assert_int_equal(hdr.op, VSOCK_OP_CREDIT_UPDATE);
			s.host_fwd = hdr.fwd_cnt;
		}
	}
	assert_memory_equal(got, sent, sizeof(sent));
	close(fd);
}

static void
what_a_guest_said_before_it_left_reaches_a_slow_reader(void **state)
{
	struct guest_sock s;
	static uint8_t sent[VSOCK_BUF_BYTES];
	size_t total = 0, have = 0;
	uint8_t buf[8192];
	ssize_t r;
	int fd;

	(void)state;
	fd = connected(&s);
	/* Until the ring holds something. */
	while (total - s.host_fwd < 100000 && total < 5000000) {
		guest_send(&s, VSOCK_OP_RW, 0, sent, 20000);
		total += 20000;
		struct vsock_hdr hdr;
		while (guest_receive(&hdr, buf, sizeof(buf))) {
			give_rx_buffers(1);
			s.host_fwd = hdr.fwd_cnt;
		}
	}
	guest_send(&s, VSOCK_OP_SHUTDOWN, 3, NULL, 0);
	expect(&s, VSOCK_OP_RST);
	assert_int_equal(vs.connections, 1);
	while ((r = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0) {
		have += (size_t)r;
		run_loop();
	}
	assert_int_equal(r, 0);
	assert_int_equal(have, total);
	assert_int_equal(vs.connections, 0);
	close(fd);
}

static void
a_guest_that_ignores_its_credit_is_reset(void **state)
{
	struct guest_sock s;
	struct vsock_hdr hdr;
	static uint8_t data[60000];
	unsigned i;
	int fd;

	(void)state;
	fd = connected(&s);
	for (i = 0; i < 100 && vs.connections; i++)
		guest_send(&s, VSOCK_OP_RW, 0, data, sizeof(data));
	assert_int_equal(vs.connections, 0);
	do {
		assert_true(guest_receive(&hdr, data, sizeof(data)));
		give_rx_buffers(1);
	} while (hdr.op == VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(hdr.op, VSOCK_OP_RST);
	expect_nothing();
	close(fd);
}

static void
nonsense_on_a_connection_resets_it(void **state)
{
	static const struct {
		uint16_t op;
		uint32_t flags, len, more;
	} bad[] = {
		{VSOCK_OP_RESPONSE, 0, 0, 0}, /* a second time */
		{VSOCK_OP_REQUEST, 0, 0, 0}, {0, 0, 0, 0}, {99, 0, 0, 0},
		{VSOCK_OP_RW, 0, 10, 1}, /* says more than it brings */
	};
	struct guest_sock s;
	struct vsock_hdr hdr;
	size_t i;
	int fd;

	(void)state;
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		fd = connected(&s);
		hdr = (struct vsock_hdr){.src_cid = CID,
			.dst_cid = 2,
			.src_port = PORT,
			.dst_port = s.host_port,
			.type = 1,
			.op = bad[i].op,
			.len = bad[i].len + bad[i].more,
			.buf_alloc = BUF_ALLOC};
		guest_send_raw(&hdr, "0123456789", bad[i].len);
		expect(&s, VSOCK_OP_RST);
		assert_true(at_end(fd));
		assert_int_equal(vs.connections, 0);
		close(fd);
	}
	/* Data after its end. */
	fd = connected(&s);
	guest_send(&s, VSOCK_OP_SHUTDOWN, VSOCK_SHUTDOWN_SEND, NULL, 0);
	guest_send(&s, VSOCK_OP_RW, 0, "x", 1);
	expect(&s, VSOCK_OP_RST);
	close(fd);
}

static void
a_bad_buffer_breaks_the_device_until_its_reset(void **state)
{
	struct guest_sock s;
	struct fake_buf tiny = {FAKE_HEAP, 43, false};
	int fd, other;

	(void)state;
	fd = connected(&s);
	fake_add(&d, VSOCK_TX, &tiny, 1);
	fake_kick(&d, VSOCK_TX);
	assert_true(fake_read(&d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	assert_true(at_end(fd));
	close(fd);
	other = dial();
	say(other, "CONNECT 5\n");
	run_loop();
	assert_memory_equal(heard(other), "ERR", 3);
	close(other);
	assert_true(fake_start(&d, &vs.dev, ALL));
	give_rx_buffers(RX_BUFS);
	fd = connected(&s);
	close(fd);
}

/* Receive buffers of all shapes: whole, header apart, header in pieces, almost nothing. */
#define SHAPES 4
#define SHAPED 32 /* buffers, of up to four descriptors */
static const uint32_t shapes[SHAPES][4] = {
	{RX_LEN}, {sizeof(struct vsock_hdr), 1000}, {10, 30, 7, 3000}, {sizeof(struct vsock_hdr) + 1}};

static void
give_shaped(unsigned place)
{
	const uint32_t *shape = shapes[place % SHAPES];
	const uint64_t at = FAKE_HEAP + 2 * RX_LEN * (uint64_t)place;
	struct fake_buf bufs[4];
	uint32_t done = 0;
	unsigned n = 0;

	for (; n < 4 && shape[n]; done += shape[n++])
		bufs[n] = (struct fake_buf){at + done, shape[n], true};
	rx_at[fake_add(&d, VSOCK_RX, bufs, n)] = at;
	fake_kick(&d, VSOCK_RX);
}

/* The next packet, whose buffer is given again; its op, 0 when there is none. */
static uint16_t
receive_shaped(struct vsock_hdr *hdr, uint8_t data[static RX_LEN])
{
	uint32_t head, len;
	uint64_t at;

	if (!fake_used(&d, VSOCK_RX, &head, &len))
		return 0;
	at = rx_at[head];
	fake_peek(&d, at, hdr, sizeof(*hdr));
	assert_int_equal(len, sizeof(*hdr) + hdr->len);
	fake_peek(&d, at + sizeof(*hdr), data, hdr->len);
	give_shaped((unsigned)((at - FAKE_HEAP) / (2 * RX_LEN)));
	return hdr->op;
}

static void
start_shaped(struct guest_sock *s, int *ret_fd)
{
	uint8_t data[RX_LEN];
	struct vsock_hdr hdr;

	assert_true(fake_start(&d, &vs.dev, ALL));
	for (unsigned i = 0; i < SHAPED; i++)
		give_shaped(i);
	*ret_fd = dial();
	say(*ret_fd, "CONNECT 1024\n");
	run_loop();
	assert_int_equal(receive_shaped(&hdr, data), VSOCK_OP_REQUEST);
	*s = (struct guest_sock){.host_port = hdr.src_port, .guest_port = PORT};
	guest_send(s, VSOCK_OP_RESPONSE, 0, NULL, 0);
	run_loop();
	assert_memory_equal(heard(*ret_fd), "OK ", 3);
}

static void
buffers_of_any_shape_are_filled_in_their_order(void **state)
{
	static uint8_t sent[300000], got[sizeof(sent)];
	uint8_t data[RX_LEN];
	size_t n = 0, put = 0, piece = 1;
	struct virtq *q = &vs.dev.queues[VSOCK_RX];
	struct vsock_hdr hdr;
	struct guest_sock s;
	uint16_t op;
	ssize_t r;
	int fd;

	(void)state;
	start_shaped(&s, &fd);
	for (size_t i = 0; i < sizeof(sent); i++)
		sent[i] = (uint8_t)(i * 31 + i / 251);
	while (n < sizeof(sent)) {
		/* From less than a buffer to more than all of them. */
		piece = piece * 5 % 90001;
		r = send(fd, sent + put, piece < sizeof(sent) - put ? piece : sizeof(sent) - put,
			MSG_DONTWAIT);
		put += r > 0 ? (size_t)r : 0;
		run_loop();
		while ((op = receive_shaped(&hdr, data))) {
			if (op != VSOCK_OP_RW)
				continue;
			assert_true(n + hdr.len <= put);
			memcpy(got + n, data, hdr.len);
			n += hdr.len;
			s.received = (uint32_t)n;
		}
		guest_send(&s, VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
	}
	assert_memory_equal(got, sent, sizeof(sent));
	assert_int_equal(put, sizeof(sent));
	/* None of them was lost: those that a read was given and did not need lie there. */
	assert_int_equal((uint16_t)(virtq_avail_index(q, &d.mem) - q->next_avail), SHAPED);
	/* The end comes behind all of them. */
	close(fd);
	run_loop();
	while ((op = receive_shaped(&hdr, data)) && op != VSOCK_OP_SHUTDOWN)
		assert_int_not_equal(op, VSOCK_OP_RW);
	assert_int_equal(op, VSOCK_OP_SHUTDOWN);
}

static void
a_bad_buffer_among_many_breaks_the_device(void **state)
{
	static uint8_t much[60000];
	struct fake_buf tiny = {FAKE_HEAP + 0x200000, sizeof(struct vsock_hdr), true};
	struct guest_sock s;
	int fd;

	(void)state;
	assert_true(fake_start(&d, &vs.dev, ALL));
	give_rx_buffers(4);
	fake_add(&d, VSOCK_RX, &tiny, 1);
	give_rx_buffers(4);
	fd = connected(&s);
	assert_true(send(fd, much, sizeof(much), MSG_DONTWAIT) > 0);
	run_loop();
	assert_true(fake_read(&d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	assert_true(at_end(fd));
	close(fd);
}

static void
without_receive_buffers_everything_waits(void **state)
{
	struct guest_sock s = {.guest_port = PORT}, stranger = {.host_port = 1};
	struct vsock_hdr hdr;
	uint8_t data[64];
	unsigned i, rsts = 0;
	int fd;

	(void)state;
	assert_true(fake_start(&d, &vs.dev, ALL)); /* none given */
	fd = dial();
	say(fd, "CONNECT 1024\nearly");
	run_loop();
	expect_nothing();
	/* More refusals than are kept: the rest stays in the guest's queue. */
	for (i = 0; i < VSOCK_RSTS_MAX + 50; i++) {
		stranger.guest_port = i;
		guest_send(&stranger, VSOCK_OP_REQUEST, 0, NULL, 0);
	}
	assert_int_equal(vs.rst_count, VSOCK_RSTS_MAX);
	while (s.host_port == 0 || rsts < VSOCK_RSTS_MAX + 50) {
		give_rx_buffers(8);
		for (i = 0; i < 8; i++) {
			if (!guest_receive(&hdr, data, sizeof(data)))
				break;
			if (hdr.op == VSOCK_OP_RST) {
				assert_int_equal(hdr.dst_port, rsts);
				rsts++;
			} else {
				s.host_port = hdr.src_port;
			}
		}
		assert_true(i);
	}
	close(fd);
}

static void
many_connections_live_side_by_side(void **state)
{
	enum { N = 300 };
	static struct guest_sock s[N];
	struct vsock_hdr hdr;
	uint8_t data[64];
	int fds[N], round, i, j;

	(void)state;
	for (i = 0; i < N; i++)
		fds[i] = connected(&s[i]);
	assert_int_equal(vs.connections, N);
	for (round = 0; round < 3; round++) {
		for (i = 0; i < N; i++)
			assert_int_equal(send(fds[i], &i, sizeof(i), 0), sizeof(i));
		for (j = 0; j < N;) {
			run_loop();
			assert_true(guest_receive(&hdr, data, sizeof(data)));
			give_rx_buffers(1);
			memcpy(&i, data, sizeof(i));
			assert_int_equal(hdr.src_port, s[i].host_port);
			s[i].received += sizeof(i);
			i += 1000;
			guest_send(&s[i - 1000], VSOCK_OP_RW, 0, &i, sizeof(i));
			j++;
		}
		for (i = 0; i < N; i++) {
			assert_int_equal(
				recv(fds[i], &j, sizeof(j), MSG_DONTWAIT), sizeof(j));
			assert_int_equal(j, i + 1000);
		}
	}
	for (i = 0; i < N; i += 2)
		close(fds[i]);
	run_loop();
	for (i = 0; i < N; i += 2) {
		assert_true(guest_receive(&hdr, data, sizeof(data)));
		assert_int_equal(hdr.op, VSOCK_OP_SHUTDOWN);
		give_rx_buffers(1);
	}
	for (i = 0; i < N; i++)
		guest_send(&s[i], VSOCK_OP_RST, 0, NULL, 0);
	assert_int_equal(vs.connections, 0);
	for (i = 1; i < N; i += 2) {
		assert_true(at_end(fds[i]));
		close(fds[i]);
	}
}

static void
one_too_many_is_refused(void **state)
{
	const struct rlimit many = {.rlim_cur = 8192, .rlim_max = 8192};
	static int fds[VSOCK_CONNS_MAX + 1];
	struct guest_sock s;
	unsigned i;

	(void)state;
	if (setrlimit(RLIMIT_NOFILE, &many))
		skip();
	for (i = 0; i <= VSOCK_CONNS_MAX; i++) {
		fds[i] = dial();
		run_loop();
	}
	assert_int_equal(vs.connections, VSOCK_CONNS_MAX);
	assert_non_null(strstr(heard(fds[VSOCK_CONNS_MAX]), "as many as it can hold"));
	for (i = 0; i <= VSOCK_CONNS_MAX; i++)
		close(fds[i]);
	run_loop();
	assert_int_equal(vs.connections, 0);
	close(connected(&s));
}

static void
pass_time(unsigned ms)
{
	later_ns += ms * 1000000ull;
	vsock_tick(&vs);
}

static void
nobody_waits_for_ever(void **state)
{
	struct guest_sock s;
	int silent = dial(), waiting = dial(), gone, t;

	(void)state;
	assert_int_equal(vsock_timeout_ms(&vs), -1);
	say(waiting, "CONNECT 9\n");
	run_loop();
	t = vsock_timeout_ms(&vs);
	assert_true(t > VSOCK_CONNECT_MS - 2000 && t <= VSOCK_CONNECT_MS + 1);
	s = (struct guest_sock){.guest_port = 9};
	s.host_port = expect(NULL, VSOCK_OP_REQUEST).src_port;
	pass_time(VSOCK_CONNECT_MS);
	assert_non_null(strstr(heard(silent), "no CONNECT line"));
	assert_non_null(strstr(heard(waiting), "did not answer in time"));
	expect(&s, VSOCK_OP_RST);
	assert_int_equal(vs.connections, 0);
	/* A guest that does not end what the client ended. */
	gone = connected(&s);
	close(gone);
	run_loop();
	expect(&s, VSOCK_OP_SHUTDOWN);
	pass_time(VSOCK_CONNECT_MS);
	expect(&s, VSOCK_OP_RST);
	assert_int_equal(vs.connections, 0);
	assert_int_equal(vsock_timeout_ms(&vs), -1);
	close(silent);
	close(waiting);
}

static void
a_client_that_gives_up_frees_its_place(void **state)
{
	struct guest_sock s = {.guest_port = PORT};
	int fd = dial();

	(void)state;
	run_loop();
	close(fd);
	run_loop();
	assert_int_equal(vs.connections, 0);
	fd = dial();
	say(fd, "CONNECT 1024\n");
	run_loop();
	s.host_port = expect(NULL, VSOCK_OP_REQUEST).src_port;
	close(fd);
	run_loop();
	expect(&s, VSOCK_OP_RST);
	assert_int_equal(vs.connections, 0);
	/* The guest's answer crosses it. */
	guest_send(&s, VSOCK_OP_RESPONSE, 0, NULL, 0);
	expect(&s, VSOCK_OP_RST);
}

static void
an_event_of_an_ended_connection_does_not_touch_the_next(void **state)
{
	struct guest_sock s;
	uint64_t token;
	int fd, next;

	(void)state;
	fd = connected(&s);
	token = last_token;
	guest_send(&s, VSOCK_OP_RST, 0, NULL, 0);
	next = connected(&s);
	assert_int_equal(last_token & 0xffff, token & 0xffff); /* the same slot */
	vsock_handle_event(&vs, token, EPOLLHUP);
	run_loop();
	expect_nothing();
	guest_send(&s, VSOCK_OP_RW, 0, "alive", 5);
	assert_string_equal(heard(next), "alive");
	say(next, "too"); /* the loop still watches it */
	run_loop();
	assert_int_equal(expect(&s, VSOCK_OP_RW).len, 3);
	vsock_handle_event(&vs, VSOCK_TOKEN | 0x1234, EPOLLHUP); /* never given out */
	close(fd);
	close(next);
}

static void
a_doorbell_wakes_the_main_thread_once(void **state)
{
	struct guest_sock s = {.host_port = 80, .guest_port = 1};
	int kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint64_t n;

	(void)state;
	start(kick);
	give_rx_buffers(RX_BUFS);
	guest_send(&s, VSOCK_OP_REQUEST, 0, NULL, 0);
	guest_send(&s, VSOCK_OP_REQUEST, 0, NULL, 0);
	expect_nothing();
	assert_int_equal(read(kick, &n, sizeof(n)), sizeof(n));
	assert_int_equal(n, 1);
	d.irqs = 0;
	vsock_kick(&vs);
	assert_int_equal(d.irqs, 1);
	expect(&s, VSOCK_OP_RST);
	expect(&s, VSOCK_OP_RST);
	close(kick);
	teardown(state);
}

static void
after_a_fork_the_child_starts_anew_and_the_parent_goes_on(void **state)
{
	struct guest_sock s, n;
	struct err e = {0};
	uint32_t head, len, event = 99;
	int fd, fresh, status, listen_fd;
	pid_t pid;

	(void)state;
	fd = connected(&s);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		/* cmocka's failure would go on in the parent's place: any is an exit. */
		epoll_fd = epoll_create1(EPOLL_CLOEXEC);
		strcat(path, "c");
		listen_fd = listener();
		d.irqs = 0;
		if (vsock_reset_child(&vs, fake_irq(&d), listen_fd, -1, &loop, &e) ||
			vs.connections || d.irqs ||
			fake_used(&d, VSOCK_EVENT, NULL, NULL))
			_exit(1);
		fresh = dial();
		say(fresh, "CONNECT 7\n");
		run_loop();
		virtio_dev_resume(&vs.dev);
		if (!fake_used(&d, VSOCK_EVENT, &head, &len) || len != 4 || !d.irqs)
			_exit(2);
		fake_peek(&d, FAKE_HEAP + 0x300000 + 16u * (3 - head), &event, 4);
		if (event != 0)
			_exit(3);
		run_loop();
		/* Held until the driver has taken the event. */
		if (fake_used(&d, VSOCK_RX, NULL, NULL))
			_exit(4);
		give_event_buffers(1);
		n = (struct guest_sock){.guest_port = 7};
		n.host_port = expect(NULL, VSOCK_OP_REQUEST).src_port;
		guest_send(&n, VSOCK_OP_RESPONSE, 0, NULL, 0);
		if (memcmp(heard(fresh), "OK ", 3) != 0)
			_exit(5);
		/* The old connection is unknown here. */
		guest_send(&s, VSOCK_OP_RW, 0, "x", 1);
		expect(&s, VSOCK_OP_RST);
		unlink(path);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	virtio_dev_resume(&vs.dev);
	assert_false(fake_used(&d, VSOCK_EVENT, NULL, NULL));
	guest_send(&s, VSOCK_OP_RW, 0, "still here", 10);
	assert_string_equal(heard(fd), "still here");
	say(fd, "yes");
	run_loop();
	expect(&s, VSOCK_OP_RW);
	close(fd);
}

static void
a_driver_that_keeps_the_event_does_not_block_for_ever(void **state)
{
	struct err e = {0};
	int fd;

	(void)state;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	assert_int_equal(
		vsock_reset_child(&vs, fake_irq(&d), listener(), -1, &loop, &e), 0);
	virtio_dev_resume(&vs.dev);
	fd = dial();
	say(fd, "CONNECT 7\n");
	run_loop();
	expect_nothing();
	assert_true(vsock_timeout_ms(&vs) <= VSOCK_RESET_MS + 1);
	pass_time(VSOCK_RESET_MS);
	expect(NULL, VSOCK_OP_REQUEST);
	close(fd);
}

/* As of a VM that is reset: clients hear the end, the guest of the next state a transport reset. */
static void
a_device_that_forgets_cuts_its_clients_and_takes_new_ones(void **state)
{
	uint8_t room[4096];
	struct blob_out out;
	struct blob_in in, one;
	struct guest_sock s;
	struct err e = {0};
	size_t len;
	int fd, waits;

	(void)state;
	fd = connected(&s);
	waits = dial(); /* its line has not come */
	run_loop();
	assert_int_equal(vs.connections, 2);
	blob_start(&out, room, sizeof(room));
	blob_begin(&out, BLOB_TAG('V', 'S', 'C', 'K'));
	vsock_save(&vs, &out);
	blob_end(&out);
	len = blob_finish(&out);
	assert_int_equal(blob_open(room, len, &in, &e), 0);
	vsock_forget(&vs);
	assert_int_equal(vs.connections, 0);
	assert_string_equal(heard(fd), "");
	assert_string_equal(heard(waits), "");
	assert_false(virtio_dev_running(&vs.dev));
	assert_int_equal(blob_next(&in, BLOB_TAG('V', 'S', 'C', 'K'), "vsock", &one, &e), 0);
	assert_int_equal(vsock_load(&vs, &one, &e), 0);
	d.irqs = 0;
	virtio_dev_resume(&vs.dev);
	assert_true(fake_used(&d, VSOCK_EVENT, NULL, NULL) && d.irqs);
	close(fd);
	close(waits);
	give_event_buffers(1);
	fd = dial();
	say(fd, "CONNECT 7\n");
	run_loop();
	expect(NULL, VSOCK_OP_REQUEST);
	close(fd);
}

static void
a_reserved_context_id_is_refused(void **state)
{
	static struct vsock other;
	struct err e = {0};

	(void)state;
	assert_int_equal(
		vsock_init(&other, &d.mem, fake_irq(&d), 2, -1, -1, NULL, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "reserved"));
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_client_and_the_guest_talk),
		T(what_follows_the_line_at_once_is_the_guests),
		T(a_line_in_pieces_is_read),
		T(a_bad_line_is_answered_by_a_sentence),
		T(a_port_nobody_listens_on_is_refused),
		T(without_a_driver_a_client_is_refused),
		T(a_connection_from_the_guest_is_refused),
		T(a_client_that_ends_its_side_still_hears),
		T(a_guest_that_ends_its_side_still_hears),
		T(a_client_that_leaves_is_heard_to_the_end),
		T(the_guests_credit_is_respected),
		T(a_slow_reader_holds_the_guest_back_and_loses_nothing),
		T(what_a_guest_said_before_it_left_reaches_a_slow_reader),
		T(a_guest_that_ignores_its_credit_is_reset),
		T(nonsense_on_a_connection_resets_it),
		T(a_bad_buffer_breaks_the_device_until_its_reset),
		T(buffers_of_any_shape_are_filled_in_their_order),
		T(a_bad_buffer_among_many_breaks_the_device),
		T(without_receive_buffers_everything_waits),
		T(many_connections_live_side_by_side),
		T(one_too_many_is_refused),
		T(nobody_waits_for_ever),
		T(a_client_that_gives_up_frees_its_place),
		T(an_event_of_an_ended_connection_does_not_touch_the_next),
		cmocka_unit_test(a_doorbell_wakes_the_main_thread_once),
		T(after_a_fork_the_child_starts_anew_and_the_parent_goes_on),
		T(a_driver_that_keeps_the_event_does_not_block_for_ever),
		T(a_device_that_forgets_cuts_its_clients_and_takes_new_ones),
		T(a_reserved_context_id_is_refused),
	};

	log_init("test", LOG_LEVEL_ERR); /* what the guest broke is expected */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
