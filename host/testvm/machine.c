#include "host/testvm/machine_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/log.h"

/* A busy host under emulation is slow; a machine that is broken has mostly ended before.
 */
#define BOOT_MS 600000
#define CONNECT_MS 120000
#define ASK_MS 15000
#define POWER_OFF_MS 45000
#define TERM_MS 5000

/*
 * Small things that are tested by themselves.
 */

int
machine_memory(uint64_t wanted_mib, uint64_t available_mib, uint64_t *ret, struct err *e)
{
	/* The host goes on living beside it. */
	uint64_t spare_mib = available_mib / 8 * 7;

	if (wanted_mib && wanted_mib < MACHINE_MEM_MIN_MIB)
		return err_set(e, -ERANGE, "the machine needs at least %u MiB of memory",
			MACHINE_MEM_MIN_MIB);
	if ((wanted_mib ? wanted_mib : MACHINE_MEM_MIN_MIB) > spare_mib)
		return err_set(e, -ENOMEM,
			"the machine needs %llu MiB of memory and this host can spare %llu: end something, or ask for less with --mem-size",
			(unsigned long long)(wanted_mib ? wanted_mib
							: MACHINE_MEM_MIN_MIB),
			(unsigned long long)spare_mib);
	if (!wanted_mib)
		wanted_mib = spare_mib < MACHINE_MEM_MIB ? spare_mib : MACHINE_MEM_MIB;
	*ret = wanted_mib;
	return 0;
}

int
machine_start_ticks(const char *stat_text, uint64_t *ret)
{
	/* The second field is the program's name in parentheses, which may hold anything.
	 */
	const char *p = strrchr(stat_text, ')');
	char *end;

	if (!p)
		return -EINVAL;
	for (int field = 2; field < 22; field++) {
		p = strchr(p, ' ');
		if (!p)
			return -EINVAL;
		p++;
	}
	errno = 0;
	*ret = strtoull(p, &end, 10);
	return errno || end == p ? -EINVAL : 0;
}

/*
 * Where things are.
 */

static int
find_home(char *dst, size_t cap, struct err *e)
{
	const char *own = getenv("PANDO_MACHINE_HOME"), *xdg = getenv("XDG_DATA_HOME"),
		   *home = getenv("HOME");

	if (own && *own) {
		if (own[0] != '/')
			return err_set(e, -EINVAL,
				"PANDO_MACHINE_HOME=\"%.80s\" is not an absolute path",
				own);
		return paths_format(dst, cap, e, "%s", own);
	}
	if (xdg && xdg[0] == '/')
		return paths_format(dst, cap, e, "%s/pando/machine", xdg);
	if (!home || home[0] != '/')
		return err_set(e, -EINVAL,
			"HOME is not set: set it, or PANDO_MACHINE_HOME, to an absolute path");
	return paths_format(dst, cap, e, "%s/.local/share/pando/machine", home);
}

int
machine_path(
	const struct machine *m, const char *name, char dst[PATHS_MAX], struct err *e)
{
	return paths_format(dst, PATHS_MAX, e, "%s/%s", m->home, name);
}

int
machine_write(const struct machine *m, const char *name, const char *text, struct err *e)
{
	char path[PATHS_MAX];
	int r = machine_path(m, name, path, e);

	return r < 0 ? r : io_write_file_atomic(path, text, strlen(text), 0600, e);
}

static bool
exists(const struct machine *m, const char *name)
{
	char path[PATHS_MAX];

	return machine_path(m, name, path, NULL) == 0 && access(path, F_OK) == 0;
}

static int
take_lock(
	const struct machine *m, machine_say *say, void *ctx, int *ret_fd, struct err *e)
{
	cleanup_close int fd = -1;
	char path[PATHS_MAX];
	int r = io_mkdir_p(m->home, 0700, e);

	if (r == 0)
		r = machine_path(m, "lock", path, e);
	if (r < 0)
		return r;
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_sys(e, -errno, "%.200s", path);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		say(ctx, "waiting for another start or stop of the machine");
		while (flock(fd, LOCK_EX) < 0)
			if (errno != EINTR)
				return err_sys(e, -errno, "%.200s", path);
	}
	*ret_fd = TAKE_FD(fd);
	return 0;
}

