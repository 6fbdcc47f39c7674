/*
 * Reports of a guest (guest-agent/supervisor/report.h), taken and checked. A report is its VM's word
 * and no more; what is in it is bounded, and its files' names lead nowhere but into the
 * guest.
 */
#ifndef PANDO_HOST_AGENT_AGENT_REPORT_H
#define PANDO_HOST_AGENT_AGENT_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define REPORT_ID_LEN 32
#define AGENT_REPORT_JSON_MAX (1024u * 1024u)
#define AGENT_REPORT_FILES_MAX 64
#define AGENT_REPORT_FILE_BYTES_MAX (512u * 1024u * 1024u)
#define AGENT_REPORTS_MAX 256 /* of one guest at once */

struct agent_report {
	char id[REPORT_ID_LEN + 1];
	uint64_t time_ms; /* by the guest's clock */
	char vm[13];	  /* who it says it is of; "" it does not know */
	char generation[33];
	char *json; /* owned:
		       {"status","score"?,"message"?,"files":[{"name","path","bytes"}…],
		       "json"?} */
};

/* One line of `report --list`. -EPROTO with a sentence. */
int agent_report_read(
	const char *line, size_t len, struct agent_report *ret, struct err *e);
void agent_report_done(struct agent_report *r);

/* Those that wait; *ret_bad: how many were not fit to be read (they wait on). Costs a
 * guest that has none no more than a look at a folder, and the caller timeout_ms at most. root: of its files, for tests;
 * else NULL. */
int agent_reports_list(const char *socket_path, const char *root, int timeout_ms,
	struct agent_report **ret, size_t *ret_n, size_t *ret_bad, struct err *e);
void agent_reports_free(struct agent_report *v, size_t n);
/*
 * A guest that says when it has reports: a command of its agent that ends then, and is to be
 * asked for anew.
 */
struct agent_report_watch;
int agent_reports_watch(const char *socket_path, const char *root, int timeout_ms,
	struct agent_report_watch **ret, struct err *e);
void agent_report_watch_free(struct agent_report_watch *w); /* NULL is fine */
/* Becomes readable. */
int agent_report_watch_fd(const struct agent_report_watch *w);
/* Then: 0 nothing yet, 1 it has some, -ETIMEDOUT it had none for a while, else it cannot tell:
 * its agent is older, or the connection broke. After all but 0 w is of no more use. */
int agent_report_watch_read(struct agent_report_watch *w, struct err *e);

/* They are safe here: the guest forgets them. */
int agent_reports_ack(const char *socket_path, const char *root, int timeout_ms,
	const struct agent_report *v, size_t n, struct err *e);

#endif
