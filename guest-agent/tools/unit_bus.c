#include "guest-agent/tools/unit_bus.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "common/systemd.h"

/* Of one call; jobs have the caller's limit. */
#define CALL_US 20000000ull

struct bus {
	struct systemd s;
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
	systemd_done(&b->s);
	free(b);
}

int
bus_open(const char *address, struct bus **ret, struct err *e)
{
	cleanup_bus struct bus *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return err_sys(e, -ENOMEM, "a connection to systemd");
	if (!address)
		address = SYSTEMD_PRIVATE;
	r = systemd_dial(&b->s, address, CALL_US);
	if (r < 0)
		return err_sys(e, r, "systemd at %s", address);
	r = systemd_listen(&b->s, NULL, e);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(b);
	return 0;
}

/* Why a service failed, as far as systemd says. */
static void
reason(struct bus *b, const char *unit, char *dst, size_t cap)
{
	cleanup_bus_message sd_bus_message *m = NULL;
	cleanup_free char *result = NULL, *text = NULL;
	const char *path;
	char shown[200] = "";
	int32_t status = 0;

	dst[0] = 0;
	if (sd_bus_call_method(b->s.h, SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER, "GetUnit",
		    NULL, &m, "s", unit) < 0 ||
		sd_bus_message_read(m, "o", &path) < 0 ||
		sd_bus_get_property_string(b->s.h, SYSTEMD, path, SYSTEMD ".Service",
			"Result", NULL, &result) < 0)
		return;
	sd_bus_get_property_trivial(b->s.h, SYSTEMD, path, SYSTEMD ".Service",
		"ExecMainStatus", NULL, 'i', &status);
	if (sd_bus_get_property_string(b->s.h, SYSTEMD, path, SYSTEMD ".Service",
		    "StatusText", NULL, &text) >= 0)
		log_escape(shown, sizeof(shown), text, strlen(text));
	snprintf(dst, cap, ": %.32s, status %d%s%s", result, (int)status,
		*shown ? ", and said: " : "", shown);
}

int
bus_unit(struct bus *b, const char *verb, const char *unit, unsigned limit_ms,
	struct err *e)
{
	cleanup_bus_message sd_bus_message *m = NULL;
	cleanup_bus_error sd_bus_error error = SD_BUS_ERROR_NULL;
	uint64_t until = io_now_ns() + (uint64_t)limit_ms * 1000000;
	char doing[320], why[320];
	size_t v;
	int r;

	for (v = 0; v < sizeof(verbs) / sizeof(verbs[0]); v++)
		if (strcmp(verbs[v].verb, verb) == 0)
			break;
	if (v == sizeof(verbs) / sizeof(verbs[0]))
		return err_set(e, -EINVAL, "units cannot be told to \"%.32s\"", verb);
	snprintf(doing, sizeof(doing), "%.255s is not %s", unit, verbs[v].done);
	r = sd_bus_call_method(b->s.h, SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER,
		verbs[v].method, &error, &m, "ss", unit, "replace");
	if (r < 0)
		return systemd_said(sd_bus_error_has_name(&error, SYSTEMD ".NoSuchUnit")
					    ? -ENOENT
					    : r,
			&error, doing, e);
	r = systemd_job(&b->s, m, until);
	if (r == -ETIMEDOUT)
		return err_set(e, r, "%s within %u ms", doing, limit_ms);
	if (r < 0)
		return err_sys(e, r, "%s", doing);
	if (strcmp(b->s.result, "done") == 0 || strcmp(b->s.result, "skipped") == 0)
		return 0;
	reason(b, unit, why, sizeof(why));
	return err_set(e, -EIO, "%s (%s)%s", doing, b->s.result, why);
}

/*
 * Looking.
 */

#define UNIT SYSTEMD ".Unit"

struct unit {
	const char *name, *active, *sub, *path; /* borrowed from the answer */
};

struct units {
	sd_bus_message *m; /* owned */
	struct unit *v;	   /* owned */
	size_t n;
};

static void
units_done(struct units *u)
{
	sd_bus_message_unref(u->m);
	free(u->v);
}

