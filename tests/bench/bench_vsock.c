/*
 * Bytes through the vsock device of the shipped pando-vmm, to and from a small guest that polls
 * (tests/kvm/guest/vsock.c), each in turn with the same over a Unix socket to a process.
 *
 *   bench_vsock [--json] [--rounds N] [--mib N] [--only ROW]
 *
 * dial    connect, CONNECT, OK                connect, a line there and back
 * trip    one byte there and back             the same
 * down    bytes out of the guest              bytes out of the process
 * up      bytes into the guest                bytes into the process
 *
 * A guest that polls takes no interrupts: their cost is not in here, that of doorbells is. cpu is
 * what the VMM's main thread used, which serves the device. Where KVM emulates guest code
 * instruction by instruction, the guest bounds the times, and cpu is what says something.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "tests/bench/must.h"
#include "tests/bench/sample.h"
#include "tests/kvm/driver.h"

#define WAIT_MS 60000
#define PIECE (64u << 10)
#define TRIPS 10 /* a sample */

static struct json_out json;
static struct json_out *out; /* NULL: lines */
static unsigned rounds = 10, mib = 4;
static const char *only;
static struct driver driver;
static struct vm *vm;
static pid_t server;
static char device[256], unix_path[300];
static struct err e;

static void
clean_up(void)
{
	if (server > 0) {
		kill(server, SIGTERM);
		waitpid(server, NULL, 0);
	}
	driver_done(&driver);
}

static void
must_be(bool good, const char *what)
{
	must(good ? 0 : err_sys(&e, errno ? -errno : -EIO, "failed"), what, &e);
}

/* Byte i of a stream; the first and last of each piece are looked at. */
static uint8_t
byte_at(uint64_t i)
{
	return (uint8_t)((i >> 12) + i);
}

static void
fill(uint8_t *buf, uint64_t at, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = byte_at(at + i);
}

static void
take(int fd, uint64_t bytes)
{
	static uint8_t buf[PIECE];
	uint64_t had = 0;
	ssize_t n;

	while (had < bytes && (n = recv(fd, buf, sizeof(buf), 0)) > 0) {
		/* The guest marks what it sends where its pages begin. */
		must_be(had % 4096 || buf[0] == byte_at(had), "the stream");
		had += (uint64_t)n;
	}
	must_be(had == bytes, "the stream's end");
}

/* A repeated piece would not do: what a piece holds follows from its place. But the pattern
 * comes again every MiB, so it is made once. */
static void
give(int fd, uint64_t bytes)
{
	static uint8_t pattern[1 << 20];
	uint64_t at = 0;

	if (!pattern[1])
		fill(pattern, 0, sizeof(pattern));
	while (at < bytes) {
		size_t place = at % sizeof(pattern), len = PIECE;

		if (len > bytes - at)
			len = (size_t)(bytes - at);
		must_be(io_write_full(fd, pattern + place, len) == 0, "sending");
		at += len;
	}
}

/* The guest's part, by a process on a Unix socket. */
static void
start_server(void)
{
	int fd;

	must(io_unix_listen(unix_path, SOCK_STREAM, 8, &fd, &e), "a socket", &e);
	server = fork();
	must_be(server >= 0, "fork");
	if (!server)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!server) {
		int c = accept(fd, NULL, NULL);
		char line[16], buf[256];
		uint64_t bytes;
		ssize_t n;

		if (io_read_full(c, line, 10) || io_write_full(c, "OK 1\n", 5))
			_exit(1);
		if (line[8] != '1' && io_read_full(c, &bytes, sizeof(bytes)))
			_exit(1);
		if (line[8] == '1')
			while ((n = read(c, buf, sizeof(buf))) > 0)
				if (write(c, buf, (size_t)n) != n)
					_exit(1);
		if (line[8] == '2')
			give(c, bytes);
		if (line[8] == '3') {
			take(c, bytes);
			if (write(c, "\1", 1) != 1)
				_exit(1);
		}
		close(c);
	}
	close(fd);
}

static int
dial(bool bare, int port)
{
	char line[128];
	size_t n = 0;
	int fd;

	must(io_unix_connect(bare ? unix_path : device, SOCK_STREAM, &fd, &e), "dialling", &e);
	snprintf(line, sizeof(line), "CONNECT %d\n", port);
	must_be(write(fd, line, 10) == 10, "dialling");
	for (line[0] = 0; n < sizeof(line) - 1 && (!n || line[n - 1] != '\n'); n++)
		must_be(read(fd, line + n, 1) == 1, "dialling");
	line[n] = 0;
	must(memcmp(line, "OK ", 3) ? err_set(&e, -EPROTO, "%s", line) : 0, "dialling", &e);
	return fd;
}

static void
row_dial(bool bare)
{
	close(dial(bare, 1));
}

