/* The decoders between the socket and the tree: host/api/request.c. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "host/api/request.h"

static struct create_request create;
static struct branch_request branch;
static struct err e;

static int
parse_create(const char *body)
{
	return request_create(body, strlen(body), &create, &e);
}

static int
parse_branch(const char *body)
{
	return request_branch(body, strlen(body), &branch, &e);
}

static void
an_empty_body_gives_the_defaults(void **state)
{
	(void)state;
	assert_int_equal(parse_create(""), 0);
	assert_int_equal(create.mem_mib, 512);
	assert_int_equal(create.vcpus, 1);
	assert_int_equal(create.disk_mib, 0);
	assert_string_equal(create.kernel, "default");
	assert_string_equal(create.rootfs, "default");
	assert_true(create.wait);
	assert_int_equal(parse_branch("{}"), 0);
	assert_int_equal(branch.count, 1);
	assert_true(branch.wait);
}

static void
a_whole_body_is_read(void **state)
{
	(void)state;
	assert_int_equal(
		parse_create(
			"{\"alias\":\"front.end_1-x\",\"mem_mib\":1024,\"vcpus\":2,"
			"\"disk_mib\":4096,"
			"\"kernel\":\"/"
			"k\",\"rootfs\":\"trixie\",\"cmdline\":\"quiet\",\"wait\":false,"
			"\"labels\":{\"swarm\":\"r1\",\"a/b\":\"\"}}"),
		0);
	assert_string_equal(create.alias, "front.end_1-x");
	assert_int_equal(create.mem_mib, 1024);
	assert_int_equal(create.vcpus, 2);
	assert_int_equal(create.disk_mib, 4096);
	assert_string_equal(create.kernel, "/k");
	assert_string_equal(create.rootfs, "trixie");
	assert_string_equal(create.cmdline, "quiet");
	assert_false(create.wait);
	assert_int_equal(create.labels.n, 2);
	assert_string_equal(create.labels.items[1].key, "a/b");
	assert_string_equal(create.labels.items[1].value, "");
}

static void
bad_bodies_are_refused_with_the_members_name(void **state)
{
	static const struct {
		const char *body, *sentence;
	} cases[] = {
		{"[]", "not a JSON object"},
		{"{", "the request's body"},
		{"{\"mem\":1}", "unknown member \"mem\""},
		{"{\"m\\u001bm\":1}", "unknown member \"m\\x1bm\""},
		{"{\"mem_mib\":0}", "\"mem_mib\" is 0"},
		{"{\"mem_mib\":-1}", "\"mem_mib\" is -1"},
		{"{\"mem_mib\":1.5}", "\"mem_mib\" is 1.5"},
		{"{\"mem_mib\":1e99}", "\"mem_mib\" is 1e99"},
		{"{\"mem_mib\":99999999999999999999999}", "\"mem_mib\" is 999999"},
		{"{\"mem_mib\":\"512\"}", "\"mem_mib\" is not a number"},
		{"{\"vcpus\":0}", "from 1 to 8"},
		{"{\"vcpus\":9}", "from 1 to 8"},
		{"{\"vcpus\":-2}", "from 1 to 8"},
		{"{\"disk_mib\":0}", "\"disk_mib\" is 0"},
		{"{\"alias\":\"\"}", "an alias starts with a letter"},
		{"{\"alias\":\"1x\"}", "an alias starts with a letter"},
		{"{\"alias\":\"a b\"}", "an alias starts with a letter"},
		{"{\"alias\":\"../x\"}", "an alias starts with a letter"},
		{"{\"alias\":\"abcdefabcdef\"}", "looks like a VM's id"},
		{"{\"alias\":7}", "\"alias\" is not a string"},
		{"{\"alias\":\"a\\u0000b\"}", "\"alias\" is not a string"},
		{"{\"kernel\":\"\"}", "\"kernel\" is empty"},
		{"{\"kernel\":\"a\\nb\"}", "control character"},
		{"{\"wait\":1}", "neither true nor false"},
		{"{\"labels\":[]}", "not an object"},
		{"{\"labels\":{\"a b\":\"x\"}}", "label \"a b\""},
		{"{\"labels\":{\"\":\"x\"}}", "label \"\""},
		{"{\"labels\":{\"a\":1}}", "\"labels\": \"a\" is not a string"},
		{"{\"wait\":true,\"wait\":true}", "the request's body"},
	};
	char long_alias[200];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		e.msg[0] = '\0';
		assert_int_equal(parse_create(cases[i].body), -EINVAL);
		if (!strstr(e.msg, cases[i].sentence))
			fail_msg("%s: %s", cases[i].body, e.msg);
	}
	snprintf(long_alias, sizeof(long_alias), "{\"alias\":\"a%063d\"}", 0);
	assert_int_equal(parse_create(long_alias), -EINVAL);
	snprintf(long_alias, sizeof(long_alias), "{\"alias\":\"a%062d\"}", 0);
	assert_int_equal(parse_create(long_alias), 0);
}

static void
too_many_labels_are_refused(void **state)
{
	char body[2048] = "{\"labels\":{";

	(void)state;
	for (int i = 0; i <= VM_LABELS_MAX; i++)
		snprintf(body + strlen(body), sizeof(body) - strlen(body),
			"%s\"k%d\":\"v\"", i ? "," : "", i);
	strcat(body, "}}");
	assert_int_equal(parse_create(body), -EINVAL);
	assert_non_null(strstr(e.msg, "at most 32"));
}

static void
branch_counts_and_their_aliases_are_bounded(void **state)
{
	char body[200];

	(void)state;
	assert_int_equal(parse_branch("{\"count\":0}"), -EINVAL);
	assert_int_equal(parse_branch("{\"count\":1025}"), -EINVAL);
	assert_int_equal(parse_branch("{\"count\":-1}"), -EINVAL);
	assert_int_equal(parse_branch("{\"count\":1024,\"alias\":\"x\"}"), 0);
	assert_int_equal(branch.count, 1024);
	/* "<alias>-1023" must still be an alias. */
	snprintf(body, sizeof(body), "{\"count\":1024,\"alias\":\"a%058d\"}", 0);
	assert_int_equal(parse_branch(body), -EINVAL);
	snprintf(body, sizeof(body), "{\"count\":1024,\"alias\":\"a%057d\"}", 0);
	assert_int_equal(parse_branch(body), 0);
	assert_int_equal(parse_branch("{\"mem_mib\":1}"), -EINVAL);
}

