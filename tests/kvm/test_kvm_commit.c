/*
 * Commits by pandod's own code of guests that never rest, on the shipped VMM: what is read of
 * changes is the whole, whatever failed, was branched, restarted or restored between. With
 * PANDO_COMMIT_CHECK each commit reads all of its frozen fork, and the whole disk, too, and
 * compares.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"
#include "host/vm/tree_priv.h"
#include "tests/kvm/kvm_skip.h"

#define MEM_MIB 24
#define SCATTER_PAGES 1024

static char home[64], build[PATHS_MAX];
static struct tree_config config;
static struct tree *tree;
static struct commits *commits;
static pthread_t loop;
static atomic_bool closing;
static unsigned seed, names;

static unsigned
below(unsigned n)
{
	return (unsigned)rand_r(&seed) % n;
}

static void
nap(unsigned us)
{
	const struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};

	nanosleep(&t, NULL);
}

static void *
loop_main(void *arg)
{
	struct pollfd p = {.fd = tree_fd(tree), .events = POLLIN};

	(void)arg;
	while (!atomic_load(&closing))
		if (poll(&p, 1, 20) > 0)
			tree_dispatch(tree);
	return NULL;
}

static unsigned pool_size;

static void
start(void)
{
	const struct commits_config c = {
		.pool_size = pool_size, .materialized_mib = COMMITS_MATERIALIZED_MIB};

	MUST(tree_open(&config, &tree, e));
	MUST(commits_open(tree, &c, &commits, e));
	atomic_store(&closing, false);
	assert_int_equal(pthread_create(&loop, NULL, loop_main, NULL), 0);
}

static void
stop(void)
{
	atomic_store(&closing, true);
	pthread_join(loop, NULL);
	commits_close(commits);
	tree_close(tree);
	tree = NULL;
}

/* As pandod does after it was started anew: it adopts the VMs that are there. */
static void
restart(void)
{
	stop();
	start();
}

static int
set_up(void **state)
{
	ssize_t n = readlink("/proc/self/exe", build, sizeof(build) - 1);
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct err e;

	*state = NULL;
	if (kvm < 0) {
		print_message("# /dev/kvm: %s\n", strerror(errno));
		return 0;
	}
	close(kvm);
	*state = &config;
	build[n > 0 ? n : 0] = '\0';
	for (int i = 0; i < 2; i++)
		*strrchr(build, '/') = '\0';
	config = (struct tree_config){
		.kvm_path = "/dev/kvm",
		.start_timeout_ms = TREE_START_TIMEOUT_MS,
		.answer_timeout_ms = TREE_ANSWER_TIMEOUT_MS,
		.agent_timeout_ms = TREE_AGENT_TIMEOUT_MS,
	};
	snprintf(home, sizeof(home), "/tmp/pando-test-commits.XXXXXX");
	if (!mkdtemp(home))
		return -1;
	snprintf(config.home, sizeof(config.home), "%s", home);
	snprintf(config.images, sizeof(config.images), "%s/images", home);
	snprintf(config.vmm_path, sizeof(config.vmm_path), "%.4000s/libexec/pando/pando-vmm",
		build);
	if (io_mkdir_p(config.images, 0700, &e) < 0)
		return -1;
	start();
	return 0;
}

static int
tear_down(void **state)
{
	if (!*state)
		return 0;
	for (unsigned i = 0; i < tree->n_vms; i++)
		if (tree->vms[i]->pidfd >= 0)
			process_end(tree->vms[i]->pidfd);
	stop();
	return io_remove_tree(home, NULL);
}

struct made {
	char id[STORE_ID_MAX];
	uint64_t read_bytes;
	bool is_incremental;
};

static int
try_commit(const char *vm, const struct progress *p, struct made *ret, struct err *e)
{
	struct commit_request q = {0};
	cleanup_json_out struct json_out out = {0};
	cleanup_json struct json *j = NULL;
	int r = commits_make(commits, vm, &q, p, &out, e);

	if (r < 0)
		return r;
	assert_int_equal(json_parse(out.buf, strlen(out.buf), 4096, &j, NULL), 0);
	assert_int_equal(
		json_u64(j, json_get(j, 0, "memory_read_bytes"), &ret->read_bytes), 0);
	assert_int_equal(
		json_bool(j, json_get(j, 0, "incremental"), &ret->is_incremental), 0);
	assert_int_equal(json_str(j, json_get(j, json_get(j, 0, "commit"), "id"), ret->id,
				 sizeof(ret->id)),
		0);
	return 0;
}

