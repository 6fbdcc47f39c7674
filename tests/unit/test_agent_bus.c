/*
 * Units through sd-bus, against a manager of our own on a socket: it speaks as systemd
 * does on /run/systemd/private, and its units' names say what becomes of their jobs.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "guest-agent/tools/unit_bus.h"
#include "tests/unit/bus_help.h"

static char folder[64], address[128];
static int listener;
static pthread_t thread;
static char calls[512];
static int32_t main_status = 203;

static int
on_unit(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	sd_bus *bus = sd_bus_message_get_bus(m);
	const char *unit, *mode;
	int r = sd_bus_message_read(m, "ss", &unit, &mode);

	(void)ctx;
	if (r < 0)
		return r;
	snprintf(calls + strlen(calls), sizeof(calls) - strlen(calls), "%s(%s,%s) ",
		sd_bus_message_get_member(m), unit, mode);
	if (strncmp(unit, "missing", 7) == 0)
		return sd_bus_error_setf(
			error, SYSTEMD ".NoSuchUnit", "Unit %s not found.", unit);
	if (strncmp(unit, "vanish", 6) == 0)
		return -ECONNRESET;
	r = sd_bus_reply_method_return(m, "o", BUS_HELP_JOB);
	/* Somebody else's first. */
	bus_help_removed(bus, SYSTEMD_PATH "/job/6", unit, "failed");
	if (strncmp(unit, "good", 4) == 0)
		return bus_help_removed(bus, BUS_HELP_JOB, unit, "done");
	if (strncmp(unit, "bad", 3) == 0)
		return bus_help_removed(bus, BUS_HELP_JOB, unit, "failed");
	if (strncmp(unit, "needs", 5) == 0)
		return bus_help_removed(bus, BUS_HELP_JOB, unit, "dependency");
	return r;
}

static int
on_get_unit(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	const char *unit;

	(void)ctx;
	if (sd_bus_message_read(m, "s", &unit) < 0 || strncmp(unit, "bad", 3) != 0)
		return sd_bus_error_set(error, SYSTEMD ".NoSuchUnit", "not loaded");
	return sd_bus_reply_method_return(m, "o", SYSTEMD_PATH "/unit/bad");
}

static int
text_property(sd_bus *bus, const char *path, const char *interface, const char *property,
	sd_bus_message *reply, void *ctx, sd_bus_error *error)
{
	(void)bus;
	(void)path;
	(void)interface;
	(void)ctx;
	(void)error;
	return sd_bus_message_append(reply, "s",
		strcmp(property, "Result") != 0 ? "no\033[1m luck" : "exit-code");
}

static int
status_property(sd_bus *bus, const char *path, const char *interface,
	const char *property, sd_bus_message *reply, void *ctx, sd_bus_error *error)
{
	(void)bus;
	(void)path;
	(void)interface;
	(void)property;
	(void)ctx;
	(void)error;
	return sd_bus_message_append(reply, "i", main_status);
}

/*
 * What there is to look at. Names say what a unit is like: "…-idle…" is inactive and was
 * never started, "…-over…" has ended, "…-cond…" has a condition that did not hold.
 */
static const char *system_state = "degraded";

static const struct {
	const char *name, *active, *sub;
} loaded[] = {
	{"multi-user.target", "active", "active"},
	{"graphical.target", "inactive", "dead"},
	{"bad.service", "failed", "failed"},
	{"good.service", "active", "running"},
	{"rpc.path", "active", "waiting"},
	{"rpc.service", "active", "exited"},
	{"long.path", "active", "waiting"},
	{"long.service", "active", "running"},
	{"fresh.path", "active", "waiting"},
	{"fresh.service", "inactive", "dead"},
};

static const char *const files[] = {"/etc/systemd/system/good.service",
	"/lib/systemd/system/a-idle.service", "/lib/systemd/system/b-idle.path",
	"/lib/systemd/system/c-over.service", "/lib/systemd/system/d-cond.service",
	"/lib/systemd/system/e-over-oneshot.service",
	"/lib/systemd/system/f-idle-graphical.service",
	"/lib/systemd/system/g-idle-triggered.service",
	"/lib/systemd/system/h-idle@.service", "/lib/systemd/system/i-idle.target",
	"/lib/systemd/system/j-off.service"};

