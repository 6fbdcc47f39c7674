/*
 * pandod's tree against processes that speak the VMMs' protocol and misbehave on demand
 * (fake_vmm.h). Everything else is real: the database, the sockets, the processes. The
 * agent's side is one byte on agent.sock: the two functions of host/agent/agent_client.h that
 * the tree calls are here.
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
#include <dirent.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_handshake.h"
#include "host/agent/agent_report.h"
#include "host/vm/tree.h"
#include "tests/unit/fake_vmm.h"
#include "tests/unit/tree_help.h"
#include "vmm/blockmap.h"

/* The fake guest says 'A' when its agent answers. */
int
agent_ping(const char *path, int timeout_ms, struct agent_pong *ret, struct err *e)
{
	cleanup_close int fd = -1;
	char byte = 0;
	int r = io_unix_connect(path, SOCK_STREAM, &fd, e);

	(void)ret;
	if (r < 0)
		return r == -ECONNREFUSED ? -ENOTCONN : r;

	struct pollfd p = {.fd = fd, .events = POLLIN};

	if (poll(&p, 1, timeout_ms) == 0)
		return err_set(e, -ETIMEDOUT, "no answer");
	if (io_read(fd, &byte, 1) != 1 || byte != 'A')
		return err_set(e, -ECONNREFUSED, "nobody listens");
	return 0;
}

int
agent_wait_ready(const char *path, int timeout_ms, int (*cancel)(void *ctx), void *ctx,
	struct err *e)
{
	uint64_t until = io_now_ns() + (uint64_t)timeout_ms * 1000000u;

	while (io_now_ns() < until) {
		int r = agent_ping(path, 50, NULL, e);

		if (r == 0 || (r != -ECONNREFUSED && r != -ETIMEDOUT))
			return r;
		r = cancel(ctx);
		if (r < 0)
			return err_set(e, r, "cancelled");
		poll(NULL, 0, 5);
	}
	return err_set(e, -ETIMEDOUT, "nobody answers");
}

/* What the guests of these tests do with an identity handshake: all of them take it, but those of a
 * name in handshake_refused; handshake_count counts. */
static char handshake_refused[32], last_env[256], last_kind[16], last_host_name[64];
static unsigned handshake_count;
/* Guests of this name name a step each time they are told, the last of these for ever, and take
 * the identity handshake at handshake_takes_at (0: never) times. */
static char handshake_slow[32];
static unsigned handshake_asked, handshake_n_steps, handshake_takes_at;
static pthread_mutex_t handshake_lock = PTHREAD_MUTEX_INITIALIZER;
/* Guests that take an identity handshake only when so many of them are told at once; handshake_most: how
 * many ever were. */
static unsigned handshake_together, handshake_inside, handshake_most;
static pthread_cond_t handshake_changed = PTHREAD_COND_INITIALIZER;

/* Called with handshake_lock. False: the others do not come. */
static bool
meet_others(void)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 5;
	if (++handshake_inside > handshake_most)
		handshake_most = handshake_inside;
	pthread_cond_broadcast(&handshake_changed);
	while (handshake_most < handshake_together)
		if (pthread_cond_timedwait(&handshake_changed, &handshake_lock, &until))
			break;
	handshake_inside--;
	return handshake_most >= handshake_together;
}

int
agent_handshake(const char *path, const struct agent_handshake *h, int timeout_ms,
	int (*cancel)(void *ctx), void *ctx, struct agent_ack *ret, struct err *e)
{
	int r = agent_ping(path, 5000, NULL, e); /* a busy host is no deaf guest */

	(void)timeout_ms;
	if (r == 0 && cancel)
		r = cancel(ctx);
	if (r < 0)
		return r;
	pthread_mutex_lock(&handshake_lock);
	if (handshake_together && !meet_others()) {
		pthread_mutex_unlock(&handshake_lock);
		return err_set(e, -ETIMEDOUT, "alone");
	}
	if (handshake_slow[0] && strcmp(h->name, handshake_slow) == 0) {
		unsigned n = ++handshake_asked;
		char step[16];

		snprintf(step, sizeof(step), "step-%u",
			n < handshake_n_steps ? n : handshake_n_steps);
		if (n != handshake_takes_at) {
			pthread_mutex_unlock(&handshake_lock);
			h->on_step(h->step_ctx, step);
			return err_set(e, -ETIMEDOUT, "it is in the step \"%s\"", step);
		}
	}
	handshake_count++;
	snprintf(last_kind, sizeof(last_kind), "%s", h->parent ? "parent" : "new");
	snprintf(last_host_name, sizeof(last_host_name), "%s", h->host_name);
	if (!h->parent) {
		last_env[0] = '\0';
		for (size_t i = 0; i < h->env->n; i++)
			snprintf(last_env + strlen(last_env),
				sizeof(last_env) - strlen(last_env), "%s;", h->env->v[i]);
	}
	pthread_mutex_unlock(&handshake_lock);
	if (handshake_refused[0] && strcmp(h->name, handshake_refused) == 0)
		return err_set(e, -ENOSPC, "in the guest: environment: disk full");
	*ret = (struct agent_ack){.total_us = 7, .n_steps = 1};
	strcpy(ret->steps[0].name, "random");
	if (!h->parent)
		snprintf(ret->host_key, sizeof(ret->host_key),
			"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI%s%031d", h->id, 0);
	return 0;
}

static char last_script[1024];
static int script_status;

/* What the guest's agent is asked to run: "systemctl poweroff", and shell scripts. */
int
agent_exec(const char *path, const struct agent_exec_req *req,
	const struct agent_exec_io *io, struct agent_exec_result *ret, struct err *e)
{
	cleanup_close int fd = -1;
	int r = io_unix_connect(path, SOCK_STREAM, &fd, e);

	if (r < 0)
		return -ENOTCONN;
	ret->kind = AGENT_EXITED;
	ret->value = 0;
	if (strcmp(req->argv[0], "systemctl") == 0)
		return io_write_full(fd, "P", 1);
	snprintf(last_script, sizeof(last_script), "%s", req->argv[2]);
	ret->value = (uint32_t)script_status;
	if (script_status)
		io->output(io->ctx, 2, "it is\x1b too small\n", 18);
	return 0;
}

int
agent_exit_status(const struct agent_exec_result *r)
{
	return (int)r->value;
}

/* The reports that guests have: the same of each. */
static struct {
	char vm[13]; /* whose they say they are */
	unsigned n, acknowledged;
	int lists; /* how often they were asked */
} fake_reports;
static char deaf_ids[64][13];
static unsigned n_deaf;

/* Of the guest at this socket: whether it is one of deaf_ids, after the time it was given. */
static bool
is_deaf(const char *path, int timeout_ms)
{
	for (unsigned i = 0; i < n_deaf; i++)
		if (strstr(path, deaf_ids[i])) {
			poll(NULL, 0, timeout_ms);
			return true;
		}
	return false;
}

int
agent_reports_list(const char *path, const char *root, int timeout_ms,
	struct agent_report **ret, size_t *ret_n, size_t *ret_bad, struct err *e2)
{
	struct agent_report *v = calloc(fake_reports.n + 1, sizeof(*v));

	__atomic_add_fetch(&fake_reports.lists, 1, __ATOMIC_SEQ_CST);
	(void)root;
	assert_non_null(strstr(path, "agent.sock"));
	if (is_deaf(path, timeout_ms)) {
		free(v);
		return err_set(e2, -ETIMEDOUT, "deaf");
	}
	for (unsigned i = 0; i < fake_reports.n; i++) {
		memset(v[i].id, 'a' + (int)i, REPORT_ID_LEN);
		memcpy(v[i].vm, fake_reports.vm, sizeof(v[i].vm));
		v[i].time_ms = i;
		v[i].json = strdup("{\"status\":\"done\",\"files\":[]}");
	}
	*ret = v;
	*ret_n = fake_reports.n;
	*ret_bad = 0;
	return 0;
}

int
agent_reports_ack(const char *path, const char *root, int timeout_ms,
	const struct agent_report *v, size_t n, struct err *e2)
{
	(void)path;
	(void)root;
	(void)timeout_ms;
	(void)v;
	(void)e2;
	fake_reports.acknowledged += (unsigned)n;
	return 0;
}

/* A guest that is watched: the other end of a pipe, fake_tell, is how it speaks. */
struct agent_report_watch {
	int fd, tell;
};
static int fake_tell = -1, fake_watches;

int
agent_reports_watch(const char *path, const char *root, int timeout_ms,
	struct agent_report_watch **ret, struct err *e2)
{
	int p[2];

	(void)root;
	if (is_deaf(path, timeout_ms))
		return err_set(e2, -ETIMEDOUT, "deaf");
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	*ret = malloc(sizeof(**ret));
	(*ret)->fd = p[0];
	(*ret)->tell = p[1];
	__atomic_store_n(&fake_tell, p[1], __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&fake_watches, 1, __ATOMIC_SEQ_CST);
	return 0;
}

int
agent_report_watch_fd(const struct agent_report_watch *w)
{
	return w->fd;
}

int
agent_report_watch_read(struct agent_report_watch *w, struct err *e2)
{
	char c;

	(void)e2;
	return read(w->fd, &c, 1) == 1 ? 1 : -EPIPE;
}

void
agent_report_watch_free(struct agent_report_watch *w)
{
	if (w) {
		close(w->fd);
		close(w->tell);
	}
	free(w);
}

void
agent_reports_free(struct agent_report *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(v[i].json);
	free(v);
}

#define PATIENCE_MS 20000 /* a busy host takes its time */
static int patience_ms = PATIENCE_MS;

static int
setup(void **state)
{
	(void)state;
	make_home(patience_ms);
	start();
	return 0;
}

/* For tests in which somebody does not answer. */
static int
setup_impatient(void **state)
{
	int r;

	patience_ms = 700;
	r = setup(state);
	patience_ms = PATIENCE_MS;
	return r;
}

static unsigned
entries(const char *folder)
{
	char path[128];
	cleanup_closedir DIR *dir = NULL;
	struct dirent *d;
	unsigned n = 0;

	snprintf(path, sizeof(path), "%s/%s", home, folder);
	dir = opendir(path);
	assert_non_null(dir);
	while ((d = readdir(dir)))
		n += d->d_name[0] != '.';
	return n;
}

/* Processes below this one; forks of forks fall to us as the subreaper. */
static bool
children_left(void)
{
	siginfo_t si = {0};

	for (int i = 0; i < 300; i++) {
		if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG) < 0 && errno == ECHILD)
			return false;
		poll(NULL, 0, 10);
	}
	return true;
}

static struct json *parsed;
static char *answer_text;

/* The answer of a call as JSON, or the error's code; `why` has the sentence. */
static struct err why;

static int
take(int r, struct json_out *out)
{
	json_free(parsed);
	parsed = NULL;
	free(answer_text);
	answer_text = NULL;
	if (r == 0) {
		struct err e = {0};

		assert_int_equal(out->error, 0);
		assert_int_equal(out->depth, 0);
		answer_text = TAKE_PTR(out->buf);
		if (json_parse(answer_text, out->len, 65536, &parsed, &e) < 0)
			fail_msg("%s in %s", e.msg, answer_text);
	}
	json_out_done(out);
	return r;
}

static int
create(const char *alias, const char *cmdline, bool wait)
{
	struct create_request q = {
		.mem_mib = 64, .vcpus = 1, .wait = wait, .rootfs = "none"};
	struct json_out out = {0};

	why = (struct err){0};
	snprintf(q.alias, sizeof(q.alias), "%s", alias);
	snprintf(q.cmdline, sizeof(q.cmdline), "%s", cmdline);
	snprintf(q.kernel, sizeof(q.kernel), "%s", kernel);
	return take(tree_create(tree, &q, NULL, &out, &why), &out);
}

static int
branch(const char *vm, const char *alias, unsigned count, bool wait)
{
	struct branch_request q = {.count = count, .wait = wait};
	struct json_out out = {0};

	why = (struct err){0};
	snprintf(q.alias, sizeof(q.alias), "%s", alias);
	return take(tree_branch(tree, vm, &q, NULL, &out, &why), &out);
}

static int
delete_vm(const char *vm, bool recursive)
{
	struct json_out out = {0};

	why = (struct err){0};
	return take(tree_delete(tree, vm, recursive, false, NULL, &out, &why), &out);
}

static int
info(const char *vm)
{
	struct json_out out = {0};

	why = (struct err){0};
	return take(tree_info(tree, vm, &out, &why), &out);
}

static int
disk(const char *vm)
{
	struct json_out out = {0};

	return take(tree_disk(tree, vm, &out, &why), &out);
}

static unsigned
count_vms(void)
{
	struct json_out out = {0};

	assert_int_equal(take(tree_list(tree, NULL, false, &out, &why), &out), 0);
	return (unsigned)json_size(parsed, json_get(parsed, 0, "vms"));
}

/* A text member of the last answer; "" for null. */
static const char *
text(const char *key)
{
	static char value[4096];
	int tok = json_get(parsed, 0, key);

	value[0] = '\0';
	assert_true(tok >= 0);
	if (json_type(parsed, tok) == JSON_STRING)
		assert_int_equal(json_str(parsed, tok, value, sizeof(value)), 0);
	return value;
}

static int64_t
number(const char *key)
{
	int64_t v = 0;

	assert_int_equal(json_i64(parsed, json_get(parsed, 0, key), &v), 0);
	return v;
}

/* An order to the fake guest, which does not wait long for one. */
static void
order(const char *vm, char what)
{
	for (int i = 0; i < 100; i++) {
		cleanup_close int fd = -1;
		char said[2] = "";

		assert_int_equal(info(vm), 0);
		assert_int_equal(
			io_unix_connect(text("agent_socket"), SOCK_STREAM, &fd, NULL), 0);
		send(fd, &what, 1, MSG_NOSIGNAL);
		while (io_read(fd, said, 1) == 1)
			if (said[0] == 'K')
				return;
	}
	fail_msg("%s takes no order", vm);
}

static void
wait_state(const char *vm, const char *state)
{
	for (int i = 0; i < 6000; i++) {
		assert_int_equal(info(vm), 0);
		if (strcmp(text("state"), state) == 0)
			return;
		poll(NULL, 0, 10);
	}
	fail_msg("%s is %s, not %s (%s)", vm, text("state"), state, text("reason"));
}

/* Nothing of any VM is left: no row, folder, segment, process. */
static void
assert_nothing_left(void)
{
	assert_int_equal(count_vms(), 0);
	assert_int_equal(entries("vms"), 0);
	assert_int_equal(entries("segments"), 0);
	assert_false(children_left());
}

static int
teardown(void **state)
{
	struct json_out out = {0};
	char path[128];

	(void)state;
	if (!tree)
		start();
	for (int i = 0; i < 1000; i++) {
		if (!count_vms())
			break;

		int vms = json_get(parsed, 0, "vms"), vm = json_at(parsed, vms, 0);
		char id[16];

		json_str(parsed, json_get(parsed, vm, "id"), id, sizeof(id));
		delete_vm(id, true);
	}
	take(-1, &out);
	stop();
	snprintf(path, sizeof(path), "%s", home);
	io_remove_tree(path, NULL);
	return 0;
}

