#include "tests/bench/bench.h"

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
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/wire/console_ring.h"
#include "tests/bench/must.h"
#include "tests/bench/sample.h"

#define NAP_NS 200000
#define LIVE_MAX 4096

struct bench bench = {.kvm = -1, .log_fd = -1};

static struct json_out json;
static char home[64], build[PATHS_MAX];
static pthread_t dispatcher;
static bool has_dispatcher;
static atomic_bool closing;
static int interrupts = -1; /* a signalfd */

/* Those that nobody ends but us: what a failed benchmark must not leave behind. */
static int live[LIVE_MAX];
static unsigned n_live;

static void
note_live(int pidfd)
{
	if (n_live < LIVE_MAX)
		live[n_live++] = pidfd;
}

static void
end_live(int pidfd)
{
	process_end(pidfd);
	for (unsigned i = 0; i < n_live; i++)
		if (live[i] == pidfd)
			live[i] = live[--n_live];
}

static void
nap(long ns)
{
	const struct timespec t = {.tv_nsec = ns};

	nanosleep(&t, NULL);
}

void
bench_settle(void)
{
	nap(3000000);
}

static void
end_vms(void)
{
	while (n_live)
		process_end(live[--n_live]);
	for (unsigned i = 0; bench.tree && i < bench.tree->n_vms; i++)
		if (bench.tree->vms[i]->pidfd >= 0)
			process_end(bench.tree->vms[i]->pidfd);
}

static void
remove_home(void)
{
	if (home[0])
		io_remove_tree(home, NULL);
	home[0] = '\0';
}

/* What pandod's main loop does; and who is interrupted leaves nothing behind. */
static void *
dispatcher_main(void *tree)
{
	struct pollfd p[2] = {{.fd = tree_fd(tree), .events = POLLIN},
		{.fd = interrupts, .events = POLLIN}};

	while (!atomic_load(&closing)) {
		if (poll(p, 2, 100) <= 0)
			continue;
		if (p[1].revents) {
			end_vms();
			remove_home();
			_exit(130);
		}
		tree_dispatch(tree);
	}
	return NULL;
}

static void
clean_up(void)
{
	if (has_dispatcher) {
		atomic_store(&closing, true);
		pthread_join(dispatcher, NULL);
	}
	end_vms();
	commits_close(bench.commits);
	bench.commits = NULL;
	if (bench.tree)
		tree_close(bench.tree);
	bench.tree = NULL;
	cleanup_close_fn(&bench.kvm);
	cleanup_close_fn(&bench.log_fd);
	cleanup_close_fn(&interrupts);
	remove_home();
}

_Noreturn void
bench_die(const char *what, const struct err *e)
{
	clean_up();
	must_not_go_on(what, e);
}

static _Noreturn void
usage(void)
{
	fprintf(stderr,
		"usage: bench_%s [--json] [--rounds 1 to %d] [--mem MIB, 256 or more]\n",
		bench.name, SAMPLES_MAX);
	exit(2);
}

/* <build>/bench/x -> <build> */
static void
find_build(void)
{
	ssize_t n = readlink("/proc/self/exe", build, sizeof(build) - 1);

	build[n > 0 ? n : 0] = '\0';
	for (int i = 0; i < 2; i++) {
		char *slash = strrchr(build, '/');

		if (slash)
			*slash = '\0';
	}
}

static int
open_tree(struct err *e)
{
	struct tree_config config = {
		.kvm_path = "/dev/kvm",
		.start_timeout_ms = TREE_START_TIMEOUT_MS,
		.answer_timeout_ms = TREE_ANSWER_TIMEOUT_MS,
		.agent_timeout_ms = TREE_AGENT_TIMEOUT_MS,
	};
	const struct commits_config commits = {
		.pool_size = bench.pool_size, .materialized_mib = COMMITS_MATERIALIZED_MIB};
	const char *tmp = getenv("TMPDIR");
	char path[PATHS_MAX];
	int r;

	snprintf(home, sizeof(home), "%.40s/pando-bench.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(home)) {
		r = err_sys(e, -errno, "%s", home);
		home[0] = '\0';
		return r;
	}
	snprintf(config.home, sizeof(config.home), "%s", home);
	snprintf(config.images, sizeof(config.images), "%s/images", home);
	r = paths_format(config.vmm_path, sizeof(config.vmm_path), e,
		"%s/libexec/pando/pando-vmm", build);
	if (r == 0)
		r = io_mkdir_p(config.images, 0700, e);
	if (r == 0)
		r = tree_open(&config, &bench.tree, e);
	if (r == 0)
		r = commits_open(bench.tree, &commits, &bench.commits, e);
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "%s/pool.log", home);
	bench.log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (bench.log_fd < 0)
		return err_sys(e, -errno, "%s", path);
	has_dispatcher =
		pthread_create(&dispatcher, NULL, dispatcher_main, bench.tree) == 0;
	return has_dispatcher ? 0 : err_set(e, -EAGAIN, "starting a thread");
}