static int
on_list_units(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	__attribute__((cleanup(sd_bus_message_unrefp))) sd_bus_message *answer = NULL;
	int r = sd_bus_message_new_method_return(m, &answer);

	(void)ctx;
	(void)error;
	if (r >= 0)
		r = sd_bus_message_open_container(answer, 'a', "(ssssssouso)");
	for (size_t i = 0; r >= 0 && i < sizeof(loaded) / sizeof(loaded[0]); i++) {
		char path[128];

		snprintf(path, sizeof(path), SYSTEMD_PATH "/unit/%.*s",
			(int)strcspn(loaded[i].name, "."), loaded[i].name);
		for (char *s = path; *s; s++)
			if (*s == '-')
				*s = '_';
		r = sd_bus_message_append(answer, "(ssssssouso)", loaded[i].name, "",
			"loaded", loaded[i].active, loaded[i].sub, "", path, 0u, "", "/");
	}
	if (r >= 0)
		r = sd_bus_message_close_container(answer);
	return r < 0 ? r : sd_bus_send(NULL, answer, NULL);
}

static int
on_list_files(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	__attribute__((cleanup(sd_bus_message_unrefp))) sd_bus_message *answer = NULL;
	int r = sd_bus_message_new_method_return(m, &answer);

	(void)ctx;
	(void)error;
	if (r >= 0)
		r = sd_bus_message_open_container(answer, 'a', "(ss)");
	for (size_t i = 0; r >= 0 && i < sizeof(files) / sizeof(files[0]); i++)
		r = sd_bus_message_append(answer, "(ss)", files[i],
			strstr(files[i], "-off") ? "disabled" : "enabled");
	if (r >= 0)
		r = sd_bus_message_close_container(answer);
	return r < 0 ? r : sd_bus_send(NULL, answer, NULL);
}

/* The object's path has all of the name but its kind. */
static int
on_load_unit(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	char path[128];
	const char *unit;

	(void)ctx;
	(void)error;
	if (sd_bus_message_read(m, "s", &unit) < 0)
		return -EINVAL;
	snprintf(path, sizeof(path), SYSTEMD_PATH "/unit/%.*s", (int)strcspn(unit, "."),
		unit);
	for (char *s = path; *s; s++)
		if (*s == '-')
			*s = '_';
	return sd_bus_reply_method_return(m, "o", path);
}

static int
unit_property(sd_bus *h, const char *path, const char *interface, const char *property,
	sd_bus_message *reply, void *ctx, sd_bus_error *error)
{
	bool ran = strstr(path, "_over") || strstr(path, "_cond");

	(void)h;
	(void)interface;
	(void)ctx;
	(void)error;
	if (strcmp(property, "ActiveState") == 0)
		return sd_bus_message_append(reply, "s",
			strstr(path, "/good") || strstr(path, "/rpc") ? "active"
								      : "inactive");
	if (strcmp(property, "ConditionResult") == 0)
		return sd_bus_message_append(reply, "b", !strstr(path, "_cond"));
	if (strcmp(property, "ConditionTimestamp") == 0)
		return sd_bus_message_append(reply, "t", ran ? UINT64_C(5) : UINT64_C(0));
	if (strcmp(property, "InactiveExitTimestamp") == 0)
		return sd_bus_message_append(
			reply, "t", strstr(path, "_over") ? UINT64_C(6) : UINT64_C(0));
	if (strcmp(property, "WantedBy") == 0)
		return sd_bus_message_append(reply, "as", 1,
			strstr(path, "_graphical") ? "graphical.target"
						   : "multi-user.target");
	if (strcmp(property, "TriggeredBy") == 0 && strstr(path, "_triggered"))
		return sd_bus_message_append(reply, "as", 1, "g.socket");
	return sd_bus_message_append(reply, "as", 0);
}

static int
type_property(sd_bus *h, const char *path, const char *interface, const char *property,
	sd_bus_message *reply, void *ctx, sd_bus_error *error)
{
	(void)h;
	(void)interface;
	(void)property;
	(void)ctx;
	(void)error;
	return sd_bus_message_append(
		reply, "s", strstr(path, "_oneshot") ? "oneshot" : "simple");
}

static int
path_property(sd_bus *h, const char *path, const char *interface, const char *property,
	sd_bus_message *reply, void *ctx, sd_bus_error *error)
{
	char service[64];

	(void)h;
	(void)interface;
	(void)property;
	(void)ctx;
	(void)error;
	snprintf(service, sizeof(service), "%s.service", strrchr(path, '/') + 1);
	return sd_bus_message_append(reply, "s", service);
}

