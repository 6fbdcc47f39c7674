#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_alias;

static const struct opt options[] = {
	{'d', "remove", NULL, "take the VM's alias away", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* All aliases, or the one VM's. */
static int
list(struct client *c, const char *name, const struct opt_scan *s, struct err *e)
{
	static const char *const heads[] = {"ALIAS", "ID"};
	cleanup_out_table struct out_table *t = out_table_new(heads, 2);
	cleanup_client_vms struct client_vms vms = {0};
	cleanup_client_vm struct client_vm only = {0};
	cleanup_json_out struct json_out o = {0};
	int r = client_list(c, NULL, &vms, NULL, e);

	if (r == 0 && name)
		r = pick_vm(c, name, &only, NULL, e);
	if (r < 0)
		return r;
	if (!t)
		return err_sys(e, -ENOMEM, "table");
	json_out_object(&o, NULL);
	for (size_t i = 0; i < vms.n; i++) {
		const struct client_vm *vm = &vms.v[i];

		if (!vm->alias[0] || (name && strcmp(vm->id, only.id) != 0))
			continue;
		json_out_str(&o, vm->alias, vm->id);
		out_table_cell(t, vm->alias);
		out_table_cell(t, vm->id);
		if (s->quiet)
			puts(vm->id);
	}
	json_out_end_object(&o);
	if (o.error)
		return err_sys(e, o.error, "answer");
	if (s->json)
		puts(o.buf);
	else if (!s->quiet)
		out_table_print(t, stdout);
	return 0;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_alias, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client_vm struct client_vm vm = {0}, now = {0};
	cleanup_client struct client *c = NULL;
	const char *words[2] = {NULL, NULL};
	size_t n = 0;
	bool removing = false;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		switch (key) {
		case 'd':
			removing = true;
			break;
		case OPT_WORD:
			if (n < 2) {
				words[n++] = s.arg;
				break;
			}
			err_set(&e, -EINVAL, "alias takes a VM and a name");
			return opt_leave(&s, OPT_ERROR, &e);
		default:
			return opt_leave(&s, key, &e);
		}
	}
	if (removing && n != 1) {
		err_set(&e, -EINVAL, "alias --remove takes one VM");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	if (n < 2 && !removing)
		return list(c, words[0], &s, &e) < 0 ? out_fail(&e) : EXIT_OK;
	if (pick_vm(c, words[0], &vm, NULL, &e) < 0 ||
		client_alias(c, vm.id, removing ? NULL : words[1], &now, &reply, &e) < 0)
		return out_fail(&e);
	puts(s.json ? reply.text : now.id);
	return EXIT_OK;
}

const struct verb verb_alias = {
	.name = "alias",
	.aliases = "name rename",
	.summary = "Names a VM, or lists the names",
	.run = run,
	.usage = "[vm]\n<vm> <name>\n--remove <vm>",
	.options = options,
	.text = "A name begins with a letter, has at most 63 letters, digits, '.', '_' and '-', and does not look like an\n"
		"id. It belongs to one VM at a time.",
	.words = COMPLETE_VM,
};