static void
an_alias_request_wants_a_name_or_null(void **state)
{
	struct alias_request q;

	(void)state;
	assert_int_equal(request_alias("{}", 2, &q, &e), -EINVAL);
	assert_int_equal(request_alias("{\"alias\":null}", 14, &q, &e), 0);
	assert_string_equal(q.alias, "");
	assert_int_equal(request_alias("{\"alias\":\"n\"}", 13, &q, &e), 0);
	assert_string_equal(q.alias, "n");
}

static void
every_call_is_routed(void **state)
{
	static const struct {
		const char *method, *target;
		enum call call;
	} cases[] = {
		{"GET", "/v1/version", CALL_VERSION},
		{"GET", "/v1/vms", CALL_LIST},
		{"POST", "/v1/vms", CALL_CREATE},
		{"GET", "/v1/vms/x", CALL_INFO},
		{"DELETE", "/v1/vms/x?recursive=1", CALL_DELETE},
		{"POST", "/v1/vms/x/branch", CALL_BRANCH},
		{"PUT", "/v1/vms/x/alias", CALL_ALIAS},
		{"POST", "/v1/vms/x/pause", CALL_PAUSE},
		{"POST", "/v1/vms/x/resume", CALL_RESUME},
		{"GET", "/v1/vms/x/disk", CALL_DISK},
		{"POST", "/v1/shutdown", CALL_SHUTDOWN},
	};
	struct route route;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(
			request_route(cases[i].method, cases[i].target, &route, &e), 0);
		assert_int_equal(route.call, cases[i].call);
	}
	assert_int_equal(
		request_route("DELETE", "/v1/vms/a%2Db?recursive=1", &route, &e), 0);
	assert_string_equal(route.vm, "a-b");
	assert_true(route.recursive);
	assert_int_equal(
		request_route("GET", "/v1/vms?label=swarm=a%3Db", &route, &e), 0);
	assert_int_equal(route.labels.n, 1);
	assert_string_equal(route.labels.items[0].key, "swarm");
	assert_string_equal(route.labels.items[0].value, "a=b");
	assert_false(route.memory);
	assert_int_equal(
		request_route("GET", "/v1/vms?label=a=1&memory=1&label=b=", &route, &e),
		0);
	assert_int_equal(route.labels.n, 2);
	assert_string_equal(route.labels.items[1].key, "b");
	assert_string_equal(route.labels.items[1].value, "");
	assert_true(route.memory);
	assert_int_equal(
		request_route("DELETE", "/v1/vms/a?dry_run=1&recursive=0", &route, &e),
		0);
	assert_true(route.dry_run);
	assert_false(route.recursive);
	assert_int_equal(route.busy_timeout_ms, BUSY_TIMEOUT_MS);
	assert_int_equal(
		request_route("POST", "/v1/vms/a/branch?busy_timeout_ms=0", &route, &e),
		0);
	assert_int_equal(route.busy_timeout_ms, 0);
	assert_int_equal(request_route("POST", "/v1/vms/a/pause?busy_timeout_ms=3600001",
				 &route, &e),
		-ERANGE);
	assert_int_equal(
		request_route("POST", "/v1/vms/a/pause?busy_timeout_ms=-1", &route, &e),
		-EINVAL);
	assert_int_equal(
		request_route("GET", "/v1/vms/a?busy_timeout_ms=1", &route, &e), -EINVAL);
}

