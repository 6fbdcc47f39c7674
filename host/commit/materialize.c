/*
 * <home>/flat/<commit>/: a commit as files that VMs map and read, made from the store
 * once.
 *
 *   disk.*  what the disk differs in from a base that the host has (disk_changes.h), synced
 *           before a VM of it is made (materialized_sync()); or
 *   disk    all of it, the base of every VM of the commit. Synced before it has its name,
 *           since a stopped VM's disk lies on it, and never written again.
 *   memory, state
 *           what a restore maps and reads. VMs do not outlive their host, so these are
 *           not synced:
 *   boot    the host's boot id, written last: the other two are whole, and of this boot.
 *
 * While memory is made, VMs run on a memfd of it (fill.h), and <commit>.touched beside the
 * folder says what they wanted first; it stays when the folder goes.
 *
 * Whose memory lies on a file that was removed loses nothing (the kernel keeps it), but
 * nothing is gained either: images of living VMs stay.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"

#define BOOT_ID_MAX 64

/* An image somebody makes or is about to use. */
struct materialized {
	struct materialized *next;
	struct commits *commits; /* borrowed */
	char id[STORE_ID_MAX];
	unsigned users; /* the fill is one */
	bool building;
	struct fill *fill; /* owned, a reference: VMs run while memory is made; NULL: none */
	bool fill_failed;  /* the last: whoever comes next makes it all first */
	bool is_unsynced;  /* the changes of its disk were made, and may go with the power */
};

bool
materialized_is_disk(const char *home, const char *path, char ret_id[static STORE_ID_MAX])
{
	char folder[PATHS_MAX];
	size_t len;

	if (paths_format(folder, sizeof(folder), NULL, "%s/flat/", home) < 0)
		return false;
	len = strlen(folder);
	if (strncmp(path, folder, len) != 0 || strlen(path) < len + STORE_HEX ||
		strspn(path + len, "0123456789abcdef") != STORE_HEX ||
		strcmp(path + len + STORE_HEX, "/disk") != 0)
		return false;
	memcpy(ret_id, path + len, STORE_HEX);
	ret_id[STORE_HEX] = '\0';
	return true;
}

static int
materialized_path(const struct commits *c, const char *id, const char *file, char *dst,
	struct err *e)
{
	return paths_format(dst, PATHS_MAX, e, "%s/flat/%s%s%s", tree_home(c->tree), id,
		file[0] ? "/" : "", file);
}

static void
boot_id(char dst[static BOOT_ID_MAX])
{
	cleanup_close int fd =
		open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : io_read(fd, dst, BOOT_ID_MAX - 1);

	dst[n > 0 ? n : 0] = '\0';
}

/* Whether memory and state are there, whole. */
static bool
is_ready(const struct commits *c, const char *id)
{
	char path[PATHS_MAX], now[BOOT_ID_MAX], was[BOOT_ID_MAX] = "";
	cleanup_close int fd = -1;

	boot_id(now);
	if (materialized_path(c, id, "boot", path, NULL) < 0)
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || io_read(fd, was, sizeof(was) - 1) <= 0)
		return false;
	return now[0] && strcmp(was, now) == 0;
}

