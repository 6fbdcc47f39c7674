#include "host/request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/json.h"
#include "common/log.h"
#include "common/vmm_wire.h"

#define BODY_TOKENS 1024 /* the largest body we take has 256 variables and 32 labels */

bool
request_is_id(const char *s)
{
	return strlen(s) == VM_ID_LEN && strspn(s, "0123456789abcdef") == VM_ID_LEN;
}

static bool
is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool
is_word(char c)
{
	return is_letter(c) || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

int
request_check_alias(const char *alias, struct err *e)
{
	char shown[128];
	size_t len = strlen(alias);
	bool ok = len >= 1 && len <= VM_ALIAS_MAX && is_letter(alias[0]);

	for (size_t i = 0; ok && i < len; i++)
		ok = is_word(alias[i]);
	if (!ok)
		return err_set(e, -EINVAL,
			"alias \"%s\": an alias starts with a letter and has at most %d "
			"letters, "
			"digits, '.', '_' and '-'",
			log_escape(shown, sizeof(shown), alias, len), VM_ALIAS_MAX);
	if (request_is_id(alias))
		return err_set(e, -EINVAL,
			"alias \"%s\" looks like a VM's id: choose one that is not 12 "
			"hex digits",
			alias);
	return 0;
}

/* One member of a body: its name and what reads it into the request. */
struct member {
	const char *name;
	int (*read)(const struct json *j, int tok, void *request, struct err *e);
};

static int
read_body(const char *what, const struct member *members, const char *body, size_t len,
	void *request, struct err *e)
{
	cleanup_json struct json *j = NULL;
	struct err why = {0};
	int it = 0, key, value, r;

	if (len == 0)
		return 0;
	if (len > REQUEST_BODY_MAX)
		return err_set(e, -E2BIG,
			"the request's body has %zu bytes; at most %u are taken", len,
			REQUEST_BODY_MAX);
	r = json_parse(body, len, BODY_TOKENS, &j, &why);
	if (r < 0)
		return err_set(e, r == -ENOMEM ? r : -EINVAL,
			"the request's body: %.400s", why.msg);
	if (json_type(j, 0) != JSON_OBJECT)
		return err_set(e, -EINVAL, "the request's body is not a JSON object");
	while (json_next(j, 0, &it, &key, &value)) {
		const struct member *m = members;
		char name[64] = "", shown[140];

		if (json_str(j, key, name, sizeof(name)) < 0) {
			size_t raw_len;
			const char *raw = json_raw(j, key, &raw_len);

			return err_set(e, -EINVAL, "unknown member \"%s\" in %s",
				log_escape(shown, sizeof(shown), raw, raw_len), what);
		}
		while (m->name && strcmp(m->name, name) != 0)
			m++;
		if (!m->name)
			return err_set(e, -EINVAL, "unknown member \"%s\" in %s",
				log_escape(shown, sizeof(shown), name, strlen(name)),
				what);
		r = m->read(j, value, request, e);
		if (r < 0)
			return r;
	}
	return 0;
}

static int
read_number(const struct json *j, int tok, const char *name, uint64_t min, uint64_t max,
	const char *unit, uint64_t *ret, struct err *e)
{
	uint64_t v;
	char shown[64];
	size_t len;
	const char *raw = json_raw(j, tok, &len);

	if (json_type(j, tok) != JSON_NUMBER)
		return err_set(e, -EINVAL, "\"%s\" is not a number", name);
	if (json_u64(j, tok, &v) < 0 || v < min || v > max)
		return err_set(e, -EINVAL,
			"\"%s\" is %s; it must be a whole number from %llu to %llu%s",
			name, log_escape(shown, sizeof(shown), raw, len),
			(unsigned long long)min, (unsigned long long)max, unit);
	*ret = v;
	return 0;
}

static int
read_text_with(const struct json *j, int tok, const char *name, const char *also,
	char *dst, size_t cap, struct err *e)
{
	int r = json_type(j, tok) == JSON_STRING ? json_str(j, tok, dst, cap) : -EINVAL;

	if (r == -ENAMETOOLONG)
		return err_set(
			e, -EINVAL, "\"%s\" is longer than %zu bytes", name, cap - 1);
	if (r < 0)
		return err_set(e, -EINVAL, "\"%s\" is not a string", name);
	for (const char *p = dst; *p; p++)
		if (((unsigned char)*p < 0x20 || *p == 0x7f) && !strchr(also, *p))
			return err_set(
				e, -EINVAL, "\"%s\" holds a control character", name);
	return 0;
}

static int
read_text(const struct json *j, int tok, const char *name, char *dst, size_t cap,
	struct err *e)
{
	return read_text_with(j, tok, name, "", dst, cap, e);
}

static int
read_flag(const struct json *j, int tok, const char *name, bool *ret, struct err *e)
{
	if (json_type(j, tok) != JSON_BOOL || json_bool(j, tok, ret) < 0)
		return err_set(e, -EINVAL, "\"%s\" is neither true nor false", name);
	return 0;
}

static int
read_alias(const struct json *j, int tok, char *dst, struct err *e)
{
	char alias[VM_ALIAS_MAX + 2]; /* one too long is still told as an alias */
	int r;

	if (json_type(j, tok) == JSON_NULL) {
		dst[0] = '\0';
		return 0;
	}
	r = read_text(j, tok, "alias", alias, sizeof(alias), e);
	if (r == 0)
		r = request_check_alias(alias, e);
	if (r == 0)
		memcpy(dst, alias, strlen(alias) + 1);
	return r;
}

static int
check_label_key(const char *key, struct err *e)
{
	char shown[160];
	size_t len = strlen(key);
	bool ok = len >= 1 && len <= VM_LABEL_KEY_MAX;

	for (size_t i = 0; ok && i < len; i++)
		ok = is_word(key[i]) || key[i] == '/';
	if (ok)
		return 0;
	return err_set(e, -EINVAL,
		"label \"%s\": a label's name has 1 to %d letters, digits, '.', '_', '-' "
		"and '/'",
		log_escape(shown, sizeof(shown), key, len), VM_LABEL_KEY_MAX);
}

static int
read_labels(const struct json *j, int tok, struct labels *ret, struct err *e)
{
	int it = 0, key, value;

	if (json_type(j, tok) != JSON_OBJECT)
		return err_set(e, -EINVAL, "\"labels\" is not an object of strings");
	if (json_size(j, tok) > VM_LABELS_MAX)
		return err_set(e, -EINVAL,
			"\"labels\" has %d members; at most %d are taken",
			json_size(j, tok), VM_LABELS_MAX);
	ret->n = 0;
	while (json_next(j, tok, &it, &key, &value)) {
		struct label *l = &ret->items[ret->n];
		char name[VM_LABEL_KEY_MAX + 2];
		int r = json_str(j, key, name, sizeof(name));

		if (r < 0)
			return err_set(e, -EINVAL,
				"\"labels\": a label's name has 1 to %d letters, digits, "
				"'.', '_', '-' "
				"and '/'",
				VM_LABEL_KEY_MAX);
		r = check_label_key(name, e);
		if (r < 0)
			return r;
		memcpy(l->key, name, strlen(name) + 1);
		r = read_text(j, value, name, l->value, sizeof(l->value), e);
		if (r < 0)
			return err_wrap(e, r, "\"labels\"");
		ret->n++;
	}
	return 0;
}

/* The readers of the tables below: `request` is the struct the table is for. */

static int
create_alias(const struct json *j, int tok, void *request, struct err *e)
{
	return read_alias(j, tok, ((struct create_request *)request)->alias, e);
}

static int
create_mem(const struct json *j, int tok, void *request, struct err *e)
{
	struct create_request *q = request;

	return read_number(j, tok, "mem_mib", VMM_MEM_MIN_MIB, VMM_MEM_MAX_MIB, " (MiB)",
		&q->mem_mib, e);
}

static int
create_vcpus(const struct json *j, int tok, void *request, struct err *e)
{
	struct create_request *q = request;
	uint64_t v;
	int r = read_number(j, tok, "vcpus", 1, VMM_VCPUS_MAX, "", &v, e);

	if (r == 0)
		q->vcpus = (uint32_t)v;
	return r;
}

static int
create_disk(const struct json *j, int tok, void *request, struct err *e)
{
	struct create_request *q = request;

	return read_number(
		j, tok, "disk_mib", 1, VM_DISK_MAX_MIB, " (MiB)", &q->disk_mib, e);
}

static int
read_image(const struct json *j, int tok, const char *name, char *dst, struct err *e)
{
	int r = read_text(j, tok, name, dst, VM_IMAGE_MAX, e);

	if (r == 0 && dst[0] == '\0')
		return err_set(e, -EINVAL, "\"%s\" is empty", name);
	return r;
}

static int
create_kernel(const struct json *j, int tok, void *request, struct err *e)
{
	return read_image(
		j, tok, "kernel", ((struct create_request *)request)->kernel, e);
}

static int
create_rootfs(const struct json *j, int tok, void *request, struct err *e)
{
	return read_image(
		j, tok, "rootfs", ((struct create_request *)request)->rootfs, e);
}

static int
create_cmdline(const struct json *j, int tok, void *request, struct err *e)
{
	struct create_request *q = request;

	return read_text(j, tok, "cmdline", q->cmdline, sizeof(q->cmdline), e);
}

static int
create_labels(const struct json *j, int tok, void *request, struct err *e)
{
	return read_labels(j, tok, &((struct create_request *)request)->labels, e);
}

static int
create_wait(const struct json *j, int tok, void *request, struct err *e)
{
	return read_flag(j, tok, "wait", &((struct create_request *)request)->wait, e);
}

/* An object of strings. */
static int
read_env(const struct json *j, int tok, const char *what, struct env *env, struct err *e)
{
	int it = 0, key, value, r = 0;

	if (json_type(j, tok) != JSON_OBJECT)
		return err_set(e, -EINVAL, "\"%s\" is not an object of strings", what);
	while (r == 0 && json_next(j, tok, &it, &key, &value)) {
		cleanup_free char *name = NULL, *text = NULL, *entry = NULL;

		if (json_str_dup(j, key, &name) < 0 || json_str_dup(j, value, &text) < 0)
			return err_set(e, -EINVAL,
				"\"%s\" is not an object of strings without NUL", what);
		/* Else a name with "=" would be split elsewhere. */
		if (strchr(name, '='))
			return err_set(e, -EINVAL,
				"\"%s\" has a variable with a \"=\" in its name", what);
		if (asprintf(&entry, "%s=%s", name, text) < 0) {
			entry = NULL;
			return err_set(e, -ENOMEM, "out of memory");
		}
		r = env_set(env, entry, e);
	}
	return r;
}

static int
create_env(const struct json *j, int tok, void *request, struct err *e)
{
	return read_env(j, tok, "env", &((struct create_request *)request)->env, e);
}

static const struct member create_members[] = {
	{"alias", create_alias},
	{"mem_mib", create_mem},
	{"vcpus", create_vcpus},
	{"disk_mib", create_disk},
	{"kernel", create_kernel},
	{"rootfs", create_rootfs},
	{"cmdline", create_cmdline},
	{"env", create_env},
	{"labels", create_labels},
	{"wait", create_wait},
	{NULL, NULL},
};

int
request_create(const char *body, size_t len, struct create_request *ret, struct err *e)
{
	struct create_request q = {
		.mem_mib = 512,
		.vcpus = 1,
		.kernel = "default",
		.rootfs = "default",
		.wait = true,
	};
	int r = read_body("POST /v1/vms", create_members, body, len, &q, e);

	if (r == 0)
		*ret = q;
	else
		env_done(&q.env);
	return r;
}

static int
branch_count(const struct json *j, int tok, void *request, struct err *e)
{
	struct branch_request *q = request;
	uint64_t v;
	int r = read_number(j, tok, "count", 1, VM_BRANCH_MAX, "", &v, e);

	if (r == 0)
		q->count = (uint32_t)v;
	return r;
}

static int
branch_alias(const struct json *j, int tok, void *request, struct err *e)
{
	return read_alias(j, tok, ((struct branch_request *)request)->alias, e);
}

static int
branch_labels(const struct json *j, int tok, void *request, struct err *e)
{
	return read_labels(j, tok, &((struct branch_request *)request)->labels, e);
}

static int
branch_wait(const struct json *j, int tok, void *request, struct err *e)
{
	return read_flag(j, tok, "wait", &((struct branch_request *)request)->wait, e);
}

static int
branch_env(const struct json *j, int tok, void *request, struct err *e)
{
	return read_env(j, tok, "env", &((struct branch_request *)request)->env, e);
}

static const struct member branch_members[] = {
	{"env", branch_env},
	{"count", branch_count},
	{"alias", branch_alias},
	{"labels", branch_labels},
	{"wait", branch_wait},
	{NULL, NULL},
};

static int
read_branch(const char *what, const char *body, size_t len, struct branch_request *ret,
	struct err *e)
{
	struct branch_request q = {.count = 1, .wait = true};
	int r = read_body(what, branch_members, body, len, &q, e);

	if (r < 0) {
		env_done(&q.env);
		return r;
	}
	if (q.count > 1 && q.alias[0]) {
		/* The last child's alias, "<alias>-<count - 1>", must be one too. */
		char last[VM_ALIAS_MAX + 16];

		snprintf(last, sizeof(last), "%s-%u", q.alias, q.count - 1);
		r = request_check_alias(last, e);
		if (r < 0) {
			env_done(&q.env);
			return r;
		}
	}
	*ret = q;
	return 0;
}

int
request_branch(const char *body, size_t len, struct branch_request *ret, struct err *e)
{
	return read_branch("POST /v1/vms/{vm}/branch", body, len, ret, e);
}

int
request_spawn(const char *body, size_t len, struct branch_request *ret, struct err *e)
{
	return read_branch("POST /v1/commits/{commit}/run", body, len, ret, e);
}

static int
commit_message(const struct json *j, int tok, void *request, struct err *e)
{
	struct commit_request *q = request;

	return read_text_with(
		j, tok, "message", "\n\t", q->message, sizeof(q->message), e);
}

static int
commit_tags(const struct json *j, int tok, void *request, struct err *e)
{
	struct commit_request *q = request;
	int it = 0, key, value, r;

	if (json_type(j, tok) != JSON_ARRAY)
		return err_set(e, -EINVAL, "\"tags\" is not an array of strings");
	if (json_size(j, tok) > COMMIT_TAGS_MAX)
		return err_set(e, -EINVAL,
			"\"tags\" has %d elements; at most %d are taken",
			json_size(j, tok), COMMIT_TAGS_MAX);
	q->n_tags = 0;
	while (json_next(j, tok, &it, &key, &value)) {
		r = read_text(
			j, value, "tags", q->tags[q->n_tags], sizeof(q->tags[0]), e);
		if (r == 0 && !q->tags[q->n_tags][0])
			r = err_set(e, -EINVAL, "\"tags\" has an empty name");
		if (r < 0)
			return r;
		q->n_tags++;
	}
	return 0;
}

static int
commit_labels(const struct json *j, int tok, void *request, struct err *e)
{
	return read_labels(j, tok, &((struct commit_request *)request)->labels, e);
}

static const struct member commit_members[] = {
	{"message", commit_message},
	{"tags", commit_tags},
	{"labels", commit_labels},
	{NULL, NULL},
};

int
request_commit(const char *body, size_t len, struct commit_request *ret, struct err *e)
{
	struct commit_request q = {0};
	int r = read_body("POST /v1/vms/{vm}/commit", commit_members, body, len, &q, e);

	if (r == 0)
		*ret = q;
	return r;
}

static int
tag_commit(const struct json *j, int tok, void *request, struct err *e)
{
	struct tag_request *q = request;

	return read_text(j, tok, "commit", q->commit, sizeof(q->commit), e);
}

static int
tag_move(const struct json *j, int tok, void *request, struct err *e)
{
	return read_flag(j, tok, "move", &((struct tag_request *)request)->move, e);
}

static const struct member tag_members[] = {
	{"commit", tag_commit},
	{"move", tag_move},
	{NULL, NULL},
};

int
request_tag(const char *body, size_t len, struct tag_request *ret, struct err *e)
{
	struct tag_request q = {0};
	int r = read_body("PUT /v1/tags/{tag}", tag_members, body, len, &q, e);

	if (r < 0)
		return r;
	if (!q.commit[0])
		return err_set(e, -EINVAL,
			"\"commit\" is missing: an id, a beginning of one, or a tag");
	*ret = q;
	return 0;
}

struct alias_body {
	struct alias_request q;
	bool given;
};

static int
alias_alias(const struct json *j, int tok, void *request, struct err *e)
{
	struct alias_body *b = request;

	b->given = true;
	return read_alias(j, tok, b->q.alias, e);
}

static const struct member alias_members[] = {
	{"alias", alias_alias},
	{NULL, NULL},
};

int
request_alias(const char *body, size_t len, struct alias_request *ret, struct err *e)
{
	struct alias_body b = {0};
	int r = read_body("PUT /v1/vms/{vm}/alias", alias_members, body, len, &b, e);

	if (r < 0)
		return r;
	if (!b.given)
		return err_set(
			e, -EINVAL, "\"alias\" is missing: a name, or null for none");
	*ret = b.q;
	return 0;
}

static int
stop_force(const struct json *j, int tok, void *request, struct err *e)
{
	return read_flag(j, tok, "force", &((struct stop_request *)request)->force, e);
}

static int
stop_timeout(const struct json *j, int tok, void *request, struct err *e)
{
	struct stop_request *q = request;
	uint64_t v;
	int r = read_number(
		j, tok, "timeout_ms", 1, VM_STOP_TIMEOUT_MAX_MS, " (ms)", &v, e);

	if (r == 0)
		q->timeout_ms = (uint32_t)v;
	return r;
}

static const struct member stop_members[] = {
	{"force", stop_force},
	{"timeout_ms", stop_timeout},
	{NULL, NULL},
};

int
request_stop(const char *body, size_t len, struct stop_request *ret, struct err *e)
{
	struct stop_request q = {.timeout_ms = VM_STOP_TIMEOUT_MS};
	int r = read_body("POST /v1/vms/{vm}/stop", stop_members, body, len, &q, e);

	if (r == 0)
		*ret = q;
	return r;
}

static int
start_wait(const struct json *j, int tok, void *request, struct err *e)
{
	return read_flag(j, tok, "wait", &((struct start_request *)request)->wait, e);
}

static const struct member start_members[] = {
	{"wait", start_wait},
	{NULL, NULL},
};

int
request_start(const char *body, size_t len, struct start_request *ret, struct err *e)
{
	struct start_request q = {.wait = true};
	int r = read_body("POST /v1/vms/{vm}/start", start_members, body, len, &q, e);

	if (r == 0)
		*ret = q;
	return r;
}

static int
resize_disk(const struct json *j, int tok, void *request, struct err *e)
{
	struct resize_request *q = request;

	return read_number(
		j, tok, "disk_mib", 1, VM_DISK_MAX_MIB, " (MiB)", &q->disk_mib, e);
}

static const struct member resize_members[] = {
	{"disk_mib", resize_disk},
	{NULL, NULL},
};

int
request_resize(const char *body, size_t len, struct resize_request *ret, struct err *e)
{
	struct resize_request q = {0};
	int r = read_body("POST /v1/vms/{vm}/resize", resize_members, body, len, &q, e);

	if (r < 0)
		return r;
	if (!q.disk_mib)
		return err_set(
			e, -EINVAL, "\"disk_mib\" is missing: the new size in MiB");
	*ret = q;
	return 0;
}

static int
environment_set(const struct json *j, int tok, void *request, struct err *e)
{
	return read_env(j, tok, "set", &((struct environment_request *)request)->set, e);
}

static int
environment_delete(const struct json *j, int tok, void *request, struct err *e)
{
	struct environment_request *q = request;
	int it = 0, key, value;

	if (json_type(j, tok) != JSON_ARRAY || json_size(j, tok) > ENV_VARS_MAX)
		return err_set(e, -EINVAL,
			"\"delete\" is not an array of at most %d names", ENV_VARS_MAX);
	q->remove = calloc((size_t)json_size(j, tok) + 1, sizeof(*q->remove));
	if (!q->remove)
		return err_set(e, -ENOMEM, "out of memory");
	while (json_next(j, tok, &it, &key, &value))
		if (json_str(j, value, q->remove[q->n_remove++], sizeof(*q->remove)) < 0)
			return err_set(e, -EINVAL,
				"\"delete\" is not an array of at most %d names",
				ENV_VARS_MAX);
	return 0;
}

static const struct member environment_members[] = {
	{"set", environment_set},
	{"delete", environment_delete},
	{NULL, NULL},
};

void
environment_request_done(struct environment_request *q)
{
	env_done(&q->set);
	free(q->remove);
	*q = (struct environment_request){0};
}

int
request_environment(
	const char *body, size_t len, struct environment_request *ret, struct err *e)
{
	struct environment_request q = {0};
	int r = read_body("PUT /v1/environment", environment_members, body, len, &q, e);

	if (r == 0)
		*ret = q;
	else
		environment_request_done(&q);
	return r;
}

static const struct member no_members[] = {{NULL, NULL}};

int
request_empty(const char *body, size_t len, struct err *e)
{
	return read_body("a call that takes none", no_members, body, len, NULL, e);
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Percent-decodes len bytes. Control characters, decoded or not, are refused: nothing we
 * name has any. */
static int
decode(const char *src, size_t len, char *dst, size_t cap)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		int c = (unsigned char)src[i];

		if (c == '%') {
			int hi = len - i > 2 ? hex_digit(src[i + 1]) : -1;
			int lo = len - i > 2 ? hex_digit(src[i + 2]) : -1;

			if (hi < 0 || lo < 0)
				return -EINVAL;
			c = hi * 16 + lo;
			i += 2;
		}
		if (c < 0x20 || c == 0x7f)
			return -EINVAL;
		if (n + 1 >= cap)
			return -ENAMETOOLONG;
		dst[n++] = (char)c;
	}
	dst[n] = '\0';
	return 0;
}

