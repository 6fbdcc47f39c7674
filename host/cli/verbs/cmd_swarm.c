/*
 * `pando swarm`: the host's verbs for the swarm library (swarm/ops.h) over pandod's API
 * and the agent protocol. Each call opens its own connection to pandod, because the
 * library's workers call at once; commands and files go straight to the VM's socket.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/run_image.h"
#include "host/client/client.h"
#include "swarm/ops.h"
#include "swarm/record.h"
#include "swarm/run.h"
#include "swarm/spec.h"

/* How long after its time limit the agent may take to say that a command has ended.
 * Generous: a machine under emulation with all its children busy is slow, and this only
 * catches a guest that has stopped answering. */
#define AGENT_GRACE_MS 120000

#define SPEC_MAX (4u << 20)

struct host {
	int cancel_fd;
	struct out_progress *progress;
	bool quiet;
};

/* Interrupts: the first one stops the run in order, the second one this program. */
static volatile sig_atomic_t interrupts;
static int interrupt_fd = -1;

static void
on_interrupt(int signo)
{
	int saved = errno;
	uint64_t one = 1;

	(void)signo;
	if (interrupts++)
		_exit(EXIT_CANCELLED);
	if (write(interrupt_fd, &one, sizeof(one)) < 0)
		_exit(EXIT_CANCELLED);
	errno = saved;
}

