#include "host/vmmproc/vmmctl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/vmmproc/process_progress.h"

/* Unasked messages taken while one answer is waited for; more is a flood. */
#define UNASKED_MAX 64
static const char flood[] = "the VMM floods its control socket";

union message {
	struct vmm_hdr hdr;
	struct vmm_done done;
	struct vmm_started started;
	struct vmm_forked forked;
	struct vmm_stats_answer stats;
	struct vmm_exiting exiting;
	struct vmm_state_answer state;
};

struct vmmctl {
	int fd;	   /* owned */
	int pidfd; /* owned; -1: not known yet */
	uint64_t seq;
	bool has_started, has_exiting;
	struct vmm_started started;
	pid_t started_pid;
	struct vmm_exiting exiting;
	void (*idle)(void *ctx, uint64_t handle);
	void *idle_ctx; /* weak */
	uint64_t idle_handle;
	pthread_mutex_t
		lock; /* one exchange at a time; covers all of the above but exiting */
	/* What others ask while an exchange is under way. */
	pthread_mutex_t exiting_lock; /* has_exiting, exiting, broken, broken_why */
	bool broken;
	char broken_why[VMMCTL_TEXT_MAX];
};

static int receive(struct vmmctl *c, union message *m, pid_t *ret_pid, struct err *e);

int
vmmctl_create(int fd, struct vmmctl **ret, struct err *e)
{
	struct vmmctl *c = calloc(1, sizeof(*c));
	int on = 1;
	/* A VMM that no longer reads must not hold a thread for ever. */
	struct timeval send_limit = {.tv_sec = 5};

	if (!c) {
		close(fd);
		return err_set(e, -ENOMEM, "out of memory");
	}
	c->fd = fd;
	c->pidfd = -1;
	pthread_mutex_init(&c->lock, NULL);
	pthread_mutex_init(&c->exiting_lock, NULL);
	if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0 ||
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &send_limit, sizeof(send_limit)) <
			0) {
		int r = err_sys(e, -errno, "options of a control socket");

		vmmctl_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

void
vmmctl_free(struct vmmctl *c)
{
	union message m;
	pid_t pid;

	if (!c)
		return;
	/* Closed with something unread, it would be reset, and a VMM that does not look
	 * twice would not find what was sent to it last: a quit. */
	shutdown(c->fd, SHUT_RDWR);
	while (receive(c, &m, &pid, NULL) > 0)
		;
	cleanup_close_fn(&c->fd);
	cleanup_close_fn(&c->pidfd);
	pthread_mutex_destroy(&c->lock);
	pthread_mutex_destroy(&c->exiting_lock);
	free(c);
}

int
vmmctl_fd(const struct vmmctl *c)
{
	return c->fd;
}

void
vmmctl_on_idle(struct vmmctl *c, void (*idle)(void *ctx, uint64_t handle), void *ctx,
	uint64_t handle)
{
	pthread_mutex_lock(&c->lock);
	c->idle = idle;
	c->idle_ctx = ctx;
	c->idle_handle = handle;
	pthread_mutex_unlock(&c->lock);
}

int
vmmctl_set_pidfd(struct vmmctl *c, int pidfd)
{
	int copy = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);

	if (copy < 0)
		return -errno;
	pthread_mutex_lock(&c->lock);
	cleanup_close_fn(&c->pidfd);
	c->pidfd = copy;
	pthread_mutex_unlock(&c->lock);
	return 0;
}

/* Ends an exchange. The watch is armed after the unlock: what arrived in between is seen
 * then. */
static void
unlock(struct vmmctl *c)
{
	void (*idle)(void *, uint64_t) = c->idle;
	void *ctx = c->idle_ctx;
	uint64_t handle = c->idle_handle;

	pthread_mutex_unlock(&c->lock);
	if (idle)
		idle(ctx, handle);
}