/* The last line of a file that says something, for a sentence; "" if there is none. */
static const char *
last_line(const struct machine *m, const char *name, char *dst, size_t cap)
{
	char path[PATHS_MAX], tail[2048];
	cleanup_close int fd = -1;
	struct stat st;
	ssize_t n;
	char *line;

	dst[0] = '\0';
	if (machine_path(m, name, path, NULL) < 0)
		return dst;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return dst;
	n = pread(fd, tail, sizeof(tail) - 1,
		st.st_size > (off_t)sizeof(tail) - 1
			? st.st_size - (off_t)sizeof(tail) + 1
			: 0);
	while (n > 0 &&
		(tail[n - 1] == '\n' || tail[n - 1] == '\r' || tail[n - 1] == ' '))
		n--;
	if (n <= 0)
		return dst;
	tail[n] = '\0';
	line = strrchr(tail, '\n');
	line = line ? line + 1 : tail;
	return log_escape(dst, cap, line, strlen(line));
}

/*
 * The process.
 */

/* A descriptor of that very process; -ESRCH when it is gone, though its number may be
 * another's. */
static int
open_process(pid_t pid, uint64_t start_ticks, int *ret_pidfd)
{
	cleanup_close int fd = -1;
	cleanup_free char *text = NULL;
	char path[64];
	uint64_t ticks;
	size_t len;

	fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (fd < 0)
		return -ESRCH;
	/* Read after the descriptor is ours: the number cannot change hands any more. */
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (io_read_file(path, 4096, &text, &len, NULL) < 0 ||
		machine_start_ticks(text, &ticks) < 0 || ticks != start_ticks)
		return -ESRCH;
	*ret_pidfd = TAKE_FD(fd);
	return 0;
}

/* Whether it ended within the time. */
static bool
wait_process(int pidfd, uint64_t timeout_ms)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	uint64_t end_ns = io_now_ns() + timeout_ms * 1000000, now_ns;

	do {
		now_ns = io_now_ns();
		if (poll(&p, 1,
			    now_ns < end_ns ? (int)((end_ns - now_ns) / 1000000) : 0) > 0)
			return true;
	} while (now_ns < end_ns);
	return false;
}

static int
read_running(struct machine *m, struct err *e)
{
	cleanup_json struct json *j = NULL;
	cleanup_free char *text = NULL;
	cleanup_close int pidfd = -1;
	char path[PATHS_MAX];
	uint64_t pid, port;
	size_t len;
	int r = machine_path(m, "running.json", path, e);

	if (r < 0)
		return r;
	if (access(path, F_OK) < 0)
		return 0;
	r = io_read_file(path, 65536, &text, &len, e);
	if (r == 0)
		r = json_parse(text, len, 64, &j, e);
	if (r < 0)
		return err_wrap(e, r, "%.200s", path);
	if (json_u64(j, json_get(j, 0, "pid"), &pid) < 0 ||
		json_u64(j, json_get(j, 0, "start_ticks"), &m->start_ticks) < 0 ||
		json_u64(j, json_get(j, 0, "port"), &port) < 0 ||
		json_u64(j, json_get(j, 0, "mem_mib"), &m->mem_mib) < 0 ||
		json_u64(j, json_get(j, 0, "cpus"), &m->cpus) < 0 ||
		json_u64(j, json_get(j, 0, "started_ms"), &m->started_ms) < 0 || !pid ||
		pid > INT32_MAX || port > UINT16_MAX)
		return err_set(e, -EINVAL,
			"%.200s is damaged; end the process %s by hand if it runs, and remove the file",
			path, MACHINE_QEMU);
	if (open_process((pid_t)pid, m->start_ticks, &pidfd) < 0 ||
		wait_process(pidfd, 0))
		return 0; /* it ended; the record stays until the next start */
	m->pid = (pid_t)pid;
	m->port = (uint16_t)port;
	m->state = MACHINE_RUNNING;
	return 0;
}

int
machine_look(struct machine *ret, struct err *e)
{
	struct machine m = {.state = MACHINE_ABSENT};
	cleanup_free char *image = NULL;
	char path[PATHS_MAX];
	size_t len;
	int r = find_home(m.home, sizeof(m.home), e);

	if (r < 0)
		return r;
	if (exists(&m, "disk.raw")) {
		m.state = MACHINE_STOPPED;
		r = machine_path(&m, "image", path, e);
		if (r == 0)
			r = io_read_file(path, sizeof(m.image) - 1, &image, &len, e);
		if (r == 0)
			snprintf(m.image, sizeof(m.image), "%.*s",
				(int)strcspn(image, "\n"), image);
		if (r == 0)
			r = read_running(&m, e);
	}
	if (r < 0)
		return r;
	*ret = m;
	return 0;
}

/*
 * Starting it.
 */

