#include "guest-agent/system/userdb.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/env.h"
#include "common/io.h"
#include "guest-agent/system/guest_machine.h"

#define FILE_MAX (1u << 20)
#define LOCALE_DEFAULT "C.UTF-8"

/* The next line of *text, without its LF; false at the end. */
static bool
next_line(const char **text, const char **line, size_t *len)
{
	if (!**text)
		return false;
	*line = *text;
	*len = strcspn(*text, "\n");
	*text += *len;
	if (**text)
		(*text)++;
	return true;
}

/* Field i of a line with colons. */
static bool
field(const char *line, size_t len, unsigned i, const char **ret, size_t *ret_len)
{
	const char *end = line + len;

	while (i--) {
		line = memchr(line, ':', (size_t)(end - line));
		if (!line)
			return false;
		line++;
	}
	*ret = line;
	len = (size_t)(end - line);
	const char *colon = memchr(line, ':', len);
	*ret_len = colon ? (size_t)(colon - line) : len;
	return true;
}

static bool
field_number(const char *line, size_t len, unsigned i, unsigned *ret)
{
	const char *f;
	size_t n;
	unsigned long v = 0;

	if (!field(line, len, i, &f, &n) || !n || n > 10)
		return false;
	for (size_t k = 0; k < n; k++) {
		if (f[k] < '0' || f[k] > '9')
			return false;
		v = v * 10 + (unsigned long)(f[k] - '0');
	}
	if (v > 0xfffffffeul)
		return false;
	*ret = (unsigned)v;
	return true;
}

static bool
field_copy(const char *line, size_t len, unsigned i, char *dst, size_t cap)
{
	const char *f;
	size_t n;

	if (!field(line, len, i, &f, &n) || n >= cap)
		return false;
	memcpy(dst, f, n);
	dst[n] = 0;
	return true;
}

static void
find_groups(const char *text, struct user *u)
{
	size_t name_len = strlen(u->name), len;
	const char *line;

	u->groups[0] = u->gid;
	u->n_groups = 1;
	while (next_line(&text, &line, &len) && u->n_groups < USERDB_GROUPS_MAX) {
		const char *f;
		size_t n;
		unsigned gid;

		if (!field_number(line, len, 2, &gid) || gid == u->gid ||
			!field(line, len, 3, &f, &n))
			continue;
		while (n) {
			const char *comma = memchr(f, ',', n);
			size_t part = comma ? (size_t)(comma - f) : n;

			if (part == name_len && memcmp(f, u->name, part) == 0) {
				u->groups[u->n_groups++] = gid;
				break;
			}
			f += part + !!comma;
			n -= part + !!comma;
		}
	}
}

int
user_parse(const char *passwd, const char *group, const char *who, struct user *ret,
	struct err *e)
{
	bool number = *who && strspn(who, "0123456789") == strlen(who);
	unsigned long wanted = number ? strtoul(who, NULL, 10) : 0;
	const char *line;
	size_t len;

	while (next_line(&passwd, &line, &len)) {
		struct user u = {0};
		unsigned uid, gid;

		if (!field_copy(line, len, 0, u.name, sizeof(u.name)) ||
			!field_number(line, len, 2, &uid) ||
			!field_number(line, len, 3, &gid))
			continue;
		if (number ? uid != wanted : strcmp(u.name, who) != 0)
			continue;
		u.uid = uid;
		u.gid = gid;
		if (!field_copy(line, len, 5, u.home, sizeof(u.home)) || !*u.home)
			strcpy(u.home, "/");
		if (!field_copy(line, len, 6, u.shell, sizeof(u.shell)) || !*u.shell)
			strcpy(u.shell, "/bin/sh");
		if (group)
			find_groups(group, &u);
		*ret = u;
		return 0;
	}
	return err_set(e, -ENOENT, "no user \"%.64s\" in the guest's /etc/passwd", who);
}

