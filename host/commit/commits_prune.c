/*
 * Retention: what a checkpointing agent leaves behind goes by rule.
 *
 * When a commit may go is its label pando.expires_ms, and which VM's --keep-last it is of
 * pando.line: labels travel with a commit, and are nothing new to older readers.
 *
 * A line is what leads from a commit that nothing descends from to its first ancestor.
 * Commits at whose end several lines begin belong to all of them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"

#define LABEL_TOKENS 4096u
/* How far above the commits that stay --keep-last looks for those that must go: pruned
 * ones in a row, and all. `pando prune` looks at all. */
#define PRUNED_IN_A_ROW 64u
#define LOOKED_AT_MAX 1024u

bool
label_get(const char *labels, const char *name, char *dst, size_t cap)
{
	cleanup_json struct json *j = NULL;

	/* Mostly there are none. */
	return strstr(labels, name) &&
	       json_parse(labels, strlen(labels), LABEL_TOKENS, &j, NULL) == 0 &&
	       json_str(j, json_get(j, 0, name), dst, cap) == 0;
}

static bool
labels_match(const char *labels, const struct labels *want)
{
	cleanup_json struct json *j = NULL;

	if (!want->n)
		return true;
	if (json_parse(labels, strlen(labels), LABEL_TOKENS, &j, NULL) < 0)
		return false;
	for (unsigned i = 0; i < want->n; i++) {
		char value[VM_LABEL_VALUE_MAX + 1];

		if (json_str(j, json_get(j, 0, want->items[i].key), value,
			    sizeof(value)) < 0 ||
			strcmp(value, want->items[i].value) != 0)
			return false;
	}
	return true;
}

/*
 * Which.
 */

struct candidate {
	struct store_hash id, parent;
	bool has_parent, held, tagged, matches, expired, old;
	bool recent; /* made after this began: its VM's row may not say so yet */
	uint32_t below;	   /* children that are not counted yet */
	uint32_t newer;	   /* that match, on the line on which there are the fewest */
};

struct candidates {
	struct candidate *v; /* owned */
	size_t n, room;
};

static int
add_page(struct candidates *l, const struct store_page *p, const struct prune_request *q,
	uint64_t now_ms, uint64_t last_seq, struct err *e)
{
	for (size_t i = 0; i < p->n; i++) {
		const struct store_fields *f = &p->v[i].m->f;
		struct candidate c = {.held = !p->v[i].pruned};
		char expires[32];

		if (l->n == l->room) {
			size_t room = l->room ? 2 * l->room : 1024;
			void *bigger = reallocarray(l->v, room, sizeof(*l->v));

			if (!bigger)
				return err_set(e, -ENOMEM, "out of memory");
			l->v = bigger;
			l->room = room;
		}
		hash_from_hex(p->v[i].m->id, &c.id);
		c.has_parent = f->parent && hash_from_hex(f->parent, &c.parent);
		c.tagged = p->v[i].n_tags != 0;
		c.recent = p->v[i].seq > last_seq;
		c.matches = c.held && labels_match(f->labels, &q->labels);
		c.expired = label_get(f->labels, LABEL_EXPIRES, expires, sizeof(expires)) &&
			    strtoull(expires, NULL, 10) <= now_ms;
		c.old = f->created_ms <= now_ms && now_ms - f->created_ms >= q->older_than_ms;
		c.newer = UINT32_MAX;
		l->v[l->n++] = c;
	}
	return 0;
}

static int
read_all(struct store *s, const struct prune_request *q, uint64_t last_seq,
	struct candidates *l, struct err *e)
{
	char after[STORE_CURSOR_MAX] = "";
	uint64_t now_ms = io_wall_ms();
	int r;

	do {
		struct store_page p = {0};

		r = store_page_all(s, after, STORE_PAGE_MAX, &p, e);
		if (r == 0)
			r = add_page(l, &p, q, now_ms, last_seq, e);
		memcpy(after, p.next, sizeof(after));
		store_page_done(&p);
	} while (r == 0 && after[0]);
	return r;
}

