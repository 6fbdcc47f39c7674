/*
 * The commits that are there, and their tags: what of the API is the store's business.
 * The store is pandod's alone (it holds its lock); VMs that run on a commit are the
 * table's business.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"
#include "host/commit/diff_files.h"

#define CONFIG_TOKENS 64
/* Of a diff and of a verification: what is listed at most; all is counted. */
#define RANGES_MAX 4096u
#define DAMAGES_MAX 1000u

/*
 * A commit's configuration.
 */

int
commit_config_write(const struct vm_row *row, char **ret, struct err *e)
{
	cleanup_json_out struct json_out out = {0};

	json_out_object(&out, NULL);
	json_out_str(&out, "alias", row->alias);
	json_out_str(&out, "cmdline", row->cmdline);
	json_out_u64(&out, "disk_mib", row->disk_mib);
	json_out_str(&out, "kernel", row->kernel);
	json_out_str(&out, "kernel_path", row->kernel_path);
	json_out_u64(&out, "mem_mib", row->mem_mib);
	json_out_str(&out, "rootfs", row->rootfs);
	json_out_u64(&out, "vcpus", row->vcpus);
	json_out_end_object(&out);
	if (out.error)
		return err_set(e, out.error, "out of memory");
	*ret = TAKE_PTR(out.buf);
	return 0;
}

static int
config_text(const struct json *j, const char *key, char *dst, size_t cap)
{
	int tok = json_get(j, 0, key);

	dst[0] = '\0';
	return tok < 0 ? 0 : json_str(j, tok, dst, cap);
}

int
commit_config_read(const struct store_manifest *m, struct vm_row *ret, struct err *e)
{
	cleanup_json struct json *j = NULL;
	struct vm_row row = {0};
	uint64_t vcpus = 0;
	int r = json_parse(m->f.config, strlen(m->f.config), CONFIG_TOKENS, &j, NULL);

	/* The store vouches for its own bytes, not for who wrote them: it may have been
	 * copied here. */
	if (r < 0 || json_type(j, 0) != JSON_OBJECT ||
		config_text(j, "alias", row.alias, sizeof(row.alias)) < 0 ||
		config_text(j, "cmdline", row.cmdline, sizeof(row.cmdline)) < 0 ||
		config_text(j, "kernel", row.kernel, sizeof(row.kernel)) < 0 ||
		config_text(j, "kernel_path", row.kernel_path, sizeof(row.kernel_path)) <
			0 ||
		config_text(j, "rootfs", row.rootfs, sizeof(row.rootfs)) < 0 ||
		json_u64(j, json_get(j, 0, "mem_mib"), &row.mem_mib) < 0 ||
		json_u64(j, json_get(j, 0, "disk_mib"), &row.disk_mib) < 0 ||
		json_u64(j, json_get(j, 0, "vcpus"), &vcpus) < 0 ||
		row.mem_mib < VMM_MEM_MIN_MIB || row.mem_mib > VMM_MEM_MAX_MIB ||
		row.disk_mib < 1 || row.disk_mib > VM_DISK_MAX_MIB || vcpus < 1 ||
		vcpus > VMM_VCPUS_MAX || m->f.memory.length != row.mem_mib << 20 ||
		m->f.disk.length != row.disk_mib << 20 || m->f.state.length == 0 ||
		m->f.state.length > VMM_STATE_BLOB_MAX)
		return err_set(e, r == -ENOMEM ? r : -EBADMSG,
			"commit %.12s was not made by pando: its configuration is not that of a VM",
			m->id);
	row.vcpus = (uint32_t)vcpus;
	*ret = row;
	return 0;
}

/*
 * Answers.
 */

/* Whether the row needs the commit as long as its VM lives. */
static bool
row_uses(const struct tree *t, const struct vm_row *row, const char *id)
{
	char base[STORE_ID_MAX];

	return strcmp(row->commit, id) == 0 || strcmp(row->image, id) == 0 ||
	       (materialized_is_disk(t->config.home, row->base_path, base) &&
		       strcmp(base, id) == 0);
}

static void
put_commit(struct tree *t, const struct store_manifest *m, const struct store_tag *tags,
	size_t n_tags, const char *key, struct json_out *out)
{
	struct vm_row row;

	json_out_object(out, key);
	json_out_str(out, "id", m->id);
	json_out_str(out, "parent", m->f.parent);
	json_out_u64(out, "created_ms", m->f.created_ms);
	json_out_str(out, "message", m->f.message);
	json_out_array(out, "tags");
	for (size_t i = 0; i < n_tags; i++)
		if (strcmp(tags[i].id, m->id) == 0)
			json_out_str(out, NULL, tags[i].name);
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
	for (unsigned i = 0; i < t->n_vms; i++)
		if (vm_state_lives(t->vms[i]->row.state) &&
			row_uses(t, &t->vms[i]->row, m->id))
			json_out_str(out, NULL, t->vms[i]->row.id);
	json_out_end_array(out);
	json_out_end_object(out);
}

