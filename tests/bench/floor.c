#include "tests/bench/floor.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "vmm/restore.h"
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

static int
run_once(int kvm, const struct vmm_restore *msg, int fds[], struct shared *ret)
{
	static struct vm vm;
	const struct timespec rest = {.tv_nsec = 3000000};
	struct steps steps;
	uint64_t began_ns;
	int pair[2], r;

	vm_init(&vm);
	vm.kvm_fd = kvm;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return err_sys(&ret->e, -errno, "socketpair");
	vm.control_fd = pair[0];
	r = restore_make(&vm, msg->mem_mib, msg->vcpus, &ret->e);
	if (r < 0)
		return r;
	/* As a pre-warmed VMM does: the first run of all, which does not enter the guest. */
	vm.vcpus[0].run->immediate_exit = 1;
	kvm_run(vm.vcpus[0].fd);
	vm.vcpus[0].run->immediate_exit = 0;
	guest_mem_open_hole(&vm.mem);
	nanosleep(&rest, NULL); /* as long as a pre-warmed VMM is left alone */
	began_ns = io_now_ns();
	steps_begin(&steps, began_ns);
	r = restore_load(&vm, msg, fds, &steps, &ret->e);
	while (r == 0) {
		r = kvm_run(vm.vcpus[0].fd);
		if (r == -EINTR)
			r = 0;
		else if (r < 0)
			err_sys(&ret->e, r, "KVM_RUN");
		else if (rang(vm.vcpus[0].run))
			break;
		else
			r = err_set(&ret->e, -EIO,
				"the guest leaves with reason %u before its doorbell",
				vm.vcpus[0].run->exit_reason);
	}
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
