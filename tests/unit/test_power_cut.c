/*
 * What a power cut leaves. fsync, fdatasync, rename and unlink of this process, SQLite's
 * too, pass through here: a file has on the disk what it had when it was synced last; a
 * name is there when its file or its folder was synced since it was given; what is removed
 * is gone at once. That is the worst that a file system may make of it. After each removal
 * the database as it is on the disk is looked at: it must not name what is gone.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_handshake.h"
#include "host/agent/agent_report.h"
#include "host/vm/tree.h"
#include "tests/unit/tree_help.h"

static char disk[64]; /* <inode> files, as synced last */

/*
 * The disk.
 */

#define NAMES_MAX 4096

static pthread_mutex_t disk_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	char path[160];
	ino_t inode;
} names[NAMES_MAX]; /* that are on the disk */
static unsigned n_names;
static bool watching;		/* removals are looked at */
static unsigned segments_syncs; /* of the folder of segments */
static unsigned removals;	/* that were */
static unsigned merged_names;	/* of merged segments, that came onto the disk */
static char wrong[512];		/* the first thing that must not be */

static void
name_is_there(const char *path, ino_t inode)
{
	unsigned i = 0;

	while (i < n_names && strcmp(names[i].path, path) != 0)
		i++;
	if (i == NAMES_MAX)
		abort();
	if (i == n_names && strstr(strrchr(path, '/'), ".m"))
		merged_names++;
	snprintf(names[i].path, sizeof(names[i].path), "%s", path);
	names[i].inode = inode;
	n_names += i == n_names;
}

static void
name_is_gone(const char *path)
{
	for (unsigned i = 0; i < n_names; i++)
		if (strcmp(names[i].path, path) == 0)
			names[i] = names[--n_names];
}

static void
copy_content(const char *from, const char *to)
{
	static char buf[1 << 16];
	cleanup_close int in = open(from, O_RDONLY | O_CLOEXEC);
	cleanup_close int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ssize_t n;

	while ((n = io_read(in, buf, sizeof(buf))) > 0)
		if (io_write_full(out, buf, (size_t)n) < 0)
			abort();
}

/* Called with the lock. */
static void
was_synced(int fd)
{
	char link[40], path[160], to[128];
	cleanup_closedir DIR *dir = NULL;
	struct dirent *d;
	struct stat st;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n <= 0 || strncmp(path, home, (size_t)strlen(home)) != 0 ||
		fstat(fd, &st) < 0)
		return;
	path[n] = '\0';
	if (S_ISREG(st.st_mode)) {
		snprintf(to, sizeof(to), "%s/%llu", disk, (unsigned long long)st.st_ino);
		copy_content(link, to);
		name_is_there(path, st.st_ino);
		return;
	}
	segments_syncs += strcmp(path + strlen(home), "/segments") == 0;
	dir = opendir(path);
	while (dir && (d = readdir(dir))) {
		char entry[160];

		if (d->d_name[0] != '.' &&
			snprintf(entry, sizeof(entry), "%s/%s", path, d->d_name) <
				(int)sizeof(entry) &&
			stat(entry, &st) == 0)
			name_is_there(entry, st.st_ino);
	}
}

static bool
is_named(const char *path)
{
	for (unsigned i = 0; i < n_names; i++)
		if (strcmp(names[i].path, path) == 0)
			return true;
	return false;
}

/* The file as it is on the disk, to path `to`: false when its name is not there. */
static bool
as_on_disk(const char *path, const char *to)
{
	char from[128];

	for (unsigned i = 0; i < n_names; i++)
		if (strcmp(names[i].path, path) == 0) {
			snprintf(from, sizeof(from), "%s/%llu", disk,
				(unsigned long long)names[i].inode);
			if (access(from, F_OK) == 0)
				copy_content(from, to);
			return access(from, F_OK) == 0;
		}
	return false;
}

/* The database as a power cut would leave it now; its path to dst. */
static void
database_on_disk(char dst[static 128])
{
	static const char *const suffixes[] = {"", "-wal"};
	char from[128], to[160];

	snprintf(dst, 128, "%s/cut.db", disk);
	snprintf(to, sizeof(to), "%s-shm", dst);
	syscall(SYS_unlink, to);
	for (size_t i = 0; i < 2; i++) {
		snprintf(from, sizeof(from), "%s/state.db%s", home, suffixes[i]);
		snprintf(to, sizeof(to), "%s%s", dst, suffixes[i]);
		syscall(SYS_unlink, to);
		as_on_disk(from, to);
	}
}

