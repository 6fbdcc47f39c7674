#include "host/machine.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/log.h"

#define QEMU "qemu-system-x86_64"
/* A busy host under emulation is slow; a machine that is broken has mostly ended before.
 */
#define BOOT_MS 600000
#define CONNECT_MS 120000
#define ASK_MS 15000
#define POWER_OFF_MS 45000
#define TERM_MS 5000
/* Room on the host's disk to make a machine: the copy of its image and something to work
 * with. */
#define FREE_MIN_MIB 4096

extern char **environ;

/* --- Small things that are tested by themselves
 * ------------------------------------------- */

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
			"the machine needs %llu MiB of memory and this host can spare "
			"%llu: end something, "
			"or ask for less with --mem-size",
			(unsigned long long)(wanted_mib ? wanted_mib
							: MACHINE_MEM_MIN_MIB),
			(unsigned long long)spare_mib);
	if (!wanted_mib)
		wanted_mib = spare_mib < MACHINE_MEM_MIB ? spare_mib : MACHINE_MEM_MIB;
	*ret = wanted_mib;
	return 0;
}

int
machine_qemu_value(char *dst, size_t cap, const char *text, struct err *e)
{
	size_t n = 0;

	for (; *text; text++) {
		if (n + 3 > cap)
			return err_set(e, -ENAMETOOLONG, "a path is too long for QEMU");
		dst[n++] = *text;
		if (*text == ',')
			dst[n++] = ',';
	}
	dst[n] = '\0';
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

/* --- Where things are
 * ---------------------------------------------------------------------- */

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
			"HOME is not set: set it, or PANDO_MACHINE_HOME, to an absolute "
			"path");
	return paths_format(dst, cap, e, "%s/.local/share/pando/machine", home);
}

static int
in_home(const struct machine *m, const char *name, char dst[PATHS_MAX], struct err *e)
{
	return paths_format(dst, PATHS_MAX, e, "%s/%s", m->home, name);
}

static bool
exists(const struct machine *m, const char *name)
{
	char path[PATHS_MAX];

	return in_home(m, name, path, NULL) == 0 && access(path, F_OK) == 0;
}

static int
take_lock(
	const struct machine *m, machine_say *say, void *ctx, int *ret_fd, struct err *e)
{
	cleanup_close int fd = -1;
	char path[PATHS_MAX];
	int r = io_mkdir_p(m->home, 0700, e);

	if (r == 0)
		r = in_home(m, "lock", path, e);
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
	if (in_home(m, name, path, NULL) < 0)
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

/* --- The process
 * --------------------------------------------------------------------------- */

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
	int r = in_home(m, "running.json", path, e);

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
			"%.200s is damaged; end the process %s by hand if it runs, and "
			"remove the file",
			path, QEMU);
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
		r = in_home(&m, "image", path, e);
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

/* --- Making one
 * ---------------------------------------------------------------------------- */

/* Runs a program and takes one line of its stdout; its stderr is ours. */
static int
read_program(char *const argv[], char *line, size_t cap, int *ret_status, struct err *e)
{
	posix_spawn_file_actions_t actions;
	cleanup_close int in = -1, out = -1;
	int pipe_fds[2], r, status;
	size_t len = 0;
	ssize_t n;
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return err_sys(e, -errno, "pipe");
	in = pipe_fds[0];
	out = pipe_fds[1];
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, out, 1);
	r = posix_spawn(&pid, argv[0], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (r)
		return err_sys(e, -r, "%.200s", argv[0]);
	cleanup_close_fn(&out);
	out = -1;
	while (len + 1 < cap && (n = io_read(in, line + len, cap - 1 - len)) > 0)
		len += (size_t)n;
	line[len] = '\0';
	line[strcspn(line, "\n")] = '\0';
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return err_sys(e, -errno, "waiting for %.200s", argv[0]);
	*ret_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return 0;
}

/* Where the image lies; pando-golden makes it when it has to, and tells the user about
 * it. if_made: only if it need not; *folder is "" otherwise. */
