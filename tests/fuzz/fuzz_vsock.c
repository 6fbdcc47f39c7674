/*
 * vsock between clients and a guest, both conducted by the input. While the guest keeps
 * to the rules, the bytes of each direction are checked: what arrives is what was sent,
 * in order, never more than the receiver's credit. Wild operations (bytes into registers,
 * rings, descriptors, headers) end that for the run. Always: nothing crashes, the main
 * loop comes to rest, no descriptor leaks.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "tests/unit/fake_driver.h"
#include "vmm/vsock.h"

#define CID 3
#define CLIENTS 6
#define RX_AREA (FAKE_HEAP + 0x100000) /* a buffer per head, 8 KiB apart */
#define TX_AREA (FAKE_HEAP + 0x400000)
#define BUF_ALLOC 20000u
#define LOOP_TURNS 5000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
uint64_t __real_io_now_ns(void);
uint64_t __wrap_io_now_ns(void);

struct input {
	const uint8_t *p;
	size_t left;
};

/* One stream: a client and, once known, the guest's end of it. */
struct stream {
	int fd;		    /* -1: none */
	bool acknowledged;  /* the OK line was read */
	uint8_t heard_line; /* bytes of it */
	uint32_t client_sent, client_got;
	uint32_t host_port, guest_port;
	uint32_t guest_got, guest_sent, guest_read; /* guest_read: fwd_cnt */
	uint32_t host_fwd, host_alloc;
	bool guest_open, guest_ended;
};

static struct fake_driver d;
static struct vsock vs;
static struct stream streams[CLIENTS];
static struct sockaddr_un addr;
static socklen_t addr_len;
static int epoll_fd;
static bool wild;
static uint64_t now_ns;

#define MUST(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x); \
			abort(); \
		} \
	} while (0)

uint64_t
__wrap_io_now_ns(void)
{
	return now_ns;
}

static uint64_t
take(struct input *in, unsigned bytes)
{
	uint64_t v = 0;

	if (bytes > in->left)
		bytes = (unsigned)in->left;
	memcpy(&v, in->p, bytes);
	in->p += bytes;
	in->left -= bytes;
	return v;
}

/* Byte i of a stream, in either direction. */
static uint8_t
pattern(uint32_t i)
{
	return (uint8_t)(i * 31 + (i >> 8));
}

static int
loop_ctl(int op, int fd, uint32_t events, uint64_t token)
{
	struct epoll_event ev = {.events = events, .data.u64 = token};

	return epoll_ctl(epoll_fd, op, fd, &ev) ? -errno : 0;
}

static int
loop_add(void *ctx, int fd, uint32_t events, uint64_t token)
{
	(void)ctx;
	return loop_ctl(EPOLL_CTL_ADD, fd, events, token);
}

static int
loop_mod(void *ctx, int fd, uint32_t events, uint64_t token)
{
	(void)ctx;
	return loop_ctl(EPOLL_CTL_MOD, fd, events, token);
}

static void
loop_del(void *ctx, int fd)
{
	(void)ctx;
	MUST(loop_ctl(EPOLL_CTL_DEL, fd, 0, 0) == 0);
}

static const struct vsock_loop loop = {loop_add, loop_mod, loop_del, NULL};

static void
run_loop(void)
{
	struct epoll_event ev[8];
	int n, i, turns = 0;

	while ((n = epoll_wait(epoll_fd, ev, 8, 0)) > 0) {
		for (i = 0; i < n; i++)
			vsock_handle_event(&vs, ev[i].data.u64, ev[i].events);
		MUST(++turns < LOOP_TURNS);
	}
}

static int
listener(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	MUST(fd >= 0 && bind(fd, (struct sockaddr *)&addr, addr_len) == 0 &&
		listen(fd, 16) == 0);
	return fd;
}

static void
give_rx(unsigned n, uint32_t len)
{
	while (n--) {
		struct fake_buf buf = {
			RX_AREA + 8192ull * d.q[VSOCK_RX].next_desc, len, true};

		if ((uint16_t)(d.q[VSOCK_RX].avail_idx - d.q[VSOCK_RX].used_seen) >=
			d.q[VSOCK_RX].size)
			break;
		fake_add(&d, VSOCK_RX, &buf, 1);
	}
	fake_kick(&d, VSOCK_RX);
}

static void
give_events(unsigned n)
{
	while (n--) {
		struct fake_buf buf = {FAKE_HEAP, 4, true};

		while (fake_used(&d, VSOCK_EVENT, NULL, NULL))
			;
		if ((uint16_t)(d.q[VSOCK_EVENT].avail_idx - d.q[VSOCK_EVENT].used_seen) >=
			d.q[VSOCK_EVENT].size)
			break;
		fake_add(&d, VSOCK_EVENT, &buf, 1);
	}
	fake_kick(&d, VSOCK_EVENT);
}

