/*
 * The small guest's vsock driver. It does with the queues what Linux does: receive buffers of
 * 4 KiB, packets of up to 64 KiB, EVENT_IDX, credit of 256 KiB, told of when half of it is used.
 *
 *   mode=vsock  says "listening" and serves one connection after the other, by its port:
 *        1 gives back what it is sent
 *        2 takes a count (8 bytes) and sends as many bytes, of which byte i is (i >> 12) + i
 *        3 takes a count and as many such bytes, and then sends one: 1 when all were right
 */
#include "tests/kvm/guest/tiny.h"

#define VSOCK 1
#define SIZE 128u
#define RX 0
#define TX 1 /* the event queue is left alone: no machine is forked here */
#define RX_AT 0x800000ul
#define RX_LEN 4096u
#define TX_AT 0xa00000ul
#define TX_SLOTS 8u
#define TX_LEN 0x11000ul
#define PACKET 0x10000u
#define CREDIT (256u << 10)

enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };

struct packet {
	u64 src_cid, dst_cid;
	u32 src_port, dst_port, len;
	u16 type, op;
	u32 flags, buf_alloc, fwd_cnt;
	u8 data[];
} __attribute__((packed));

static u64 cid;
static u32 host_port, port;
static u32 tx_count, fwd, told, peer_alloc, peer_fwd; /* of this connection */
static u64 wanted, done;			      /* 2 and 3 */
static u8 count[8];
static u32 counted;
static int right;
static u16 rx_seen, tx_sent;

/* The event index of the other side lies behind the ring. */
static u16
wish_of_device(u32 i)
{
	return (u16) * (volatile u32 *)&queue_of(VSOCK, i)->used.ring[SIZE].id;
}

/* The chains from `old` on are there. */
static void
publish(u32 i, u16 idx)
{
	struct queue *q = queue_of(VSOCK, i);
	u16 old = q->avail.idx;

	barrier();
	*(volatile u16 *)&q->avail.idx = idx;
	__asm__ volatile("mfence" : : : "memory");
	if ((u16)(idx - wish_of_device(i) - 1) < (u16)(idx - old))
		write32(reg(VSOCK, 0x050), i);
}

/* A slot for a packet; waits for the device to have done with it. */
static struct packet *
tx_slot(void)
{
	while ((u16)(tx_sent - *(volatile u16 *)&queue_of(VSOCK, TX)->used.idx) >= TX_SLOTS)
		__asm__ volatile("pause");
	return (struct packet *)(TX_AT + tx_sent % TX_SLOTS * TX_LEN);
}

static void
send_packet(u16 op, u32 len, u32 flags)
{
	struct queue *q = queue_of(VSOCK, TX);
	u16 head = (u16)(tx_sent % TX_SLOTS * 2);
	struct packet *p = tx_slot();

	p->src_cid = cid;
	p->dst_cid = 2;
	p->src_port = port;
	p->dst_port = host_port;
	p->len = len;
	p->type = 1;
	p->op = op;
	p->flags = flags;
	p->buf_alloc = CREDIT;
	p->fwd_cnt = told = fwd;
	q->desc[head] = (struct desc){(u64)p, sizeof(*p), len ? 1 : 0, (u16)(head + 1)};
	q->desc[head + 1] = (struct desc){(u64)p->data, len, 0, 0};
	q->avail.ring[tx_sent % SIZE] = head;
	tx_count += len;
	publish(TX, ++tx_sent);
}

static u32
room(void)
{
	u32 used = tx_count - peer_fwd;

	return used < peer_alloc ? peer_alloc - used : 0;
}

static void
take_data(const struct packet *p)
{
	u32 at = 0;

	fwd += p->len;
	if (port == 1) {
		memcpy(tx_slot()->data, p->data, p->len);
		send_packet(RW, p->len, 0);
		return;
	}
	for (; counted < 8 && at < p->len; at++) {
		count[counted++] = p->data[at];
		if (counted == 8)
			memcpy(&wanted, count, 8);
	}
	/* The first and last of a packet: to look at all of them takes longer than to get them. */
	if (port == 3 && at < p->len) {
		u64 last = done + p->len - at - 1;

		right &= p->data[at] == (u8)((done >> 12) + done) &&
			 p->data[p->len - 1] == (u8)((last >> 12) + last);
		done += p->len - at;
		if (done == wanted) {
			tx_slot()->data[0] = (u8)right;
			send_packet(RW, 1, 0);
		}
	}
	if (fwd - told >= CREDIT / 2)
		send_packet(CREDIT_UPDATE, 0, 0);
}

static void
take_packet(const struct packet *p)
{
	if (p->op == REQUEST) {
		host_port = p->src_port;
		port = p->dst_port;
		tx_count = fwd = counted = 0;
		wanted = done = 0;
		right = 1;
	}
	if (p->src_port != host_port)
		return;
	peer_alloc = p->buf_alloc;
	peer_fwd = p->fwd_cnt;
	if (p->op == REQUEST)
		send_packet(port >= 1 && port <= 3 ? RESPONSE : RST, 0, 0);
	else if (p->op == RW)
		take_data(p);
	else if (p->op == CREDIT_REQUEST)
		send_packet(CREDIT_UPDATE, 0, 0);
	else if (p->op == SHUTDOWN)
		send_packet(RST, 0, 0);
}

static void
receive(void)
{
	struct queue *q = queue_of(VSOCK, RX);
	u16 idx = *(volatile u16 *)&q->used.idx, given = q->avail.idx;

	barrier();
	if (idx == rx_seen)
		return;
	for (; rx_seen != idx; rx_seen++) {
		u32 id = q->used.ring[rx_seen % SIZE].id;

		take_packet((const struct packet *)(RX_AT + id * RX_LEN));
		q->avail.ring[given++ % SIZE] = (u16)id;
	}
	q->avail.ring[SIZE] = rx_seen; /* an interrupt for the next one, please */
	publish(RX, given);
}

static void
send_some(void)
{
	u32 len = room();
	u8 *data;

	if (len > PACKET)
		len = PACKET;
	if (len > wanted - done)
		len = (u32)(wanted - done);
	/* Not in crumbs: as a writer who has more than there is room for. */
	if (!len || (len < PACKET && len < wanted - done))
		return;
	data = tx_slot()->data;
	for (u32 i = 0; i < len; i += PAGE) {
		data[i] = (u8)(((done + i) >> 12) + done + i);
		data[len - 1] = (u8)(((done + len - 1) >> 12) + done + len - 1);
	}
	done += len;
	send_packet(RW, len, 0);
}

void
mode_vsock(void)
{
	struct queue *q = queue_of(VSOCK, RX);

	if (bring_up(VSOCK, 2, SIZE, 1u << 29 | 1)) {
		say("vsock features refused\n");
		return;
	}
	cid = read32(reg(VSOCK, 0x100));
	for (u32 i = 0; i < SIZE; i++) {
		q->desc[i] = (struct desc){RX_AT + i * RX_LEN, RX_LEN, 2, 0};
		q->avail.ring[i] = (u16)i;
	}
	publish(RX, SIZE);
	say("listening\n");
	for (;;) {
		receive();
		if (port == 2 && done < wanted)
			send_some();
		__asm__ volatile("pause");
	}
}