static int
find_image(bool if_made, char folder[PATHS_MAX], struct err *e)
{
	char program[PATHS_MAX], verb[] = "machine", option[] = "--if-made";
	char *argv[] = {program, verb, if_made ? option : NULL, NULL};
	int status = 0,
	    r = paths_program("libexec/pando/pando-golden", program, sizeof(program), e);

	if (r == 0 && access(program, X_OK) < 0)
		return err_sys(e, -errno, "%.200s", program);
	if (r == 0)
		r = read_program(argv, folder, PATHS_MAX, &status, e);
	if (r < 0)
		return r;
	if (status != 0)
		return err_set(e, -EIO,
			"the machine's image could not be made (status %d): see above",
			status);
	if (folder[0] != '/' && !(if_made && !folder[0]))
		return err_set(e, -EPROTO,
			"pando-golden did not say where the machine's image is");
	return 0;
}

/* Data without its holes. */
static int
copy_sparse(int from, int to, off_t size)
{
	cleanup_free char *buf = malloc(1 << 20);
	off_t at = 0, end;
	int r;

	if (!buf)
		return -ENOMEM;
	if (ioctl(to, FICLONE, from) == 0)
		return 0;
	while (at < size) {
		at = lseek(from, at, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? 0 : -errno;
		end = lseek(from, at, SEEK_HOLE);
		if (end < 0)
			return -errno;
		while (at < end) {
			size_t n = end - at < (1 << 20) ? (size_t)(end - at) : 1 << 20;

			r = io_pread_full(from, buf, n, (uint64_t)at);
			if (r == 0)
				r = io_pwrite_full(to, buf, n, (uint64_t)at);
			if (r < 0)
				return r;
			at += (off_t)n;
		}
	}
	return 0;
}

/* size_mib 0: as large as the original. */
static int
copy_file(const char *folder, const char *name, const struct machine *m, const char *as,
	uint64_t size_mib, struct err *e)
{
	cleanup_close int from = -1, to = -1;
	char path[PATHS_MAX], place[PATHS_MAX], temp[PATHS_MAX];
	struct stat st;
	off_t size;
	int r = paths_format(path, sizeof(path), e, "%s/%s", folder, name);

	if (r == 0)
		r = in_home(m, as, place, e);
	if (r == 0)
		r = paths_format(temp, sizeof(temp), e, "%s.new", place);
	if (r < 0)
		return r;
	from = open(path, O_RDONLY | O_CLOEXEC);
	if (from < 0 || fstat(from, &st) < 0)
		return err_sys(e, -errno, "%.200s", path);
	to = open(temp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (to < 0)
		return err_sys(e, -errno, "%.200s", temp);
	r = copy_sparse(from, to, st.st_size);
	size = (off_t)(size_mib << 20);
	if (r == 0 && ftruncate(to, size > st.st_size ? size : st.st_size) < 0)
		r = -errno;
	if (r == 0 && fsync(to) < 0)
		r = -errno;
	if (r == 0 && rename(temp, place) < 0)
		r = -errno;
	if (r < 0) {
		unlink(temp);
		return err_sys(e, r, "copying %.150s to %.150s", path, place);
	}
	return 0;
}

static int
write_text(const struct machine *m, const char *name, const char *text, struct err *e)
{
	char path[PATHS_MAX];
	int r = in_home(m, name, path, e);

	return r < 0 ? r : io_write_file_atomic(path, text, strlen(text), 0600, e);
}

/* The private half in `name`, the public one as a line of text in `name`.pub. */
static int
make_key(const struct machine *m, const char *name, struct err *e)
{
	char path[PATHS_MAX], public_name[32], public[SSH_PUBLIC_MAX],
		line[SSH_PUBLIC_MAX + 32];
	int r = in_home(m, name, path, e);

	if (r == 0)
		r = ssh_make_key(path, public, e);
	if (r < 0)
		return r;
	snprintf(public_name, sizeof(public_name), "%s.pub", name);
	snprintf(line, sizeof(line), "ssh-ed25519 %s\n", public);
	return write_text(m, public_name, line, e);
}

/* The disk is put in place last: with it, a machine exists. */
static int
make_machine(
	struct machine *m, uint64_t disk_mib, machine_say *say, void *ctx, struct err *e)
{
	char folder[PATHS_MAX], copied[PATHS_MAX];
	struct statvfs vfs;
	int r;

	say(ctx, "looking for the machine's image");
	r = find_image(false, folder, e);
	if (r < 0)
		return r;
	if (statvfs(m->home, &vfs) == 0 &&
		(uint64_t)vfs.f_bavail * vfs.f_frsize >> 20 < FREE_MIN_MIB)
		return err_set(e, -ENOSPC,
			"the disk of %.200s has %llu MiB free and a machine needs %u: "
			"free some, or point "
			"PANDO_MACHINE_HOME elsewhere",
			m->home,
			(unsigned long long)((uint64_t)vfs.f_bavail * vfs.f_frsize >> 20),
			FREE_MIN_MIB);
	say(ctx, "making the machine's disk");
	snprintf(m->image, sizeof(m->image), "%.120s", strrchr(folder, '/') + 1);
	r = in_home(m, "copied", copied, e);
	if (r == 0)
		r = io_remove_tree(copied, e);
	if (r == 0)
		r = make_key(m, "host_key", e);
	if (r == 0)
		r = make_key(m, "client_key", e);
	if (r == 0)
		r = copy_file(folder, "kernel", m, "kernel", 0, e);
	if (r == 0)
		r = copy_file(folder, "initrd", m, "initrd", 0, e);
	if (r == 0)
		r = copy_file(folder, "image.json", m, "image.json", 0, e);
	if (r == 0)
		r = write_text(m, "image", m->image, e);
	return r < 0 ? r : copy_file(folder, "rootfs.ext4", m, "disk.raw", disk_mib, e);
}

/* A machine keeps its disk, and so what it was made from. Whoever changed that should
 * know. */
static void
look_for_newer(const struct machine *m, machine_say *say, void *ctx)
{
	char folder[PATHS_MAX], note[256];

	if (find_image(true, folder, NULL) < 0 || !folder[0] ||
		strcmp(strrchr(folder, '/') + 1, m->image) == 0)
		return;
	snprintf(note, sizeof(note),
		"the machine is of image %.60s, and there is %.60s: `pando machine "
		"delete` makes room for it",
		m->image, strrchr(folder, '/') + 1);
	say(ctx, note);
}

/* --- Starting it
 * --------------------------------------------------------------------------- */

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

/* A port of 127.0.0.1 that nobody has. Somebody may take it before QEMU does; then QEMU
 * says so and the caller tries another. */
static int
free_port(uint16_t *ret, struct err *e)
{
	cleanup_close int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);

	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 ||
		getsockname(fd, (struct sockaddr *)&a, &len) < 0)
		return err_sys(e, -errno, "a port of 127.0.0.1");
	*ret = ntohs(a.sin_port);
	return 0;
}