/* The peer has lied: nothing more is sent or believed. Returns code, as err_set. */
static int
broke(struct vmmctl *c, const char *why)
{
	pthread_mutex_lock(&c->exiting_lock);
	if (!c->broken)
		snprintf(c->broken_why, sizeof(c->broken_why), "%s", why);
	c->broken = true;
	pthread_mutex_unlock(&c->exiting_lock);
	return -EPROTO;
}

bool
vmmctl_broken(struct vmmctl *c, char *ret_why, size_t cap)
{
	bool broken;

	pthread_mutex_lock(&c->exiting_lock);
	broken = c->broken;
	if (broken)
		snprintf(ret_why, cap, "%s", c->broken_why);
	pthread_mutex_unlock(&c->exiting_lock);
	return broken;
}

static size_t
length_of(uint16_t type)
{
	switch (type) {
	case VMM_DONE:
		return sizeof(struct vmm_done);
	case VMM_STARTED:
		return sizeof(struct vmm_started);
	case VMM_FORKED:
		return sizeof(struct vmm_forked);
	case VMM_STATS_ANSWER:
		return sizeof(struct vmm_stats_answer);
	case VMM_EXITING:
		return sizeof(struct vmm_exiting);
	case VMM_STATE_ANSWER:
		return sizeof(struct vmm_state_answer);
	}
	return 0;
}

int
vmmctl_check(const void *msg, size_t len, struct err *e)
{
	struct vmm_hdr h;

	if (len < sizeof(h))
		return err_set(e, -EPROTO, "the VMM sent a message of %zu bytes", len);
	memcpy(&h, msg, sizeof(h));
	if (h.version != VMM_WIRE_VERSION)
		return err_set(e, -EPROTO,
			"the VMM speaks version %u of the control protocol, not %u",
			h.version, VMM_WIRE_VERSION);
	if (!length_of(h.type))
		return err_set(
			e, -EPROTO, "the VMM sent a message of unknown type %u", h.type);
	if (h.len != len || len != length_of(h.type))
		return err_set(e, -EPROTO,
			"the VMM sent a message of type %u with %zu bytes, not %zu",
			h.type, len, length_of(h.type));
	if ((h.type == VMM_STARTED || h.type == VMM_EXITING) != (h.seq == 0))
		return err_set(e, -EPROTO,
			"the VMM sent a message of type %u with number %llu", h.type,
			(unsigned long long)h.seq);
	return 0;
}

/* Text as it came from a VMM, into something a terminal and a log can take. */
static void
clean_text(char text[static VMMCTL_TEXT_MAX])
{
	char raw[VMMCTL_TEXT_MAX];
	size_t len = strnlen(text, VMMCTL_TEXT_MAX);

	memcpy(raw, text, len);
	log_escape(text, VMMCTL_TEXT_MAX, raw, len);
}

