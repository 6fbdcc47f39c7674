/*
 * The shipped `pando rpc` and `pando reports` against the shipped pando-agent, which runs
 * with an /etc and /var/lib of its own (a mount namespace: needs root). Who stands in for
 * pandod answers where the agent's socket is, and with a report.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent_client.h"
#include "host/paths.h"

static char home[] = "/tmp/pando-rpc-cli.XXXXXX";
static char agent_socket[128], pando[PATHS_MAX], agent[PATHS_MAX];
static int api_fd = -1;
static pthread_t api_thread;
static pid_t agent_pid = -1;
static bool can;

static const char vm_json[] =
	"{\"id\":\"0a1b2c3d4e5f\",\"alias\":\"a\",\"state\":\"running\","
	"\"agent_socket\":\"%s\"}";
static const char reports_json[] =
	"{\"reports\":[{\"seq\":7,\"id\":\"00112233445566778899aabbccddeeff\","
	"\"vm\":\"0a1b2c3d4e5f\",\"alias\":\"a\",\"generation\":\"x\",\"time_ms\":1,"
	"\"report\":{\"status\":\"done\",\"score\":0.5,\"message\":\"it\\u001b is\","
	"\"files\":[{\"name\":\"sub/one\",\"path\":\"%s/one\",\"bytes\":7},"
	"{\"name\":\"gone\",\"path\":\"%s/gone\",\"bytes\":7},"
	"{\"name\":\"folder\",\"path\":\"%s/folder\",\"bytes\":7}]}}],"
	"\"next\":7,\"more\":false}";

static void
answer(int fd, const char *request)
{
	char body[2048], text[2400];

	if (strstr(request, "/reports?after=0 "))
		snprintf(body, sizeof(body), reports_json, home, home, home);
	else if (strstr(request, "/reports?after="))
		snprintf(
			body, sizeof(body), "{\"reports\":[],\"next\":7,\"more\":false}");
	else
		snprintf(body, sizeof(body), vm_json, agent_socket);
	snprintf(text, sizeof(text),
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
		"Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
		strlen(body), body);
	(void)io_write_full(fd, text, strlen(text));
}

static void *
api_main(void *arg)
{
	char request[4096];
	int fd;

	(void)arg;
	while ((fd = accept4(api_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		size_t len = 0;
		ssize_t n;

		while (len < sizeof(request) - 1 &&
			(n = io_read(fd, request + len, sizeof(request) - 1 - len)) > 0) {
			len += (size_t)n;
			request[len] = 0;
			if (strstr(request, "\r\n\r\n")) {
				answer(fd, request);
				break;
			}
		}
		close(fd);
	}
	return NULL;
}

static void
run_agent(const char *listen_on)
{
	static const char conf[] = "command = \"while read -r l; do echo "
				   "'{\\\"type\\\":\\\"agent_start\\\"}'; case $l in "
				   "*bad*) r=error;; *) r=stop;; esac; echo "
				   "'{\\\"type\\\":\\\"agent_end\\\",\\\"messages\\\":[{"
				   "\\\"stopReason\\\":\\\"'$r'\\\"}]}'; done\"\n"
				   "protocol = \"pi\"\ntmux = false\nstop_s = 1\n";

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		mount("none", "/etc", "tmpfs", 0, "size=8m") ||
		mount("none", "/var/lib", "tmpfs", 0, "size=64m") ||
		io_mkdir_p("/etc/pando/rpc.d", 0755, NULL) ||
		io_write_file_atomic(
			"/etc/pando/rpc.d/cli-test.conf", conf, strlen(conf), 0644, NULL))
		_exit(77);
	execl(agent, "pando-agent", "--listen", listen_on, "--connect-line",
		(char *)NULL);
	_exit(127);
}

static int
start_all(void **state)
{
	char path[128], listen_on[160];
	int status;

	(void)state;
	if (!mkdtemp(home) || setenv("PANDO_HOME", home, 1) ||
		paths_program("bin/pando", pando, sizeof(pando), NULL) < 0 ||
		paths_program("libexec/pando/pando-agent", agent, sizeof(agent), NULL) <
			0)
		return -1;
	snprintf(path, sizeof(path), "%s/pandod.sock", home);
	snprintf(agent_socket, sizeof(agent_socket), "%s/agent.sock", home);
	snprintf(listen_on, sizeof(listen_on), "unix:%s", agent_socket);
	if (io_unix_listen(path, SOCK_STREAM, 16, &api_fd, NULL) < 0 ||
		pthread_create(&api_thread, NULL, api_main, NULL))
		return -1;
	agent_pid = fork();
	if (agent_pid == 0)
		run_agent(listen_on);
	for (int i = 0; access(agent_socket, F_OK) && i < 1000; i++) {
		if (waitpid(agent_pid, &status, WNOHANG) == agent_pid) {
			agent_pid = -1;
			return 0; /* no root: all are skipped */
		}
		usleep(10000);
	}
	can = agent_wait_ready(agent_socket, 10000, NULL, NULL, NULL) == 0;
	return can ? 0 : -1;
}

