#include "tests/bench/floor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "vmm/restore.h"
#include "vmm/snapshot.h"
#include "vmm/steps.h"
#include "vmm/virtio_mmio.h"

struct shared {
	uint64_t ns;
	struct err e;
};

static bool
rang(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write &&
	       run->mmio.phys_addr >= LAYOUT_VIRTIO &&
	       run->mmio.phys_addr <
		       LAYOUT_VIRTIO + LAYOUT_VIRTIO_COUNT * LAYOUT_VIRTIO_STRIDE;
}

/* A VM that was made ahead, as a pre-warmed VMM makes it. */
static int
make_ahead(struct vm *vm, int kvm, const struct vmm_restore *msg, struct err *e)
{
	const struct timespec rest = {.tv_nsec = 3000000};
	int pair[2], r;

	vm_init(vm);
	vm->kvm_fd = kvm;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return err_sys(e, -errno, "socketpair");
	vm->control_fd = pair[0];
	r = restore_make(vm, msg->mem_mib, msg->vcpus, e);
	if (r < 0)
		return r;
	/* The first run of all, which does not enter the guest. */
	vm->vcpus[0].run->immediate_exit = 1;
	kvm_run(vm->vcpus[0].fd);
	vm->vcpus[0].run->immediate_exit = 0;
	guest_mem_open_hole(&vm->mem);
	nanosleep(&rest, NULL); /* as long as a pre-warmed VMM is left alone */
	return 0;
}

static int
run_to_doorbell(struct vm *vm, struct err *e)
{
	int r;

	do {
		r = kvm_run(vm->vcpus[0].fd);
		if (r < 0 && r != -EINTR)
			return err_sys(e, r, "KVM_RUN");
		if (r == 0 && !rang(vm->vcpus[0].run))
			return err_set(e, -EIO,
				"the guest leaves with reason %u before its doorbell",
				vm->vcpus[0].run->exit_reason);
	} while (r < 0);
	return 0;
}

static int
run_once(int kvm, const struct vmm_restore *msg, int fds[], struct shared *ret)
{
	static struct vm vm;
	struct steps steps;
	uint64_t began_ns;
	int r = make_ahead(&vm, kvm, msg, &ret->e);

	if (r < 0)
		return r;
	began_ns = io_now_ns();
	steps_begin(&steps, began_ns);
	r = restore_load(&vm, msg, fds, &steps, &ret->e);
	if (r == 0)
		r = run_to_doorbell(&vm, &ret->e);
	ret->ns = io_now_ns() - began_ns;
	return r;
}

int
floor_restore(int kvm, const struct vmm_restore *msg,
	const int fds[static VMM_RESTORE_FD_COUNT], uint64_t *ret_ns, struct err *e)
{
	struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = -1, r;
	pid_t pid;

	if (shared == MAP_FAILED)
		return err_sys(e, -errno, "mmap");
	*shared = (struct shared){.e = {.code = -EIO, .msg = "the process died"}};
	pid = fork();
	if (pid == 0) {
		int own[VMM_RESTORE_FD_COUNT];

		memcpy(own, fds, sizeof(own));
		_exit(run_once(kvm, msg, own, shared) < 0);
	}
	if (pid > 0)
		waitpid(pid, &status, 0);
	*ret_ns = shared->ns;
	r = status ? err_set(e, -EIO, "the floor: %.300s", shared->e.msg) : 0;
	munmap(shared, sizeof(*shared));
	return r;
}

/* The guest's own: where its kernel, its stack and its generation lie. */
#define LOW_BYTES (2u << 20)

static void
write_pages(const struct vm *vm, const struct floor_dirty *d)
{
	for (uint64_t i = 0; i < d->pages; i++) {
		volatile uint8_t *p = guest_range(
			&vm->mem, (gpa_t){d->gpa + i * d->stride % d->of * 4096}, 4096);

		(*p)++;
	}
}

