#include "tests/bench/bare.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define PAGE 4096u
#define DIRTY_FROM (4u << 20) /* where the small guest dirties its pages */
#define OWN_PAGES 32

static uint8_t *
guest_like_memory(uint64_t mem_mib)
{
	uint64_t len = mem_mib << 20, align = 2u << 20;
	uint8_t *p = mmap(NULL, len + align, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	p = (uint8_t *)(((uintptr_t)p + align - 1) & ~(uintptr_t)(align - 1));
	madvise(p, len, MADV_HUGEPAGE);
	return p;
}

/* What the small guest writes in every round of a branch: its stack and ledger, and the
 * pages it was told to dirty. */
static void
dirty(uint8_t *mem, uint64_t pages)
{
	for (uint64_t i = 0; i < OWN_PAGES; i++)
		(*(volatile uint8_t *)(mem + i * PAGE))++;
	for (uint64_t i = 0; i < pages; i++)
		(*(volatile uint8_t *)(mem + DIRTY_FROM + i * PAGE))++;
}

/* In a process of its own, so that nothing of ours is forked along. */
static int
fork_often(uint64_t mem_mib, uint64_t pages, unsigned rounds, uint64_t *fork_ns,
	uint64_t *child_ns)
{
	uint8_t *mem = guest_like_memory(mem_mib);
	pid_t last = 0;

	if (!mem)
		return 1;
	dirty(mem, pages);
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t before = io_now_ns();
		pid_t pid = fork();

		if (pid == 0) {
			child_ns[i] = io_now_ns() - before;
			for (;;)
				pause();
		}
		fork_ns[i] = io_now_ns() - before;
		if (pid < 0)
			return 2;
		/* The one before has seen the parent's writes; now it goes. */
		if (last) {
			kill(last, SIGKILL);
			waitpid(last, NULL, 0);
		}
		dirty(mem, pages);
		usleep(1000);
		last = pid;
	}
	if (last) {
		kill(last, SIGKILL);
		waitpid(last, NULL, 0);
	}
	return 0;
}

int
bare_fork(uint64_t mem_mib, uint64_t pages, unsigned rounds, uint64_t *ret_fork_ns,
	uint64_t *ret_child_ns, struct err *e)
{
	size_t bytes = rounds * sizeof(uint64_t);
	uint64_t *shared = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = -1;
	pid_t pid;

	if (shared == MAP_FAILED)
		return err_sys(e, -errno, "mmap");
	memset(shared, 0, 2 * bytes);
	pid = fork();
	if (pid == 0)
		_exit(fork_often(mem_mib, pages, rounds, shared, shared + rounds));
	if (pid > 0)
		waitpid(pid, &status, 0);
	memcpy(ret_fork_ns, shared, bytes);
	memcpy(ret_child_ns, shared + rounds, bytes);
	munmap(shared, 2 * bytes);
	return status ? err_set(e, -EIO, "the bare fork failed") : 0;
}

/* Real mode at 0x1000: outb, hlt. */
static const uint8_t code[] = {0xe6, 0x80, 0xf4};

int
bare_kvm(uint64_t mem_mib, uint64_t *ret_ns, struct err *e)
{
	cleanup_close int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = -1, vcpu = -1;
	struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
	struct kvm_userspace_memory_region slot = {.memory_size = mem_mib << 20};
	uint8_t *mem = guest_like_memory(mem_mib);
	struct kvm_sregs sregs;
	struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
	struct kvm_run *run;
	uint64_t began;
	int run_len;

	if (kvm < 0)
		return err_sys(e, -errno, "/dev/kvm");
	if (!mem)
		return err_set(e, -ENOMEM, "mmap");
	memcpy(mem + 0x1000, code, sizeof(code));
	slot.userspace_addr = (uintptr_t)mem;
	run_len = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	began = io_now_ns();
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0 || ioctl(vm, KVM_ENABLE_CAP, &split) < 0 ||
		ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		return err_sys(e, -errno, "making a VM");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return err_sys(e, -errno, "KVM_CREATE_VCPU");
	run = mmap(NULL, (size_t)run_len, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		return err_sys(e, -errno, "setting the vCPU up");
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 ||
		ioctl(vcpu, KVM_SET_REGS, &regs) < 0 || ioctl(vcpu, KVM_RUN, 0) < 0)
		return err_sys(e, -errno, "running the vCPU");
	*ret_ns = io_now_ns() - began;
	if (run->exit_reason != KVM_EXIT_IO)
		return err_set(
			e, -EIO, "the bare guest left with reason %u", run->exit_reason);
	munmap(run, (size_t)run_len);
	munmap(mem, mem_mib << 20);
	return 0;
}
