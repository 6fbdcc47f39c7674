/* The commit store as its users see it: host/store/store.h. */
#include "tests/unit/store_help.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

#include "host/store/store_priv.h"

#define MANY 5000u /* pages: three levels */

static uint32_t values[MANY], other[MANY];

/* Some pages zero, some alike, some of either kind. */
static void
some_values(uint32_t seed)
{
	for (uint32_t i = 0; i < MANY; i++)
		values[i] = i / 100 % 3 == 1 ? 0 : i % 7 == 0 ? seed : seed + i;
	memcpy(other, values, sizeof(other));
}

static struct store_tree
memory_of(const char *name)
{
	struct store_manifest *m;
	struct store_tree t;

	ok(store_load(store, name, &m, &e));
	t = m->f.memory;
	store_manifest_free(m);
	return t;
}

static void
a_commit_reads_back_as_it_was_also_in_a_copy_of_the_folder(void **state)
{
	struct store_fields f = {.created_ms = 77,
		.message = "warm, \"quoted\"\nand \xc3\xa9",
		.labels = "{ \"b\":\"2\", \"a\":\"1\" }",
		.config = "{\"z\":[1, -2,null,true],\"a\":{\"y\":\"\\u00e9\",\"x\":"
			  "18446744073709551615}}",
		.cpu = "{}"};
	char id[STORE_ID_MAX], command[512];
	struct store_manifest *m;
	struct store_writer *w;
	struct store_stats stats;
	uint8_t state_page[STORE_PAGE];

	(void)state;
	some_values(1000);
	ok(store_begin(store, &w, &e));
	f.memory = put_values(w, NULL, NULL, values, MANY);
	values[3] = 9;
	f.disk = put_values(w, NULL, NULL, values, 64);
	ok(store_put_blob(w, "registers and such", 18, &f.state, &e));
	ok(store_commit(w, &f, id, &stats, &e));
	assert_int_equal(stats.pages_put, (uint64_t)MANY - 1700 + 64 + 1 - 0);
	ok(store_tag_set(store, "golden", id, false, &e));
	store_close(store);
	store = NULL;
	snprintf(command, sizeof(command), "cp -r %s/home %s/elsewhere", folder, folder);
	assert_int_equal(system(command), 0);
	snprintf(store_path, sizeof(store_path), "%s/elsewhere/store", folder);
	ok(store_open(store_path, &store, &e));
	ok(store_load(store, "golden", &m, &e));
	assert_string_equal(m->id, id);
	assert_null(m->f.parent);
	assert_int_equal(m->f.created_ms, 77);
	assert_string_equal(m->f.message, f.message);
	assert_string_equal(m->f.labels, "{\"a\":\"1\",\"b\":\"2\"}");
	assert_string_equal(m->f.config, "{\"a\":{\"x\":18446744073709551615,\"y\":"
					 "\"\xc3\xa9\"},\"z\":[1,-2,null,true]}");
	has_values(&m->f.disk, values, 64);
	values[3] = other[3];
	has_values(&m->f.memory, values, MANY);
	assert_int_equal(m->f.state.length, 18);
	ok(store_tree_read(store, &m->f.state, 0, 1, state_page, &e));
	assert_memory_equal(state_page, "registers and such", 19);
	store_manifest_free(m);
	is_sound();
}

static void
the_id_is_the_hash_of_the_manifest_file(void **state)
{
	char id[STORE_ID_MAX], path[256], *text, hex[STORE_ID_MAX];
	struct store_hash h;
	size_t len;

	(void)state;
	values[0] = 5;
	commit_values(NULL, NULL, NULL, values, 1, id, NULL);
	snprintf(path, sizeof(path), "%s/commits/%s.json", store_path, id);
	ok(io_read_file(path, 100000, &text, &len, &e));
	hash_of(HASH_PLAIN, text, len, &h);
	hash_to_hex(&h, hex);
	assert_string_equal(hex, id);
	assert_non_null(strstr(text, "{\"config\":{},\"cpu\":{},\"created_ms\":"));
	assert_non_null(
		strstr(text, ",\"format\":1,\"labels\":{},\"message\":\"\",\"parent\":"
			     "null,\"trees\":{\"disk\":{\"length\":0,"));
	free(text);
}

static void
the_same_content_is_stored_once_and_zeroes_not_at_all(void **state)
{
	char a[STORE_ID_MAX], b[STORE_ID_MAX], c[STORE_ID_MAX];
	struct store_stats stats;
	struct store_tree t;

	(void)state;
	some_values(50);
	commit_values(NULL, NULL, NULL, values, MANY, a, &stats);
	assert_true(stats.new_pages > 1000);
	assert_int_equal(count_files("packs"), 1);
	commit_values(a, NULL, NULL, values, MANY, b, &stats);
	assert_string_not_equal(a, b); /* another parent */
	assert_int_equal(stats.new_pages, 0);
	assert_int_equal(stats.new_nodes, 0);
	assert_true(stats.bytes_written < 2000);
	assert_int_equal(count_files("packs"), 1);
	memset(values, 0, sizeof(values));
	commit_values(NULL, NULL, NULL, values, MANY, c, &stats);
	t = memory_of(c);
	assert_true(hash_is_zero(&t.root));
	has_values(&t, values, MANY);
	assert_int_equal(count_files("packs"), 1);
	is_sound();
}

