/*
 * Forks: what a branch has of its parent, and what it must never have of anybody else.
 * The small guest keeps a ledger in memory and on disk of the generations it lived
 * through and says so after each fork; a line with memory=BAD, disk=BAD or a foreign
 * generation in its history is a leak.
 */
#include "tests/kvm/kvm_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"


/* The generations a VM should have lived through, its present one last. */
struct lineage {
	unsigned n;
	uint64_t generations[64];
};

static uint64_t
generation_of(const struct vm *vm)
{
	uint64_t g;

	memcpy(&g, vm->generation, 8);
	return g;
}

static struct lineage
begin(const struct vm *vm)
{
	return (struct lineage){1, {generation_of(vm)}};
}

static struct lineage
then(struct lineage l, const struct vm *vm)
{
	l.generations[l.n++] = generation_of(vm);
	return l;
}

/* Waits for the line that the VM says after its newest generation, and checks every word
 * of it. */
static void
expect_lineage(struct vm *vm, const struct lineage *l, const char *disk,
	uint64_t counter_min, char line[static LINE])
{
	char want[64], history[1200];
	size_t n = 0;

	snprintf(want, sizeof(want), "fork n=%u ", l->n);
	expect(vm, want, line, LINE);
	if (!strstr(line, " memory=ok "))
		fail_msg("%s: memory is not its own: %s", vm->name, line);
	snprintf(want, sizeof(want), " disk=%s ", disk);
	if (!strstr(line, want))
		fail_msg("%s: disk is not %s: %s", vm->name, disk, line);
	for (unsigned i = 0; i < l->n; i++)
		n += (size_t)snprintf(history + n, sizeof(history) - n, "%s%016llx",
			i ? "," : " history=", (unsigned long long)l->generations[i]);
	if (!strstr(line, history) || strlen(strstr(line, " history=")) != n)
		fail_msg("%s: its history is not%s but %s", vm->name, history, line);
	if (console_line_number(line, "counter") <= counter_min)
		fail_msg("%s: did not count on from %llu: %s", vm->name,
			(unsigned long long)counter_min, line);
	/* A TSC that went backwards shows as a gap of nearly 2^64. */
	if (console_line_number(line, "gap") >= 1ull << 40)
		fail_msg("%s: its clock jumped: %s", vm->name, line);
}

static void
both_go_on_from_the_same_instant(void **state)
{
	char line[LINE], child_line[LINE];
	struct lineage l, of_child, of_parent;
	struct vm *parent, *child;
	uint64_t ticked;

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work tick=2000", 1);
	l = begin(parent);
	expect(parent, "tick ", line, sizeof(line));
	ticked = strtoull(line + 5, NULL, 10);
	assert_true(ticked >= 2000);
	child = fork_vm(parent, "child", 0);
	of_parent = then(l, parent);
	of_child = then(l, child);
	assert_true(generation_of(parent) != generation_of(child));
	expect_lineage(parent, &of_parent, "none", ticked, line);
	expect_lineage(child, &of_child, "none", ticked, child_line);
	/* and go on after that */
	expect(parent, "tick ", line, sizeof(line));
	expect(child, "tick ", line, sizeof(line));
	assert_true(driver_alive(parent) && driver_alive(child));
}

static void
a_branch_of_a_branch_sixteen_deep(void **state)
{
	struct lineage of_parent, of_child;
	struct vm *vm, *child;
	char line[LINE], name[32];

	NEEDS_KVM(state);
	vm = boot("d0", "mode=work disk=1", 1);
	of_child = begin(vm);
	expect(vm, "ready", line, sizeof(line));
	for (int depth = 1; depth <= 16; depth++) {
		snprintf(name, sizeof(name), "d%d", depth);
		child = fork_vm(vm, name, 0);
		of_parent = then(of_child, vm);
		of_child = then(of_child, child);
		expect_lineage(vm, &of_parent, "ok", 0, line);
		expect_lineage(child, &of_child, "ok", 0, line);
		vm = child;
	}
}

