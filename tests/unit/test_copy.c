/*
 * `pando copy` out of a guest whose agent is hostile, and out of the shipped one: what is
 * on the host afterwards.
 */
#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/cleanup.h"
#include "common/err.h"
#include "common/io.h"
#include "common/wire/agent_frame.h"
#include "tests/unit/stand_in.h"
#include "tests/unit/tar_help.h"

static struct ran got;
static char folder[160]; /* where the user is; what stands there is theirs */

static void __attribute__((format(printf, 1, 2))) sh(const char *fmt, ...)
{
	char command[2048];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	if (system(command))
		fail_msg("%s", command);
}

static void
make_folder(void)
{
	snprintf(folder, sizeof(folder), "%s/user", stand_in_home);
	sh("rm -rf %s && mkdir -p %s/.config && cd %s && echo mine >.bashrc && echo theirs >../beside",
		folder, folder, folder);
	assert_int_equal(chdir(folder), 0);
}

/*
 * The hostile agent: whatever is asked, it answers with the stream.
 */

struct hostile {
	int listener; /* owned */
	const struct stream *stream;
	pthread_t thread;
};

static void
skip_line(int fd)
{
	char c = 0;

	while (c != '\n' && io_read(fd, &c, 1) == 1)
		;
}

static void *
serve(void *arg)
{
	static const char handshake[] = "OK 1\n", ok[] = "{\"ok\":true}\n";
	const struct hostile *x = arg;
	int fd;

	while ((fd = accept4(x->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		struct agent_frame_hdr h;
		struct agent_end end = {0};

		skip_line(fd);
		(void)io_write_full(fd, handshake, strlen(handshake));
		skip_line(fd);
		(void)io_write_full(fd, ok, strlen(ok));
		h = agent_frame_hdr(AGENT_DATA, 0, (uint32_t)x->stream->len);
		(void)io_write_full(fd, &h, sizeof(h));
		(void)io_write_full(fd, x->stream->buf, x->stream->len);
		h = agent_frame_hdr(AGENT_END, 0, sizeof(end));
		(void)io_write_full(fd, &h, sizeof(h));
		(void)io_write_full(fd, &end, sizeof(end));
		skip_line(fd);
		close(fd);
	}
	return NULL;
}

static struct hostile hostile;

static void
hostile_start(const struct stream *s)
{
	hostile.listener = stand_in_fake_agent();
	hostile.stream = s;
	assert_int_equal(pthread_create(&hostile.thread, NULL, serve, &hostile), 0);
}

static void
hostile_end(void)
{
	shutdown(hostile.listener, SHUT_RDWR);
	pthread_join(hostile.thread, NULL);
	close(hostile.listener);
	stand_in_start_agent();
}

static void
copy_of(const struct stream *s, const char *what, const char *to)
{
	char source[200];

	make_folder();
	hostile_start(s);
	snprintf(source, sizeof(source), "a:%s", what);
	RUN(&got, "copy", source, (char *)(uintptr_t)to);
	hostile_end();
	/* Whatever came, what was there before is untouched, and nothing is beside it. */
	sh("cd %s && test \"$(cat .bashrc)\" = mine && test \"$(cat ../beside)\" = theirs && test -z \"$(ls -A .config)\"",
		folder);
}

/* The stream s, with its end: the copy fails with the words, and nothing but the user's
 * own things is in the folder, apart from `left`. */
static void
refused(struct stream *s, const char *what, const char *words, const char *left)
{
	stream_end(s);
	copy_of(s, what, ".");
	if (got.status == 0 || !strstr(got.err, words))
		fail_msg("status %d, not \"%s\": %s", got.status, words, got.err);
	sh("cd %s && test \"$(ls -A | LC_ALL=C sort | xargs)\" = \".bashrc .config%s\"",
		folder, left);
	s->len = 0;
}

static void
a_guest_writes_only_the_name_that_was_asked_for(void **state)
{
	cleanup_free struct stream *s = calloc(1, sizeof(*s));

	(void)state;
	stream_add(s, '0', ".bashrc", NULL, "evil");
	refused(s, "out.txt", ".bashrc", "");
	stream_add(s, '0', "out.txt", NULL, "what was asked for");
	stream_add(s, '0', ".bashrc", NULL, "evil");
	refused(s, "/root/out.txt", ".bashrc", " out.txt");
	stream_add(s, '5', ".ssh/", NULL, NULL);
	stream_add(s, '0', ".ssh/authorized_keys", NULL, "evil");
	refused(s, "out.txt", ".ssh/", "");
	/* The folder's contents, though a file was asked for. */
	stream_add(s, '5', "./", NULL, NULL);
	stream_add(s, '0', "./.bashrc", NULL, "evil");
	refused(s, "out.txt", "./", "");
	stream_add(s, '0', "out.txt/../.bashrc", NULL, "evil");
	refused(s, "out.txt", "out.txt/../.bashrc", "");
	stream_add(s, '0', "out.txt2", NULL, "evil");
	refused(s, "out.txt", "out.txt2", "");
	/* A folder of another name, where one was asked for by contents. */
	stream_add(s, '5', "other/", NULL, NULL);
	refused(s, "dir/.", "other", "");
	stream_add(s, '2', ".config", "/etc", NULL);
	refused(s, "out.txt", ".config", "");
}

static void
a_guest_writes_only_the_new_name_that_was_given(void **state)
{
	cleanup_free struct stream *s = calloc(1, sizeof(*s));

	(void)state;
	stream_add(s, '0', ".bashrc", NULL, "evil");
	stream_end(s);
	copy_of(s, "out.txt", "new.txt");
	assert_int_not_equal(got.status, 0);
	sh("test ! -e %s/new.txt", folder);
	s->len = 0;
	stream_add(s, '0', "out.txt", NULL, "fine");
	stream_end(s);
	copy_of(s, "out.txt", "new.txt");
	assert_int_equal(got.status, 0);
	sh("test \"$(cat %s/new.txt)\" = fine && test ! -e %s/out.txt", folder, folder);
}

static int
check_link(const char *path, const struct stat *st, int type, struct FTW *at)
{
	char real[4096], top[4096];

	(void)st;
	(void)at;
	if (type != FTW_SL && type != FTW_SLN)
		return 0;
	snprintf(top, sizeof(top), "%s/tree", folder);
	if (!realpath(path, real))
		return errno == ENOENT ? 0 : errno; /* inside, and nothing there */
	if (strncmp(real, top, strlen(top)) != 0)
		fail_msg("%s leads to %s", path, real);
	return 0;
}

static void
links_that_lead_out_are_left_out(void **state)
{
	static const char *const out[] = {"/etc/passwd", "..", "../.bashrc", "../..",
		"sub/../..", "./../.bashrc", "sub/./../../.bashrc", "//etc", "up/.."};
	cleanup_free struct stream *s = calloc(1, sizeof(*s));
	char name[32];

	(void)state;
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '0', "tree/file", NULL, "x");
	stream_add(s, '5', "tree/sub/", NULL, NULL);
	/* These two stay, and the second of them is a way up for "up/..". */
	stream_add(s, '2', "tree/sub/good", "../file", NULL);
	stream_add(s, '2', "tree/sub/up", "..", NULL);
	stream_add(s, '2', "tree/dangling", "not/there", NULL);
	for (size_t i = 0; i < sizeof(out) / sizeof(out[0]); i++) {
		snprintf(name, sizeof(name), "tree/l%zu", i);
		stream_add(s, '2', name, out[i], NULL);
	}
	stream_add(s, '2', "tree/deep", "sub/up/..", NULL);
	stream_add(s, '2', "tree/sub/out", "../..", NULL);
	stream_end(s);
	copy_of(s, "tree", ".");
	assert_int_equal(got.status, 0);
	if (!strstr(got.err,
		    "11 links that lead out of the copy were left out; the first is \"tree/l0\""))
		fail_msg("%s", got.err);
	sh("cd %s && test \"$(find tree -type l | LC_ALL=C sort | xargs)\" = \"tree/dangling tree/sub/good tree/sub/up\" && test \"$(cat tree/sub/good)\" = x",
		folder);
	assert_int_equal(nftw("tree", check_link, 16, FTW_PHYS), 0);
}

static void
nothing_is_written_through_a_link(void **state)
{
	cleanup_free struct stream *s = calloc(1, sizeof(*s));

	(void)state;
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '2', "tree/link", "..", NULL);
	stream_add(s, '0', "tree/link/.bashrc", NULL, "evil");
	refused(s, "tree", "tree/link", " tree");
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '5', "tree/sub/", NULL, NULL);
	stream_add(s, '2', "tree/link", "sub", NULL); /* a good one */
	stream_add(s, '0', "tree/link/file", NULL, "evil");
	refused(s, "tree", "tree/link", " tree");
	sh("test -z \"$(ls -A %s/tree/sub)\"", folder);
	/* The top itself. */
	stream_add(s, '2', "tree", ".config", NULL);
	stream_add(s, '0', "tree/file", NULL, "evil");
	refused(s, "tree", "tree", "");
	stream_add(s, '2', "tree", "/etc", NULL);
	stream_end(s);
	copy_of(s, "tree", ".");
	sh("cd %s && test ! -e tree && test ! -L tree", folder);
}

