/*
 * Scopes of VMs: against a systemd and a machined of our own on a private D-Bus daemon,
 * and with real control groups where they may be made. The VMs are processes that sleep.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "host/scope/bus.h"
#include "host/scope/cgroup.h"
#include "host/scope/scope.h"
#include "tests/unit/bus_help.h"

#define A "aaaaaaaaaaaa"
#define B "bbbbbbbbbbbb"

static char folder[64], address[128];
static pid_t daemon_pid;

/*
 * The other side.
 */

static struct {
	pthread_t thread;
	bool runs;
	_Atomic bool stop;
	pthread_mutex_t lock;
	char calls[4096];
	unsigned exists; /* so many scopes are refused: there is one of that name */
	bool denies, hangs, fails;
	bool machined;
} mock = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void
note(const char *fmt, ...)
{
	va_list ap;
	size_t n;

	pthread_mutex_lock(&mock.lock);
	n = strlen(mock.calls);
	va_start(ap, fmt);
	vsnprintf(mock.calls + n, sizeof(mock.calls) - n, fmt, ap);
	va_end(ap);
	pthread_mutex_unlock(&mock.lock);
}

static void
note_properties(sd_bus_message *m)
{
	const char *name, *type, *text;
	uint64_t number;
	uint32_t pid;

	if (sd_bus_message_enter_container(m, 'a', "(sv)") < 0)
		return;
	while (sd_bus_message_enter_container(m, 'r', "sv") > 0) {
		if (sd_bus_message_read(m, "s", &name) < 0 ||
			sd_bus_message_peek_type(m, NULL, &type) < 0 ||
			sd_bus_message_enter_container(m, 'v', type) < 0)
			return;
		if (strcmp(type, "s") == 0 && sd_bus_message_read(m, "s", &text) > 0) {
			note(" %s=%s", name, text);
		} else if (strcmp(type, "t") == 0 &&
			   sd_bus_message_read(m, "t", &number) > 0) {
			note(" %s=%llu", name, (unsigned long long)number);
		} else if (strcmp(type, "au") == 0 &&
			   sd_bus_message_read(m, "au", 1, &pid) > 0) {
			note(" %s=%u", name, pid);
		}
		sd_bus_message_exit_container(m);
		sd_bus_message_exit_container(m);
	}
	sd_bus_message_exit_container(m);
}

static int
on_start(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	sd_bus *bus = sd_bus_message_get_bus(m);
	const char *unit, *mode;
	int r = sd_bus_message_read(m, "ss", &unit, &mode);

	(void)ctx;
	if (r < 0)
		return r;
	note("start %s %s", unit, mode);
	note_properties(m);
	note("\n");
	if (mock.hangs)
		return 1;
	if (mock.denies)
		return sd_bus_error_set(
			error, SD_BUS_ERROR_ACCESS_DENIED, "not \033[1myou");
	if (mock.exists) {
		mock.exists--;
		return sd_bus_error_setf(
			error, SYSTEMD ".UnitExists", "Unit %s was already loaded", unit);
	}
	r = sd_bus_reply_method_return(m, "o", BUS_HELP_JOB);
	if (r < 0)
		return r;
	return bus_help_removed(bus, BUS_HELP_JOB, unit, mock.fails ? "failed" : "done");
}

static int
on_set(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	const char *unit;
	int runtime, r = sd_bus_message_read(m, "sb", &unit, &runtime);

	(void)ctx;
	(void)error;
	if (r < 0)
		return r;
	note("set %s %s", unit, runtime ? "runtime" : "for ever");
	note_properties(m);
	note("\n");
	return sd_bus_reply_method_return(m, "");
}

static int
on_register(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	const char *name, *service, *class, *root;
	const void *id;
	size_t n;
	uint32_t leader;

	(void)ctx;
	(void)error;
	if (sd_bus_message_read(m, "s", &name) < 0 ||
		sd_bus_message_read_array(m, 'y', &id, &n) < 0 ||
		sd_bus_message_read(m, "ssus", &service, &class, &leader, &root) < 0)
		return -EINVAL;
	note("register %s %zu:%02x %s %s %u %s\n", name, n, *(const uint8_t *)id, service,
		class, leader, root);
	return sd_bus_reply_method_return(m, "o", "/org/freedesktop/machine1/machine/x");
}

static int
on_unregister(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	const char *name;

	(void)ctx;
	if (sd_bus_message_read(m, "s", &name) < 0)
		return -EINVAL;
	note("unregister %s\n", name);
	return sd_bus_error_set(error, "org.freedesktop.machine1.NoSuchMachine", "gone");
}

