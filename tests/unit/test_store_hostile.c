/* The commit store with files that are damaged, or made to do harm: said by name, never
 * believed, and never in the way of the rest. */
#include "tests/unit/store_help.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "host/store/store_priv.h"

#define N 2000u

static uint32_t values[N];
static char id[STORE_ID_MAX], pack[256];
static struct store_tree tree;

/* One commit in one pack. */
static int
setup_commit(void **state)
{
	setup_store(state);
	for (uint32_t i = 0; i < N; i++)
		values[i] = 2 * i + 2;
	commit_values(NULL, NULL, NULL, values, N, id, NULL);
	pack_path(0, pack, sizeof(pack));
	struct store_manifest *m;
	ok(store_load(store, id, &m, &e));
	tree = m->f.memory;
	store_manifest_free(m);
	return 0;
}

static uint8_t pages[N * STORE_PAGE];

static void
a_flipped_byte_is_named_with_commit_tree_pages_and_pack(void **state)
{
	char name[STORE_ID_MAX];

	(void)state;
	memcpy(name, strrchr(pack, '/') + 1, STORE_HEX);
	name[STORE_HEX] = '\0';
	/* Pages lie in the order in which they were put: 16 is the header. A node follows
	   every 64. */
	flip(pack, 16 + 10 * 4096 + 5);
	flip(pack, 16 + 11 * 4096 + 4095);
	flip(pack, 16 + 20 * 4096);
	reopen();
	assert_int_equal(verify(id), 2);
	assert_int_equal(damages[0].kind, STORE_DAMAGE_CHUNK);
	assert_string_equal(damages[0].commit, id);
	assert_string_equal(damages[0].tree, "memory");
	assert_int_equal(damages[0].first_page, 10);
	assert_int_equal(damages[0].pages, 2);
	assert_string_equal(damages[0].pack, name);
	assert_non_null(strstr(damages[0].text, "memory, pages 10 to 11"));
	assert_int_equal(damages[1].first_page, 20);
	assert_int_equal(damages[1].pages, 1);
	assert_int_equal(verify(NULL), 2);
	refused(store_tree_read(store, &tree, 0, N, pages, &e), -EBADMSG,
		"damaged in pack");
	ok(store_tree_read(store, &tree, 12, 8, pages, &e));
}

static void
a_damaged_node_stands_for_all_its_pages(void **state)
{
	(void)state;
	flip(pack, 16 + 64 * 4096 + 7);
	reopen();
	assert_int_equal(verify(id), 1);
	assert_int_equal(damages[0].first_page, 0);
	assert_int_equal(damages[0].pages, 64);
}

static void
what_was_damaged_is_whole_again_when_it_is_committed_again(void **state)
{
	char again[STORE_ID_MAX];
	struct store_stats stats;

	(void)state;
	flip(pack, 16 + 10 * 4096 + 5);
	flip(pack, 16 + 64 * 4096 + 7);
	reopen();
	assert_int_equal(verify(NULL), 1); /* the node hides the page */
	commit_values(NULL, NULL, NULL, values, N, again, &stats);
	assert_int_equal(stats.new_nodes, 1);
	verify(NULL);
	commit_values(NULL, NULL, NULL, values, N, again, &stats);
	assert_int_equal(stats.new_pages, 1);
	is_sound();
	has_values(&tree, values, N);
	ok(store_gc(store, NULL, 0, NULL, &e));
	has_values(&tree, values, N);
	reopen();
	is_sound();
}

static void
gc_is_refused_while_a_commit_is_damaged(void **state)
{
	char other[STORE_ID_MAX];

	(void)state;
	commit_values(NULL, NULL, NULL, (uint32_t[]){1, 3, 5}, 3, other, NULL);
	flip(pack, 16 + 64 * 4096 + 7);
	reopen();
	refused(store_gc(store, NULL, 0, NULL, &e), -EBADMSG, "nothing was removed");
	assert_non_null(strstr(e.msg, "commit "));
	assert_int_equal(count_files("packs"), 2);
	ok(store_delete(store, id, 0, NULL, &e));
	ok(store_gc(store, NULL, 0, NULL, &e));
	assert_int_equal(count_files("packs"), 1);
	is_sound();
}

