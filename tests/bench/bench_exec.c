/*
 * What the agent, its protocol and its client cost, natively: the shipped pando-agent on a Unix
 * socket, and pandod's and the CLI's own client code. No VM, no vsock (bench_vsock has that).
 *
 *   bench_exec [--json] [--rounds N] [--mib N] [--files N] [--dir FOLDER] [--only ROW]
 *
 * Each row has its yardstick, taken in turn with it:
 *
 * ping    agent_ping()                        a connection to an echo and one line there and back
 * true    agent_exec() of /bin/true           posix_spawn() of it, and its end
 * cat     `cat FILE` through the agent | us   `cat FILE` | us
 * stdin   FILE into `cat`, to /dev/null       FILE into a Unix socket that `cat` reads
 * put     one large file into the guest       tar | tar, sync
 * get     one large file out of it            tar | tar
 * puts    many small files into the guest     tar | tar, sync
 * gets    many small files out of it          tar | tar
 * down    a program's bytes by a tunnel       the same program by TCP, directly
 * up      bytes to a program by a tunnel      the same
 *
 * cpu is what all processes of a row used, which a busy host changes less than the time: ours,
 * those that ended, and the agent with its own. Nothing is asserted about time.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"
#include "tests/bench/must.h"
#include "tests/bench/sample.h"

#define PIECE (64u << 10)
#define PER_FOLDER 100
#define SMALL_BYTES 1000
#define SETTLE_US 30000 /* until the agent has seen to a command's shim */

static struct json_out json;
static struct json_out *out; /* NULL: lines */
static unsigned rounds = 20, mib = 64, n_files = 2000;
static const char *dir = "/tmp", *only;
static char folder[256], sock[300], big[300], small[300];
static pid_t agent, echo_pid, program_pid;
static int program_port;
static struct err e;

static void
end_process(pid_t *pid)
{
	if (*pid > 0) {
		kill(*pid, SIGTERM);
		waitpid(*pid, NULL, 0);
	}
	*pid = 0;
}

static void
done(void)
{
	end_process(&agent);
	end_process(&echo_pid);
	end_process(&program_pid);
	if (folder[0])
		io_remove_tree(folder, NULL);
}

static void
must_sys(bool good, const char *what)
{
	must(good ? 0 : err_sys(&e, -errno, "failed"), what, &e);
}

static void
must_write(int fd, const void *buf, size_t len, const char *what)
{
	int r = io_write_full(fd, buf, len);

	must(r < 0 ? err_sys(&e, r, "failed") : 0, what, &e);
}

/* A child that dies with us and has nothing to clean up. */
static pid_t
child(void)
{
	pid_t pid = fork();

	must_sys(pid >= 0, "fork");
	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

static void
wait_well(pid_t pid, const char *what)
{
	int status = -1;

	waitpid(pid, &status, 0);
	must(status ? err_set(&e, -EIO, "status %d", status) : 0, what, &e);
}

/*
 * The other sides.
 */

static void
start_agent(void)
{
	char program[600], listen_on[320], log[300];
	ssize_t n = readlink("/proc/self/exe", program, 500);

	must_sys(n > 0, "/proc/self/exe");
	program[n] = 0;
	strcpy(strrchr(program, '/'), "/../libexec/pando/pando-agent");
	snprintf(listen_on, sizeof(listen_on), "unix:%s", sock);
	snprintf(log, sizeof(log), "%s/log", folder);
	agent = child();
	if (!agent) {
		dup2(open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600), STDERR_FILENO);
		execl(program, "pando-agent", "--keep=1", "--listen", listen_on,
			"--connect-line", (char *)NULL);
		_exit(127);
	}
	/* Until it is bound, and until it listens. */
	for (int i = 0; i < 5000 && (n = agent_wait_ready(sock, 10000, NULL, NULL, &e)); i++)
		usleep(1000);
	must((int)n, "pando-agent", &e);
}

static void
start_echo(const char *path)
{
	int fd;

	must(io_unix_listen(path, SOCK_STREAM, 8, &fd, &e), "echo", &e);
	echo_pid = child();
	while (!echo_pid) {
		int c = accept(fd, NULL, NULL);
		char buf[256];
		ssize_t n = read(c, buf, sizeof(buf));

		if (n > 0 && write(c, buf, (size_t)n) != n)
			_exit(1);
		close(c);
	}
	close(fd);
}

/* Sends so many bytes, or takes them to their end and answers with one. */
static void
send_bytes(int fd, uint64_t bytes)
{
	static char buf[PIECE];

	while (bytes) {
		size_t len = bytes < sizeof(buf) ? (size_t)bytes : sizeof(buf);

		must_write(fd, buf, len, "sending");
		bytes -= len;
	}
}