static void
more_labels_than_a_vm_can_have_are_refused(void **state)
{
	char target[600] = "/v1/vms?label=a=b";
	struct route route;

	(void)state;
	for (unsigned i = 1; i < VM_LABELS_MAX; i++)
		strcat(target, "&label=a=b");
	assert_int_equal(request_route("GET", target, &route, &e), 0);
	assert_int_equal(route.labels.n, VM_LABELS_MAX);
	strcat(target, "&label=a=b");
	assert_int_equal(request_route("GET", target, &route, &e), -EINVAL);
}

static void
ends_and_beginnings_are_read(void **state)
{
	static const struct {
		const char *body, *says;
	} wrong_stops[] =
		{
			{"{\"force\":1}", "\"force\" is neither"},
			{"{\"timeout_ms\":0}", "\"timeout_ms\" is 0"},
			{"{\"timeout_ms\":3600001}", "\"timeout_ms\" is 3600001"},
			{"{\"timeout\":1}", "unknown member \"timeout\""},
			{"[]", "not a JSON object"},
		},
	  wrong_resizes[] = {
		  {"{}", "\"disk_mib\" is missing"},
		  {"", "\"disk_mib\" is missing"},
		  {"{\"disk_mib\":0}", "\"disk_mib\" is 0"},
		  {"{\"disk_mib\":-1}", "\"disk_mib\" is -1"},
		  {"{\"disk_mib\":1048577}", "\"disk_mib\" is 1048577"},
		  {"{\"disk_mib\":\"2G\"}", "\"disk_mib\" is not a number"},
		  {"{\"mem_mib\":64}", "unknown member \"mem_mib\""},
		  {"{\"mem_target_mib\":15}", "\"mem_target_mib\" is 15"},
		  {"{\"mem_target_mib\":0}", "\"mem_target_mib\" is 0"},
	  };
	static const struct {
		const char *body, *says;
	} wrong_limits[] = {
		{"{}", "are missing"},
		{"{\"disk_bps\":65535}", "65536 bytes"},
		{"{\"disk_bps\":-1}", "\"disk_bps\" is -1"},
		{"{\"disk_bps\":1099511627777}", "\"disk_bps\" is 1099511627777"},
		{"{\"disk_iops\":1000000001}", "\"disk_iops\" is 1000000001"},
		{"{\"disk_iops\":\"9\"}", "\"disk_iops\" is not a number"},
		{"{\"iops\":9}", "unknown member \"iops\""},
	};
	struct limit_request limit;
	struct resize_request resize;
	struct start_request start;
	struct stop_request stop;

	(void)state;
	assert_int_equal(request_stop("", 0, &stop, &e), 0);
	assert_false(stop.force);
	assert_int_equal(stop.timeout_ms, VM_STOP_TIMEOUT_MS);
	assert_int_equal(
		request_stop("{\"force\":true,\"timeout_ms\":5}", 29, &stop, &e), 0);
	assert_true(stop.force);
	assert_int_equal(stop.timeout_ms, 5);
	assert_int_equal(request_start("{}", 2, &start, &e), 0);
	assert_true(start.wait);
	assert_int_equal(request_start("{\"wait\":false}", 14, &start, &e), 0);
	assert_false(start.wait);
	assert_int_equal(request_start("{\"wait\":null}", 13, &start, &e), -EINVAL);
	assert_int_equal(request_resize("{\"disk_mib\":2048}", 17, &resize, &e), 0);
	assert_int_equal(resize.disk_mib, 2048);
	assert_int_equal(request_limit("{\"disk_bps\":65536}", 18, &limit, &e), 0);
	assert_int_equal(limit.limits.bps, 65536);
	assert_true(limit.limits.iops == LIMIT_AS_IT_IS);
	assert_int_equal(request_limit("{\"disk_bps\":0,\"disk_iops\":9}", 28, &limit, &e), 0);
	assert_int_equal(limit.limits.bps, 0);
	assert_int_equal(limit.limits.iops, 9);
	for (size_t i = 0; i < sizeof(wrong_limits) / sizeof(wrong_limits[0]); i++) {
		const char *body = wrong_limits[i].body;

		assert_int_equal(request_limit(body, strlen(body), &limit, &e), -EINVAL);
		if (!strstr(e.msg, wrong_limits[i].says))
			fail_msg("%s: %s", body, e.msg);
	}
	assert_int_equal(resize.mem_target_mib, 0);
	assert_int_equal(request_resize("{\"mem_target_mib\":64}", 21, &resize, &e), 0);
	assert_int_equal(resize.disk_mib, 0);
	assert_int_equal(resize.mem_target_mib, 64);
	for (size_t i = 0; i < sizeof(wrong_stops) / sizeof(wrong_stops[0]); i++) {
		const char *body = wrong_stops[i].body;

		assert_int_equal(request_stop(body, strlen(body), &stop, &e), -EINVAL);
		if (!strstr(e.msg, wrong_stops[i].says))
			fail_msg("%s: %s", body, e.msg);
	}
	for (size_t i = 0; i < sizeof(wrong_resizes) / sizeof(wrong_resizes[0]); i++) {
		const char *body = wrong_resizes[i].body;

		assert_int_equal(
			request_resize(body, strlen(body), &resize, &e), -EINVAL);
		if (!strstr(e.msg, wrong_resizes[i].says))
			fail_msg("%s: %s", body, e.msg);
	}
}

