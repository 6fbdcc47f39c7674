#include "host/vm/db.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/paths.h"

/* A record of what the tables are, and how an older file becomes a newer one: step n
 * leads to schema version n + 1. */
static const char *const schema_steps[DB_SCHEMA_VERSION] = {
	"CREATE TABLE vms ("
	"  seq INTEGER PRIMARY KEY AUTOINCREMENT,"
	"  id TEXT NOT NULL UNIQUE,"
	"  alias TEXT UNIQUE,"
	"  state TEXT NOT NULL,"
	"  reason TEXT,"
	"  parent TEXT REFERENCES vms(id) ON DELETE SET NULL,"
	"  created_ms INTEGER NOT NULL,"
	"  mem_mib INTEGER NOT NULL,"
	"  vcpus INTEGER NOT NULL,"
	"  disk_mib INTEGER NOT NULL,"
	"  kernel TEXT NOT NULL,"
	"  rootfs TEXT NOT NULL,"
	"  base_path TEXT,"
	"  generation BLOB NOT NULL,"
	"  pid INTEGER NOT NULL,"
	"  pid_start INTEGER NOT NULL,"
	"  answered INTEGER NOT NULL,"
	"  made INTEGER NOT NULL,"
	"  next_segment INTEGER NOT NULL);"
	"CREATE INDEX vms_parent ON vms(parent);"
	"CREATE TABLE labels ("
	"  vm TEXT NOT NULL REFERENCES vms(id) ON DELETE CASCADE,"
	"  key TEXT NOT NULL,"
	"  value TEXT NOT NULL,"
	"  PRIMARY KEY (vm, key)) WITHOUT ROWID;"
	"CREATE TABLE segments (name TEXT PRIMARY KEY) WITHOUT ROWID;"
	"CREATE TABLE chain ("
	"  vm TEXT NOT NULL REFERENCES vms(id) ON DELETE CASCADE,"
	"  pos INTEGER NOT NULL,"
	"  segment TEXT NOT NULL REFERENCES segments(name),"
	"  records INTEGER," /* NULL: all */
	"  PRIMARY KEY (vm, pos)) WITHOUT ROWID;"
	"CREATE INDEX chain_segment ON chain(segment);",
	/* What it takes to boot a VM once more, and to finish a resize. */
	"ALTER TABLE vms ADD COLUMN kernel_path TEXT;"
	"ALTER TABLE vms ADD COLUMN cmdline TEXT;"
	"ALTER TABLE vms ADD COLUMN resize_mib INTEGER NOT NULL DEFAULT 0;",
	/* Commits: where a VM comes from, and what bases are in the store. */
	"ALTER TABLE vms ADD COLUMN commit_id TEXT;"
	"ALTER TABLE vms ADD COLUMN image_id TEXT;"
	"CREATE TABLE bases ("
	"  path TEXT PRIMARY KEY,"
	"  dev INTEGER NOT NULL,"
	"  inode INTEGER NOT NULL,"
	"  size INTEGER NOT NULL,"
	"  mtime_ns INTEGER NOT NULL,"
	"  root BLOB NOT NULL) WITHOUT ROWID;",
	/* Who guests believe to be, and what they are given. Those that run are not asked
	 * again: their agents may be older than the question. */
	"ALTER TABLE vms ADD COLUMN host_key TEXT;"
	"ALTER TABLE vms ADD COLUMN greeted BLOB;"
	"UPDATE vms SET greeted = generation;"
	"CREATE TABLE environment ("
	"  vm TEXT NOT NULL,"
	"  name TEXT NOT NULL,"
	"  value TEXT NOT NULL,"
	"  PRIMARY KEY (vm, name)) WITHOUT ROWID;"
	"CREATE TRIGGER environment_goes AFTER DELETE ON vms BEGIN"
	"  DELETE FROM environment WHERE vm = OLD.id; END;",
	/* Reports; vm is no reference, they outlive it. */
	"CREATE TABLE reports ("
	"  seq INTEGER PRIMARY KEY AUTOINCREMENT,"
	"  id TEXT NOT NULL UNIQUE,"
	"  vm TEXT NOT NULL,"
	"  alias TEXT,"
	"  generation TEXT NOT NULL,"
	"  time_ms INTEGER NOT NULL,"
	"  report TEXT NOT NULL);"
	"CREATE INDEX reports_vm ON reports(vm);",
	/* What each VM's reports take, and how many of them had to go. */
	"CREATE TABLE reports_of ("
	"  vm TEXT PRIMARY KEY,"
	"  bytes INTEGER NOT NULL,"
	"  n INTEGER NOT NULL,"
	"  dropped INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;"
	"ALTER TABLE reports ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;"
	"UPDATE reports SET bytes = length(CAST(report AS BLOB)) + 512;"
	"INSERT INTO reports_of (vm, bytes, n)"
	"  SELECT vm, sum(bytes), count(*) FROM reports GROUP BY vm;"
	"CREATE TRIGGER report_comes AFTER INSERT ON reports BEGIN"
	"  INSERT INTO reports_of (vm, bytes, n) VALUES (NEW.vm, NEW.bytes, 1)"
	"  ON CONFLICT (vm) DO UPDATE SET bytes = bytes + NEW.bytes, n = n + 1; END;"
	"CREATE TRIGGER report_goes AFTER DELETE ON reports BEGIN"
	"  UPDATE reports_of SET bytes = bytes - OLD.bytes, n = n - 1 WHERE vm = OLD.vm;"
	"  DELETE FROM reports_of WHERE vm = OLD.vm AND n <= 0; END;",
	/* Merged segments: pos -1 is one that is to stand in the place of first to last. */
	"ALTER TABLE chain ADD COLUMN weight INTEGER NOT NULL DEFAULT 0;"
	"ALTER TABLE chain ADD COLUMN first INTEGER;"
	"ALTER TABLE chain ADD COLUMN last INTEGER;"
	"ALTER TABLE vms ADD COLUMN commit_segment TEXT;",
	/* Of those that have some. */
	"CREATE TABLE disk_limits ("
	"  vm TEXT PRIMARY KEY REFERENCES vms(id) ON DELETE CASCADE,"
	"  bps INTEGER NOT NULL,"
	"  iops INTEGER NOT NULL) WITHOUT ROWID;",
	/* Where a VM goes back to, and resets under way. */
	"ALTER TABLE vms ADD COLUMN origin_id TEXT;"
	"UPDATE vms SET origin_id = image_id WHERE parent IS NULL;"
	"CREATE TABLE resets ("
	"  vm TEXT PRIMARY KEY REFERENCES vms(id) ON DELETE CASCADE,"
	"  segment TEXT NOT NULL,"
	"  before INTEGER NOT NULL,"
	"  generation BLOB NOT NULL,"
	"  commit_id TEXT NOT NULL,"
	"  base_path TEXT NOT NULL,"
	"  disk_mib INTEGER NOT NULL,"
	"  kernel TEXT NOT NULL,"
	"  rootfs TEXT NOT NULL,"
	"  kernel_path TEXT,"
	"  cmdline TEXT) WITHOUT ROWID;",
};
_Static_assert(DB_REPORT_BYTES == 512, "stands in the schema, too");