static const sd_bus_vtable manager[] = {
	SD_BUS_VTABLE_START(0),
	BUS_HELP_SUBSCRIBE,
	SD_BUS_METHOD("StartTransientUnit", "ssa(sv)a(sa(sv))", "o", on_start,
		SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD(
		"SetUnitProperties", "sba(sv)", "", on_set, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_VTABLE_END,
};

static const sd_bus_vtable machines[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_METHOD("RegisterMachine", "sayssus", "o", on_register,
		SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD(
		"UnregisterMachine", "s", "", on_unregister, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_VTABLE_END,
};

static void *
mock_main(void *arg)
{
	sd_bus *bus = arg;

	while (!mock.stop) {
		int r = sd_bus_process(bus, NULL);

		if (r < 0 || (r == 0 && sd_bus_wait(bus, 50000) < 0))
			break;
	}
	/* Closing tells dbus-daemon nothing before it looks: the next test could find the name taken. */
	(void)sd_bus_release_name(bus, SYSTEMD);
	sd_bus_flush_close_unref(bus);
	return NULL;
}

static int
mock_connect(sd_bus **bus)
{
	int r = sd_bus_new(bus);

	if (r >= 0)
		r = sd_bus_set_address(*bus, address);
	if (r >= 0)
		r = sd_bus_set_bus_client(*bus, 1);
	if (r >= 0)
		r = sd_bus_start(*bus);
	if (r >= 0)
		r = sd_bus_add_object_vtable(
			*bus, NULL, SYSTEMD_PATH, SYSTEMD_MANAGER, manager, NULL);
	if (r >= 0)
		r = sd_bus_add_object_vtable(*bus, NULL, "/org/freedesktop/machine1",
			"org.freedesktop.machine1.Manager", machines, NULL);
	if (r >= 0)
		r = sd_bus_request_name(*bus, SYSTEMD, 0);
	if (r < 0)
		*bus = sd_bus_close_unref(*bus);
	return r;
}

static void
mock_start(void)
{
	sd_bus *bus = NULL;
	int r = -1;

	mock.stop = false;
	/* dbus-daemon lets go whoever is slow to say who it is, as on a busy host. */
	for (int i = 0; i < 10 && r < 0; i++)
		r = mock_connect(&bus);
	if (r < 0)
		fail_msg("the test's own systemd cannot be: %s", strerror(-r));
	if (mock.machined)
		assert_true(sd_bus_request_name(bus, "org.freedesktop.machine1", 0) >= 0);
	assert_int_equal(pthread_create(&mock.thread, NULL, mock_main, bus), 0);
	mock.runs = true;
}

static void
mock_stop(void)
{
	if (!mock.runs)
		return;
	mock.stop = true;
	pthread_join(mock.thread, NULL);
	mock.runs = false;
}

static bool
said(const char *what)
{
	bool r;

	pthread_mutex_lock(&mock.lock);
	r = strstr(mock.calls, what) != NULL;
	pthread_mutex_unlock(&mock.lock);
	return r;
}

#define WAIT_FOR(condition, seconds) \
	do { \
		for (int i_ = 0; i_ < (seconds)*100 && !(condition); i_++) \
			usleep(10000); \
		if (!(condition)) \
			fail_msg("in vain: %s; calls: %s", #condition, mock.calls); \
	} while (0)

/* A daemon at `address`; false: there is no dbus-daemon on this host. */
static bool
daemon_start(void)
{
	char conf[96], option[128], text[1024];
	int status;

	snprintf(conf, sizeof(conf), "%s/bus.conf", folder);
	snprintf(text, sizeof(text),
		"<busconfig><type>session</type><listen>%s</listen><auth>EXTERNAL</auth>"
		"<policy context=\"default\"><allow send_destination=\"*\"/><allow own=\"*\"/>"
		"<allow eavesdrop=\"true\"/></policy></busconfig>",
		address);
	assert_int_equal(io_write_file_atomic(conf, text, strlen(text), 0600, NULL), 0);
	snprintf(option, sizeof(option), "--config-file=%s", conf);
	unlink(address + strlen("unix:path="));
	daemon_pid = fork();
	if (!daemon_pid) {
		int null = open("/dev/null", O_WRONLY);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!getenv("VERBOSE"))
			dup2(null, 2);
		execlp("dbus-daemon", "dbus-daemon", option, "--nofork", (char *)NULL);
		_exit(127);
	}
	/* It is there before it listens. */
	for (int i = 0; i < 1000; i++) {
		cleanup_close int fd = -1;

		if (io_unix_connect(address + strlen("unix:path="), SOCK_STREAM, &fd, NULL) == 0)
			return true;
		if (waitpid(daemon_pid, &status, WNOHANG) == daemon_pid) {
			daemon_pid = 0;
			return false;
		}
		usleep(10000);
	}
	return false;
}

static void
daemon_stop(void)
{
	if (!daemon_pid)
		return;
	kill(daemon_pid, SIGKILL);
	waitpid(daemon_pid, NULL, 0);
	daemon_pid = 0;
}

static int
setup(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/pando-scope-test-XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(address, sizeof(address), "unix:path=%s/bus", folder);
	setenv("DBUS_SYSTEM_BUS_ADDRESS", address, 1);
	setenv("DBUS_SESSION_BUS_ADDRESS", address, 1);
	mock.calls[0] = '\0';
	mock.exists = 0;
	mock.denies = mock.hangs = mock.fails = false;
	mock.machined = true;
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	mock_stop();
	daemon_stop();
	return io_remove_tree(folder, NULL);
}

#define NEEDS_DAEMON() \
	do { \
		if (!daemon_start()) { \
			print_message("there is no dbus-daemon\n"); \
			skip(); \
		} \
	} while (0)

/*
 * VMs.
 */

struct vm {
	pid_t pid;
	int pidfd;
};

static struct vm
vm_start(void)
{
	struct vm vm = {.pid = fork()};

	if (!vm.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	vm.pidfd = (int)syscall(SYS_pidfd_open, vm.pid, 0);
	assert_true(vm.pidfd >= 0);
	return vm;
}

static void
vm_end(struct vm *vm)
{
	kill(vm->pid, SIGKILL);
	waitpid(vm->pid, NULL, 0);
	close(vm->pidfd);
}

static void
enter(struct scopes *s, const struct vm *vm, const char *id, const char *parent,
	bool found)
{
	static const uint8_t machine[16] = {0xab};
	struct scope_vm v = {
		.id = id,
		.alias = strcmp(id, A) != 0 ? "" : "web",
		.parent = parent,
		.folder = "/vms/x",
		.machine_id = machine,
		.pid = vm->pid,
		.pidfd = vm->pidfd,
		.mem_mib = 512,
		.vcpus = 2,
		.found = found,
	};

	scopes_enter(s, &v);
}

static unsigned
count_in(struct scopes *s, char *detail, size_t cap)
{
	cleanup_json_out struct json_out o = {0};
	cleanup_json struct json *j = NULL;
	uint64_t n = 999;

	scopes_json(s, NULL, &o);
	assert_int_equal(json_parse(o.buf, o.len, 64, &j, NULL), 0);
	if (detail)
		assert_int_equal(json_str(j, json_get(j, 0, "detail"), detail, cap), 0);
	assert_int_equal(json_u64(j, json_get(j, 0, "vms"), &n), 0);
	return (unsigned)n;
}

static char detail[400];
#define IN(s) count_in(s, detail, sizeof(detail))

/*
 * With a bus.
 */

/* Our systemd comes to the bus, and VM A to new scopes. */
static struct scopes *
scopes_with(struct vm *ret, enum scopes_use use, const char *home)
{
	struct scopes *s;

	mock_start();
	*ret = vm_start();
	s = scopes_open(use, home, NULL);
	enter(s, ret, A, "", false);
	return s;
}

static void
a_vm_is_a_scope_with_its_limits_and_a_machine(void **state)
{
	char want[400];
	struct scopes *s;
	struct vm vm;

	(void)state;
	NEEDS_DAEMON();
	s = scopes_with(&vm, SCOPES_AUTO, NULL);
	WAIT_FOR(IN(s) == 1, 10);
	/* Twice the guest's memory, and 64 MiB. */
	snprintf(want, sizeof(want),
		"start pando-" A ".scope fail Description=Pando VM " A
		" (web) Slice=pando.slice PIDs=%d MemoryMax=%llu CPUWeight=200 CollectMode=inactive-or-failed\n",
		(int)vm.pid, 1088ull << 20);
	assert_true(said(want));
	if (geteuid() == 0) {
		snprintf(want, sizeof(want),
			"register pando-" A " 16:ab pando vm %d /vms/x\n", (int)vm.pid);
		WAIT_FOR(said(want), 10);
		assert_non_null(strstr(detail, "the host's systemd"));
	}
	vm_end(&vm);
	scopes_leave(s, A);
	if (geteuid() == 0)
		WAIT_FOR(said("unregister pando-" A "\n"), 10);
	WAIT_FOR(IN(s) == 0, 10);
	scopes_close(s);
}

static void
forks_raise_the_limit_of_all_they_came_from(void **state)
{
	struct vm a, b;
	struct scopes *s;

	(void)state;
	NEEDS_DAEMON();
	mock.machined = false;
	b = vm_start();
	s = scopes_with(&a, SCOPES_SYSTEMD, NULL);
	WAIT_FOR(IN(s) == 1, 10);
	scopes_expect(s, A, 1);
	enter(s, &b, B, A, false);
	WAIT_FOR(said("set pando-" A ".scope runtime MemoryMax=1677721600\n"), 10);
	WAIT_FOR(IN(s) == 2, 10);
	/* Three more of the fork: room for four of each. */
	scopes_expect(s, B, 3);
	WAIT_FOR(said("set pando-" A ".scope runtime MemoryMax=3288334336\n"), 10);
	WAIT_FOR(said("set pando-" B ".scope runtime MemoryMax=3288334336\n"), 10);
	assert_false(said("register"));
	scopes_leave(s, A);
	scopes_leave(s, B);
	scopes_close(s);
	vm_end(&a);
	vm_end(&b);
}

static void
a_scope_of_that_name_is_waited_for(void **state)
{
	struct scopes *s;
	struct vm vm;

	(void)state;
	NEEDS_DAEMON();
	mock.exists = 2;
	s = scopes_with(&vm, SCOPES_SYSTEMD, NULL);
	WAIT_FOR(IN(s) == 1, 10);
	scopes_close(s);
	vm_end(&vm);
}

/* Its disk is memory, and on its account. */
static void
a_home_in_memory_has_no_limit_of_memory(void **state)
{
	struct scopes *s;
	struct vm vm;

	(void)state;
	NEEDS_DAEMON();
	s = scopes_with(&vm, SCOPES_SYSTEMD, "/dev/shm");
	WAIT_FOR(IN(s) == 1, 10);
	assert_true(said(" MemoryMax=18446744073709551615 CPUWeight=200 "));
	assert_non_null(strstr(detail, "memory has no limit"));
	scopes_expect(s, A, 9);
	usleep(100000);
	assert_false(said("set "));
	scopes_close(s);
	vm_end(&vm);
}

static void
what_is_refused_is_said_and_hurts_nobody(void **state)
{
	struct scopes *s;
	struct vm vm;

	(void)state;
	NEEDS_DAEMON();
	mock.denies = true;
	s = scopes_with(&vm, SCOPES_SYSTEMD, NULL);
	WAIT_FOR((IN(s), strstr(detail, "no scope of their own: scope pando-" A
					".scope: not \\x1b[1myou") != NULL),
		10);
	assert_int_equal(IN(s), 0);
	assert_int_equal(kill(vm.pid, 0), 0);
	scopes_leave(s, A);
	scopes_close(s);
	vm_end(&vm);
}

static void
a_bus_that_hangs_holds_nobody_up(void **state)
{
	uint64_t began;
	struct scopes *s;
	struct vm vm;

	(void)state;
	NEEDS_DAEMON();
	mock.hangs = true;
	s = scopes_with(&vm, SCOPES_SYSTEMD, NULL);
	WAIT_FOR(said("start pando-" A), 10);
	began = io_now_ns();
	enter(s, &vm, B, "", false);
	scopes_expect(s, A, 7);
	scopes_leave(s, A);
	(void)IN(s);
	assert_true(io_now_ns() - began < 1000000000);
	scopes_close(s);
	assert_true(io_now_ns() - began < (2 * BUS_CALL_MS + 3000) * UINT64_C(1000000));
	vm_end(&vm);
}

static void
a_bus_that_comes_back_is_used_again(void **state)
{
	struct vm a, b;
	struct scopes *s;

	(void)state;
	NEEDS_DAEMON();
	b = vm_start();
	s = scopes_with(&a, SCOPES_SYSTEMD, NULL);
	WAIT_FOR(IN(s) == 1, 10);
	daemon_stop();
	mock_stop();
	enter(s, &b, B, "", false);
	usleep(300000);
	assert_int_equal(IN(s), 1);
	assert_true(daemon_start());
	mock_start();
	WAIT_FOR(IN(s) == 2, 40);
	scopes_close(s);
	vm_end(&a);
	vm_end(&b);
}

static void
a_process_that_has_ended_is_put_nowhere(void **state)
{
	struct scopes *s;
	struct vm vm;

	(void)state;
	NEEDS_DAEMON();
	s = scopes_with(&vm, SCOPES_SYSTEMD, NULL);
	kill(vm.pid, SIGKILL);
	waitpid(vm.pid, NULL, 0);
	usleep(300000);
	assert_false(said("start"));
	scopes_leave(s, A);
	scopes_close(s);
	close(vm.pidfd);
}

/*
 * Without one.
 */

static void
without_systemd_or_groups_it_is_said_once(void **state)
{
	struct scopes *s;
	struct vm vm = vm_start();

	(void)state;
	s = scopes_open(SCOPES_SYSTEMD, NULL, NULL);
	enter(s, &vm, A, "", false);
	WAIT_FOR((IN(s), strstr(detail, "have no scopes and no limits") != NULL), 10);
	enter(s, &vm, B, "", false);
	scopes_expect(s, B, 3);
	scopes_leave(s, B);
	assert_int_equal(IN(s), 0);
	scopes_close(s);
	/* A bus that systemd is not on. */
	if (daemon_start()) {
		s = scopes_open(SCOPES_SYSTEMD, NULL, NULL);
		WAIT_FOR((IN(s), strstr(detail, "there is no systemd on the") != NULL),
			10);
		scopes_close(s);
	}
	/* And no scopes at all. */
	assert_null(scopes_open(SCOPES_NONE, NULL, NULL));
	enter(NULL, &vm, A, "", false);
	scopes_expect(NULL, A, 1);
	scopes_leave(NULL, A);
	assert_int_equal(IN(NULL), 0);
	scopes_close(NULL);
	vm_end(&vm);
}

/*
 * Control groups, for real: in one of the test's own.
 */

static char below[CGROUP_PATH_MAX];
static struct cgroup probe;

static bool
groups_start(void)
{
	char path[CGROUP_PATH_MAX + 300];
	struct err e;

	if (cgroup_open(NULL, &probe, &e) < 0) {
		print_message("no control groups here: %s\n", e.msg);
		return false;
	}
	cgroup_close(&probe);
	/* Beside the slice that an installed pandod would use. */
	snprintf(below, sizeof(below), "%.*s/pando-test-%d",
		(int)(strlen(probe.slice) - strlen("/" CGROUP_SLICE)), probe.slice,
		(int)getpid());
	snprintf(path, sizeof(path), "%s%s", probe.mount, below);
	if (mkdir(path, 0755) < 0) {
		print_message("no control groups here: %s: %s\n", path, strerror(errno));
		return false;
	}
	return true;
}

static bool
groups_gone(void)
{
	char path[CGROUP_PATH_MAX + 300];

	snprintf(path, sizeof(path), "%s%s", probe.mount, below);
	return rmdir(path) == 0;
}

static bool
group_there(const char *id)
{
	char path[2 * CGROUP_PATH_MAX];

	snprintf(path, sizeof(path), "%s%s/" CGROUP_SLICE "/pando-%s.scope", probe.mount,
		below, id);
	return access(path, F_OK) == 0;
}

#define NEEDS_GROUPS() \
	do { \
		if (!groups_start()) \
			skip(); \
	} while (0)

/* VM A comes to a group of its own. */
static struct scopes *
group_of(struct vm *ret)
{
	struct scopes *s;

	*ret = vm_start();
	s = scopes_open(SCOPES_CGROUP, NULL, below);
	enter(s, ret, A, "", false);
	WAIT_FOR(IN(s) == 1, 10);
	return s;
}

/* With the last VM its group goes, and with that all there was of groups. */
static void
group_end(struct scopes *s, struct vm *vm, const char *id)
{
	vm_end(vm);
	scopes_leave(s, id);
	WAIT_FOR(!group_there(id), 10);
	scopes_close(s);
	assert_true(groups_gone());
}

static void
a_vm_has_a_group_that_goes_with_it(void **state)
{
	char path[CGROUP_PATH_MAX], file[CGROUP_PATH_MAX + 300];
	struct scopes *s;
	struct vm vm;

	(void)state;
	NEEDS_GROUPS();
	s = group_of(&vm);
	assert_true(cgroup_find(vm.pid, "pando-" A ".scope", path));
	assert_int_equal(strncmp(path, below, strlen(below)), 0);
	assert_non_null(strstr(detail, "a control group of its own"));
	snprintf(file, sizeof(file), "%s%s/memory.max", probe.mount, path);
	if (access(file, F_OK) == 0) {
		uint64_t max = 0;

		assert_true(cgroup_memory_max(path, &max));
		assert_int_equal(max, 1088ull << 20);
		scopes_expect(s, A, 1);
		WAIT_FOR(cgroup_memory_max(path, &max) && max == 1600ull << 20, 10);
	} else {
		assert_non_null(strstr(detail, "no limits are kept"));
	}
	group_end(s, &vm, A);
}

static void
a_fork_leaves_its_parents_group_which_then_can_go(void **state)
{
	char path[CGROUP_PATH_MAX], procs[2 * CGROUP_PATH_MAX], text[16];
	cleanup_close int fd = -1;
	struct scopes *s;
	struct vm a, b;

	(void)state;
	NEEDS_GROUPS();
	s = group_of(&a);
	b = vm_start();
	/* As a live fork does, it begins there. */
	assert_true(cgroup_find(a.pid, "pando-" A ".scope", path));
	snprintf(procs, sizeof(procs), "%s%s/cgroup.procs", probe.mount, path);
	fd = open(procs, O_WRONLY | O_CLOEXEC);
	snprintf(text, sizeof(text), "%d", (int)b.pid);
	assert_true(write(fd, text, strlen(text)) > 0);
	vm_end(&a);
	scopes_leave(s, A);
	usleep(100000);
	assert_true(group_there(A));
	enter(s, &b, B, A, false);
	WAIT_FOR(cgroup_find(b.pid, "pando-" B ".scope", path), 10);
	WAIT_FOR(!group_there(A), 10);
	assert_true(group_there(B));
	group_end(s, &b, B);
}

static void
the_next_pandod_finds_them_and_sweeps_what_is_left(void **state)
{
	char path[CGROUP_PATH_MAX], empty[2 * CGROUP_PATH_MAX];
	struct scopes *s;
	struct vm vm;

	(void)state;
	NEEDS_GROUPS();
	s = group_of(&vm);
	snprintf(empty, sizeof(empty), "%s%s/" CGROUP_SLICE "/pando-" B ".scope",
		probe.mount, below);
	assert_int_equal(mkdir(empty, 0755), 0);
	scopes_close(s);
	assert_true(group_there(A));

	s = scopes_open(SCOPES_CGROUP, NULL, below);
	enter(s, &vm, A, "", true);
	WAIT_FOR(IN(s) == 1, 10);
	assert_false(group_there(B));
	assert_true(cgroup_find(vm.pid, "pando-" A ".scope", path));
	group_end(s, &vm, A);
}

static void
a_life_after_the_last_has_the_group_of_that_name(void **state)
{
	struct scopes *s;
	struct vm a, b;
	char path[CGROUP_PATH_MAX];

	(void)state;
	NEEDS_GROUPS();
	s = group_of(&a);
	b = vm_start();
	vm_end(&a);
	scopes_leave(s, A);
	enter(s, &b, A, "", false);
	WAIT_FOR(cgroup_find(b.pid, "pando-" A ".scope", path), 10);
	WAIT_FOR(IN(s) == 1, 10);
	group_end(s, &b, A);
}

static void
limits_follow_from_the_configuration(void **state)
{
	(void)state;
	assert_int_equal(scope_memory_max(512, 0), 1088ull << 20);
	assert_int_equal(scope_memory_max(1024, 4), (6 * 1024 + 64ull) << 20);
	assert_int_equal(scope_cpu_weight(1), 100);
	assert_int_equal(scope_cpu_weight(254), 10000);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_vm_is_a_scope_with_its_limits_and_a_machine),
		T(forks_raise_the_limit_of_all_they_came_from),
		T(a_scope_of_that_name_is_waited_for),
		T(a_home_in_memory_has_no_limit_of_memory),
		T(what_is_refused_is_said_and_hurts_nobody),
		T(a_bus_that_hangs_holds_nobody_up),
		T(a_bus_that_comes_back_is_used_again),
		T(a_process_that_has_ended_is_put_nowhere),
		T(without_systemd_or_groups_it_is_said_once),
		T(a_vm_has_a_group_that_goes_with_it),
		T(a_fork_leaves_its_parents_group_which_then_can_go),
		T(the_next_pandod_finds_them_and_sweeps_what_is_left),
		T(a_life_after_the_last_has_the_group_of_that_name),
		T(limits_follow_from_the_configuration),
	};

	if (!getenv("VERBOSE"))
		log_init("test", LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