void
commit_json(struct commits *c, const struct store_manifest *m, const char *key,
	struct json_out *out)
{
	struct tree *t = c->tree;
	cleanup_free struct store_tag *tags = NULL;
	size_t n = 0;

	if (store_tags(c->store, &tags, &n, NULL) < 0)
		n = 0;
	put_commit(t, m, tags, n, key, out);
}

int
commits_list(struct commits *c, struct json_out *out, struct err *e)
{
	struct tree *t = c->tree;
	cleanup_free struct store_tag *tags = NULL;
	struct store_list list = {0};
	struct store *s;
	size_t n_tags = 0;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = store_list(s, &list, e);
	if (r < 0)
		return r;
	r = store_tags(s, &tags, &n_tags, e);
	if (r == 0) {
		json_out_object(out, NULL);
		json_out_array(out, "commits");
		pthread_mutex_lock(&t->lock);
		for (size_t i = 0; i < list.n; i++)
			put_commit(t, list.items[i], tags, n_tags, NULL, out);
		pthread_mutex_unlock(&t->lock);
		json_out_end_array(out);
		json_out_u64(out, "damaged", list.damaged);
		json_out_str(out, "damage", list.damaged ? list.first_damage.msg : NULL);
		json_out_end_object(out);
	}
	store_list_done(&list);
	return r;
}

int
commits_info(struct commits *c, const char *name, struct json_out *out, struct err *e)
{
	struct tree *t = c->tree;
	struct store_manifest *m;
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = store_load(s, name, &m, e);
	if (r < 0)
		return r;
	pthread_mutex_lock(&t->lock);
	commit_json(c, m, NULL, out);
	pthread_mutex_unlock(&t->lock);
	store_manifest_free(m);
	return 0;
}

int
commits_history(struct commits *c, const char *name, struct json_out *out, struct err *e)
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
		r = store_resolve(s, id[0] ? id : name, id, e);
	if (r < 0)
		return r;
	json_out_object(out, NULL);
	json_out_array(out, "commits");
	while (id[0]) {
		struct store_manifest *m;

		r = store_load(s, id, &m, e);
		if (r < 0)
			return r;
		pthread_mutex_lock(&t->lock);
		commit_json(c, m, NULL, out);
		pthread_mutex_unlock(&t->lock);
		/* An id is the hash of what names the parent: there is no circle. */
		snprintf(id, sizeof(id), "%s", m->f.parent ? m->f.parent : "");
		store_manifest_free(m);
	}
	json_out_end_array(out);
	json_out_end_object(out);
	return 0;
}

/*
 * Deletion.
 */

/* Refuses when a living VM needs one of the commits. Called with the lock. */
static int
refuse_used(struct tree *t, const struct store_ids *ids, struct err *e)
{
	for (size_t i = 0; i < ids->n; i++)
		for (unsigned j = 0; j < t->n_vms; j++) {
			const struct vm *vm = t->vms[j];

			if (vm_state_lives(vm->row.state) &&
				row_uses(t, &vm->row, ids->ids[i]))
				return err_set(e, -ENOTEMPTY,
					"commit %.12s is in use: vm \"%s\" runs on it; stop or delete that VM first",
					ids->ids[i], vm_name(vm));
		}
	return 0;
}

/* VMs that do not live forget the commits: their next one has no parent. */
static void
forget(struct tree *t, const struct store_ids *ids)
{
	struct err e;

	for (size_t i = 0; i < ids->n; i++)
		for (unsigned j = 0; j < t->n_vms; j++) {
			struct vm *vm = t->vms[j];

			if (strcmp(vm->row.commit, ids->ids[i]) != 0)
				continue;
			vm->row.commit[0] = '\0';
			if (db_update(t->db, &vm->row, &e) < 0)
				log_err("vm %s: %s", vm->row.id, e.msg);
		}
}

int
commits_delete(struct commits *c, const char *name, bool recursive, bool dry_run,
	struct json_out *out, struct err *e)
{
	struct tree *t = c->tree;
	unsigned flags = recursive ? STORE_DELETE_RECURSIVE : 0;
	struct store_ids ids = {0}, gone = {0};
	char id[STORE_ID_MAX];
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = store_resolve(s, name, id, e);
	if (r < 0)
		return r;
	/* With the lock, so that no VM comes to be on it in between. */
	pthread_mutex_lock(&t->lock);
	r = store_delete(s, id, flags | STORE_DELETE_DRY_RUN, &ids, e);
	if (r == 0)
		r = refuse_used(t, &ids, e);
	if (r == 0 && !dry_run) {
		r = store_delete(s, id, flags, &gone, e);
		forget(t, &gone);
		for (size_t i = 0; i < gone.n; i++)
			log_info("commit %.12s: deleted", gone.ids[i]);
	}
	pthread_mutex_unlock(&t->lock);
	if (r == 0) {
		json_out_object(out, NULL);
		json_out_array(out, dry_run ? "would_delete" : "deleted");
		for (size_t i = 0; i < ids.n; i++)
			json_out_str(out, NULL, ids.ids[i]);
		json_out_end_array(out);
		json_out_end_object(out);
		if (!dry_run)
			materialized_trim(c);
	}
	store_ids_done(&ids);
	store_ids_done(&gone);
	return r;
}

