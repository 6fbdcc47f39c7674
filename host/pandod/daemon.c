#include "host/pandod/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/api/api.h"

/* Connections, files of VMs that are being made, the store. */
#define DESCRIPTORS_BESIDES 2048u
/* How long to wait for another pandod of this home: one that stops, or one that is about
 * to answer. */
#define OTHER_TIMEOUT_MS 10000

/* In the order in which they are opened; each uses only those above it. */
struct daemon {
	char socket[PATHS_MAX];
	struct scopes *scopes;	 /* owned; NULL: none */
	struct tree *tree;	 /* owned */
	struct commits *commits; /* owned */
	struct api *api;	 /* owned */
};

static int
make_home(char *home, size_t cap, struct err *e)
{
	struct stat st;
	int r = paths_home(home, cap, e);

	if (r == 0)
		r = io_mkdir_p(home, 0700, e);
	if (r < 0)
		return r;
	if (stat(home, &st) < 0)
		return err_sys(e, -errno, "%.300s", home);
	if (st.st_uid != geteuid())
		return err_set(e, -EPERM,
			"%.300s belongs to user %u, not to user %u: set PANDO_HOME", home,
			st.st_uid, geteuid());
	/* Sockets, disks and consoles of all VMs lie in it. */
	if ((st.st_mode & 077) && chmod(home, 0700) < 0)
		return err_sys(e, -errno, "chmod 0700 %.300s", home);
	return 0;
}

int
daemon_defaults(struct daemon_config *ret, struct err *e)
{
	struct tree_config *tree = &ret->tree;
	int r;

	*ret = (struct daemon_config){
		.tree = {.kvm_path = "/dev/kvm",
			.start_timeout_ms = TREE_START_TIMEOUT_MS,
			.answer_timeout_ms = TREE_ANSWER_TIMEOUT_MS,
			.agent_timeout_ms = TREE_AGENT_TIMEOUT_MS},
		.commits = {.pool_size = COMMITS_POOL_SIZE,
			.materialized_mib = COMMITS_MATERIALIZED_MIB},
		.scopes = SCOPES_AUTO,
	};
	r = make_home(tree->home, sizeof(tree->home), e);
	if (r == 0)
		r = paths_images(tree->images, sizeof(tree->images), e);
	if (r == 0)
		r = paths_program("libexec/pando/pando-vmm", tree->vmm_path,
			sizeof(tree->vmm_path), e);
	return r < 0 ? r : paths_socket(ret->socket, sizeof(ret->socket), e);
}

/* That somebody takes the connection says nothing: the kernel does so for one that is stopped, and for one
 * that was killed until its last thread is gone. */
static bool
socket_answers(const char *path, uint64_t until_ns)
{
	static const char ask[] = "GET /v1/version HTTP/1.1\r\nHost: pando\r\n"
				  "Connection: close\r\n\r\n";
	struct pollfd p = {.events = POLLIN};
	const uint64_t now = io_now_ns();
	cleanup_close int fd = -1;
	char byte;

	if (io_unix_connect_now(path, SOCK_STREAM, &fd, NULL) < 0)
		return false;
	p.fd = fd;
	return send(fd, ask, sizeof(ask) - 1, MSG_NOSIGNAL) == sizeof(ask) - 1 &&
	       poll(&p, 1, until_ns > now ? (int)((until_ns - now) / 1000000) : 0) > 0 &&
	       recv(fd, &byte, 1, MSG_DONTWAIT) == 1;
}

int
daemon_lock(const struct daemon_config *config, int *ret_fd, struct err *e)
{
	const char *home = config->tree.home;
	char path[PATHS_MAX], text[32];
	cleanup_close int fd = -1;
	uint64_t until = io_now_ns() + OTHER_TIMEOUT_MS * 1000000ull;
	int r = paths_format(path, sizeof(path), e, "%s/pandod.lock", home);

	if (r < 0)
		return r;
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, -errno, "%.300s", path);
	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return err_sys(e, -errno, "locking %.300s", path);
		if (socket_answers(config->socket, until))
			return 0;
		if (io_now_ns() > until)
			return err_set(e, -EBUSY,
				"another pandod holds %.300s and does not answer within %d s: see pandod.log beside it",
				path, OTHER_TIMEOUT_MS / 1000);
		poll(NULL, 0, 20);
	}
	/* For people; nothing reads it. */
	snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(fd, 0) == 0)
		io_write_full(fd, text, strlen(text));
	*ret_fd = TAKE_FD(fd);
	return 1;
}