static int
by_id(const void *a, const void *b)
{
	return memcmp(&((const struct candidate *)a)->id,
		&((const struct candidate *)b)->id, sizeof(struct store_hash));
}

static struct candidate *
parent_of(const struct candidates *l, const struct candidate *c)
{
	struct candidate key = {.id = c->parent};

	return c->has_parent ? bsearch(&key, l->v, l->n, sizeof(*l->v), by_id) : NULL;
}

/* From the ends of the lines upward, each when all its children are counted. */
static int
count_newer(struct candidates *l, struct err *e)
{
	cleanup_free struct candidate **ready = calloc(l->n + 1, sizeof(*ready));
	size_t n = 0;

	if (!ready)
		return err_set(e, -ENOMEM, "out of memory");
	if (l->n)
		qsort(l->v, l->n, sizeof(*l->v), by_id);
	for (size_t i = 0; i < l->n; i++) {
		struct candidate *parent = parent_of(l, &l->v[i]);

		if (parent)
			parent->below++;
	}
	for (size_t i = 0; i < l->n; i++)
		if (!l->v[i].below) {
			l->v[i].newer = 0;
			ready[n++] = &l->v[i];
		}
	while (n) {
		const struct candidate *c = ready[--n];
		struct candidate *parent = parent_of(l, c);
		uint32_t newer = c->newer + c->matches;

		if (!parent)
			continue;
		if (newer < parent->newer)
			parent->newer = newer;
		if (!--parent->below)
			ready[n++] = parent;
	}
	return 0;
}

static bool
is_selected(const struct candidate *c, const struct prune_request *q)
{
	bool rule = q->has_older || q->keep_last;

	if (!c->matches || c->tagged || c->recent ||
		(q->keep_last && c->newer < q->keep_last))
		return false;
	return c->expired || (rule && (!q->has_older || c->old));
}

/*
 * And they go.
 */

struct pruned {
	struct json_out *out; /* borrowed: ids to an array in it; NULL: nobody asks */
	uint64_t n, in_use;
};

static int
by_hash(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct store_hash));
}

/* Those that no VM needs and nobody works with; they are going from now on, when going is
 * not NULL. */
static int
leave_used(struct commits *c, struct store_hash *v, size_t *n, struct commits_going *going,
	struct err *e)
{
	cleanup_vm_uses struct vm_uses uses = {0};
	struct tree *t = c->tree;
	size_t kept = 0;
	int r;

	qsort(v, *n, sizeof(*v), by_hash);
	pthread_mutex_lock(&t->lock);
	r = vm_uses_read_locked(t, true, &uses, e);
	for (size_t i = 0; r == 0 && i < *n; i++) {
		char id[STORE_ID_MAX];
		bool used;

		hash_to_hex(&v[i], id);
		used = commit_is_used(c, id) || commit_is_going(c, id);
		for (size_t j = 0; j < uses.n && !used; j++)
			used = strcmp(uses.v[j].commit, id) == 0;
		if (!used)
			v[kept++] = v[i];
	}
	if (r == 0 && going) {
		*going = (struct commits_going){c->going, v, kept};
		c->going = going;
	}
	pthread_mutex_unlock(&t->lock);
	*n = kept;
	return r;
}

static void
going_end(struct commits *c, struct commits_going *g)
{
	pthread_mutex_lock(&c->tree->lock);
	for (struct commits_going **at = &c->going; *at; at = &(*at)->next)
		if (*at == g) {
			*at = g->next;
			break;
		}
	pthread_mutex_unlock(&c->tree->lock);
}

/* STORE_PRUNE_MAX at most, of any order. */
static int
prune_some(struct commits *c, struct store *s, struct store_hash *v, size_t n, bool dry_run,
	struct pruned *ret, struct err *e)
{
	char ids[STORE_PRUNE_MAX][STORE_ID_MAX];
	struct commits_going going = {0};
	struct store_ids done = {0};
	size_t all = n;
	int r = leave_used(c, v, &n, dry_run ? NULL : &going, e);