static int
query_flag(const char *name, const char *value, bool *ret, struct err *e)
{
	if (!value || (strcmp(value, "1") != 0 && strcmp(value, "0") != 0))
		return err_set(e, -EINVAL, "\"%s\" must be 0 or 1", name);
	*ret = value[0] == '1';
	return 0;
}

static int
query_number(const char *name, const char *value, uint64_t *ret, struct err *e)
{
	char *end;

	errno = 0;
	if (value && value[0] >= '0' && value[0] <= '9') {
		*ret = strtoull(value, &end, 10);
		if (!errno && !*end)
			return 0;
	}
	return err_set(e, -EINVAL, "\"%s\" must be a number", name);
}

static int
query_label(char *value, struct labels *labels, struct err *e)
{
	char *eq = value ? strchr(value, '=') : NULL;
	struct label *l = &labels->items[labels->n];
	int r;

	if (!eq)
		return err_set(e, -EINVAL, "\"label\" must be name=value");
	if (labels->n == VM_LABELS_MAX)
		return err_set(
			e, -EINVAL, "more than %d labels are asked for", VM_LABELS_MAX);
	*eq = '\0';
	r = check_label_key(value, e);
	if (r < 0)
		return r;
	if (strlen(eq + 1) > VM_LABEL_VALUE_MAX)
		return err_set(e, -EINVAL,
			"label \"%s\": the value is longer than %d bytes", value,
			VM_LABEL_VALUE_MAX);
	memcpy(l->key, value, strlen(value) + 1);
	memcpy(l->value, eq + 1, strlen(eq + 1) + 1);
	labels->n++;
	return 0;
}

