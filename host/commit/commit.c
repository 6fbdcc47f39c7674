/*
 * POST /v1/vms/{vm}/commit: what a VM is at one instant, into the store.
 *
 * The VM is forked once, and the fork parks (host/vm/frozen_fork.h): that is all the pause there
 * is. From then on the VM is free again, and the frozen fork is read: its state by asking it,
 * its memory through the kernel, its disk from the segments of the chain as it was.
 *
 * What the frozen fork's disk needs must stay, even if the VM is deleted or started anew
 * meanwhile. So the frozen fork has a row in the database, with a copy of the chain, but is
 * in no table and never `made`: a pandod that is killed leaves what the next one removes
 * as half-made, and the frozen fork's folder leads it to the process. The base is held open.
 *
 * Of memory and disk only what changed since the VM's last commit is read, where the VMM can
 * tell (commit_track.h); else all of it.
 *
 * The store makes the commit all at once or not at all.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "host/commit/commit_cpu.h"
#include "host/commit/commit_read.h"
#include "host/commit/commit_track.h"
#include "host/commit/commits_priv.h"
#include "host/vm/chain_files.h"
#include "host/vm/frozen_fork.h"
#include "host/vm/merge.h"

#define STATE_TIMEOUT_MS 60000

struct commit {
	struct commits *commits;
	struct tree *t;
	struct store *store;
	const struct commit_request *q;
	const struct progress *p;
	struct vm *vm;	   /* reference */
	bool claimed;	   /* vm->op is ours */
	bool reads;	   /* vm->n_commits has it */
	struct vm_row row; /* the VM's, at the cut */
	unsigned resets;   /* likewise */
	bool entered;	   /* the frozen fork's row is in the database */
	struct fork_point cut;
	struct frozen_fork frozen_fork;
	char frozen_fork_id[VM_ID_LEN + 1];
	struct vmm_state_answer state;
	struct commit_track track;
	void *blob;		  /* owned */
	struct chain_link *links; /* owned: the chain at the cut */
	size_t n_links;
	struct chain_files files; /* owned: its files */
	struct db_base base;	       /* what the row's base is */
	int base_fd;		       /* owned; -1: none */
	bool base_known;	       /* base.tree is in the store */
	uint64_t memory_read;
	struct store_stats stats;
	char id[STORE_ID_MAX];
};

static void
commit_done(struct commit *c)
{
	fork_point_done(&c->cut);
	commit_track_done(&c->track);
	cleanup_close_fn(&c->base_fd);
	free(c->blob);
	free(c->links);
	chain_files_done(&c->files);
}

/* Tags are looked at before anything is made. */
static int
check_tags(struct commit *c, struct err *e)
{
	char id[STORE_ID_MAX];

	for (unsigned i = 0; i < c->q->n_tags; i++) {
		const char *tag = c->q->tags[i];
		int r = store_tag_check(tag, e);

		if (r < 0)
			return r;
		if (store_tag_get(c->store, tag, id, NULL) != -ENOENT)
			return err_set(e, -EEXIST,
				"tag \"%s\" is there already: choose another, or move it afterwards with `pando tag update`",
				tag);
	}
	return 0;
}

/* The frozen fork's row and the cut of the chain, in one transaction. Called with the lock
 * and the claim. */
static int
enter(struct commit *c, struct err *e)
{
	struct tree *t = c->t;
	struct vm *vm = c->vm;
	struct vm_row row;
	int r = fork_point_check(t, vm, e);

	if (r == 0)
		r = host_has_room(t, vm_name(vm), vm->row.mem_mib, 0, 1, e);
	if (r == 0)
		r = fork_point_begin(&c->cut, vm, e);
	if (r == 0)
		r = tree_new_id(c->frozen_fork_id, e);
	if (r < 0)
		return r;
	if (vm->row.base_path[0]) {
		c->base_fd = open(vm->row.base_path, O_RDONLY | O_CLOEXEC);
		if (c->base_fd < 0)
			return err_sys(e, -errno, "the base of vm \"%s\", %.300s",
				vm_name(vm), vm->row.base_path);
	}
	row = vm->row;
	memcpy(row.id, c->frozen_fork_id, sizeof(row.id));
	row.alias[0] = row.parent[0] = '\0';
	row.state = VM_STARTING;
	row.pid = 0;
	row.pid_start = 0;
	row.made = false;
	row.labels.n = 0;
	r = db_begin(t->db, e);
	if (r < 0)
		return r;
	r = db_insert(t->db, &row, e);
	if (r == 0)
		r = db_chain_copy(t->db, vm->row.id, row.id, e);
	if (r == 0)
		r = fork_point_enter(&c->cut, e);
	if (r == 0)
		r = db_commit(t->db, e);
	if (r < 0) {
		db_rollback(t->db);
		fork_point_undo(&c->cut);
		return r;
	}
	c->entered = true;
	return 0;
}

