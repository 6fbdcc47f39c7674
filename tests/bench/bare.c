#include "tests/bench/bare.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define PAGE 4096u
#define DIRTY_FROM (4u << 20) /* where the small guest dirties its pages */

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

int
bare_fork(uint64_t mem_mib, uint64_t pages, uint64_t *ret_fork_ns, uint64_t *ret_child_ns,
	struct err *e)
{
	uint64_t *shared = mmap(
		NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = 0;
	pid_t pid;

	if (shared == MAP_FAILED)
		return err_sys(e, -errno, "mmap");
	memset(shared, 0, PAGE);
	/* In a process of its own, so that nothing of ours is forked along. */
	pid = fork();
	if (pid == 0) {
		uint8_t *mem = guest_like_memory(mem_mib);
		uint64_t before, after;

		if (!mem)
			_exit(1);
		mem[0] = 1;
		for (uint64_t i = 0; i < pages; i++)
			mem[DIRTY_FROM + i * PAGE] = 1;
		before = io_now_ns();
		pid = fork();
		if (pid == 0) {
			shared[1] = io_now_ns() - before;
			_exit(0);
		}
		after = io_now_ns();
		if (pid < 0)
			_exit(2);
		waitpid(pid, &status, 0);
		shared[0] = after - before;
		_exit(0);
	}
	if (pid > 0)
		waitpid(pid, &status, 0);
	*ret_fork_ns = shared[0];
	*ret_child_ns = shared[1];
	munmap(shared, PAGE);
	return pid < 0 || status || !*ret_fork_ns || !*ret_child_ns
		       ? err_set(e, -EIO, "the bare fork failed")
		       : 0;
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
