#include "host/api/request.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/json.h"
#include "common/log.h"
#include "common/wire/vmm_wire.h"

#define BODY_TOKENS 1024 /* the largest body we take has 256 variables and 32 labels */

/* One member of a body: its name, and what reads it into the request's field at `at`. */
struct member {
	const char *name;
	int (*read)(const struct json *j, int tok, const char *name, void *field,
		struct err *e);
	size_t at;
};
#define FIELD(request, field) (((struct request *)0)->field)
#define SAME_TYPE(a, type) __builtin_types_compatible_p(__typeof__(a), type)
/* A field of another type than its reader is made for does not compile. */
#define MEMBER(request, name, read, field) \
	{ \
		name, read, \
			offsetof(struct request, field) + \
				0 * sizeof(char[SAME_TYPE(FIELD(request, field), \
							OF_##read) \
							? 1 \
							: -1]) \
	}
#define OF_read_alias char[VM_ALIAS_MAX + 1]
#define OF_read_cmdline char[VM_CMDLINE_MAX]
#define OF_read_commit_name char[COMMIT_NAME_MAX + 1]
#define OF_read_count uint32_t
#define OF_read_bps uint64_t
#define OF_read_disk uint64_t
#define OF_read_env struct env
#define OF_read_expire uint64_t
#define OF_read_flag bool
#define OF_read_iops uint64_t
#define OF_read_image char[VM_IMAGE_MAX]
#define OF_read_keep uint32_t
#define OF_read_labels struct labels
#define OF_read_mem uint64_t
#define OF_read_message char[COMMIT_MESSAGE_MAX + 1]
#define OF_read_timeout uint32_t
#define OF_read_vcpus uint32_t
#define MEMBERS_END \
	{ \
		NULL, NULL, 0 \
	}

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
		r = m->read(j, value, m->name, (char *)request + m->at, e);
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

/* From 1 on. */
static int
read_u32(const struct json *j, int tok, const char *name, uint32_t max, const char *unit,
	uint32_t *ret, struct err *e)
{
	uint64_t v;
	int r = read_number(j, tok, name, 1, max, unit, &v, e);

	if (r == 0)
		*ret = (uint32_t)v;
	return r;
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
read_flag(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	if (json_type(j, tok) != JSON_BOOL || json_bool(j, tok, ret) < 0)
		return err_set(e, -EINVAL, "\"%s\" is neither true nor false", name);
	return 0;
}

static int
read_alias(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	char alias[VM_ALIAS_MAX + 2]; /* one too long is still told as an alias */
	char *dst = ret;
	int r;

	if (json_type(j, tok) == JSON_NULL) {
		dst[0] = '\0';
		return 0;
	}
	r = read_text(j, tok, name, alias, sizeof(alias), e);
	if (r == 0)
		r = vm_spec_check_alias(alias, e);
	if (r == 0)
		memcpy(dst, alias, strlen(alias) + 1);
	return r;
}

static int
read_labels(const struct json *j, int tok, const char *name, void *labels, struct err *e)
{
	struct labels *ret = labels;
	int it = 0, key, value;

	if (json_type(j, tok) != JSON_OBJECT)
		return err_set(e, -EINVAL, "\"%s\" is not an object of strings", name);
	if (json_size(j, tok) > VM_LABELS_MAX)
		return err_set(e, -EINVAL, "\"%s\" has %d members; at most %d are taken",
			name, json_size(j, tok), VM_LABELS_MAX);
	ret->n = 0;
	while (json_next(j, tok, &it, &key, &value)) {
		struct label *l = &ret->items[ret->n];
		char own[VM_LABEL_KEY_MAX + 2];
		int r = json_str(j, key, own, sizeof(own));

		if (r < 0)
			return err_set(e, -EINVAL,
				"\"%s\": a label's name has 1 to %d letters, digits, '.', '_', '-' and '/'",
				name, VM_LABEL_KEY_MAX);
		r = vm_spec_check_label(own, e);
		if (r < 0)
			return r;
		memcpy(l->key, own, strlen(own) + 1);
		r = read_text(j, value, own, l->value, sizeof(l->value), e);
		if (r < 0)
			return err_wrap(e, r, "\"%s\"", name);
		ret->n++;
	}
	return 0;
}

/* The readers of the tables below. */

static int
read_mem(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_number(
		j, tok, name, VMM_MEM_MIN_MIB, VMM_MEM_MAX_MIB, " (MiB)", ret, e);
}

static int
read_vcpus(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_u32(j, tok, name, VMM_VCPUS_MAX, "", ret, e);
}

static int
read_disk(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_number(j, tok, name, 1, VM_DISK_MAX_MIB, " (MiB)", ret, e);
}

static int
read_bps(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	uint64_t v = 0;
	int r = read_number(j, tok, name, 0, VM_DISK_BPS_MAX, " (bytes in a second)", &v, e);

	if (r == 0 && v && v < VMM_DISK_BYTES_MIN)
		return err_set(e, -EINVAL,
			"\"%s\" is %llu; it must be 0 (no limit) or %d bytes in a second and more",
			name, (unsigned long long)v, VMM_DISK_BYTES_MIN);
	if (r == 0)
		*(uint64_t *)ret = v;
	return r;
}

static int
read_iops(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_number(
		j, tok, name, 0, VM_DISK_IOPS_MAX, " (requests in a second)", ret, e);
}

static int
read_image(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	int r = read_text(j, tok, name, ret, VM_IMAGE_MAX, e);

	if (r == 0 && *(char *)ret == '\0')
		return err_set(e, -EINVAL, "\"%s\" is empty", name);
	return r;
}

static int
read_cmdline(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_text(j, tok, name, ret, VM_CMDLINE_MAX, e);
}

/* An object of strings. */
static int
read_env(const struct json *j, int tok, const char *name, void *env, struct err *e)
{
	int it = 0, key, value, r = 0;

	if (json_type(j, tok) != JSON_OBJECT)
		return err_set(e, -EINVAL, "\"%s\" is not an object of strings", name);
	while (r == 0 && json_next(j, tok, &it, &key, &value)) {
		cleanup_free char *own = NULL, *text = NULL, *entry = NULL;

		if (json_str_dup(j, key, &own) < 0 || json_str_dup(j, value, &text) < 0)
			return err_set(e, -EINVAL,
				"\"%s\" is not an object of strings without NUL", name);
		/* Else a name with "=" would be split elsewhere. */
		if (strchr(own, '='))
			return err_set(e, -EINVAL,
				"\"%s\" has a variable with a \"=\" in its name", name);
		if (asprintf(&entry, "%s=%s", own, text) < 0) {
			entry = NULL;
			return err_set(e, -ENOMEM, "out of memory");
		}
		r = env_set(env, entry, e);
	}
	return r;
}

static const struct member create_members[] = {
	MEMBER(create_request, "alias", read_alias, alias),
	MEMBER(create_request, "mem_mib", read_mem, mem_mib),
	MEMBER(create_request, "vcpus", read_vcpus, vcpus),
	MEMBER(create_request, "disk_mib", read_disk, disk_mib),
	MEMBER(create_request, "disk_bps", read_bps, limits.bps),
	MEMBER(create_request, "disk_iops", read_iops, limits.iops),
	MEMBER(create_request, "kernel", read_image, kernel),
	MEMBER(create_request, "rootfs", read_image, rootfs),
	MEMBER(create_request, "cmdline", read_cmdline, cmdline),
	MEMBER(create_request, "env", read_env, env),
	MEMBER(create_request, "labels", read_labels, labels),
	MEMBER(create_request, "wait", read_flag, wait),
	MEMBERS_END,
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
read_count(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_u32(j, tok, name, VM_BRANCH_MAX, "", ret, e);
}

static const struct member branch_members[] = {
	MEMBER(branch_request, "env", read_env, env),
	MEMBER(branch_request, "count", read_count, count),
	MEMBER(branch_request, "alias", read_alias, alias),
	MEMBER(branch_request, "labels", read_labels, labels),
	MEMBER(branch_request, "wait", read_flag, wait),
	MEMBER(branch_request, "keep_fork_point", read_flag, keep_fork_point),
	MEMBERS_END,
};

static const struct member spawn_members[] = {
	MEMBER(branch_request, "env", read_env, env),
	MEMBER(branch_request, "count", read_count, count),
	MEMBER(branch_request, "alias", read_alias, alias),
	MEMBER(branch_request, "labels", read_labels, labels),
	MEMBER(branch_request, "wait", read_flag, wait),
	MEMBER(branch_request, "full", read_flag, full),
	MEMBERS_END,
};

static int
read_branch(const char *what, const struct member *members, const char *body, size_t len,
	struct branch_request *ret, struct err *e)
{
	struct branch_request q = {.count = 1, .wait = true};
	int r = read_body(what, members, body, len, &q, e);

	if (r < 0) {
		env_done(&q.env);
		return r;
	}
	if (q.count > 1 && q.alias[0]) {
		/* The last child's alias, "<alias>-<count - 1>", must be one too. */
		char last[VM_ALIAS_MAX + 16];

		snprintf(last, sizeof(last), "%s-%u", q.alias, q.count - 1);
		r = vm_spec_check_alias(last, e);
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
	return read_branch("POST /v1/vms/{vm}/branch", branch_members, body, len, ret, e);
}

int
request_spawn(const char *body, size_t len, struct branch_request *ret, struct err *e)
{
	return read_branch(
		"POST /v1/commits/{commit}/run", spawn_members, body, len, ret, e);
}

static int
read_message(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_text_with(j, tok, name, "\n\t", ret, COMMIT_MESSAGE_MAX + 1, e);
}

static int
read_tags(const struct json *j, int tok, const char *name, void *request, struct err *e)
{
	struct commit_request *q = request;
	int it = 0, key, value, r;

	if (json_type(j, tok) != JSON_ARRAY)
		return err_set(e, -EINVAL, "\"%s\" is not an array of strings", name);
	if (json_size(j, tok) > COMMIT_TAGS_MAX)
		return err_set(e, -EINVAL, "\"%s\" has %d elements; at most %d are taken",
			name, json_size(j, tok), COMMIT_TAGS_MAX);
	q->n_tags = 0;
	while (json_next(j, tok, &it, &key, &value)) {
		r = read_text(j, value, name, q->tags[q->n_tags], sizeof(q->tags[0]), e);
		if (r == 0 && !q->tags[q->n_tags][0])
			r = err_set(e, -EINVAL, "\"%s\" has an empty name", name);
		if (r < 0)
			return r;
		q->n_tags++;
	}
	return 0;
}

static int
read_expire(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_number(j, tok, name, 1, COMMIT_EXPIRE_MAX_MS, " ms", ret, e);
}

static int
read_keep(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_u32(j, tok, name, COMMIT_KEEP_MAX, "", ret, e);
}

static const struct member commit_members[] = {
	MEMBER(commit_request, "message", read_message, message),
	{"tags", read_tags, 0}, /* into several fields */
	MEMBER(commit_request, "labels", read_labels, labels),
	MEMBER(commit_request, "expire_ms", read_expire, expire_ms),
	MEMBER(commit_request, "keep_last", read_keep, keep_last),
	MEMBERS_END,
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
read_older(const struct json *j, int tok, const char *name, void *request, struct err *e)
{
	struct prune_request *q = request;

	q->has_older = true;
	return read_number(
		j, tok, name, 0, COMMIT_EXPIRE_MAX_MS, " ms", &q->older_than_ms, e);
}

static const struct member prune_members[] = {
	MEMBER(prune_request, "dry_run", read_flag, dry_run),
	{"older_than_ms", read_older, 0}, /* into two fields */
	MEMBER(prune_request, "keep_last", read_keep, keep_last),
	MEMBER(prune_request, "labels", read_labels, labels),
	MEMBERS_END,
};

int
request_prune(const char *body, size_t len, struct prune_request *ret, struct err *e)
{
	struct prune_request q = {0};
	int r = read_body("POST /v1/prune", prune_members, body, len, &q, e);

	if (r == 0)
		*ret = q;
	return r;
}

static int
read_commit_name(
	const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_text(j, tok, name, ret, COMMIT_NAME_MAX + 1, e);
}

static const struct member reset_members[] = {
	MEMBER(reset_request, "commit", read_commit_name, commit),
	MEMBER(reset_request, "wait", read_flag, wait),
	MEMBERS_END,
};

int
request_reset(const char *body, size_t len, struct reset_request *ret, struct err *e)
{
	struct reset_request q = {.wait = true};
	int r = read_body("POST /v1/vms/{vm}/reset", reset_members, body, len, &q, e);

	if (r == 0)
		*ret = q;
	return r;
}

static const struct member tag_members[] = {
	MEMBER(tag_request, "commit", read_commit_name, commit),
	MEMBER(tag_request, "move", read_flag, move),
	MEMBERS_END,
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
read_given_alias(
	const struct json *j, int tok, const char *name, void *body, struct err *e)
{
	struct alias_body *b = body;

	b->given = true;
	return read_alias(j, tok, name, b->q.alias, e);
}

static const struct member alias_members[] = {
	{"alias", read_given_alias, 0},
	MEMBERS_END,
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
read_timeout(const struct json *j, int tok, const char *name, void *ret, struct err *e)
{
	return read_u32(j, tok, name, VM_STOP_TIMEOUT_MAX_MS, " (ms)", ret, e);
}

static const struct member stop_members[] = {
	MEMBER(stop_request, "force", read_flag, force),
	MEMBER(stop_request, "timeout_ms", read_timeout, timeout_ms),
	MEMBERS_END,
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

static const struct member start_members[] = {
	MEMBER(start_request, "wait", read_flag, wait),
	MEMBERS_END,
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

static const struct member resize_members[] = {
	MEMBER(resize_request, "disk_mib", read_disk, disk_mib),
	MEMBER(resize_request, "mem_target_mib", read_mem, mem_target_mib),
	MEMBERS_END,
};

int
request_resize(const char *body, size_t len, struct resize_request *ret, struct err *e)
{
	struct resize_request q = {0};
	int r = read_body("POST /v1/vms/{vm}/resize", resize_members, body, len, &q, e);

	if (r < 0)
		return r;
	if (!q.disk_mib && !q.mem_target_mib)
		return err_set(e, -EINVAL,
			"\"disk_mib\" is missing: the new size in MiB, or \"mem_target_mib\": the memory that the guest shall keep");
	*ret = q;
	return 0;
}

static const struct member limit_members[] = {
	MEMBER(limit_request, "disk_bps", read_bps, limits.bps),
	MEMBER(limit_request, "disk_iops", read_iops, limits.iops),
	MEMBERS_END,
};

int
request_limit(const char *body, size_t len, struct limit_request *ret, struct err *e)
{
	struct limit_request q = {{LIMIT_AS_IT_IS, LIMIT_AS_IT_IS}};
	int r = read_body("PUT /v1/vms/{vm}/limits", limit_members, body, len, &q, e);

	if (r < 0)
		return r;
	if (q.limits.bps == LIMIT_AS_IT_IS && q.limits.iops == LIMIT_AS_IT_IS)
		return err_set(e, -EINVAL,
			"\"disk_bps\" and \"disk_iops\" are missing: one of them at least");
	*ret = q;
	return 0;
}

static int
read_names(const struct json *j, int tok, const char *name, void *request, struct err *e)
{
	struct environment_request *q = request;
	int it = 0, key, value;

	if (json_type(j, tok) != JSON_ARRAY || json_size(j, tok) > ENV_VARS_MAX)
		return err_set(e, -EINVAL, "\"%s\" is not an array of at most %d names",
			name, ENV_VARS_MAX);
	q->remove = calloc((size_t)json_size(j, tok) + 1, sizeof(*q->remove));
	if (!q->remove)
		return err_set(e, -ENOMEM, "out of memory");
	while (json_next(j, tok, &it, &key, &value))
		if (json_str(j, value, q->remove[q->n_remove++], sizeof(*q->remove)) < 0)
			return err_set(e, -EINVAL,
				"\"%s\" is not an array of at most %d names", name,
				ENV_VARS_MAX);
	return 0;
}

static const struct member environment_members[] = {
	MEMBER(environment_request, "set", read_env, set),
	{"delete", read_names, 0},
	MEMBERS_END,
};

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

static const struct member no_members[] = {MEMBERS_END};

int
request_empty(const char *body, size_t len, struct err *e)
{
	return read_body("a call that takes none", no_members, body, len, NULL, e);
}