static int
query_name(const char *name, const char *value, char *dst, size_t cap, struct err *e)
{
	if (!value || !value[0] || strlen(value) >= cap)
		return err_set(e, -EINVAL, "\"%s\" must be a name of 1 to %zu letters",
			name, cap - 1);
	memcpy(dst, value, strlen(value) + 1);
	return 0;
}

static int
read_query(const char *query, struct route *route, struct err *e)
{
	bool deletes = route->call == CALL_DELETE || route->call == CALL_COMMIT_DELETE;

	while (*query) {
		size_t len = strcspn(query, "&");
		char item[VM_LABEL_KEY_MAX + VM_LABEL_VALUE_MAX + 16], shown[160];
		char *eq, *value;
		int r;

		if (len == 0) {
			query++;
			continue;
		}
		if (decode(query, len, item, sizeof(item)) < 0)
			return err_set(e, -EINVAL,
				"the query \"%s\" is too long or badly encoded",
				log_escape(shown, sizeof(shown), query, len));
		query += len;
		eq = strchr(item, '=');
		value = eq ? eq + 1 : NULL;
		if (eq)
			*eq = '\0';
		if (strcmp(item, "recursive") == 0 && deletes)
			r = query_flag(item, value, &route->recursive, e);
		else if (strcmp(item, "dry_run") == 0 && deletes)
			r = query_flag(item, value, &route->dry_run, e);
		else if (strcmp(item, "with") == 0 && route->call == CALL_DIFF)
			r = query_name(
				item, value, route->other, sizeof(route->other), e);
		else if (strcmp(item, "files") == 0 && route->call == CALL_DIFF)
			r = query_flag(item, value, &route->files, e);
		else if (strcmp(item, "memory") == 0 && route->call == CALL_LIST)
			r = query_flag(item, value, &route->memory, e);
		else if (strcmp(item, "after") == 0 &&
			 (route->call == CALL_REPORTS || route->call == CALL_VM_REPORTS))
			r = query_number(item, value, &route->after, e);
		else if (strcmp(item, "label") == 0 && route->call == CALL_LIST)
			r = query_label(value, &route->labels, e);
		else
			r = err_set(e, -EINVAL, "unknown query parameter \"%s\"",
				log_escape(shown, sizeof(shown), item, strlen(item)));
		if (r < 0)
			return r;
	}
	return 0;
}