static void
wrong_targets_are_refused(void **state)
{
	static const struct {
		const char *method, *target;
		int code;
	} cases[] = {
		{"GET", "/", -ENOENT},
		{"GET", "", -ENOENT},
		{"GET", "/v1/vms/", -ENOENT},
		{"GET", "/v1/vms//disk", -ENOENT},
		{"GET", "/v1/vms/x/y/z", -ENOENT},
		{"GET", "/v2/vms", -ENOENT},
		{"PATCH", "/v1/vms", -EOPNOTSUPP},
		{"GET", "/v1/shutdown", -EOPNOTSUPP},
		{"GET", "/v1/vms/%", -EINVAL},
		{"GET", "/v1/vms/%4", -EINVAL},
		{"GET", "/v1/vms/%zz", -EINVAL},
		{"GET", "/v1/vms/a%00b", -EINVAL},
		{"GET", "/v1/vms/a%0ab", -EINVAL},
		{"DELETE", "/v1/vms/x?recursive=2", -EINVAL},
		{"DELETE", "/v1/vms/x?recursive", -EINVAL},
		{"DELETE", "/v1/vms/x?force=1", -EINVAL},
		{"GET", "/v1/vms?label=x", -EINVAL},
		{"GET", "/v1/vms?memory=yes", -EINVAL},
		{"GET", "/v1/vms?wait=1", -EINVAL},
		{"GET", "/v1/reports?wait=yes", -EINVAL},
		{"GET", "/v1/vms/a?memory=1", -EINVAL},
		{"DELETE", "/v1/vms/a?dry_run=2", -EINVAL},
		{"GET", "/v1/vms?dry_run=1", -EINVAL},
		{"GET", "/v1/vms/a/stop", -EOPNOTSUPP},
		{"GET", "/v1/vms?label=a%20=b", -EINVAL},
		{"GET", "/v1/vms?recursive=1", -EINVAL},
		{"GET",
			"/v1/vms/"
			"0123456789012345678901234567890123456789012345678901234567890123"
			"456789",
			-ENOENT},
	};
	struct route route;
	char target[REQUEST_TARGET_MAX + 32] = "/v1/vms?";

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int r = request_route(cases[i].method, cases[i].target, &route, &e);

		if (r != cases[i].code)
			fail_msg("%s %s: %d (%s)", cases[i].method, cases[i].target, r,
				e.msg);
	}
	memset(target + 8, '&', REQUEST_TARGET_MAX);
	assert_int_equal(request_route("GET", target, &route, &e), -EINVAL);
}

