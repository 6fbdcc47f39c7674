/*
 * What pandod opens and closes (host/pandod/daemon.c), and its settings. No VM runs.
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/pandod/daemon.h"

static char home[64];
static struct daemon_config config;
static struct err e;
static int shutdowns;

static void
on_shutdown(void *ctx)
{
	(*(int *)ctx)++;
}

static int
setup(void **state)
{
	(void)state;
	snprintf(home, sizeof(home), "/tmp/pando-test-XXXXXX");
	assert_non_null(mkdtemp(home));
	assert_int_equal(setenv("PANDO_HOME", home, 1), 0);
	assert_int_equal(setenv("PANDO_IMAGES", home, 1), 0);
	if (daemon_defaults(&config, &e) < 0)
		fail_msg("%s", e.msg);
	config.scopes = SCOPES_NONE;
	config.commits.pool_size = 0;
	shutdowns = 0;
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	return io_remove_tree(home, NULL);
}

/* The entries of a folder of /proc: descriptors, threads. */
static unsigned
count(const char *path)
{
	cleanup_closedir DIR *dir = opendir(path);
	unsigned n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	return n;
}

/* The status of a call without a body. */
static int
call(const char *method, const char *target)
{
	cleanup_close int fd = -1;
	char text[4096];
	int status = 0;
	size_t n = 0;
	ssize_t got;

	assert_int_equal(io_unix_connect(config.socket, SOCK_STREAM, &fd, &e), 0);
	snprintf(text, sizeof(text),
		"%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		method, target);
	assert_int_equal(io_write_full(fd, text, strlen(text)), 0);
	while (n < sizeof(text) - 1 &&
		(got = io_read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += (size_t)got;
	text[n] = '\0';
	sscanf(text, "HTTP/1.1 %d", &status);
	return status;
}

static void
a_daemon_serves_until_it_is_closed_and_leaves_nothing_open(void **state)
{
	unsigned fds, threads;
	struct daemon *d;

	(void)state;
	fds = count("/proc/self/fd");
	threads = count("/proc/self/task");
	/* The second finds the store, which the first one made, and its lock free. */
	for (int i = 0; i < 2; i++) {
		assert_int_equal(
			daemon_open(&config, on_shutdown, &shutdowns, &d, &e), 0);
		assert_int_equal(call("GET", "/v1/vms"), 200);
		assert_int_equal(call("GET", "/v1/commits"), 200);
		assert_int_equal(call("POST", "/v1/shutdown"), 200);
		assert_int_equal(shutdowns, i + 1);
		daemon_stop(d);
		daemon_close(d);
		assert_int_equal(access(config.socket, F_OK), -1);
		assert_int_equal(count("/proc/self/fd"), fds);
		assert_int_equal(count("/proc/self/task"), threads);
	}
}

static void
a_daemon_that_cannot_be_opened_leaves_nothing_open(void **state)
{
	unsigned fds = count("/proc/self/fd"), threads = count("/proc/self/task");
	struct daemon *d = NULL;
	char path[128];

	(void)state;
	/* In the place of the database, after the socket. */
	snprintf(path, sizeof(path), "%s/state.db", home);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_true(daemon_open(&config, on_shutdown, &shutdowns, &d, &e) < 0);
	assert_null(d);
	assert_non_null(strstr(e.msg, "state.db"));
	assert_int_equal(access(config.socket, F_OK), -1);
	assert_int_equal(count("/proc/self/fd"), fds);
	assert_int_equal(count("/proc/self/task"), threads);
}

static void
a_store_that_cannot_be_opened_is_in_the_way_of_commits_only(void **state)
{
	struct daemon *d;
	char path[128];

	(void)state;
	snprintf(path, sizeof(path), "%s/store", home);
	assert_int_equal(io_write_file_atomic(path, "x", 1, 0600, &e), 0);
	assert_int_equal(daemon_open(&config, on_shutdown, &shutdowns, &d, &e), 0);
	assert_int_equal(call("GET", "/v1/vms"), 200);
	assert_true(call("GET", "/v1/commits") >= 400);
	daemon_close(d);
}

static void
one_home_has_one_daemon(void **state)
{
	int lock = -1, other = -1;
	struct daemon *d;

	(void)state;
	assert_int_equal(daemon_lock(&config, &lock, &e), 1);
	assert_int_equal(daemon_open(&config, on_shutdown, &shutdowns, &d, &e), 0);
	assert_int_equal(daemon_lock(&config, &other, &e), 0);
	assert_int_equal(other, -1);
	daemon_close(d);
	close(lock);
	assert_int_equal(daemon_lock(&config, &lock, &e), 1);
	close(lock);
}

/* As the kernel leaves one that was killed until its last thread has ended: it holds the lock, and its
 * socket takes connections. */
static void *
let_go(void *arg)
{
	const int *fds = arg;

	usleep(300000);
	close(fds[0]);
	close(fds[1]);
	return NULL;
}

static void
a_daemon_that_is_just_dying_is_none(void **state)
{
	int fds[2] = {-1, -1}, lock = -1;
	pthread_t thread;

	(void)state;
	assert_int_equal(daemon_lock(&config, &fds[1], &e), 1);
	assert_int_equal(io_unix_listen(config.socket, SOCK_STREAM, 8, &fds[0], &e), 0);
	assert_int_equal(pthread_create(&thread, NULL, let_go, fds), 0);
	assert_int_equal(daemon_lock(&config, &lock, &e), 1);
	pthread_join(thread, NULL);
	close(lock);
}

static void
settings_are_read_and_mistakes_named(void **state)
{
	static const struct {
		const char *text, *says;
	} wrong[] = {
		{"[pool]\nsize = 65\n", "pandod.toml:2:8: pool.size must be 0 to 64"},
		{"[pool]\nsize = -1\n", "pool.size"},
		{"[pool]\nsize = \"two\"\n", "pool.size"},
		{"[pool]\nsise = 2\n", "\"sise\""},
		{"[pools]\nsize = 2\n", "\"pools\""},
		{"pool = 3\n", "\"pool\""},
		{"[pool\n", "pandod.toml:1:"},
	};
	static const char right[] = "[pool]\nsize = 0\nflat_mib = 7\n";
	char path[128];

	(void)state;
	config.commits = (struct commits_config){.pool_size = 2, .materialized_mib = 100};
	assert_int_equal(daemon_settings(&config, &e), 0);
	assert_int_equal(config.commits.pool_size, 2);
	snprintf(path, sizeof(path), "%s/pandod.toml", home);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(io_write_file_atomic(path, wrong[i].text,
					 strlen(wrong[i].text), 0600, &e),
			0);
		assert_true(daemon_settings(&config, &e) < 0);
		if (!strstr(e.msg, wrong[i].says))
			fail_msg("\"%s\" does not say \"%s\"", e.msg, wrong[i].says);
	}
	assert_int_equal(io_write_file_atomic(path, right, strlen(right), 0600, &e), 0);
	assert_int_equal(daemon_settings(&config, &e), 0);
	assert_int_equal(config.commits.pool_size, 0);
	assert_int_equal(config.commits.materialized_mib, 7);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		T(a_daemon_serves_until_it_is_closed_and_leaves_nothing_open),
		T(a_daemon_that_cannot_be_opened_leaves_nothing_open),
		T(a_store_that_cannot_be_opened_is_in_the_way_of_commits_only),
		T(one_home_has_one_daemon),
		T(a_daemon_that_is_just_dying_is_none),
		T(settings_are_read_and_mistakes_named),
	};

	log_init("test_daemon", LOG_LEVEL_ERR);
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
