/* `pando doctor --vm`: a guest's own word of itself, judged. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/json.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_rpc.h"
#include "host/cli/doctor.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

#define ANSWER_MAX (1u << 20)
#define ANSWER_TOKENS 8192
#define PING_MS 10000
#define LOOK_MS 60000
#define UNIT_NAME_MAX 255
/* What a person or a TLS handshake notices; what a build tool does. */
#define CLOCK_WRONG_MS 1000
#define CLOCK_OFF_MS 100

static int
nonsense(struct err *e, const char *what)
{
	return err_set(
		e, -EPROTO, "the guest's word of itself: no \"%s\" that is one", what);
}

/* A unit's name, safe to be put into a command. */
static bool
unit_of(const struct json *j, int obj, const char *key,
	char dst[static UNIT_NAME_MAX + 1])
{
	return json_str(j, json_get(j, obj, key), dst, UNIT_NAME_MAX + 1) == 0 && *dst &&
	       *dst != '-' &&
	       strspn(dst, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789:_.@-\\") == strlen(dst);
}

static bool
text_of(const struct json *j, int obj, const char *key, char *dst, size_t cap)
{
	char raw[400];

	if (json_str(j, json_get(j, obj, key), raw, sizeof(raw)) < 0)
		return false;
	out_plain(dst, cap, raw);
	return true;
}

/*
 * Units.
 */

static int
judge_failed(
	struct doctor *d, const char *vm, const struct json *j, int arr, struct err *e)
{
	char unit[UNIT_NAME_MAX + 1], why[400];
	int it = 0, key, tok;

	while (json_next(j, arr, &it, &key, &tok)) {
		struct doctor_finding *f;

		if (!unit_of(j, tok, "unit", unit) ||
			!text_of(j, tok, "why", why, sizeof(why)))
			return nonsense(e, "failed");
		f = doctor_find(d, "failed", DOCTOR_PROBLEM, "%s has failed%s%s", unit,
			*why ? ": " : "", why);
		doctor_mend(f,
			"pando execute %s -- journalctl -u %s says more; then: pando execute %s -- systemctl restart %s",
			vm, unit, vm, unit);
	}
	return 0;
}

static int
judge_not_active(
	struct doctor *d, const char *vm, const struct json *j, int arr, struct err *e)
{
	char unit[UNIT_NAME_MAX + 1], why[400];
	int it = 0, key, tok;

	while (json_next(j, arr, &it, &key, &tok)) {
		struct doctor_finding *f;
		size_t n;
		bool ended;

		if (!unit_of(j, tok, "unit", unit) ||
			!text_of(j, tok, "why", why, sizeof(why)))
			return nonsense(e, "not_active");
		n = strlen(unit);
		ended = strstr(why, "ended") != NULL;
		/* A service may well come to its end; what waits for something may not.
		 */
		f = doctor_find(d, "not-active",
			ended && n > 8 && strcmp(unit + n - 8, ".service") == 0
				? DOCTOR_NOTE
				: DOCTOR_PROBLEM,
			"%s is enabled, but not active: %s", unit, why);
		doctor_mend(f, "pando execute %s -- systemctl start %s%s", vm, unit,
			n > 5 && strcmp(unit + n - 5, ".path") == 0
				? ", before a commit: branches have it as it is then"
				: "");
	}
	return 0;
}

static int
judge_paths(
	struct doctor *d, const char *vm, const struct json *j, int arr, struct err *e)
{
	char unit[UNIT_NAME_MAX + 1], service[UNIT_NAME_MAX + 1], state[64];
	int it = 0, key, tok;

	while (json_next(j, arr, &it, &key, &tok)) {
		struct doctor_finding *f;
		bool exited;

		if (!unit_of(j, tok, "unit", unit) ||
			!unit_of(j, tok, "service", service) ||
			!text_of(j, tok, "state", state, sizeof(state)))
			return nonsense(e, "paths");
		exited = strcmp(state, "exited") == 0;
		f = doctor_find(d, "path", exited ? DOCTOR_PROBLEM : DOCTOR_NOTE,
			"%s will not start %s again: it is active (%s), and a path unit does nothing until it is not",
			unit, service, state);
		if (exited)
			doctor_mend(f,
				"pando execute %s -- systemctl stop %s, before a commit; for good, take RemainAfterExit=yes out of it",
				vm, service);
		else
			doctor_mend(f,
				"if it is to see every change: pando execute %s -- systemctl stop %s, or let it end by itself",
				vm, service);
	}
	return 0;
}

static int
judge_units(struct doctor *d, const char *vm, const struct json *j, struct err *e)
{
	int units = json_get(j, 0, "units"), r;
	struct doctor_finding *f;
	size_t before = d->n;
	char text[400];

	if (units < 0 || json_type(j, units) != JSON_OBJECT) {
		if (!text_of(j, 0, "units_why", text, sizeof(text)))
			return nonsense(e, "units");
		f = doctor_find(d, "units", DOCTOR_NOTE,
			"its units cannot be looked at: %s", text);
		doctor_mend(f, "pando-golden puts pando-units into images with systemd");
		return 0;
	}
	if (!text_of(j, units, "system", text, sizeof(text)))
		return nonsense(e, "system");
	if (strcmp(text, "running") != 0 && strcmp(text, "degraded") != 0) {
		f = doctor_find(d, "units", DOCTOR_NOTE, "systemd is not done: %s", text);
		doctor_mend(f,
			"pando execute %s -- systemctl list-jobs says what it waits for",
			vm);
	}
	r = judge_failed(d, vm, j, json_get(j, units, "failed"), e);
	if (r == 0)
		r = judge_not_active(d, vm, j, json_get(j, units, "not_active"), e);
	if (r == 0)
		r = judge_paths(d, vm, j, json_get(j, units, "paths"), e);
	if (r == 0 && d->n == before)
		doctor_find(d, "units", DOCTOR_OK,
			"no unit has failed, and those that are enabled are active");
	return r;
}

/*
 * The rest.
 */

static int
judge_identity(struct doctor *d, const char *vm, const char *generation,
	const struct json *j, struct err *e)
{
	struct doctor_finding *f;
	char told[64];

	if (json_type(j, json_get(j, 0, "generation")) == JSON_NULL) {
		f = doctor_find(d, "identity", DOCTOR_PROBLEM,
			"the guest was never told who it is");
		doctor_mend(f, "pando logs %s says how its start went", vm);
		return 0;
	}
	if (!text_of(j, 0, "generation", told, sizeof(told)))
		return nonsense(e, "generation");
	if (strcmp(told, generation) == 0) {
		doctor_find(d, "identity", DOCTOR_OK,
			"the guest knows who it is (generation %.12s)", told);
		return 0;
	}
	f = doctor_find(d, "identity", DOCTOR_PROBLEM,
		"the guest believes to be of generation %.12s, and it is of %.12s", told,
		generation);
	doctor_mend(f,
		"try again in a moment: it is being told; else pando start after pando stop");
	return 0;
}

static int
judge_disks(struct doctor *d, const char *vm, const struct json *j, struct err *e)
{
	int disks = json_get(j, 0, "disks"), it = 0, key, tok;
	size_t before = d->n;

	if (disks < 0 || json_type(j, disks) != JSON_ARRAY)
		return nonsense(e, "disks");
	while (json_next(j, disks, &it, &key, &tok)) {
		uint64_t mib, free_mib, inodes, inodes_free;
		char path[64], left[32];
		struct doctor_finding *f = NULL;

		if (!text_of(j, tok, "path", path, sizeof(path)) ||
			json_u64(j, json_get(j, tok, "mib"), &mib) < 0 ||
			json_u64(j, json_get(j, tok, "free_mib"), &free_mib) < 0 ||
			json_u64(j, json_get(j, tok, "inodes"), &inodes) < 0 ||
			json_u64(j, json_get(j, tok, "inodes_free"), &inodes_free) < 0)
			return nonsense(e, "disks");
		out_mib(left, sizeof(left), free_mib);
		if (mib && free_mib < mib / 10)
			f = doctor_find(d, "disk",
				free_mib < mib / 20 ? DOCTOR_PROBLEM : DOCTOR_NOTE,
				"%s is nearly full: %s free", path, left);
		else if (inodes && inodes_free < inodes / 20)
			f = doctor_find(d, "disk", DOCTOR_PROBLEM,
				"%s has room for only %llu more files", path,
				(unsigned long long)inodes_free);
		if (f && strcmp(path, "/") == 0)
			doctor_mend(f, "pando resize %s --fs-size %llu, or remove files",
				vm, (unsigned long long)(mib < 1 << 30 ? mib * 2 : mib));
		else if (f)
			doctor_mend(f, "remove files there");
	}
	if (d->n == before)
		doctor_find(d, "disk", DOCTOR_OK, "its disks have room");
	return 0;
}

static int
judge_programs(struct doctor *d, const char *vm, const struct json *j, struct err *e)
{
	static const struct {
		const char *program, *package, *what;
	} known[] = {
		{"tmux", "tmux", "watching coding agents"},
		{"python3", "python3", "the hook that reseeds Python, and tests"},
		{"sshd", "openssh-server", "ssh, scp and rsync"},
	};
	int arr = json_get(j, 0, "missing"), it = 0, key, tok;
	char program[32];

	if (arr < 0 || json_type(j, arr) != JSON_ARRAY)
		return nonsense(e, "missing");
	while (json_next(j, arr, &it, &key, &tok)) {
		struct doctor_finding *f;
		size_t i = 0;

		if (json_str(j, tok, program, sizeof(program)) < 0)
			return nonsense(e, "missing");
		while (i < 3 && strcmp(known[i].program, program) != 0)
			i++;
		if (i == 3)
			return nonsense(e, "missing");
		f = doctor_find(d, "programs", DOCTOR_NOTE,
			"the guest has no %s, which %s needs", program, known[i].what);
		doctor_mend(f,
			"pando execute %s -- apt-get install -y %s, or in the image's packages",
			vm, known[i].package);
	}
	return 0;
}

static int
judge_environment(struct doctor *d, const char *vm, const struct json *j, struct err *e)
{
	int env = json_get(j, 0, "environment"), arr = json_get(j, env, "held_back");
	char name[300], why[400];
	int it = 0, key, tok;
	struct doctor_finding *f;

	if (arr < 0 || json_type(j, arr) != JSON_ARRAY)
		return nonsense(e, "environment");
	if (text_of(j, env, "why", why, sizeof(why))) {
		f = doctor_find(d, "environment", DOCTOR_PROBLEM,
			"its environment cannot be read as one: %s", why);
		doctor_mend(f,
			"mend that line; or branch it with --env, which writes the file anew");
	}
	while (json_next(j, arr, &it, &key, &tok)) {
		if (json_str(j, json_get(j, tok, "name"), name, sizeof(name)) < 0 ||
			strspn(name,
				"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				"0123456789_") != strlen(name) ||
			!text_of(j, tok, "why", why, sizeof(why)))
			return nonsense(e, "held_back");
		f = doctor_find(d, "environment", DOCTOR_NOTE,
			"%.255s cannot be in /etc/environment (%s): logins through PAM do not have it",
			name, why);
		doctor_mend(f,
			". /etc/pando/environment, or give %.255s a value without that",
			name);
	}
	(void)vm;
	return 0;
}

static int
judge_agents(struct doctor *d, const char *vm, const struct json *j, struct err *e)
{
	int arr = json_get(j, 0, "agents"), it = 0, key, tok;
	char name[64], why[400];

	if (arr < 0 || json_type(j, arr) != JSON_ARRAY)
		return nonsense(e, "agents");
	while (json_next(j, arr, &it, &key, &tok)) {
		struct doctor_finding *f;

		if (json_str(j, json_get(j, tok, "name"), name, sizeof(name)) < 0 ||
			strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") !=
				strlen(name) ||
			!text_of(j, tok, "why", why, sizeof(why)))
			return nonsense(e, "agents");
		f = doctor_find(d, "agents", DOCTOR_PROBLEM,
			"coding agent %s is to run and does not: %s", name, why);
		doctor_mend(f, "pando rpc start --name %s %s", name, vm);
	}
	return 0;
}

/* A process whose random numbers are the same in all branches, until it or they do something. */
static int
judge_generators(struct doctor *d, const char *vm, const struct json *j, struct err *e)
{
	static const struct {
		const char *keeps, *what, *mend;
	} known[] = {
		{"openssl", "OpenSSL's, whose configuration is not the system's",
			"start it with OPENSSL_CONF=/usr/lib/pando/openssl.cnf"},
		{"openssl1", "those of OpenSSL 1, which knows no providers",
			"restart it in /etc/pando/fork.d, or use OpenSSL 3"},
		{"gnutls", "GnuTLS's, which cannot be told of a branch",
			"restart it in /etc/pando/fork.d"},
		{"java", "Java's (Math.random, ThreadLocalRandom)",
			"use SecureRandom in it, or restart it in /etc/pando/fork.d"},
		{"numpy", "numpy's, where a program has made generators",
			"make them anew when /run/pando/generation changes"},
		{"node", "Node's (Math.random, randomUUID)",
			"start it with NODE_OPTIONS=--require=/usr/lib/pando/node-random.cjs"},
		{"python", "Python's random, for it is not the system's Python",
			"start it with PYTHONPATH=/usr/lib/python3/dist-packages and import pando_random"},
		{"own", "those of its language, which cannot be told of a branch",
			"read /dev/urandom in it, or restart it in /etc/pando/fork.d"},
	};
	int arr = json_get(j, 0, "generators"), it = 0, key, tok;
	uint64_t pid, more = 0;
	struct doctor_finding *f;
	size_t before = d->n;

	if (arr < 0)
		return 0; /* an agent of before */
	if (json_type(j, arr) != JSON_ARRAY ||
		json_u64(j, json_get(j, 0, "generators_more"), &more) < 0)
		return nonsense(e, "generators");
	while (json_next(j, arr, &it, &key, &tok)) {
		char program[300], word[32];
		size_t i = 0;

		if (json_u64(j, json_get(j, tok, "pid"), &pid) < 0 ||
			!text_of(j, tok, "program", program, sizeof(program)) ||
			json_str(j, json_get(j, tok, "keeps"), word, sizeof(word)) < 0)
			return nonsense(e, "generators");
		while (i < sizeof(known) / sizeof(known[0]) &&
			strcmp(known[i].keeps, word) != 0)
			i++;
		if (i == sizeof(known) / sizeof(known[0]))
			return nonsense(e, "generators");
		f = doctor_find(d, "random", DOCTOR_NOTE,
			"process %llu (%.200s) keeps random numbers that its branches share: %s",
			(unsigned long long)pid, program, known[i].what);
		doctor_mend(f, "%s", known[i].mend);
	}
	if (more)
		doctor_find(d, "random", DOCTOR_NOTE, "and %llu more that do so",
			(unsigned long long)more);
	if (d->n == before)
		doctor_find(d, "random", DOCTOR_OK,
			"no process is known to keep random numbers that branches would share");
	(void)vm;
	return 0;
}

int
doctor_judge_guest(struct doctor *d, const char *vm, const char *generation,
	const char *text, size_t len, struct err *e)
{
	cleanup_json struct json *j = NULL;
	struct doctor_finding *f;
	char version[64];
	int r = json_parse(text, len, ANSWER_TOKENS, &j, e);

	if (r < 0) {
		err_wrap(e, r, "the guest's word of itself");
		return r == -ENOMEM ? r : -EPROTO;
	}
	if (!text_of(j, 0, "version", version, sizeof(version)))
		return nonsense(e, "version");
	if (strcmp(version, PANDO_VERSION) == 0) {
		doctor_find(d, "agent", DOCTOR_OK, "its agent is of version %s", version);
	} else {
		f = doctor_find(d, "agent", DOCTOR_NOTE,
			"its agent is of version %s, this is pando " PANDO_VERSION,
			version);
		doctor_mend(f,
			"make the image again, or copy this installation's libexec/pando/pando-agent over the guest's and restart pando-agent.service");
	}
	r = judge_identity(d, vm, generation, j, e);
	if (r == 0)
		r = judge_units(d, vm, j, e);
	if (r == 0)
		r = judge_agents(d, vm, j, e);
	if (r == 0)
		r = judge_environment(d, vm, j, e);
	if (r == 0)
		r = judge_generators(d, vm, j, e);
	if (r == 0)
		r = judge_disks(d, vm, j, e);
	return r < 0 ? r : judge_programs(d, vm, j, e);
}

void
doctor_judge_clock(struct doctor *d, const char *vm, uint64_t guest_ns,
	uint64_t before_ns, uint64_t after_ns)
{
	/* Any moment in between may have been the guest's. */
	uint64_t off_ns = guest_ns < before_ns	? before_ns - guest_ns
			  : guest_ns > after_ns ? guest_ns - after_ns
						: 0;
	struct doctor_finding *f;
	char text[32];

	if (off_ns / 1000000 < CLOCK_OFF_MS) {
		doctor_find(d, "clock", DOCTOR_OK, "its clock is the host's");
		return;
	}
	if (off_ns / 1000000000 < 10)
		snprintf(text, sizeof(text), "%.1f s", (double)off_ns / 1e9);
	else
		out_age(text, sizeof(text), off_ns / 1000000);
	f = doctor_find(d, "clock",
		off_ns / 1000000 >= CLOCK_WRONG_MS ? DOCTOR_PROBLEM : DOCTOR_NOTE,
		"its clock is %s %s the host's", text,
		guest_ns < before_ns ? "behind" : "ahead of");
	doctor_mend(f, "pando execute %s -- date -s @$(date +%%s)", vm);
}

static uint64_t
wall_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int
check_clock(struct doctor *d, const char *vm, const char *socket, struct err *e)
{
	static const char *const words[] = {"doctor", "--clock", NULL};
	cleanup_json struct json *j = NULL;
	cleanup_free char *text = NULL;
	uint64_t before = wall_ns(), guest;
	int r = agent_rpc_call(
		socket, words, NULL, 0, 4096, LOOK_MS, pick_cancel_fd(), &text, e);
	uint64_t after = wall_ns();

	if (r == 0)
		r = json_parse(text, strlen(text), 16, &j, e);
	if (r < 0)
		return r;
	if (json_u64(j, json_get(j, 0, "time_ns"), &guest) < 0)
		return nonsense(e, "time_ns");
	doctor_judge_clock(d, vm, guest, before, after);
	return 0;
}

/* What pandod keeps of the last acknowledgement. */
static void
check_handshake(struct doctor *d, const struct client_reply *reply)
{
	int handshake = json_get(reply->json, 0, "hello"), it = 0, key, tok;
	char text[400] = "", step[40];
	uint64_t us, total;
	size_t n = 0;

	if (json_u64(reply->json, json_get(reply->json, handshake, "total_us"), &total) <
		0) {
		doctor_find(d, "handshake", DOCTOR_OK,
			"its acknowledgement was to an earlier pandod");
		return;
	}
	while (json_next(reply->json, json_get(reply->json, handshake, "steps"), &it,
		       &key, &tok) &&
		n < sizeof(text)) {
		if (json_str(reply->json, json_get(reply->json, tok, "step"), step,
			    sizeof(step)) < 0 ||
			json_u64(reply->json, json_get(reply->json, tok, "us"), &us) < 0)
			break;
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s %.1f",
			n ? ", " : "", step, (double)us / 1e3);
	}
	doctor_find(d, "handshake", DOCTOR_OK, "acknowledged in %.1f ms (%s)",
		(double)total / 1e3, text);
}

static void
cannot_answer(struct doctor *d, const char *vm, const struct err *why)
{
	struct doctor_finding *f =
		doctor_find(d, "agent", DOCTOR_PROBLEM, "%.480s", why->msg);

	doctor_mend(f,
		"pando logs %s says how its start went; an agent that does not know the question is older than this pando: make the image again",
		vm);
}

int
doctor_check_vm(struct doctor *d, const char *name, struct err *e)
{
	static const char *const words[] = {"doctor", NULL};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	cleanup_free char *text = NULL;
	struct doctor_finding *f;
	struct err why = {0};
	const char *called;
	int r = pick_open(name, &c, &vm, &reply, e);

	if (r < 0)
		return r;
	called = client_vm_name(&vm);
	r = pick_reachable(&vm, &why);
	if (r < 0) {
		f = doctor_find(d, "vm", DOCTOR_PROBLEM, "%.480s", why.msg);
		if (r == -ESHUTDOWN)
			doctor_mend(f, "pando start %s", called);
		return 0;
	}
	doctor_find(d, "vm", DOCTOR_OK, "%s is %s", called, vm.state);
	r = agent_ping(vm.agent_socket, PING_MS, NULL, &why);
	if (r == 0)
		check_handshake(d, &reply);
	if (r == 0)
		r = agent_rpc_call(vm.agent_socket, words, NULL, 0, ANSWER_MAX, LOOK_MS,
			pick_cancel_fd(), &text, &why);
	if (r == 0)
		r = doctor_judge_guest(
			d, called, vm.generation, text, strlen(text), &why);
	if (r == 0)
		r = check_clock(d, called, vm.agent_socket, &why);
	if (r == -ECANCELED)
		return err_set(e, r, "%.480s", why.msg);
	if (r < 0)
		cannot_answer(d, called, &why);
	return 0;
}
