#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/json_bytes.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_report.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/store/store_hash.h"

extern const struct verb verb_reports;

#define VMS_MAX 64
#define AGAIN_MS 1000 /* pandod's Retry-After */

struct asked {
	const char *vms[VMS_MAX];
	unsigned n_vms;
	uint64_t after;
	uint64_t next[VMS_MAX + 1]; /* of each word, or of all */
	const char *fetch;	    /* NULL: no files */
	bool follow, json, quiet;
	struct client *c;	 /* borrowed */
	struct out_table *table; /* owned; NULL: lines as they come */
	uint64_t dropped;	 /* of all VMs, as far as it was said */
	unsigned failed;	 /* files that could not be had */
};

/*
 * Files.
 */

/* A guest's name for a file, as the last part of a path of ours. */
static void
own_name(char *dst, size_t cap, unsigned number, const char *name)
{
	const char *slash = strrchr(name, '/');
	size_t n = (size_t)snprintf(dst, cap, "%u-", number);

	for (name = slash ? slash + 1 : name; *name && n + 1 < cap && n < 200; name++)
		dst[n++] = (unsigned char)*name > ' ' && *name != 0x7f ? *name : '_';
	dst[n] = 0;
}

static int
too_much(void *ctx, const struct agent_copy_stats *s)
{
	(void)ctx;
	return s->bytes > AGENT_REPORT_FILE_BYTES_MAX ? -EFBIG : 0;
}

static int
hash_file(const char *path, char hex[static STORE_HEX + 1], uint64_t *ret_bytes,
	struct err *e)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct store_hash h;
	struct stat st;
	void *p = NULL;

	if (fd < 0 || fstat(fd, &st))
		return err_sys(e, -errno, "%.300s", path);
	if (!S_ISREG(st.st_mode))
		return err_set(
			e, -EPROTO, "%.300s: the guest gave no regular file", path);
	if (st.st_size) {
		p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
		if (p == MAP_FAILED)
			return err_sys(e, -errno, "%.300s", path);
	}
	hash_of(HASH_PLAIN, p ? p : "", (size_t)st.st_size, &h);
	if (p)
		munmap(p, (size_t)st.st_size);
	hash_to_hex(&h, hex);
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

/* One file to <fetch>/<vm>/<report>/<n>-<name>; what was made of it into o. */
static int
fetch_file(const struct asked *q, const struct client_vm *vm, const char *folder,
	unsigned number, const char *name, const char *guest_path, struct json_out *o,
	struct err *e)
{
	char own[256], path[4096], hex[STORE_HEX + 1];
	struct agent_copy_stats stats;
	uint64_t bytes = 0;
	int r;

	(void)q;
	own_name(own, sizeof(own), number, name);
	if (snprintf(path, sizeof(path), "%s/%s", folder, own) >= (int)sizeof(path))
		return err_set(e, -ENAMETOOLONG, "%.100s is too long", folder);
	/* What an earlier call left; a copy would go into a folder of that name. */
	r = io_remove_tree(path, e);
	if (r == 0)
		r = agent_get(
			vm->agent_socket, guest_path, path, too_much, NULL, &stats, e);
	if (r == -EFBIG)
		err_set(e, r, "\"%.200s\" has more than 512 MiB by now", name);
	if (r == 0)
		r = hash_file(path, hex, &bytes, e);
	if (r < 0) {
		io_remove_tree(path, NULL);
		return r;
	}
	json_out_str(o, "fetched", path);
	json_out_u64(o, "fetched_bytes", bytes);
	json_out_str(o, "blake2b", hex);
	if (!q->json && !q->quiet)
		printf("%s  %s\n", hex, path);
	return 0;
}

static int
fetch_folder(const struct asked *q, const char *vm, const char *id, char *dst, size_t cap,
	struct err *e)
{
	if (snprintf(dst, cap, "%s/%s/%.8s", q->fetch, vm, id) >= (int)cap)
		return err_set(e, -ENAMETOOLONG, "%.100s is too long", q->fetch);
	return io_mkdir_p(dst, 0755, e);
}

