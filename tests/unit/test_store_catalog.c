/* The catalogue of commits and tags: what it says is what the files say, whatever was done
 * to it, and whenever its process was killed. Pruned commits, too. */
#include "tests/unit/store_help.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/fault.h"
#include "common/log.h"

static char ids[64][STORE_ID_MAX];

/* A commit of one page, which is another for each value. */
static void
make(const char *parent, uint64_t created_ms, uint32_t value, const char *message,
	char ret[STORE_ID_MAX])
{
	struct store_fields f = {.parent = parent,
		.created_ms = created_ms,
		.message = message,
		.labels = "{\"kind\":\"step\"}",
		.cpu = "{\"features\":[\"avx2\"]}"};
	struct store_writer *w;
	uint32_t values[1] = {value};

	ok(store_begin(store, &w, &e));
	f.memory = put_values(w, NULL, NULL, values, 1);
	ok(store_commit(w, &f, ret, NULL, &e));
}

/* ids[0] <- ids[1] <- … */
static void
chain(unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		make(i ? ids[i - 1] : NULL, 1000 + i, 100 + i, "step", ids[i]);
}

static void
path_of(const char *name, char *ret, size_t cap)
{
	snprintf(ret, cap, "%s/%s", store_path, name);
}

static bool
there(const char *name)
{
	char path[256];

	path_of(name, path, sizeof(path));
	return access(path, F_OK) == 0;
}

static bool
file_of(const char *id, const char *suffix)
{
	char name[100];

	snprintf(name, sizeof(name), "commits/%s.%s", id, suffix);
	return there(name);
}

/* All manifests as their files are, the newest first: what lists are compared with. */
struct manifests {
	struct store_manifest **items; /* owned */
	size_t n, damaged;
};

static int
newest_first(const void *pa, const void *pb)
{
	const struct store_manifest *a = *(struct store_manifest *const *)pa;
	const struct store_manifest *b = *(struct store_manifest *const *)pb;

	if (a->f.created_ms != b->f.created_ms)
		return a->f.created_ms < b->f.created_ms ? 1 : -1;
	return strcmp(a->id, b->id);
}

static void
manifests_read(struct manifests *l)
{
	char path[256], id[STORE_ID_MAX];
	struct dirent *entry;
	DIR *d;

	*l = (struct manifests){.items = calloc(1000, sizeof(*l->items))};
	path_of("commits", path, sizeof(path));
	d = opendir(path);
	assert_non_null(d);
	while ((entry = readdir(d))) {
		int r;

		if (strlen(entry->d_name) != STORE_HEX + 5 ||
			strcmp(entry->d_name + STORE_HEX, ".json") != 0)
			continue;
		memcpy(id, entry->d_name, STORE_HEX);
		id[STORE_HEX] = '\0';
		assert_true(l->n < 1000);
		r = store_load(store, id, &l->items[l->n], &e);
		if (r == -EBADMSG)
			l->damaged++;
		else
			ok(r);
		l->n += r == 0;
	}
	closedir(d);
	qsort(l->items, l->n, sizeof(*l->items), newest_first);
}

static void
manifests_done(struct manifests *l)
{
	while (l->n)
		store_manifest_free(l->items[--l->n]);
	free(l->items);
}

/* All pages of the list against all manifests, tags against their files, and histories. */
static void
says_what_the_files_say(void)
{
	char after[STORE_CURSOR_MAX] = "";
	struct store_tag *tags, *rows;
	size_t n_tags, n_rows, at = 0;
	struct store_used used;
	struct manifests l;

	manifests_read(&l);
	do {
		struct store_page p;

		ok(store_page_newest(store, after, 7, &p, &e));
		assert_int_equal(p.damaged, l.damaged);
		for (size_t i = 0; i < p.n; i++, at++) {
			assert_true(at < l.n);
			assert_string_equal(p.v[i].m->id, l.items[at]->id);
			assert_int_equal(p.v[i].m->f.created_ms, l.items[at]->f.created_ms);
			assert_string_equal(p.v[i].m->f.message, l.items[at]->f.message);
			assert_string_equal(p.v[i].m->f.labels, l.items[at]->f.labels);
			assert_string_equal(p.v[i].m->f.config, l.items[at]->f.config);
			assert_string_equal(p.v[i].m->f.cpu, l.items[at]->f.cpu);
			assert_int_equal(
				p.v[i].m->f.memory.length, l.items[at]->f.memory.length);
			assert_false(p.v[i].pruned);
			if (l.items[at]->f.parent)
				assert_string_equal(
					p.v[i].m->f.parent, l.items[at]->f.parent);
			else
				assert_null(p.v[i].m->f.parent);
		}
		memcpy(after, p.next, sizeof(after));
		store_page_done(&p);
	} while (after[0]);
	assert_int_equal(at, l.n);
	ok(store_usage(store, &used, &e));
	assert_int_equal(used.commits, l.n + l.damaged);
	manifests_done(&l);
	ok(store_tags(store, &tags, &n_tags, &e));
	ok(store_tags_page(store, NULL, 1000, &rows, &n_rows, &e));
	assert_int_equal(n_rows, n_tags);
	for (size_t i = 0; i < n_tags; i++) {
		assert_string_equal(rows[i].name, tags[i].name);
		assert_string_equal(rows[i].id, tags[i].id);
	}
	free(tags);
	free(rows);
}