static void
a_vm_with_an_agent_is_running_when_create_returns(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_string_equal(text("state"), "running");
	assert_string_equal(text("alias"), "a");
	assert_int_equal(number("disk_mib"), 1024);
	assert_true(number("pid") > 0);
	assert_int_equal(entries("vms"), 1);
	assert_int_equal(entries("segments"), 2);
	assert_int_equal(info("a"), 0);
	assert_true(json_get(parsed, 0, "stats") >= 0);
	assert_int_equal(delete_vm("a", false), 0);
	assert_nothing_left();
}

static int
reports(const char *vm, uint64_t after)
{
	struct json_out out = {0};

	why = (struct err){0};
	return take(tree_reports(tree, vm, after, false, NULL, &out, &why), &out);
}

static unsigned
n_reports(void)
{
	return (unsigned)json_size(parsed, json_get(parsed, 0, "reports"));
}

static void *
follow_main(void *ret_json)
{
	struct json_out out = {0};
	struct err e2 = {0};

	assert_int_equal(tree_reports(tree, NULL, 0, true, NULL, &out, &e2), 0);
	*(char **)ret_json = out.buf;
	return NULL;
}

static void
a_follower_is_told_by_the_guest_and_asks_nobody(void **state)
{
	pthread_t thread;
	char *json = NULL;
	int lists;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(fake_reports.vm, sizeof(fake_reports.vm), "%.12s", text("id"));
	fake_watches = 0;
	assert_int_equal(pthread_create(&thread, NULL, follow_main, &json), 0);
	for (int i = 0; i < 3000 && !__atomic_load_n(&fake_watches, __ATOMIC_SEQ_CST);
		i++)
		poll(NULL, 0, 10);
	assert_int_equal(fake_watches, 1);
	/* Nothing is asked of the guest as long as it says nothing. */
	lists = __atomic_load_n(&fake_reports.lists, __ATOMIC_SEQ_CST);
	poll(NULL, 0, 2500);
	assert_int_equal(__atomic_load_n(&fake_reports.lists, __ATOMIC_SEQ_CST), lists);
	fake_reports.n = 2;
	assert_int_equal(
		io_write_full(__atomic_load_n(&fake_tell, __ATOMIC_SEQ_CST), "x", 1), 0);
	pthread_join(thread, NULL);
	assert_non_null(strstr(json, "\"next\":2"));
	assert_non_null(strstr(json, "\"more\":false"));
	free(json);
	fake_reports.n = 0;
	assert_int_equal(delete_vm("a", false), 0);
	memset(&fake_reports, 0, sizeof(fake_reports));
}

/* More of them than are asked at once, and older than the one that has something to tell. */
static void
deaf_guests_hold_up_nobodys_reports(void **state)
{
	char name[16], *json = NULL;
	pthread_t thread;
	uint64_t begin;

	(void)state;
	for (n_deaf = 0; n_deaf < 24; n_deaf++) {
		snprintf(name, sizeof(name), "deaf%u", n_deaf);
		assert_int_equal(create(name, "agent", true), 0);
		snprintf(deaf_ids[n_deaf], sizeof(deaf_ids[0]), "%.12s", text("id"));
	}
	assert_int_equal(branch("deaf0", "talks", 1, true), 0);
	assert_int_equal(info("talks"), 0);
	snprintf(fake_reports.vm, sizeof(fake_reports.vm), "%.12s", text("id"));
	begin = io_now_ns();
	assert_int_equal(pthread_create(&thread, NULL, follow_main, &json), 0);
	poll(NULL, 0, 100);
	fake_reports.n = 2;
	pthread_join(thread, NULL);
	assert_non_null(strstr(json, "\"next\":2"));
	assert_true(io_now_ns() - begin < UINT64_C(12000000000));
	free(json);
	/* What it reports last is not lost when it goes together with a deaf one's tree. */
	fake_reports.n = 3;
	assert_int_equal(delete_vm("deaf0", true), 0);
	assert_int_equal(reports(fake_reports.vm, 0), 0);
	assert_int_equal(n_reports(), 3);
	n_deaf = 0;
	memset(&fake_reports, 0, sizeof(fake_reports));
}

#define TOO_MANY 8
static unsigned told_too_many, told_nothing;

static void *
crowd_main(void *arg)
{
	struct json_out out = {0};
	struct err e2 = {0};
	int r = tree_reports(tree, NULL, 0, true, NULL, &out, &e2);

	(void)arg;
	if (r == -EAGAIN && strstr(e2.msg, "64 calls wait for reports"))
		__atomic_add_fetch(&told_too_many, 1, __ATOMIC_SEQ_CST);
	else if (!r && memmem(out.buf, out.len, "\"reports\":[]", 12))
		__atomic_add_fetch(&told_nothing, 1, __ATOMIC_SEQ_CST);
	json_out_done(&out);
	return NULL;
}

static void
more_followers_than_may_wait_are_told_so(void **state)
{
	static pthread_t threads[TREE_FOLLOWERS_MAX + TOO_MANY];

	(void)state;
	told_too_many = told_nothing = 0;
	for (unsigned i = 0; i < TREE_FOLLOWERS_MAX + TOO_MANY; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, crowd_main, NULL), 0);
	for (int i = 0;
		i < 2000 && __atomic_load_n(&told_too_many, __ATOMIC_SEQ_CST) < TOO_MANY;
		i++)
		poll(NULL, 0, 10);
	assert_int_equal(__atomic_load_n(&told_nothing, __ATOMIC_SEQ_CST), 0);
	/* Who does not wait is answered. */
	assert_int_equal(reports(NULL, 0), 0);
	tree_stop(tree);
	for (unsigned i = 0; i < TREE_FOLLOWERS_MAX + TOO_MANY; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(told_too_many, TOO_MANY);
	assert_int_equal(told_nothing, TREE_FOLLOWERS_MAX);
	stop();
	start();
}

static unsigned followers_told;
static bool followers_have_gone;

static bool
follower_gone(void *ctx)
{
	(void)ctx;
	return __atomic_load_n(&followers_have_gone, __ATOMIC_SEQ_CST);
}

static void *
leaving_follower_main(void *arg)
{
	struct progress p = {.gone = follower_gone};
	struct json_out out = {0};
	struct err e2 = {0};
	int r;

	(void)arg;
	/* one_more_may_follow() has a place for moments. */
	while ((r = tree_reports(tree, NULL, 1000000, true, &p, &out, &e2)) == -EAGAIN)
		poll(NULL, 0, 10);
	if (r == -ECANCELED)
		__atomic_add_fetch(&followers_told, 1, __ATOMIC_SEQ_CST);
	json_out_done(&out);
	return NULL;
}

static bool
is_gone(void *ctx)
{
	(void)ctx;
	return true;
}

/* Without waiting. */
static bool
one_more_may_follow(void)
{
	struct progress p = {.gone = is_gone};
	struct json_out out = {0};
	struct err e2 = {0};
	bool may = tree_reports(tree, NULL, 1000000, true, &p, &out, &e2) != -EAGAIN;

	json_out_done(&out);
	return may;
}

static void
followers_whose_callers_have_gone_give_up_their_places(void **state)
{
	static pthread_t threads[TREE_FOLLOWERS_MAX];
	struct json_out out = {0};

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	followers_told = 0;
	followers_have_gone = false;
	for (unsigned i = 0; i < TREE_FOLLOWERS_MAX; i++)
		assert_int_equal(
			pthread_create(&threads[i], NULL, leaving_follower_main, NULL),
			0);
	for (int i = 0; i < 2000 && one_more_may_follow(); i++)
		poll(NULL, 0, 10);
	assert_false(one_more_may_follow());
	/* What is there already is told all the same. */
	fake_reports.n = 2;
	snprintf(fake_reports.vm, sizeof(fake_reports.vm), "%.12s", text("id"));
	assert_int_equal(reports("a", 0), 0);
	assert_int_equal(n_reports(), 2);
	why = (struct err){0};
	assert_int_equal(
		take(tree_reports(tree, "a", 0, true, NULL, &out, &why), &out), 0);
	assert_int_equal(n_reports(), 2);
	/* Long before their wait is over. */
	assert_int_equal(followers_told, 0);
	__atomic_store_n(&followers_have_gone, true, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 1200 && __atomic_load_n(&followers_told, __ATOMIC_SEQ_CST) <
					    TREE_FOLLOWERS_MAX;
		i++)
		poll(NULL, 0, 10);
	assert_int_equal(followers_told, TREE_FOLLOWERS_MAX);
	for (unsigned i = 0; i < TREE_FOLLOWERS_MAX; i++)
		pthread_join(threads[i], NULL);
	assert_true(one_more_may_follow());
	assert_int_equal(delete_vm("a", false), 0);
	memset(&fake_reports, 0, sizeof(fake_reports));
}

static void
a_follower_does_not_hold_up_the_end_of_pandod(void **state)
{
	pthread_t thread;
	char *json = NULL;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	fake_watches = 0;
	assert_int_equal(pthread_create(&thread, NULL, follow_main, &json), 0);
	for (int i = 0; i < 3000 && !__atomic_load_n(&fake_watches, __ATOMIC_SEQ_CST);
		i++)
		poll(NULL, 0, 10);
	tree_stop(tree);
	pthread_join(thread, NULL);
	assert_non_null(strstr(json, "\"reports\":[]"));
	free(json);
	stop();
	start();
	assert_int_equal(delete_vm("a", false), 0);
}

static void
reports_are_taken_once_and_outlive_pandod_and_their_vm(void **state)
{
	char id[13];

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(id, sizeof(id), "%.12s", text("id"));
	assert_int_equal(reports(NULL, 0), 0);
	assert_int_equal(n_reports(), 0);
	fake_reports.n = 3;
	assert_int_equal(reports("a", 0), 0);
	assert_int_equal(n_reports(), 3);
	assert_int_equal(fake_reports.acknowledged, 3);
	assert_int_equal(number("next"), 3);
	/* Those that were not forgotten come again, and are known. */
	assert_int_equal(reports(NULL, 0), 0);
	assert_int_equal(n_reports(), 3);
	assert_int_equal(reports(NULL, 2), 0);
	assert_int_equal(n_reports(), 1);
	/* Those of another VM, made before this one was branched off, are not its own. */
	fake_reports.n = 5;
	memset(fake_reports.vm, 'f', 12);
	assert_int_equal(reports("a", 0), 0);
	assert_int_equal(n_reports(), 3);
	snprintf(fake_reports.vm, sizeof(fake_reports.vm), "%s", id);
	assert_int_equal(reports("a", 0), 0);
	assert_int_equal(n_reports(), 5);
	fake_reports.n = 0;
	stop();
	start();
	assert_int_equal(delete_vm("a", false), 0);
	assert_int_equal(reports(id, 0), 0);
	assert_int_equal(n_reports(), 5);
	assert_int_equal(reports("nosuch", 0), -ENOENT);
	assert_nothing_left();
	memset(&fake_reports, 0, sizeof(fake_reports));
}

static void
without_wait_it_is_starting_until_its_agent_answers(void **state)
{
	(void)state;
	assert_int_equal(create("quiet", "", false), 0);
	assert_string_equal(text("state"), "starting");
	assert_int_equal(create("a", "agent", false), 0);
	wait_state("a", "running");
	assert_int_equal(info("quiet"), 0);
	assert_string_equal(text("state"), "starting");
}