/* The report's files, copied into o with what was fetched. */
static void
fetch_files(struct asked *q, const struct json *j, int report, const char *vm_id,
	const char *id, struct json_out *o)
{
	int files = json_get(j, report, "files"), it = 0, key, file, r = 0;
	cleanup_client_vm struct client_vm vm = {0};
	unsigned number = 0;
	char folder[3800];
	struct err e = {0};

	if (files < 0 || !json_size(j, files))
		return;
	r = fetch_folder(q, vm_id, id, folder, sizeof(folder), &e);
	if (r == 0)
		r = client_get(q->c, vm_id, &vm, NULL, &e);
	if (r == 0)
		r = pick_reachable(&vm, &e);
	json_out_array(o, "files");
	while (json_next(j, files, &it, &key, &file)) {
		cleanup_free char *name = NULL, *path = NULL;
		int one = r;

		if (json_bytes_dup(j, json_get(j, file, "name"), &name) ||
			json_bytes_dup(j, json_get(j, file, "path"), &path))
			continue;
		json_out_object(o, NULL);
		json_out_bytes(o, "name", name);
		if (!one)
			one = fetch_file(q, &vm, folder, number, name, path, o, &e);
		if (one) {
			char plain[300];

			json_out_str(o, "error", e.msg);
			out_complain(
				"%s: %s", out_plain(plain, sizeof(plain), name), e.msg);
			q->failed++;
		}
		json_out_end_object(o);
		number++;
	}
	json_out_end_array(o);
}

/*
 * Reports.
 */

static void
row_cells(struct asked *q, const struct json *j, int row, const char *raw_age)
{
	int report = json_get(j, row, "report"), files = json_get(j, report, "files");
	char text[5000], plain[20000];
	double score;
	uint64_t seq = 0;

	(void)json_u64(j, json_get(j, row, "seq"), &seq);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)seq);
	out_table_cell(q->table, text);
	if (json_str(j, json_get(j, row, "alias"), text, sizeof(text)))
		(void)json_str(j, json_get(j, row, "vm"), text, sizeof(text));
	out_table_cell(q->table, out_plain(plain, sizeof(plain), text));
	if (json_str(j, json_get(j, report, "status"), text, sizeof(text)))
		snprintf(text, sizeof(text), "-");
	out_table_cell(q->table, out_plain(plain, sizeof(plain), text));
	if (json_f64(j, json_get(j, report, "score"), &score))
		snprintf(text, sizeof(text), "-");
	else
		snprintf(text, sizeof(text), "%g", score);
	out_table_cell(q->table, text);
	out_table_cell(q->table, raw_age);
	snprintf(text, sizeof(text), "%d", files < 0 ? 0 : json_size(j, files));
	out_table_cell(q->table, text);
	if (json_str(j, json_get(j, report, "message"), text, sizeof(text)))
		text[0] = 0;
	out_table_cell(q->table, out_plain(plain, sizeof(plain), text));
}

static int
show_row(struct asked *q, const struct json *j, int row, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	char vm[16], id[40], age[32];
	uint64_t time_ms = 0, now_ms = io_wall_ms();
	size_t len;
	const char *raw;

	if (json_str(j, json_get(j, row, "vm"), vm, sizeof(vm)) ||
		json_str(j, json_get(j, row, "id"), id, sizeof(id)))
		return err_set(e, -EPROTO, "pandod gave a report without a VM");
	(void)json_u64(j, json_get(j, row, "time_ms"), &time_ms);
	raw = json_raw(j, row, &len);
	if (q->quiet)
		puts(id);
	if (!q->quiet && !q->json)
		row_cells(q, j, row,
			out_age(age, sizeof(age),
				now_ms > time_ms ? now_ms - time_ms : 0));
	json_out_object(&o, NULL);
	if (q->fetch)
		fetch_files(q, j, json_get(j, row, "report"), vm, id, &o);
	json_out_end_object(&o);
	if (q->json && !q->fetch)
		printf("%.*s\n", (int)len, raw);
	else if (q->json) /* the row, and the files beside it */
		printf("%.*s,\"fetched\":%s}\n", (int)len - 1, raw, o.buf ? o.buf : "{}");
	return fflush(stdout) ? err_set(e, -EPIPE, "nobody reads any more") : 0;
}