/* One file, beside its name and then renamed. */
static int
make_file(struct commits *c, struct store *s, const char *id, const char *name,
	const struct store_tree *tree, bool sync, struct err *e)
{
	char path[PATHS_MAX], part[PATHS_MAX + 8];
	cleanup_close int fd = -1;
	int r = materialized_path(c, id, name, path, e);

	if (r < 0)
		return r;
	snprintf(part, sizeof(part), "%s.part", path);
	unlink(part);
	fd = open(part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_sys(e, -errno, "making %.300s", part);
	r = store_tree_to_file(s, tree, NULL, fd, e);
	if (r == 0 && sync && fsync(fd) < 0)
		r = err_sys(e, -errno, "%.300s", part);
	if (r == 0 && (fchmod(fd, 0400) < 0 || rename(part, path) < 0))
		r = err_sys(e, -errno, "%.300s", path);
	if (r < 0)
		unlink(part);
	/* Stopped VMs lie on it: its name must be there after a power cut, and that of its
	 * folder, which may be new. */
	for (unsigned i = 0; r == 0 && sync && i < 3; i++) {
		*strrchr(path, '/') = '\0';
		r = io_sync_dir(path, e);
	}
	return r;
}

/* 1: the disk is there in one of its forms; 0: it is not. *ret is only used for the second. */
static int
has_disk(const struct commits *c, const struct store_manifest *m,
	const struct materialized *entry, struct disk_changes *ret, struct err *e)
{
	char path[PATHS_MAX];
	int r = materialized_path(c, m->id, "disk", path, e);

	if (r < 0 || access(path, F_OK) == 0)
		return r < 0 ? r : 1;
	r = materialized_path(c, m->id, "", path, e);
	return r < 0 ? r
		     : disk_changes_open(
			       path, m->f.disk.length, !entry->is_unsynced, ret, e);
}

/* The images below <home> go with their VMs: no disk of others is put on them. */
static int
known_bases(struct tree *t, struct db_base **ret, size_t *ret_n, struct err *e)
{
	struct db_base *all = NULL;
	const size_t len = strlen(t->config.home);
	size_t n = 0, kept = 0;
	int r;

	pthread_mutex_lock(&t->lock);
	r = db_bases(t->db, &all, &n, e);
	pthread_mutex_unlock(&t->lock);
	for (size_t i = 0; r == 0 && i < n; i++)
		if (strncmp(all[i].path, t->config.home, len) != 0 || all[i].path[len] != '/')
			all[kept++] = all[i];
	*ret = all;
	*ret_n = kept;
	return r;
}

/* entry->building is the caller's. */
static int
build_disk(struct commits *c, struct store *s, const struct store_manifest *m,
	struct materialized *entry, struct err *e)
{
	cleanup_free struct db_base *bases = NULL;
	struct disk_changes there = DISK_CHANGES_INIT;
	char folder[PATHS_MAX];
	size_t n = 0;
	int r = has_disk(c, m, entry, &there, e);

	disk_changes_done(&there);
	if (r != 0)
		return r < 0 ? r : 0;
	if ((r = materialized_path(c, m->id, "", folder, e)) < 0 ||
		(r = known_bases(c->tree, &bases, &n, e)) < 0)
		return r;
	entry->is_unsynced = false;
	r = disk_changes_write(s, &m->f.disk, bases, n, folder, e);
	entry->is_unsynced = r == 1;
	if (r == 0)
		r = make_file(c, s, m->id, "disk", &m->f.disk, true, e);
	return r < 0 ? r : 0;
}

/* The memory is there: the image is whole, in this boot. */
static int
write_boot(const struct commits *c, const char *id, struct err *e)
{
	char path[PATHS_MAX], now[BOOT_ID_MAX];
	int r = materialized_path(c, id, "boot", path, e);

	boot_id(now);
	return r < 0 ? r : io_write_file_atomic(path, now, strlen(now), 0600, e);
}

/* All but the memory. */
static int
build_rest(struct commits *c, struct store *s, const struct store_manifest *m,
	struct materialized *entry, struct err *e)
{
	char path[PATHS_MAX];
	int r = materialized_path(c, m->id, "", path, e);

	if (r == 0)
		r = io_mkdir_p(path, 0700, e);
	if (r == 0)
		r = materialized_path(c, m->id, "boot", path, e);
	if (r < 0)
		return r;
	unlink(path);
	r = build_disk(c, s, m, entry, e);
	if (r == 0) {
		fault_point("flat.disk");
		r = make_file(c, s, m->id, "state", &m->f.state, false, e);
	}
	return r;
}

static int
build_memory(struct commits *c, struct store *s, const struct store_manifest *m, struct err *e)
{
	int r = make_file(c, s, m->id, "memory", &m->f.memory, false, e);

	if (r < 0)
		return r;
	fault_point("flat.memory");
	return write_boot(c, m->id, e);
}

static void unref_entry(struct commits *c, struct materialized *f);

/* From the fill's thread. */
static void
fill_ended(void *ctx, int r, const struct err *e)
{
	struct materialized *f = ctx;
	struct commits *c = f->commits;
	struct err why = *e;

	pthread_mutex_lock(&c->materialized_lock);
	if (r == 0)
		r = write_boot(c, f->id, &why);
	if (r < 0)
		log_warn("commit %.12s: its memory was not made ready: %s", f->id, why.msg);
	f->fill_failed = r < 0;
	fill_unref(TAKE_PTR(f->fill));
	unref_entry(c, f);
	pthread_cond_broadcast(&c->materialized_changed);
	pthread_mutex_unlock(&c->materialized_lock);
	materialized_trim(c); /* its VMs may be gone already */
}

int
fill_program(const struct commits *c, char dst[static PATHS_MAX], struct err *e)
{
	const char *vmm = c->tree->config.vmm_path, *slash = strrchr(vmm, '/');

	return paths_format(
		dst, PATHS_MAX, e, "%.*s/pando-fill", slash ? (int)(slash - vmm) : 0, vmm);
}

static int
count_page(void *ctx, uint64_t page, const struct store_hash *name, struct err *e)
{
	(void)page, (void)name, (void)e;
	*(uint64_t *)ctx += STORE_PAGE;
	return 0;
}

/* Whether there is room for the memory, which no disk takes back. Only where it is scarce all
 * of the tree is asked how much of it is zero. *ret_bytes: what it takes, or more. */
static int
has_room(struct commits *c, struct store *s, const struct store_manifest *m,
	uint64_t *ret_bytes, struct err *e)
{
	const uint64_t mem_mib = m->f.memory.length >> 20;
	int r;

	*ret_bytes = m->f.memory.length;
	if (host_has_room(c->tree, m->id, mem_mib, *ret_bytes, 1, NULL) == 0)
		return 0;
	*ret_bytes = 0;
	r = store_tree_names(s, &m->f.memory, NULL, count_page, ret_bytes, e);
	return r < 0 ? r : host_has_room(c->tree, m->id, mem_mib, *ret_bytes, 1, e);
}

/* VMs may run on the memory at once, while it is made. < 0: not so. */
static int
start_fill(struct commits *c, struct store *s, const struct store_manifest *m,
	uint64_t bytes, struct materialized *entry, struct err *e)
{
	struct fill_process ahead = FILL_PROCESS_INIT;
	char program[PATHS_MAX], folder[PATHS_MAX], touched[PATHS_MAX];
	struct fill_how how = {.bytes = bytes,
		.program = program,
		.folder = folder,
		.touched = touched,
		.log_fd = STDERR_FILENO,
		.ended = fill_ended,
		.ctx = entry};
	int r = fill_program(c, program, e);

	if (r == 0)
		r = materialized_path(c, m->id, "", folder, e);
	if (r == 0)
		r = paths_format(touched, sizeof(touched), e, "%s.touched", folder);
	if (r < 0)
		return r;
	if (pool_take_fill(c, &ahead))
		how.process = &ahead;
	entry->users++;
	r = fill_start(s, &m->f.memory, &how, &entry->fill, e);
	if (r < 0)
		entry->users--;
	return r;
}

/* The disk as one file beside one that lies on a base. Locks as build(). */
static int
build_one_disk(struct commits *c, struct store *s, const struct store_manifest *m,
	const struct progress *p, struct err *e)
{
	int r;

	pthread_mutex_unlock(&c->materialized_lock);
	say(p, "making the disk of commit %.12s one file", m->id);
	r = make_file(c, s, m->id, "disk", &m->f.disk, true, e);
	pthread_mutex_lock(&c->materialized_lock);
	return r;
}

/* Called with materialized_lock, which is let go of meanwhile; entry->building is the
 * caller's. */
static int
build(struct commits *c, struct store *s, const struct store_manifest *m, bool full,
	struct materialized *entry, const struct progress *p, struct err *e)
{
	uint64_t bytes = 0;
	struct err why;
	int r = 0;

	pthread_mutex_unlock(&c->materialized_lock);
	say(p, "making memory and disk of commit %.12s ready", m->id);
	if (!full)
		r = has_room(c, s, m, &bytes, e);
	if (r == 0)
		r = build_rest(c, s, m, entry, e);
	pthread_mutex_lock(&c->materialized_lock);
	if (r < 0)
		return r;
	if (entry->fill)
		return 0; /* somebody removed the rest of it */
	if (!full && !entry->fill_failed) {
		r = start_fill(c, s, m, bytes, entry, &why);
		if (r == 0)
			return 0;
		log_info("commit %.12s: its memory is made ready before its VMs start: %s",
			m->id, why.msg);
	}
	pthread_mutex_unlock(&c->materialized_lock);
	r = build_memory(c, s, m, e);
	pthread_mutex_lock(&c->materialized_lock);
	if (r == 0)
		entry->fill_failed = false;
	return r;
}

static int
open_file(const struct commits *c, const char *id, const char *name, uint64_t size,
	int *ret_fd, struct err *e)
{
	char path[PATHS_MAX];
	struct stat st;
	int r = materialized_path(c, id, name, path, e);

	if (r < 0)
		return r;
	*ret_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (*ret_fd < 0 || fstat(*ret_fd, &st) < 0)
		return err_sys(e, -errno, "%.300s", path);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != size)
		return err_set(e, -EBADMSG,
			"%.300s has %lld bytes and must have %llu: remove its folder when no VM runs on it; it is made again from the store",
			path, (long long)st.st_size, (unsigned long long)size);
	return 0;
}

