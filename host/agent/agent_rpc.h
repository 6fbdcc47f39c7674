/*
 * The host's side of a guest's kept coding agents and reports (guest-agent/supervisor/rpc.h,
 * guest-agent/supervisor/report.h): commands of the guest's own agent, run in the guest as any other
 * (host/agent/agent_client.h, whose errors these have, too). A guest may be hostile: what it
 * says is checked and bounded.
 */
#ifndef PANDO_HOST_AGENT_AGENT_RPC_H
#define PANDO_HOST_AGENT_AGENT_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* The guest's agent, as a program in the guest: between clone and execve that is what
 * /proc/self/exe is there. */
#define AGENT_ITSELF "/proc/self/exe"

/* Runs the agent with these words (NULL-terminated, without the program); *ret: what it
 * answers on stdout, malloc'd, terminated, at most max bytes (more is -EFBIG). Its own
 * failure comes as the code of its exit status and its sentence. wake_fd (-1: none):
 * readable ends the call with -ECANCELED. timeout_ms 0: as long as it takes. */
int agent_rpc_call(const char *socket_path, const char *const *words, const void *input,
	size_t input_len, size_t max, int timeout_ms, int wake_fd, char **ret,
	struct err *e);

/*
 * What `rpc follow --framed` says, taken apart (guest-agent/supervisor/rpc_follow.h). A line is
 * handed over when all of it is there.
 */
#define RPC_LINE_MAX (16u * 1024u * 1024u + 1)
struct rpc_line {
	uint64_t number, offset, time_ms;
	uint32_t len;		     /* with its LF */
	bool piece;		     /* the line goes on in the next one */
	bool torn;		     /* cut off: no line */
	char vm[13], generation[33]; /* "" not known */
	const char *text;	     /* borrowed */
};
struct rpc_frames {
	char *buf; /* owned */
	size_t len, cap;
	struct rpc_line line; /* whose bytes are awaited */
	bool in_line, over;
	/* Negative: ends it with that code. */
	int (*on_line)(void *ctx, const struct rpc_line *l);
	void (*on_gap)(void *ctx, uint64_t offset, uint64_t next);
	void *ctx;
	uint64_t next;	   /* where to go on */
	bool done, failed; /* a prompt ended */
	bool begun;
	char reason[64];
};
/* -EPROTO: what follows cannot be. */
int rpc_frames_feed(struct rpc_frames *f, const void *buf, size_t len, struct err *e);
void rpc_frames_done(struct rpc_frames *f);
#define cleanup_rpc_frames __attribute__((cleanup(rpc_frames_done)))

struct agent_rpc_follow {
	const char *name;   /* NULL: the only one */
	const char *stream; /* "out" or "err"; NULL: out */
	const char *root;   /* of the guest's files, for tests; NULL */
	uint64_t from;
	bool from_end, until_done;
	bool once;   /* only what is there now */
	int wake_fd; /* -1: none */
	int (*on_line)(void *ctx, const struct rpc_line *l);
	void (*on_gap)(void *ctx, uint64_t offset, uint64_t next);
	/* The connection broke and is made again; may be NULL. */
	void (*on_break)(void *ctx, const struct err *why);
	void *ctx;
};
struct agent_rpc_followed {
	uint64_t next; /* where to go on */
	bool failed;   /* until_done: it went not well */
	char reason[64];
};
/* Follows over broken connections, restarts of the guest's agent and its supervisor, from
 * where it was: no line twice, none left out but those of on_gap. Ends on until_done,
 * once, what a callback says, wake_fd, or when the VM is gone. ret is filled in any case.
 */
int agent_rpc_follow(const char *socket_path, const struct agent_rpc_follow *spec,
	struct agent_rpc_followed *ret, struct err *e);

/* What a command of the agent's own program said of its failure on stderr, as an error:
 * the code by its status, the sentence without the program's name. */
int agent_command_failed(int status, const char *said, size_t len, struct err *e);

#endif