/* A number without an entry is a user, too, as images of containers have them. */
static bool
is_free_number(const char *who, struct user *ret)
{
	unsigned number;

	if (!field_number(who, strlen(who), 0, &number))
		return false;
	*ret = (struct user){.uid = number,
		.gid = number,
		.groups = {number},
		.n_groups = 1,
		.home = "/",
		.shell = "/bin/sh"};
	snprintf(ret->name, sizeof(ret->name), "%u", number);
	return true;
}

int
user_find(const char *who, bool with_groups, struct user *ret, struct err *e)
{
	cleanup_free char *passwd = NULL, *group = NULL;
	char own[16];
	int r;

	snprintf(own, sizeof(own), "%u", geteuid());
	r = io_read_file("/etc/passwd", FILE_MAX, &passwd, NULL, e);
	if (r && r != -ENOENT && who)
		return r;
	if (with_groups && who) {
		r = io_read_file("/etc/group", FILE_MAX, &group, NULL, e);
		if (r && r != -ENOENT)
			return r;
	}
	r = user_parse(passwd ? passwd : "", group, who ? who : own, ret, who ? e : NULL);
	if (r == -ENOENT && who && is_free_number(who, ret))
		return 0;
	if (!r || who)
		return r;
	*ret = (struct user){
		.uid = geteuid(), .gid = getegid(), .shell = "/bin/sh", .home = "/"};
	strcpy(ret->name, geteuid() ? own : "root");
	return 0;
}

static size_t
name_len(const char *entry)
{
	return strcspn(entry, "=");
}

static char **
find(const struct environment *env, const char *name, size_t len)
{
	for (size_t i = 0; i < env->n; i++)
		if (strncmp(env->v[i], name, len) == 0 && env->v[i][len] == '=')
			return &env->v[i];
	return NULL;
}

void
environment_set(struct environment *env, const char *entry)
{
	char **slot = find(env, entry, name_len(entry)), *copy;

	if (env->failed)
		return;
	copy = strdup(entry);
	if (copy && !slot && env->n + 2 > env->cap) {
		size_t cap = env->cap ? 2 * env->cap : 16;
		char **bigger = reallocarray(env->v, cap, sizeof(*bigger));

		if (!bigger) {
			free(copy);
			copy = NULL;
		} else {
			env->v = bigger;
			env->cap = cap;
		}
	}
	if (!copy) {
		env->failed = true;
		return;
	}
	if (slot) {
		free(*slot);
		*slot = copy;
		return;
	}
	env->v[env->n++] = copy;
	env->v[env->n] = NULL;
}

void
environment_setf(struct environment *env, const char *name, const char *value)
{
	char *entry;

	if (asprintf(&entry, "%s=%s", name, value) < 0) {
		env->failed = true;
		return;
	}
	environment_set(env, entry);
	free(entry);
}

void
environment_unset(struct environment *env, const char *name)
{
	char **slot = find(env, name, strlen(name));

	if (!slot)
		return;
	free(*slot);
	*slot = env->v[--env->n];
	env->v[env->n] = NULL;
}

const char *
environment_get(const struct environment *env, const char *name)
{
	char **slot = find(env, name, strlen(name));

	return slot ? *slot + strlen(name) + 1 : NULL;
}

/* One line, as pam_env takes /etc/environment: "export" is skipped, # starts a comment
 * anywhere, the name is letters, digits and _, one pair of quotes around the value goes,
 * a name without "=" is unset. */