static void
a_pack_that_is_cut_or_changed_anywhere_outside_its_chunks_is_named(void **state)
{
	long size = file_size(pack), index = size - 64 - 2033 * 48;
	const struct {
		long at, cut;
		const char *text;
	} bad[] = {{0, 0, "does not begin"}, {8, 0, "another format version"},
		{index, 0, "index is damaged"},
		{index + 48 * 1000 + 33, 0, "index is damaged"},
		{size - 1, 0, "does not end"}, {size - 64, 0, "does not end"},
		{size - 56, 0, "does not end"}, {size - 40, 0, "index is damaged"},
		{-1, size - 1, "does not end"}, {-1, size - 48, "does not end"},
		{-1, index, "does not end"}, {-1, 100, "does not"}, {-1, 10, "cut short"},
		{-1, 0, "cut short"}};
	char copy[300], command[700], other[STORE_ID_MAX];

	(void)state;
	commit_values(NULL, NULL, NULL, (uint32_t[]){1, 3, 5}, 3, other, NULL);
	snprintf(copy, sizeof(copy), "%s/copy", folder);
	snprintf(command, sizeof(command), "cp %s %s", pack, copy);
	assert_int_equal(system(command), 0);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (bad[i].at >= 0)
			flip(pack, bad[i].at);
		else
			assert_int_equal(truncate(pack, bad[i].cut), 0);
		reopen();
		if (verify(NULL) < 2)
			fail_msg("%u: %zu damages", i, n_damages);
		assert_int_equal(damages[0].kind, STORE_DAMAGE_PACK);
		if (!strstr(damages[0].text, bad[i].text))
			fail_msg("%u: %s", i, damages[0].text);
		assert_int_equal(damages[1].kind, STORE_DAMAGE_MISSING);
		assert_string_equal(damages[1].commit, id);
		assert_int_equal(verify(other), 0);
		snprintf(command, sizeof(command), "cp %s %s", copy, pack);
		assert_int_equal(system(command), 0);
	}
	reopen();
	is_sound();
}

static void
keep_as(const char *from, const char *to)
{
	char command[700];

	snprintf(command, sizeof(command), "cp %s %s", from, to);
	assert_int_equal(system(command), 0);
}

static void
on_damage(void *ctx, const struct store_damage *d)
{
	(void)ctx;
	if (n_damages < DAMAGES_MAX)
		damages[n_damages] = *d;
	n_damages++;
}

static struct store_repaired
repair(void)
{
	struct store_repaired sum;

	n_damages = 0;
	ok(store_repair(store, on_damage, NULL, &sum, &e));
	assert_int_equal(sum.left.damages, n_damages);
	return sum;
}

static void
a_pack_that_cannot_be_read_is_repaired_where_its_chunks_are_sound(void **state)
{
	long size = file_size(pack), index = size - 64 - 2033 * 48;
	/* Changed at `at`, or cut to `cut`; the commit is whole afterwards. */
	const struct {
		long at, cut;
	} bad[] = {{0, 0}, {8, 0}, {index, 0}, {index + 48 * 1000 + 33, 0},
		{index + 48 * 1000 + 44, 0}, {size - 1, 0}, {size - 64, 0},
		{size - 56, 0}, {size - 40, 0}, {-1, size - 1}, {-1, size - 48},
		{-1, index + 1000}, {-1, index}};
	char copy[300], command[700], other[STORE_ID_MAX];

	(void)state;
	commit_values(NULL, NULL, NULL, (uint32_t[]){1, 3, 5}, 3, other, NULL);
	snprintf(copy, sizeof(copy), "%s/copy", folder);
	snprintf(command, sizeof(command), "cp -r %s/packs %s", store_path, copy);
	assert_int_equal(system(command), 0);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct store_repaired sum;

		store_close(store);
		store = NULL;
		snprintf(command, sizeof(command), "rm %s/packs/* && cp %s/* %s/packs",
			store_path, copy, store_path);
		assert_int_equal(system(command), 0);
		if (bad[i].at >= 0)
			flip(pack, bad[i].at);
		else
			assert_int_equal(truncate(pack, bad[i].cut), 0);
		ok(store_open(store_path, &store, &e));
		/* Found by whoever looks first. */
		if (i % 2)
			assert_true(verify(NULL) >= 2);
		sum = repair();
		if (n_damages)
			fail_msg("%u: %zu damages: %s", i, n_damages, damages[0].text);
		assert_int_equal(sum.chunks_saved, 2033);
		has_values(&tree, values, N);
		reopen();
		is_sound();
		has_values(&tree, values, N);
		/* What had no index entry is found after the rest: nodes, then what they name.
		 */
		assert_true(count_files("packs") <= (bad[i].at >= 0 ? 3 : 4));
		/* And nothing more is to be done. */
		assert_int_equal(repair().chunks_saved, 0);
	}
}