static void
a_commit_on_a_base_writes_only_what_changed(void **state)
{
	enum { N = 20000 };
	static uint32_t was[N], is[N];
	char a[STORE_ID_MAX], b[STORE_ID_MAX], c[STORE_ID_MAX];
	struct store_tree base;
	struct store_stats stats;

	(void)state;
	for (uint32_t i = 0; i < N; i++)
		was[i] = is[i] = 2 * i + 2; /* does not compress */
	commit_values(NULL, NULL, NULL, was, N, a, NULL);
	base = memory_of(a);
	for (uint32_t i = 0; i < 1000; i++)
		is[5000 + i] += 1000000;
	commit_values(a, &base, was, is, N, b, &stats);
	assert_int_equal(stats.pages_put, 1000);
	assert_int_equal(stats.new_pages, 1000);
	assert_true(stats.bytes_written < 1000 * 4096 * 11 / 10);
	base = memory_of(b);
	has_values(&base, is, N);
	/* Scattered: a leaf node for nearly each page, as deltas of two commits ago. */
	memcpy(was, is, sizeof(was));
	for (uint32_t i = 0; i < 300; i++)
		is[i * 64 + i % 64] += 3000000;
	commit_values(b, &base, was, is, N, c, &stats);
	assert_int_equal(stats.new_pages, 300);
	assert_true(stats.bytes_written < 300 * 4096 * 11 / 10);
	base = memory_of(c);
	has_values(&base, is, N);
	memcpy(was, is, sizeof(was));
	for (uint32_t i = 0; i < 300; i++)
		is[i * 64 + (i + 1) % 64] += 4000000;
	commit_values(c, &base, was, is, N, b, &stats);
	assert_true(stats.bytes_written < 300 * 4096 * 11 / 10);
	reopen();
	base = memory_of(b);
	has_values(&base, is, N);
	is_sound();
}

static void
the_tree_does_not_depend_on_the_base_it_was_made_from(void **state)
{
	static const uint64_t lengths[] = {1, 2, 63, 64, 65, 127, 4095, 4096, 4097, 4999};
	struct store_tree small, fresh, based;
	struct store_writer *w;
	char id[STORE_ID_MAX];

	(void)state;
	some_values(31);
	for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		memcpy(other, values, sizeof(other));
		memset(other + lengths[i], 0, (MANY - lengths[i]) * sizeof(*other));
		commit_values(NULL, NULL, NULL, values, lengths[i], id, NULL);
		small = memory_of(id);
		ok(store_begin(store, &w, &e));
		fresh = put_values(w, NULL, NULL, values, MANY);
		based = put_values(w, &small, other, values, MANY);
		assert_memory_equal(&fresh, &based, sizeof(fresh));
		fresh = put_values(w, NULL, NULL, other, MANY);
		based = put_values(w, &small, other, other, MANY); /* nothing put */
		assert_memory_equal(&fresh, &based, sizeof(fresh));
		store_abort(w);
	}
	assert_int_equal(count_files("commits"), sizeof(lengths) / sizeof(lengths[0]));
}

static void
a_base_may_not_be_longer_or_missing(void **state)
{
	struct store_tree t = {.length = 2 * STORE_PAGE};
	struct store_tree_writer *tw;
	struct store_writer *w;

	(void)state;
	ok(store_begin(store, &w, &e));
	refused(store_tree_begin(w, &t, STORE_PAGE, &tw, &e), -EINVAL, "only grow");
	t.root.b[0] = 1;
	refused(store_tree_begin(w, &t, t.length, &tw, &e), -EBADMSG, "in no pack");
	refused(store_tree_begin(w, NULL, STORE_LENGTH_MAX + 1, &tw, &e), -EINVAL,
		"at most");
	store_abort(w);
}

static void
pages_are_put_ascending_and_within_the_length(void **state)
{
	struct store_tree_writer *t;
	struct store_writer *w;
	uint8_t page[2 * STORE_PAGE] = {1};
	struct store_fields f = {0};
	char id[STORE_ID_MAX];

	(void)state;
	ok(store_begin(store, &w, &e));
	ok(store_tree_begin(w, NULL, 10 * STORE_PAGE, &t, &e));
	ok(store_tree_put(t, 3, page, 2, &e));
	refused(store_tree_put(t, 4, page, 1, &e), -EINVAL, "goes on at 5");
	refused(store_tree_put(t, 9, page, 2, &e), -EINVAL, "of 10 pages");
	refused(store_tree_put(t, 5, page, UINT64_MAX, &e), -EINVAL, "of 10 pages");
	ok(store_tree_put(t, 9, page, 1, &e));
	refused(store_commit(w, &f, id, NULL, &e), -EINVAL, "not finished");
	assert_int_equal(count_files("packs"), 0);
}