/* Every call there is. "*" stands for {vm}, {commit} or {tag}. */
static const struct {
	const char *method;
	const char *path;
	enum call call;
} calls[] = {
	{"GET", "/v1/version", CALL_VERSION},
	{"GET", "/v1/vms", CALL_LIST},
	{"POST", "/v1/vms", CALL_CREATE},
	{"GET", "/v1/vms/*", CALL_INFO},
	{"DELETE", "/v1/vms/*", CALL_DELETE},
	{"POST", "/v1/vms/*/branch", CALL_BRANCH},
	{"PUT", "/v1/vms/*/alias", CALL_ALIAS},
	{"POST", "/v1/vms/*/pause", CALL_PAUSE},
	{"POST", "/v1/vms/*/resume", CALL_RESUME},
	{"POST", "/v1/vms/*/stop", CALL_STOP},
	{"POST", "/v1/vms/*/start", CALL_START},
	{"POST", "/v1/vms/*/resize", CALL_RESIZE},
	{"GET", "/v1/vms/*/disk", CALL_DISK},
	{"POST", "/v1/vms/*/commit", CALL_COMMIT},
	{"GET", "/v1/commits", CALL_COMMITS},
	{"GET", "/v1/commits/*", CALL_COMMIT_INFO},
	{"DELETE", "/v1/commits/*", CALL_COMMIT_DELETE},
	{"POST", "/v1/commits/*/run", CALL_SPAWN},
	{"GET", "/v1/commits/*/history", CALL_HISTORY},
	{"GET", "/v1/commits/*/diff", CALL_DIFF},
	{"POST", "/v1/commits/*/verify", CALL_VERIFY},
	{"POST", "/v1/verify", CALL_VERIFY_ALL},
	{"POST", "/v1/gc", CALL_GC},
	{"GET", "/v1/tags", CALL_TAGS},
	{"PUT", "/v1/tags/*", CALL_TAG_PUT},
	{"DELETE", "/v1/tags/*", CALL_TAG_DELETE},
	{"GET", "/v1/environment", CALL_ENV},
	{"PUT", "/v1/environment", CALL_ENV_PUT},
	{"GET", "/v1/reports", CALL_REPORTS},
	{"GET", "/v1/vms/*/reports", CALL_VM_REPORTS},
	{"POST", "/v1/shutdown", CALL_SHUTDOWN},
};