static int
state_property(sd_bus *h, const char *path, const char *interface, const char *property,
	sd_bus_message *reply, void *ctx, sd_bus_error *error)
{
	(void)h;
	(void)path;
	(void)interface;
	(void)property;
	(void)ctx;
	(void)error;
	return sd_bus_message_append(reply, "s", system_state);
}

static const sd_bus_vtable any_unit[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_PROPERTY("ActiveState", "s", unit_property, 0, 0),
	SD_BUS_PROPERTY("ConditionResult", "b", unit_property, 0, 0),
	SD_BUS_PROPERTY("ConditionTimestamp", "t", unit_property, 0, 0),
	SD_BUS_PROPERTY("InactiveExitTimestamp", "t", unit_property, 0, 0),
	SD_BUS_PROPERTY("WantedBy", "as", unit_property, 0, 0),
	SD_BUS_PROPERTY("RequiredBy", "as", unit_property, 0, 0),
	SD_BUS_PROPERTY("UpheldBy", "as", unit_property, 0, 0),
	SD_BUS_PROPERTY("TriggeredBy", "as", unit_property, 0, 0),
	SD_BUS_VTABLE_END,
};

static const sd_bus_vtable any_service[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_PROPERTY("Type", "s", type_property, 0, 0),
	SD_BUS_PROPERTY("Result", "s", text_property, 0, 0),
	SD_BUS_PROPERTY("StatusText", "s", text_property, 0, 0),
	SD_BUS_PROPERTY("ExecMainStatus", "i", status_property, 0, 0),
	SD_BUS_VTABLE_END,
};

static const sd_bus_vtable any_path[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_PROPERTY("Unit", "s", path_property, 0, 0),
	SD_BUS_VTABLE_END,
};

static int
find_any(sd_bus *h, const char *path, const char *interface, void *ctx, void **ret,
	sd_bus_error *error)
{
	(void)h;
	(void)path;
	(void)interface;
	(void)error;
	*ret = ctx;
	return 1;
}