static void
a_vm_that_cannot_start_leaves_nothing(void **state)
{
	static const struct {
		const char *how;
		int code;
		const char *sentence;
	} cases[] = {
		{"boot=exit", -ESRCH, "process ended"},
		{"boot=refuse", -ENOEXEC, "the kernel is\\x09no kernel"},
		{"boot=silent", -ETIMEDOUT, "did not start within"},
		{"boot=nonsense", -EPROTO, "unknown type 99"},
		{"boot=fd", -EPROTO, "sent descriptors"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(create("a", cases[i].how, true), cases[i].code);
		if (!strstr(why.msg, cases[i].sentence))
			fail_msg("%s: %s", cases[i].how, why.msg);
		assert_nothing_left();
	}
	snprintf(config.vmm_path, sizeof(config.vmm_path), "/nonexistent");
	stop();
	start();
	assert_int_equal(create("a", "", true), -ENOENT);
	assert_nothing_left();
}

/* The environment as create_env() and branch_env() of below give it. */
static int
branch_env(const char *vm, const char *alias, uint32_t count, const char *entry)
{
	struct branch_request q = {.count = count, .wait = true};
	struct json_out out = {0};
	int r;

	why = (struct err){0};
	snprintf(q.alias, sizeof(q.alias), "%s", alias);
	assert_int_equal(env_set(&q.env, entry, &why), 0);
	r = take(tree_branch(tree, vm, &q, NULL, &out, &why), &out);
	env_done(&q.env);
	return r;
}

static void
a_vm_is_told_who_it_is_before_create_returns(void **state)
{
	char generation[64], key[128];
	(void)state;
	handshake_count = 0;
	assert_int_equal(create("front_end", "agent", true), 0);
	assert_int_equal(handshake_count, 1);
	assert_string_equal(last_kind, "new");
	assert_string_equal(last_host_name, "front-end");
	snprintf(key, sizeof(key), "%s", text("host_key"));
	assert_int_equal(strncmp(key, "ssh-ed25519 AAAA", 16), 0);
	snprintf(generation, sizeof(generation), "%s", text("generation"));
	/* A branch has a key of its own; the parent another generation, and is told. */
	assert_int_equal(branch("front_end", "b", 1, true), 0);
	/* By the health monitor, where the branch did not wait long enough for the parent. */
	for (int i = 0; i < 3000 && handshake_count < 3; i++)
		poll(NULL, 0, 10);
	assert_int_equal(handshake_count, 3);
	assert_int_equal(info("b"), 0);
	assert_string_not_equal(text("host_key"), key);
	assert_int_equal(info("front_end"), 0);
	assert_string_equal(text("host_key"), key);
	assert_string_not_equal(text("generation"), generation);
	assert_true(json_get(parsed, json_get(parsed, 0, "hello"), "total_us") >= 0);
	/* What was acknowledged is not asked for again, not by the next pandod either. */
	stop();
	start();
	poll(NULL, 0, 100);
	assert_int_equal(handshake_count, 3);
	assert_int_equal(info("front_end"), 0);
	assert_string_equal(text("host_key"), key);
}

static void
a_parent_nobody_waited_for_is_told_by_the_health_monitor(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	handshake_count = 0;
	assert_int_equal(branch("a", "b", 1, false), 0);
	for (int i = 0; i < 500 && handshake_count < 2; i++)
		poll(NULL, 0, 10);
	wait_state("b", "running");
	assert_int_equal(handshake_count, 2);
}

static void
a_batch_nobody_waits_for_takes_its_identity_side_by_side(void **state)
{
	char name[16];

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	handshake_most = 0;
	handshake_together = 8;
	assert_int_equal(branch("a", "b", 16, false), 0);
	for (unsigned i = 0; i < 16; i++) {
		snprintf(name, sizeof(name), "b-%u", i);
		wait_state(name, "running");
	}
	handshake_together = 0;
	/* And not without a bound. */
	assert_in_range(handshake_most, 8, 32);
}

static void
a_branch_that_does_not_become_itself_is_no_branch(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	strcpy(handshake_refused, "b-1");
	assert_int_equal(branch("a", "b", 3, true), -ENOSPC);
	assert_non_null(strstr(why.msg, "environment: disk full"));
	assert_non_null(strstr(why.msg, "b-1"));
	assert_int_equal(count_vms(), 1);
	/* Nobody waits: it is ended all the same. */
	assert_int_equal(branch("a", "b-1", 1, false), 0);
	wait_state("b-1", "failed");
	assert_non_null(strstr(text("reason"), "environment: disk full"));
	/* One that boots stays, to be looked at. */
	strcpy(handshake_refused, "c");
	assert_int_equal(create("c", "agent", true), -ENOSPC);
	assert_int_equal(info("c"), 0);
	assert_string_equal(text("state"), "failed");
	assert_non_null(strstr(text("reason"), "environment: disk full"));
	handshake_refused[0] = '\0';
}

/* The health monitor asks again after half a second, one, two, four and eight of them. */
static void
restart_with_handshake_limit(int limit_ms)
{
	config.handshake_timeout_ms = limit_ms;
	stop();
	start();
	handshake_asked = 0;
}

static void
a_handshake_nobody_waits_for_may_take_its_limit_in_each_step(void **state)
{
	(void)state;
	restart_with_handshake_limit(1000);
	strcpy(handshake_slow, "a");
	handshake_n_steps = 9;
	handshake_takes_at = 4; /* 3.5 s or more after the first time */
	assert_int_equal(create("a", "agent", false), 0);
	wait_state("a", "running");
	assert_int_equal(handshake_asked, 4);
	handshake_slow[0] = '\0';
}

static void
a_handshake_nobody_waits_for_that_stays_in_a_step_is_ended(void **state)
{
	(void)state;
	restart_with_handshake_limit(1000);
	strcpy(handshake_slow, "a");
	handshake_n_steps = 1;
	handshake_takes_at = 0;
	assert_int_equal(create("a", "agent", false), 0);
	wait_state("a", "failed");
	assert_non_null(strstr(text("reason"), "it is in the step \"step-1\""));
	assert_in_range(handshake_asked, 2, 4);
	handshake_slow[0] = '\0';
}

static void
each_vm_gets_the_defaults_and_its_own_environment(void **state)
{
	struct environment_request q = {0};
	struct json_out out = {0};
	char expected[128];

	(void)state;
	assert_int_equal(env_set(&q.set, "A=1", &why), 0);
	assert_int_equal(env_set(&q.set, "B={id}", &why), 0);
	assert_int_equal(take(tree_environment_change(tree, &q, &out, &why), &out), 0);
	environment_request_done(&q);
	assert_int_equal(create("a", "agent", true), 0);
	/* Defaults are taken as they are. */
	assert_string_equal(last_env, "A=1;B={id};");
	assert_int_equal(branch_env("a", "b", 1, "A={index}-{id}-{{id}}"), 0);
	assert_int_equal(info("b"), 0);
	snprintf(expected, sizeof(expected), "A=0-%s-{id};B={id};", text("id"));
	assert_string_equal(last_env, expected);
	/* Nothing is inherited. */
	assert_int_equal(branch("b", "c", 1, true), 0);
	assert_string_equal(last_env, "A=1;B={id};");

	memset(&out, 0, sizeof(out));
	q.remove = calloc(1, sizeof(*q.remove));
	strcpy(q.remove[0], "A");
	q.n_remove = 1;
	assert_int_equal(take(tree_environment_change(tree, &q, &out, &why), &out), 0);
	memset(&out, 0, sizeof(out));
	assert_int_equal(
		take(tree_environment_change(tree, &q, &out, &why), &out), -ENOENT);
	environment_request_done(&q);
	memset(&out, 0, sizeof(out));
	assert_int_equal(take(tree_environment(tree, &out, &why), &out), 0);
	assert_int_equal(
		json_get(parsed, json_get(parsed, 0, "environment"), "A"), -ENOENT);
	assert_int_equal(create("d", "agent", true), 0);
	assert_string_equal(last_env, "B={id};");
	/* Each by itself fits, together they do not: said before anything is made. */
	char *big = malloc(80000), *more = malloc(60000);

	memset(big, 'x', 79999);
	big[79999] = '\0';
	memcpy(big, "BIG=", 4);
	memset(more, 'x', 59999);
	more[59999] = '\0';
	memcpy(more, "MORE=", 5);
	assert_int_equal(env_set(&q.set, big, &why), 0);
	memset(&out, 0, sizeof(out));
	assert_int_equal(take(tree_environment_change(tree, &q, &out, &why), &out), 0);
	environment_request_done(&q);
	assert_int_equal(branch_env("d", "e", 1, more), -E2BIG);
	assert_int_equal(info("e"), -ENOENT);
	/* As many bytes as may be, and six times as many on their way: the agent takes that. */
	memset(more, '\n', 59999);
	memcpy(more, "MORE=", 5);
	q = (struct environment_request){0};
	q.remove = calloc(1, sizeof(*q.remove));
	strcpy(q.remove[0], "BIG");
	q.n_remove = 1;
	memset(&out, 0, sizeof(out));
	assert_int_equal(take(tree_environment_change(tree, &q, &out, &why), &out), 0);
	environment_request_done(&q);
	assert_int_equal(branch_env("d", "e", 1, more), 0);
	assert_int_equal(info("e"), 0);
	free(big);
	free(more);
}

static void
a_vm_whose_agent_never_answers_is_failed_and_keeps_its_log(void **state)
{
	(void)state;
	assert_int_equal(create("a", "", true), -ETIMEDOUT);
	assert_non_null(strstr(why.msg, "vm \"a\": its agent did not answer"));
	assert_int_equal(info("a"), 0);
	assert_string_equal(text("state"), "failed");
	assert_non_null(strstr(text("reason"), "agent did not answer"));
	assert_int_equal(entries("vms"), 1);
	assert_false(children_left());
}

static void
a_guest_that_makes_progress_is_waited_for_beyond_the_limit(void **state)
{
	static const char *const how[] = {"wakes works", "wakes prints"};

	(void)state;
	/* Less than such a guest needs, and more with the ceiling. */
	config.agent_timeout_ms = 1500;
	stop();
	start();
	for (size_t i = 0; i < 2; i++) {
		uint64_t began = io_now_ns();

		if (create("a", how[i], true) < 0)
			fail_msg("%s: %s", how[i], why.msg);
		assert_true(io_now_ns() - began >
			    (uint64_t)config.agent_timeout_ms * 1000000u);
		assert_string_equal(text("state"), "running");
		assert_int_equal(delete_vm("a", false), 0);
	}
}

static void
a_guest_that_stands_still_is_not_waited_for_beyond_the_limit(void **state)
{
	uint64_t began = io_now_ns();

	(void)state;
	assert_int_equal(create("a", "", true), -ETIMEDOUT);
	assert_true(io_now_ns() - began >= 700000000ull);
	assert_non_null(strstr(why.msg, "no progress"));
	assert_non_null(strstr(why.msg, "its console is empty"));
}

static void
a_guest_that_makes_progress_for_ever_has_a_ceiling(void **state)
{
	uint64_t began = io_now_ns();

	(void)state;
	assert_int_equal(create("a", "works prints", true), -ETIMEDOUT);
	assert_true(io_now_ns() - began >= TREE_AGENT_CEILING * 700000000ull);
	if (!strstr(why.msg, "; its console: [    1.0] a\\x1b unit"))
		fail_msg("%s", why.msg);
}

static char waits_said[2048];

static void
keep_said(void *ctx, const char *sentence)
{
	size_t n = strlen(waits_said);

	(void)ctx;
	snprintf(waits_said + n, sizeof(waits_said) - n, "%s\n", sentence);
}

static void
who_waits_for_a_slow_guest_is_told_its_last_console_line(void **state)
{
	struct create_request q = {.mem_mib = 64,
		.vcpus = 1,
		.wait = true,
		.rootfs = "none",
		.alias = "a",
		.cmdline = "works prints"};
	struct progress p = {.say = keep_said};
	struct json_out out = {0};

	(void)state;
	waits_said[0] = '\0';
	snprintf(q.kernel, sizeof(q.kernel), "%s", kernel);
	assert_int_equal(take(tree_create(tree, &q, &p, &out, &why), &out), -ETIMEDOUT);
	if (!strstr(waits_said, "vm \"a\": its agent does not answer yet, after ") ||
		!strstr(waits_said, " s; its console: [    1.0] a\\x1b unit\n"))
		fail_msg("%s", waits_said);
}

static void
the_same_alias_twice_is_refused(void **state)
{
	(void)state;
	assert_int_equal(create("a", "", false), 0);
	assert_int_equal(create("a", "", false), -EEXIST);
	assert_non_null(strstr(why.msg, "alias \"a\" is taken"));
	assert_int_equal(branch("a", "a", 1, false), -EEXIST);
	assert_int_equal(create("b-1", "", false), 0);
	assert_int_equal(branch("a", "b", 3, false), -EEXIST);
	assert_non_null(strstr(why.msg, "\"b-1\""));
	assert_int_equal(count_vms(), 2);
	assert_int_equal(entries("segments"), 4);
	/* The refusals left no claim behind. */
	assert_int_equal(branch("a", "c", 1, false), 0);
}

static void
names_are_ids_aliases_and_unique_prefixes(void **state)
{
	char id[16], prefix[8];

	(void)state;
	assert_int_equal(create("a", "", false), 0);
	snprintf(id, sizeof(id), "%s", text("id"));
	assert_int_equal(info(id), 0);
	snprintf(prefix, sizeof(prefix), "%.5s", id);
	assert_int_equal(info(prefix), 0);
	assert_string_equal(text("id"), id);
	prefix[3] = '\0';
	assert_int_equal(info(prefix), -ENOENT);
	assert_int_equal(info("nobody"), -ENOENT);
	assert_string_equal(why.msg, "no VM named \"nobody\"; `pando status` lists them");
}

static void
beyond_the_host_is_refused_before_anything_is_made(void **state)
{
	struct create_request q = {.mem_mib = 1024 * 1024, .vcpus = 1, .rootfs = "none"};
	struct json_out out = {0};

	(void)state;
	snprintf(q.kernel, sizeof(q.kernel), "%s", kernel);
	assert_int_equal(take(tree_create(tree, &q, NULL, &out, &why), &out), -EINVAL);
	assert_non_null(strstr(why.msg, "this host has"));
	q.mem_mib = 64;
	q.vcpus = 100000;
	assert_int_equal(take(tree_create(tree, &q, NULL, &out, &why), &out), -EINVAL);
	assert_non_null(strstr(why.msg, "online"));
	assert_nothing_left();
}

static void
a_branch_has_a_chain_cut_where_the_parent_was(void **state)
{
	char parent_id[16], first[4096];
	int chain;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(parent_id, sizeof(parent_id), "%s", text("id"));
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(number("pause_us"), 5);
	assert_int_equal(info("b"), 0);
	assert_string_equal(text("state"), "running");
	assert_string_equal(text("parent"), parent_id);
	assert_int_equal(info("a"), 0);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "children")), 1);

	assert_int_equal(disk("b"), 0);
	chain = json_get(parsed, 0, "chain");
	assert_int_equal(json_size(parsed, chain), 2);
	int64_t records = 0;

	assert_int_equal(
		json_i64(parsed, json_get(parsed, json_at(parsed, chain, 0), "records"),
			&records),
		0);
	assert_int_equal(records, 1);
	json_str(parsed, json_get(parsed, json_at(parsed, chain, 0), "data"), first,
		sizeof(first));
	assert_int_equal(
		json_type(parsed, json_get(parsed, json_at(parsed, chain, 1), "records")),
		JSON_NULL);

	assert_int_equal(disk("a"), 0);
	chain = json_get(parsed, 0, "chain");
	assert_int_equal(json_size(parsed, chain), 2);
	char shared[4096];

	json_str(parsed, json_get(parsed, json_at(parsed, chain, 0), "data"), shared,
		sizeof(shared));
	assert_string_equal(shared, first);

	/* The shared segment lives as long as either of them. */
	assert_int_equal(entries("segments"), 6);
	assert_int_equal(delete_vm("a", true), 0);
	assert_nothing_left();
}

static void
a_segment_goes_with_the_last_vm_that_needs_it(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(branch("b", "c", 1, true), 0);
	/* a: s0 a1; b: s0 b0 b1; c: s0 b0 c0 */
	assert_int_equal(entries("segments"), 10);
	order("b", 'P');
	wait_state("b", "stopped");
	order("c", 'P');
	wait_state("c", "stopped");
	/* Branches that do not live do not stand in the way; they become roots. */
	assert_int_equal(delete_vm("b", false), 0);
	assert_int_equal(entries("segments"), 8); /* b1 went */
	assert_int_equal(info("c"), 0);
	assert_string_equal(text("parent"), "");
	assert_int_equal(delete_vm("a", false), 0);
	assert_int_equal(entries("segments"), 6); /* a1 went */
	assert_int_equal(delete_vm("c", false), 0);
	assert_nothing_left();
}

static void
many_branches_are_of_one_instant_and_leave_no_parked_process(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(branch("a", "b", 12, true), 0);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "vms")), 12);
	assert_int_equal(count_vms(), 13);
	assert_int_equal(entries("vms"), 13);
	/* a: s0 a1, and one each */
	assert_int_equal(entries("segments"), 2 * (2 + 12));
	assert_int_equal(disk("b-11"), 0);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "chain")), 2);
	assert_int_equal(info("b-0"), 0);
	assert_string_equal(text("state"), "running");
	assert_int_equal(delete_vm("a", true), 0);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "deleted")), 13);
	assert_nothing_left();
}