/* The entry of an image, made if need be. Called with materialized_lock. */
static struct materialized *
entry_of(struct commits *c, const char *id)
{
	struct materialized *f = c->materialized_images;

	while (f && strcmp(f->id, id) != 0)
		f = f->next;
	if (f)
		return f;
	f = calloc(1, sizeof(*f));
	if (!f)
		return NULL;
	f->commits = c;
	snprintf(f->id, sizeof(f->id), "%s", id);
	f->next = c->materialized_images;
	c->materialized_images = f;
	return f;
}

static void
unref_entry(struct commits *c, struct materialized *f)
{
	/* One whose fill failed is remembered. */
	if (--f->users || f->fill_failed)
		return;
	for (struct materialized **at = &c->materialized_images; *at; at = &(*at)->next)
		if (*at == f) {
			*at = f->next;
			free(f);
			return;
		}
}

void
materialized_release(struct commits *c, struct materialized_image *f)
{
	if (f->entry) {
		pthread_mutex_lock(&c->materialized_lock);
		unref_entry(c, f->entry);
		pthread_mutex_unlock(&c->materialized_lock);
	}
	cleanup_close_fn(&f->memory_fd);
	cleanup_close_fn(&f->disk_fd);
	disk_changes_done(&f->changes);
	fill_unref(f->fill);
	cleanup_close_fn(&f->state_fd);
	*f = (struct materialized_image)MATERIALIZED_IMAGE_INIT;
}