/* Everything that this query names must be there. */
static void
look(sqlite3 *db, const char *sql, const char *what, bool on_disk, const char *removed)
{
	char copy[128];
	sqlite3_stmt *s = NULL;

	snprintf(copy, sizeof(copy), "%s/copy", disk);
	if (sqlite3_prepare_v2(db, sql, -1, &s, NULL) != SQLITE_OK)
		return; /* a database without tables names nothing */
	while (sqlite3_step(s) == SQLITE_ROW) {
		const char *name = (const char *)sqlite3_column_text(s, 0);
		char path[160];

		if (!name || !name[0])
			continue;
		if (name[0] == '/')
			snprintf(path, sizeof(path), "%s", name);
		else
			snprintf(path, sizeof(path), "%s/segments/%s.data", home, name);
		if (strncmp(path, home, strlen(home)) != 0)
			continue;
		if ((access(path, F_OK) < 0 || !is_named(path) ||
			    (on_disk && !as_on_disk(path, copy))) &&
			!wrong[0])
			snprintf(wrong, sizeof(wrong),
				"%s is removed, and the database on the disk has %s %s, which is not there",
				removed, what, path);
	}
	sqlite3_finalize(s);
}

/* Called with the lock. */
static void
after_removal(const char *path)
{
	char cut[128];
	sqlite3 *db = NULL;

	watching = false; /* SQLite removes files, too */
	database_on_disk(cut);
	if (sqlite3_open(cut, &db) == SQLITE_OK) {
		look(db, "SELECT segment FROM chain", "the segment", false, path);
		look(db, "SELECT base_path FROM vms", "the base", true, path);
	}
	sqlite3_close(db);
	watching = true;
	removals++;
}

static __thread bool inside;

#define ON_DISK(change) \
	do { \
		if (!inside) { \
			inside = true; \
			pthread_mutex_lock(&disk_lock); \
			change; \
			pthread_mutex_unlock(&disk_lock); \
			inside = false; \
		} \
	} while (0)

/* Names of libc's: the executable's come first, also for libsqlite3. */
int
fsync(int fd)
{
	ON_DISK(was_synced(fd));
	return (int)syscall(SYS_fsync, fd);
}

int
fdatasync(int fd)
{
	ON_DISK(was_synced(fd));
	return (int)syscall(SYS_fdatasync, fd);
}

int
rename(const char *from, const char *to)
{
	return (int)syscall(SYS_rename, from, to);
}

int
unlink(const char *path)
{
	int r = (int)syscall(SYS_unlink, path);
	int before = errno;

	ON_DISK({
		name_is_gone(path);
		if (r == 0 && watching &&
			(strstr(path, "/segments/") || strstr(path, "/bases/")))
			after_removal(path);
	});
	errno = before;
	return r;
}

/*
 * The guests have no agents; a fake VMM would take what is sent to one for an order.
 */

int
agent_ping(const char *path, int timeout_ms, struct agent_pong *ret, struct err *e)
{
	(void)path;
	(void)timeout_ms;
	(void)ret;
	return err_set(e, -ECONNREFUSED, "no agent");
}

int
agent_wait_ready(const char *path, int timeout_ms, int (*cancel)(void *ctx), void *ctx,
	struct err *e)
{
	(void)cancel;
	(void)ctx;
	return agent_ping(path, timeout_ms, NULL, e);
}

int
agent_handshake(const char *path, const struct agent_handshake *h, int timeout_ms,
	int (*cancel)(void *ctx), void *ctx, struct agent_ack *ret, struct err *e)
{
	(void)h;
	(void)cancel;
	(void)ctx;
	(void)ret;
	return agent_ping(path, timeout_ms, NULL, e);
}

int
agent_exec(const char *path, const struct agent_exec_req *req,
	const struct agent_exec_io *io, struct agent_exec_result *ret, struct err *e)
{
	(void)req;
	(void)io;
	(void)ret;
	return agent_ping(path, 0, NULL, e);
}

