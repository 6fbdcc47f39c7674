/*
 * The manual page and the completion have every verb, and every option that --help shows:
 * all three are read here as users' programs read them. What is in the table of a verb
 * (host/cli/verb.h) is what --help prints.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/paths.h"
#include "host/cli/help.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/verb.h"

#define HELP_WIDTH 90

static char *
text_of(const char *relative)
{
	char path[PATHS_MAX], *text = NULL;
	struct err e = {0};

	assert_int_equal(paths_program(relative, path, sizeof(path), NULL), 0);
	if (io_read_file(path, 1 << 22, &text, NULL, &e))
		fail_msg("%s", e.msg);
	return text;
}

static size_t
line_len(const char *line)
{
	return strcspn(line, "\n") + (line[strcspn(line, "\n")] == '\n');
}

/* Whether that word is in the text with no letter, digit or hyphen around it. */
static bool
has_word(const char *text, const char *word)
{
	static const char inner[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				    "0123456789-";
	size_t n = strlen(word);

	for (const char *at = text; (at = strstr(at, word)); at++)
		if ((at == text || !strchr(inner, at[-1])) &&
			(!at[n] || !strchr(inner, at[n])))
			return true;
	return false;
}

/* What the manual says of a verb: its headings (".It Cm <verb> …") and what follows each
 * until a heading of another one. Headings that follow each other have one text. */
static char *
section(const char *page, const char *verb)
{
	char *ret = calloc(1, strlen(page) + 1), wanted[64];
	bool in = false, heading = false;

	assert_non_null(ret);
	snprintf(wanted, sizeof(wanted), ".It Cm %s", verb);
	for (const char *at = page; *at; at += line_len(at)) {
		if (strncmp(at, ".Sh ", 4) == 0) {
			in = heading = false;
		} else if (strncmp(at, ".It Cm ", 7) == 0) {
			size_t n = strlen(wanted);
			bool ours = strncmp(at, wanted, n) == 0 && strchr(" \n", at[n]);

			in = ours || (heading && in);
			heading = true;
		} else {
			heading = false;
		}
		if (in)
			strncat(ret, at, line_len(at));
	}
	return ret;
}

static unsigned
options_missing(const char *verb, const struct opt *o, const char *text,
	const char *where, const char *long_dashes)
{
	unsigned missing = 0;
	char word[80];

	for (; o && o->key; o++) {
		if (!o->help)
			continue;
		if (o->name)
			snprintf(word, sizeof(word), "%s%s", long_dashes, o->name);
		else
			snprintf(word, sizeof(word), "%c", o->key);
		if (has_word(text, word))
			continue;
		print_error("%s: nothing of \"pando %s\" and --%s\n", where, verb,
			o->name ? o->name : word);
		missing++;
	}
	return missing;
}

static void
the_manual_has_every_verb_with_every_option(void **state)
{
	cleanup_free char *page = text_of("share/man/man1/pando.1");
	unsigned missing = 0;

	(void)state;
	for (const struct verb *const *v = verbs; *v; v++) {
		cleanup_free char *text = section(page, (*v)->name);

		if (!*text) {
			print_error("pando.1: nothing of \"pando %s\"\n", (*v)->name);
			missing++;
			continue;
		}
		/* In mdoc(7) a long option is a flag whose name begins with a hyphen. */
		missing += options_missing(
			(*v)->name, (*v)->options, text, "pando.1", "Fl -");
		for (const char *sub = (*v)->subverbs; sub && *sub;) {
			char word[64];
			size_t n = strcspn(sub, " ");

			snprintf(word, sizeof(word), "%.*s", (int)n, sub);
			if (!has_word(text, word)) {
				print_error("pando.1: nothing of \"pando %s %s\"\n",
					(*v)->name, word);
				missing++;
			}
			sub += n + strspn(sub + n, " ");
		}
		for (const char *alias = (*v)->aliases; alias && *alias;) {
			char word[64];
			size_t n = strcspn(alias, " ");

			snprintf(word, sizeof(word), "%.*s", (int)n, alias);
			if (!has_word(text, word)) {
				print_error(
					"pando.1: nothing of \"%s\", which is \"%s\"\n",
					word, (*v)->name);
				missing++;
			}
			alias += n + strspn(alias + n, " ");
		}
	}
	missing += options_missing("<verb>", opt_common, page, "pando.1", "Fl -");
	assert_int_equal(missing, 0);
}

static void
no_line_of_help_is_wider_than_a_terminal(void **state)
{
	unsigned wide = 0;

	(void)state;
	for (const struct verb *const *v = verbs; *v; v++) {
		cleanup_free char *text = NULL;
		size_t size = 0;
		FILE *f = open_memstream(&text, &size);

		assert_non_null(f);
		help_verb(f, *v);
		assert_int_equal(fclose(f), 0);
		for (const char *at = text; *at; at += line_len(at)) {
			if (out_width(at) - out_width(at + strcspn(at, "\n")) <= HELP_WIDTH)
				continue;
			print_error("pando help %s: %.*s\n", (*v)->name,
				(int)strcspn(at, "\n"), at);
			wide++;
		}
	}
	assert_int_equal(wide, 0);
}

/* As the shell sees it: what is offered after "pando <verb> -". */
static char *
offered(const char *verb)
{
	char command[PATHS_MAX + 512], script[PATHS_MAX];
	char *ret = calloc(1, 65536);
	FILE *f;

	assert_non_null(ret);
	assert_int_equal(paths_program("share/bash-completion/completions/pando", script,
				 sizeof(script), NULL),
		0);
	snprintf(command, sizeof(command),
		"bash -c '. \"%s\"; COMP_WORDS=(pando %s -); COMP_CWORD=%d; _pando; printf \"%%s\\n\" \"${COMPREPLY[@]}\"'",
		script, verb, *verb ? 2 : 1);
	f = popen(command, "re");
	assert_non_null(f);
	(void)!fread(ret, 1, 65535, f);
	assert_int_equal(pclose(f), 0);
	return ret;
}

static void
completion_offers_every_option_of_every_verb(void **state)
{
	unsigned missing = 0;

	(void)state;
	for (const struct verb *const *v = verbs; *v; v++) {
		cleanup_free char *text = offered((*v)->name);

		for (const struct opt *o = (*v)->options; o && o->key; o++) {
			char word[80];

			snprintf(word, sizeof(word), "--%s", o->name ? o->name : "");
			if (!o->help || !o->name || has_word(text, word))
				continue;
			print_error("completion: nothing of \"pando %s %s\"\n",
				(*v)->name, word);
			missing++;
		}
		if (!has_word(text, "--format") || !has_word(text, "--help")) {
			print_error(
				"completion: \"pando %s\" is not known\n", (*v)->name);
			missing++;
		}
	}
	assert_int_equal(missing, 0);
}

static void
completion_offers_every_verb(void **state)
{
	cleanup_free char *script = text_of("share/bash-completion/completions/pando");
	cleanup_free char *zsh = text_of("share/zsh/site-functions/_pando");
	const char *words = strstr(script, "-eq 1 ]");
	cleanup_free char *all = NULL;

	(void)state;
	assert_non_null(words);
	all = strndup(
		words, strcspn(words, "=") + 1 + strcspn(strchr(words, '=') + 1, "="));
	for (const struct verb *const *v = verbs; *v; v++) {
		char entry[80];

		if (!has_word(all, (*v)->name))
			fail_msg("bash is not offered \"pando %s\"", (*v)->name);
		snprintf(entry, sizeof(entry), "'%s:", (*v)->name);
		if (!strstr(zsh, entry))
			fail_msg("zsh is not offered \"pando %s\"", (*v)->name);
	}
}

/* Nothing in the manual that is not there any more. */
static void
the_manual_has_no_verb_that_is_none(void **state)
{
	cleanup_free char *page = text_of("share/man/man1/pando.1");
	const char *at = strstr(page, ".Sh VERBS\n"), *end;

	(void)state;
	assert_non_null(at);
	end = strstr(at + 1, "\n.Sh ");
	for (; at < end; at += line_len(at)) {
		char name[64];

		if (sscanf(at, ".It Cm %63[a-z-]", name) == 1 && !verb_find(name))
			fail_msg("pando.1 has \"pando %s\", which is no verb", name);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_manual_has_every_verb_with_every_option),
		cmocka_unit_test(no_line_of_help_is_wider_than_a_terminal),
		cmocka_unit_test(the_manual_has_no_verb_that_is_none),
		cmocka_unit_test(completion_offers_every_option_of_every_verb),
		cmocka_unit_test(completion_offers_every_verb),
	};

	verb_use(verbs);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
