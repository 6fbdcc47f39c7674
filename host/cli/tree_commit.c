#include "host/cli/tree_commit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/tree_gaps.h"

/* A line of the drawing: either a commit or a VM; borrowed. */
struct node {
	const struct client_point *commit;
	const struct client_vm *vm;
	size_t depth;
	bool last; /* of its parent's children */
};

struct drawing {
	struct client_points points;
	struct client_vms vms;
	struct node *nodes, *stack; /* owned; room for all of both, and one */
	size_t n, n_stack;
	/* Owned: the commits by id, and by parent (of one parent, as they are listed). */
	const struct client_point **by_id, **by_parent;
	bool *drawn; /* owned: of points, then of VMs; nonsense is drawn once */
};

static void
drawing_done(struct drawing *d)
{
	client_points_done(&d->points);
	client_vms_done(&d->vms);
	free(d->nodes);
	free(d->stack);
	free(d->by_id);
	free(d->by_parent);
	free(d->drawn);
}
#define cleanup_drawing __attribute__((cleanup(drawing_done)))

static int
order_by_id(const void *a, const void *b)
{
	return strcmp((*(const struct client_point *const *)a)->id,
		(*(const struct client_point *const *)b)->id);
}

static int
order_by_parent(const void *a, const void *b)
{
	const struct client_point *x = *(const struct client_point *const *)a;
	const struct client_point *y = *(const struct client_point *const *)b;
	int order = strcmp(x->parent, y->parent);

	return order ? order : x < y ? -1 : x > y;
}

static bool
index_points(struct drawing *d)
{
	size_t n = d->points.n;

	d->by_id = calloc(n + 1, sizeof(*d->by_id));
	d->by_parent = calloc(n + 1, sizeof(*d->by_parent));
	if (!d->by_id || !d->by_parent)
		return false;
	for (size_t i = 0; i < n; i++)
		d->by_id[i] = d->by_parent[i] = &d->points.v[i];
	if (n) {
		qsort(d->by_id, n, sizeof(*d->by_id), order_by_id);
		qsort(d->by_parent, n, sizeof(*d->by_parent), order_by_parent);
	}
	return true;
}

/* points.n: there is none. */
static size_t
point_index(const struct drawing *d, const char *id)
{
	size_t low = 0, high = d->points.n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int order = strcmp(d->by_id[middle]->id, id);

		if (order == 0)
			return (size_t)(d->by_id[middle] - d->points.v);
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return d->points.n;
}