static void
a_content_of_any_length_is_kept_to_the_byte(void **state)
{
	static const uint64_t lengths[] = {
		0, 1, 4095, 4096, 4097, 262144, 262145, 700001};
	uint8_t *data = malloc(700001), *got = malloc(700001 + STORE_PAGE);
	struct store_fields f = {.created_ms = 1};
	char id[STORE_ID_MAX];
	struct store_writer *w;

	(void)state;
	for (size_t i = 0; i < 700001; i++)
		data[i] = (uint8_t)(i * 7 + i / 4096 + 1);
	for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		ok(store_begin(store, &w, &e));
		ok(store_put_blob(w, data, lengths[i], &f.state, &e));
		ok(store_commit(w, &f, id, NULL, &e));
		assert_int_equal(f.state.length, lengths[i]);
		ok(store_tree_read(store, &f.state, 0, (lengths[i] + 4095) / 4096, got, &e));
		assert_memory_equal(got, data, lengths[i]);
	}
	free(data);
	free(got);
	is_sound();
}

static void
reads_of_ranges_are_those_pages_and_not_beyond_the_end(void **state)
{
	static uint8_t buf[200 * STORE_PAGE], page[STORE_PAGE];
	char id[STORE_ID_MAX];
	struct store_tree t;

	(void)state;
	some_values(10);
	commit_values(NULL, NULL, NULL, values, MANY, id, NULL);
	t = memory_of(id);
	for (uint64_t first = 0; first + 200 <= MANY; first += 93) {
		ok(store_tree_read(store, &t, first, 200, buf, &e));
		for (uint64_t i = 0; i < 200; i++) {
			fill(page, values[first + i]);
			assert_memory_equal(page, buf + i * STORE_PAGE, STORE_PAGE);
		}
	}
	ok(store_tree_read(store, &t, MANY, 0, buf, &e));
	refused(store_tree_read(store, &t, MANY - 1, 2, buf, &e), -EINVAL,
		"of 5000 pages");
	refused(store_tree_read(store, &t, 1, UINT64_MAX, buf, &e), -EINVAL,
		"of 5000 pages");
}

struct seen {
	uint64_t n, last;
	uint8_t hit[MANY];
};

static int
see(void *ctx, uint64_t page, const void *data, struct err *err)
{
	struct seen *s = ctx;

	(void)err;
	assert_true(page < MANY && (!s->n || page > s->last));
	assert_null(data);
	s->hit[page] = 1;
	s->last = page;
	s->n++;
	return page == 4321 ? 7 : 0;
}

static void
a_diff_calls_for_the_pages_that_differ(void **state)
{
	static struct seen seen;
	char a[STORE_ID_MAX], b[STORE_ID_MAX];
	struct store_tree ta, tb, none = {.length = 0};

	(void)state;
	some_values(20);
	values[4321] = 0;
	memcpy(other, values, sizeof(other));
	commit_values(NULL, NULL, NULL, values, MANY, a, NULL);
	other[5] = other[99] = 123456;
	other[640] = 0;
	other[110] = 77;
	commit_values(NULL, NULL, NULL, other, 4200, b, NULL);
	ta = memory_of(a);
	tb = memory_of(b);
	ok(store_tree_diff(store, &none, &ta, see, &seen, &e));
	for (uint32_t i = 0; i < MANY; i++)
		assert_int_equal(seen.hit[i], values[i] != 0);
	for (int turn = 0; turn < 2; turn++) {
		memset(&seen, 0, sizeof(seen));
		ok(store_tree_diff(
			store, turn ? &ta : &tb, turn ? &tb : &ta, see, &seen, &e));
		for (uint32_t i = 0; i < MANY; i++)
			assert_int_equal(
				seen.hit[i], values[i] != (i < 4200 ? other[i] : 0));
	}
	memset(&seen, 0, sizeof(seen));
	ok(store_tree_diff(store, &ta, &ta, see, &seen, &e));
	assert_int_equal(seen.n, 0);
	/* What the callback says ends it. */
	values[4321] = 8;
	commit_values(NULL, NULL, NULL, values, MANY, a, NULL);
	ta = memory_of(a);
	assert_int_equal(store_tree_diff(store, &none, &ta, see, &seen, &e), 7);
	assert_int_equal(seen.last, 4321);
}

static void
file_has(int fd, const uint32_t *v, uint64_t n)
{
	uint8_t page[STORE_PAGE], got[STORE_PAGE];
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, n * STORE_PAGE);
	for (uint64_t i = 0; i < n; i++) {
		fill(page, v[i]);
		assert_int_equal(io_pread_full(fd, got, sizeof(got), i * STORE_PAGE), 0);
		assert_memory_equal(page, got, STORE_PAGE);
	}
}