static void
hard_links_out_fifos_and_devices_of_a_guest_are_refused(void **state)
{
	static const char types[] = {'3', '4', '6'};
	cleanup_free struct stream *s = calloc(1, sizeof(*s));

	(void)state;
	for (size_t i = 0; i < sizeof(types); i++) {
		stream_add(s, '5', "tree/", NULL, NULL);
		stream_add(s, types[i], "tree/x", NULL, NULL);
		refused(s, "tree", "tree/x", " tree");
		sh("test -z \"$(ls -A %s/tree)\"", folder);
		stream_add(s, types[i], "tree", NULL, NULL);
		refused(s, "tree", "tree", "");
	}
	/* To the user's own files, and to what is not of the stream. */
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '1', "tree/x", ".bashrc", NULL);
	refused(s, "tree", ".bashrc", " tree");
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '1', "tree/x", "tree/../.bashrc", NULL);
	refused(s, "tree", ".bashrc", " tree");
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '1', "tree/x", "/etc/passwd", NULL);
	refused(s, "tree", "passwd", " tree");
	stream_add(s, '5', "./", NULL, NULL);
	stream_add(s, '1', "./x", "./.bashrc", NULL);
	refused(s, "dir/.", "is no file of the stream", "");
	stream_add(s, '5', "./", NULL, NULL);
	stream_add(s, '1', "./x", "./.config", NULL);
	refused(s, "dir/.", "is no file of the stream", "");
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '2', "tree/l", "file", NULL);
	stream_add(s, '1', "tree/x", "tree/l", NULL);
	refused(s, "tree", "is no file of the stream", " tree");
	stream_add(s, '1', ".bashrc2", ".bashrc", NULL);
	refused(s, "tree", ".bashrc2", "");
}