static void
sql(const char *text)
{
	char path[256], *why = NULL;
	sqlite3 *h;

	store_close(store);
	store = NULL;
	path_of("catalog.db", path, sizeof(path));
	assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
	if (sqlite3_exec(h, text, NULL, NULL, &why) != SQLITE_OK)
		fail_msg("%s: %s", text, why);
	sqlite3_close(h);
	ok(store_open(store_path, &store, &e));
}

static void
lists_are_pages_newest_first(void **state)
{
	struct store_page p;

	(void)state;
	chain(25);
	/* Of one instant: by id, across the pages' ends. */
	for (unsigned i = 25; i < 40; i++)
		make(ids[3], 5000, 200 + i, "at once", ids[i]);
	says_what_the_files_say();
	refused(store_page_newest(store, "x", 5, &p, &e), -EINVAL, "cursor");
	refused(store_page_newest(store, "12.abc", 5, &p, &e), -EINVAL, "cursor");
	refused(store_page_newest(store, "", 0, &p, &e), -EINVAL, "1 to 1000");
	refused(store_page_newest(store, "", 1001, &p, &e), -EINVAL, "1 to 1000");
	reopen();
	says_what_the_files_say();
}

static void
a_commit_made_while_a_list_is_read_moves_nothing(void **state)
{
	char late[STORE_ID_MAX];
	struct store_page p, q;

	(void)state;
	chain(10);
	ok(store_page_newest(store, NULL, 4, &p, &e));
	make(ids[9], 9000, 900, "late", late);
	ok(store_delete(store, late, 0, NULL, &e));
	make(ids[9], 9001, 901, "later", late);
	ok(store_page_newest(store, p.next, 4, &q, &e));
	for (size_t i = 0; i < 4; i++)
		assert_string_equal(q.v[i].m->id, ids[5 - i]);
	store_page_done(&p);
	store_page_done(&q);
}

static void
a_history_is_pages_up_to_the_first_commit(void **state)
{
	char after[STORE_CURSOR_MAX] = "";
	struct store_page p;
	unsigned at = 30;

	(void)state;
	chain(30);
	do {
		ok(store_page_history(store, ids[29], after, 7, &p, &e));
		for (size_t i = 0; i < p.n; i++)
			assert_string_equal(p.v[i].m->id, ids[--at]);
		memcpy(after, p.next, sizeof(after));
		store_page_done(&p);
	} while (after[0]);
	assert_int_equal(at, 0);
	refused(store_page_history(store, ids[29], "zz", 7, &p, &e), -EINVAL, "cursor");
	refused(store_page_history(store, "0123", "", 7, &p, &e), -ENOENT, "no commit");
}

static void
tags_are_found_by_name_and_by_commit(void **state)
{
	struct store_tag *tags;
	struct store_page p;
	char name[16];
	size_t n;

	(void)state;
	chain(3);
	for (unsigned i = 0; i < 20; i++) {
		snprintf(name, sizeof(name), "t%02u", i);
		ok(store_tag_set(store, name, ids[i % 2], false, &e));
	}
	ok(store_tags_page(store, "t04", 5, &tags, &n, &e));
	assert_int_equal(n, 5);
	assert_string_equal(tags[0].name, "t05");
	assert_string_equal(tags[4].name, "t09");
	free(tags);
	ok(store_tags_of(store, ids[1], &tags, &n, &e));
	assert_int_equal(n, 10);
	assert_string_equal(tags[9].name, "t19");
	free(tags);
	ok(store_tag_set(store, "t19", ids[2], true, &e));
	ok(store_tag_delete(store, "t17", &e));
	ok(store_tags_of(store, ids[1], &tags, &n, &e));
	assert_int_equal(n, 8);
	free(tags);
	ok(store_page_history(store, ids[2], "", 1, &p, &e));
	assert_int_equal(p.v[0].n_tags, 1);
	assert_string_equal(p.v[0].tags[0], "t19");
	store_page_done(&p);
	says_what_the_files_say();
	reopen();
	says_what_the_files_say();
}