static void
send_packet(const struct vsock_hdr *hdr, uint32_t first, uint32_t len)
{
	struct fake_buf bufs[] = {
		{TX_AREA, sizeof(*hdr), false}, {TX_AREA + sizeof(*hdr), len, false}};
	uint8_t *p = guest_range(&d.mem, (gpa_t){TX_AREA + sizeof(*hdr)}, len + 1);
	uint32_t i;

	/* One at a time: what waits behind a full queue would be written over. */
	if (!wild && d.q[VSOCK_TX].avail_idx != vs.dev.queues[VSOCK_TX].next_avail)
		return;
	fake_poke(&d, TX_AREA, hdr, sizeof(*hdr));
	for (i = 0; i < len; i++)
		p[i] = pattern(first + i);
	fake_add(&d, VSOCK_TX, bufs, len ? 2 : 1);
	fake_kick(&d, VSOCK_TX);
	while (fake_used(&d, VSOCK_TX, NULL, NULL))
		;
}

static void
guest_send(struct stream *s, uint16_t op, uint32_t flags, uint32_t len)
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
		.fwd_cnt = s->guest_read,
	};
	uint32_t first = s->guest_sent;

	if (!wild && d.q[VSOCK_TX].avail_idx != vs.dev.queues[VSOCK_TX].next_avail)
		return;
	s->guest_sent += len;
	send_packet(&hdr, first, len);
}

static struct stream *
stream_of(uint32_t host_port)
{
	unsigned i;

	for (i = 0; i < CLIENTS; i++)
		if (streams[i].guest_open && streams[i].host_port == host_port)
			return &streams[i];
	return NULL;
}

/* A REQUEST says which client it is by the port it asked for: 1000 + i. */
static void
guest_accept(const struct vsock_hdr *hdr)
{
	unsigned i = hdr->dst_port - 1000;
	struct stream *s;

	if (i >= CLIENTS || streams[i].guest_open)
		return;
	s = &streams[i];
	s->host_port = hdr->src_port;
	s->guest_port = hdr->dst_port;
	s->host_alloc = hdr->buf_alloc;
	s->host_fwd = hdr->fwd_cnt;
	s->guest_got = s->guest_sent = s->guest_read = 0;
	s->guest_open = true;
	s->guest_ended = false;
	guest_send(s, VSOCK_OP_RESPONSE, 0, 0);
}

static void
guest_packet(const struct vsock_hdr *hdr, const uint8_t *data)
{
	struct stream *s = stream_of(hdr->src_port);
	uint32_t i;

	if (hdr->op == VSOCK_OP_REQUEST) {
		guest_accept(hdr);
		return;
	}
	if (!s)
		return;
	s->host_fwd = hdr->fwd_cnt;
	if (hdr->op == VSOCK_OP_RST)
		s->guest_open = false;
	if (hdr->op == VSOCK_OP_CREDIT_REQUEST)
		guest_send(s, VSOCK_OP_CREDIT_UPDATE, 0, 0);
	if (hdr->op != VSOCK_OP_RW || wild)
		return;
	MUST(s->guest_got + hdr->len - s->guest_read <= BUF_ALLOC);
	MUST(s->fd < 0 || s->guest_got + hdr->len <= s->client_sent);
	for (i = 0; i < hdr->len; i++)
		MUST(data[i] == pattern(s->guest_got + i));
	s->guest_got += hdr->len;
}

static void
guest_receive(void)
{
	uint8_t data[8192];
	struct vsock_hdr hdr;
	uint32_t head, len;
	unsigned n = 0;

	while (n++ < 300 && fake_used(&d, VSOCK_RX, &head, &len)) {
		if (!wild)
			MUST(head < d.q[VSOCK_RX].size && len >= sizeof(hdr) &&
				len <= 8192);
		if (head >= d.q[VSOCK_RX].size || len < sizeof(hdr) || len > 8192)
			continue;
		fake_peek(&d, RX_AREA + 8192ull * head, &hdr, sizeof(hdr));
		fake_peek(&d, RX_AREA + 8192ull * head + sizeof(hdr), data,
			len - sizeof(hdr));
		if (!wild)
			MUST(hdr.len == len - sizeof(hdr) && hdr.dst_cid == CID);
		if (hdr.len <= len - sizeof(hdr))
			guest_packet(&hdr, data);
	}
}