static void
parse_line(struct environment *env, char *s)
{
	size_t i, t;

	s += strspn(s, " \t");
	if (strncmp(s, "export ", 7) == 0) {
		s += 7;
		s += strspn(s, " \t");
	}
	s[strcspn(s, "#")] = 0;
	for (t = strlen(s); t && isspace((unsigned char)s[t - 1]); t--)
		s[t - 1] = 0;
	for (i = 0; isalnum((unsigned char)s[i]) || s[i] == '_'; i++)
		;
	if (!i || (s[i] && s[i] != '='))
		return;
	if (!s[i]) {
		environment_unset(env, s);
		return;
	}
	i++;
	if (s[i] == '"' || s[i] == '\'') {
		/* Only the last character may be a closing quote; others stay. */
		for (t = i + 1; s[t]; t++)
			if ((s[t] != '"' && s[t] != '\'') || s[t + 1])
				s[i++] = s[t];
		s[i] = 0;
	}
	environment_set(env, s);
}

void
environment_parse(struct environment *env, const char *text)
{
	const char *line;
	size_t len;

	while (next_line(&text, &line, &len)) {
		char *copy = malloc(len + 1);
		size_t n = 0;

		if (!copy) {
			env->failed = true;
			return;
		}
		memcpy(copy, line, len);
		n = len;
		/* A backslash at the end of a line goes on on the next. */
		while (n && copy[n - 1] == '\\' && next_line(&text, &line, &len)) {
			char *bigger = realloc(copy, n + len + 1);

			if (!bigger) {
				free(copy);
				env->failed = true;
				return;
			}
			copy = bigger;
			memcpy(copy + n - 1, line, len);
			n += len - 1;
		}
		copy[n] = 0;
		parse_line(env, copy);
		free(copy);
	}
}

void
environment_done(struct environment *env)
{
	for (size_t i = 0; i < env->n; i++)
		free(env->v[i]);
	free(env->v);
	*env = (struct environment){0};
}

/* The locale as a login has it, from Debian's file or systemd's. Where neither names one, text
 * is UTF-8 all the same: in the locale "C" tmux shows "_" for every other sign, and Python and
 * Perl read file names as ASCII. */
static void
set_locale(struct environment *env)
{
	static const char *const files[] = {"/etc/locale.conf", "/etc/default/locale"};

	environment_setf(env, "LANG", LOCALE_DEFAULT);
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		cleanup_free char *text = NULL;

		if (!machine_read(files[i], FILE_MAX, &text, NULL))
			environment_parse(env, text);
	}
}

void
environment_reach_node(struct environment *env)
{
	const char *given = environment_get(env, "NODE_OPTIONS");
	cleanup_free char *all = NULL;
	char path[PATH_MAX];

	if (access(machine_path(path, ENVIRONMENT_NODE_FILE), F_OK) ||
		(given && strstr(given, ENVIRONMENT_NODE_OPTION)))
		return;
	if (asprintf(&all, ENVIRONMENT_NODE_OPTION "%s%s", given && *given ? " " : "",
		    given ? given : "") < 0) {
		all = NULL;
		env->failed = true;
		return;
	}
	environment_setf(env, "NODE_OPTIONS", all);
}

int
environment_build(struct environment *env, const struct user *u, const char *term,
	char *const *given, struct err *e)
{
	cleanup_free char *text = NULL, *rest = NULL;
	cleanup_env struct env held_back = {0};

	environment_setf(env, "PATH",
		u->uid ? "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
		       : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	environment_setf(env, "HOME", u->home);
	environment_setf(env, "USER", u->name);
	environment_setf(env, "LOGNAME", u->name);
	environment_setf(env, "SHELL", u->shell);
	if (term)
		environment_setf(env, "TERM", term);
	set_locale(env);
	/* None, or one that cannot be read: then without. */
	if (!machine_read("/etc/environment", FILE_MAX, &text, NULL))
		environment_parse(env, text);
	if (!machine_read("/etc/pando/environment", FILE_MAX, &rest, NULL) &&
		!env_read(&held_back, "", rest, NULL))
		for (size_t i = 0; i < held_back.n; i++)
			environment_set(env, held_back.v[i]);
	for (; given && *given; given++)
		environment_set(env, *given);
	environment_reach_node(env);
	return env->failed ? err_sys(e, -ENOMEM, "the command's environment") : 0;
}
