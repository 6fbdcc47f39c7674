/*
 * What the vsock device itself costs (vmm/vsock.h): its code in this process, a driver on plain
 * memory in the same thread (tests/unit/fake_driver.h), a client in a process of its own. No KVM,
 * no guest: bench_vsock has those.
 *
 *   bench_vsock_device [--json] [--rounds N] [--mib N]
 *
 * up      the client's bytes into 4 KiB buffers     read(2) of 64 KiB from its socket
 * down    packets of 64 KiB to the client           write(2) of 64 KiB to its socket
 * trip    one byte there and back                   the same
 *
 * cpu is this thread's: device, driver and loop, or the bare calls.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "tests/bench/must.h"
#include "tests/bench/sample.h"
#include "tests/unit/fake_driver.h"
#include "vmm/vsock.h"

#define CID 3
#define RX_LEN 4096u
#define RX_BUFS 128u
#define PIECE (64u << 10)
#define TX_AT (FAKE_HEAP + 0x400000u)
#define TX_SLOTS 8u
#define TX_LEN 0x11000u
#define CREDIT (256u << 10) /* of Linux */
#define TRIPS 200
#define WAIT_MS 60000

static struct json_out json;
static struct json_out *out; /* NULL: lines */
static unsigned rounds = 20, mib = 64;
static struct fake_driver d;
static struct vsock vs;
static int epoll_fd;
static char path[64];
static uint64_t rx_at[VIRTQ_SIZE_MAX];
static struct err e;

/* The guest's end of the one connection. */
static struct {
	uint32_t host_port, guest_port, sent, fwd, told, peer_alloc, peer_fwd;
	unsigned packets, in_flight;
	bool is_open, is_over;
} sock;

static int
loop_add(void *ctx, int fd, uint32_t events, uint64_t token)
{
	struct epoll_event ev = {.events = events, .data.u64 = token};

	(void)ctx;
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
	(void)epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

static const struct vsock_loop loop = {loop_add, loop_mod, loop_del, NULL};

static void
must_be(bool good, const char *what)
{
	must(good ? 0 : err_sys(&e, errno ? -errno : -EIO, "failed"), what, &e);
}

static void
give_rx_buffer(uint64_t at)
{
	struct fake_buf buf = {at, RX_LEN, true};

	rx_at[fake_add(&d, VSOCK_RX, &buf, 1)] = at;
}

static void
guest_send(uint16_t op, uint32_t len)
{
	const uint64_t at = TX_AT + TX_LEN * (sock.packets++ % TX_SLOTS);
	struct fake_buf bufs[] = {{at, sizeof(struct vsock_hdr), false},
		{at + sizeof(struct vsock_hdr), len, false}};
	struct vsock_hdr hdr = {.src_cid = CID, .dst_cid = VSOCK_HOST_CID,
		.src_port = sock.guest_port, .dst_port = sock.host_port, .len = len,
		.type = VSOCK_TYPE_STREAM, .op = op, .buf_alloc = CREDIT, .fwd_cnt = sock.fwd};

	fake_poke(&d, at, &hdr, sizeof(hdr));
	fake_add(&d, VSOCK_TX, bufs, len ? 2 : 1);
	fake_kick(&d, VSOCK_TX);
	sock.told = sock.fwd;
	sock.sent += len;
	sock.in_flight++;
}

/* What has come for the guest: the bytes. */
static uint64_t
guest_receive(void)
{
	uint32_t head, len;
	uint64_t bytes = 0;
	bool any;

again:
	any = false;
	while (fake_used(&d, VSOCK_RX, &head, &len)) {
		struct vsock_hdr hdr;

		fake_peek(&d, rx_at[head], &hdr, sizeof(hdr));
		sock.peer_alloc = hdr.buf_alloc;
		sock.peer_fwd = hdr.fwd_cnt;
		bytes += hdr.len;
		sock.fwd += hdr.len;
		give_rx_buffer(rx_at[head]);
		any = true;
		if (hdr.op == VSOCK_OP_REQUEST) {
			memset(&sock, 0, sizeof(sock));
			sock.host_port = hdr.src_port;
			sock.guest_port = hdr.dst_port;
			sock.peer_alloc = hdr.buf_alloc;
			sock.is_open = true;
			guest_send(VSOCK_OP_RESPONSE, 0);
		} else if (hdr.op == VSOCK_OP_SHUTDOWN) {
			guest_send(VSOCK_OP_RST, 0);
			sock.is_over = true;
		}
	}
	if (sock.fwd - sock.told >= CREDIT / 2)
		guest_send(VSOCK_OP_CREDIT_UPDATE, 0);
	/* The device works within the doorbell: there may be more now. */
	if (any) {
		fake_kick(&d, VSOCK_RX);
		goto again;
	}
	while (sock.in_flight && fake_used(&d, VSOCK_TX, &head, &len))
		sock.in_flight--;
	return bytes;
}

/* One turn of the main loop, and of the driver. */
static uint64_t
turn(void)
{
	struct epoll_event ev[16];
	int n = epoll_wait(epoll_fd, ev, 16, WAIT_MS);

	must_be(n > 0, "the client");
	for (int i = 0; i < n; i++)
		vsock_handle_event(&vs, ev[i].data.u64, ev[i].events);
	return guest_receive();
}

/*
 * The client, and the bare ends of a socket pair. what: u(p), d(own), t(rip)
 */

static void
client_main(int fd, char what)
{
	static char buf[PIECE];
	uint64_t left = (uint64_t)mib << 20;
	ssize_t n = 1;

	if (what == 't')
		for (int i = 0; i < TRIPS; i++)
			if (write(fd, "x", 1) != 1 || read(fd, buf, 1) != 1)
				_exit(1);
	for (; what != 't' && left && n > 0; left -= (uint64_t)n) {
		size_t len = left < sizeof(buf) ? (size_t)left : sizeof(buf);

		n = what == 'u' ? write(fd, buf, len) : read(fd, buf, len);
	}
	_exit(what != 't' && left);
}

static void
with_device(char what)
{
	uint64_t want = (uint64_t)mib << 20, had = 0;
	int status, fd;
	pid_t pid = fork();

	must_be(pid >= 0, "fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (io_unix_connect(path, SOCK_STREAM, &fd, NULL) || write(fd, "CONNECT 1\n", 10) != 10)
			_exit(1);
		for (char c = 0; c != '\n';)
			if (read(fd, &c, 1) != 1)
				_exit(1);
		client_main(fd, what);
	}
	memset(&sock, 0, sizeof(sock));
	while (!sock.is_over) {
		/* What a doorbell brought is taken first: no event tells of that. */
		uint64_t n = guest_receive();
		bool may_send = sock.is_open && what == 'd' && had < want &&
				sock.in_flight < TX_SLOTS &&
				sock.peer_alloc - (sock.sent - sock.peer_fwd) >= PIECE;

		if (!n && !may_send && !sock.is_over)
			n = turn();
		if (what != 'd')
			had += n;
		if (what == 't' && n)
			guest_send(VSOCK_OP_RW, 1);
		if (may_send) {
			guest_send(VSOCK_OP_RW, PIECE);
			had += PIECE;
		}
	}
	must_be(had == (what == 't' ? TRIPS : want), "the stream");
	waitpid(pid, &status, 0);
	must(status ? err_set(&e, -EIO, "status %d", status) : 0, "the client", &e);
}

static void
without(char what)
{
	static char buf[PIECE];
	uint64_t left = (uint64_t)mib << 20;
	int fd[2], status;
	ssize_t n = 1;
	pid_t pid;

	must_be(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), "socketpair");
	pid = fork();
	must_be(pid >= 0, "fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(fd[0]);
		client_main(fd[1], what);
	}
	close(fd[1]);
	for (int i = 0; what == 't' && i < TRIPS; i++)
		must_be(read(fd[0], buf, 1) == 1 && write(fd[0], buf, 1) == 1, "a trip");
	for (; what != 't' && left && n > 0; left -= (uint64_t)n) {
		size_t len = left < sizeof(buf) ? (size_t)left : sizeof(buf);

		n = what == 'u' ? read(fd[0], buf, len) : write(fd[0], buf, len);
	}
	waitpid(pid, &status, 0);
	must(status ? err_set(&e, -EIO, "status %d", status) : 0, "the client", &e);
	close(fd[0]);
}

