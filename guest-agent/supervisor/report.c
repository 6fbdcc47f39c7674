#include "guest-agent/supervisor/report.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/text.h"
#include "common/wire/json_bytes.h"
#include "common/wire/json_line.h"
#include "guest-agent/supervisor/rpc_place.h"

#define FOLDER "/var/lib/pando/reports"
#define ID_LEN 32
/* "<milliseconds>-<id>.json": in the order of their making. */
#define FILE_NAME "%014" PRIu64 "-%s.json"
#define FILE_NAME_LEN (14 + 1 + ID_LEN + 5)

struct report {
	const char *status, *message, *json, *score;
	const char *files[REPORT_FILES_MAX];
	unsigned n_files;
	uint64_t bytes;
};

static int
complain(const struct err *e)
{
	fprintf(stderr, "pando-agent: %s\n", e->msg);
	return err_exit_code(e->code);
}

static int
check_score(const char *text, struct err *e)
{
	char *end;
	double v;

	errno = 0;
	v = strtod(text, &end);
	if (end == text || *end || !isfinite(v) || strchr(text, 'x') || strchr(text, 'X'))
		return err_set(e, -EINVAL, "--score \"%.60s\" is no number", text);
	return 0;
}

/* Its place in the machine, and what it is. */
static int
add_file(struct report *r, const char *name, struct json_out *o, struct err *e)
{
	char cwd[PATH_MAX], path[2 * PATH_MAX];
	struct stat st;

	if (!*name || strlen(name) > REPORT_NAME_MAX)
		return err_set(e, -EINVAL, "--file \"%.60s\": 1 to %d bytes", name,
			REPORT_NAME_MAX);
	if (text_path_goes_up(name))
		return err_set(e, -EINVAL,
			"--file \"%.200s\" leads upwards: name it without \"..\"", name);
	if (*name != '/' && !getcwd(cwd, sizeof(cwd)))
		return err_sys(e, -errno, "this folder");
	snprintf(path, sizeof(path), "%s%s%s", *name == '/' ? "" : cwd,
		*name == '/' ? "" : "/", name);
	if (stat(path, &st))
		return err_sys(e, -errno, "--file \"%.200s\"", name);
	if (!S_ISREG(st.st_mode))
		return err_set(e, -EINVAL, "--file \"%.200s\" is no regular file", name);
	r->bytes += (uint64_t)st.st_size;
	if ((uint64_t)st.st_size > REPORT_BYTES_MAX || r->bytes > REPORT_BYTES_MAX)
		return err_set(e, -EFBIG,
			"--file \"%.200s\" has %" PRIu64
			" bytes: the files of a report may have %u MiB in all",
			name, (uint64_t)st.st_size, REPORT_BYTES_MAX >> 20);
	json_out_object(o, NULL);
	json_out_bytes(o, "name", name);
	json_out_bytes(o, "path", path);
	json_out_u64(o, "bytes", (uint64_t)st.st_size);
	json_out_i64(o, "mtime_ns",
		(int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec);
	json_out_end_object(o);
	return 0;
}

static int
make_id(char id[static ID_LEN + 1])
{
	uint8_t raw[ID_LEN / 2];

	if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
		return -EIO;
	text_hex(id, raw, sizeof(raw));
	return 0;
}

/* A report's file name, and its id in it. */
static const char *
file_id(const char *name)
{
	return strlen(name) == FILE_NAME_LEN &&
			       strcmp(name + 15 + ID_LEN, ".json") == 0 && name[14] == '-'
		       ? name + 15
		       : NULL;
}

static int
only_reports(const struct dirent *de)
{
	return file_id(de->d_name) != NULL;
}

static int
folder(char path[static PATH_MAX], bool make, struct err *e)
{
	int r = rpc_path(path, FOLDER, e);

	return r || !make ? r : io_mkdir_p(path, 0700, e);
}

/* All that wait, the oldest first; the count. */
static int
waiting(const char *path, struct dirent ***ret, struct err *e)
{
	int n = scandir(path, ret, only_reports, alphasort);

	if (n >= 0)
		return n;
	*ret = NULL;
	return errno == ENOENT ? 0 : err_sys(e, -errno, "%.200s", path);
}

static void
waiting_free(struct dirent **v, int n)
{
	for (int i = 0; i < n; i++)
		free(v[i]);
	free(v);
}

static int
read_json(struct report *r, char **ret, struct err *e)
{
	size_t len;
	int n = 0;

	if (!r->json)
		return 0;
	if (*r->json == '@')
		n = io_read_file(r->json + 1, REPORT_JSON_MAX, ret, &len, e);
	else if (!(*ret = strdup(r->json)))
		n = err_sys(e, -ENOMEM, "--json");
	if (n == -EFBIG || (!n && strlen(*ret) > REPORT_JSON_MAX))
		return err_set(e, -E2BIG,
			"--json has more than %u KiB: put it into a file, and --file it",
			REPORT_JSON_MAX >> 10);
	if (n)
		return n;
	n = json_line_check(*ret, strlen(*ret), e);
	return n ? err_wrap(e, n, "--json") : 0;
}

static int
make(struct report *r, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	cleanup_free char *json = NULL;
	char path[PATH_MAX], file[PATH_MAX + 128], id[ID_LEN + 1];
	struct rpc_identity who;
	struct dirent **all;
	uint64_t now_ms = io_wall_ms();
	int n = read_json(r, &json, e);

	if (!n)
		n = folder(path, true, e);
	if (n)
		return n;
	n = waiting(path, &all, e);
	if (n < 0)
		return n;
	waiting_free(all, n);
	if (n >= REPORTS_WAITING_MAX)
		return err_set(e, -EAGAIN,
			"%d reports wait to be taken: the host does so with pando reports",
			n);
	rpc_identity_read(&who);
	if (make_id(id))
		return err_set(e, -EIO, "there are no random numbers");
	json_out_object(&o, NULL);
	json_out_str(&o, "id", id);
	json_out_u64(&o, "time_ms", now_ms);
	json_out_str(&o, "vm", who.vm[0] ? who.vm : NULL);
	json_out_str(&o, "generation", who.generation[0] ? who.generation : NULL);
	json_out_str(&o, "status", r->status ? r->status : "done");
	if (r->score)
		json_out_f64(&o, "score", strtod(r->score, NULL));
	if (r->message)
		json_out_str(&o, "message", r->message);
	json_out_array(&o, "files");
	for (unsigned i = 0; i < r->n_files; i++) {
		n = add_file(r, r->files[i], &o, e);
		if (n)
			return n;
	}
	json_out_end_array(&o);
	if (json) {
		struct rpc_span v = json_line_trim(json, strlen(json));

		/* One line: white space between values may be line feeds. */
		for (size_t i = 0; i < v.len; i++)
			if (json[v.at - json + (ptrdiff_t)i] == '\n' ||
				json[v.at - json + (ptrdiff_t)i] == '\r')
				json[v.at - json + (ptrdiff_t)i] = ' ';
		json_out_raw(&o, "json", v.at, v.len);
	}
	json_out_end_object(&o);
	if (o.error)
		return err_sys(e, o.error, "the report");
	snprintf(file, sizeof(file), "%s/" FILE_NAME, path, now_ms, id);
	n = io_write_file_atomic(file, o.buf, o.len, 0600, e);
	if (!n)
		puts(id);
	return n;
}

static int
list(struct err *e)
{
	char path[PATH_MAX];
	struct dirent **all;
	size_t said = 0;
	int n = folder(path, false, e), r = 0;

	if (n)
		return n;
	n = waiting(path, &all, e);
	if (n < 0)
		return n;
	for (int i = 0; i < n && !r; i++) {
		char file[PATH_MAX + 300];
		cleanup_free char *text = NULL;
		size_t len;

		snprintf(file, sizeof(file), "%s/%s", path, all[i]->d_name);
		/* Taken meanwhile, or a torn one of a power cut: passed over. */
		if (io_read_file(file, 2 * REPORT_JSON_MAX, &text, &len, NULL) ||
			json_line_check(text, len, NULL))
			continue;
		if (said && said + len > REPORT_LIST_MAX)
			break;
		said += len;
		puts(text);
	}
	waiting_free(all, n);
	return fflush(stdout) ? err_sys(e, -errno, "the list") : 0;
}

static int
count_waiting(const char *path, struct err *e)
{
	struct dirent **all;
	int n = waiting(path, &all, e);

	waiting_free(all, n);
	return n;
}

/* Until a report waits. -ETIMEDOUT without a word. */
static int
await(struct err *e)
{
	cleanup_close int notes = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	uint64_t now_ns = io_now_ns(),
		 end_ns = now_ns + REPORT_WAIT_MS * UINT64_C(1000000);
	struct pollfd p = {.fd = notes, .events = POLLIN};
	char path[PATH_MAX], buf[4096];
	int n = folder(path, true, e);

	if (n)
		return n;
	if (notes < 0 || inotify_add_watch(notes, path, IN_MOVED_TO | IN_CREATE) < 0)
		return err_sys(e, -errno, "watching %.200s", path);
	/* Looked at after the watch has begun: none comes unseen. */
	while ((n = count_waiting(path, e)) == 0) {
		if (now_ns >= end_ns)
			return -ETIMEDOUT;
		if (poll(&p, 1, (int)((end_ns - now_ns) / 1000000) + 1) > 0)
			while (read(notes, buf, sizeof(buf)) > 0)
				;
		now_ns = io_now_ns();
	}
	return n < 0 ? n : 0;
}

static int
acknowledge(char *const *ids, struct err *e)
{
	char path[PATH_MAX];
	struct dirent **all;
	int n = folder(path, false, e);

	if (n)
		return n;
	n = waiting(path, &all, e);
	for (int i = 0; i < n; i++)
		for (char *const *id = ids; *id; id++) {
			char file[PATH_MAX + 300];

			if (strlen(*id) != ID_LEN ||
				strncmp(file_id(all[i]->d_name), *id, ID_LEN) != 0)
				continue;
			snprintf(file, sizeof(file), "%s/%s", path, all[i]->d_name);
			if (unlink(file) && errno != ENOENT)
				err_sys(e, -errno, "%.200s", file);
		}
	waiting_free(all, n < 0 ? 0 : n);
	return n < 0 ? n : 0;
}

static int
usage(void)
{
	fputs("usage: pando-agent report [--status done|failed|blocked] [--score X] [--message TEXT]\n"
	      "                          [--file PATH]… [--json TEXT|@FILE]\n"
	      "       pando-agent report --list\n"
	      "       pando-agent report --ack ID…\n"
	      "       pando-agent report --wait\n",
		stderr);
	return EXIT_USAGE;
}

static int
take(struct report *r, int opt, const char *arg, struct err *e)
{
	switch (opt) {
	case 's':
		if (strcmp(arg, "done") != 0 && strcmp(arg, "failed") != 0 &&
			strcmp(arg, "blocked") != 0)
			return err_set(e, -EINVAL,
				"--status \"%.60s\": it is done, failed or blocked", arg);
		r->status = arg;
		return 0;
	case 'x':
		r->score = arg;
		return check_score(arg, e);
	case 'm':
		r->message = arg;
		return strlen(arg) > REPORT_MESSAGE_MAX
			       ? err_set(e, -E2BIG, "--message has more than %d bytes",
					 REPORT_MESSAGE_MAX)
			       : 0;
	case 'f':
		if (r->n_files == REPORT_FILES_MAX)
			return err_set(e, -E2BIG, "a report has at most %d files",
				REPORT_FILES_MAX);
		r->files[r->n_files++] = arg;
		return 0;
	default:
		r->json = arg;
		return 0;
	}
}

int
report_main(int argc, char **argv)
{
	static const struct option options[] = {
		{"status", required_argument, NULL, 's'},
		{"score", required_argument, NULL, 'x'},
		{"message", required_argument, NULL, 'm'},
		{"file", required_argument, NULL, 'f'},
		{"json", required_argument, NULL, 'j'},
		{"root", required_argument, NULL, 'r'},
		{"list", no_argument, NULL, 'l'},
		{"ack", no_argument, NULL, 'a'},
		{"wait", no_argument, NULL, 'w'},
		{0},
	};
	struct report r = {0};
	struct err e = {0};
	int opt, n = 0, other = 0;

	optind = 1;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == '?')
			return usage();
		if (opt == 'r')
			rpc_root_set(optarg);
		else if (opt == 'l' || opt == 'a' || opt == 'w')
			other = opt;
		else
			n = take(&r, opt, optarg, &e);
		if (n)
			return complain(&e);
	}
	if (other == 'a')
		n = acknowledge(argv + optind, &e);
	else if (optind < argc)
		return usage();
	else if (other == 'w')
		n = await(&e);
	else
		n = other ? list(&e) : make(&r, &e);
	if (n == -ETIMEDOUT && !e.code)
		return EXIT_TIMED_OUT;
	return n ? complain(&e) : EXIT_OK;
}