/* All that are loaded. */
static int
units_list(struct bus *b, struct units *u)
{
	size_t cap = 0;
	int r = sd_bus_call_method(b->s.h, SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER,
		"ListUnits", NULL, &u->m, "");

	if (r >= 0)
		r = sd_bus_message_enter_container(u->m, 'a', "(ssssssouso)");
	while (r >= 0) {
		const char *s[7];
		uint32_t job;

		if (u->n == cap) {
			struct unit *more;

			cap = cap ? 2 * cap : 256;
			more = realloc(u->v, cap * sizeof(*more));
			if (!more)
				return -ENOMEM;
			u->v = more;
		}
		r = sd_bus_message_read(u->m, "(ssssssouso)", &s[0], &s[1], &s[2], &s[3],
			&s[4], &s[5], &s[6], &job, NULL, NULL);
		if (r == 0)
			break;
		if (r > 0)
			u->v[u->n++] = (struct unit){s[0], s[3], s[4], s[6]};
	}
	return r;
}

static const struct unit *
units_find(const struct units *u, const char *name)
{
	for (size_t i = 0; i < u->n; i++)
		if (strcmp(u->v[i].name, name) == 0)
			return &u->v[i];
	return NULL;
}

static bool
ends_with(const char *name, const char *end)
{
	size_t n = strlen(name), m = strlen(end);

	return n > m && strcmp(name + n - m, end) == 0;
}

static uint64_t
number_of(struct bus *b, const char *path, const char *name)
{
	uint64_t v = 0;

	sd_bus_get_property_trivial(b->s.h, SYSTEMD, path, UNIT, name, NULL, 't', &v);
	return v;
}

static bool
truth_of(struct bus *b, const char *path, const char *name)
{
	int v = 0;

	sd_bus_get_property_trivial(b->s.h, SYSTEMD, path, UNIT, name, NULL, 'b', &v);
	return v;
}

/* Whether a property that is a list of units names any, or one that is active. */
static bool
names_one(struct bus *b, const char *path, const char *name, const struct units *active)
{
	char **all = NULL;
	bool found = false;

	if (sd_bus_get_property_strv(b->s.h, SYSTEMD, path, UNIT, name, NULL, &all) < 0)
		return false;
	for (char **v = all; v && *v; v++) {
		const struct unit *u = active ? units_find(active, *v) : NULL;

		found = found || !active || (u && strcmp(u->active, "active") == 0);
		free(*v);
	}
	free(all);
	return found;
}

static void
say_unit(struct json_out *o, const char *unit, const char *why)
{
	json_out_object(o, NULL);
	json_out_str(o, "unit", unit);
	json_out_str(o, "why", why);
	json_out_end_object(o);
}

static void
look_failed(struct bus *b, const struct units *u, struct json_out *o)
{
	unsigned said_of = 0;

	json_out_array(o, "failed");
	for (size_t i = 0; i < u->n && said_of < BUS_LOOK_MAX; i++) {
		char why[320];

		if (strcmp(u->v[i].active, "failed") != 0)
			continue;
		said_of++;
		reason(b, u->v[i].name, why, sizeof(why));
		say_unit(o, u->v[i].name, *why ? why + 2 : "");
	}
	json_out_end_array(o);
}

/* Why an enabled unit is not active, or NULL where that is as it should be. Many are
 * not: what has a condition, what only runs once, what another unit starts when it is
 * needed. */
static const char *
why_not_active(struct bus *b, const struct units *u, const char *name)
{
	cleanup_bus_message sd_bus_message *m = NULL;
	cleanup_free char *type = NULL, *active = NULL;
	bool service = ends_with(name, ".service"), began;
	const struct unit *loaded = units_find(u, name);
	const char *path;

	if (loaded && strcmp(loaded->active, "inactive") != 0)
		return NULL;
	if (sd_bus_call_method(b->s.h, SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER, "LoadUnit",
		    NULL, &m, "s", name) < 0 ||
		sd_bus_message_read(m, "o", &path) < 0 ||
		sd_bus_get_property_string(
			b->s.h, SYSTEMD, path, UNIT, "ActiveState", NULL, &active) < 0)
		return NULL;
	/* An alias of one that is. */
	if (strcmp(active, "inactive") != 0)
		return NULL;
	if (!names_one(b, path, "WantedBy", u) && !names_one(b, path, "RequiredBy", u) &&
		!names_one(b, path, "UpheldBy", u))
		return NULL;
	if (number_of(b, path, "ConditionTimestamp") &&
		!truth_of(b, path, "ConditionResult"))
		return NULL;
	began = number_of(b, path, "InactiveExitTimestamp") != 0;
	if (service) {
		if (names_one(b, path, "TriggeredBy", NULL))
			return NULL;
		if (began && (sd_bus_get_property_string(b->s.h, SYSTEMD, path,
				      SYSTEMD ".Service", "Type", NULL, &type) < 0 ||
				     strcmp(type, "oneshot") == 0))
			return NULL;
	}
	return began ? "it has ended" : "it was never started";
}

