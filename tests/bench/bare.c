#include "tests/bench/bare.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "vmm/state.h"

#define PAGE 4096u
#define DIRTY_FROM (4u << 20) /* where the small guest dirties its pages */
#define OWN_PAGES 32

/* Asked and made once. */
static struct kvm_caps caps;
static struct kvm_cpuid_table cpuid;
static struct state_plan plan;
static struct vcpu_state state;

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

/* A VM, or what of it there is. */
struct machine {
	int vm, vcpu; /* owned */
	struct kvm_run *run;
};

static void
machine_done(struct machine *m)
{
	if (m->run)
		munmap(m->run, caps.run_size);
	cleanup_close_fn(&m->vcpu);
	cleanup_close_fn(&m->vm);
}

static int
machine_make(int kvm, uint8_t *mem, uint64_t mem_mib, struct machine *ret, struct err *e)
{
	int r;

	*ret = (struct machine){.vm = -1, .vcpu = -1};
	if ((r = kvm_create_vm(kvm, &ret->vm, e)) < 0 ||
		(r = kvm_create_split_irqchip(ret->vm, 24, e)) < 0 ||
		(r = kvm_set_memory(ret->vm, 0, 0, mem, mem_mib << 20, e)) < 0 ||
		(r = kvm_create_vcpu(ret->vm, 0, &ret->vcpu, e)) < 0 ||
		(r = kvm_map_run(ret->vcpu, caps.run_size, &ret->run, e)) < 0)
		return r;
	return kvm_set_cpuid(ret->vcpu, &cpuid, e);
}

/* What a vCPU is to be, once: a fresh one's state, about to run our code. */
static int
make_state(int kvm, struct err *e)
{
	static bool made;
	uint8_t *mem = guest_like_memory(16);
	struct machine m = {.vm = -1, .vcpu = -1};
	struct state_clock clock;
	int r;

	if (made)
		return 0;
	if (!mem)
		return err_set(e, -ENOMEM, "mmap");
	if ((r = kvm_read_caps(kvm, &caps, e)) == 0 &&
		(r = kvm_get_supported_cpuid(kvm, &cpuid, e)) == 0 &&
		(r = machine_make(kvm, mem, 16, &m, e)) == 0 &&
		(r = state_plan_make(kvm, &m.vcpu, 1, &caps, &plan, e)) == 0 &&
		(r = state_save_clock(m.vm, &caps, &clock, e)) == 0)
		r = state_save_vcpu(m.vcpu, &caps, &plan, &clock, NULL, &state, e);
	state.sregs.cs.base = state.sregs.cs.selector = 0;
	state.regs = (struct kvm_regs){.rip = 0x1000, .rflags = 2};
	made = r == 0;
	machine_done(&m);
	munmap(mem, 16 << 20);
	return r;
}

int
bare_kvm(uint64_t mem_mib, uint64_t *ret_ns, struct err *e)
{
	cleanup_close int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct machine m = {.vm = -1, .vcpu = -1};
	struct state_clock clock = {0};
	struct vcpu_state s;
	uint8_t *mem;
	uint64_t began;
	int r;

	if (kvm < 0)
		return err_sys(e, -errno, "/dev/kvm");
	if ((r = make_state(kvm, e)) < 0)
		return r;
	mem = guest_like_memory(mem_mib);
	if (!mem)
		return err_set(e, -ENOMEM, "mmap");
	memcpy(mem + 0x1000, code, sizeof(code));
	s = state;
	began = io_now_ns();
	r = machine_make(kvm, mem, mem_mib, &m, e);
	if (r == 0)
		r = state_load_vcpu(m.vcpu, &caps, &plan, &clock, &s, e);
	if (r == 0 && (r = kvm_run(m.vcpu)) < 0)
		err_sys(e, r, "KVM_RUN");
	*ret_ns = io_now_ns() - began;
	if (r == 0 && m.run->exit_reason != KVM_EXIT_IO)
		r = err_set(e, -EIO, "the bare guest left with reason %u",
			m.run->exit_reason);
	machine_done(&m);
	munmap(mem, mem_mib << 20);
	return r;
}
