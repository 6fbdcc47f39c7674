/*
 * Which files differ between two disks (host/commit/diff_files.c), by the shipped pando-fsdiff:
 * file systems that mke2fs made of folders, that debugfs changed, with a journal that was
 * not replayed, and damaged at random. Skipped where e2fsprogs is not there.
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
#include "common/json.h"
#include "host/commit/commit_read.h"
#include "host/commit/diff_files.h"

#define MIB (1u << 20)

static char folder[64], program[4096];
static struct store *store;
static struct err e;
static struct json *j;
static char *text;

static bool
run(const char *command)
{
	char line[2048];

	snprintf(line, sizeof(line),
		"cd '%s' && PATH=$PATH:/usr/sbin:/sbin && { %s\n} >log 2>&1", folder,
		command);
	return system(line) == 0;
}

static void
must(const char *command)
{
	if (!run(command))
		fail_msg("%s: see %s/log", command, folder);
}

static int
setup(void **state)
{
	char path[128];
	ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 64);

	(void)state;
	if (n < 0)
		return -1;
	program[n] = '\0';
	/* <build>/tests/test_diff_files */
	for (int i = 0; i < 2; i++)
		*strrchr(program, '/') = '\0';
	strcat(program, "/libexec/pando/pando-fsdiff");
	snprintf(folder, sizeof(folder), "/tmp/pando-test-diff.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/store", folder);
	return store_open(path, &store, &e);
}

static int
teardown(void **state)
{
	(void)state;
	json_free(j);
	free(text);
	store_close(store);
	return io_remove_tree(folder, NULL);
}

static void
needs_e2fsprogs(void)
{
	if (!run("command -v mke2fs && command -v debugfs"))
		skip();
}

/* An image of the folder as a disk in the store. */
static struct store_tree
disk_of(const char *image)
{
	struct store_fields f = {.labels = "{}", .config = "{}", .cpu = "{}"};
	struct store_writer *w;
	char path[128], id[STORE_ID_MAX];
	cleanup_close int fd = -1;
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s", folder, image);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(store_begin(store, &w, &e), 0);
	assert_int_equal(
		commit_read_base(w, fd, path, (uint64_t)st.st_size, &f.disk, &e), 0);
	assert_int_equal(store_commit(w, &f, id, NULL, &e), 0);
	return f.disk;
}

static void
diff(const char *image_a, const char *image_b)
{
	struct store_tree a = disk_of(image_a), b = disk_of(image_b);
	struct json_out out = {0};

	json_free(j);
	free(text);
	j = NULL;
	json_out_object(&out, NULL);
	assert_int_equal(diff_files(store, program, &a, &b, &out, &e), 0);
	json_out_end_object(&out);
	assert_int_equal(out.error, 0);
	text = TAKE_PTR(out.buf);
	if (json_parse(text, strlen(text), 1000000, &j, &e) < 0)
		fail_msg("%s: %s", e.msg, text);
}

static int
files(void)
{
	return json_get(j, 0, "files");
}

static bool
readable(void)
{
	bool b = false;

	assert_int_equal(json_bool(j, json_get(j, files(), "readable"), &b), 0);
	return b;
}

static uint64_t
count(const char *what)
{
	uint64_t n = 0;

	assert_int_equal(json_u64(j, json_get(j, files(), what), &n), 0);
	return n;
}

/* "changed file content,size,mtime" of a path; "" if it is not in the list. */
static const char *
told(const char *path)
{
	static char line[256];
	int changes = json_get(j, files(), "changes");
	char at[512], word[32];

	for (int i = 0; i < json_size(j, changes); i++) {
		int c = json_at(j, changes, i), fields = json_get(j, c, "fields");

		if (json_str(j, json_get(j, c, "path"), at, sizeof(at)) < 0 ||
			strcmp(at, path) != 0)
			continue;
		json_str(j, json_get(j, c, "what"), line, sizeof(line));
		json_str(j, json_get(j, c, "kind"), word, sizeof(word));
		strcat(strcat(line, " "), word);
		for (int k = 0; k < json_size(j, fields); k++) {
			json_str(j, json_at(j, fields, k), word, sizeof(word));
			strcat(strcat(line, k ? "," : " "), word);
		}
		return line;
	}
	return "";
}

static void
assert_told(const char *path, const char *what)
{
	if (strcmp(told(path), what) != 0)
		fail_msg("%s: \"%s\", not \"%s\", in %s", path, told(path), what, text);
}

