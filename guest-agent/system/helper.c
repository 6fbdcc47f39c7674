#include "guest-agent/system/helper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/text.h"
#include "guest-agent/system/reap.h"
#include "guest-agent/system/spawn.h"

/* The last ones: commands use the first AGENT_EXECS_MAX. */
#define FIRST_SLOT (SPAWN_SLOTS - HELPERS_MAX)

static bool slot_used[HELPERS_MAX];

#define container_of(p, type, member) \
	((type *)(void *)((char *)(p)-offsetof(type, member)))

/* One read; false when there is no more now. */
static bool
read_some(struct helper *h)
{
	static char buf[16384];
	ssize_t n;

	if (h->out.fd < 0)
		return false;
	n = read(h->out.fd, buf, sizeof(buf));
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		source_close(&h->out);
		return false;
	}
	text_keep_last(h->said, sizeof(h->said), &h->said_len, buf, (size_t)n);
	return true;
}

static void
out_ready(struct source *s, uint32_t events)
{
	(void)events;
	read_some(container_of(s, struct helper, out));
}

static void
let_go(struct helper *h)
{
	timer_stop(&h->limit);
	source_close(&h->pidfd);
	source_close(&h->out);
	reap_group_drop(h->group_num, TAKE_FD(h->group_fd));
	slot_used[h->slot - FIRST_SLOT] = false;
	h->runs = false;
}

static int
explain(struct helper *h, const siginfo_t *si, struct err *e)
{
	char said[4 * HELPER_SAID_MAX + 1], tail[4 * HELPER_SAID_MAX + 16];
	int code;

	while (h->said_len && strchr(" \n\r\t", h->said[h->said_len - 1]))
		h->said_len--;
	log_escape(said, sizeof(said), h->said, h->said_len);
	snprintf(tail, sizeof(tail), "%s%s", *said ? "; it said: " : "", said);
	if (h->timed_out)
		return err_set(e, -ETIMEDOUT, "%s did not end within %u ms%.300s",
			h->what, h->limit_ms, tail);
	if (si->si_code != CLD_EXITED)
		return err_set(e, -EIO, "%s was ended by signal %d%.300s", h->what,
			si->si_status, tail);
	if (!si->si_status)
		return 0;
	if (si->si_status == 127 && spawn_failure(h->slot, &code) != SPAWN_OK)
		return err_sys(e, -code, "%s cannot be started", h->what);
	return err_set(
		e, -EIO, "%s ended with status %d%.300s", h->what, si->si_status, tail);
}

static void
ended(struct source *s, uint32_t events)
{
	struct helper *h = container_of(s, struct helper, pidfd);
	siginfo_t si = {0};
	struct err e = {0};
	int r;

	(void)events;
	if (waitid(P_PIDFD, (id_t)h->pidfd.fd, &si, WEXITED | WNOHANG) || !si.si_pid)
		return;
	/* What is in the pipe; not more than it holds, whoever else has it. */
	for (int i = 0; i < 64 && read_some(h); i++)
		;
	r = explain(h, &si, &e);
	let_go(h);
	h->done(h, r, &e);
}

static void
too_long(struct timer *t)
{
	struct helper *h = container_of(t, struct helper, limit);

	h->timed_out = true;
	reap_kill(h->pid, h->group_fd);
}

int
helper_start(struct helper *h, const char *what, char *const *argv, char *const *env,
	unsigned limit_ms, struct err *e)
{
	static const struct user root = {.home = "/", .name = "root"};
	cleanup_close int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	cleanup_close int ours = -1, theirs = -1;
	struct spawn s = {.argv = argv, .envp = env, .cwd = "/", .user = &root};
	int fd[2], pidfd, r;
	unsigned i = 0;

	while (i < HELPERS_MAX && slot_used[i])
		i++;
	if (i == HELPERS_MAX)
		return err_set(
			e, -EAGAIN, "%s: %d helpers run already", what, HELPERS_MAX);
	if (null < 0)
		return err_sys(e, -errno, "/dev/null");
	if (pipe2(fd, O_CLOEXEC))
		return err_sys(e, -errno, "a pipe for %s", what);
	ours = fd[0];
	theirs = fd[1];
	r = io_set_nonblock(ours, 1);
	if (r)
		return err_sys(e, r, "a pipe for %s", what);
	h->what = what;
	h->limit_ms = limit_ms;
	h->slot = FIRST_SLOT + i;
	h->group_num = reap_group_number();
	h->group_fd = reap_group_make(h->group_num);
	h->timed_out = false;
	h->said_len = 0;
	s.fd[0] = null;
	s.fd[1] = s.fd[2] = theirs;
	s.cgroup_fd = h->group_fd;
	r = spawn_start(&s, h->slot, &h->pid, &pidfd, e);
	if (r) {
		reap_group_drop(h->group_num, TAKE_FD(h->group_fd));
		return r;
	}
	slot_used[i] = true;
	h->runs = true;
	source_init(&h->pidfd, pidfd, ended);
	source_init(&h->out, TAKE_FD(ours), out_ready);
	h->limit = (struct timer){.fire = too_long};
	timer_set(&h->limit, loop_now_ns() + (uint64_t)limit_ms * 1000000);
	if (source_wait(&h->pidfd, EPOLLIN) || source_wait(&h->out, EPOLLIN)) {
		helper_stop(h);
		return err_sys(e, -ENOMEM, "watching %s", what);
	}
	return 0;
}

void
helper_stop(struct helper *h)
{
	if (!h->runs)
		return;
	reap_kill(h->pid, h->group_fd);
	waitid(P_PIDFD, (id_t)h->pidfd.fd, NULL, WEXITED);
	let_go(h);
}
