#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/points.h"

extern const struct verb verb_commit;

#define TAGS_MAX 16
#define LABELS_MAX 32
#define WORDS_MAX 64

enum { OPT_TAG = 256, OPT_DRY, OPT_EXPIRE, OPT_KEEP, OPT_LIMIT };

static const struct opt options[] = {
	{'m', "message", "TEXT", "what it is", COMPLETE_NOTHING},
	{OPT_TAG, "tag", "NAME", "give it a name; may be given several times",
		COMPLETE_NOTHING},
	{'l', "label", "key=value", "label the commit; may be given several times",
		COMPLETE_NOTHING},
	{'r', "recursive", NULL, "delete: with all that descend from it",
		COMPLETE_NOTHING},
	{OPT_EXPIRE, "expire", "TIME", "`pando prune` may drop it after this time: 36h, 7d",
		COMPLETE_NOTHING},
	{OPT_KEEP, "keep-last", "N",
		"keep the N newest that are made so of this VM, and drop older ones",
		COMPLETE_NOTHING},
	{OPT_LIMIT, "limit", "N", "list: at most N commits", COMPLETE_NOTHING},
	{OPT_DRY, "dry-run", NULL, "delete: say what would go, and delete nothing",
		COMPLETE_NOTHING},
	OPT_BUSY,
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* What was asked for. */
struct asked {
	struct client_commit spec;
	const char *tags[TAGS_MAX], *labels[LABELS_MAX];
	const char *words[WORDS_MAX];
	size_t n_words;
	const char *sub; /* list, info, delete; NULL: a commit is to be made */
	uint64_t limit; /* of the list */
	bool recursive, dry;
};

static int
make(const struct asked *a, const struct opt_scan *s)
{
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	struct client_committed made = {0};
	struct out_progress progress;
	uint64_t start_ns;
	struct err e = {0};
	char size[32];
	int r;

	if (pick_open(a->n_words ? a->words[0] : NULL, &c, &vm, NULL, &e) < 0)
		return out_fail(&e);
	out_progress_start(&progress, s->quiet);
	client_on_progress(c, out_progress_say, &progress);
	client_cancel_fd(c, pick_cancel_fd());
	client_busy_timeout(c, s->has_busy, s->busy_timeout_ms);
	start_ns = io_now_ns();
	r = client_commit(c, vm.id, &a->spec, &made, &reply, &e);
	out_progress_end(&progress);
	if (r == -ECANCELED)
		err_set(&e, r,
			"cancelled; the commit may be made yet: `pando commit list` shows it");
	if (r < 0)
		return out_fail(&e);
	puts(s->json ? reply.text : made.commit.id);
	if (!s->quiet)
		fprintf(stderr,
			"pando: committed %s in %.1f ms, %s new; it stood still for %.2f ms\n",
			client_vm_name(&vm), (double)(io_now_ns() - start_ns) / 1e6,
			out_bytes(size, sizeof(size), made.written_bytes),
			(double)made.pause_us / 1e3);
	client_point_done(&made.commit);
	return EXIT_OK;
}

static void
line(const char *what, const char *value)
{
	char plain[1024];

	printf("%-12s %s\n", what, out_plain(plain, sizeof(plain), value));
}

/* Names under one heading, in lines of 80. */
static void
lines(const char *what, char **words)
{
	char text[72] = "";
	size_t n = 0;

	for (; *words; words++) {
		if (n && n + 1 + strlen(*words) > 66) {
			line(what, text);
			what = "";
			n = 0;
		}
		n += (size_t)snprintf(
			text + n, sizeof(text) - n, "%s%.60s", n ? " " : "", *words);
	}
	if (n)
		line(what, text);
}

static void
labels(const struct json *j)
{
	int object = json_get(j, 0, "labels"), it = 0, key, value;
	const char *what = "labels";

	while (object >= 0 && json_next(j, object, &it, &key, &value)) {
		char text[400], name[80], is[300];

		if (json_str(j, key, name, sizeof(name)) < 0 ||
			json_str(j, value, is, sizeof(is)) < 0)
			continue;
		/* pando's own show as what they mean. */
		if (strncmp(name, "pando.", strlen("pando.")) == 0)
			continue;
		snprintf(text, sizeof(text), "%s=%s", name, is);
		line(what, text);
		what = "";
	}
}

static int
info(struct client *c, const char *name, const struct opt_scan *s, struct err *e)
{
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client_point struct client_point p = {0};
	uint64_t now = io_wall_ms();
	char text[64];

	if (client_point(c, name, &p, &reply, e) < 0)
		return out_fail(e);
	if (s->json || s->quiet) {
		puts(s->json ? reply.text : p.id);
		return EXIT_OK;
	}
	line("id", p.id);
	line("parent", p.parent[0] ? p.parent : "-");
	line("age",
		out_age(text, sizeof(text), now > p.created_ms ? now - p.created_ms : 0));
	line("message", p.message && p.message[0] ? p.message : "-");
	for (size_t i = 0; p.tags[i]; i++)
		line(i ? "" : "tags", p.tags[i]);
	labels(reply.json);
	line("memory", out_mib(text, sizeof(text), p.mem_mib));
	snprintf(text, sizeof(text), "%llu", (unsigned long long)p.vcpus);
	line("cpus", text);
	line("disk", out_mib(text, sizeof(text), p.disk_mib));
	lines("needs of CPU", p.cpu_features);
	if (p.expires_ms)
		line(p.expires_ms <= now ? "expired" : "expires in",
			out_age(text, sizeof(text),
				p.expires_ms > now ? p.expires_ms - now
						   : now - p.expires_ms));
	for (size_t i = 0; p.vms[i]; i++)
		line(i ? "" : "runs in", p.vms[i]);
	return EXIT_OK;
}

static int
delete_commit(
	struct client *c, const struct asked *a, const struct opt_scan *s, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	int status = EXIT_OK;

	json_out_object(&o, NULL);
	json_out_array(&o, a->dry ? "would_delete" : "deleted");
	for (size_t i = 0; i < a->n_words; i++) {
		char **ids;

		/* One that cannot be deleted does not keep the others; the first failure
		 * is the status. */
		if (client_commit_delete(c, a->words[i], a->recursive, a->dry, &ids, e) <
			0) {
			int failed = out_fail(e);

			status = status == EXIT_OK ? failed : status;
			continue;
		}
		for (char **id = ids; *id; id++) {
			json_out_str(&o, NULL, *id);
			if (!s->json)
				puts(*id);
		}
		client_ids_free(ids);
	}
	json_out_end_array(&o);
	json_out_end_object(&o);
	if (s->json && out_json(&o) != EXIT_OK && status == EXIT_OK)
		status = EXIT_FAILED;
	return status;
}

/* A word at the front that is a subverb is one, unless "--" stands before it. */
static bool
is_subverb(const char *word)
{
	return verb_has_sub(&verb_commit, opt_subverb(word));
}

static int
check(const struct asked *a, bool ended, struct err *e)
{
	if (!a->sub && (a->recursive || a->dry))
		return err_set(e, -EINVAL, "--recursive and --dry-run are for delete");
	if (a->limit && (!a->sub || strcmp(a->sub, "list") != 0))
		return err_set(e, -EINVAL, "--limit is for list");
	if (a->sub && (a->spec.expire_ms || a->spec.keep_last))
		return err_set(e, -EINVAL,
			"commit %s takes no --expire or --keep-last", a->sub);
	if (a->sub && (a->spec.message || a->spec.n_tags || a->spec.n_labels))
		return err_set(e, -EINVAL,
			"commit %s takes no --message, --tag or --label; a VM of that name is committed with `pando commit [options] -- %s`",
			a->sub, a->sub);
	if (!a->sub && a->n_words > 1 && strcmp(a->words[0], "history") == 0)
		return err_set(e, -EINVAL, "it is: pando history [vm | commit]");
	if (!a->sub && a->n_words > 1)
		return err_set(e, -EINVAL, "commit takes one VM%s",
			ended ? "; options go before --" : "");
	if (a->sub && strcmp(a->sub, "list") == 0 && a->n_words)
		return err_set(e, -EINVAL, "commit list takes no words");
	if (a->sub && strcmp(a->sub, "info") == 0 && a->n_words != 1)
		return err_set(e, -EINVAL, "it is: pando commit info <commit>");
	if (a->sub && strcmp(a->sub, "delete") == 0 && !a->n_words)
		return err_set(e, -EINVAL, "it is: pando commit delete <commit>…");
	return 0;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_commit, argc, argv);
	cleanup_client struct client *c = NULL;
	struct asked a = {0};
	struct err e = {0};
	int key, r;

	a.spec.tags = a.tags;
	a.spec.labels = a.labels;
	while ((key = opt_next(&s, &e)) != OPT_END) {
		r = 0;
		switch (key) {
		case 'm':
			a.spec.message = s.arg;
			break;
		case OPT_TAG:
			if (a.spec.n_tags == TAGS_MAX)
				r = err_set(&e, -E2BIG, "at most %d tags", TAGS_MAX);
			else
				a.tags[a.spec.n_tags++] = s.arg;
			break;
		case 'l':
			r = opt_label(s.arg, "--label", &e);
			if (r >= 0 && a.spec.n_labels == LABELS_MAX)
				r = err_set(&e, -E2BIG, "at most %d labels", LABELS_MAX);
			if (r >= 0)
				a.labels[a.spec.n_labels++] = s.arg;
			break;
		case 'r':
			a.recursive = true;
			break;
		case OPT_DRY:
			a.dry = true;
			break;
		case OPT_EXPIRE:
			r = opt_ms(s.arg, "--expire", &a.spec.expire_ms, &e);
			break;
		case OPT_KEEP:
			r = opt_u64(s.arg, "--keep-last", 1, 1000000, &a.spec.keep_last,
				&e);
			break;
		case OPT_LIMIT:
			r = opt_u64(s.arg, "--limit", 1, POINTS_LIMIT_MAX, &a.limit, &e);
			break;
		case OPT_WORD:
			if (!a.sub && !a.n_words && !s.ended && is_subverb(s.arg))
				a.sub = opt_subverb(s.arg);
			else if (a.n_words == WORDS_MAX)
				r = err_set(&e, -E2BIG, "at most %d names", WORDS_MAX);
			else
				a.words[a.n_words++] = s.arg;
			break;
		default:
			return opt_leave(&s, key, &e);
		}
		if (r < 0)
			return opt_leave(&s, OPT_ERROR, &e);
	}
	if (check(&a, s.ended, &e) < 0)
		return opt_leave(&s, OPT_ERROR, &e);
	if (!a.sub)
		return make(&a, &s);
	if (pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	if (strcmp(a.sub, "list") == 0)
		return points_walk(c, NULL, a.limit, &s, &e);
	if (strcmp(a.sub, "info") == 0)
		return info(c, a.words[0], &s, &e);
	return delete_commit(c, &a, &s, &e);
}

const struct verb verb_commit = {
	.name = "commit",
	.summary = "Keeps what a VM is now, and prints the commit's id",
	.run = run,
	.usage =
		"[vm] [-m TEXT] [--tag NAME]… [--expire TIME] [--keep-last N]\nlist [--limit N]\ninfo <commit>\ndelete [-r] [--dry-run] <commit>…",
	.options = options,
	.text = "The VM stands still for one fork; memory, processes and disk are written while it goes on.\n"
		"A commit is named by its id, at least 4 leading digits of it, or a tag. One that others descend\n"
		"from is deleted only with -r, one that a VM runs on not at all. A VM called list, info or delete\n"
		"is committed with `pando commit -- list`. ls, inspect and rm are list, info and delete.",
	.subverbs = "list info delete",
	.words = COMPLETE_VM,
};
