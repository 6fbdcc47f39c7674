#include "vmm/vsock.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"
#include "vmm/vsock_conn.h"

#define QUEUE_SIZE 128
#define LISTEN_RETRY_MS 100
/* Pages that nobody touches take no memory: nor does the scratch of a VM nobody sends much to. */
#define RINGS_BYTES ((size_t)VSOCK_CONNS_MAX * VSOCK_BUF_BYTES)
#define SCRATCH_BYTES ((VSOCK_RX_BATCH * sizeof(struct virtq_chain) + 4095) & ~(size_t)4095)
#define LAZY_BYTES (RINGS_BYTES + SCRATCH_BYTES)

static void
listen_again(struct vsock *vs)
{
	if (vs->listen_fd >= 0 && vs->has_loop && !vs->listening)
		vs->listening = !vs->loop.add(vs->loop.ctx, vs->listen_fd, EPOLLIN,
			VSOCK_TOKEN | VSOCK_LISTEN_SLOT);
}

/* Clients. */

/* The port of a complete line, or 0 (which is no port one can listen on). */
static uint32_t
parse_line(const char *line, size_t len)
{
	static const char word[] = "CONNECT ";
	uint64_t port = 0;
	size_t i;

	if (len < sizeof(word) || memcmp(line, word, sizeof(word) - 1) != 0)
		return 0;
	for (i = sizeof(word) - 1; i < len - 1; i++) {
		if (line[i] < '0' || line[i] > '9')
			return 0;
		port = port * 10 + (uint64_t)(line[i] - '0');
		if (port >= UINT32_MAX)
			return 0;
	}
	return (uint32_t)port;
}

/* Reads up to and including the line feed, not a byte further: what follows is the
 * guest's. */
static void
read_line(struct vsock *vs, struct vsock_conn *c)
{
	char *at = c->line + c->line_len;
	size_t room = sizeof(c->line) - c->line_len;
	ssize_t n = recv(c->fd, at, room, MSG_PEEK | MSG_DONTWAIT);
	const char *lf;

	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		vsock_conn_update_events(vs, c);
		return;
	}
	if (n <= 0) {
		vsock_conn_free(vs, c);
		return;
	}
	lf = memchr(at, '\n', (size_t)n);
	n = recv(c->fd, at, lf ? (size_t)(lf - at) + 1 : (size_t)n, MSG_DONTWAIT);
	if (n <= 0) {
		vsock_conn_free(vs, c);
		return;
	}
	c->line_len = (uint8_t)(c->line_len + n);
	if (!lf && c->line_len < sizeof(c->line)) {
		vsock_conn_update_events(vs, c);
		return;
	}
	c->guest_port = lf ? parse_line(c->line, c->line_len) : 0;
	if (c->guest_port == 0) {
		vsock_conn_refuse(vs, c,
			"the first line must be CONNECT and a port, 1 to 4294967294");
		return;
	}
	if (!virtio_dev_running(&vs->dev)) {
		vsock_conn_refuse(vs, c, "the guest's vsock driver is not ready");
		return;
	}
	c->state = CONN_CONNECTING;
	c->due = DUE_REQUEST;
	vsock_set_deadline(vs, &c->deadline_ns, VSOCK_CONNECT_MS);
	vsock_conn_make_ready(vs, c);
	vsock_conn_update_events(vs, c);
}

static void
accept_client(struct vsock *vs)
{
	static const char full[] =
		"ERR the VM has 1024 connections, as many as it can hold\n";
	_Static_assert(VSOCK_CONNS_MAX == 1024, "as the sentence says");
	struct vsock_conn *c;
	int fd;

	fd = accept4(vs->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0) {
		/* Out of descriptors: the listener stays readable, so look away for a
		 * while. */
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
			errno == ENOBUFS) {
			vs->loop.del(vs->loop.ctx, vs->listen_fd);
			vs->listening = false;
			vsock_set_deadline(vs, &vs->listen_deadline_ns, LISTEN_RETRY_MS);
		}
		return;
	}
	c = vsock_conn_new(vs, fd);
	if (!c) {
		(void)!send(fd, full, sizeof(full) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
		close(fd);
		return;
	}
	vsock_set_deadline(vs, &c->deadline_ns, VSOCK_CONNECT_MS);
	read_line(vs, c); /* usually it is there already */
}

static void
client_event(struct vsock *vs, struct vsock_conn *c, uint32_t events)
{
	if (events & (EPOLLHUP | EPOLLERR)) {
		vsock_conn_leave_loop(vs, c);
		c->hung_up = true;
	}
	switch (c->state) {
	case CONN_LINE:
		read_line(vs, c);
		/* A client that left after its line wants nothing any more. */
		if (c->hung_up && (c->state == CONN_LINE || c->state == CONN_CONNECTING))
			vsock_conn_kill(vs, c);
		return;
	case CONN_CONNECTING:
		if (c->hung_up)
			vsock_conn_kill(vs, c);
		return;
	case CONN_OPEN:
		if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
			c->readable = true;
			if (vsock_conn_may_read(c))
				vsock_conn_make_ready(vs, c);
			else if (c->hung_up)
				vsock_client_is_done(vs, c, true);
		}
		__attribute__((fallthrough));
	case CONN_DRAIN:
		if (c->ring_len && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)))
			vsock_flush_ring(vs, c);
		else
			vsock_conn_update_events(vs, c);
	}
}