static struct made
commit(const char *vm)
{
	struct made m;

	MUST(try_commit(vm, &(struct progress){0}, &m, e));
	return m;
}

/* All processes whose parent is this one. */
static void
kill_children(pid_t parent)
{
	DIR *proc = opendir("/proc");
	struct dirent *d;

	assert_non_null(proc);
	while ((d = readdir(proc))) {
		pid_t pid = (pid_t)atoi(d->d_name), ppid;
		uint64_t start;

		if (pid > 0 && process_look(pid, &ppid, &start) == 0 && ppid == parent) {
			int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

			assert_true(pidfd >= 0);
			process_end(pidfd); /* returns when it is gone */
			close(pidfd);
		}
	}
	closedir(proc);
}

static void
kill_frozen_fork(void *ctx, const char *text)
{
	if (strncmp(text, "reading", 7) == 0)
		kill_children(*(pid_t *)ctx);
}

/* Its frozen fork is killed before it is read. */
static void
commit_that_fails(const char *name)
{
	struct progress p = {.say = kill_frozen_fork};
	struct vm *vm;
	struct made m;
	struct err e;
	pid_t pid;

	pthread_mutex_lock(&tree->lock);
	assert_int_equal(tree_find(tree, name, &vm, &e), 0);
	pid = (pid_t)vm->row.pid;
	vm_unref(vm);
	pthread_mutex_unlock(&tree->lock);
	p.ctx = &pid;
	assert_true(try_commit(name, &p, &m, &e) < 0);
}

static void
new_name(char name[32], const char *what)
{
	snprintf(name, 32, "%s-%u", what, names++);
}

static void
boot(char name[32], uint32_t disk_mib)
{
	struct create_request q = {.mem_mib = MEM_MIB, .vcpus = 1, .disk_mib = disk_mib};
	cleanup_json_out struct json_out out = {0};

	new_name(name, "scatter");
	snprintf(q.alias, sizeof(q.alias), "%s", name);
	snprintf(q.kernel, sizeof(q.kernel), "%.900s/tests/guest/tiny", build);
	snprintf(q.rootfs, sizeof(q.rootfs), "none");
	snprintf(q.cmdline, sizeof(q.cmdline), "mode=scatter pages=%u seed=%u",
		SCATTER_PAGES, below(1000));
	MUST(tree_create(tree, &q, &(struct progress){0}, &out, e));
	nap(100000);
}

static void
branch(const char *of, char name[32])
{
	struct branch_request q = {.count = 1};
	cleanup_json_out struct json_out out = {0};

	new_name(name, "branch");
	snprintf(q.alias, sizeof(q.alias), "%s", name);
	MUST(tree_branch(tree, of, &q, &(struct progress){0}, &out, e));
}

static void
run(const char *commit_id, char name[32])
{
	struct branch_request q = {.count = 1};
	cleanup_json_out struct json_out out = {0};

	new_name(name, "run");
	snprintf(q.alias, sizeof(q.alias), "%s", name);
	MUST(commits_run(commits, commit_id, &q, &(struct progress){0}, &out, e));
}

static void
delete(const char *name)
{
	cleanup_json_out struct json_out out = {0};

	MUST(tree_delete(tree, name, false, false, NULL, &out, e));
}

static void
end(const char *name)
{
	struct vm *vm;

	pthread_mutex_lock(&tree->lock);
	MUST(tree_find(tree, name, &vm, e));
	process_end(vm->pidfd);
	vm_unref(vm);
	pthread_mutex_unlock(&tree->lock);
}

/* The VM's VMM can tell: else nothing here means anything. */
static bool
is_tracked(const char *name)
{
	struct vmm_stats_answer s = {0};
	struct vm *vm;

	pthread_mutex_lock(&tree->lock);
	MUST(tree_find(tree, name, &vm, e));
	pthread_mutex_unlock(&tree->lock);
	MUST(vmmctl_stats(vm->ctl, 10000, false, &s, NULL, e));
	pthread_mutex_lock(&tree->lock);
	vm_unref(vm);
	pthread_mutex_unlock(&tree->lock);
	return s.tracks >> VMM_TRACKS_MEANS_SHIFT & 0xff;
}