static int
look_enabled(struct bus *b, const struct units *u, struct json_out *o)
{
	static const char *const kinds[] = {
		".service", ".path", ".socket", ".timer", ".mount"};
	cleanup_bus_message sd_bus_message *m = NULL;
	unsigned said_of = 0;
	int r = sd_bus_call_method(b->s.h, SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER,
		"ListUnitFiles", NULL, &m, "");

	json_out_array(o, "not_active");
	if (r >= 0)
		r = sd_bus_message_enter_container(m, 'a', "(ss)");
	while (r >= 0 && said_of < BUS_LOOK_MAX) {
		const char *file, *state, *name, *why;
		bool kind = false;

		r = sd_bus_message_read(m, "(ss)", &file, &state);
		if (r <= 0)
			break;
		name = strrchr(file, '/') ? strrchr(file, '/') + 1 : file;
		for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
			kind = kind || ends_with(name, kinds[i]);
		/* Templates are enabled as what they are the template of. */
		if (!kind || strcmp(state, "enabled") != 0 || strstr(name, "@."))
			continue;
		why = why_not_active(b, u, name);
		if (!why)
			continue;
		said_of++;
		say_unit(o, name, why);
	}
	json_out_end_array(o);
	return r;
}

/* A path unit does nothing while its service is active; one of Type=oneshot with
 * RemainAfterExit=yes stays so for good. */
static void
look_paths(struct bus *b, const struct units *u, struct json_out *o)
{
	unsigned said_of = 0;

	json_out_array(o, "paths");
	for (size_t i = 0; i < u->n && said_of < BUS_LOOK_MAX; i++) {
		cleanup_free char *service = NULL;
		const struct unit *s;

		if (!ends_with(u->v[i].name, ".path") ||
			strcmp(u->v[i].active, "active") != 0 ||
			sd_bus_get_property_string(b->s.h, SYSTEMD, u->v[i].path,
				SYSTEMD ".Path", "Unit", NULL, &service) < 0)
			continue;
		s = units_find(u, service);
		if (!s || strcmp(s->active, "active") != 0)
			continue;
		said_of++;
		json_out_object(o, NULL);
		json_out_str(o, "unit", u->v[i].name);
		json_out_str(o, "service", service);
		json_out_str(o, "state", s->sub);
		json_out_end_object(o);
	}
	json_out_end_array(o);
}

int
bus_look(struct bus *b, struct json_out *o, struct err *e)
{
	__attribute__((cleanup(units_done))) struct units u = {0};
	cleanup_free char *system = NULL;
	int r = units_list(b, &u);

	if (r >= 0)
		r = sd_bus_get_property_string(b->s.h, SYSTEMD, SYSTEMD_PATH,
			SYSTEMD_MANAGER, "SystemState", NULL, &system);
	if (r < 0)
		return err_sys(e, r, "asking systemd for its units");
	json_out_object(o, NULL);
	json_out_str(o, "system", system);
	look_failed(b, &u, o);
	/* While it boots, what is not there yet is no fault. */
	if (strcmp(system, "starting") != 0 && strcmp(system, "initializing") != 0) {
		r = look_enabled(b, &u, o);
		if (r < 0)
			return err_sys(e, r, "asking systemd what is enabled");
	}
	look_paths(b, &u, o);
	json_out_end_object(o);
	return o->error ? err_sys(e, o->error, "the answer") : 0;
}