int
agent_exit_status(const struct agent_exec_result *r)
{
	return (int)r->value;
}

int
agent_reports_list(const char *path, const char *root, int timeout_ms,
	struct agent_report **ret, size_t *ret_n, size_t *ret_bad, struct err *e)
{
	(void)root;
	(void)ret;
	(void)ret_n;
	(void)ret_bad;
	return agent_ping(path, timeout_ms, NULL, e);
}

int
agent_reports_ack(const char *path, const char *root, int timeout_ms,
	const struct agent_report *v, size_t n, struct err *e)
{
	(void)root;
	(void)v;
	(void)n;
	return agent_ping(path, timeout_ms, NULL, e);
}

void
agent_reports_free(struct agent_report *v, size_t n)
{
	(void)v;
	(void)n;
}

/* Nobody follows reports here. */
int
agent_reports_watch(const char *path, const char *root, int timeout_ms,
	struct agent_report_watch **ret, struct err *e)
{
	(void)root;
	(void)ret;
	return agent_ping(path, timeout_ms, NULL, e);
}

int
agent_report_watch_fd(const struct agent_report_watch *w)
{
	(void)w;
	return -1;
}

int
agent_report_watch_read(struct agent_report_watch *w, struct err *e)
{
	(void)w;
	(void)e;
	return -EPIPE;
}

void
agent_report_watch_free(struct agent_report_watch *w)
{
	(void)w;
}

/*
 * pandod.
 */

static int
setup(void **state)
{
	(void)state;
	snprintf(disk, sizeof(disk), "/tmp/pando-test-XXXXXX");
	assert_non_null(mkdtemp(disk));
	n_names = removals = merged_names = 0;
	watching = false;
	wrong[0] = '\0';
	make_home(20000);
	config.agent_timeout_ms = 1000;
	start();
	return 0;
}

static struct err why;

static void
must(int r)
{
	if (r < 0)
		fail_msg("%s", why.msg);
}

static int
done(int r, struct json_out *out)
{
	json_out_done(out);
	*out = (struct json_out){0};
	return r;
}

static int
create(const char *alias)
{
	struct create_request q = {
		.mem_mib = 64, .disk_mib = 8, .vcpus = 1, .rootfs = "none"};
	struct json_out out = {0};

	snprintf(q.alias, sizeof(q.alias), "%s", alias);
	snprintf(q.kernel, sizeof(q.kernel), "%s", kernel);
	return done(tree_create(tree, &q, NULL, &out, &why), &out);
}

static int
branch(const char *vm, const char *alias)
{
	struct branch_request q = {.count = 1};
	struct json_out out = {0};

	snprintf(q.alias, sizeof(q.alias), "%s", alias);
	return done(tree_branch(tree, vm, &q, NULL, &out, &why), &out);
}

static int
stop_vm(const char *vm)
{
	struct stop_request q = {.force = true};
	struct json_out out = {0};

	return done(tree_stop_vm(tree, vm, &q, NULL, &out, &why), &out);
}

static int
start_vm(const char *vm)
{
	struct start_request q = {.wait = false};
	struct json_out out = {0};

	return done(tree_start_vm(tree, vm, &q, NULL, &out, &why), &out);
}

static int
delete_vm(const char *vm)
{
	struct json_out out = {0};

	return done(tree_delete(tree, vm, true, false, NULL, &out, &why), &out);
}

/* How many segments the VM's disk has. */
static int
chain_length(const char *vm)
{
	struct json_out out = {0};
	cleanup_json struct json *j = NULL;
	int n;

	assert_int_equal(tree_disk(tree, vm, &out, &why), 0);
	assert_int_equal(json_parse(out.buf, out.len, 1000, &j, &why), 0);
	n = json_size(j, json_get(j, 0, "chain"));
	json_out_done(&out);
	return n;
}

static pid_t
pid_of(const char *vm)
{
	struct json_out out = {0};
	cleanup_json struct json *j = NULL;
	int64_t pid = 0;

	assert_int_equal(tree_info(tree, vm, &out, &why), 0);
	assert_int_equal(json_parse(out.buf, out.len, 1000, &j, &why), 0);
	assert_int_equal(json_i64(j, json_get(j, 0, "pid"), &pid), 0);
	json_out_done(&out);
	return (pid_t)pid;
}

