/*
 * What the files of a connection share; nobody else includes this. Each calls only those
 * above it:
 *
 *	conn_table.c  all connections: a new one, the end of one
 *	conn_out.c    what goes out
 *	conn_ask.c    what is asked for
 *	conn.c        what comes in
 *
 * Commands, dials and the identity handshake know nothing of connections: they tell the
 * listeners that conn_ask.c gives them.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_CONN_PRIV_H
#define PANDO_GUEST_AGENT_SERVER_CONN_PRIV_H

#include <stddef.h>
#include <stdint.h>

#include "common/json.h"
#include "common/wire/agent_frame.h"
#include "common/wire/tar.h"
#include "guest-agent/server/conn.h"
#include "guest-agent/server/agent_request.h"
#include "guest-agent/system/loop.h"

enum role {
	AT_CONNECT, /* waits for "CONNECT <port>\n" */
	AT_REQUEST,
	IN_EXEC,
	IN_PUT, /* for a moment: a process takes the connection over */
	IN_GET,
	IN_HANDSHAKE,
	DIALLING, /* the answer comes when the port has said yes or no */
	STAYING,
	DONE, /* the last word is said or queued; waits for the peer to close */
};

/* A frame on its way out: its head, and for output a piece of the command's journal. */
struct out_frame {
	uint8_t head[sizeof(struct agent_frame_hdr) + sizeof(struct agent_exit) + 256];
	size_t head_len, head_at;
	int stream;
	uint64_t from, to;
};

struct conn {
	struct conn *next; /* first: loop_free() writes here */
	struct source src;
	struct deferred flush;
	struct timer deadline;
	enum role role;
	uint32_t number;
	bool read_eof, superseded, dead, is_host;

	char *rx; /* owned */
	size_t rx_len, rx_cap;
	char *tx; /* owned: answers, control frames, file data */
	size_t tx_at, tx_len, tx_cap;
	struct out_frame frame[3];
	unsigned n_frames, frame_at;

	struct exec *exec;   /* weak: the table's, told by detach and taken */
	uint64_t claimed[2]; /* of each stream, what frames were made of */
	bool with_stdin, closed_told, exit_told;
	uint64_t credit_told;

	struct dial *dial;	   /* owned, while DIALLING */
	struct tar_unpack *unpack; /* owned, while IN_PUT */
	struct tar_pack *pack;	   /* owned */
};

#define container_of(p, type, member) \
	((type *)(void *)((char *)(p)-offsetof(type, member)))

/*
 * conn_table.c. After conn_drop() the connection is `dead` and nobody's any more: its memory
 * goes when the loop's turn is over.
 */
/* NULL: there are CONN_MAX, or no memory; then fd remains the caller's. */
struct conn *conn_new(int fd);
unsigned conn_count(void);
void conn_drop(struct conn *c);
/* Descriptors of a copy that is over are not held until the peer closes. */
void conn_close_files(struct conn *c);

/*
 * conn_out.c. Where there is no memory the connection is dropped, but by conn_tx_room().
 */
/* Where n more bytes are to be put, which c->tx_len is to count then; NULL: no memory. */
char *conn_tx_room(struct conn *c, size_t n);
void conn_put_frame(
	struct conn *c, uint8_t type, uint8_t stream, const void *payload, size_t len);
/* The answer line. */
void conn_answer(struct conn *c, struct json_out *o);
void conn_answer_ok(struct conn *c);
/* The last word: an error line before the ok, an error frame after it. */
void conn_fail(struct conn *c, const struct err *e);
/* Sends what there is to send, or as much as goes. False: the peer does not read any more.
 */
bool conn_send(struct conn *c);

/*
 * conn_ask.c. What fails is for conn_fail() to say.
 */
int conn_begin(struct conn *c, struct request *q, struct err *e);
/* Of a command's stream. */
int conn_take_frame(struct conn *c, const struct agent_frame *f, struct err *e);

#endif
