#include "guest-agent/bus.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"

#define SERVICE "org.freedesktop.systemd1"
#define MANAGER_PATH "/org/freedesktop/systemd1"
#define MANAGER SERVICE ".Manager"
/* Of one call; jobs have the caller's limit. */
#define CALL_US 20000000ull

struct bus {
	sd_bus *h; /* owned */
	char *job; /* owned: the one that is waited for */
	bool over; /* it was removed */
	char result[32];
};

static const struct {
	const char *verb, *method, *done;
} verbs[] = {
	{"start", "StartUnit", "started"},
	{"stop", "StopUnit", "stopped"},
	{"restart", "RestartUnit", "restarted"},
	{"try-restart", "TryRestartUnit", "restarted"},
};

void
bus_close(struct bus *b)
{
	if (!b)
		return;
	sd_bus_flush_close_unref(b->h);
	free(b->job);
	free(b);
}

static int
on_job_removed(sd_bus_message *m, void *bus, sd_bus_error *error)
{
	struct bus *b = bus;
	const char *job, *unit, *result;
	uint32_t id;

	(void)error;
	if (sd_bus_message_read(m, "uoss", &id, &job, &unit, &result) < 0)
		return 0;
	if (b->job && !strcmp(b->job, job)) {
		b->over = true;
		snprintf(b->result, sizeof(b->result), "%s", result);
	}
	return 0;
}

/* What systemd says, as a person may read it. */
static int
said(int r, const sd_bus_error *error, const char *doing, struct err *e)
{
	char text[300];

	if (!error->message)
		return err_sys(e, r, "%s", doing);
	log_escape(text, sizeof(text), error->message, strlen(error->message));
	return err_set(e, r, "%s: %s", doing, text);
}

int
bus_open(const char *address, struct bus **ret, struct err *e)
{
	cleanup_bus struct bus *b = calloc(1, sizeof(*b));
	__attribute__((cleanup(sd_bus_error_free))) sd_bus_error error =
		SD_BUS_ERROR_NULL;
	int r;

	if (!b)
		return err_sys(e, -ENOMEM, "a connection to systemd");
	r = sd_bus_new(&b->h);
	if (r >= 0)
		r = sd_bus_set_address(b->h, address);
	if (r >= 0)
		r = sd_bus_start(b->h);
	if (r >= 0)
		r = sd_bus_set_method_call_timeout(b->h, CALL_US);
	if (r < 0)
		return err_sys(e, r, "systemd at %s", address);
	/* Without a daemon between: no names, and nobody else's signals. */
	r = sd_bus_match_signal(
		b->h, NULL, NULL, MANAGER_PATH, MANAGER, "JobRemoved", on_job_removed, b);
	if (r < 0)
		return err_sys(e, r, "listening to systemd");
	r = sd_bus_call_method(
		b->h, SERVICE, MANAGER_PATH, MANAGER, "Subscribe", &error, NULL, NULL);
	if (r < 0)
		return said(r, &error, "listening to systemd", e);
	*ret = TAKE_PTR(b);
	return 0;
}

/* 0 when the job is over. */
static int
wait_job(struct bus *b, uint64_t until_ns, struct err *e)
{
	while (!b->over) {
		uint64_t now = io_now_ns();
		int r = sd_bus_process(b->h, NULL);

		if (r < 0)
			return err_sys(e, r, "waiting for systemd");
		if (r > 0)
			continue;
		if (now >= until_ns)
			return -ETIMEDOUT;
		r = sd_bus_wait(b->h, (until_ns - now) / 1000 + 1);
		if (r < 0 && r != -EINTR)
			return err_sys(e, r, "waiting for systemd");
	}
	return 0;
}

/* Why a service failed, as far as systemd says. */
static void
reason(struct bus *b, const char *unit, char *dst, size_t cap)
{
	__attribute__((cleanup(sd_bus_message_unrefp))) sd_bus_message *m = NULL;
	cleanup_free char *result = NULL, *text = NULL;
	const char *path;
	char shown[200] = "";
	int32_t status = 0;

	dst[0] = 0;
	if (sd_bus_call_method(b->h, SERVICE, MANAGER_PATH, MANAGER, "GetUnit", NULL, &m,
		    "s", unit) < 0 ||
		sd_bus_message_read(m, "o", &path) < 0 ||
		sd_bus_get_property_string(b->h, SERVICE, path, SERVICE ".Service",
			"Result", NULL, &result) < 0)
		return;
	sd_bus_get_property_trivial(b->h, SERVICE, path, SERVICE ".Service",
		"ExecMainStatus", NULL, 'i', &status);
	if (sd_bus_get_property_string(b->h, SERVICE, path, SERVICE ".Service",
		    "StatusText", NULL, &text) >= 0)
		log_escape(shown, sizeof(shown), text, strlen(text));
	snprintf(dst, cap, ": %.32s, status %d%s%s", result, (int)status,
		*shown ? ", and said: " : "", shown);
}

int
bus_unit(struct bus *b, const char *verb, const char *unit, unsigned limit_ms,
	struct err *e)
{
	__attribute__((cleanup(sd_bus_message_unrefp))) sd_bus_message *m = NULL;
	__attribute__((cleanup(sd_bus_error_free))) sd_bus_error error =
		SD_BUS_ERROR_NULL;
	uint64_t until = io_now_ns() + (uint64_t)limit_ms * 1000000;
	char doing[320], why[320];
	const char *job;
	size_t v;
	int r;

	for (v = 0; v < sizeof(verbs) / sizeof(verbs[0]); v++)
		if (!strcmp(verbs[v].verb, verb))
			break;
	if (v == sizeof(verbs) / sizeof(verbs[0]))
		return err_set(e, -EINVAL, "units cannot be told to \"%.32s\"", verb);
	snprintf(doing, sizeof(doing), "%.255s is not %s", unit, verbs[v].done);
	r = sd_bus_call_method(b->h, SERVICE, MANAGER_PATH, MANAGER, verbs[v].method,
		&error, &m, "ss", unit, "replace");
	if (r < 0)
		return said(sd_bus_error_has_name(&error, SERVICE ".NoSuchUnit") ? -ENOENT
										 : r,
			&error, doing, e);
	r = sd_bus_message_read(m, "o", &job);
	if (r < 0)
		return err_sys(e, r, "%s", doing);
	free(b->job);
	b->job = strdup(job);
	b->over = false;
	if (!b->job)
		return err_sys(e, -ENOMEM, "%s", doing);
	r = wait_job(b, until, e);
	if (r == -ETIMEDOUT)
		return err_set(e, r, "%s within %u ms", doing, limit_ms);
	if (r < 0)
		return r;
	if (!strcmp(b->result, "done") || !strcmp(b->result, "skipped"))
		return 0;
	reason(b, unit, why, sizeof(why));
	return err_set(e, -EIO, "%s (%s)%s", doing, b->result, why);
}
