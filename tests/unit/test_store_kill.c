/*
 * A random model of a store whose process dies: each round a child opens the store and
 * commits, deletes, prunes, tags, merges, collects and repairs, with a gc or a merge beside
 * it in some rounds, until it is through, is killed at one of the named points, or the disk
 * is full. What it does is noted in shared memory before and after, so that the parent
 * knows what must be there, and of one operation that it is done, or not, or in part.
 *
 *   PANDO_TEST_ROUNDS, PANDO_TEST_SEED
 */
#include "tests/unit/store_help.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/fault.h"
#include "common/log.h"

#define SLOTS 16u
#define PAGES 24u
#define SERIALS_MAX 1000000u
#define OPS_MAX 40u /* of a child */

struct slot {
	bool there, tagged;
	unsigned serial;
	char id[STORE_ID_MAX];
	uint32_t values[PAGES];
};

enum op { NOTHING, COMMIT, DELETE, PRUNE, TAG, UNTAG, CARE };

/* In memory that parent and child share. */
struct model {
	struct slot slots[SLOTS];
	unsigned serials;
	unsigned parents[SERIALS_MAX]; /* by serial: its parent's; 0 none. Slots are used again. */
	enum op op; /* that is under way */
	bool touched[SLOTS];
	unsigned passed[CARE + 1];
};
static struct model *m;

static uint64_t random_state;
static bool small_disk;

static uint32_t
pick(uint32_t n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 20) % n;
}

static int
pick_slot(bool there)
{
	unsigned first = pick(SLOTS);

	for (unsigned i = 0; i < SLOTS; i++)
		if (m->slots[(first + i) % SLOTS].there == there)
			return (int)((first + i) % SLOTS);
	return -1;
}

static bool
is_below(unsigned serial, unsigned top)
{
	while (serial && serial != top)
		serial = m->parents[serial];
	return serial == top;
}

static void
begin(enum op op)
{
	__atomic_store_n(&m->op, op, __ATOMIC_SEQ_CST);
}

/* An operation may fail for want of room, and for nothing else. */
static bool
is_done(int r)
{
	if (r < 0 && (!small_disk || (r != -ENOSPC && r != -ECANCELED))) {
		fprintf(stderr, "%d: %d: %s\n", m->op, r, e.msg);
		_exit(11);
	}
	if (r == 0) {
		m->passed[m->op]++;
		begin(NOTHING);
		memset(m->touched, 0, sizeof(m->touched));
	}
	return r == 0;
}

/* false: this child does nothing more. */
static bool
do_commit(void)
{
	int i = pick_slot(false), parent = pick(4) ? pick_slot(true) : -1;
	struct store_fields f = {.created_ms = 1000 + m->serials};
	struct store_tree base = {.length = 0};
	struct store_writer *w = NULL;
	struct store_tree_writer *t = NULL;
	struct slot *s;
	char message[16];
	int r;

	if (i < 0)
		return true;
	s = &m->slots[i];
	memset(s, 0, sizeof(*s));
	s->serial = ++m->serials;
	assert_true(s->serial < SERIALS_MAX);
	m->parents[s->serial] = parent >= 0 ? m->slots[parent].serial : 0;
	snprintf(message, sizeof(message), "%u", s->serial);
	f.message = message;
	if (parent >= 0) {
		struct store_manifest *man;

		memcpy(s->values, m->slots[parent].values, sizeof(s->values));
		ok(store_load(store, m->slots[parent].id, &man, &e));
		base = man->f.memory;
		store_manifest_free(man);
		f.parent = m->slots[parent].id;
	}
	for (unsigned n = pick(8); n-- > 0;)
		s->values[pick(PAGES)] = pick(60); /* so that some are there already */
	m->touched[i] = true;
	begin(COMMIT);
	r = store_begin(store, &w, &e);
	if (r == 0)
		r = store_tree_begin(w, parent >= 0 ? &base : NULL, PAGES * STORE_PAGE, &t, &e);
	for (unsigned p = 0; r == 0 && p < PAGES; p++) {
		uint8_t page[STORE_PAGE];

		if (s->values[p] == (parent >= 0 ? m->slots[parent].values[p] : 0))
			continue;
		fill(page, s->values[p]);
		r = store_tree_put(t, p, page, 1, &e);
	}
	if (r == 0)
		r = store_tree_finish(t, &f.memory, &e);
	if (r == 0)
		r = store_commit(w, &f, s->id, NULL, &e);
	else if (w)
		store_abort(w);
	s->there = r == 0;
	return is_done(r);
}

static bool
do_delete(void)
{
	int i = pick_slot(true);
	int r;

	if (i < 0)
		return true;
	for (int k = 0; k < (int)SLOTS; k++)
		m->touched[k] = m->slots[k].there && is_below(m->slots[k].serial, m->slots[i].serial);
	begin(DELETE);
	r = store_delete(store, m->slots[i].id, STORE_DELETE_RECURSIVE, NULL, &e);
	if (r == 0)
		for (unsigned k = 0; k < SLOTS; k++)
			if (m->touched[k])
				m->slots[k].there = m->slots[k].tagged = false;
	return is_done(r);
}

