#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/wire/console_ring.h"
#include "host/agent/agent_client.h"
#include "host/vm/handshake.h"
#include "host/vm/tree_priv.h"

#define NS_PER_MS UINT64_C(1000000)

/* How often the guest's progress is looked at, and told; less with a short limit. */
#define LOOK_MS 1000
#define SAY_MS 10000
/* Of the VMM, for its figures: it is asked again at the next look. */
#define STATS_TIMEOUT_MS 500
#define LINE_MAX_BYTES 256

/* What of a guest moves while it does something. */
struct guest_figures {
	uint64_t console_bytes, exits, disk_bytes;
};

/* One wait for one VM's agent. */
struct agent_wait {
	struct tree *t;
	struct vm *vm;
	const bool *give_up;	  /* under the tree's lock; may be NULL */
	const struct progress *p; /* may be NULL: nobody can go */
	bool answers;		  /* it did; now for its identity handshake */
	bool over;		  /* the limit is, or the ceiling */
	struct guest_figures figures;
	uint64_t limit_ns, ceiling_ns, look_every_ns, say_every_ns;
	uint64_t began_ns,
		moved_ns;	  /* the guest's last progress; at first, the beginning */
	uint64_t look_ns, say_ns; /* the next ones */
};

/* Opens the VM's console ring, if it has one with something in it. *ret_written: how much
 * the guest has ever written. */
static int
open_console(const struct agent_wait *w, uint64_t *ret_written)
{
	struct console_hdr h;
	char path[PATHS_MAX];
	cleanup_close int fd = -1;

	if (paths_format(path, sizeof(path), NULL, "%s/vms/%s/console", w->t->config.home,
		    w->vm->row.id) < 0)
		return -1;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || pread(fd, &h, sizeof(h), 0) != (ssize_t)sizeof(h) ||
		memcmp(h.magic, CONSOLE_MAGIC, sizeof(h.magic)) != 0)
		return -1;
	*ret_written = h.written;
	return TAKE_FD(fd);
}

/* The last line on the guest's console that is not empty, escaped; "" where there is none. A
 * guest that writes meanwhile may tear it. */
static const char *
last_line(const struct agent_wait *w, char *dst, size_t cap)
{
	uint64_t written = 0;
	cleanup_close int fd = open_console(w, &written);
	char tail[LINE_MAX_BYTES];
	size_t n = 0, begin;

	dst[0] = '\0';
	if (fd < 0)
		return dst;
	for (uint64_t at = written > sizeof(tail) ? written - sizeof(tail) : 0;
		at < written; at++, n++)
		if (pread(fd, &tail[n], 1,
			    (off_t)(CONSOLE_HDR_BYTES + at % CONSOLE_RING_BYTES)) != 1)
			return dst;
	while (n && strchr("\r\n ", tail[n - 1]))
		n--;
	for (begin = n; begin && tail[begin - 1] != '\n'; begin--)
		;
	return log_escape(dst, cap, tail + begin, n - begin);
}

/* Whether the guest has done something since the last look. */
static bool
has_moved(struct agent_wait *w)
{
	struct guest_figures now = w->figures;
	struct vmm_stats_answer stats;
	struct vmmctl *ctl;
	bool moved;
	cleanup_close int console = open_console(w, &now.console_bytes);

	(void)console; /* its header was enough */
	pthread_mutex_lock(&w->t->lock);
	ctl = w->vm->dead ? NULL : w->vm->ctl;
	pthread_mutex_unlock(&w->t->lock);
	if (ctl && vmmctl_stats(ctl, STATS_TIMEOUT_MS, true, &stats, NULL, NULL) == 0) {
		now.exits = stats.vcpu_exits;
		now.disk_bytes = stats.disk_read_bytes + stats.disk_write_bytes;
	}
	moved = memcmp(&now, &w->figures, sizeof(now)) != 0;
	w->figures = now;
	return moved;
}

static void
say_waiting(const struct agent_wait *w, uint64_t now)
{
	unsigned long long waited_s = (now - w->began_ns) / (1000 * NS_PER_MS);
	char line[2 * LINE_MAX_BYTES], step[AGENT_STEP_NAME_MAX + 1];
	unsigned steps;

	if (!w->p || !w->p->say)
		return;
	if (!w->answers) {
		last_line(w, line, sizeof(line));
		say(w->p,
			"vm \"%s\": its agent does not answer yet, after %llu s%s%.300s",
			vm_name(w->vm), waited_s, line[0] ? "; its console: " : "", line);
		return;
	}
	pthread_mutex_lock(&w->t->lock);
	steps = w->vm->handshake_steps;
	memcpy(step, w->vm->handshake_step, sizeof(step));
	pthread_mutex_unlock(&w->t->lock);
	if (steps)
		say(w->p,
			"vm \"%s\": its identity handshake is in the step \"%s\", number %u, after %llu s",
			vm_name(w->vm), step, steps, waited_s);
	else
		say(w->p,
			"vm \"%s\": its identity handshake has not begun yet, after %llu s",
			vm_name(w->vm), waited_s);
}