static void
take_bytes(int fd, uint64_t bytes)
{
	static char buf[PIECE];
	uint64_t had = 0;
	ssize_t n;

	while (had < bytes && (n = read(fd, buf, sizeof(buf))) > 0)
		had += (uint64_t)n;
	must(had == bytes ? 0 : err_set(&e, -EIO, "%llu bytes of %llu came",
		(unsigned long long)had, (unsigned long long)bytes), "receiving", &e);
}

/* Behind a port: whoever says 'd' is sent the bytes, whoever says 'u' sends them. */
static void
start_program(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	must_sys(fd >= 0 && !bind(fd, (void *)&a, len) && !listen(fd, 8) &&
		!getsockname(fd, (void *)&a, &len), "a port");
	program_port = ntohs(a.sin_port);
	program_pid = child();
	while (!program_pid) {
		int c = accept(fd, NULL, NULL);
		char what = 0;

		if (read(c, &what, 1) != 1)
			_exit(1);
		if (what == 'd')
			send_bytes(c, (uint64_t)mib << 20);
		else
			take_bytes(c, (uint64_t)mib << 20);
		if (what == 'u' && write(c, "!", 1) != 1)
			_exit(1);
		shutdown(c, SHUT_WR);
		(void)!read(c, &what, 1);
		close(c);
	}
	close(fd);
}

/*
 * Rows. `bare` is the yardstick's turn.
 */

static int
count_output(void *ctx, int stream, const void *buf, size_t len)
{
	(void)stream;
	(void)buf;
	*(uint64_t *)ctx += len;
	return 0;
}

static void
execute(const char *const *argv, int stdin_fd, int stdout_fd, uint64_t bytes)
{
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_req req = {.argv = argv, .cwd = "/"};
	struct agent_exec_result result;
	uint64_t had = 0;

	io.stdin_fd = stdin_fd;
	io.stdout_fd = stdout_fd;
	io.output = count_output;
	io.ctx = &had;
	must(agent_exec(sock, &req, &io, &result, &e), argv[0], &e);
	if (agent_exit_status(&result) || had != bytes)
		must(err_set(&e, -EIO, "status %d, %llu bytes", agent_exit_status(&result),
			(unsigned long long)had), argv[0], &e);
}

static void
row_ping(bool bare)
{
	char path[320], buf[256] = "{\"op\":\"ping\"}\n";
	cleanup_close int fd = -1;

	if (!bare) {
		must(agent_ping(sock, 10000, NULL, &e), "ping", &e);
		return;
	}
	snprintf(path, sizeof(path), "%s/echo", folder);
	must(io_unix_connect(path, SOCK_STREAM, &fd, &e), "echo", &e);
	must_sys(write(fd, buf, 14) == 14 && read(fd, buf, sizeof(buf)) == 14, "echo");
}

static void
row_true(bool bare)
{
	static const char *const argv[] = {"/bin/true", NULL};
	extern char **environ;
	pid_t pid;

	if (!bare) {
		execute(argv, -1, -1, 0);
		return;
	}
	errno = posix_spawn(&pid, argv[0], NULL, NULL, (char *const *)(uintptr_t)argv, environ);
	must_sys(!errno, argv[0]);
	wait_well(pid, argv[0]);
}

static void
row_cat(bool bare)
{
	const char *const argv[] = {"/bin/cat", big, NULL};
	int fd[2];
	pid_t pid, reader;

	must_sys(!pipe2(fd, O_CLOEXEC), "pipe");
	reader = child();
	if (!reader) {
		close(fd[1]);
		take_bytes(fd[0], (uint64_t)mib << 20);
		_exit(0);
	}
	close(fd[0]);
	if (!bare) {
		execute(argv, -1, fd[1], 0);
	} else {
		pid = child();
		if (!pid) {
			dup2(fd[1], 1);
			execl(argv[0], argv[0], argv[1], (char *)NULL);
			_exit(127);
		}
		wait_well(pid, "cat");
	}
	close(fd[1]);
	wait_well(reader, "the reader");
}

static void
row_stdin(bool bare)
{
	static const char *const argv[] = {"/bin/sh", "-c", "exec cat >/dev/null", NULL};
	cleanup_close int file = open(big, O_RDONLY | O_CLOEXEC);
	static char buf[PIECE];
	ssize_t n;
	int fd[2];
	pid_t pid;

	must_sys(file >= 0, big);
	if (!bare) {
		execute(argv, file, -1, 0);
		return;
	}
	must_sys(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), "socketpair");
	pid = child();
	if (!pid) {
		dup2(fd[1], 0);
		execl(argv[0], argv[0], argv[1], argv[2], (char *)NULL);
		_exit(127);
	}
	close(fd[1]);
	while ((n = read(file, buf, sizeof(buf))) > 0)
		must_write(fd[0], buf, (size_t)n, "cat");
	close(fd[0]);
	wait_well(pid, "cat");
}

