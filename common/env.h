/*
 * Environment variables: those on their way into a guest (what may be one, and the files
 * they lie in there), and those of a program that is started.
 *
 * Three programs read /etc/environment, each in its own way: pam_env (line by line, no
 * escapes; '#' ends a value even between quotes; a line of 1023 bytes or more falls
 * apart), systemd's EnvironmentFile= and shells (`. /etc/environment`; '$', '`' and '\'
 * mean something between double quotes). A value goes there only in a form that all three
 * read as the same bytes: single quotes, or double quotes when it has a single one and
 * nothing that a shell would expand. What has no such form (a line break, a '#', both
 * kinds of trouble, great length) goes to a second file, /etc/pando/environment, which
 * shells and systemd read; env_held_back() says why, for people to be told by name.
 */
#ifndef PANDO_COMMON_ENV_H
#define PANDO_COMMON_ENV_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

/* env_set() takes no more. */
#define ENV_NAME_MAX 255
#define ENV_VARS_MAX 256
#define ENV_BYTES_MAX (96u * 1024u) /* of all entries */

struct env {
	char **v; /* owned, NULL-terminated once something was set: "NAME=value" */
	size_t n, cap;
	size_t bytes;
	bool failed; /* env_put() and what calls it had no memory */
};

void env_done(struct env *env);
#define cleanup_env __attribute__((cleanup(env_done)))

/* Sets or replaces; entry ("NAME=value") is copied. Refused by name, -EINVAL: what is no
 * name for a shell, and values with control characters other than tab and line feed or
 * that are not UTF-8, which systemd drops. -E2BIG: more than ENV_VARS_MAX, ENV_BYTES_MAX.
 */
int env_set(struct env *env, const char *entry, struct err *e);
/* The same for the environment of a program that is started: any name, any value, without
 * limit. Out of memory is told once, by env->failed; calls after that do nothing. */
void env_put(struct env *env, const char *entry);
void env_put_value(struct env *env, const char *name, const char *value);
/* False: there was none. */
bool env_unset(struct env *env, const char *name);
/* NULL: none. */
const char *env_get(const struct env *env, const char *name);
/* All of more over what is there. */
int env_merge(struct env *env, const struct env *more, struct err *e);

/* NULL: /etc/environment can hold the entry. Else why not: "a line break". */
const char *env_held_back(const char *entry);

/* The text of /etc/environment (held_back false), or of /etc/pando/environment with all
 * that the former cannot hold: malloc'd, owned by the caller. */
int env_write(const struct env *env, bool held_back, char **ret, struct err *e);

/*
 * Two readings of a file. They agree on all that env_write() puts into /etc/environment, and
 * on little else:
 *
 *	                     as a shell (env_read)     as pam_env (env_read_pam)
 *	quotes               around any part           around the whole value
 *	a line feed in them  part of the value         ends the value
 *	\ at a line's end    joins lines within "…"    joins lines
 *	\ elsewhere          escapes, but not in '…'   part of the value
 *	#                    a comment after a space   a comment anywhere, also in quotes
 *	NAME without =       refused                   unsets NAME
 *	other nonsense       refused, with its line    passed over
 *	sets by              env_set()                 env_put()
 *
 * Neither expands anything.
 */

/* NAME=value, NAME='value', NAME="value" (with \" \\ \$ \` in it), comments, "export "
 * before a name. what names the text in errors, which say the line. */
int env_read(struct env *env, const char *what, const char *text, struct err *e);
/* As sessions of the guest get it from PAM. Out of memory: env->failed. */
void env_read_pam(struct env *env, const char *text);

/* An entry whose "{index}" and "{id}" are replaced ("{{index}}" and "{{id}}" stand for
 * the words themselves), malloc'd. NULL: out of memory. */
char *env_expand(const char *entry, unsigned index, const char *id);

#endif
