/* Lists of commits by page, from the catalogue. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "host/store/store_catalog.h"

void
store_page_done(struct store_page *p)
{
	for (size_t i = 0; i < p->n; i++) {
		store_manifest_free(p->v[i].m);
		free(p->v[i].tags);
	}
	free(p->v);
	*p = (struct store_page){0};
}

static bool
is_as_its_file(struct store *s, const struct catalog_row *row)
{
	char file[PRUNED_NAME_MAX];
	struct stat st;

	if (row->state == ROW_PRUNED)
		store_pruned_name(row->entry.m->id, file);
	else
		store_manifest_name(row->entry.m->id, file);
	return fstatat(s->commits_fd, file, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       (uint64_t)st.st_ino == row->file.inode &&
	       (uint64_t)st.st_size == row->file.bytes &&
	       (int64_t)st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec ==
		       row->file.ctime_ns;
}

/* Once more from its file, where that is not the one the row was made from. false: it is
 * not there, or damaged. */
static bool
check_row(struct store *s, struct catalog_row *row)
{
	struct catalog_query q = {.order = CATALOG_HISTORY, .of = row->entry.m->id, .limit = 1};
	struct catalog_row *again = NULL;
	size_t n = 0;
	bool ok;

	if (row->state != ROW_DAMAGED && is_as_its_file(s, row))
		return true;
	if (catalog_renew(s, row->entry.m->id, NULL) < 0 ||
		catalog_rows(s, &q, &again, &n, NULL) < 0)
		return false;
	ok = n == 1 && again->state != ROW_DAMAGED;
	if (n == 1) {
		catalog_row_done(row);
		*row = *again;
	}
	free(again);
	return ok;
}

static int
bad_cursor(struct err *e)
{
	return err_set(e, -EINVAL, "the cursor is none that a list gave");
}

/* "<newest>.<id>" */
static int
read_place(const char *after, int64_t *ret_newest, char ret_id[static STORE_ID_MAX],
	struct err *e)
{
	struct store_hash ignored;
	char *end;

	errno = 0;
	*ret_newest = strtoll(after, &end, 10);
	if (errno || end == after || *end != '.' || !hash_from_hex(end + 1, &ignored))
		return bad_cursor(e);
	snprintf(ret_id, STORE_ID_MAX, "%s", end + 1);
	return 0;
}

static int
page(struct store *s, struct catalog_query *q, struct store_page *ret, struct err *e)
{
	struct catalog_row *rows = NULL;
	struct store_page p = {0};
	size_t n = 0;
	int r;

	if (q->limit < 1 || q->limit > STORE_PAGE_MAX)
		return err_set(e, -EINVAL, "a page has 1 to %u entries", STORE_PAGE_MAX);
	r = catalog_rows(s, q, &rows, &n, e);
	if (r < 0)
		return r;
	p.v = calloc(n + 1, sizeof(*p.v));
	if (!p.v)
		r = err_sys(e, -ENOMEM, "a list of commits");
	if (r == 0 && n == q->limit && q->order == CATALOG_ALL)
		snprintf(p.next, sizeof(p.next), "%llu",
			(unsigned long long)rows[n - 1].entry.seq);
	else if (r == 0 && n == q->limit && q->order == CATALOG_HISTORY)
		snprintf(p.next, sizeof(p.next), "%s",
			rows[n - 1].entry.m->f.parent ? rows[n - 1].entry.m->f.parent : "");
	else if (r == 0 && n == q->limit)
		snprintf(p.next, sizeof(p.next), "%lld.%s", (long long)rows[n - 1].newest,
			rows[n - 1].entry.m->id);
	for (size_t i = 0; r == 0 && i < n; i++) {
		bool there = check_row(s, &rows[i]);

		if (there) {
			p.v[p.n++] = rows[i].entry;
			rows[i].entry = (struct store_entry){0};
		} else if (q->order == CATALOG_HISTORY) {
			r = rows[i].state == ROW_DAMAGED
				    ? err_set(e, -EBADMSG, "%s", rows[i].damage)
				    : err_set(e, -ENOENT, "there is no commit %.64s",
					      rows[i].entry.m->id);
		}
	}
	for (size_t i = 0; i < n; i++)
		catalog_row_done(&rows[i]);
	free(rows);
	if (r == 0)
		r = catalog_damaged(s, &p.damaged, &p.first_damage, e);
	if (r < 0) {
		store_page_done(&p);
		return r;
	}
	*ret = p;
	return 0;
}

int
store_page_newest(struct store *s, const char *after, size_t limit, struct store_page *ret,
	struct err *e)
{
	struct catalog_query q = {.order = CATALOG_NEWEST, .limit = limit};
	char id[STORE_ID_MAX];
	int r = 0;

	if (after && after[0]) {
		r = read_place(after, &q.after_newest, id, e);
		q.after_id = id;
	} else {
		catalog_look(s);
		catalog_retry_damaged(s);
	}
	return r < 0 ? r : page(s, &q, ret, e);
}

int
store_page_history(struct store *s, const char *id, const char *after, size_t limit,
	struct store_page *ret, struct err *e)
{
	const char *of = after && after[0] ? after : id;
	struct catalog_query q = {.order = CATALOG_HISTORY, .of = of, .limit = limit};
	struct store_hash ignored;
	struct store_page p = {0};
	const char *missing;
	int r;

	if (!hash_from_hex(of, &ignored))
		return of == after ? bad_cursor(e)
				   : err_set(e, -ENOENT, "there is no commit %.64s", id);
	r = page(s, &q, &p, e);
	if (r < 0)
		return r;
	/* It ends at a first commit, at the page's end, or where one is missing. */
	missing = !p.n ? of : p.n < limit ? p.v[p.n - 1].m->f.parent : NULL;
	if (missing) {
		r = err_set(e, -ENOENT, "there is no commit %.64s", missing);
		store_page_done(&p);
		return r;
	}
	*ret = p;
	return 0;
}

int
store_page_all(struct store *s, const char *after, size_t limit, struct store_page *ret,
	struct err *e)
{
	struct catalog_query q = {.order = CATALOG_ALL, .limit = limit};
	char *end = NULL;

	if (after && after[0]) {
		errno = 0;
		q.after_seq = strtoull(after, &end, 10);
		if (errno || *end || after[0] < '0' || after[0] > '9')
			return bad_cursor(e);
	}
	return page(s, &q, ret, e);
}

uint64_t
store_seq(struct store *s)
{
	return catalog_newest_seq(s);
}
