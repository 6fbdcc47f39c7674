#include "host/fill/fill_serve.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "common/wire/vmm_wire.h"
#include "host/fill/fill_page.h"
#include "host/store/store_hash.h"

#define VMS_MAX 1024u
#define THREADS_MAX 8u
#define BATCH 64u /* places a thread takes at once: half a millisecond */
#define EVENTS 32u
#define READ_LIMIT_MS 500
/* Faults of a VM that wait at once: KVM lets each vCPU go on behind 64 (ASYNC_PF_PER_VCPU of
 * arch/x86/include/asm/kvm_host.h). */
#define WAITING_MAX (128u * VMM_VCPUS_MAX)

/* A VM. Threads read the first three. */
struct vm {
	uint64_t host, len;
	atomic_int uffd_fd; /* owned; -1: not told yet, or gone */
	int sock_fd;	    /* owned; -1: no VM */
	unsigned n_waiting;
};

/* A fault that waits for the plan. */
struct waiting {
	struct waiting *next;
	unsigned vm;
	uint64_t page;
};

static struct fill {
	struct fill_pages *pages;
	uint64_t n_pages;
	long n_cpus;
	int fds[FILL_BEGIN_FD_COUNT];
	int control_fd; /* -1: pandod is gone */
	int kick_fd;	/* threads have something to tell */
	bool is_all;	/* the plan */
	bool was_told;	/* peers: the end */
	struct vm vms[VMS_MAX];
	unsigned n_vms;	      /* ever */
	pthread_mutex_t lock; /* threads that wake; whoever changes a VM */
	struct waiting *waiting; /* owned */
	uint8_t *wanted;	 /* owned: leaves pandod was asked for, a byte each */
	uint8_t *touched;	 /* owned: likewise pages that were written down */
	uint32_t n_touched;
	struct zip *zip; /* owned: the main thread's */
	atomic_int error;
	char msg[FILL_MSG_MAX]; /* with error */
	pthread_mutex_t error_lock;
} f = {.control_fd = -1,
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.error_lock = PTHREAD_MUTEX_INITIALIZER};

static void
kick(void)
{
	const uint64_t one = 1;

	(void)!write(f.kick_fd, &one, sizeof(one));
}

/* From now on nothing is filled: what is missing stays so. The first reason counts. */
static void
fail(int r, const char *msg)
{
	pthread_mutex_lock(&f.error_lock);
	if (!atomic_load(&f.error)) {
		snprintf(f.msg, sizeof(f.msg), "%s", msg);
		atomic_store(&f.error, r < 0 ? r : -EIO);
		log_err("%s", msg);
	}
	pthread_mutex_unlock(&f.error_lock);
	kick();
}

static void
wake(const struct vm *vm, uint64_t page, uint64_t n)
{
	struct uffdio_range range = {.start = vm->host + page * FILL_PAGE, .len = n * FILL_PAGE};
	int fd = atomic_load(&vm->uffd_fd);

	if (fd >= 0)
		(void)ioctl(fd, UFFDIO_WAKE, &range);
}

/* Pages [page, page + n) are there. */
static void
wake_all(uint64_t page, uint64_t n)
{
	if (!n)
		return;
	pthread_mutex_lock(&f.lock);
	for (unsigned i = 0; i < f.n_vms; i++)
		wake(&f.vms[i], page, n);
	pthread_mutex_unlock(&f.lock);
}

static void *
background(void *arg)
{
	uint64_t first, n, page, pages, places;
	struct sched_param none = {0};
	struct zip *zip;
	struct err e;
	int r = zip_new(&zip);

	(void)arg;
	/* Whose guest waits comes first. */
	(void)sched_setscheduler(0, SCHED_BATCH, &none);
	if (r < 0)
		fail(r, "out of memory");
	while (r == 0 && !atomic_load(&f.error) &&
		fill_pages_next(f.pages, BATCH, &first, &n)) {
		for (; n && r == 0; first += places, n -= places) {
			r = fill_pages_fill(
				f.pages, first, n, zip, &page, &pages, &places, &e);
			if (r == 0)
				wake_all(page, pages);
		}
		if (r < 0)
			fail(r, e.msg);
		fault_point("fill.batch");
	}
	zip_free(zip);
	kick();
	return NULL;
}

static void
write_down(uint64_t page)
{
	const uint32_t number = (uint32_t)page;

	if (f.touched[page] || f.n_touched == FILL_TOUCHED_MAX)
		return;
	f.touched[page] = 1;
	if (io_pwrite_full(f.fds[FILL_BEGIN_FD_TOUCHED], &number, sizeof(number),
		    f.n_touched * sizeof(number)) == 0)
		f.n_touched++;
}

