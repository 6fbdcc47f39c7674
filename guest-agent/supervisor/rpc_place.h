/*
 * Where a kept coding agent lives in the machine:
 *
 *	/etc/pando/rpc.d/<name>.conf     what it is (rpc_conf.h)
 *	/tmp/<name>-rpc/                 leads to its folder, which is
 *	/var/lib/pando/rpc/<name>/       mode 0700:
 *	  in                             FIFO: lines of at most 4096 bytes (rpc send has
 *	                                 no such limit)
 *	  out, err                       what it wrote; .index beside each
 *	                                 (rpc_journal.h)
 *	  epochs                         who the machine was when
 *	  spool, spool.state             lines on their way to it (rpc_spool.h)
 *	  state                          JSON: what the supervisor says of itself
 *	  ended                          where in out the last program's end is
 *	  keeper.log
 *	  wanted                         is there while it is to be kept
 *	  was-wanted                     it was, when something other than rpc stop ended
 *	                                 its supervisor
 *	  run/                           of the shim (shim.h)
 *	  lock.keeper, lock.holder       locked by the supervisor and the shim
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_PLACE_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_PLACE_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "common/err.h"
#include "guest-agent/supervisor/rpc_conf.h"

struct rpc_place {
	char name[RPC_NAME_MAX + 1];
	char path[PATH_MAX]; /* of the folder */
	char conf[PATH_MAX];
	int dir; /* owned; -1 */
};
#define RPC_PLACE_INIT \
	{ \
		.dir = -1 \
	}

/* For trying it and for tests: all of the above below this folder, also /etc/environment
 * and /run/pando. Borrowed; "" and "/": none. */
void rpc_root_set(const char *root);
const char *rpc_root(void); /* "" or a folder */
/* The file of that absolute path below the root. -ENAMETOOLONG. */
int rpc_path(char dst[static PATH_MAX], const char *path, struct err *e);

/* make: the folder and its FIFO are made when they are missing; else -ENOENT. */
int rpc_place_open(const char *name, bool make, struct rpc_place *ret, struct err *e);
void rpc_place_done(struct rpc_place *p);
#define cleanup_rpc_place __attribute__((cleanup(rpc_place_done)))
/* /tmp/<name>-rpc. What somebody else left there is not touched: -EEXIST. */
int rpc_place_link(const struct rpc_place *p, struct err *e);
/* The one name in rpc.d; several or none is an error that lists them. */
int rpc_place_only(char ret[static RPC_NAME_MAX + 1], struct err *e);

/* Locks, by the names that they have on disks. */
#define RPC_LOCK_SUPERVISOR "keeper"
#define RPC_LOCK_SHIM "holder"
/* The process that has lock.<what>, 0: none; -errno. */
pid_t rpc_lock_owner(const struct rpc_place *p, const char *what);
/* Takes it for this process, till its end. -EBUSY. */
int rpc_lock_take(const struct rpc_place *p, const char *what, struct err *e);

/* Temporary file and rename; nothing is synced. */
int rpc_write_file(int dir, const char *name, const void *buf, size_t len);
/* At most cap - 1 bytes, terminated; the count or -errno. */
ssize_t rpc_read_file(int dir, const char *name, char *buf, size_t cap);

/* Who the machine is: /run/pando/{identity,generation}. Texts empty: not known. */
struct rpc_identity {
	char vm[13];	     /* 12 hex digits */
	char generation[33]; /* 32 hex digits */
};
void rpc_identity_read(struct rpc_identity *ret);

#endif