static void
what_a_repair_cannot_save_is_named_and_the_rest_is_usable(void **state)
{
	char other[STORE_ID_MAX];
	struct store_repaired sum;
	uint8_t page[STORE_PAGE];

	(void)state;
	commit_values(NULL, NULL, NULL, (uint32_t[]){1, 3, 5}, 3, other, NULL);
	/* The header, and the tenth page's bytes. */
	flip(pack, 0);
	flip(pack, 16 + 10 * 4096 + 5);
	reopen();
	assert_int_equal(verify(other), 0);
	sum = repair();
	assert_int_equal(sum.chunks_saved, 2032);
	assert_int_equal(sum.packs_removed, 0);
	/* The pack that is kept, and the page. */
	assert_int_equal(n_damages, 2);
	assert_int_equal(damages[0].kind, STORE_DAMAGE_PACK);
	assert_int_equal(damages[1].kind, STORE_DAMAGE_MISSING);
	assert_string_equal(damages[1].commit, id);
	assert_int_equal(damages[1].first_page, 10);
	assert_int_equal(damages[1].pages, 1);
	ok(store_tree_read(store, &tree, 11, N - 11, pages, &e));
	fill(page, values[11]);
	assert_memory_equal(pages, page, STORE_PAGE);
	/* When it was committed again the damaged pack is of no use. */
	commit_values(NULL, NULL, NULL, values, N, other, NULL);
	sum = repair();
	assert_int_equal(sum.packs_removed, 1);
	assert_int_equal(n_damages, 0);
}

static void
half_a_pack_gives_its_half(void **state)
{
	struct store_tree t;
	char first[STORE_ID_MAX];

	(void)state;
	/* Its pages are all in the first commit's pack, at the beginning. */
	commit_values(NULL, NULL, NULL, values, 64, first, NULL);
	assert_int_equal(truncate(pack, 16 + 64 * 4096 + 2048 + 100), 0);
	reopen();
	assert_true(verify(first) > 0);
	repair();
	assert_int_equal(verify(first), 0);
	{
		struct store_manifest *m;

		ok(store_load(store, first, &m, &e));
		t = m->f.memory;
		store_manifest_free(m);
	}
	has_values(&t, values, 64);
	assert_true(verify(id) > 0);
}

static void
deltas_and_compressed_chunks_are_repaired_with_and_without_an_index(void **state)
{
	char second[STORE_ID_MAX], copy[300], path[300], command[700];
	uint32_t changed[N];
	struct store_tree t;

	(void)state;
	for (uint32_t i = 0; i < N; i++)
		changed[i] = i % 200 ? values[i] : 100001 + 2 * i;
	commit_values(NULL, &tree, values, changed, N, second, NULL);
	{
		struct store_manifest *m;

		ok(store_load(store, second, &m, &e));
		t = m->f.memory;
		store_manifest_free(m);
	}
	pack_path(0, path, sizeof(path));
	if (strcmp(path, pack) == 0)
		pack_path(1, path, sizeof(path));
	snprintf(copy, sizeof(copy), "%s/copy", folder);
	keep_as(path, copy);
	for (unsigned i = 0; i < 3; i++) {
		struct pack_footer f;
		int fd = open(copy, O_RDONLY | O_CLOEXEC);

		assert_int_equal(
			pread(fd, &f, sizeof(f), file_size(copy) - 64), sizeof(f));
		close(fd);
		store_close(store);
		store = NULL;
		snprintf(command, sizeof(command),
			"cd %s/packs && ls | grep -v %.20s | xargs rm", store_path,
			strrchr(pack, '/') + 1);
		assert_int_equal(system(command), 0);
		keep_as(copy, path);
		if (i == 0)
			flip(path, 0);
		else
			assert_int_equal(
				truncate(path, (long)f.index_offset + (i == 1 ? 0 : 99)),
				0);
		ok(store_open(store_path, &store, &e));
		assert_true(verify(NULL) >= 2);
		repair();
		if (n_damages)
			fail_msg("%u: %zu damages: %s", i, n_damages, damages[0].text);
		has_values(&t, changed, N);
		reopen();
		is_sound();
		has_values(&t, changed, N);
	}
}

