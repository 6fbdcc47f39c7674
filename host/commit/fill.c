#include "host/commit/fill.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "common/memfd.h"
#include "common/paths.h"
#include "common/wire/fill_wire.h"
#include "host/vmmproc/launch.h"

#define PLACES 1024u /* written to the plan at once */

struct fill {
	atomic_uint refs;
	struct fill *next; /* weak: of those that are being filled */
	_Atomic uint64_t bytes; /* that it takes in the end, at most */
	struct store *store; /* borrowed */
	struct store_tree tree;
	char image[PATHS_MAX], touched[PATHS_MAX];
	int sock, pidfd, memory_fd, device_fd, plan_fd, touched_fd; /* owned */
	pid_t pid;
	void (*ended)(void *ctx, int r, const struct err *e);
	void *ctx;

	/* The thread's. */
	struct store_places *places;
	uint8_t *told; /* owned: leaves, a byte each */
	uint64_t n_leaves;
	struct fill_place buf[PLACES + FILL_LEAF_PAGES + 1];
	size_t n_buf;
	uint64_t n_places, n_told;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool is_planned, has_ended;
	int error; /* why it never will be */
	struct err why;
};

/* ---- processes that end by themselves, when their VMs are whole ---- */

static pthread_mutex_t leaving_lock = PTHREAD_MUTEX_INITIALIZER;
static int leaving[64]; /* pidfds */
static unsigned n_leaving;

/* pidfd < 0: only looks who has ended. One that finds no room is reaped with this process. */
static void
reap(int pidfd)
{
	siginfo_t si;

	pthread_mutex_lock(&leaving_lock);
	for (unsigned i = 0; i < n_leaving;) {
		si.si_pid = 0;
		if (waitid(P_PIDFD, (id_t)leaving[i], &si, WEXITED | WNOHANG) == 0 &&
			!si.si_pid) {
			i++;
			continue;
		}
		close(leaving[i]);
		leaving[i] = leaving[--n_leaving];
	}
	if (pidfd >= 0 && n_leaving < sizeof(leaving) / sizeof(*leaving))
		leaving[n_leaving++] = pidfd;
	else if (pidfd >= 0)
		close(pidfd);
	pthread_mutex_unlock(&leaving_lock);
}

/* ---- memory that is being filled ---- */

static pthread_mutex_t filling_lock = PTHREAD_MUTEX_INITIALIZER;
static struct fill *filling; /* weak */

static void
filling_begin(struct fill *f)
{
	pthread_mutex_lock(&filling_lock);
	f->next = filling;
	filling = f;
	pthread_mutex_unlock(&filling_lock);
}

static void
filling_end(struct fill *f)
{
	pthread_mutex_lock(&filling_lock);
	for (struct fill **at = &filling; *at; at = &(*at)->next)
		if (*at == f) {
			*at = f->next;
			break;
		}
	pthread_mutex_unlock(&filling_lock);
}

uint64_t
fill_memory_to_come(void)
{
	uint64_t all = 0;

	pthread_mutex_lock(&filling_lock);
	for (struct fill *f = filling; f; f = f->next) {
		const uint64_t end = atomic_load(&f->bytes);
		struct stat st;

		if (fstat(f->memory_fd, &st) == 0 && (uint64_t)st.st_blocks * 512 < end)
			all += end - (uint64_t)st.st_blocks * 512;
	}
	pthread_mutex_unlock(&filling_lock);
	return all;
}

/* ---- its process ---- */

int
fill_process_start(
	const char *program, int log_fd, struct fill_process *ret, struct err *e)
{
	return launch_spawn(
		program, "pando-fill", log_fd, &ret->sock, &ret->pid, &ret->pidfd, e);
}

void
fill_process_end(struct fill_process *p)
{
	if (p->pidfd >= 0) {
		process_kill(p->pidfd);
		waitid(P_PIDFD, (id_t)p->pidfd, &(siginfo_t){0}, WEXITED);
	}
	cleanup_close_fn(&p->sock);
	cleanup_close_fn(&p->pidfd);
	*p = (struct fill_process)FILL_PROCESS_INIT;
}

