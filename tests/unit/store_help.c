#include "tests/unit/store_help.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

char folder[64], store_path[96];
struct store *store;
struct err e;
struct store_damage damages[DAMAGES_MAX];
size_t n_damages;

int
setup_store(void **state)
{
	(void)state;
	snprintf(folder, sizeof(folder), "/tmp/pando-test-XXXXXX");
	assert_non_null(mkdtemp(folder));
	snprintf(store_path, sizeof(store_path), "%s/home/store", folder);
	ok(store_open(store_path, &store, &e));
	return 0;
}

int
teardown_store(void **state)
{
	(void)state;
	store_close(store);
	store = NULL;
	return io_remove_tree(folder, NULL);
}

void
reopen(void)
{
	store_close(store);
	store = NULL;
	ok(store_open(store_path, &store, &e));
}

void
ok_at(int r, const char *where, int line)
{
	if (r)
		fail_msg("line %d: %s: %d: %s", line, where, r, e.msg);
}

void
refused_at(int r, int code, const char *text, int line)
{
	if (r != code || e.code != code || !strstr(e.msg, text))
		fail_msg("line %d: %d instead of %d with \"%s\": %s", line, r, code, text,
			e.msg);
}

void
fill(uint8_t *page, uint32_t value)
{
	uint64_t x = value * 0x9e3779b97f4a7c15ull;

	memset(page, 0, STORE_PAGE);
	if (!value)
		return;
	for (size_t i = 0; i < STORE_PAGE; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(page + i, &x, value % 2 ? 1 : 8);
	}
}

struct store_tree
put_values(struct store_writer *w, const struct store_tree *base,
	const uint32_t *base_values, const uint32_t *values, uint64_t n)
{
	struct store_tree_writer *t;
	struct store_tree ret;
	uint8_t page[STORE_PAGE];

	ok(store_tree_begin(w, base, n * STORE_PAGE, &t, &e));
	for (uint64_t i = 0; i < n; i++) {
		if (values[i] == (base_values ? base_values[i] : 0))
			continue;
		fill(page, values[i]);
		ok(store_tree_put(t, i, page, 1, &e));
	}
	ok(store_tree_finish(t, &ret, &e));
	return ret;
}

void
has_values(const struct store_tree *t, const uint32_t *values, uint64_t n)
{
	uint8_t *buf = malloc(n * STORE_PAGE + 1), page[STORE_PAGE];

	assert_int_equal(t->length, n * STORE_PAGE);
	ok(store_tree_read(store, t, 0, n, buf, &e));
	for (uint64_t i = 0; i < n; i++) {
		fill(page, values[i]);
		if (memcmp(page, buf + i * STORE_PAGE, STORE_PAGE) != 0)
			fail_msg("page %llu is another", (unsigned long long)i);
	}
	free(buf);
}

void
commit_values(const char *parent, const struct store_tree *base,
	const uint32_t *base_values, const uint32_t *values, uint64_t n,
	char ret_id[STORE_ID_MAX], struct store_stats *stats)
{
	static uint64_t clock = 1000;
	struct store_fields f = {.parent = parent, .created_ms = clock++};
	struct store_writer *w;

	ok(store_begin(store, &w, &e));
	f.memory = put_values(w, base, base_values, values, n);
	ok(store_commit(w, &f, ret_id, stats, &e));
}

void
note_damage_of(void *ctx, const struct store_damage *d)
{
	(void)ctx;
	if (n_damages < DAMAGES_MAX)
		damages[n_damages] = *d;
	n_damages++;
}

size_t
verify(const char *id)
{
	struct store_verified sum;

	n_damages = 0;
	ok(store_verify(store, id, note_damage_of, NULL, &sum, &e));
	assert_int_equal(sum.damages, n_damages);
	return n_damages;
}

void
is_sound(void)
{
	if (verify(NULL))
		fail_msg("%zu damages: %s", n_damages, damages[0].text);
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static unsigned
names_of(const char *sub, char *names[], unsigned max)
{
	char path[160];
	struct dirent *entry;
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s/%s", store_path, sub);
	d = opendir(path);
	assert_non_null(d);
	while ((entry = readdir(d)))
		if (entry->d_name[0] != '.') {
			assert_true(n < max);
			names[n++] = strdup(entry->d_name);
		}
	closedir(d);
	qsort(names, n, sizeof(*names), by_name);
	return n;
}

void
pack_path(unsigned nth, char *ret, size_t cap)
{
	char *names[1024];
	unsigned n = names_of("packs", names, 1024);

	assert_true(nth < n);
	snprintf(ret, cap, "%s/packs/%s", store_path, names[nth]);
	while (n)
		free(names[--n]);
}

unsigned
count_files(const char *sub)
{
	char *names[1024];
	unsigned n = names_of(sub, names, 1024), ret = n;

	while (n)
		free(names[--n]);
	return ret;
}

void
flip(const char *path, long at)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t b;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &b, 1, at), 1);
	b ^= 0x40;
	assert_int_equal(pwrite(fd, &b, 1, at), 1);
	close(fd);
}

long
file_size(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return (long)st.st_size;
}