static void
calls_without_a_body_take_none(void **state)
{
	(void)state;
	assert_int_equal(request_empty("", 0, &e), 0);
	assert_int_equal(request_empty("{}", 2, &e), 0);
	assert_int_equal(request_empty("{\"a\":1}", 7, &e), -EINVAL);
	assert_int_equal(request_empty("x", 1, &e), -EINVAL);
}

static void
a_commit_and_its_tags_are_read(void **state)
{
	static struct commit_request q;
	static const char body[] = "{\"message\":\"two\\nlines\\t\",\"tags\":[\"a\","
				   "\"b.1\"],\"labels\":{\"k\":\"v\"}}";
	static const char too_long[] = "{\"tags\":[\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
				       "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"]}";
	static const char *const wrong[] = {
		"{\"message\":7}",
		"{\"message\":\"\\u0007\"}",
		"{\"message\":\"\\u0000\"}",
		"{\"tags\":\"a\"}",
		"{\"tags\":[1]}",
		"{\"tags\":[\"\"]}",
		"{\"tags\":[\"a\\nb\"]}",
		too_long,
		"{\"tags\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}",
		"{\"tag\":[\"a\"]}",
		"[]",
	};
	static const char move[] = "{\"commit\":\"x\",\"move\":true}";
	static const char three[] = "{\"count\":3,\"wait\":false}";
	struct tag_request tag;

	(void)state;
	assert_int_equal(request_commit("", 0, &q, &e), 0);
	assert_int_equal(q.n_tags, 0);
	assert_int_equal(request_commit(body, strlen(body), &q, &e), 0);
	assert_string_equal(q.message, "two\nlines\t");
	assert_int_equal(q.n_tags, 2);
	assert_string_equal(q.tags[1], "b.1");
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_int_equal(
			request_commit(wrong[i], strlen(wrong[i]), &q, &e), -EINVAL);
	assert_string_equal(q.message, "two\nlines\t"); /* untouched */
	assert_int_equal(request_tag(move, strlen(move), &tag, &e), 0);
	assert_true(tag.move);
	assert_int_equal(request_tag("{}", 2, &tag, &e), -EINVAL);
	assert_int_equal(request_tag("{\"commit\":\"\"}", 13, &tag, &e), -EINVAL);
	assert_int_equal(request_spawn(three, strlen(three), &branch, &e), 0);
	assert_int_equal(branch.count, 3);
	assert_false(branch.full);
	assert_int_equal(request_spawn("{\"full\":true}", 13, &branch, &e), 0);
	assert_true(branch.full);
	assert_int_equal(request_branch("{\"full\":true}", 13, &branch, &e), -EINVAL);
	assert_int_equal(parse_branch(""), 0);
	assert_false(branch.keep_fork_point);
	assert_int_equal(parse_branch("{\"keep_fork_point\":true}"), 0);
	assert_true(branch.keep_fork_point);
	assert_int_equal(request_spawn("{\"keep_fork_point\":true}", 24, &branch, &e), -EINVAL);
	assert_int_equal(request_spawn("{\"count\":0}", 11, &branch, &e), -EINVAL);
	assert_int_equal(request_spawn("{\"count\":1025}", 14, &branch, &e), -EINVAL);
}