static void
a_pack_cut_below_a_running_store_is_an_error(void **state)
{
	(void)state;
	ok(store_tree_read(store, &tree, 0, 1, pages, &e));
	/* The index stays where it is: a hole, as a bad disk would leave it. */
	int fd = open(pack, O_RDWR | O_CLOEXEC);
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096,
				 100 * 4096),
		0);
	close(fd);
	refused(store_tree_read(store, &tree, 0, N, pages, &e), -EBADMSG, "damaged");
}

static void
a_pack_that_is_gone_is_missed(void **state)
{
	(void)state;
	assert_int_equal(unlink(pack), 0);
	reopen();
	assert_int_equal(verify(NULL), 1);
	assert_int_equal(damages[0].kind, STORE_DAMAGE_MISSING);
	assert_int_equal(damages[0].first_page, 0);
	assert_int_equal(damages[0].pages, N);
	refused(store_tree_read(store, &tree, 0, 1, pages, &e), -EBADMSG, "in no pack");
	refused(store_gc(store, NULL, 0, NULL, &e), -EBADMSG, "missing");
}

static void
files_that_are_no_files_are_not_opened(void **state)
{
	char path[300], other[STORE_ID_MAX];
	struct store_page l;
	struct store_manifest *m;

	(void)state;
	assert_int_equal(unlink(pack), 0);
	assert_int_equal(mkfifo(pack, 0600), 0);
	memset(other, 'a', 64);
	other[64] = '\0';
	snprintf(path, sizeof(path), "%s/packs/%s.pack", store_path, other);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	snprintf(path, sizeof(path), "%s/commits/%s.json", store_path, other);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	other[0] = 'b';
	snprintf(path, sizeof(path), "%s/commits/%s.json", store_path, other);
	assert_int_equal(mkfifo(path, 0600), 0);
	snprintf(path, sizeof(path), "%s/tags/fifo", store_path);
	assert_int_equal(mkfifo(path, 0600), 0);
	snprintf(path, sizeof(path), "%s/tags/folder", store_path);
	assert_int_equal(mkdir(path, 0700), 0);
	reopen();
	ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &l, &e));
	assert_int_equal(l.n, 1);
	assert_int_equal(l.damaged, 2);
	store_page_done(&l);
	refused(store_load(store, "aaaaaaaaaa", &m, &e), -EBADMSG, "damaged");
	refused(store_load(store, "fifo", &m, &e), -EBADMSG, "tag \"fifo\" is damaged");
	assert_int_equal(verify(NULL), 2 + 2 + 1 + 2);
	ok(store_delete(store, other, 0, NULL, &e));
}

static void
write_file(const char *sub, const char *name, const char *text)
{
	char path[300];

	snprintf(path, sizeof(path), "%s/%s/%s", store_path, sub, name);
	ok(io_write_file_atomic(path, text, strlen(text), 0600, &e));
}

/* As a commit's manifest, under its true hash. */
static void
plant(const char *text, char ret_id[STORE_ID_MAX])
{
	char name[STORE_HEX + 6];
	struct store_hash h;

	hash_of(HASH_PLAIN, text, strlen(text), &h);
	hash_to_hex(&h, ret_id);
	snprintf(name, sizeof(name), "%s.json", ret_id);
	write_file("commits", name, text);
}

static void
an_edited_manifest_is_refused_by_name(void **state)
{
	char path[256], *text, name[16];
	struct store_manifest *m;
	struct store_page l;
	size_t len;

	(void)state;
	snprintf(path, sizeof(path), "%s/commits/%s.json", store_path, id);
	ok(io_read_file(path, 100000, &text, &len, &e));
	strstr(text, "created_ms\":")[12] ^= 1;
	snprintf(name, sizeof(name), "%.12s", id);
	for (int i = 0; i < 3; i++) {
		ok(io_write_file_atomic(path, text,
			i == 0	 ? len
			: i == 1 ? len / 2
				 : 0,
			0600, &e));
		refused(store_load(store, id, &m, &e), -EBADMSG, name);
		ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &l, &e));
		assert_int_equal(l.n, 0);
		assert_int_equal(l.damaged, 1);
		store_page_done(&l);
		assert_int_equal(verify(NULL), 1);
		assert_int_equal(damages[0].kind, STORE_DAMAGE_MANIFEST);
		refused(store_gc(store, NULL, 0, NULL, &e), -EBADMSG, name);
	}
	free(text);
	ok(store_delete(store, id, 0, NULL, &e));
	is_sound();
}

