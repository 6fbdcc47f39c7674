/*
 * <home>/flat/<commit>/: a commit as files that VMs map and read, made from the store
 * once.
 *
 *   disk    the base of every VM of the commit. Synced before it has its name, since a
 *           stopped VM's disk lies on it, and never written again.
 *   memory, state
 *           what a restore maps and reads. VMs do not outlive their host, so these are
 *           not synced:
 *   boot    the host's boot id, written last: the other two are whole, and of this boot.
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
	char id[STORE_ID_MAX];
	unsigned users;
	bool building;
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
	fd = open(part, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
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

static int
build(struct commits *c, struct store *s, const struct store_manifest *m, struct err *e)
{
	char path[PATHS_MAX], now[BOOT_ID_MAX];
	int r = materialized_path(c, m->id, "", path, e);

	if (r == 0)
		r = io_mkdir_p(path, 0700, e);
	if (r == 0)
		r = materialized_path(c, m->id, "boot", path, e);
	if (r < 0)
		return r;
	unlink(path);
	r = materialized_path(c, m->id, "disk", path, e);
	if (r == 0 && access(path, F_OK) < 0)
		r = make_file(c, s, m->id, "disk", &m->f.disk, true, e);
	if (r == 0) {
		fault_point("flat.disk");
		r = make_file(c, s, m->id, "memory", &m->f.memory, false, e);
	}
	if (r == 0)
		r = make_file(c, s, m->id, "state", &m->f.state, false, e);
	if (r == 0)
		fault_point("flat.memory");
	if (r == 0)
		r = materialized_path(c, m->id, "boot", path, e);
	if (r < 0)
		return r;
	boot_id(now);
	return io_write_file_atomic(path, now, strlen(now), 0600, e);
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
	snprintf(f->id, sizeof(f->id), "%s", id);
	f->next = c->materialized_images;
	c->materialized_images = f;
	return f;
}

static void
unref_entry(struct commits *c, struct materialized *f)
{
	if (--f->users)
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
	cleanup_close_fn(&f->state_fd);
	*f = (struct materialized_image)MATERIALIZED_IMAGE_INIT;
}

int
materialized_get(struct commits *c, struct store *s, const struct store_manifest *m,
	const struct progress *p, struct materialized_image *ret, struct err *e)
{
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
	while (f->building)
		pthread_cond_wait(&c->materialized_changed, &c->materialized_lock);
	if (!is_ready(c, m->id)) {
		f->building = true;
		pthread_mutex_unlock(&c->materialized_lock);
		say(p, "making memory and disk of commit %.12s ready", m->id);
		r = build(c, s, m, e);
		pthread_mutex_lock(&c->materialized_lock);
		f->building = false;
		pthread_cond_broadcast(&c->materialized_changed);
	}
	pthread_mutex_unlock(&c->materialized_lock);
	if (r == 0)
		r = materialized_path(c, m->id, "disk", ret->disk_path, e);
	if (r == 0)
		r = open_file(c, m->id, "disk", m->f.disk.length, &ret->disk_fd, e);
	if (r == 0)
		r = open_file(c, m->id, "memory", m->f.memory.length, &ret->memory_fd, e);
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
		used = strcmp(f->id, id) == 0;
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
	static const char *const files[] = {
		"disk", "memory", "state", "disk.part", "memory.part", "state.part"};
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
	while (c->materialized_images) {
		struct materialized *f = c->materialized_images;

		c->materialized_images = f->next;
		free(f);
	}
}
