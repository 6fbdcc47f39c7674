/*
 * Which commits and tags are there, a page at a time. What a page needs of the VMs is
 * copied under the tree's lock; the rest is done without it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/commit/commits_priv.h"

/* Of a page's answer; a client takes twice that. */
#define ANSWER_MAX (8u << 20)

static void
put_commit(const struct store_entry *entry, const struct vm_uses *uses, const char *key,
	struct json_out *out)
{
	const struct store_manifest *m = entry->m;
	const struct vm_use *use;
	char expires[32];
	struct vm_row row;
	size_t n;

	json_out_object(out, key);
	json_out_str(out, "id", m->id);
	json_out_str(out, "parent", m->f.parent);
	json_out_u64(out, "created_ms", m->f.created_ms);
	if (label_get(m->f.labels, LABEL_EXPIRES, expires, sizeof(expires)))
		json_out_u64(out, "expires_ms", strtoull(expires, NULL, 10));
	else
		json_out_null(out, "expires_ms");
	json_out_bool(out, "pruned", entry->pruned);
	json_out_str(out, "message", m->f.message);
	json_out_array(out, "tags");
	for (size_t i = 0; i < entry->n_tags; i++)
		json_out_str(out, NULL, entry->tags[i]);
	json_out_end_array(out);
	json_out_raw(out, "labels", m->f.labels, strlen(m->f.labels));
	json_out_raw(out, "cpu", m->f.cpu, strlen(m->f.cpu));
	if (commit_config_read(m, &row, NULL) == 0) {
		json_out_u64(out, "mem_mib", row.mem_mib);
		json_out_u64(out, "vcpus", row.vcpus);
		json_out_u64(out, "disk_mib", row.disk_mib);
		json_out_str(out, "alias", row.alias[0] ? row.alias : NULL);
		json_out_str(out, "kernel", row.kernel);
		json_out_str(out, "rootfs", row.rootfs);
	}
	json_out_array(out, "vms");
	use = vm_uses_find(uses, m->id, &n);
	for (size_t i = 0; i < n; i++)
		json_out_str(out, NULL, use[i].vm);
	json_out_end_array(out);
	json_out_end_object(out);
}

static int
with_tags(struct store *s, struct store_manifest *m, struct store_entry *ret,
	struct err *e)
{
	cleanup_free struct store_tag *tags = NULL;
	struct store_entry entry = {.m = m};
	size_t n = 0;
	int r = store_tags_of(s, m->id, &tags, &n, e);

	if (r < 0)
		return r;
	entry.tags = calloc(n + 1, sizeof(*entry.tags));
	if (!entry.tags)
		return err_set(e, -ENOMEM, "out of memory");
	for (; entry.n_tags < n; entry.n_tags++)
		memcpy(entry.tags[entry.n_tags], tags[entry.n_tags].name, STORE_TAG_MAX);
	*ret = entry;
	return 0;
}

void
commit_json(struct commits *c, const struct store_manifest *m, const char *key,
	struct json_out *out)
{
	struct store_entry entry = {.m = (struct store_manifest *)(uintptr_t)m};
	cleanup_vm_uses struct vm_uses uses = {0}, on = {0};

	if (with_tags(c->store, entry.m, &entry, NULL) < 0 ||
		vm_uses_read_locked(c->tree, false, &uses, NULL) < 0) {
		out->error = out->error ? out->error : -ENOMEM;
	} else {
		/* Not sorted: those of this commit are. */
		on.v = calloc(uses.n + 1, sizeof(*on.v));
		for (size_t i = 0; on.v && i < uses.n; i++)
			if (strcmp(uses.v[i].commit, m->id) == 0)
				on.v[on.n++] = uses.v[i];
		put_commit(&entry, &on, key, out);
	}
	free(entry.tags);
}

int
commits_info(struct commits *c, const char *name, struct json_out *out, struct err *e)
{
	cleanup_vm_uses struct vm_uses uses = {0};
	struct store_entry entry = {0};
	struct store_manifest *m = NULL;
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = store_load(s, name, &m, e);
	if (r == 0)
		r = with_tags(s, m, &entry, e);
	if (r == 0)
		r = vm_uses_read(c->tree, false, &uses, e);
	if (r == 0)
		put_commit(&entry, &uses, NULL, out);
	free(entry.tags);
	store_manifest_free(m);
	return r;
}

