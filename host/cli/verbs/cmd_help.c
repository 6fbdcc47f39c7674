#include <errno.h>
#include <stdio.h>

#include "host/cli/help.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"

extern const struct verb verb_help;

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_help, argc, argv);
	const char *name = NULL, *near;
	const struct verb *v;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key != OPT_WORD)
			return opt_leave(&s, key, &e);
		/* `pando help commit list`: the verb's help has its subverbs. */
		if (name && (!(v = verb_find(name)) || !verb_has_sub(v, opt_subverb(s.arg)))) {
			err_set(&e, -EINVAL, "help takes one verb");
			return opt_leave(&s, OPT_ERROR, &e);
		}
		name = name ? name : s.arg;
	}
	if (!name) {
		help_all(stdout);
		return EXIT_OK;
	}
	v = verb_find(name);
	if (!v) {
		near = verb_nearest(name);
		out_complain("there is no verb \"%s\"%s%s%s", name,
			near ? "; did you mean " : "",
			near ? near : "; `pando help` lists them", near ? "?" : "");
		return EXIT_USAGE;
	}
	help_verb(stdout, v);
	return EXIT_OK;
}

const struct verb verb_help = {
	.name = "help",
	.summary = "What the verbs are and do",
	.run = run,
	.usage = "[verb]",
	.words = COMPLETE_VERB,
};