/* The frozen fork's row goes, and with it what only it kept. */
static void
leave(struct commit *c)
{
	struct tree *t = c->t;
	struct err e;

	frozen_fork_end(t, &c->frozen_fork);
	if (!c->entered)
		return;
	pthread_mutex_lock(&t->lock);
	if (db_delete(t->db, c->frozen_fork_id, &e) < 0 || tree_sweep(t, &e) < 0)
		log_err("frozen fork %s: %s", c->frozen_fork_id, e.msg);
	pthread_mutex_unlock(&t->lock);
	c->entered = false;
}

/* From a claimed VM to a frozen fork of it, and the VM is free again. */
static int
take_frozen_fork(struct commit *c, struct err *e)
{
	struct tree *t = c->t;
	int r;

	memcpy(c->frozen_fork.id, c->frozen_fork_id, sizeof(c->frozen_fork.id));
	r = frozen_fork_park(
		&c->cut, &c->frozen_fork, commit_track_prepare(c->vm), e);
	if (r == 0)
		fault_point("commit.parked");
	fork_point_end(&c->cut);
	pthread_mutex_lock(&t->lock);
	c->row = c->vm->row;
	c->resets = c->vm->resets;
	if (r == 0) {
		/* The cut of the last link as the copy of the chain has it: all, where
		 * the count is not known. */
		r = db_chain(t->db, c->vm->row.id, &c->links, &c->n_links, e);
		if (r == 0 && c->n_links < 1)
			r = err_set(e, -EINVAL, "state.db: vm \"%s\" has no disk chain",
				vm_name(c->vm));
		if (r == 0)
			c->n_links--; /* the segment that it writes now */
	}
	if (r == 0) {
		c->reads = true;
		c->vm->n_commits++;
	}
	c->vm->op = NULL;
	c->claimed = false;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return r < 0 ? err_wrap(e, r, "committing vm \"%s\"", vm_name(c->vm)) : 0;
}

static int
ask_state(struct commit *c, struct err *e)
{
	cleanup_close int fd = memfd_create("state", MFD_CLOEXEC);
	int r;

	if (fd < 0)
		return err_sys(e, -errno, "memfd_create");
	r = vmmctl_state(c->frozen_fork.ctl, fd, STATE_TIMEOUT_MS, &c->state, e);
	if (r < 0)
		return r;
	if (c->state.mem_mib != c->row.mem_mib || c->state.vcpus != c->row.vcpus ||
		c->state.disk_mib > vm_disk_mib(&c->row))
		return err_set(e, -EPROTO,
			"the VMM says it has %llu MiB of memory, %u vCPUs and a disk of %llu MiB",
			(unsigned long long)c->state.mem_mib, c->state.vcpus,
			(unsigned long long)c->state.disk_mib);
	c->blob = malloc(c->state.blob_bytes);
	if (!c->blob)
		return err_set(e, -ENOMEM, "out of memory");
	/* Read, not mapped: the VMM has the file, too. */
	r = io_pread_full(fd, c->blob, c->state.blob_bytes, 0);
	if (r < 0)
		return err_sys(e, r, "reading the frozen fork's state");
	return commit_track_read(fd, &c->state, &c->row, c->store, &c->track, e);
}

static int
read_all_memory(
	struct commit *c, struct store_writer *w, struct store_tree *ret, struct err *e)
{
	struct store_manifest *image = NULL;
	int r = 0;

	if ((c->state.flags & VMM_STATE_ON_IMAGE) && c->row.image[0])
		r = store_load(c->store, c->row.image, &image, e);
	if (r == 0)
		r = commit_read_memory(w, c->frozen_fork.pid, &c->state,
			image ? &image->f.memory : NULL, ret, &c->memory_read, e);
	store_manifest_free(image);
	return r;
}

/* For tests, PANDO_COMMIT_CHECK in the environment: what was read of changes is compared with
 * the whole. Trees of one content have one root. */