static int
teardown(void **state)
{
	(void)state;
	watching = false;
	for (const char *const *vm = (const char *const[]){"a", "b", "c", NULL}; *vm;
		vm++)
		delete_vm(*vm);
	stop();
	io_remove_tree(disk, NULL);
	return io_remove_tree(home, NULL);
}

/* All that is in the database is on the disk, too, and from now on removals are seen. */
static void
watch(void)
{
	stop();
	start();
	watching = true;
}

static void
a_power_cut_at_any_removal_of_a_start_leaves_the_disk(void **state)
{
	(void)state;
	assert_int_equal(create("a"), 0);
	assert_int_equal(branch("a", "b"), 0);
	must(stop_vm("a"));
	watch();
	/* Its own segments go, what it shares with its branch stays. */
	must(start_vm("a"));
	must(stop_vm("a"));
	/* And now a base, too. */
	must(start_vm("a"));
	assert_true(removals >= 4);
	if (wrong[0])
		fail_msg("%s", wrong);
}

static void
a_power_cut_at_any_removal_of_a_delete_leaves_no_vm_without_its_disk(void **state)
{
	(void)state;
	assert_int_equal(create("a"), 0);
	assert_int_equal(branch("a", "b"), 0);
	must(stop_vm("b"));
	must(start_vm("b"));
	must(stop_vm("b"));
	watch();
	assert_int_equal(delete_vm("b"), 0);
	assert_int_equal(delete_vm("a"), 0);
	assert_true(removals >= 5);
	if (wrong[0])
		fail_msg("%s", wrong);
}

/* Files on the disk as they are here. */
static bool
is_whole_on_disk(const char *path)
{
	char copy[128], command[600];

	snprintf(copy, sizeof(copy), "%s/whole", disk);
	snprintf(command, sizeof(command), "cmp -s %s %s", path, copy);
	return as_on_disk(path, copy) && system(command) == 0;
}

static void
merged_segments_are_on_the_disk_before_what_they_stand_for_goes(void **state)
{
	char folder[100], path[400];
	struct dirent *d;
	DIR *dir;

	(void)state;
	assert_int_equal(create("a"), 0);
	assert_int_equal(branch("a", "b"), 0);
	watch();
	for (unsigned i = 0; i < 40; i++) {
		must(branch("a", "c"));
		assert_int_equal(delete_vm("c"), 0);
	}
	/* By then 32 of them are two; or one or none, where nothing is read of the older. */
	for (unsigned i = 0; chain_length("a") > 20; i++) {
		assert_true(i < 6000);
		poll(NULL, 0, 10);
	}
	assert_true(removals >= 32);
	assert_true(merged_names >= 1);
	if (wrong[0])
		fail_msg("%s", wrong);
	snprintf(folder, sizeof(folder), "%s/segments", home);
	dir = opendir(folder);
	assert_non_null(dir);
	pthread_mutex_lock(&disk_lock);
	while ((d = readdir(dir))) {
		if (!strstr(d->d_name, ".m"))
			continue;
		snprintf(path, sizeof(path), "%s/%s", folder, d->d_name);
		if (!is_whole_on_disk(path))
			fail_msg("%s is not on the disk as it is", path);
	}
	pthread_mutex_unlock(&disk_lock);
	closedir(dir);
}