static void
make_a(void)
{
	must("rm -rf a b && mkdir -p a/etc a/usr/share/deep/er a/gone && cd a && echo one >etc/one && echo two >etc/two && echo three >etc/three && "
	     "echo mode >etc/mode && echo same >etc/same && ln -s one etc/link && ln -s ../a/very/long/way/that/does/not/fit/into/sixty/bytes/of/an/inode/one etc/long && "
	     "seq 1 200000 >usr/share/big && echo x >gone/x && echo becomes >etc/becomes && seq 1 5000 | split -l 10 - usr/share/deep/er/f && "
	     "find . -exec touch -h -d @1700000000 {} +");
}

static void
make_b(void)
{
	must("cp -a a b && cd b && echo ONE >etc/one && touch -d @1700000000 etc/one && echo longer than two >etc/two && touch -d @1700000009 etc/three && "
	     "chmod 600 etc/mode && ln -sfn two etc/link && ln -sfn ../a/very/long/way/that/does/not/fit/into/sixty/bytes/of/an/inode/two etc/long && "
	     "rm -r gone && rm etc/becomes && mkdir etc/becomes && printf y | dd of=usr/share/big bs=1 seek=900000 conv=notrunc && "
	     "touch -d @1700000000 usr/share/big && echo new >usr/share/deep/new && find . -newermt @1700000010 -exec touch -h -d @1700000005 {} +");
}

static void
assert_all_told(void)
{
	assert_true(readable());
	assert_told("/etc/one", "changed file content,mtime");
	assert_told("/etc/two", "changed file content,size,mtime");
	assert_told("/etc/three", "changed file mtime");
	assert_told("/etc/same", "");
	assert_told("/etc/mode", "changed file mode");
	assert_told("/etc/link", "changed symlink content,mtime");
	assert_told("/etc/long", "changed symlink content,mtime");
	assert_told("/etc/becomes", "changed folder mode,kind");
	assert_told("/gone", "removed folder");
	assert_told("/gone/x", "removed file");
	assert_told("/usr/share/big", "changed file content");
	assert_told("/usr/share/deep/new", "added file");
	assert_int_equal(count("added"), 1);
	assert_int_equal(count("removed"), 2);
	assert_int_equal(count("changed"), 8);
}

static void
what_was_made_of_two_folders_is_told(void **state)
{
	static const char *const kinds[] = {"ext4", "ext4 -O inline_data -I 256",
		"ext4 -b 1024", "ext2", "ext3", "ext4 -O ^metadata_csum,^64bit"};
	uint64_t began_ns;
	char line[256];

	(void)state;
	needs_e2fsprogs();
	make_a();
	make_b();
	must("touch -d @1700000009 b/etc/one; touch -h -d @1700000009 b/etc/link b/etc/long");
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		snprintf(line, sizeof(line),
			"for d in a b; do rm -f $d.img; mke2fs -q -t %s -d $d $d.img 24M; done",
			kinds[i]);
		must(line);
		began_ns = io_now_ns();
		diff("a.img", "b.img");
		printf("# %s: stored and compared in %llu ms\n", kinds[i],
			(unsigned long long)((io_now_ns() - began_ns) / 1000000));
		assert_all_told();
	}
	/* As a running system has it: one disk, changed where it lies. */
	must("mke2fs -q -F -t ext4 -d a a.img 24M && cp a.img c.img && debugfs -w -f /dev/stdin c.img <<END\n"
	     "rm /etc/same\nwrite a/etc/two /etc/added\nset_inode_field /etc/mode mode 0100600\nset_inode_field /etc/one uid 7\nEND");
	diff("a.img", "c.img");
	assert_told("/etc/same", "removed file");
	assert_told("/etc/added", "added file");
	assert_told("/etc/mode", "changed file mode");
	assert_told("/etc/one", "changed file owner");
	assert_int_equal(count("changed"), 2);
	/* The same disk has the same files, and is not read. */
	diff("a.img", "a.img");
	assert_true(readable());
	assert_int_equal(count("changed") + count("added") + count("removed"), 0);
}