static void
prefixes_are_looked_up(void **state)
{
	char id[STORE_ID_MAX], prefix[STORE_ID_MAX];
	unsigned unique = 0;

	(void)state;
	chain(40);
	for (unsigned i = 0; i < 40; i++)
		for (unsigned digits = STORE_PREFIX_MIN; digits <= STORE_HEX; digits++) {
			memcpy(prefix, ids[i], digits);
			prefix[digits] = '\0';
			if (digits == 5)
				prefix[4] = (char)(prefix[4] >= 'a' ? prefix[4] - 32
								    : prefix[4]);
			if (store_resolve(store, prefix, id, &e) == 0) {
				assert_string_equal(id, ids[i]);
				unique++;
			}
		}
	assert_true(unique > 40 * 55);
	refused(store_resolve(store, "ffffffff0", id, &e), -ENOENT, "no commit");
}

static void
a_store_without_a_catalogue_is_taken_over(void **state)
{
	char path[256];

	(void)state;
	chain(12);
	ok(store_tag_set(store, "tag", ids[4], false, &e));
	store_close(store);
	store = NULL;
	path_of("catalog.db", path, sizeof(path));
	assert_int_equal(unlink(path), 0);
	ok(store_open(store_path, &store, &e));
	assert_false(there("catalog.db.aside"));
	says_what_the_files_say();
}

static void
what_is_no_catalogue_is_put_aside(void **state)
{
	char path[256], command[640];

	(void)state;
	chain(8);
	path_of("catalog.db", path, sizeof(path));
	for (unsigned i = 0; i < 7; i++) {
		static const char *const commands[] = {
			"head -c 20000 /dev/urandom >$f",
			"rm $f; mkdir $f",
			"rm $f; mkfifo $f",
			"rm $f; ln -s /etc/passwd $f",
			"cp $f $f.x; mv $f.x $f", /* a copy is of unknown origin */
			"truncate -s 9000 $f",
			"printf 'SQLite format 3' >$f",
		};

		store_close(store);
		store = NULL;
		snprintf(command, sizeof(command), "f=%s; %s", path, commands[i]);
		assert_int_equal(system(command), 0);
		ok(store_open(store_path, &store, &e));
		says_what_the_files_say();
		assert_true(there("catalog.db.aside"));
		snprintf(command, sizeof(command), "rm -rf %s.aside", path);
		assert_int_equal(system(command), 0);
		reopen();
		assert_false(there("catalog.db.aside"));
		says_what_the_files_say();
	}
}

static void
tables_of_somebody_else_are_put_aside(void **state)
{
	static const char *const changes[] = {
		"CREATE TRIGGER t AFTER INSERT ON commits BEGIN DELETE FROM commits; END",
		"DROP TABLE tags; CREATE TABLE tags (a)",
		"DROP INDEX commits_newest",
		"ALTER TABLE commits ADD COLUMN more",
		"CREATE VIEW v AS SELECT * FROM commits",
		"DROP TABLE texts",
	};
	char path[256];

	(void)state;
	chain(5);
	path_of("catalog.db.aside", path, sizeof(path));
	for (unsigned i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		sql(changes[i]);
		assert_int_equal(unlink(path), 0);
		says_what_the_files_say();
	}
}

static void
rows_that_lie_are_found_out(void **state)
{
	static const char *const lies[] = {
		"UPDATE commits SET message = 'other' WHERE seq = 3",
		"UPDATE commits SET parent = NULL WHERE seq = 4",
		"UPDATE commits SET newest = -1 WHERE seq = 2",
		"UPDATE commits SET state = 2",
		"UPDATE commits SET sum = 5 WHERE seq = 1",
		"UPDATE commits SET id = zeroblob(32) WHERE seq = 2",
		"UPDATE commits SET id = 'text' WHERE seq = 2",
		"UPDATE texts SET text = '{}'",
		"UPDATE commits SET damage = 'not true' WHERE seq = 5",
		"DELETE FROM texts",
		"DELETE FROM commits WHERE seq = 3",
		"DELETE FROM tags",
		"DELETE FROM origin",
		"UPDATE tags SET inode = 1, id = zeroblob(32)",
		"INSERT INTO tags VALUES ('none', zeroblob(32), 1, 1)",
		"INSERT INTO tags VALUES (zeroblob(200), NULL, 1, 1)",
		"INSERT INTO commits (id, state, newest, inode, bytes, ctime_ns, message, labels,"
		" config, cpu, memory, disk, device, sum) SELECT zeroblob(32), 0, newest, inode,"
		" bytes, ctime_ns, message, labels, config, cpu, memory, disk, device, sum"
		" FROM commits WHERE seq = 1",
	};

	(void)state;
	chain(9);
	ok(store_tag_set(store, "tag", ids[4], false, &e));
	for (unsigned i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		sql(lies[i]);
		says_what_the_files_say();
		refused(store_delete(store, ids[2], 0, NULL, &e), -ENOTEMPTY, "parent of");
		reopen();
		says_what_the_files_say();
	}
}

