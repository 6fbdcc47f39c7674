/*
 * What the database was told, on the disk: at once where something that cannot be undone
 * follows, soon after everything else.
 *
 * A branch takes a millisecond or two, and an fsync as much as ten. So nobody waits for a
 * branch's row to reach the disk: a thread syncs it as soon as it is there, once for all that
 * came meanwhile. A power cut in these milliseconds takes the branch, and what its parent
 * wrote since is found again (adopt.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/vm/tree_priv.h"

int
tree_make_segment(struct tree *t, const char *name, struct vm_segment *ret, struct err *e)
{
	int r = launch_segment(t->config.home, name, ret, e);

	/* Also after a failure: one of its files may be there. */
	atomic_fetch_add(&t->segments_made, 1);
	return r;
}

/* Before a row that names a segment: fsync makes the names in a folder last, and not every
 * file system does that because a later file is synced. Several may be here at once. */
int
tree_sync_segments(struct tree *t, struct err *e)
{
	uint64_t made = atomic_load(&t->segments_made);
	uint64_t synced = atomic_load(&t->segments_synced);
	char path[PATHS_MAX];
	int r;

	if (made == synced)
		return 0;
	r = paths_format(path, sizeof(path), e, "%s/segments", t->config.home);
	if (r == 0)
		r = io_sync_dir(path, e);
	while (r == 0 && synced < made &&
		!atomic_compare_exchange_weak(&t->segments_synced, &synced, made))
		;
	return r;
}

int
tree_sync_locked(struct tree *t, struct err *e)
{
	int r = tree_sync_segments(t, e);

	return r < 0 ? r : db_sync(t->db, e);
}

/* db_sync() is called with the lock, and a disk may take long. The log is synced through a
 * descriptor of its own: what was committed lies there, or was synced when it was moved into
 * the database. (Closing it lets no lock of SQLite's go: none is on this file.) */
int
tree_sync(struct tree *t, struct err *e)
{
	cleanup_close int fd = -1;
	char path[PATHS_MAX];
	int r = paths_format(path, sizeof(path), e, "%s/state.db-wal", t->config.home);

	if (r == 0)
		r = tree_sync_segments(t, e);
	if (r < 0)
		return r;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return errno == ENOENT ? 0 : err_sys(e, -errno, "%.300s", path);
	return fdatasync(fd) < 0 ? err_sys(e, -errno, "%.300s: syncing it", path) : 0;
}

void
tree_sync_soon(struct tree *t)
{
	pthread_mutex_lock(&t->lock);
	t->sync_wanted = true;
	pthread_cond_signal(&t->sync_asked);
	pthread_mutex_unlock(&t->lock);
}

void
tree_sweep_soon(struct tree *t)
{
	pthread_mutex_lock(&t->lock);
	t->sync_wanted = t->sweep_wanted = true;
	pthread_cond_signal(&t->sync_asked);
	pthread_mutex_unlock(&t->lock);
}

static void *
syncer_main(void *tree)
{
	static struct log_limit limit = {.burst = 5};
	struct tree *t = tree;
	struct err e;

	pthread_mutex_lock(&t->lock);
	for (;;) {
		while (!t->sync_wanted && !t->stopping)
			pthread_cond_wait(&t->sync_asked, &t->lock);
		if (!t->sync_wanted)
			break;
		t->sync_wanted = false;
		pthread_mutex_unlock(&t->lock);
		if (tree_sync(t, &e) < 0 && log_allowed(&limit))
			log_warn("a power cut may lose the newest VMs: %s", e.msg);
		pthread_mutex_lock(&t->lock);
		/* What was synced is little to sync again. */
		if (t->sweep_wanted && !t->sync_wanted) {
			t->sweep_wanted = false;
			if (tree_sweep(t, &e) < 0 && log_allowed(&limit))
				log_warn("what VMs wrote before a reset stays for now: %s",
					e.msg);
		}
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

int
tree_sync_start(struct tree *t, struct err *e)
{
	int r = -pthread_create(&t->syncer, NULL, syncer_main, t);

	if (r < 0)
		return err_sys(e, r, "making a thread");
	t->has_syncer = true;
	return 0;
}
