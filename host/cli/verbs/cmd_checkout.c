/* checkout and head: the VM that this folder's commands mean. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/cli/head.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_checkout, verb_head;

enum { OPT_NONE = 256 };

static const struct opt options[] = {
	{OPT_NONE, "none", NULL, "no VM is checked out any more", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
print(const struct head *h, const struct client_vm *vm, bool json)
{
	cleanup_json_out struct json_out o = {0};

	if (!json) {
		if (vm)
			puts(vm->id);
		return EXIT_OK;
	}
	json_out_object(&o, NULL);
	json_out_str(&o, "id", vm ? vm->id : NULL);
	json_out_str(&o, "alias", vm && vm->alias[0] ? vm->alias : NULL);
	json_out_str(&o, "previous", h->previous[0] ? h->previous : NULL);
	json_out_str(&o, "folder", h->folder);
	json_out_end_object(&o);
	return out_json(&o);
}

/* A damaged file is no reason not to write a good one. */
static int
read_to_replace(struct head *h, struct err *e)
{
	int r = head_read(NULL, h, e);

	return r == -EINVAL ? head_find(NULL, h, e) : r;
}

static int
run_checkout(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_checkout, argc, argv);
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	const char *name = NULL;
	bool none = false;
	struct err e = {0};
	struct head h;
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_NONE)
			none = true;
		else if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	}
	if (none == (name != NULL)) {
		err_set(&e, -EINVAL,
			none ? "--none and a VM do not go together"
			     : "which VM? `pando status` lists them; `pando head` says which one is checked out");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (name && strcmp(name, "-") == 0) {
		if (head_read(NULL, &h, &e) < 0)
			return out_fail(&e);
		if (!h.previous[0]) {
			err_set(&e, -ENOENT,
				"no VM was checked out in %.300s before: name one",
				h.folder);
			return out_fail(&e);
		}
		name = h.previous;
	} else if (read_to_replace(&h, &e) < 0) {
		return out_fail(&e);
	}
	if (none) {
		if (head_write(&h, NULL, &e) < 0)
			return out_fail(&e);
		return print(&h, NULL, s.json);
	}
	if (pick_pandod(&c, &e) < 0 || pick_vm(c, name, &vm, NULL, &e) < 0 ||
		head_write(&h, vm.id, &e) < 0)
		return out_fail(&e);
	return print(&h, &vm, s.json);
}

static int
run_head(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_head, argc, argv);
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	struct err e = {0};
	struct head h;
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_WORD)
			key = (err_set(&e, -EINVAL,
				       "head takes no VM; `pando checkout %.64s` changes it",
				       s.arg),
				OPT_ERROR);
		return opt_leave(&s, key, &e);
	}
	if (head_read(NULL, &h, &e) < 0)
		return out_fail(&e);
	if (!h.current[0]) {
		err_set(&e, -ENOENT,
			"no VM is checked out in %.300s; `pando checkout <vm>` does that",
			h.folder);
		return out_fail(&e);
	}
	if (pick_pandod(&c, &e) < 0 || pick_head(c, &h, &vm, NULL, &e) < 0)
		return out_fail(&e);
	if (!s.json && !s.quiet && vm.alias[0])
		out_complain("it is \"%s\", in %s", vm.alias, h.folder);
	return print(&h, &vm, s.json);
}

const struct verb verb_checkout = {
	.name = "checkout",
	.aliases = "switch",
	.summary = "Makes a VM the one this folder's commands mean",
	.run = run_checkout,
	.usage = "<vm>\n-\n--none",
	.options = options,
	.text = "Kept in .pando/head of the project's folder: the nearest one from here upwards with pando.toml,\n"
		"vers.toml or .pando, else this one. \"-\" is the one checked out before.",
	.words = COMPLETE_VM,
};

const struct verb verb_head = {
	.name = "head",
	.summary = "Prints the id of the VM that is checked out here",
	.run = run_head,
	.usage = "",
};
