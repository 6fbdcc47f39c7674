#include "vmm/virtqueue.h"

#include <errno.h>
#include <string.h>

/* Ring offsets (virtio 1.2, 2.7.6 and 2.7.8). */
#define AVAIL_IDX 2u
#define AVAIL_RING 4u
#define USED_IDX 2u
#define USED_RING 4u
#define USED_ELEM 8u

static int
broken(struct virtq *q, const char *why)
{
	q->why = why;
	return -EBADMSG;
}

static size_t
avail_bytes(const struct virtq *q)
{
	return AVAIL_RING + 2u * q->size + 2; /* with used_event */
}

static size_t
used_bytes(const struct virtq *q)
{
	return USED_RING + USED_ELEM * q->size + 2; /* with avail_event */
}

/* The rings are shared with running vCPUs: whole 16-bit words, atomically. Alignment was
 * checked by virtq_enable. NULL cannot happen after it, and is answered all the same. */
static uint16_t *
ring_word(const struct guest_mem *m, uint64_t ring, size_t offset)
{
	return guest_range(m, (gpa_t){ring + offset}, sizeof(uint16_t));
}

static int
load_word(struct virtq *q, const struct guest_mem *m, uint64_t ring, size_t offset)
{
	const uint16_t *p = ring_word(m, ring, offset);

	if (!p)
		return broken(q, "a ring left the guest's memory");
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static int
store_word(struct virtq *q, const struct guest_mem *m, uint64_t ring, size_t offset,
	uint16_t value)
{
	uint16_t *p = ring_word(m, ring, offset);

	if (!p)
		return broken(q, "a ring left the guest's memory");
	__atomic_store_n(p, value, __ATOMIC_RELEASE);
	return 0;
}

static int
check_rings(struct virtq *q, const struct guest_mem *m)
{
	if (q->size == 0 || q->size > q->size_max || (q->size & (q->size - 1)))
		return broken(q, "queue size is not a power of two within the maximum");
	if (q->desc % 16 || q->avail % 2 || q->used % 4)
		return broken(q, "a ring is not aligned");
	if (!guest_range(m, (gpa_t){q->desc}, sizeof(struct virtq_desc) * q->size) ||
		!guest_range(m, (gpa_t){q->avail}, avail_bytes(q)) ||
		!guest_range(m, (gpa_t){q->used}, used_bytes(q)))
		return broken(q, "a ring does not lie in the guest's memory");
	return 0;
}

int
virtq_enable(struct virtq *q, const struct guest_mem *m)
{
	int r = check_rings(q, m);

	if (r)
		return r;
	q->next_avail = q->next_used = q->signalled = 0;
	q->was_signalled = false;
	q->why = NULL;
	q->ready = true;
	return 0;
}

void
virtq_reset(struct virtq *q)
{
	*q = (struct virtq){.size_max = q->size_max, .size = q->size_max};
}

void
virtq_save(const struct virtq *q, struct blob_out *out)
{
	blob_put_u16(out, q->size);
	blob_put_u8(out, q->ready);
	blob_put_u8(out, q->was_signalled);
	blob_put_u16(out, q->next_avail);
	blob_put_u16(out, q->next_used);
	blob_put_u16(out, q->signalled);
	blob_put_u64(out, q->desc);
	blob_put_u64(out, q->avail);
	blob_put_u64(out, q->used);
}

int
virtq_load(struct virtq *q, const struct guest_mem *m, struct blob_in *in)
{
	uint8_t ready, was_signalled;

	q->size = blob_get_u16(in);
	ready = blob_get_u8(in);
	was_signalled = blob_get_u8(in);
	q->next_avail = blob_get_u16(in);
	q->next_used = blob_get_u16(in);
	q->signalled = blob_get_u16(in);
	q->desc = blob_get_u64(in);
	q->avail = blob_get_u64(in);
	q->used = blob_get_u64(in);
	q->why = NULL;
	if (in->bad)
		return broken(q, "its state is cut short");
	if (ready > 1 || was_signalled > 1)
		return broken(q, "a flag is neither 0 nor 1");
	if (q->size > VIRTQ_SIZE_MAX)
		return broken(q, "a queue is larger than any can be");
	q->ready = ready;
	q->was_signalled = was_signalled;
	return ready ? check_rings(q, m) : 0;
}

/* One buffer of a chain, from a descriptor that is already our copy. */
static int
add_buffer(struct virtq *q, const struct guest_mem *m, const struct virtq_desc *d,
	struct virtq_chain *c)
{
	unsigned n = c->n_out + c->n_in;
	void *host;

	if (n >= q->size)
		return broken(q, "a descriptor chain is longer than its queue");
	if (d->len == 0)
		return broken(q, "a descriptor is empty");
	host = guest_range(m, (gpa_t){d->addr}, d->len);
	if (!host)
		return broken(q, "a descriptor points outside the guest's memory");
	c->iov[n] = (struct iovec){.iov_base = host, .iov_len = d->len};
	if (d->flags & VIRTQ_DESC_F_WRITE) {
		c->n_in++;
		c->in_bytes += d->len;
	} else {
		if (c->n_in)
			return broken(q, "a readable descriptor follows a writable one");
		c->n_out++;
		c->out_bytes += d->len;
	}
	return 0;
}

static int
walk_chain(struct virtq *q, const struct guest_mem *m, struct virtq_chain *c)
{
	uint64_t table = q->desc;
	uint32_t n = q->size, i = c->head;
	bool in_indirect = false;
	int r;

	/* Ends: every turn adds a buffer, and add_buffer allows q->size of them, or
	 * enters the one indirect table. */
	for (;;) {
		struct virtq_desc d;

		if (guest_read(m, (gpa_t){table + 16ull * i}, &d, sizeof(d)))
			return broken(
				q, "a descriptor table lies outside the guest's memory");
		if (d.flags & VIRTQ_DESC_F_INDIRECT) {
			if (!q->indirect)
				return broken(q, "an indirect table was not negotiated");
			if (in_indirect)
				return broken(q, "an indirect table holds another one");
			if (d.flags & VIRTQ_DESC_F_NEXT)
				return broken(q, "an indirect descriptor has a next one");
			if (d.len == 0 || d.len % 16 || d.len / 16 > q->size)
				return broken(q, "an indirect table has a bad length");
			if (!guest_range(m, (gpa_t){d.addr}, d.len))
				return broken(q,
					"an indirect table lies outside the guest's memory");
			in_indirect = true;
			table = d.addr;
			n = d.len / 16;
			i = 0;
			continue;
		}
		r = add_buffer(q, m, &d, c);
		if (r)
			return r;
		if (!(d.flags & VIRTQ_DESC_F_NEXT))
			return 0;
		if (d.next >= n)
			return broken(q, "a descriptor's next is outside its table");
		i = d.next;
	}
}

int
virtq_avail_index(struct virtq *q, const struct guest_mem *m)
{
	return q->ready ? load_word(q, m, q->avail, AVAIL_IDX) : q->next_avail;
}

/* Chains that wait, or -EBADMSG when the index says more than a queue can hold. */
static int
waiting(struct virtq *q, const struct guest_mem *m)
{
	int idx = virtq_avail_index(q, m);
	uint16_t n;

	if (idx < 0)
		return idx;
	n = (uint16_t)(idx - q->next_avail);
	if (n > q->size)
		return broken(q, "the available index jumped");
	return n;
}

int
virtq_chain_at(
	struct virtq *q, const struct guest_mem *m, uint16_t head, struct virtq_chain *ret)
{
	if (head >= q->size)
		return broken(q, "the available ring names no descriptor");
	ret->head = head;
	ret->n_out = ret->n_in = 0;
	ret->out_bytes = ret->in_bytes = 0;
	return walk_chain(q, m, ret);
}

int
virtq_pop(struct virtq *q, const struct guest_mem *m, struct virtq_chain *ret)
{
	int n, head;

	if (!q->ready)
		return 0;
	n = waiting(q, m);
	if (n <= 0)
		return n;
	head = load_word(q, m, q->avail, AVAIL_RING + 2u * (q->next_avail % q->size));
	if (head < 0)
		return head;
	n = virtq_chain_at(q, m, (uint16_t)head, ret);
	if (n)
		return n;
	q->next_avail++;
	return 1;
}

void
virtq_unpop(struct virtq *q, unsigned n)
{
	q->next_avail = (uint16_t)(q->next_avail - n);
}

int
virtq_push(struct virtq *q, const struct guest_mem *m, uint16_t head, uint32_t written)
{
	struct {
		uint32_t id, len;
	} elem = {head, written};
	uint64_t at;

	if (!q->ready)
		return 0;
	at = q->used + USED_RING + USED_ELEM * (q->next_used % q->size);
	if (guest_write(m, (gpa_t){at}, &elem, sizeof(elem)))
		return broken(q, "a ring left the guest's memory");
	/* Release: the element and what the request wrote come before the index. */
	return store_word(q, m, q->used, USED_IDX, ++q->next_used);
}

bool
virtq_should_interrupt(struct virtq *q, const struct guest_mem *m)
{
	uint16_t old = q->signalled;
	bool valid = q->was_signalled;
	int word;

	if (!q->ready || old == q->next_used)
		return false;
	q->signalled = q->next_used;
	q->was_signalled = true;
	/* Our index must be visible before the driver's wish is read (2.7.7.2): it writes
	 * the wish first and looks at the index then. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!q->event_idx) {
		word = load_word(q, m, q->avail, 0);
		return word >= 0 && !(word & VIRTQ_AVAIL_F_NO_INTERRUPT);
	}
	word = load_word(q, m, q->avail, AVAIL_RING + 2u * q->size);
	if (word < 0)
		return false;
	if (!valid)
		return true;
	return (uint16_t)(q->next_used - (uint16_t)word - 1) <
	       (uint16_t)(q->next_used - old);
}

int
virtq_arm_notify(struct virtq *q, const struct guest_mem *m)
{
	int r;

	if (!q->ready)
		return 0;
	if (q->event_idx) {
		r = store_word(
			q, m, q->used, USED_RING + USED_ELEM * q->size, q->next_avail);
		if (r)
			return r;
	}
	/* The wish before the look, as the driver does the index before the wish. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	r = waiting(q, m);
	return r < 0 ? r : r > 0;
}

static struct virtq_cursor
cursor(const struct iovec *iov, unsigned n, uint64_t bytes)
{
	return (struct virtq_cursor){.iov = iov, .n = n, .left = bytes};
}

struct virtq_cursor
virtq_readable(const struct virtq_chain *c)
{
	return cursor(c->iov, c->n_out, c->out_bytes);
}

struct virtq_cursor
virtq_writable(const struct virtq_chain *c)
{
	return cursor(c->iov + c->n_out, c->n_in, c->in_bytes);
}

/* The next piece of at most len bytes, advancing; 0 at the end. */
static size_t
next_piece(struct virtq_cursor *c, size_t len, uint8_t **ret)
{
	size_t n;

	if (len > c->left)
		len = (size_t)c->left;
	if (len == 0)
		return 0;
	n = c->iov->iov_len - c->skip;
	if (n > len)
		n = len;
	*ret = (uint8_t *)c->iov->iov_base + c->skip;
	c->skip += n;
	c->left -= n;
	if (c->skip == c->iov->iov_len) {
		c->iov++;
		c->n--;
		c->skip = 0;
	}
	return n;
}

size_t
virtq_copy_from(struct virtq_cursor *c, void *dst, size_t len)
{
	size_t done = 0, n;
	uint8_t *p;

	for (; (n = next_piece(c, len - done, &p)); done += n)
		memcpy((uint8_t *)dst + done, p, n);
	return done;
}

size_t
virtq_copy_to(struct virtq_cursor *c, const void *src, size_t len)
{
	size_t done = 0, n;
	uint8_t *p;

	for (; (n = next_piece(c, len - done, &p)); done += n)
		memcpy(p, (const uint8_t *)src + done, n);
	return done;
}

size_t
virtq_zero(struct virtq_cursor *c, size_t len)
{
	size_t done = 0, n;
	uint8_t *p;

	for (; (n = next_piece(c, len - done, &p)); done += n)
		memset(p, 0, n);
	return done;
}

size_t
virtq_skip(struct virtq_cursor *c, size_t len)
{
	size_t done = 0, n;
	uint8_t *p;

	while ((n = next_piece(c, len - done, &p)))
		done += n;
	return done;
}

size_t
virtq_slice(
	struct virtq_cursor *c, size_t len, struct iovec *iov, unsigned max, unsigned *n)
{
	size_t done = 0, piece;
	uint8_t *p;

	*n = 0;
	while (*n < max && (piece = next_piece(c, len - done, &p))) {
		iov[(*n)++] = (struct iovec){.iov_base = p, .iov_len = piece};
		done += piece;
	}
	return done;
}