static void
a_file_gets_the_content_with_holes_or_only_what_differs(void **state)
{
	char a[STORE_ID_MAX], b[STORE_ID_MAX], path[128];
	struct store_tree ta, tb;
	struct stat st;
	int fd;

	(void)state;
	some_values(40);
	commit_values(NULL, NULL, NULL, values, MANY, a, NULL);
	for (uint32_t i = 0; i < 2000; i += 3)
		other[i] = i % 2 ? 0 : 600000 + i;
	commit_values(a, NULL, NULL, other, 4500, b, NULL);
	ta = memory_of(a);
	tb = memory_of(b);
	snprintf(path, sizeof(path), "%s/flat", folder);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	ok(store_tree_to_file(store, &ta, NULL, fd, &e));
	file_has(fd, values, MANY);
	assert_int_equal(fstat(fd, &st), 0);
	assert_true(st.st_blocks * 512 <= (MANY - 1500) * (long)STORE_PAGE);
	ok(store_tree_to_file(store, &tb, &ta, fd, &e));
	file_has(fd, other, 4500);
	ok(store_tree_to_file(store, &ta, &tb, fd, &e));
	file_has(fd, values, MANY);
	close(fd);
}

static void
a_file_of_a_damaged_content_is_refused_and_the_page_named(void **state)
{
	char a[STORE_ID_MAX], path[128], pack[256];
	struct store_tree ta;
	int fd;

	(void)state;
	some_values(41);
	commit_values(NULL, NULL, NULL, values, MANY, a, NULL);
	ta = memory_of(a);
	pack_path(0, pack, sizeof(pack));
	flip(pack, file_size(pack) / 2);
	snprintf(path, sizeof(path), "%s/flat", folder);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	/* The index is a part of the file, too: then the pack is refused as a whole. */
	for (int i = 0; i < 2; i++)
		refused(store_tree_to_file(store, &ta, NULL, fd, &e), -EBADMSG, "damaged");
	close(fd);
}

static void
a_commit_is_found_by_id_tag_and_unique_prefix(void **state)
{
	char ids[40][STORE_ID_MAX], got[STORE_ID_MAX], prefix[STORE_ID_MAX], name[300];
	char twin[STORE_ID_MAX];

	(void)state;
	for (int i = 0; i < 40; i++) {
		values[0] = 5;
		commit_values(NULL, NULL, NULL, values, 1, ids[i], NULL);
		ok(store_resolve(store, ids[i], got, &e));
		assert_string_equal(got, ids[i]);
	}
	snprintf(prefix, sizeof(prefix), "%.12s", ids[7]);
	prefix[0] = (char)(prefix[0] >= 'a' ? prefix[0] - 32 : prefix[0]);
	ok(store_resolve(store, prefix, got, &e));
	assert_string_equal(got, ids[7]);
	prefix[3] = '\0';
	refused(store_resolve(store, prefix, got, &e), -ENOENT, "at least 4 digits");
	refused(store_resolve(store, "", got, &e), -EINVAL, "");
	refused(store_resolve(store, "000000000000", got, &e), -ENOENT, "000000000000");
	refused(store_resolve(store, "no-such", got, &e), -ENOENT, "no-such");
	refused(store_resolve(store, "../../etc", got, &e), -EINVAL, "a tag may have");
	memset(name, 'a', sizeof(name));
	name[299] = '\0';
	refused(store_resolve(store, name, got, &e), -EINVAL, "1 to 64");
	/* Two with the same eight digits: of a name's hash nobody can find such by
	   trying, so the second is a file that is only there to be a candidate. */
	memcpy(twin, ids[3], sizeof(twin));
	twin[20] = twin[20] == '0' ? '1' : '0';
	snprintf(name, sizeof(name), "%s/commits/%s.json", store_path, twin);
	ok(io_write_file_atomic(name, "x", 1, 0600, &e));
	reopen(); /* what others put there is seen by the next who opens it */
	snprintf(prefix, sizeof(prefix), "%.8s", ids[3]);
	refused(store_resolve(store, prefix, got, &e), -EEXIST, "any of 2 commits");
	snprintf(name, sizeof(name), "%.16s", ids[3]);
	assert_non_null(strstr(e.msg, name));
	ok(store_tag_set(store, prefix, ids[9], false, &e));
	ok(store_resolve(store, prefix, got, &e)); /* a tag goes first */
	assert_string_equal(got, ids[9]);
	ok(store_resolve(store, ids[3], got, &e));
	assert_string_equal(got, ids[3]);
}

