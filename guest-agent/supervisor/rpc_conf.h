/*
 * /etc/pando/rpc.d/<name>.conf: a coding agent that a supervisor keeps. TOML.
 *
 *	command = ["pi", "--mode", "rpc"]   # or one string, for /bin/sh -c
 *	protocol = "pi"                     # pi, claude or raw (the default)
 *	folder = "/root"                    # where it works; the user's home if not said
 *	user = "root"
 *	env = ["NAME=value"]                # over /etc/environment
 *	on_fork = "keep"                    # or "restart", or "signal:USR2"
 *	dialogs = "deny"                    # or "allow", or "ask": left to who follows
 *	stop_s = 10                         # to end by itself, when it is stopped
 *	tmux = true                         # sessions to watch it in
 *	[restart]
 *	policy = "on-failure"               # or "always", or "never"
 *	delay_ms = 500                      # doubled with every failure in a row
 *	delay_max_ms = 30000
 *	limit = 5                           # failures within window_s: it is given up
 *	window_s = 300
 *	boot = true                         # again when the machine boots; not said: true
 *	                                    # unless the policy is "never"
 *	[watchdog]
 *	quiet_s = 0                         # no output that long while it works; 0: never
 *	exit_s = 0                          # done, and still there after that; 0: never
 *	action = "restart"                  # or "stop": what follows on quiet_s
 *	[journal]
 *	keep_mib = 64                       # of each, out and err
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_CONF_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "guest-agent/supervisor/rpc_proto.h"

#define RPC_CONF_MAX (256u * 1024u)
#define RPC_NAME_MAX 32

enum rpc_on_fork { RPC_FORK_KEEP, RPC_FORK_RESTART, RPC_FORK_SIGNAL };
enum rpc_restart { RPC_RESTART_ON_FAILURE, RPC_RESTART_ALWAYS, RPC_RESTART_NEVER };

struct rpc_conf {
	char **argv;	     /* owned, NULL-terminated */
	char **env;	     /* owned, NULL-terminated, or NULL */
	char *folder, *user; /* owned; NULL: not said */
	enum rpc_protocol protocol;
	enum rpc_dialogs dialogs;
	enum rpc_on_fork on_fork;
	int fork_signal;
	enum rpc_restart restart;
	bool boot; /* started again with the machine */
	uint32_t delay_ms, delay_max_ms, limit, window_s;
	uint32_t stop_s, quiet_s, exit_s;
	bool quiet_stops; /* [watchdog] action = "stop" */
	bool tmux;
	uint32_t keep_mib;
};

/* what: the file, for sentences. -EINVAL names the key and what it may be. */
int rpc_conf_parse(const char *what, const char *text, size_t len, struct rpc_conf *ret,
	struct err *e);
int rpc_conf_read(const char *path, struct rpc_conf *ret, struct err *e);
void rpc_conf_done(struct rpc_conf *c);
#define cleanup_rpc_conf __attribute__((cleanup(rpc_conf_done)))

/* [a-z0-9][a-z0-9_-]*, at most RPC_NAME_MAX: it is part of paths. */
int rpc_name_check(const char *name, struct err *e);

#endif
