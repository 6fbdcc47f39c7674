/* host/client against a peer that speaks HTTP over a Unix socket, well and badly. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/client/client.h"

#define VM_A \
	"{\"id\":\"0a1b2c3d4e5f\",\"alias\":\"frontend\",\"state\":\"running\"," \
	"\"reason\":null," \
	"\"parent\":null,\"children\":[\"111111111111\"],\"created_ms\":1700000000000," \
	"\"mem_mib\":512,\"vcpus\":1,\"disk_mib\":1024,\"kernel\":\"default\"," \
	"\"rootfs\":\"default\"," \
	"\"labels\":{\"task\":\"a " \
	"b\"},\"pid\":42,\"generation\":\"00112233445566778899aabbccddeeff\"," \
	"\"agent_socket\":\"/x/agent.sock\",\"console\":\"/x/" \
	"console\",\"newer\":[1,{}]}"
#define VM_B \
	"{\"id\":\"111111111111\",\"alias\":null,\"state\":\"failed\",\"reason\":\"it " \
	"\\u00fcbel\"," \
	"\"parent\":\"0a1b2c3d4e5f\",\"children\":[],\"created_ms\":1,\"mem_mib\":512," \
	"\"vcpus\":1," \
	"\"disk_mib\":1024,\"kernel\":\"k\",\"rootfs\":\"r\",\"labels\":{},\"pid\":" \
	"null," \
	"\"generation\":null,\"agent_socket\":null,\"console\":null}"

static struct peer {
	char home[64];
	int listen_fd;
	pthread_t thread;
	/* What to answer: bytes as they are. hang: nothing after them until the other
	 * side leaves. */
	const char *answer;
	size_t answer_len;
	bool hang;
	int silent;	    /* as many connections are closed without an answer first */
	char request[8192]; /* what came */
	atomic_int requests;
} peer;

static void
serve(int fd)
{
	size_t len = 0, want = 0;
	char *body;
	ssize_t n;

	for (;;) {
		n = io_read(fd, peer.request + len, sizeof(peer.request) - 1 - len);
		if (n <= 0)
			return;
		len += (size_t)n;
		peer.request[len] = '\0';
		body = strstr(peer.request, "\r\n\r\n");
		if (!body)
			continue;
		const char *length = strcasestr(peer.request, "content-length:");
		want = length ? strtoul(length + 15, NULL, 10) : 0;
		if (strlen(body + 4) >= want)
			break;
	}
	atomic_fetch_add(&peer.requests, 1);
	if (peer.silent) {
		peer.silent--;
		return;
	}
	/* In two parts, so that lines arrive torn. */
	size_t half = peer.answer_len / 2;
	(void)io_write_full(fd, peer.answer, half);
	usleep(2000);
	(void)io_write_full(fd, peer.answer + half, peer.answer_len - half);
	if (peer.hang)
		(void)io_read(fd, peer.request, 1);
}