static int
check_tree(const char *what, const struct store_tree *changes, const struct store_tree *all,
	struct err *e)
{
	if (changes->length == all->length &&
		memcmp(&changes->root, &all->root, sizeof(all->root)) == 0)
		return 0;
	return err_set(e, -EPROTO, "the %s changed in more places than were told", what);
}

/* The earlier commit is damaged in the store. That need not spoil this one. */
static bool
is_damage(int r)
{
	return r == -EBADMSG || r == -ENOENT;
}

static int
check_memory(struct commit *c, struct store_writer *w, const struct store_tree *changes,
	struct err *e)
{
	const uint64_t read = c->memory_read;
	struct store_tree all;
	int r = read_all_memory(c, w, &all, e);

	c->memory_read = read;
	return r < 0 ? r : check_tree("memory", changes, &all, e);
}

static int
read_memory(
	struct commit *c, struct store_writer *w, struct store_tree *ret, struct err *e)
{
	struct err why;
	int r = 0;

	if (c->track.has_memory) {
		r = commit_read_changed(w, c->frozen_fork.pid, &c->state, &c->track.since, ret,
			&c->memory_read, &why);
		if (is_damage(r)) {
			log_warn("vm %s: reading all of its memory: %s", c->row.id, why.msg);
			c->track.has_memory = false;
		} else if (r < 0) {
			return err_set(e, r, "%s", why.msg);
		}
	}
	if (!c->track.has_memory)
		r = read_all_memory(c, w, ret, e);
	else if (getenv("PANDO_COMMIT_CHECK"))
		r = check_memory(c, w, ret, e);
	/* Alive afterwards, so the number was that process's while it was read. */
	if (r == 0 && !process_lives(c->frozen_fork.pidfd))
		r = err_set(e, -ESRCH, "the frozen fork ended while it was read");
	return r;
}

/* What is known of the base's content. */
static int
look_up_base(struct commit *c, struct err *e)
{
	struct tree *t = c->t;
	char page[STORE_PAGE], id[STORE_ID_MAX];
	struct stat st;
	int r;

	if (c->base_fd < 0)
		return 0;
	if (materialized_is_disk(t->config.home, c->row.base_path, id)) {
		struct store_manifest *m;

		r = store_load(c->store, id, &m, e);
		if (r < 0)
			return r == -ENOENT ? 0 : r; /* it is read, then */
		c->base.tree = m->f.disk;
		c->base_known = true;
		store_manifest_free(m);
		return 0;
	}
	if (fstat(c->base_fd, &st) < 0)
		return err_sys(e, -errno, "%.300s", c->row.base_path);
	memcpy(c->base.path, c->row.base_path, sizeof(c->base.path));
	c->base.dev = st.st_dev;
	c->base.inode = st.st_ino;
	c->base.size = (uint64_t)st.st_size;
	c->base.mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
	pthread_mutex_lock(&t->lock);
	r = db_base_find(t->db, &c->base, e);
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	/* Another store may lie there by now, and one that lost chunks may have lost some of it. */
	c->base_known = r && !store_is_damaged(c->store) &&
			store_tree_read(c->store, &c->base.tree, 0, 1, page, NULL) == 0;
	return 0;
}

static int
read_all_disk(
	struct commit *c, struct store_writer *w, struct store_tree *ret, struct err *e)
{
	const struct disk_chain chain = {
		.segments = c->files.segments, .n_segments = c->n_links};
	int r = look_up_base(c, e);

	if (r == 0 && c->base_fd >= 0 && !c->base_known) {
		say(c->p, "reading the disk image %s, once", c->row.base_path);
		r = commit_read_base(
			w, c->base_fd, c->row.base_path, c->base.size, &c->base.tree, e);
	}
	return r < 0 ? r
		     : commit_read_disk(w, &chain, vm_disk_mib(&c->row), c->base_fd,
			       c->row.base_path, c->base_known ? &c->base.tree : NULL,
			       ret, e);
}

/* The last commit's disk, and the segments that came after it. */
static int
read_changed_disk(struct commit *c, size_t known, struct store_writer *w,
	struct store_tree *ret, struct err *e)
{
	const struct disk_chain chain = {
		.segments = c->files.segments + known, .n_segments = c->n_links - known};
	const uint64_t disk_mib = vm_disk_mib(&c->row);
	struct store_tree all;
	int r = commit_read_disk(w, &chain, disk_mib, -1, NULL, &c->track.base->f.disk, ret, e);

