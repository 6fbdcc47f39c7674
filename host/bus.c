#include "host/bus.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"

#define SYSTEMD "org.freedesktop.systemd1"
#define SYSTEMD_PATH "/org/freedesktop/systemd1"
#define MANAGER SYSTEMD ".Manager"
#define PRIVATE "unix:path=/run/systemd/private"
#define MACHINED "org.freedesktop.machine1"
#define MACHINED_PATH "/org/freedesktop/machine1"
#define MACHINES MACHINED ".Manager"
#define CALL_US (BUS_CALL_MS * UINT64_C(1000))

#define cleanup_message __attribute__((cleanup(sd_bus_message_unrefp)))
#define cleanup_error __attribute__((cleanup(sd_bus_error_free)))

struct bus {
	sd_bus *h;   /* owned */
	bool system; /* a bus, and the system's: machined may be there, too */
	char *job;   /* owned: the one that is waited for */
	bool over;   /* it was removed */
	char result[32];
};

void
bus_close(struct bus *b)
{
	if (!b)
		return;
	/* Not flushed: whoever does not read must not be waited for. */
	sd_bus_close_unref(b->h);
	free(b->job);
	free(b);
}

bool
bus_is_system(const struct bus *b)
{
	return b->system;
}

bool
bus_broke(int r)
{
	return r == -ENOTCONN || r == -ECONNRESET || r == -EPIPE || r == -ECHILD;
}