/* Each byte of it may be another: what is listed is what is there, or an error; never
 * something else. */
static void
a_catalogue_with_flipped_bytes_says_nothing_false(void **state)
{
	char path[256];
	uint64_t x = 88172645463325252ull;

	(void)state;
	chain(20);
	ok(store_tag_set(store, "tag", ids[4], false, &e));
	path_of("catalog.db", path, sizeof(path));
	for (unsigned round = 0; round < 100; round++) {
		store_close(store);
		store = NULL;
		for (unsigned i = 0; i < 1 + round % 8; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			flip(path, (long)(x % (uint64_t)file_size(path)));
		}
		ok(store_open(store_path, &store, &e));
		if (round % 3 == 0)
			refused(store_delete(store, ids[2], 0, NULL, &e), -ENOTEMPTY,
				"parent of");
		says_what_the_files_say();
	}
}

static void
files_that_came_and_went_are_reconciled(void **state)
{
	char from[256], to[256];

	(void)state;
	chain(6);
	ok(store_tag_set(store, "tag", ids[1], false, &e));
	store_close(store);
	store = NULL;
	snprintf(from, sizeof(from), "%s/commits/%s.json", store_path, ids[5]);
	snprintf(to, sizeof(to), "%s/elsewhere", folder);
	assert_int_equal(rename(from, to), 0);
	ok(store_open(store_path, &store, &e));
	says_what_the_files_say();
	store_close(store);
	store = NULL;
	assert_int_equal(rename(to, from), 0);
	snprintf(from, sizeof(from), "%s/tags/tag", store_path);
	snprintf(to, sizeof(to), "%s/tags/other", store_path);
	assert_int_equal(rename(from, to), 0);
	ok(store_open(store_path, &store, &e));
	says_what_the_files_say();
}

static void
files_that_others_put_there_meanwhile_are_seen(void **state)
{
	char from[256], to[256], id[STORE_ID_MAX];
	struct store_ids none = {0};

	(void)state;
	chain(6);
	usleep(20000); /* a tick of the clock by which folders are stamped */
	snprintf(from, sizeof(from), "%s/commits/%s.json", store_path, ids[5]);
	snprintf(to, sizeof(to), "%s/elsewhere", folder);
	assert_int_equal(rename(from, to), 0);
	says_what_the_files_say();
	ok(store_delete(store, ids[4], STORE_DELETE_DRY_RUN, &none, &e));
	store_ids_done(&none);
	usleep(20000);
	assert_int_equal(rename(to, from), 0);
	/* Seen before something of our own hides it. */
	make(NULL, 9000, 900, "own", ids[6]);
	snprintf(to, sizeof(to), "%.12s", ids[5]);
	ok(store_resolve(store, to, id, &e));
	says_what_the_files_say();
	usleep(20000);
	snprintf(from, sizeof(from), "%s/tags/others", store_path);
	ok(io_write_file_atomic(from, "nothing", 7, 0600, &e));
	says_what_the_files_say();
}

static bool
dies(const char *fault, void (*work)(void))
{
	int status;
	pid_t pid;

	store_close(store);
	store = NULL;
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		fault_arm(fault);
		if (store_open(store_path, &store, &e))
			_exit(10);
		work();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFSIGNALED(status))
		assert_int_equal(WEXITSTATUS(status), 0);
	ok(store_open(store_path, &store, &e));
	return WIFSIGNALED(status);
}

static void
nothing(void)
{
}

/* Takes a commit's file away or brings it back, and lets its folder's time be what it was:
 * who does not compare cannot see it. */
static void
move_unseen(const char *id, bool away)
{
	char commits[256], from[400], to[400];
	struct timespec times[2];
	struct stat st;

	path_of("commits", commits, sizeof(commits));
	assert_int_equal(stat(commits, &st), 0);
	times[0] = st.st_atim;
	times[1] = st.st_mtim;
	snprintf(from, sizeof(from), "%s/%s.json", commits, id);
	snprintf(to, sizeof(to), "%s/elsewhere", folder);
	assert_int_equal(rename(away ? from : to, away ? to : from), 0);
	assert_int_equal(utimensat(AT_FDCWD, commits, times, 0), 0);
}

static size_t
listed(void)
{
	struct store_page p;
	size_t n;

	ok(store_page_newest(store, NULL, 100, &p, &e));
	n = p.n;
	store_page_done(&p);
	return n;
}