void
vsock_handle_event(struct vsock *vs, uint64_t token, uint32_t events)
{
	const unsigned slot = token & 0xffff;
	struct vsock_conn *c;

	virtio_dev_lock(&vs->dev);
	if (slot == VSOCK_LISTEN_SLOT) {
		if (vs->listening)
			accept_client(vs);
	} else if (slot < vs->n_touched) {
		/* A token of a connection that ended within this very batch of events. */
		c = &vs->conns[slot];
		if (c->state != CONN_FREE && c->events != VSOCK_NO_EVENTS &&
			token == vsock_conn_token(vs, c))
			client_event(vs, c, events);
	}
	vsock_pump(vs);
	virtio_dev_unlock(&vs->dev);
}

void
vsock_kick(struct vsock *vs)
{
	virtio_dev_lock(&vs->dev);
	vs->kicked = false;
	vsock_pump(vs);
	virtio_dev_unlock(&vs->dev);
}

/* Time. */

int
vsock_timeout_ms(struct vsock *vs)
{
	uint64_t now, deadline;

	virtio_dev_lock(&vs->dev);
	deadline = vs->deadline_ns;
	virtio_dev_unlock(&vs->dev);
	if (!deadline)
		return -1;
	now = io_now_ns();
	return deadline <= now ? 0 : (int)((deadline - now) / VSOCK_NS_PER_MS) + 1;
}

static void
conn_timed_out(struct vsock *vs, struct vsock_conn *c)
{
	if (c->state == CONN_LINE) {
		vsock_conn_refuse(vs, c, "no CONNECT line came in time");
	} else if (c->state == CONN_CONNECTING) {
		vsock_conn_refuse(vs, c, "the guest did not answer in time");
	} else if (c->readable || (c->due & DUE_SHUTDOWN)) {
		/* It has not been told yet: it takes no packets. Its time begins when it
		 * does. */
		vsock_set_deadline(vs, &c->deadline_ns, VSOCK_LINGER_MS);
	} else {
		vsock_conn_kill(vs, c);
	}
}

/* Whether a deadline is over; if not, the next look is not later than it. */
static bool
is_over(struct vsock *vs, uint64_t *deadline_ns, uint64_t now)
{
	if (!*deadline_ns)
		return false;
	if (*deadline_ns <= now) {
		*deadline_ns = 0;
		return true;
	}
	if (vs->deadline_ns == 0 || *deadline_ns < vs->deadline_ns)
		vs->deadline_ns = *deadline_ns;
	return false;
}

void
vsock_tick(struct vsock *vs)
{
	uint64_t now;
	unsigned i;

	virtio_dev_lock(&vs->dev);
	if (!vs->deadline_ns || vs->deadline_ns > (now = io_now_ns()))
		goto out;
	vs->deadline_ns = 0;
	for (i = 0; i < vs->n_touched; i++)
		if (vs->conns[i].state != CONN_FREE &&
			is_over(vs, &vs->conns[i].deadline_ns, now))
			conn_timed_out(vs, &vs->conns[i]);
	if (is_over(vs, &vs->listen_deadline_ns, now))
		listen_again(vs);
	/* A driver that never gives the event's buffer back has had its time to read it.
	 */
	if (is_over(vs, &vs->reset_deadline_ns, now) &&
		vs->reset_state == VSOCK_RESET_SENT)
		vs->reset_state = VSOCK_RUNNING;
	vsock_pump(vs);
out:
	virtio_dev_unlock(&vs->dev);
}

/* The device. */

static bool
vsock_notify(struct virtio_dev *dev, unsigned queue)
{
	struct vsock *vs = (struct vsock *)dev;

	(void)queue;
	if (vs->kick_fd >= 0)
		vsock_kick_main_thread(vs);
	else
		vsock_pump(vs);
	return false; /* what it leaves it comes back for by itself */
}

static void
vsock_reset(struct virtio_dev *dev)
{
	struct vsock *vs = (struct vsock *)dev;

	vsock_conn_drop_all(vs);
	vs->reset_state = VSOCK_RUNNING;
}

static const void *
vsock_config(struct virtio_dev *dev, uint32_t *ret_len)
{
	struct vsock *vs = (struct vsock *)dev;

	*ret_len = sizeof(vs->config);
	return &vs->config;
}

static const struct virtio_ops vsock_ops = {
	.name = "vsock",
	.device_id = VIRTIO_ID_VSOCK,
	.features = 1, /* VIRTIO_VSOCK_F_STREAM */
	.n_queues = 3,
	.queue_size = {QUEUE_SIZE, QUEUE_SIZE, 16},
	.config = vsock_config,
	.notify = vsock_notify,
	.reset = vsock_reset,
};