/*
 * The shipped agent.
 */

static void
what_a_host_does_not_take_is_counted_and_the_rest_comes(void **state)
{
	char there[200];

	(void)state;
	make_folder();
	sh("rm -rf %s/guest && mkdir -p %s/guest/tree/sub && cd %s/guest/tree && echo x >file && ln -s ../file sub/in && ln -s /etc/passwd out && mkfifo fifo",
		stand_in_home, stand_in_home, stand_in_home);
	snprintf(there, sizeof(there), "a:%s/guest/tree", stand_in_home);
	RUN(&got, "copy", "--format", "json", there, ".");
	assert_int_equal(got.status, 0);
	assert_non_null(
		strstr(got.out, "\"files\":1,\"folders\":2,\"links\":1,\"skipped\":1,"
				"\"outside\":1"));
	sh("rm -r tree");
	RUN(&got, "copy", there, ".");
	assert_int_equal(got.status, 0);
	assert_non_null(strstr(got.err, "1 socket, device or FIFO was left out"));
	assert_non_null(strstr(got.err,
		"1 link that leads out of the copy was left out; the first is \"tree/out\""));
	sh("cd %s && test \"$(find tree | LC_ALL=C sort | xargs)\" = \"tree tree/file tree/sub tree/sub/in\"",
		folder);
}

static void
a_link_that_is_named_is_followed_out_of_a_guest(void **state)
{
	char there[200];

	(void)state;
	make_folder();
	sh("rm -rf %s/guest && mkdir -p %s/guest/d && cd %s/guest && echo x >d/file && ln -s d/file link && ln -s d folder && ln -s nowhere dangling && mkfifo fifo",
		stand_in_home, stand_in_home, stand_in_home);
	snprintf(there, sizeof(there), "a:%s/guest/link", stand_in_home);
	RUN(&got, "copy", there, ".");
	assert_int_equal(got.status, 0);
	snprintf(there, sizeof(there), "a:%s/guest/folder", stand_in_home);
	RUN(&got, "copy", there, "new");
	assert_int_equal(got.status, 0);
	sh("cd %s && test ! -L link && test \"$(cat link)\" = x && test ! -L new && test \"$(cat new/file)\" = x",
		folder);
	snprintf(there, sizeof(there), "a:%s/guest/dangling", stand_in_home);
	RUN(&got, "copy", there, ".");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	snprintf(there, sizeof(there), "a:%s/guest/fifo", stand_in_home);
	RUN(&got, "copy", there, ".");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_non_null(strstr(got.err, "fifo\" is a FIFO"));
}

