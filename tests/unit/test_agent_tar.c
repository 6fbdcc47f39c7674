/*
 * Tar streams: made by us and by tar(1), read by us and by tar(1), and made by somebody
 * who means harm.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/tar.h"
#include "common/wire/tar_format.h"
#include "tests/unit/tar_help.h"

static char folder[64];

static int
setup(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/pando-tar-test-XXXXXX");
	return mkdtemp(folder) && !chdir(folder) ? 0 : -1;
}

static int
teardown(void **state)
{
	(void)state;
	return io_remove_tree(folder, NULL);
}

static void
sh(const char *cmd)
{
	if (system(cmd))
		fail_msg("%s", cmd);
}

static int
unpack(const struct stream *s, const char *dest, size_t cut, struct err *e)
{
	struct tar_unpack_opts opts = {.dest = dest};
	struct tar_unpack *u = NULL;
	int r = tar_unpack_open(&opts, &u, e);

	for (size_t at = 0; !r && at < s->len; at += cut)
		r = tar_unpack_feed(
			u, s->buf + at, s->len - at < cut ? s->len - at : cut, e);
	if (!r)
		r = tar_unpack_finish(u, e);
	tar_unpack_close(u);
	return r;
}

static void
any_cut_of_the_stream_is_fine(void **state)
{
	static const size_t cuts[] = {1, 7, 511, 512, 513, 100000};
	struct stream *s = calloc(1, sizeof(*s));

	(void)state;
	stream_add(s, '5', "top/", NULL, NULL);
	stream_add(s, '0', "top/a", NULL, "hello");
	stream_add(s, '5', "top/d", NULL, NULL);
	stream_add(s, '2', "top/d/l", "../a", NULL);
	stream_add(s, '0', "top/d/b", NULL, "");
	stream_end(s);
	for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
		char name[32], cmd[200];
		struct err e = {0};
		struct stat st;

		snprintf(name, sizeof(name), "cut%zu", cuts[i]);
		if (unpack(s, name, cuts[i], &e))
			fail_msg("%s", e.msg);
		snprintf(cmd, sizeof(cmd),
			"test \"$(cat %s/d/l)\" = hello && test -f %s/d/b", name, name);
		sh(cmd);
		/* Without the right to set it, no set-user-id bit. */
		snprintf(cmd, sizeof(cmd), "%s/a", name);
		assert_int_equal(stat(cmd, &st), 0);
		assert_int_equal(st.st_mode & 07777, 0755);
		assert_int_equal(st.st_mtime, 1000000000);
	}
	free(s);
}

static void
expect(struct stream *s, int want, const char *words)
{
	struct err e = {0};
	int r;

	sh("rm -rf box && mkdir -p box/in && echo precious > box/outside");
	r = unpack(s, "box/in", 512, &e);
	if (r != want || !strstr(e.msg, words))
		fail_msg("%d (%s), not %d (%s)", r, e.msg, want, words);
	sh("test \"$(cat box/outside)\" = precious && test \"$(ls box | wc -l)\" = 2");
	s->len = 0;
}

