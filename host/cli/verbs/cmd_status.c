#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_status;

#define LABELS_MAX 32

static const struct opt options[] = {
	{'l', "label", "key=value", "only VMs with that label; several: with all of them",
		COMPLETE_NOTHING},
	{'a', "all", NULL, NULL, COMPLETE_NOTHING}, /* all are always shown */
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static const char *
name_of(const struct client_vms *all, const char *id)
{
	for (size_t i = 0; i < all->n; i++)
		if (strcmp(all->v[i].id, id) == 0)
			return client_vm_name(&all->v[i]);
	return id;
}

static int
print_table(const struct client_vms *vms)
{
	static const char *const heads[] = {
		"ID", "NAME", "STATE", "MEMORY", "CPUS", "DISK", "PARENT", "AGE"};
	cleanup_out_table struct out_table *t = out_table_new(heads, 8);
	uint64_t now_ms = io_wall_ms();
	char cell[64];

	if (!t)
		return EXIT_FAILED;
	for (size_t i = 0; i < vms->n; i++) {
		const struct client_vm *vm = &vms->v[i];

		out_table_cell(t, pick_short_id(cell, sizeof(cell), vm->id, vms));
		out_table_cell(t, vm->alias[0] ? vm->alias : "-");
		out_table_cell(t, vm->state);
		out_table_cell(t, out_mib(cell, sizeof(cell), vm->mem_mib));
		snprintf(cell, sizeof(cell), "%llu", (unsigned long long)vm->vcpus);
		out_table_cell(t, cell);
		out_table_cell(t, out_mib(cell, sizeof(cell), vm->disk_mib));
		out_table_cell(t, vm->parent[0] ? name_of(vms, vm->parent) : "-");
		out_table_cell(t,
			out_age(cell, sizeof(cell),
				now_ms > vm->created_ms ? now_ms - vm->created_ms : 0));
	}
	out_table_print(t, stdout);
	/* One that stands still by itself. */
	for (size_t i = 0; i < vms->n; i++)
		if (strcmp(vms->v[i].state, "paused") == 0 && vms->v[i].reason)
			printf("\"%s\" is paused: %s\n", client_vm_name(&vms->v[i]),
				vms->v[i].reason);
	return EXIT_OK;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_status, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client_vms struct client_vms vms = {0};
	cleanup_client struct client *c = NULL;
	const char *labels[LABELS_MAX];
	size_t n_labels = 0;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		switch (key) {
		case 'l':
			if (n_labels == LABELS_MAX)
				err_set(&e, -E2BIG, "at most %d labels", LABELS_MAX);
			else if (opt_label(s.arg, "--label", &e) >= 0)
				labels[n_labels++] = s.arg;
			if (e.code)
				return opt_leave(&s, OPT_ERROR, &e);
			break;
		case 'a':
			break;
		case OPT_WORD:
			err_set(&e, -EINVAL,
				"status lists all VMs; `pando info %.64s` shows one",
				s.arg);
			return opt_leave(&s, OPT_ERROR, &e);
		default:
			return opt_leave(&s, key, &e);
		}
	}
	if (pick_pandod(&c, &e) < 0 ||
		client_list_with(c, labels, n_labels, 0, &vms, &reply, &e) < 0)
		return out_fail(&e);
	if (s.json) {
		puts(reply.text);
		return EXIT_OK;
	}
	if (s.quiet) {
		for (size_t i = 0; i < vms.n; i++)
			puts(vms.v[i].id);
		return EXIT_OK;
	}
	return print_table(&vms);
}

const struct verb verb_status = {
	.name = "status",
	.aliases = "ps ls",
	.summary = "Lists the VMs, oldest first",
	.run = run,
	.usage = "[--label key=value]",
	.options = options,
};
