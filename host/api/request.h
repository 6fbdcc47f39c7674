/*
 * What a client may ask: the request line and the bodies of host/api/API.md, turned into
 * structs with every number in range and every string bounded. No HTTP library here, so
 * that a fuzzer can drive exactly what stands between the socket and the tree.
 */
#ifndef PANDO_HOST_API_REQUEST_H
#define PANDO_HOST_API_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/env.h"
#include "common/err.h"

#define REQUEST_BODY_MAX (1024u * 1024u)
#define REQUEST_TARGET_MAX 2048

#define VM_ID_LEN 12
#define VM_ID_PREFIX_MIN 4
#define VM_ALIAS_MAX 63
#define VM_LABELS_MAX 32
#define VM_LABEL_KEY_MAX 63
#define VM_LABEL_VALUE_MAX 255
#define VM_IMAGE_MAX 1024   /* an image's name or an absolute path */
#define VM_CMDLINE_MAX 1024 /* what a request may add to the kernel's command line */
#define VM_BRANCH_MAX 1024
#define VM_DISK_MAX_MIB (1024u * 1024u)
#define COMMIT_NAME_MAX 64 /* an id, a beginning of one, or a tag */
#define COMMIT_MESSAGE_MAX 4095
#define COMMIT_TAGS_MAX 16

struct label {
	char key[VM_LABEL_KEY_MAX + 1];
	char value[VM_LABEL_VALUE_MAX + 1];
};

struct labels {
	unsigned n;
	struct label items[VM_LABELS_MAX];
};

/* POST /v1/vms. Empty strings and zeroes: not given. */
struct create_request {
	char alias[VM_ALIAS_MAX + 1];
	uint64_t mem_mib;
	uint32_t vcpus;
	uint64_t disk_mib; /* 0: the default, or the image's size if that is more */
	char kernel[VM_IMAGE_MAX];
	char rootfs[VM_IMAGE_MAX];
	char cmdline[VM_CMDLINE_MAX];
	struct labels labels;
	struct env env; /* owned: env_done() */
	bool wait;
};

/* POST /v1/vms/{vm}/branch */
struct branch_request {
	uint32_t count;
	char alias[VM_ALIAS_MAX + 1];
	struct labels labels;
	struct env env; /* owned: env_done(); {index} and {id} are not replaced yet */
	bool wait;
};

/* PUT /v1/environment */
struct environment_request {
	struct env set;			  /* owned */
	char (*remove)[ENV_NAME_MAX + 1]; /* owned */
	size_t n_remove;
};
void environment_request_done(struct environment_request *q);

/* PUT /v1/vms/{vm}/alias */
struct alias_request {
	char alias[VM_ALIAS_MAX + 1]; /* empty: none */
};

/* POST /v1/vms/{vm}/stop */
#define VM_STOP_TIMEOUT_MS 60000u
#define VM_STOP_TIMEOUT_MAX_MS 3600000u
struct stop_request {
	bool force;
	uint32_t timeout_ms; /* for the guest to power off; not with force */
};

/* POST /v1/vms/{vm}/start */
struct start_request {
	bool wait;
};

/* POST /v1/vms/{vm}/resize */
struct resize_request {
	uint64_t disk_mib;
};

/* POST /v1/vms/{vm}/commit */
struct commit_request {
	char message[COMMIT_MESSAGE_MAX + 1]; /* line feeds and tabs may be in it */
	unsigned n_tags;
	char tags[COMMIT_TAGS_MAX][COMMIT_NAME_MAX + 1];
	struct labels labels;
};

/* PUT /v1/tags/{tag} */
struct tag_request {
	char commit[COMMIT_NAME_MAX + 1];
	bool move; /* it may be there, and leads elsewhere from now on */
};

enum call {
	CALL_VERSION,
	CALL_LIST,
	CALL_CREATE,
	CALL_INFO,
	CALL_BRANCH,
	CALL_DELETE,
	CALL_ALIAS,
	CALL_PAUSE,
	CALL_RESUME,
	CALL_STOP,
	CALL_START,
	CALL_RESIZE,
	CALL_DISK,
	CALL_COMMIT,
	CALL_COMMITS,
	CALL_COMMIT_INFO,
	CALL_COMMIT_DELETE,
	CALL_SPAWN,
	CALL_HISTORY,
	CALL_DIFF,
	CALL_VERIFY,
	CALL_VERIFY_ALL,
	CALL_GC,
	CALL_TAGS,
	CALL_TAG_PUT,
	CALL_TAG_DELETE,
	CALL_ENV,
	CALL_ENV_PUT,
	CALL_REPORTS,
	CALL_VM_REPORTS,
	CALL_SHUTDOWN,
};

/* How long a call waits for a VM that another call is at. */
#define BUSY_TIMEOUT_MS 60000u
#define BUSY_TIMEOUT_MAX_MS 3600000u

struct route {
	enum call call;
	char vm[VM_ALIAS_MAX +
		1]; /* {vm}, decoded; what it names is the tree's business */
	char name[COMMIT_NAME_MAX + 1];	 /* {commit} or {tag}, likewise */
	char other[COMMIT_NAME_MAX + 1]; /* ?with= */
	bool recursive;
	bool dry_run;
	bool memory;		  /* ?memory=1 */
	bool files;		  /* ?files=1 */
	uint64_t after;		  /* ?after=, of reports */
	uint64_t busy_timeout_ms; /* ?busy_timeout_ms=; BUSY_TIMEOUT_MS if not said */
	struct labels labels;	  /* ?label=k=v, which may be there several times */
};

/* method and target ("/v1/vms/x?recursive=1") as they came, target not yet
 * percent-decoded. -ENOENT no such call, -EINVAL bad target or query, -EOPNOTSUPP the
 * path exists but not with that method. */
int request_route(
	const char *method, const char *target, struct route *ret, struct err *e);

/* An empty body counts as {}. Unknown members are errors that name the member. */
int request_create(
	const char *body, size_t len, struct create_request *ret, struct err *e);
int request_branch(
	const char *body, size_t len, struct branch_request *ret, struct err *e);
int request_alias(const char *body, size_t len, struct alias_request *ret, struct err *e);
int request_stop(const char *body, size_t len, struct stop_request *ret, struct err *e);
int request_start(const char *body, size_t len, struct start_request *ret, struct err *e);
int request_resize(
	const char *body, size_t len, struct resize_request *ret, struct err *e);
int request_commit(
	const char *body, size_t len, struct commit_request *ret, struct err *e);
/* POST /v1/commits/{commit}/run: what a branch takes. */
int request_spawn(
	const char *body, size_t len, struct branch_request *ret, struct err *e);
int request_tag(const char *body, size_t len, struct tag_request *ret, struct err *e);
int request_environment(
	const char *body, size_t len, struct environment_request *ret, struct err *e);
/* For calls that take no body: anything but nothing or {} is an error. */
int request_empty(const char *body, size_t len, struct err *e);

bool request_is_id(const char *s); /* exactly 12 lower-case hex digits */
int request_check_alias(const char *alias, struct err *e);
int request_check_label(const char *name, struct err *e); /* of a label */

#endif
