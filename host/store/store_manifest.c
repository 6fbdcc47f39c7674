/*
 * Manifests. A text is read, written again, and taken only when it comes out the same:
 * that one check refuses unknown members, spaces, another order, and every second way to
 * say the same thing.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/json.h"
#include "host/store/store_priv.h"

#define TOKENS_MAX 65536u
#define MANIFEST_VERSION 1u

static void
cleanup_manifest_fn(struct store_manifest **m)
{
	store_manifest_free(*m);
}
#define cleanup_manifest __attribute__((cleanup(cleanup_manifest_fn)))

struct member {
	char *key; /* owned */
	int value;
};

static int
by_key(const void *a, const void *b)
{
	return strcmp(((const struct member *)a)->key, ((const struct member *)b)->key);
}

static int put_value(struct json_out *o, const char *key, const struct json *j, int tok,
	struct err *e);

static int
put_members(struct json_out *o, const struct json *j, int obj, struct err *e)
{
	size_t n = (size_t)json_size(j, obj), have = 0;
	struct member *m = calloc(n + 1, sizeof(*m));
	int it = 0, k, v, r = 0;

	if (!m)
		return err_sys(e, -ENOMEM, "JSON");
	while (r == 0 && have < n && json_next(j, obj, &it, &k, &v)) {
		r = json_str_dup(j, k, &m[have].key);
		if (r < 0)
			err_set(e, r, "JSON: a key with a NUL");
		else
			m[have++].value = v;
	}
	qsort(m, have, sizeof(*m), by_key);
	for (size_t i = 0; r == 0 && i < have; i++)
		r = put_value(o, m[i].key, j, m[i].value, e);
	for (size_t i = 0; i < have; i++)
		free(m[i].key);
	free(m);
	return r;
}

static int
put_number(
	struct json_out *o, const char *key, const struct json *j, int tok, struct err *e)
{
	int64_t i;
	uint64_t u;

	if (json_u64(j, tok, &u) == 0)
		json_out_u64(o, key, u);
	else if (json_i64(j, tok, &i) == 0)
		json_out_i64(o, key, i); /* -0 becomes 0 */
	else
		return err_set(e, -EINVAL,
			"JSON: a number that is no 64-bit integer%s%.64s",
			key ? ", at " : "", key ? key : "");
	return 0;
}

static int
put_value(
	struct json_out *o, const char *key, const struct json *j, int tok, struct err *e)
{
	cleanup_free char *text = NULL;
	int it = 0, v, r = 0;
	bool b;

	switch (json_type(j, tok)) {
	case JSON_OBJECT:
		json_out_object(o, key);
		r = put_members(o, j, tok, e);
		json_out_end_object(o);
		break;
	case JSON_ARRAY:
		json_out_array(o, key);
		while (r == 0 && json_next(j, tok, &it, NULL, &v))
			r = put_value(o, NULL, j, v, e);
		json_out_end_array(o);
		break;
	case JSON_STRING:
		r = json_str_dup(j, tok, &text);
		if (r < 0)
			return err_set(e, r, "JSON: a string with a NUL");
		json_out_str(o, key, text);
		break;
	case JSON_NUMBER:
		r = put_number(o, key, j, tok, e);
		break;
	case JSON_BOOL:
		json_bool(j, tok, &b);
		json_out_bool(o, key, b);
		break;
	case JSON_NULL:
		json_out_null(o, key);
		break;
	}
	return r;
}

static int
canonical_of(const struct json *j, int tok, char **ret, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	int r = put_value(&o, NULL, j, tok, e);

	if (r < 0)
		return r;
	if (o.error)
		return err_sys(e, o.error, "JSON");
	*ret = TAKE_PTR(o.buf);
	return 0;
}

int
json_canonical(const char *text, size_t len, char **ret, struct err *e)
{
	cleanup_json struct json *j = NULL;
	int r = json_parse(text, len, TOKENS_MAX, &j, e);

	return r < 0 ? r : canonical_of(j, 0, ret, e);
}