static void
what_changed_is_the_whole(void **state)
{
	const char *set = getenv("KVM_TRACK_ROUNDS"), *from = getenv("KVM_TRACK_SEED");
	unsigned rounds = set ? (unsigned)atoi(set) : 60;
	bool is_first = true;
	unsigned n_incremental = 0;
	char vm[32], other[32];
	struct made last = {0};

	NEEDS_KVM(state);
	seed = from ? (unsigned)atoi(from) : (unsigned)getpid();
	print_message("# KVM_TRACK_SEED=%u\n", seed);
	boot(vm, 16);
	if (!is_tracked(vm))
		skip();
	for (unsigned round = 0; round < rounds; round++) {
		struct made m;

		nap(below(10000));
		if (below(4) == 0)
			commit_that_fails(vm);
		nap(below(3000));
		if (below(5) == 0) {
			branch(vm, other);
			delete(other);
		}
		if (below(8) == 0)
			restart();
		m = commit(vm);
		assert_int_equal(m.is_incremental, !is_first);
		n_incremental += m.is_incremental;
		is_first = false;
		last = m;
		switch (below(10)) {
		case 0:
			run(last.id, other);
			delete(vm);
			memcpy(vm, other, sizeof(vm));
			is_first = true;
			break;
		case 1:
			branch(vm, other);
			end(vm); /* a branch outlives it */
			memcpy(vm, other, sizeof(vm));
			is_first = true;
			break;
		}
	}
	assert_true(n_incremental > rounds / 3);
	delete(vm);
}

static void
a_commit_that_failed_is_in_the_next(void **state)
{
	char vm[32];

	NEEDS_KVM(state);
	boot(vm, 16);
	if (!is_tracked(vm))
		skip();
	(void)commit(vm);
	assert_true(commit(vm).is_incremental);
	for (unsigned i = 0; i < 3; i++)
		commit_that_fails(vm);
	assert_true(commit(vm).is_incremental);
	assert_true(commit(vm).is_incremental);
	delete(vm);
}

/* pandod remembers nothing: the VMM does. */
static void
a_pandod_that_is_started_anew_goes_on_from_the_last_commit(void **state)
{
	char vm[32];

	NEEDS_KVM(state);
	boot(vm, 16);
	if (!is_tracked(vm))
		skip();
	assert_false(commit(vm).is_incremental);
	restart();
	assert_true(commit(vm).is_incremental);
	delete(vm);
}

/* A pandod that died between a commit and its word to the VMM; here it is the row that names
 * another commit than the VMM. */
static void
a_vm_whose_row_has_another_commit_is_read_whole(void **state)
{
	char a[32], b[32];
	struct made of_b;
	struct vm *vm;

	NEEDS_KVM(state);
	boot(a, 16);
	boot(b, 16);
	if (!is_tracked(a))
		skip();
	(void)commit(a);
	of_b = commit(b);
	pthread_mutex_lock(&tree->lock);
	MUST(tree_find(tree, a, &vm, e));
	memcpy(vm->row.commit, of_b.id, sizeof(vm->row.commit));
	MUST(db_update(tree->db, &vm->row, e));
	vm_unref(vm);
	pthread_mutex_unlock(&tree->lock);
	assert_false(commit(a).is_incremental);
	/* And from there on what changed. */
	assert_true(commit(a).is_incremental);
	delete(a);
	delete(b);
}

/* The memory is read whole, the disk is not: what the VMM keeps of the last commit is not bound to
 * its telling pages. */
static void
without_means_commits_are_whole_and_right(void **state)
{
	char vm[32];

	NEEDS_KVM(state);
	setenv("PANDO_TRACK", "none", 1);
	boot(vm, 16);
	unsetenv("PANDO_TRACK");
	assert_false(is_tracked(vm));
	for (unsigned i = 0; i < 4; i++) {
		assert_false(commit(vm).is_incremental);
		nap(below(20000));
	}
	delete(vm);
}

/* Where the kernel has soft-dirty bits; userfaultfd is passed over. */
static void
with_soft_dirty_bits_what_changed_is_the_whole(void **state)
{
	char vm[32];

	NEEDS_KVM(state);
	setenv("PANDO_TRACK", "soft-dirty", 1);
	boot(vm, 16);
	unsetenv("PANDO_TRACK");
	if (!is_tracked(vm)) {
		delete(vm);
		skip();
	}
	for (unsigned i = 0; i < 20; i++) {
		if (below(4) == 0)
			commit_that_fails(vm);
		assert_int_equal(commit(vm).is_incremental, i > 0);
		nap(below(20000));
	}
	delete(vm);
}

