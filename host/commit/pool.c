/*
 * Pre-warmed VMMs (common/wire/vmm_wire.h, VMM_PREPARE): a process, sealed, with its KVM VM, vCPUs
 * and memory slots, that waits to be told which VM it is. Making one takes milliseconds;
 * they are made here, ahead of time and beside whoever needs them, for the shapes that
 * were asked for last.
 *
 * Likewise one pando-fill (fill.h), where there is a store: a cold restore waits for its start else.
 *
 * A pre-warmed one belongs to nobody: it exits by itself when its control socket closes, so a
 * pandod that is killed leaves none.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"

#define SHAPES_MAX 4

struct prewarmed {
	struct vmmctl *ctl; /* owned */
	int pidfd;	    /* owned */
	pid_t pid;
};

struct shape {
	uint64_t mem_mib;
	uint32_t vcpus; /* 0: unused */
	uint64_t used_ns;
	bool failed; /* the last try; tried again when the shape is asked for */
	unsigned n;
	struct prewarmed prewarmed[COMMITS_POOL_MAX];
};

struct pool {
	const struct commits *commits; /* borrowed */
	pthread_mutex_t lock;	       /* taken last, held for moments */
	pthread_cond_t changed;
	pthread_t thread;
	bool stopping, complained;
	int log_fd; /* owned */
	struct shape shapes[SHAPES_MAX];
	struct fill_process fill; /* owned; one, in front of a cold restore */
	bool wants_fill;
};

static void
prewarmed_end(struct prewarmed *b)
{
	if (b->pidfd >= 0)
		process_end(b->pidfd);
	vmmctl_free(b->ctl);
	cleanup_close_fn(&b->pidfd);
	*b = (struct prewarmed){.pidfd = -1};
}

int
pool_make_prewarmed(const struct tree_config *config, int log_fd, uint64_t mem_mib,
	uint32_t vcpus, struct vmmctl **ret_ctl, int *ret_pidfd, pid_t *ret_pid,
	struct err *e)
{
	struct vmm_prepare msg = {.mem_mib = mem_mib, .vcpus = vcpus};
	cleanup_close int kvm = open(config->kvm_path, O_RDWR | O_CLOEXEC);
	struct prewarmed b = {.pidfd = -1};
	int r;

	if (kvm < 0)
		return err_sys(e, -errno, "%s", config->kvm_path);

	const int fds[VMM_PREPARE_FD_COUNT] = {
		[VMM_PREPARE_FD_KVM] = kvm,
		[VMM_PREPARE_FD_LOG] = log_fd,
	};

	r = vmm_start(config, log_fd, &b.ctl, &b.pidfd, &b.pid, e);
	if (r == 0)
		r = vmmctl_prepare(b.ctl, &msg, fds, config->start_timeout_ms, e);
	if (r < 0) {
		prewarmed_end(&b);
		return r;
	}
	*ret_ctl = b.ctl;
	*ret_pidfd = b.pidfd;
	*ret_pid = b.pid;
	return 0;
}

/* The shape that has too few, or NULL. Called with the lock. */
static struct shape *
wanting(struct pool *p)
{
	for (unsigned i = 0; i < SHAPES_MAX; i++) {
		struct shape *s = &p->shapes[i];

		if (s->vcpus && !s->failed && s->n < p->commits->config.pool_size)
			return s;
	}
	return NULL;
}

/* Called with the lock, which is let go of meanwhile. */
static void
make_fill(struct pool *p)
{
	struct fill_process made = FILL_PROCESS_INIT;
	char program[PATHS_MAX];
	struct err e;
	int r;

	p->wants_fill = false;
	pthread_mutex_unlock(&p->lock);
	r = fill_program(p->commits, program, &e);
	if (r == 0)
		r = fill_process_start(program, STDERR_FILENO, &made, &e);
	if (r < 0)
		log_warn("no pando-fill ahead of time: %s", e.msg);
	pthread_mutex_lock(&p->lock);
	p->fill = made;
}