#define ZEROES "0000000000000000000000000000000000000000000000000000000000000000"
#define EMPTY(name) "\"" name "\":{\"length\":0,\"root\":\"" ZEROES "\"}"
#define TREES "\"trees\":{" EMPTY("disk") "," EMPTY("memory") "," EMPTY("state") "}}"
#define HEAD "{\"config\":{},\"cpu\":{},\"created_ms\":1,\"format\":"

static void
manifests_that_pando_would_not_write_are_refused_though_their_hash_is_right(void **state)
{
	static const struct {
		const char *text, *why;
	} bad[] = {
		{"{}", "is none"},
		{"[]", "is none"},
		{"\"x\"", "is none"},
		{HEAD "2,\"labels\":{},\"message\":\"\",\"parent\":null," TREES,
			"format version 2, and this pando reads version 1"},
		{HEAD "1,\"labels\":{},\"message\":\"\",\"parent\":null," TREES "\n",
			"not as pando writes"},
		{HEAD "1, \"labels\":{},\"message\":\"\",\"parent\":null," TREES,
			"not as pando writes"},
		{HEAD "1,\"labels\":{\"b\":\"\",\"a\":\"\"},\"message\":\"\",\"parent\":"
		      "null," TREES,
			"not as pando writes"},
		{HEAD "1,\"labels\":{},\"message\":\"\",\"parent\":\"beef\"," TREES,
			"not as pando writes"},
		{HEAD "1,\"labels\":{},\"message\":7,\"parent\":null," TREES,
			"not as pando writes"},
		{HEAD "1,\"labels\":{\"a\":1},\"message\":\"\",\"parent\":null," TREES,
			"not as pando writes"},
		{HEAD "1,\"labels\":{},\"message\":\"\"," TREES, "not as pando writes"},
		{HEAD "1,\"extra\":1,\"labels\":{},\"message\":\"\",\"parent\":"
		      "null," TREES,
			"not as pando writes"},
		{HEAD "1,\"labels\":{},\"message\":\"\",\"parent\":null,\"trees\":{}}",
			"not as pando writes"},
		{HEAD "1,\"labels\":{},\"message\":\"\",\"parent\":null,\"trees\":"
		      "{" EMPTY("disk") "," EMPTY(
			      "memory") ",\"state\":{\"length\":99999999999999999,"
					"\"root\":\"" ZEROES "\"}}}",
			"not as pando writes"},
		{HEAD "1,\"labels\":{},\"message\":\"\",\"parent\":null,\"trees\":"
		      "{" EMPTY("disk") "," EMPTY("memory") ",\"state\":{\"length\":-1,"
							    "\"root\":\"" ZEROES "\"}}}",
			"not as pando writes"},
	};
	char planted[STORE_ID_MAX];
	struct store_manifest *m;

	(void)state;
	plant(HEAD "1,\"labels\":{},\"message\":\"\",\"parent\":null," TREES, planted);
	ok(store_load(store, planted, &m, &e));
	store_manifest_free(m);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		plant(bad[i].text, planted);
		refused(store_load(store, planted, &m, &e), -EBADMSG, bad[i].why);
		assert_int_equal(verify(planted), 1);
	}
}

static void
a_parent_or_tag_that_leads_nowhere_is_reported(void **state)
{
	char text[600], planted[STORE_ID_MAX], got[STORE_ID_MAX];

	(void)state;
	snprintf(text, sizeof(text),
		HEAD "1,\"labels\":{},\"message\":\"\",\"parent\":\"%.62sff\"," TREES,
		ZEROES);
	plant(text, planted);
	write_file("tags", "astray",
		"00000000000000000000000000000000000000000000000000000000000000ff\n");
	write_file("tags", "odd", "beef\n");
	write_file("tags", "empty", "");
	assert_int_equal(verify(NULL), 4);
	assert_int_equal(damages[0].kind, STORE_DAMAGE_PARENT);
	assert_string_equal(damages[0].commit, planted);
	assert_int_equal(damages[1].kind, STORE_DAMAGE_TAG);
	refused(store_resolve(store, "astray", got, &e), -ENOENT, "not in the store");
	refused(store_resolve(store, "odd", got, &e), -EBADMSG, "set it again");
	ok(store_tag_set(store, "odd", id, true, &e));
	ok(store_resolve(store, "odd", got, &e));
}

