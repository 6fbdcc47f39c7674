/*
 * Reports: what a coding agent, or any other program in the machine, says of its work.
 *
 *	pando-agent report [--status done|failed|blocked] [--score X] [--message TEXT]
 *	                   [--file PATH]… [--json TEXT|@FILE]
 *
 * Each report is a file in /var/lib/pando/reports, synced before the call returns. It stays
 * there until the host has taken it (report --ack). The files that a report names stay where
 * they are; the host fetches them on request.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_REPORT_H
#define PANDO_GUEST_AGENT_SUPERVISOR_REPORT_H

#include <stddef.h>

#include "common/err.h"

#define REPORT_JSON_MAX (1024u * 1024u)
#define REPORT_FILES_MAX 64
#define REPORT_BYTES_MAX (512u * 1024u * 1024u) /* of all its files */
#define REPORT_MESSAGE_MAX 4096
#define REPORT_NAME_MAX 1024
#define REPORTS_WAITING_MAX 256
/* What one --list says at most; the rest comes when these are taken. */
#define REPORT_LIST_MAX (4u * 1024u * 1024u)

/* How long --wait waits: one whose host is gone is gone with it. */
#define REPORT_WAIT_MS 25000

/* argv[0] is "report". --wait, for the host: ends when a report waits to be taken, at once if one
 * does; EXIT_TIMED_OUT when none came in REPORT_WAIT_MS. */
int report_main(int argc, char **argv);

#endif
