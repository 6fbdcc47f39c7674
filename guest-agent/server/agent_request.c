#include "guest-agent/server/agent_request.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/wire/agent_wire.h"
#include "common/wire/json_bytes.h"

/* "a","b",…: four bytes an element. */
#define TOKENS_MAX (AGENT_REQUEST_MAX / 4 + 64)

/* Members each operation may have. */
enum member {
	M_ARGV = 1 << 0,
	M_ENV = 1 << 1,
	M_CWD = 1 << 2,
	M_USER = 1 << 3,
	M_TIMEOUT = 1 << 4,
	M_TTY = 1 << 5,
	M_STDIN = 1 << 6,
	M_DETACH = 1 << 7,
	M_ID = 1 << 8,
	M_STDOUT = 1 << 9,
	M_STDERR = 1 << 10,
	M_SIGNAL = 1 << 11,
	M_PATH = 1 << 12,
	M_LOGIN = 1 << 13,
	M_HANGUP = 1 << 14,
	M_PORT = 1 << 15,
	M_CONNECTION = 1 << 16,
};

static const struct {
	const char *name;
	unsigned member;
} members[] = {
	{"argv", M_ARGV},
	{"env", M_ENV},
	{"cwd", M_CWD},
	{"user", M_USER},
	{"timeout_ms", M_TIMEOUT},
	{"tty", M_TTY},
	{"stdin", M_STDIN},
	{"detach", M_DETACH},
	{"id", M_ID},
	{"stdout", M_STDOUT},
	{"stderr", M_STDERR},
	{"signal", M_SIGNAL},
	{"path", M_PATH},
	{"login", M_LOGIN},
	{"hangup", M_HANGUP},
	{"port", M_PORT},
	{"connection", M_CONNECTION},
};

static const struct {
	const char *name;
	enum request_op op;
	unsigned need, may;
} ops[] = {
	{"ping", REQUEST_PING, 0, 0},
	{"exec", REQUEST_EXEC, 0,
		M_ARGV | M_ENV | M_CWD | M_USER | M_TIMEOUT | M_TTY | M_STDIN | M_DETACH |
			M_LOGIN | M_HANGUP},
	{"attach", REQUEST_ATTACH, M_ID, M_STDOUT | M_STDERR | M_STDIN},
	{"list_execs", REQUEST_LIST_EXECS, 0, 0},
	{"signal", REQUEST_SIGNAL, M_ID | M_SIGNAL, 0},
	{"kill_ssh", REQUEST_KILL_SSH, M_CONNECTION, 0},
	{"put", REQUEST_PUT, M_PATH, M_USER}, {"get", REQUEST_GET, M_PATH, 0},
	{"list", REQUEST_LIST, M_PATH, 0}, {"dial", REQUEST_DIAL, M_PORT, 0},
	{"stay", REQUEST_STAY, 0, 0},
	{"hello", REQUEST_HANDSHAKE, 0, 0}, /* its members are identity_request.c's */
};

#define N(a) (sizeof(a) / sizeof((a)[0]))

static int
wrong(struct err *e, const char *name, const char *what)
{
	return err_set(e, -EINVAL, "\"%s\" must be %s", name, what);
}

static int
read_bytes(const struct json *j, int tok, const char *name, char **ret, struct err *e)
{
	int r = json_bytes_dup(j, tok, ret);

	if (r == -ENOMEM)
		return err_sys(e, r, "reading \"%s\"", name);
	return r ? wrong(e, name, "a string or {\"b64\":…}, without NUL bytes") : 0;
}

static int
read_array(const struct json *j, int tok, const char *name, char ***ret, struct err *e)
{
	int it = 0, key, value, n = 0, r;

	if (json_type(j, tok) != JSON_ARRAY)
		return wrong(e, name, "an array of strings");
	*ret = calloc((size_t)json_size(j, tok) + 1, sizeof(**ret));
	if (!*ret)
		return err_sys(e, -ENOMEM, "reading \"%s\"", name);
	while (json_next(j, tok, &it, &key, &value)) {
		r = read_bytes(j, value, name, &(*ret)[n++], e);
		if (r)
			return r;
	}
	return 0;
}

