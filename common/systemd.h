/*
 * A connection to systemd, and its jobs: what pandod (host/scope/bus.c) and the guest's
 * pando-units (guest-agent/tools/unit_bus.c) ask of it in the same way. Each dials for itself, and
 * makes its own calls on `h` through sd-bus; libsystemd is called in these three files
 * only. Not in the library: who links it links libsystemd.
 *
 * One connection belongs to one thread.
 */
#ifndef PANDO_COMMON_SYSTEMD_H
#define PANDO_COMMON_SYSTEMD_H

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-bus.h>

#include "common/err.h"

#define SYSTEMD "org.freedesktop.systemd1"
#define SYSTEMD_PATH "/org/freedesktop/systemd1"
#define SYSTEMD_MANAGER SYSTEMD ".Manager"
/* Without a daemon between: no names, and nobody else's signals; root only. */
#define SYSTEMD_PRIVATE "unix:path=/run/systemd/private"

#define cleanup_bus_message __attribute__((cleanup(sd_bus_message_unrefp)))
#define cleanup_bus_error __attribute__((cleanup(sd_bus_error_free)))

struct systemd {
	sd_bus *h; /* owned */
	char *job; /* owned: the one that is waited for */
	bool over; /* it was removed */
	char result[32];
};

/* To `address`; the connection is being made when it returns. Calls on it end after
 * call_us. What was made of s->h is the caller's also on failure. */
int systemd_dial(struct systemd *s, const char *address, uint64_t call_us);
/* Not flushed: whoever does not read must not be waited for. */
void systemd_done(struct systemd *s);
/* Has systemd tell of jobs that end, which it does not do unasked. s must stay where it
 * is. sender: its name on a bus; NULL on a connection without a daemon between. */
int systemd_listen(struct systemd *s, const char *sender, struct err *e);
/* Takes what comes until *over, if there is one, or the connection is ready. until_ns: by
 * io_now_ns(); -ETIMEDOUT. */
int systemd_process(struct systemd *s, const bool *over, uint64_t until_ns);
/* Waits for the job that a call was answered with, and puts systemd's word for its end
 * ("done", "failed"…) into s->result. until_ns: likewise. Says nothing by itself. */
int systemd_job(struct systemd *s, sd_bus_message *answer, uint64_t until_ns);
/* Why a call failed, "doing: …", as a person may read it. Returns r. */
int systemd_said(int r, const sd_bus_error *error, const char *doing, struct err *e);

#endif