static void *
peer_main(void *arg)
{
	int fd;

	(void)arg;
	while ((fd = accept4(peer.listen_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		serve(fd);
		close(fd);
	}
	return NULL;
}

static int
start_peer(void **state)
{
	char path[128];

	(void)state;
	memset(&peer, 0, sizeof(peer));
	snprintf(peer.home, sizeof(peer.home), "/tmp/pando-client.XXXXXX");
	if (!mkdtemp(peer.home))
		return -1;
	snprintf(path, sizeof(path), "%s/pandod.sock", peer.home);
	if (io_unix_listen(path, SOCK_STREAM, 8, &peer.listen_fd, NULL) < 0)
		return -1;
	return pthread_create(&peer.thread, NULL, peer_main, NULL);
}

static int
stop_peer(void **state)
{
	(void)state;
	shutdown(peer.listen_fd, SHUT_RDWR);
	pthread_join(peer.thread, NULL);
	close(peer.listen_fd);
	return io_remove_tree(peer.home, NULL);
}

static char answer_buf[4096];

static void
will_answer(const char *status, const char *type, const char *body)
{
	peer.answer = answer_buf;
	peer.answer_len = (size_t)snprintf(answer_buf, sizeof(answer_buf),
		"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
		status, type, strlen(body), body);
}

static struct client *
open_client(void)
{
	struct client *c = NULL;

	assert_int_equal(client_open(peer.home, 0, &c, NULL), 0);
	return c;
}

static void
usage_labels_and_the_new_calls_are_spoken(void **state)
{
	static const char *const labels[] = {"a=b", "c=d e"};
	static const char vm[] =
		"{\"id\":\"0a1b2c3d4e5f\",\"state\":\"running\",\"disk_mib\":1024,"
		"\"resize_mib\":2048,\"paused_ms\":77,\"costs\":{\"memory_unique_bytes\":5,"
		"\"memory_shared_bytes\":6,\"disk_own_bytes\":7}}";
	static const char blind[] =
		"{\"id\":\"0a1b2c3d4e5f\",\"state\":\"failed\",\"costs\":"
		"{\"memory_unique_bytes\":null,\"memory_shared_bytes\":null,"
		"\"disk_own_bytes\":7}}";
	cleanup_client struct client *c = open_client();
	struct client_vms vms = {0};
	struct client_vm now = {0};
	char body[1024], *note = NULL, **ids;
	struct err e = {0};

	(void)state;
	snprintf(body, sizeof(body), "{\"vms\":[%s,%s]}", vm, blind);
	will_answer("200 OK", "application/json", body);
	assert_int_equal(
		client_list_with(c, labels, 2, CLIENT_MEMORY, &vms, NULL, &e), 0);
	assert_non_null(strstr(
		peer.request, "GET /v1/vms?label=a%3Db&label=c%3Dd%20e&memory=1 HTTP"));
	assert_int_equal(vms.v[0].resize_mib, 2048);
	assert_int_equal(vms.v[0].paused_ms, 77);
	assert_true(vms.v[0].has_memory);
	assert_int_equal(vms.v[0].memory_unique_bytes, 5);
	assert_int_equal(vms.v[0].memory_shared_bytes, 6);
	assert_int_equal(vms.v[0].disk_own_bytes, 7);
	assert_true(vms.v[1].has_usage);
	assert_false(vms.v[1].has_memory);
	client_vms_done(&vms);

	will_answer("200 OK", "application/json", vm);
	assert_int_equal(client_stop(c, "a", true, 5, &now, NULL, &e), 0);
	assert_non_null(strstr(peer.request, "POST /v1/vms/a/stop HTTP"));
	assert_non_null(strstr(peer.request, "{\"force\":true,\"timeout_ms\":5}"));
	client_vm_done(&now);
	assert_int_equal(client_start(c, "a", true, &now, NULL, &e), 0);
	assert_non_null(strstr(peer.request, "{\"wait\":false}"));
	client_vm_done(&now);
	/* An answer to a resize that is no answer to a resize. */
	assert_int_equal(client_resize(c, "a", 4096, 0, &now, &note, NULL, &e), -EPROTO);
	snprintf(body, sizeof(body), "{\"vm\":%s,\"note\":\"later\"}", vm);
	will_answer("200 OK", "application/json", body);
	assert_int_equal(client_resize(c, "a", 0, 64, &now, &note, NULL, &e), 0);
	assert_non_null(strstr(peer.request, "{\"mem_target_mib\":64}"));
	free(note);
	client_vm_done(&now);
	assert_int_equal(client_resize(c, "a", 4096, 64, &now, &note, NULL, &e), 0);
	assert_non_null(
		strstr(peer.request, "{\"disk_mib\":4096,\"mem_target_mib\":64}"));
	assert_string_equal(note, "later");
	free(note);
	client_vm_done(&now);
	will_answer(
		"200 OK", "application/json", "{\"would_delete\":[\"0a1b2c3d4e5f\"]}");
	assert_int_equal(client_delete_dry(c, "a", true, &ids, &e), 0);
	assert_non_null(
		strstr(peer.request, "DELETE /v1/vms/a?dry_run=1&recursive=1 HTTP"));
	assert_string_equal(ids[0], "0a1b2c3d4e5f");
	client_ids_free(ids);
	/* One that only says what it would do has deleted nothing, and the reverse. */
	assert_int_equal(client_delete(c, "a", true, &ids, &e), -EPROTO);
}

static void
a_vm_is_read_with_all_its_members(void **state)
{
	cleanup_client struct client *c = open_client();
	cleanup_client_vms struct client_vms vms = {0};
	cleanup_client_reply struct client_reply reply = {0};

	(void)state;
	will_answer("200 OK", "application/json", "{\"vms\":[" VM_A "," VM_B "]}");
	assert_int_equal(client_list(c, "k=a b&c", &vms, &reply, NULL), 0);
	assert_non_null(
		strstr(peer.request, "GET /v1/vms?label=k%3Da%20b%26c HTTP/1.1\r\n"));
	assert_int_equal(vms.n, 2);
	assert_string_equal(vms.v[0].id, "0a1b2c3d4e5f");
	assert_string_equal(vms.v[0].alias, "frontend");
	assert_string_equal(client_vm_name(&vms.v[0]), "frontend");
	assert_string_equal(vms.v[0].state, "running");
	assert_null(vms.v[0].reason);
	assert_int_equal(vms.v[0].n_children, 1);
	assert_string_equal(vms.v[0].children[0], "111111111111");
	assert_int_equal(vms.v[0].n_labels, 1);
	assert_string_equal(vms.v[0].labels[0].value, "a b");
	assert_int_equal(vms.v[0].pid, 42);
	assert_string_equal(vms.v[0].agent_socket, "/x/agent.sock");
	assert_string_equal(vms.v[1].alias, "");
	assert_string_equal(client_vm_name(&vms.v[1]), "111111111111");
	assert_string_equal(vms.v[1].reason, "it \xc3\xbc"
					     "bel");
	assert_string_equal(vms.v[1].parent, "0a1b2c3d4e5f");
	assert_int_equal(vms.v[1].pid, 0);
	assert_null(vms.v[1].console);
	assert_int_equal(reply.text[0], '{');
}

static void
an_error_has_the_daemons_sentence_and_code(void **state)
{
	cleanup_client struct client *c = open_client();
	cleanup_client_vm struct client_vm vm = {0};
	struct err e = {0};

	(void)state;
	will_answer("404 Not Found", "application/json",
		"{\"error\":{\"errno\":\"ENOENT\",\"code\":-2,\"message\":\"no VM named \\\"x\\\"\"}}");
	assert_int_equal(client_get(c, "x", &vm, NULL, &e), -ENOENT);
	assert_string_equal(e.msg, "no VM named \"x\"");
	assert_int_equal(err_exit_code(e.code), EXIT_NOT_FOUND);
}

static void
names_are_encoded_and_cannot_leave_their_folder(void **state)
{
	char path[256];
	struct err e = {0};

	(void)state;
	assert_int_equal(
		client_vm_path(path, sizeof(path), "a/../b?c#d%", "/branch", NULL), 0);
	assert_string_equal(path, "/v1/vms/a%2F..%2Fb%3Fc%23d%25/branch");
	assert_int_equal(client_vm_path(path, sizeof(path), "..", "", &e), -ENOENT);
	assert_int_equal(client_vm_path(path, sizeof(path), "", "", &e), -EINVAL);
	char longest[2000];
	memset(longest, '/', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	assert_int_equal(client_vm_path(path, sizeof(path), longest, "", &e), -ENOENT);
}

static void
run_sends_only_what_was_said(void **state)
{
	cleanup_client struct client *c = open_client();
	cleanup_client_vm struct client_vm vm = {0};
	static const char *const labels[] = {"k=v=w", "e="};
	struct client_run spec = {
		.alias = "a\"b", .mem_mib = 64, .labels = labels, .n_labels = 2};

	(void)state;
	will_answer("201 Created", "application/json", VM_A);
	assert_int_equal(client_run(c, &spec, &vm, NULL, NULL), 0);
	assert_non_null(strstr(peer.request, "POST /v1/vms HTTP/1.1\r\n"));
	assert_string_equal(strstr(peer.request, "\r\n\r\n") + 4,
		"{\"alias\":\"a\\\"b\",\"mem_mib\":64,\"labels\":{\"k\":\"v=w\",\"e\":"
		"\"\"},\"wait\":true}");
	assert_null(strstr(peer.request, "ndjson")); /* nobody asked for progress */
}

static char said[256];
static int ticks;

static void
remember(void *ctx, const char *sentence)
{
	(void)ctx;
	if (!sentence)
		ticks++;
	else
		strncat(strncat(said, sentence, 100), "|", 2);
}

static void
progress_lines_come_before_the_result(void **state)
{
	cleanup_client struct client *c = open_client();
	cleanup_client_vms struct client_vms vms = {0};
	struct client_branch spec = {.count = 2, .no_wait = true};

	(void)state;
	said[0] = '\0';
	client_on_progress(c, remember, NULL);
	will_answer("200 OK", "application/x-ndjson",
		"{\"progress\":\"one\"}\n{\"progress\":\"two \\u20ac\"}\n{\"unheard\":1}\n"
		"{\"result\":{\"vms\":[" VM_B "],\"pause_us\":321}}");
	assert_int_equal(client_branch(c, "frontend", &spec, &vms, NULL, NULL), 0);
	assert_non_null(strstr(peer.request, "Accept: application/x-ndjson"));
	assert_non_null(strstr(peer.request, "{\"count\":2,\"wait\":false}"));
	assert_string_equal(said, "one|two \xe2\x82\xac|");
	assert_int_equal(vms.n, 1);
	assert_int_equal(vms.pause_us, 321);
}

static void
an_error_at_the_end_of_a_stream_is_an_error(void **state)
{
	cleanup_client struct client *c = open_client();
	cleanup_client_vm struct client_vm vm = {0};
	struct client_run spec = {0};
	struct err e = {0};

	(void)state;
	client_on_progress(c, remember, NULL);
	will_answer("200 OK", "application/x-ndjson",
		"{\"progress\":\"one\"}\n{\"error\":{\"code\":-110,\"message\":\"no answer\"}}\n");
	assert_int_equal(client_run(c, &spec, &vm, NULL, &e), -ETIMEDOUT);
	assert_string_equal(e.msg, "no answer");
	will_answer("200 OK", "application/x-ndjson", "{\"progress\":\"one\"}\n");
	assert_int_equal(client_run(c, &spec, &vm, NULL, &e), -EPROTO);
}

static void
nonsense_is_refused_with_a_sentence(void **state)
{
	static const char *const bodies[] = {"", "not JSON", "[]", "{\"vms\":3}",
		"{\"vms\":[3]}", "{\"vms\":[{}]}",
		"{\"vms\":[{\"id\":\"x\",\"state\":7}]}",
		("{\"vms\":[{\"id\":\"0123456789abcdef0123456789\","
		 "\"state\":\"running\"}]}"),
		"{\"error\":{}}", "{\"error\":{\"code\":5,\"message\":\"positive\"}}"};

	(void)state;
	for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
		cleanup_client struct client *c = open_client();
		cleanup_client_vms struct client_vms vms = {0};
		struct err e = {0};

		will_answer("200 OK", "application/json", bodies[i]);
		assert_int_equal(client_list(c, NULL, &vms, NULL, &e), -EPROTO);
		assert_int_not_equal(e.msg[0], '\0');
		assert_null(vms.v);
	}
}

static void
a_status_without_a_sentence_is_still_an_error(void **state)
{
	cleanup_client struct client *c = open_client();
	cleanup_client_vms struct client_vms vms = {0};
	struct err e = {0};

	(void)state;
	will_answer("500 Oops", "application/json", "{\"vms\":[]}");
	assert_int_equal(client_list(c, NULL, &vms, NULL, &e), -EPROTO);
	assert_non_null(strstr(e.msg, "500"));
}

static void
a_daemon_that_goes_away_is_a_broken_pipe(void **state)
{
	cleanup_client struct client *c = open_client();
	cleanup_client_vms struct client_vms vms = {0};
	struct err e = {0};

	(void)state;
	peer.answer = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"vms\":";
	peer.answer_len = strlen(peer.answer);
	assert_int_equal(client_list(c, NULL, &vms, NULL, &e), -EPIPE);
	assert_non_null(strstr(e.msg, "went away"));
	peer.answer_len = 0;
	assert_int_equal(client_list(c, NULL, &vms, NULL, &e), -EPIPE);
}

static void
what_is_no_http_is_refused(void **state)
{
	cleanup_client struct client *c = open_client();
	cleanup_client_vms struct client_vms vms = {0};
	struct err e = {0};

	(void)state;
	peer.answer = "SSH-2.0-OpenSSH\r\n";
	peer.answer_len = strlen(peer.answer);
	assert_int_equal(client_list(c, NULL, &vms, NULL, &e), -EPROTO);
	assert_non_null(strstr(e.msg, peer.home));
}

static void
cancelling_ends_a_call_that_waits(void **state)
{
	cleanup_close int cancel = eventfd(0, EFD_CLOEXEC);
	cleanup_client struct client *c = open_client();
	cleanup_client_vms struct client_vms vms = {0};
	uint64_t start_ns = io_now_ns();
	struct err e = {0};

	(void)state;
	peer.answer = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n";
	peer.answer_len = strlen(peer.answer);
	peer.hang = true;
	assert_int_equal(eventfd_write(cancel, 1), 0);
	client_cancel_fd(c, cancel);
	assert_int_equal(client_list(c, NULL, &vms, NULL, &e), -ECANCELED);
	assert_true(io_now_ns() - start_ns < 5000000000u);
	assert_int_equal(err_exit_code(e.code), EXIT_CANCELLED);
}

static void
no_daemon_is_a_refused_connection(void **state)
{
	struct client *c = NULL;
	struct err e = {0};

	(void)state;
	assert_int_equal(client_open("/tmp/pando-nobody-here", 0, &c, &e), -ECONNREFUSED);
	assert_null(c);
	assert_non_null(strstr(e.msg, "/tmp/pando-nobody-here/pandod.sock"));
}

static void
deleted_ids_are_returned(void **state)
{
	cleanup_client struct client *c = open_client();
	char **ids = NULL;

	(void)state;
	will_answer("200 OK", "application/json", "{\"deleted\":[\"a\",\"b\"]}");
	assert_int_equal(client_delete(c, "x", true, &ids, NULL), 0);
	assert_non_null(strstr(peer.request, "DELETE /v1/vms/x?recursive=1 "));
	assert_string_equal(ids[0], "a");
	assert_string_equal(ids[1], "b");
	assert_null(ids[2]);
	client_ids_free(ids);
}

#define WITH_PEER(f) cmocka_unit_test_setup_teardown(f, start_peer, stop_peer)

/* As one that is killed does. */
static void
a_question_that_nobody_heard_is_asked_once_more(void **state)
{
	cleanup_client struct client *c = open_client();
	struct client_vms vms = {0};
	struct client_vm vm = {0};
	struct err e = {0};

	(void)state;
	will_answer("200 OK", "application/json", "{\"vms\":[" VM_A "]}");
	peer.silent = 1;
	assert_int_equal(client_list(c, NULL, &vms, NULL, &e), 0);
	assert_int_equal(vms.n, 1);
	assert_int_equal(atomic_load(&peer.requests), 2);
	client_vms_done(&vms);
	/* Not for ever. */
	peer.silent = 9;
	assert_int_equal(client_list(c, NULL, &vms, NULL, &e), -EPIPE);
	assert_non_null(strstr(e.msg, "went away"));
	assert_int_equal(atomic_load(&peer.requests), 4);
	/* What changes something is not done twice. */
	peer.silent = 1;
	assert_int_equal(client_pause(c, "a", &vm, NULL, &e), -EPIPE);
	assert_int_equal(atomic_load(&peer.requests), 5);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_PEER(a_vm_is_read_with_all_its_members),
		WITH_PEER(usage_labels_and_the_new_calls_are_spoken),
		WITH_PEER(an_error_has_the_daemons_sentence_and_code),
		cmocka_unit_test(names_are_encoded_and_cannot_leave_their_folder),
		WITH_PEER(run_sends_only_what_was_said),
		WITH_PEER(progress_lines_come_before_the_result),
		WITH_PEER(an_error_at_the_end_of_a_stream_is_an_error),
		WITH_PEER(nonsense_is_refused_with_a_sentence),
		WITH_PEER(a_status_without_a_sentence_is_still_an_error),
		WITH_PEER(a_daemon_that_goes_away_is_a_broken_pipe),
		WITH_PEER(what_is_no_http_is_refused),
		WITH_PEER(cancelling_ends_a_call_that_waits),
		cmocka_unit_test(no_daemon_is_a_refused_connection),
		WITH_PEER(deleted_ids_are_returned),
		WITH_PEER(a_question_that_nobody_heard_is_asked_once_more),
	};

	signal(SIGPIPE, SIG_IGN); /* the peer writes to clients that have hung up */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