static int
read_u16(const struct json *j, int obj, const char *name, uint16_t *ret, struct err *e)
{
	uint64_t v;

	if (json_get(j, obj, name) < 0)
		return 0;
	if (json_u64(j, json_get(j, obj, name), &v) || v > UINT16_MAX)
		return wrong(e, name, "a number from 0 to 65535");
	*ret = (uint16_t)v;
	return 0;
}

static int
read_tty(const struct json *j, int tok, struct request *q, struct err *e)
{
	int it = 0, key, value, r;

	if (json_type(j, tok) != JSON_OBJECT)
		return wrong(e, "tty", "an object");
	while (json_next(j, tok, &it, &key, &value)) {
		char name[64];

		if (json_str(j, key, name, sizeof(name)))
			return err_set(
				e, -EINVAL, "\"tty\" has a member it does not know");
		if (strcmp(name, "rows") != 0 && strcmp(name, "cols") != 0 &&
			strcmp(name, "term") != 0)
			return err_set(e, -EINVAL, "\"tty\" has no member \"%s\"", name);
	}
	q->tty = true;
	r = read_u16(j, tok, "rows", &q->rows, e);
	if (!r)
		r = read_u16(j, tok, "cols", &q->cols, e);
	if (!r && json_get(j, tok, "term") >= 0)
		r = read_bytes(j, json_get(j, tok, "term"), "term", &q->term, e);
	return r;
}

static int
read_id(const struct json *j, int tok, struct request *q, struct err *e)
{
	char text[24], *end;

	if (json_str(j, tok, text, sizeof(text)) || text[0] != 'e' || text[1] < '1' ||
		text[1] > '9')
		return wrong(e, "id", "a command's id, like \"e7\"");
	errno = 0;
	q->id = strtoull(text + 1, &end, 10);
	if (errno || *end)
		return wrong(e, "id", "a command's id, like \"e7\"");
	return 0;
}

static int
read_member(const struct json *j, int tok, const char *name, unsigned member,
	struct request *q, struct err *e)
{
	uint64_t v;
	bool *flag = NULL;

	switch (member) {
	case M_ARGV:
		return read_array(j, tok, name, &q->argv, e);
	case M_ENV:
		return read_array(j, tok, name, &q->env, e);
	case M_CWD:
		return read_bytes(j, tok, name, &q->cwd, e);
	case M_USER:
		return read_bytes(j, tok, name, &q->user, e);
	case M_PATH:
		return read_bytes(j, tok, name, &q->path, e);
	case M_CONNECTION:
		if (json_u64(j, tok, &v) || v > UINT32_MAX)
			return wrong(e, name, "the number of a connection");
		q->connection = (uint32_t)v;
		return 0;
	case M_TTY:
		return read_tty(j, tok, q, e);
	case M_ID:
		return read_id(j, tok, q, e);
	case M_TIMEOUT:
		if (json_u64(j, tok, &q->timeout_ms) || q->timeout_ms > UINT32_MAX)
			return wrong(e, name, "a number of milliseconds below 2^32");
		return 0;
	case M_STDOUT:
	case M_STDERR:
		if (json_u64(j, tok, &q->offset[member == M_STDERR]))
			return wrong(e, name, "a byte offset");
		return 0;
	case M_SIGNAL:
		if (json_u64(j, tok, &v) || v < 1 || v >= (uint64_t)NSIG)
			return wrong(e, name, "a signal number");
		q->signal = (int)v;
		return 0;
	case M_PORT:
		if (json_u64(j, tok, &v) || v < 1 || v > UINT16_MAX)
			return wrong(e, name, "a port, 1 to 65535");
		q->port = (uint16_t)v;
		return 0;
	case M_LOGIN:
		flag = &q->login;
		break;
	case M_HANGUP:
		flag = &q->hangup;
		break;
	case M_STDIN:
		flag = &q->want_stdin;
		break;
	case M_DETACH:
		flag = &q->detach;
		break;
	}
	if (json_bool(j, tok, flag))
		return wrong(e, name, "true or false");
	return 0;
}

