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

#include "common/err.h"
#include "host/api/calls.h"
#include "host/vm/vm_spec.h"

#define REQUEST_BODY_MAX (1024u * 1024u)
#define REQUEST_TARGET_MAX 2048
#define REQUEST_LIMIT_MAX 1000u /* entries of a page */
#define REQUEST_CURSOR_MAX 128

struct route {
	enum call call;
	char vm[VM_ALIAS_MAX +
		1]; /* {vm}, decoded; what it names is the tree's business */
	char name[COMMIT_NAME_MAX + 1];	 /* {commit} or {tag}, likewise */
	char other[COMMIT_NAME_MAX + 1]; /* ?with= */
	bool recursive;
	bool dry_run;
	bool memory;		  /* ?memory=1 */
	bool repair;		  /* ?repair=1 */
	bool files;		  /* ?files=1 */
	uint64_t after;		  /* ?after=, of reports */
	char cursor[REQUEST_CURSOR_MAX]; /* ?after=, of lists by page; "" the first */
	uint32_t limit;			 /* ?limit=; REQUEST_LIMIT_MAX if not said */
	bool wait;		  /* ?wait=1, of reports: until there are some */
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
int request_prune(const char *body, size_t len, struct prune_request *ret, struct err *e);
int request_environment(
	const char *body, size_t len, struct environment_request *ret, struct err *e);
/* For calls that take no body: anything but nothing or {} is an error. */
int request_empty(const char *body, size_t len, struct err *e);

#endif
