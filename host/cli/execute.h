/*
 * The words of `pando execute`: which are ours, which the VM's name, which the command. A
 * name is never taken for a command nor a command for a name: the first word before "--"
 * is the VM, all words from the next one (or from "--") on are the command, untouched.
 *
 * -i and -t are those of `docker exec` and `kubectl exec`: input and terminal. -t was the
 * time limit once; "-t 12" still is, with a note, because "12" can name no VM.
 */
#ifndef PANDO_HOST_CLI_EXECUTE_H
#define PANDO_HOST_CLI_EXECUTE_H

#include <stddef.h>
#include <stdint.h>

#include "host/cli/opt.h"

#define EXECUTE_ENV_MAX 256

struct execute_words {
	const char *vm; /* NULL: not named */
	const char *const
		*argv; /* NULL-terminated; into the caller's argv or shell_argv */
	const char *env[EXECUTE_ENV_MAX + 1]; /* NULL-terminated */
	size_t n_env;
	const char *cwd, *user, *shell, *attach; /* NULL: not said */
	uint64_t timeout_ms;			 /* 0: none */
	bool stdin_on, tty, detach, list, ssh;
	const char **shell_argv; /* owned; NULL unless --shell was used */
};

/* All of execute's argv (argv[argc] is NULL). OPT_END, or OPT_HELP, OPT_ERROR for
 * opt_leave(). */
int execute_parse(struct opt_scan *s, struct execute_words *w, struct err *e);
void execute_words_done(struct execute_words *w);

extern const struct opt execute_options[];
extern const struct verb verb_execute;

#endif