	if (r < 0)
		return r;
	ret->in_use += all - n;
	for (size_t i = 0; i < n; i++)
		hash_to_hex(&v[i], ids[i]);
	if (!dry_run) {
		fault_point("prune.going");
		r = store_prune(s, (const char (*)[STORE_ID_MAX])ids, n, &done, e);
		going_end(c, &going);
		fault_point("prune.gone");
	}
	ret->n += dry_run ? n : done.n;
	for (size_t i = 0; r == 0 && ret->out && i < (dry_run ? n : done.n); i++)
		json_out_str(ret->out, NULL, dry_run ? ids[i] : done.ids[i]);
	store_ids_done(&done);
	return r;
}

int
commits_prune(struct commits *c, const struct prune_request *q, const struct progress *p,
	struct json_out *out, struct err *e)
{
	struct pruned pruned = {.out = out};
	struct candidates l = {0};
	uint64_t last_seq, tagged = 0;
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r < 0)
		return r;
	/* Commits that are there have been noted in their VMs' rows after this; those that
	 * come later are left alone. */
	last_seq = store_seq(s);
	say(p, "waiting for the commits that are being made");
	pthread_rwlock_wrlock(&c->noted_lock);
	pthread_rwlock_unlock(&c->noted_lock);
	say(p, "looking for what the rules select");
	r = read_all(s, q, last_seq, &l, e);
	if (r == 0)
		r = count_newer(&l, e);
	if (r == 0) {
		struct store_hash some[STORE_PRUNE_MAX];
		size_t n = 0;

		json_out_object(out, NULL);
		json_out_array(out, q->dry_run ? "would_prune" : "pruned");
		for (size_t i = 0; r == 0 && i < l.n; i++) {
			struct candidate untagged = l.v[i];

			untagged.tagged = false;
			tagged += l.v[i].tagged && is_selected(&untagged, q);
			if (is_selected(&l.v[i], q))
				some[n++] = l.v[i].id;
			if (n == STORE_PRUNE_MAX) {
				r = prune_some(c, s, some, n, q->dry_run, &pruned, e);
				n = 0;
			}
		}
		if (r == 0 && n)
			r = prune_some(c, s, some, n, q->dry_run, &pruned, e);
		json_out_end_array(out);
		json_out_u64(out, "kept_tagged", tagged);
		json_out_u64(out, "kept_in_use", pruned.in_use);
		json_out_end_object(out);
	}
	free(l.v);
	if (!q->dry_run && pruned.n) {
		log_info("prune: %llu commits; %llu are tagged, and %llu in use",
			(unsigned long long)pruned.n, (unsigned long long)tagged,
			(unsigned long long)pruned.in_use);
		materialized_trim(c);
	}
	return r;
}

/*
 * When a commit is made.
 */

static int
add_label(struct labels *l, const char *key, const char *value, struct err *e)
{
	if (l->n == VM_LABELS_MAX)
		return err_set(e, -EINVAL, "a commit that goes by rule has at most %d labels",
			VM_LABELS_MAX - 2);
	snprintf(l->items[l->n].key, sizeof(l->items[l->n].key), "%s", key);
	snprintf(l->items[l->n].value, sizeof(l->items[l->n].value), "%s", value);
	l->n++;
	return 0;
}

static int
check_labels(const struct labels *l, struct err *e)
{
	for (unsigned i = 0; i < l->n; i++)
		if (strncmp(l->items[i].key, LABEL_OWN, strlen(LABEL_OWN)) == 0)
			return err_set(e, -EINVAL,
				"label \"%s\": names that begin with \"" LABEL_OWN
				"\" are pando's own",
				l->items[i].key);
	return 0;
}