/* One message, without waiting: 1 and *m, 0 nothing there, -EPIPE, -EPROTO, -errno. */
static int
receive(struct vmmctl *c, union message *m, pid_t *ret_pid, struct err *e)
{
	union {
		char buf[CMSG_SPACE(sizeof(struct ucred)) +
			 CMSG_SPACE(sizeof(int) * IO_FDS_MAX)];
		struct cmsghdr align;
	} control;
	struct iovec iov = {.iov_base = m, .iov_len = sizeof(*m)};
	struct msghdr mh = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct ucred cred = {0};
	bool has_cred = false, has_fds = false, reset = false;
	struct err bad;
	ssize_t n;
	int r;

	memset(m, 0, sizeof(*m));
	/* A VMM that ended with something unread: told once, before its last words. */
	for (;;) {
		n = recvmsg(c->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n >= 0 || (errno != EINTR && (errno != ECONNRESET || reset)))
			break;
		reset |= errno == ECONNRESET;
	}
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (n < 0)
		return errno == ECONNRESET
			       ? err_set(e, -EPIPE, "the VMM closed its control socket")
			       : err_sys(e, -errno, "receiving from a VMM");
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&mh); h; h = CMSG_NXTHDR(&mh, h)) {
		if (h->cmsg_level != SOL_SOCKET)
			continue;
		if (h->cmsg_type == SCM_CREDENTIALS &&
			h->cmsg_len == CMSG_LEN(sizeof(struct ucred))) {
			memcpy(&cred, CMSG_DATA(h), sizeof(cred));
			has_cred = true;
		} else if (h->cmsg_type == SCM_RIGHTS) {
			size_t fds = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);

			has_fds = true;
			for (size_t i = 0; i < fds; i++) {
				int fd;

				memcpy(&fd, CMSG_DATA(h) + i * sizeof(int), sizeof(fd));
				close(fd);
			}
		}
	}
	/* No message of this protocol is empty, so 0 is the end. */
	if (n == 0)
		return err_set(e, -EPIPE, "the VMM closed its control socket");
	r = 0;
	if (has_fds)
		r = err_set(&bad, -EPROTO, "the VMM sent descriptors");
	else if (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		r = err_set(&bad, -EPROTO, "the VMM sent a message that is too long");
	else if (!has_cred || cred.pid <= 0)
		r = err_set(&bad, -EPROTO,
			"the kernel does not say who sent a VMM's message");
	else if (cred.uid != geteuid() && cred.uid != getuid())
		r = err_set(&bad, -EPROTO, "a VMM's message came from user %u", cred.uid);
	else
		r = vmmctl_check(m, (size_t)n, &bad);
	if (r < 0) {
		broke(c, bad.msg);
		return err_set(e, r, "%s", bad.msg);
	}
	switch (m->hdr.type) {
	case VMM_DONE:
		clean_text(m->done.msg);
		break;
	case VMM_STARTED:
		clean_text(m->started.msg);
		break;
	case VMM_FORKED:
		clean_text(m->forked.msg);
		break;
	case VMM_EXITING:
		clean_text(m->exiting.msg);
		break;
	case VMM_STATE_ANSWER:
		clean_text(m->state.msg);
		break;
	}
	*ret_pid = cred.pid;
	return 1;
}

/* Keeps what came unasked. 1: it was that. */
static int
keep_unasked(struct vmmctl *c, const union message *m, pid_t pid)
{
	if (m->hdr.type == VMM_STARTED) {
		c->started = m->started;
		c->started_pid = pid;
		c->has_started = true;
		return 1;
	}
	if (m->hdr.type == VMM_EXITING) {
		pthread_mutex_lock(&c->exiting_lock);
		c->exiting = m->exiting;
		c->has_exiting = true;
		pthread_mutex_unlock(&c->exiting_lock);
		return 1;
	}
	return 0;
}

static int
ended(struct vmmctl *c, struct err *e)
{
	char msg[VMMCTL_TEXT_MAX];
	uint32_t reason;

	if (vmmctl_exiting(c, &reason, msg, sizeof(msg)) && msg[0])
		return err_set(e, -ESRCH, "the VM ended: %.400s", msg);
	return err_set(e, -ESRCH, "the VM's process ended");
}

/* What one waits for. */
struct expected {
	const char *what; /* completes "the VMM did not" */
	uint16_t type;	  /* VMM_STARTED: until that has come, whatever seq is */
	uint64_t seq;
	int timeout_ms;
	bool flat; /* the limit holds also while the process makes progress */
};

/* How long the VMM has worked for it, and how much longer it may. */
struct patience {
	struct process_progress progress;
	uint64_t began_ns, moved_ns; /* its last progress; at first, when the wait began */
	uint64_t cpu_ms;	     /* at the beginning */
	uint64_t limit_ns, ceiling_ns;
};

static struct patience
patience_begin(const struct vmmctl *c, const struct expected *x)
{
	struct patience w = {.began_ns = io_now_ns()};

	w.moved_ns = w.began_ns;
	w.limit_ns = (uint64_t)x->timeout_ms * 1000000u;
	w.ceiling_ns = x->flat ? w.limit_ns : w.limit_ns * VMMCTL_CEILING;
	if (!x->flat)
		process_progress_look(c->pidfd, &w.progress);
	w.cpu_ms = w.progress.cpu_ms;
	return w;
}