/* A growing argument vector. */
struct args {
	char *v[64]; /* owned, NULL-terminated */
	size_t n;
	int error;
};

static void
args_done(struct args *a)
{
	for (size_t i = 0; i < a->n; i++)
		free(a->v[i]);
}

__attribute__((format(printf, 2, 3))) static void
add(struct args *a, const char *fmt, ...)
{
	va_list ap;
	int n;

	if (a->error || a->n + 1 >= sizeof(a->v) / sizeof(a->v[0])) {
		a->error = -E2BIG;
		return;
	}
	va_start(ap, fmt);
	n = vasprintf(&a->v[a->n], fmt, ap);
	va_end(ap);
	if (n < 0) {
		a->v[a->n] = NULL;
		a->error = -ENOMEM;
		return;
	}
	a->n++;
}

static int
read_cmdline(const struct machine *m, char *dst, size_t cap, struct err *e)
{
	cleanup_json struct json *j = NULL;
	cleanup_free char *text = NULL;
	char path[PATHS_MAX];
	size_t len;
	int r = in_home(m, "image.json", path, e);

	if (r == 0)
		r = io_read_file(path, 65536, &text, &len, e);
	if (r == 0)
		r = json_parse(text, len, 1024, &j, e);
	if (r < 0)
		return r;
	r = json_str(j, json_get(j, 0, "cmdline"), dst, cap);
	return r < 0 ? err_set(e, -EINVAL, "%.200s names no kernel command line", path)
		     : 0;
}