static void
a_store_of_another_version_or_none_is_refused(void **state)
{
	char path[256];
	struct store *s = NULL;

	(void)state;
	store_close(store);
	store = NULL;
	snprintf(path, sizeof(path), "%s/format", store_path);
	ok(io_write_file_atomic(path, "pando store 2\n", 14, 0600, &e));
	refused(store_open(store_path, &s, &e), -EBADMSG, "format version 2");
	ok(io_write_file_atomic(path, "something\n", 10, 0600, &e));
	refused(store_open(store_path, &s, &e), -EBADMSG, "is no store");
	assert_int_equal(unlink(path), 0);
	refused(store_open(store_path, &s, &e), -EBADMSG, "lost its file");
	ok(io_write_file_atomic(path, "pando store 1\n", 14, 0600, &e));
	ok(store_open(store_path, &store, &e));
	is_sound();
}

/* ---- packs made to do harm ---- */

struct crafted {
	struct pack_entry entries[8];
	uint8_t data[65536];
	size_t n, len;
};

static void
craft(struct crafted *c, enum chunk_kind kind, enum chunk_coding coding,
	const struct store_hash *hash, const void *stored, size_t len)
{
	c->entries[c->n++] = (struct pack_entry){.hash = *hash,
		.offset = 16 + c->len,
		.stored = (uint32_t)len,
		.kind = (uint8_t)kind,
		.coding = (uint8_t)coding};
	memcpy(c->data + c->len, stored, len);
	c->len += len;
}

static int
by_hash(const void *a, const void *b)
{
	return memcmp(a, b, 32);
}

/* Puts the pack under its true name; sorted unless as_is. */
static void
plant_pack(struct crafted *c, bool as_is)
{
	struct pack_header h = {.magic = PACK_MAGIC, .version = PACK_VERSION};
	struct pack_footer f = {.index_offset = 16 + c->len,
		.count = c->n,
		.version = PACK_VERSION,
		.magic = {'p', 'a', 'n', 'd', 'o', 'p', 'a', 'k'}};
	char hex[STORE_ID_MAX], path[300];
	int fd;

	c->len += -(16 + c->len) % PACK_ALIGN;
	f.index_offset = 16 + c->len;
	if (!as_is)
		qsort(c->entries, c->n, sizeof(c->entries[0]), by_hash);
	hash_of(HASH_PACK, c->entries, c->n * sizeof(c->entries[0]), &f.index_hash);
	hash_to_hex(&f.index_hash, hex);
	snprintf(path, sizeof(path), "%s/packs/%s.pack", store_path, hex);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(io_write_full(fd, &h, sizeof(h)), 0);
	assert_int_equal(io_write_full(fd, c->data, c->len), 0);
	assert_int_equal(io_write_full(fd, c->entries, c->n * sizeof(c->entries[0])), 0);
	assert_int_equal(io_write_full(fd, &f, sizeof(f)), 0);
	close(fd);
}