/* NULL: the list of all. */
static int
put_page(struct commits *c, const char *history_of, const char *after, uint32_t limit,
	struct json_out *out, struct err *e)
{
	cleanup_vm_uses struct vm_uses uses = {0};
	struct store_page p = {0};
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = history_of ? store_page_history(s, history_of, after, limit, &p, e)
			       : store_page_newest(s, after, limit, &p, e);
	if (r == 0)
		r = vm_uses_read(c->tree, false, &uses, e);
	if (r < 0) {
		store_page_done(&p);
		return r;
	}
	json_out_object(out, NULL);
	json_out_array(out, "commits");
	for (size_t i = 0; i < p.n; i++)
		put_commit(&p.v[i], &uses, NULL, out);
	json_out_end_array(out);
	json_out_str(out, "next", p.next[0] ? p.next : NULL);
	if (!history_of) {
		json_out_u64(out, "damaged", p.damaged);
		json_out_str(out, "damage", p.damaged ? p.first_damage.msg : NULL);
	}
	json_out_end_object(out);
	store_page_done(&p);
	return 0;
}

/* A page of great commits has fewer than were asked for. */
static int
put_bounded(struct commits *c, const char *history_of, const char *after, uint32_t limit,
	struct json_out *out, struct err *e)
{
	for (;;) {
		cleanup_json_out struct json_out page = {0};
		int r = put_page(c, history_of, after, limit, &page, e);

		if (r < 0)
			return r;
		if (page.error)
			return err_set(e, page.error, "out of memory");
		if (page.len <= ANSWER_MAX || limit == 1) {
			json_out_raw(out, NULL, page.buf, page.len);
			return 0;
		}
		limit = limit > 4 ? limit / 4 : 1;
	}
}

int
commits_list(struct commits *c, const char *after, uint32_t limit, struct json_out *out,
	struct err *e)
{
	return put_bounded(c, NULL, after, limit, out, e);
}

int
commits_history(struct commits *c, const char *name, const char *after, uint32_t limit,
	struct json_out *out, struct err *e)
{
	struct tree *t = c->tree;
	char id[STORE_ID_MAX] = "";
	struct store *s;
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_find(t, name, &vm, e);
	if (r == 0) {
		memcpy(id, vm->row.commit, sizeof(id));
		if (!id[0])
			r = err_set(e, -ENOENT,
				"vm \"%s\" has no history: it was never committed, and comes from no commit",
				vm_name(vm));
		vm_unref(vm);
	} else if (r == -ENOENT) {
		r = 0;
	}
	pthread_mutex_unlock(&t->lock);
	if (r == 0)
		r = commits_store(c, &s, e);
	if (r == 0)
		r = store_resolve_any(s, id[0] ? id : name, id, e);
	return r < 0 ? r : put_bounded(c, id, after, limit, out, e);
}

/*
 * Tags.
 */

static void
put_tag(const char *name, const char *id, struct json_out *out)
{
	json_out_object(out, NULL);
	json_out_str(out, "name", name);
	json_out_str(out, "commit", id[0] ? id : NULL);
	json_out_end_object(out);
}

int
commits_tags(struct commits *c, const char *after, uint32_t limit, struct json_out *out,
	struct err *e)
{
	cleanup_free struct store_tag *tags = NULL;
	struct store *s;
	size_t n = 0;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = store_tags_page(s, after, limit, &tags, &n, e);
	if (r < 0)
		return r;
	json_out_object(out, NULL);
	json_out_array(out, "tags");
	for (size_t i = 0; i < n; i++)
		put_tag(tags[i].name, tags[i].id, out);
	json_out_end_array(out);
	json_out_str(out, "next", n == limit ? tags[n - 1].name : NULL);
	json_out_end_object(out);
	return 0;
}

int
commits_tag_put(struct commits *c, const char *tag, const struct tag_request *q,
	struct json_out *out, struct err *e)
{
	char id[STORE_ID_MAX], old[STORE_ID_MAX];
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = store_tag_check(tag, e);
	/* Moving is for tags that are there: a mistyped name would make another. */
	if (r == 0 && q->move && store_tag_get(s, tag, old, NULL) == -ENOENT)
		r = err_set(
			e, -ENOENT, "no tag \"%s\"; `pando tag list` lists them", tag);
	if (r == 0)
		r = store_resolve(s, q->commit, id, e);
	if (r == 0)
		r = store_tag_set(s, tag, id, q->move, e);
	if (r < 0)
		return r;
	put_tag(tag, id, out);
	return 0;
}

int
commits_tag_delete(
	struct commits *c, const char *tag, struct json_out *out, struct err *e)
{
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = store_tag_check(tag, e);
	if (r == 0)
		r = store_tag_delete(s, tag, e);
	if (r < 0)
		return r;
	json_out_object(out, NULL);
	json_out_str(out, "deleted", tag);
	json_out_end_object(out);
	return 0;
}