static void
routes_of_commits(void **state)
{
	static struct route r;
	static const char id[] =
		"/v1/commits/"
		"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

	(void)state;
	assert_int_equal(request_route("GET", id, &r, &e), 0);
	assert_int_equal(r.call, CALL_COMMIT_INFO);
	assert_string_equal(r.name, id + 12);
	assert_string_equal(r.vm, "");
	assert_int_equal(
		request_route("GET", "/v1/commits/a/diff?with=b%2e1", &r, &e), 0);
	assert_int_equal(r.call, CALL_DIFF);
	assert_string_equal(r.other, "b.1");
	assert_int_equal(request_route("GET", "/v1/commits/a?with=b", &r, &e), -EINVAL);
	assert_int_equal(
		request_route("GET", "/v1/commits/a/diff?with=", &r, &e), -EINVAL);
	assert_false(r.files);
	assert_int_equal(
		request_route("GET", "/v1/commits/a/diff?files=1&with=b", &r, &e), 0);
	assert_true(r.files);
	assert_int_equal(
		request_route("GET", "/v1/commits/a/diff?with=b&files=7", &r, &e),
		-EINVAL);
	assert_int_equal(request_route("GET", "/v1/vms?files=1", &r, &e), -EINVAL);
	assert_int_equal(
		request_route("DELETE", "/v1/commits/a?recursive=1&dry_run=1", &r, &e),
		0);
	assert_true(r.recursive && r.dry_run);
	assert_int_equal(request_route("POST", "/v1/vms/x/commit", &r, &e), 0);
	assert_int_equal(r.call, CALL_COMMIT);
	assert_string_equal(r.vm, "x");
	assert_int_equal(request_route("PUT", "/v1/tags/t", &r, &e), 0);
	assert_int_equal(r.call, CALL_TAG_PUT);
	assert_int_equal(request_route("POST", "/v1/tags/t", &r, &e), -EOPNOTSUPP);
	assert_int_equal(request_route("POST", "/v1/gc", &r, &e), 0);
	assert_int_equal(request_route("DELETE", "/v1/gc", &r, &e), 0);
	assert_int_equal(r.call, CALL_GC_CANCEL);
	assert_int_equal(request_route("POST", "/v1/verify", &r, &e), 0);
	assert_false(r.repair);
	assert_int_equal(request_route("POST", "/v1/verify?repair=1", &r, &e), 0);
	assert_true(r.call == CALL_VERIFY_ALL && r.repair);
	assert_int_equal(
		request_route("POST", "/v1/commits/a/verify?repair=1", &r, &e), -EINVAL);
	assert_int_equal(request_route("GET", "/v1/commits", &r, &e), 0);
	assert_int_equal(r.limit, REQUEST_LIMIT_MAX);
	assert_string_equal(r.cursor, "");
	assert_int_equal(
		request_route("GET", "/v1/commits?limit=7&after=-12.ab", &r, &e), 0);
	assert_int_equal(r.limit, 7);
	assert_string_equal(r.cursor, "-12.ab");
	assert_int_equal(request_route("GET", "/v1/tags?after=t&limit=1", &r, &e), 0);
	assert_int_equal(request_route("GET", "/v1/tags?limit=0", &r, &e), -ERANGE);
	assert_int_equal(request_route("GET", "/v1/tags?limit=1001", &r, &e), -ERANGE);
	assert_int_equal(request_route("GET", "/v1/tags?limit=x", &r, &e), -EINVAL);
	assert_int_equal(request_route("GET", "/v1/tags?after=", &r, &e), -EINVAL);
	assert_int_equal(request_route("GET", "/v1/commits/a?limit=3", &r, &e), -EINVAL);
	assert_int_equal(request_route("POST", "/v1/prune", &r, &e), 0);
	assert_int_equal(r.call, CALL_PRUNE);
	/* One digit too many. */
	assert_int_equal(
		request_route("GET",
			"/v1/commits/"
			"00123456789abcdef0123456789abcdef0123456789abcdef0123456"
			"789abcdef",
			&r, &e),
		-ENOENT);
}

/*
 * API.md and the table of calls.
 */

static int
prune_body(const char *text, struct prune_request *q)
{
	return request_prune(text, strlen(text), q, &e);
}

static void
rules_of_retention_are_read_and_bounded(void **state)
{
	struct prune_request q;
	struct commit_request c;
	const char *text;

	(void)state;
	assert_int_equal(prune_body("", &q), 0);
	assert_false(q.has_older || q.dry_run);
	assert_int_equal(q.keep_last, 0);
	assert_int_equal(
		prune_body("{\"older_than_ms\":0,\"keep_last\":3,\"dry_run\":true,"
			   "\"labels\":{\"kind\":\"step\"}}",
			&q),
		0);
	assert_true(q.has_older && q.dry_run);
	assert_int_equal(q.older_than_ms, 0);
	assert_int_equal(q.keep_last, 3);
	assert_string_equal(q.labels.items[0].value, "step");
	assert_int_equal(prune_body("{\"keep_last\":0}", &q), -EINVAL);
	assert_int_equal(prune_body("{\"keep_last\":1000001}", &q), -EINVAL);
	assert_int_equal(prune_body("{\"older_than_ms\":-1}", &q), -EINVAL);
	assert_int_equal(prune_body("{\"tagged\":true}", &q), -EINVAL);
	text = "{\"expire_ms\":604800000,\"keep_last\":5}";
	assert_int_equal(request_commit(text, strlen(text), &c, &e), 0);
	assert_int_equal(c.expire_ms, 604800000);
	assert_int_equal(c.keep_last, 5);
	text = "{\"expire_ms\":0}";
	assert_int_equal(request_commit(text, strlen(text), &c, &e), -EINVAL);
}