/* Into a folder that is not there yet; what was there goes off the clock. */
static char target[320];

static void
copy(bool bare, const char *what, bool put)
{
	char line[1400];
	pid_t pid;

	if (!bare && put) {
		must(agent_put(sock, what, target, NULL, NULL, NULL, &e), "put", &e);
		return;
	}
	if (!bare) {
		must(agent_get(sock, what, target, NULL, NULL, NULL, &e), "get", &e);
		return;
	}
	snprintf(line, sizeof(line), "mkdir %s && tar -C %s -cf - %s | tar -C %s -xf -%s%s", target,
		folder, strrchr(what, '/') + 1, target, put ? " && sync -f " : "",
		put ? target : "");
	pid = child();
	if (!pid) {
		execl("/bin/sh", "sh", "-c", line, (char *)NULL);
		_exit(127);
	}
	wait_well(pid, "tar");
}

static void
row_put(bool bare)
{
	copy(bare, big, true);
}

static void
row_get(bool bare)
{
	copy(bare, big, false);
}

static void
row_puts(bool bare)
{
	copy(bare, small, true);
}

static void
row_gets(bool bare)
{
	copy(bare, small, false);
}

static void
port(bool bare, char what)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
		.sin_port = htons((uint16_t)program_port)};
	pid_t pid = 0;
	int fd[2], ours;

	if (bare) {
		ours = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		must_sys(ours >= 0 && !connect(ours, (void *)&a, sizeof(a)), "a port");
	} else {
		must_sys(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), "socketpair");
		pid = child();
		if (!pid) {
			close(fd[0]);
			_exit(agent_dial(sock, (uint16_t)program_port, fd[1], -1, &e) < 0);
		}
		close(fd[1]);
		ours = fd[0];
	}
	must_sys(write(ours, &what, 1) == 1, "a port");
	if (what == 'd') {
		take_bytes(ours, (uint64_t)mib << 20);
	} else {
		send_bytes(ours, (uint64_t)mib << 20);
		must_sys(read(ours, &what, 1) == 1, "a port");
	}
	must_sys(!shutdown(ours, SHUT_WR) && read(ours, &what, 1) == 0, "a port");
	close(ours);
	if (pid)
		wait_well(pid, "tunnel");
}

static void
row_down(bool bare)
{
	port(bare, 'd');
}

static void
row_up(bool bare)
{
	port(bare, 'u');
}

static uint64_t
ns_of(struct timeval t)
{
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_usec * 1000;
}

/* Used so far by us, by our children that ended, by the agent and its children. The latter in
 * ticks: only sums mean something. */
static uint64_t
cpu_ns(void)
{
	uint64_t tick = 1000000000 / (uint64_t)sysconf(_SC_CLK_TCK), sum = 0;
	const int whose[] = {RUSAGE_SELF, RUSAGE_CHILDREN};
	const pid_t alive[] = {agent, program_pid};
	struct rusage u;

	for (size_t i = 0; i < 2; i++)
		if (!getrusage(whose[i], &u))
			sum += ns_of(u.ru_utime) + ns_of(u.ru_stime);
	for (size_t i = 0; i < 2; i++) {
		cleanup_free char *text = NULL;
		unsigned long v[4];
		char path[64];

		snprintf(path, sizeof(path), "/proc/%d/stat", (int)alive[i]);
		must(io_read_file(path, 4096, &text, NULL, &e), "cpu", &e);
		if (sscanf(strrchr(text, ')'),
			    ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %lu %lu",
			    &v[0], &v[1], &v[2], &v[3]) == 4)
			sum += (v[0] + v[1] + v[2] + v[3]) * tick;
	}
	return sum;
}

static const struct row {
	const char *name;
	void (*run)(bool bare);
	unsigned times;	 /* per round */
	enum { NOTHING, MIB, FILES } unit;
	const char *clock, *yardstick;
} rows[] = {
	{"ping", row_ping, 10, NOTHING, "agent_ping()", "connect, a line there and back"},
	{"true", row_true, 10, NOTHING, "agent_exec() of true", "posix_spawn() of true"},
	{"cat", row_cat, 1, MIB, "cat FILE by the agent, into a pipe", "cat FILE into a pipe"},
	{"stdin", row_stdin, 1, MIB, "FILE into cat by the agent", "FILE into cat, Unix socket"},
	{"put", row_put, 1, MIB, "one file into the guest", "tar | tar, sync"},
	{"get", row_get, 1, MIB, "one file out of the guest", "tar | tar"},
	{"puts", row_puts, 1, FILES, "small files into the guest", "tar | tar, sync"},
	{"gets", row_gets, 1, FILES, "small files out of the guest", "tar | tar"},
	{"down", row_down, 1, MIB, "from a port by a tunnel", "from the port by TCP"},
	{"up", row_up, 1, MIB, "to a port by a tunnel", "to the port by TCP"},
};