enum stmt {
	STMT_BEGIN,
	STMT_COMMIT,
	STMT_LOAD,
	STMT_LABELS,
	STMT_LIMITS,
	STMT_LIMITS_PUT,
	STMT_INSERT,
	STMT_INSERT_LABEL,
	STMT_UPDATE,
	STMT_UPDATE_KERNEL,
	STMT_DELETE,
	STMT_SEGMENT,
	STMT_CHAIN_APPEND,
	STMT_CHAIN_COPY,
	STMT_CHAIN_CLEAR,
	STMT_CHAIN_OWN,
	STMT_CHAIN_SHARERS,
	STMT_CHAIN_REMOVE,
	STMT_CHAIN_CUT,
	STMT_CHAIN_DROP_EMPTY,
	STMT_CHAIN,
	STMT_SEGMENT_AGAIN,
	STMT_MERGE_BEGIN,
	STMT_MERGE_FIND,
	STMT_MERGE_RUN,
	STMT_MERGE_TAKE,
	STMT_MERGE_PLACE,
	STMT_MERGE_DROP,
	STMT_UNUSED,
	STMT_DROP_UNUSED,
	STMT_KNOWN,
	STMT_RESET_PUT,
	STMT_RESET_GET,
	STMT_RESET_DROP,
	STMT_BASE_FIND,
	STMT_BASE_PUT,
	STMT_BASE_DROP,
	STMT_BASES,
	STMT_ENV,
	STMT_ENV_CLEAR,
	STMT_ENV_PUT,
	STMT_REPORT_PUT,
	STMT_REPORT_DROP,
	STMT_REPORT_DROPPED,
	STMT_REPORTS,
	STMT_REPORTS_OF,
	STMT_REPORTS_MOST,
	STMT_REPORTS_ALL,
	STMT_REPORTS_DROPPED,
	STMT_COUNT,
};

static const char *const sql[STMT_COUNT] = {
	[STMT_BEGIN] = "BEGIN IMMEDIATE",
	[STMT_COMMIT] = "COMMIT",
	[STMT_LOAD] =
		"SELECT id, alias, state, reason, parent, created_ms, mem_mib, vcpus, disk_mib, kernel,"
		" rootfs, base_path, generation, pid, pid_start, answered, made, next_segment, kernel_path, cmdline, resize_mib, commit_id, image_id,"
		" host_key, greeted, commit_segment, origin_id"
		" FROM vms ORDER BY seq",
	[STMT_LABELS] = "SELECT key, value FROM labels WHERE vm = ?1 ORDER BY key",
	[STMT_LIMITS] = "SELECT bps, iops FROM disk_limits WHERE vm = ?1",
	[STMT_LIMITS_PUT] =
		"INSERT OR REPLACE INTO disk_limits (vm, bps, iops) VALUES (?1, ?2, ?3)",
	[STMT_INSERT] =
		"INSERT INTO vms (id, alias, state, reason, parent, created_ms, mem_mib, vcpus,"
		" disk_mib, kernel, rootfs, base_path, generation, pid, pid_start, answered, made,"
		" next_segment, resize_mib, kernel_path, cmdline, commit_id, image_id,"
		" host_key, greeted, commit_segment, origin_id) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,"
		"?21,?22,?23,?24,?25,?26,?27)",
	[STMT_INSERT_LABEL] = "INSERT INTO labels (vm, key, value) VALUES (?1, ?2, ?3)",
	[STMT_UPDATE] =
		"UPDATE vms SET alias=?2, state=?3, reason=?4, parent=?5, disk_mib=?9, base_path=?12, generation=?13, pid=?14,"
		" pid_start=?15, answered=?16, made=?17, next_segment=?18, resize_mib=?19, commit_id=?22, image_id=?23, host_key=?24, greeted=?25, commit_segment=?26, origin_id=?27"
		" WHERE id=?1",
	[STMT_UPDATE_KERNEL] =
		"UPDATE vms SET kernel=?2, rootfs=?3, kernel_path=?4, cmdline=?5 WHERE id=?1",
	[STMT_DELETE] = "DELETE FROM vms WHERE id = ?1",
	[STMT_SEGMENT] = "INSERT INTO segments (name) VALUES (?1)",
	[STMT_CHAIN_APPEND] =
		"INSERT INTO chain (vm, pos, segment) VALUES (?1,"
		" (SELECT coalesce(max(pos) + 1, 0) FROM chain WHERE vm = ?1), ?2)",
	[STMT_CHAIN_COPY] =
		"INSERT INTO chain (vm, pos, segment, records, weight, first, last)"
		" SELECT ?2, pos, segment, records, weight, first, last FROM chain WHERE vm = ?1",
	[STMT_CHAIN_CLEAR] = "DELETE FROM chain WHERE vm = ?1",
	[STMT_CHAIN_OWN] = "SELECT segment FROM chain WHERE vm = ?1 AND segment NOT IN"
			   " (SELECT segment FROM chain WHERE vm <> ?1) ORDER BY pos",
	[STMT_CHAIN_SHARERS] = "SELECT DISTINCT vm FROM chain WHERE segment = ?1 AND pos >= 0",
	[STMT_CHAIN_REMOVE] = "DELETE FROM chain WHERE vm = ?1 AND segment = ?2",
	[STMT_CHAIN_CUT] =
		"UPDATE chain SET records = ?2 WHERE segment = ?1"
		" AND EXISTS (SELECT 1 FROM chain c WHERE c.vm = chain.vm AND c.pos > chain.pos)",
	[STMT_CHAIN_DROP_EMPTY] =
		"DELETE FROM chain WHERE segment = ?1 AND records = 0 AND pos >= 0"
		" AND EXISTS (SELECT 1 FROM chain c WHERE c.vm = chain.vm AND c.pos > chain.pos)",
	[STMT_CHAIN] =
		"SELECT segment, records, weight FROM chain WHERE vm = ?1 AND pos >= 0 ORDER BY pos",
	[STMT_SEGMENT_AGAIN] = "INSERT OR IGNORE INTO segments (name) VALUES (?1)",
	[STMT_MERGE_BEGIN] =
		"INSERT INTO chain (vm, pos, segment, records, weight, first, last)"
		" SELECT ?1, -1, ?2, ?3, ?4, f.pos, l.pos FROM chain f, chain l"
		" WHERE f.vm = ?1 AND f.pos >= 0 AND f.segment = ?5"
		" AND l.vm = ?1 AND l.pos >= f.pos AND l.segment = ?6",
	[STMT_MERGE_FIND] =
		"SELECT segment, records, weight FROM chain WHERE vm = ?1 AND pos = -1",
	[STMT_MERGE_RUN] =
		"SELECT c.segment, c.records, c.weight FROM chain m JOIN chain c ON c.vm = m.vm"
		" WHERE m.vm = ?1 AND m.pos = -1 AND c.pos BETWEEN m.first AND m.last ORDER BY c.pos",
	[STMT_MERGE_TAKE] =
		"DELETE FROM chain WHERE vm = ?1 AND pos BETWEEN"
		" (SELECT first FROM chain WHERE vm = ?1 AND pos = -1) AND"
		" (SELECT last FROM chain WHERE vm = ?1 AND pos = -1)",
	[STMT_MERGE_PLACE] =
		"UPDATE chain SET pos = last, first = NULL, last = NULL WHERE vm = ?1 AND pos = -1",
	[STMT_MERGE_DROP] = "DELETE FROM chain WHERE vm = ?1 AND pos = -1",
	[STMT_UNUSED] =
		"SELECT name FROM segments WHERE name NOT IN (SELECT segment FROM chain)",
	[STMT_DROP_UNUSED] =
		"DELETE FROM segments WHERE name NOT IN (SELECT segment FROM chain)",
	[STMT_KNOWN] = "SELECT 1 FROM segments WHERE name = ?1"
		       " UNION ALL SELECT 1 FROM resets WHERE segment = ?1",
	[STMT_RESET_PUT] =
		"INSERT OR REPLACE INTO resets (vm, segment, before, generation, commit_id, base_path, disk_mib,"
		" kernel, rootfs, kernel_path, cmdline) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
	[STMT_RESET_GET] =
		"SELECT segment, before, generation, commit_id, base_path, disk_mib, kernel, rootfs,"
		" kernel_path, cmdline FROM resets WHERE vm = ?1",
	[STMT_RESET_DROP] = "DELETE FROM resets WHERE vm = ?1",
	[STMT_BASE_FIND] =
		"SELECT root FROM bases WHERE path = ?1 AND dev = ?2 AND inode = ?3 AND size = ?4 AND mtime_ns = ?5",
	[STMT_BASE_PUT] =
		"INSERT OR REPLACE INTO bases (path, dev, inode, size, mtime_ns, root) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
	[STMT_BASE_DROP] = "DELETE FROM bases WHERE path = ?1",
	[STMT_BASES] = "SELECT path, dev, inode, size, mtime_ns, root FROM bases",
	[STMT_ENV] =
		"SELECT name || '=' || value FROM environment WHERE vm = ?1 ORDER BY name",
	[STMT_ENV_CLEAR] = "DELETE FROM environment WHERE vm = ?1",
	[STMT_ENV_PUT] = "INSERT INTO environment (vm, name, value) VALUES (?1, ?2, ?3)",
	[STMT_REPORT_PUT] =
		"INSERT OR IGNORE INTO reports (id, vm, alias, generation, time_ms, report, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
	[STMT_REPORT_DROP] =
		"DELETE FROM reports WHERE seq = (SELECT min(seq) FROM reports WHERE vm = ?1)",
	[STMT_REPORT_DROPPED] =
		"UPDATE reports_of SET dropped = dropped + 1 WHERE vm = ?1",
	[STMT_REPORTS_OF] = "SELECT bytes, vm FROM reports_of WHERE vm = ?1",
	[STMT_REPORTS_MOST] =
		"SELECT bytes, vm FROM reports_of ORDER BY bytes DESC LIMIT 1",
	[STMT_REPORTS_ALL] = "SELECT total(bytes), '' FROM reports_of",
	[STMT_REPORTS_DROPPED] =
		"SELECT vm, (SELECT alias FROM reports r WHERE r.vm = o.vm ORDER BY seq DESC LIMIT 1), dropped FROM reports_of o WHERE dropped > 0 AND (?1 IS NULL OR "
		"vm = ?1) ORDER BY vm",
	[STMT_REPORTS] =
		"SELECT seq, id, vm, alias, generation, time_ms, report FROM reports WHERE seq > ?1 AND (?2 IS NULL OR vm = ?2) ORDER BY seq",
};