static void
a_disk_that_grew_is_read_from_the_last_commit_on(void **state)
{
	const struct resize_request q = {.disk_mib = 64};
	cleanup_json_out struct json_out out = {0};
	char vm[32];

	NEEDS_KVM(state);
	boot(vm, 16);
	(void)commit(vm);
	MUST(tree_resize(tree, vm, &q, &(struct progress){0}, &out, e));
	(void)commit(vm);
	(void)commit(vm);
	delete(vm);
}

/* ---- what is not there yet is counted ---- */

static int
count_page(void *ctx, uint64_t page, const struct store_hash *name, struct err *e)
{
	(void)page, (void)name, (void)e;
	++*(unsigned *)ctx;
	return 0;
}

/* Of a guest that has written 3 MiB by now, and is no more. */
static struct made
commit_of_megabytes(void)
{
	struct store_manifest *manifest;
	struct store *store;
	unsigned pages;
	struct made m;
	char name[32];

	boot(name, 0);
	do {
		nap(20000);
		m = commit(name);
		MUST(commits_store(commits, &store, e));
		MUST(store_load(store, m.id, &manifest, e));
		pages = 0;
		MUST(store_tree_names(store, &manifest->f.memory, NULL, count_page, &pages, e));
		store_manifest_free(manifest);
	} while (pages < 768);
	delete(name);
	return m;
}

static void
host_has(unsigned mib)
{
	static char path[PATHS_MAX];
	char text[64];

	snprintf(path, sizeof(path), "%s/meminfo", home);
	snprintf(text, sizeof(text), "MemAvailable: %u kB\n", mib * 1024);
	MUST(io_write_file_atomic(path, text, strlen(text), 0600, e));
	pthread_mutex_lock(&tree->lock);
	tree->config.meminfo_path = mib ? path : NULL;
	pthread_mutex_unlock(&tree->lock);
}

static bool
has_fill(void)
{
	return fill_memory_to_come() > 0;
}

static void
a_cold_restore_that_does_not_fit_is_refused_before_anything_is_made(void **state)
{
	struct branch_request q = {.count = 1, .alias = "cold"};
	cleanup_json_out struct json_out out = {0};
	char name[32], path[PATHS_MAX];
	struct made m;
	struct err e;

	NEEDS_KVM(state);
	if (access(FILL_DEVICE, R_OK | W_OK) < 0)
		skip();
	m = commit_of_megabytes();
	/* 1 for the VM, 64 for the host, and some 4 MiB of memory that are not zero. */
	host_has(66);
	assert_int_equal(commits_run(commits, m.id, &q, &(struct progress){0}, &out, &e), -ENOMEM);
	if (!strstr(e.msg, "1 VM needs at least ") || !strstr(e.msg, "and 66 MiB are available"))
		fail_msg("it says %s", e.msg);
	snprintf(path, sizeof(path), "%s/flat/%s", home, m.id);
	assert_int_equal(access(path, F_OK), -1);
	assert_false(has_fill());
	/* Its 24 MiB would not fit, but most of them are zero. */
	host_has(65 + 16);
	run(m.id, name);
	host_has(0);
	while (has_fill())
		nap(1000);
	delete(name);
}

static void
note_end(void *ctx, int r, const struct err *e)
{
	(void)r, (void)e;
	atomic_store((atomic_bool *)ctx, true);
}

/* To the children of that name; how many there were. 0: to none. */
static unsigned
signal_fills(int sig)
{
	DIR *proc = opendir("/proc");
	char path[64], text[64];
	struct dirent *d;
	unsigned n = 0;

	assert_non_null(proc);
	while ((d = readdir(proc))) {
		pid_t pid = (pid_t)atoi(d->d_name), ppid;
		uint64_t start;
		int fd;

		if (pid <= 0 || process_look(pid, &ppid, &start) < 0 || ppid != getpid())
			continue;
		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		memset(text, 0, sizeof(text));
		if (fd >= 0 && io_read(fd, text, sizeof(text) - 1) > 0 &&
			strcmp(text, "pando-fill\n") == 0)
			n += kill(pid, sig) == 0;
		if (fd >= 0)
			close(fd);
	}
	closedir(proc);
	return n;
}