/* How many ms until the next look; 0: it is over, and the error says how far the VMM came. */
static int
patience_left(struct patience *w, const struct vmmctl *c, const struct expected *x,
	struct err *e)
{
	uint64_t now = io_now_ns(), look, left, end = w->began_ns + w->ceiling_ns;

	if (!x->flat && process_progress_look(c->pidfd, &w->progress))
		w->moved_ns = now;
	if (w->moved_ns + w->limit_ns < end)
		end = w->moved_ns + w->limit_ns;
	if (now < end) {
		/* Often enough that a process that stops is given its limit, and not twice. */
		look = x->flat ? w->limit_ns : w->limit_ns / 20;
		look = look < 10000000u ? 10000000u : look > 1000000000u ? 1000000000u : look;
		left = end - now < look ? end - now : look;
		return (int)(left / 1000000u) + 1;
	}
	if (w->moved_ns == w->began_ns)
		err_set(e, -ETIMEDOUT, "the VMM did not %s within %d s%s", x->what,
			(x->timeout_ms + 999) / 1000,
			w->progress.known ? ", in which its process stood still" : "");
	else
		err_set(e, -ETIMEDOUT,
			"the VMM did not %s within %llu s: its process used %llu ms of CPU, the last %llu s ago",
			x->what, (unsigned long long)((now - w->began_ns) / 1000000000u),
			(unsigned long long)(w->progress.cpu_ms - w->cpu_ms),
			(unsigned long long)((now - w->moved_ns) / 1000000000u));
	return 0;
}

/* Receives until that has come, or the VMM's time is over. Called with the lock. */
static int
wait_for(struct vmmctl *c, const struct expected *x, union message *ret, pid_t *ret_pid,
	struct err *e)
{
	struct patience patience = patience_begin(c, x);
	unsigned unasked = 0;
	struct err bad;

	for (;;) {
		struct pollfd p[2] = {{.fd = c->fd, .events = POLLIN},
			{.fd = c->pidfd, .events = POLLIN}};
		int r = receive(c, ret, ret_pid, e), left_ms;

		if (r < 0)
			return r == -EPIPE ? ended(c, e) : r;
		if (r > 0) {
			if (keep_unasked(c, ret, *ret_pid)) {
				if (x->type == VMM_STARTED && c->has_started)
					return 0;
				if (++unasked > UNASKED_MAX) {
					broke(c, flood);
					return err_set(e, -EPROTO, "%s", flood);
				}
				continue;
			}
			if (ret->hdr.type == x->type && ret->hdr.seq == x->seq)
				return 0;
			/* The late answer to a request that was given up. */
			if (ret->hdr.seq < x->seq && ++unasked <= UNASKED_MAX)
				continue;
			break;
		}
		left_ms = patience_left(&patience, c, x, e);
		if (!left_ms)
			return -ETIMEDOUT;
		r = poll(p, 2, left_ms);
		if (r < 0 && errno != EINTR)
			return err_sys(e, -errno, "waiting for a VMM");
		/* The socket first: last words may still lie in it. */
		if (r > 0 && !p[0].revents && p[1].revents)
			return ended(c, e);
	}
	err_set(&bad, -EPROTO,
		"the VMM sent a message of type %u, number %llu, that nobody asked for",
		ret->hdr.type, (unsigned long long)ret->hdr.seq);
	broke(c, bad.msg);
	return err_set(e, -EPROTO, "%s", bad.msg);
}