static struct {
	int status;
	char *out; /* owned; stdout and stderr */
} got;

static void
run(const char *command)
{
	char text[8192];
	size_t len = 0, n;
	FILE *f;

	if (!can)
		skip();
	snprintf(text, sizeof(text), "exec 2>&1; pando() { '%s' \"$@\"; }; cd '%s'; %s",
		pando, home, command);
	f = popen(text, "re");
	assert_non_null(f);
	free(got.out);
	got.out = calloc(1, 1 << 20);
	while ((n = fread(got.out + len, 1, (1 << 20) - 1 - len, f)) > 0)
		len += n;
	got.status = pclose(f);
	got.status = WIFEXITED(got.status) ? WEXITSTATUS(got.status) : -1;
}

static int
stop_all(void **state)
{
	(void)state;
	if (can)
		run("pando rpc stop a");
	free(got.out);
	unlink("/tmp/cli-test-rpc");
	if (agent_pid > 0) {
		kill(agent_pid, SIGKILL);
		waitpid(agent_pid, NULL, 0);
	}
	shutdown(api_fd, SHUT_RDWR);
	pthread_join(api_thread, NULL);
	close(api_fd);
	return io_remove_tree(home, NULL);
}

#define HAS(text) \
	do { \
		if (!strstr(got.out, text)) \
			fail_msg("no \"%s\" in: %s", text, got.out); \
	} while (0)

static void
words_that_make_no_sense_are_usage(void **state)
{
	(void)state;
	run("pando rpc");
	assert_int_equal(got.status, 2);
	run("pando rpc dance a");
	assert_int_equal(got.status, 2);
	HAS("there is start, stop, status, send, follow and attach");
	run("pando rpc start a b");
	assert_int_equal(got.status, 2);
	HAS("one word too many");
	run("pando rpc status a --until-done");
	assert_int_equal(got.status, 2);
	run("pando rpc follow a --from -3");
	assert_int_equal(got.status, 2);
	run("pando rpc attach a </dev/null");
	assert_int_equal(got.status, 2);
	HAS("needs a terminal");
}

static void
a_conversation(void **state)
{
	(void)state;
	run("pando rpc send a '{}'");
	assert_int_equal(got.status, 3);
	HAS("pando rpc start");
	run("pando rpc start a");
	assert_int_equal(got.status, 0);
	HAS("cli-test");
	HAS("running");
	run("pando rpc send --until-done a '{\"type\":\"prompt\",\"message\":\"good\"}'");
	assert_int_equal(got.status, 0);
	HAS("\"stopReason\":\"stop\"");
	run("echo '{\"type\":\"prompt\",\"message\":\"bad\"}' | pando rpc send -u a");
	assert_int_equal(got.status, 1);
	HAS("not done well: error");
	run("pando rpc send a '{\"type\":'");
	assert_int_equal(got.status, 2);
	HAS("no JSON");
	run("pando rpc follow --once --format json a");
	assert_int_equal(got.status, 0);
	HAS("\"number\":3,");
	HAS("next: --from ");
	run("pando rpc follow --once --from 9999 a");
	assert_int_equal(got.status, 2);
	run("pando rpc follow --name nosuch --once a");
	assert_int_equal(got.status, 3);
	HAS("\"nosuch\" was never started here");
	run("pando rpc status --format json a");
	assert_int_equal(got.status, 0);
	HAS("\"lines\":4");
	run("pando rpc stop a");
	assert_int_equal(got.status, 0);
	HAS("stopped");
}

static void
reports_and_their_files(void **state)
{
	(void)state;
	run("pando reports");
	assert_int_equal(got.status, 0);
	HAS("0.5");
	HAS("it\\x1b is");
	run("pando reports --format json a");
	HAS("\"seq\":7");
	/* One is there, one is gone, and one has become a folder. */
	run("printf 'result\\n' >one; mkdir folder; pando reports --fetch got a; ls -R "
	    "got");
	HAS("0-one");
	HAS("No such file");
	HAS("no regular file");
	run("pando reports -q --fetch got a >/dev/null");
	assert_int_equal(got.status, 1);
	run("test \"$(pando reports --fetch got a 2>/dev/null | grep 0-one | cut -d ' ' "
	    "-f 1)\" = "
	    "\"$(b2sum -l 256 one | cut -d ' ' -f 1)\" && cmp one "
	    "got/0a1b2c3d4e5f/00112233/0-one && "
	    "ls got/0a1b2c3d4e5f/00112233");
	assert_string_equal(got.out, "0-one\n");
	run("pando reports --fetch got --format json a");
	HAS("\"blake2b\":\"");
	run("pando reports --after x");
	assert_int_equal(got.status, 2);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(words_that_make_no_sense_are_usage),
		cmocka_unit_test(a_conversation),
		cmocka_unit_test(reports_and_their_files),
	};

	return cmocka_run_group_tests(tests, start_all, stop_all);
}