	if (r < 0 || !getenv("PANDO_COMMIT_CHECK"))
		return r;
	r = read_all_disk(c, w, &all, e);
	return r < 0 ? r : check_tree("disk", ret, &all, e);
}

static int
read_disk(struct commit *c, struct store_writer *w, struct store_tree *ret, struct err *e)
{
	const size_t known =
		commit_track_links(&c->track, &c->row, c->links, c->n_links);
	struct err why;
	int r = 0;

	r = chain_files_make(c->t->config.home, c->links, c->n_links, &c->files, e);
	if (r < 0)
		return r;
	if (known && c->track.base->f.disk.length <= vm_disk_mib(&c->row) << 20) {
		r = read_changed_disk(c, known, w, ret, &why);
		if (!is_damage(r))
			return r < 0 ? err_set(e, r, "%s", why.msg) : 0;
		log_warn("vm %s: reading all of its disk: %s", c->row.id, why.msg);
	}
	return read_all_disk(c, w, ret, e);
}

static int
labels_text(const struct labels *labels, char **ret, struct err *e)
{
	cleanup_json_out struct json_out out = {0};

	json_out_object(&out, NULL);
	for (unsigned i = 0; i < labels->n; i++)
		json_out_str(&out, labels->items[i].key, labels->items[i].value);
	json_out_end_object(&out);
	if (out.error)
		return err_set(e, out.error, "out of memory");
	*ret = TAKE_PTR(out.buf);
	return 0;
}

/* All of it into the store. */
static int
write_commit(struct commit *c, struct err *e)
{
	cleanup_free char *config = NULL, *labels = NULL, *cpu = NULL;
	struct store_fields f = {
		.parent = commit_parent_of(c->store, &c->row),
		.message = c->q->message,
	};
	struct store_writer *w = NULL;
	int r = ask_state(c, e);

	if (r == 0) {
		fault_point("commit.state");
		/* The store's business is what the guest sees; a resize on its way is
		 * not. */
		c->row.disk_mib = vm_disk_mib(&c->row);
		r = commit_config_write(&c->row, &config, e);
	}
	if (r == 0)
		r = labels_text(&c->q->labels, &labels, e);
	if (r == 0)
		r = commit_cpu(c->blob, c->state.blob_bytes, &cpu, e);
	if (r == 0)
		r = store_begin(c->store, &w, e);
	if (r < 0)
		return r;
	f.config = config;
	f.labels = labels;
	f.cpu = cpu;
	say(c->p, "reading %llu MiB of memory", (unsigned long long)c->state.mem_mib);
	r = read_memory(c, w, &f.memory, e);
	if (r == 0) {
		fault_point("commit.memory");
		/* Its memory goes at once; leave() waits for its end, which takes its time. */
		process_kill(c->frozen_fork.pidfd);
		say(c->p, "reading the disk");
		r = read_disk(c, w, &f.disk, e);
	}
	if (r == 0)
		r = store_put_blob(w, c->blob, c->state.blob_bytes, &f.state, e);
	if (r < 0) {
		store_abort(w);
		return r;
	}
	fault_point("commit.disk");
	say(c->p, "writing what is new");
	r = store_commit(w, &f, c->id, &c->stats, e);
	if (r == 0)
		fault_point("commit.written");
	return r;
}

/* What the commit's existence changes elsewhere. */
static void
note_commit(struct commit *c)
{
	struct tree *t = c->t;
	struct err why;

	pthread_mutex_lock(&t->lock);
	if (c->base_fd >= 0 && !c->base_known && c->base.path[0] &&
		db_base_put(t->db, &c->base, &why) < 0)
		log_warn("%s", why.msg);
	for (unsigned i = 0; i < t->n_vms; i++) {
		struct vm *vm = t->vms[i];

		/* One that was reset meanwhile is not of this commit. */
		if (strcmp(vm->row.id, c->row.id) != 0 ||
			(vm == c->vm && vm->resets != c->resets))
			continue;
		memcpy(vm->row.commit, c->id, sizeof(vm->row.commit));
		vm->row.commit_segment[0] = '\0';
		if (c->n_links)
			memcpy(vm->row.commit_segment, c->links[c->n_links - 1].segment,
				sizeof(vm->row.commit_segment));
		if (db_update(t->db, &vm->row, &why) < 0)
			log_err("vm %s: %s", vm->row.id, why.msg);
	}
	pthread_mutex_unlock(&t->lock);
}