static void *
filler_main(void *pool)
{
	struct pool *p = pool;

	pthread_mutex_lock(&p->lock);
	while (!p->stopping) {
		struct prewarmed b = {.pidfd = -1};
		struct shape *s = wanting(p);
		uint64_t mem_mib;
		uint32_t vcpus;
		struct err e;
		int r;

		if (!s && p->wants_fill && p->fill.pidfd < 0) {
			make_fill(p);
			continue;
		}
		if (!s) {
			pthread_cond_wait(&p->changed, &p->lock);
			continue;
		}
		mem_mib = s->mem_mib;
		vcpus = s->vcpus;
		pthread_mutex_unlock(&p->lock);
		r = pool_make_prewarmed(&p->commits->tree->config, p->log_fd, mem_mib,
			vcpus, &b.ctl, &b.pidfd, &b.pid, &e);
		pthread_mutex_lock(&p->lock);
		if (r < 0 && !p->complained)
			log_warn(
				"the pool of pre-warmed VMMs cannot be filled, so commits start in cold ones: %s",
				e.msg);
		p->complained = r < 0;
		/* The table may be another by now. */
		if (s->mem_mib == mem_mib && s->vcpus == vcpus) {
			s->failed = r < 0;
			if (r == 0 && !p->stopping && s->n < COMMITS_POOL_MAX) {
				s->prewarmed[s->n++] = b;
				b = (struct prewarmed){.pidfd = -1};
			}
		}
		if (b.pidfd >= 0) {
			pthread_mutex_unlock(&p->lock);
			prewarmed_end(&b);
			pthread_mutex_lock(&p->lock);
		}
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

void
pool_open(struct commits *c)
{
	char path[PATHS_MAX];
	struct pool *p;

	if (!c->config.pool_size || paths_format(path, sizeof(path), NULL, "%s/pool.log",
					    tree_home(c->tree)) < 0)
		return;
	p = calloc(1, sizeof(*p));
	if (!p)
		return;
	p->commits = c;
	p->fill = (struct fill_process)FILL_PROCESS_INIT;
	p->wants_fill = c->store != NULL; /* there may be commits */
	p->log_fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->changed, NULL);
	if (p->log_fd < 0 || pthread_create(&p->thread, NULL, filler_main, p) != 0) {
		log_warn("no pool of pre-warmed VMMs: %s", path);
		cleanup_close_fn(&p->log_fd);
		free(p);
		return;
	}
	c->pool = p;
}

void
pool_close(struct commits *c)
{
	struct pool *p = c->pool;

	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stopping = true;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->thread, NULL);
	for (unsigned i = 0; i < SHAPES_MAX; i++)
		while (p->shapes[i].n)
			prewarmed_end(&p->shapes[i].prewarmed[--p->shapes[i].n]);
	fill_process_end(&p->fill);
	cleanup_close_fn(&p->log_fd);
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
	free(p);
	c->pool = NULL;
}

/* The entry of a shape, in the place of the one that was asked for longest ago if need
 * be: what that one had comes to old. Called with the lock. */
static struct shape *
shape_of(struct pool *p, uint64_t mem_mib, uint32_t vcpus, struct shape *old)
{
	struct shape *s = &p->shapes[0];

	for (unsigned i = 0; i < SHAPES_MAX; i++) {
		struct shape *other = &p->shapes[i];

		if (other->mem_mib == mem_mib && other->vcpus == vcpus)
			return other;
		if (other->used_ns < s->used_ns)
			s = other;
	}
	*old = *s;
	*s = (struct shape){.mem_mib = mem_mib, .vcpus = vcpus};
	return s;
}

bool
pool_take(struct commits *c, uint64_t mem_mib, uint32_t vcpus, struct vmmctl **ret_ctl,
	int *ret_pidfd, pid_t *ret_pid)
{
	cleanup_free struct shape *old = calloc(1, sizeof(*old));
	struct prewarmed b = {.pidfd = -1};
	struct pool *p = c->pool;
	struct shape *s;
	bool found = false;

	if (!p || !old)
		return false;
	pthread_mutex_lock(&p->lock);
	s = shape_of(p, mem_mib, vcpus, old);
	s->used_ns = io_now_ns();
	s->failed = false;
	while (s->n && !found) {
		b = s->prewarmed[--s->n];
		found = process_lives(b.pidfd);
		if (!found)
			old->prewarmed[old->n++] = b;
	}
	pthread_cond_signal(&p->changed);
	pthread_mutex_unlock(&p->lock);
	while (old->n)
		prewarmed_end(&old->prewarmed[--old->n]);
	if (!found)
		return false;
	*ret_ctl = b.ctl;
	*ret_pidfd = b.pidfd;
	*ret_pid = b.pid;
	return true;
}

bool
pool_take_fill(struct commits *c, struct fill_process *ret)
{
	struct pool *p = c->pool;

	if (!p)
		return false;
	pthread_mutex_lock(&p->lock);
	*ret = p->fill;
	p->fill = (struct fill_process)FILL_PROCESS_INIT;
	p->wants_fill = true;
	pthread_cond_signal(&p->changed);
	pthread_mutex_unlock(&p->lock);
	if (ret->pidfd >= 0 && !process_lives(ret->pidfd))
		fill_process_end(ret);
	return ret->pidfd >= 0;
}