struct db {
	sqlite3 *h;			/* owned */
	sqlite3_stmt *stmt[STMT_COUNT]; /* owned */
};

static const char *const state_names[] = {
	[VM_STARTING] = "starting",
	[VM_RUNNING] = "running",
	[VM_PAUSED] = "paused",
	[VM_STOPPED] = "stopped",
	[VM_FAILED] = "failed",
};

const char *
vm_state_name(enum vm_state s)
{
	return state_names[s];
}

bool
vm_state_parse(const char *name, enum vm_state *ret)
{
	for (unsigned i = 0; i < sizeof(state_names) / sizeof(state_names[0]); i++)
		if (strcmp(name, state_names[i]) == 0) {
			*ret = (enum vm_state)i;
			return true;
		}
	return false;
}

static int
failed(struct db *db, const char *doing, struct err *e)
{
	int code = sqlite3_extended_errcode(db->h);
	int r = -EIO;

	switch (code & 0xff) {
	case SQLITE_CONSTRAINT:
		r = -EEXIST;
		break;
	case SQLITE_FULL:
		return err_set(e, -ENOSPC,
			"state.db: %s: no room on the disk of %.200s; make room there", doing,
			sqlite3_db_filename(db->h, "main"));
	case SQLITE_NOMEM:
		r = -ENOMEM;
		break;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		r = -EBUSY;
		break;
	}
	return err_set(e, r, "state.db: %s: %.300s", doing, sqlite3_errmsg(db->h));
}

static int
exec_sql(struct db *db, const char *text, const char *doing, struct err *e)
{
	return sqlite3_exec(db->h, text, NULL, NULL, NULL) == SQLITE_OK
		       ? 0
		       : failed(db, doing, e);
}

static int
migrate(struct db *db, const char *path, struct err *e)
{
	sqlite3_stmt *s;
	int version, r;

	if (sqlite3_prepare_v2(db->h, "PRAGMA user_version", -1, &s, NULL) != SQLITE_OK)
		return failed(db, "reading its version", e);
	if (sqlite3_step(s) != SQLITE_ROW) {
		sqlite3_finalize(s);
		return failed(db, "reading its version", e);
	}
	version = sqlite3_column_int(s, 0);
	sqlite3_finalize(s);
	if (version > DB_SCHEMA_VERSION)
		return err_set(e, -EINVAL,
			"%.200s was written by a newer pandod (schema %d, this one knows %d): use that pandod, or another PANDO_HOME",
			path, version, DB_SCHEMA_VERSION);
	while (version < DB_SCHEMA_VERSION) {
		char set[48];

		r = exec_sql(db, "BEGIN IMMEDIATE", "making the tables", e);
		if (r < 0)
			return r;
		r = exec_sql(db, schema_steps[version], "making the tables", e);
		version++;
		snprintf(set, sizeof(set), "PRAGMA user_version = %d", version);
		if (r == 0)
			r = exec_sql(db, set, "making the tables", e);
		if (r == 0)
			r = exec_sql(db, "COMMIT", "making the tables", e);
		if (r < 0) {
			db_rollback(db);
			return r;
		}
	}
	return 0;
}

