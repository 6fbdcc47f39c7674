/*
 * pandod: the host daemon, one per user and PANDO_HOME.
 *
 * Runs as the user. Handed: nothing but, perhaps, --ready-fd. Opens: its folder's files,
 * /dev/kvm, images; starts pando-vmm processes and hands them what they need. Peers:
 * clients of pandod.sock (the same uid, by the kernel's word; anything they send is
 * checked by request.c), VMMs (which a hostile guest may own; vmmctl.c checks, and a VMM
 * that lies is ended), agents in guests (agent_client.c).
 *
 * It holds no VM's life: killed, it loses nothing; the next one adopts the VMs.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/paths.h"
#include "host/pandod/daemon.h"

#define LOG_MAX_BYTES (16 << 20)
#define LOG_LOOK_MS (60 * 1000)

struct options {
	int ready_fd;
	bool foreground;
	bool debug;
	bool logging; /* stderr is the log by now */
};

static const char usage[] =
	"usage: pandod [--foreground] [--debug] [--ready-fd N]\n"
	"\n"
	"The host daemon of pando; the first `pando` command starts it. State is in $PANDO_HOME.\n"
	"  --foreground   stay, and log to stderr\n"
	"  --debug        log more\n"
	"  --ready-fd N   write \"ready\\n\" there when the socket answers, or a sentence why not\n";

static int
parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{"foreground", no_argument, NULL, 'f'},
		{"debug", no_argument, NULL, 'd'},
		{"ready-fd", required_argument, NULL, 'r'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'v'},
		{NULL, 0, NULL, 0},
	};
	char *end;
	long n;
	int c;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'f':
			o->foreground = true;
			break;
		case 'd':
			o->debug = true;
			break;
		case 'r':
			n = strtol(optarg, &end, 10);
			if (*end || end == optarg || n < 0 || n > 1 << 20 ||
				fcntl((int)n, F_GETFD) < 0) {
				fprintf(stderr,
					"pandod: --ready-fd %s is no open descriptor\n",
					optarg);
				return EXIT_USAGE;
			}
			o->ready_fd = (int)n;
			break;
		case 'h':
			fputs(usage, stdout);
			return -1;
		case 'v':
			puts("pandod " PANDO_VERSION);
			return -1;
		default:
			fputs(usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "pandod: \"%s\": no words are taken\n", argv[optind]);
		return EXIT_USAGE;
	}
	return 0;
}

/* Tells whoever waits, once. NULL: ready. */
static void
tell(int *fd, const char *sentence)
{
	if (*fd < 0)
		return;
	if (sentence) {
		io_write_full(*fd, sentence, strlen(sentence));
		io_write_full(*fd, "\n", 1);
	} else {
		io_write_full(*fd, "ready\n", 6);
	}
	cleanup_close_fn(fd);
	*fd = -1;
}

/*
 * The daemon is a child in a session of its own; the parent waits for its word, hands it
 * on, and exits with it. Returns in the child only.
 */
static int
detach(struct options *o, struct err *e)
{
	char line[1024];
	size_t n = 0;
	int pipe_fds[2];
	bool ready;
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return err_sys(e, -errno, "pipe");
	pid = fork();
	if (pid < 0)
		return err_sys(e, -errno, "fork");
	if (pid == 0) {
		cleanup_close_fn(&o->ready_fd);
		close(pipe_fds[0]);
		o->ready_fd = pipe_fds[1];
		setsid();
		return 0;
	}
	close(pipe_fds[1]);
	while (n < sizeof(line) - 1) {
		ssize_t got = io_read(pipe_fds[0], line + n, sizeof(line) - 1 - n);

		if (got <= 0)
			break;
		n += (size_t)got;
	}
	line[n] = '\0';
	ready = strcmp(line, "ready\n") == 0;
	if (!n)
		snprintf(line, sizeof(line), "pandod ended before it was ready\n");
	if (o->ready_fd >= 0)
		io_write_full(o->ready_fd, line, strlen(line));
	else if (!ready)
		fprintf(stderr, "pandod: %s", line);
	_exit(ready ? EXIT_OK : EXIT_FAILED);
}

static int
open_log(const char *home, struct err *e)
{
	char path[PATHS_MAX], old[PATHS_MAX];
	struct stat st;
	int fd, r = paths_format(path, sizeof(path), e, "%s/pandod.log", home);

	if (r == 0)
		r = paths_format(old, sizeof(old), e, "%s/pandod.log.old", home);
	if (r < 0)
		return r;
	if (stat(path, &st) == 0 && st.st_size > LOG_MAX_BYTES)
		rename(path, old);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, -errno, "%.300s", path);
	if (dup2(fd, STDERR_FILENO) < 0)
		r = err_sys(e, -errno, "dup2");
	close(fd);
	return r;
}

/* Descriptors 0 to 3 are occupied ever after, so that what pandod opens lies above those
 * that a VMM is given (launch_spawn). Others that were inherited are closed: a pipe of
 * the shell must not be held open by a daemon. */
