#include "guest-agent/server/sshd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/wire/agent_wire.h"
#include "common/wire/openssh_key.h"
#include "guest-agent/identity/apply.h"
#include "guest-agent/identity/identity.h"
#include "guest-agent/system/command_env.h"
#include "guest-agent/system/guest_machine.h"
#include "guest-agent/system/helper.h"
#include "guest-agent/system/loop.h"
#include "guest-agent/system/reap.h"
#include "guest-agent/system/spawn.h"
#include "guest-agent/system/userdb.h"

/* Behind those of commands, before those of helpers. */
#define FIRST_SLOT AGENT_EXECS_MAX
_Static_assert(FIRST_SLOT + SSHD_MAX <= SPAWN_SLOTS - HELPERS_MAX, "slots");

#define CONFIG_FILE "/etc/pando/sshd_config"
#define PRIVSEP_FOLDER "/run/sshd"

static struct served {
	struct source pidfd;
	bool used;
	pid_t pid;
	uint32_t connection;
	uint64_t group_num;
	int group_fd; /* owned; -1 */
} served[SSHD_MAX];

#define container_of(p, type, member) \
	((type *)(void *)((char *)(p)-offsetof(type, member)))

static void
ended(struct source *s, uint32_t events)
{
	static struct log_limit limit = {.burst = 5};
	struct served *x = container_of(s, struct served, pidfd);
	unsigned slot = FIRST_SLOT + (unsigned)(x - served);
	siginfo_t si = {0};
	int code;

	(void)events;
	if (waitid(P_PIDFD, (id_t)s->fd, &si, WEXITED | WNOHANG) || !si.si_pid)
		return;
	/* Its other ends are SSH's own affair: it writes them to the system's log. */
	if (si.si_code == CLD_EXITED && si.si_status == 127 &&
		spawn_failure(slot, &code) != SPAWN_OK && log_allowed(&limit))
		log_warn("sshd cannot be started: %s", strerror(code));
	source_close(s);
	reap_group_drop(x->group_num, TAKE_FD(x->group_fd));
	x->used = false;
}

/* sshd starts itself again by its name, so that this must be a whole path. */
static const char *
find(char dst[static PATH_MAX])
{
	static const char *const places[] = {"/usr/sbin/sshd", "/usr/local/sbin/sshd",
		"/sbin/sshd", "/usr/bin/sshd", "/usr/local/bin/sshd"};

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		if (!access(machine_path(dst, places[i]), X_OK))
			return dst;
	return NULL;
}