struct described {
	const char *method, *path;
	unsigned query;
	bool seen;
};

/* "| GET /v1/vms/{vm}/reports[?after=N] | …": the row it is of, or a failure that names it. */
static void
find_row(const char *line, struct described *rows, size_t n)
{
	static const struct {
		const char *name;
		unsigned flag;
	} words[] = {{"recursive=", QUERY_RECURSIVE}, {"dry_run=", QUERY_DRY_RUN},
		{"memory=", QUERY_MEMORY}, {"label=", QUERY_LABEL}, {"with=", QUERY_WITH},
		{"files=", QUERY_FILES}, {"after=", QUERY_AFTER}, {"wait=", QUERY_WAIT},
		{"busy_timeout_ms=", QUERY_BUSY}, {"limit=", QUERY_PAGE},
		{"repair=", QUERY_REPAIR}};
	char method[8], target[200], path[200];
	size_t len = 0, path_len;
	unsigned query = 0;

	assert_int_equal(sscanf(line, "| %7[A-Z] %199s", method, target), 2);
	path_len = strcspn(target, "[?");
	for (size_t i = 0; i < path_len; i++) {
		path[len++] = target[i] == '{' ? '*' : target[i];
		if (target[i] == '{')
			i += strcspn(target + i, "}");
	}
	path[len] = '\0';
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strstr(target + path_len, words[i].name))
			query |= words[i].flag;
	if (query & QUERY_PAGE)
		query &= ~(unsigned)QUERY_AFTER; /* a cursor */
	for (size_t i = 0; i < n; i++)
		if (strcmp(rows[i].method, method) == 0 &&
			strcmp(rows[i].path, path) == 0) {
			assert_false(rows[i].seen);
			rows[i].seen = true;
			if (rows[i].query != query)
				fail_msg("API.md: %s %s: the query is another one",
					method, target);
			return;
		}
	fail_msg("API.md describes %s %s, which is no call", method, target);
}

static void
the_manual_has_the_calls_that_there_are(void **state)
{
	struct described rows[] = {
#define ROW(name, method, path, body, flags, query) {method, path, query, false},
		API_CALLS(ROW)
#undef ROW
	};
	FILE *f = fopen("host/api/API.md", "r");
	char *line = NULL;
	size_t cap = 0;

	(void)state;
	assert_non_null(f);
	while (getline(&line, &cap, f) > 0)
		if (strstr(line, " /v1/") && strncmp(line, "| ", 2) == 0)
			find_row(line, rows, CALL_COUNT);
	free(line);
	fclose(f);
	for (size_t i = 0; i < CALL_COUNT; i++)
		if (!rows[i].seen)
			fail_msg("API.md does not describe %s %s", rows[i].method,
				rows[i].path);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_body_gives_the_defaults),
		cmocka_unit_test(a_whole_body_is_read),
		cmocka_unit_test(bad_bodies_are_refused_with_the_members_name),
		cmocka_unit_test(too_many_labels_are_refused),
		cmocka_unit_test(branch_counts_and_their_aliases_are_bounded),
		cmocka_unit_test(an_alias_request_wants_a_name_or_null),
		cmocka_unit_test(every_call_is_routed),
		cmocka_unit_test(more_labels_than_a_vm_can_have_are_refused),
		cmocka_unit_test(ends_and_beginnings_are_read),
		cmocka_unit_test(wrong_targets_are_refused),
		cmocka_unit_test(a_commit_and_its_tags_are_read),
		cmocka_unit_test(routes_of_commits),
		cmocka_unit_test(calls_without_a_body_take_none),
		cmocka_unit_test(the_manual_has_the_calls_that_there_are),
		cmocka_unit_test(rules_of_retention_are_read_and_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
