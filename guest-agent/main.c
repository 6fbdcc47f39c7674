/*
 * pando-agent: runs in the guest, as root, under systemd (pando-agent.service), and does
 * what the host asks: execute, files.
 *
 * It listens on vsock ports AGENT_PORT and AGENT_SSH_PORT and talks to context id 2, the
 * host, only; the host owns this machine's memory and disk, so there is nothing to
 * protect from it. It trusts no process of the guest: none can reach the socket, and what
 * they do to their own pipes, terminals and folders costs the agent at most a bounded
 * buffer. One thread, no blocking call but on the file system. After a live fork of the
 * machine its listening socket lives, its connections are reset, and the commands behind
 * them go on detached.
 */
#include <errno.h>
#include <getopt.h>
#include <linux/vm_sockets.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/wire/agent_wire.h"
#include "guest-agent/commands.h"
#include "guest-agent/identity/apply.h"
#include "guest-agent/identity/watch.h"
#include "guest-agent/server/conn.h"
#include "guest-agent/server/exec.h"
#include "guest-agent/server/exec_shim.h"
#include "guest-agent/server/peer.h"
#include "guest-agent/server/sshd.h"
#include "guest-agent/system/loop.h"
#include "guest-agent/system/guest_machine.h"
#include "guest-agent/system/reap.h"
#include "guest-agent/system/spawn.h"

static struct source listener, ssh_listener;
static bool is_vsock, connect_line;
static unsigned keep_s = 600;
static uint32_t last_number; /* of connections over a Unix socket */

/* The next connection of a listener, from the host; -1: none. */
static int
take_next(struct source *s, uint32_t *ret_number)
{
	static struct log_limit limit = {.burst = 5};
	struct sockaddr_vm peer = {0};
	socklen_t len = sizeof(peer);
	int fd = accept4(s->fd, is_vsock ? (struct sockaddr *)(void *)&peer : NULL,
		is_vsock ? &len : NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED &&
			log_allowed(&limit))
			log_warn("accepting a connection: %s", strerror(errno));
		return -1;
	}
	if (is_vsock && !peer_is_host(&peer)) {
		if (log_allowed(&limit))
			log_warn(
				"a connection from context id %u refused: only the host may",
				peer.svm_cid);
		close(fd);
		return -1;
	}
	/* As the host was told behind "OK". */
	*ret_number = is_vsock ? peer.svm_port : ++last_number;
	return fd;
}

static void
incoming(struct source *s, uint32_t events)
{
	uint32_t number;
	int fd = take_next(s, &number);

	(void)events;
	/* On a Unix socket anybody may speak: who this machine is is not theirs to say.
	 */
	if (fd >= 0)
		conn_accept(fd, number, connect_line, is_vsock || !machine_is_real());
}

static void
incoming_ssh(struct source *s, uint32_t events)
{
	uint32_t number;
	int fd = take_next(s, &number);

	(void)events;
	if (fd >= 0)
		sshd_serve(fd, number);
}

/* Who finds the queue full is refused, as if nobody listened: all the connections that a
 * tunnel may open at once, and others beside them, find room in it. */
#define QUEUE 1024

static int
listen_vsock(uint32_t port, int *ret_fd, struct err *e)
{
	struct sockaddr_vm a = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = port,
	};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return err_sys(e, -errno, "vsock sockets (is the vsock module there?)");
	if (bind(fd, (struct sockaddr *)(void *)&a, sizeof(a)) || listen(fd, QUEUE)) {
		int r = err_sys(e, -errno, "listening on vsock port %u", port);

		close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

/* An image may have an sshd of its own there: then that is the machine's, and only the
 * host's own key is missing. */
static void
listen_ssh(void)
{
	struct err why = {0};
	int fd, r = listen_vsock(AGENT_SSH_PORT, &fd, &why);

	if (!r)
		r = io_set_nonblock(fd, 1);
	if (!r) {
		source_init(&ssh_listener, fd, incoming_ssh);
		r = source_wait(&ssh_listener, EPOLLIN);
	}
	if (r)
		log_warn("no SSH from the host: %s", *why.msg ? why.msg : strerror(-r));
}

static int
set_up(const char *where, struct err *e)
{
	struct err why = {0};
	unsigned port;
	char end;
	int fd, r;

	if (sscanf(where, "vsock:%u%c", &port, &end) == 1) {
		is_vsock = true;
		r = listen_vsock(port, &fd, e);
	} else if (strncmp(where, "unix:", 5) == 0) {
		r = io_unix_listen(where + 5, SOCK_STREAM, QUEUE, &fd, e);
	} else {
		r = err_set(
			e, -EINVAL, "--listen \"%s\": vsock:PORT or unix:PATH", where);
	}
	if (r)
		return r;
	r = io_set_nonblock(fd, 1);
	if (!r)
		r = loop_init(e);
	if (!r)
		r = spawn_init(e);
	if (r)
		return r;
	reap_init();
	exec_shim_set_agent(where, keep_s);
	exec_init();
	apply_init();
	if (watch_init(&why))
		log_warn("/etc/environment is not watched: %s", why.msg);
	if (is_vsock && port == AGENT_PORT)
		listen_ssh();
	source_init(&listener, fd, incoming);
	r = source_wait(&listener, EPOLLIN);
	return r ? err_sys(e, r, "watching the listening socket") : 0;
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {
		{"listen", required_argument, NULL, 'l'},
		{"connect-line", no_argument, NULL, 'c'},
		{"root", required_argument, NULL, 'r'},
		{"keep", required_argument, NULL, 'k'},
		{"version", no_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	const char *where = NULL;
	char vsock[32];
	struct err e = {0};
	sigset_t set;
	int opt, status;
	char end;

	if (commands_run(argc, argv, &status))
		return status;
	snprintf(vsock, sizeof(vsock), "vsock:%u", AGENT_PORT);
	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (opt) {
		case 'l':
			where = optarg;
			break;
		case 'c':
			connect_line = true;
			break;
		case 'r':
			machine_set_root(optarg);
			break;
		case 'k':
			if (sscanf(optarg, "%u%c", &keep_s, &end) != 1) {
				fprintf(stderr, "pando-agent: --keep \"%s\": seconds\n",
					optarg);
				return EXIT_USAGE;
			}
			break;
		case 'V':
			puts(PANDO_VERSION);
			return 0;
		case 'h':
			puts("usage: pando-agent [--listen vsock:PORT|unix:PATH] [--connect-line] [--root FOLDER] [--keep SECONDS]\n"
			     "  --keep: how long commands outlive an agent that is not started again (600)\n"
			     "  --root: for trying it: what an identity handshake changes is below FOLDER, and clock, host name and\n"
			     "  random numbers stay as they are");
			return 0;
		default:
			return EXIT_USAGE;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "pando-agent: unexpected argument \"%s\"\n",
			argv[optind]);
		return EXIT_USAGE;
	}
	log_init("agent", LOG_LEVEL_INFO);

	/* Small and steady: big buffers go back to the kernel when they are freed. */
	mallopt(M_MMAP_THRESHOLD, 64 * 1024);
	mallopt(M_TRIM_THRESHOLD, 64 * 1024);
	umask(022);
	/* Blocked, not ignored: what the agent ignores its children would ignore too. */
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_SETMASK, &set, NULL);
	if (chdir("/"))
		log_warn("chdir /: %s", strerror(errno));

	if (set_up(where ? where : vsock, &e) || loop_run(&e)) {
		log_err("%s", e.msg);
		return EXIT_FAILED;
	}
	return 0;
}