static int
listen_socket(const char *path, int *ret_fd, struct err *e)
{
	int r;

	/* The lock is ours: what lies there is a dead pandod's. */
	if (unlink(path) < 0 && errno != ENOENT)
		return err_sys(e, -errno, "%.300s", path);
	r = io_unix_listen(path, SOCK_STREAM, 128, ret_fd, e); /* 0600 by the umask */
	if (r == 0)
		r = io_set_nonblock(*ret_fd, 1);
	return r;
}

/* As many descriptors as all VMs there can be need, and what serves calls besides. What
 * our caller's shell was given is no measure of that. */
void
daemon_raise_limits(void)
{
	const rlim_t wanted = DESCRIPTORS_A_VM * TREE_VMS_MAX + DESCRIPTORS_BESIDES;
	struct rlimit l, more;

	if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
		more = l;
		more.rlim_cur = more.rlim_max;
		if (more.rlim_max != RLIM_INFINITY && more.rlim_max < wanted)
			more.rlim_cur = more.rlim_max = wanted;
		/* Raising the hard limit takes a right that few have. */
		if (setrlimit(RLIMIT_NOFILE, &more) < 0) {
			more = l;
			more.rlim_cur = more.rlim_max;
			setrlimit(RLIMIT_NOFILE, &more);
		}
		if (more.rlim_cur != RLIM_INFINITY && more.rlim_cur < wanted)
			log_warn(
				"at most %llu files may be open, which is enough for about %llu VMs; start pandod with a higher limit (ulimit -n, or LimitNOFILE= of a unit)",
				(unsigned long long)more.rlim_cur,
				/* a quarter is kept for calls (launch.c) */
				(unsigned long long)(more.rlim_cur / 4 * 3 /
						     DESCRIPTORS_A_VM));
	}
	/* Forks of VMMs whose parents have ended fall to us, so that they are waited for.
	 */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
}

/* Undone by daemon_close(). */
static int
open_all(struct daemon *d, const struct daemon_config *config,
	void (*shutdown)(void *ctx), void *ctx, struct err *e)
{
	struct tree_config tree = config->tree;
	cleanup_close int listener = -1;
	/* First, so that nobody who comes while VMs are adopted takes this pandod for a
	 * dead one; they are served when that is done. */
	int r = listen_socket(config->socket, &listener, e);

	if (r < 0)
		return r;
	d->scopes = scopes_open(config->scopes, tree.home, config->scopes_group);
	tree.scopes = d->scopes;
	r = tree_open(&tree, &d->tree, e);
	if (r == 0)
		r = commits_open(d->tree, &config->commits, &d->commits, e);
	if (r < 0)
		return r;
	tree_finish_reboots(d->tree);
	return api_start(
		d->tree, d->commits, TAKE_FD(listener), shutdown, ctx, &d->api, e);
}

int
daemon_open(const struct daemon_config *config, void (*shutdown)(void *ctx), void *ctx,
	struct daemon **ret, struct err *e)
{
	struct daemon *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return err_set(e, -ENOMEM, "out of memory");
	snprintf(d->socket, sizeof(d->socket), "%s", config->socket);
	r = open_all(d, config, shutdown, ctx, e);
	if (r < 0) {
		daemon_close(d);
		return r;
	}
	*ret = d;
	return 0;
}

void
daemon_stop(struct daemon *d)
{
	if (d->tree)
		tree_stop(d->tree);
	api_stop(d->api);
	d->api = NULL;
}

void
daemon_close(struct daemon *d)
{
	if (!d)
		return;
	daemon_stop(d);
	unlink(d->socket);
	/* The tree's threads use the scopes, so they end first. */
	if (d->tree)
		tree_wait_stopped(d->tree);
	commits_close(d->commits);
	scopes_close(d->scopes);
	tree_close(d->tree);
	free(d);
}

int
daemon_fd(const struct daemon *d)
{
	return tree_fd(d->tree);
}

void
daemon_dispatch(struct daemon *d)
{
	tree_dispatch(d->tree);
}
