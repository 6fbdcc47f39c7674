/*
 * What a swarm needs from a host: a struct of verbs. The library knows no daemon, no
 * socket and no VM; `pando swarm` supplies these over pandod's API and the agent
 * protocol.
 *
 * All are called from several threads at once. They block; 0 or a negative errno with a
 * sentence. An error means that the *infrastructure* failed (no VM, a broken stream, an
 * agent that does not answer): it is retried once. A command that runs and fails is no
 * error, it is a result. A VM that is deleted while another thread waits for it makes
 * that call return an error soon.
 */
#ifndef PANDO_SWARM_OPS_H
#define PANDO_SWARM_OPS_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "swarm/spec.h"

#define SWARM_ID_SIZE 33 /* of a VM's id, with its NUL */
#define SWARM_TAIL_SIZE 4096
#define SWARM_LABEL "swarm" /* every VM of a run has the label swarm=<run id> */

enum swarm_exit {
	SWARM_EXITED,	 /* value: exit status */
	SWARM_SIGNALLED, /* value: signal */
	SWARM_TIMED_OUT, /* the time limit was over; the agent killed the process group */
	SWARM_NOT_STARTED, /* no such command, folder or user; value: errno */
};

/* The end of a stream of bytes. */
struct swarm_tail {
	char text[SWARM_TAIL_SIZE];
	size_t len;
	uint64_t total_bytes;
};

void swarm_tail_add(struct swarm_tail *tail, const void *data, size_t len);

struct swarm_result {
	enum swarm_exit kind;
	int value;
	struct swarm_tail out, err;
};

struct swarm_ops {
	/* The id of a VM by id or alias. */
	int (*find)(void *ctx, const char *vm, char ret_id[SWARM_ID_SIZE], struct err *e);
	/* Boots a machine and returns when its agent answers. */
	int (*boot)(void *ctx, const struct swarm_machine *machine, const char *run,
		char ret_id[SWARM_ID_SIZE], struct err *e);
	/* count children of one instant; all or none. Returns when their agents answer.
	 */
	int (*branch)(void *ctx, const char *vm, const char *run, size_t count,
		char (*ret_ids)[SWARM_ID_SIZE], uint64_t *ret_pause_us, struct err *e);
	/* Runs step->argv with its environment and time limit; its files are not its
	 * business. */
	int (*exec)(void *ctx, const char *vm, const struct swarm_step *step,
		struct swarm_result *ret, struct err *e);
	/* A file or tree of the host to a path of the guest, with modes. */
	int (*put)(void *ctx, const char *vm, const char *from, const char *to,
		struct err *e);
	/* A file or tree of the guest to a path of the host that does not exist yet; the
	 * caller has made the folder above it. The guest is not to be trusted: nothing
	 * outside `to` is written. */
	int (*get)(void *ctx, const char *vm, const char *from, const char *to,
		struct err *e);
	int (*alias)(void *ctx, const char *vm, const char *alias, struct err *e);
	/* Already gone is success. */
	int (*delete_vm)(void *ctx, const char *vm, struct err *e);
	/* Deletes every VM of the run. */
	int (*sweep)(void *ctx, const char *run, struct err *e);
};

#endif