/* SQLite maps the file of its index of the WAL, also where it only reads. It takes one that is there;
 * when the last of its users closes the database it goes. */
static void
make_shm(const char *path)
{
	char shm[PATHS_MAX];
	cleanup_close int fd = -1;

	if (paths_format(shm, sizeof(shm), NULL, "%s-shm", path) == 0)
		fd = open(shm, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd >= 0)
		io_write_in_place(fd);
}

int
db_open(const char *path, struct db **ret, struct err *e)
{
	struct db *db = calloc(1, sizeof(*db));
	int r;

	if (!db)
		return err_set(e, -ENOMEM, "out of memory");
	make_shm(path);
	if (sqlite3_open_v2(path, &db->h,
		    SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
		    NULL) != SQLITE_OK) {
		r = err_set(e, -EIO, "%.200s: %.200s", path,
			db->h ? sqlite3_errmsg(db->h) : "out of memory");
		db_close(db);
		return r;
	}
	sqlite3_extended_result_codes(db->h, 1);
	sqlite3_busy_timeout(db->h, 5000); /* somebody's sqlite3 shell */
	r = exec_sql(db,
		"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON",
		"opening", e);
	if (r == 0)
		r = migrate(db, path, e);
	for (int i = 0; r == 0 && i < STMT_COUNT; i++)
		if (sqlite3_prepare_v3(db->h, sql[i], -1, SQLITE_PREPARE_PERSISTENT,
			    &db->stmt[i], NULL) != SQLITE_OK)
			r = failed(db, "preparing a statement", e);
	if (r < 0) {
		db_close(db);
		return r;
	}
	*ret = db;
	return 0;
}

void
db_close(struct db *db)
{
	if (!db)
		return;
	for (int i = 0; i < STMT_COUNT; i++)
		sqlite3_finalize(db->stmt[i]);
	sqlite3_close(db->h);
	free(db);
}

/* Runs a statement that gives no rows, and makes it ready for the next time. */
static int
run(struct db *db, enum stmt which, const char *doing, struct err *e)
{
	sqlite3_stmt *s = db->stmt[which];
	int r = sqlite3_step(s) == SQLITE_DONE ? 0 : failed(db, doing, e);

	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r;
}

int
db_begin(struct db *db, struct err *e)
{
	return run(db, STMT_BEGIN, "beginning a transaction", e);
}

int
db_commit(struct db *db, struct err *e)
{
	int r = run(db, STMT_COMMIT, "committing", e);

	if (r < 0)
		db_rollback(db);
	return r;
}

void
db_rollback(struct db *db)
{
	if (!sqlite3_get_autocommit(db->h))
		sqlite3_exec(db->h, "ROLLBACK", NULL, NULL, NULL);
}

/* In WAL mode all that was committed since the last checkpoint lies in the log's file, and
 * what lies there after a sync survives. Without a log there is a journal, and then each
 * commit was synced. */
int
db_sync(struct db *db, struct err *e)
{
	sqlite3_file *log = NULL;

	if (sqlite3_file_control(db->h, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log) !=
		SQLITE_OK)
		return failed(db, "looking for its log", e);
	if (log && log->pMethods &&
		log->pMethods->xSync(log, SQLITE_SYNC_FULL) != SQLITE_OK)
		return err_set(e, -EIO, "state.db: its log cannot be synced");
	return 0;
}

static void
bind_text(sqlite3_stmt *s, int at, const char *text)
{
	if (text[0])
		sqlite3_bind_text(s, at, text, -1, SQLITE_STATIC);
	else
		sqlite3_bind_null(s, at);
}

static int
column_text(sqlite3_stmt *s, int at, char *dst, size_t cap)
{
	const char *text = (const char *)sqlite3_column_text(s, at);
	size_t len = (size_t)sqlite3_column_bytes(s, at);

	if (!text) {
		dst[0] = '\0';
		return 0;
	}
	if (len >= cap || strlen(text) != len)
		return -EINVAL;
	memcpy(dst, text, len + 1);
	return 0;
}

static int
load_labels(struct db *db, struct vm_row *row, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_LABELS];
	int step, r = 0;

	sqlite3_bind_text(s, 1, row->id, -1, SQLITE_STATIC);
	while ((step = sqlite3_step(s)) == SQLITE_ROW) {
		struct label *l = &row->labels.items[row->labels.n];

		if (row->labels.n == VM_LABELS_MAX ||
			column_text(s, 0, l->key, sizeof(l->key)) < 0 ||
			column_text(s, 1, l->value, sizeof(l->value)) < 0) {
			r = err_set(e, -EINVAL,
				"state.db: the labels of VM %s are damaged", row->id);
			break;
		}
		row->labels.n++;
	}
	if (r == 0 && step != SQLITE_DONE)
		r = failed(db, "reading labels", e);
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r;
}

static int
load_limits(struct db *db, struct vm_row *row, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_LIMITS];
	int step, r = 0;

	sqlite3_bind_text(s, 1, row->id, -1, SQLITE_STATIC);
	step = sqlite3_step(s);
	if (step == SQLITE_ROW) {
		row->limits.bps = (uint64_t)sqlite3_column_int64(s, 0);
		row->limits.iops = (uint64_t)sqlite3_column_int64(s, 1);
	} else if (step != SQLITE_DONE) {
		r = failed(db, "reading limits", e);
	}
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r;
}

static int
load_row(sqlite3_stmt *s, struct vm_row *row)
{
	char state[16];

	memset(row, 0, sizeof(*row));
	if (column_text(s, 0, row->id, sizeof(row->id)) < 0 || !vm_spec_is_id(row->id) ||
		column_text(s, 1, row->alias, sizeof(row->alias)) < 0 ||
		column_text(s, 2, state, sizeof(state)) < 0 ||
		!vm_state_parse(state, &row->state) ||
		column_text(s, 3, row->reason, sizeof(row->reason)) < 0 ||
		column_text(s, 4, row->parent, sizeof(row->parent)) < 0 ||
		column_text(s, 9, row->kernel, sizeof(row->kernel)) < 0 ||
		column_text(s, 10, row->rootfs, sizeof(row->rootfs)) < 0 ||
		column_text(s, 11, row->base_path, sizeof(row->base_path)) < 0 ||
		column_text(s, 18, row->kernel_path, sizeof(row->kernel_path)) < 0 ||
		column_text(s, 19, row->cmdline, sizeof(row->cmdline)) < 0 ||
		column_text(s, 21, row->commit, sizeof(row->commit)) < 0 ||
		column_text(s, 22, row->image, sizeof(row->image)) < 0 ||
		column_text(s, 23, row->host_key, sizeof(row->host_key)) < 0 ||
		column_text(s, 25, row->commit_segment, sizeof(row->commit_segment)) < 0 ||
		column_text(s, 26, row->origin, sizeof(row->origin)) < 0 ||
		sqlite3_column_bytes(s, 12) != (int)sizeof(row->generation))
		return -EINVAL;
	row->created_ms = (uint64_t)sqlite3_column_int64(s, 5);
	row->mem_mib = (uint64_t)sqlite3_column_int64(s, 6);
	row->vcpus = (uint32_t)sqlite3_column_int(s, 7);
	row->disk_mib = (uint64_t)sqlite3_column_int64(s, 8);
	memcpy(row->generation, sqlite3_column_blob(s, 12), sizeof(row->generation));
	memset(row->acknowledged, 0, sizeof(row->acknowledged));
	if (sqlite3_column_bytes(s, 24) == (int)sizeof(row->acknowledged))
		memcpy(row->acknowledged, sqlite3_column_blob(s, 24),
			sizeof(row->acknowledged));
	row->pid = sqlite3_column_int64(s, 13);
	row->pid_start = (uint64_t)sqlite3_column_int64(s, 14);
	row->answered = sqlite3_column_int(s, 15);
	row->made = sqlite3_column_int(s, 16);
	row->next_segment = (uint32_t)sqlite3_column_int(s, 17);
	row->resize_mib = (uint64_t)sqlite3_column_int64(s, 20);
	return 0;
}

