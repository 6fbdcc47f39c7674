#include "common/io.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"

static char folder[] = "/tmp/test_io.XXXXXX";

static int
make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int
remove_folder(void **state)
{
	(void)state;
	return io_remove_tree(folder, NULL);
}

/* "<folder>/name", valid until the fourth next call. */
static const char *
in(const char *name)
{
	static char paths[4][PATH_MAX];
	static unsigned next;
	char *p = paths[next++ % 4];

	snprintf(p, PATH_MAX, "%s/%s", folder, name);
	return p;
}

static int
count_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

struct slow_writer {
	int fd;
	const char *text;
};

static void *
write_slowly(void *arg)
{
	struct slow_writer *w = arg;

	for (const char *p = w->text; *p; p++) {
		if (write(w->fd, p, 1) != 1)
			break;
		usleep(1000);
	}
	close(w->fd);
	return NULL;
}

static void
a_full_read_waits_for_all_of_it(void **state)
{
	int p[2];
	struct slow_writer w;
	char buf[8] = "";
	pthread_t t;

	(void)state;
	assert_int_equal(pipe(p), 0);
	w = (struct slow_writer){p[1], "abcdefg"};
	assert_int_equal(pthread_create(&t, NULL, write_slowly, &w), 0);
	assert_int_equal(io_read_full(p[0], buf, 5), 0);
	assert_string_equal(buf, "abcde");
	/* the stream ends inside the next record, then at a record's start */
	assert_int_equal(io_read_full(p[0], buf, 5), -EPIPE);
	assert_int_equal(io_read_full(p[0], buf, 5), -ENODATA);
	assert_int_equal(io_read(p[0], buf, 5), 0);
	pthread_join(t, NULL);
	close(p[0]);
}

static void
on_signal(int number)
{
	(void)number;
}

static void *
interrupt(void *arg)
{
	pthread_t *main_thread = arg;

	for (int i = 0; i < 20; i++) {
		usleep(2000);
		pthread_kill(*main_thread, SIGUSR1);
	}
	return NULL;
}

static void
signals_do_not_end_a_read(void **state)
{
	struct sigaction sa = {.sa_handler = on_signal}; /* no SA_RESTART */
	pthread_t self = pthread_self(), t, w_thread;
	struct slow_writer w;
	char buf[64] = "";
	int p[2];

	(void)state;
	assert_int_equal(pipe(p), 0);
	sigaction(SIGUSR1, &sa, NULL);
	w = (struct slow_writer){p[1], "thirty-two bytes, one by one ..."};
	assert_int_equal(pthread_create(&t, NULL, interrupt, &self), 0);
	assert_int_equal(pthread_create(&w_thread, NULL, write_slowly, &w), 0);
	assert_int_equal(io_read_full(p[0], buf, 32), 0);
	assert_string_equal(buf, w.text);
	pthread_join(t, NULL);
	pthread_join(w_thread, NULL);
	close(p[0]);
}