static int
send_message(struct vmmctl *c, void *msg, uint16_t type, size_t len, const int *fds,
	size_t n_fds, struct err *e)
{
	struct vmm_hdr *h = msg;
	char why[VMMCTL_TEXT_MAX];
	int r;

	if (vmmctl_broken(c, why, sizeof(why)))
		return err_set(e, -EPROTO, "%s", why);
	h->version = VMM_WIRE_VERSION;
	h->type = type;
	h->len = (uint32_t)len;
	h->seq = ++c->seq;
	r = io_send_fds(c->fd, msg, len, fds, n_fds);
	if (r == -EPIPE || r == -ECONNRESET || r == -ENOTCONN) {
		union message m;
		pid_t pid;

		/* Its last words are worth more than "broken pipe". */
		while (receive(c, &m, &pid, NULL) > 0)
			keep_unasked(c, &m, pid);
		return ended(c, e);
	}
	if (r < 0)
		return err_sys(e, r, "sending to a VMM");
	return 0;
}

int
vmmctl_boot(struct vmmctl *c, struct vmm_boot *msg,
	const int fds[static VMM_BOOT_FD_COUNT], struct err *e)
{
	int r;

	pthread_mutex_lock(&c->lock);
	r = send_message(c, msg, VMM_BOOT, sizeof(*msg), fds, VMM_BOOT_FD_COUNT, e);
	unlock(c);
	return r;
}

int
vmmctl_fork(struct vmmctl *c, struct vmm_fork *msg,
	const int fds[static VMM_FORK_FD_COUNT], int timeout_ms, struct vmm_forked *ret,
	bool *ret_uncertain, struct err *e)
{
	union message m;
	pid_t pid;
	bool uncertain = false;
	int r;

	pthread_mutex_lock(&c->lock);
	r = send_message(c, msg, VMM_FORK, sizeof(*msg), fds, VMM_FORK_FD_COUNT, e);
	if (r == 0) {
		r = wait_for(c,
			&(struct expected){"answer to a fork", VMM_FORKED, c->seq,
				timeout_ms, false},
			&m, &pid, e);
		uncertain = r < 0;
	}
	unlock(c);
	if (ret_uncertain)
		*ret_uncertain = uncertain;
	if (r < 0)
		return r;
	if (m.forked.error)
		return err_set(e,
			m.forked.error < 0 && m.forked.error >= -4095 ? m.forked.error
								      : -EIO,
			"%s", m.forked.msg[0] ? m.forked.msg : "the VMM refused to fork");
	*ret = m.forked;
	return 0;
}

int
vmmctl_wait_started(struct vmmctl *c, int timeout_ms, struct vmm_started *ret,
	pid_t *ret_pid, struct err *e)
{
	union message m;
	pid_t pid;
	struct vmm_started s;
	int r = 0;

	pthread_mutex_lock(&c->lock);
	if (!c->has_started)
		r = wait_for(c,
			&(struct expected){"start", VMM_STARTED, 0, timeout_ms, false},
			&m, &pid, e);
	s = c->started;
	pid = c->started_pid;
	unlock(c);
	if (r < 0)
		return r;
	if (s.error)
		return err_set(e, s.error < 0 && s.error >= -4095 ? s.error : -EIO, "%s",
			s.msg[0] ? s.msg : "the VMM could not start");
	*ret = s;
	*ret_pid = pid;
	return 0;
}

/* A request that VMM_DONE answers. *ret_refused: it did, with an error. */
static int
ask_refusable(struct vmmctl *c, void *msg, enum vmm_msg_type type, size_t len,
	const int *fds, size_t n_fds, int timeout_ms, bool *ret_refused, struct err *e)
{
	union message m;
	pid_t pid;
	int r;

	pthread_mutex_lock(&c->lock);
	r = send_message(c, msg, (uint16_t)type, len, fds, n_fds, e);
	if (r == 0)
		r = wait_for(c,
			&(struct expected){"answer", VMM_DONE, c->seq, timeout_ms, false},
			&m, &pid, e);
	unlock(c);
	*ret_refused = r == 0 && m.done.error;
	if (r < 0)
		return r;
	if (m.done.error)
		return err_set(e,
			m.done.error < 0 && m.done.error >= -4095 ? m.done.error : -EIO,
			"%s", m.done.msg[0] ? m.done.msg : "the VMM refused");
	return 0;
}