static void
tags_are_made_moved_listed_and_deleted(void **state)
{
	char a[STORE_ID_MAX], b[STORE_ID_MAX], got[STORE_ID_MAX], name[80];
	struct store_tag *tags;
	size_t n;

	(void)state;
	values[0] = 1;
	commit_values(NULL, NULL, NULL, values, 1, a, NULL);
	commit_values(NULL, NULL, NULL, values, 1, b, NULL);
	ok(store_tag_set(store, "v1.0_x-Y", a, false, &e));
	refused(store_tag_set(store, "v1.0_x-Y", b, false, &e), -EEXIST, "already");
	ok(store_tag_set(store, "v1.0_x-Y", b, true, &e));
	ok(store_tag_set(store, "a", a, true, &e));
	reopen();
	ok(store_tag_get(store, "v1.0_x-Y", got, &e));
	assert_string_equal(got, b);
	ok(store_tags(store, &tags, &n, &e));
	assert_int_equal(n, 2);
	assert_string_equal(tags[0].name, "a");
	assert_string_equal(tags[1].id, b);
	free(tags);
	ok(store_tag_delete(store, "a", &e));
	refused(store_tag_delete(store, "a", &e), -ENOENT, "no tag \"a\"");
	refused(store_tag_get(store, "a", got, &e), -ENOENT, "\"a\"");
	refused(store_tag_set(store, "x", "beef", false, &e), -ENOENT, "no commit beef");
	memset(name, 'x', sizeof(name));
	name[65] = '\0';
	refused(store_tag_set(store, name, a, false, &e), -EINVAL, "1 to 64");
	name[64] = '\0';
	ok(store_tag_set(store, name, a, false, &e));
	ok(store_tags(store, &tags, &n, &e));
	assert_int_equal(n, 2);
	free(tags);
	refused(store_tag_set(store, a, a, false, &e), -EINVAL, "look like");
	refused(store_tag_set(store, "", a, false, &e), -EINVAL, "1 to 64");
	refused(store_tag_set(store, ".hidden", a, false, &e), -EINVAL, "dot");
	refused(store_tag_set(store, "a/b", a, false, &e), -EINVAL, "may have");
	refused(store_tag_set(store, "tmp.1", a, false, &e), -EINVAL, "own");
}

static void
lists_are_newest_first(void **state)
{
	char ids[5][STORE_ID_MAX];
	struct store_page l;

	(void)state;
	values[0] = 1;
	for (int i = 0; i < 5; i++)
		commit_values(i ? ids[i < 3 ? 0 : 2] : NULL, NULL, NULL, values, 1,
			ids[i], NULL);
	ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &l, &e));
	assert_int_equal(l.n, 5);
	assert_int_equal(l.damaged, 0);
	for (int i = 0; i < 5; i++)
		assert_string_equal(l.v[i].m->id, ids[4 - i]);
	store_page_done(&l);
}

static void
a_parent_is_deleted_only_with_its_descendants(void **state)
{
	char ids[5][STORE_ID_MAX], name[16];
	struct store_ids gone;
	struct store_page l;
	struct store_used used;

	(void)state;
	values[0] = 1;
	for (int i = 0; i < 5; i++)
		commit_values(i ? ids[i < 3 ? 0 : 2] : NULL, NULL, NULL, values, 1,
			ids[i], NULL);
	ok(store_tag_set(store, "leaf", ids[4], false, &e));
	ok(store_tag_set(store, "kept", ids[1], false, &e));
	snprintf(name, sizeof(name), "%.12s", ids[3]);
	refused(store_delete(store, ids[2], 0, NULL, &e), -ENOTEMPTY, name);
	ok(store_delete(
		store, ids[2], STORE_DELETE_RECURSIVE | STORE_DELETE_DRY_RUN, &gone, &e));
	assert_int_equal(gone.n, 3);
	assert_string_equal(gone.ids[2], ids[2]);
	store_ids_done(&gone);
	ok(store_usage(store, &used, &e));
	assert_int_equal(used.commits, 5);
	assert_int_equal(used.tags, 2);
	assert_int_equal(used.packs, 1);
	assert_true(used.bytes > 1000 && used.bytes < 10000);
	ok(store_delete(store, ids[2], STORE_DELETE_RECURSIVE, &gone, &e));
	assert_int_equal(gone.n, 3);
	store_ids_done(&gone);
	ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &l, &e));
	assert_int_equal(l.n, 2);
	store_page_done(&l);
	ok(store_usage(store, &used, &e));
	assert_int_equal(used.tags, 1);
	refused(store_delete(store, ids[2], 0, NULL, &e), -ENOENT, "no commit");
	ok(store_delete(store, ids[1], 0, NULL, &e));
	ok(store_delete(store, ids[0], 0, NULL, &e));
	is_sound();
}