static int
available_mib(uint64_t *ret, struct err *e)
{
	cleanup_free char *text = NULL;
	const char *line;
	size_t len;
	int r = io_read_file("/proc/meminfo", 65536, &text, &len, e);

	if (r < 0)
		return r;
	line = strstr(text, "MemAvailable:");
	if (!line)
		return err_set(e, -EPROTO, "/proc/meminfo has no MemAvailable");
	*ret = strtoull(line + strlen("MemAvailable:"), NULL, 10) >> 10;
	return 0;
}

/* Whether somebody at the port speaks SSH. QEMU itself takes every connection at once,
 * whatever goes on in the machine. */
static bool
speaks_ssh(uint16_t port)
{
	cleanup_close int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char in_handshake[4];

	return fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0 &&
	       poll(&p, 1, 2000) > 0 &&
	       io_read_full(fd, in_handshake, sizeof(in_handshake)) == 0 &&
	       memcmp(in_handshake, "SSH-", 4) == 0;
}

static int
died(const struct machine *m, struct err *e)
{
	char console[200], qemu[200];

	last_line(m, "console.log", console, sizeof(console));
	last_line(m, "qemu.log", qemu, sizeof(qemu));
	return err_set(e, strstr(qemu, "forwarding") ? -EADDRINUSE : -ECHILD,
		"the machine ended while it started%s%s (all it said is in %.150s/{qemu,console}.log)",
		*qemu	   ? ": "
		: *console ? ": "
			   : "",
		*qemu ? qemu : console, m->home);
}

static int
wait_for_machine(const struct machine *m, machine_say *say, void *ctx, struct err *e)
{
	cleanup_ssh_link struct ssh_link *link = NULL;
	struct ssh_command c = SSH_COMMAND_INIT;
	cleanup_close int pidfd = -1;
	uint64_t end_ns = io_now_ns() + BOOT_MS * UINT64_C(1000000);
	int status, r;

	if (open_process(m->pid, m->start_ticks, &pidfd) < 0)
		return died(m, e);
	while (!speaks_ssh(m->port)) {
		if (wait_process(pidfd, 100))
			return died(m, e);
		if (io_now_ns() > end_ns)
			return err_set(e, -ETIMEDOUT,
				"the machine does not answer; its console is in %.150s/console.log, `pando machine stop --force` ends it",
				m->home);
		say(ctx, NULL);
	}
	c.text = "test -d /run/pando-machine/transfer";
	c.timeout_ms = CONNECT_MS;
	r = machine_connect(m, CONNECT_MS, &link, e);
	if (r == 0)
		r = ssh_link_run(link, &c, &status, e);
	if (r == 0 && status != 0)
		return err_set(e, -EPROTONOSUPPORT,
			"the machine is of an older make than this pando: `pando machine delete`, then start it again");
	return r;
}

int
machine_start(const struct machine_spec *spec, machine_say *say, void *ctx,
	struct machine *ret, struct err *e)
{
	cleanup_close int lock = -1;
	struct machine m;
	uint64_t spare_mib = 0;
	int r = machine_look(&m, e);

	if (r == 0)
		r = take_lock(&m, say, ctx, &lock, e);
	if (r == 0) /* what was true before the lock may not be any more */
		r = machine_look(&m, e);
	if (r < 0)
		return r;
	if (m.state != MACHINE_RUNNING) {
		r = available_mib(&spare_mib, e);
		if (r == 0)
			r = machine_memory(spec->mem_mib, spare_mib, &m.mem_mib, e);
		m.cpus = spec->cpus ? spec->cpus : MACHINE_CPUS;
		if (r == 0 && m.state == MACHINE_ABSENT)
			r = machine_make(&m,
				spec->disk_mib ? spec->disk_mib : MACHINE_DISK_MIB, say,
				ctx, e);
		if (r < 0)
			return r;
		if (m.state == MACHINE_STOPPED)
			machine_look_for_newer(&m, say, ctx);
	}
	for (int tries = 0;; tries++) {
		if (m.state != MACHINE_RUNNING) {
			say(ctx, "starting the machine");
			r = machine_launch(&m, e);
			if (r < 0)
				return r;
		}
		say(ctx, "waiting for the machine to answer");
		r = wait_for_machine(&m, say, ctx, e);
		if (r != -EADDRINUSE || tries == 5)
			break;
		m.state = MACHINE_STOPPED; /* somebody was quicker to take the port */
	}
	if (r == 0)
		*ret = m;
	return r;
}

