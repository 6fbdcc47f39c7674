#include "tests/unit/agent_help.h"

#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <pwd.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"

#define EXIT_NOT_ENTERED 77

const char *
agent_help_program(void)
{
	static char program[600];
	char self[512];
	ssize_t n;

	if (program[0])
		return program;
	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	assert_true(n > 0);
	self[n] = '\0';
	snprintf(program, sizeof(program), "%s/../libexec/pando/pando-agent",
		dirname(self));
	return program;
}

/* Shells that the agent starts read nothing of who runs the tests: those files may wait for locks that
 * a shell left which a test killed. Only root can. */
static void
hide_dotfiles(void)
{
	static const char *const names[] = {".profile", ".bash_profile", ".bash_login",
		".bashrc", ".bash_logout", ".zshenv", ".zprofile", ".zshrc"};
	const struct passwd *me = getpwuid(geteuid());
	static bool hidden;
	char path[512];

	if (hidden || geteuid() != 0 || !me || unshare(CLONE_NEWNS) ||
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return;
	hidden = true;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		snprintf(path, sizeof(path), "%s/%s", me->pw_dir, names[i]);
		mount("/dev/null", path, NULL, MS_BIND, NULL); /* where it is */
	}
}

pid_t
agent_help_start(const char *sock, const char *root, bool (*enter)(void))
{
	const char *program = agent_help_program();
	/* The end of a thread is not the end of the test. */
	bool main_thread = gettid() == getpid();
	char fresh[128], listen_on[160];
	int status;
	pid_t pid;

	/* A VM's socket is there all its life, also while its agent is not: the new one takes the
	 * place of the old one when it answers. */
	if (main_thread)
		hide_dotfiles();
	snprintf(fresh, sizeof(fresh), "%s.new", sock);
	snprintf(listen_on, sizeof(listen_on), "unix:%s", fresh);
	unlink(fresh);
	pid = fork();
	if (!pid) {
		if (main_thread)
			prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (enter && !enter())
			_exit(EXIT_NOT_ENTERED);
		execl(program, "pando-agent", "--keep=60", "--listen", listen_on,
			"--connect-line", root ? "--root" : NULL, root, (char *)NULL);
		perror(program);
		_exit(127);
	}
	assert_true(pid > 0);
	/* Until it is bound, and until it listens. */
	for (int i = 0; i < 3000; i++) {
		if (agent_wait_ready(fresh, 10000, NULL, NULL, NULL) == 0) {
			assert_int_equal(rename(fresh, sock), 0);
			return pid;
		}
		if (waitpid(pid, &status, WNOHANG) == pid) {
			if (enter && WIFEXITED(status) &&
				WEXITSTATUS(status) == EXIT_NOT_ENTERED)
				return 0;
			fail_msg("the agent ended at once, with status %d", status);
		}
		usleep(10000);
	}
	fail_msg("the agent does not answer");
	return 0;
}

/* Of that process, and of that name; the count. */
static unsigned
shims_of(pid_t parent, pid_t *pids, unsigned max)
{
	cleanup_closedir DIR *d = opendir("/proc");
	struct dirent *de;
	unsigned n = 0;

	while (d && n < max && (de = readdir(d))) {
		char path[64], text[256];
		ssize_t len;
		int ppid;

		snprintf(path, sizeof(path), "/proc/%.20s/stat", de->d_name);
		cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
		len = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
		if (len <= 0)
			continue;
		text[len] = 0;
		if (sscanf(text, "%*d (pando-shim) %*c %d", &ppid) == 1 && ppid == parent)
			pids[n++] = atoi(de->d_name);
	}
	return n;
}

void
agent_help_end(pid_t *pid, int signo)
{
	static pid_t shims[1024];
	unsigned n;

	if (*pid <= 0)
		return;
	/* They wait for the next agent, and there will be none. */
	n = shims_of(*pid, shims, 1024);
	kill(*pid, signo);
	waitpid(*pid, NULL, 0);
	*pid = 0;
	for (unsigned i = 0; i < n; i++)
		kill(shims[i], SIGKILL);
}

void
agent_help_put(const char *root, const char *path, const char *text, mode_t mode)
{
	cleanup_free char *folder = NULL;
	struct err e = {0};
	char at[256];

	snprintf(at, sizeof(at), "%s%s", root, path);
	folder = strdup(at);
	assert_non_null(folder);
	assert_int_equal(io_mkdir_p(dirname(folder), 0755, NULL), 0);
	if (io_write_file_atomic(at, text, strlen(text), mode, &e))
		fail_msg("%s", e.msg);
}

void
agent_help_make_root(char *root)
{
	static const char *const folders[] = {"etc/pando/rpc.d", "tmp", "run/pando"};
	char path[128];

	assert_non_null(mkdtemp(root));
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", root, folders[i]);
		assert_int_equal(io_mkdir_p(path, 0755, NULL), 0);
	}
}