static void
a_branch_that_fails_leaves_the_parent_as_it_was(void **state)
{
	static const struct {
		const char *parent_does, *alias;
		unsigned count;
		int code;
		const char *sentence;
	} cases[] = {
		{"fork=refuse", "x", 1, -EAGAIN, "no more processes"},
		{"fork=refuse", "x", 4, -EAGAIN, "no more processes"},
		{"fork=silent", "x", 1, -ETIMEDOUT, "did not answer"},
		{"", "stillborn", 1, -ENOMEM, "no memory for a machine"},
		{"", "stillborn", 3, -ENOMEM, "no memory for a machine"},
		{"", "vanish", 1, -ESRCH, "ended"},
		{"", "vanish", 3, -ESRCH, "ended"},
		{"", "mute", 1, -ETIMEDOUT, "did not start"},
		{"", "mute", 3, -ETIMEDOUT, "did not start"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		unsigned segments;

		assert_int_equal(create("a", cases[i].parent_does, false), 0);
		assert_int_equal(branch("a", cases[i].alias, cases[i].count, false),
			cases[i].code);
		if (!strstr(why.msg, cases[i].sentence) ||
			!strstr(why.msg, "branching vm \"a\""))
			fail_msg("case %zu: %s", i, why.msg);
		assert_int_equal(count_vms(), 1);
		assert_int_equal(entries("vms"), 1);
		/* After a fork that came about, or may have, the parent's second segment
		 * stays. */
		segments = entries("segments");
		assert_int_equal(segments,
			strcmp(cases[i].parent_does, "fork=refuse") == 0 ? 2 : 4);
		assert_int_equal(info("a"), 0);
		assert_string_equal(text("state"), "starting");
		assert_int_equal(delete_vm("a", false), 0);
		assert_nothing_left();
	}
}

static void
a_parent_that_dies_in_a_fork_is_failed_and_leaves_no_child(void **state)
{
	(void)state;
	assert_int_equal(create("a", "fork=exit", false), 0);
	assert_int_equal(branch("a", "b", 2, false), -ESRCH);
	wait_state("a", "failed");
	assert_string_equal(
		text("reason"), "the VMM exited with status 5; its vmm.log may say why");
	assert_int_equal(count_vms(), 1);
	assert_int_equal(branch("a", "b", 1, false), -EBUSY);
	assert_non_null(strstr(why.msg, "is failed"));
}

static void
a_parent_that_answers_a_fork_with_nonsense_is_ended(void **state)
{
	(void)state;
	assert_int_equal(create("a", "fork=nonsense", false), 0);
	assert_int_equal(branch("a", "b", 1, false), -EPROTO);
	wait_state("a", "failed");
	assert_int_equal(count_vms(), 1);
}

static void
branches_whose_agents_do_not_answer_are_all_removed(void **state)
{
	(void)state;
	assert_int_equal(create("a", "", false), 0);
	assert_int_equal(branch("a", "b", 3, true), -ETIMEDOUT);
	assert_int_equal(count_vms(), 1);
	assert_int_equal(entries("vms"), 1);
	assert_int_equal(entries("segments"), 4);
	assert_int_equal(delete_vm("a", false), 0);
	assert_nothing_left();
}

static void
how_a_vm_ended_is_told_in_a_sentence(void **state)
{
	static const struct {
		char what;
		const char *state, *reason;
	} cases[] = {
		{'P', "stopped", "the guest powered off"},
		{'N', "failed", "the guest's kernel panicked: Kernel \\x1b[31m panic"},
		{'X', "failed", "the VMM exited with status 9; its vmm.log may say why"},
		{'G', "failed",
			"ended by pandod: its VMM broke the control protocol: the VMM sent a message of unknown type 99"},
		{'F', "failed",
			"ended by pandod: its VMM broke the control protocol: the VMM floods its control socket"},
		{'C', "failed", "ended by pandod: its VMM closed the control socket"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(create("a", "", false), 0);
		order("a", cases[i].what);
		wait_state("a", cases[i].state);
		assert_string_equal(text("reason"), cases[i].reason);
		assert_int_equal(
			json_type(parsed, json_get(parsed, 0, "pid")), JSON_NULL);
		assert_int_equal(delete_vm("a", false), 0);
		assert_nothing_left();
	}
	assert_int_equal(create("a", "", false), 0);
	kill((pid_t)number("pid"), SIGKILL);
	wait_state("a", "failed");
	assert_string_equal(text("reason"), "the VMM was killed by signal 9 (KILL)");
}

static void
the_end_of_a_parent_is_not_the_end_of_its_branch(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(info("a"), 0);
	kill((pid_t)number("pid"), SIGKILL);
	wait_state("a", "failed");
	assert_int_equal(info("b"), 0);
	assert_string_equal(text("state"), "running");
	assert_int_equal(branch("b", "c", 1, true), 0);
	/* b is nobody's child but ours now, so its end can be told, too. */
	assert_int_equal(info("b"), 0);
	kill((pid_t)number("pid"), SIGTERM);
	wait_state("b", "failed");
	assert_string_equal(text("reason"), "the VMM was killed by signal 15 (TERM)");
	assert_int_equal(delete_vm("a", true), 0);
	assert_nothing_left();
}

static void
living_branches_stand_in_the_way_of_a_delete(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(branch("a", "b", 2, true), 0);
	assert_int_equal(delete_vm("a", false), -ENOTEMPTY);
	assert_non_null(strstr(why.msg, "2 living branches (b-0, b-1)"));
	assert_int_equal(count_vms(), 3);
}

static void *
slow_create(void *arg)
{
	*(int *)arg = create("slow", "boot=silent", false);
	return NULL;
}

static void
a_second_operation_on_a_vm_is_busy(void **state)
{
	pthread_t thread;
	int result = 0, r = -ENOENT;
	struct json_out out = {0};
	struct err e = {0};

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, slow_create, &result), 0);
	for (int i = 0; i < 30000 && r == -ENOENT; i++) {
		r = tree_delete(tree, "slow", false, false, NULL, &out, &e);
		json_out_done(&out);
		out = (struct json_out){0};
		poll(NULL, 0, 5);
	}
	pthread_join(thread, NULL);
	assert_int_equal(r, -EBUSY);
	assert_string_equal(
		e.msg, "vm \"slow\" is being made: try again when that is done");
	assert_int_equal(result, -ETIMEDOUT);
	assert_nothing_left();
}

static void
pause_and_resume_keep_what_was_known(void **state)
{
	struct json_out out = {0};

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(take(tree_pause(tree, "a", NULL, &out, &why), &out), 0);
	assert_string_equal(text("state"), "paused");
	/* Its branch runs, it stays as it is. */
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(info("b"), 0);
	assert_string_equal(text("state"), "running");
	assert_int_equal(info("a"), 0);
	assert_string_equal(text("state"), "paused");
	stop();
	start();
	assert_int_equal(info("a"), 0);
	assert_string_equal(text("state"), "paused");
	assert_int_equal(take(tree_resume(tree, "a", NULL, &out, &why), &out), 0);
	assert_string_equal(text("state"), "running");
	order("a", 'P');
	wait_state("a", "stopped");
	assert_int_equal(take(tree_pause(tree, "a", NULL, &out, &why), &out), -EBUSY);
}

static void
aliases_can_be_changed_and_taken_away(void **state)
{
	struct alias_request q = {.alias = "new"};
	struct json_out out = {0};

	(void)state;
	assert_int_equal(create("a", "", false), 0);
	assert_int_equal(create("b", "", false), 0);
	assert_int_equal(take(tree_alias(tree, "a", &q, &out, &why), &out), 0);
	assert_string_equal(text("alias"), "new");
	assert_int_equal(info("a"), -ENOENT);
	assert_int_equal(take(tree_alias(tree, "b", &q, &out, &why), &out), -EEXIST);
	q.alias[0] = '\0';
	assert_int_equal(take(tree_alias(tree, "new", &q, &out, &why), &out), 0);
	assert_string_equal(text("alias"), "");
	stop();
	start();
	assert_int_equal(info("new"), -ENOENT);
	assert_int_equal(info("b"), 0);
}

static void
a_new_pandod_adopts_what_runs_and_buries_what_does_not(void **state)
{
	char generation[64];
	pid_t dead;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(generation, sizeof(generation), "%s", text("generation"));
	assert_int_equal(branch("a", "b", 2, true), 0);
	/* The parent of a branch has a new generation, too. */
	assert_int_equal(info("a"), 0);
	assert_string_not_equal(text("generation"), generation);
	snprintf(generation, sizeof(generation), "%s", text("generation"));
	assert_int_equal(info("b-1"), 0);
	dead = (pid_t)number("pid");
	stop();
	kill(dead, SIGKILL);
	start();
	assert_int_equal(count_vms(), 3);
	assert_int_equal(info("a"), 0);
	assert_string_equal(text("state"), "running");
	assert_string_equal(text("generation"), generation);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "children")), 2);
	assert_int_equal(info("b-1"), 0);
	assert_string_equal(text("state"), "failed");
	assert_string_equal(text("reason"), "its VMM ended while no pandod was running");
	/* What was adopted can be branched, watched and deleted like any other. */
	assert_int_equal(branch("b-0", "c", 2, true), 0);
	assert_int_equal(info("b-0"), 0);
	kill((pid_t)number("pid"), SIGKILL);
	wait_state("b-0", "failed");
	assert_int_equal(delete_vm("a", true), 0);
	assert_nothing_left();
}

static void
a_branch_after_one_cut_short_has_a_chain_that_can_be_read(void **state)
{
	char id[16], path[128], sql[300];
	sqlite3 *db;
	int chain, link;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(id, sizeof(id), "%s", text("id"));
	snprintf(path, sizeof(path), "%s/state.db", home);
	stop();
	/* As a pandod killed before its VMM_FORK leaves it. */
	snprintf(sql, sizeof(sql),
		"INSERT INTO segments VALUES ('%s.1');"
		"INSERT INTO chain (vm, pos, segment) VALUES ('%s', 1, '%s.1');"
		"UPDATE vms SET next_segment = 2",
		id, id, id);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	snprintf(path, sizeof(path), "%s/segments/%s.1.data", home, id);
	assert_int_equal(io_write_file_atomic(path, "", 0, 0600, NULL), 0);
	snprintf(path, sizeof(path), "%s/segments/%s.1.index", home, id);
	assert_int_equal(io_write_file_atomic(path, "", 0, 0600, NULL), 0);
	start();
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(disk("b"), 0);
	chain = json_get(parsed, 0, "chain");
	/* The one that was never written is gone; the one before it is counted. */
	assert_int_equal(json_size(parsed, chain), 2);
	for (int i = 0; i < 2; i++) {
		link = json_at(parsed, chain, i);
		assert_int_equal(json_type(parsed, json_get(parsed, link, "records")),
			i ? JSON_NULL : JSON_NUMBER);
	}
}

static int start_vm(const char *vm, bool wait);

static int
chain_length(const char *vm)
{
	assert_int_equal(disk(vm), 0);
	return json_size(parsed, json_get(parsed, 0, "chain"));
}

static void
fork_points(const char *vm, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(branch(vm, "gone", 1, false), 0);
		assert_int_equal(delete_vm("gone", false), 0);
	}
}

static void
wait_chain(const char *vm, int at_most)
{
	for (int i = 0; chain_length(vm) > at_most; i++) {
		if (i == 6000)
			fail_msg("%s has %d segments, not %d", vm, chain_length(vm), at_most);
		poll(NULL, 0, 10);
	}
}

/* Every file is some chain's, in the end. */
static void
wait_segments(unsigned pairs)
{
	for (int i = 0; entries("segments") != 2 * pairs; i++) {
		if (i == 6000)
			fail_msg("there are %u files of segments, not %u", entries("segments"),
				2 * pairs);
		poll(NULL, 0, 10);
	}
}

static void
old_segments_are_merged_and_relatives_take_them(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	fork_points("a", 10);
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(branch("b", "c", 1, true), 0);
	/* One that does not live has no VMM to be told. */
	assert_int_equal(info("c"), 0);
	kill((pid_t)number("pid"), SIGKILL);
	wait_state("c", "failed");
	assert_int_equal(chain_length("b"), 13);
	fork_points("a", 5);
	/* Sixteen are one: of these the eleven that b shares are none of its business. */
	wait_chain("a", 2);
	fork_points("b", 30);
	/* How many there are at last hangs on when each merge began: the newest sixteen may be there, a few
	 * old ones and the own one; and the eleven that b inherited. */
	wait_chain("b", 31);
	fork_points("a", 40);
	wait_chain("a", 20);
	/* A new pandod finds it as it was, and goes on. */
	stop();
	start();
	wait_state("a", "running");
	fork_points("a", 20);
	wait_chain("a", 20);
	assert_int_equal(delete_vm("b", true), 0);
	wait_segments((unsigned)chain_length("a"));
	assert_int_equal(delete_vm("a", true), 0);
	assert_nothing_left();
}

static void
fork_points_of_an_idle_vm_leave_nothing(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent idle", true), 0);
	fork_points("a", 30);
	assert_int_equal(chain_length("a"), 1);
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(chain_length("b"), 1);
	wait_segments(2);
	assert_int_equal(delete_vm("a", true), 0);
	assert_nothing_left();
}

static void
relatives_take_a_run_that_all_have(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	fork_points("a", 14);
	/* Fifteen are sealed when b is made, the sixteenth with c. */
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(branch("b", "d", 1, true), 0);
	assert_int_equal(branch("a", "c", 1, true), 0);
	wait_chain("a", 2);
	wait_chain("c", 2);
	assert_int_equal(chain_length("b"), 17);
	/* b's inherited ones are a zone, and with d it has only those in common. */
	wait_segments(2 + 1 + 17 + 1);
	assert_int_equal(delete_vm("a", true), 0);
	assert_nothing_left();
}

static void
a_vmm_that_does_not_take_a_merge_keeps_its_chain(void **state)
{
	static const char *const words[] = {"merge=refuse", "merge=old", "merge=silent"};

	(void)state;
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		char cmdline[64];

		snprintf(cmdline, sizeof(cmdline), "agent %s", words[i]);
		assert_int_equal(create("a", cmdline, true), 0);
		fork_points("a", 20);
		poll(NULL, 0, 300);
		assert_int_equal(chain_length("a"), 21);
		/* It is branched as before; a branch knows of what was begun. */
		assert_int_equal(branch("a", "b", 2, true), 0);
		stop();
		start();
		wait_state("a", "running");
		fork_points("a", 2);
		assert_int_equal(chain_length("a"), 24);
		assert_int_equal(delete_vm("a", true), 0);
		wait_segments(0);
		assert_nothing_left();
	}
}

static void
a_vmm_that_dies_at_a_merge_takes_nothing_with_it(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent merge=exit", true), 0);
	for (unsigned i = 0; i < 16 && branch("a", "gone", 1, false) == 0; i++)
		delete_vm("gone", false);
	wait_state("a", "failed");
	/* The run's place is taken all the same, or is not: its disk can be read. */
	assert_int_equal(start_vm("a", true), 0);
	assert_int_equal(chain_length("a"), 1);
	assert_int_equal(delete_vm("a", true), 0);
	wait_segments(0);
	assert_nothing_left();
}

/* A chain of n more segments, each with a record, as from many forks. big: the first has 2048
 * blocks of data, and the others 75 each, one behind the other, over these. */