static void
row_trip(bool bare)
{
	static int fd[2] = {-1, -1};
	char c = 'x';

	/* The guest serves one connection at a time: the last one that was dialled. */
	if (fd[bare] < 0)
		fd[bare] = dial(bare, 1);
	for (int i = 0; i < TRIPS; i++)
		must_be(write(fd[bare], &c, 1) == 1 && read(fd[bare], &c, 1) == 1, "a trip");
}

static void
stream(bool bare, int port)
{
	const uint64_t bytes = (uint64_t)mib << 20;
	int fd = dial(bare, port);
	char c = 0;

	must_be(write(fd, &bytes, sizeof(bytes)) == sizeof(bytes), "a stream");
	if (port == 2)
		take(fd, bytes);
	else
		give(fd, bytes);
	if (port == 3)
		must_be(read(fd, &c, 1) == 1 && c == 1, "the bytes in the guest");
	close(fd);
}

static void
row_down(bool bare)
{
	stream(bare, 2);
}

static void
row_up(bool bare)
{
	stream(bare, 3);
}

/* Of the VMM's main thread, by the scheduler's account. */
static uint64_t
cpu_ns(void)
{
	cleanup_free char *text = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", (int)vm->pid, (int)vm->pid);
	must(io_read_file(path, 256, &text, NULL, &e), "cpu", &e);
	return strtoull(text, NULL, 10);
}

static const struct row {
	const char *name;
	void (*run)(bool bare);
	unsigned times; /* per round */
	bool is_stream;
	const char *clock, *yardstick;
} rows[] = {
	{"down", row_down, 1, true, "out of the guest", "out of a process"},
	{"up", row_up, 1, true, "into the guest", "into a process"},
	{"dial", row_dial, 20, false, "connect, CONNECT, OK", "the same, a process"},
	{"trip", row_trip, 20, false, "10 bytes there and back, one by one", "the same, a process"},
};

static void
measure(const struct row *row)
{
	static struct samples with, bare;
	uint64_t used = 0;
	char name[32], key[64];

	sample_clear(&with, row->name, row->clock);
	snprintf(name, sizeof(name), "%s_bare", row->name);
	sample_clear(&bare, name, row->yardstick);
	for (unsigned i = 0; i < 2 * rounds * row->times; i++) {
		struct samples *s = i % 2 ? &bare : &with;
		uint64_t from;

		s->tried++;
		used -= i % 2 ? 0 : cpu_ns();
		from = io_now_ns();
		row->run(i % 2);
		sample_add(s, io_now_ns() - from);
		used += i % 2 ? 0 : cpu_ns();
	}
	sample_report(&with, out);
	sample_report(&bare, out);
	sample_report_ratio(&with, &bare, mib, row->is_stream ? "MiB" : NULL, out);
	snprintf(key, sizeof(key), "%s_cpu_us", row->name);
	if (out)
		json_out_f64(out, key, (double)used / 1000 / (rounds * row->times));
	else
		printf("  %s: %.0f\n", key, (double)used / 1000 / (rounds * row->times));
}

int
main(int argc, char **argv)
{
	const struct boot boot = {.cmdline = "mode=vsock", .mem_mib = 16};
	char why[160];

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			out = &json;
		else if (i + 1 < argc && strcmp(argv[i], "--rounds") == 0)
			rounds = (unsigned)strtoul(argv[++i], NULL, 10);
		else if (i + 1 < argc && strcmp(argv[i], "--mib") == 0)
			mib = (unsigned)strtoul(argv[++i], NULL, 10);
		else if (i + 1 < argc && strcmp(argv[i], "--only") == 0)
			only = argv[++i];
		else if (i + 1 < argc && strcmp(argv[i], "--mem") == 0)
			i++; /* the other benchmarks' */
		else
			rounds = 0;
	}
	if (!rounds || rounds > SAMPLES_MAX / 20 || !mib) {
		fprintf(stderr, "usage: bench_vsock [--json] [--rounds 1..%d] [--mib N] [--only ROW]\n",
			SAMPLES_MAX / 20);
		return 2;
	}
	if (!driver_has_kvm(why)) {
		fprintf(stderr, "bench_vsock: %s\n", why);
		return 0;
	}
	must(driver_init(&driver, &e), "the driver", &e);
	atexit(clean_up);
	snprintf(unix_path, sizeof(unix_path), "%s/process.sock", driver.folder);
	start_server();
	must(driver_boot(&driver, "vm", &boot, &vm, &e), "booting", &e);
	must(driver_expect(vm, "listening", WAIT_MS, NULL, 0, &e), "the guest", &e);
	driver_path(vm, "vsock.sock", device);
	sample_begin(out, "vsock");
	sample_row_begin(out, "vsock: a guest that polls, %u MiB a stream", mib);
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
		if (!only || strcmp(only, rows[i].name) == 0)
			measure(&rows[i]);
	sample_row_end(out);
	sample_end(out);
	return 0;
}