static void
fields_that_cannot_be_are_refused_and_leave_nothing(void **state)
{
	static const struct {
		struct store_fields f;
		int code;
		const char *text;
	} bad[] = {
		{{.config = "{\"a\":1.5}"}, -EINVAL, "config: JSON: a number"},
		{{.config = "{\"a\":1e3}"}, -EINVAL, "number"},
		{{.config = "{\"a\":18446744073709551616}"}, -EINVAL, "number"},
		{{.config = "[1]"}, -EINVAL, "not a JSON object"},
		{{.config = "{\"a\":1,\"a\":2}"}, -EINVAL, "twice"},
		{{.config = "{"}, -EINVAL, "config: JSON"},
		{{.cpu = "{\"a\":\"\\u0000\"}"}, -EINVAL, "NUL"},
		{{.labels = "{\"a\":1}"}, -EINVAL, "no string"},
		{{.parent = "beef"}, -EINVAL, "no commit id"},
		{{.parent = "000000000000000000000000000000000000000000000000000000000000"
			    "00"
			    "ff"},
			-ENOENT, "parent"},
		{{.memory = {{{1}}, 4096}}, -EINVAL, "memory is not in the store"},
		{{.disk = {{{1}}, 0}}, -EINVAL, "no bytes"},
		{{.state = {{{0}}, STORE_LENGTH_MAX + 1}}, -EINVAL, "at most"},
	};
	char id[STORE_ID_MAX], deep[200];
	struct store_fields f = {.config = deep};
	struct store_writer *w;

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ok(store_begin(store, &w, &e));
		refused(store_commit(w, &bad[i].f, id, NULL, &e), bad[i].code,
			bad[i].text);
	}
	/* As deep as JSON may be by itself, one too deep in a manifest. */
	strcpy(deep, "{\"a\":");
	memset(deep + 5, '[', 63);
	memset(deep + 5 + 63, ']', 63);
	strcpy(deep + 5 + 126, "}");
	ok(store_begin(store, &w, &e));
	refused(store_commit(w, &f, id, NULL, &e), -EINVAL, "too deep");
	assert_int_equal(count_files("commits"), 0);
	assert_int_equal(count_files("packs"), 0);
}

static void
an_aborted_commit_leaves_no_file(void **state)
{
	struct store_tree_writer *t;
	struct store_writer *w;

	(void)state;
	some_values(3);
	ok(store_begin(store, &w, &e));
	put_values(w, NULL, NULL, values, MANY);
	ok(store_tree_begin(w, NULL, 4096, &t, &e));
	assert_int_equal(count_files("packs"), 1); /* the temporary one */
	store_abort(w);
	assert_int_equal(count_files("packs"), 0);
	store_abort(NULL);
}

static void
a_store_is_one_processs_at_a_time(void **state)
{
	struct store *second;

	(void)state;
	refused(store_open(store_path, &second, &e), -EBUSY, "in use");
	store_close(store);
	ok(store_open(store_path, &second, &e));
	store = second;
}

static void
gc_removes_what_no_commit_or_root_needs_and_nothing_else(void **state)
{
	char a[STORE_ID_MAX], b[STORE_ID_MAX], c[STORE_ID_MAX];
	struct store_tree ta, tb, tc;
	struct store_freed freed;
	struct store_used before, after;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, MANY, a, NULL);
	ta = memory_of(a);
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(freed.bytes, 0);
	/* b: a few changes, stored as deltas of a's nodes. */
	for (uint32_t i = 0; i < MANY; i += 200)
		other[i] += 50000;
	commit_values(NULL, &ta, values, other, MANY, b, NULL);
	tb = memory_of(b);
	commit_values(NULL, NULL, NULL, (uint32_t[]){5, 6, 7}, 3, c, NULL);
	tc = memory_of(c);
	/* Both marked: what one is a delta of is walked all the same. */
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(freed.bytes, 0);
	has_values(&ta, values, MANY);
	is_sound();
	ok(store_delete(store, c, 0, NULL, &e));
	ok(store_gc(store, &tc, 1, &freed, &e));
	assert_int_equal(freed.packs_removed, 0);
	has_values(&tc, (uint32_t[]){5, 6, 7}, 3);
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(freed.packs_removed, 1);
	assert_true(freed.bytes > 0);
	assert_int_equal(
		store_tree_read(store, &tc, 0, 3, (uint8_t[3 * STORE_PAGE]){0}, &e),
		-EBADMSG);
	/* a goes, b stays: a's nodes that b's are deltas of must too. */
	ok(store_delete(store, a, 0, NULL, &e));
	ok(store_gc(store, NULL, 0, &freed, &e));
	has_values(&tb, other, MANY);
	is_sound();
	/* Less than half of a's pack in use: it is written anew. */
	ok(store_usage(store, &before, &e));
	for (uint32_t i = 1000; i < MANY; i++)
		other[i] = 0;
	commit_values(NULL, NULL, NULL, other, MANY, c, NULL);
	ok(store_delete(store, b, 0, NULL, &e));
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_true(freed.packs_rewritten >= 1);
	ok(store_usage(store, &after, &e));
	assert_true(after.bytes < before.bytes / 2);
	tc = memory_of(c);
	has_values(&tc, other, MANY);
	reopen();
	has_values(&tc, other, MANY);
	is_sound();
	ok(store_delete(store, c, 0, NULL, &e));
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(count_files("packs"), 0);
}

static void
many_small_packs_become_few_by_themselves(void **state)
{
	char id[STORE_ID_MAX] = "";
	struct store_tree t;
	struct store_freed freed;

	(void)state;
	memset(values, 0, sizeof(values));
	for (uint32_t i = 0; i < 100; i++) {
		values[i] = i + 1;
		commit_values(i ? id : NULL, NULL, NULL, values, 100, id, NULL);
	}
	t = memory_of(id);
	has_values(&t, values, 100);
	for (unsigned i = 0; count_files("packs") > 14; i++) {
		if (i == 10000)
			fail_msg("%u packs", count_files("packs"));
		usleep(1000);
	}
	has_values(&t, values, 100);
	is_sound();
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(freed.bytes, 0);
	reopen();
	has_values(&t, values, 100);
	is_sound();
}