static void
lengthen(const char *id, unsigned n, bool big)
{
	char path[128], sql[300];
	sqlite3 *db;

	snprintf(path, sizeof(path), "%s/state.db", home);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "BEGIN", NULL, NULL, NULL), SQLITE_OK);
	for (unsigned i = 1; i <= n; i++) {
		snprintf(sql, sizeof(sql),
			"INSERT INTO segments VALUES ('%s.%u');"
			"INSERT INTO chain (vm, pos, segment, records) VALUES ('%s', %u, '%s.%u', 1);"
			"UPDATE vms SET next_segment = %u",
			id, i, id, i, id, i, i + 1);
		assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
		const uint32_t blocks = !big ? 0 : i == 1 ? 2048 : 75;
		const struct segment_record r =
			big ? segment_record_make(
				      SEGMENT_DATA, i == 1 ? 0 : (i - 2) * 75, 0, blocks)
			    : segment_record_make(SEGMENT_ZERO, 1, 0, 1);

		snprintf(path, sizeof(path), "%s/segments/%s.%u.data", home, id, i);
		close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
		assert_int_equal(truncate(path, (off_t)blocks * SEGMENT_BLOCK), 0);
		snprintf(path, sizeof(path), "%s/segments/%s.%u.index", home, id, i);

		cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

		assert_int_equal(io_pwrite_full(fd, &r, sizeof(r), 0), 0);
	}
	/* What the VM writes: as if it were one of them, and heavy. */
	if (big)
		assert_int_equal(sqlite3_exec(db,
					 "UPDATE chain SET records = 1, weight = 1000000 WHERE pos = 0",
					 NULL, NULL, NULL),
			SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

/* How many blocks of data the files of a chain have. */
static uint64_t
data_blocks(void)
{
	char folder[128], path[400];
	cleanup_closedir DIR *dir = NULL;
	uint64_t blocks = 0;
	struct dirent *d;
	struct stat st;

	snprintf(folder, sizeof(folder), "%s/segments", home);
	dir = opendir(folder);
	while (dir && (d = readdir(dir))) {
		snprintf(path, sizeof(path), "%s/%s", folder, d->d_name);
		if (strstr(d->d_name, ".data") && stat(path, &st) == 0)
			blocks += (uint64_t)st.st_size / SEGMENT_BLOCK;
	}
	return blocks;
}

static void
what_nobody_reads_of_old_segments_is_given_back(void **state)
{
	char id[16];

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(id, sizeof(id), "%s", text("id"));
	stop();
	lengthen(id, 21, true);
	assert_int_equal(data_blocks(), 2048 + 20 * 75);
	start();
	wait_state("a", "running");
	/* Nineteen are sealed behind the large one, of which 623 blocks are left: it is written
	 * again. The first of all, of which nothing is read, is dropped. */
	for (int i = 0; data_blocks() != 623 + 20 * 75 || chain_length("a") != 6; i++) {
		if (i == 6000)
			fail_msg("there are %llu blocks of data",
				(unsigned long long)data_blocks());
		poll(NULL, 0, 10);
	}
	assert_int_equal(delete_vm("a", true), 0);
	wait_segments(0);
	assert_nothing_left();
}

/* SIGXFSZ is ignored, as pandod does. */
static void
a_full_disk_while_merging_is_tried_again(void **state)
{
	struct rlimit was, small;
	char id[16];

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(id, sizeof(id), "%s", text("id"));
	stop();
	lengthen(id, 21, true);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	/* The database has room, a merged segment of 16 times 75 blocks has not. */
	small = (struct rlimit){3u << 20, was.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	start();
	wait_state("a", "running");
	fork_points("a", 2);
	poll(NULL, 0, 500);
	assert_int_equal(chain_length("a"), 24);
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
	wait_chain("a", 12);
	assert_int_equal(delete_vm("a", true), 0);
	wait_segments(0);
	assert_nothing_left();
}

static void
a_branch_waits_until_a_chain_that_is_too_long_is_merged(void **state)
{
	char id[16];

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(id, sizeof(id), "%s", text("id"));
	stop();
	lengthen(id, 1200, false);
	start();
	wait_state("a", "running");
	fork_points("a", 3);
	assert_true(chain_length("a") < 960);
	wait_chain("a", 60);
	assert_int_equal(delete_vm("a", true), 0);
	/* Or is told why it cannot be. */
	assert_int_equal(create("b", "agent merge=old", true), 0);
	snprintf(id, sizeof(id), "%s", text("id"));
	stop();
	lengthen(id, 1200, false);
	start();
	wait_state("b", "running");
	/* How long it is, the first one finds. */
	assert_int_equal(branch("b", "c", 1, true), 0);
	assert_int_equal(branch("b", "d", 1, true), -EMFILE);
	assert_non_null(strstr(why.msg, "segments, and they could not be merged"));
	assert_non_null(strstr(why.msg, "older version"));
	assert_int_equal(delete_vm("b", true), 0);
	wait_segments(0);
	assert_nothing_left();
}

static int
stop_vm(const char *vm, bool force, unsigned timeout_ms)
{
	struct stop_request q = {.force = force, .timeout_ms = timeout_ms};
	struct json_out out = {0};

	why = (struct err){0};
	return take(tree_stop_vm(tree, vm, &q, NULL, &out, &why), &out);
}

static int
start_vm(const char *vm, bool wait)
{
	struct start_request q = {.wait = wait};
	struct json_out out = {0};

	why = (struct err){0};
	return take(tree_start_vm(tree, vm, &q, NULL, &out, &why), &out);
}

static int
resize_vm(const char *vm, uint64_t disk_mib)
{
	struct resize_request q = {.disk_mib = disk_mib};
	struct json_out out = {0};

	why = (struct err){0};
	return take(tree_resize(tree, vm, &q, NULL, &out, &why), &out);
}

static int
limit_vm(const char *vm, uint64_t bps, uint64_t iops)
{
	struct limit_request q = {{bps, iops}};
	struct json_out out = {0};

	why = (struct err){0};
	return take(tree_limit(tree, vm, &q, NULL, &out, &why), &out);
}

/* The VMM was told so: the stand-in says it where its disk's bytes stand. */
static void
assert_limits(const char *vm, uint64_t bps, uint64_t iops)
{
	uint64_t told_bps = 1, told_iops = 1, row_bps = 1, row_iops = 1;
	int stats;

	assert_int_equal(info(vm), 0);
	stats = json_get(parsed, 0, "stats");
	json_u64(parsed, json_get(parsed, 0, "disk_bps"), &row_bps);
	json_u64(parsed, json_get(parsed, 0, "disk_iops"), &row_iops);
	json_u64(parsed, json_get(parsed, stats, "disk_read_bytes"), &told_bps);
	json_u64(parsed, json_get(parsed, stats, "disk_write_bytes"), &told_iops);
	assert_int_equal(row_bps, bps);
	assert_int_equal(row_iops, iops);
	assert_int_equal(told_bps, bps);
	assert_int_equal(told_iops, iops);
}

static int
would_delete(const char *vm, bool recursive)
{
	struct json_out out = {0};

	why = (struct err){0};
	return take(tree_delete(tree, vm, recursive, true, NULL, &out, &why), &out);
}

static void
says(const char *part)
{
	if (!strstr(why.msg, part))
		fail_msg("\"%s\" does not say \"%s\"", why.msg, part);
}

static void
limits_of_a_disk_hold_at_once_in_branches_and_after_a_start(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent button=off", true), 0);
	assert_limits("a", 0, 0);
	assert_int_equal(limit_vm("a", 1 << 20, LIMIT_AS_IT_IS), 0);
	assert_limits("a", 1 << 20, 0);
	assert_int_equal(limit_vm("a", LIMIT_AS_IT_IS, 50), 0);
	assert_limits("a", 1 << 20, 50);
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_limits("b", 1 << 20, 50);
	assert_int_equal(limit_vm("a", 0, LIMIT_AS_IT_IS), 0);
	assert_limits("a", 0, 50);
	assert_limits("b", 1 << 20, 50);
	/* Another pandod, and another process. */
	stop();
	start();
	assert_limits("a", 0, 50);
	assert_limits("b", 1 << 20, 50);
	assert_int_equal(stop_vm("a", false, 2000), 0);
	assert_int_equal(limit_vm("a", 1 << 20, 60), 0);
	assert_int_equal(start_vm("a", true), 0);
	assert_limits("a", 1 << 20, 60);
	/* A VMM that was started by an older pandod. */
	assert_int_equal(create("old", "limits=old", false), 0);
	assert_int_equal(limit_vm("old", 1 << 20, 0), -ENOTSUP);
	says("vm \"old\"");
	says("older");
}

static void
a_vm_is_stopped_by_its_button_its_agent_or_force(void **state)
{
	(void)state;
	assert_int_equal(create("button", "button=off", false), 0);
	assert_int_equal(stop_vm("button", false, 2000), 0);
	assert_string_equal(text("state"), "stopped");
	assert_string_equal(text("reason"), "the guest powered off");
	assert_int_equal(create("agent", "agent", true), 0);
	assert_int_equal(stop_vm("agent", false, 900), 0);
	assert_string_equal(text("state"), "stopped");
	assert_int_equal(create("deaf", "", false), 0);
	assert_int_equal(stop_vm("deaf", false, 100), -ETIMEDOUT);
	says("vm \"deaf\" did not power off within 1 s");
	says("--force");
	assert_int_equal(info("deaf"), 0);
	assert_string_equal(text("state"), "starting");
	assert_int_equal(stop_vm("deaf", true, 0), 0);
	assert_string_equal(text("state"), "stopped");
	assert_string_equal(text("reason"), "stopped by force");
	/* Once more is no error. */
	assert_int_equal(stop_vm("deaf", false, 100), 0);
	assert_int_equal(create("reboots", "button=reset", false), 0);
	/* One that reboots when it is to stop is stopped, and not booted again. */
	assert_int_equal(stop_vm("reboots", false, 2000), 0);
	assert_string_equal(text("state"), "stopped");
	assert_non_null(strstr(text("reason"), "while it was being stopped"));
	assert_int_equal(number("reboots"), 0);
	assert_int_equal(create("panics", "", false), 0);
	order("panics", 'N');
	wait_state("panics", "failed");
	assert_int_equal(stop_vm("panics", false, 100), -EBUSY);
	says("there is nothing to stop");
	assert_int_equal(stop_vm("ghost", false, 100), -ENOENT);
	assert_false(children_left());
}

static void
a_paused_vm_is_stopped_only_by_force(void **state)
{
	struct json_out out = {0};

	(void)state;
	assert_int_equal(create("a", "button=off", false), 0);
	assert_int_equal(take(tree_pause(tree, "a", NULL, &out, &why), &out), 0);
	assert_int_equal(stop_vm("a", false, 100), -EBUSY);
	says("resume");
	assert_int_equal(stop_vm("a", true, 0), 0);
	assert_string_equal(text("state"), "stopped");
}

static void *
slow_stop(void *arg)
{
	struct stop_request q = {.timeout_ms = 20000};
	/* Who looks whether it has begun has the VM for moments. */
	const struct progress p = {.busy_timeout_ms = 20000};
	struct json_out out = {0};

	*(int *)arg = tree_stop_vm(tree, "a", &q, &p, &out, NULL);
	json_out_done(&out);
	return NULL;
}

static void
force_cuts_a_stop_short_and_nothing_else_does(void **state)
{
	pthread_t thread;
	int result = -1, r = 0;

	(void)state;
	assert_int_equal(create("a", "", false), 0);
	assert_int_equal(pthread_create(&thread, NULL, slow_stop, &result), 0);
	for (int i = 0; i < 30000 && r != -EBUSY; i++) {
		r = would_delete("a", false);
		poll(NULL, 0, 5);
	}
	assert_int_equal(r, -EBUSY);
	says("vm \"a\" is being stopped");
	assert_int_equal(start_vm("a", false), -EBUSY);
	assert_int_equal(resize_vm("a", 4096), -EBUSY);
	assert_int_equal(branch("a", "", 1, false), -EBUSY);
	assert_int_equal(stop_vm("a", false, 100), -EBUSY);
	assert_int_equal(stop_vm("a", true, 0), 0);
	pthread_join(thread, NULL);
	assert_int_equal(result, 0);
	assert_int_equal(info("a"), 0);
	assert_string_equal(text("state"), "stopped");
}

static void *
slow_branch(void *arg)
{
	struct branch_request q = {.count = 1};
	const struct progress p = {.busy_timeout_ms = 20000}; /* as for slow_stop() */
	struct json_out out = {0};

	*(int *)arg = tree_branch(tree, "a", &q, &p, &out, NULL);
	json_out_done(&out);
	return NULL;
}

static int looking; /* until it is 0 */

static void *
look_main(void *ret_looks)
{
	while (__atomic_load_n(&looking, __ATOMIC_SEQ_CST)) {
		struct json_out out = {0};

		if (tree_list(tree, NULL, true, &out, NULL) == 0)
			++*(unsigned *)ret_looks;
		json_out_done(&out);
	}
	return NULL;
}

/* With SAN=thread, a look at a branch that is written without the lock is an error. */
static void
branches_that_are_being_made_may_be_looked_at(void **state)
{
	unsigned looks = 0;
	pthread_t thread;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	looking = 1;
	assert_int_equal(pthread_create(&thread, NULL, look_main, &looks), 0);
	for (int i = 0; i < 10; i++)
		assert_int_equal(branch("a", "", i % 3 + 1, false), 0);
	__atomic_store_n(&looking, 0, __ATOMIC_SEQ_CST);
	pthread_join(thread, NULL);
	assert_true(looks > 0);
	assert_int_equal(delete_vm("a", true), 0);
	assert_nothing_left();
}

static void
nothing_else_is_done_to_a_vm_that_is_being_branched(void **state)
{
	struct json_out out = {0};
	pthread_t thread;
	int result = 0, r = 0;

	(void)state;
	assert_int_equal(create("a", "fork=silent", false), 0);
	assert_int_equal(pthread_create(&thread, NULL, slow_branch, &result), 0);
	for (int i = 0; i < 30000 && r != -EBUSY; i++) {
		r = would_delete("a", true);
		poll(NULL, 0, 2);
	}
	assert_int_equal(r, -EBUSY);
	says("vm \"a\" is being branched: try again when that is done");
	assert_int_equal(delete_vm("a", false), -EBUSY);
	assert_int_equal(delete_vm("a", true), -EBUSY);
	assert_int_equal(branch("a", "b", 2, false), -EBUSY);
	assert_int_equal(stop_vm("a", true, 0), -EBUSY);
	assert_int_equal(start_vm("a", false), -EBUSY);
	assert_int_equal(resize_vm("a", 4096), -EBUSY);
	assert_int_equal(take(tree_pause(tree, "a", NULL, &out, &why), &out), -EBUSY);
	says("is being branched");
	pthread_join(thread, NULL);
	assert_int_equal(result, -ETIMEDOUT);
	assert_int_equal(count_vms(), 1);
}

static void
a_stopped_vm_starts_again_on_a_base_of_its_own(void **state)
{
	char id[16], generation[40];

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(id, sizeof(id), "%s", text("id"));
	snprintf(generation, sizeof(generation), "%s", text("generation"));
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(stop_vm("a", true, 0), 0);
	assert_int_equal(start_vm("a", true), 0);
	assert_string_equal(text("state"), "running");
	assert_string_equal(text("id"), id);
	assert_string_equal(text("alias"), "a");
	assert_string_not_equal(text("generation"), generation);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "children")), 1);
	assert_int_equal(disk("a"), 0);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "chain")), 1);
	assert_non_null(strstr(text("base"), "/bases/"));
	/* The branch has what it had, the shared segment too. */
	assert_int_equal(disk("b"), 0);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "chain")), 2);
	assert_string_equal(text("base"), "");
	assert_int_equal(entries("segments"), 6);
	assert_int_equal(entries("bases"), 1);
	/* A branch on the new base keeps it when its parent gets another, and goes. */
	assert_int_equal(branch("a", "c", 1, true), 0);
	assert_int_equal(stop_vm("a", true, 0), 0);
	assert_int_equal(start_vm("a", true), 0);
	assert_int_equal(entries("bases"), 2);
	assert_int_equal(delete_vm("b", false), 0);
	assert_int_equal(stop_vm("c", true, 0), 0);
	assert_int_equal(delete_vm("a", false), 0);
	assert_int_equal(entries("bases"), 1);
	assert_int_equal(start_vm("c", true), 0);
	stop();
	start();
	assert_int_equal(entries("bases"), 1);
	assert_int_equal(info("c"), 0);
	assert_string_equal(text("state"), "running");
	assert_int_equal(start_vm("c", true), 0); /* it runs: nothing to do */
	assert_int_equal(delete_vm("c", false), 0);
	assert_int_equal(entries("bases"), 0);
	assert_nothing_left();
}

