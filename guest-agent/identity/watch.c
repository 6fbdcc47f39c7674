#include "guest-agent/identity/watch.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "guest-agent/identity/apply.h"
#include "guest-agent/identity/identity.h"
#include "guest-agent/identity/units.h"
#include "guest-agent/system/helper.h"
#include "guest-agent/system/loop.h"
#include "guest-agent/system/guest_machine.h"

#define FOLDER "/etc"
#define NAME "environment"
#define NS_PER_MS 1000000ull

static struct source notify;
static struct timer quiet;
static uint64_t first_ns; /* of the changes not reacted to; 0: none */
static struct helper helper;

static void
changed(void)
{
	uint64_t now = loop_now_ns(), at = now + WATCH_QUIET_MS * NS_PER_MS;

	if (!first_ns)
		first_ns = now;
	if (at > first_ns + WATCH_LONGEST_MS * NS_PER_MS)
		at = first_ns + WATCH_LONGEST_MS * NS_PER_MS;
	timer_set(&quiet, at);
}

static void
over(struct helper *h, int r, const struct err *why)
{
	static struct log_limit limit = {.burst = 5};

	(void)h;
	if (r < 0 && log_allowed(&limit))
		log_warn("/etc/environment was changed; %s", why->msg);
}

static void
react(struct timer *t)
{
	static struct log_limit limit = {.burst = 5};
	struct err e = {0};
	int r;

	/* An identity handshake restarts the same units in the end; one reaction after the other. */
	if (apply_runs() || helper.runs) {
		timer_set(t, loop_now_ns() + WATCH_QUIET_MS * NS_PER_MS);
		return;
	}
	first_ns = 0;
	if (identity_environment_is_ours())
		return;
	r = units_restart(&helper, &e);
	if (log_allowed(&limit))
		log_info("/etc/environment was changed%s%s",
			r < 0 ? ": "
			: r   ? ": restarting what must see it"
			      : "",
			e.msg);
}

static void
ready(struct source *s, uint32_t events)
{
	char buf[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
	ssize_t n = read(s->fd, buf, sizeof(buf));

	(void)events;
	for (ssize_t at = 0; at < n;) {
		struct inotify_event ev;

		memcpy(&ev, buf + at, sizeof(ev));
		/* After an overflow it may have been among what was lost. */
		if (ev.mask & IN_Q_OVERFLOW ||
			(ev.len && strcmp(buf + at + sizeof(ev), NAME) == 0))
			changed();
		at += (ssize_t)(sizeof(ev) + ev.len);
	}
}

int
watch_init(struct err *e)
{
	char path[PATH_MAX];
	int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), r;

	if (fd < 0)
		return err_sys(e, -errno, "inotify");
	/* The folder: a file that is replaced takes its own watch along. */
	if (inotify_add_watch(fd, machine_path(path, FOLDER),
		    IN_ONLYDIR | IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_DELETE |
			    IN_MOVED_FROM | IN_MOVED_TO) < 0) {
		r = err_sys(e, -errno, "watching " FOLDER);
		close(fd);
		return r;
	}
	helper.done = over;
	quiet.fire = react;
	source_init(&notify, fd, ready);
	r = source_wait(&notify, EPOLLIN);
	return r ? err_sys(e, r, "watching " FOLDER) : 0;
}