/* Two commits, the second with two contents at once on the first's; the packs' bytes one
 * after the other. */
static char *
packs_of_two_commits(unsigned threads, size_t *ret_len)
{
	struct store_fields f = {.created_ms = 1};
	struct store_tree_writer *one, *two;
	char id[STORE_ID_MAX], path[300], *all = NULL;
	uint8_t pages[3 * STORE_PAGE];
	struct store_writer *w;
	struct store_tree base;
	size_t len = 0;

	teardown_store(NULL);
	setup_store(NULL);
	store_set_threads(store, threads);
	ok(store_begin(store, &w, &e));
	f.memory = base = put_values(w, NULL, NULL, values, MANY);
	ok(store_commit(w, &f, id, NULL, &e));
	ok(store_begin(store, &w, &e));
	f.parent = id;
	ok(store_tree_begin(w, &base, MANY * STORE_PAGE, &one, &e));
	ok(store_tree_begin(w, NULL, MANY * STORE_PAGE - 7, &two, &e));
	for (uint32_t i = 0; i + 3 <= MANY; i += 3) {
		for (uint32_t k = 0; k < 3; k++)
			fill(pages + k * STORE_PAGE, (i + k) % 10 ? 600000 + i + k : 0);
		if (i % 2)
			ok(store_tree_put(one, i, pages, 3, &e));
		ok(store_tree_put(two, i, pages, 3, &e));
	}
	ok(store_tree_finish(one, &f.memory, &e));
	ok(store_tree_finish(two, &f.disk, &e));
	ok(store_commit(w, &f, id, NULL, &e));
	is_sound();
	for (unsigned i = 0; i < 2; i++) {
		size_t n;
		char *one_pack;

		pack_path(i, path, sizeof(path));
		ok(io_read_file(path, 1u << 28, &one_pack, &n, &e));
		all = realloc(all, len + n);
		memcpy(all + len, one_pack, n);
		len += n;
		free(one_pack);
	}
	assert_int_equal(count_files("packs"), 2);
	*ret_len = len;
	return all;
}

static void
packs_are_the_same_with_any_number_of_threads(void **state)
{
	static const unsigned threads[] = {2, 8, 0};
	char *expected, *is;
	size_t len, is_len;

	(void)state;
	some_values(3000);
	expected = packs_of_two_commits(1, &len);
	for (unsigned i = 0; i < 3; i++) {
		is = packs_of_two_commits(threads[i], &is_len);
		assert_int_equal(is_len, len);
		assert_memory_equal(is, expected, len);
		free(is);
	}
	free(expected);
}

struct job {
	pthread_t thread;
	uint32_t seed;
	char id[STORE_ID_MAX];
	int r;
};

static void *
commit_job(void *arg)
{
	struct job *j = arg;
	struct store_fields f = {.created_ms = j->seed};
	struct store_tree_writer *t;
	struct store_writer *w;
	uint8_t page[STORE_PAGE];

	j->r = store_begin(store, &w, NULL);
	if (j->r)
		return NULL;
	j->r = store_tree_begin(w, NULL, 700 * STORE_PAGE, &t, NULL);
	for (uint64_t i = 0; !j->r && i < 700; i++) {
		/* Half of it is the same in all. */
		fill(page, (uint32_t)i % 2 ? 9000 + (uint32_t)i : j->seed + (uint32_t)i);
		j->r = store_tree_put(t, i, page, 1, NULL);
	}
	if (!j->r)
		j->r = store_tree_finish(t, &f.memory, NULL);
	if (!j->r)
		j->r = store_commit(w, &f, j->id, NULL, NULL);
	else
		store_abort(w);
	return NULL;
}

static void *
gc_job(void *arg)
{
	struct job *j = arg;

	for (int i = 0; i < 10 && !j->r; i++)
		j->r = store_gc(store, NULL, 0, NULL, NULL);
	return NULL;
}

static void *
read_job(void *arg)
{
	static uint8_t buf[MANY * STORE_PAGE];
	struct job *j = arg;
	struct store_manifest *m;

	for (int i = 0; i < 5 && !j->r; i++) {
		j->r = store_load(store, j->id, &m, NULL);
		if (j->r)
			break;
		j->r = store_tree_read(store, &m->f.memory, 0, MANY, buf, NULL);
		store_manifest_free(m);
	}
	return NULL;
}