/* Another process than `pid` runs it. */
static void
wait_next_life(const char *vm, int64_t pid)
{
	for (int i = 0; i < 6000; i++) {
		int tok;

		assert_int_equal(info(vm), 0);
		tok = json_get(parsed, 0, "pid");
		if (json_type(parsed, tok) != JSON_NULL && number("pid") != pid &&
			strcmp(text("state"), "running") == 0)
			return;
		poll(NULL, 0, 10);
	}
	fail_msg("%s is %s (%s)", vm, text("state"), text("reason"));
}

static void
a_guest_that_reboots_is_booted_again_unless_it_does_so_for_ever(void **state)
{
	int64_t pid;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(branch("a", "b", 1, true), 0);
	for (int i = 1; i <= 5; i++) {
		assert_int_equal(info("a"), 0);
		assert_int_equal(number("reboots"), i - 1);
		pid = number("pid");
		order("a", 'R');
		wait_next_life("a", pid);
		assert_int_equal(number("reboots"), i);
		/* It is the same VM, and its branch is still its branch. */
		assert_int_equal(json_size(parsed, json_get(parsed, 0, "children")), 1);
	}
	order("a", 'R');
	wait_state("a", "failed");
	assert_non_null(strstr(text("reason"), "rebooted more than 5 times"));
	assert_int_equal(start_vm("a", true), 0);
	assert_string_equal(text("state"), "running");
	/* The others' reboots are their own. */
	assert_int_equal(info("b"), 0);
	pid = number("pid");
	order("b", 'R');
	wait_next_life("b", pid);
	assert_int_equal(delete_vm("a", true), 0);
	assert_nothing_left();
}

static unsigned
n_reboot_threads(void)
{
	cleanup_closedir DIR *dir = opendir("/proc/self/task");
	char path[64], name[16];
	struct dirent *d;
	unsigned n = 0;

	assert_non_null(dir);
	while ((d = readdir(dir))) {
		cleanup_close int fd = -1;

		snprintf(path, sizeof(path), "/proc/self/task/%.20s/comm", d->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n += fd >= 0 && io_read(fd, name, sizeof(name)) == 7 &&
		     memcmp(name, "reboot\n", 7) == 0;
	}
	return n;
}

static void
guests_that_all_reboot_are_booted_by_few_threads(void **state)
{
	enum { N = 32 };
	int64_t pid[N];
	char name[16];
	unsigned most = 0, n;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(branch("a", "b", N, true), 0);
	for (int i = 0; i < N; i++) {
		snprintf(name, sizeof(name), "b-%d", i);
		assert_int_equal(info(name), 0);
		pid[i] = number("pid");
	}
	for (int i = 0; i < N; i++) {
		snprintf(name, sizeof(name), "b-%d", i);
		order(name, 'R');
		n = n_reboot_threads();
		most = n > most ? n : most;
	}
	for (int i = 0; i < 400; i++) {
		n = n_reboot_threads();
		most = n > most ? n : most;
		poll(NULL, 0, 1);
	}
	for (int i = 0; i < N; i++) {
		snprintf(name, sizeof(name), "b-%d", i);
		wait_next_life(name, pid[i]);
	}
	assert_in_range(most, 1, 4);
	assert_int_equal(delete_vm("a", true), 0);
	assert_nothing_left();
}

static void
a_reboot_that_cannot_be_carried_out_fails_and_says_why(void **state)
{
	char kept[sizeof(config.vmm_path)];

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	memcpy(kept, config.vmm_path, sizeof(kept));
	/* The tree has a copy of its own. */
	snprintf(config.vmm_path, sizeof(config.vmm_path), "/nonexistent");
	stop();
	start();
	memcpy(config.vmm_path, kept, sizeof(kept));
	order("a", 'R');
	wait_state("a", "failed");
	assert_non_null(strstr(text("reason"), "could not be booted again"));
	assert_non_null(strstr(text("reason"), "/nonexistent"));
	stop();
	start();
	assert_int_equal(start_vm("a", true), 0);
	assert_string_equal(text("state"), "running");
}

static void
a_reboot_that_a_pandod_was_killed_in_is_finished_by_the_next(void **state)
{
	static const char *const points[] = {"start.part", "start.flattened",
		"start.entered", "start.spawned", "start.booted", "start.started",
		"start.made"};

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		int64_t before;
		int status;
		pid_t pid;

		assert_int_equal(info("a"), 0);
		before = number("pid");
		stop();
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) { /* a pandod that dies at that point */
			alarm(30);
			fault_arm(points[i]);
			start();
			order("a", 'R');
			for (;;)
				pause();
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), SIGKILL);
		start();
		wait_next_life("a", before);
		assert_true(
			json_type(parsed, json_get(parsed, 0, "reason")) == JSON_NULL);
		assert_int_equal(entries("bases"), 1);
		assert_int_equal(entries("segments"), 2);
	}
	assert_int_equal(delete_vm("a", false), 0);
	assert_nothing_left();
}

static void
a_vm_that_cannot_start_is_what_it_was(void **state)
{
	char kept[sizeof(config.vmm_path)];
	struct json_out out = {0};

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	order("a", 'N');
	wait_state("a", "failed");
	memcpy(kept, config.vmm_path, sizeof(kept));
	snprintf(config.vmm_path, sizeof(config.vmm_path), "/nonexistent");
	stop();
	start();
	assert_int_equal(start_vm("a", true), -ENOENT);
	says("starting vm \"a\"");
	assert_int_equal(info("a"), 0);
	assert_string_equal(text("state"), "failed");
	assert_non_null(strstr(text("reason"), "panicked"));
	memcpy(config.vmm_path, kept, sizeof(kept));
	stop();
	start();
	assert_int_equal(start_vm("a", true), 0);
	assert_string_equal(text("state"), "running");
	assert_int_equal(take(tree_pause(tree, "a", NULL, &out, &why), &out), 0);
	assert_int_equal(start_vm("a", true), -EBUSY);
	says("resume");
	assert_int_equal(start_vm("ghost", true), -ENOENT);
	/* Its kernel is gone. */
	assert_int_equal(stop_vm("a", true, 0), 0);
	assert_int_equal(unlink(kernel), 0);
	assert_int_equal(start_vm("a", true), -ENOENT);
	assert_int_equal(info("a"), 0);
	assert_string_equal(text("state"), "stopped");
	assert_int_equal(entries("bases"), 1);
}

static void
a_disk_grows_live_and_never_shrinks(void **state)
{
	(void)state;
	script_status = 0;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(resize_vm("a", 1023), -EINVAL);
	assert_string_equal(why.msg, "vm \"a\": disk can only grow (now 1024 MiB)");
	assert_int_equal(resize_vm("a", 2048), 0);
	assert_int_equal(json_type(parsed, json_get(parsed, 0, "note")), JSON_NULL);
	assert_non_null(strstr(last_script, "resize2fs"));
	assert_non_null(strstr(last_script, "4194304"));
	assert_int_equal(info("a"), 0);
	assert_int_equal(number("disk_mib"), 2048);
	assert_int_equal(json_type(parsed, json_get(parsed, 0, "resize_mib")), JSON_NULL);
	/* The disk has grown when the filesystem does not; asking again is enough. */
	script_status = 1;
	assert_int_equal(resize_vm("a", 3000), -EIO);
	says("the guest says: it is\\x1b too small");
	assert_int_equal(info("a"), 0);
	assert_int_equal(number("disk_mib"), 3000);
	assert_int_equal(number("resize_mib"), 3000);
	script_status = 0;
	assert_int_equal(resize_vm("a", 3000), 0);
	stop();
	start();
	assert_int_equal(info("a"), 0);
	assert_int_equal(number("disk_mib"), 3000);
	/* A stopped one grows when it is started. */
	assert_int_equal(stop_vm("a", true, 0), 0);
	assert_int_equal(resize_vm("a", 4000), 0);
	assert_non_null(strstr(text("note"), "when it is started"));
	assert_int_equal(resize_vm("a", 3500), -EINVAL);
	says("now 4000 MiB");
	last_script[0] = '\0';
	assert_int_equal(start_vm("a", true), 0);
	assert_int_equal(number("disk_mib"), 4000);
	assert_non_null(strstr(last_script, "8192000"));
	assert_int_equal(info("a"), 0);
	assert_int_equal(json_type(parsed, json_get(parsed, 0, "resize_mib")), JSON_NULL);
}

static int
set_mem_target(const char *vm, uint64_t mib)
{
	struct resize_request q = {.mem_target_mib = mib};
	struct json_out out = {0};

	why = (struct err){0};
	return take(tree_resize(tree, vm, &q, NULL, &out, &why), &out);
}

static void
a_memory_target_is_the_vmm_s_and_info_shows_it(void **state)
{
	int balloon;
	uint64_t v;

	(void)state;
	assert_int_equal(create("a", "balloon", false), 0);
	assert_int_equal(set_mem_target("a", 32), 0);
	assert_int_equal(json_type(parsed, json_get(parsed, 0, "note")), JSON_NULL);
	assert_int_equal(info("a"), 0);
	balloon = json_get(parsed, 0, "balloon");
	assert_int_equal(json_u64(parsed, json_get(parsed, balloon, "mem_target_mib"), &v), 0);
	assert_int_equal(v, 32);
	assert_int_equal(json_u64(parsed, json_get(parsed, balloon, "guest_free_bytes"), &v), 0);
	assert_int_equal(v, 5);
	assert_int_equal(
		json_type(parsed, json_get(parsed, balloon, "guest_available_bytes")), JSON_NULL);
	assert_int_equal(number("disk_mib"), 1024);
	assert_int_equal(set_mem_target("a", 4096), -EINVAL);
	says("more than the 64 MiB");
	assert_int_equal(stop_vm("a", true, 0), 0);
	assert_int_equal(set_mem_target("a", 32), -EBUSY);
	says("start it first");
	assert_int_equal(create("b", "balloon=idle", false), 0);
	assert_int_equal(set_mem_target("b", 64), 0);
	assert_non_null(strstr(text("note"), "no driver"));
	assert_int_equal(create("c", "balloon=refuse", false), 0);
	assert_int_equal(set_mem_target("c", 64), -EINVAL);
	assert_string_equal(why.msg, "vm \"c\": no");
	/* A VMM that knows no balloon is not asked. */
	assert_int_equal(create("d", "", false), 0);
	assert_int_equal(set_mem_target("d", 64), -EINVAL);
	says("start it again");
	assert_int_equal(info("d"), 0);
	assert_true(json_get(parsed, 0, "balloon") < 0);
}

static void
a_resize_the_vmm_refuses_changes_nothing(void **state)
{
	(void)state;
	assert_int_equal(create("a", "resize=refuse", false), 0);
	assert_int_equal(resize_vm("a", 2048), -ENOSPC);
	says("vm \"a\": no room for its map");
	assert_int_equal(info("a"), 0);
	assert_int_equal(number("disk_mib"), 1024);
	assert_int_equal(json_type(parsed, json_get(parsed, 0, "resize_mib")), JSON_NULL);
	assert_int_equal(create("b", "resize=exit", false), 0);
	assert_int_equal(resize_vm("b", 2048), -ESRCH);
	/* Who knows how far it came: its disk is read as the larger. */
	assert_int_equal(disk("b"), 0);
	assert_in_range(number("disk_mib"), 1024, 2048);
	/* No agent: the disk has grown, and that is said. */
	assert_int_equal(create("c", "", false), 0);
	assert_int_equal(resize_vm("c", 2048), 0);
	assert_non_null(strstr(text("note"), "no agent has answered"));
}

static void
a_resize_cut_short_is_finished_by_the_next_pandod(void **state)
{
	sqlite3 *db;
	char path[128];

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	snprintf(path, sizeof(path), "%s/state.db", home);
	stop();
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(
		sqlite3_exec(db, "UPDATE vms SET resize_mib = 2048", NULL, NULL, NULL),
		SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	start();
	assert_int_equal(info("a"), 0);
	assert_int_equal(number("disk_mib"), 2048);
	assert_int_equal(number("resize_mib"), 2048); /* the filesystem's turn */
	script_status = 0;
	assert_int_equal(resize_vm("a", 2048), 0);
	assert_int_equal(info("a"), 0);
	assert_int_equal(json_type(parsed, json_get(parsed, 0, "resize_mib")), JSON_NULL);
}

static void
a_grandchild_stands_in_the_way_too_and_a_dry_run_deletes_nothing(void **state)
{
	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(branch("b", "c", 1, true), 0);
	assert_int_equal(stop_vm("b", true, 0), 0);
	assert_int_equal(delete_vm("a", false), -ENOTEMPTY);
	says("1 living branch (c)");
	assert_int_equal(would_delete("a", false), -ENOTEMPTY);
	assert_int_equal(would_delete("a", true), 0);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "would_delete")), 3);
	assert_int_equal(count_vms(), 3);
	/* The claims of a dry run are gone again. */
	assert_int_equal(delete_vm("c", false), 0);
	assert_int_equal(would_delete("a", false), 0);
	assert_int_equal(delete_vm("a", false), 0);
	assert_int_equal(count_vms(), 1);
}

static void
branches_that_do_not_fit_are_refused_before_anything_is_made(void **state)
{
	static const char meminfo[] = "MemTotal: 9000000 kB\nMemFree:  1 kB\n"
				      "MemAvailable:      81920 kB\n";
	char path[128];

	(void)state;
	snprintf(path, sizeof(path), "%s/meminfo", home);
	assert_int_equal(
		io_write_file_atomic(path, meminfo, strlen(meminfo), 0600, NULL), 0);
	stop();
	config.meminfo_path = path;
	start();
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(branch("a", "b", 17, true), -ENOMEM);
	says("17 VMs need at least 81 MiB of memory (1 MiB each, 64 for the host)");
	says("80 MiB are available");
	assert_int_equal(count_vms(), 1);
	assert_int_equal(entries("segments"), 2);
	assert_int_equal(branch("a", "b", 16, true), 0);
	stop();
	config.meminfo_path = NULL;
	start();
}