static struct out_table *
new_table(void)
{
	static const char *const heads[] = {
		"SEQ", "VM", "STATUS", "SCORE", "AGE", "FILES", "MESSAGE"};

	return out_table_new(heads, sizeof(heads) / sizeof(heads[0]));
}

/* Who said more than is kept; again when it is more. */
static void
tell_dropped(struct asked *q, const struct json *j)
{
	int dropped = json_get(j, 0, "dropped"), it = 0, key, row;
	uint64_t all = 0, n, limit;
	char name[80], plain[400];

	if (dropped < 0)
		return;
	while (json_next(j, dropped, &it, &key, &row))
		if (!json_u64(j, json_get(j, row, "reports"), &n))
			all += n;
	if (all <= q->dropped)
		return;
	q->dropped = all;
	it = 0;
	while (json_next(j, dropped, &it, &key, &row)) {
		if (json_u64(j, json_get(j, row, "reports"), &n) ||
			json_u64(j, json_get(j, row, "limit_bytes"), &limit) ||
			(json_str(j, json_get(j, row, "alias"), name, sizeof(name)) &&
				json_str(j, json_get(j, row, "vm"), name, sizeof(name))))
			continue;
		out_note(
			"vm \"%s\": its reports take more than %llu MiB; its %llu oldest were dropped",
			out_plain(plain, sizeof(plain), name),
			(unsigned long long)limit >> 20, (unsigned long long)n);
	}
}

static int
ask(struct asked *q, unsigned which, bool wait, struct client_reply *reply, struct err *e)
{
	char suffix[80], path[512];
	int r = 0;

	snprintf(suffix, sizeof(suffix), "/reports?after=%llu%s",
		(unsigned long long)q->next[which], wait ? "&wait=1" : "");
	if (which < q->n_vms)
		r = client_vm_path(path, sizeof(path), q->vms[which], suffix, e);
	else
		snprintf(path, sizeof(path), "/v1%s", suffix);
	return r < 0 ? r : client_call(q->c, "GET", path, NULL, reply, e);
}

/* All there is now of one VM, or of all of them; wait: as soon as there is some. */
static int
show(struct asked *q, unsigned which, bool wait, unsigned *ret_n, struct err *e)
{
	bool more = true;

	while (more) {
		cleanup_client_reply struct client_reply reply = {0};
		int it = 0, key, row, reports, r = ask(q, which, wait, &reply, e);

		if (r < 0)
			return r;
		wait = false;
		tell_dropped(q, reply.json);
		reports = json_get(reply.json, 0, "reports");
		while (reports >= 0 && json_next(reply.json, reports, &it, &key, &row)) {
			r = show_row(q, reply.json, row, e);
			if (r < 0)
				return r;
			++*ret_n;
		}
		more = false;
		(void)json_bool(reply.json, json_get(reply.json, 0, "more"), &more);
		if (json_u64(
			    reply.json, json_get(reply.json, 0, "next"), &q->next[which]))
			return err_set(e, -EPROTO, "pandod does not say where to go on");
	}
	return 0;
}

/* pandod answers when a VM has reported. Of several VMs that are named, any VM's wakes us. */
static int
wait_for_any(struct asked *q, struct err *e)
{
	cleanup_client_reply struct client_reply reply = {0};
	int r = ask(q, q->n_vms, true, &reply, e);

	if (r == 0 &&
		json_u64(reply.json, json_get(reply.json, 0, "next"), &q->next[q->n_vms]))
		r = err_set(e, -EPROTO, "pandod does not say where to go on");
	return r;
}