/*
 * Differences.
 */

struct ranges {
	uint64_t pages;
	uint64_t first[RANGES_MAX], n[RANGES_MAX];
	unsigned count;
	bool cut;
};

static int
add_page(void *ctx, uint64_t page, const void *data, struct err *e)
{
	struct ranges *l = ctx;

	(void)data;
	(void)e;
	l->pages++;
	if (l->count && l->first[l->count - 1] + l->n[l->count - 1] == page)
		l->n[l->count - 1]++;
	else if (l->count == RANGES_MAX)
		l->cut = true;
	else {
		l->first[l->count] = page;
		l->n[l->count++] = 1;
	}
	return 0;
}

static int
put_diff(struct store *s, const char *what, const struct store_tree *a,
	const struct store_tree *b, struct json_out *out, struct err *e)
{
	cleanup_free struct ranges *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return err_set(e, -ENOMEM, "out of memory");
	r = store_tree_diff(s, a, b, add_page, l, e);
	if (r < 0)
		return r;
	json_out_object(out, what);
	json_out_u64(out, "pages", l->pages);
	json_out_u64(out, "bytes_a", a->length);
	json_out_u64(out, "bytes_b", b->length);
	json_out_array(out, "ranges");
	for (unsigned i = 0; i < l->count; i++) {
		json_out_array(out, NULL);
		json_out_u64(out, NULL, l->first[i]);
		json_out_u64(out, NULL, l->n[i]);
		json_out_end_array(out);
	}
	json_out_end_array(out);
	json_out_bool(out, "ranges_complete", !l->cut);
	json_out_end_object(out);
	return 0;
}

/* It lies beside the VMM. */
static int
fsdiff_path(const struct tree *t, char dst[static PATHS_MAX], struct err *e)
{
	const char *slash = strrchr(t->config.vmm_path, '/');

	return paths_format(dst, PATHS_MAX, e, "%.*s/pando-fsdiff",
		slash ? (int)(slash - t->config.vmm_path) : 0, t->config.vmm_path);
}

int
commits_diff(struct commits *c, const char *a, const char *b, bool files,
	struct json_out *out, struct err *e)
{
	struct tree *t = c->tree;
	char program[PATHS_MAX];
	struct store_manifest *ma = NULL, *mb = NULL;
	struct store *s;
	int r;

	if (!b[0])
		return err_set(e, -EINVAL, "a diff is with another commit: ?with=…");
	r = commits_store(c, &s, e);
	if (r < 0)
		return r;
	store_hold(s);
	r = store_load(s, a, &ma, e);
	if (r == 0)
		r = store_load(s, b, &mb, e);
	if (r == 0) {
		json_out_object(out, NULL);
		json_out_str(out, "a", ma->id);
		json_out_str(out, "b", mb->id);
		r = put_diff(s, "memory", &ma->f.memory, &mb->f.memory, out, e);
	}
	if (r == 0)
		r = put_diff(s, "disk", &ma->f.disk, &mb->f.disk, out, e);
	if (r == 0 && files)
		r = fsdiff_path(t, program, e);
	if (r == 0 && files)
		r = diff_files(s, program, &ma->f.disk, &mb->f.disk, out, e);
	if (r == 0)
		json_out_end_object(out);
	store_release(s);
	store_manifest_free(ma);
	store_manifest_free(mb);
	return r;
}

/*
 * Care.
 */

struct damages {
	struct json_out *out;
	uint64_t listed;
};

static void
put_damage(void *ctx, const struct store_damage *d)
{
	static const char *const kinds[] = {
		[STORE_DAMAGE_PACK] = "pack",
		[STORE_DAMAGE_MANIFEST] = "manifest",
		[STORE_DAMAGE_PARENT] = "parent",
		[STORE_DAMAGE_TAG] = "tag",
		[STORE_DAMAGE_MISSING] = "missing",
		[STORE_DAMAGE_CHUNK] = "chunk",
	};
	struct damages *l = ctx;

	if (l->listed++ >= DAMAGES_MAX)
		return;
	json_out_object(l->out, NULL);
	json_out_str(l->out, "kind", kinds[d->kind]);
	json_out_str(l->out, "commit", d->commit[0] ? d->commit : NULL);
	json_out_str(l->out, "tree", d->tree && d->tree[0] ? d->tree : NULL);
	json_out_u64(l->out, "first_page", d->first_page);
	json_out_u64(l->out, "pages", d->pages);
	json_out_str(l->out, "pack", d->pack[0] ? d->pack : NULL);
	json_out_str(l->out, "text", d->text);
	json_out_end_object(l->out);
}