static void
what_a_vm_wrote_after_a_branch_that_a_power_cut_took_is_on_its_disk(void **state)
{
	static const char *const suffixes[] = {"", "-wal", "-shm"};
	char cut[128], kept[160], path[160];
	int before;
	pid_t pid;

	(void)state;
	assert_int_equal(create("a"), 0);
	watch();
	before = chain_length("a");
	/* What the disk has of the database until somebody is told of the branches. */
	pthread_mutex_lock(&disk_lock);
	database_on_disk(cut);
	pthread_mutex_unlock(&disk_lock);
	snprintf(kept, sizeof(kept), "%s.kept", cut);
	sqlite3 *db;
	assert_int_equal(sqlite3_open(cut, &db), SQLITE_OK);
	assert_int_equal(
		sqlite3_exec(db, "PRAGMA wal_checkpoint(TRUNCATE)", NULL, NULL, NULL),
		SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	copy_content(cut, kept);
	/* The guest goes on in a new segment, and writes there. */
	assert_int_equal(branch("a", "b"), 0);
	assert_int_equal(branch("a", "c"), 0);
	assert_int_equal(chain_length("a"), before + 2);
	pid = pid_of("a");
	/* The power goes: processes, and what of the database was not synced. */
	kill(pid, SIGKILL);
	kill(pid_of("b"), SIGKILL);
	kill(pid_of("c"), SIGKILL);
	watching = false;
	stop();
	for (size_t i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/state.db%s", home, suffixes[i]);
		syscall(SYS_unlink, path);
	}
	snprintf(path, sizeof(path), "%s/state.db", home);
	copy_content(kept, path);
	start();
	/* The branches are not known any more; all that a's guest wrote is. */
	assert_int_equal(chain_length("a"), before + 2);
	must(start_vm("a"));
	assert_int_equal(chain_length("a"), 1);
}

/* Those of the database on the disk; what their chains name is looked for. */
static int
vms_on_disk(void)
{
	char cut[128];
	sqlite3_stmt *s = NULL;
	sqlite3 *db;
	int n = -1;

	pthread_mutex_lock(&disk_lock);
	database_on_disk(cut);
	pthread_mutex_unlock(&disk_lock);
	assert_int_equal(sqlite3_open(cut, &db), SQLITE_OK);
	look(db, "SELECT segment FROM chain", "the segment", false, "nothing");
	if (sqlite3_prepare_v2(db, "SELECT count(*) FROM vms WHERE made", -1, &s, NULL) ==
			SQLITE_OK &&
		sqlite3_step(s) == SQLITE_ROW)
		n = sqlite3_column_int(s, 0);
	sqlite3_finalize(s);
	sqlite3_close(db);
	return n;
}

static void
a_vm_that_its_maker_was_told_of_is_there_after_a_power_cut(void **state)
{
	(void)state;
	must(create("a"));
	assert_int_equal(vms_on_disk(), 1);
	/* Nobody waits for the row of a branch; it is there soon. */
	must(branch("a", "b"));
	for (int i = 0; i < 1000 && vms_on_disk() != 2; i++)
		usleep(10000);
	assert_int_equal(vms_on_disk(), 2);
	/* And so are their disks: nothing has been flushed, and all can be read. */
	if (wrong[0])
		fail_msg("%s", wrong);
}

static unsigned
count_segments_syncs(void)
{
	unsigned n;

	pthread_mutex_lock(&disk_lock);
	n = segments_syncs;
	pthread_mutex_unlock(&disk_lock);
	return n;
}

static void
the_folder_of_segments_is_synced_only_when_there_are_new_ones(void **state)
{
	unsigned before = count_segments_syncs();

	(void)state;
	must(create("a"));
	assert_true(count_segments_syncs() > before);
	must(branch("a", "b"));
	for (int i = 0; i < 1000 && vms_on_disk() != 2; i++)
		usleep(10000);
	assert_int_equal(vms_on_disk(), 2);
	/* A deletion syncs the database and removes segments. */
	before = count_segments_syncs();
	assert_int_equal(delete_vm("b"), 0);
	assert_int_equal(count_segments_syncs(), before);
	must(branch("a", "b"));
	for (int i = 0; i < 1000 && vms_on_disk() != 2; i++)
		usleep(10000);
	assert_true(count_segments_syncs() > before);
	/* Those of the last pandod may not be on the disk. */
	before = count_segments_syncs();
	stop();
	start();
	must(stop_vm("a"));
	assert_int_equal(delete_vm("b"), 0);
	assert_true(count_segments_syncs() > before);
	if (wrong[0])
		fail_msg("%s", wrong);
}

int
main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		T(a_power_cut_at_any_removal_of_a_start_leaves_the_disk),
		T(a_power_cut_at_any_removal_of_a_delete_leaves_no_vm_without_its_disk),
		T(merged_segments_are_on_the_disk_before_what_they_stand_for_goes),
		T(what_a_vm_wrote_after_a_branch_that_a_power_cut_took_is_on_its_disk),
		T(a_vm_that_its_maker_was_told_of_is_there_after_a_power_cut),
		T(the_folder_of_segments_is_synced_only_when_there_are_new_ones),
#undef T
	};

	(void)argc;
	tree_test_begin(argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