static void
only_vms_with_all_labels_are_listed(void **state)
{
	struct branch_request q = {
		.count = 1, .labels = {2, {{"team", "red"}, {"run", "1"}}}};
	struct labels wanted = {2, {{"run", "1"}, {"team", "red"}}};
	struct json_out out = {0};

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(take(tree_branch(tree, "a", &q, NULL, &out, &why), &out), 0);
	q.labels.n = 1;
	assert_int_equal(take(tree_branch(tree, "a", &q, NULL, &out, &why), &out), 0);
	assert_int_equal(take(tree_list(tree, &wanted, true, &out, &why), &out), 0);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "vms")), 1);
	wanted.n = 0;
	assert_int_equal(take(tree_list(tree, &wanted, false, &out, &why), &out), 0);
	assert_int_equal(json_size(parsed, json_get(parsed, 0, "vms")), 3);
}

static void
what_a_vm_takes_of_the_host_is_told(void **state)
{
	uint64_t bytes = 0;
	int usage;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(info("a"), 0);
	usage = json_get(parsed, 0, "costs");
	assert_true(usage >= 0);
	assert_int_equal(
		json_u64(parsed, json_get(parsed, usage, "memory_unique_bytes"), &bytes),
		0);
	assert_in_range(bytes, 4096, 1u << 30);
	assert_int_equal(
		json_u64(parsed, json_get(parsed, usage, "disk_own_bytes"), &bytes), 0);
	assert_in_range(bytes, 512, 1u << 20); /* the index's one record */
	/* What was written before a branch belongs to both, and to neither alone. */
	assert_int_equal(branch("a", "b", 1, true), 0);
	assert_int_equal(stop_vm("a", true, 0), 0);
	assert_int_equal(info("a"), 0);
	usage = json_get(parsed, 0, "costs");
	assert_int_equal(
		json_type(parsed, json_get(parsed, usage, "memory_unique_bytes")),
		JSON_NULL);
}

static void
unmake(const char *path, const char *id)
{
	sqlite3 *db;
	char sql[128];

	snprintf(
		sql, sizeof(sql), "UPDATE vms SET made = 0, pid = 0 WHERE id = '%s'", id);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_changes(db), 1);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void *
continue_later(void *pid)
{
	poll(NULL, 0, 400);
	kill(*(pid_t *)pid, SIGCONT);
	return NULL;
}

/* Calls that queue. Each says when it does. */
struct queued {
	const char *vm, *alias;
	uint32_t busy_timeout_ms;
	bool pauses, deletes; /* instead of being a branch */
	bool waits, leaves;
	int result;
	struct err why;
	pthread_t thread;
};

static void
queued_say(void *ctx, const char *sentence)
{
	struct queued *q = ctx;

	if (strstr(sentence, "waiting for that"))
		__atomic_store_n(&q->waits, true, __ATOMIC_RELEASE);
}

static bool
queued_gone(void *ctx)
{
	return __atomic_load_n(&((struct queued *)ctx)->leaves, __ATOMIC_ACQUIRE);
}

static void *
queued_main(void *arg)
{
	struct queued *q = arg;
	struct branch_request b = {.count = 1};
	struct progress p = {.say = queued_say,
		.ctx = q,
		.gone = queued_gone,
		.busy_timeout_ms = q->busy_timeout_ms};
	struct json_out out = {0};

	snprintf(b.alias, sizeof(b.alias), "%s", q->alias ? q->alias : "");
	if (q->pauses)
		q->result = tree_pause(tree, q->vm, &p, &out, &q->why);
	else if (q->deletes)
		q->result = tree_delete(tree, q->vm, true, false, &p, &out, &q->why);
	else
		q->result = tree_branch(tree, q->vm, &b, &p, &out, &q->why);
	json_out_done(&out);
	return NULL;
}

static void
queue_up(struct queued *q)
{
	assert_int_equal(pthread_create(&q->thread, NULL, queued_main, q), 0);
	for (int i = 0; i < 2000; i++) {
		if (__atomic_load_n(&q->waits, __ATOMIC_ACQUIRE))
			return;
		poll(NULL, 0, 5);
	}
	fail_msg("the call does not queue");
}

/* Somebody is at the VM until it hears again: its fork waits for a VMM that is stopped. */
static pid_t
occupy(const char *vm, struct queued *first)
{
	pid_t pid;

	assert_int_equal(info(vm), 0);
	pid = (pid_t)number("pid");
	kill(pid, SIGSTOP);
	*first = (struct queued){.vm = vm, .alias = "first"};
	assert_int_equal(pthread_create(&first->thread, NULL, queued_main, first), 0);
	for (int i = 0; i < 2000 && would_delete(vm, true) != -EBUSY; i++)
		poll(NULL, 0, 5);
	return pid;
}

static void
calls_for_one_vm_queue_and_are_served_in_their_order(void **state)
{
	static const char *const names[] = {"q0", "q1", "q2", "q3", "q4", "q5"};
	struct queued first, q[6];
	int vms, at = 0;
	pid_t pid;

	(void)state;
	config.start_timeout_ms = 20000;
	stop();
	start();
	assert_int_equal(create("a", "", false), 0);
	pid = occupy("a", &first);
	for (unsigned i = 0; i < 6; i++) {
		q[i] = (struct queued){
			.vm = "a", .alias = names[i], .busy_timeout_ms = 60000};
		queue_up(&q[i]);
	}
	/* One who does not queue is told at once, as ever. */
	assert_int_equal(branch("a", "hasty", 1, false), -EBUSY);
	says("vm \"a\" is being branched: try again when that is done");
	kill(pid, SIGCONT);
	pthread_join(first.thread, NULL);
	assert_int_equal(first.result, 0);
	for (unsigned i = 0; i < 6; i++) {
		pthread_join(q[i].thread, NULL);
		if (q[i].result < 0)
			fail_msg("%s: %s", names[i], q[i].why.msg);
	}
	/* The oldest are listed first. */
	assert_int_equal(count_vms(), 8);
	vms = json_get(parsed, 0, "vms");
	for (int i = 0; i < 8; i++) {
		char alias[16];

		json_str(parsed, json_get(parsed, json_at(parsed, vms, i), "alias"),
			alias, sizeof(alias));
		if (alias[0] == 'q')
			assert_string_equal(alias, names[at++]);
	}
	assert_int_equal(at, 6);
}

static void
who_queues_gives_up_when_its_time_is_over_or_its_caller_has_gone(void **state)
{
	struct queued first, late, left, pause,
		over = {.vm = "a", .busy_timeout_ms = 60000};
	static struct queued many[TREE_WAITERS_MAX];
	unsigned n = 0;
	pid_t pid;

	(void)state;
	config.start_timeout_ms = 20000;
	stop();
	start();
	assert_int_equal(create("a", "", false), 0);
	pid = occupy("a", &first);
	left = late = pause = over;
	late.busy_timeout_ms = 50;
	queue_up(&late);
	pthread_join(late.thread, NULL);
	assert_int_equal(late.result, -EBUSY);
	assert_string_equal(late.why.msg,
		"vm \"a\" is being branched, and was for all the time this call may wait: try again when that is done");
	/* One that leaves does not hold up who comes after it. */
	queue_up(&left);
	pause.pauses = true;
	queue_up(&pause);
	__atomic_store_n(&left.leaves, true, __ATOMIC_RELEASE);
	pthread_join(left.thread, NULL);
	assert_int_equal(left.result, -ECANCELED);
	/* There are as many places as there are. */
	for (n = 0; n < TREE_WAITERS_MAX - 1; n++) {
		many[n] = (struct queued){.vm = "a", .busy_timeout_ms = 60000};
		queue_up(&many[n]);
	}
	assert_int_equal(pthread_create(&over.thread, NULL, queued_main, &over), 0);
	pthread_join(over.thread, NULL);
	assert_int_equal(over.result, -EBUSY);
	assert_non_null(strstr(over.why.msg, "too many calls wait already"));
	for (unsigned i = 0; i < n; i++)
		__atomic_store_n(&many[i].leaves, true, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < n; i++) {
		pthread_join(many[i].thread, NULL);
		assert_int_equal(many[i].result, -ECANCELED);
	}
	kill(pid, SIGCONT);
	pthread_join(first.thread, NULL);
	pthread_join(pause.thread, NULL);
	assert_int_equal(first.result, 0);
	if (pause.result < 0)
		fail_msg("%s", pause.why.msg);
	assert_int_equal(info("a"), 0);
	assert_string_equal(text("state"), "paused");
	assert_int_equal(count_vms(), 2);
}

struct leaver {
	bool has_gone;
	unsigned made;
};

/* Goes as soon as its VMs run. */
static void
leaver_say(void *ctx, const char *sentence)
{
	if (strstr(sentence, "waiting for"))
		__atomic_store_n(
			&((struct leaver *)ctx)->has_gone, true, __ATOMIC_RELEASE);
}

static bool
leaver_gone(void *ctx)
{
	return __atomic_load_n(&((struct leaver *)ctx)->has_gone, __ATOMIC_ACQUIRE);
}

static void
leaver_made(void *ctx, const char *id)
{
	assert_int_equal(strlen(id), 12);
	((struct leaver *)ctx)->made++;
}

/* Each waits for the disk, most of them with the tree's lock held. */
static unsigned n_syncs;

int
fsync(int fd)
{
	__atomic_add_fetch(&n_syncs, 1, __ATOMIC_SEQ_CST);
	return (int)syscall(SYS_fsync, fd);
}

int
fdatasync(int fd)
{
	__atomic_add_fetch(&n_syncs, 1, __ATOMIC_SEQ_CST);
	return (int)syscall(SYS_fdatasync, fd);
}

static void
a_batch_that_nobody_waits_for_goes_with_few_syncs(void **state)
{
	char ids[24][VM_ID_LEN + 1], name[16];
	unsigned before;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	assert_int_equal(branch("a", "b", 24, true), 0);
	for (int i = 0; i < 24; i++) {
		snprintf(name, sizeof(name), "b-%d", i);
		assert_int_equal(info(name), 0);
		snprintf(ids[i], sizeof(ids[i]), "%.12s", text("id"));
	}
	before = __atomic_load_n(&n_syncs, __ATOMIC_SEQ_CST);
	tree_take_back(tree, ids, 24);
	before = __atomic_load_n(&n_syncs, __ATOMIC_SEQ_CST) - before;
	for (int i = 0; i < 24; i++) {
		snprintf(name, sizeof(name), "b-%d", i);
		assert_int_equal(info(name), -ENOENT);
	}
	if (before > 8)
		fail_msg("%u syncs for 24 VMs", before);
	assert_int_equal(delete_vm("a", false), 0);
	assert_nothing_left();
}

static void
vms_of_a_caller_that_has_gone_are_removed(void **state)
{
	struct create_request c = {.mem_mib = 64,
		.vcpus = 1,
		.wait = true,
		.rootfs = "none",
		.alias = "mine"};
	struct branch_request b = {.count = 3, .wait = true};
	struct leaver l = {0};
	struct progress p = {
		.say = leaver_say, .ctx = &l, .gone = leaver_gone, .made = leaver_made};
	struct json_out out = {0};

	(void)state;
	/* Agents that never answer: only the caller's going can end the wait. */
	config.agent_timeout_ms = 600000;
	stop();
	start();
	snprintf(c.kernel, sizeof(c.kernel), "%s", kernel);
	assert_int_equal(take(tree_create(tree, &c, &p, &out, &why), &out), -ECANCELED);
	says("cancelled: who asked for mine has gone");
	assert_int_equal(l.made, 0);
	assert_nothing_left();
	assert_int_equal(create("a", "", false), 0);
	l.has_gone = false;
	assert_int_equal(
		take(tree_branch(tree, "a", &b, &p, &out, &why), &out), -ECANCELED);
	assert_int_equal(count_vms(), 1);
	/* Without a wait they are there before it goes, and it is asked once more. */
	b.wait = c.wait = false;
	l.has_gone = true;
	assert_int_equal(take(tree_create(tree, &c, &p, &out, &why), &out), -ECANCELED);
	assert_int_equal(
		take(tree_branch(tree, "a", &b, &p, &out, &why), &out), -ECANCELED);
	assert_int_equal(count_vms(), 1);
	/* Who stays is told of each. */
	l = (struct leaver){0};
	assert_int_equal(take(tree_branch(tree, "a", &b, &p, &out, &why), &out), 0);
	assert_int_equal(l.made, 3);
	assert_int_equal(count_vms(), 4);
}

static void
who_queues_for_a_vm_that_is_deleted_is_told_so(void **state)
{
	struct queued first,
		delete_it = {.vm = "a", .busy_timeout_ms = 60000, .deletes = true};
	struct queued q = {.vm = "a", .busy_timeout_ms = 60000};
	pid_t pid;

	(void)state;
	config.start_timeout_ms = 20000;
	stop();
	start();
	assert_int_equal(create("a", "", false), 0);
	pid = occupy("a", &first);
	queue_up(&delete_it);
	queue_up(&q);
	kill(pid, SIGCONT);
	pthread_join(first.thread, NULL);
	pthread_join(delete_it.thread, NULL);
	pthread_join(q.thread, NULL);
	assert_int_equal(first.result, 0);
	if (delete_it.result < 0)
		fail_msg("%s", delete_it.why.msg);
	assert_int_equal(q.result, -ENOENT);
	assert_non_null(strstr(q.why.msg, "was deleted while this call waited for it"));
	assert_nothing_left();
}

static void
a_delete_with_all_branches_waits_for_its_turn_at_each(void **state)
{
	struct queued first,
		delete_it = {.vm = "a", .busy_timeout_ms = 60000, .deletes = true};
	pid_t pid;

	(void)state;
	config.start_timeout_ms = 20000;
	stop();
	start();
	assert_int_equal(create("a", "", false), 0);
	assert_int_equal(branch("a", "child", 1, false), 0);
	assert_int_equal(branch("child", "grandchild", 2, false), 0);
	pid = occupy("grandchild-1", &first);
	assert_int_equal(delete_vm("a", true), -EBUSY);
	says("a branch of it: vm \"grandchild-1\" is being branched");
	queue_up(&delete_it);
	kill(pid, SIGCONT);
	pthread_join(first.thread, NULL);
	pthread_join(delete_it.thread, NULL);
	assert_int_equal(first.result, 0);
	if (delete_it.result < 0)
		fail_msg("%s", delete_it.why.msg);
	assert_nothing_left();
}

static void
a_vmm_that_answers_late_is_adopted_all_the_same(void **state)
{
	pthread_t thread;
	pid_t pid;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	pid = (pid_t)number("pid");
	stop();
	kill(pid, SIGSTOP);
	assert_int_equal(pthread_create(&thread, NULL, continue_later, &pid), 0);
	start();
	pthread_join(thread, NULL);
	assert_int_equal(info("a"), 0);
	assert_string_equal(text("state"), "running");
	assert_int_equal(number("pid"), pid);
	assert_int_equal(branch("a", "b", 1, true), 0);
}

