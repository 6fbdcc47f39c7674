#include "host/cli/execute.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct opt execute_options[] = {
	{'t', "timeout", "SECONDS",
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
	{'T', "tty", NULL, "give it a terminal: for programs that a person uses",
		COMPLETE_NOTHING},
	{'i', "stdin", NULL, "pass standard input on, even from a terminal",
		COMPLETE_NOTHING},
	{'n', "no-stdin", NULL, "pass none on, even from a pipe or file",
		COMPLETE_NOTHING},
	{'d', "detach", NULL, "start it, print its id and return", COMPLETE_NOTHING},
	{'A', "attach", "ID", "take up a command that was detached", COMPLETE_NOTHING},
	{257, "ssh", NULL,
		"over SSH, as a login of that user: needs openssh-server in it",
		COMPLETE_NOTHING},
	{256, "list", NULL, "list the guest's commands, as JSON", COMPLETE_NOTHING},
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

/* One option; OPT_WORD and the rest are the caller's. */
static int
take_option(struct execute_words *w, int key, const struct opt_scan *s, struct err *e)
{
	switch (key) {
	case 't':
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
		w->stdin_on = true;
		return 0;
	case 'n':
		w->stdin_off = true;
		return 0;
	case 'T':
		w->tty = true;
		return 0;
	case 'd':
		w->detach = true;
		return 0;
	case 'A':
		w->attach = s->arg;
		return 0;
	case 257:
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
check(struct execute_words *w, char *const *command, struct err *e)
{
	bool runs = command || w->shell;

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
	if (w->tty && (w->detach || w->attach || w->stdin_off))
		return err_set(e, -EINVAL,
			"--tty does not go with --detach, --attach and --no-stdin");
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
	return check(w, command, e) < 0 ? OPT_ERROR : OPT_END;
}