static void
calibrate_tsc(void)
{
	uint64_t ns = io_now_ns(), tsc = __rdtsc();

	nap(50000000);
	bench.ticks_per_ns = (double)(__rdtsc() - tsc) / (double)(io_now_ns() - ns);
}

void
bench_begin(int argc, char **argv, const char *name, unsigned rounds, uint64_t mem_mib)
{
	struct rlimit files;
	sigset_t signals;
	struct err e;

	bench.name = name;
	bench.rounds = rounds;
	bench.mem_mib = mem_mib;
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			bench.out = &json;
		else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
			bench.rounds = (unsigned)atoi(argv[++i]);
		else if (strcmp(argv[i], "--mem") == 0 && i + 1 < argc)
			bench.mem_mib = strtoull(argv[++i], NULL, 10);
		else
			usage();
	}
	if (bench.rounds < 1 || bench.rounds > SAMPLES_MAX || bench.mem_mib < 256 ||
		bench.mem_mib > 1 << 20)
		usage();
	bench.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (bench.kvm < 0) {
		fprintf(stderr, "bench_%s: skipped: /dev/kvm: %s\n", name,
			strerror(errno));
		exit(0);
	}
	/* A thousand VMs have some thousand descriptors here. */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	interrupts = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	log_init("bench", LOG_LEVEL_WARN);
	prctl(PR_SET_TIMERSLACK, 1);
	/* Forks of forks come to us when their parents end, as to pandod. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	find_build();
	if (open_tree(&e) < 0)
		bench_die("a home", &e);
	calibrate_tsc();
	if (bench.out) {
		json_out_object(bench.out, NULL);
		json_out_str(bench.out, "bench", name);
		json_out_u64(bench.out, "mem_mib", bench.mem_mib);
		json_out_u64(bench.out, "rounds", bench.rounds);
		json_out_i64(bench.out, "cpus", sysconf(_SC_NPROCESSORS_ONLN));
	} else {
		printf("%s: small guests of %llu MiB, %u rounds, %ld CPUs\n", name,
			(unsigned long long)bench.mem_mib, bench.rounds,
			sysconf(_SC_NPROCESSORS_ONLN));
	}
}

void
bench_end(void)
{
	clean_up();
	if (!bench.out)
		return;
	json_out_end_object(bench.out);
	puts(bench.out->buf);
	json_out_done(bench.out);
}

uint64_t
bench_json_number(const char *text, const char *key)
{
	cleanup_json struct json *j = NULL;
	uint64_t v = 0;
	struct err e;

	if (json_parse(text, strlen(text), 4096, &j, &e) < 0 ||
		json_u64(j, json_get(j, 0, key), &v) < 0)
		bench_die(key, &(struct err){.msg = "it is not in the answer"});
	return v;
}

void
bench_number(const char *key, double value, const char *note)
{
	if (bench.out)
		json_out_f64(bench.out, key, value);
	else
		printf("%-24s %12.2f  %s\n", key, value, note ? note : "");
	fflush(stdout);
}

void
bench_boot(struct bench_vm *vm, const char *cmdline)
{
	bench_boot_on(vm, cmdline, NULL, 16);
}

void
bench_boot_on(struct bench_vm *vm, const char *cmdline, const char *rootfs, uint64_t disk_mib)
{
	struct create_request q = {
		.mem_mib = bench.mem_mib, .vcpus = 1, .disk_mib = disk_mib};
	cleanup_json_out struct json_out answer = {0};
	struct tree *t = bench.tree;
	char path[PATHS_MAX];
	struct vm *row = NULL;
	struct err e;
	int r;

	snprintf(q.alias, sizeof(q.alias), "bench-%u", t->n_vms);
	snprintf(q.kernel, sizeof(q.kernel), "%.*s/tests/guest/tiny",
		(int)sizeof(q.kernel) - 32, build);
	snprintf(q.rootfs, sizeof(q.rootfs), "%s", rootfs ? rootfs : "none");
	snprintf(q.cmdline, sizeof(q.cmdline), "%s", cmdline);
	r = tree_create(t, &q, &(struct progress){0}, &answer, &e);
	pthread_mutex_lock(&t->lock);
	if (r == 0)
		r = tree_find(t, q.alias, &row, &e);
	if (r == 0) {
		memcpy(vm->id, row->row.id, sizeof(vm->id));
		vm->ctl = row->ctl;
		vm->pidfd = row->pidfd;
		vm->pid = (pid_t)row->row.pid;
		vm->of_tree = true;
		vm->segments = 1;
		vm_unref(row);
	}
	pthread_mutex_unlock(&t->lock);
	if (r == 0)
		r = paths_format(
			path, sizeof(path), &e, "%s/vms/%s/console", home, vm->id);
	if (r < 0)
		bench_die("boot", &e);
	vm->console = open(path, O_RDONLY | O_CLOEXEC);
	if (vm->console < 0 || !bench_line(vm, "ready", NULL, 0)) {
		err_set(&e, -ETIMEDOUT, "the guest is not ready");
		bench_die("boot", &e);
	}
}

/* Its next segment, in its place. */
static int
next_segment(struct bench_vm *vm, struct err *e)
{
	char name[DB_SEGMENT_MAX];

	snprintf(name, sizeof(name), "%s.%u", vm->id, vm->segments++);
	return launch_segment(home, name, &vm->segment, e);
}