static void
nothing_is_written_outside(void **state)
{
	struct stream *s = calloc(1, sizeof(*s));

	(void)state;
	stream_add(s, '0', "../outside", NULL, "evil");
	expect(s, -EPROTO, "../outside");
	stream_add(s, '5', "t", NULL, NULL);
	stream_add(s, '0', "t/../../outside", NULL, "evil");
	expect(s, -EPROTO, "outside");
	stream_add(s, '0', "/etc/evil", NULL, "evil");
	expect(s, -EPROTO, "/etc/evil");
	stream_add(s, '5', "t", NULL, NULL);
	stream_add(s, '0', "/t/evil", NULL, "evil");
	expect(s, -EPROTO, "/t/evil");
	/* Through a link to elsewhere. */
	stream_add(s, '5', "t", NULL, NULL);
	stream_add(s, '2', "t/link", "../..", NULL);
	stream_add(s, '0', "t/link/outside", NULL, "evil");
	expect(s, -ELOOP, "t/link");
	stream_add(s, '2', "link", "..", NULL);
	stream_add(s, '0', "link/outside", NULL, "evil");
	expect(s, -ELOOP, "link");
	/* A folder over a link is not the link's folder. */
	stream_add(s, '2', "link", "..", NULL);
	stream_add(s, '5', "link", NULL, NULL);
	expect(s, -ENOTDIR, "link");
	/* A file over a link replaces the link. */
	stream_add(s, '2', "link", "../outside", NULL);
	stream_add(s, '0', "link", NULL, "mine");
	stream_end(s);
	struct err e = {0};
	sh("rm -rf box && mkdir -p box/in && echo precious > box/outside");
	if (unpack(s, "box/in", 512, &e))
		fail_msg("%s", e.msg);
	sh("test \"$(cat box/outside)\" = precious && test \"$(cat box/in/link)\" = mine && test ! -L box/in/link");
	s->len = 0;
	stream_add(s, '1', "hard", "../outside", NULL);
	expect(s, -EPROTO, "outside");
	stream_add(s, '5', "t", NULL, NULL);
	stream_add(s, '1', "t/hard", "t", NULL);
	expect(s, -EPROTO, "t/hard");
	stream_add(s, '5', "t", NULL, NULL);
	stream_add(s, '2', "t/link", "../..", NULL);
	stream_add(s, '1', "t/hard", "t/link/outside", NULL);
	expect(s, -EPROTO, "t/hard");
	/* Devices are not unpacked at all. */
	stream_add(s, '3', "device", NULL, NULL);
	expect(s, -EPROTO, "device");
	free(s);
}

static void
link_that_was_there_before_is_not_followed(void **state)
{
	struct stream *s = calloc(1, sizeof(*s));
	struct err e = {0};

	(void)state;
	sh("rm -rf box && mkdir -p box/in box/target && ln -s ../target box/in/t");
	stream_add(s, '5', "t", NULL, NULL);
	stream_add(s, '0', "t/evil", NULL, "evil");
	stream_end(s);
	assert_int_equal(unpack(s, "box/in", 512, &e), -ENOTDIR);
	sh("test -z \"$(ls box/target)\"");
	free(s);
}

static void
broken_streams_get_a_sentence(void **state)
{
	struct stream *s = calloc(1, sizeof(*s));

	(void)state;
	memset(s->buf, 'x', 512);
	s->len = 512;
	expect(s, -EPROTO, "no tar stream");
	stream_add(s, '0', "a", NULL, "hello");
	s->buf[150]++; /* in the checksum */
	expect(s, -EPROTO, "header");
	stream_add(s, '0', "a", NULL, "hello");
	expect(s, -EPIPE, "ended before");
	stream_add(s, '0', "a", NULL, "hello");
	s->len -= 512;
	expect(s, -EPIPE, "ended before");
	expect(s, -EPIPE, "ended before");
	stream_add(s, '0', "", NULL, NULL);
	expect(s, -EPROTO, "");
	stream_add(s, 'x', "pax", NULL, "9999 path=a\n");
	expect(s, -EPROTO, "extended header");
	stream_add(s, 'x', "pax", NULL, "no number\n");
	expect(s, -EPROTO, "extended header");
	stream_add(s, 'x', "pax", NULL, "12 size=abc\n");
	expect(s, -EPROTO, "size");
	stream_add(s, 'x', "pax", NULL, "19 path=../outside\n");
	stream_add(s, '0', "a", NULL, "evil");
	expect(s, -EPROTO, "../outside");
	stream_add(s, '5', "a", NULL, "data");
	expect(s, -EPROTO, "contents");
	free(s);
}