static void
take_process(struct fill *f, struct fill_process *p)
{
	f->sock = TAKE_FD(p->sock);
	f->pidfd = TAKE_FD(p->pidfd);
	f->pid = p->pid;
}

/* ---- what was touched first ---- */

/* Malloc'd numbers of pages: those that can be, once each. A file of something else costs the
 * right order, and nothing more. */
static uint32_t *
read_touched(const char *path, uint64_t pages, size_t *ret_n)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	uint32_t *all = NULL;
	uint8_t *seen = NULL;
	struct stat st;
	size_t n, kept = 0;

	*ret_n = 0;
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0)
		return NULL;
	n = (uint64_t)st.st_size / sizeof(*all) < FILL_TOUCHED_MAX
		    ? (size_t)st.st_size / sizeof(*all)
		    : FILL_TOUCHED_MAX;
	all = malloc((n + 1) * sizeof(*all));
	seen = calloc(pages / 8 + 1, 1);
	if (all && seen && io_pread_full(fd, all, n * sizeof(*all), 0) == 0)
		for (size_t i = 0; i < n; i++) {
			const uint32_t page = all[i];

			if (page >= pages || seen[page / 8] >> page % 8 & 1)
				continue;
			seen[page / 8] |= (uint8_t)(1u << page % 8);
			all[kept++] = page;
		}
	free(seen);
	*ret_n = kept;
	return all;
}

/* What was wanted this time goes behind what was wanted before: that was there already when
 * it was touched. A failure costs the next restore its order. */
static void
keep_touched(struct fill *f)
{
	char part[PATHS_MAX + 8];
	size_t n_old = 0;
	cleanup_free uint32_t *old =
		read_touched(f->touched, f->tree.length / STORE_PAGE, &n_old);
	cleanup_free uint32_t *all = calloc(2 * FILL_TOUCHED_MAX, sizeof(*all));
	size_t n = 0;
	struct stat st;

	if (!all || fstat(f->touched_fd, &st) < 0)
		return;
	if (n_old)
		memcpy(all, old, n_old * sizeof(*all));
	n = (size_t)st.st_size / sizeof(*all);
	n = n < FILL_TOUCHED_MAX - n_old ? n : FILL_TOUCHED_MAX - n_old;
	if (!n || io_pread_full(f->touched_fd, all + n_old, n * sizeof(*all), 0) < 0)
		return;
	snprintf(part, sizeof(part), "%s.part", f->touched);
	unlink(part);

	cleanup_close int fd =
		open(part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0 || io_write_full(fd, all, (n_old + n) * sizeof(*all)) < 0 ||
		rename(part, f->touched) < 0)
		unlink(part);
}

/* ---- the plan ---- */

static int
send_plan(struct fill *f, bool is_all, struct err *e)
{
	struct fill_plan m = {.hdr = {FILL_VERSION, FILL_PLAN, sizeof(m)}, .is_all = is_all};
	int r = io_pwrite_full(f->plan_fd, f->buf, f->n_buf * sizeof(*f->buf),
		f->n_places * sizeof(*f->buf));

	if (r < 0)
		return err_sys(e, r, "the plan of its memory");
	f->n_places += f->n_buf;
	f->n_buf = 0;
	m.places = f->n_places;
	r = io_send_fds(f->sock, &m, sizeof(m), NULL, 0);
	return r < 0 ? err_sys(e, r, "telling pando-fill") : 0;
}

static int
send_pack(void *fill, int fd, struct err *e)
{
	const struct fill_hdr m = {FILL_VERSION, FILL_PACK, sizeof(m)};
	struct fill *f = fill;
	int r = io_send_fds(f->sock, &m, sizeof(m), &fd, 1);

	return r < 0 ? err_sys(e, r, "telling pando-fill") : 0;
}