static int
tag_commit(struct commit *c, struct err *e)
{
	int r = 0;

	for (unsigned i = 0; i < c->q->n_tags && r == 0; i++)
		r = store_tag_set(c->store, c->q->tags[i], c->id, false, e);
	return r < 0 ? err_wrap(e, r, "commit %s is made, but not tagged", c->id) : 0;
}

static int
answer(struct commit *c, struct json_out *out, struct err *e)
{
	struct store_manifest *m;
	int r = store_load(c->store, c->id, &m, e);

	if (r < 0)
		return r;
	json_out_object(out, NULL);
	pthread_mutex_lock(&c->t->lock);
	commit_json(c->commits, m, "commit", out);
	pthread_mutex_unlock(&c->t->lock);
	json_out_str(out, "vm", c->row.id);
	json_out_u64(out, "pause_us", c->cut.said.pause_ns / 1000);
	json_out_bool(out, "incremental", c->track.has_memory);
	json_out_u64(out, "memory_read_bytes", c->memory_read);
	json_out_u64(out, "new_pages", c->stats.new_pages);
	json_out_u64(out, "written_bytes", c->stats.bytes_written);
	json_out_end_object(out);
	store_manifest_free(m);
	return 0;
}

static int
commit(struct commit *c, const char *name, struct json_out *out, struct err *e)
{
	struct tree *t = c->t;
	uint64_t began_ns = io_now_ns();
	char called[VM_CALLED_MAX];
	int r = commits_store(c->commits, &c->store, e);

	if (r == 0)
		r = check_tags(c, e);
	if (r == 0)
		r = merge_wait_room(t, name, c->p, e);
	if (r < 0)
		return r;
	pthread_mutex_lock(&t->lock);
	r = tree_claim(t, name, "being committed", c->p, &c->vm, e);
	c->claimed = r == 0;
	if (r == 0)
		r = enter(c, e);
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	fault_point("commit.entered");
	say(c->p, "committing VM %s", vm_called(c->vm, called, sizeof(called)));
	r = take_frozen_fork(c, e);
	if (r == 0) {
		pthread_rwlock_rdlock(&c->commits->noted_lock);
		/* Also until its base is noted: gc would not know it. */
		store_hold(c->store);
		r = write_commit(c, e);
		if (r < 0)
			err_wrap(e, r, "committing vm \"%s\"", vm_name(c->vm));
		else
			note_commit(c);
		store_release(c->store);
		pthread_rwlock_unlock(&c->commits->noted_lock);
	}
	if (r == 0) {
		fault_point("commit.noted");
		commit_track_durable(c->vm, c->cut.generation, c->id);
	}
	leave(c);
	if (r == 0)
		r = tag_commit(c, e);
	if (r < 0) {
		if (e)
			log_info("vm %s (%s): not committed: %s", c->row.id,
				vm_name(c->vm), e->msg);
		return r;
	}
	log_info(
		"vm %s (%s): committed as %.12s in %llu ms, paused for %llu us; %llu KiB of memory read%s, %llu KiB written",
		c->row.id, vm_name(c->vm), c->id,
		(unsigned long long)((io_now_ns() - began_ns) / 1000000),
		(unsigned long long)(c->cut.said.pause_ns / 1000),
		(unsigned long long)(c->memory_read >> 10),
		c->track.has_memory ? " of what changed" : "",
		(unsigned long long)(c->stats.bytes_written >> 10));
	return answer(c, out, e);
}

int
commits_make(struct commits *commits, const char *vm, const struct commit_request *q,
	const struct progress *p, struct json_out *out, struct err *e)
{
	struct commit *c = calloc(1, sizeof(*c));
	struct tree *t = commits->tree;
	int r;

	if (!c)
		return err_set(e, -ENOMEM, "out of memory");
	c->commits = commits;
	c->t = t;
	c->q = q;
	c->p = p;
	c->cut = (struct fork_point)FORK_POINT_INIT(t);
	c->frozen_fork = (struct frozen_fork)FROZEN_FORK_INIT;
	c->base_fd = -1;
	r = commit(c, vm, out, e);
	pthread_mutex_lock(&t->lock);
	if (c->vm) {
		if (c->claimed)
			c->vm->op = NULL;
		c->vm->n_commits -= c->reads;
		vm_unref(c->vm);
	}
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	commit_done(c);
	free(c);
	return r;
}
