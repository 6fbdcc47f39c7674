#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_diff;

static void
print(const struct client_reply *reply, const char *what, const char *unit)
{
	uint64_t pages = 0;
	char size[32];

	(void)json_u64(reply->json,
		json_get(reply->json, json_get(reply->json, 0, what), "pages"), &pages);
	printf("%-8s %llu %s%s, %s\n", what, (unsigned long long)pages, unit,
		pages == 1 ? "" : "s", out_bytes(size, sizeof(size), pages * 4096));
}

/* "content, mode"; size and mtime go without saying where the content differs. */
static void
what_changed(char *dst, size_t cap, const struct json *j, int change)
{
	int fields = json_get(j, change, "fields"),
	    n = fields < 0 ? 0 : json_size(j, fields);
	bool content = false;
	size_t len = 0;
	char name[16];

	dst[0] = '\0';
	for (int i = 0; i < n; i++) {
		if (json_str(j, json_at(j, fields, i), name, sizeof(name)) < 0)
			continue;
		content |= strcmp(name, "content") == 0;
		if ((content &&
			    (strcmp(name, "size") == 0 || strcmp(name, "mtime") == 0)) ||
			len + 20 > cap)
			continue;
		len += (size_t)snprintf(
			dst + len, cap - len, "%s%s", len ? ", " : "  ", name);
	}
}

/* "+ /path", "- /path/", "~ /path  content, mode" */
static void
print_change(const struct json *j, int change)
{
	cleanup_free char *path = NULL;
	char what[16] = "", kind[16] = "", fields[96], size[32] = "", plain[8192];
	uint64_t bytes;

	if (json_str_dup(j, json_get(j, change, "path"), &path) < 0)
		return;
	(void)json_str(j, json_get(j, change, "what"), what, sizeof(what));
	(void)json_str(j, json_get(j, change, "kind"), kind, sizeof(kind));
	what_changed(fields, sizeof(fields), j, change);
	if (strcmp(what, "added") == 0 && strcmp(kind, "file") == 0 &&
		json_u64(j, json_get(j, change, "size_b"), &bytes) == 0)
		out_bytes(size, sizeof(size), bytes);
	printf("%c %s%s%s%s%s\n",
		strcmp(what, "added") == 0     ? '+'
		: strcmp(what, "removed") == 0 ? '-'
					       : '~',
		out_plain(plain, sizeof(plain), path),
		strcmp(kind, "folder") == 0 ? "/" : "", fields, size[0] ? "  " : "",
		size);
}

static void
print_files(const struct json *j)
{
	int files = json_get(j, 0, "files"), changes = json_get(j, files, "changes");
	cleanup_free char *note = NULL;
	uint64_t n[3] = {0, 0, 0};
	bool complete = false;

	if (files < 0)
		return;
	if (json_str_dup(j, json_get(j, files, "note"), &note) == 0) {
		out_note("files are not compared: %s", note);
		return;
	}
	(void)json_u64(j, json_get(j, files, "added"), &n[0]);
	(void)json_u64(j, json_get(j, files, "removed"), &n[1]);
	(void)json_u64(j, json_get(j, files, "changed"), &n[2]);
	printf("%-8s %llu added, %llu removed, %llu changed\n", "files",
		(unsigned long long)n[0], (unsigned long long)n[1],
		(unsigned long long)n[2]);
	for (int i = 0; i < json_size(j, changes); i++)
		print_change(j, json_at(j, changes, i));
	(void)json_bool(j, json_get(j, files, "complete"), &complete);
	if (!complete)
		out_note("there are more than are listed");
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_diff, argc, argv);
	cleanup_client_point struct client_point b = {0};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	const char *words[2];
	char path[1024], query[96];
	struct err e = {0};
	size_t n = 0;
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key != OPT_WORD)
			return opt_leave(&s, key, &e);
		if (n < 2)
			words[n] = s.arg;
		n++;
	}
	if (n != 2) {
		err_set(&e, -EINVAL, "it is: pando diff <commit> <commit>");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_pandod(&c, &e) < 0 || client_point(c, words[1], &b, NULL, &e) < 0)
		return out_fail(&e);
	snprintf(query, sizeof(query), "/diff?with=%s&files=1", b.id);
	if (client_path(path, sizeof(path), "commits", words[0], query, &e) < 0 ||
		client_call(c, "GET", path, NULL, &reply, &e) < 0)
		return out_fail(&e);
	if (s.json) {
		puts(reply.text);
		return EXIT_OK;
	}
	print(&reply, "memory", "page");
	print(&reply, "disk", "block");
	print_files(reply.json);
	return EXIT_OK;
}

const struct verb verb_diff = {
	.name = "diff",
	.summary = "What differs between two commits: memory, disk, files",
	.run = run,
	.usage = "<commit> <commit>",
	.text = "Pages and blocks have 4 KiB. --format json has which: [first, how many], at most 4096 ranges each.\n"
		"Files are those on the disks, where these have an ext2, ext3 or ext4 file system: + added, - removed,\n"
		"~ changed, and in what. What a guest had not written to its disk yet is not there: `sync` in it first.",
	.words = COMPLETE_COMMIT,
};