static unsigned
count_fill(void)
{
	return signal_fills(0);
}

static void
signal_fill(int sig)
{
	assert_int_equal(signal_fills(sig), 1);
}

static void
memory_that_is_not_filled_yet_is_counted_for_others(void **state)
{
	struct store_manifest *manifest;
	char program[PATHS_MAX];
	atomic_bool ended = false;
	struct store *store;
	struct made m;
	struct fill *f;
	struct err e;

	NEEDS_KVM(state);
	if (access(FILL_DEVICE, R_OK | W_OK) < 0)
		skip();
	m = commit_of_megabytes();
	assert_int_equal(commits_store(commits, &store, &e), 0);
	assert_int_equal(store_load(store, m.id, &manifest, &e), 0);
	snprintf(program, sizeof(program), "%.4000s/libexec/pando/pando-fill", build);

	const struct fill_how how = {.bytes = UINT64_MAX,
		.program = program,
		.folder = home,
		.touched = "/dev/null",
		.log_fd = STDERR_FILENO,
		.ended = note_end,
		.ctx = &ended};

	assert_int_equal(host_has_room(tree, "x", MEM_MIB, 0, 1, &e), 0);
	assert_int_equal(fill_start(store, &manifest->f.memory, &how, &f, &e), 0);
	signal_fill(SIGSTOP);
	/* Some 4 MiB are to come, of which it may have filled the first. */
	assert_true(fill_memory_to_come() > 1 << 20);
	host_has(66);
	assert_int_equal(host_has_room(tree, "x", MEM_MIB, 0, 1, &e), -ENOMEM);
	signal_fill(SIGCONT);
	while (!atomic_load(&ended))
		nap(1000);
	assert_int_equal(fill_memory_to_come(), 0);
	assert_int_equal(host_has_room(tree, "x", MEM_MIB, 0, 1, &e), 0);
	fill_unref(f);
	store_manifest_free(manifest);
	host_has(0);
}

static void
a_pando_fill_is_made_ahead_and_one_that_died_costs_nothing(void **state)
{
	struct fill_process p = FILL_PROCESS_INIT;
	char name[32], path[PATHS_MAX];
	struct made m;

	NEEDS_KVM(state);
	if (access(FILL_DEVICE, R_OK | W_OK) < 0)
		skip();
	m = commit_of_megabytes();
	stop();
	pool_size = 1;
	start();
	while (!pool_take_fill(commits, &p)) /* there is a store, so one is made */
		nap(10000);
	assert_true(process_lives(p.pidfd));
	/* The next one is made in its place, and dies. */
	fill_process_end(&p);
	while (count_fill() == 0)
		nap(10000);
	signal_fill(SIGKILL);
	snprintf(path, sizeof(path), "%s/flat/%s", home, m.id);
	run(m.id, name);
	delete(name);
	while (has_fill())
		nap(1000);
	/* Of one that lives. */
	while (count_fill() == 0)
		nap(10000);
	MUST(io_remove_tree(path, e));
	run(m.id, name);
	delete(name);
	while (has_fill())
		nap(1000);
	stop();
	assert_int_equal(count_fill(), 0);
	pool_size = 0;
	start();
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_changed_is_the_whole),
		cmocka_unit_test(a_commit_that_failed_is_in_the_next),
		cmocka_unit_test(a_pandod_that_is_started_anew_goes_on_from_the_last_commit),
		cmocka_unit_test(a_vm_whose_row_has_another_commit_is_read_whole),
		cmocka_unit_test(without_means_commits_are_whole_and_right),
		cmocka_unit_test(with_soft_dirty_bits_what_changed_is_the_whole),
		cmocka_unit_test(a_disk_that_grew_is_read_from_the_last_commit_on),
		cmocka_unit_test(a_cold_restore_that_does_not_fit_is_refused_before_anything_is_made),
		cmocka_unit_test(memory_that_is_not_filled_yet_is_counted_for_others),
		cmocka_unit_test(a_pando_fill_is_made_ahead_and_one_that_died_costs_nothing),
	};

	setenv("PANDO_COMMIT_CHECK", "1", 1);
	signal(SIGPIPE, SIG_IGN);
	/* Forks of forks come to us when their parents end, as to pandod. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	log_init("test", getenv("KVM_TEST_LOGS") ? LOG_LEVEL_INFO : LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