static int
ask_with(struct vmmctl *c, void *msg, enum vmm_msg_type type, size_t len, const int *fds,
	size_t n_fds, int timeout_ms, struct err *e)
{
	bool refused;

	return ask_refusable(c, msg, type, len, fds, n_fds, timeout_ms, &refused, e);
}

static int
ask(struct vmmctl *c, void *msg, enum vmm_msg_type type, size_t len, int timeout_ms,
	struct err *e)
{
	return ask_with(c, msg, type, len, NULL, 0, timeout_ms, e);
}

int
vmmctl_prepare(struct vmmctl *c, struct vmm_prepare *msg,
	const int fds[static VMM_PREPARE_FD_COUNT], int timeout_ms, struct err *e)
{
	return ask_with(c, msg, VMM_PREPARE, sizeof(*msg), fds, VMM_PREPARE_FD_COUNT,
		timeout_ms, e);
}

int
vmmctl_restore(struct vmmctl *c, struct vmm_restore *msg,
	const int fds[static VMM_RESTORE_FD_COUNT], struct err *e)
{
	int r;

	pthread_mutex_lock(&c->lock);
	r = send_message(c, msg, VMM_RESTORE, sizeof(*msg), fds, VMM_RESTORE_FD_COUNT, e);
	unlock(c);
	return r;
}

static int
check_state(const struct vmm_state_answer *a, struct err *e)
{
	uint64_t sum = 0, end_gpa = 0;
	bool ok = a->blob_bytes > 0 && a->blob_bytes <= VMM_STATE_BLOB_MAX &&
		  a->mem_mib >= VMM_MEM_MIN_MIB && a->mem_mib <= VMM_MEM_MAX_MIB &&
		  a->vcpus >= 1 && a->vcpus <= VMM_VCPUS_MAX && a->n_ranges >= 1 &&
		  a->n_ranges <= VMM_MEM_RANGES_MAX &&
		  !(a->flags & ~(VMM_STATE_ON_IMAGE | VMM_STATE_TRACKED));

	for (uint32_t i = 0; ok && i < a->n_ranges; i++) {
		const struct vmm_mem_range *m = &a->ranges[i];
		uint64_t end;

		ok = m->len && !((m->gpa | m->host | m->len) & 4095) &&
		     m->gpa >= end_gpa &&
		     !__builtin_add_overflow(m->gpa, m->len, &end_gpa) &&
		     !__builtin_add_overflow(m->host, m->len, &end) &&
		     !__builtin_add_overflow(sum, m->len, &sum);
	}
	if (!ok || sum != a->mem_mib << 20)
		return err_set(
			e, -EPROTO, "the VMM describes its memory as it cannot be");
	return 0;
}

int
vmmctl_state(struct vmmctl *c, int blob_fd, int timeout_ms, struct vmm_state_answer *ret,
	struct err *e)
{
	const int fds[VMM_STATE_FD_COUNT] = {[VMM_STATE_FD_BLOB] = blob_fd};
	struct vmm_hdr h = {0};
	union message m;
	pid_t pid;
	int r;

	pthread_mutex_lock(&c->lock);
	r = send_message(c, &h, VMM_STATE, sizeof(h), fds, VMM_STATE_FD_COUNT, e);
	if (r == 0)
		r = wait_for(c,
			&(struct expected){"give its state", VMM_STATE_ANSWER, c->seq,
				timeout_ms, false},
			&m, &pid, e);
	unlock(c);
	if (r < 0)
		return r;
	if (m.state.error)
		return err_set(e,
			m.state.error < 0 && m.state.error >= -4095 ? m.state.error
								    : -EIO,
			"%s",
			m.state.msg[0] ? m.state.msg
				       : "the VMM refused to give its state");
	r = check_state(&m.state, e);
	if (r == 0)
		*ret = m.state;
	return r;
}

int
vmmctl_command(struct vmmctl *c, enum vmm_msg_type type, int timeout_ms, struct err *e)
{
	struct vmm_hdr h = {0};

	return ask(c, &h, type, sizeof(h), timeout_ms, e);
}