static int
tell_leaf(struct fill *f, uint64_t leaf, struct err *e)
{
	struct store_place places[STORE_LEAF_PAGES];
	size_t n;
	int r;

	if (f->told[leaf])
		return 0;
	r = store_places_leaf(f->places, leaf, send_pack, f, places, &n, e);
	for (size_t i = 0; r == 0 && i < n; i++) {
		const struct store_place *from = &places[i];
		struct fill_place *to = &f->buf[f->n_buf++];

		*to = (struct fill_place){.page = from->page,
			.offset = from->offset,
			.stored = from->stored,
			.pack = (uint16_t)from->pack,
			.coding = from->is_zipped ? FILL_ZSTD : FILL_RAW};
		memcpy(to->hash, from->hash.b, sizeof(to->hash));
		if (from->pack > UINT16_MAX)
			r = err_set(e, -EMFILE, "its memory lies in too many packs");
	}
	if (r < 0)
		return r;
	f->buf[f->n_buf++] = (struct fill_place){
		.page = leaf * STORE_LEAF_PAGES, .coding = FILL_LEAF};
	f->told[leaf] = 1;
	f->n_told++;
	return 0;
}

/* What guests wait for, and pando-fill does not know yet, goes first. */
static int
tell_wanted(struct fill *f, struct err *e)
{
	union {
		struct fill_hdr hdr;
		struct fill_want want;
		struct fill_done done;
	} m;
	bool any = false;
	ssize_t n;
	int r = 0;

	while (r == 0 && (n = recv(f->sock, &m, sizeof(m), MSG_DONTWAIT)) != -1) {
		if (n == sizeof(m.done) && m.hdr.type == FILL_DONE && m.done.error) {
			m.done.msg[sizeof(m.done.msg) - 1] = '\0';
			return err_set(e, m.done.error, "%s", m.done.msg);
		}
		if (n != sizeof(m.want) || m.hdr.type != FILL_WANT ||
			m.want.leaf >= f->n_leaves)
			return err_set(e, -EPIPE, "pando-fill ended before memory was there");
		r = tell_leaf(f, m.want.leaf, e);
		any = true;
		if (r == 0 && f->n_buf >= PLACES)
			r = send_plan(f, false, e);
	}
	return r == 0 && any && f->n_buf ? send_plan(f, false, e) : r;
}

static int
tell_and_listen(struct fill *f, uint64_t leaf, struct err *e)
{
	int r = tell_leaf(f, leaf, e);

	if (r == 0 && f->n_buf >= PLACES)
		r = send_plan(f, false, e);
	return r < 0 ? r : tell_wanted(f, e);
}

static int
tell_all(struct fill *f, struct err *e)
{
	size_t n_touched;
	cleanup_free uint32_t *touched =
		read_touched(f->touched, f->tree.length / STORE_PAGE, &n_touched);
	int r = 0;

	for (size_t i = 0; i < n_touched && r == 0; i++)
		r = tell_and_listen(f, touched[i] / STORE_LEAF_PAGES, e);
	if (r == 0 && f->n_buf)
		r = send_plan(f, false, e);
	for (uint64_t leaf = 0; leaf < f->n_leaves && r == 0; leaf++)
		r = tell_and_listen(f, leaf, e);
	return r < 0 ? r : send_plan(f, true, e);
}

static void
set_planned(struct fill *f, int r, const struct err *e)
{
	pthread_mutex_lock(&f->lock);
	f->is_planned = true;
	f->error = r;
	if (r < 0)
		f->why = *e;
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
}

/* ---- the thread ---- */

static int
wait_done(struct fill *f, struct err *e)
{
	char part[PATHS_MAX + 8];
	struct fill_done m;
	ssize_t n;

	do /* what it wanted is told by now */
		n = recv(f->sock, &m, sizeof(m), 0);
	while (n == sizeof(struct fill_want) || (n < 0 && errno == EINTR));
	if (n != sizeof(m) || m.hdr.type != FILL_DONE)
		return err_set(e, -EPIPE, "pando-fill ended before memory was there");
	m.msg[sizeof(m.msg) - 1] = '\0';
	if (m.error)
		return err_set(e, m.error, "%s", m.msg);
	snprintf(part, sizeof(part), "%s.part", f->image);
	if (m.image_error)
		return err_sys(e, m.image_error, "%.300s", part);
	if (chmod(part, 0400) < 0 || rename(part, f->image) < 0)
		return err_sys(e, -errno, "%.300s", f->image);
	return 0;
}

