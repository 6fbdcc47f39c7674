/*
 * The vsock device's connections, inside the device alone (vsock.c: clients, time, set-up;
 * vsock_queue.c, and below it vsock_rx.c and vsock_tx.c: the guest's queues). Slots in a fixed
 * table; a list of those that have something for the guest; what of each the main loop watches;
 * how each ends.
 *
 * All with dev->lock held. A connection pointer is good until vsock_conn_free() or
 * anything that may call it: _kill, _refuse, _drop_all, vsock_flush_ring.
 */
#ifndef PANDO_VMM_VSOCK_CONN_H
#define PANDO_VMM_VSOCK_CONN_H

#include "vmm/vsock.h"

#define VSOCK_LISTEN_SLOT 0xffffu
#define VSOCK_NO_EVENTS UINT32_MAX /* not in the loop */
#define VSOCK_NS_PER_MS 1000000ull

enum conn_state {
	CONN_FREE,
	CONN_LINE,	 /* the client's CONNECT line is not complete */
	CONN_CONNECTING, /* REQUEST due or sent */
	CONN_OPEN,
	CONN_DRAIN, /* over for the guest; what it sent before goes to a slow client */
	CONN_RST,   /* over for the client; RST is due to the guest */
};

enum { DUE_REQUEST = 1, DUE_CREDIT_UPDATE = 2, DUE_CREDIT_REQUEST = 4, DUE_SHUTDOWN = 8 };

struct vsock_conn {
	uint8_t state;	   /* enum conn_state */
	uint8_t due;	   /* DUE_*: control packets for the guest */
	uint8_t told;	   /* VSOCK_SHUTDOWN_*: what we told the guest, or is due */
	uint8_t heard;	   /* VSOCK_SHUTDOWN_*: what the guest told us */
	bool requested;	   /* REQUEST was sent */
	bool readable;	   /* the socket may hold data: it is not polled for any */
	bool bulk;	   /* the last read filled all it was given */
	bool hung_up;	   /* the client closed both ways: out of the loop for good */
	bool asked_credit; /* CREDIT_REQUEST sent, no credit came since */
	bool queued;	   /* on the ready list */
	uint16_t next;	   /* free or ready list */
	int fd;		   /* owned */
	uint32_t events;   /* registered with the loop; NO_EVENTS: not */
	uint32_t generation;
	uint32_t host_port, guest_port;
	uint32_t sent, peer_buf_alloc, peer_fwd_cnt; /* host -> guest, modulo 2^32 */
	uint32_t fwd_cnt;			     /* guest -> host: passed on */
	uint32_t fwd_told;			     /* what the guest knows of it */
	uint32_t ring_first, ring_len, ring_most;
	uint8_t line_len;
	char line[VSOCK_LINE_MAX];
	uint64_t deadline_ns; /* 0: none */
};

/* A new one in CONN_LINE, not in the loop yet; NULL when the table is full. fd is taken
 * over. */
struct vsock_conn *vsock_conn_new(struct vsock *vs, int fd);
void vsock_conn_free(struct vsock *vs, struct vsock_conn *c);
/* The connection that a guest's packet is for, if it is one the guest knows of. */
struct vsock_conn *vsock_conn_find(
	const struct vsock *vs, uint32_t host_port, uint32_t guest_port);
uint8_t *vsock_conn_ring(const struct vsock *vs, const struct vsock_conn *c);

/* Ends it at once for the client, and for the guest as soon as it has a buffer for the
 * RST. */
void vsock_conn_kill(struct vsock *vs, struct vsock_conn *c);
/* The same, after "ERR <sentence>" to the client. */
void vsock_conn_refuse(struct vsock *vs, struct vsock_conn *c, const char *sentence);
void vsock_conn_answer_error(const struct vsock_conn *c, const char *sentence);
/* The guest is to hear these VSOCK_SHUTDOWN_* flags; each is told once. */
void vsock_conn_tell_shutdown(struct vsock *vs, struct vsock_conn *c, uint8_t flags);
/* All of them, telling nobody. */
void vsock_conn_drop_all(struct vsock *vs);

/* Whether what the client sends is the guest's to have now. */
bool vsock_conn_may_read(const struct vsock_conn *c);

/* The ready list: first in, first served. */
void vsock_conn_make_ready(struct vsock *vs, struct vsock_conn *c);
void vsock_conn_not_ready(struct vsock *vs, struct vsock_conn *c);
struct vsock_conn *vsock_conn_take_ready(struct vsock *vs);

/* What the main loop watches follows from the state; call after it changed. */
uint64_t vsock_conn_token(const struct vsock *vs, const struct vsock_conn *c);
void vsock_conn_update_events(struct vsock *vs, struct vsock_conn *c);
void vsock_conn_leave_loop(struct vsock *vs, struct vsock_conn *c);

/* ms from now; vsock_tick looks then at the latest. */
void vsock_set_deadline(struct vsock *vs, uint64_t *deadline_ns, unsigned ms);

/* vsock_tx.c. Everything the guest has to send, at most *budget packets: 1 progress, 0 none,
 * -EBADMSG. */
int vsock_drain_tx(struct vsock *vs, unsigned *budget);
/* What waits for a client, as far as it takes it. */
void vsock_flush_ring(struct vsock *vs, struct vsock_conn *c);
/* The client sends no more and, both_ways, reads no more. */
void vsock_client_is_done(struct vsock *vs, struct vsock_conn *c, bool both_ways);

/* vsock_rx.c. Everything there is for the guest, a read a connection in turn, about *budget
 * packets: 1 progress, 0 none, -EBADMSG. */
int vsock_fill_rx(struct vsock *vs, unsigned *budget);

/* vsock_queue.c: both directions until nothing moves, then one interrupt. */
void vsock_pump(struct vsock *vs);
void vsock_kick_main_thread(struct vsock *vs);

#endif