static void *
map_bytes(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int
take_listener(struct vsock *vs, int listen_fd, int kick_fd, const struct vsock_loop *loop,
	struct err *e)
{
	int r = listen_fd >= 0 ? io_set_nonblock(listen_fd, 1) : 0;

	if (r < 0)
		return err_sys(e, r, "vsock: the listening socket");
	vs->has_loop = loop;
	if (loop)
		vs->loop = *loop;
	vs->kick_fd = kick_fd;
	vs->listen_fd = listen_fd;
	listen_again(vs);
	if (listen_fd >= 0 && loop && !vs->listening) {
		vs->listen_fd = -1;
		return err_set(e, -EIO, "vsock: the listening socket cannot be watched");
	}
	return 0;
}

int
vsock_init(struct vsock *vs, const struct guest_mem *mem, struct irq_line irq,
	uint32_t guest_cid, int listen_fd, int kick_fd, const struct vsock_loop *loop,
	struct err *e)
{
	int r;

	if (guest_cid < 3 || guest_cid == UINT32_MAX)
		return err_set(e, -EINVAL,
			"vsock: context id %" PRIu32 " is reserved; use 3 or more",
			guest_cid);
	memset(vs, 0, sizeof(*vs));
	virtio_dev_init(&vs->dev, &vsock_ops, mem, irq);
	vs->config.guest_cid = guest_cid;
	vs->listen_fd = -1;
	vs->conns = map_bytes(VSOCK_CONNS_MAX * sizeof(struct vsock_conn));
	vs->rings = map_bytes(LAZY_BYTES);
	if (!vs->conns || !vs->rings) {
		r = err_set(e, -ENOMEM, "vsock: no address space for its buffers");
	} else {
		vs->rx = (struct virtq_chain *)(void *)(vs->rings + RINGS_BYTES);
		r = take_listener(vs, listen_fd, kick_fd, loop, e);
	}
	if (r)
		vsock_destroy(vs);
	return r;
}

void
vsock_own_ranges(const struct vsock *vs, struct own_range ret[static 2])
{
	ret[0] = (struct own_range){
		.at = vs->conns, .len = VSOCK_CONNS_MAX * sizeof(*vs->conns)};
	ret[1] = (struct own_range){.at = vs->rings,
		.len = LAZY_BYTES,
		.empty = true};
}

void
vsock_destroy(struct vsock *vs)
{
	if (vs->conns)
		vsock_conn_drop_all(vs);
	if (vs->listening)
		vs->loop.del(vs->loop.ctx, vs->listen_fd);
	vs->listening = false;
	if (vs->listen_fd >= 0)
		close(vs->listen_fd);
	vs->listen_fd = -1;
	if (vs->conns)
		munmap(vs->conns, VSOCK_CONNS_MAX * sizeof(struct vsock_conn));
	if (vs->rings)
		munmap(vs->rings, LAZY_BYTES);
	vs->conns = NULL;
	vs->rings = NULL;
	vs->rx = NULL;
}

int
vsock_listen(struct vsock *vs, int listen_fd, struct err *e)
{
	return take_listener(
		vs, listen_fd, vs->kick_fd, vs->has_loop ? &vs->loop : NULL, e);
}

void
vsock_save(struct vsock *vs, struct blob_out *out)
{
	blob_put_u64(out, vs->config.guest_cid);
	virtio_dev_save(&vs->dev, out);
}

int
vsock_load(struct vsock *vs, struct blob_in *in, struct err *e)
{
	uint64_t cid = blob_get_u64(in);
	int r;

	if (cid < 3 || cid >= UINT32_MAX)
		return err_set(e, -EBADMSG,
			"the state of the vsock has context id %" PRIu64
			", which is reserved",
			cid);
	r = virtio_dev_load(&vs->dev, in, e);
	if (r)
		return r;
	vs->config.guest_cid = cid;
	vs->reset_state = virtio_dev_running(&vs->dev) ? VSOCK_RESET_DUE : VSOCK_RUNNING;
	return 0;
}

void
vsock_forget(struct vsock *vs)
{
	virtio_dev_lock(&vs->dev);
	vsock_conn_drop_all(vs);
	vs->reset_state = VSOCK_RUNNING;
	vs->reset_deadline_ns = 0;
	virtio_dev_unlock(&vs->dev);
	virtio_dev_forget(&vs->dev);
}

int
vsock_reset_child(struct vsock *vs, struct irq_line irq, int listen_fd, int kick_fd,
	const struct vsock_loop *loop, struct err *e)
{
	virtio_dev_fork_child(&vs->dev, irq);
	/* The loop so far is the parent's, one epoll set with two owners: leave it alone.
	 * Closing our copies does not touch it, since the parent's keep the sockets open.
	 */
	vs->has_loop = false;
	vsock_conn_drop_all(vs);
	if (vs->listen_fd >= 0)
		close(vs->listen_fd);
	vs->listen_fd = -1;
	vs->listening = false;
	vs->kicked = false;
	vs->deadline_ns = vs->reset_deadline_ns = vs->listen_deadline_ns = 0;
	vs->reset_state = virtio_dev_running(&vs->dev) ? VSOCK_RESET_DUE : VSOCK_RUNNING;
	return take_listener(vs, listen_fd, kick_fd, loop, e);
}
