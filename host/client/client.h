/*
 * Talking to pandod: HTTP + JSON over its Unix socket (host/api/API.md), through libcurl,
 * which is called only in client.c.
 *
 * A struct client is one connection, for one thread. Errors: what pandod said, with its
 * code, or a sentence about the connection (-ECONNREFUSED, -EPROTO, …). A GET whose
 * connection ended without any answer, as those to a pandod that is being killed do, is
 * asked once more. A cancelled call is -ECANCELED. What comes back is checked like any
 * other input; unknown members in it are ignored, so that an older `pando` understands a
 * newer pandod.
 */
#ifndef PANDO_HOST_CLIENT_CLIENT_H
#define PANDO_HOST_CLIENT_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/env.h"
#include "common/err.h"
#include "common/json.h"

struct client;

/* CLIENT_START: starts pandod when none answers, and waits until it does (races between
 * several callers end with one pandod). Without it, a missing pandod is -ECONNREFUSED
 * with a sentence. */
#define CLIENT_START 1u
/* home NULL: PANDO_HOME and its defaults (common/paths.h). */
int client_open(const char *home, unsigned flags, struct client **ret, struct err *e);
void client_close(struct client *c);
static inline void
client_close_fn(struct client **c)
{
	client_close(*c);
}
#define cleanup_client __attribute__((cleanup(client_close_fn)))

const char *client_home(const struct client *c); /* borrowed */

/* While fd is readable, calls end with -ECANCELED. Borrowed; -1: none. */
void client_cancel_fd(struct client *c, int fd);
/* For calls that make VMs: what cancels (fd: a signalfd) asks pandod to give the call up,
 * and waits for its answer: that nothing of it is left (-ECANCELED with its sentence), or,
 * when it was done already, what was made. What comes on fd a second time ends the wait,
 * with -ECANCELED and "cancelled". */
void client_cancel_asking(struct client *c, int fd);

/* How long the calls that follow wait for a VM that another call is at; said false:
 * pandod's default. */
void client_busy_timeout(struct client *c, bool said, uint64_t ms);

/* Called with each sentence pandod sends, and with NULL about four times a second while
 * waiting. */
typedef void client_progress(void *ctx, const char *sentence);
/* For the calls that follow; NULL: none. */
void client_on_progress(struct client *c, client_progress *fn, void *ctx);

/* The plain call, for what has no function below. body NULL: none. Answers longer than 16
 * MiB are refused. */
struct client_reply {
	char *text; /* owned; JSON, terminated */
	size_t len;
	struct json *json; /* owned, of text */
};
void client_reply_done(struct client_reply *r);
#define cleanup_client_reply __attribute__((cleanup(client_reply_done)))
int client_call(struct client *c, const char *method, const char *path, const char *body,
	struct client_reply *ret, struct err *e);

/* "/v1/vms/<name, percent-encoded><suffix>" into dst; -ENAMETOOLONG. An empty name is
 * -EINVAL. */
int client_vm_path(
	char *dst, size_t cap, const char *vm, const char *suffix, struct err *e);

struct client_label {
	char *key;   /* owned */
	char *value; /* owned */
};