/* Called with materialized_lock, which is let go of meanwhile. */
static int
sync_disk(struct commits *c, struct materialized *entry, struct err *e)
{
	char folder[PATHS_MAX];
	int r = materialized_path(c, entry->id, "", folder, e);

	while (entry->building)
		pthread_cond_wait(&c->materialized_changed, &c->materialized_lock);
	if (r < 0 || !entry->is_unsynced)
		return r;
	entry->building = true;
	pthread_mutex_unlock(&c->materialized_lock);
	r = disk_changes_sync(folder, e);
	pthread_mutex_lock(&c->materialized_lock);
	entry->building = false;
	if (r == 0)
		entry->is_unsynced = false;
	pthread_cond_broadcast(&c->materialized_changed);
	return r;
}

int
materialized_sync(struct commits *c, struct materialized_image *f, struct err *e)
{
	int r;

	pthread_mutex_lock(&c->materialized_lock);
	r = sync_disk(c, f->entry, e);
	pthread_mutex_unlock(&c->materialized_lock);
	return r < 0 ? err_wrap(e, r, "its disk") : 0;
}

int
materialized_get(struct commits *c, struct store *s, const struct store_manifest *m,
	unsigned how, const struct progress *p, struct materialized_image *ret, struct err *e)
{
	const bool full = how & MATERIALIZED_FULL;
	char path[PATHS_MAX];
	struct materialized *f;
	int r = 0;

	pthread_mutex_lock(&c->materialized_lock);
	f = entry_of(c, m->id);
	if (!f) {
		pthread_mutex_unlock(&c->materialized_lock);
		return err_set(e, -ENOMEM, "out of memory");
	}
	f->users++;
	ret->entry = f;
	/* Whoever comes while it is made waits, and tries once more if that failed. */
	while (f->building || (full && f->fill))
		pthread_cond_wait(&c->materialized_changed, &c->materialized_lock);
	/* A base that was removed, or built anew, is one that the disk lies on no more. */
	r = f->fill || is_ready(c, m->id) ? has_disk(c, m, f, &ret->changes, e) : 0;
	if (r == 0) {
		f->building = true;
		r = build(c, s, m, full, f, p, e);
		f->building = false;
		pthread_cond_broadcast(&c->materialized_changed);
		if (r == 0)
			r = has_disk(c, m, f, &ret->changes, e);
	}
	if (r == 0)
		r = err_set(e, -EAGAIN, "the base of its disk was replaced just now: try again");
	if (r > 0 && how & MATERIALIZED_ONE_DISK && ret->changes.base_fd >= 0) {
		disk_changes_done(&ret->changes);
		f->building = true;
		r = build_one_disk(c, s, m, p, e);
		f->building = false;
		pthread_cond_broadcast(&c->materialized_changed);
		if (r == 0)
			r = has_disk(c, m, f, &ret->changes, e);
	}
	if (r > 0 && !(how & MATERIALIZED_SYNC_LATER) && (r = sync_disk(c, f, e)) == 0)
		r = 1;
	if (r > 0 && f->fill)
		ret->fill = fill_ref(f->fill);
	pthread_mutex_unlock(&c->materialized_lock);
	if (r > 0)
		r = materialized_path(c, m->id, "", ret->folder, e);
	if (r == 0 && ret->changes.base_fd >= 0)
		memcpy(ret->disk_path, ret->changes.base_path, sizeof(ret->disk_path));
	else if (r == 0 && (r = materialized_path(c, m->id, "disk", ret->disk_path, e)) == 0)
		r = open_file(c, m->id, "disk", m->f.disk.length, &ret->disk_fd, e);
	if (r == 0)
		r = ret->fill ? fill_open_memory(ret->fill, &ret->memory_fd, e)
			      : open_file(c, m->id, "memory", m->f.memory.length,
					&ret->memory_fd, e);
	if (r == 0)
		r = open_file(c, m->id, "state", m->f.state.length, &ret->state_fd, e);
	ret->state_bytes = m->f.state.length;
	if (r < 0) {
		materialized_release(c, ret);
		return err_wrap(e, r, "commit %.12s", m->id);
	}
	/* When it was last used. */
	if (materialized_path(c, m->id, "", path, NULL) == 0)
		utimensat(AT_FDCWD, path, NULL, 0);
	return 0;
}

