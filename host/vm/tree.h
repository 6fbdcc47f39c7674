/*
 * The tree of VMs: what pandod knows, and everything it can do to a VM. Thread-safe: each
 * call of host/api/API.md that is about VMs is one function here, called from whatever
 * thread serves the request; answers are written as JSON.
 *
 * Every VM is in the table (at most TREE_VMS_MAX) and in the database, written through. A
 * VM has at most one operation under way; the next ones queue for as long as their callers
 * say, and are -EBUSY then, with a sentence that says what is under way. The processes' ends
 * and last words come in through tree_dispatch(), one thread's business.
 *
 * Nothing is known here of the store: a row names commits, and host/commit, which knows the
 * tree, says what that means.
 */
#ifndef PANDO_HOST_VM_TREE_H
#define PANDO_HOST_VM_TREE_H

#include <stdbool.h>

#include "common/err.h"
#include "common/json.h"
#include "common/paths.h"
#include "host/vm/vm_spec.h"
#include "host/scope/scope.h"

#define TREE_VMS_MAX 4096
/* For each VM its process, once for the event loop and once for whoever waits for its
 * VMM, and its control socket. */
#define DESCRIPTORS_A_VM 3u

struct tree_config {
	char home[PATHS_MAX];
	char images[PATHS_MAX];
	char vmm_path[PATHS_MAX];
	const char *kvm_path;	  /* "/dev/kvm", but in tests; borrowed */
	const char *meminfo_path; /* NULL: "/proc/meminfo"; borrowed */
	int start_timeout_ms;	  /* VMM_BOOT or VMM_FORK -> VMM_STARTED */
	int answer_timeout_ms;	  /* other requests to a VMM */
	int agent_timeout_ms; /* started -> the agent answers a ping, without progress of
				     the guest; TREE_AGENT_CEILING times that in all */
	int handshake_timeout_ms; /* that -> the first step of its identity handshake, and of
				     each step; 0: the default */
	struct scopes *scopes;	  /* borrowed; NULL: none */
};
#define TREE_START_TIMEOUT_MS 60000
#define TREE_ANSWER_TIMEOUT_MS 20000
#define TREE_AGENT_TIMEOUT_MS 600000
#define TREE_AGENT_CEILING 3
#define TREE_HANDSHAKE_TIMEOUT_MS 120000

struct tree;

/* Opens the database, adopts the VMs that run, removes what an earlier pandod left
 * half-made. The caller holds <home>/pandod.lock. */
int tree_open(const struct tree_config *config, struct tree **ret, struct err *e);
/* VMs that the last pandod was to boot again (reboot.c) are booted from now on: what belongs to
 * commits is open, too. */
void tree_finish_reboots(struct tree *t);
/* From now on, waiting calls end with -ECANCELED and new VMs are refused. */
void tree_stop(struct tree *t);
/* After it: until no thread of the tree is left, so that nobody uses config.scopes any more.
 */
void tree_wait_stopped(struct tree *t);
/* The VMs go on. Nobody may be inside a call. */
void tree_close(struct tree *t);

const char *tree_home(const struct tree *t);
/* What VMs are in: scopes_json(). */
void tree_scopes(struct tree *t, const char *key, struct json_out *out);

/* For the main loop: readable when tree_dispatch() has something to do. */
int tree_fd(const struct tree *t);
void tree_dispatch(struct tree *t);

/* Who made a call, and listens to its progress; NULL: nobody, who does not queue. */
struct progress {
	void (*say)(void *ctx, const char *sentence); /* NULL: does not listen */
	void *ctx;
	/* True: nobody waits for the answer any more. NULL: somebody does, always. Called
	 * from any thread, with the tree's lock or without; must not wait. */
	bool (*gone)(void *ctx);
	/* Each VM that the call made and its answer names; NULL: nobody asks. With the lock. */
	void (*made)(void *ctx, const char *id);
	uint32_t busy_timeout_ms; /* in the queue for a VM; 0: does not queue */
};
/* As many calls may wait: in the queues of all VMs, and for reports. Of these, so many for
 * reports, so that some are always left for VMs. */
#define TREE_WAITERS_MAX 96
#define TREE_FOLLOWERS_MAX 64

/* filter (may be NULL): the VMs that have all of these. memory: with what each takes of
 * the host, which costs a walk over each one's page tables. */
int tree_list(struct tree *t, const struct labels *filter, bool memory,
	struct json_out *out, struct err *e);
int tree_info(struct tree *t, const char *name, struct json_out *out, struct err *e);
/* This and tree_branch() undo what they made when nobody waits for the answer any more. */
int tree_create(struct tree *t, const struct create_request *q, const struct progress *p,
	struct json_out *out, struct err *e);
int tree_branch(struct tree *t, const char *name, const struct branch_request *q,
	const struct progress *p, struct json_out *out, struct err *e);
/* VMs that a call made, whose answer did not reach who asked for them: deleted, but those
 * that have branches by now. */
void tree_take_back(struct tree *t, char (*ids)[VM_ID_LEN + 1], size_t n);
/* dry_run: says what would be deleted, or why not, and deletes nothing. */
int tree_delete(struct tree *t, const char *name, bool recursive, bool dry_run,
	const struct progress *p, struct json_out *out, struct err *e);
int tree_alias(struct tree *t, const char *name, const struct alias_request *q,
	struct json_out *out, struct err *e);
/* The environment that every new VM of this home gets. */
int tree_environment(struct tree *t, struct json_out *out, struct err *e);
int tree_environment_change(struct tree *t, const struct environment_request *q,
	struct json_out *out, struct err *e);
int tree_pause(struct tree *t, const char *name, const struct progress *p,
	struct json_out *out, struct err *e);
int tree_resume(struct tree *t, const char *name, const struct progress *p,
	struct json_out *out, struct err *e);
int tree_stop_vm(struct tree *t, const char *name, const struct stop_request *q,
	const struct progress *p, struct json_out *out, struct err *e);
int tree_start_vm(struct tree *t, const char *name, const struct start_request *q,
	const struct progress *p, struct json_out *out, struct err *e);
int tree_resize(struct tree *t, const char *name, const struct resize_request *q,
	const struct progress *p, struct json_out *out, struct err *e);
int tree_limit(struct tree *t, const char *name, const struct limit_request *q,
	const struct progress *p, struct json_out *out, struct err *e);
/* reports.c: what guests have is taken first. name NULL: of all VMs; else of one, which
 * may be gone (then its id). Those with a seq above `after`. wait: where there is none yet, the
 * call ends when one comes, or without any after TREE_REPORTS_WAIT_MS, or when p's caller has gone.
 * -EAGAIN: there is none yet, and too many calls wait already. */
#define TREE_REPORTS_WAIT_MS 25000
int tree_reports(struct tree *t, const char *name, uint64_t after, bool wait,
	const struct progress *p, struct json_out *out, struct err *e);
int tree_disk(struct tree *t, const char *name, struct json_out *out, struct err *e);

#endif
