#include "vmm/keep.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "vmm/snapshot.h"

/* A question; the answer is the bytes, those of a state behind their count. */
struct ask {
	uint32_t what, n;
	struct keep_range ranges[KEEP_RANGES];
};

const int keep_socket_options[2] = {SO_RCVTIMEO, SO_SNDTIMEO};

static uint8_t state[VMM_STATE_BLOB_MAX] __attribute__((aligned(64)));

static void
close_one(int *fd)
{
	if (*fd >= 0)
		close(TAKE_FD(*fd));
}

void
keep_init(struct keep *k)
{
	*k = (struct keep){.origin_fd = -1, .pair = {-1, -1}};
}

void
keep_drop(struct keep *k)
{
	close_one(&k->origin_fd);
}

void
keep_close(struct keep *k, int fd)
{
	k->fds[fd / 64] &= ~(1ull << fd % 64);
	k->n_fds--;
	close(fd);
}

static void
close_children(struct keep *k)
{
	for (unsigned i = 0; i < KEEP_FDS_MAX / 64; i++)
		while (k->fds[i])
			keep_close(k, (int)(i * 64 + (unsigned)__builtin_ctzll(k->fds[i])));
}

int
keep_make_pair(struct keep *k, struct err *e)
{
	const struct timeval wait = {.tv_sec = KEEP_WAIT_MS / 1000};

	if (!k->serves)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, k->pair) < 0) {
		k->pair[0] = k->pair[1] = -1;
		return err_sys(e, -errno, "a connection to the kept fork point");
	}
	for (unsigned i = 0; i < 4; i++)
		if (setsockopt(k->pair[i / 2], SOL_SOCKET, keep_socket_options[i % 2], &wait,
			    sizeof(wait)) < 0)
			return err_sys(e, -errno, "a connection to the kept fork point");
	if (k->pair[0] >= (int)KEEP_FDS_MAX)
		return err_set(e, -EMFILE, "too many branches of one kept fork point");
	return 0;
}

void
keep_forked(struct keep *k, bool happened, int *ret_fd)
{
	*ret_fd = -1;
	close_one(&k->pair[1]);
	if (!happened || k->pair[0] < 0) {
		close_one(&k->pair[0]);
		return;
	}
	*ret_fd = TAKE_FD(k->pair[0]);
	k->fds[*ret_fd / 64] |= 1ull << *ret_fd % 64;
	k->n_fds++;
}

void
keep_fork_child(struct keep *k, bool serves, bool is_frozen)
{
	const int mine = TAKE_FD(k->pair[1]);

	close_one(&k->pair[0]);
	close_one(&k->origin_fd);
	close_children(k);
	k->serves = serves;
	k->origin_fd = mine;
	if (is_frozen)
		keep_drop(k);
}

/* All of them, in this order; iov is used up. */
static int
move(int fd, struct iovec *iov, size_t n, bool out)
{
	while (n) {
		struct msghdr m = {.msg_iov = iov, .msg_iovlen = n};
		ssize_t done = out ? sendmsg(fd, &m, MSG_NOSIGNAL) : recvmsg(fd, &m, 0);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -EPIPE;
		for (; n && (size_t)done >= iov->iov_len; iov++, n--)
			done -= (ssize_t)iov->iov_len;
		if (n) {
			iov->iov_base = (uint8_t *)iov->iov_base + done;
			iov->iov_len -= (size_t)done;
		}
	}
	return 0;
}

static unsigned
put_ranges(struct iovec *iov, void *base, const struct keep_range *ranges, unsigned n)
{
	unsigned used = 0;

	for (unsigned i = 0; i < n; i++)
		if (ranges[i].len)
			iov[used++] = (struct iovec){
				(uint8_t *)base + ranges[i].off, ranges[i].len};
	return used;
}