/*
 * The bound.
 */

struct image_on_disk {
	char id[STORE_ID_MAX];
	int64_t used_ns;
	uint64_t bytes;
	bool orphan; /* of a commit that is no more */
};

static int
older(const void *a, const void *b)
{
	const struct image_on_disk *x = a, *y = b;

	if (x->orphan != y->orphan)
		return x->orphan ? -1 : 1;
	return x->used_ns < y->used_ns ? -1 : x->used_ns > y->used_ns;
}

/* Whether a VM lives on it, or has its disk on it. Called with materialized_lock. */
static bool
is_in_use(struct commits *c, const char *id)
{
	struct tree *t = c->tree;
	char base[STORE_ID_MAX];
	bool used = false;

	for (struct materialized *f = c->materialized_images; f && !used; f = f->next)
		used = f->users && strcmp(f->id, id) == 0;
	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i < t->n_vms && !used; i++) {
		const struct vm_row *row = &t->vms[i]->row;

		used = (materialized_is_disk(t->config.home, row->base_path, base) &&
			       strcmp(base, id) == 0) ||
		       (vm_state_lives(row->state) && strcmp(row->image, id) == 0) ||
		       (t->vms[i]->reset && strcmp(t->vms[i]->reset->row.commit, id) == 0);
	}
	pthread_mutex_unlock(&t->lock);
	return used;
}