int
db_load(struct db *db, int (*row)(void *ctx, const struct vm_row *row, struct err *e),
	void *ctx, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_LOAD];
	cleanup_free struct vm_row *v = malloc(sizeof(*v));
	int step, r = 0;

	if (!v)
		return err_set(e, -ENOMEM, "out of memory");
	while ((step = sqlite3_step(s)) == SQLITE_ROW) {
		r = load_row(s, v);
		if (r < 0) {
			r = err_set(e, r, "state.db: the row of VM \"%.12s\" is damaged",
				v->id);
			break;
		}
		r = load_labels(db, v, e);
		if (r == 0)
			r = load_limits(db, v, e);
		if (r == 0)
			r = row(ctx, v, e);
		if (r < 0)
			break;
	}
	if (r == 0 && step != SQLITE_DONE)
		r = failed(db, "reading the VMs", e);
	sqlite3_reset(s);
	return r;
}

/* The numbers are those of STMT_INSERT; STMT_UPDATE uses some of them. */
static void
bind_row(sqlite3_stmt *s, const struct vm_row *row, bool all)
{
	sqlite3_bind_text(s, 1, row->id, -1, SQLITE_STATIC);
	bind_text(s, 2, row->alias);
	sqlite3_bind_text(s, 3, vm_state_name(row->state), -1, SQLITE_STATIC);
	bind_text(s, 4, row->reason);
	bind_text(s, 5, row->parent);
	sqlite3_bind_blob(s, 13, row->generation, sizeof(row->generation), SQLITE_STATIC);
	sqlite3_bind_int64(s, 14, row->pid);
	sqlite3_bind_int64(s, 15, (sqlite3_int64)row->pid_start);
	sqlite3_bind_int(s, 16, row->answered);
	sqlite3_bind_int(s, 17, row->made);
	sqlite3_bind_int64(s, 18, row->next_segment);
	sqlite3_bind_int64(s, 9, (sqlite3_int64)row->disk_mib);
	bind_text(s, 12, row->base_path);
	sqlite3_bind_int64(s, 19, (sqlite3_int64)row->resize_mib);
	bind_text(s, 22, row->commit);
	bind_text(s, 23, row->image);
	bind_text(s, 24, row->host_key);
	sqlite3_bind_blob(
		s, 25, row->acknowledged, sizeof(row->acknowledged), SQLITE_STATIC);
	bind_text(s, 26, row->commit_segment);
	bind_text(s, 27, row->origin);
	if (!all)
		return;
	sqlite3_bind_int64(s, 6, (sqlite3_int64)row->created_ms);
	sqlite3_bind_int64(s, 7, (sqlite3_int64)row->mem_mib);
	sqlite3_bind_int64(s, 8, row->vcpus);
	sqlite3_bind_text(s, 10, row->kernel, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 11, row->rootfs, -1, SQLITE_STATIC);
	bind_text(s, 20, row->kernel_path);
	bind_text(s, 21, row->cmdline);
}

int
db_limits(struct db *db, const struct vm_row *row, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_LIMITS_PUT];

	sqlite3_bind_text(s, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 2, (sqlite3_int64)row->limits.bps);
	sqlite3_bind_int64(s, 3, (sqlite3_int64)row->limits.iops);
	return run(db, STMT_LIMITS_PUT, "limiting a VM", e);
}

int
db_insert(struct db *db, const struct vm_row *row, struct err *e)
{
	int r;

	bind_row(db->stmt[STMT_INSERT], row, true);
	r = run(db, STMT_INSERT, "adding a VM", e);
	for (unsigned i = 0; r == 0 && i < row->labels.n; i++) {
		sqlite3_stmt *s = db->stmt[STMT_INSERT_LABEL];

		sqlite3_bind_text(s, 1, row->id, -1, SQLITE_STATIC);
		sqlite3_bind_text(s, 2, row->labels.items[i].key, -1, SQLITE_STATIC);
		sqlite3_bind_text(s, 3, row->labels.items[i].value, -1, SQLITE_STATIC);
		r = run(db, STMT_INSERT_LABEL, "adding a label", e);
	}
	if (r == 0 && (row->limits.bps || row->limits.iops))
		r = db_limits(db, row, e);
	return r;
}

int
db_update(struct db *db, const struct vm_row *row, struct err *e)
{
	int r;

	bind_row(db->stmt[STMT_UPDATE], row, false);
	r = run(db, STMT_UPDATE, "changing a VM", e);
	if (r == 0 && sqlite3_changes(db->h) != 1)
		return err_set(e, -ENOENT, "state.db: VM %s has no row", row->id);
	return r;
}

int
db_update_kernel(struct db *db, const struct vm_row *row, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_UPDATE_KERNEL];

	sqlite3_bind_text(s, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 2, row->kernel, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 3, row->rootfs, -1, SQLITE_STATIC);
	bind_text(s, 4, row->kernel_path);
	bind_text(s, 5, row->cmdline);
	return run(db, STMT_UPDATE_KERNEL, "changing a VM", e);
}

/* A statement whose parameters are all texts. */
static int
run_texts(struct db *db, enum stmt which, const char *a, const char *b, const char *doing,
	struct err *e)
{
	sqlite3_stmt *s = db->stmt[which];

	sqlite3_bind_text(s, 1, a, -1, SQLITE_STATIC);
	if (b)
		sqlite3_bind_text(s, 2, b, -1, SQLITE_STATIC);
	return run(db, which, doing, e);
}

int
db_delete(struct db *db, const char *id, struct err *e)
{
	return run_texts(db, STMT_DELETE, id, NULL, "removing a VM", e);
}