/* Does path (len bytes) match the pattern? *ret_vm, *ret_len: where the "*" part lies. */
static bool
path_matches(const char *pattern, const char *path, size_t len, const char **ret_vm,
	size_t *ret_len)
{
	const char *end = path + len;

	*ret_vm = NULL;
	for (; *pattern; pattern++) {
		if (*pattern == '*') {
			*ret_vm = path;
			while (path < end && *path != '/')
				path++;
			*ret_len = (size_t)(path - *ret_vm);
			if (*ret_len == 0)
				return false;
		} else if (path < end && *path == *pattern) {
			path++;
		} else {
			return false;
		}
	}
	return path == end;
}

int
request_route(const char *method, const char *target, struct route *ret, struct err *e)
{
	size_t path_len = strcspn(target, "?");
	bool path_known = false;
	char shown[200], shown_method[40];

	if (strlen(target) > REQUEST_TARGET_MAX)
		return err_set(e, -EINVAL, "the request's path is longer than %d bytes",
			REQUEST_TARGET_MAX);
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		struct route route = {.call = calls[i].call};
		const char *vm;
		size_t vm_len = 0;
		int r;

		if (!path_matches(calls[i].path, target, path_len, &vm, &vm_len))
			continue;
		path_known = true;
		if (strcmp(method, calls[i].method) != 0)
			continue;
		if (vm) {
			bool is_vm = strncmp(calls[i].path, "/v1/vms/", 8) == 0;

			r = decode(vm, vm_len, is_vm ? route.vm : route.name,
				is_vm ? sizeof(route.vm) : sizeof(route.name));
			if (r < 0)
				return err_set(e, r == -ENAMETOOLONG ? -ENOENT : -EINVAL,
					"\"%s\" names no %s: it is %s",
					log_escape(shown, sizeof(shown), vm,
						vm_len > 60 ? 60 : vm_len),
					is_vm ? "VM" : "commit",
					r == -ENAMETOOLONG ? "too long"
							   : "badly encoded");
		}
		r = target[path_len] ? read_query(target + path_len + 1, &route, e) : 0;
		if (r == 0)
			*ret = route;
		return r;
	}
	log_escape(shown, sizeof(shown), target, path_len > 100 ? 100 : path_len);
	log_escape(shown_method, sizeof(shown_method), method, strnlen(method, 16));
	if (path_known)
		return err_set(e, -EOPNOTSUPP, "%s takes no %s", shown, shown_method);
	return err_set(e, -ENOENT, "there is no call %s %s", shown_method, shown);
}