static void
entries_that_lead_astray_are_found_before_they_are_followed(void **state)
{
	static const struct {
		struct pack_entry en;
		const char *why;
	} bad[] = {
		{{.hash = {{1}}, .offset = 0, .stored = 4096, .kind = 1}, "outside"},
		{{.hash = {{1}}, .offset = 65, .stored = 4096, .kind = 1}, "outside"},
		{{.hash = {{1}}, .offset = UINT64_MAX - 10, .stored = 4096, .kind = 1},
			"outside"},
		{{.hash = {{1}}, .offset = 16, .stored = UINT32_MAX, .kind = 1},
			"outside"},
		{{.hash = {{1}}, .offset = 16, .stored = 4095, .kind = 1}, "impossible"},
		{{.hash = {{1}}, .offset = 16, .stored = 4096, .kind = 2}, "impossible"},
		{{.hash = {{1}}, .offset = 16, .stored = 4096, .kind = 1, .coding = 1},
			"impossible"},
		{{.hash = {{1}}, .offset = 16, .stored = 0, .kind = 1, .coding = 1},
			"impossible"},
		{{.hash = {{1}}, .offset = 16, .stored = 72, .kind = 1, .coding = 2},
			"impossible"},
		{{.hash = {{1}}, .offset = 16, .stored = 39, .kind = 2, .coding = 2},
			"impossible"},
		{{.hash = {{1}}, .offset = 16, .stored = 40, .kind = 2, .coding = 3},
			"impossible"},
		{{.hash = {{1}}, .offset = 16, .stored = 4096, .kind = 0},
			"unknown kind"},
		{{.hash = {{1}}, .offset = 16, .stored = 4096, .kind = 3},
			"unknown kind"},
		{{.hash = {{0}}, .offset = 16, .stored = 4096, .kind = 1}, "zeroes"},
	};
	static struct crafted c;

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		memset(&c, 0, sizeof(c));
		c.len = 4144; /* nothing is added to it */
		c.entries[c.n++] = bad[i].en;
		plant_pack(&c, true);
		reopen();
		assert_int_equal(verify(NULL), 1);
		if (!strstr(damages[0].text, bad[i].why))
			fail_msg("%u: %s", i, damages[0].text);
		ok(store_gc(store, NULL, 0, NULL, &e));
		is_sound();
	}
	memset(&c, 0, sizeof(c));
	craft(&c, CHUNK_PAGE, CODING_RAW, &(struct store_hash){{2}}, pages, 4096);
	craft(&c, CHUNK_PAGE, CODING_RAW, &(struct store_hash){{1}}, pages, 4096);
	plant_pack(&c, true);
	reopen();
	assert_int_equal(verify(NULL), 1);
	assert_non_null(strstr(damages[0].text, "not sorted"));
	ok(store_gc(store, NULL, 0, NULL, &e));
	memset(&c, 0, sizeof(c));
	craft(&c, CHUNK_PAGE, CODING_RAW, &(struct store_hash){{1}}, pages, 4096);
	craft(&c, CHUNK_PAGE, CODING_RAW, &(struct store_hash){{1}}, pages, 4096);
	plant_pack(&c, true);
	reopen();
	assert_int_equal(verify(NULL), 1);
}

static void
commit_tree(const struct store_tree *t, char ret_id[STORE_ID_MAX])
{
	char text[1000], root[STORE_ID_MAX];

	hash_to_hex(&t->root, root);
	snprintf(text, sizeof(text),
		HEAD "1,\"labels\":{},\"message\":\"\",\"parent\":null,\"trees\":{" EMPTY(
			"disk") ",\"memory\":{\"length\":%llu,\"root\":\"%s\"}," EMPTY("s"
										       "t"
										       "a"
										       "t"
										       "e") "}}",
		(unsigned long long)t->length, root);
	plant(text, ret_id);
}

