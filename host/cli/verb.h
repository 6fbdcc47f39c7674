/*
 * The verbs of `pando`: one file a verb (cmd_<verb>.c) exporting one const entry, listed
 * in verbs.c. Parsing, `--help`, `pando help <verb>` and the shell completion all read
 * the same table of options.
 *
 * A verb's run() gets its own name as argv[0] and returns the exit status. It puts the
 * answer on stdout, everything else on stderr (host/cli/out.h). It does not call exit().
 */
#ifndef PANDO_HOST_CLI_VERB_H
#define PANDO_HOST_CLI_VERB_H

#include <stdbool.h>

#include "common/err.h"

/* What a shell may offer for an option's argument or for a verb's words. */
enum complete {
	COMPLETE_NOTHING,
	COMPLETE_VM,
	COMPLETE_COMMIT, /* tags and ids of commits */
	COMPLETE_VM_OR_COMMIT,
	COMPLETE_FILE,
	COMPLETE_FOLDER,
	COMPLETE_IMAGE,
	COMPLETE_VERB,
	COMPLETE_WORDS, /* the words after '|' in `arg`: "table|table json" */
};

/* One option. A table ends with an entry whose key is 0. */
struct opt {
	int key; /* what opt_next() returns; a letter (1..127) is also the short form,
		    else >= 256 */
	const char *name; /* long form without "--"; NULL: only the letter */
	const char *arg;  /* name of the argument in help; NULL: a switch */
	const char *help; /* one sentence or less; NULL: an accepted spelling that help
			     leaves out */
	enum complete complete;
};

struct verb {
	const char *name;
	const char *aliases; /* separated by blanks; NULL: none */
	const char *summary; /* one line for `pando help` */
	int (*run)(int argc, char **argv);
	/* The rest is for help and completion, and may be NULL for a verb that does its
	 * own. */
	const char *usage; /* after "pando <name> "; several lines: one usage each */
	const struct opt *options; /* without the common ones (opt.h adds them) */
	const char *text;	   /* paragraphs below the options */
	const char *subverbs;	   /* separated by blanks: first word after the verb */
	enum complete words;	   /* what the verb's own words are */
};

/* verbs.c: NULL-terminated, in the order of `pando help`. It lies above the verbs. main()
 * hands it to verb_use(), for the verbs that look into it: help and completion. */
extern const struct verb *const verbs[];

/* verb.c. table is borrowed for good. */
void verb_use(const struct verb *const *table);
/* What was handed in; before that an empty table. */
const struct verb *const *verb_all(void);

/* By name or alias; NULL if there is none. */
const struct verb *verb_find(const char *name);
/* Whether the word is one of the verb's subverbs. */
bool verb_has_sub(const struct verb *v, const char *word);
/* The name nearest to a mistyped one (edit distance at most 2 and less than its length),
 * or NULL. */
const char *verb_nearest(const char *name);

#endif