/* What agent_wait_ready() and the handshake ask while they wait: ends the wait when the VM
 * dies, nobody waits any more, or the guest stands still. */
static int
ask_wait(void *agent_wait)
{
	struct agent_wait *w = agent_wait;
	uint64_t now;
	int r = 0;

	pthread_mutex_lock(&w->t->lock);
	if (w->vm->dead)
		r = -ESRCH;
	else if (w->t->stopping || (w->give_up && *w->give_up) || has_gone(w->p))
		r = -ECANCELED;
	pthread_mutex_unlock(&w->t->lock);
	if (r < 0)
		return r;
	now = io_now_ns();
	if (!w->answers && now >= w->look_ns) {
		if (has_moved(w))
			w->moved_ns = now;
		w->look_ns = now + w->look_every_ns;
		w->over = now - w->moved_ns >= w->limit_ns ||
			  now - w->began_ns >= w->ceiling_ns;
	}
	if (now >= w->say_ns) {
		say_waiting(w, now);
		w->say_ns = now + w->say_every_ns;
	}
	return w->over && !w->answers ? -ETIMEDOUT : 0;
}

static struct agent_wait
wait_begin(struct tree *t, struct vm *vm, const bool *give_up, const struct progress *p)
{
	struct agent_wait w = {.t = t, .vm = vm, .give_up = give_up, .p = p};

	w.limit_ns = (uint64_t)t->config.agent_timeout_ms * NS_PER_MS;
	w.ceiling_ns = w.limit_ns * TREE_AGENT_CEILING;
	w.look_every_ns = w.limit_ns / 10;
	if (w.look_every_ns > LOOK_MS * NS_PER_MS)
		w.look_every_ns = LOOK_MS * NS_PER_MS;
	w.say_every_ns = w.limit_ns / 3;
	if (w.say_every_ns > SAY_MS * NS_PER_MS)
		w.say_every_ns = SAY_MS * NS_PER_MS;
	w.began_ns = w.moved_ns = io_now_ns();
	/* Most agents answer before their guest is looked at for the first time. */
	w.look_ns = w.began_ns + w.look_every_ns;
	w.say_ns = w.began_ns + w.say_every_ns;
	return w;
}

/* The sentence for an agent that did not answer in time. */
static int
say_late(const struct agent_wait *w, struct err *e)
{
	unsigned long long waited_ms = (io_now_ns() - w->began_ns) / NS_PER_MS;
	unsigned long long still_ms = (io_now_ns() - w->moved_ns) / NS_PER_MS;
	char line[2 * LINE_MAX_BYTES];

	last_line(w, line, sizeof(line));
	return err_set(e, -ETIMEDOUT,
		"vm \"%s\": its agent did not answer within %llu s, its guest made no progress for the last %llu s; its console%s%.200s",
		vm_name(w->vm), waited_ms / 1000, still_ms / 1000,
		line[0] ? ": " : " is empty", line);
}

int
vm_wait_agent(struct tree *t, struct vm *vm, const bool *give_up,
	const struct progress *p, struct err *e)
{
	struct agent_wait w = wait_begin(t, vm, give_up, p);
	char path[PATHS_MAX];
	struct err why = {0};
	int r = vm_socket_path(t, vm, path);

	if (r == 0) /* ask_wait() has the shorter limit */
		r = agent_wait_ready(path,
			t->config.agent_timeout_ms * TREE_AGENT_CEILING, ask_wait, &w,
			&why);
	w.answers = r == 0;
	/* The health monitor may be telling it: then it is waited for. */
	while (w.answers &&
		(r = vm_handshake(t, vm, t->config.handshake_timeout_ms, ask_wait, &w,
			 &why)) == -EBUSY &&
		(r = ask_wait(&w)) == 0) {
		struct timespec pause = {.tv_nsec = 5000000};

		nanosleep(&pause, NULL);
	}
	/* A VMM that dies takes its socket along; the pidfd says so a moment later. */
	pthread_mutex_lock(&t->lock);
	if (r == -ENOTCONN || r == -ENOENT)
		tree_wait_dead(t, vm, 2000);
	if (vm->dead) {
		r = err_set(e, -ESRCH,
			"vm \"%s\" ended before its agent answered: %.350s", vm_name(vm),
			vm->row.reason);
	} else if (r < 0 && w.answers && r != -ECANCELED) {
		r = err_set(e, r, "vm \"%s\": the identity handshake failed: %.400s",
			vm_name(vm), why.msg);
	} else if (r == -ETIMEDOUT) {
		r = say_late(&w, e);
	} else if (r == -ECANCELED && !t->stopping && has_gone(p)) {
		r = check_not_gone(p, vm_name(vm), e);
	} else if (r == -ECANCELED) {
		r = err_set(e, r,
			"pandod stops; vm \"%s\" goes on, its agent has not answered yet",
			vm_name(vm));
	} else if (r < 0) {
		r = err_set(e, r, "vm \"%s\": its agent does not answer: %.350s",
			vm_name(vm), why.msg);
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}