static size_t
pack_into(const char *path, const char *file, size_t piece)
{
	struct tar_pack *p;
	struct err e = {0};
	char *buf = malloc(piece);
	FILE *f = fopen(file, "w");
	ssize_t n;
	size_t total = 0;

	if (tar_pack_open(&(struct tar_pack_opts){.path = path}, &p, &e))
		fail_msg("%s", e.msg);
	while ((n = tar_pack_read(p, buf, piece, &e)) > 0) {
		assert_int_equal(fwrite(buf, 1, (size_t)n, f), n);
		total += (size_t)n;
	}
	if (n < 0)
		fail_msg("%s", e.msg);
	tar_pack_close(p);
	fclose(f);
	free(buf);
	return total;
}

static void
tar_reads_what_we_write(void **state)
{
	size_t a, b;

	(void)state;
	sh("rm -rf src back && mkdir -p src/d/e && head -c 100001 /dev/urandom > src/r && ln -s r src/l && : > src/z"
	   " && touch \"src/$(printf '%0200d' 5)\" && ln -s \"$(printf '%0150d' 6)\" src/long && chmod 0751 src/d");
	a = pack_into("src", "big.tar", 65536);
	b = pack_into("./src///", "small.tar", 1);
	assert_int_equal(a, b);
	sh("cmp big.tar small.tar && mkdir back && tar -C back -xpf big.tar && diff -r --no-dereference src back/src"
	   " && test \"$(stat -c %a back/src/d)\" = 751 && test \"$(stat -c %y src/r)\" = \"$(stat -c %y back/src/r)\"");
	pack_into("src/.", "dot.tar", 4096);
	sh("rm -rf back && mkdir back && tar -C back -xpf dot.tar && diff -r --no-dereference src back");
}

static void
we_read_what_tar_writes(void **state)
{
	struct tar_unpack_opts opts = {.dest = "ours"};
	struct tar_unpack *u;
	struct err e = {0};
	char *text;
	size_t len;

	(void)state;
	sh("rm -rf src ours && mkdir -p src/d/e && head -c 100001 /dev/urandom > src/r && ln -s r src/l"
	   " && touch \"src/$(printf '%0200d' 5)\" && tar --format=posix -cf theirs.tar src");
	assert_int_equal(io_read_file("theirs.tar", 1 << 20, &text, &len, NULL), 0);
	assert_int_equal(tar_unpack_open(&opts, &u, &e), 0);
	if (tar_unpack_feed(u, text, len, &e) || tar_unpack_finish(u, &e))
		fail_msg("%s", e.msg);
	tar_unpack_close(u);
	free(text);
	sh("diff -r --no-dereference src ours");
}

/* Reads one of our or tar's files; what is there is replaced. */
static void
unpack_file(const char *file, const char *dest, bool sync)
{
	struct tar_unpack_opts opts = {.dest = dest, .sync = sync};
	struct tar_unpack *u;
	struct err e = {0};
	char *text;
	size_t len;

	assert_int_equal(io_read_file(file, 64 << 20, &text, &len, NULL), 0);
	assert_int_equal(tar_unpack_open(&opts, &u, &e), 0);
	/* Pieces that lie across everything. */
	for (size_t at = 0; at < len; at += 1009)
		if (tar_unpack_feed(u, text + at, len - at < 1009 ? len - at : 1009, &e))
			fail_msg("%s", e.msg);
	if (tar_unpack_finish(u, &e))
		fail_msg("%s", e.msg);
	tar_unpack_close(u);
	free(text);
}

#define LINKED(tree) \
	"test \"$(stat -c %h " tree "/one)\" = 3 && test " tree "/one -ef " tree \
	"/d/two && test " tree "/one -ef " tree "/three && cmp " tree "/one linked/one"

