/*
 * Options from a table (struct opt in verb.h). GNU conventions: -n X, -nX, -n=X is an X
 * of "=X", -abc for switches, --name X, --name=X, unambiguous prefixes are *not* accepted
 * (scripts outlive tables), "--" ends the options. Options and words may be mixed; a verb
 * whose words are a command stops calling opt_next() when it has seen enough and takes the
 * rest from `at`.
 *
 *	struct opt_scan s = opt_scan(&verb_x, argc, argv);
 *	while ((key = opt_next(&s, &e)) != OPT_END)
 *		switch (key) {
 *		case 'n': count = s.arg; break;
 *		case OPT_WORD: vm = s.arg; break;
 *		default: return opt_leave(&s, key, &e);
 *		}
 *
 * The common options (-q, --format, -h/--help) are recognised by opt_next() itself.
 */
#ifndef PANDO_HOST_CLI_OPT_H
#define PANDO_HOST_CLI_OPT_H

#include <stdint.h>

#include "host/cli/verb.h"

enum {
	OPT_END = 0,
	OPT_WORD = -1,	/* a word that is no option: in .arg */
	OPT_ERROR = -2, /* the sentence is in e */
	OPT_HELP = -3,	/* --help was asked for */
};

/* A row for verbs that wait for their turn at a VM. opt_next() recognises it itself, and
 * client_busy_timeout() takes what comes of it. */
#define OPT_BUSY_TIMEOUT 1100
#define OPT_BUSY \
	{ \
		OPT_BUSY_TIMEOUT, "busy-timeout", "TIME", \
			"how long to wait when another command is at the VM; 60 s if " \
			"not said, 0: not at all", \
			COMPLETE_NOTHING \
	}

struct opt_scan {
	const struct verb *verb;
	int argc;
	char **argv;
	int at;		  /* next argument to look at */
	const char *rest; /* letters left in a cluster such as -abc */
	const char *arg;  /* of the option or word just returned; borrowed from argv */
	bool ended;	  /* "--" was seen */
	bool json;	  /* --format json */
	bool quiet;	  /* -q */
	bool has_busy;	  /* --busy-timeout: */
	uint64_t busy_timeout_ms;
};

struct opt_scan opt_scan(const struct verb *verb, int argc, char **argv);
int opt_next(struct opt_scan *s, struct err *e);
/* Ends a verb whose scan stopped with OPT_HELP (prints the help, 0) or OPT_ERROR (prints
 * the sentence and how to get help, EXIT_USAGE). */
int opt_leave(struct opt_scan *s, int key, const struct err *e);

/* For a verb that takes at most one word, a VM or a commit: keeps it in *ret and returns
 * OPT_WORD. Any other key, and a second word, becomes what opt_leave() is called with. */
int opt_one_word(struct opt_scan *s, int key, const char **ret, struct err *e);

/* What "ls", "rm" and "inspect" are called behind commit, tag and env: list, delete,
 * info. Any other word is itself. */
const char *opt_subverb(const char *word);

/* opt_common.c: -q, --format and -h, and the end of the table. */
#define OPT_COMMON_N 3
#define OPT_FORMAT 1000
extern const struct opt opt_common[OPT_COMMON_N + 1];

/* `what` names the thing in the sentence: "--count". All give -EINVAL or -ERANGE with a
 * sentence that says what is allowed. */
int opt_u64(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret,
	struct err *e);
/* Whole MiB: "512", "512M", "512MiB", "2G", "2GiB", "1T"; a plain number is MiB. */
int opt_mib(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret,
	struct err *e);
/* Bytes in a second: 0, or from min on: "65536", "512K", "10M", "1G"; units are of 1024. */
int opt_bytes_per_s(const char *text, const char *what, uint64_t min, uint64_t max,
	uint64_t *ret, struct err *e);
/* Seconds, possibly with a fraction and a unit (ms, s, m, h, d), as milliseconds; at
 * least 1. */
int opt_ms(const char *text, const char *what, uint64_t *ret, struct err *e);
/* "key=value": where the '=' stands. A key is [A-Za-z0-9_./-]{1,63}. */
int opt_label(const char *text, const char *what, struct err *e);
/* "NAME=value" for an environment; NAME is [A-Za-z_][A-Za-z0-9_]*. */
int opt_env(const char *text, const char *what, struct err *e);

#endif