static void
measure(const struct row *row)
{
	static struct samples with, bare;
	char name[32], key[64];
	uint64_t used[2] = {0};

	sample_clear(&with, row->name, row->clock);
	snprintf(name, sizeof(name), "%s_bare", row->name);
	sample_clear(&bare, name, row->yardstick);
	for (unsigned i = 0; i < 2 * rounds * row->times; i++) {
		struct samples *s = i % 2 ? &bare : &with;
		uint64_t from;

		/* Where a put left something: its parent is there, it is not. */
		snprintf(target, sizeof(target), "%s/copied", folder);
		if (row->unit != NOTHING)
			io_remove_tree(target, NULL);
		s->tried++;
		used[i % 2] -= cpu_ns();
		from = io_now_ns();
		row->run(i % 2);
		sample_add(s, io_now_ns() - from);
		if (row->run != row_ping)
			usleep(SETTLE_US);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		used[i % 2] += cpu_ns();
	}
	sample_report(&with, out);
	sample_report(&bare, out);
	sample_report_ratio(&with, &bare, row->unit == MIB ? mib : n_files,
		row->unit == NOTHING ? NULL
		: row->unit == MIB   ? "MiB"
				     : "files",
		out);
	for (int i = 0; i < 2; i++) {
		double us = (double)used[i] / (rounds * row->times) / 1000;

		snprintf(key, sizeof(key), "%s%s_cpu_us", row->name, i ? "_bare" : "");
		if (out)
			json_out_f64(out, key, us);
		else
			printf("  %s: %.0f\n", key, us);
	}
}

/*
 * The start.
 */

static void
make_files(void)
{
	static char buf[1 << 20];
	char path[400];
	int fd = open(big, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (char)(i * 2654435761u >> 13);
	must_sys(fd >= 0, big);
	for (unsigned i = 0; i < mib; i++)
		must_write(fd, buf, sizeof(buf), big);
	close(fd);
	for (unsigned i = 0; i < n_files; i++) {
		snprintf(path, sizeof(path), "%s/%u", small, i / PER_FOLDER);
		if (i % PER_FOLDER == 0)
			must(io_mkdir_p(path, 0755, &e), path, &e);
		snprintf(path, sizeof(path), "%s/%u/file-%u", small, i / PER_FOLDER, i);
		fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		must_sys(fd >= 0 && write(fd, buf, SMALL_BYTES) == SMALL_BYTES, path);
		close(fd);
	}
}

static int
arguments(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			out = &json;
		else if (i + 1 == argc)
			return -EINVAL;
		else if (strcmp(argv[i], "--rounds") == 0)
			rounds = (unsigned)strtoul(argv[++i], NULL, 10);
		else if (strcmp(argv[i], "--mib") == 0)
			mib = (unsigned)strtoul(argv[++i], NULL, 10);
		else if (strcmp(argv[i], "--files") == 0)
			n_files = (unsigned)strtoul(argv[++i], NULL, 10);
		else if (strcmp(argv[i], "--dir") == 0)
			dir = argv[++i];
		else if (strcmp(argv[i], "--only") == 0)
			only = argv[++i];
		else if (strcmp(argv[i], "--mem") == 0)
			i++; /* the other benchmarks' */
		else
			return -EINVAL;
	}
	return rounds && rounds <= SAMPLES_MAX / 10 && mib && n_files ? 0 : -EINVAL;
}

int
main(int argc, char **argv)
{
	char path[320];

	if (arguments(argc, argv)) {
		fprintf(stderr,
			"usage: bench_exec [--json] [--rounds 1..%d] [--mib N] [--files N] [--dir FOLDER] [--only ROW]\n",
			SAMPLES_MAX / 10);
		return 2;
	}
	snprintf(folder, sizeof(folder), "%.200s/pando-bench-XXXXXX", dir);
	must_sys(mkdtemp(folder), folder);
	atexit(done);
	/* What shims leave behind is ours, and its CPU time counts. */
	must_sys(!prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
	snprintf(sock, sizeof(sock), "%s/sock", folder);
	snprintf(big, sizeof(big), "%s/big", folder);
	snprintf(small, sizeof(small), "%s/small", folder);
	make_files();
	snprintf(path, sizeof(path), "%s/echo", folder);
	start_echo(path);
	start_program();
	start_agent();
	sample_begin(out, "exec");
	sample_row_begin(out, "exec: an agent on a Unix socket; %u MiB, %u small files in %s", mib,
		n_files, dir);
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
		if (!only || strcmp(only, rows[i].name) == 0)
			measure(&rows[i]);
	sample_row_end(out);
	sample_end(out);
	return 0;
}