int
db_chain_append(struct db *db, const char *vm, const char *segment, struct err *e)
{
	int r = run_texts(db, STMT_SEGMENT, segment, NULL, "adding a segment", e);

	if (r == 0)
		r = run_texts(db, STMT_CHAIN_APPEND, vm, segment, "adding a segment", e);
	return r;
}

int
db_chain_copy(struct db *db, const char *from, const char *to, struct err *e)
{
	return run_texts(db, STMT_CHAIN_COPY, from, to, "copying a disk chain", e);
}

int
db_chain_clear(struct db *db, const char *vm, struct err *e)
{
	return run_texts(db, STMT_CHAIN_CLEAR, vm, NULL, "dropping a disk chain", e);
}

int
db_chain_remove(struct db *db, const char *vm, const char *segment, struct err *e)
{
	return run_texts(
		db, STMT_CHAIN_REMOVE, vm, segment, "shortening a disk chain", e);
}

int
db_chain_fork_point(struct db *db, const char *segment, uint64_t records, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_CHAIN_CUT];

	if (records > INT64_MAX)
		return err_set(e, -ERANGE, "segment %s cannot have %llu records", segment,
			(unsigned long long)records);
	sqlite3_bind_text(s, 1, segment, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 2, (sqlite3_int64)records);
	return run(db, STMT_CHAIN_CUT, "cutting a segment", e);
}

/* Room for one more item in a malloc'd array; n is how many there are. */
static void *
grow(void *items, size_t n, size_t size)
{
	/* Powers of two from 16 on. */
	if (n && (n < 16 || (n & (n - 1))))
		return items;
	return realloc(items, (n < 16 ? 16 : n * 2) * size);
}

static int
column_link(sqlite3_stmt *s, struct chain_link *ret)
{
	if (column_text(s, 0, ret->segment, sizeof(ret->segment)) < 0)
		return -EINVAL;
	ret->records = sqlite3_column_type(s, 1) == SQLITE_NULL ? -1
								: sqlite3_column_int64(s, 1);
	ret->weight = (uint64_t)sqlite3_column_int64(s, 2);
	return 0;
}

/* The links that a statement gives of a VM. */
static int
chain_links(struct db *db, enum stmt which, const char *vm, struct chain_link **ret,
	size_t *ret_n, struct err *e)
{
	sqlite3_stmt *s = db->stmt[which];
	struct chain_link *links = NULL;
	size_t n = 0;
	int step, r = 0;

	sqlite3_bind_text(s, 1, vm, -1, SQLITE_STATIC);
	while ((step = sqlite3_step(s)) == SQLITE_ROW) {
		struct chain_link *more = grow(links, n, sizeof(*links));

		if (!more) {
			r = err_set(e, -ENOMEM, "out of memory");
			break;
		}
		links = more;
		if (column_link(s, &links[n]) < 0) {
			r = err_set(e, -EINVAL,
				"state.db: the disk chain of VM %s is damaged", vm);
			break;
		}
		n++;
	}
	if (r == 0 && step != SQLITE_DONE)
		r = failed(db, "reading a disk chain", e);
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	if (r < 0) {
		free(links);
		return r;
	}
	*ret = links;
	*ret_n = n;
	return 0;
}

int
db_chain(struct db *db, const char *vm, struct chain_link **ret, size_t *ret_n,
	struct err *e)
{
	return chain_links(db, STMT_CHAIN, vm, ret, ret_n, e);
}

int
db_chain_drop_empty(struct db *db, const char *segment, struct err *e)
{
	int r = run_texts(
		db, STMT_CHAIN_DROP_EMPTY, segment, NULL, "shortening a disk chain", e);

	return r < 0 ? r : sqlite3_changes(db->h) > 0;
}

int
db_merge_begin(struct db *db, const char *vm, const struct chain_link *merged,
	const char *first, const char *last, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_MERGE_BEGIN];
	int r = run_texts(
		db, STMT_SEGMENT_AGAIN, merged->segment, NULL, "adding a segment", e);

	if (r < 0)
		return r;
	sqlite3_bind_text(s, 1, vm, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 2, merged->segment, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 3, merged->records);
	sqlite3_bind_int64(s, 4, (sqlite3_int64)merged->weight);
	sqlite3_bind_text(s, 5, first, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 6, last, -1, SQLITE_STATIC);
	r = run(db, STMT_MERGE_BEGIN, "noting a merge", e);
	if (r == 0 && sqlite3_changes(db->h) != 1)
		return err_set(e, -ENOENT,
			"state.db: the disk chain of VM %s has no links %s to %s", vm, first,
			last);
	return r;
}

int
db_merge_find(struct db *db, const char *vm, struct chain_link *ret,
	struct chain_link **ret_run, size_t *ret_n, struct err *e)
{
	struct chain_link *found = NULL;
	size_t n = 0;
	int r = chain_links(db, STMT_MERGE_FIND, vm, &found, &n, e);

	if (r == 0 && n) {
		*ret = found[0];
		r = chain_links(db, STMT_MERGE_RUN, vm, ret_run, ret_n, e);
	}
	free(found);
	return r < 0 ? r : n > 0;
}

int
db_merge_end(struct db *db, const char *vm, struct err *e)
{
	int r = run_texts(db, STMT_MERGE_TAKE, vm, NULL, "shortening a disk chain", e);

	return r < 0 ? r
		     : run_texts(db, STMT_MERGE_PLACE, vm, NULL, "placing a merged segment",
			       e);
}

int
db_merge_drop(struct db *db, const char *vm, struct err *e)
{
	return run_texts(db, STMT_MERGE_DROP, vm, NULL, "forgetting a merge", e);
}

/* The names a statement gives. */
static int
segment_names(struct db *db, enum stmt which, const char *doing,
	char (**ret)[DB_SEGMENT_MAX], size_t *ret_n, struct err *e)
{
	sqlite3_stmt *s = db->stmt[which];
	char(*names)[DB_SEGMENT_MAX] = NULL;
	size_t n = 0;
	int step, r = 0;

	while ((step = sqlite3_step(s)) == SQLITE_ROW) {
		char(*more)[DB_SEGMENT_MAX] = grow(names, n, sizeof(*names));

		if (!more) {
			r = err_set(e, -ENOMEM, "out of memory");
			break;
		}
		names = more;
		if (column_text(s, 0, names[n], sizeof(names[n])) == 0)
			n++;
	}
	if (r == 0 && step != SQLITE_DONE)
		r = failed(db, doing, e);
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	if (r < 0) {
		free(names);
		return r;
	}
	*ret = names;
	*ret_n = n;
	return 0;
}

int
db_chain_own(struct db *db, const char *vm, char (**ret)[DB_SEGMENT_MAX], size_t *ret_n,
	struct err *e)
{
	sqlite3_bind_text(db->stmt[STMT_CHAIN_OWN], 1, vm, -1, SQLITE_STATIC);
	return segment_names(db, STMT_CHAIN_OWN, "reading a disk chain", ret, ret_n, e);
}