/*
 * Into a guest.
 */

static int
connect_put(const char *path)
{
	char line[400];
	int fd;

	assert_int_equal(
		io_unix_connect(stand_in_agent_socket, SOCK_STREAM, &fd, NULL), 0);
	snprintf(line, sizeof(line), "CONNECT 1024\n{\"op\":\"put\",\"path\":\"%s\"}\n",
		path);
	assert_int_equal(io_write_full(fd, line, strlen(line)), 0);
	skip_line(fd); /* OK */
	skip_line(fd);
	return fd;
}

static void
send_data(int fd, const char *at, size_t len)
{
	struct agent_frame_hdr h = agent_frame_hdr(AGENT_DATA, 0, (uint32_t)len);

	assert_int_equal(io_write_full(fd, &h, sizeof(h)), 0);
	assert_int_equal(io_write_full(fd, at, len), 0);
}

/* What a cut of the connection does, a branch in the middle does, too: there it is gone. */
static void
a_put_that_is_cut_leaves_the_old_file(void **state)
{
	cleanup_free struct stream *s = calloc(1, sizeof(*s));
	char data[5000], path[200];
	uint64_t until;
	int fd;

	(void)state;
	make_folder();
	memset(data, 'n', sizeof(data) - 1);
	data[sizeof(data) - 1] = 0;
	stream_add(s, '0', "config", NULL, data);
	stream_add(s, '0', "config", NULL, data);
	snprintf(path, sizeof(path), "%s/config", folder);
	assert_int_equal(io_write_file_atomic(path, "old", 3, 0600, NULL), 0);
	fd = connect_put(path);
	send_data(fd, s->buf, 3000);
	/* The half is written, and under no name but its own. */
	until = io_now_ns() + STAND_IN_LIMIT_S * UINT64_C(1000000000);
	while (system("test $(stat -c %s .pando-* 2>/dev/null || echo 0) -gt 0") &&
		io_now_ns() < until)
		usleep(10000);
	sh("cd %s && test \"$(cat config)\" = old && ls .pando-*", folder);
	close(fd);
	while (!system("ls .pando-* >/dev/null 2>&1") && io_now_ns() < until)
		usleep(10000);
	sh("cd %s && test \"$(cat config)\" = old && test \"$(ls -A | xargs)\" = '.bashrc .config config'",
		folder);
}

static void
a_put_does_not_hold_up_the_agent(void **state)
{
	cleanup_free struct stream *s = calloc(1, sizeof(*s));
	char path[200];
	int fd[3];

	(void)state;
	make_folder();
	stream_add(s, '0', "a", NULL, "some data");
	snprintf(path, sizeof(path), "%s/a", folder);
	for (int i = 0; i < 3; i++) {
		fd[i] = connect_put(path);
		send_data(fd[i], s->buf, 600);
	}
	/* While three wait for more: a command, and another put. */
	RUN(&got, "execute", "a", "--", "echo", "there");
	assert_int_equal(got.status, 0);
	snprintf(path, sizeof(path), "a:%s/b", folder);
	RUN(&got, "copy", ".bashrc", path);
	assert_int_equal(got.status, 0);
	sh("cmp %s/b %s/.bashrc && test ! -e %s/a", folder, folder, folder);
	for (int i = 0; i < 3; i++)
		close(fd[i]);
}