static void
commits_readers_and_gc_at_once_do_each_other_no_harm(void **state)
{
	struct job jobs[8] = {0}, gc = {0}, reader = {0};
	struct store_manifest *m;
	uint32_t v[700];

	(void)state;
	some_values(70000);
	commit_values(NULL, NULL, NULL, values, MANY, reader.id, NULL);
	pthread_create(&gc.thread, NULL, gc_job, &gc);
	pthread_create(&reader.thread, NULL, read_job, &reader);
	for (uint32_t i = 0; i < 8; i++) {
		jobs[i].seed = 100000 * (i / 2 + 1); /* two do the very same */
		pthread_create(&jobs[i].thread, NULL, commit_job, &jobs[i]);
	}
	for (uint32_t i = 0; i < 8; i++)
		pthread_join(jobs[i].thread, NULL);
	pthread_join(gc.thread, NULL);
	pthread_join(reader.thread, NULL);
	assert_int_equal(gc.r, 0);
	assert_int_equal(reader.r, 0);
	for (uint32_t i = 0; i < 8; i++) {
		assert_int_equal(jobs[i].r, 0);
		assert_string_equal(jobs[i].id, jobs[i / 2 * 2].id);
		for (uint32_t k = 0; k < 700; k++)
			v[k] = k % 2 ? 9000 + k : jobs[i].seed + k;
		ok(store_load(store, jobs[i].id, &m, &e));
		has_values(&m->f.memory, v, 700);
		store_manifest_free(m);
	}
	is_sound();
	reopen();
	is_sound();
}

static void
gc_waits_for_a_commit_that_is_under_way(void **state)
{
	struct store_fields f = {.created_ms = 5};
	char a[STORE_ID_MAX], b[STORE_ID_MAX];
	struct job gc = {0};
	struct store_writer *w;
	struct store_tree t;

	(void)state;
	some_values(60);
	commit_values(NULL, NULL, NULL, values, MANY, a, NULL);
	ok(store_begin(store, &w, &e));
	f.memory = put_values(w, NULL, NULL, values, MANY); /* all found */
	ok(store_delete(store, a, 0, NULL, &e));	    /* and now nobody's */
	pthread_create(&gc.thread, NULL, gc_job, &gc);
	usleep(20000);
	ok(store_commit(w, &f, b, NULL, &e));
	pthread_join(gc.thread, NULL);
	assert_int_equal(gc.r, 0);
	t = memory_of(b);
	has_values(&t, values, MANY);
	is_sound();
}

static void
numbers_in_json_are_integers_and_keys_sorted_by_bytes(void **state)
{
	static const char *const same[][2] = {
		{" [ 1 , -0 , \"\\u0041\\/\" ] ", "[1,0,\"A/\"]"},
		{"{\"b\":{},\"B\":[],\"a\":\"\\n\",\"\":null}",
			"{\"\":null,\"B\":[],\"a\":\"\\u000a\",\"b\":{}}"},
		{"{\"\xc3\xa9\":1,\"z\":-9223372036854775808}",
			"{\"z\":-9223372036854775808,\"\xc3\xa9\":1}"},
	};
	char *got, *again;

	(void)state;
	for (unsigned i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
		ok(json_canonical(same[i][0], strlen(same[i][0]), &got, &e));
		assert_string_equal(got, same[i][1]);
		ok(json_canonical(got, strlen(got), &again, &e));
		assert_string_equal(again, got);
		free(got);
		free(again);
	}
}

#define STORE_TEST(name) \
	cmocka_unit_test_setup_teardown(name, setup_store, teardown_store)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		STORE_TEST(a_commit_reads_back_as_it_was_also_in_a_copy_of_the_folder),
		STORE_TEST(the_id_is_the_hash_of_the_manifest_file),
		STORE_TEST(the_same_content_is_stored_once_and_zeroes_not_at_all),
		STORE_TEST(a_commit_on_a_base_writes_only_what_changed),
		STORE_TEST(packs_are_the_same_with_any_number_of_threads),
		STORE_TEST(the_tree_does_not_depend_on_the_base_it_was_made_from),
		STORE_TEST(a_base_may_not_be_longer_or_missing),
		STORE_TEST(pages_are_put_ascending_and_within_the_length),
		STORE_TEST(a_content_of_any_length_is_kept_to_the_byte),
		STORE_TEST(reads_of_ranges_are_those_pages_and_not_beyond_the_end),
		STORE_TEST(
			a_diff_calls_for_the_pages_that_differ),
		STORE_TEST(a_file_gets_the_content_with_holes_or_only_what_differs),
		STORE_TEST(a_file_of_a_damaged_content_is_refused_and_the_page_named),
		STORE_TEST(a_commit_is_found_by_id_tag_and_unique_prefix),
		STORE_TEST(tags_are_made_moved_listed_and_deleted),
		STORE_TEST(lists_are_newest_first),
		STORE_TEST(a_parent_is_deleted_only_with_its_descendants),
		STORE_TEST(fields_that_cannot_be_are_refused_and_leave_nothing),
		STORE_TEST(an_aborted_commit_leaves_no_file),
		STORE_TEST(a_store_is_one_processs_at_a_time),
		STORE_TEST(gc_removes_what_no_commit_or_root_needs_and_nothing_else),
		STORE_TEST(many_small_packs_become_few_by_themselves),
		STORE_TEST(commits_readers_and_gc_at_once_do_each_other_no_harm),
		STORE_TEST(gc_waits_for_a_commit_that_is_under_way),
		STORE_TEST(numbers_in_json_are_integers_and_keys_sorted_by_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