/* Fills the queue of a VM's control socket, as pandods do that asked and went away. */
static unsigned
fill_control_queue(const char *id, int *fds, unsigned max)
{
	char path[108];
	unsigned n = 0;

	snprintf(path, sizeof(path), "%s/vms/%s/control.sock", home, id);
	while (n < max) {
		struct sockaddr_un a = {.sun_family = AF_UNIX};

		memcpy(a.sun_path, path, strlen(path) + 1);
		fds[n] =
			socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		assert_true(fds[n] >= 0);
		if (connect(fds[n], (struct sockaddr *)&a, sizeof(a)) < 0) {
			assert_int_equal(errno, EAGAIN);
			close(fds[n]);
			return n;
		}
		n++;
	}
	fail_msg("the queue of %s never fills", path);
	return 0;
}

/* Until it can be spoken to: what pauses it is adopted. */
static void
wait_met(const char *vm)
{
	struct json_out out = {0};

	for (int i = 0; i < 1000; i++) {
		int r = take(tree_pause(tree, vm, NULL, &out, &why), &out);

		out = (struct json_out){0};
		if (r == 0) {
			assert_int_equal(
				take(tree_resume(tree, vm, NULL, &out, &why), &out), 0);
			return;
		}
		assert_int_equal(r, -EBUSY);
		poll(NULL, 0, 10);
	}
	fail_msg("%s is never met: %s", vm, why.msg);
}

static void
a_deaf_vmm_delays_no_start_and_is_adopted_when_it_hears(void **state)
{
	unsigned n, started = 0;
	char deaf[16];
	int fds[64];
	pid_t pid;

	(void)state;
	assert_int_equal(create("sound", "agent", true), 0);
	assert_int_equal(create("deaf", "agent", true), 0);
	snprintf(deaf, sizeof(deaf), "%s", text("id"));
	pid = (pid_t)number("pid");
	stop();
	kill(pid, SIGSTOP);
	n = fill_control_queue(deaf, fds, 64);
	/* None of these starts may wait for it; each leaves what it is. */
	for (; started < 6; started++) {
		start();
		assert_int_equal(info("sound"), 0);
		assert_string_equal(text("state"), "running");
		assert_int_equal(branch("sound", "", 1, true), 0);
		assert_int_equal(info("deaf"), 0);
		assert_string_equal(text("state"), "running");
		assert_int_equal(number("pid"), pid);
		assert_int_equal(branch("deaf", "", 1, false), -EBUSY);
		if (started < 5)
			stop();
	}
	kill(pid, SIGCONT);
	while (n)
		close(fds[--n]);
	wait_met("deaf");
	assert_int_equal(branch("deaf", "child", 1, true), 0);
	assert_int_equal(info("deaf"), 0);
	assert_int_equal(number("pid"), pid);
	/* And it is one that can be ended while it is deaf. */
	stop();
	kill(pid, SIGSTOP);
	n = fill_control_queue(deaf, fds, 64);
	start();
	assert_int_equal(stop_vm("deaf", true, 0), 0);
	while (n)
		close(fds[--n]);
	assert_int_equal(info("deaf"), 0);
	assert_string_equal(text("state"), "stopped");
}

static unsigned
descriptors(void)
{
	cleanup_closedir DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	return n - 3; /* ".", ".." and the folder itself */
}

static void
vms_are_adopted_when_there_are_descriptors_again_and_none_is_failed(void **state)
{
	struct rlimit before, few;
	struct err e = {0};
	char name[8];
	pid_t pids[12];
	unsigned unmet = 0;
	int r = -1;

	(void)state;
	for (unsigned i = 0; i < 12; i++) {
		snprintf(name, sizeof(name), "v%u", i);
		assert_int_equal(create(name, "agent", true), 0);
		pids[i] = (pid_t)number("pid");
	}
	stop();
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	few = before;
	/* As few as the tree itself can be opened with, and some more. */
	for (unsigned room = 4; r < 0 && room < 40; room++) {
		few.rlim_cur = descriptors() + room;
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
		r = tree_open(&config, &tree, &e);
	}
	if (r < 0)
		fail_msg("%s", e.msg);
	for (unsigned i = 0; i < 12; i++) {
		snprintf(name, sizeof(name), "v%u", i);
		assert_int_equal(info(name), 0);
		assert_string_equal(text("state"), "running");
		assert_int_equal(number("pid"), pids[i]);
		/* Whose process cannot be got hold of is not deleted behind its back. */
		unmet += delete_vm(name, false) == -EBUSY;
		if (unmet)
			break;
	}
	assert_true(unmet);
	/* What is left is for calls, not for more VMs. */
	assert_int_equal(create("more", "agent", false), -EMFILE);
	says("may not open enough files for 1 more VM");
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	start_loop();
	for (unsigned i = 0; i < 12; i++) {
		snprintf(name, sizeof(name), "v%u", i);
		if (info(name) == -ENOENT)
			continue;
		wait_met(name);
		assert_int_equal(info(name), 0);
		assert_int_equal(number("pid"), pids[i]);
		assert_int_equal(kill(pids[i], 0), 0);
	}
}

static void
what_was_half_made_is_removed_by_the_next_pandod(void **state)
{
	char path[256], id[16];
	cleanup_close int fd = -1;
	pid_t pid;

	(void)state;
	assert_int_equal(create("keep", "agent", true), 0);
	assert_int_equal(create("half", "agent", true), 0);
	snprintf(id, sizeof(id), "%s", text("id"));
	pid = (pid_t)number("pid");
	stop();
	/* As if pandod had been killed before the row was whole. */
	snprintf(path, sizeof(path), "%s/state.db", home);
	unmake(path, id);
	/* And a segment that no row names, and a file that is none of ours. */
	snprintf(path, sizeof(path), "%s/segments/0123456789ab.3.data", home);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	snprintf(path, sizeof(path), "%s/vms/notes", home);
	assert_int_equal(mkdir(path, 0700), 0);
	start();
	assert_int_equal(count_vms(), 1);
	assert_int_equal(info("keep"), 0);
	assert_string_equal(text("state"), "running");
	assert_int_equal(entries("vms"), 2);
	assert_int_equal(entries("segments"), 2);
	assert_int_equal(kill(pid, 0) < 0 ? errno : 0, ESRCH);
	assert_int_equal(rmdir(path), 0);
}

/* What a killed pandod could have left in the database. */
static void
database(const char *sql)
{
	char path[128], *said = NULL;
	sqlite3 *db;

	snprintf(path, sizeof(path), "%s/state.db", home);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	if (sqlite3_exec(db, sql, NULL, NULL, &said) != SQLITE_OK)
		fail_msg("%s", said);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void
a_beginning_of_two_ids_is_refused_with_both(void **state)
{
	char id[16], twin[16], prefix[8];

	(void)state;
	assert_int_equal(create("a", "", false), 0);
	snprintf(id, sizeof(id), "%s", text("id"));
	snprintf(prefix, sizeof(prefix), "%.6s", id);
	snprintf(twin, sizeof(twin), "%s%s", prefix, "fafafa");
	stop();
	database(
		"CREATE TEMP TABLE t AS SELECT * FROM vms;"
		"UPDATE t SET seq = seq + 1, id = substr(id, 1, 6) || 'fafafa', alias = 'twin', state = 'stopped', pid = 0, pid_start = 0;"
		"INSERT INTO vms SELECT * FROM t;");
	start();
	assert_int_equal(info(prefix), -EINVAL);
	assert_non_null(strstr(why.msg, id));
	assert_non_null(strstr(why.msg, twin));
	assert_int_equal(branch(prefix, "b", 1, false), -EINVAL);
	assert_int_equal(delete_vm(prefix, true), -EINVAL);
	assert_int_equal(count_vms(), 2);
	assert_int_equal(info(twin), 0);
	snprintf(twin, sizeof(twin), "%s%s", prefix, "fa");
	assert_int_equal(info(twin), 0);
	assert_string_equal(text("alias"), "twin");
}

static void
a_vm_that_is_ending_is_not_branched(void **state)
{
	int r = 0;

	(void)state;
	assert_int_equal(create("a", "agent", true), 0);
	order("a", 'C'); /* it has two seconds from there */
	for (int i = 0; i < 1000; i++) {
		r = branch("a", "b", 1, false);
		assert_true(r < 0);
		if (r == -EBUSY)
			break;
		poll(NULL, 0, 1);
	}
	assert_int_equal(r, -EBUSY);
	if (!strstr(why.msg, "vm \"a\" is ending") &&
		!strstr(why.msg, "vm \"a\" is failed"))
		fail_msg("%s", why.msg);
	wait_state("a", "failed");
	assert_int_equal(branch("a", "b", 1, false), -EBUSY);
	assert_non_null(strstr(why.msg, "pando start"));
	assert_int_equal(count_vms(), 1);
	assert_int_equal(entries("vms"), 1);
}

static void
hundred_rounds_leave_nothing(void **state)
{
	(void)state;
	for (int i = 0; i < 100; i++) {
		assert_int_equal(create("a", "", false), 0);
		assert_int_equal(branch("a", "b", i % 3 + 1, false), 0);
		assert_int_equal(delete_vm("a", true), 0);
	}
	assert_nothing_left();
}

int
main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define IMPATIENT(name) cmocka_unit_test_setup_teardown(name, setup_impatient, teardown)
		T(a_vm_with_an_agent_is_running_when_create_returns),
		T(reports_are_taken_once_and_outlive_pandod_and_their_vm),
		T(a_follower_is_told_by_the_guest_and_asks_nobody),
		T(deaf_guests_hold_up_nobodys_reports),
		T(more_followers_than_may_wait_are_told_so),
		T(followers_whose_callers_have_gone_give_up_their_places),
		T(a_follower_does_not_hold_up_the_end_of_pandod),
		T(without_wait_it_is_starting_until_its_agent_answers),
		IMPATIENT(a_vm_that_cannot_start_leaves_nothing),
		T(a_vm_is_told_who_it_is_before_create_returns),
		T(a_parent_nobody_waited_for_is_told_by_the_health_monitor),
		T(a_batch_nobody_waits_for_takes_its_identity_side_by_side),
		T(a_branch_that_does_not_become_itself_is_no_branch),
		T(a_handshake_nobody_waits_for_may_take_its_limit_in_each_step),
		T(a_handshake_nobody_waits_for_that_stays_in_a_step_is_ended),
		T(each_vm_gets_the_defaults_and_its_own_environment),
		IMPATIENT(a_vm_whose_agent_never_answers_is_failed_and_keeps_its_log),
		IMPATIENT(a_guest_that_makes_progress_is_waited_for_beyond_the_limit),
		IMPATIENT(a_guest_that_stands_still_is_not_waited_for_beyond_the_limit),
		IMPATIENT(a_guest_that_makes_progress_for_ever_has_a_ceiling),
		IMPATIENT(who_waits_for_a_slow_guest_is_told_its_last_console_line),
		T(the_same_alias_twice_is_refused),
		T(names_are_ids_aliases_and_unique_prefixes),
		T(beyond_the_host_is_refused_before_anything_is_made),
		T(a_branch_has_a_chain_cut_where_the_parent_was),
		T(a_segment_goes_with_the_last_vm_that_needs_it),
		T(many_branches_are_of_one_instant_and_leave_no_parked_process),
		IMPATIENT(a_branch_that_fails_leaves_the_parent_as_it_was),
		T(a_parent_that_dies_in_a_fork_is_failed_and_leaves_no_child),
		T(a_parent_that_answers_a_fork_with_nonsense_is_ended),
		IMPATIENT(branches_whose_agents_do_not_answer_are_all_removed),
		T(how_a_vm_ended_is_told_in_a_sentence),
		T(guests_that_all_reboot_are_booted_by_few_threads),
		T(a_guest_that_reboots_is_booted_again_unless_it_does_so_for_ever),
		T(a_reboot_that_cannot_be_carried_out_fails_and_says_why),
		T(a_reboot_that_a_pandod_was_killed_in_is_finished_by_the_next),
		T(the_end_of_a_parent_is_not_the_end_of_its_branch),
		T(living_branches_stand_in_the_way_of_a_delete),
		IMPATIENT(a_second_operation_on_a_vm_is_busy),
		T(pause_and_resume_keep_what_was_known),
		T(aliases_can_be_changed_and_taken_away),
		T(a_new_pandod_adopts_what_runs_and_buries_what_does_not),
		T(calls_for_one_vm_queue_and_are_served_in_their_order),
		T(who_queues_gives_up_when_its_time_is_over_or_its_caller_has_gone),
		T(a_batch_that_nobody_waits_for_goes_with_few_syncs),
		T(vms_of_a_caller_that_has_gone_are_removed),
		T(who_queues_for_a_vm_that_is_deleted_is_told_so),
		T(a_delete_with_all_branches_waits_for_its_turn_at_each),
		T(a_vmm_that_answers_late_is_adopted_all_the_same),
		T(a_deaf_vmm_delays_no_start_and_is_adopted_when_it_hears),
		T(vms_are_adopted_when_there_are_descriptors_again_and_none_is_failed),
		T(what_was_half_made_is_removed_by_the_next_pandod),
		T(a_branch_after_one_cut_short_has_a_chain_that_can_be_read),
		T(limits_of_a_disk_hold_at_once_in_branches_and_after_a_start),
		T(old_segments_are_merged_and_relatives_take_them),
		T(fork_points_of_an_idle_vm_leave_nothing),
		T(relatives_take_a_run_that_all_have),
		IMPATIENT(a_vmm_that_does_not_take_a_merge_keeps_its_chain),
		T(a_vmm_that_dies_at_a_merge_takes_nothing_with_it),
		T(what_nobody_reads_of_old_segments_is_given_back),
		T(a_full_disk_while_merging_is_tried_again),
		T(a_branch_waits_until_a_chain_that_is_too_long_is_merged),
		T(a_vm_is_stopped_by_its_button_its_agent_or_force),
		T(a_paused_vm_is_stopped_only_by_force),
		T(force_cuts_a_stop_short_and_nothing_else_does),
		T(branches_that_are_being_made_may_be_looked_at),
		IMPATIENT(nothing_else_is_done_to_a_vm_that_is_being_branched),
		T(a_stopped_vm_starts_again_on_a_base_of_its_own),
		T(a_vm_that_cannot_start_is_what_it_was),
		T(a_disk_grows_live_and_never_shrinks),
		T(a_memory_target_is_the_vmm_s_and_info_shows_it),
		T(a_resize_the_vmm_refuses_changes_nothing),
		T(a_resize_cut_short_is_finished_by_the_next_pandod),
		T(a_grandchild_stands_in_the_way_too_and_a_dry_run_deletes_nothing),
		T(branches_that_do_not_fit_are_refused_before_anything_is_made),
		T(only_vms_with_all_labels_are_listed),
		T(what_a_vm_takes_of_the_host_is_told),
		T(a_beginning_of_two_ids_is_refused_with_both),
		T(a_vm_that_is_ending_is_not_branched),
		T(hundred_rounds_leave_nothing),
#undef T
#undef IMPATIENT
	};

	(void)argc;
	tree_test_begin(argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