int
db_chain_sharers(struct db *db, const char *segment, char (**ret)[DB_SEGMENT_MAX],
	size_t *ret_n, struct err *e)
{
	sqlite3_bind_text(db->stmt[STMT_CHAIN_SHARERS], 1, segment, -1, SQLITE_STATIC);
	return segment_names(db, STMT_CHAIN_SHARERS, "reading disk chains", ret, ret_n, e);
}

int
db_sweep_segments(
	struct db *db, char (**ret)[DB_SEGMENT_MAX], size_t *ret_n, struct err *e)
{
	char(*names)[DB_SEGMENT_MAX] = NULL;
	size_t n = 0;
	int r = segment_names(
		db, STMT_UNUSED, "looking for unused segments", &names, &n, e);

	if (r == 0)
		r = run(db, STMT_DROP_UNUSED, "forgetting segments", e);
	if (r < 0) {
		free(names);
		return r;
	}
	*ret = names;
	*ret_n = n;
	return 0;
}

int
db_reset_put(struct db *db, const struct db_reset *reset, struct err *e)
{
	const struct vm_row *row = &reset->row;
	sqlite3_stmt *s = db->stmt[STMT_RESET_PUT];

	sqlite3_bind_text(s, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 2, reset->segment, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 3, reset->before);
	sqlite3_bind_blob(s, 4, row->generation, sizeof(row->generation), SQLITE_STATIC);
	sqlite3_bind_text(s, 5, row->commit, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 6, row->base_path, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 7, (sqlite3_int64)row->disk_mib);
	sqlite3_bind_text(s, 8, row->kernel, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 9, row->rootfs, -1, SQLITE_STATIC);
	bind_text(s, 10, row->kernel_path);
	bind_text(s, 11, row->cmdline);
	return run(db, STMT_RESET_PUT, "noting a reset", e);
}

static int
load_reset(sqlite3_stmt *s, struct db_reset *ret)
{
	struct vm_row *row = &ret->row;

	if (column_text(s, 0, ret->segment, sizeof(ret->segment)) < 0 ||
		sqlite3_column_bytes(s, 2) != (int)sizeof(row->generation) ||
		column_text(s, 3, row->commit, sizeof(row->commit)) < 0 ||
		column_text(s, 4, row->base_path, sizeof(row->base_path)) < 0 ||
		column_text(s, 6, row->kernel, sizeof(row->kernel)) < 0 ||
		column_text(s, 7, row->rootfs, sizeof(row->rootfs)) < 0 ||
		column_text(s, 8, row->kernel_path, sizeof(row->kernel_path)) < 0 ||
		column_text(s, 9, row->cmdline, sizeof(row->cmdline)) < 0)
		return -EINVAL;
	ret->before = (uint32_t)sqlite3_column_int64(s, 1);
	memcpy(row->generation, sqlite3_column_blob(s, 2), sizeof(row->generation));
	row->disk_mib = (uint64_t)sqlite3_column_int64(s, 5);
	return 0;
}

int
db_reset_get(struct db *db, const char *vm, struct db_reset *ret, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_RESET_GET];
	int step, r;

	sqlite3_bind_text(s, 1, vm, -1, SQLITE_STATIC);
	step = sqlite3_step(s);
	memset(ret, 0, sizeof(*ret));
	snprintf(ret->row.id, sizeof(ret->row.id), "%s", vm);
	if (step == SQLITE_ROW)
		r = load_reset(s, ret) < 0
			    ? err_set(e, -EINVAL, "state.db: the reset of VM %s is damaged", vm)
			    : 1;
	else
		r = step == SQLITE_DONE ? 0 : failed(db, "looking up a reset", e);
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r;
}

int
db_reset_drop(struct db *db, const char *vm, struct err *e)
{
	return run_texts(db, STMT_RESET_DROP, vm, NULL, "forgetting a reset", e);
}

int
db_segment_known(struct db *db, const char *segment, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_KNOWN];
	int step, r;

	sqlite3_bind_text(s, 1, segment, -1, SQLITE_STATIC);
	step = sqlite3_step(s);
	r = step == SQLITE_ROW	  ? 1
	    : step == SQLITE_DONE ? 0
				  : failed(db, "looking up a segment", e);
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r;
}

/* The numbers are those of STMT_BASE_FIND and STMT_BASE_PUT. */
static void
bind_base(sqlite3_stmt *s, const struct db_base *base)
{
	sqlite3_bind_text(s, 1, base->path, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 2, (sqlite3_int64)base->dev);
	sqlite3_bind_int64(s, 3, (sqlite3_int64)base->inode);
	sqlite3_bind_int64(s, 4, (sqlite3_int64)base->size);
	sqlite3_bind_int64(s, 5, base->mtime_ns);
}

static bool
column_root(sqlite3_stmt *s, int at, struct store_tree *ret)
{
	if (sqlite3_column_bytes(s, at) != (int)sizeof(ret->root))
		return false;
	memcpy(&ret->root, sqlite3_column_blob(s, at), sizeof(ret->root));
	return true;
}

int
db_base_find(struct db *db, struct db_base *base, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_BASE_FIND];
	int step, r;

	bind_base(s, base);
	step = sqlite3_step(s);
	if (step == SQLITE_ROW)
		r = column_root(s, 0, &base->tree);
	else
		r = step == SQLITE_DONE ? 0 : failed(db, "looking up a base", e);
	base->tree.length = base->size;
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r;
}

int
db_base_put(struct db *db, const struct db_base *base, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_BASE_PUT];

	bind_base(s, base);
	sqlite3_bind_blob(s, 6, &base->tree.root, sizeof(base->tree.root), SQLITE_STATIC);
	return run(db, STMT_BASE_PUT, "noting a base", e);
}

int
db_base_drop(struct db *db, const char *path, struct err *e)
{
	return run_texts(db, STMT_BASE_DROP, path, NULL, "forgetting a base", e);
}

int
db_bases(struct db *db, struct db_base **ret, size_t *ret_n, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_BASES];
	struct db_base *all = NULL;
	size_t n = 0;
	int step, r = 0;

	while ((step = sqlite3_step(s)) == SQLITE_ROW) {
		struct db_base *more = grow(all, n, sizeof(*all)), *b;

		if (!more) {
			r = err_set(e, -ENOMEM, "out of memory");
			break;
		}
		all = more;
		b = &all[n];
		if (column_text(s, 0, b->path, sizeof(b->path)) < 0 ||
			!column_root(s, 5, &b->tree))
			continue;
		b->dev = (uint64_t)sqlite3_column_int64(s, 1);
		b->inode = (uint64_t)sqlite3_column_int64(s, 2);
		b->size = (uint64_t)sqlite3_column_int64(s, 3);
		b->mtime_ns = sqlite3_column_int64(s, 4);
		b->tree.length = b->size;
		n++;
	}
	if (r == 0 && step != SQLITE_DONE)
		r = failed(db, "reading the bases", e);
	sqlite3_reset(s);
	if (r < 0) {
		free(all);
		return r;
	}
	*ret = all;
	*ret_n = n;
	return 0;
}