static void *
fill_thread(void *arg)
{
	struct fill *f = arg;
	char part[PATHS_MAX + 8];
	struct err e = {0};
	int r;

	/* Its places stay readable: pando-fill has the files open. */
	store_hold(f->store);
	r = store_places_open(f->store, &f->tree, &f->places, &e);
	if (r == 0)
		r = tell_all(f, &e);
	store_places_close(f->places);
	store_release(f->store);
	if (r == 0) {
		/* Of the places, those that are pages. */
		atomic_store(&f->bytes, (f->n_places - f->n_told) * STORE_PAGE);
		fault_point("fill.planned");
	}
	set_planned(f, r, &e);
	if (r == 0)
		r = wait_done(f, &e);
	keep_touched(f);
	snprintf(part, sizeof(part), "%s.part", f->image);
	if (r < 0)
		unlink(part);
	if (r < 0)
		shutdown(f->sock, SHUT_RDWR); /* it fails the VMs that wait */
	filling_end(f);
	f->ended(f->ctx, r, &e);
	pthread_mutex_lock(&f->lock);
	f->has_ended = true;
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
	fill_unref(f);
	return NULL;
}

static int
open_files(struct fill *f, const struct store_tree *memory, int fds[], struct err *e)
{
	char part[PATHS_MAX + 8];

	snprintf(part, sizeof(part), "%s.part", f->image);
	unlink(part);
	fds[FILL_BEGIN_FD_IMAGE] =
		open(part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fds[FILL_BEGIN_FD_IMAGE] < 0 ||
		ftruncate(fds[FILL_BEGIN_FD_IMAGE], (off_t)memory->length) < 0)
		return err_sys(e, -errno, "making %.300s", part);
	f->memory_fd = memfd_create("memory", MFD_CLOEXEC);
	f->plan_fd = memfd_create("plan", MFD_CLOEXEC);
	f->touched_fd = memfd_create("touched", MFD_CLOEXEC);
	if (f->memory_fd < 0 || f->plan_fd < 0 || f->touched_fd < 0 ||
		ftruncate(f->memory_fd, (off_t)memory->length) < 0)
		return err_sys(e, -errno, "memfd_create");
	fds[FILL_BEGIN_FD_MEMORY] = f->memory_fd;
	fds[FILL_BEGIN_FD_PLAN] = f->plan_fd;
	fds[FILL_BEGIN_FD_TOUCHED] = f->touched_fd;
	return 0;
}

static int
start(struct fill *f, const struct fill_how *how, struct err *e)
{
	const struct fill_begin m = {.hdr = {FILL_VERSION, FILL_BEGIN, sizeof(m)},
		.pages = f->tree.length / STORE_PAGE};
	int fds[FILL_BEGIN_FD_COUNT] = {-1, -1, -1, -1};
	struct fill_process started = FILL_PROCESS_INIT;
	pthread_t thread;
	int r = paths_format(f->image, sizeof(f->image), e, "%s/memory", how->folder);

	if (r == 0)
		r = paths_format(f->touched, sizeof(f->touched), e, "%s", how->touched);
	if (r == 0)
		r = open_files(f, &f->tree, fds, e);
	if (r == 0 && f->sock < 0)
		r = fill_process_start(how->program, how->log_fd, &started, e);
	if (started.sock >= 0)
		take_process(f, &started);
	if (r == 0 && (r = io_send_fds(f->sock, &m, sizeof(m), fds, FILL_BEGIN_FD_COUNT)) < 0)
		err_sys(e, r, "telling pando-fill");
	if (fds[FILL_BEGIN_FD_IMAGE] >= 0)
		close(fds[FILL_BEGIN_FD_IMAGE]);
	if (r < 0)
		return r;
	fill_ref(f);
	filling_begin(f);
	r = -pthread_create(&thread, NULL, fill_thread, f);
	if (r == 0) {
		pthread_detach(thread);
	} else {
		filling_end(f);
		atomic_fetch_sub(&f->refs, 1);
		return err_sys(e, r, "starting a thread");
	}
	return 0;
}