static void
what_comes_out_of_a_pipe_is_copied(void **state)
{
	char to[200], command[4096];

	(void)state;
	make_folder();
	/* <(…), standard input, and a FIFO whose writer comes late. */
	snprintf(command, sizeof(command),
		"%s copy -q <(seq 100000) a:%s/one && seq 100000 | %s copy -q /dev/stdin a:%s/two && mkfifo -m 640 fifo && { (sleep 0.3; seq 100000 >fifo) & } && "
		"%s copy -q fifo a:%s/three && %s copy -q /dev/stdin a:%s/four <one",
		stand_in_pando, folder, stand_in_pando, folder, stand_in_pando, folder,
		stand_in_pando, folder);
	stand_in_run(NULL, 0, (char *[]){"bash", "-c", command, NULL}, &got);
	if (got.status)
		fail_msg("%s", got.err);
	sh("cd %s && seq 100000 >want && cmp one want && cmp two want && cmp three want && "
	   "cmp four want && test -p fifo && test $(stat -c %%a three) = 640 && test ! -L four",
		folder);
	/* In a folder it is one, and empty. */
	sh("cd %s && rm -r * && mkdir tree && mkfifo tree/fifo && : >tree/empty", folder);
	snprintf(to, sizeof(to), "a:%s/there", folder);
	RUN(&got, "copy", "tree", to);
	assert_int_equal(got.status, 0);
	sh("test -p %s/there/fifo", folder);
	/* Nobody will ever write. */
	RUN(&got, "copy", "/dev/null", to);
	assert_int_equal(got.status, EXIT_USAGE);
}

static void
waiting_for_a_pipe_ends_with_ctrl_c(void **state)
{
	char to[200];
	int out, err;
	pid_t pid;

	(void)state;
	make_folder();
	sh("mkfifo %s/fifo", folder);
	snprintf(to, sizeof(to), "a:%s/there", folder);
	pid = stand_in_start(
		(char *[]){"pando", "copy", "fifo", to, NULL}, -1, &out, &err);
	/* It has the FIFO open when a writer can. */
	sh("exec 3>%s/fifo && echo half >&3 && kill -INT %d && sleep 0.2", folder,
		(int)pid);
	stand_in_finish(pid, out, err, &got);
	/* It has seen the end of the input before the signal, or the signal before. */
	if (got.status != 0)
		assert_int_equal(got.status, EXIT_CANCELLED);
	sh("rm -f %s/there", folder);
	pid = stand_in_start(
		(char *[]){"pando", "copy", "fifo", to, NULL}, -1, &out, &err);
	sh("until grep -qs fifo /proc/%d/cmdline && ls -l /proc/%d/fd | grep -q fifo; do sleep 0.05; done; kill -INT %d",
		(int)pid, (int)pid, (int)pid);
	stand_in_finish(pid, out, err, &got);
	assert_int_equal(got.status, EXIT_CANCELLED);
	sh("test ! -e %s/there", folder);
}

static void
hard_links_and_holes_are_kept_both_ways(void **state)
{
	char there[200];

	(void)state;
	make_folder();
	sh("mkdir tree && cd tree && head -c 200000 /dev/urandom >one && ln one two && ln one three && truncate -s 48M sparse && "
	   "printf x | dd of=sparse bs=1 seek=30000000 conv=notrunc 2>/dev/null");
	snprintf(there, sizeof(there), "a:%s/guest-tree", folder);
	RUN(&got, "copy", "tree", there);
	assert_int_equal(got.status, 0);
	RUN(&got, "copy", there, "back");
	assert_int_equal(got.status, 0);
	for (int i = 0; i < 2; i++)
		sh("cd %s/%s && test $(stat -c %%h one) = 3 && test one -ef two && test one -ef three && diff -r . ../tree && "
		   "test $(stat -c %%b sparse) -le $(($(stat -c %%b ../tree/sparse) + 32))",
			folder, i ? "back" : "guest-tree");
}

static int
teardown(void **state)
{
	ran_done(&got);
	return chdir("/") || stand_in_teardown(state);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_guest_writes_only_the_name_that_was_asked_for),
		cmocka_unit_test(a_guest_writes_only_the_new_name_that_was_given),
		cmocka_unit_test(links_that_lead_out_are_left_out),
		cmocka_unit_test(nothing_is_written_through_a_link),
		cmocka_unit_test(hard_links_out_fifos_and_devices_of_a_guest_are_refused),
		cmocka_unit_test(what_a_host_does_not_take_is_counted_and_the_rest_comes),
		cmocka_unit_test(a_link_that_is_named_is_followed_out_of_a_guest),
		cmocka_unit_test(a_put_that_is_cut_leaves_the_old_file),
		cmocka_unit_test(a_put_does_not_hold_up_the_agent),
		cmocka_unit_test(what_comes_out_of_a_pipe_is_copied),
		cmocka_unit_test(waiting_for_a_pipe_ends_with_ctrl_c),
		cmocka_unit_test(hard_links_and_holes_are_kept_both_ways),
	};

	signal(SIGPIPE, SIG_IGN); /* pando may go before it has read all */
	return cmocka_run_group_tests(tests, stand_in_setup, teardown);
}
