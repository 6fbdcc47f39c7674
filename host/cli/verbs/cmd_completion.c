/* Completion scripts for bash and zsh, from the tables of the verbs. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_completion;

static const struct opt options[] = {
	{256, "vms", NULL, NULL,
		COMPLETE_NOTHING}, /* what the scripts call for names of VMs */
	{257, "commits", NULL, NULL, COMPLETE_NOTHING}, /* and for those of commits */
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* Names and ids of what a running pandod has; silence without one: a Tab starts no
 * daemon. */
static int
print_vms(void)
{
	cleanup_client_vms struct client_vms vms = {0};
	cleanup_client struct client *c = NULL;

	if (client_open(NULL, 0, &c, NULL) < 0 ||
		client_list(c, NULL, &vms, NULL, NULL) < 0)
		return EXIT_OK;
	for (size_t i = 0; i < vms.n; i++)
		puts(client_vm_name(&vms.v[i]));
	return EXIT_OK;
}

static int
print_commits(void)
{
	cleanup_client_points struct client_points all = {0};
	cleanup_client struct client *c = NULL;

	/* The newest: nobody reads more of them. */
	if (client_open(NULL, 0, &c, NULL) < 0 ||
		client_points_page(c, NULL, "", 0, &all, NULL, NULL) < 0)
		return EXIT_OK;
	for (size_t i = 0; i < all.n; i++) {
		for (char **tag = all.v[i].tags; *tag; tag++)
			puts(*tag);
		printf("%.12s\n", all.v[i].id);
	}
	return EXIT_OK;
}

static void
names(const char *between)
{
	for (const struct verb *const *v = verb_all(); *v; v++)
		printf("%s%s", v == verb_all() ? "" : between, (*v)->name);
}

/* "run|r": the verb as a shell pattern. */
static void
pattern(const struct verb *v)
{
	printf("%s", v->name);
	for (const char *a = v->aliases; a && *a;) {
		size_t n = strcspn(a, " ");

		printf("|%.*s", (int)n, a);
		a += n + strspn(a + n, " ");
	}
}

/* The shell words that stand for a kind of argument; f and d are the shell's own files
 * and folders. */
static void
kind(enum complete what, const char *arg)
{
	switch (what) {
	case COMPLETE_VM:
		printf("v=$(pando completion --vms 2>/dev/null)");
		break;
	case COMPLETE_COMMIT:
		printf("v=$(pando completion --commits 2>/dev/null)");
		break;
	case COMPLETE_VM_OR_COMMIT:
		printf("v=$(pando completion --vms 2>/dev/null; pando completion --commits 2>/dev/null)");
		break;
	case COMPLETE_FILE:
		printf("f=1");
		break;
	case COMPLETE_FOLDER:
		printf("d=1");
		break;
	case COMPLETE_IMAGE:
		printf("f=1; v=$(cd \"${PANDO_IMAGES:-${XDG_CACHE_HOME:-$HOME/.cache}/pando/"
		       "images}\" 2>/dev/null && printf '%%s\\n' *)");
		break;
	case COMPLETE_VERB:
		printf("v='");
		names(" ");
		printf("'");
		break;
	case COMPLETE_WORDS:
		printf("v='");
		for (; *arg; arg++)
			putchar(*arg == '|' ? ' ' : *arg);
		printf("'");
		break;
	default:
		printf(":");
	}
}

/* case arms of one table: what follows an option that takes an argument. */
static void
arguments(const struct opt *o)
{
	for (; o && o->key; o++) {
		if (!o->arg)
			continue;
		printf("\t\t");
		if (o->key < 128)
			printf("-%c%s", o->key, o->name ? "|" : "");
		printf("%s%s) ", o->name ? "--" : "", o->name ? o->name : "");
		kind(o->complete, o->arg);
		printf("; r=1;;\n");
	}
}

static void
switches(const struct opt *o)
{
	for (; o && o->key; o++)
		if (o->help && o->name)
			printf(" --%s", o->name);
}

/* _pando_words VERB PREVIOUS CURRENT: sets v (words), f (files), d (folders). Plain
 * enough for both shells. */
