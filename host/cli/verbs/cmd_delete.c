#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_delete;

enum { OPT_DRY = 256 };

/* As many are named in a question. */
#define NAMES_ASKED 6

static const struct opt options[] = {
	{'r', "recursive", NULL, "with all branches of it, and theirs", COMPLETE_NOTHING},
	{OPT_DRY, "dry-run", NULL, "say what would go, and delete nothing",
		COMPLETE_NOTHING},
	{'y', "yes", NULL, "do not ask", COMPLETE_NOTHING},
	{'f', "force", NULL, "do not ask, and do not fail for a VM that is not there",
		COMPLETE_NOTHING},
	{'a', "all", NULL, "every VM", COMPLETE_NOTHING},
	OPT_BUSY,
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* Ids to delete, and what became of them. */
struct work {
	struct client *c; /* borrowed */
	char (*ids)[16];  /* owned */
	size_t n;
	bool recursive, dry, force;
	char **deleted; /* owned, with n_deleted entries */
	size_t n_deleted;
};

static void
work_done(struct work *w)
{
	for (size_t i = 0; i < w->n_deleted; i++)
		free(w->deleted[i]);
	free(w->deleted);
	free(w->ids);
}

static bool
is_deleted(const struct work *w, const char *id)
{
	for (size_t i = 0; i < w->n_deleted; i++)
		if (strcmp(w->deleted[i], id) == 0)
			return true;
	return false;
}

static int
delete_one(struct work *w, const char *id, struct err *e)
{
	char **ids, **all;
	size_t n = 0;
	int r;

	if (is_deleted(w, id)) /* with an ancestor of it */
		return 0;
	r = (w->dry ? client_delete_dry : client_delete)(w->c, id, w->recursive, &ids, e);
	if (r < 0)
		return r;
	while (ids[n])
		n++;
	all = reallocarray(w->deleted, w->n_deleted + n + 1, sizeof(*all));
	if (!all) {
		client_ids_free(ids);
		return err_sys(e, -ENOMEM, "list of what was deleted");
	}
	memcpy(all + w->n_deleted, ids, n * sizeof(*ids));
	w->deleted = all;
	w->n_deleted += n;
	free(ids); /* the strings went to w */
	return 0;
}

/* Names are looked up before anything is deleted: a typing error in the third must not
 * cost the first two. */
static int
find_all(struct work *w, char *const *names, size_t n_names, bool all, struct err *e)
{
	cleanup_client_vms struct client_vms vms = {0};
	size_t n = n_names;
	int r;

	if (all) {
		r = client_list(w->c, NULL, &vms, NULL, e);
		if (r < 0)
			return r;
		n = vms.n;
	}
	w->ids = calloc(n + 1, sizeof(*w->ids));
	if (!w->ids)
		return err_sys(e, -ENOMEM, "list of VMs");
	for (size_t i = 0; i < n; i++) {
		cleanup_client_vm struct client_vm vm = {0};

		if (!all) {
			r = pick_vm(w->c, names[i], &vm, NULL, e);
			if (r == -ENOENT && w->force) {
				out_note("%s", e->msg);
				continue;
			}
			if (r < 0)
				return r;
		}
		snprintf(
			w->ids[w->n++], sizeof(*w->ids), "%s", all ? vms.v[i].id : vm.id);
	}
	return 0;
}

/* On a terminal nothing goes unasked, whatever word of ours it was asked with: `kill` ends a
 * process elsewhere, and here takes the disk, too. False: they were not to go. */
static bool
may_delete(const struct work *w)
{
	__attribute__((cleanup(work_done))) struct work would = {
		.c = w->c, .recursive = w->recursive, .dry = true};
	char names[512] = "";
	size_t used = 0;

	for (size_t i = 0; i < w->n; i++)
		(void)delete_one(&would, w->ids[i], NULL); /* is said when it is done */
	for (size_t i = 0; i < would.n_deleted && i < NAMES_ASKED; i++) {
		cleanup_client_vm struct client_vm vm = {0};
		int r = client_get(w->c, would.deleted[i], &vm, NULL, NULL);

		used += (size_t)snprintf(names + used, sizeof(names) - used,
			"%s\"%.64s\"", i ? ", " : "",
			r ? would.deleted[i] : client_vm_name(&vm));
	}
	if (would.n_deleted == 0)
		return true;
	if (would.n_deleted == 1)
		return out_confirm(
			"Delete %s and its disk? (`pando stop --force` ends a VM and keeps its disk.)",
			names);
	return out_confirm(
		"Delete %zu VMs and their disks: %s%s? (`pando stop --force` ends VMs and keeps their disks.)",
		would.n_deleted, names, would.n_deleted > NAMES_ASKED ? ", …" : "");
}

static int
print(const struct work *w, bool json)
{
	cleanup_json_out struct json_out o = {0};

	if (!json) {
		for (size_t i = 0; i < w->n_deleted; i++)
			puts(w->deleted[i]);
		return EXIT_OK;
	}
	json_out_object(&o, NULL);
	json_out_array(&o, w->dry ? "would_delete" : "deleted");
	for (size_t i = 0; i < w->n_deleted; i++)
		json_out_str(&o, NULL, w->deleted[i]);
	json_out_end_array(&o);
	json_out_end_object(&o);
	return out_json(&o);
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_delete, argc, argv);
	__attribute__((cleanup(work_done))) struct work w = {0};
	cleanup_client struct client *c = NULL;
	bool yes = false, all = false;
	int key, r, status = EXIT_OK;
	size_t n_names = 0;
	struct err e = {0};

	/* The names are gathered at the front of argv, which is ours. */
	while ((key = opt_next(&s, &e)) != OPT_END) {
		switch (key) {
		case 'r':
			w.recursive = true;
			break;
		case OPT_DRY:
			w.dry = true;
			break;
		case 'f':
			w.force = true;
			yes = true;
			break;
		case 'y':
			yes = true;
			break;
		case 'a':
			all = true;
			break;
		case OPT_WORD:
			argv[n_names++] = argv[s.at - 1];
			break;
		default:
			return opt_leave(&s, key, &e);
		}
	}
	if (all == (n_names > 0)) {
		err_set(&e, -EINVAL,
			all ? "--all and names do not go together"
			    : "which VM? `pando status` lists them; --all is every one");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	w.c = c;
	client_busy_timeout(c, s.has_busy, s.busy_timeout_ms);
	w.recursive |= all;
	if (find_all(&w, argv, n_names, all, &e) < 0)
		return out_fail(&e);
	if (w.n && !w.dry && !yes && out_can_ask() && !may_delete(&w)) {
		out_complain("nothing was deleted");
		return EXIT_CANCELLED;
	}
	for (size_t i = 0; i < w.n; i++) {
		/* One that cannot be deleted does not keep the others; the first failure
		 * is the status. */
		r = delete_one(&w, w.ids[i], &e);
		if (r == -ENOENT && (w.force || all)) {
			out_note("%s", e.msg); /* somebody else was first */
		} else if (r < 0) {
			int failed = out_fail(&e);

			status = status == EXIT_OK ? failed : status;
		}
	}
	if (w.dry)
		out_note("%zu VM%s would be deleted; nothing was", w.n_deleted,
			w.n_deleted == 1 ? "" : "s");
	return print(&w, s.json) == EXIT_OK || status != EXIT_OK ? status : EXIT_FAILED;
}

const struct verb verb_delete = {
	.name = "delete",
	.aliases = "kill rm",
	.summary = "Ends VMs and removes what they had; prints their ids",
	.run = run,
	.usage = "[-r] [-f|-y] [--dry-run] <vm>…\n--all [-y] [--dry-run]",
	.options = options,
	.text = "A VM with living branches, or branches of branches, is deleted only with -r. On a terminal it asks\n"
		"first. `pando stop --force` ends a VM and keeps its disk.",
	.words = COMPLETE_VM,
};