static void
names_of_one_file_stay_names_of_one_file(void **state)
{
	(void)state;
	sh("rm -rf linked && mkdir -p linked/d && head -c 200000 /dev/urandom > linked/one && ln linked/one linked/d/two && ln linked/one linked/three && "
	   "ln linked/one outside-of-it && rm outside-of-it && touch -d 2001-02-03 linked/d");
	pack_into("linked", "linked.tar", 4096);
	sh("test $(stat -c %s linked.tar) -lt 300000");
	for (int sync = 0; sync < 2; sync++) {
		sh("rm -rf back");
		unpack_file("linked.tar", "back", sync);
		sh(LINKED(
			"back") " && test \"$(stat -c %Y back/d)\" = \"$(stat -c %Y linked/d)\"");
		/* Once more over itself, where each is a name of another file by now. */
		sh("mkdir up && mv back up/linked && echo x > up/x && ln -f up/x up/linked/three");
		unpack_file("linked.tar", "up", sync);
		sh(LINKED("up/linked") " && test \"$(cat up/x)\" = x && rm -rf up");
	}
	sh("rm -rf theirs && mkdir theirs && tar -C theirs -xf linked.tar && " LINKED(
		"theirs/linked"));
	sh("tar --format=posix -cf linked.tar linked && rm -rf back");
	unpack_file("linked.tar", "back", true);
	sh(LINKED("back"));
}

static void
names_beyond_a_copy_are_not_missed(void **state)
{
	(void)state;
	/* Of three names only one is in what is copied. */
	sh("rm -rf some && mkdir -p some/in && echo x > some/in/a && ln some/in/a some/b && ln some/in/a some/c");
	pack_into("some/in", "some.tar", 512);
	sh("rm -rf back");
	unpack_file("some.tar", "back", false);
	sh("test \"$(cat back/a)\" = x && test \"$(stat -c %h back/a)\" = 1");
}

#define SPARSE(tree) \
	"for f in middle ends start hole dense; do cmp sparse/$f " tree "/$f && " \
	"test $(stat -c %b " tree \
	"/$f) -le $(($(stat -c %b sparse/$f) + 32)) || exit 1; done"

static void
holes_stay_holes(void **state)
{
	(void)state;
	sh("rm -rf sparse && mkdir sparse && cd sparse && truncate -s 48M middle ends hole && printf x | dd of=middle bs=1 seek=30000000 conv=notrunc 2>/dev/null && "
	   "printf x | dd of=ends bs=1 conv=notrunc 2>/dev/null && printf x | dd of=start bs=1 seek=5000000 2>/dev/null && head -c 100000 /dev/urandom > dense");
	pack_into("sparse", "sparse.tar", 4096);
	if (system("test $(stat -c %b sparse/middle) -lt 4096"))
		skip(); /* a file system without holes */
	sh("test $(stat -c %s sparse.tar) -lt 400000");
	for (int sync = 0; sync < 2; sync++) {
		sh("rm -rf back");
		unpack_file("sparse.tar", "back", sync);
		sh(SPARSE("back"));
	}
	sh("rm -rf theirs && mkdir theirs && tar -C theirs -xf sparse.tar && " SPARSE(
		"theirs/sparse"));
	sh("tar --format=posix --sparse -cf sparse.tar sparse && rm -rf back");
	unpack_file("sparse.tar", "back", false);
	sh(SPARSE("back"));
}

