/* pandod's life and death, and that of VMMs. */
#include "tests/system/model/model.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"

#define PATIENCE_NS 900000000000ull /* for a host that does much else */

static void
nap(unsigned us)
{
	nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000L}, NULL);
}

void
pandod_open(const char *fault)
{
	struct client_reply reply = {0};
	uint64_t pid = 0;
	struct err e;

	if (fault)
		setenv("PANDO_FAULT", fault, 1);
	/* Commits of what changed are compared with the whole (host/commit/commit.c). */
	setenv("PANDO_COMMIT_CHECK", "1", 1);
	if (client_open(m.home, CLIENT_START, &m.client, &e) < 0 ||
		client_call(m.client, "GET", "/v1/version", NULL, &reply, &e) < 0)
		differ("pandod does not come back: %s", e.msg);
	unsetenv("PANDO_FAULT");
	/* The process that was started has ended when its daemon was ready. */
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	json_u64(reply.json, json_get(reply.json, 0, "pid"), &pid);
	client_reply_done(&reply);
	m.pandod = (pid_t)pid;
}

static bool
somebody_answers(void)
{
	char path[300];
	int fd;

	snprintf(path, sizeof(path), "%s/pandod.sock", m.home);
	if (io_unix_connect(path, SOCK_STREAM, &fd, NULL) < 0)
		return false;
	close(fd);
	return true;
}

void
pandod_kill(void)
{
	uint64_t until = io_now_ns() + PATIENCE_NS;

	client_close(m.client);
	m.client = NULL;
	kill(m.pandod, SIGKILL);
	while (somebody_answers()) {
		if (io_now_ns() > until)
			differ("pandod does not end");
		nap(500);
	}
	m.crashes++;
}

static struct {
	pthread_t thread;
	pid_t pid;
	unsigned after_us;
} killer;

static void *
killer_main(void *unused)
{
	(void)unused;
	nap(killer.after_us);
	kill(killer.pid, SIGKILL);
	return NULL;
}

void
killer_start(pid_t pid, unsigned after_us)
{
	killer.pid = pid;
	killer.after_us = after_us;
	if (pthread_create(&killer.thread, NULL, killer_main, NULL) != 0)
		differ("no thread");
}

void
killer_join(void)
{
	pthread_join(killer.thread, NULL);
}

void
wait_state(struct vm *v, const char *state)
{
	uint64_t until = io_now_ns() + PATIENCE_NS;

	for (;;) {
		struct client_vm told = {0};
		struct err e;
		bool is;

		if (client_get(m.client, v->id, &told, NULL, &e) < 0)
			differ("%s: %s", v->alias, e.msg);
		is = strcmp(told.state, state) == 0;
		if (!is && io_now_ns() > until)
			differ("%s is %s, not %s", v->alias, told.state, state);
		client_vm_done(&told);
		if (is)
			return;
		nap(1000);
	}
}

void
vmm_kill(struct vm *v)
{
	kill(v->pid, SIGKILL);
	v->life = LIFE_FAILED;
	v->pid = 0;
}
