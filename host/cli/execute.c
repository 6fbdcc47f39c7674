#include "host/cli/execute.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/cli/out.h"
#include "host/cli/pick.h"

enum { OPT_LIST = 256, OPT_SSH, OPT_TIMEOUT, OPT_INTERACTIVE };

const struct opt execute_options[] = {
	{'i', "stdin", NULL, "pass standard input on; without it the command has none",
		COMPLETE_NOTHING},
	{'t', "tty", NULL, "give it a terminal; -it is for programs that a person uses",
		COMPLETE_NOTHING},
	{OPT_TIMEOUT, "timeout", "SECONDS",
		"kill it after that time (status 6); 1.5, 500ms and 10m are fine too",
		COMPLETE_NOTHING},
	{'e', "env", "NAME=VALUE",
		"in the command's environment; may be given several times",
		COMPLETE_NOTHING},
	{'w', "cwd", "FOLDER", "where it runs; the user's home if not said",
		COMPLETE_NOTHING},
	{'u', "user", "NAME", "who it runs as; root if not said", COMPLETE_NOTHING},
	{'s', "shell", "TEXT",
		"run TEXT with /bin/sh -c; words that follow are $1, $2, …",
		COMPLETE_NOTHING},
	{'d', "detach", NULL, "start it, print its id and return", COMPLETE_NOTHING},
	{'A', "attach", "ID", "take up a command that was detached", COMPLETE_NOTHING},
	{OPT_SSH, "ssh", NULL,
		"over SSH, as a login of that user: needs openssh-server in it",
		COMPLETE_NOTHING},
	{OPT_LIST, "list", NULL, "list the guest's commands, as JSON", COMPLETE_NOTHING},
	/* What other programs call -i; and what scripts say that know older versions. */
	{OPT_INTERACTIVE, "interactive", NULL, NULL, COMPLETE_NOTHING},
	{'T', NULL, NULL, NULL, COMPLETE_NOTHING},
	{'n', "no-stdin", NULL, NULL, COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

void
execute_words_done(struct execute_words *w)
{
	free(w->shell_argv);
	w->shell_argv = NULL;
}

static int
add_env(struct execute_words *w, const char *text, struct err *e)
{
	int r = opt_env(text, "--env", e);

	if (r < 0)
		return r;
	if (w->n_env == EXECUTE_ENV_MAX)
		return err_set(e, -E2BIG, "at most %d variables", EXECUTE_ENV_MAX);
	w->env[w->n_env++] = text;
	return 0;
}

/* Whether the word behind a -t is a time limit as older versions took it: no name and no
 * id of a VM looks like that. */
static bool
is_old_limit(const char *word)
{
	uint64_t ms;

	return opt_ms(word, "-t", &ms, NULL) == 0 && !pick_looks_like_id(word);
}

static int
take_tty(struct execute_words *w, struct opt_scan *s, struct err *e)
{
	const char *next = s->rest || s->ended ? NULL : s->argv[s->at];

	if (!next || !is_old_limit(next)) {
		w->tty = true;
		return 0;
	}
	s->at++;
	if (!s->quiet)
		out_note("-t gives a terminal; the time limit is --timeout %s", next);
	return opt_ms(next, "--timeout", &w->timeout_ms, e);
}

/* One option; OPT_WORD and the rest are the caller's. */
static int
take_option(struct execute_words *w, int key, struct opt_scan *s, struct err *e)
{
	switch (key) {
	case OPT_TIMEOUT:
		return opt_ms(s->arg, "--timeout", &w->timeout_ms, e);
	case 'e':
		return add_env(w, s->arg, e);
	case 'w':
		w->cwd = s->arg;
		return 0;
	case 'u':
		w->user = s->arg;
		return 0;
	case 's':
		w->shell = s->arg;
		return 0;
	case 'i':
	case OPT_INTERACTIVE:
		w->stdin_on = true;
		return 0;
	case 'n':
		w->stdin_on = false;
		return 0;
	case 'T':
		w->stdin_on = w->tty = true;
		return 0;
	case 't':
		return take_tty(w, s, e);
	case 'd':
		w->detach = true;
		return 0;
	case 'A':
		w->attach = s->arg;
		return 0;
	case OPT_SSH:
		w->ssh = true;
		return 0;
	default:
		w->list = true;
		return 0;
	}
}

/* sh -c TEXT sh words…: the words are $1, $2, … of the text. */
static int
make_shell(struct execute_words *w, char *const *words, struct err *e)
{
	size_t n = 0, at = 0;

	while (words && words[n])
		n++;
	w->shell_argv = calloc(n + 5, sizeof(*w->shell_argv));
	if (!w->shell_argv)
		return err_sys(e, -ENOMEM, "command");
	w->shell_argv[at++] = "/bin/sh";
	w->shell_argv[at++] = "-c";
	w->shell_argv[at++] = w->shell;
	if (n)
		w->shell_argv[at++] = "sh";
	for (size_t i = 0; i < n; i++)
		w->shell_argv[at++] = words[i];
	w->argv = w->shell_argv;
	return 0;
}

static int
check(struct execute_words *w, char *const *command, bool json, struct err *e)
{
	bool runs = command || w->shell;

	/* -t alone is a terminal on which nobody types: what it shows can be kept. */
	if (json && w->tty && w->stdin_on)
		return err_set(e, -EINVAL,
			"--format json does not go with -it: a terminal shows the output as it comes; leave out one of them");
	if (w->ssh && (w->detach || w->attach || w->list))
		return err_set(e, -EINVAL,
			"--ssh does not go with --detach, --attach and --list: what is started over SSH ends with its connection");
	if (w->ssh && w->tty && w->timeout_ms)
		return err_set(e, -EINVAL, "--timeout does not go with --ssh --tty");
	if (w->shell && !w->shell[0])
		return err_set(e, -EINVAL, "--shell needs a command");
	if (w->shell)
		return w->attach || w->list
			       ? err_set(e, -EINVAL,
					 "--attach and --list take no command")
			       : make_shell(w, command, e);
	if (runs && (w->attach || w->list))
		return err_set(e, -EINVAL, "--attach and --list take no command");
	if (!runs && !w->attach && !w->list)
		return err_set(e, -EINVAL,
			"no command: pando execute %s -- command arguments…",
			w->vm ? w->vm : "<vm>");
	if (runs && !command[0][0])
		return err_set(e, -EINVAL, "the command is an empty word");
	if (w->tty && (w->detach || w->attach))
		return err_set(
			e, -EINVAL, "--tty does not go with --detach and --attach");
	if (w->stdin_on && w->detach)
		return err_set(e, -EINVAL,
			"--stdin does not go with --detach: what is detached has no input");
	if (w->ssh && w->tty && !w->stdin_on)
		return err_set(e, -EINVAL, "--tty needs --stdin, too, with --ssh: -it");
	w->argv = (const char *const *)command;
	return 0;
}

int
execute_parse(struct opt_scan *s, struct execute_words *w, struct err *e)
{
	char *const *command = NULL;
	int key;

	*w = (struct execute_words){0};
	while (!command && (key = opt_next(s, e)) != OPT_END) {
		if (key == OPT_HELP || key == OPT_ERROR)
			return key;
		if (key != OPT_WORD) {
			if (take_option(w, key, s, e) < 0)
				return OPT_ERROR;
		} else if (s->ended || w->vm) {
			command = s->argv + s->at - 1;
		} else {
			w->vm = s->arg;
		}
	}
	return check(w, command, s->json, e) < 0 ? OPT_ERROR : OPT_END;
}