static int
check(const struct request *q, struct err *e)
{
	if (q->op == REQUEST_EXEC) {
		if (!q->argv && !q->login)
			return err_set(e, -EINVAL, "\"exec\" needs \"argv\"");
		if (q->argv && q->login)
			return err_set(e, -EINVAL,
				"\"login\" is a shell of its own and takes no \"argv\"");
		if (q->hangup && q->detach)
			return err_set(
				e, -EINVAL, "\"hangup\" does not go with \"detach\"");
		if (q->argv && (!q->argv[0] || !*q->argv[0]))
			return err_set(e, -EINVAL, "\"argv\" must name a program");
		for (char **v = q->env; v && *v; v++)
			if (**v == '=' || !strchr(*v, '='))
				return err_set(e, -EINVAL,
					"\"env\" has \"%.64s\", which is not NAME=value",
					*v);
	}
	if (q->path && !*q->path)
		return err_set(e, -EINVAL, "\"path\" is empty");
	return 0;
}

int
request_read(const char *line, size_t len, struct request *ret, struct err *e)
{
	cleanup_json struct json *j = NULL;
	cleanup_request struct request q = {0};
	int it = 0, key, value, r;
	unsigned seen = 0;
	size_t op;
	char name[64];

	r = json_parse(line, len, TOKENS_MAX, &j, e);
	if (r) {
		err_wrap(e, r, "the request is no JSON");
		return r == -ENOMEM ? r : -EINVAL;
	}
	if (json_type(j, 0) != JSON_OBJECT)
		return err_set(e, -EINVAL, "the request is no JSON object");
	if (json_str(j, json_get(j, 0, "op"), name, sizeof(name)))
		return err_set(e, -EINVAL, "the request has no \"op\"");
	for (op = 0; op < N(ops) && strcmp(ops[op].name, name) != 0; op++)
		;
	if (op == N(ops))
		return err_set(e, -EINVAL, "the agent has no operation \"%s\"", name);
	q.op = ops[op].op;
	if (q.op == REQUEST_HANDSHAKE) {
		q.handshake = calloc(1, sizeof(*q.handshake));
		r = q.handshake ? handshake_read(j, q.handshake, e)
				: err_sys(e, -ENOMEM, "identity handshake");
		if (r)
			return r;
		*ret = q;
		memset(&q, 0, sizeof(q));
		return 0;
	}

	while (json_next(j, 0, &it, &key, &value)) {
		size_t m;

		if (json_str(j, key, name, sizeof(name)))
			return err_set(e, -EINVAL, "\"%s\" has a member it does not know",
				ops[op].name);
		if (strcmp(name, "op") == 0)
			continue;
		for (m = 0; m < N(members) && strcmp(members[m].name, name) != 0; m++)
			;
		if (m == N(members) ||
			!(members[m].member & (ops[op].need | ops[op].may)))
			return err_set(e, -EINVAL, "\"%s\" has no member \"%s\"",
				ops[op].name, name);
		r = read_member(j, value, name, members[m].member, &q, e);
		if (r)
			return r;
		seen |= members[m].member;
	}
	for (size_t m = 0; m < N(members); m++)
		if (members[m].member & ops[op].need & ~seen)
			return err_set(e, -EINVAL, "\"%s\" needs \"%s\"", ops[op].name,
				members[m].name);
	r = check(&q, e);
	if (r)
		return r;
	*ret = q;
	memset(&q, 0, sizeof(q));
	return 0;
}

static void
free_array(char **v)
{
	for (char **at = v; at && *at; at++)
		free(*at);
	free(v);
}

void
request_done(struct request *r)
{
	free_array(r->argv);
	free_array(r->env);
	free(r->cwd);
	free(r->user);
	free(r->path);
	free(r->term);
	if (r->handshake)
		handshake_done(r->handshake);
	free(r->handshake);
	memset(r, 0, sizeof(*r));
}
