#include "host/agent/agent_report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/text.h"
#include "common/wire/json_bytes.h"
#include "common/wire/json_line.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_link.h"
#include "host/agent/agent_rpc.h"

#define FOLDER "/var/lib/pando/reports"
#define LIST_MAX (8u << 20)
#define TOKENS_MAX 2048
#define NS_PER_MS UINT64_C(1000000)
#define PARTS_MAX (1024u * 1024u)
#define MESSAGE_MAX 4096
#define PATH_BYTES_MAX 8192
/* What the answer to a watch may be long, its end included. */
#define WATCH_BYTES_MAX 65536

static int
bad(struct err *e, const char *what)
{
	return err_set(e, -EPROTO, "a guest's report: %s", what);
}

/* Everything but "json", which may have any number of tokens, as one small text. */
static int
small_parts(struct rpc_span report, struct json_out *o)
{
	static const char *const names[] = {"id", "time_ms", "vm", "generation", "status",
		"score", "message", "files"};
	struct rpc_span v;

	json_out_object(o, NULL);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (json_line_member(report, names[i], &v))
			json_out_raw(o, names[i], v.at, v.len);
	json_out_end_object(o);
	return o->error;
}

static int
hex_member(const struct json *j, const char *name, size_t len, char *dst, struct err *e)
{
	int tok = json_get(j, 0, name);

	dst[0] = 0;
	if (tok < 0 || json_type(j, tok) == JSON_NULL)
		return 0;
	if (json_str(j, tok, dst, len + 1) || strlen(dst) != len ||
		!text_is_hex(dst, len))
		return bad(e, "an id that is none");
	return 0;
}

static int
copy_file(const struct json *j, int file, struct json_out *o, struct err *e)
{
	cleanup_free char *name = NULL, *path = NULL;
	uint64_t bytes;

	if (json_bytes_dup(j, json_get(j, file, "name"), &name) ||
		json_bytes_dup(j, json_get(j, file, "path"), &path) ||
		json_u64(j, json_get(j, file, "bytes"), &bytes))
		return bad(e, "a file that is none");
	if (!*name || *path != '/' || strlen(name) > PATH_BYTES_MAX ||
		strlen(path) > PATH_BYTES_MAX)
		return bad(e, "a file without a path");
	if (text_path_goes_up(name) || text_path_goes_up(path))
		return bad(e, "a file whose name leads upwards (\"..\")");
	if (bytes > AGENT_REPORT_FILE_BYTES_MAX)
		return bad(e, "a file of more than 512 MiB");
	json_out_object(o, NULL);
	json_out_bytes(o, "name", name);
	json_out_bytes(o, "path", path);
	json_out_u64(o, "bytes", bytes);
	json_out_end_object(o);
	return 0;
}

static int
copy_parts(const struct json *j, struct json_out *o, struct err *e)
{
	int tok = json_get(j, 0, "status"), it = 0, key, file;
	char status[16], message[MESSAGE_MAX + 1];
	double score;

	if (json_str(j, tok, status, sizeof(status)) ||
		(strcmp(status, "done") != 0 && strcmp(status, "failed") != 0 &&
			strcmp(status, "blocked") != 0))
		return bad(e, "a status that is none");
	json_out_str(o, "status", status);
	tok = json_get(j, 0, "score");
	if (tok >= 0) {
		if (json_f64(j, tok, &score))
			return bad(e, "a score that is no number");
		json_out_f64(o, "score", score);
	}
	tok = json_get(j, 0, "message");
	if (tok >= 0) {
		if (json_str(j, tok, message, sizeof(message)))
			return bad(e, "a message that is none");
		json_out_str(o, "message", message);
	}
	tok = json_get(j, 0, "files");
	if (tok < 0 || json_type(j, tok) != JSON_ARRAY ||
		json_size(j, tok) > AGENT_REPORT_FILES_MAX)
		return bad(e, "no list of files, or more than 64");
	json_out_array(o, "files");
	while (json_next(j, tok, &it, &key, &file)) {
		int r = copy_file(j, file, o, e);

		if (r < 0)
			return r;
	}
	json_out_end_array(o);
	return 0;
}

