/*
 * The shim of a command: a process between the agent and the command that does nothing but
 * hold. It is the command's parent and keeps its end, and it has our ends of its pipes and
 * the record, so that the agent may end at any time, by a restart or by a crash, and the
 * next one takes the same open files from the shim (pidfd_getfd(2)) and goes on at the very
 * byte: input that was accepted, output that nobody has taken yet, and records of commands
 * that have ended are in memory that both share.
 *
 * It runs as the agent does, reads nothing that anybody says, and waits until the agent
 * kills it. Without an agent for `keep_s` it ends by itself; a command that still runs then
 * finds its pipes closed. What the command leaves behind descends from it (it is a
 * subreaper) as long as it is there.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_EXEC_SHIM_H
#define PANDO_GUEST_AGENT_SERVER_EXEC_SHIM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/wire/agent_wire.h"
#include "guest-agent/system/ring.h"
#include "guest-agent/system/spawn.h"

#define EXEC_SHIM_ARGV_MAX 16384

enum exec_state { RUNNING, DRAINING, ENDED };

/* What outlives the agent. The first part is the shim's; it is read when `ended` says so.
 * The rest is the agent's alone. */
struct exec_shim_record {
	char magic[8]; /* EXEC_SHIM_MAGIC */
	uint32_t size; /* of this struct: another build's is not understood */
	uint64_t key;  /* of the agent whose command it is, over its restarts */
	_Atomic int32_t agent, shim, pid; /* processes */
	_Atomic uint32_t ended;
	_Atomic uint32_t close_all;   /* with SIGUSR2 */
	int32_t end_code, end_status; /* waitid(2) */
	int32_t failed_step, failure; /* enum spawn_step, errno */

	uint64_t id, started_ms, order;
	uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0: no time limit */
	uint64_t stdin_ino;   /* of the pipe */
	enum exec_state state;
	bool tty, hangup, timed_out, taken, grouped;
	bool in_eof, in_closed;
	char last_in;	   /* the last byte a terminal was given; LF before the first */
	uint8_t eofs_left; /* end-of-file characters a terminal is still to be given */
	bool reading;	   /* bytes are out of a pipe and not yet in a ring */
	struct agent_exit exit;
	char message[256];
	struct ring out[2];
	struct ring in; /* start: bytes the command has taken; end: bytes accepted */
	char argv[EXEC_SHIM_ARGV_MAX]; /* JSON; for the list */
};
#define EXEC_SHIM_MAGIC "pandosh1"

/* What an agent has of one. Descriptors are owned, -1 where there is none. */
struct exec_shim {
	struct exec_shim_record *r; /* owned mapping */
	size_t bytes;
	int memory;	/* only until the start */
	int in, out[2]; /* non-blocking */
	int note;	/* readable at the command's end, and when the shim is gone */
	int pidfd;
	bool is_child;
};
#define EXEC_SHIM_INIT \
	{ \
		.memory = -1, .in = -1, .out = {-1, -1}, .note = -1, .pidfd = -1 \
	}

/* Once, before the agent opens files. Which agent this is: `where` it listens. keep_s: see
 * above. */
int exec_shim_init(const char *where, unsigned keep_s, struct err *e);
/* A record with rings of that size. */
int exec_shim_make(struct exec_shim *s, size_t in_cap, size_t out_cap, struct err *e);
/* Starts shim and command; s->in and s->out are given. */
int exec_shim_start(
	struct exec_shim *s, const struct spawn *what, unsigned slot, struct err *e);
/* The command's; 0: it was not started. */
pid_t exec_shim_pid(const struct exec_shim *s);
/* The shim gives up its input, or all its pipes: their ends are to be seen. */
void exec_shim_close(struct exec_shim *s, bool all);
/* Ends the shim and gives everything back. */
void exec_shim_done(struct exec_shim *s);
/* Tells of each shim that an agent before this one has left; take() owns what it is given. */
void exec_shim_adopt(void (*take)(struct exec_shim *s));

#endif