int
vmmctl_resize(struct vmmctl *c, uint64_t disk_mib, int timeout_ms, struct err *e)
{
	struct vmm_resize msg = {.disk_mib = disk_mib};

	return ask(c, &msg, VMM_RESIZE, sizeof(msg), timeout_ms, e);
}

int
vmmctl_merged(struct vmmctl *c, struct vmm_merged *msg,
	const int fds[static VMM_MERGED_FD_COUNT], int timeout_ms, bool *ret_refused,
	struct err *e)
{
	return ask_refusable(c, msg, VMM_MERGED, sizeof(*msg), fds, VMM_MERGED_FD_COUNT,
		timeout_ms, ret_refused, e);
}

int
vmmctl_track(struct vmmctl *c, const int fds[static VMM_TRACK_FD_COUNT], int timeout_ms,
	struct err *e)
{
	struct vmm_hdr h = {0};

	return ask_with(c, &h, VMM_TRACK, sizeof(h), fds, VMM_TRACK_FD_COUNT, timeout_ms, e);
}

int
vmmctl_committed(struct vmmctl *c, struct vmm_committed *msg, struct err *e)
{
	int r;

	pthread_mutex_lock(&c->lock);
	r = send_message(c, msg, VMM_COMMITTED, sizeof(*msg), NULL, 0, e);
	unlock(c);
	return r;
}

int
vmmctl_stats(struct vmmctl *c, int timeout_ms, bool try_only,
	struct vmm_stats_answer *ret, pid_t *ret_pid, struct err *e)
{
	struct vmm_hdr h = {0};
	union message m;
	pid_t pid;
	int r;

	if (!try_only)
		pthread_mutex_lock(&c->lock);
	else if (pthread_mutex_trylock(&c->lock) != 0)
		return err_set(e, -EAGAIN, "another request is under way");
	r = send_message(c, &h, VMM_STATS, sizeof(h), NULL, 0, e);
	if (r == 0)
		r = wait_for(c,
			&(struct expected){"answer", VMM_STATS_ANSWER, h.seq, timeout_ms,
				true},
			&m, &pid, e);
	unlock(c);
	if (r < 0)
		return r;
	*ret = m.stats;
	if (ret_pid)
		*ret_pid = pid;
	return 0;
}

int
vmmctl_quit(struct vmmctl *c, struct err *e)
{
	struct vmm_hdr h = {0};
	int r;

	pthread_mutex_lock(&c->lock);
	r = send_message(c, &h, VMM_QUIT, sizeof(h), NULL, 0, e);
	unlock(c);
	return r;
}

int
vmmctl_drain(struct vmmctl *c, bool wait_lock, struct err *e)
{
	union message m;
	pid_t pid;
	unsigned taken = 0;
	int r;

	if (wait_lock)
		pthread_mutex_lock(&c->lock);
	else if (pthread_mutex_trylock(&c->lock) != 0)
		return -EAGAIN;
	while ((r = receive(c, &m, &pid, e)) > 0) {
		const char *lie = NULL;

		if (!keep_unasked(c, &m, pid) && m.hdr.seq > c->seq)
			lie = "the VMM answered what nobody asked";
		else if (++taken > UNASKED_MAX)
			lie = flood;
		if (lie) {
			r = err_set(e, broke(c, lie), "%s", lie);
			break;
		}
	}
	/* The caller arms its watch itself; it holds the event. */
	pthread_mutex_unlock(&c->lock);
	return r;
}

bool
vmmctl_exiting(struct vmmctl *c, uint32_t *ret_reason, char *ret_msg, size_t cap)
{
	bool has;

	pthread_mutex_lock(&c->exiting_lock);
	has = c->has_exiting;
	if (has) {
		*ret_reason = c->exiting.reason;
		snprintf(ret_msg, cap, "%s", c->exiting.msg);
	}
	pthread_mutex_unlock(&c->exiting_lock);
	return has;
}