static uint64_t
counted(void)
{
	struct store_used used;

	ok(store_usage(store, &used, &e));
	return used.commits;
}

static void
close_it(void)
{
	usleep(30000); /* beyond a tick of the clock by which folders are stamped */
	store_close(store);
	store = NULL;
}

static void
a_store_that_was_closed_is_not_compared_again_until_somebody_was_at_it(void **state)
{
	char path[300], command[700];

	(void)state;
	chain(6);
	ok(store_tag_set(store, "tag", ids[1], false, &e));
	close_it();
	assert_true(there("catalog.stamp"));
	move_unseen(ids[5], true);
	ok(store_open(store_path, &store, &e));
	assert_false(there("catalog.stamp"));
	assert_int_equal(counted(), 6);
	/* What it gives is right even so: each row is compared with its file. */
	assert_int_equal(listed(), 5);
	make(ids[4], 7000, 70, "goes on", ids[10]);
	move_unseen(ids[5], false);
	close_it();
	path_of("catalog.stamp", path, sizeof(path));
	assert_int_equal(unlink(path), 0);
	ok(store_open(store_path, &store, &e));
	says_what_the_files_say();
	close_it();
	assert_true(there("catalog.stamp"));
	/* Tags are looked at in any case: they may be written to in their place. */
	path_of("tags/tag", path, sizeof(path));
	snprintf(command, sizeof(command), "echo %s >%s", ids[2], path);
	assert_int_equal(system(command), 0);
	ok(store_open(store_path, &store, &e));
	says_what_the_files_say();
	close_it();
	assert_true(there("catalog.stamp"));
	path_of("commits/new", path, sizeof(path));
	move_unseen(ids[5], true);
	ok(io_write_file_atomic(path, "", 0, 0600, &e));
	ok(store_open(store_path, &store, &e));
	assert_int_equal(counted(), 6);
	assert_int_equal(unlink(path), 0);
	move_unseen(ids[5], false);
}

static void
without_a_good_stamp_it_is_compared(void **state)
{
	static const char *const commands[] = {
		"rm $s/catalog.stamp",
		"truncate -s -1 $s/catalog.stamp",
		"sed -i 's/ 6 / 7 /' $s/catalog.stamp",
		": >$s/catalog.stamp",
		"rm $s/catalog.stamp; mkdir $s/catalog.stamp",
		"rm $s/catalog.stamp; mkfifo $s/catalog.stamp",
		"touch $s/catalog.db",
		"mv $s/catalog.db $s/x; cp -p $s/x $s/catalog.db",
		"cp -rp $s $s.x; rm -r $s; mv $s.x $s",
		NULL, /* a kill */
	};
	char command[400];

	(void)state;
	chain(6);
	for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		close_it();
		assert_true(there("catalog.stamp"));
		move_unseen(ids[5], true);
		if (commands[i]) {
			snprintf(command, sizeof(command), "s=%s; %s", store_path, commands[i]);
			assert_int_equal(system(command), 0);
			ok(store_open(store_path, &store, &e));
		} else {
			assert_true(dies("store.catalog-opening", nothing));
		}
		if (counted() != 5)
			fail_msg("after %s it is not compared", commands[i] ? commands[i] : "a kill");
		snprintf(command, sizeof(command), "rm -rf %s/catalog.stamp", store_path);
		store_close(store);
		store = NULL;
		assert_int_equal(system(command), 0);
		move_unseen(ids[5], false);
		ok(store_open(store_path, &store, &e));
		assert_int_equal(counted(), 6);
	}
}

static void
a_manifest_damaged_meanwhile_is_reported_and_one_mended_is_listed(void **state)
{
	char path[256];
	struct store_page p;

	(void)state;
	chain(6);
	snprintf(path, sizeof(path), "%s/commits/%s.json", store_path, ids[3]);
	flip(path, 40);
	ok(store_page_newest(store, NULL, 100, &p, &e));
	assert_int_equal(p.n, 5);
	assert_int_equal(p.damaged, 1);
	assert_non_null(strstr(p.first_damage.msg, "damaged"));
	store_page_done(&p);
	refused(store_page_history(store, ids[5], "", 100, &p, &e), -EBADMSG, "damaged");
	/* What descends from it is known still. */
	refused(store_delete(store, ids[3], 0, NULL, &e), -ENOTEMPTY, "parent of");
	reopen();
	refused(store_delete(store, ids[3], 0, NULL, &e), -ENOTEMPTY, "parent of");
	flip(path, 40);
	ok(store_page_newest(store, NULL, 100, &p, &e));
	assert_int_equal(p.n, 6);
	assert_int_equal(p.damaged, 0);
	store_page_done(&p);
	says_what_the_files_say();
	ok(store_page_history(store, ids[5], "", 100, &p, &e));
	store_page_done(&p);
}