/* The id of the VM that is meant, and the commit it was last committed as. */
static int
vm_of(struct tree *t, const char *name, char id[static VM_ID_LEN + 1],
	char commit[static STORE_ID_MAX], struct err *e)
{
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_find(t, name, &vm, e);
	if (r == 0) {
		memcpy(id, vm->row.id, VM_ID_LEN + 1);
		memcpy(commit, vm->row.commit, STORE_ID_MAX);
		vm_unref(vm);
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

/* Beyond the newest keep_last of the VM's line, those above its newest commit go. */
static int
keep_last(struct commits *c, const char *vm, const char *newest, uint32_t keep,
	struct err *e)
{
	struct store_hash some[STORE_PRUNE_MAX];
	char after[STORE_CURSOR_MAX] = "", line[VM_LABEL_VALUE_MAX + 1];
	uint32_t kept = 0, beyond = 0, pruned_in_a_row = 0;
	struct pruned pruned = {0};
	size_t n = 0;
	struct store *s;
	int r = commits_store(c, &s, e);

	while (r == 0 && n < STORE_PRUNE_MAX) {
		struct store_page p = {0};

		r = store_page_history(s, newest, after, keep < 100 ? 2 * keep + 8 : 256, &p, e);
		for (size_t i = 0; r == 0 && i < p.n && n < STORE_PRUNE_MAX; i++) {
			const struct store_entry *entry = &p.v[i];

			if (kept >= keep) {
				beyond++;
				pruned_in_a_row = entry->pruned ? pruned_in_a_row + 1 : 0;
			}
			if (entry->pruned ||
				!label_get(entry->m->f.labels, LABEL_LINE, line,
					sizeof(line)) ||
				strcmp(line, vm) != 0)
				continue;
			if (kept < keep)
				kept++;
			else if (!entry->n_tags && hash_from_hex(entry->m->id, &some[n]))
				n++;
		}
		memcpy(after, p.next, sizeof(after));
		store_page_done(&p);
		if (!after[0] || beyond >= LOOKED_AT_MAX ||
			pruned_in_a_row >= PRUNED_IN_A_ROW)
			break;
	}
	if (r == 0 && n)
		r = prune_some(c, s, some, n, false, &pruned, e);
	if (r == 0 && pruned.n) {
		log_info("vm %s: %llu commits of its line are pruned", vm,
			(unsigned long long)pruned.n);
		materialized_trim(c);
	}
	return r;
}

int
commits_make_by_rule(struct commits *c, const char *name, const struct commit_request *q,
	const struct progress *p, struct json_out *out, struct err *e)
{
	cleanup_free struct commit_request *ruled = malloc(sizeof(*ruled));
	char vm[VM_ID_LEN + 1], commit[STORE_ID_MAX], text[32];
	struct err why = {0};
	int r = check_labels(&q->labels, e);

	if (r < 0)
		return r;
	if (!q->expire_ms && !q->keep_last)
		return commits_make(c, name, q, p, out, e);
	if (!ruled)
		return err_set(e, -ENOMEM, "out of memory");
	*ruled = *q;
	if (q->expire_ms) {
		snprintf(text, sizeof(text), "%llu",
			(unsigned long long)(io_wall_ms() + q->expire_ms));
		r = add_label(&ruled->labels, LABEL_EXPIRES, text, e);
	}
	if (r == 0 && q->keep_last)
		r = vm_of(c->tree, name, vm, commit, e);
	if (r == 0 && q->keep_last)
		r = add_label(&ruled->labels, LABEL_LINE, vm, e);
	/* By its id: a name may be another's by now. */
	if (r == 0)
		r = commits_make(c, q->keep_last ? vm : name, ruled, p, out, e);
	if (r < 0 || !q->keep_last)
		return r;
	/* It is made, whatever becomes of the others: the next one does the same. */
	if (vm_of(c->tree, vm, vm, commit, NULL) == 0 && commit[0] &&
		keep_last(c, vm, commit, q->keep_last, &why) < 0)
		log_warn("vm %s: commits beyond the last %u are still held: %s", vm,
			q->keep_last, why.msg);
	return 0;
}
