/*
 * Commits: the store, and what is made ready of it. Thread-safe: each call of
 * host/api/API.md that is about commits is one function here, as those about VMs are in
 * host/vm/tree.h; answers are written as JSON.
 *
 * Commits know the tree, which knows nothing of them: rows of VMs name commits, and what
 * that means is decided here.
 */
#ifndef PANDO_HOST_COMMIT_COMMITS_H
#define PANDO_HOST_COMMIT_COMMITS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"
#include "host/vm/tree.h"
#include "host/vm/vm_spec.h"

struct commits_config {
	unsigned pool_size; /* pre-warmed VMMs kept of each shape that is used; 0: none */
	uint64_t materialized_mib; /* images of commits nobody runs on, on disk */
};
#define COMMITS_POOL_SIZE 2
#define COMMITS_POOL_MAX 64
#define COMMITS_MATERIALIZED_MIB 8192

struct commits;

/* t: borrowed; open, and closed after this. Removes what an earlier pandod left unfinished in
 * the store. A store that cannot be opened is logged: only calls about commits fail then. */
int commits_open(struct tree *t, const struct commits_config *config,
	struct commits **ret, struct err *e);
/* Nobody may be inside a call. */
void commits_close(struct commits *c);

/* commit.c: of a VM. The answer's commit as commits_info() gives it, with what was
 * written. */
int commits_make(struct commits *c, const char *vm, const struct commit_request *q,
	const struct progress *p, struct json_out *out, struct err *e);
/* commits_prune.c: likewise, by the rules that the request has: when it may go, and how
 * many of this VM's line stay. */
int commits_make_by_rule(struct commits *c, const char *vm, const struct commit_request *q,
	const struct progress *p, struct json_out *out, struct err *e);
/* What a rule selects goes: never what is tagged, what a VM needs, or what a call works
 * with just now. */
int commits_prune(struct commits *c, const struct prune_request *q,
	const struct progress *p, struct json_out *out, struct err *e);
/* run_commit.c: VMs of a commit; undone when nobody waits for the answer any more. name: an
 * id, a beginning of one, or a tag, here and below. */
int commits_run(struct commits *c, const char *name, const struct branch_request *q,
	const struct progress *p, struct json_out *out, struct err *e);

/* commits_list.c: a page each; after: "", or the `next` of the page before. */
int commits_list(struct commits *c, const char *after, uint32_t limit,
	struct json_out *out, struct err *e);
int commits_info(
	struct commits *c, const char *name, struct json_out *out, struct err *e);
/* commits_delete.c. dry_run: says what would be deleted, or why not, and deletes nothing. */
int commits_delete(struct commits *c, const char *name, bool recursive, bool dry_run,
	struct json_out *out, struct err *e);
/* Of a VM, or of a commit: its parents, the newest first. */
int commits_history(struct commits *c, const char *name, const char *after,
	uint32_t limit, struct json_out *out, struct err *e);
int commits_tags(struct commits *c, const char *after, uint32_t limit,
	struct json_out *out, struct err *e);
int commits_tag_put(struct commits *c, const char *tag, const struct tag_request *q,
	struct json_out *out, struct err *e);
int commits_tag_delete(
	struct commits *c, const char *tag, struct json_out *out, struct err *e);
/* commits.c. files: also which files differ. */
int commits_diff(struct commits *c, const char *a, const char *b, bool files,
	struct json_out *out, struct err *e);
/* commits_care.c; name NULL: the whole store. */
int commits_verify(
	struct commits *c, const char *name, struct json_out *out, struct err *e);
/* Of the whole store, and first saves what can be saved. */
int commits_repair(
	struct commits *c, const struct progress *p, struct json_out *out, struct err *e);
/* -ECANCELED: p's caller has gone, or commits_gc_cancel(). */
int commits_gc(
	struct commits *c, const struct progress *p, struct json_out *out, struct err *e);
/* Ends those that run, whoever began them. The answer says how many there are. */
void commits_gc_cancel(struct commits *c, struct json_out *out);

#endif