void
bench_next_segment(struct bench_vm *vm)
{
	struct err e;

	if (next_segment(vm, &e) < 0)
		bench_die("segment", &e);
}

static void
close_segment(struct bench_vm *vm)
{
	vm_segment_done(&vm->segment);
}

static void
new_generation(uint8_t generation[16], bool rests)
{
	struct err e;

	if (tree_random(generation, 16, &e) < 0)
		bench_die("generation", &e);
	generation[15] = rests ? 0x80 : 0;
}

void
bench_files(struct bench_vm *vm, bool rests)
{
	struct err e;

	*vm = (struct bench_vm)BENCH_VM_INIT;
	new_generation(vm->generation, rests);
	if (tree_new_id(vm->id, &e) < 0 ||
		launch_files(home, vm->id, &vm->files, &e) < 0 ||
		next_segment(vm, &e) < 0)
		bench_die("files", &e);
	vm->console = fcntl(vm->files.console_fd, F_DUPFD_CLOEXEC, 3);
}

void
bench_prewarmed(struct bench_vm *vm)
{
	struct err e;

	if (pool_make_prewarmed(&bench.tree->config, bench.log_fd, bench.mem_mib, 1,
		    &vm->ctl, &vm->pidfd, &vm->pid, &e) < 0)
		bench_die("pre-warmed VMM", &e);
	note_live(vm->pidfd);
}

void
bench_process(struct bench_vm *vm)
{
	struct err e;

	if (vmm_start(&bench.tree->config, vm->files.log_fd, &vm->ctl, &vm->pidfd,
		    &vm->pid, &e) < 0)
		bench_die("VMM", &e);
	note_live(vm->pidfd);
}