int
agent_report_read(const char *line, size_t len, struct agent_report *ret, struct err *e)
{
	struct rpc_span report = json_line_trim(line, len), v;
	cleanup_json_out struct json_out parts = {0}, o = {0};
	cleanup_json struct json *j = NULL;
	struct agent_report r = {0};
	int code;

	if (len > AGENT_REPORT_JSON_MAX + PARTS_MAX || !report.len || *report.at != '{' ||
		json_line_check(report.at, report.len, NULL))
		return bad(e, "no JSON object, or too large");
	code = small_parts(report, &parts);
	if (code)
		return err_sys(e, code, "a report");
	if (parts.len > PARTS_MAX)
		return bad(e, "too large");
	code = json_parse(parts.buf, parts.len, TOKENS_MAX, &j, e);
	if (code)
		return err_wrap(e, code, "a guest's report");
	code = hex_member(j, "id", REPORT_ID_LEN, r.id, e);
	if (!code && !r.id[0])
		code = bad(e, "no id");
	if (!code)
		code = hex_member(j, "vm", 12, r.vm, e);
	if (!code)
		code = hex_member(j, "generation", 32, r.generation, e);
	if (!code && json_u64(j, json_get(j, 0, "time_ms"), &r.time_ms))
		code = bad(e, "no time");
	if (code)
		return code;
	json_out_object(&o, NULL);
	code = copy_parts(j, &o, e);
	if (code)
		return code;
	if (json_line_member(report, "json", &v)) {
		if (v.len > AGENT_REPORT_JSON_MAX)
			return bad(e, "more than 1 MiB of JSON");
		/* Blanks between values may be line feeds; a row is one line. */
		if (memchr(v.at, '\n', v.len) || memchr(v.at, '\r', v.len))
			return bad(e, "more than one line");
		json_out_raw(&o, "json", v.at, v.len);
	}
	json_out_end_object(&o);
	if (o.error)
		return err_sys(e, o.error, "a report");
	r.json = TAKE_PTR(o.buf);
	*ret = r;
	return 0;
}

void
agent_report_done(struct agent_report *r)
{
	free(r->json);
	r->json = NULL;
}

void
agent_reports_free(struct agent_report *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		agent_report_done(&v[i]);
	free(v);
}

/* At least 1: 0 would be no limit. */
static int
left_ms(uint64_t deadline_ns)
{
	uint64_t now = io_now_ns();

	return now < deadline_ns ? (int)((deadline_ns - now) / NS_PER_MS) + 1 : 1;
}

static const char *
root_word(char *dst, size_t cap, const char *root)
{
	if (!root)
		return NULL;
	snprintf(dst, cap, "--root=%s", root);
	return dst;
}

int
agent_reports_list(const char *socket_path, const char *root, int timeout_ms,
	struct agent_report **ret, size_t *ret_n, size_t *ret_bad, struct err *e)
{
	char folder[512], option[512];
	const char *words[] = {
		"report", "--list", root_word(option, sizeof(option), root), NULL};
	cleanup_free char *text = NULL;
	struct agent_entry *entries = NULL;
	struct agent_report *v;
	uint64_t deadline_ns = io_now_ns() + (uint64_t)timeout_ms * NS_PER_MS;
	size_t n_entries = 0, n = 0, wrong = 0;
	int r;