static void
put_tree(struct json_out *o, const char *name, const struct store_tree *t)
{
	char hex[STORE_ID_MAX];

	hash_to_hex(&t->root, hex);
	json_out_object(o, name);
	json_out_u64(o, "length", t->length);
	json_out_str(o, "root", hex);
	json_out_end_object(o);
}

static int
put_object(struct json_out *o, const char *name, const char *text, bool strings,
	struct err *e)
{
	cleanup_json struct json *j = NULL;
	int it = 0, k, v, r;

	if (!text)
		text = "{}";
	r = json_parse(text, strlen(text), TOKENS_MAX, &j, e);
	if (r < 0)
		return err_wrap(e, r, "%s", name);
	if (json_type(j, 0) != JSON_OBJECT)
		return err_set(e, -EINVAL, "%s: not a JSON object", name);
	while (strings && json_next(j, 0, &it, &k, &v))
		if (json_type(j, v) != JSON_STRING)
			return err_set(e, -EINVAL, "%s: a value that is no string", name);
	r = put_value(o, name, j, 0, e);
	return r < 0 ? err_wrap(e, r, "%s", name) : 0;
}

int
manifest_format(const struct store_fields *f, char **ret, size_t *ret_len, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	struct store_hash parent;
	int r;

	if (f->parent && !hash_from_hex(f->parent, &parent))
		return err_set(e, -EINVAL, "parent \"%.80s\" is no commit id", f->parent);
	if ((r = tree_check(&f->memory, e)) < 0 || (r = tree_check(&f->disk, e)) < 0 ||
		(r = tree_check(&f->state, e)) < 0)
		return r;
	json_out_object(&o, NULL);
	r = put_object(&o, "config", f->config, false, e);
	if (r == 0)
		r = put_object(&o, "cpu", f->cpu, false, e);
	if (r < 0)
		return r;
	json_out_u64(&o, "created_ms", f->created_ms);
	json_out_u64(&o, "format", MANIFEST_VERSION);
	r = put_object(&o, "labels", f->labels, true, e);
	if (r < 0)
		return r;
	json_out_str(&o, "message", f->message ? f->message : "");
	json_out_str(&o, "parent", f->parent);
	json_out_object(&o, "trees");
	put_tree(&o, "disk", &f->disk);
	put_tree(&o, "memory", &f->memory);
	put_tree(&o, "state", &f->state);
	json_out_end_object(&o);
	json_out_end_object(&o);
	if (o.error == -E2BIG)
		return err_set(
			e, -EINVAL, "the commit's configuration is nested too deep");
	if (o.error)
		return err_sys(e, o.error, "manifest");
	if (o.len > STORE_MANIFEST_MAX)
		return err_set(e, -E2BIG,
			"a commit's message, labels and configuration may have %u bytes, these have %zu",
			STORE_MANIFEST_MAX, o.len);
	*ret_len = o.len;
	*ret = TAKE_PTR(o.buf);
	return 0;
}

static int
get_tree(const struct json *j, int trees, const char *name, struct store_tree *ret)
{
	int t = json_get(j, trees, name);
	char hex[STORE_ID_MAX];

	if (json_str(j, json_get(j, t, "root"), hex, sizeof(hex)) ||
		!hash_from_hex(hex, &ret->root) ||
		json_u64(j, json_get(j, t, "length"), &ret->length))
		return -EINVAL;
	return tree_check(ret, NULL);
}

static int
get_object(const struct json *j, const char *name, const char **ret)
{
	int tok = json_get(j, 0, name);
	char *text = NULL;
	int r;

	if (tok < 0 || json_type(j, tok) != JSON_OBJECT)
		return -EINVAL;
	r = canonical_of(j, tok, &text, NULL);
	*ret = text;
	return r;
}