static int
show_all(struct asked *q, bool wait, struct err *e)
{
	unsigned last = q->n_vms ? q->n_vms : 1, n = 0;
	int r = 0;

	if (wait && q->n_vms > 1) {
		r = wait_for_any(q, e);
		if (r < 0)
			return r;
		wait = false;
	}

	if (!q->json && !q->quiet && !(q->table = new_table()))
		return err_set(e, -ENOMEM, "out of memory");
	for (unsigned i = 0; r == 0 && i < last; i++)
		r = show(q, i, wait, &n, e);
	if (q->table && (n || !q->follow))
		out_table_print(q->table, stdout);
	out_table_free(q->table);
	q->table = NULL;
	return r;
}

/* pandod has no place for one more that waits, or no connection, at the moment: whoever
 * follows asks again, for others come and go. */
static int
come_again(int r, struct err *e)
{
	struct pollfd p = {.fd = pick_cancel_fd(), .events = POLLIN};

	if (r != -EAGAIN && r != -EBUSY)
		return r;
	return poll(&p, p.fd >= 0, AGAIN_MS) > 0 ? err_set(e, -ECANCELED, "cancelled")
						 : 0;
}

static const struct opt options[] = {
	{'f', "follow", NULL, "go on with reports as they come", COMPLETE_NOTHING},
	{'a', "after", "SEQ", "only those after that one", COMPLETE_NOTHING},
	{'o', "fetch", "FOLDER", "copy their files to FOLDER/<vm>/<report>/",
		COMPLETE_FOLDER},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
parse(struct opt_scan *s, struct asked *q, struct err *e)
{
	int key;

	while ((key = opt_next(s, e)) != OPT_END) {
		switch (key) {
		case 'f':
			q->follow = true;
			break;
		case 'a':
			if (opt_u64(s->arg, "--after", 0, INT64_MAX, &q->after, e) < 0)
				return OPT_ERROR;
			break;
		case 'o':
			q->fetch = s->arg;
			break;
		case OPT_WORD:
			if (q->n_vms == VMS_MAX) {
				err_set(e, -E2BIG, "at most %d VMs", VMS_MAX);
				return OPT_ERROR;
			}
			q->vms[q->n_vms++] = s->arg;
			break;
		default:
			return key;
		}
	}
	return OPT_END;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_reports, argc, argv);
	cleanup_client struct client *c = NULL;
	struct asked q = {0};
	struct err e = {0};
	int key = parse(&s, &q, &e), r = 0;

	if (key != OPT_END)
		return opt_leave(&s, key, &e);
	q.json = s.json;
	q.quiet = s.quiet;
	for (unsigned i = 0; i <= q.n_vms; i++)
		q.next[i] = q.after;
	if (hash_init() < 0 || pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	q.c = c;
	client_cancel_fd(c, pick_cancel_fd());
	for (bool wait = false; r == 0; wait = true) {
		r = show_all(&q, wait, &e);
		if (!q.follow)
			break;
		/* Each wait is over after some time, so this is seen then. */
		if (out_reader_left())
			return 128 + SIGPIPE;
		r = come_again(r, &e);
	}
	/* Following has no other end than being told to stop. */
	if (r < 0 && !(q.follow && r == -ECANCELED))
		return out_fail(&e);
	return q.failed ? EXIT_FAILED : EXIT_OK;
}

const struct verb verb_reports = {
	.name = "reports",
	.summary = "What the VMs say of their work (pando-agent report)",
	.run = run,
	.usage = "[--follow] [--after SEQ] [--fetch FOLDER] [vm…]",
	.options = options,
	.text = "In the guest: pando-agent report --status done --score 0.9 --file out.txt --json '{\"tests\":12}'\n"
		"Reports are numbered in the order of their coming, and stay when their VM is gone, 16 MiB of each VM; --format json prints one a\n"
		"line. Their files stay in the guest until --fetch copies them, each with its BLAKE2b (as b2sum -l 256).",
	.words = COMPLETE_VM,
};