static void
many_holes_are_kept_up_to_a_bound(void **state)
{
	int fd;

	(void)state;
	sh("rm -rf holes back && mkdir holes");
	fd = open("holes/f", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	for (off_t i = 0; i < 3000; i++)
		assert_int_equal(pwrite(fd, "data", 4, i * 16384 + 8192), 4);
	close(fd);
	pack_into("holes", "holes.tar", 4096);
	unpack_file("holes.tar", "back", false);
	sh("cmp holes/f back/f && test $(stat -c %b back/f) -le $(($(stat -c %b holes/f) + 64))");
}

static void
sparse_map(struct stream *s, const char *real, const char *map)
{
	char data[TAR_BLOCK + 1], pax[512];
	int n = snprintf(
		pax, sizeof(pax), "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n");

	n += snprintf(pax + n, sizeof(pax) - (size_t)n, "%zu GNU.sparse.realsize=%s\n",
		strlen(real) + 24, real);
	stream_add(s, 'x', "pax", NULL, pax);
	memset(data, '0', TAR_BLOCK);
	data[TAR_BLOCK] = 0;
	memcpy(data, map, strlen(map));
	stream_add(s, '0', "sparse", NULL, data);
}

static void
a_broken_map_of_a_sparse_file_is_an_error(void **state)
{
	static const char *const maps[] = {"x", "1\n", "1\n0\n", "1\n0\n5\n",
		"1\n100\n1\n", "2\n5\n5\n0\n1\n", "99999999\n", "-1\n", "\n",
		"1\n0\n99999999999999999999\n", "1\n18446744073709551615\n2\n"};
	struct stream *s = calloc(1, sizeof(*s));

	(void)state;
	for (size_t i = 0; i < sizeof(maps) / sizeof(maps[0]); i++) {
		sparse_map(s, "10", maps[i]);
		expect(s, -EPROTO, "a broken map");
	}
	stream_add(s, 'x', "pax", NULL, "22 GNU.sparse.major=2\n");
	stream_add(s, '0', "sparse", NULL, "data");
	expect(s, -EPROTO, "sparse format 2.0 is not read");
	free(s);
}

/* A file has its name when it is whole, and not before. */
static void
half_a_file_has_no_name(void **state)
{
	struct stream *s = calloc(1, sizeof(*s));
	struct err e = {0};

	(void)state;
	for (int sync = 0; sync < 2; sync++) {
		struct tar_unpack_opts opts = {.dest = "box", .sync = sync};
		struct tar_unpack *u;

		s->len = 0;
		stream_add(s, '5', "t", NULL, NULL);
		stream_add(s, '0', "t/old", NULL, "new contents");
		stream_add(s, '0', "t/new", NULL, "of a new file");
		stream_end(s);
		sh("rm -rf box && mkdir -p box/t && echo old > box/t/old && ln box/t/old box/other");
		/* In the middle of t/old. */
		assert_int_equal(tar_unpack_open(&opts, &u, &e), 0);
		assert_int_equal(tar_unpack_feed(u, s->buf, 3 * TAR_BLOCK - 505, &e), 0);
		sh("test \"$(cat box/t/old)\" = old");
		tar_unpack_close(u);
		sh("test \"$(ls -A box/t)\" = old && test \"$(cat box/t/old)\" = old");
		/* In the middle of t/new. */
		assert_int_equal(tar_unpack_open(&opts, &u, &e), 0);
		assert_int_equal(tar_unpack_feed(u, s->buf, 5 * TAR_BLOCK - 505, &e), 0);
		sh("test ! -e box/t/new");
		tar_unpack_close(u);
		sh("test \"$(ls -A box/t)\" = old");
		/* The whole of it. */
		assert_int_equal(unpack(s, "box", 100, &e), 0);
		sh("test \"$(ls -A box/t | xargs)\" = 'new old' && test \"$(cat box/t/old)\" = 'new contents' && test \"$(cat box/other)\" = old");
	}
	free(s);
}

static void
devices_and_open_files_are_not_replaced(void **state)
{
	struct stream *s = calloc(1, sizeof(*s));
	struct err e = {0};

	(void)state;
	stream_add(s, '0', "f", NULL, "data");
	stream_end(s);
	assert_int_equal(unpack(s, "/dev/null", 512, &e), -EINVAL);
	assert_int_equal(unpack(s, "/dev/stdout", 512, &e), -EINVAL);
	sh("test -c /dev/null && test -L /dev/stdout && rm -rf box && mkdir box && mkfifo box/f");
	assert_int_equal(unpack(s, "box", 512, &e), 0);
	sh("test -f box/f");
	if (!geteuid()) {
		sh("rm box/f && mknod box/f c 1 3");
		assert_int_equal(unpack(s, "box", 512, &e), -EEXIST);
		assert_non_null(strstr(e.msg, "device"));
	}
	free(s);
}

static void
depth_is_bounded(void **state)
{
	struct tar_pack *p;
	struct err e = {0};
	char buf[8192];
	ssize_t n;

	(void)state;
	sh("rm -rf deep && p=deep; for i in $(seq 1 140); do p=$p/d; done; mkdir -p $p");
	assert_int_equal(
		tar_pack_open(&(struct tar_pack_opts){.path = "deep"}, &p, &e), 0);
	while ((n = tar_pack_read(p, buf, sizeof(buf), &e)) > 0)
		;
	assert_int_equal(n, -ELOOP);
	assert_non_null(strstr(e.msg, "128"));
	tar_pack_close(p);
}

static void
file_that_shrinks_is_an_error(void **state)
{
	struct tar_pack *p;
	struct err e = {0};
	char buf[512];
	ssize_t n;

	(void)state;
	sh("head -c 5000 /dev/zero > shrinking");
	assert_int_equal(
		tar_pack_open(&(struct tar_pack_opts){.path = "shrinking"}, &p, &e), 0);
	assert_int_equal(tar_pack_read(p, buf, sizeof(buf), &e), 512);
	assert_int_equal(truncate("shrinking", 100), 0);
	while ((n = tar_pack_read(p, buf, sizeof(buf), &e)) > 0)
		;
	assert_int_equal(n, -EIO);
	assert_non_null(strstr(e.msg, "shrinking"));
	tar_pack_close(p);
}

static void
times_before_the_epoch_survive(void **state)
{
	struct stat a, b;

	(void)state;
	sh("rm -rf old back && mkdir old back && touch -d '1969-12-31 23:59:59.25 UTC' old/q"
	   " && touch -d '1960-01-01 00:00:00.75 UTC' old/s && touch -d '1960-01-01 UTC' old/t");
	pack_into("old", "old.tar", 4096);
	struct tar_unpack_opts opts = {.dest = "back"};
	struct tar_unpack *u;
	struct err e = {0};
	char *text;
	size_t len;
	assert_int_equal(io_read_file("old.tar", 1 << 20, &text, &len, NULL), 0);
	assert_int_equal(tar_unpack_open(&opts, &u, &e), 0);
	if (tar_unpack_feed(u, text, len, &e) || tar_unpack_finish(u, &e))
		fail_msg("%s", e.msg);
	tar_unpack_close(u);
	free(text);
	for (const char *c = "qst"; *c; c++) {
		char x[16], y[32];

		snprintf(x, sizeof(x), "old/%c", *c);
		snprintf(y, sizeof(y), "back/old/%c", *c);
		assert_int_equal(stat(x, &a) | stat(y, &b), 0);
		assert_int_equal(a.st_mtim.tv_sec, b.st_mtim.tv_sec);
		assert_int_equal(a.st_mtim.tv_nsec, b.st_mtim.tv_nsec);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_cut_of_the_stream_is_fine),
		cmocka_unit_test(nothing_is_written_outside),
		cmocka_unit_test(link_that_was_there_before_is_not_followed),
		cmocka_unit_test(broken_streams_get_a_sentence),
		cmocka_unit_test(tar_reads_what_we_write),
		cmocka_unit_test(we_read_what_tar_writes),
		cmocka_unit_test(names_of_one_file_stay_names_of_one_file),
		cmocka_unit_test(names_beyond_a_copy_are_not_missed),
		cmocka_unit_test(holes_stay_holes),
		cmocka_unit_test(many_holes_are_kept_up_to_a_bound),
		cmocka_unit_test(a_broken_map_of_a_sparse_file_is_an_error),
		cmocka_unit_test(half_a_file_has_no_name),
		cmocka_unit_test(devices_and_open_files_are_not_replaced),
		cmocka_unit_test(depth_is_bounded),
		cmocka_unit_test(file_that_shrinks_is_an_error),
		cmocka_unit_test(times_before_the_epoch_survive),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
