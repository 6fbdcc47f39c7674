/*
 * virtio-vsock (virtio 1.2, 5.10), all of it here: no vhost, no kernel vsock on the host.
 *
 * On the host there is one listening Unix stream socket a VM. A client connects, sends
 * "CONNECT <port>\n" and reads "OK <host port>\n"; from then on the bytes of the two
 * sides are joined, each direction with its own end (shutdown is passed on both ways).
 * What cannot be is answered by "ERR <sentence>\n" and a close: nobody listens on that
 * port in the guest, too many connections, a bad line, no driver. The line is at most
 * VSOCK_LINE_MAX bytes and comes within VSOCK_CONNECT_MS; the guest answers within the
 * same time. Connections that the guest opens (to host CID 2, or anywhere) are refused
 * with RST: nobody listens on this side.
 *
 * Flow: data from the host is read straight into the guest's receive buffers, many by one
 * read, as far as the guest's credit goes; what is not read waits in the socket. Data from the guest is
 * written straight to the socket; what a slow reader does not take waits in the
 * connection's ring of VSOCK_BUF_BYTES, which is also all the credit the guest gets: one
 * that sends more gets RST. Nothing is lost and nothing blocks. Nothing is allocated
 * after vsock_init: VSOCK_CONNS_MAX connections, their rings in one lazily touched
 * mapping that is given back when a ring was used and its connection ends.
 *
 * Threads: the main thread owns it. A doorbell on a vCPU thread only writes kick_fd (an
 * eventfd, borrowed) under dev->lock; the main loop, seeing it readable, reads it and
 * calls vsock_kick(). With kick_fd -1 the doorbell does the work itself. Every function
 * here takes dev->lock.
 *
 * The main loop: it owns the epoll descriptor and gives struct vsock_loop. Tokens that
 * come from here have VSOCK_TOKEN set, all others must have it clear; an event with such
 * a token goes to vsock_handle_event(). Level-triggered. Before waiting, ask
 * vsock_timeout_ms(); after waiting, call vsock_tick().
 *
 * Fork: the parent's connections go on. The child calls vsock_reset_child(): it closes
 * its copies of the connections without touching guest memory or the parent's epoll set,
 * and takes its own listener and loop. virtio_dev_resume() later sends the driver a
 * transport reset; new connections wait until the driver has taken it (or VSOCK_RESET_MS
 * passed).
 *
 * System calls: accept4, recvfrom, sendto, readv, sendmsg, shutdown, close, madvise,
 * write (kick_fd), fcntl (the child's listener), clock_gettime, futex, and what the
 * loop's verbs use (epoll_ctl).
 */
#ifndef PANDO_VMM_VSOCK_H
#define PANDO_VMM_VSOCK_H

#include "common/err.h"
#include "vmm/mappings.h"
#include "vmm/virtio_mmio.h"

#define VSOCK_CONNS_MAX 1024
#define VSOCK_BUF_BYTES (128u << 10)
#define VSOCK_LINE_MAX 32
#define VSOCK_CONNECT_MS 10000
#define VSOCK_LINGER_MS 8000
#define VSOCK_RESET_MS 1000
#define VSOCK_RSTS_MAX 256 /* refusals that wait for a receive buffer */
#define VSOCK_BATCH 512	   /* packets each way before the main loop gets its turn again */
#define VSOCK_RX_BATCH 17  /* receive buffers of one read: 64 KiB in Linux's */

#define VSOCK_HOST_CID 2
#define VSOCK_TOKEN (1ull << 63)

enum vsock_queue { VSOCK_RX, VSOCK_TX, VSOCK_EVENT }; /* as the driver sees them */

enum vsock_op {
	VSOCK_OP_REQUEST = 1,
	VSOCK_OP_RESPONSE = 2,
	VSOCK_OP_RST = 3,
	VSOCK_OP_SHUTDOWN = 4,
	VSOCK_OP_RW = 5,
	VSOCK_OP_CREDIT_UPDATE = 6,
	VSOCK_OP_CREDIT_REQUEST = 7,
};
#define VSOCK_TYPE_STREAM 1
#define VSOCK_SHUTDOWN_RCV 1u
#define VSOCK_SHUTDOWN_SEND 2u