static int
settle_descriptors(struct options *o, struct err *e)
{
	cleanup_close int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		return err_sys(e, -errno, "/dev/null");
	/* 0, 1 and 2 may have been closed; then null is one of them. */
	while (null <= 3) {
		int higher = fcntl(null, F_DUPFD_CLOEXEC, 4);

		if (higher < 0)
			return err_sys(e, -errno, "/dev/null");
		close(null);
		null = higher;
	}
	if (o->ready_fd >= 0 && o->ready_fd <= 3) {
		int higher = fcntl(o->ready_fd, F_DUPFD_CLOEXEC, 4);

		if (higher < 0)
			return err_sys(e, -errno, "--ready-fd");
		o->ready_fd = higher;
	}
	if (o->ready_fd >= 0)
		fcntl(o->ready_fd, F_SETFD, FD_CLOEXEC);
	for (int fd = 0; fd <= 3; fd++) {
		if (fd == STDERR_FILENO && fcntl(fd, F_GETFD) >= 0)
			continue;
		if (dup2(null, fd) < 0)
			return err_sys(e, -errno, "/dev/null");
	}
	fcntl(3, F_SETFD, FD_CLOEXEC);
	for (int fd = 4; fd < 1024; fd++)
		if (fd != null && fd != o->ready_fd)
			close(fd);
	syscall(SYS_close_range, 1024, ~0u, 0);
	return 0;
}

static void
wake(void *ctx)
{
	uint64_t one = 1;

	io_write_full(*(int *)ctx, &one, sizeof(one));
}

static void
loop(struct daemon *d, int signals, int stop, const struct options *o, const char *home)
{
	uint64_t look_ns = io_now_ns() + LOG_LOOK_MS * 1000000ull;

	for (;;) {
		struct pollfd p[3] = {
			{.fd = daemon_fd(d), .events = POLLIN},
			{.fd = signals, .events = POLLIN},
			{.fd = stop, .events = POLLIN},
		};
		int n = poll(p, 3, o->foreground ? -1 : LOG_LOOK_MS);

		if (p[0].revents)
			daemon_dispatch(d);
		if (n > 0 && p[1].revents) {
			struct signalfd_siginfo si;

			if (io_read_full(signals, &si, sizeof(si)) == 0)
				log_info("signal %u from process %u: stopping",
					si.ssi_signo, si.ssi_pid);
			return;
		}
		if (n > 0 && p[2].revents)
			return;
		if (!o->foreground && io_now_ns() >= look_ns) {
			open_log(home, NULL);
			look_ns = io_now_ns() + LOG_LOOK_MS * 1000000ull;
		}
	}
}

static int
serve(struct options *o, struct err *e)
{
	cleanup_free struct daemon_config *config = calloc(1, sizeof(*config));
	cleanup_close int lock = -1, signals = -1, stop = -1;
	const char *home;
	struct daemon *d;
	sigset_t set;
	int r;

	if (!config)
		return err_set(e, -ENOMEM, "out of memory");
	r = daemon_defaults(config, e);
	if (r == 0)
		r = daemon_lock(config, &lock, e);
	if (r < 0)
		return r;
	if (r == 0) {
		tell(&o->ready_fd,
			NULL); /* somebody else was faster; all the same to who waits */
		return 0;
	}
	home = config->tree.home;
	if (!o->foreground) {
		r = open_log(home, e);
		if (r < 0)
			return r;
	}
	o->logging = true;
	log_init("pandod", o->debug ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO);
	log_set_stamps(1);
	log_info("version " PANDO_VERSION ", pid %d, home %s", (int)getpid(), home);
	daemon_raise_limits();
	r = daemon_settings(config, e);
	if (r < 0)
		return r;

	/* Before any thread, so that all of them have these blocked. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	signals = signalfd(-1, &set, SFD_CLOEXEC);
	stop = eventfd(0, EFD_CLOEXEC);
	if (signals < 0 || stop < 0)
		return err_sys(e, -errno, "signalfd, eventfd");

	r = daemon_open(config, wake, &stop, &d, e);
	if (r < 0)
		return r;
	tell(&o->ready_fd, NULL);
	loop(d, signals, stop, o, home);
	daemon_stop(d);
	log_info("stopped; VMs go on");
	daemon_close(d);
	return 0;
}

int
main(int argc, char **argv)
{
	struct options o = {.ready_fd = -1};
	struct err e = {0};
	int r = parse_options(argc, argv, &o);

	if (r)
		return r < 0 ? EXIT_OK : r;
	umask(077);
	r = settle_descriptors(&o, &e);
	if (r == 0 && !o.foreground)
		r = detach(&o, &e);
	if (r == 0 && chdir("/") < 0)
		r = err_sys(&e, -errno, "chdir /");
	if (r == 0)
		r = serve(&o, &e);
	if (r == 0)
		return EXIT_OK;
	if (o.logging)
		log_err("%s", e.msg);
	else if (o.ready_fd < 0)
		fprintf(stderr, "pandod: %s\n", e.msg);
	tell(&o.ready_fd, e.msg);
	return err_exit_code(e.code);
}