	snprintf(folder, sizeof(folder), "%s" FOLDER, root ? root : "");
	r = agent_list(socket_path, folder, timeout_ms, &entries, &n_entries, e);
	if (r == 0)
		agent_entries_free(entries, n_entries);
	*ret = NULL;
	*ret_n = *ret_bad = 0;
	if (r == -ENOENT || (r == 0 && !n_entries))
		return 0;
	if (r == 0)
		r = agent_rpc_call(socket_path, words, NULL, 0, LIST_MAX,
			left_ms(deadline_ns), -1, &text, e);
	if (r < 0)
		return r;
	v = calloc(AGENT_REPORTS_MAX, sizeof(*v));
	if (!v)
		return err_sys(e, -ENOMEM, "reports");
	for (const char *at = text; *at && n < AGENT_REPORTS_MAX;) {
		size_t len = strcspn(at, "\n");

		if (agent_report_read(at, len, &v[n], NULL))
			wrong++;
		else
			n++;
		at += len + (at[len] ? 1 : 0);
	}
	*ret = v;
	*ret_n = n;
	*ret_bad = wrong;
	return 0;
}

int
agent_reports_ack(const char *socket_path, const char *root, int timeout_ms,
	const struct agent_report *v, size_t n, struct err *e)
{
	uint64_t deadline_ns = io_now_ns() + (uint64_t)timeout_ms * NS_PER_MS;
	char option[512];
	int r = 0;

	/* As many as the words of a call are. */
	for (size_t i = 0; i < n && r == 0;) {
		const char *words[20] = {"report", "--ack"};
		size_t w = 2;
		cleanup_free char *text = NULL;

		if (root)
			words[w++] = root_word(option, sizeof(option), root);
		while (i < n && w < 19)
			words[w++] = v[i++].id;
		r = agent_rpc_call(socket_path, words, NULL, 0, 4096,
			left_ms(deadline_ns), -1, &text, e);
	}
	return r;
}

struct agent_report_watch {
	struct agent_link link;
	size_t said; /* bytes of whole frames */
};

int
agent_reports_watch(const char *socket_path, const char *root, int timeout_ms,
	struct agent_report_watch **ret, struct err *e)
{
	struct agent_report_watch *w = malloc(sizeof(*w));
	cleanup_json_out struct json_out o = {0};
	char option[512];
	int r;

	if (!w)
		return err_sys(e, -ENOMEM, "reports");
	*w = (struct agent_report_watch){.link = AGENT_LINK_INIT};
	json_out_object(&o, NULL);
	json_out_str(&o, "op", "exec");
	json_out_array(&o, "argv");
	json_out_str(&o, NULL, AGENT_ITSELF);
	json_out_str(&o, NULL, "report");
	json_out_str(&o, NULL, "--wait");
	if (root)
		json_out_str(&o, NULL, root_word(option, sizeof(option), root));
	json_out_end_array(&o);
	json_out_end_object(&o);
	r = agent_link_open(&w->link, socket_path, &o,
		io_now_ns() + (uint64_t)timeout_ms * 1000000, NULL, NULL, e);
	if (r < 0) {
		agent_report_watch_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

void
agent_report_watch_free(struct agent_report_watch *w)
{
	if (w)
		agent_link_done(&w->link);
	free(w);
}

int
agent_report_watch_fd(const struct agent_report_watch *w)
{
	return w->link.fd;
}

int
agent_report_watch_read(struct agent_report_watch *w, struct err *e)
{
	struct agent_frame f;
	struct agent_exit x;
	int r = agent_link_fill(&w->link, e);

	while (r == 0 && (r = agent_link_frame(&w->link, &f, e)) > 0) {
		r = 0;
		w->said += sizeof(struct agent_frame_hdr) + f.len;
		if (w->said > WATCH_BYTES_MAX)
			return err_set(e, -EPROTO,
				"the guest's agent says without end what nobody asked");
		if (f.type != AGENT_EXIT)
			continue; /* what it says is not for us */
		memcpy(&x, f.payload, sizeof(x));
		if (x.kind == AGENT_EXITED && x.value == 0)
			return 1;
		return x.kind == AGENT_EXITED && x.value == EXIT_TIMED_OUT
			       ? -ETIMEDOUT
			       : err_set(e, -EOPNOTSUPP,
					 "the guest's agent does not tell of its reports");
	}
	if (r == 0 && w->link.eof)
		r = err_set(e, -EPIPE, "the guest's agent is gone");
	return r;
}