/* What differs between a and c is written to a's journal instead, and only there. */
static void
what_is_only_in_the_journal_is_told(void **state)
{
	static const char *const kinds[] = {
		"ext4", "ext3", "ext4 -O ^64bit,^metadata_csum", "ext4 -b 1024"};
	char line[1024];

	(void)state;
	needs_e2fsprogs();
	make_a();
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		snprintf(line, sizeof(line),
			"rm -f a.img && mke2fs -q -t %s -d a a.img 24M && cp a.img c.img && cp a.img d.img && debugfs -w -f /dev/stdin c.img <<END\n"
			"rm /etc/same\nwrite a/etc/two /etc/added\n"
			"set_inode_field /etc/mode mode 0100600\nEND",
			kinds[i]);
		must(line);
		/* All blocks but the superblock's, which says that there is a journal to
		 * replay. */
		must("bs=$(dumpe2fs -h a.img | sed -n 's/^Block size: *//p'); first=$((1024 / bs)); blocks=; : >blocks; "
		     "for b in $(cmp -l a.img c.img | awk -v bs=$bs '{ print int(($1 - 1) / bs) }' | sort -un); do [ $b -le $first ] && continue; "
		     "dd if=c.img bs=$bs skip=$b count=1 >>blocks 2>/dev/null; blocks=$blocks,$b; done; printf 'jo\\njw -b %s blocks\\njc\\n' ${blocks#,} >script && "
		     "debugfs -w -f script d.img && dumpe2fs -h d.img | grep -q needs_recovery");
		diff("a.img", "d.img");
		assert_true(readable());
		assert_told("/etc/same", "removed file");
		assert_told("/etc/added", "added file");
		assert_told("/etc/mode", "changed file mode");
		assert_int_equal(count("changed") + count("added") + count("removed"), 3);
		diff("d.img", "c.img");
		assert_true(readable());
		assert_int_equal(count("changed") + count("added") + count("removed"), 0);
	}
}

static void
what_has_no_file_system_is_said(void **state)
{
	char line[128];

	(void)state;
	needs_e2fsprogs();
	make_a();
	must("rm -f a.img; mke2fs -q -t ext4 -d a a.img 24M && head -c 8388608 /dev/urandom >noise && truncate -s 4M nothing");
	diff("a.img", "noise");
	assert_false(readable());
	json_str(j, json_get(j, files(), "note"), line, sizeof(line));
	assert_string_equal(
		line, "the second disk: no ext2, ext3 or ext4 file system is on it");
	diff("nothing", "a.img");
	assert_false(readable());
	assert_non_null(strstr(text, "the first disk: no ext2"));
	/* Cut short: what lies behind the end is zero. */
	must("head -c 2097152 a.img >short");
	diff("a.img", "short");
	/* Nobody to ask. */
	strcat(program, "-that-is-not-there");
	diff("a.img", "noise");
	*strstr(program, "-that") = '\0';
	assert_false(readable());
	assert_non_null(strstr(text, "No such file or directory"));
}

/* Whatever is on them, there is an answer, and no process stays. */
static void
damaged_file_systems_hurt_nobody(void **state)
{
	const char *rounds = getenv("PANDO_TEST_ROUNDS");
	unsigned n = rounds ? (unsigned)atoi(rounds) : 60, whole = 0, ended = 0;
	uint64_t seed = (uint64_t)getpid() * 2654435761u;
	char path[128];
	struct stat st;
	uint8_t *good;

	(void)state;
	needs_e2fsprogs();
	make_a();
	must("rm -f a.img; mke2fs -q -t ext4 -O ^metadata_csum -N 1000 -d a a.img 12M");
	snprintf(path, sizeof(path), "%s/a.img", folder);
	assert_int_equal(stat(path, &st), 0);
	good = malloc((size_t)st.st_size);
	assert_non_null(good);
	{
		cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);

		assert_int_equal(io_pread_full(fd, good, (size_t)st.st_size, 0), 0);
	}
	snprintf(path, sizeof(path), "%s/bad", folder);
	printf("# seed %llu\n", (unsigned long long)seed);
	for (unsigned i = 0; i < n; i++) {
		cleanup_close int fd =
			open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

		assert_int_equal(io_write_full(fd, good, (size_t)st.st_size), 0);
		for (unsigned k = 0; k < 1 + i % 30; k++) {
			uint64_t at, value;

			seed = seed * 6364136223846793005ull + 1442695040888963407ull;
			at = seed >> 33;
			value = seed >> 7;
			/* Where metadata lies, mostly: only what is not zero. */
			for (at %= k % 4 ? 2 * MIB : (uint64_t)st.st_size;
				at + 9 < (uint64_t)st.st_size && !good[at]; at++)
				;
			assert_int_equal(io_pwrite_full(fd, &value, 1 + i % 4, at), 0);
		}
		diff("a.img", "bad");
		whole += readable();
		ended += strstr(text, "what reads file systems ended") != NULL;
	}
	free(good);
	printf("# %u of %u could be read, %u were the end of their reader\n", whole, n,
		ended);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_made_of_two_folders_is_told),
		cmocka_unit_test(what_is_only_in_the_journal_is_told),
		cmocka_unit_test(what_has_no_file_system_is_said),
		cmocka_unit_test(damaged_file_systems_hurt_nobody),
	};

	while (open("/dev/null", O_RDWR) < 3) /* as pandod has it */
		;
	return cmocka_run_group_tests(tests, setup, teardown);
}