/* Where the children of a commit begin in by_parent. */
static size_t
first_child(const struct drawing *d, const char *id)
{
	size_t low = 0, high = d->points.n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (strcmp(d->by_parent[middle]->parent, id) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static const struct client_vm *
vm_by_id(const struct drawing *d, const char *id)
{
	for (size_t i = 0; i < d->vms.n; i++)
		if (strcmp(d->vms.v[i].id, id) == 0)
			return &d->vms.v[i];
	return NULL;
}

/* Whether the VM hangs below another one of the same commit. */
static bool
is_branch_within(const struct drawing *d, const struct client_vm *vm)
{
	const struct client_vm *parent = vm_by_id(d, vm->parent);

	return parent && strcmp(parent->commit, vm->commit) == 0;
}

static void
push(struct drawing *d, const struct client_point *commit, const struct client_vm *vm,
	size_t depth)
{
	size_t at = commit ? (size_t)(commit - d->points.v)
			   : d->points.n + (size_t)(vm - d->vms.v);

	if (d->drawn[at])
		return;
	d->drawn[at] = true;
	d->stack[d->n_stack++] = (struct node){commit, vm, depth, false};
}

/* What stands below a node, the last first: VMs, oldest first, then commits likewise. */
static void
push_below(struct drawing *d, const struct node *node)
{
	size_t depth = node->depth + 1;

	/* Commits are listed newest first, and VMs oldest first. */
	for (size_t i = node->commit ? first_child(d, node->commit->id) : d->points.n;
		i < d->points.n && strcmp(d->by_parent[i]->parent, node->commit->id) == 0;
		i++)
		push(d, d->by_parent[i], NULL, depth);
	for (size_t i = d->vms.n; i > 0; i--) {
		const struct client_vm *vm = &d->vms.v[i - 1];

		if (node->commit ? strcmp(vm->commit, node->commit->id) == 0 &&
					   !is_branch_within(d, vm)
				 : strcmp(vm->parent, node->vm->id) == 0 &&
					   is_branch_within(d, vm))
			push(d, NULL, vm, depth);
	}
}

/* From below: a node is its parent's last child when no other of its depth comes before
 * one that is less deep. The stack, which is empty by now, has the depths that came. */
static void
mark_last(struct drawing *d)
{
	size_t *open = (size_t *)(void *)d->stack, n = 0;

	for (size_t i = d->n; i > 0; i--) {
		size_t depth = d->nodes[i - 1].depth;

		while (n && open[n - 1] > depth)
			n--;
		d->nodes[i - 1].last = !n || open[n - 1] < depth;
		if (d->nodes[i - 1].last)
			open[n++] = depth;
	}
}

/* The chain that leads to the commit, then all below it. */
static void
lay_out(struct drawing *d, size_t at)
{
	size_t n_above = 0;

	for (size_t up = point_index(d, d->points.v[at].parent);
		up < d->points.n && n_above < d->points.n;
		up = point_index(d, d->points.v[up].parent)) {
		d->nodes[n_above++] = (struct node){.commit = &d->points.v[up]};
		d->drawn[up] = true;
	}
	for (size_t i = 0; i < n_above / 2; i++) {
		struct node swap = d->nodes[i];

		d->nodes[i] = d->nodes[n_above - 1 - i];
		d->nodes[n_above - 1 - i] = swap;
	}
	for (d->n = 0; d->n < n_above; d->n++)
		d->nodes[d->n].depth = d->n;
	push(d, &d->points.v[at], NULL, n_above);
	while (d->n_stack) {
		d->nodes[d->n] = d->stack[--d->n_stack];
		push_below(d, &d->nodes[d->n++]);
	}
	mark_last(d);
}

static void
print_commit(const struct client_point *p, bool meant, uint64_t now_ms)
{
	char text[256], line[80];

	printf("%.12s", p->id);
	for (char **tag = p->tags; *tag; tag++)
		printf("%s%s", tag == p->tags ? "  [" : " ",
			out_plain(text, sizeof(text), *tag));
	if (p->tags[0])
		putchar(']');
	if (p->pruned)
		fputs("  (pruned)", stdout);
	printf("  %s", out_age(text, sizeof(text),
			       now_ms > p->created_ms ? now_ms - p->created_ms : 0));
	snprintf(line, sizeof(line), "%.*s",
		p->message ? (int)strcspn(p->message, "\n") : 0,
		p->message ? p->message : "");
	if (line[0])
		printf("  %s", out_plain(text, sizeof(text), line));
	puts(meant ? "  <" : "");
}

static void
print_vm(const struct client_vm *vm, const struct client_vms *all, uint64_t now_ms)
{
	char id[16], text[256];

	pick_short_id(id, sizeof(id), vm->id, all);
	if (vm->alias[0])
		printf("VM %s (%s)", out_plain(text, sizeof(text), vm->alias), id);
	else
		printf("VM %s", id);
	printf("  %s", out_plain(text, sizeof(text), vm->state));
	printf("  %s\n", out_age(text, sizeof(text),
				 now_ms > vm->created_ms ? now_ms - vm->created_ms : 0));
}

static int
print(const struct drawing *d, size_t at)
{
	/* more[n]: the line at depth n goes on below. */
	cleanup_free bool *more = calloc(d->n + 1, sizeof(*more));
	uint64_t now_ms = io_wall_ms();

	if (!more) {
		out_complain("no memory for the tree");
		return EXIT_FAILED;
	}
	for (size_t i = 0; i < d->n; i++) {
		const struct node *node = &d->nodes[i];

		more[node->depth] = !node->last;
		for (size_t depth = 1; depth < node->depth; depth++)
			fputs(more[depth] ? "│   " : "    ", stdout);
		if (node->depth)
			fputs(node->last ? "└── " : "├── ", stdout);
		if (node->commit)
			print_commit(
				node->commit, node->commit == &d->points.v[at], now_ms);
		else
			print_vm(node->vm, &d->vms, now_ms);
	}
	return EXIT_OK;
}

static int
print_json(const struct drawing *d, size_t at)
{
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	json_out_str(&o, "commit", d->points.v[at].id);
	json_out_array(&o, "nodes");
	for (size_t i = 0; i < d->n; i++) {
		const struct client_point *p = d->nodes[i].commit;
		const struct client_vm *vm = d->nodes[i].vm;

		json_out_object(&o, NULL);
		json_out_str(&o, "kind", p ? "commit" : "vm");
		json_out_str(&o, "id", p ? p->id : vm->id);
		json_out_u64(&o, "depth", d->nodes[i].depth);
		json_out_u64(&o, "created_ms", p ? p->created_ms : vm->created_ms);
		if (p) {
			json_out_str(&o, "parent", p->parent[0] ? p->parent : NULL);
			json_out_str(&o, "message", p->message);
			json_out_bool(&o, "pruned", p->pruned);
			json_out_array(&o, "tags");
			for (char **tag = p->tags; *tag; tag++)
				json_out_str(&o, NULL, *tag);
			json_out_end_array(&o);
		} else {
			json_out_str(&o, "parent", vm->parent[0] ? vm->parent : NULL);
			json_out_str(&o, "commit", vm->commit);
			json_out_str(&o, "alias", vm->alias[0] ? vm->alias : NULL);
			json_out_str(&o, "state", vm->state);
		}
		json_out_end_object(&o);
	}
	json_out_end_array(&o);
	json_out_end_object(&o);
	return out_json(&o);
}

int
tree_commit_print(
	struct client *c, const char *name, const struct opt_scan *s, struct err *e)
{
	cleanup_client_points struct client_points meant = {0};
	cleanup_drawing struct drawing d = {0};
	struct err why = {0};
	size_t at, room;
	/* A history begins with the commit itself, a pruned one too. */
	int r = client_points_page(c, name, "", 1, &meant, NULL, &why);

	if (r == -ENOENT)
		return r;
	if (r == 0 && !meant.n)
		r = err_set(&why, -ENOENT, "commit \"%.64s\" was deleted meanwhile", name);
	if (r < 0 || client_points(c, &d.points, NULL, &why) < 0 ||
		tree_gaps_fill(c, &d.points, &why) < 0 ||
		client_list(c, NULL, &d.vms, NULL, &why) < 0)
		return out_fail(&why);
	if (!index_points(&d)) {
		out_complain("no memory for the tree");
		return EXIT_FAILED;
	}
	at = point_index(&d, meant.v[0].id);
	if (at == d.points.n) {
		err_set(e, -ENOENT, "commit %.12s was deleted meanwhile", meant.v[0].id);
		return out_fail(e);
	}
	room = d.points.n + d.vms.n + 1;
	d.nodes = calloc(room, sizeof(*d.nodes));
	d.stack = calloc(room, sizeof(*d.stack));
	d.drawn = calloc(room, sizeof(*d.drawn));
	if (!d.nodes || !d.stack || !d.drawn) {
		out_complain("no memory for the tree");
		return EXIT_FAILED;
	}
	lay_out(&d, at);
	if (s->json)
		return print_json(&d, at);
	if (!s->quiet)
		return print(&d, at);
	for (size_t i = 0; i < d.n; i++)
		puts(d.nodes[i].commit ? d.nodes[i].commit->id : d.nodes[i].vm->id);
	return EXIT_OK;
}