static void
shared(void)
{
	printf("_pando_words() {\n\tlocal r=\n\tv= f= d=\n\tcase $1 in\n");
	for (const struct verb *const *each = verb_all(); *each; each++) {
		const struct verb *v = *each;

		printf("\t");
		pattern(v);
		printf(")\n\t\tcase $2 in\n");
		arguments(v->options);
		arguments(opt_common);
		printf("\t\tesac\n\t\t[ -n \"$r\" ] && return\n\t\tcase $3 in\n\t\t-*) v='");
		switches(v->options);
		switches(opt_common);
		printf("'; return;;\n\t\tesac\n");
		if (v->subverbs)
			printf("\t\t[ \"$2\" = \"$1\" ] && { v='%s'; return; }\n",
				v->subverbs);
		printf("\t\t");
		/* The sides of a copy are files here or VMs. */
		if (v->words == COMPLETE_FILE) {
			printf("f=1; v=$(pando completion --vms 2>/dev/null | sed 's/$/:/')");
		} else {
			kind(v->words, "bash|zsh");
		}
		printf(";;\n");
	}
	printf("\tesac\n}\n");
}

static void
bash(void)
{
	shared();
	printf("_pando() {\n"
	       "\tlocal cur=${COMP_WORDS[COMP_CWORD]} v f d\n"
	       "\tCOMPREPLY=()\n"
	       "\tif [ \"$COMP_CWORD\" -eq 1 ]; then\n\t\tv='");
	names(" ");
	printf("' f= d=\n"
	       "\telse\n"
	       "\t\t_pando_words \"${COMP_WORDS[1]}\" \"${COMP_WORDS[COMP_CWORD-1]}\" \"$cur\"\n"
	       "\tfi\n"
	       "\tlocal IFS=$' \\t\\n'\n"
	       "\tCOMPREPLY=($(compgen -W \"$v\" -- \"$cur\"))\n"
	       "\tIFS=$'\\n'\n"
	       "\t[ -n \"$f\" ] && COMPREPLY+=($(compgen -f -- \"$cur\"))\n"
	       "\t[ -n \"$d\" ] && COMPREPLY+=($(compgen -d -- \"$cur\"))\n"
	       "\tcase ${COMPREPLY[*]} in *:) compopt -o nospace 2>/dev/null;; esac\n"
	       "\t[ -n \"$f$d\" ] && compopt -o filenames 2>/dev/null\n"
	       "\treturn 0\n"
	       "}\n"
	       "complete -F _pando pando\n");
}

static void
zsh(void)
{
	printf("#compdef pando\n");
	shared();
	printf("_pando() {\n"
	       "\tlocal v f d\n"
	       "\tif (( CURRENT == 2 )); then\n"
	       "\t\tlocal -a verbs\n\t\tverbs=(\n");
	for (const struct verb *const *v = verb_all(); *v; v++) {
		printf("\t\t\t'%s:", (*v)->name);
		for (const char *p = (*v)->summary; *p; p++)
			printf(*p == '\'' ? "'\\''" : "%c", *p);
		printf("'\n");
	}
	printf("\t\t)\n"
	       "\t\t_describe verb verbs\n"
	       "\t\treturn\n"
	       "\tfi\n"
	       "\t_pando_words \"${words[2]}\" \"${words[CURRENT-1]}\" \"${words[CURRENT]}\"\n"
	       "\t[[ -n $v ]] && compadd -- ${=v}\n"
	       "\t[[ -n $f ]] && _files\n"
	       "\t[[ -n $d ]] && _files -/\n"
	       "\treturn 0\n"
	       "}\n"
	       "if [ \"$funcstack[1]\" = _pando ]; then _pando \"$@\"; else compdef _pando pando; fi\n");
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_completion, argc, argv);
	const char *shell = NULL;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == 256)
			return print_vms();
		if (key == 257)
			return print_commits();
		if (key != OPT_WORD)
			return opt_leave(&s, key, &e);
		shell = s.arg;
	}
	if (shell && strcmp(shell, "bash") == 0) {
		bash();
	} else if (shell && strcmp(shell, "zsh") == 0) {
		zsh();
	} else {
		err_set(&e, -EINVAL, "completion is for bash or zsh");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	return EXIT_OK;
}

const struct verb verb_completion = {
	.name = "completion",
	.summary = "Prints a completion script for a shell",
	.run = run,
	.usage = "bash|zsh",
	.options = options,
	.text = "bash: eval \"$(pando completion bash)\"    zsh: eval \"$(pando completion zsh)\"",
	.words = COMPLETE_WORDS,
};