static void
measure(struct commits *c, struct store *s, const char *id, struct image_on_disk *ret)
{
	static const char *const files[] = {"disk", "memory", "state", "disk.part",
		"memory.part", "state.part", "disk.data", "disk.index", "disk.map",
		"disk.data.part", "disk.index.part", "disk.map.part"};
	char path[PATHS_MAX], full[STORE_ID_MAX];
	struct stat st;

	*ret = (struct image_on_disk){0};
	snprintf(ret->id, sizeof(ret->id), "%s", id);
	if (materialized_path(c, id, "", path, NULL) == 0 && stat(path, &st) == 0)
		ret->used_ns =
			(int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		if (materialized_path(c, id, files[i], path, NULL) == 0 &&
			stat(path, &st) == 0)
			ret->bytes += (uint64_t)st.st_blocks * 512;
	ret->orphan = s && store_resolve(s, id, full, NULL) == -ENOENT;
}

/* <commit>.touched stays when the image goes, but not longer than the commit. */
static void
trim_touched(const struct commits *c, struct store *s, const char *name)
{
	char path[PATHS_MAX], id[STORE_ID_MAX], full[STORE_ID_MAX];

	if (strspn(name, "0123456789abcdef") != STORE_HEX ||
		strcmp(name + STORE_HEX, ".touched") != 0)
		return;
	memcpy(id, name, STORE_HEX);
	id[STORE_HEX] = '\0';
	if (s && store_resolve(s, id, full, NULL) == -ENOENT &&
		materialized_path(c, name, "", path, NULL) == 0)
		unlink(path);
}

void
materialized_trim(struct commits *c)
{
	cleanup_free struct image_on_disk *all = NULL;
	cleanup_closedir DIR *dir = NULL;
	struct tree *t = c->tree;
	char path[PATHS_MAX];
	struct store *s = NULL;
	uint64_t bytes = 0;
	bool synced = false;
	struct dirent *d;
	size_t n = 0;
	struct err e;

	if (materialized_path(c, "", "", path, NULL) < 0 || !(dir = opendir(path)))
		return;
	commits_store(c, &s, NULL);
	pthread_mutex_lock(&c->materialized_lock);
	while ((d = readdir(dir))) {
		struct image_on_disk *more;

		trim_touched(c, s, d->d_name);
		if (strlen(d->d_name) != STORE_HEX ||
			strspn(d->d_name, "0123456789abcdef") != STORE_HEX ||
			is_in_use(c, d->d_name))
			continue;
		more = reallocarray(all, n + 1, sizeof(*all));
		if (!more)
			break;
		all = more;
		measure(c, s, d->d_name, &all[n]);
		bytes += all[n++].bytes;
	}
	if (n)
		qsort(all, n, sizeof(*all), older);
	for (size_t i = 0; i < n; i++) {
		int r = 0;

		if (!all[i].orphan && bytes <= c->config.materialized_mib << 20)
			break;
		/* After a power cut no VM may be on it again. */
		if (!synced) {
			pthread_mutex_lock(&t->lock);
			r = tree_sync_locked(t, &e);
			pthread_mutex_unlock(&t->lock);
		}
		if (r < 0) {
			log_warn("%s", e.msg);
			break;
		}
		synced = true;
		bytes -= all[i].bytes;
		if (materialized_path(c, all[i].id, "", path, NULL) == 0 &&
			io_remove_tree(path, &e) < 0)
			log_warn("%s", e.msg);
	}
	pthread_mutex_unlock(&c->materialized_lock);
}

void
materialized_close(struct commits *c)
{
	struct materialized *filled;

	do { /* its VMs go on without us */
		struct fill *fill = NULL;

		pthread_mutex_lock(&c->materialized_lock);
		filled = c->materialized_images;
		while (filled && !filled->fill)
			filled = filled->next;
		if (filled)
			fill = fill_ref(filled->fill);
		pthread_mutex_unlock(&c->materialized_lock);
		if (fill)
			fill_stop(fill);
		fill_unref(fill);
	} while (filled);
	while (c->materialized_images) {
		struct materialized *f = c->materialized_images;

		c->materialized_images = f->next;
		free(f);
	}
}