struct client_vm {
	char id[16];
	char alias[64]; /* "" if none */
	char state[16];
	char *reason;	 /* owned; NULL if none */
	char parent[16]; /* "" if none */
	char commit[65]; /* that it comes from or was last committed as; "" if none */
	char **children; /* owned */
	size_t n_children;
	uint64_t created_ms, mem_mib, vcpus, disk_mib;
	uint64_t disk_bps, disk_iops; /* limits; 0: none */
	uint64_t resize_mib; /* a resize that is not done; 0: none */
	uint64_t reboots;    /* of its guest, since this pandod knows it */
	uint64_t paused_ms;  /* how long it has been paused in all */
	bool has_usage;	     /* disk_own_bytes is known */
	bool has_memory;     /* the next two are */
	uint64_t memory_unique_bytes, memory_shared_bytes, disk_own_bytes;
	char *kernel, *rootfs;	     /* owned */
	struct client_label *labels; /* owned */
	size_t n_labels;
	int64_t pid; /* 0: none */
	char generation[40];
	uint64_t resets; /* 0 from an older pandod */
	char host_key[96];	/* SSH, public; "" if none */
	char agent_socket[128]; /* "" if none */
	char *console;		/* owned; path of the console file, NULL if none */
};
void client_vm_done(struct client_vm *vm);
#define cleanup_client_vm __attribute__((cleanup(client_vm_done)))
/* Name for people: the alias, else the id. */
const char *client_vm_name(const struct client_vm *vm);
int client_vm_read(const struct json *j, int tok, struct client_vm *ret, struct err *e);

struct client_vms {
	struct client_vm *v; /* owned */
	size_t n;
	uint64_t pause_us; /* branch: how long the parent stood still */
};
void client_vms_done(struct client_vms *vms);
#define cleanup_client_vms __attribute__((cleanup(client_vms_done)))

/* reply, where there is one, may be NULL: else it gets the answer as pandod wrote it. */
int client_list(struct client *c, const char *label, struct client_vms *ret,
	struct client_reply *reply, struct err *e);
/* With all of these labels ("key=value"). CLIENT_MEMORY: with what each takes of the
 * host. */
#define CLIENT_MEMORY 1u
int client_list_with(struct client *c, const char *const *labels, size_t n_labels,
	unsigned flags, struct client_vms *ret, struct client_reply *reply,
	struct err *e);
int client_get(struct client *c, const char *vm, struct client_vm *ret,
	struct client_reply *reply, struct err *e);

struct client_run {
	const char *alias; /* NULL: none */
	uint64_t mem_mib;  /* 0: pandod's default; likewise below */
	uint64_t vcpus;
	uint64_t disk_mib;
	uint64_t disk_bps, disk_iops;
	const char *kernel;
	const char *rootfs;
	const char *cmdline;
	const char *const *labels; /* "key=value" */
	size_t n_labels;
	const struct env *env; /* NULL: only the defaults */
	bool no_wait;	       /* do not wait until it has acknowledged who it is */
};
int client_run(struct client *c, const struct client_run *spec, struct client_vm *ret,
	struct client_reply *reply, struct err *e);

struct client_branch {
	uint64_t count; /* 0: 1 */
	const char *alias;
	const char *const *labels;
	size_t n_labels;
	const struct env *env; /* NULL: only the defaults */
	bool no_wait;
	bool full; /* client_spawn(): not before all of its memory is there */
	bool keep_fork_point; /* client_branch(): the branches can be reset to it */
};
int client_branch(struct client *c, const char *vm, const struct client_branch *spec,
	struct client_vms *ret, struct client_reply *reply, struct err *e);

/* A commit as pandod describes it. */
struct client_point {
	char id[65];
	char parent[65];			       /* "" if none */
	uint64_t created_ms, mem_mib, vcpus, disk_mib; /* 0: not said */
	uint64_t expires_ms;			       /* 0: does not */
	bool pruned; /* its contents are no longer held */
	char *message;				       /* owned */
	char **tags;				       /* owned, NULL-terminated */
	char **vms;				       /* owned: those that run on it */
	char **cpu_features; /* owned: names that it needs; of an older commit none */
};
void client_point_done(struct client_point *p);
#define cleanup_client_point __attribute__((cleanup(client_point_done)))
struct client_points {
	struct client_point *v; /* owned */
	size_t n;
	uint64_t damaged; /* that could not be read, and why the first could not: */
	char *damage;	  /* owned; NULL: none */
	char next[128];	  /* what the next page comes after; "" no more */
};
void client_points_done(struct client_points *p);
#define cleanup_client_points __attribute__((cleanup(client_points_done)))