static void
twenty_branches_in_a_row_of_one_parent(void **state)
{
	struct lineage of_parent, of_child;
	struct vm *parent, *child;
	char line[LINE], name[32];

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work disk=1", 1);
	of_parent = begin(parent);
	expect(parent, "ready", line, sizeof(line));
	for (int i = 0; i < 20; i++) {
		snprintf(name, sizeof(name), "b%d", i);
		child = fork_vm(parent, name, 0);
		of_child = then(of_parent, child);
		of_parent = then(of_parent, parent);
		expect_lineage(child, &of_child, "ok", 0, line);
		expect_lineage(parent, &of_parent, "ok", 0, line);
		if (i % 2)
			driver_kill(
				child); /* ends of children are nothing to the parent */
	}
}

static void
thirty_two_children_of_one_instant(void **state)
{
	struct vm *parent, *parked, *children[32];
	struct lineage l, of_child;
	char line[LINE], name[32];
	struct vmm_stats_answer s;

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work disk=1", 1);
	l = begin(parent);
	expect(parent, "ready", line, sizeof(line));
	parked = fork_vm(parent, "parked", DRIVER_PARK);
	assert_true(parked->started.parked);
	MUST(driver_stats(parked, &s, e));
	assert_int_equal(s.paused, 2);
	for (int i = 0; i < 32; i++) {
		snprintf(name, sizeof(name), "c%d", i);
		children[i] = fork_vm(parked, name, 0);
	}
	/* The frozen fork never runs: it says nothing, however many were made of it. */
	assert_true(driver_console_written(parked) == 0);
	for (int i = 0; i < 32; i++) {
		of_child = then(l, children[i]);
		expect_lineage(children[i], &of_child, "ok", 0, line);
	}
	l = then(l, parent);
	expect_lineage(parent, &l, "ok", 0, line);
	/* Without the frozen fork its children go on. */
	driver_kill(parked);
	for (int i = 0; i < 32; i++)
		assert_true(driver_alive(children[i]));
	MUST(driver_stats(children[31], &s, e));
}

static void
two_cpus_go_on_in_both(void **state)
{
	struct lineage of_parent, of_child;
	struct vm *parent, *child;
	char line[LINE], name[32];

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work cpus=2 disk=1", 2);
	of_parent = begin(parent);
	expect(parent, "ready", line, sizeof(line));
	for (int i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "c%d", i);
		child = fork_vm(parent, name, 0);
		of_child = then(of_parent, child);
		of_parent = then(of_parent, parent);
		expect_lineage(child, &of_child, "ok", 0, line);
		if (!strstr(line, "cpu1=counts"))
			fail_msg("the child's second CPU stands: %s", line);
		expect_lineage(parent, &of_parent, "ok", 0, line);
		if (!strstr(line, "cpu1=counts"))
			fail_msg("the parent's second CPU stands: %s", line);
		driver_kill(child);
	}
}

static bool
is_named_alike(const struct vm *vm, pid_t thread)
{
	char path[80], names[2][32] = {"", ""};

	for (int i = 0; i < 2; i++) {
		cleanup_close int fd = -1;

		snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", vm->pid,
			i ? thread : vm->pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || read(fd, names[i], sizeof(names[i]) - 1) <= 0)
			return false;
	}
	return strcmp(names[0], names[1]) == 0;
}

/* The thread of a VMM's only vCPU: not the main thread, and not one that KVM added to the
 * process, which has a name of its own. */
static pid_t
vcpu_thread_of(const struct vm *vm)
{
	struct dirent *entry;
	char path[64];
	pid_t found = -1;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", vm->pid);
	tasks = opendir(path);
	while (tasks && (entry = readdir(tasks))) {
		pid_t thread = atoi(entry->d_name);

		if (thread > 0 && thread != vm->pid && is_named_alike(vm, thread))
			found = thread;
	}
	if (tasks)
		closedir(tasks);
	return found;
}

static bool
has_pending_signal(pid_t process, pid_t thread, int number)
{
	cleanup_free char *text = NULL;
	char path[80], *line;
	size_t len;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", process, thread);
	if (io_read_file(path, 65536, &text, &len, NULL) < 0)
		return false;
	line = strstr(text, "SigPnd:");
	return line && strtoull(line + 7, NULL, 16) >> (number - 1) & 1;
}

/*
 * In a process of its own, a debugger: holds the vCPU's thread where it is stopped, which
 * is behind the KVM_RUN that the stop interrupted, says so, and lets it go when the main
 * thread has asked it to park. Never returns.
 */