static uint64_t
cpu_ns(void)
{
	struct rusage u;

	getrusage(RUSAGE_THREAD, &u);
	return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000 +
	       (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000;
}

static void
measure(const char *name, const char *clock, const char *yardstick)
{
	static struct samples s[4];
	static const char *const kinds[] = {"", "_bare", "_cpu", "_bare_cpu"};
	char names[4][32];

	for (int i = 0; i < 4; i++) {
		snprintf(names[i], sizeof(names[i]), "%s%s", name, kinds[i]);
		sample_clear(&s[i], names[i], i % 2 ? yardstick : clock);
		s[i].tried = rounds;
	}
	for (unsigned i = 0; i < 2 * rounds; i++) {
		uint64_t from = io_now_ns(), cpu = cpu_ns();

		if (i % 2)
			without(*name);
		else
			with_device(*name);
		sample_add(&s[i % 2], io_now_ns() - from);
		sample_add(&s[2 + i % 2], cpu_ns() - cpu);
	}
	for (int i = 0; i < 4; i++)
		sample_report(&s[i], out);
	for (int i = 0; i < 4; i += 2)
		sample_report_ratio(&s[i], &s[i + 1], 0, NULL, out);
}

int
main(int argc, char **argv)
{
	int listen_fd;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			out = &json;
		else if (i + 1 < argc && strcmp(argv[i], "--rounds") == 0)
			rounds = (unsigned)strtoul(argv[++i], NULL, 10);
		else if (i + 1 < argc && strcmp(argv[i], "--mib") == 0)
			mib = (unsigned)strtoul(argv[++i], NULL, 10);
		else if (i + 1 < argc && strcmp(argv[i], "--mem") == 0)
			i++; /* the other benchmarks' */
		else
			rounds = 0;
	}
	if (!rounds || rounds > SAMPLES_MAX || !mib) {
		fprintf(stderr, "usage: bench_vsock_device [--json] [--rounds 1..%d] [--mib N]\n",
			SAMPLES_MAX);
		return 2;
	}
	snprintf(path, sizeof(path), "/tmp/bench_vsock.%d", (int)getpid());
	must(io_unix_listen(path, SOCK_STREAM, 64, &listen_fd, &e), path, &e);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	fake_driver_init(&d);
	must(vsock_init(&vs, &d.mem, fake_irq(&d), CID, listen_fd, -1, &loop, &e), "vsock", &e);
	must_be(fake_start(&d, &vs.dev, UINT64_MAX), "the driver");
	for (unsigned i = 0; i < RX_BUFS; i++)
		give_rx_buffer(FAKE_HEAP + i * RX_LEN);
	fake_kick(&d, VSOCK_RX);
	sample_begin(out, "vsock_device");
	sample_row_begin(out, "vsock_device: no guest, %u MiB a stream", mib);
	measure("up", "the client's bytes into the guest", "read(2) of them");
	measure("down", "the guest's bytes to the client", "write(2) of them");
	measure("trip", "200 bytes there and back", "the same");
	sample_row_end(out);
	sample_end(out);
	vsock_destroy(&vs);
	fake_driver_done(&d);
	unlink(path);
	return 0;
}