static bool
is_cancelled(const struct host *h)
{
	struct pollfd p = {.fd = h->cancel_fd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* The socket of a VM's agent. */
static int
agent_socket(const char *vm, char ret[128], struct err *e)
{
	cleanup_client struct client *c = NULL;
	cleanup_client_vm struct client_vm info = {0};
	int rc = client_open(NULL, CLIENT_START, &c, e);

	if (rc == 0)
		rc = client_get(c, vm, &info, NULL, e);
	if (rc < 0)
		return rc;
	if (!info.agent_socket[0])
		return err_set(e, -ENOTCONN, "vm %s is %s%s%s", vm, info.state,
			info.reason ? ": " : "", info.reason ? info.reason : "");
	memcpy(ret, info.agent_socket, sizeof(info.agent_socket));
	return 0;
}

static int
op_find(void *ctx, const char *vm, char ret_id[SWARM_ID_SIZE], struct err *e)
{
	cleanup_client struct client *c = NULL;
	cleanup_client_vm struct client_vm info = {0};
	int rc = client_open(NULL, CLIENT_START, &c, e);

	(void)ctx;
	if (rc == 0)
		rc = client_get(c, vm, &info, NULL, e);
	if (rc == 0)
		snprintf(ret_id, SWARM_ID_SIZE, "%s", info.id);
	return rc;
}

static int
op_boot(void *ctx, const struct swarm_machine *machine, const char *run,
	char ret_id[SWARM_ID_SIZE], struct err *e)
{
	struct host *h = ctx;
	cleanup_client struct client *c = NULL;
	cleanup_client_vm struct client_vm info = {0};
	char label[128];
	const char *labels[] = {label};
	cleanup_free char *kernel = NULL, *rootfs = NULL;
	struct client_run spec = {
		.mem_mib = machine->mem_mib,
		.vcpus = machine->vcpus,
		.disk_mib = machine->disk_mib,
		.kernel = machine->kernel,
		.rootfs = machine->rootfs,
		.labels = labels,
		.n_labels = 1,
	};
	int rc = run_image_path(&spec.kernel, &kernel, e);

	if (rc == 0)
		rc = run_image_path(&spec.rootfs, &rootfs, e);
	if (rc == 0)
		rc = client_open(NULL, CLIENT_START, &c, e);
	if (rc < 0)
		return rc;
	snprintf(label, sizeof(label), SWARM_LABEL "=%s", run);
	client_cancel_fd(c, h->cancel_fd);
	rc = run_prepare_image(c, &spec, h->quiet, e);
	if (rc < 0)
		return rc;
	client_on_progress(c, out_progress_say, h->progress);
	rc = client_run(c, &spec, &info, NULL, e);
	out_progress_end(h->progress);
	if (rc == 0)
		snprintf(ret_id, SWARM_ID_SIZE, "%s", info.id);
	return rc;
}

/* Not cancelled half way: a call that is cut could leave children that appear after the
 * sweep. */
static int
op_branch(void *ctx, const char *vm, const char *run, size_t count,
	char (*ret_ids)[SWARM_ID_SIZE], uint64_t *ret_pause_us, struct err *e)
{
	cleanup_client struct client *c = NULL;
	cleanup_client_vms struct client_vms vms = {0};
	char label[128];
	const char *labels[] = {label};
	const struct client_branch spec = {
		.count = count, .labels = labels, .n_labels = 1};
	int rc = client_open(NULL, CLIENT_START, &c, e);

	(void)ctx;
	snprintf(label, sizeof(label), SWARM_LABEL "=%s", run);
	if (rc == 0)
		rc = client_branch(c, vm, &spec, &vms, NULL, e);
	if (rc < 0)
		return rc;
	if (vms.n != count)
		return err_set(e, -EPROTO,
			"pandod was asked for %zu children and made %zu", count, vms.n);
	for (size_t i = 0; i < count; i++)
		snprintf(ret_ids[i], SWARM_ID_SIZE, "%s", vms.v[i].id);
	*ret_pause_us = vms.pause_us;
	return 0;
}

struct exec_watch {
	struct host *host;
	struct swarm_result *result;
};

static int
on_output(void *ctx, int stream, const void *buf, size_t len)
{
	struct exec_watch *w = ctx;

	swarm_tail_add(stream == 2 ? &w->result->err : &w->result->out, buf, len);
	return 0;
}

static int
on_wake(void *ctx, struct agent_session *s)
{
	struct exec_watch *w = ctx;

	agent_session_signal(s, SIGKILL);
	return is_cancelled(w->host) ? -ECANCELED : -ETIMEDOUT;
}

static void
free_env(char ***env)
{
	for (char **p = *env; p && *p; p++)
		free(*p);
	free(*env);
}

static int
make_env(const struct swarm_step *step, char ***ret)
{
	__attribute__((cleanup(free_env))) char **env =
		calloc(step->n_env + 1, sizeof(*env));

	for (size_t i = 0; env && i < step->n_env; i++)
		if (asprintf(&env[i], "%s=%s", step->env[i].key, step->env[i].value) <
			0) {
			env[i] = NULL;
			return -ENOMEM;
		}
	if (!env)
		return -ENOMEM;
	*ret = TAKE_PTR(env);
	return 0;
}

/* One descriptor for both reasons to give up: cancelled, or the agent is far over the
 * limit. */
static int
make_watch(const struct host *h, uint64_t limit_ms, int timer_fd, int *ret_fd)
{
	const struct itimerspec t = {
		.it_value = {.tv_sec = (time_t)(limit_ms / 1000), .tv_nsec = 1},
	};
	struct epoll_event ev = {.events = EPOLLIN};
	cleanup_close int fd = epoll_create1(EPOLL_CLOEXEC);

	if (fd < 0 || timerfd_settime(timer_fd, 0, &t, NULL) < 0 ||
		epoll_ctl(fd, EPOLL_CTL_ADD, timer_fd, &ev) < 0 ||
		epoll_ctl(fd, EPOLL_CTL_ADD, h->cancel_fd, &ev) < 0)
		return -errno;
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int
op_exec(void *ctx, const char *vm, const struct swarm_step *step,
	struct swarm_result *ret, struct err *e)
{
	struct host *h = ctx;
	__attribute__((cleanup(free_env))) char **env = NULL;
	cleanup_close int timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	cleanup_close int watch_fd = -1;
	struct exec_watch watch = {h, ret};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result result = {0};
	struct agent_exec_req req = {
		.argv = step->argv,
		.cwd = step->cwd,
		.user = step->user,
		.timeout_ms = step->time_limit_ms,
	};
	char socket_path[128];
	int rc;

	if (timer_fd < 0)
		return err_sys(e, -errno, "timerfd_create");
	rc = make_env(step, &env);
	if (rc == 0)
		rc = make_watch(
			h, step->time_limit_ms + AGENT_GRACE_MS, timer_fd, &watch_fd);
	if (rc < 0)
		return err_sys(e, rc, "preparing a command");
	rc = agent_socket(vm, socket_path, e);
	if (rc < 0)
		return rc;
	req.env = (const char *const *)env;
	io.output = on_output;
	io.wake_fd = watch_fd;
	io.wake = on_wake;
	io.ctx = &watch;
	rc = agent_exec(socket_path, &req, &io, &result, e);
	if (rc == -ETIMEDOUT)
		return err_set(e, rc,
			"the guest's agent did not end a command that was over its time limit");
	if (rc < 0)
		return rc;
	ret->value = (int)result.value;
	switch (result.kind) {
	case AGENT_EXITED:
		ret->kind = SWARM_EXITED;
		break;
	case AGENT_SIGNALLED:
		ret->kind = SWARM_SIGNALLED;
		break;
	case AGENT_TIMED_OUT:
		ret->kind = SWARM_TIMED_OUT;
		break;
	case AGENT_SPAWN_FAILED:
		ret->kind = SWARM_NOT_STARTED;
		swarm_tail_add(&ret->err, result.message, strlen(result.message));
		break;
	default:
		return err_set(e, -EPROTO,
			"the guest's agent ended a command in an unknown way");
	}
	return 0;
}

static int
on_copy(void *ctx, const struct agent_copy_stats *stats)
{
	(void)stats;
	return is_cancelled(ctx) ? -ECANCELED : 0;
}

static int
op_put(void *ctx, const char *vm, const char *from, const char *to, struct err *e)
{
	struct agent_copy_stats stats;
	char socket_path[128];
	int rc = agent_socket(vm, socket_path, e);

	return rc < 0 ? rc : agent_put(socket_path, from, to, on_copy, ctx, &stats, e);
}

static int
op_get(void *ctx, const char *vm, const char *from, const char *to, struct err *e)
{
	struct agent_copy_stats stats;
	char socket_path[128];
	int rc = agent_socket(vm, socket_path, e);

	return rc < 0 ? rc : agent_get(socket_path, from, to, on_copy, ctx, &stats, e);
}

static int
op_alias(void *ctx, const char *vm, const char *alias, struct err *e)
{
	cleanup_client struct client *c = NULL;
	cleanup_client_vm struct client_vm info = {0};
	int rc = client_open(NULL, CLIENT_START, &c, e);

	(void)ctx;
	return rc < 0 ? rc : client_alias(c, vm, alias, &info, NULL, e);
}

static int
delete_one(struct client *c, const char *vm, bool recursive, struct err *e)
{
	struct err why = {0};
	int rc = client_delete(c, vm, recursive, NULL, &why);

	return rc == 0 || rc == -ENOENT ? 0 : err_set(e, rc, "%s", why.msg);
}

static int
op_delete(void *ctx, const char *vm, struct err *e)
{
	cleanup_client struct client *c = NULL;
	int rc = client_open(NULL, CLIENT_START, &c, e);

	(void)ctx;
	return rc < 0 ? rc : delete_one(c, vm, true, e);
}

/* All are tried; the first error is told. */
static int
sweep(struct client *c, const char *run, size_t *ret_n, struct err *e)
{
	cleanup_client_vms struct client_vms vms = {0};
	char label[128];
	int rc, first;

	snprintf(label, sizeof(label), SWARM_LABEL "=%s", run);
	first = client_list(c, label, &vms, NULL, e);
	if (first < 0)
		return first;
	for (size_t i = 0; i < vms.n; i++) {
		rc = delete_one(c, vms.v[i].id, true, first < 0 ? NULL : e);
		if (rc < 0 && first == 0)
			first = rc;
	}
	*ret_n = vms.n;
	return first;
}

static int
op_sweep(void *ctx, const char *run, struct err *e)
{
	cleanup_client struct client *c = NULL;
	int rc = client_open(NULL, CLIENT_START, &c, e);
	size_t n;

	(void)ctx;
	return rc < 0 ? rc : sweep(c, run, &n, e);
}

static const struct swarm_ops host_ops = {
	.find = op_find,
	.boot = op_boot,
	.branch = op_branch,
	.exec = op_exec,
	.put = op_put,
	.get = op_get,
	.alias = op_alias,
	.delete_vm = op_delete,
	.sweep = op_sweep,
};

struct request {
	const char *words[3];
	size_t n_words;
	const char *output;
	uint64_t parallel;
	bool keep_winner, dry_run, json, quiet;
};

static int
load_spec(const char *path, struct swarm_spec **ret, char ret_sha256[65], struct err *e)
{
	cleanup_free char *text = NULL;
	cleanup_swarm_spec struct swarm_spec *spec = NULL;
	size_t len;
	int rc = io_read_file(path, SPEC_MAX, &text, &len, e);

	if (rc == 0)
		rc = swarm_spec_parse(path, text, len, &spec, e);
	if (rc == 0)
		rc = swarm_spec_check_files(spec, e);
	if (rc < 0)
		return rc;
	swarm_sha256(text, len, ret_sha256);
	*ret = TAKE_PTR(spec);
	return 0;
}

static void
print_plan(const struct swarm_spec *spec)
{
	for (size_t i = 0; i < spec->n_children; i++) {
		char name[200], word[300];

		printf("%s", out_plain(name, sizeof(name), spec->children[i].name));
		for (size_t k = 0; spec->children[i].work.argv[k]; k++)
			printf("%c%s", k ? ' ' : '\t',
				out_plain(word, sizeof(word),
					spec->children[i].work.argv[k]));
		printf("\n");
	}
}

static void
print_summary(const struct swarm_spec *spec, const struct swarm_summary *sum, bool quiet)
{
	if (quiet) {
		printf("%s\n", sum->winner_vm[0] ? sum->winner_vm : sum->winner);
		return;
	}
	printf("winner  %s\nscore   %.10g\nwhy     %s\n", sum->winner, sum->score,
		sum->reason);
	if (spec->n_collect)
		printf("files   %s/%s\n", sum->output, sum->winner);
	printf("record  %s/record.jsonl\n", sum->output);
	if (sum->winner_vm[0])
		printf("vm      %s\n", sum->winner_vm);
}

static int
swarm_run_verb(const struct request *q, struct err *e)
{
	cleanup_swarm_spec struct swarm_spec *spec = NULL;
	cleanup_close int cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct out_progress progress;
	struct host host = {cancel_fd, &progress, q->quiet};
	struct swarm_summary sum;
	char sha256[65];
	struct swarm_options options = {
		.spec_path = q->words[1],
		.spec_sha256 = sha256,
		.version = PANDO_VERSION,
		.output = q->output,
		.parallel = (unsigned)q->parallel,
		.keep_winner = q->keep_winner,
		.cancel_fd = cancel_fd,
		.view_fd = q->quiet ? -1 : STDERR_FILENO,
		.live = isatty(STDERR_FILENO),
		.record_copy_fd = q->json ? STDOUT_FILENO : -1,
	};
	struct sigaction act = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART},
			 old[3];
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
	sigset_t ends;
	int rc;

	if (cancel_fd < 0)
		return err_sys(e, -errno, "eventfd");
	rc = load_spec(q->words[1], &spec, sha256, e);
	if (rc < 0)
		return rc;
	if (q->dry_run) {
		print_plan(spec);
		return 0;
	}
	out_progress_start(&progress, q->quiet);
	interrupt_fd = cancel_fd;
	pick_end_signals(&ends);
	for (size_t i = 0; i < 3; i++)
		sigaction(signals[i], sigismember(&ends, signals[i]) ? &act : NULL,
			&old[i]);
	rc = swarm_run(spec, &host_ops, &host, &options, &sum, e);
	for (size_t i = 0; i < 3; i++)
		sigaction(signals[i], &old[i], NULL);
	out_progress_end(&progress);
	if (sum.winner && !q->json)
		print_summary(spec, &sum, q->quiet);
	return rc;
}

/* The value of a VM's swarm label; NULL: it has none. */
static const char *
run_of(const struct client_vm *vm)
{
	for (size_t i = 0; i < vm->n_labels; i++)
		if (strcmp(vm->labels[i].key, SWARM_LABEL) == 0)
			return vm->labels[i].value;
	return NULL;
}

static int
swarm_clean_verb(const struct request *q, struct err *e)
{
	cleanup_client struct client *c = NULL;
	cleanup_client_vms struct client_vms vms = {0};
	char runs[300] = "";
	size_t n = 0;
	int rc = client_open(NULL, CLIENT_START, &c, e);

	if (rc < 0)
		return rc;
	if (q->n_words == 2) {
		rc = sweep(c, q->words[1], &n, e);
		if (rc < 0)
			return rc;
		if (!n)
			return err_set(e, -ENOENT, "no VM belongs to a swarm run \"%s\"",
				q->words[1]);
		if (q->json)
			printf("{\"run\":\"%s\",\"deleted\":%zu}\n", q->words[1], n);
		else if (!q->quiet)
			fprintf(stderr, "pando: deleted %zu VMs of %s\n", n, q->words[1]);
		return 0;
	}
	rc = client_list(c, NULL, &vms, NULL, e);
	if (rc < 0)
		return rc;
	for (size_t i = 0; i < vms.n; i++) {
		const char *run = run_of(&vms.v[i]);
		size_t at = strlen(runs);

		if (run && !strstr(runs, run))
			snprintf(runs + at, sizeof(runs) - at, "%s%s", at ? ", " : "",
				run);
	}
	return err_set(e, -EINVAL,
		runs[0] ? "which run? There are VMs of %s"
			: "no VM belongs to a swarm run%s",
		runs);
}

static int run_verb(int argc, char **argv);

static const struct opt options[] = {
	{'o', "output", "FOLDER",
		"for the record and the collected files; must be empty or new",
		COMPLETE_FOLDER},
	{'p', "parallel", "N", "children that work at once (default: CPUs of this host)",
		COMPLETE_NOTHING},
	{'k', "keep-winner", NULL, "the winning VM goes on, named <spec>-<child>",
		COMPLETE_NOTHING},
	{'n', "dry-run", NULL, "check the spec and print the children and their commands",
		COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

extern const struct verb verb_swarm;
const struct verb verb_swarm = {
	.name = "swarm",
	.summary =
		"Branch a VM many times, let each child work, score them, keep the best",
	.run = run_verb,
	.usage = "run [options] SPEC.toml\nclean RUN",
	.options = options,
	.text = "run prints the winner, its score and where its files are; --format json prints the record\n"
		"(JSON lines) instead. Progress goes to stderr. Ctrl-C deletes the children and exits with 7.\n"
		"clean deletes what a run that was killed has left behind.",
	.subverbs = "run clean",
	.words = COMPLETE_FILE,
};

static int
check_words(const struct request *q, struct err *e)
{
	if (!q->n_words)
		return err_set(
			e, -EINVAL, "swarm needs a word: run SPEC.toml, or clean RUN");
	if (strcmp(q->words[0], "run") == 0) {
		if (q->n_words != 2)
			return err_set(e, -EINVAL,
				q->n_words < 2 ? "swarm run needs a SPEC.toml"
					       : "swarm run takes one SPEC.toml");
		return 0;
	}
	if (strcmp(q->words[0], "clean") == 0) {
		if (q->n_words > 2)
			return err_set(e, -EINVAL, "swarm clean takes one run at a time");
		if (q->n_words == 2 &&
			(!*q->words[1] || strlen(q->words[1]) >= SWARM_RUN_SIZE ||
				q->words[1][strspn(q->words[1],
					"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRST"
					"UVWXYZ0123456789._-")]))
			return err_set(e, -EINVAL,
				"a run's name is letters, digits, . _ -, as `pando swarm run` shows it");
		return 0;
	}
	return err_set(
		e, -EINVAL, "swarm knows run and clean, not \"%.60s\"", q->words[0]);
}

static int
run_verb(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_swarm, argc, argv);
	struct request q = {0};
	struct err e = {0};
	int key, rc;

	while ((key = opt_next(&s, &e)) != OPT_END)
		switch (key) {
		case 'o':
			q.output = s.arg;
			break;
		case 'p':
			if (opt_u64(s.arg, "--parallel", 1, SWARM_CHILDREN_MAX,
				    &q.parallel, &e) < 0)
				return out_fail(&e);
			break;
		case 'k':
			q.keep_winner = true;
			break;
		case 'n':
			q.dry_run = true;
			break;
		case OPT_WORD:
			if (q.n_words == 3) {
				err_set(&e, -EINVAL, "too many words: \"%.80s\"", s.arg);
				return out_fail(&e);
			}
			q.words[q.n_words++] = s.arg;
			break;
		default:
			return opt_leave(&s, key, &e);
		}
	q.json = s.json;
	q.quiet = s.quiet;
	rc = check_words(&q, &e);
	if (rc == 0)
		rc = strcmp(q.words[0], "run") != 0 ? swarm_clean_verb(&q, &e)
						    : swarm_run_verb(&q, &e);
	return rc < 0 ? out_fail(&e) : EXIT_OK;
}