static void
want(uint64_t page)
{
	const struct fill_want m = {
		.hdr = {FILL_VERSION, FILL_WANT, sizeof(m)}, .leaf = page / FILL_LEAF_PAGES};

	if (f.wanted[m.leaf] || f.control_fd < 0)
		return;
	f.wanted[m.leaf] = 1;
	/* A wish: without it the leaf comes in its turn. */
	(void)!send(f.control_fd, &m, sizeof(m), MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void
give_zero(const struct vm *vm, uint64_t page)
{
	struct uffdio_zeropage zero = {
		.range = {.start = vm->host + page * FILL_PAGE, .len = FILL_PAGE}};

	if (ioctl(atomic_load(&vm->uffd_fd), UFFDIO_ZEROPAGE, &zero) < 0)
		wake(vm, page, 1); /* it is there already, or the VM is not */
}

/* false: the plan does not say yet. */
static bool
serve(unsigned vm, uint64_t page)
{
	struct err e;
	bool filled;

	switch (fill_pages_state(f.pages, page)) {
	case PAGE_UNKNOWN:
		want(page);
		return false;
	case PAGE_ZERO:
		give_zero(&f.vms[vm], page);
		return true;
	case PAGE_PLANNED:
		if (atomic_load(&f.error))
			return true;
		if (fill_pages_fill_page(f.pages, page, f.zip, &filled, &e) < 0)
			fail(e.code, e.msg);
		else if (filled) /* else another has just taken it, and wakes */
			wake_all(page, 1);
		return true;
	case PAGE_TAKEN:
		return true;
	case PAGE_THERE:
		wake(&f.vms[vm], page, 1);
		return true;
	}
	return true;
}

/* false: the VM is to be dropped. */
static bool
serve_or_wait(unsigned vm, uint64_t page)
{
	struct waiting *w;

	if (serve(vm, page))
		return true;
	if (f.vms[vm].n_waiting == WAITING_MAX)
		return false;
	w = malloc(sizeof(*w));
	if (!w) {
		fail(-ENOMEM, "out of memory");
		return true;
	}
	*w = (struct waiting){f.waiting, vm, page};
	f.waiting = w;
	f.vms[vm].n_waiting++;
	return true;
}

static void
serve_waiting(void)
{
	for (struct waiting **at = &f.waiting; *at;) {
		struct waiting *w = *at;

		if (!serve(w->vm, w->page)) {
			at = &w->next;
			continue;
		}
		f.vms[w->vm].n_waiting--;
		*at = w->next;
		free(w);
	}
}

static void
forget_waiting(unsigned vm)
{
	for (struct waiting **at = &f.waiting; *at;) {
		struct waiting *w = *at;

		if (w->vm != vm) {
			at = &w->next;
			continue;
		}
		*at = w->next;
		free(w);
	}
	f.vms[vm].n_waiting = 0;
}

static void
drop_vm(unsigned vm)
{
	struct vm *v = &f.vms[vm];

	pthread_mutex_lock(&f.lock);
	if (atomic_load(&v->uffd_fd) >= 0)
		close(atomic_exchange(&v->uffd_fd, -1));
	pthread_mutex_unlock(&f.lock);
	close(TAKE_FD(v->sock_fd));
	forget_waiting(vm);
}

static void
interrupt(int sig)
{
	(void)sig;
}

/* The signal is the main thread's; no call of it but this one is cut off by it. */
static void
limit_read(long ms)
{
	const struct timeval each = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
	const struct itimerval limit = {each, each};

	(void)setitimer(ITIMER_REAL, &limit, NULL);
}

static void
read_faults(unsigned vm)
{
	struct uffd_msg msgs[EVENTS];
	const struct vm *v = &f.vms[vm];
	ssize_t n;

	limit_read(READ_LIMIT_MS);
	n = read(atomic_load(&v->uffd_fd), msgs, sizeof(msgs));
	if (n < 0 && errno != EAGAIN) {
		drop_vm(vm);
		n = 0;
	}
	limit_read(0);
	for (ssize_t i = 0; n > 0 && i < n / (ssize_t)sizeof(*msgs); i++) {
		const uint64_t at = msgs[i].arg.pagefault.address - v->host;

		if (msgs[i].event != UFFD_EVENT_PAGEFAULT || at >= v->len)
			continue;
		write_down(at / FILL_PAGE);
		if (!serve_or_wait(vm, at / FILL_PAGE)) {
			drop_vm(vm);
			return;
		}
	}
}

static void
tell_vm(unsigned vm)
{
	struct fill_whole m = {.hdr = {FILL_VERSION, FILL_WHOLE, sizeof(m)}};

	m.error = atomic_load(&f.error);
	if (m.error)
		memcpy(m.msg, f.msg, sizeof(m.msg));
	(void)!send(f.vms[vm].sock_fd, &m, sizeof(m), MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Other descriptors would be read from, too, and some of them for ever. */
static bool
is_uffd(int fd, const struct fill_memory *m)
{
	struct uffdio_range all = {.start = m->host, .len = m->len};

	return ioctl(fd, UFFDIO_WAKE, &all) == 0;
}

static void
hear_vm(unsigned vm)
{
	struct vm *v = &f.vms[vm];
	struct fill_memory m;
	size_t n_fds = 1;
	int fd = -1;
	ssize_t n = io_recv_fds(v->sock_fd, &m, sizeof(m), &fd, &n_fds, MSG_DONTWAIT);

	if (n == -EAGAIN)
		return;
	if (n == sizeof(m) && n_fds == 1 && m.hdr.version == FILL_VERSION &&
		m.hdr.type == FILL_MEMORY && m.hdr.len == sizeof(m) &&
		m.len == f.n_pages * FILL_PAGE && atomic_load(&v->uffd_fd) < 0 &&
		is_uffd(fd, &m)) {
		io_set_nonblock(fd, 1);
		pthread_mutex_lock(&f.lock);
		v->host = m.host;
		v->len = m.len;
		atomic_store(&v->uffd_fd, fd);
		pthread_mutex_unlock(&f.lock);
		if (f.was_told)
			tell_vm(vm);
		return;
	}
	if (n >= 0 && n_fds == 1) /* also with a message of nothing */
		close(fd);
	drop_vm(vm);
}

static int
take_vm(int fd, struct err *e)
{
	struct vm *v = NULL;

	for (unsigned i = 0; i < VMS_MAX && !v; i++)
		if (i >= f.n_vms || f.vms[i].sock_fd < 0)
			v = &f.vms[i];
	if (!v) {
		close(fd);
		return err_set(e, -EMFILE, "too many VMs at once");
	}
	pthread_mutex_lock(&f.lock);
	atomic_store(&v->uffd_fd, -1);
	v->sock_fd = fd;
	if (v == &f.vms[f.n_vms])
		f.n_vms++;
	pthread_mutex_unlock(&f.lock);
	return 0;
}

static int
begin(const struct fill_begin *m, const int *fds, struct err *e)
{
	sigset_t alarm;
	pthread_t thread;
	int r;

	if (m->pages == 0 || m->pages > UINT32_MAX)
		return err_set(e, -EPROTO, "a memory of %llu pages",
			(unsigned long long)m->pages);
	f.n_pages = m->pages;
	memcpy(f.fds, fds, sizeof(f.fds));
	f.wanted = calloc(m->pages / FILL_LEAF_PAGES + 1, 1);
	f.touched = calloc(m->pages, 1);
	if (!f.wanted || !f.touched)
		return err_set(e, -ENOMEM, "out of memory");
	r = fill_pages_new(m->pages, fds[FILL_BEGIN_FD_MEMORY], fds[FILL_BEGIN_FD_IMAGE],
		fds[FILL_BEGIN_FD_PLAN], &f.pages, e);
	/* The main thread's alone. */
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm, NULL);
	for (long i = 0; r == 0 && i < f.n_cpus && i < (long)THREADS_MAX; i++)
		if ((r = -pthread_create(&thread, NULL, background, NULL)) < 0) {
			if (i == 0)
				err_sys(e, r, "starting a thread");
			else
				f.n_cpus = i; /* fewer will do */
			r = i == 0 ? r : 0;
		}
	pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
	return r;
}

union fill_message {
	struct fill_hdr hdr;
	struct fill_begin begin;
	struct fill_plan plan;
};

/* 0: go on; 1: pandod is gone; < 0: it makes no sense. */
static int
hear_pandod(struct err *e)
{
	union fill_message m;
	int fds[FILL_BEGIN_FD_COUNT];
	size_t n_fds = FILL_BEGIN_FD_COUNT;
	ssize_t n = io_recv_fds(f.control_fd, &m, sizeof(m), fds, &n_fds, MSG_DONTWAIT);

	if (n == -EAGAIN)
		return 0;
	if (n <= 0)
		return 1;
	if ((size_t)n >= sizeof(m.hdr) && m.hdr.version == FILL_VERSION &&
		m.hdr.len == (size_t)n) {
		if (m.hdr.type == FILL_BEGIN && n == sizeof(m.begin) &&
			n_fds == FILL_BEGIN_FD_COUNT && !f.pages)
			return begin(&m.begin, fds, e);
		if (m.hdr.type == FILL_PACK && n == sizeof(m.hdr) && n_fds == 1 && f.pages)
			return fill_pages_pack(f.pages, fds[0], e);
		if (m.hdr.type == FILL_VM && n == sizeof(m.hdr) && n_fds == 1 && f.pages)
			return take_vm(fds[0], e);
		if (m.hdr.type == FILL_PLAN && n == sizeof(m.plan) && n_fds == 0 && f.pages) {
			int r = fill_pages_plan(f.pages, m.plan.places, m.plan.is_all, e);

			if (r == 0) {
				f.is_all = m.plan.is_all;
				serve_waiting();
			}
			return r;
		}
	}
	io_close_all(fds, n_fds);
	return err_set(e, -EPROTO, "pandod sent what is no message");
}

/* To all peers, once: memory is whole, or will not be. */
static void
tell_end(void)
{
	struct fill_done m = {.hdr = {FILL_VERSION, FILL_DONE, sizeof(m)}};

	if (f.was_told)
		return;
	f.was_told = true;
	m.error = atomic_load(&f.error);
	m.image_error = fill_pages_image_error(f.pages);
	if (m.error)
		memcpy(m.msg, f.msg, sizeof(m.msg));
	fault_point("fill.whole");
	for (unsigned i = 0; i < f.n_vms; i++)
		if (f.vms[i].sock_fd >= 0 && atomic_load(&f.vms[i].uffd_fd) >= 0)
			tell_vm(i);
	/* Last: a pandod that does not read makes it wait. */
	if (f.control_fd >= 0)
		(void)!send(f.control_fd, &m, sizeof(m), MSG_NOSIGNAL);
}

static bool
has_vms(void)
{
	for (unsigned i = 0; i < f.n_vms; i++)
		if (f.vms[i].sock_fd >= 0)
			return true;
	return false;
}

static void
look(void)
{
	static struct pollfd polled[2 * VMS_MAX + 2];
	static unsigned vm_of[2 * VMS_MAX + 2];
	uint64_t count;
	struct err e;
	nfds_t n = 2;
	int r;

	polled[0] = (struct pollfd){.fd = f.control_fd, .events = POLLIN};
	polled[1] = (struct pollfd){.fd = f.kick_fd, .events = POLLIN};
	for (unsigned i = 0; i < f.n_vms; i++) {
		if (f.vms[i].sock_fd < 0)
			continue;
		vm_of[n] = vm_of[n + 1] = i;
		polled[n++] = (struct pollfd){.fd = f.vms[i].sock_fd, .events = POLLIN};
		polled[n++] = (struct pollfd){
			.fd = atomic_load(&f.vms[i].uffd_fd), .events = POLLIN};
	}
	if (poll(polled, n, -1) < 0)
		return;
	if (polled[1].revents)
		(void)!read(f.kick_fd, &count, sizeof(count));
	/* Faults first, then who is gone. */
	for (nfds_t i = 3; i < n; i += 2)
		if (polled[i].revents & POLLIN)
			read_faults(vm_of[i]);
		else if (polled[i].revents)
			drop_vm(vm_of[i]);
	for (nfds_t i = 2; i < n; i += 2)
		if (polled[i].revents && f.vms[vm_of[i]].sock_fd >= 0)
			hear_vm(vm_of[i]);
	if (!polled[0].revents)
		return;
	r = hear_pandod(&e);
	if (r == 0)
		return;
	close(TAKE_FD(f.control_fd));
	if (r < 0)
		fail(e.code, e.msg);
	else if (f.pages && !f.is_all)
		fail(-EPIPE, "pandod ended before it had told where its memory lies");
}

int
fill_serve_open(int control_fd)
{
	const struct sigaction ends_read = {.sa_handler = interrupt};

	signal(SIGPIPE, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);	      /* writes say EFBIG */
	sigaction(SIGALRM, &ends_read, NULL); /* without SA_RESTART */
	f.control_fd = control_fd;
	f.n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
	f.kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (f.kick_fd < 0)
		return -errno;
	if (f.n_cpus < 1)
		f.n_cpus = 1;
	return hash_init() < 0 ? -ENOSYS : zip_new(&f.zip);
}

void
fill_serve_turn(void)
{
	look();
	if (f.pages && (atomic_load(&f.error) || fill_pages_are_whole(f.pages)))
		tell_end();
}

bool
fill_serve_is_over(void)
{
	return f.control_fd < 0 && (f.was_told || !f.pages) && !has_vms();
}

int
fill_serve_error(void)
{
	return atomic_load(&f.error);
}