static bool
are_within(const struct keep_range *ranges, unsigned n, uint64_t bytes)
{
	for (unsigned i = 0; i < n; i++)
		if (ranges[i].off > bytes || ranges[i].len > bytes - ranges[i].off)
			return false;
	return true;
}

/* 0: answered. */
static int
answer(struct vm *vm, int fd, const struct ask *a)
{
	const uint64_t memory = vm->mem.low_len + vm->mem.high_len;
	const uint64_t map = vm->blk.map.n_blocks * sizeof(*vm->blk.map.entries);
	struct iovec iov[KEEP_RANGES];
	uint64_t len;

	switch (a->what) {
	case KEEP_STATE:
		len = snapshot_save(vm, state, sizeof(state));
		iov[0] = (struct iovec){&len, sizeof(len)};
		iov[1] = (struct iovec){state, len};
		return move(fd, iov, len ? 2 : 1, true);
	case KEEP_MEMORY:
		if (!are_within(a->ranges, a->n, memory))
			return -EBADMSG;
		return move(fd, iov, put_ranges(iov, vm->mem.host, a->ranges, a->n), true);
	case KEEP_MAP:
		if (!are_within(a->ranges, a->n, map))
			return -EBADMSG;
		return move(fd, iov, put_ranges(iov, vm->blk.map.entries, a->ranges, a->n),
			true);
	}
	return -EBADMSG;
}

bool
keep_serve(struct vm *vm, int fd)
{
	static struct ask a;
	struct iovec iov = {&a, sizeof(a)};
	int r = move(fd, &iov, 1, false);

	if (r == 0)
		r = a.n > KEEP_RANGES ? -EBADMSG : answer(vm, fd, &a);
	if (r < 0 && r != -EPIPE && r != -ECONNRESET)
		log_warn("a branch asks no more for what it was: %s", strerror(-r));
	return r == 0;
}

static int
ask(struct keep *k, enum keep_what what, const struct keep_range *ranges, unsigned n)
{
	static struct ask a;
	struct iovec iov = {&a, sizeof(a)};

	if (k->origin_fd < 0)
		return -EPIPE;
	a = (struct ask){.what = what, .n = n};
	if (n)
		memcpy(a.ranges, ranges, n * sizeof(*ranges));
	return move(k->origin_fd, &iov, 1, true);
}

static int
lost(struct keep *k, int r, struct err *e)
{
	keep_drop(k);
	return err_set(e, -ESTALE,
		r == -EAGAIN
			? "the process that keeps its fork point does not answer, so it is given up"
			: "the process that kept its fork point is gone");
}

int
keep_fetch_state(struct keep *k, void *buf, size_t cap, size_t *ret_len, struct err *e)
{
	uint64_t len = 0;
	struct iovec iov = {&len, sizeof(len)};
	int r = ask(k, KEEP_STATE, NULL, 0);

	if (r == 0)
		r = move(k->origin_fd, &iov, 1, false);
	if (r == 0 && (!len || len > cap))
		r = -EBADMSG;
	iov = (struct iovec){buf, len};
	if (r == 0)
		r = move(k->origin_fd, &iov, 1, false);
	if (r < 0)
		return lost(k, r, e);
	*ret_len = len;
	return 0;
}

int
keep_fetch(struct keep *k, enum keep_what what, void *base, const struct keep_range *ranges,
	unsigned n, struct err *e)
{
	struct iovec iov[KEEP_RANGES];
	int r = ask(k, what, ranges, n);

	if (r == 0)
		r = move(k->origin_fd, iov, put_ranges(iov, base, ranges, n), false);
	return r < 0 ? lost(k, r, e) : 0;
}

int
keep_fetch_one(struct keep *k, enum keep_what what, void *buf, struct keep_range range,
	struct err *e)
{
	struct iovec iov = {buf, range.len};
	int r = ask(k, what, &range, 1);

	if (r == 0)
		r = move(k->origin_fd, &iov, 1, false);
	return r < 0 ? lost(k, r, e) : 0;
}