int
commits_verify(struct commits *c, const char *name, struct json_out *out, struct err *e)
{
	struct damages l = {.out = out};
	struct store_verified v = {0};
	char id[STORE_ID_MAX];
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0 && name)
		r = store_resolve(s, name, id, e);
	if (r < 0)
		return r;
	json_out_object(out, NULL);
	json_out_array(out, "damages");
	r = store_verify(s, name ? id : NULL, put_damage, &l, &v, e);
	json_out_end_array(out);
	json_out_bool(out, "sound", v.damages == 0);
	json_out_u64(out, "damaged", v.damages);
	json_out_u64(out, "commits", v.commits);
	json_out_u64(out, "pages", v.pages);
	json_out_u64(out, "nodes", v.nodes);
	json_out_end_object(out);
	return r;
}

/* The bases that are as they were read, and in this store: their content stays. */
static int
base_roots(struct tree *t, struct store *s, struct store_tree **ret, size_t *ret_n,
	struct err *e)
{
	cleanup_free struct db_base *bases = NULL;
	struct store_tree *roots;
	size_t n = 0, kept = 0;
	char page[STORE_PAGE];
	int r;

	pthread_mutex_lock(&t->lock);
	r = db_bases(t->db, &bases, &n, e);
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	roots = calloc(n + 1, sizeof(*roots));
	if (!roots)
		return err_set(e, -ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++) {
		const struct db_base *b = &bases[i];
		struct stat st;

		if (stat(b->path, &st) == 0 && st.st_dev == b->dev &&
			st.st_ino == b->inode && (uint64_t)st.st_size == b->size &&
			(int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec ==
				b->mtime_ns &&
			store_tree_read(s, &b->tree, 0, 1, page, NULL) == 0) {
			roots[kept++] = b->tree;
			continue;
		}
		pthread_mutex_lock(&t->lock);
		db_base_drop(t->db, b->path, NULL);
		pthread_mutex_unlock(&t->lock);
	}
	*ret = roots;
	*ret_n = kept;
	return 0;
}

int
commits_gc(
	struct commits *c, const struct progress *p, struct json_out *out, struct err *e)
{
	struct tree *t = c->tree;
	cleanup_free struct store_tree *roots = NULL;
	struct store_freed freed = {0};
	struct store_used used = {0};
	struct store *s;
	size_t n = 0;
	int r = commits_store(c, &s, e);

	if (r < 0)
		return r;
	/* A commit that was just made and has not noted its base yet would lose it. */
	say(p, "waiting for the commits that are being made");
	pthread_rwlock_wrlock(&c->gc_lock);
	r = base_roots(t, s, &roots, &n, e);
	/* What it no longer keeps for a base must not be believed to be there, either. */
	if (r == 0) {
		pthread_mutex_lock(&t->lock);
		r = tree_sync_locked(t, e);
		pthread_mutex_unlock(&t->lock);
	}
	if (r == 0) {
		say(p, "looking for what no commit reaches");
		r = store_gc(s, roots, n, &freed, e);
	}
	pthread_rwlock_unlock(&c->gc_lock);
	materialized_trim(c);
	if (r == 0)
		r = store_usage(s, &used, e);
	if (r < 0)
		return r;
	log_info("gc: %llu KiB freed", (unsigned long long)(freed.bytes >> 10));
	json_out_object(out, NULL);
	json_out_u64(out, "freed_bytes", freed.bytes);
	json_out_u64(out, "packs_removed", freed.packs_removed);
	json_out_u64(out, "packs_rewritten", freed.packs_rewritten);
	json_out_u64(out, "bytes", used.bytes);
	json_out_u64(out, "commits", used.commits);
	json_out_u64(out, "packs", used.packs);
	json_out_u64(out, "tags", used.tags);
	json_out_end_object(out);
	return 0;
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
commits_tags(struct commits *c, struct json_out *out, struct err *e)
{
	cleanup_free struct store_tag *tags = NULL;
	struct store *s;
	size_t n = 0;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = store_tags(s, &tags, &n, e);
	if (r < 0)
		return r;
	json_out_object(out, NULL);
	json_out_array(out, "tags");
	for (size_t i = 0; i < n; i++)
		put_tag(tags[i].name, tags[i].id, out);
	json_out_end_array(out);
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