int
fill_start(struct store *s, const struct store_tree *memory, const struct fill_how *how,
	struct fill **ret, struct err *e)
{
	cleanup_close int device = open(FILL_DEVICE, O_RDWR | O_CLOEXEC);
	struct fill *f = NULL;
	int r;

	if (device < 0)
		r = err_set(e, -EOPNOTSUPP, FILL_DEVICE ": %s", strerror(errno));
	else if (memfd_takes_huge_pages())
		r = err_set(e, -EOPNOTSUPP,
			MEMFD_HUGE_SETTING " has memory be there that was not filled");
	else if (!(f = calloc(1, sizeof(*f))))
		r = err_set(e, -ENOMEM, "out of memory");
	if (!f) {
		if (how->process)
			fill_process_end(how->process);
		return r;
	}
	reap(-1);
	f->store = s;
	f->tree = *memory;
	atomic_init(&f->bytes, how->bytes < memory->length ? how->bytes : memory->length);
	f->ended = how->ended;
	f->ctx = how->ctx;
	f->sock = f->pidfd = f->memory_fd = f->plan_fd = f->touched_fd = -1;
	if (how->process)
		take_process(f, how->process);
	f->device_fd = TAKE_FD(device);
	f->n_leaves = (memory->length / STORE_PAGE + STORE_LEAF_PAGES - 1) / STORE_LEAF_PAGES;
	f->told = calloc(f->n_leaves + 1, 1);
	atomic_init(&f->refs, 1);
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->changed, NULL);
	r = f->told ? start(f, how, e) : err_set(e, -ENOMEM, "out of memory");
	if (r < 0) {
		fill_unref(f);
		return r;
	}
	*ret = f;
	return 0;
}

struct fill *
fill_ref(struct fill *f)
{
	atomic_fetch_add(&f->refs, 1);
	return f;
}

void
fill_unref(struct fill *f)
{
	if (!f || atomic_fetch_sub(&f->refs, 1) != 1)
		return;
	cleanup_close_fn(&f->sock);
	cleanup_close_fn(&f->memory_fd);
	cleanup_close_fn(&f->plan_fd);
	cleanup_close_fn(&f->touched_fd);
	cleanup_close_fn(&f->device_fd);
	if (f->pidfd >= 0)
		reap(f->pidfd);
	pthread_mutex_destroy(&f->lock);
	pthread_cond_destroy(&f->changed);
	free(f->told);
	free(f);
}

int
fill_open_memory(const struct fill *f, int *ret_fd, struct err *e)
{
	char path[40];

	/* All VMs of the commit have it mapped: none of them may write it. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", f->memory_fd);
	*ret_fd = open(path, O_RDONLY | O_CLOEXEC);
	return *ret_fd < 0 ? err_sys(e, -errno, "%s", path) : 0;
}

int
fill_device_fd(const struct fill *f)
{
	return f->device_fd;
}

int
fill_add_vm(struct fill *f, int *ret_fd, struct err *e)
{
	const struct fill_hdr m = {FILL_VERSION, FILL_VM, sizeof(m)};
	cleanup_close int ours = -1, theirs = -1;
	int r = launch_control_pair(&ours, &theirs, e);

	if (r == 0 && (r = io_send_fds(f->sock, &m, sizeof(m), &theirs, 1)) < 0)
		err_sys(e, r, "telling pando-fill of a VM");
	if (r == 0)
		*ret_fd = TAKE_FD(ours);
	return r;
}

int
fill_wait_planned(struct fill *f, struct err *e)
{
	int r;

	pthread_mutex_lock(&f->lock);
	while (!f->is_planned)
		pthread_cond_wait(&f->changed, &f->lock);
	r = f->error < 0 ? err_set(e, f->error, "%s", f->why.msg) : 0;
	pthread_mutex_unlock(&f->lock);
	return r;
}

void
fill_stop(struct fill *f)
{
	shutdown(f->sock, SHUT_RDWR);
	pthread_mutex_lock(&f->lock);
	while (!f->has_ended)
		pthread_cond_wait(&f->changed, &f->lock);
	pthread_mutex_unlock(&f->lock);
}
