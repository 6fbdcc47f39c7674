/*
 * Who a command runs as: /etc/passwd and /etc/group, read directly. The name service
 * switch is not asked, because its modules may wait for other daemons, and the agent
 * never waits.
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_USERDB_H
#define PANDO_GUEST_AGENT_SYSTEM_USERDB_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/err.h"

#define USERDB_GROUPS_MAX 128

struct user {
	uid_t uid;
	gid_t gid;
	gid_t groups[USERDB_GROUPS_MAX]; /* supplementary ones, gid included */
	size_t n_groups;
	char name[64], home[256], shell[256];
};

/* By name or number; NULL: the agent's own user. A number need not be listed: its group is
 * that number then, and its home "/". -ENOENT. Groups are looked up when with_groups. */
int user_find(const char *who, bool with_groups, struct user *ret, struct err *e);
/* The same from text, for tests. group may be NULL. */
int user_parse(const char *passwd, const char *group, const char *who, struct user *ret,
	struct err *e);

#endif