int
db_env_get(struct db *db, const char *vm, struct env *env, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_ENV];
	int step, r = 0;

	sqlite3_bind_text(s, 1, vm, -1, SQLITE_STATIC);
	while (r == 0 && (step = sqlite3_step(s)) == SQLITE_ROW)
		r = env_set(env, (const char *)sqlite3_column_text(s, 0), e);
	if (r == 0 && step != SQLITE_DONE)
		r = failed(db, "reading an environment", e);
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r;
}

int
db_env_put(struct db *db, const char *vm, const struct env *env, struct err *e)
{
	int r = run_texts(db, STMT_ENV_CLEAR, vm, NULL, "changing an environment", e);

	for (size_t i = 0; i < env->n && r == 0; i++) {
		sqlite3_stmt *s = db->stmt[STMT_ENV_PUT];
		size_t len = strcspn(env->v[i], "=");

		sqlite3_bind_text(s, 1, vm, -1, SQLITE_STATIC);
		sqlite3_bind_text(s, 2, env->v[i], (int)len, SQLITE_STATIC);
		sqlite3_bind_text(s, 3, env->v[i] + len + 1, -1, SQLITE_STATIC);
		r = run(db, STMT_ENV_PUT, "changing an environment", e);
	}
	return r;
}

int
db_report_put(struct db *db, const struct db_report *row, struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_REPORT_PUT];

	sqlite3_bind_text(s, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 2, row->vm, -1, SQLITE_STATIC);
	bind_text(s, 3, row->alias);
	sqlite3_bind_text(s, 4, row->generation, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 5, (sqlite3_int64)row->time_ms);
	sqlite3_bind_text(s, 6, row->json, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 7, (sqlite3_int64)(strlen(row->json) + DB_REPORT_BYTES));
	return run(db, STMT_REPORT_PUT, "keeping a report", e);
}

/* The first row of a statement on reports_of: 1, or 0 if there is none. vm: of ?1, or NULL. */
static int
reports_of(struct db *db, enum stmt which, const char *vm, uint64_t *ret_bytes,
	char ret_vm[static VM_ID_LEN + 1], struct err *e)
{
	sqlite3_stmt *s = db->stmt[which];
	int step, r = 0;

	if (vm)
		sqlite3_bind_text(s, 1, vm, -1, SQLITE_STATIC);
	step = sqlite3_step(s);
	if (step == SQLITE_ROW) {
		sqlite3_int64 bytes = sqlite3_column_int64(s, 0);

		*ret_bytes = bytes > 0 ? (uint64_t)bytes : 0;
		r = column_text(s, 1, ret_vm, VM_ID_LEN + 1) < 0 ? 0 : 1;
	} else if (step != SQLITE_DONE) {
		r = failed(db, "reading reports", e);
	}
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r;
}

static int
drop_oldest(struct db *db, const char *vm, struct err *e)
{
	int r;

	sqlite3_bind_text(db->stmt[STMT_REPORT_DROPPED], 1, vm, -1, SQLITE_STATIC);
	r = run(db, STMT_REPORT_DROPPED, "forgetting old reports", e);
	if (r < 0)
		return r;
	sqlite3_bind_text(db->stmt[STMT_REPORT_DROP], 1, vm, -1, SQLITE_STATIC);
	r = run(db, STMT_REPORT_DROP, "forgetting old reports", e);
	/* Somebody's sqlite3 shell: the sums and the rows are not of each other. */
	return r < 0 || sqlite3_changes(db->h) > 0 ? r : 1;
}

int
db_reports_trim(struct db *db, const char *vm, uint64_t vm_bytes, uint64_t all_bytes,
	uint64_t *ret_dropped, struct err *e)
{
	char most[VM_ID_LEN + 1], nobody[VM_ID_LEN + 1];
	uint64_t bytes, n = 0;
	int r;

	while ((r = reports_of(db, STMT_REPORTS_OF, vm, &bytes, most, e)) > 0 &&
		bytes > vm_bytes) {
		r = drop_oldest(db, vm, e);
		if (r)
			break;
		n++;
	}
	while (r >= 0 &&
		(r = reports_of(db, STMT_REPORTS_ALL, NULL, &bytes, nobody, e)) > 0 &&
		bytes > all_bytes) {
		r = reports_of(db, STMT_REPORTS_MOST, NULL, &bytes, most, e);
		if (r <= 0)
			break;
		r = drop_oldest(db, most, e);
		if (r)
			break;
		n += strcmp(most, vm) == 0;
	}
	*ret_dropped = n;
	return r < 0 ? r : 0;
}

int
db_reports_dropped(struct db *db, const char *vm,
	int (*row)(void *ctx, const char *vm, const char *alias, uint64_t n), void *ctx,
	struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_REPORTS_DROPPED];
	char id[VM_ID_LEN + 1], alias[VM_ALIAS_MAX + 1];
	int step, r = 0;

	bind_text(s, 1, vm ? vm : "");
	while (r == 0 && (step = sqlite3_step(s)) == SQLITE_ROW)
		if (column_text(s, 0, id, sizeof(id)) >= 0 &&
			column_text(s, 1, alias, sizeof(alias)) >= 0)
			r = row(ctx, id, alias, (uint64_t)sqlite3_column_int64(s, 2));
	if (r == 0 && step != SQLITE_DONE)
		r = failed(db, "reading reports", e);
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r > 0 ? 0 : r;
}

int
db_reports(struct db *db, const char *vm, uint64_t after,
	int (*row)(void *ctx, const struct db_report *row, struct err *e), void *ctx,
	struct err *e)
{
	sqlite3_stmt *s = db->stmt[STMT_REPORTS];
	int step, r = 0;

	sqlite3_bind_int64(s, 1, after > INT64_MAX ? INT64_MAX : (sqlite3_int64)after);
	bind_text(s, 2, vm ? vm : "");
	while (r == 0 && (step = sqlite3_step(s)) == SQLITE_ROW) {
		struct db_report v = {.seq = (uint64_t)sqlite3_column_int64(s, 0),
			.time_ms = (uint64_t)sqlite3_column_int64(s, 5)};

		v.json = (const char *)sqlite3_column_text(s, 6);
		if (!v.json || column_text(s, 1, v.id, sizeof(v.id)) < 0 ||
			column_text(s, 2, v.vm, sizeof(v.vm)) < 0 ||
			column_text(s, 3, v.alias, sizeof(v.alias)) < 0 ||
			column_text(s, 4, v.generation, sizeof(v.generation)) < 0)
			continue; /* somebody's sqlite3 shell */
		r = row(ctx, &v, e);
	}
	if (r == 0 && step != SQLITE_DONE)
		r = failed(db, "reading reports", e);
	sqlite3_reset(s);
	sqlite3_clear_bindings(s);
	return r > 0 ? 0 : r;
}