static int
qemu_args(const struct machine *m, struct args *a, struct err *e)
{
	char home[PATHS_MAX], cmdline[2048];
	int r = machine_qemu_value(home, sizeof(home), m->home, e);

	if (r == 0)
		r = read_cmdline(m, cmdline, sizeof(cmdline), e);
	if (r < 0)
		return r;
	add(a, QEMU);
	add(a, "-name");
	add(a, "pando-machine");
	/* No file of the user's or the system's changes what this is. */
	add(a, "-no-user-config");
	add(a, "-nodefaults");
	add(a, "-display");
	add(a, "none");
	add(a, "-no-reboot");
	/* Emulated: the machine is for hosts whose own KVM is no good. QEMU 7.2 forgets
	 * that an interrupt which VMRUN injects has been delivered (helper_vmrun() leaves
	 * exception_index set), and delivers it again when the CPU is told to leave its
	 * loop before the next exit of the guest. All CPUs leave their loops when the
	 * buffer of translated code is full: hence the largest that QEMU takes. */
	add(a, "-accel");
	add(a, "tcg,thread=multi,tb-size=2047");
	/* No 5-level page tables: page walks are shorter. No fast string operations:
	 * kernels then clear and copy by words, not by bytes, which the emulator does one
	 * at a time, and each the slow way where the page once held code. Clearing a huge
	 * page was seen to take longer than a minute (soft lockups in clear_page_erms).
	 */
	add(a, "-cpu");
	add(a, "max,la57=off,erms=off,fsrm=off");
	/* One more than was asked for, the first, on which commands do not run
	 * (MACHINE_CPUS_FOR_USE): an XRSTOR on any CPU changes hflags2 of
	 * the first one from its own thread, without a lock (cpu_clear_ignne()). A CPU
	 * that enters and leaves guests keeps there whether its page tables are nested
	 * and whether it takes interrupts; either can be lost, or come back. Guests died
	 * of triple faults, CPUs took no interrupt for a minute, and the machine itself
	 * crashed. */
	add(a, "-smp");
	add(a, "%llu", (unsigned long long)m->cpus + 1);
	add(a, "-m");
	add(a, "%llu", (unsigned long long)m->mem_mib);
	add(a, "-kernel");
	add(a, "%s/kernel", m->home);
	add(a, "-initrd");
	add(a, "%s/initrd", m->home);
	add(a, "-append");
	add(a, "%s", cmdline);
	add(a, "-serial");
	add(a, "file:%s/console.log", m->home);
	/* Killed with the plug pulled, the disk still has what the machine wrote: the
	 * host's page cache outlives QEMU. */
	add(a, "-drive");
	add(a,
		"file=%s/"
		"disk.raw,format=raw,if=virtio,cache=unsafe,discard=unmap,detect-zeroes="
		"unmap",
		home);
	add(a, "-device");
	add(a, "virtio-rng-pci");
	add(a, "-netdev");
	add(a, "user,id=n,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:%u-:22", m->port);
	add(a, "-device");
	add(a, "virtio-net-pci,netdev=n,romfile=");
	add(a, "-fw_cfg");
	add(a, "name=opt/pando/host_key,file=%s/host_key", home);
	add(a, "-fw_cfg");
	add(a, "name=opt/pando/authorized_keys,file=%s/client_key.pub", home);
	/* The one folder that it sees (machine_copy.c). */
	add(a, "-virtfs");
	add(a,
		"local,path=%s/"
		"transfer,mount_tag=pando-transfer,security_model=none,readonly=on",
		home);
	/* Not with -daemonize, which needs some of these calls. */
	add(a, "-sandbox");
	add(a, "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	return a->error ? err_sys(e, a->error, "%s", QEMU) : 0;
}

/* In a session of its own: it outlives us, and no terminal's Ctrl-C reaches it. */
static int
spawn_qemu(const struct machine *m, char *const argv[], pid_t *ret_pid, struct err *e)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none;
	char log[PATHS_MAX];
	int r = in_home(m, "qemu.log", log, e);

	if (r < 0)
		return r;
	sigemptyset(&none);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(
		&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	posix_spawn_file_actions_adddup2(&actions, 1, 2);
	r = posix_spawnp(ret_pid, QEMU, &actions, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	if (r == ENOENT)
		return err_set(e, -ENOENT,
			"there is no %s on this host (Debian package qemu-system-x86); "
			"`make deps` "
			"installs it",
			QEMU);
	return r ? err_sys(e, -r, "%s", QEMU) : 0;
}

static int
record(struct machine *m, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	cleanup_free char *stat_text = NULL;
	char path[64];
	size_t len;

	/* It is our child: even if it has ended, its number is its own until we take
	 * note. */
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)m->pid);
	if (io_read_file(path, 4096, &stat_text, &len, NULL) < 0 ||
		machine_start_ticks(stat_text, &m->start_ticks) < 0)
		return err_set(e, -ESRCH, "%s cannot be seen in /proc", QEMU);
	m->started_ms = io_wall_ms();
	json_out_object(&o, NULL);
	json_out_u64(&o, "pid", (uint64_t)m->pid);
	json_out_u64(&o, "start_ticks", m->start_ticks);
	json_out_u64(&o, "port", m->port);
	json_out_u64(&o, "mem_mib", m->mem_mib);
	json_out_u64(&o, "cpus", m->cpus);
	json_out_u64(&o, "started_ms", m->started_ms);
	json_out_end_object(&o);
	return o.error ? err_sys(e, o.error, "running.json")
		       : write_text(m, "running.json", o.buf, e);
}

