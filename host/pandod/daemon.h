/*
 * What pandod has, and the one order in which it is opened and closed: the home's lock and
 * socket, scopes, the tree of VMs, commits (store, materialized images, pool), the API. pandod.c
 * has arguments, signals and the loop.
 */
#ifndef PANDO_HOST_PANDOD_DAEMON_H
#define PANDO_HOST_PANDOD_DAEMON_H

#include "common/err.h"
#include "common/paths.h"
#include "host/commit/commits.h"
#include "host/scope/scope.h"
#include "host/vm/tree.h"

struct daemon_config {
	struct tree_config tree; /* but its scopes, which daemon_open() opens */
	struct commits_config commits;
	enum scopes_use scopes;
	const char *scopes_group; /* scopes_open(); borrowed */
	char socket[PATHS_MAX];
};

/* Where everything is, by the environment, and the defaults; makes the home. */
int daemon_defaults(struct daemon_config *ret, struct err *e);
/* daemon_config.c: [pool] and [scopes] of <home>/pandod.toml into config; a file that is not
 * there changes nothing. */
int daemon_settings(struct daemon_config *config, struct err *e);

/* 1: the home is ours as long as *ret_fd is open. 0: another pandod runs here and answers. */
int daemon_lock(const struct daemon_config *config, int *ret_fd, struct err *e);
/* Descriptors for as many VMs as there can be, and the VMMs' orphans. */
void daemon_raise_limits(void);

struct daemon;

/* Serves when it returns. The caller holds daemon_lock(). shutdown: called, from any thread,
 * for POST /v1/shutdown. */
int daemon_open(const struct daemon_config *config, void (*shutdown)(void *ctx),
	void *ctx, struct daemon **ret, struct err *e);
/* The calls that are under way end; none is served any more. */
void daemon_stop(struct daemon *d);
/* The VMs go on. Stops it first, where nobody did. */
void daemon_close(struct daemon *d);

/* For the main loop: readable when daemon_dispatch() has something to do. */
int daemon_fd(const struct daemon *d);
void daemon_dispatch(struct daemon *d);

#endif
