/*
 * `pando copy` out of a guest whose agent is hostile, and out of the shipped one: what is
 * on the host afterwards.
 */
#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <setjmp.h>
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
hard_links_fifos_and_devices_of_a_guest_are_refused(void **state)
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
	/* To the user's own files. */
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '1', "tree/x", ".bashrc", NULL);
	refused(s, "tree", "tree/x", " tree");
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '1', "tree/x", "tree/../.bashrc", NULL);
	refused(s, "tree", "tree/x", " tree");
	stream_add(s, '5', "tree/", NULL, NULL);
	stream_add(s, '1', "tree/x", "/etc/passwd", NULL);
	refused(s, "tree", "tree/x", " tree");
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
		cmocka_unit_test(hard_links_fifos_and_devices_of_a_guest_are_refused),
		cmocka_unit_test(what_a_host_does_not_take_is_counted_and_the_rest_comes),
		cmocka_unit_test(a_link_that_is_named_is_followed_out_of_a_guest),
	};

	return cmocka_run_group_tests(tests, stand_in_setup, teardown);
}