static const sd_bus_vtable manager[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_METHOD("ListUnits", "", "a(ssssssouso)", on_list_units,
		SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD(
		"ListUnitFiles", "", "a(ss)", on_list_files, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("LoadUnit", "s", "o", on_load_unit, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_PROPERTY("SystemState", "s", state_property, 0, 0),
	BUS_HELP_SUBSCRIBE,
	SD_BUS_METHOD("StartUnit", "ss", "o", on_unit, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("StopUnit", "ss", "o", on_unit, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("RestartUnit", "ss", "o", on_unit, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("TryRestartUnit", "ss", "o", on_unit, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("GetUnit", "s", "o", on_get_unit, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_VTABLE_END,
};

static void *
serve(void *arg)
{
	sd_id128_t id = {.bytes = {1}};
	int fd = accept(listener, NULL, NULL);
	sd_bus *bus = NULL;

	(void)arg;
	if (fd < 0 || sd_bus_new(&bus) < 0 || sd_bus_set_fd(bus, fd, fd) < 0 ||
		sd_bus_set_server(bus, 1, id) < 0 ||
		sd_bus_add_object_vtable(
			bus, NULL, SYSTEMD_PATH, SYSTEMD_MANAGER, manager, NULL) < 0 ||
		sd_bus_add_fallback_vtable(bus, NULL, SYSTEMD_PATH "/unit",
			SYSTEMD ".Unit", any_unit, find_any, &main_status) < 0 ||
		sd_bus_add_fallback_vtable(bus, NULL, SYSTEMD_PATH "/unit",
			SYSTEMD ".Service", any_service, find_any, &main_status) < 0 ||
		sd_bus_add_fallback_vtable(bus, NULL, SYSTEMD_PATH "/unit",
			SYSTEMD ".Path", any_path, find_any, &main_status) < 0 ||
		sd_bus_start(bus) < 0)
		abort();
	while (1) {
		int r = sd_bus_process(bus, NULL);

		if (r < 0)
			break;
		if (r == 0 && sd_bus_wait(bus, UINT64_MAX) < 0)
			break;
	}
	sd_bus_flush_close_unref(bus);
	return NULL;
}

static struct bus *bus;
static struct err e;

static int
setup(void **state)
{
	char path[96];

	(void)state;
	strcpy(folder, "/tmp/pando-bus-test-XXXXXX");
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/private", folder);
	snprintf(address, sizeof(address), "unix:path=%s", path);
	assert_int_equal(io_unix_listen(path, SOCK_STREAM, 1, &listener, &e), 0);
	assert_int_equal(pthread_create(&thread, NULL, serve, NULL), 0);
	calls[0] = 0;
	if (bus_open(address, &bus, &e))
		fail_msg("%s", e.msg);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	bus_close(bus);
	pthread_join(thread, NULL);
	close(listener);
	return io_remove_tree(folder, NULL);
}

static void
a_job_is_waited_for(void **state)
{
	(void)state;
	assert_int_equal(bus_unit(bus, "start", "good.service", 5000, &e), 0);
	assert_int_equal(bus_unit(bus, "stop", "good.service", 5000, &e), 0);
	assert_int_equal(bus_unit(bus, "restart", "good.service", 5000, &e), 0);
	assert_int_equal(bus_unit(bus, "try-restart", "good.service", 5000, &e), 0);
	assert_string_equal(calls,
		"StartUnit(good.service,replace) StopUnit(good.service,replace) RestartUnit(good.service,replace) TryRestartUnit(good.service,replace) ");
}

static void
a_job_that_fails_says_why(void **state)
{
	(void)state;
	assert_int_equal(bus_unit(bus, "restart", "bad.service", 5000, &e), -EIO);
	assert_string_equal(e.msg,
		"bad.service is not restarted (failed): exit-code, status 203, and said: no\\x1b[1m luck");
	/* One that systemd can say no more of. */
	assert_int_equal(bus_unit(bus, "start", "needs.service", 5000, &e), -EIO);
	assert_string_equal(e.msg, "needs.service is not started (dependency)");
	assert_int_equal(bus_unit(bus, "start", "missing.service", 5000, &e), -ENOENT);
	assert_string_equal(
		e.msg, "missing.service is not started: Unit missing.service not found.");
	assert_int_equal(bus_unit(bus, "dance", "good.service", 5000, &e), -EINVAL);
	/* The connection is as good as before. */
	assert_int_equal(bus_unit(bus, "start", "good.service", 5000, &e), 0);
}

static void
a_job_without_end_is_given_up(void **state)
{
	(void)state;
	assert_int_equal(bus_unit(bus, "stop", "hangs.service", 200, &e), -ETIMEDOUT);
	assert_string_equal(e.msg, "hangs.service is not stopped within 200 ms");
}

static void
without_systemd_it_says_so(void **state)
{
	struct bus *none = NULL;

	(void)state;
	assert_int_equal(bus_open("unix:path=/nonexistent/private", &none, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "/nonexistent/private"));
}

static void
what_is_not_as_it_should_be_is_found_and_nothing_else(void **state)
{
	cleanup_json_out struct json_out o = {0}, young = {0};

	(void)state;
	system_state = "degraded";
	if (bus_look(bus, &o, &e))
		fail_msg("%s", e.msg);
	assert_string_equal(o.buf,
		"{\"system\":\"degraded\",\"failed\":[{\"unit\":\"bad.service\",\"why\":"
		"\"exit-code, status 203, and said: no\\\\x1b[1m luck\"}],\"not_active\":["
		"{\"unit\":\"a-idle.service\",\"why\":\"it was never started\"},"
		"{\"unit\":\"b-idle.path\",\"why\":\"it was never started\"},"
		"{\"unit\":\"c-over.service\",\"why\":\"it has ended\"}],\"paths\":["
		"{\"unit\":\"rpc.path\",\"service\":\"rpc.service\",\"state\":\"exited\"}"
		","
		"{\"unit\":\"long.path\",\"service\":\"long.service\",\"state\":"
		"\"running\"}]}");
	/* What is not there yet while it boots is no fault. */
	system_state = "starting";
	assert_int_equal(bus_look(bus, &young, &e), 0);
	assert_non_null(strstr(young.buf, "\"starting\""));
	assert_null(strstr(young.buf, "not_active"));
	/* The connection is as good as before. */
	assert_int_equal(bus_unit(bus, "start", "good.service", 5000, &e), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_job_is_waited_for),
		T(a_job_that_fails_says_why),
		T(a_job_without_end_is_given_up),
		T(what_is_not_as_it_should_be_is_found_and_nothing_else),
		cmocka_unit_test(without_systemd_it_says_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