static int
launch(struct machine *m, struct err *e)
{
	__attribute__((cleanup(args_done))) struct args args = {0};
	char transfer[PATHS_MAX];
	int r = free_port(&m->port, e);

	if (r == 0)
		r = in_home(m, "transfer", transfer, e);
	if (r == 0)
		r = io_mkdir_p(transfer, 0700, e);
	if (r == 0)
		r = qemu_args(m, &args, e);
	if (r == 0)
		r = spawn_qemu(m, args.v, &m->pid, e);
	if (r < 0)
		return r;
	r = record(m, e);
	if (r < 0)
		kill(m->pid,
			SIGKILL); /* our child, not waited for: the number is its own */
	else
		m->state = MACHINE_RUNNING;
	return r;
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
	char greeting[4];

	return fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0 &&
	       poll(&p, 1, 2000) > 0 &&
	       io_read_full(fd, greeting, sizeof(greeting)) == 0 &&
	       memcmp(greeting, "SSH-", 4) == 0;
}

static int
died(const struct machine *m, struct err *e)
{
	char console[200], qemu[200];

	last_line(m, "console.log", console, sizeof(console));
	last_line(m, "qemu.log", qemu, sizeof(qemu));
	return err_set(e, strstr(qemu, "forwarding") ? -EADDRINUSE : -ECHILD,
		"the machine ended while it started%s%s (all it said is in "
		"%.150s/{qemu,console}.log)",
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
				"the machine does not answer; its console is in "
				"%.150s/console.log, "
				"`pando machine stop --force` ends it",
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
			"the machine is of an older make than this pando: `pando machine "
			"delete`, then start "
			"it again");
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
			r = make_machine(&m,
				spec->disk_mib ? spec->disk_mib : MACHINE_DISK_MIB, say,
				ctx, e);
		if (r < 0)
			return r;
		if (m.state == MACHINE_STOPPED)
			look_for_newer(&m, say, ctx);
	}
	for (int tries = 0;; tries++) {
		if (m.state != MACHINE_RUNNING) {
			say(ctx, "starting the machine");
			r = launch(&m, e);
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
	r = in_home(m, "host_key.pub", path, e);
	if (r == 0)
		r = io_read_file(path, 1024, &public, &len, e);
	if (r < 0)
		return r;
	host_key = strchr(public, ' ');
	if (!host_key)
		return err_set(e, -EINVAL, "%.200s is no public SSH key", path);
	host_key[strcspn(host_key, "\n")] = '\0';
	t.host_key = host_key + 1;
	r = in_home(m, "client_key", path, e);
	return r < 0 ? r : ssh_link_open(&t, timeout_ms, ret, e);
}

/* --- Stopping it
 * --------------------------------------------------------------------------- */

static int
remove_file(const struct machine *m, const char *name, struct err *e)
{
	char path[PATHS_MAX];
	int r = in_home(m, name, path, e);

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
		if (r == 0)
			r = in_home(&m, "copied", copied, e);
	if (r == 0)
		r = io_remove_tree(copied, e);
	if (r == 0)
		r = in_home(&m, "transfer", copied, e);
	return r < 0 ? r : io_remove_tree(copied, e);
}
