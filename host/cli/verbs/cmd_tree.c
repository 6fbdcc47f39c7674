#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/tree_commit.h"

extern const struct verb verb_tree;

/* The forest, walked once: rows in drawing order. Depth is bounded only by the number of
 * VMs, so the walk keeps its own stack. */
struct row {
	const struct client_vm *vm; /* borrowed */
	size_t depth;
	bool last; /* of its parent's children */
};

static size_t
index_of(const struct client_vms *vms, const char *id)
{
	for (size_t i = 0; i < vms->n; i++)
		if (strcmp(vms->v[i].id, id) == 0)
			return i;
	return vms->n;
}

/* Links: first child and next sibling of each VM, in the list's order; vms->n is "none".
 */
struct links {
	size_t *parent, *first, *next; /* owned, one block */
};

static bool
in_a_circle(const size_t *parent, size_t n, size_t at)
{
	for (size_t steps = 0; steps <= n; steps++) {
		at = parent[at];
		if (at == n)
			return false;
	}
	return true;
}

static int
link_up(const struct client_vms *vms, struct links *ret)
{
	size_t n = vms->n, *block = calloc(4 * n + 1, sizeof(*block)), *last;

	if (!block)
		return -ENOMEM;
	*ret = (struct links){.parent = block, .first = block + n, .next = block + 2 * n};
	last = block + 3 * n;
	for (size_t i = 0; i < n; i++) {
		ret->parent[i] = index_of(vms, vms->v[i].parent);
		ret->first[i] = ret->next[i] = last[i] = n;
	}
	for (size_t i = 0; i < n; i++)
		if (in_a_circle(ret->parent, n, i))
			ret->parent[i] =
				n; /* nonsense, but each VM shall be drawn once */
	for (size_t i = 0; i < n; i++) {
		size_t p = ret->parent[i];

		if (p == n)
			continue;
		if (last[p] == n)
			ret->first[p] = i;
		else
			ret->next[last[p]] = i;
		last[p] = i;
	}
	return 0;
}

static size_t
walk(const struct client_vms *vms, const struct links *l, size_t from, struct row *rows)
{
	size_t n = vms->n, count = 0, depth = 0, at = from;

	for (;;) {
		rows[count++] =
			(struct row){&vms->v[at], depth, at == from || l->next[at] == n};
		if (l->first[at] != n) {
			at = l->first[at];
			depth++;
			continue;
		}
		while (at != from && l->next[at] == n) {
			at = l->parent[at];
			depth--;
		}
		if (at == from)
			return count;
		at = l->next[at];
	}
}

static void
print_rows(const struct row *rows, size_t n, const struct client_vms *all)
{
	uint64_t now_ms = io_wall_ms();
	/* more[d]: the branch at depth d goes on below. */
	bool *more = calloc(n + 1, sizeof(*more));
	char id[16], age[32], name[256];

	for (size_t i = 0; i < n; i++) {
		const struct client_vm *vm = rows[i].vm;
		size_t depth = rows[i].depth;

		if (more && depth)
			more[depth] = !rows[i].last;
		for (size_t d = 1; d < depth; d++)
			fputs(more && more[d] ? "│   " : "    ", stdout);
		if (depth)
			fputs(rows[i].last ? "└── " : "├── ", stdout);
		pick_short_id(id, sizeof(id), vm->id, all);
		out_age(age, sizeof(age),
			now_ms > vm->created_ms ? now_ms - vm->created_ms : 0);
		if (vm->alias[0])
			printf("%s (%s)", out_plain(name, sizeof(name), vm->alias), id);
		else
			fputs(id, stdout);
		printf("  %s  %s", out_plain(name, sizeof(name), vm->state), age);
		if (vm->has_memory)
			printf("  %s",
				out_bytes(age, sizeof(age), vm->memory_unique_bytes));
		putchar('\n');
	}
	free(more);
}

static int
print_json(const struct row *rows, size_t n)
{
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	json_out_array(&o, "vms");
	for (size_t i = 0; i < n; i++) {
		const struct client_vm *vm = rows[i].vm;

		json_out_object(&o, NULL);
		json_out_str(&o, "id", vm->id);
		json_out_str(&o, "alias", vm->alias[0] ? vm->alias : NULL);
		json_out_str(&o, "parent", vm->parent[0] ? vm->parent : NULL);
		json_out_str(&o, "commit", vm->commit[0] ? vm->commit : NULL);
		json_out_u64(&o, "depth", rows[i].depth);
		json_out_str(&o, "state", vm->state);
		json_out_u64(&o, "created_ms", vm->created_ms);
		if (vm->has_memory)
			json_out_u64(&o, "memory_unique_bytes", vm->memory_unique_bytes);
		else
			json_out_null(&o, "memory_unique_bytes");
		json_out_end_object(&o);
	}
	json_out_end_array(&o);
	json_out_end_object(&o);
	return out_json(&o);
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_tree, argc, argv);
	cleanup_client_vms struct client_vms vms = {0};
	cleanup_client_vm struct client_vm top = {0};
	cleanup_client struct client *c = NULL;
	cleanup_free struct row *rows = NULL;
	struct links links = {0};
	const char *name = NULL;
	struct err e = {0};
	size_t n = 0;
	int key, r, status = EXIT_OK;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	}
	if (pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	r = name ? pick_vm(c, name, &top, NULL, &e) : 0;
	/* A name that is no VM's may be a commit's. */
	if (r == -ENOENT && (status = tree_commit_print(c, name, &s, &e)) != -ENOENT)
		return status;
	if (r < 0 || client_list_with(c, NULL, 0, CLIENT_MEMORY, &vms, NULL, &e) < 0)
		return out_fail(&e);
	rows = calloc(vms.n + 1, sizeof(*rows));
	if (!rows || link_up(&vms, &links) < 0) {
		out_complain("no memory for the tree");
		return EXIT_FAILED;
	}
	for (size_t i = 0; i < vms.n; i++)
		if (name ? strcmp(vms.v[i].id, top.id) == 0 : links.parent[i] == vms.n)
			n += walk(&vms, &links, i, rows + n);
	status = EXIT_OK;
	if (s.json)
		status = print_json(rows, n);
	else if (s.quiet)
		for (size_t i = 0; i < n; i++)
			puts(rows[i].vm->id);
	else
		print_rows(rows, n, &vms);
	free(links.parent);
	return status;
}

const struct verb verb_tree = {
	.name = "tree",
	.summary = "Draws who was branched from whom",
	.run = run,
	.usage = "[vm | commit]",
	.text = "Each with its state, its age, and the memory that is its own: pages that it shares with its parent or\n"
		"branches are not in it. JSON is a flat list in drawing order, each with its parent and depth.\n"
		"Of a commit (its id, a beginning of it, or a tag): the commits it comes from, those that come from it,\n"
		"and their VMs; it is marked with <. VMs' names go first.",
	.words = COMPLETE_VM_OR_COMMIT,
};
