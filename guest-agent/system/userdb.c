#include "guest-agent/system/userdb.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define FILE_MAX (1u << 20)

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