static void
a_read_past_the_end_is_enodata(void **state)
{
	cleanup_close int fd = open(in("short"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char buf[8] = "";

	(void)state;
	assert_int_equal(io_pwrite_full(fd, "123456", 6, 0), 0);
	assert_int_equal(io_pread_full(fd, buf, 4, 2), 0);
	assert_string_equal(buf, "3456");
	assert_int_equal(io_pread_full(fd, buf, 4, 3), -ENODATA);
	assert_int_equal(io_pread_full(-1, buf, 4, 0), -EBADF);
	assert_int_equal(io_write_full(-1, "x", 1), -EBADF);
}

static void
a_file_is_read_whole_or_refused_as_too_large(void **state)
{
	cleanup_free char *text = NULL;
	char *untouched = (char *)folder;
	struct err e;
	size_t len;

	(void)state;
	assert_int_equal(io_write_file_atomic(in("f"),
				 "12345\0"
				 "789",
				 9, 0640, &e),
		0);
	assert_int_equal(io_read_file(in("f"), 9, &text, &len, &e), 0);
	assert_int_equal(len, 9);
	assert_memory_equal(text,
		"12345\0"
		"789",
		10);
	assert_int_equal(io_read_file(in("f"), 8, &untouched, NULL, &e), -EFBIG);
	assert_non_null(strstr(e.msg, "/f"));
	assert_int_equal(io_read_file(in("absent"), 8, &untouched, NULL, &e), -ENOENT);
	assert_int_equal(io_read_file(folder, 8, &untouched, NULL, &e), -EISDIR);
	assert_ptr_equal(untouched, folder);
}

static void
an_atomic_write_replaces_and_leaves_nothing_else(void **state)
{
	cleanup_free char *text = NULL;
	struct stat st;
	struct err e;

	(void)state;
	assert_int_equal(io_mkdir_p(in("a"), 0700, &e), 0);
	assert_int_equal(io_write_file_atomic(in("a/f"), "old", 3, 0600, &e), 0);
	assert_int_equal(io_write_file_atomic(in("a/f"), "new", 3, 0644, &e), 0);
	assert_int_equal(io_read_file(in("a/f"), 100, &text, NULL, &e), 0);
	assert_string_equal(text, "new");
	assert_int_equal(stat(in("a/f"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0644);
	assert_int_equal(io_write_file_atomic(in("absent/f"), "x", 1, 0600, &e), -ENOENT);
	/* over a folder: refused, and the temporary file is gone */
	assert_int_equal(io_write_file_atomic(in("a"), "x", 1, 0600, &e), -EISDIR);
	assert_int_equal(unlink(in("a/f")), 0);
	assert_int_equal(rmdir(in("a")), 0);
}

static void
mkdir_p_makes_all_and_takes_what_is_there(void **state)
{
	struct err e;

	(void)state;
	assert_int_equal(io_mkdir_p(in("x/y//z/"), 0700, &e), 0);
	assert_int_equal(access(in("x/y/z"), F_OK), 0);
	assert_int_equal(io_mkdir_p(in("x/y/z"), 0700, &e), 0);
	assert_int_equal(io_write_file_atomic(in("x/file"), "", 0, 0600, &e), 0);
	assert_int_equal(io_mkdir_p(in("x/file/z"), 0700, &e), -ENOTDIR);
	assert_int_equal(io_mkdir_p(in("x/file"), 0700, &e), -ENOTDIR);
	assert_non_null(strstr(e.msg, "x/file"));
	assert_true(io_mkdir_p("", 0700, &e) < 0);
}

static void
remove_tree_does_not_follow_links(void **state)
{
	struct err e;

	(void)state;
	assert_int_equal(io_mkdir_p(in("keep"), 0700, &e), 0);
	assert_int_equal(io_write_file_atomic(in("keep/precious"), "", 0, 0600, &e), 0);
	assert_int_equal(io_mkdir_p(in("tree/a/b"), 0700, &e), 0);
	assert_int_equal(io_write_file_atomic(in("tree/a/f"), "", 0, 0400, &e), 0);
	assert_int_equal(symlink(in("keep"), in("tree/a/link")), 0);
	assert_int_equal(symlink(in("keep"), in("link")), 0);
	assert_int_equal(io_remove_tree(in("tree"), &e), 0);
	assert_int_equal(io_remove_tree(in("link"), &e), 0);
	assert_int_equal(access(in("tree"), F_OK), -1);
	assert_int_equal(access(in("link"), F_OK), -1);
	assert_int_equal(access(in("keep/precious"), F_OK), 0);
	assert_int_equal(io_remove_tree(in("tree"), &e), 0);	      /* absent is fine */
	assert_int_equal(io_remove_tree(in("keep/precious"), &e), 0); /* a file too */
	assert_int_equal(access(in("keep/precious"), F_OK), -1);
}

static void
descriptors_cross_a_socket_in_order(void **state)
{
	int s[2], out[3], in_fds[3], before, p[2];
	size_t n = 3;
	char buf[16];

	(void)state;
	before = count_fds();
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	assert_int_equal(pipe(p), 0);
	out[0] = p[0];
	out[1] = p[1];
	out[2] = p[1];
	assert_int_equal(io_send_fds(s[0], "hello", 5, out, 3), 0);
	assert_int_equal(io_recv_fds(s[1], buf, sizeof(buf), in_fds, &n, 0), 5);
	assert_int_equal(n, 3);
	assert_memory_equal(buf, "hello", 5);
	assert_int_equal(write(in_fds[1], "x", 1), 1);
	assert_int_equal(read(in_fds[0], buf, 1), 1);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(fcntl(in_fds[i], F_GETFD), FD_CLOEXEC);
		close(in_fds[i]);
	}

	/* none at all, and the peer's end */
	n = 3;
	assert_int_equal(io_send_fds(s[0], "x", 1, NULL, 0), 0);
	assert_int_equal(io_recv_fds(s[1], buf, sizeof(buf), in_fds, &n, 0), 1);
	assert_int_equal(n, 0);
	assert_int_equal(
		io_recv_fds(s[1], buf, sizeof(buf), in_fds, &n, MSG_DONTWAIT), -EAGAIN);
	close(s[0]);
	n = 3;
	assert_int_equal(io_recv_fds(s[1], buf, sizeof(buf), in_fds, &n, 0), 0);
	close(s[1]);
	close(p[0]);
	close(p[1]);
	assert_int_equal(count_fds(), before);
}

static void
too_many_descriptors_or_bytes_are_refused_and_none_leaks(void **state)
{
	int s[2], out[4] = {0, 0, 0, 0}, in_fds[4], before;
	size_t n;
	char buf[4];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	before = count_fds();
	assert_int_equal(io_send_fds(s[0], "x", 1, out, 4), 0);
	n = 3;
	assert_int_equal(io_recv_fds(s[1], buf, sizeof(buf), in_fds, &n, 0), -EBADMSG);
	assert_int_equal(n, 0);
	assert_int_equal(count_fds(), before);

	assert_int_equal(io_send_fds(s[0], "too long", 8, out, 2), 0);
	n = 4;
	assert_int_equal(io_recv_fds(s[1], buf, sizeof(buf), in_fds, &n, 0), -EBADMSG);
	assert_int_equal(count_fds(), before);

	/* a caller who wants none */
	assert_int_equal(io_send_fds(s[0], "x", 1, out, 1), 0);
	assert_int_equal(io_recv_fds(s[1], buf, sizeof(buf), NULL, NULL, 0), -EBADMSG);
	assert_int_equal(count_fds(), before);
	close(s[0]);
	close(s[1]);
}

static void
unix_sockets_listen_and_connect(void **state)
{
	cleanup_close int listener = -1, client = -1, other = -1;
	char longer[300];
	struct err e;

	(void)state;
	assert_int_equal(io_unix_listen(in("s"), SOCK_SEQPACKET, 4, &listener, &e), 0);
	assert_int_equal(io_unix_connect(in("s"), SOCK_SEQPACKET, &client, &e), 0);
	assert_int_equal(fcntl(client, F_GETFD), FD_CLOEXEC);
	assert_int_equal(
		io_unix_listen(in("s"), SOCK_SEQPACKET, 4, &other, &e), -EADDRINUSE);
	assert_int_equal(io_unix_connect(in("absent"), SOCK_STREAM, &other, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "absent"));
	memset(longer, 'l', sizeof(longer) - 1);
	longer[0] = '/';
	longer[sizeof(longer) - 1] = 0;
	assert_int_equal(io_unix_connect(longer, SOCK_STREAM, &other, &e), -ENAMETOOLONG);
	assert_non_null(strstr(e.msg, "PANDO_HOME"));
	assert_int_equal(other, -1);
}

static void
a_full_queue_of_connections_is_eagain_at_once(void **state)
{
	cleanup_close int listener = -1, over = -1;
	int fds[16], n = 0, r = 0;
	struct err e;

	(void)state;
	assert_int_equal(io_unix_listen(in("full"), SOCK_SEQPACKET, 2, &listener, &e), 0);
	while (n < 16 && r == 0) {
		r = io_unix_connect_now(in("full"), SOCK_SEQPACKET, &fds[n], &e);
		n += r == 0;
	}
	assert_int_equal(r, -EAGAIN);
	assert_true(n > 0);
	/* What comes out blocks, as of any other connect. */
	assert_int_equal(fcntl(fds[0], F_GETFL) & O_NONBLOCK, 0);
	assert_int_equal(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
	while (n)
		close(fds[--n]);
	assert_int_equal(
		io_unix_connect_now(in("nobody"), SOCK_STREAM, &over, &e), -ENOENT);
	assert_int_equal(over, -1);
}

/* What a listener says as soon as it has taken the connection: before the other side can do anything. */
static void
first_message_of_a_connection_tells_who_sent_it(void **state)
{
	cleanup_close int listener = -1, client = -1, server = -1;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	char c;
	struct iovec iov = {&c, 1};
	struct msghdr m = {.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	struct ucred cred;
	struct err e;

	(void)state;
	assert_int_equal(io_unix_listen(in("who"), SOCK_SEQPACKET, 2, &listener, &e), 0);
	assert_int_equal(io_unix_connect_now(in("who"), SOCK_SEQPACKET, &client, &e), 0);
	server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_int_equal(send(server, "x", 1, 0), 1);
	assert_int_equal(recvmsg(client, &m, 0), 1);
	assert_non_null(CMSG_FIRSTHDR(&m));
	assert_int_equal(CMSG_FIRSTHDR(&m)->cmsg_type, SCM_CREDENTIALS);
	memcpy(&cred, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(cred));
	assert_int_equal(cred.pid, getpid());
}

static void
nonblocking_is_switched_on_and_off(void **state)
{
	int p[2];
	char c;

	(void)state;
	assert_int_equal(pipe(p), 0);
	assert_int_equal(io_set_nonblock(p[0], 1), 0);
	assert_int_equal(io_read(p[0], &c, 1), -EAGAIN);
	assert_int_equal(io_set_nonblock(p[0], 0), 0);
	assert_int_equal(fcntl(p[0], F_GETFL) & O_NONBLOCK, 0);
	assert_true(io_set_nonblock(-1, 1) < 0);
	close(p[0]);
	close(p[1]);
}

static void
clocks_go_forward(void **state)
{
	uint64_t a = io_now_ns(), w = io_wall_ms();

	(void)state;
	usleep(2000);
	assert_true(io_now_ns() - a >= 2000000);
	assert_true(io_wall_ms() >= w && w > 1600000000000ULL);
}

static void
what_was_sent_before_a_reset_is_received(void **state)
{
	char buf[16];
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	/* The peer closes with something unread, which resets the connection. */
	assert_int_equal(io_send_fds(pair[1], "unread", 6, NULL, 0), 0);
	assert_int_equal(io_send_fds(pair[0], "last words", 10, NULL, 0), 0);
	close(pair[0]);
	assert_int_equal(io_recv_fds(pair[1], buf, sizeof(buf), NULL, NULL, 0), 10);
	assert_memory_equal(buf, "last words", 10);
	assert_int_equal(io_recv_fds(pair[1], buf, sizeof(buf), NULL, NULL, 0), 0);
	close(pair[1]);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_full_read_waits_for_all_of_it),
		cmocka_unit_test(signals_do_not_end_a_read),
		cmocka_unit_test(a_read_past_the_end_is_enodata),
		cmocka_unit_test(a_file_is_read_whole_or_refused_as_too_large),
		cmocka_unit_test(an_atomic_write_replaces_and_leaves_nothing_else),
		cmocka_unit_test(mkdir_p_makes_all_and_takes_what_is_there),
		cmocka_unit_test(remove_tree_does_not_follow_links),
		cmocka_unit_test(descriptors_cross_a_socket_in_order),
		cmocka_unit_test(
			too_many_descriptors_or_bytes_are_refused_and_none_leaks),
		cmocka_unit_test(unix_sockets_listen_and_connect),
		cmocka_unit_test(a_full_queue_of_connections_is_eagain_at_once),
		cmocka_unit_test(first_message_of_a_connection_tells_who_sent_it),
		cmocka_unit_test(nonblocking_is_switched_on_and_off),
		cmocka_unit_test(clocks_go_forward),
		cmocka_unit_test(what_was_sent_before_a_reset_is_received),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