static void
chunks_that_are_not_what_their_name_says_are_not_given(void **state)
{
	static struct crafted c;
	struct store_hash node[NODE_FANOUT] = {{{0}}}, page_hash, node_hash, lie = {{7}};
	uint8_t page[STORE_PAGE];
	struct {
		struct node_delta d;
		uint8_t child[STORE_HASH_BYTES];
	} d = {0};
	char planted[STORE_ID_MAX];
	struct store_tree t = {.length = 64 * STORE_PAGE};

	(void)state;
	fill(page, 8);
	hash_of(HASH_PLAIN, page, sizeof(page), &page_hash);
	node[0] = page_hash;
	node[1] = lie;			    /* no page has that hash */
	node[2] = (struct store_hash){{9}}; /* bad zstd */
	hash_of(HASH_NODE, node, sizeof(node), &node_hash);
	craft(&c, CHUNK_PAGE, CODING_RAW, &page_hash, page, sizeof(page));
	craft(&c, CHUNK_PAGE, CODING_RAW, &lie, page, sizeof(page));
	craft(&c, CHUNK_PAGE, CODING_ZSTD, &node[2], page, 100);
	craft(&c, CHUNK_NODE, CODING_RAW, &node_hash, node, sizeof(node));
	plant_pack(&c, false);
	t.root = node_hash;
	commit_tree(&t, planted);
	reopen();
	assert_int_equal(verify(planted), 1);
	assert_int_equal(damages[0].first_page, 1);
	assert_int_equal(damages[0].pages, 2);
	ok(store_tree_read(store, &t, 0, 1, pages, &e));
	refused(store_tree_read(store, &t, 1, 1, pages, &e), -EBADMSG, "damaged");
	refused(store_tree_read(store, &t, 2, 1, pages, &e), -EBADMSG, "damaged");
	/* The same node, one level too high: its pages are no nodes. */
	t.length = 4096 * STORE_PAGE;
	commit_tree(&t, planted);
	assert_true(verify(planted) >= 1);
	assert_int_equal(damages[0].kind, STORE_DAMAGE_MISSING);
	/* And in a tree that ends before its pages do. */
	t.length = 2 * STORE_PAGE;
	commit_tree(&t, planted);
	assert_int_equal(verify(planted), 1);
	assert_non_null(strstr(damages[0].text, "beyond its end"));
	t.length = STORE_PAGE - 1;
	commit_tree(&t, planted);
	assert_int_equal(verify(planted), 1);
	refused(store_tree_read(store, &t, 0, 1, pages, &e), -EBADMSG, "beyond");
	/* Deltas: of itself, of another delta, of nothing, of the wrong length. */
	memset(&c, 0, sizeof(c));
	d.d = (struct node_delta){.reference = {{0x11}}, .changed = 1};
	craft(&c, CHUNK_NODE, CODING_DELTA, &(struct store_hash){{0x11}}, &d, sizeof(d));
	d.d.reference.b[0] = 0x13;
	craft(&c, CHUNK_NODE, CODING_DELTA, &(struct store_hash){{0x12}}, &d, sizeof(d));
	d.d.reference.b[0] = 0x12;
	craft(&c, CHUNK_NODE, CODING_DELTA, &(struct store_hash){{0x13}}, &d, sizeof(d));
	d.d.reference = node_hash;
	craft(&c, CHUNK_NODE, CODING_DELTA, &(struct store_hash){{0x14}}, &d,
		sizeof(d) - 1);
	d.d.reference = (struct store_hash){{0}};
	craft(&c, CHUNK_NODE, CODING_DELTA, &(struct store_hash){{0x15}}, &d, sizeof(d));
	plant_pack(&c, false);
	reopen();
	for (uint8_t b = 0x11; b <= 0x15; b++) {
		t = (struct store_tree){{{b}}, 64 * STORE_PAGE};
		refused(store_tree_read(store, &t, 0, 1, pages, &e), -EBADMSG, "node");
		refused(store_gc(store, &t, 1, NULL, &e), -EBADMSG, "");
	}
}

static void
a_damage_that_two_commits_share_is_told_of_both(void **state)
{
	char other[STORE_ID_MAX];

	(void)state;
	flip(pack, 16 + 10 * 4096 + 5);
	commit_values(id, NULL, NULL, values, N, other, NULL);
	reopen();
	assert_int_equal(verify(NULL), 2);
	assert_string_not_equal(damages[0].commit, damages[1].commit);
}

#define STORE_TEST(name) \
	cmocka_unit_test_setup_teardown(name, setup_commit, teardown_store)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		STORE_TEST(a_flipped_byte_is_named_with_commit_tree_pages_and_pack),
		STORE_TEST(a_damaged_node_stands_for_all_its_pages),
		STORE_TEST(what_was_damaged_is_whole_again_when_it_is_committed_again),
		STORE_TEST(gc_is_refused_while_a_commit_is_damaged),
		STORE_TEST(
			a_pack_that_is_cut_or_changed_anywhere_outside_its_chunks_is_named),
		STORE_TEST(
			a_pack_that_cannot_be_read_is_repaired_where_its_chunks_are_sound),
		STORE_TEST(what_a_repair_cannot_save_is_named_and_the_rest_is_usable),
		STORE_TEST(half_a_pack_gives_its_half),
		STORE_TEST(
			deltas_and_compressed_chunks_are_repaired_with_and_without_an_index),
		STORE_TEST(a_pack_cut_below_a_running_store_is_an_error),
		STORE_TEST(a_pack_that_is_gone_is_missed),
		STORE_TEST(files_that_are_no_files_are_not_opened),
		STORE_TEST(an_edited_manifest_is_refused_by_name),
		STORE_TEST(
			manifests_that_pando_would_not_write_are_refused_though_their_hash_is_right),
		STORE_TEST(a_parent_or_tag_that_leads_nowhere_is_reported),
		STORE_TEST(a_store_of_another_version_or_none_is_refused),
		STORE_TEST(entries_that_lead_astray_are_found_before_they_are_followed),
		STORE_TEST(chunks_that_are_not_what_their_name_says_are_not_given),
		STORE_TEST(a_damage_that_two_commits_share_is_told_of_both),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