static bool
do_prune(void)
{
	char ids[3][STORE_ID_MAX];
	size_t n = 0;
	int r;

	for (; n < 3; n++) {
		int i = pick_slot(true);

		if (i < 0)
			break;
		memcpy(ids[n], m->slots[i].id, STORE_ID_MAX);
		m->touched[i] = !m->slots[i].tagged;
	}
	begin(PRUNE);
	r = store_prune(store, (const char (*)[STORE_ID_MAX])ids, n, NULL, &e);
	for (unsigned k = 0; r == 0 && k < SLOTS; k++)
		if (m->touched[k])
			m->slots[k].there = false;
	return is_done(r);
}

static void
tag_of(unsigned slot, char ret[static 16])
{
	snprintf(ret, 16, "t%u", slot);
}

static bool
do_tag(void)
{
	int i = pick_slot(true), r;
	char tag[16];

	if (i < 0)
		return true;
	tag_of((unsigned)i, tag);
	m->touched[i] = true;
	if (m->slots[i].tagged) {
		begin(UNTAG);
		r = store_tag_delete(store, tag, &e);
	} else {
		begin(TAG);
		r = store_tag_set(store, tag, m->slots[i].id, true, &e);
	}
	if (r == 0)
		m->slots[i].tagged = !m->slots[i].tagged;
	return is_done(r);
}

static bool
do_care(void)
{
	struct store_repaired ignored;
	int r;

	begin(CARE);
	switch (pick(3)) {
	case 0:
		r = store_gc(store, NULL, 0, NULL, &e);
		break;
	case 1:
		r = store_settle(store, NULL, &e);
		break;
	default:
		n_damages = 0;
		r = store_repair(store, note_damage_of, NULL, &ignored, &e);
		if (r == 0 && n_damages) {
			fprintf(stderr, "repair: %s\n", damages[0].text);
			_exit(12);
		}
	}
	return is_done(r);
}

static void *
care_beside(void *ctx)
{
	struct err why;

	for (;;) {
		if (*(bool *)ctx)
			store_gc(store, NULL, 0, NULL, &why);
		else
			store_settle(store, NULL, &why);
		usleep(1000); /* it is somebody else's turn */
	}
	return NULL;
}

static void
child(void)
{
	static const char *const points[] = {"store.pack-synced", "store.pack-renamed", "store.pack-written", "store.pack-retired",
		"store.pack-removed", "store.merge-added", "store.gc-marked",
		"store.manifest-temp", "store.manifest-renamed", "store.manifest-written",
		"store.commit-listed", "store.delete-tags", "store.delete-commit",
		"store.prune-renamed", "store.prune-synced", "store.pruned-swept",
		"store.tag-temp", "store.tag-renamed", "store.tag-written",
		"store.catalog-opening"};
	static bool collects;
	unsigned n = 1 + pick(OPS_MAX);
	pthread_t beside;
	char fault[64];

	snprintf(fault, sizeof(fault), "%s:%u", points[pick(sizeof(points) / sizeof(points[0]))],
		1 + (pick(2) ? pick(6) : 0));
	if (!small_disk)
		fault_arm(fault);
	if (store_open(store_path, &store, &e)) {
		fprintf(stderr, "open: %s\n", e.msg);
		_exit(10);
	}
	collects = pick(2);
	if (pick(3) == 0)
		pthread_create(&beside, NULL, care_beside, &collects);
	while (n-- > 0) {
		uint32_t what = pick(100);

		if (!(what < 50	  ? do_commit()
			    : what < 58 ? do_delete()
			    : what < 70 ? do_prune()
			    : what < 82 ? do_tag()
					: do_care()))
			break;
	}
	_exit(0); /* nor is it closed */
}

/* What was under way is as the store says. */
static void
look_at_touched(const struct store_page *p)
{
	for (unsigned i = 0; i < SLOTS; i++) {
		struct slot *s = &m->slots[i];
		char id[STORE_ID_MAX], tag[16], message[16];

		if (!m->touched[i])
			continue;
		s->there = false;
		snprintf(message, sizeof(message), "%u", s->serial);
		for (size_t k = 0; k < p->n; k++)
			if (strcmp(p->v[k].m->f.message, message) == 0) {
				s->there = true;
				memcpy(s->id, p->v[k].m->id, sizeof(s->id));
			}
		tag_of(i, tag);
		s->tagged = store_tag_get(store, tag, id, NULL) == 0;
	}
	memset(m->touched, 0, sizeof(m->touched));
	m->op = NOTHING;
}

static void
no_temp_files(void)
{
	char command[200];

	snprintf(command, sizeof(command), "find %s -name 'tmp.*' | grep -q .", store_path);
	assert_int_not_equal(system(command), 0);
}