static void
a_catalogue_that_cannot_grow_is_kept_in_memory(void **state)
{
	struct rlimit old, small;
	char path[256];

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	chain(3);
	reopen();
	path_of("catalog.db", path, sizeof(path));
	getrlimit(RLIMIT_FSIZE, &old);
	small = old;
	/* Packs and manifests of one page fit; its log does not. */
	small.rlim_cur = 16384;
	setrlimit(RLIMIT_FSIZE, &small);
	for (unsigned i = 3; i < 40; i++)
		make(ids[i - 1], 1000 + i, 2 * (100 + i), "step", ids[i]);
	ok(store_tag_set(store, "tag", ids[30], false, &e));
	ok(store_delete(store, ids[38], STORE_DELETE_RECURSIVE, NULL, &e));
	says_what_the_files_say();
	setrlimit(RLIMIT_FSIZE, &old);
	reopen();
	says_what_the_files_say();
	assert_false(there("catalog.db.aside"));
}

static void
a_long_message_is_cut_between_characters(void **state)
{
	char message[8001] = "", id[STORE_ID_MAX];
	struct store_page p;

	(void)state;
	for (unsigned i = 0; i < 4000; i++)
		memcpy(message + 2 * i, "\xc3\xa4", 3);
	make(NULL, 1, 1, message, id);
	ok(store_page_newest(store, NULL, 1, &p, &e));
	assert_int_equal(strlen(p.v[0].m->f.message), STORE_MESSAGE_MAX - 1);
	store_page_done(&p);
	/* Beyond what a signed number holds, too. */
	make(NULL, UINT64_MAX, 2, "", id);
	ok(store_page_newest(store, NULL, 1, &p, &e));
	assert_string_equal(p.v[0].m->id, id);
	store_page_done(&p);
}

/*
 * Pruned commits.
 */

static size_t
prune(unsigned first, unsigned n)
{
	struct store_ids done = {0};
	size_t ret;

	ok(store_prune(store, (const char (*)[STORE_ID_MAX])ids + first, n, &done, &e));
	ret = done.n;
	store_ids_done(&done);
	return ret;
}

static void
a_pruned_ancestor_keeps_its_place_and_not_its_contents(void **state)
{
	struct store_freed freed;
	struct store_manifest *m;
	struct store_page p;
	char id[STORE_ID_MAX], prefix[20];

	(void)state;
	chain(6);
	ok(store_tag_set(store, "tag", ids[2], false, &e));
	assert_int_equal(prune(0, 5), 4); /* not the tagged one */
	assert_false(file_of(ids[1], "json"));
	assert_true(file_of(ids[1], "pruned"));
	says_what_the_files_say();
	snprintf(prefix, sizeof(prefix), "%.16s", ids[1]);
	refused(store_resolve(store, ids[1], id, &e), -ENOENT, "was pruned");
	refused(store_resolve(store, prefix, id, &e), -ENOENT, "was pruned");
	refused(store_load(store, ids[1], &m, &e), -ENOENT, "was pruned");
	refused(store_tag_set(store, "new", ids[1], false, &e), -ENOENT, "no commit");
	ok(store_resolve_any(store, prefix, id, &e));
	assert_string_equal(id, ids[1]);
	ok(store_page_history(store, ids[5], "", 100, &p, &e));
	assert_int_equal(p.n, 6);
	for (unsigned i = 0; i < 6; i++) {
		assert_string_equal(p.v[i].m->id, ids[5 - i]);
		assert_int_equal(p.v[i].pruned, i != 0 && i != 3);
		assert_string_equal(p.v[i].m->f.message, "step");
	}
	store_page_done(&p);
	is_sound();
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_true(freed.bytes > 0);
	is_sound();
	reopen();
	says_what_the_files_say();
	is_sound();
	assert_int_equal(prune(0, 5), 0);
	/* A commit of a pruned one can be made: its parent is known. */
	make(ids[4], 7000, 70, "below", id);
	is_sound();
}

static void
a_pruned_commit_that_nothing_descends_from_goes(void **state)
{
	(void)state;
	chain(8);
	assert_int_equal(prune(0, 4), 4);
	assert_int_equal(prune(7, 1), 1); /* a leaf */
	assert_false(file_of(ids[7], "json"));
	assert_false(file_of(ids[7], "pruned"));
	/* The last of the held ones take all above them along. */
	ok(store_delete(store, ids[4], STORE_DELETE_RECURSIVE, NULL, &e));
	assert_int_equal(count_files("commits"), 0);
	says_what_the_files_say();
}