struct vsock_hdr {
	uint64_t src_cid;
	uint64_t dst_cid;
	uint32_t src_port;
	uint32_t dst_port;
	uint32_t len;
	uint16_t type;
	uint16_t op;
	uint32_t flags;
	uint32_t buf_alloc;
	uint32_t fwd_cnt;
} __attribute__((packed));
_Static_assert(sizeof(struct vsock_hdr) == 44, "virtio 1.2, 5.10.6");

/* events: EPOLLIN, EPOLLOUT. 0 or -errno; del may not fail in a way that matters. */
struct vsock_loop {
	int (*add)(void *ctx, int fd, uint32_t events, uint64_t token);
	int (*mod)(void *ctx, int fd, uint32_t events, uint64_t token);
	void (*del)(void *ctx, int fd);
	void *ctx; /* borrowed */
};

struct vsock_conn; /* vsock.c */

struct vsock {
	struct virtio_dev dev;
	struct {
		uint64_t guest_cid;
	} config;
	int listen_fd; /* owned; -1: none */
	int kick_fd;   /* borrowed; -1: work on the doorbell's thread */
	struct vsock_loop loop;
	bool has_loop;
	bool kicked;	/* kick_fd was written and vsock_kick has not come yet */
	bool listening; /* listen_fd is in the loop */
	struct vsock_conn *conns; /* owned, mapped, VSOCK_CONNS_MAX */
	uint8_t *rings;		  /* owned, mapped, VSOCK_CONNS_MAX * VSOCK_BUF_BYTES */
	struct virtq_chain *rx;	  /* scratch, behind the rings: VSOCK_RX_BATCH */
	uint16_t n_touched;	  /* slots ever used: the first ones */
	uint16_t free_head;	  /* lists by index + 1; 0 ends */
	uint16_t ready_head, ready_tail; /* have something for the guest */
	_Atomic uint32_t connections;	 /* open now; read without the lock */
	enum { VSOCK_RUNNING, VSOCK_RESET_DUE, VSOCK_RESET_SENT } reset_state;
	uint16_t reset_avail; /* the driver's event index when the reset was sent */
	uint64_t deadline_ns; /* not later than the earliest of all; 0: none */
	uint64_t reset_deadline_ns, listen_deadline_ns;
	struct vsock_hdr rsts[VSOCK_RSTS_MAX]; /* for what is no connection; a ring */
	uint16_t rst_first, rst_count;
	struct virtq_chain chain; /* scratch */
};

/* listen_fd (non-blocking is set here) is taken over on success; kick_fd and the loop's
 * context stay the caller's. */
int vsock_init(struct vsock *vs, const struct guest_mem *mem, struct irq_line irq,
	uint32_t guest_cid, int listen_fd, int kick_fd, const struct vsock_loop *loop,
	struct err *e);
/* What it maps for itself; before vsock_reset_child() the connections are the parent's,
 * and nobody needs what is in their rings. */
void vsock_own_ranges(const struct vsock *vs, struct own_range ret[static 2]);
void vsock_destroy(struct vsock *vs);
/* The listener of a device that was made without one; taken over on success. */
int vsock_listen(struct vsock *vs, int listen_fd, struct err *e);

/* Into and out of an open section of a state blob. Connections are not in it: the driver
 * of a restored VM is told of a transport reset, as a branch's is. */
void vsock_save(struct vsock *vs, struct blob_out *out);
int vsock_load(struct vsock *vs, struct blob_in *in, struct err *e);

/* All connections end, for their clients at once; the device is as vsock_init() left it, but for
 * its listener. vsock_load() comes next, in a VM that is reset. The vCPUs are parked. */
void vsock_forget(struct vsock *vs);

void vsock_kick(struct vsock *vs);
void vsock_handle_event(struct vsock *vs, uint64_t token, uint32_t events);
/* Milliseconds until vsock_tick has something to do; -1: never. */
int vsock_timeout_ms(struct vsock *vs);
void vsock_tick(struct vsock *vs);

/* After fork(), in the child; see the top. listen_fd may be -1 (a parked child: its own
 * children get theirs). loop NULL keeps the child out of any loop until the next
 * vsock_reset_child. */
int vsock_reset_child(struct vsock *vs, struct irq_line irq, int listen_fd, int kick_fd,
	const struct vsock_loop *loop, struct err *e);

#endif
