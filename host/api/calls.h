/*
 * Every call of the API, one row each: its name, method and path, what its body is, how it is
 * answered and which query parameters it takes. "*" in a path stands for {vm}, {commit} or
 * {tag}. API.md describes the same rows to clients; a test compares the two.
 *
 * A new call is a row here, a handler in call_run.c, and a verb in host/cli/verbs/. Routing
 * (request_route.c) needs the rows only, so that a fuzzer can drive it without the daemon.
 *
 *	X(name, method, path, body, flags, query)
 *
 * body: request_<body>() in request.h reads it; `empty` is none. flags: enum call_flag.
 * query: enum call_query.
 */
#ifndef PANDO_HOST_API_CALLS_H
#define PANDO_HOST_API_CALLS_H

enum call_flag {
	CALL_PROGRESS = 1, /* tells its progress to who asks for application/x-ndjson */
	CALL_CREATES = 2,  /* success is 201 */
};

enum call_query {
	QUERY_RECURSIVE = 1 << 0, /* recursive=0|1 */
	QUERY_DRY_RUN = 1 << 1,	  /* dry_run=0|1 */
	QUERY_MEMORY = 1 << 2,	  /* memory=0|1 */
	QUERY_LABEL = 1 << 3,	  /* label=name=value, several times */
	QUERY_WITH = 1 << 4,	  /* with={commit} */
	QUERY_FILES = 1 << 5,	  /* files=0|1 */
	QUERY_AFTER = 1 << 6,	  /* after=number */
	QUERY_WAIT = 1 << 7,	  /* wait=0|1 */
	QUERY_BUSY =
		1 << 8, /* busy_timeout_ms=number: of calls that nobody else may be in */
	QUERY_PAGE = 1 << 9, /* limit=number and after=cursor */
	QUERY_REPAIR = 1 << 10, /* repair=0|1 */
};

/* clang-format off */
#define API_CALLS(X) \
	X(VERSION,       "GET",    "/v1/version",           empty,       0, 0) \
	X(LIST,          "GET",    "/v1/vms",               empty,       0, QUERY_LABEL | QUERY_MEMORY) \
	X(CREATE,        "POST",   "/v1/vms",               create,      CALL_PROGRESS | CALL_CREATES, 0) \
	X(INFO,          "GET",    "/v1/vms/*",             empty,       0, 0) \
	X(DELETE,        "DELETE", "/v1/vms/*",             empty,       0, QUERY_RECURSIVE | QUERY_DRY_RUN | QUERY_BUSY) \
	X(BRANCH,        "POST",   "/v1/vms/*/branch",      branch,      CALL_PROGRESS | CALL_CREATES, QUERY_BUSY) \
	X(ALIAS,         "PUT",    "/v1/vms/*/alias",       alias,       0, 0) \
	X(PAUSE,         "POST",   "/v1/vms/*/pause",       empty,       0, QUERY_BUSY) \
	X(RESUME,        "POST",   "/v1/vms/*/resume",      empty,       0, QUERY_BUSY) \
	X(STOP,          "POST",   "/v1/vms/*/stop",        stop,        CALL_PROGRESS, QUERY_BUSY) \
	X(START,         "POST",   "/v1/vms/*/start",       start,       CALL_PROGRESS, QUERY_BUSY) \
	X(RESIZE,        "POST",   "/v1/vms/*/resize",      resize,      CALL_PROGRESS, QUERY_BUSY) \
	X(DISK,          "GET",    "/v1/vms/*/disk",        empty,       0, 0) \
	X(COMMIT,        "POST",   "/v1/vms/*/commit",      commit,      CALL_PROGRESS | CALL_CREATES, QUERY_BUSY) \
	X(COMMITS,       "GET",    "/v1/commits",           empty,       0, QUERY_PAGE) \
	X(COMMIT_INFO,   "GET",    "/v1/commits/*",         empty,       0, 0) \
	X(COMMIT_DELETE, "DELETE", "/v1/commits/*",         empty,       0, QUERY_RECURSIVE | QUERY_DRY_RUN) \
	X(SPAWN,         "POST",   "/v1/commits/*/run",     spawn,       CALL_PROGRESS | CALL_CREATES, 0) \
	X(HISTORY,       "GET",    "/v1/commits/*/history", empty,       0, QUERY_PAGE) \
	X(DIFF,          "GET",    "/v1/commits/*/diff",    empty,       0, QUERY_WITH | QUERY_FILES) \
	X(VERIFY,        "POST",   "/v1/commits/*/verify",  empty,       0, 0) \
	X(VERIFY_ALL,    "POST",   "/v1/verify",            empty,       CALL_PROGRESS, QUERY_REPAIR) \
	X(GC,            "POST",   "/v1/gc",                empty,       CALL_PROGRESS, 0) \
	X(GC_CANCEL,     "DELETE", "/v1/gc",                empty,       0, 0) \
	X(PRUNE,         "POST",   "/v1/prune",             prune,       CALL_PROGRESS, 0) \
	X(TAGS,          "GET",    "/v1/tags",              empty,       0, QUERY_PAGE) \
	X(TAG_PUT,       "PUT",    "/v1/tags/*",            tag,         0, 0) \
	X(TAG_DELETE,    "DELETE", "/v1/tags/*",            empty,       0, 0) \
	X(ENV,           "GET",    "/v1/environment",       empty,       0, 0) \
	X(ENV_PUT,       "PUT",    "/v1/environment",       environment, 0, 0) \
	X(REPORTS,       "GET",    "/v1/reports",           empty,       0, QUERY_AFTER | QUERY_WAIT) \
	X(VM_REPORTS,    "GET",    "/v1/vms/*/reports",     empty,       0, QUERY_AFTER | QUERY_WAIT) \
	X(SHUTDOWN,      "POST",   "/v1/shutdown",          empty,       0, 0)
/* clang-format on */

/* CALL_VERSION, CALL_LIST, … */
enum call {
#define CALL_NAME(name, method, path, body, flags, query) CALL_##name,
	API_CALLS(CALL_NAME)
#undef CALL_NAME
		CALL_COUNT
};

#endif