static void
a_recursive_deletion_tells_of_held_commits_only(void **state)
{
	struct store_ids gone;

	(void)state;
	chain(6);
	assert_int_equal(prune(2, 2), 2);
	refused(store_delete(store, ids[1], 0, NULL, &e), -ENOTEMPTY, "parent of");
	ok(store_delete(store, ids[1], STORE_DELETE_RECURSIVE | STORE_DELETE_DRY_RUN, &gone,
		&e));
	assert_int_equal(gone.n, 3);
	assert_string_equal(gone.ids[0], ids[5]);
	assert_string_equal(gone.ids[2], ids[1]);
	store_ids_done(&gone);
	ok(store_delete(store, ids[1], STORE_DELETE_RECURSIVE, &gone, &e));
	assert_int_equal(gone.n, 3);
	store_ids_done(&gone);
	assert_int_equal(count_files("commits"), 1);
	says_what_the_files_say();
	is_sound();
}

static void
a_damaged_tombstone_is_told_of(void **state)
{
	char path[256];

	(void)state;
	chain(3);
	prune(1, 1);
	snprintf(path, sizeof(path), "%s/commits/%s.pruned", store_path, ids[1]);
	flip(path, 30);
	assert_int_equal(verify(NULL), 1);
	assert_int_equal(damages[0].kind, STORE_DAMAGE_MANIFEST);
}

static void
the_same_commit_made_again_is_held(void **state)
{
	char id[STORE_ID_MAX];

	(void)state;
	chain(3);
	prune(0, 2);
	make(NULL, 1000, 100, "step", id);
	assert_string_equal(id, ids[0]);
	assert_true(file_of(id, "json"));
	assert_false(file_of(id, "pruned"));
	says_what_the_files_say();
	reopen();
	says_what_the_files_say();
	is_sound();
}

/*
 * Kills.
 */

static void
work_commit(void)
{
	make(ids[9], 4000, 40, "killed", ids[10]);
}

static void
work_tag(void)
{
	store_tag_set(store, "tag", ids[3], true, &e);
}

static void
work_delete(void)
{
	store_delete(store, ids[6], STORE_DELETE_RECURSIVE, NULL, &e);
}

static void
work_prune(void)
{
	store_prune(store, (const char (*)[STORE_ID_MAX])ids, 5, NULL, &e);
	store_prune(store, (const char (*)[STORE_ID_MAX])ids + 9, 1, NULL, &e);
	store_delete(store, ids[5], STORE_DELETE_RECURSIVE, NULL, &e);
}

static void
a_kill_at_any_point_leaves_rows_that_agree(void **state)
{
	static const struct {
		const char *fault;
		void (*work)(void);
	} points[] = {
		{"store.catalog-opening", nothing},
		{"store.manifest-temp", work_commit},
		{"store.manifest-renamed", work_commit},
		{"store.manifest-written", work_commit},
		{"store.commit-listed", work_commit},
		{"store.tag-renamed", work_tag},
		{"store.tag-written", work_tag},
		{"store.delete-tags", work_delete},
		{"store.delete-commit", work_delete},
		{"store.delete-commit:3", work_delete},
		{"store.pruned-swept", work_delete},
		{"store.pruned-swept:2", work_delete},
		{"store.prune-renamed", work_prune},
		{"store.prune-renamed:3", work_prune},
		{"store.prune-synced", work_prune},
		{"store.prune-synced:2", work_prune},
		{"store.pruned-swept", work_prune},
		{"store.pruned-swept:3", work_prune},
		{"store.pruned-swept:7", work_prune},
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		teardown_store(NULL);
		setup_store(NULL);
		chain(10);
		ok(store_tag_set(store, "tag", ids[8], false, &e));
		if (points[i].work != work_delete && points[i].work != work_tag)
			ok(store_tag_delete(store, "tag", &e));
		if (!dies(points[i].fault, points[i].work))
			fail_msg("%s kills nobody", points[i].fault);
		says_what_the_files_say();
		is_sound();
		assert_false(there("catalog.db.aside"));
		/* And it goes on. */
		make(NULL, 8000, 80, "after", ids[20]);
		points[i].work();
		says_what_the_files_say();
		is_sound();
	}
}

static void
a_kill_while_it_is_made_is_made_up_for(void **state)
{
	static const char *const points[] = {"store.catalog-opening", "store.catalog-made"};
	char path[256];

	(void)state;
	chain(10);
	path_of("catalog.db", path, sizeof(path));
	for (unsigned i = 0; i < 2; i++) {
		store_close(store);
		store = NULL;
		assert_int_equal(unlink(path), 0);
		ok(store_open(store_path, &store, &e));
		store_close(store);
		assert_int_equal(unlink(path), 0);
		/* Not opened before: dies() closes what is open. */
		store = NULL;
		assert_true(dies(points[i], nothing));
		says_what_the_files_say();
		assert_false(there("catalog.db.aside"));
	}
}

