/* Tags: made, moved, deleted and listed. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "host/store/store_catalog.h"

int
store_tag_set(struct store *s, const char *tag, const char *id, bool move, struct err *e)
{
	char text[STORE_ID_MAX + 1];
	int r = store_tag_check(tag, e);

	if (r < 0)
		return r;
	snprintf(text, sizeof(text), "%.64s\n", id);
	catalog_names_lock(s);
	if (!store_has_commit(s, id))
		r = err_set(e, -ENOENT, "there is no commit %.64s", id);
	else if (!move && faccessat(s->tags_fd, tag, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
		r = err_set(e, -EEXIST,
			"there is a tag \"%s\" already: update it, or delete it first",
			tag);
	else {
		r = store_write_at(s->tags_fd, tag, "store.tag", text, strlen(text));
		if (r < 0)
			err_sys(e, r, "writing tag \"%s\"", tag);
		else
			catalog_tag(s, tag, NULL); /* else the next call compares */
	}
	catalog_names_unlock(s);
	return r;
}

int
store_tag_delete(struct store *s, const char *tag, struct err *e)
{
	int r = store_tag_check(tag, e);

	if (r < 0)
		return r;
	catalog_names_lock(s);
	if (unlinkat(s->tags_fd, tag, 0) < 0)
		r = errno == ENOENT ? err_set(e, -ENOENT, "there is no tag \"%s\"", tag)
				    : err_sys(e, -errno, "deleting tag \"%s\"", tag);
	else {
		if (fsync(s->tags_fd) < 0)
			r = err_sys(e, -errno, "deleting tag \"%s\"", tag);
		catalog_tag(s, tag, NULL);
	}
	catalog_names_unlock(s);
	return r;
}

struct tags {
	struct store *s;
	struct store_tag *v; /* owned */
	size_t n;
};

static int
add_tag(void *ctx, const char *name, struct err *e)
{
	struct tags *t = ctx;
	struct store_tag *bigger;
	int r;

	if (store_tag_check(name, NULL))
		return 0;
	bigger = reallocarray(t->v, t->n + 1, sizeof(*bigger));
	if (!bigger)
		return err_sys(e, -ENOMEM, "tags");
	t->v = bigger;
	memset(&bigger[t->n], 0, sizeof(*bigger));
	snprintf(bigger[t->n].name, sizeof(bigger->name), "%s", name);
	r = store_tag_get(t->s, name, bigger[t->n].id, e);
	if (r == -ENOENT)
		return 0; /* deleted meanwhile */
	t->n++;
	return r == -EBADMSG ? 0 : r;
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(
		((const struct store_tag *)a)->name, ((const struct store_tag *)b)->name);
}

int
store_tags(struct store *s, struct store_tag **ret, size_t *ret_n, struct err *e)
{
	struct tags t = {.s = s};
	struct err why = {0};
	int r = store_each_name(s->tags_fd, "", add_tag, &t, &why);

	if (r < 0) {
		free(t.v);
		return err_set(e, r, "%s", why.msg);
	}
	if (t.n)
		qsort(t.v, t.n, sizeof(*t.v), by_name);
	*ret = t.v;
	*ret_n = t.n;
	return 0;
}

int
store_tags_page(struct store *s, const char *after, size_t limit, struct store_tag **ret,
	size_t *ret_n, struct err *e)
{
	if (!after || !after[0])
		catalog_look(s);
	return catalog_tags(s, after, NULL, limit, ret, ret_n, e);
}

int
store_tags_of(struct store *s, const char *id, struct store_tag **ret, size_t *ret_n,
	struct err *e)
{
	return catalog_tags(s, NULL, id, SIZE_MAX >> 1, ret, ret_n, e);
}