static int
start(struct served *x, const char *program, int fd, uint32_t connection, struct err *e)
{
	static const struct user root = {.home = "/", .name = "root"};
	cleanup_close int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	char name[PATH_MAX], key[PATH_MAX + 16], keys[PATH_MAX + 64], config[PATH_MAX];
	char path[PATH_MAX], self[PATH_MAX + 128] = "SetEnv=" AGENT_SSH_SELF "=";
	char own_path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:"
			  "/usr/bin:/sbin:/bin";
	char *env[] = {own_path, NULL};
	/* First come first served: what is said here goes before the file. All of
	 * sshd's own configuration is left out, which is about who comes over a
	 * network; who wants something of sshd here says it in ours. */
	const char *argv[] = {name, "-i", "-f", config, "-o", key, "-o", keys, "-o",
		"AuthenticationMethods=publickey", "-o", "PasswordAuthentication=no",
		"-o", "KbdInteractiveAuthentication=no", "-o",
		"PermitRootLogin=prohibit-password", "-o", "UsePAM=yes", "-o",
		"UseDNS=no", "-o", "TCPKeepAlive=no", "-o", "PrintMotd=no", "-o",
		"Subsystem=sftp internal-sftp", "-o",
		"AcceptEnv=LANG LC_* COLORTERM NO_COLOR", "-o", self,
		/* Folders above a root that is not "/" are not the machine's. */
		machine_is_real() ? NULL : "-oStrictModes=no", NULL};
	struct spawn s = {.envp = env, .cwd = "/", .user = &root, .cgroup_fd = -1};
	unsigned slot = FIRST_SLOT + (unsigned)(x - served);
	int pidfd, r;

	if (null < 0)
		return err_sys(e, -errno, "/dev/null");
	snprintf(name, sizeof(name), "%s", program);
	snprintf(key, sizeof(key), "HostKey=%s", machine_path(path, OPENSSH_KEY_FILE));
	snprintf(keys, sizeof(keys), "AuthorizedKeysFile=%s .ssh/authorized_keys",
		machine_path(path, IDENTITY_AUTHORIZED_KEYS));
	if (access(machine_path(config, CONFIG_FILE), F_OK))
		strcpy(config, "/dev/null");
	if (readlink("/proc/self/exe", self + strlen(self), PATH_MAX - 1) < 0)
		return err_sys(e, -errno, "/proc/self/exe");
	/* What the user's own environment says comes after this. */
	if (!access(machine_path(path, COMMAND_ENV_NODE_FILE), F_OK))
		strcat(self, " NODE_OPTIONS=" COMMAND_ENV_NODE_OPTION);
	s.argv = (char *const *)(uintptr_t)argv;
	s.fd[0] = s.fd[1] = fd;
	s.fd[2] = null;
	r = io_set_nonblock(fd, 0);
	if (r)
		return r;
	/* Where systemd does not put the login into a scope, what it starts is in here. */
	x->group_num = reap_group_number();
	x->group_fd = s.cgroup_fd = reap_group_make(x->group_num);
	s.subreaper = x->group_fd < 0;
	r = spawn_start(&s, slot, &x->pid, &pidfd, e);
	if (r) {
		reap_group_drop(x->group_num, TAKE_FD(x->group_fd));
		return r;
	}
	x->used = true;
	x->connection = connection;
	source_init(&x->pidfd, pidfd, ended);
	return source_wait(&x->pidfd, EPOLLIN) ? err_sys(e, -ENOMEM, "watching sshd") : 0;
}

static int
serve(int fd, uint32_t connection, struct err *e)
{
	char program[PATH_MAX], path[PATH_MAX];
	unsigned i = 0;

	if (apply_runs())
		return err_set(e, -EAGAIN,
			AGENT_SSH_BECOMING "; it takes nobody in until that is done");
	if (!find(program))
		return err_set(e, -ENOENT,
			"there is no sshd in this machine: install openssh-server in it, or in its image");
	if (access(machine_path(path, OPENSSH_KEY_FILE), F_OK))
		return err_set(e, -ENOKEY,
			"this machine has no SSH host key: it was not told who it is yet");
	while (i < SSHD_MAX && served[i].used)
		i++;
	if (i == SSHD_MAX)
		return err_set(
			e, -EAGAIN, "%d SSH connections are open already", SSHD_MAX);
	/* Its service makes it elsewhere; here none is needed. */
	if (machine_is_real() && mkdir(PRIVSEP_FOLDER, 0755) && errno != EEXIST)
		return err_sys(e, -errno, PRIVSEP_FOLDER);
	return start(&served[i], program, fd, connection, e);
}

int
sshd_kill(uint32_t connection, struct err *e)
{
	for (unsigned i = 0; i < SSHD_MAX; i++)
		if (served[i].used && served[i].connection == connection) {
			reap_kill_login(served[i].pid, served[i].group_fd);
			return 0;
		}
	return err_set(e, -ESRCH, "no SSH connection %u is open", connection);
}

void
sshd_serve(int fd, uint32_t connection)
{
	cleanup_close int own = fd;
	char line[sizeof(((struct err *)0)->msg) + 32];
	struct err e = {0};
	int n;

	if (!serve(own, connection, &e))
		return;
	n = snprintf(line, sizeof(line), AGENT_SSH_SAYS "%s\r\n", e.msg);
	/* It fits an empty socket; a peer that has gone needs no answer. */
	(void)send(own, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
}