static _Noreturn void
hold_vcpu(const struct vm *vm, int ready_fd)
{
	pid_t thread = vcpu_thread_of(vm);
	int status;

	if (ptrace(PTRACE_SEIZE, thread, NULL, NULL) < 0)
		_exit(errno == EPERM ? 77 : 1);
	if (ptrace(PTRACE_INTERRUPT, thread, NULL, NULL) < 0 ||
		waitpid(thread, &status, __WALL) != thread || !WIFSTOPPED(status))
		_exit(2);
	if (write(ready_fd, "r", 1) != 1)
		_exit(3);
	for (int i = 0; !has_pending_signal(vm->pid, thread, SIGUSR1); i++) {
		if (i == 100000)
			_exit(5);
		usleep(200);
	}
	_exit(ptrace(PTRACE_DETACH, thread, NULL, NULL) < 0 ? 4 : 0);
}

/* Two stops: after the first of them what the last fork left of the registers is there to
 * be taken for new. */
static void
a_branch_of_a_vcpu_held_by_a_debugger_has_its_registers(void **state)
{
	struct lineage of_parent, of_child;
	struct vm *parent, *child;
	char line[LINE], name[32], c;
	int ready[2], status;
	pid_t debugger;

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work tick=2000", 1);
	of_parent = begin(parent);
	expect(parent, "ready", line, sizeof(line));
	for (int i = 0; i < 4; i++) {
		assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
		debugger = fork();
		assert_true(debugger >= 0);
		if (debugger == 0)
			hold_vcpu(parent, ready[1]);
		close(ready[1]);
		if (read(ready[0], &c, 1) != 1) {
			close(ready[0]);
			assert_int_equal(waitpid(debugger, &status, 0), debugger);
			if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
				skip(); /* only root may debug a VMM */
			fail_msg("the debugger failed at step %d", WEXITSTATUS(status));
		}
		close(ready[0]);
		snprintf(name, sizeof(name), "c%d", i);
		child = fork_vm(parent, name, 0);
		assert_int_equal(waitpid(debugger, &status, 0), debugger);
		assert_int_equal(status, 0);
		of_child = then(of_parent, child);
		of_parent = then(of_parent, parent);
		expect_lineage(child, &of_child, "none", 0, line);
		expect_lineage(parent, &of_parent, "none", 0, line);
		expect(parent, "tick ", line, sizeof(line));
		driver_kill(child);
	}
}

/* The same without a debugger: SIGCONT, and the message is there when the VMM goes on. */
static void
branches_of_a_vmm_that_was_stopped_and_continued_have_its_registers(void **state)
{
	struct lineage of_parent, of_child;
	struct vm *parent, *child;
	char line[LINE], name[32];

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work", 1);
	of_parent = begin(parent);
	expect(parent, "ready", line, sizeof(line));
	for (int i = 0; i < 20; i++) {
		snprintf(name, sizeof(name), "c%d", i);
		child = fork_vm(parent, name, DRIVER_STOPPED);
		of_child = then(of_parent, child);
		of_parent = then(of_parent, parent);
		expect_lineage(child, &of_child, "none", 0, line);
		expect_lineage(parent, &of_parent, "none", 0, line);
		driver_kill(child);
	}
}

static unsigned
mappings_of(const struct vm *vm)
{
	cleanup_free char *text = NULL;
	unsigned n = 0;
	char path[64];
	size_t len;

	snprintf(path, sizeof(path), "/proc/%d/maps", vm->pid);
	MUST(io_read_file(path, 1u << 20, &text, &len, e));
	for (size_t i = 0; i < len; i++)
		n += text[i] == '\n';
	return n;
}

/* On Intel KVM maps pages of its own, which a branch must not inherit from each of its
 * ancestors: a fork copies every mapping. */
static void
a_branch_has_as_many_mappings_at_any_depth(void **state)
{
	unsigned at_depth[18];
	struct vm *vm, *child;
	char line[LINE], name[32];

	NEEDS_KVM(state);
	if (getuid() != 0)
		skip(); /* only root looks into a VMM */
	vm = boot("d0", "mode=work", 1);
	expect(vm, "ready", line, sizeof(line));
	for (unsigned depth = 1; depth < 18; depth++) {
		snprintf(name, sizeof(name), "d%u", depth);
		child = fork_vm(vm, name, 0);
		expect(child, "fork n=", line, sizeof(line));
		driver_kill(vm);
		vm = child;
		at_depth[depth] = mappings_of(vm);
	}
	/* A few more or less: own memory is moved once in four generations. */
	if (at_depth[17] > at_depth[5] + 2)
		fail_msg("%u at depth 5, %u at depth 17", at_depth[5], at_depth[17]);
}

