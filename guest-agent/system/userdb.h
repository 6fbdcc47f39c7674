/*
 * Who a command runs as: /etc/passwd and /etc/group, read directly. The name service
 * switch is not asked, because its modules may wait for other daemons, and the agent
 * never waits. /etc/environment is read as PAM does (pam_env).
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

/* A command's environment: an array of "NAME=value". */
struct environment {
	char **v; /* owned, NULL-terminated once something was set */
	size_t n, cap;
	bool failed; /* out of memory; later calls do nothing */
};

/* Sets or replaces; entry is copied. */
void environment_set(struct environment *env, const char *entry);
void environment_setf(struct environment *env, const char *name, const char *value);
void environment_unset(struct environment *env, const char *name);
const char *environment_get(const struct environment *env, const char *name);
/* The lines of an /etc/environment over what is there. */
void environment_parse(struct environment *env, const char *text);
void environment_done(struct environment *env);
#define cleanup_environment __attribute__((cleanup(environment_done)))

/* What a golden image has for Node's random numbers in branches, and the option that loads it. */
#define ENVIRONMENT_NODE_FILE "/usr/lib/pando/node-random.cjs"
#define ENVIRONMENT_NODE_OPTION "--require=" ENVIRONMENT_NODE_FILE
/* Puts that option before what NODE_OPTIONS says, where the machine has the file. */
void environment_reach_node(struct environment *env);

/* Defaults for the user, then /etc/environment, what that cannot hold
 * (common/env.h), then given (NULL-terminated, may be
 * NULL). term: with a terminal, else NULL. */
int environment_build(struct environment *env, const struct user *u, const char *term,
	char *const *given, struct err *e);

#endif