int
machine_connect(const struct machine *m, unsigned timeout_ms, struct ssh_link **ret,
	struct err *e)
{
	cleanup_free char *public = NULL;
	char path[PATHS_MAX], *host_key;
	struct ssh_target t = {.address = "127.0.0.1",
		.port = m->port,
		.user = "root",
		.key_path = path};
	size_t len;
	int r;

	if (m->state != MACHINE_RUNNING)
		return err_set(
			e, -ESHUTDOWN, "the machine does not run: `pando machine start`");
	r = machine_path(m, "host_key.pub", path, e);
	if (r == 0)
		r = io_read_file(path, 1024, &public, &len, e);
	if (r < 0)
		return r;
	host_key = strchr(public, ' ');
	if (!host_key)
		return err_set(e, -EINVAL, "%.200s is no public SSH key", path);
	host_key[strcspn(host_key, "\n")] = '\0';
	t.host_key = host_key + 1;
	r = machine_path(m, "client_key", path, e);
	return r < 0 ? r : ssh_link_open(&t, timeout_ms, ret, e);
}

/*
 * Stopping it.
 */

static int
remove_file(const struct machine *m, const char *name, struct err *e)
{
	char path[PATHS_MAX];
	int r = machine_path(m, name, path, e);

	if (r == 0 && unlink(path) < 0 && errno != ENOENT)
		return err_sys(e, -errno, "%.200s", path);
	return r;
}

static void
ask_to_power_off(const struct machine *m)
{
	cleanup_ssh_link struct ssh_link *link = NULL;
	struct ssh_command c = SSH_COMMAND_INIT;
	int status;

	c.text = "exec systemctl poweroff --no-block";
	c.timeout_ms = ASK_MS;
	/* The connection may break before the command's end is told; the process tells.
	 */
	if (machine_connect(m, ASK_MS, &link, NULL) == 0)
		(void)ssh_link_run(link, &c, &status, NULL);
}

static int
end_process(
	const struct machine *m, bool force, machine_say *say, void *ctx, struct err *e)
{
	cleanup_close int pidfd = -1;

	if (open_process(m->pid, m->start_ticks, &pidfd) < 0)
		return 0;
	if (!force) {
		say(ctx, "powering the machine off");
		ask_to_power_off(m);
		if (wait_process(pidfd, POWER_OFF_MS))
			return 0;
		say(ctx, "the machine does not power off; pulling the plug");
	}
	(void)syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0);
	if (wait_process(pidfd, TERM_MS))
		return 0;
	(void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	if (wait_process(pidfd, TERM_MS))
		return 0;
	return err_set(e, -EBUSY, "the machine's process %d does not end", (int)m->pid);
}

/* With the lock held. */
static int
stop_locked(bool force, machine_say *say, void *ctx, struct machine *ret, struct err *e)
{
	int r = machine_look(ret, e);

	if (r == 0 && ret->state == MACHINE_RUNNING)
		r = end_process(ret, force, say, ctx, e);
	if (r == 0)
		r = remove_file(ret, "running.json", e);
	return r;
}

int
machine_stop(bool force, machine_say *say, void *ctx, struct err *e)
{
	cleanup_close int lock = -1;
	struct machine m;
	int r = machine_look(&m, e);

	if (r < 0 || m.state == MACHINE_ABSENT)
		return r;
	r = take_lock(&m, say, ctx, &lock, e);
	return r < 0 ? r : stop_locked(force, say, ctx, &m, e);
}

int
machine_delete(machine_say *say, void *ctx, struct err *e)
{
	/* The disk first: without it there is no machine, whatever is left. */
	static const char *const files[] = {"disk.raw", "disk.raw.new", "kernel",
		"kernel.new", "initrd", "initrd.new", "image", "image.json",
		"image.json.new", "host_key", "host_key.pub", "client_key",
		"client_key.pub", "console.log", "qemu.log"};
	cleanup_close int lock = -1;
	char copied[PATHS_MAX];
	struct machine m;
	int r = machine_look(&m, e);

	if (r < 0 || access(m.home, F_OK) < 0)
		return r;
	r = take_lock(&m, say, ctx, &lock, e);
	if (r == 0)
		r = stop_locked(true, say, ctx, &m, e);
	for (size_t i = 0; r == 0 && i < sizeof(files) / sizeof(files[0]); i++)
		r = remove_file(&m, files[i], e);
	if (r == 0)
		r = machine_path(&m, "copied", copied, e);
	if (r == 0)
		r = io_remove_tree(copied, e);
	if (r == 0)
		r = machine_path(&m, "transfer", copied, e);
	return r < 0 ? r : io_remove_tree(copied, e);
}
