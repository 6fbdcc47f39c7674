#include "host/testvm/machine_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"

extern char **environ;

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
	int r = machine_path(m, "image.json", path, e);

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
	add(a, MACHINE_QEMU);
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
	 * No CMPXCHG16B: QEMU 7.2 does not note what the flags are to be computed from
	 * before it (gen_update_cc_op() is missing), so that all but ZF come from what an
	 * earlier instruction left. Linux allocates memory with it, and a guest that was
	 * stopped right after it went on with the trap flag set, and panicked.
	 */
	add(a, "-cpu");
	add(a, "max,la57=off,erms=off,fsrm=off,pku=off,cx16=off");
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
	return a->error ? err_sys(e, a->error, "%s", MACHINE_QEMU) : 0;
}

/* In a session of its own: it outlives us, and no terminal's Ctrl-C reaches it. */
static int
spawn_qemu(const struct machine *m, char *const argv[], pid_t *ret_pid, struct err *e)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none;
	char log[PATHS_MAX];
	int r = machine_path(m, "qemu.log", log, e);

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
	r = posix_spawnp(ret_pid, MACHINE_QEMU, &actions, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	if (r == ENOENT)
		return err_set(e, -ENOENT,
			"there is no %s on this host (Debian package qemu-system-x86); `make deps` installs it",
			MACHINE_QEMU);
	return r ? err_sys(e, -r, "%s", MACHINE_QEMU) : 0;
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
		return err_set(e, -ESRCH, "%s cannot be seen in /proc", MACHINE_QEMU);
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
		       : machine_write(m, "running.json", o.buf, e);
}

int
machine_launch(struct machine *m, struct err *e)
{
	__attribute__((cleanup(args_done))) struct args args = {0};
	char transfer[PATHS_MAX];
	int r = free_port(&m->port, e);

	if (r == 0)
		r = machine_path(m, "transfer", transfer, e);
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