/* Ascending, whatever the order they were written in. */
static void
drop_pages(const struct vm *vm, const struct floor_dirty *d)
{
	const uint64_t step = d->pages * d->stride <= d->of ? d->stride : 0;
	uint8_t *from = guest_range(&vm->mem, (gpa_t){d->gpa}, 1);

	madvise(vm->mem.host, LOW_BYTES, MADV_DONTNEED);
	if (step <= 1) { /* one range, or so many that they are all of it */
		madvise(from, (step ? d->pages : d->of) * 4096, MADV_DONTNEED);
		return;
	}
	for (uint64_t i = 0; i < d->pages; i++)
		madvise(from + i * step * 4096, 4096, MADV_DONTNEED);
}

static int
reset_once(struct vm *vm, const struct vmm_restore *msg, const void *blob,
	const struct floor_dirty *d, bool by_range, uint64_t *ret_ns, struct err *e)
{
	struct snapshot s;
	uint64_t began_ns;
	bool changed;
	int r;

	write_pages(vm, d);
	/* What it left for by itself is over. */
	vm->vcpus[0].run->immediate_exit = 1;
	kvm_run(vm->vcpus[0].fd);
	vm->vcpus[0].run->immediate_exit = 0;
	began_ns = io_now_ns();
	if (by_range)
		drop_pages(vm, d);
	else
		madvise(vm->mem.host, vm->mem.low_len + vm->mem.high_len, MADV_DONTNEED);
	if ((r = snapshot_open(blob, msg->blob_bytes, &s, e)) < 0 ||
		(r = snapshot_load_cpuid(&s, vm, &changed, e)) < 0 ||
		(r = snapshot_load(&s, vm, e)) < 0 || (r = vm_take_up(vm, e)) < 0 ||
		(r = vm_load(vm, e)) < 0)
		return r;
	ioapic_resume(&vm->ioapic);
	serial_resume(&vm->serial);
	vm_set_generation(vm, msg->generation);
	r = run_to_doorbell(vm, e);
	*ret_ns = io_now_ns() - began_ns;
	return r;
}

static int
reset_often(int kvm, const struct vmm_restore *msg, int fds[], const struct floor_dirty *d,
	bool by_range, unsigned rounds, uint64_t *ret_ns, struct err *e)
{
	static struct vm vm;
	uint8_t *blob = malloc(msg->blob_bytes);
	struct steps steps;
	int r = make_ahead(&vm, kvm, msg, e);

	if (r == 0 && (!blob || io_pread_full(fds[VMM_RESTORE_FD_STATE], blob,
				       msg->blob_bytes, 0) < 0))
		r = err_set(e, -EIO, "the state cannot be read");
	steps_begin(&steps, io_now_ns());
	if (r == 0)
		r = restore_load(&vm, msg, fds, &steps, e);
	if (r == 0)
		r = run_to_doorbell(&vm, e);
	for (unsigned i = 0; i < rounds && r == 0; i++)
		r = reset_once(&vm, msg, blob, d, by_range, &ret_ns[i], e);
	free(blob);
	return r;
}

int
floor_reset(int kvm, const struct vmm_restore *msg,
	const int fds[static VMM_RESTORE_FD_COUNT], const struct floor_dirty *dirty,
	bool by_range, unsigned rounds, uint64_t *ret_ns, struct err *e)
{
	const size_t bytes = sizeof(struct err) + (rounds + 1) * sizeof(uint64_t);
	struct {
		struct err e;
		uint64_t ns[];
	} *shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		0);
	int status = -1, r;
	pid_t pid;

	if (shared == MAP_FAILED)
		return err_sys(e, -errno, "mmap");
	shared->e = (struct err){.code = -EIO, .msg = "the process died"};
	pid = fork();
	if (pid == 0) {
		int own[VMM_RESTORE_FD_COUNT];

		memcpy(own, fds, sizeof(own));
		_exit(reset_often(kvm, msg, own, dirty, by_range, rounds, shared->ns,
			      &shared->e) < 0);
	}
	if (pid > 0)
		waitpid(pid, &status, 0);
	memcpy(ret_ns, shared->ns, rounds * sizeof(uint64_t));
	r = status ? err_set(e, -EIO, "the floor of a reset: %.300s", shared->e.msg) : 0;
	munmap(shared, bytes);
	return r;
}