static void
check(void)
{
	unsigned n = 0, tagged = 0, files = 0;
	char path[200], id[STORE_ID_MAX];
	struct store_tag *tags;
	struct dirent *entry;
	struct store_page p;
	size_t n_tags;
	DIR *d;

	ok(store_open(store_path, &store, &e));
	no_temp_files();
	is_sound();
	ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &p, &e));
	assert_int_equal(p.damaged, 0);
	look_at_touched(&p);
	for (unsigned i = 0; i < SLOTS; i++) {
		struct store_manifest *man;
		char tag[16];

		if (!m->slots[i].there)
			continue;
		n++;
		ok(store_load(store, m->slots[i].id, &man, &e));
		has_values(&man->f.memory, m->slots[i].values, PAGES);
		store_manifest_free(man);
		if (!m->slots[i].tagged)
			continue;
		tagged++;
		tag_of(i, tag);
		ok(store_tag_get(store, tag, id, &e));
		assert_string_equal(id, m->slots[i].id);
	}
	assert_int_equal(p.n, n);
	store_page_done(&p);
	ok(store_tags(store, &tags, &n_tags, &e));
	assert_int_equal(n_tags, tagged);
	free(tags);
	snprintf(path, sizeof(path), "%s/commits", store_path);
	d = opendir(path);
	while ((entry = readdir(d)))
		files += strstr(entry->d_name, ".json") != NULL;
	closedir(d);
	assert_int_equal(files, n);
	snprintf(path, sizeof(path), "%s/catalog.db.aside", store_path);
	assert_int_not_equal(access(path, F_OK), 0);
}

/* All that is left of what was deleted goes. */
static void
nothing_is_left(void)
{
	for (unsigned i = 0; i < SLOTS; i++) {
		if (m->slots[i].there && store_delete(store, m->slots[i].id,
						 STORE_DELETE_RECURSIVE, NULL, &e) < 0)
			assert_int_equal(e.code, -ENOENT); /* went with its parent */
		m->slots[i].there = m->slots[i].tagged = false;
	}
	ok(store_gc(store, NULL, 0, NULL, &e));
	assert_int_equal(count_files("packs"), 0);
	assert_int_equal(count_files("commits"), 0);
	assert_int_equal(count_files("tags"), 0);
}

/* Fills the disk but for some pages. */
static void
fill_disk(const char *ballast)
{
	static uint8_t buf[STORE_PAGE];
	uint64_t size = 0;
	int fd = open(ballast, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	while (write(fd, buf, sizeof(buf)) == (ssize_t)sizeof(buf))
		size += sizeof(buf);
	assert_int_equal(ftruncate(fd, (off_t)(size - pick(40) * STORE_PAGE)), 0);
	close(fd);
}

static void
killed_and_full_at_any_point_nothing_is_lost_and_nothing_left(void **state)
{
	const char *rounds_text = getenv("PANDO_TEST_ROUNDS");
	unsigned rounds = rounds_text ? (unsigned)atoi(rounds_text) : 60, killed = 0, full = 0;
	char mount_at[128], ballast[200];
	bool mounted;

	(void)state;
	store_close(store);
	store = NULL;
	snprintf(mount_at, sizeof(mount_at), "%s/small", folder);
	assert_int_equal(mkdir(mount_at, 0700), 0);
	mounted = mount("pando-test", mount_at, "tmpfs", 0, "size=8m") == 0;
	if (!mounted)
		print_message("no tmpfs can be mounted here: the disk is never full\n");
	snprintf(store_path, sizeof(store_path), "%s/small/store", folder);
	snprintf(ballast, sizeof(ballast), "%s/ballast", mount_at);
	ok(store_open(store_path, &store, &e));
	store_close(store);
	store = NULL;
	m = mmap(NULL, sizeof(*m), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(m != MAP_FAILED);
	for (unsigned round = 0; round < rounds; round++) {
		int status;
		pid_t pid;

		small_disk = mounted && pick(3) == 0;
		if (small_disk)
			fill_disk(ballast);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			child();
		pick(1000); /* not the same numbers as the child */
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (WIFSIGNALED(status) ? WTERMSIG(status) != SIGKILL : WEXITSTATUS(status))
			fail_msg("round %u: status %x", round, status);
		killed += WIFSIGNALED(status);
		full += small_disk && m->op != NOTHING;
		if (small_disk)
			assert_int_equal(unlink(ballast), 0);
		check();
		if (round % 16 == 15)
			nothing_is_left();
		store_close(store);
		store = NULL;
	}
	print_message("%u rounds: %u killed, %u on a full disk; %u commits, %u deletions, %u prunes, %u of the care\n",
		rounds, killed, full, m->passed[COMMIT], m->passed[DELETE], m->passed[PRUNE],
		m->passed[CARE]);
	assert_true(killed > 0);
	munmap(m, sizeof(*m));
	if (mounted)
		assert_int_equal(umount(mount_at), 0);
}

int
main(void)
{
	const char *seed = getenv("PANDO_TEST_SEED");
	const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(
		killed_and_full_at_any_point_nothing_is_lost_and_nothing_left, setup_store,
		teardown_store)};

	random_state = 88172645463325252ull ^ (seed ? strtoull(seed, NULL, 10) : 1) << 32;
	log_init("test", LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