static void
dial(struct input *in, struct stream *s)
{
	char line[64];
	int n;

	if (s->fd >= 0 || s->guest_open)
		return;
	*s = (struct stream){
		.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
	MUST(s->fd >= 0);
	if (connect(s->fd, (struct sockaddr *)&addr, addr_len)) {
		close(s->fd);
		s->fd = -1;
		return;
	}
	if (take(in, 1) % 8) {
		n = snprintf(line, sizeof(line), "CONNECT %u\n",
			1000 + (unsigned)(s - streams));
	} else {
		n = (int)(take(in, 1) % 40);
		memset(line, 'x', sizeof(line));
		memcpy(line, in->p, in->left < (size_t)n ? in->left : (size_t)n);
		take(in, n > 8 ? 8 : (unsigned)n);
	}
	if (send(s->fd, line, (size_t)n, MSG_NOSIGNAL) < 0)
		return;
	run_loop();
}

static void
client_send(struct stream *s, uint32_t len)
{
	static uint8_t buf[65536];
	uint32_t i;
	ssize_t n;

	if (s->fd < 0 || !s->acknowledged)
		return;
	for (i = 0; i < len; i++)
		buf[i] = pattern(s->client_sent + i);
	n = send(s->fd, buf, len, MSG_NOSIGNAL);
	if (n > 0)
		s->client_sent += (uint32_t)n;
}

static void
client_receive(struct stream *s, uint32_t len)
{
	static uint8_t buf[65536];
	ssize_t n;
	uint32_t i;

	while (s->fd >= 0 && !s->acknowledged) {
		char c;

		if (recv(s->fd, &c, 1, 0) != 1)
			return;
		if (s->heard_line == 0 && c != 'O') { /* refused */
			close(s->fd);
			s->fd = -1;
			return;
		}
		s->heard_line++;
		s->acknowledged = c == '\n';
	}
	if (s->fd < 0)
		return;
	n = recv(s->fd, buf, len, 0);
	if (n <= 0 || wild)
		return;
	MUST(s->client_got + (uint32_t)n <= s->guest_sent);
	for (i = 0; i < (uint32_t)n; i++)
		MUST(buf[i] == pattern(s->client_got + i));
	s->client_got += (uint32_t)n;
}

static void
guest_talk(struct stream *s, uint32_t len)
{
	uint32_t room = s->host_alloc - (s->guest_sent - s->host_fwd);

	if (!s->guest_open || s->guest_ended)
		return;
	len = len < room ? len : room;
	if (len)
		guest_send(s, VSOCK_OP_RW, 0, len);
}

static void
go_wild(struct input *in)
{
	struct vsock_hdr hdr;
	struct virtq_desc desc;
	uint8_t raw[64];
	unsigned n = (unsigned)take(in, 1) % 12 + 1, len, q;

	wild = true;
	while (n-- && in->left) {
		q = (unsigned)take(in, 1);
		switch (q / 4 % 6) {
		case 0:
			fake_write(&d, take(in, 2) % VIRTIO_MMIO_SIZE & ~3ull,
				(uint32_t)take(in, 4));
			break;
		case 1:
			len = (unsigned)take(in, 1) % sizeof(raw);
			memset(raw, 0, sizeof(raw));
			memcpy(raw, in->p, len < in->left ? len : in->left);
			take(in, len > 8 ? 8 : len);
			fake_poke(&d, FAKE_RINGS + take(in, 3) % (0x30000 - sizeof(raw)),
				raw, len);
			break;
		case 2:
			desc.addr =
				take(in, 1) & 1 ? FAKE_HEAP + take(in, 3) : take(in, 8);
			desc.len = (uint32_t)take(in, 3);
			desc.flags = (uint16_t)take(in, 1) & 7;
			desc.next = (uint16_t)take(in, 1);
			if (d.q[q % 3].size)
				fake_set_desc(&d, q % 3,
					(uint16_t)(take(in, 1) % d.q[q % 3].size), desc);
			break;
		case 3:
			fake_offer(&d, q % 3, (uint16_t)take(in, 1));
			fake_kick(&d, q % 3);
			break;
		case 4: /* a forged packet, near a live one */
			memset(&hdr, 0, sizeof(hdr));
			hdr.src_cid = CID;
			hdr.dst_cid = take(in, 1) % 16 ? 2 : 7;
			hdr.src_port = streams[take(in, 1) % CLIENTS].guest_port;
			hdr.dst_port = streams[take(in, 1) % CLIENTS].host_port +
				       (uint32_t)(take(in, 1) % 8 == 0);
			hdr.op = (uint16_t)take(in, 1) % 10;
			hdr.type = take(in, 1) % 16 ? 1 : 2;
			hdr.flags = (uint32_t)take(in, 1);
			hdr.len = (uint32_t)take(in, 3);
			hdr.buf_alloc = (uint32_t)take(in, 4);
			hdr.fwd_cnt = (uint32_t)take(in, 4);
			send_packet(&hdr, 0,
				hdr.len & 1 ? hdr.len % 65536 : (uint32_t)take(in, 2));
			break;
		case 5:
			fake_kick(&d, q % 5);
			break;
		}
		run_loop();
	}
}

static void
restart_driver(void)
{
	unsigned i;

	MUST(fake_start(&d, &vs.dev, UINT64_MAX));
	for (i = 0; i < CLIENTS; i++)
		streams[i].guest_open = false;
	give_events(4);
}

/* As in a child of a fork, but for the parent: its connections end with it. */
static void
become_child(void)
{
	struct err e = {0};
	unsigned i;

	close(epoll_fd);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	close(vs.listen_fd);
	vs.listen_fd = -1;
	MUST(vsock_reset_child(&vs, fake_irq(&d), listener(), -1, &loop, &e) == 0);
	virtio_dev_resume(&vs.dev);
	guest_receive();
	for (i = 0; i < CLIENTS; i++)
		streams[i].guest_open = false;
}

static void
one_step(struct input *in)
{
	unsigned op = (unsigned)take(in, 1);
	struct stream *s = &streams[op / 16 % CLIENTS];

	switch (op % 16) {
	case 0:
	case 1:
		dial(in, s);
		break;
	case 2:
		client_send(s, (uint32_t)take(in, 2));
		break;
	case 3:
		client_receive(s, (uint32_t)take(in, 2));
		break;
	case 4:
		if (s->fd >= 0)
			shutdown(s->fd, (int)take(in, 1) % 3);
		break;
	case 5:
		if (s->fd >= 0)
			close(s->fd);
		s->fd = -1;
		break;
	case 6:
	case 7:
		guest_talk(s, (uint32_t)take(in, 2));
		break;
	case 8:
		if (s->guest_open) {
			uint8_t flags = (uint8_t)take(in, 1) & 3;

			s->guest_ended |= flags & VSOCK_SHUTDOWN_SEND;
			guest_send(s, VSOCK_OP_SHUTDOWN, flags, 0);
		}
		break;
	case 9:
		if (s->guest_open)
			guest_send(s, VSOCK_OP_RST, 0, 0);
		s->guest_open = false;
		break;
	case 10: /* its reader reads */
		if (s->guest_open) {
			s->guest_read = s->guest_got;
			guest_send(s, VSOCK_OP_CREDIT_UPDATE, 0, 0);
		}
		break;
	case 11:
		give_rx((unsigned)take(in, 1) % 64,
			45 + (uint32_t)take(in, 2) % (8192 - 45));
		break;
	case 12:
		now_ns += take(in, 2) * 1000000ull;
		(void)vsock_timeout_ms(&vs);
		vsock_tick(&vs);
		break;
	case 13:
		if (take(in, 1) & 1)
			become_child();
		else
			give_events(2);
		break;
	case 14:
		go_wild(in);
		break;
	case 15:
		if (take(in, 1) % 4 == 0)
			restart_driver();
		break;
	}
	run_loop();
	guest_receive();
}

static void
start(void)
{
	static const uint8_t zeroes[0x100000];
	static bool once;
	struct err e = {0};
	unsigned i;

	if (!once) {
		once = true;
		log_init("fuzz", (enum log_level)0);
		fake_driver_init(&d);
		addr.sun_family = AF_UNIX;
		i = (unsigned)snprintf(addr.sun_path + 1, sizeof(addr.sun_path) - 1,
			"fuzz_vsock.%d", (int)getpid());
		addr_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + i);
	}
	wild = false;
	now_ns = 1000000000ull;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	fake_poke(&d, FAKE_HEAP, zeroes, sizeof(zeroes));
	for (i = 0; i < CLIENTS; i++)
		streams[i] = (struct stream){.fd = -1};
	MUST(vsock_init(&vs, &d.mem, fake_irq(&d), CID, listener(), -1, &loop, &e) == 0);
	restart_driver();
	give_rx(32, 4096);
}

static int
lowest_free_fd(void)
{
	int fd = dup(0);

	close(fd);
	return fd;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	const int lowest = lowest_free_fd();
	unsigned i;

	start();
	while (in.left)
		one_step(&in);
	for (i = 0; i < CLIENTS; i++)
		if (streams[i].fd >= 0)
			close(streams[i].fd);
	run_loop();
	vsock_destroy(&vs);
	close(epoll_fd);
	MUST(lowest_free_fd() == lowest);
	return 0;
}
