#include "guest-agent/supervisor/rpc_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "guest-agent/supervisor/rpc_journal.h"

#define SHOWN_MAX 2000
#define LAST_LINES 20
#define NAP_NS 200000000

extern char **environ;

static void
session(const struct rpc_place *p, const char *kind, const char *self)
{
	char name[64], root[PATH_MAX + 16] = "--root=/";
	/* The words go to the session as they are; tmux makes no shell line of several.
	 */
	const char *argv[] = {"tmux", "-u", "new-session", "-d", "-s", name, self, "rpc",
		"watch", root, p->name, strcmp(kind, "keeper") != 0 ? NULL : "--keeper",
		NULL};
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none;
	pid_t pid;

	snprintf(name, sizeof(name), "%s-%s", p->name, kind);
	if (*rpc_root())
		snprintf(root, sizeof(root), "--root=%s", rpc_root());
	if (posix_spawn_file_actions_init(&files))
		return;
	posix_spawnattr_init(&attr);
	sigemptyset(&none);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
	/* One that is there already is as good. */
	for (int fd = 0; fd < 3; fd++)
		posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
	(void)posix_spawnp(
		&pid, "tmux", &files, &attr, (char *const *)(uintptr_t)argv, environ);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attr);
}

void
rpc_watch_sessions(const struct rpc_place *p)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n <= 0)
		return;
	self[n] = 0;
	session(p, "keeper", self);
	session(p, "rpc", self);
}

static bool
goes_on(const struct rpc_place *p)
{
	char path[PATH_MAX + 16];

	snprintf(path, sizeof(path), "%s/wanted", p->path);
	return !access(path, F_OK);
}

static void
nap(void)
{
	struct timespec t = {.tv_nsec = NAP_NS};

	nanosleep(&t, NULL);
}

static void
show(const struct journal_reader *r, uint64_t number, const struct journal_record *rec,
	const char *mark)
{
	char raw[SHOWN_MAX], plain[4 * SHOWN_MAX + 1], when[16];
	time_t t = (time_t)(rec->time_ms / 1000);
	size_t len = rec->len - 1 < SHOWN_MAX ? rec->len - 1 : SHOWN_MAX;
	struct tm tm;

	if (journal_read(r, number, rec, 0, raw, len, NULL))
		return;
	strftime(when, sizeof(when), "%H:%M:%S", localtime_r(&t, &tm));
	/* What it writes must not drive the terminal; bytes above 0x7f are text's. */
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)raw[i];

		if (c < ' ' || c == 0x7f)
			n += (size_t)sprintf(plain + n, "\\x%02x", c);
		else
			plain[n++] = (char)c;
	}
	printf("%s %s %.*s%s\n", when, mark, (int)n, plain,
		rec->len - 1 > SHOWN_MAX ? " …" : "");
}

struct watched {
	const char *name, *mark;
	struct journal_reader r;
	uint64_t next;
};

/* What is new of it; false: nothing. */
static bool
show_new(const struct rpc_place *p, struct watched *w)
{
	struct journal_bounds b;
	bool any = false;

	if (w->r.index_fd < 0) {
		if (journal_reader_open(p->dir, w->name, &w->r, NULL) ||
			journal_bounds(&w->r, &b, NULL))
			return false;
		w->next = b.lines - b.first > LAST_LINES ? b.lines - LAST_LINES : b.first;
	}
	for (;;) {
		struct journal_record rec;
		int n = journal_record(&w->r, w->next, &rec, NULL);

		if (n == -ESTALE && !journal_bounds(&w->r, &b, NULL)) {
			w->next = b.first;
			continue;
		}
		if (n <= 0)
			return any;
		show(&w->r, w->next++, &rec, w->mark);
		any = true;
	}
}

static int
show_log(const struct rpc_place *p)
{
	cleanup_close int fd = openat(p->dir, "keeper.log", O_RDONLY | O_CLOEXEC);
	char buf[4096];

	for (;;) {
		ssize_t n = fd < 0 ? 0 : read(fd, buf, sizeof(buf));

		if (n > 0) {
			fwrite(buf, 1, (size_t)n, stdout);
			continue;
		}
		fflush(stdout);
		if (!goes_on(p))
			return EXIT_OK;
		nap();
		if (fd < 0)
			fd = openat(p->dir, "keeper.log", O_RDONLY | O_CLOEXEC);
	}
}

int
rpc_watch_main(const char *name, bool supervisor)
{
	cleanup_rpc_place struct rpc_place p = RPC_PLACE_INIT;
	struct watched w[2] = {{"out", "<", JOURNAL_READER_INIT, 0},
		{"err", "!", JOURNAL_READER_INIT, 0}};
	struct err e = {0};

	if (rpc_place_open(name, false, &p, &e)) {
		fprintf(stderr, "pando-agent: %s\n", e.msg);
		return err_exit_code(e.code);
	}
	if (supervisor)
		return show_log(&p);
	printf("coding agent \"%s\": < what it writes, ! its errors\n", name);
	for (;;) {
		bool more = goes_on(&p), any = show_new(&p, &w[0]);

		any = show_new(&p, &w[1]) || any;
		fflush(stdout);
		if (!more && !any)
			break;
		if (!any)
			nap();
	}
	journal_reader_done(&w[0].r);
	journal_reader_done(&w[1].r);
	return EXIT_OK;
}
