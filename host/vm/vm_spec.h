/*
 * What may be asked for a VM or a commit: the limits, and each request as a struct with every
 * number in range and every string bounded. host/api/request.c makes them from what a client
 * sends; nothing here knows of HTTP or JSON.
 */
#ifndef PANDO_HOST_VM_VM_SPEC_H
#define PANDO_HOST_VM_VM_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/env.h"
#include "common/err.h"

#define VM_ID_LEN 12
#define VM_ID_PREFIX_MIN 4
#define VM_ALIAS_MAX 63
#define VM_LABELS_MAX 32
#define VM_LABEL_KEY_MAX 63
#define VM_LABEL_VALUE_MAX 255
#define VM_IMAGE_MAX 1024   /* an image's name or an absolute path */
#define VM_CMDLINE_MAX 1024 /* what a request may add to the kernel's command line */
#define VM_BRANCH_MAX 1024
#define VM_DISK_MAX_MIB VMM_DISK_MAX_MIB
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

/* Of a disk, in a second; 0: no limit. */
#define VM_DISK_BPS_MAX (1ull << 40)
#define VM_DISK_IOPS_MAX 1000000000ull
struct disk_limits {
	uint64_t bps; /* bytes, read and written: 0, or VMM_DISK_BYTES_MIN and more */
	uint64_t iops;
};

/* POST /v1/vms. Empty strings and zeroes: not given. */
struct create_request {
	char alias[VM_ALIAS_MAX + 1];
	uint64_t mem_mib;
	uint32_t vcpus;
	uint64_t disk_mib; /* 0: the default, or the image's size if that is more */
	struct disk_limits limits;
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
	bool full; /* of a commit: not before all of its memory is there */
	bool keep_fork_point; /* of a VM: so that the branches can be reset to it */
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
	uint64_t disk_mib;	 /* 0: stays */
	uint64_t mem_target_mib; /* likewise */
};

/* PUT /v1/vms/{vm}/limits */
#define LIMIT_AS_IT_IS UINT64_MAX
struct limit_request {
	struct disk_limits limits; /* each may be LIMIT_AS_IT_IS */
};

/* POST /v1/vms/{vm}/commit */
struct commit_request {
	char message[COMMIT_MESSAGE_MAX + 1]; /* line feeds and tabs may be in it */
	unsigned n_tags;
	char tags[COMMIT_TAGS_MAX][COMMIT_NAME_MAX + 1];
	struct labels labels;
	uint64_t expire_ms; /* from now; 0: does not */
	uint32_t keep_last; /* of this VM's line; 0: all */
};

/* POST /v1/vms/{vm}/reset */
struct reset_request {
	char commit[COMMIT_NAME_MAX + 1]; /* empty: where it came from */
	bool wait;
};

/* POST /v1/prune */
struct prune_request {
	bool dry_run;
	bool has_older;
	uint64_t older_than_ms;
	uint32_t keep_last; /* 0: no such rule */
	struct labels labels;
};
#define COMMIT_EXPIRE_MAX_MS (100ull * 365 * 86400 * 1000)
#define COMMIT_KEEP_MAX 1000000u

/* PUT /v1/tags/{tag} */
struct tag_request {
	char commit[COMMIT_NAME_MAX + 1];
	bool move; /* it may be there, and leads elsewhere from now on */
};

/* How long a call waits for a VM that another call is at. */
#define BUSY_TIMEOUT_MS 60000u
#define BUSY_TIMEOUT_MAX_MS 3600000u

bool vm_spec_is_id(const char *s); /* exactly 12 lower-case hex digits */
/* -EINVAL with the rule. */
int vm_spec_check_alias(const char *alias, struct err *e);
int vm_spec_check_label(const char *name, struct err *e); /* of a label */

#endif