uint64_t
bench_fork(struct bench_vm *parent, bool parent_is_frozen_fork, struct bench_vm *child,
	uint32_t flags, struct vmm_forked *ret)
{
	struct vmm_fork msg = {.flags = flags};
	cleanup_close int null = open("/dev/null", O_RDWR | O_CLOEXEC), theirs = -1;
	uint64_t began_ns;
	struct err e;
	int ours, r = launch_control_pair(&ours, &theirs, &e);

	if (r == 0)
		r = vmmctl_create(ours, &child->ctl, &e);
	if (r == 0 && !parent_is_frozen_fork)
		r = next_segment(parent, &e);
	if (r < 0)
		bench_die("fork", &e);
	memcpy(msg.child_generation, child->generation, 16);
	new_generation(msg.parent_generation, false);
	snprintf(msg.child_name, sizeof(msg.child_name), "%s", child->id);

	int fds[VMM_FORK_FD_COUNT] = {
		[VMM_FORK_FD_CONTROL] = theirs,
		[VMM_FORK_FD_LISTEN] = child->files.listen_fd,
		[VMM_FORK_FD_VSOCK] = child->files.vsock_fd,
		[VMM_FORK_FD_CONSOLE] = child->files.console_fd,
		[VMM_FORK_FD_LOG] = child->files.log_fd,
	};

	vm_segment_put(&child->segment, fds + VMM_FORK_FD_SEG);
	vm_segment_put(&parent->segment, fds + VMM_FORK_FD_PARENT_SEG);
	for (unsigned i = 0; i < VMM_SEG_FDS && parent_is_frozen_fork; i++)
		fds[VMM_FORK_FD_PARENT_SEG + i] = null;

	began_ns = io_now_ns();
	r = vmmctl_fork(parent->ctl, &msg, fds, BENCH_WAIT_MS, ret, NULL, &e);
	if (r < 0)
		bench_die("fork", &e);
	child->pid = (pid_t)ret->child_pid;
	child->pidfd = (int)syscall(SYS_pidfd_open, child->pid, 0);
	if (child->pidfd < 0) {
		err_sys(&e, -errno, "pidfd_open %d", (int)child->pid);
		bench_die("fork", &e);
	}
	note_live(child->pidfd);
	vm_files_done(&child->files);
	close_segment(child);
	if (!parent_is_frozen_fork)
		close_segment(parent);
	return began_ns;
}

void
bench_wait_started(struct bench_vm *vm, struct vmm_started *ret)
{
	struct vmm_started started;
	struct err e;
	pid_t pid;

	if (vmmctl_wait_started(vm->ctl, BENCH_WAIT_MS, ret ? ret : &started, &pid, &e) <
		0)
		bench_die("start", &e);
}

uint64_t
bench_first_doorbell(const struct bench_vm *vm)
{
	uint64_t deadline_ns = io_now_ns() + BENCH_WAIT_MS * 1000000ull;
	struct vmm_stats_answer stats;
	struct err e;

	do {
		if (vmmctl_stats(vm->ctl, BENCH_WAIT_MS, false, &stats, NULL, &e) < 0)
			return 0;
		if (stats.first_doorbell_ns)
			return stats.first_doorbell_ns;
		nap(NAP_NS);
	} while (io_now_ns() < deadline_ns);
	return 0;
}

bool
bench_line(struct bench_vm *vm, const char *text, char *line, size_t cap)
{
	uint64_t deadline_ns = io_now_ns() + BENCH_WAIT_MS * 1000000ull;
	char buf[16384];

	do {
		uint64_t written = 0;
		size_t n, used;

		io_pread_full(vm->console, &written, sizeof(written),
			offsetof(struct console_hdr, written));
		n = (size_t)(written - vm->console_read);
		/* Nothing the small guest says fills the ring. */
		if (n > sizeof(buf))
			n = sizeof(buf);
		if (io_pread_full(vm->console, buf, n,
			    CONSOLE_HDR_BYTES + vm->console_read % CONSOLE_RING_BYTES) <
			0)
			n = 0;
		used = console_line_find(buf, n, text, line, cap);
		vm->console_read += used;
		if (used)
			return true;
		nap(NAP_NS);
	} while (io_now_ns() < deadline_ns && process_lives(vm->pidfd));
	return false;
}

void
bench_end_vm(struct bench_vm *vm)
{
	char name[DB_SEGMENT_MAX];

	if (vm->pidfd >= 0)
		end_live(vm->pidfd);
	cleanup_close_fn(&vm->console);
	if (!vm->of_tree) {
		vmmctl_free(vm->ctl);
		cleanup_close_fn(&vm->pidfd);
		vm_files_done(&vm->files);
		close_segment(vm);
		launch_remove_files(home, vm->id, NULL);
	}
	for (unsigned i = 0; i < vm->segments; i++) {
		snprintf(name, sizeof(name), "%s.%u", vm->id, i);
		launch_remove_segment(home, name);
	}
	*vm = (struct bench_vm)BENCH_VM_INIT;
}

long
bench_pss_kib(pid_t pid)
{
	cleanup_fclose FILE *f = NULL;
	char path[64], line[256];
	long pss;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Pss: %ld kB", &pss) == 1)
			return pss;
	return -1;
}