static void
the_pause_is_measured_and_the_cut_is_told(void **state)
{
	struct vm *parent, *child = NULL;
	struct vmm_forked f = {0};
	char line[LINE];

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work disk=1", 1);
	expect(parent, "ready", line, sizeof(line));
	MUST(driver_fork(parent, "child", 0, &child, &f, e));
	assert_true(f.pause_ns > 0 && f.fork_ns > 0 && f.fork_ns <= f.pause_ns);
	/* the guest wrote one block before it was ready */
	assert_true(f.fork_point_records >= 1 && f.fork_point_data_bytes >= 4096 &&
		    f.fork_point_data_bytes % 4096 == 0);
	assert_true(child->started.setup_ns > 0);
}

/* The files of segments that a VM's process holds. */
#define HELD_MAX 64

struct held {
	ino_t inode[HELD_MAX];
	bool writable[HELD_MAX];
	unsigned n, n_writable;
};

static void
look_at_segments(const struct vm *vm, struct held *ret)
{
	char path[300], target[300], line[64], *dot;
	struct dirent *d;
	struct stat st;
	unsigned flags;
	ssize_t len;
	DIR *dir;

	memset(ret, 0, sizeof(*ret));
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)vm->pid);
	dir = opendir(path);
	assert_non_null(dir);
	while ((d = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%s", (int)vm->pid, d->d_name);
		len = readlink(path, target, sizeof(target) - 1);
		if (len < 0)
			continue;
		target[len] = '\0';
		dot = strrchr(target, '.');
		if (!dot || (strcmp(dot, ".data") != 0 && strcmp(dot, ".index") != 0))
			continue;
		assert_int_equal(stat(path, &st), 0);
		snprintf(path, sizeof(path), "/proc/%d/fdinfo/%s", (int)vm->pid,
			d->d_name);
		FILE *f = fopen(path, "re");
		assert_non_null(f);
		flags = ~0u;
		while (fgets(line, sizeof(line), f))
			(void)sscanf(line, "flags: %o", &flags);
		fclose(f);
		assert_true(flags != ~0u && ret->n < HELD_MAX);
		ret->inode[ret->n] = st.st_ino;
		ret->writable[ret->n] = (flags & O_ACCMODE) != O_RDONLY;
		ret->n_writable += ret->writable[ret->n];
		ret->n++;
	}
	closedir(dir);
}

static void
relatives_hold_what_they_share_for_reading_only(void **state)
{
	struct held held[5];
	struct vm *vms[5];
	char line[LINE];
	unsigned shared = 0;

	NEEDS_KVM(state);
	vms[0] = boot("parent", "mode=work disk=1", 1);
	expect(vms[0], "ready", line, sizeof(line));
	vms[1] = fork_vm(vms[0], "child", 0);
	expect(vms[1], "disk=ok", line, sizeof(line));
	vms[2] = fork_vm(vms[1], "grandchild", 0);
	expect(vms[2], "disk=ok", line, sizeof(line));
	/* and those of a frozen fork, with the frozen fork */
	vms[3] = fork_vm(vms[2], "picture", DRIVER_PARK);
	vms[4] = fork_vm(vms[3], "of-the-picture", 0);
	expect(vms[4], "disk=ok", line, sizeof(line));
	for (unsigned i = 0; i < 5; i++) {
		look_at_segments(vms[i], &held[i]);
		/* Its own: data and index. */
		assert_int_equal(held[i].n_writable, 2);
	}
	for (unsigned i = 0; i < 5; i++)
		for (unsigned k = 0; k < 5; k++)
			for (unsigned a = 0; a < held[i].n && i != k; a++)
				for (unsigned b = 0; b < held[k].n; b++) {
					if (held[i].inode[a] != held[k].inode[b])
						continue;
					assert_false(held[i].writable[a]);
					assert_false(held[k].writable[b]);
					shared++;
				}
	assert_true(shared > 0);
}