static int
get_members(const struct json *j, struct store_fields *f)
{
	int tok = json_get(j, 0, "parent"), r, trees;
	char *text = NULL;

	if (tok < 0)
		return -EINVAL;
	if (json_type(j, tok) != JSON_NULL) {
		r = json_str_dup(j, tok, &text);
		if (r < 0)
			return r;
		f->parent = text;
	}
	text = NULL;
	r = json_str_dup(j, json_get(j, 0, "message"), &text);
	f->message = text;
	trees = json_get(j, 0, "trees");
	if (r < 0 ||
		(r = json_u64(j, json_get(j, 0, "created_ms"), &f->created_ms)) < 0 ||
		(r = get_object(j, "labels", &f->labels)) < 0 ||
		(r = get_object(j, "config", &f->config)) < 0 ||
		(r = get_object(j, "cpu", &f->cpu)) < 0 ||
		(r = get_tree(j, trees, "memory", &f->memory)) < 0 ||
		(r = get_tree(j, trees, "disk", &f->disk)) < 0 ||
		(r = get_tree(j, trees, "state", &f->state)) < 0)
		return r;
	return 0;
}

int
manifest_parse(const char *text, size_t len, struct store_manifest **ret, struct err *e)
{
	cleanup_manifest struct store_manifest *m = calloc(1, sizeof(*m));
	cleanup_json struct json *j = NULL;
	cleanup_free char *again = NULL;
	uint64_t version;
	size_t again_len;
	int r;

	if (!m)
		return err_sys(e, -ENOMEM, "manifest");
	if (len > STORE_MANIFEST_MAX)
		return err_set(e, -EBADMSG, "its manifest is too long");
	r = json_parse(text, len, TOKENS_MAX, &j, NULL);
	if (r == -ENOMEM)
		return err_sys(e, r, "manifest");
	if (r < 0 || json_u64(j, json_get(j, 0, "format"), &version))
		return err_set(e, -EBADMSG, "its manifest is none");
	if (version != MANIFEST_VERSION)
		return err_set(e, -EBADMSG,
			"it is of format version %llu, and this pando reads version %u",
			(unsigned long long)version, MANIFEST_VERSION);
	r = get_members(j, &m->f);
	if (r == 0)
		r = manifest_format(&m->f, &again, &again_len, NULL);
	if (r == -ENOMEM)
		return err_sys(e, r, "manifest");
	if (r < 0 || again_len != len || memcmp(again, text, len) != 0)
		return err_set(e, -EBADMSG, "its manifest is not as pando writes them");
	*ret = TAKE_PTR(m);
	return 0;
}

int
store_read_manifest(struct store *s, const char *id, bool pruned,
	struct store_manifest **ret, struct err *e)
{
	char file[PRUNED_NAME_MAX], hex[STORE_ID_MAX];
	cleanup_free char *text = NULL;
	struct store_hash hash;
	size_t len;
	int r;

	if (pruned)
		store_pruned_name(id, file);
	else
		store_manifest_name(id, file);
	r = store_read_at(s->commits_fd, file, STORE_MANIFEST_MAX, &text, &len);
	if (r == -ENOENT)
		return err_set(e, r, "there is no commit %.64s", id);
	if (r == -EFBIG || r == -EBADMSG)
		return err_set(
			e, -EBADMSG, "commit %.12s is damaged: its manifest is none", id);
	if (r < 0)
		return err_sys(e, r, "commit %.12s", id);
	hash_of(HASH_PLAIN, text, len, &hash);
	hash_to_hex(&hash, hex);
	if (strcmp(hex, id) != 0)
		return err_set(e, -EBADMSG,
			"commit %.12s is damaged: its manifest was edited or cut", id);
	r = manifest_parse(text, len, ret, e);
	if (r < 0)
		return err_wrap(e, r, "commit %.12s", id);
	memcpy((*ret)->id, hex, sizeof(hex));
	return 0;
}

static void
free_text(const char *text)
{
	free((void *)(uintptr_t)text);
}

void
store_manifest_free(struct store_manifest *m)
{
	if (!m)
		return;
	free_text(m->f.parent);
	free_text(m->f.message);
	free_text(m->f.labels);
	free_text(m->f.config);
	free_text(m->f.cpu);
	free(m);
}