/* What the other side says, as a person may read it. */
static int
said(int r, const sd_bus_error *error, const char *doing, struct err *e)
{
	char text[300];

	if (!error->message)
		return err_sys(e, r, "%s", doing);
	log_escape(text, sizeof(text), error->message, strlen(error->message));
	return err_set(e, r, "%s: %s", doing, text);
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

/* Takes what comes until *over, if there is one, or the connection is ready. */
static int
process_until(struct bus *b, const bool *over)
{
	uint64_t until_ns = io_now_ns() + CALL_US * 1000;

	for (;;) {
		uint64_t now_ns = io_now_ns();
		int r = sd_bus_process(b->h, NULL);

		if (r < 0)
			return r;
		if (over ? *over : sd_bus_is_ready(b->h) > 0)
			return 0;
		if (now_ns >= until_ns)
			return -ETIMEDOUT;
		if (r > 0)
			continue;
		r = sd_bus_wait(b->h, (until_ns - now_ns) / 1000 + 1);
		if (r < 0 && r != -EINTR)
			return r;
	}
}

/* Whether that name has an owner; nobody is started for the question. */
static int
is_there(struct bus *b, const char *name)
{
	cleanup_message sd_bus_message *m = NULL;
	int there = 0;
	int r = sd_bus_call_method(b->h, "org.freedesktop.DBus", "/org/freedesktop/DBus",
		"org.freedesktop.DBus", "NameHasOwner", NULL, &m, "s", name);

	if (r >= 0)
		r = sd_bus_message_read(m, "b", &there);
	return r < 0 ? r : there;
}

/* One that answers within the time; NULL: root's system bus, another's own. */
static int
dial(struct bus *b, const char *address)
{
	int r;

	if (address) {
		r = sd_bus_new(&b->h);
		if (r >= 0)
			r = sd_bus_set_address(b->h, address);
		if (r >= 0)
			r = sd_bus_start(b->h);
	} else {
		r = b->system ? sd_bus_open_system(&b->h) : sd_bus_open_user(&b->h);
	}
	if (r >= 0)
		r = sd_bus_set_method_call_timeout(b->h, CALL_US);
	if (r >= 0)
		r = process_until(b, NULL);
	if (r < 0)
		b->h = sd_bus_close_unref(b->h);
	return r;
}

int
bus_open(struct bus **ret, struct err *e)
{
	cleanup_bus struct bus *b = calloc(1, sizeof(*b));
	cleanup_error sd_bus_error error = SD_BUS_ERROR_NULL;
	const char *what;
	bool direct = false;
	int r;

	if (!b)
		return err_sys(e, -ENOMEM, "a connection to systemd");
	b->system = geteuid() == 0;
	what = b->system ? "the system's bus" : "the user's bus";
	r = dial(b, NULL);
	/* Not where somebody named a bus: that one is meant. */
	if ((r == -ENOENT || r == -ECONNREFUSED) && b->system &&
		!getenv("DBUS_SYSTEM_BUS_ADDRESS") && dial(b, PRIVATE) >= 0) {
		direct = true;
		b->system = false;
		r = 0;
	}
	if (r < 0)
		return err_sys(e, r, "%s", what);
	r = direct ? 1 : is_there(b, SYSTEMD);
	if (r < 0)
		return err_sys(e, r, "%s", what);
	if (r == 0)
		return err_set(e, -ESRCH, "there is no systemd on %s", what);
	r = sd_bus_match_signal(b->h, NULL, direct ? NULL : SYSTEMD, SYSTEMD_PATH,
		MANAGER, "JobRemoved", on_job_removed, b);
	if (r < 0)
		return err_sys(e, r, "listening to systemd");
	r = sd_bus_call_method(
		b->h, SYSTEMD, SYSTEMD_PATH, MANAGER, "Subscribe", &error, NULL, NULL);
	if (r < 0)
		return said(r, &error, "listening to systemd", e);
	*ret = TAKE_PTR(b);
	return 0;
}

int
bus_scope_start(struct bus *b, const struct bus_scope *s, struct err *e)
{
	cleanup_message sd_bus_message *m = NULL, *answer = NULL;
	cleanup_error sd_bus_error error = SD_BUS_ERROR_NULL;
	char doing[128];
	const char *job;
	int r;

	snprintf(doing, sizeof(doing), "scope %.80s", s->unit);
	r = sd_bus_message_new_method_call(
		b->h, &m, SYSTEMD, SYSTEMD_PATH, MANAGER, "StartTransientUnit");
	/* (sv): properties; a(sa(sv)): units beside it, none. */
	if (r >= 0)
		r = sd_bus_message_append(m, "ssa(sv)a(sa(sv))", s->unit, "fail", 6,
			"Description", "s", s->description, "Slice", "s", s->slice,
			"PIDs", "au", 1, (uint32_t)s->pid, "MemoryMax", "t",
			s->memory_max, "CPUWeight", "t", s->cpu_weight, "CollectMode",
			"s", "inactive-or-failed", 0);
	if (r < 0)
		return err_sys(e, r, "%s", doing);
	r = sd_bus_call(b->h, m, CALL_US, &error, &answer);
	if (r < 0)
		return said(sd_bus_error_has_name(&error, SYSTEMD ".UnitExists") ? -EEXIST
										 : r,
			&error, doing, e);
	r = sd_bus_message_read(answer, "o", &job);
	if (r < 0)
		return err_sys(e, r, "%s", doing);
	free(b->job);
	b->job = strdup(job);
	b->over = false;
	if (!b->job)
		return err_sys(e, -ENOMEM, "%s", doing);
	r = process_until(b, &b->over);
	if (r == -ETIMEDOUT)
		return err_set(e, r, "%s: not started within %d ms", doing, BUS_CALL_MS);
	if (r < 0)
		return err_sys(e, r, "%s", doing);
	if (strcmp(b->result, "done"))
		return err_set(e, -EIO, "%s: its job ended as \"%s\"", doing, b->result);
	return 0;
}

int
bus_scope_limit(struct bus *b, const char *unit, uint64_t memory_max, struct err *e)
{
	cleanup_error sd_bus_error error = SD_BUS_ERROR_NULL;
	char doing[128];
	/* Only for this run: nothing is written below /etc or the user's folder. */
	int r = sd_bus_call_method(b->h, SYSTEMD, SYSTEMD_PATH, MANAGER,
		"SetUnitProperties", &error, NULL, "sba(sv)", unit, 1, 1, "MemoryMax",
		"t", memory_max);

	snprintf(doing, sizeof(doing), "the limits of %.80s", unit);
	return r < 0 ? said(r, &error, doing, e) : 0;
}

int
bus_machine_register(struct bus *b, const char *name, const uint8_t id[static 16],
	pid_t leader, const char *folder, struct err *e)
{
	cleanup_message sd_bus_message *m = NULL, *answer = NULL;
	cleanup_error sd_bus_error error = SD_BUS_ERROR_NULL;
	int r = is_there(b, MACHINED);

	if (r == 0)
		return err_set(e, -ESRCH, "machined does not run");
	if (r > 0)
		r = sd_bus_message_new_method_call(
			b->h, &m, MACHINED, MACHINED_PATH, MACHINES, "RegisterMachine");
	if (r >= 0)
		r = sd_bus_message_append(m, "s", name);
	if (r >= 0)
		r = sd_bus_message_append_array(m, 'y', id, 16);
	if (r >= 0)
		r = sd_bus_message_append(
			m, "ssus", "pando", "vm", (uint32_t)leader, folder);
	if (r >= 0)
		r = sd_bus_call(b->h, m, CALL_US, &error, &answer);
	return r < 0 ? said(r, &error, "machined", e) : 0;
}

int
bus_machine_unregister(struct bus *b, const char *name, struct err *e)
{
	cleanup_error sd_bus_error error = SD_BUS_ERROR_NULL;
	int r = is_there(b, MACHINED);

	if (r > 0)
		r = sd_bus_call_method(b->h, MACHINED, MACHINED_PATH, MACHINES,
			"UnregisterMachine", &error, NULL, "s", name);
	/* It sees the end of the process by itself, and may have been faster. */
	if (r < 0 && sd_bus_error_has_name(&error, MACHINED ".NoSuchMachine"))
		return 0;
	return r < 0 ? said(r, &error, "machined", e) : 0;
}