static void
kill_nine_of_one_is_felt_by_none(void **state)
{
	struct vm *parent, *a, *b, *grandchild;
	char line[LINE];

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work tick=3000", 1);
	expect(parent, "ready", line, sizeof(line));
	a = fork_vm(parent, "a", 0);
	b = fork_vm(parent, "b", 0);
	grandchild = fork_vm(a, "grandchild", 0);
	assert_int_equal(kill(a->pid, SIGKILL), 0);
	MUST(driver_wait_gone(a, 10000, e));
	for (int i = 0; i < 2; i++) {
		expect(parent, "tick ", line, sizeof(line));
		expect(b, "tick ", line, sizeof(line));
		expect(grandchild, "tick ", line, sizeof(line));
	}
	assert_int_equal(kill(parent->pid, SIGKILL), 0);
	MUST(driver_wait_gone(parent, 10000, e));
	expect(grandchild, "tick ", line, sizeof(line));
	/* and the orphans can still be forked */
	a = fork_vm(b, "of-an-orphan", 0);
	expect(a, "memory=ok", line, sizeof(line));
}

static void
a_child_that_cannot_start_says_why_and_the_parent_goes_on(void **state)
{
	struct vmm_fork f = {
		.hdr = {.version = VMM_WIRE_VERSION,
			.type = VMM_FORK,
			.len = sizeof(f),
			.seq = 500},
		.parent_generation = "another",
		.child_generation = "never",
		.child_name = "never",
	};
	int fds[VMM_FORK_FD_COUNT], pair[2];
	struct vmm_started started = {0};
	struct vm *parent, *child;
	char line[LINE], path[256];
	uint64_t generation;
	struct lineage l;
	ssize_t n;

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work tick=3000 disk=1", 1);
	l = begin(parent);
	expect(parent, "ready", line, sizeof(line));
	/* All is as it should be, but the child's console cannot be sized. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	for (int i = 0; i < VMM_FORK_FD_COUNT; i++)
		fds[i] = -1;
	fds[VMM_FORK_FD_CONTROL] = pair[1];
	fds[VMM_FORK_FD_CONSOLE] = open("/dev/null", O_RDWR | O_CLOEXEC);
	fds[VMM_FORK_FD_LOG] = open("/dev/null", O_RDWR | O_CLOEXEC);
	MUST(io_unix_listen(driver_path(parent, "l1", path), SOCK_SEQPACKET, 1,
		&fds[VMM_FORK_FD_LISTEN], e));
	MUST(io_unix_listen(driver_path(parent, "l2", path), SOCK_STREAM, 1,
		&fds[VMM_FORK_FD_VSOCK], e));
	for (int i = VMM_FORK_FD_SEG; i <= VMM_FORK_FD_PARENT_SEG_END; i++) {
		int at = (i - VMM_FORK_FD_SEG) % VMM_SEG_FDS;
		char name[16];

		snprintf(name, sizeof(name), "s%d", at < 2 ? i : i - 2);
		fds[i] = open(driver_path(parent, name, path),
			at < 2 ? O_RDWR | O_CREAT | O_CLOEXEC : O_RDONLY | O_CLOEXEC,
			0600);
	}
	assert_int_equal(
		driver_send_raw(parent, &f, sizeof(f), fds, VMM_FORK_FD_COUNT), 0);
	for (int i = 0; i < VMM_FORK_FD_COUNT; i++)
		close(fds[i]);
	n = recv(pair[0], &started, sizeof(started), 0);
	assert_int_equal(n, sizeof(started));
	assert_int_equal(started.hdr.type, VMM_STARTED);
	assert_true(started.error < 0 && started.msg[0]);
	assert_int_equal(
		recv(pair[0], &started, sizeof(started), 0), 0); /* and it is gone */
	close(pair[0]);

	/* The parent has a new generation and a new segment; nothing else happened to it.
	 */
	memcpy(&generation, "another", 8);
	l.generations[l.n++] = generation;
	expect_lineage(parent, &l, "ok", 0, line);
	driver_drop_control(parent);
	MUST(driver_adopt(parent, 10000, e));
	child = fork_vm(parent, "child", 0);
	l = then(l, child);
	expect_lineage(child, &l, "ok", 0, line);
}