/* "/v1/commits/<name><suffix>", "/v1/tags/<name>" likewise with base. */
int client_path(char *dst, size_t cap, const char *base, const char *name,
	const char *suffix, struct err *e);

struct client_commit {
	const char *message;	 /* NULL: none */
	const char *const *tags; /* n_tags */
	size_t n_tags;
	const char *const *labels; /* "key=value" */
	size_t n_labels;
	uint64_t expire_ms; /* 0: does not */
	uint64_t keep_last; /* 0: all */
};
struct client_committed {
	struct client_point commit;
	uint64_t pause_us, written_bytes;
};
int client_commit(struct client *c, const char *vm, const struct client_commit *spec,
	struct client_committed *ret, struct client_reply *reply, struct err *e);
/* VMs of a commit. */
int client_spawn(struct client *c, const char *commit, const struct client_branch *spec,
	struct client_vms *ret, struct client_reply *reply, struct err *e);
int client_point(struct client *c, const char *commit, struct client_point *ret,
	struct client_reply *reply, struct err *e);
/* A page of all commits (of NULL), or of the history of a VM or a commit: itself (or what it
 * comes from), then its parents. after: "" for the first. limit 0: as many as pandod gives. */
int client_points_page(struct client *c, const char *of, const char *after,
	uint64_t limit, struct client_points *ret, struct client_reply *reply,
	struct err *e);
/* All pages; reply: of the last one. */
int client_points(struct client *c, struct client_points *ret, struct client_reply *reply,
	struct err *e);
/* As client_delete(). */
int client_commit_delete(struct client *c, const char *commit, bool recursive, bool dry,
	char ***ret_ids, struct err *e);

/* ret_ids (may be NULL): what was deleted, owned by the caller, NULL-terminated, one
 * free() each and one for the array: client_ids_free(). */
int client_delete(
	struct client *c, const char *vm, bool recursive, char ***ret_ids, struct err *e);
/* The same ids, and nothing is deleted. */
int client_delete_dry(
	struct client *c, const char *vm, bool recursive, char ***ret_ids, struct err *e);
void client_ids_free(char **ids);
/* alias NULL: takes the name away. */
int client_alias(struct client *c, const char *vm, const char *alias,
	struct client_vm *ret, struct client_reply *reply, struct err *e);
int client_pause(struct client *c, const char *vm, struct client_vm *ret,
	struct client_reply *reply, struct err *e);
int client_resume(struct client *c, const char *vm, struct client_vm *ret,
	struct client_reply *reply, struct err *e);
/* timeout_ms 0: pandod's default. */
int client_stop(struct client *c, const char *vm, bool force, uint64_t timeout_ms,
	struct client_vm *ret, struct client_reply *reply, struct err *e);
int client_start(struct client *c, const char *vm, bool no_wait, struct client_vm *ret,
	struct client_reply *reply, struct err *e);
/* commit NULL: where it came from. */
struct client_reset {
	char commit[65];
	uint64_t pause_us;
	uint64_t pages; /* that the VM had written; UINT64_MAX: not counted */
};
int client_reset(struct client *c, const char *vm, const char *commit, bool no_wait,
	struct client_vm *ret, struct client_reset *ret_reset, struct client_reply *reply,
	struct err *e);
/* What may stay as it is, is CLIENT_LIMIT_AS_IT_IS. */
#define CLIENT_LIMIT_AS_IT_IS UINT64_MAX
int client_limit(struct client *c, const char *vm, uint64_t disk_bps, uint64_t disk_iops,
	struct client_vm *ret, struct client_reply *reply, struct err *e);
/* *ret_note: malloc'd, NULL: nothing to say. */
int client_resize(struct client *c, const char *vm, uint64_t disk_mib, uint64_t mem_target_mib,
	struct client_vm *ret, char **ret_note, struct client_reply *reply, struct err *e);

#endif
