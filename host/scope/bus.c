#include "host/scope/bus.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/systemd.h"

#define MACHINED "org.freedesktop.machine1"
#define MACHINED_PATH "/org/freedesktop/machine1"
#define MACHINES MACHINED ".Manager"
#define CALL_US (BUS_CALL_MS * UINT64_C(1000))

struct bus {
	struct systemd s;
	bool system; /* a bus, and the system's: machined may be there, too */
};

void
bus_close(struct bus *b)
{
	if (!b)
		return;
	systemd_done(&b->s);
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

/* When what begins now must have ended. */
static uint64_t
call_end_ns(void)
{
	return io_now_ns() + CALL_US * 1000;
}

/* Whether that name has an owner; nobody is started for the question. */
static int
is_there(struct bus *b, const char *name)
{
	cleanup_bus_message sd_bus_message *m = NULL;
	int there = 0;
	int r = sd_bus_call_method(b->s.h, "org.freedesktop.DBus",
		"/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner", NULL, &m,
		"s", name);

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
		r = systemd_dial(&b->s, address, CALL_US);
	} else {
		r = b->system ? sd_bus_open_system(&b->s.h) : sd_bus_open_user(&b->s.h);
		if (r >= 0)
			r = sd_bus_set_method_call_timeout(b->s.h, CALL_US);
	}
	if (r >= 0)
		r = systemd_process(&b->s, NULL, call_end_ns());
	if (r < 0)
		systemd_done(&b->s);
	return r;
}

int
bus_open(struct bus **ret, struct err *e)
{
	cleanup_bus struct bus *b = calloc(1, sizeof(*b));
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
		!getenv("DBUS_SYSTEM_BUS_ADDRESS") && dial(b, SYSTEMD_PRIVATE) >= 0) {
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
	r = systemd_listen(&b->s, direct ? NULL : SYSTEMD, e);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(b);
	return 0;
}

int
bus_scope_start(struct bus *b, const struct bus_scope *s, struct err *e)
{
	cleanup_bus_message sd_bus_message *m = NULL, *answer = NULL;
	cleanup_bus_error sd_bus_error error = SD_BUS_ERROR_NULL;
	char doing[128];
	int r;

	snprintf(doing, sizeof(doing), "scope %.80s", s->unit);
	r = sd_bus_message_new_method_call(
		b->s.h, &m, SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER, "StartTransientUnit");
	/* (sv): properties; a(sa(sv)): units beside it, none. */
	if (r >= 0)
		r = sd_bus_message_append(m, "ssa(sv)a(sa(sv))", s->unit, "fail", 6,
			"Description", "s", s->description, "Slice", "s", s->slice,
			"PIDs", "au", 1, (uint32_t)s->pid, "MemoryMax", "t",
			s->memory_max, "CPUWeight", "t", s->cpu_weight, "CollectMode",
			"s", "inactive-or-failed", 0);
	if (r < 0)
		return err_sys(e, r, "%s", doing);
	r = sd_bus_call(b->s.h, m, CALL_US, &error, &answer);
	if (r < 0)
		return systemd_said(sd_bus_error_has_name(&error, SYSTEMD ".UnitExists")
					    ? -EEXIST
					    : r,
			&error, doing, e);
	r = systemd_job(&b->s, answer, call_end_ns());
	if (r == -ETIMEDOUT)
		return err_set(e, r, "%s: not started within %d ms", doing, BUS_CALL_MS);
	if (r < 0)
		return err_sys(e, r, "%s", doing);
	if (strcmp(b->s.result, "done") != 0)
		return err_set(
			e, -EIO, "%s: its job ended as \"%s\"", doing, b->s.result);
	return 0;
}

int
bus_scope_limit(struct bus *b, const char *unit, uint64_t memory_max, struct err *e)
{
	cleanup_bus_error sd_bus_error error = SD_BUS_ERROR_NULL;
	char doing[128];
	/* Only for this run: nothing is written below /etc or the user's folder. */
	int r = sd_bus_call_method(b->s.h, SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER,
		"SetUnitProperties", &error, NULL, "sba(sv)", unit, 1, 1, "MemoryMax",
		"t", memory_max);

	snprintf(doing, sizeof(doing), "the limits of %.80s", unit);
	return r < 0 ? systemd_said(r, &error, doing, e) : 0;
}

int
bus_machine_register(struct bus *b, const char *name, const uint8_t id[static 16],
	pid_t leader, const char *folder, struct err *e)
{
	cleanup_bus_message sd_bus_message *m = NULL, *answer = NULL;
	cleanup_bus_error sd_bus_error error = SD_BUS_ERROR_NULL;
	int r = is_there(b, MACHINED);

	if (r == 0)
		return err_set(e, -ESRCH, "machined does not run");
	if (r > 0)
		r = sd_bus_message_new_method_call(
			b->s.h, &m, MACHINED, MACHINED_PATH, MACHINES, "RegisterMachine");
	if (r >= 0)
		r = sd_bus_message_append(m, "s", name);
	if (r >= 0)
		r = sd_bus_message_append_array(m, 'y', id, 16);
	if (r >= 0)
		r = sd_bus_message_append(
			m, "ssus", "pando", "vm", (uint32_t)leader, folder);
	if (r >= 0)
		r = sd_bus_call(b->s.h, m, CALL_US, &error, &answer);
	return r < 0 ? systemd_said(r, &error, "machined", e) : 0;
}

int
bus_machine_unregister(struct bus *b, const char *name, struct err *e)
{
	cleanup_bus_error sd_bus_error error = SD_BUS_ERROR_NULL;
	int r = is_there(b, MACHINED);

	if (r > 0)
		r = sd_bus_call_method(b->s.h, MACHINED, MACHINED_PATH, MACHINES,
			"UnregisterMachine", &error, NULL, "s", name);
	/* It sees the end of the process by itself, and may have been faster. */
	if (r < 0 && sd_bus_error_has_name(&error, MACHINED ".NoSuchMachine"))
		return 0;
	return r < 0 ? systemd_said(r, &error, "machined", e) : 0;
}