static void
a_paused_vm_forks_or_says_why_not(void **state)
{
	struct vm *parent, *child = NULL;
	struct err why = {0, ""};
	char line[LINE];
	uint64_t before;
	int r;

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work", 1);
	expect(parent, "ready", line, sizeof(line));
	MUST(driver_request(parent, VMM_PAUSE, NULL, 0, VMM_DONE, 10000, e));
	before = driver_console_written(parent);
	r = driver_fork(parent, "child", 0, &child, NULL, &why);
	if (r < 0) {
		assert_true(why.msg[0]);
	} else {
		/* the parent stays paused: a fork is no resume */
		usleep(200000);
		assert_true(driver_console_written(parent) == before);
	}
	MUST(driver_request(parent, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
	child = fork_vm(parent, "later", 0);
	expect(child, "memory=ok", line, sizeof(line));
}

/* Nobody but its own control socket ever leads to it: pandod was killed, or its parent
 * was before it could tell of it. */
static void
a_child_told_to_quit_before_it_lives_ends(void **state)
{
	char line[LINE];
	struct vm *parent, *child;
	struct vmm_forked f;

	NEEDS_KVM(state);
	parent = boot("parent", "mode=work", 1);
	expect(parent, "ready", line, sizeof(line));
	for (unsigned i = 0; i < 10; i++) {
		unsigned flags = DRIVER_GIVEN_UP | (i % 2 ? DRIVER_PARK : 0);
		char name[16];
		int tries = 0;

		snprintf(name, sizeof(name), "child-%u", i);
		MUST(driver_fork(parent, name, flags, &child, &f, e));
		while (kill((pid_t)f.child_pid, 0) == 0) {
			if (++tries == 6000)
				fail_msg("%s, process %u, lives on", name, f.child_pid);
			usleep(10000);
		}
	}
	assert_true(driver_alive(parent));
}

/* vCPU 0's thread makes the fork and is still on its way out of that in the child when
 * the child's main thread stops its vCPUs: it must see that stop as another one than the
 * parent's that it was parked for. Their numbers were once the same at the first fork of
 * a VM; the child then never ended. One CPU for both makes it likely. */
static void
a_first_child_told_to_quit_at_once_ends(void **state)
{
	char line[LINE];
	cpu_set_t all, one;
	struct vm *parent, *between, *child;
	struct vmm_forked f;
	unsigned cpu = 0;

	NEEDS_KVM(state);
	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	/* VMMs have it from us. */
	assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
	parent = boot("parent", "mode=work", 1);
	expect(parent, "ready", line, sizeof(line));
	for (unsigned i = 0; i < 40; i++) {
		char name[16];
		int tries = 0;

		snprintf(name, sizeof(name), "between-%u", i);
		MUST(driver_fork(parent, name, 0, &between, &f, e));
		MUST(driver_fork(between, "child", DRIVER_GIVEN_UP, &child, &f, e));
		while (kill((pid_t)f.child_pid, 0) == 0) {
			if (++tries == 6000)
				fail_msg("the first child of %s lives on", name);
			usleep(10000);
		}
		kill(between->pid, SIGKILL);
	}
	assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		KVM_TEST(both_go_on_from_the_same_instant),
		KVM_TEST(a_branch_of_a_branch_sixteen_deep),
		KVM_TEST(twenty_branches_in_a_row_of_one_parent),
		KVM_TEST(thirty_two_children_of_one_instant),
		KVM_TEST(two_cpus_go_on_in_both),
		KVM_TEST(a_branch_of_a_vcpu_held_by_a_debugger_has_its_registers),
		KVM_TEST(
			branches_of_a_vmm_that_was_stopped_and_continued_have_its_registers),
		KVM_TEST(a_branch_has_as_many_mappings_at_any_depth),
		KVM_TEST(the_pause_is_measured_and_the_cut_is_told),
		KVM_TEST(relatives_hold_what_they_share_for_reading_only),
		KVM_TEST(kill_nine_of_one_is_felt_by_none),
		KVM_TEST(a_child_that_cannot_start_says_why_and_the_parent_goes_on),
		KVM_TEST(a_paused_vm_forks_or_says_why_not),
		KVM_TEST(a_child_told_to_quit_before_it_lives_ends),
		KVM_TEST(a_first_child_told_to_quit_at_once_ends),
	};

	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