/*
 * At once.
 */

static volatile bool stop;
static unsigned failures;

static void
note(int r, const struct err *why, int line)
{
	if (r < 0 && __atomic_add_fetch(&failures, 1, __ATOMIC_RELAXED) < 5)
		print_message("line %d: %d: %s\n", line, r, why->msg);
}

static void *
commits(void *ctx)
{
	char parent[STORE_ID_MAX] = "";
	struct err why;

	for (unsigned i = 0; i < 60; i++) {
		struct store_fields f = {.parent = parent[0] ? parent : NULL,
			.created_ms = 1 + i,
			.message = ctx};
		struct store_writer *w;
		char id[STORE_ID_MAX], tag[64];
		int r = store_begin(store, &w, &why);

		if (r == 0)
			r = store_commit(w, &f, id, NULL, &why);
		note(r, &why, __LINE__);
		snprintf(tag, sizeof(tag), "%s", (const char *)ctx);
		note(store_tag_set(store, tag, id, true, &why), &why, __LINE__);
		/* Its parent has the tag no more, and is the only one that this prunes. */
		if (parent[0])
			note(store_prune(store, (const char (*)[STORE_ID_MAX]) & parent, 1,
				     NULL, &why),
				&why, __LINE__);
		memcpy(parent, id, sizeof(parent));
	}
	return NULL;
}

static void *
lists(void *ctx)
{
	(void)ctx;
	while (!stop) {
		char after[STORE_CURSOR_MAX] = "";
		struct store_tag *tags;
		struct err why;
		size_t n;

		do {
			struct store_page p;
			int r = store_page_newest(store, after, 3, &p, &why);

			note(r, &why, __LINE__);
			if (r < 0)
				break;
			memcpy(after, p.next, sizeof(after));
			store_page_done(&p);
		} while (after[0]);
		if (store_tags_page(store, NULL, 10, &tags, &n, &why) == 0)
			free(tags);
	}
	return NULL;
}

static void
writers_and_readers_run_at_once(void **state)
{
	static char *const names[] = {"a", "b", "c"};
	pthread_t writers[3], readers[2];

	(void)state;
	failures = 0;
	stop = false;
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&readers[i], NULL, lists, NULL);
	for (unsigned i = 0; i < 3; i++)
		pthread_create(&writers[i], NULL, commits, names[i]);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(writers[i], NULL);
	stop = true;
	for (unsigned i = 0; i < 2; i++)
		pthread_join(readers[i], NULL);
	assert_int_equal(failures, 0);
	says_what_the_files_say();
	reopen();
	says_what_the_files_say();
	is_sound();
}

#define STORE_TEST(name) \
	cmocka_unit_test_setup_teardown(name, setup_store, teardown_store)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		STORE_TEST(lists_are_pages_newest_first),
		STORE_TEST(a_commit_made_while_a_list_is_read_moves_nothing),
		STORE_TEST(a_history_is_pages_up_to_the_first_commit),
		STORE_TEST(tags_are_found_by_name_and_by_commit),
		STORE_TEST(prefixes_are_looked_up),
		STORE_TEST(a_store_without_a_catalogue_is_taken_over),
		STORE_TEST(what_is_no_catalogue_is_put_aside),
		STORE_TEST(tables_of_somebody_else_are_put_aside),
		STORE_TEST(rows_that_lie_are_found_out),
		STORE_TEST(a_catalogue_with_flipped_bytes_says_nothing_false),
		STORE_TEST(files_that_came_and_went_are_reconciled),
		STORE_TEST(files_that_others_put_there_meanwhile_are_seen),
		STORE_TEST(a_store_that_was_closed_is_not_compared_again_until_somebody_was_at_it),
		STORE_TEST(without_a_good_stamp_it_is_compared),
		STORE_TEST(a_manifest_damaged_meanwhile_is_reported_and_one_mended_is_listed),
		STORE_TEST(a_catalogue_that_cannot_grow_is_kept_in_memory),
		STORE_TEST(a_long_message_is_cut_between_characters),
		STORE_TEST(a_pruned_ancestor_keeps_its_place_and_not_its_contents),
		STORE_TEST(a_pruned_commit_that_nothing_descends_from_goes),
		STORE_TEST(a_recursive_deletion_tells_of_held_commits_only),
		STORE_TEST(a_damaged_tombstone_is_told_of),
		STORE_TEST(the_same_commit_made_again_is_held),
		STORE_TEST(a_kill_at_any_point_leaves_rows_that_agree),
		STORE_TEST(a_kill_while_it_is_made_is_made_up_for),
		STORE_TEST(writers_and_readers_run_at_once),
	};

	log_init("test", LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
