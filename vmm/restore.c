/*
 * How a VM comes to be from a commit.
 *
 * Ahead of time (restore_prepare): a whole VM of the wanted shape, with vCPU threads that
 * wait, behind the seal; all but its content. Its memory slots lie over addresses that
 * nothing is mapped at: KVM looks at those when a guest touches them, and mapping into a
 * hole costs it nothing (over a mapping it has to look through the whole slot: 250 µs).
 * So that nothing else comes to lie there, the addresses stay reserved until all that
 * maps memory is done; from then on to the mapping of the image no call here does, and
 * the mapping itself is refused if something did (MAP_FIXED_NOREPLACE).
 *
 * A rehearsal saves and loads the pre-warmed VM once: what the restore will touch of code,
 * tables and kernel paths has then been touched.
 *
 * Then: map the image, read the state, load it, run. vCPU 0's own thread does it, since
 * it is the one that sleeps until the message comes: the way to the first instruction has
 * one wake-up in it, not two. What can wait (console, vsock, log) the main thread does
 * beside the running guest.
 */
#include "vmm/restore.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "vmm/answer.h"
#include "vmm/futex.h"
#include "vmm/mainloop.h"
#include "vmm/seal.h"
#include "vmm/snapshot.h"
#include "vmm/steps.h"
#include "vmm/vcpu.h"

/* The guest's own context id comes with its state. */
#define ANY_CID 3u

/* The state blob, on its way in or out. */
static uint8_t blob[VMM_STATE_BLOB_MAX] __attribute__((aligned(64)));

/* One restore in a process. */
static struct job {
	struct vmm_restore msg;
	int fds[VMM_RESTORE_FD_MAX]; /* owned; -1 once handed on */
	struct steps steps;
	int r; /* of what vCPU 0's thread did, with its sentence */
	struct err e;
} the_job = {.fds = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1}};
_Static_assert(VMM_RESTORE_FD_MAX == 16, "as many as are -1 above");

/* vm_start_vcpus_parked()'s. */
#define PREWARMED_EPOCH 1u

static int
check_shape(uint64_t mem_mib, uint32_t vcpus, struct err *e)
{
	if (mem_mib < VMM_MEM_MIN_MIB || mem_mib > VMM_MEM_MAX_MIB)
		return err_set(e, -EINVAL, "memory of %llu MiB: it must be %d to %d",
			(unsigned long long)mem_mib, VMM_MEM_MIN_MIB, VMM_MEM_MAX_MIB);
	if (vcpus < 1 || vcpus > VMM_VCPUS_MAX)
		return err_set(
			e, -EINVAL, "%u vCPUs: it must be 1 to %d", vcpus, VMM_VCPUS_MAX);
	return 0;
}

int
restore_check_prepare(
	const struct vmm_prepare *m, size_t len, size_t n_fds, struct err *e)
{
	if (len != sizeof(*m) || n_fds != VMM_PREPARE_FD_COUNT)
		return err_set(e, -EPROTO,
			"VMM_PREPARE came with %zu bytes and %zu descriptors, not %zu and %d",
			len, n_fds, sizeof(*m), VMM_PREPARE_FD_COUNT);
	return check_shape(m->mem_mib, m->vcpus, e);
}

int
restore_check(const struct vmm_restore *m, size_t len, size_t n_fds, struct err *e)
{
	if (len != sizeof(*m) || n_fds != vmm_restore_fds(m->flags))
		return err_set(e, -EPROTO,
			"VMM_RESTORE came with %zu bytes and %zu descriptors, not %zu and %d",
			len, n_fds, sizeof(*m), VMM_RESTORE_FD_COUNT);
	if (m->flags & ~(VMM_RESTORE_HAS_BASE | VMM_RESTORE_HAS_CHANGES |
			       VMM_RESTORE_IS_FILLED))
		return err_set(e, -EINVAL, "unknown flags 0x%x", m->flags);
	if (!memchr(m->name, 0, sizeof(m->name)))
		return err_set(e, -EINVAL, "the name is not terminated");
	if (m->blob_bytes > VMM_STATE_BLOB_MAX)
		return err_set(e, -EINVAL, "a state of %llu bytes: at most %u are read",
			(unsigned long long)m->blob_bytes, VMM_STATE_BLOB_MAX);
	return check_shape(m->mem_mib, m->vcpus, e);
}

/*
 * A vCPU's first entry of its guest makes KVM fill its caches for page tables: a hundred
 * pages, allocated and cleared, half of what a thousand restores at once would cost. So
 * each enters once ahead of time, for a single instruction that leaves again. All that it
 * changes is loaded anew.
 */
static int
enter_once(struct vm *vm, struct err *e)
{
	static const uint8_t leave[] = {0xe6, LAYOUT_PORT_OF_NOBODY}; /* out %al, $port */
	const struct kvm_mp_state runnable = {KVM_MP_STATE_RUNNABLE};
	const gpa_t page = {0x1000};
	int r = guest_mem_lend_page(&vm->mem, page, e);

	if (r == 0)
		r = guest_write(&vm->mem, page, leave, sizeof(leave));
	for (unsigned i = 0; i < vm->n_vcpus && r == 0; i++) {
		struct vcpu *v = &vm->vcpus[i];
		struct kvm_sregs sregs = v->state.sregs;
		const struct kvm_regs regs = {.rip = page.v, .rflags = 2};

		sregs.cs.base = sregs.cs.selector = 0;
		if ((r = kvm_set_mp_state(v->fd, &runnable, e)) < 0 ||
			(r = kvm_set_sregs(v->fd, &sregs, e)) < 0 ||
			(r = kvm_set_regs(v->fd, &regs, e)) < 0)
			return r;
		if ((r = kvm_run(v->fd)) < 0)
			return err_sys(e, r, "KVM_RUN");
		if (v->run->exit_reason != KVM_EXIT_IO)
			return err_set(e, -EIO,
				"the first instruction of all leaves with reason %u",
				v->run->exit_reason);
		/* KVM ends the instruction when it is called again. */
		v->run->immediate_exit = 1;
		kvm_run(v->fd);
		v->run->immediate_exit = 0;
	}
	return r;
}

/* Saves and loads the pre-warmed VM, through the very code that a restore runs. */
static int
rehearse(struct vm *vm, struct err *e)
{
	struct snapshot s;
	bool changed;
	size_t len;
	int r;

	if ((r = vm_save(vm, e)) < 0 || (r = enter_once(vm, e)) < 0)
		return r;
	/* It has no disk yet: one of 1 MiB, for the form's sake. */
	vm->blk.config.capacity = (1u << 20) / BLK_SECTOR;
	len = snapshot_save(vm, blob, sizeof(blob));
	r = snapshot_open(blob, len, &s, e);
	if (r == 0)
		r = snapshot_load_cpuid(&s, vm, &changed, e);
	if (r == 0)
		r = snapshot_load(&s, vm, e);
	if (r == 0)
		r = vm_take_up(vm, e);
	if (r == 0)
		r = vm_load(vm, e);
	vm->blk.config.capacity = 0;
	return r < 0 ? err_wrap(e, r, "rehearsing a restore") : 0;
}

/* The state, checked as far as the shape goes. */
static int
read_state(struct vm *vm, const struct vmm_restore *m, int fd, struct snapshot *ret,
	struct err *e)
{
	const uint64_t mem_mib = (vm->mem.low_len + vm->mem.high_len) >> 20;
	int r = io_pread_full(fd, blob, m->blob_bytes, 0);

	if (r < 0)
		return r == -ENODATA || r == -EPIPE
			       ? err_set(e, -EBADMSG,
					 "the state's file is shorter than %llu bytes",
					 (unsigned long long)m->blob_bytes)
			       : err_sys(e, r, "reading the state");
	r = snapshot_open(blob, m->blob_bytes, ret, e);
	if (r < 0)
		return r;
	if (ret->config.mem_mib != mem_mib || ret->config.vcpus != vm->n_vcpus)
		return err_set(e, -EINVAL,
			"the state is of a VM of %llu MiB and %u vCPUs, this VMM was made for %llu MiB and %u",
			(unsigned long long)ret->config.mem_mib, ret->config.vcpus,
			(unsigned long long)mem_mib, vm->n_vcpus);
	return 0;
}

/* Whether the state is one that a vCPU which was in its guest does not take: such a one
 * keeps its CPUID (KVM_SET_CPUID2) and its feature MSRs. */
static bool
needs_other_vcpus(const struct vm *vm, bool cpuid_changed)
{
	bool needs = cpuid_changed;

	for (unsigned i = 0; i < vm->n_vcpus && !needs; i++)
		needs = state_has_other_features(&vm->vcpus[i].state, &vm->plan);
	return needs;
}

/* Rare: the commit comes from another CPU, or from before its microcode or its kernel was
 * updated. */
static int
make_other_vcpus(struct vm *vm, struct err *e)
{
	vm_drop_kvm(vm, false);
	return vm_make_kvm(vm, e);
}

int
restore_load(struct vm *vm, const struct vmm_restore *m, int fds[], struct steps *steps,
	struct err *e)
{
	const bool has_base = m->flags & VMM_RESTORE_HAS_BASE;
	bool changed = false;
	struct snapshot s;
	int r;

	if (m->mem_mib != (vm->mem.low_len + vm->mem.high_len) >> 20 ||
		m->vcpus != vm->n_vcpus)
		return err_set(e, -EINVAL,
			"asked for %llu MiB and %u vCPUs, this VMM was made for %llu MiB and %u",
			(unsigned long long)m->mem_mib, m->vcpus,
			(unsigned long long)(vm->mem.low_len + vm->mem.high_len) >> 20,
			vm->n_vcpus);
	if ((r = guest_mem_map_image(&vm->mem, fds[VMM_RESTORE_FD_MEMORY], e)) < 0)
		return r;
	steps_add(steps, "map");
	if (m->flags & VMM_RESTORE_IS_FILLED) {
		r = fill_begin(&vm->fill, &vm->mem, fds[VMM_RESTORE_FD_UFFD],
			fds[VMM_RESTORE_FD_FILL], e);
		if (r < 0)
			return r;
		fds[VMM_RESTORE_FD_FILL] = -1;
		steps_add(steps, "fill");
	}
	if ((r = read_state(vm, m, fds[VMM_RESTORE_FD_STATE], &s, e)) < 0)
		return r;
	steps_add(steps, "read");
	if ((r = snapshot_load_cpuid(&s, vm, &changed, e)) < 0)
		return r;
	r = blk_attach(&vm->blk, m->disk_mib, has_base ? fds[VMM_RESTORE_FD_BASE] : -1,
		fds + VMM_RESTORE_FD_SEG, e);
	if (r == 0 && (m->flags & VMM_RESTORE_HAS_CHANGES)) {
		r = blk_attach_below(&vm->blk, fds[VMM_RESTORE_FD_CHANGES],
			fds[VMM_RESTORE_FD_MAP], m->changed_blocks, e);
		if (r == 0)
			fds[VMM_RESTORE_FD_CHANGES] = -1;
	}
	if (r < 0)
		return err_wrap(e, r, "disk");
	for (unsigned i = 0; i < VMM_SEG_FDS; i++)
		fds[VMM_RESTORE_FD_SEG + i] = -1;
	if (has_base)
		fds[VMM_RESTORE_FD_BASE] = -1;
	steps_add(steps, "attach");
	if ((r = snapshot_load(&s, vm, e)) < 0)
		return r;
	steps_add(steps, "parse");
	if (needs_other_vcpus(vm, changed)) {
		if ((r = make_other_vcpus(vm, e)) < 0)
			return r;
		steps_add(steps, "vcpus");
	}
	if ((r = vm_take_up(vm, e)) < 0 || (r = vm_load(vm, e)) < 0)
		return r;
	steps_add(steps, "state");
	/* Interrupts after the LAPICs' state, or loading it would wipe them out. */
	ioapic_resume(&vm->ioapic);
	serial_resume(&vm->serial);
	vm_set_generation(vm, m->generation);
	steps_add(steps, "generation");
	return 0;
}

/* The way to the first instruction. On whichever thread; the main thread is here or
 * waits. */
static int
take(struct vm *vm, struct job *job, uint64_t began_ns, struct err *e)
{
	int r;

	steps_begin(&job->steps, began_ns);
	vm->born_ns = began_ns;
	memcpy(vm->name, job->msg.name, sizeof(vm->name));
	r = restore_load(vm, &job->msg, job->fds, &job->steps, e);
	if (r < 0)
		return r;
	/* A vCPU that prints waits for its console. */
	serial_hold(&vm->serial);
	atomic_store(&vm->main_is_awake, true);
	vm_run_vcpus(vm);
	return 0;
}

/* What can wait until the guest runs. On the main thread. */
static int
settle(struct vm *vm, struct job *job, int r, struct err *e)
{
	int *fds = job->fds;

	if (r == 0) {
		steps_add(&job->steps, "run");
		r = console_open(&vm->console, fds[VMM_RESTORE_FD_CONSOLE], e);
		serial_release(&vm->serial);
		steps_add(&job->steps, "console");
	}
	if (r == 0) {
		r = vsock_listen(&vm->vsock, fds[VMM_RESTORE_FD_VSOCK], e);
		if (r == 0)
			fds[VMM_RESTORE_FD_VSOCK] = -1;
		vm_resume_devices(vm);
		steps_add(&job->steps, "vsock");
	}
	if (fds[VMM_RESTORE_FD_LOG] >= 0)
		vm_use_log(vm, TAKE_FD(fds[VMM_RESTORE_FD_LOG]));
	vm->listen_fd = TAKE_FD(fds[VMM_RESTORE_FD_LISTEN]);
	io_set_nonblock(vm->listen_fd, 1);
	io_set_nonblock(vm->control_fd, 1);
	io_close_all(fds, VMM_RESTORE_FD_MAX);
	if (r == 0)
		r = mainloop_watch_fill(vm, e);
	if (r < 0)
		return err_wrap(e, r, "restore");
	steps_add(&job->steps, "log");
	log_info("restored: %llu MiB, %u vCPU%s, %llu MiB disk; pid %d",
		(unsigned long long)job->msg.mem_mib, job->msg.vcpus,
		job->msg.vcpus == 1 ? "" : "s", (unsigned long long)job->msg.disk_mib,
		(int)getpid());
	steps_log(&job->steps, "restored");
	return 0;
}

int
restore_run(struct vm *vm, const struct vmm_restore *m, int fds[], uint64_t began_ns,
	struct err *e)
{
	int r;

	the_job.msg = *m;
	for (size_t i = 0; i < vmm_restore_fds(m->flags); i++)
		the_job.fds[i] = TAKE_FD(fds[i]);
	r = take(vm, &the_job, began_ns, e);
	return settle(vm, &the_job, r, e);
}

/* A pre-warmed VMM's next message, which is a VMM_RESTORE or the end. */
static int
receive(struct vm *vm, struct job *job, uint64_t *ret_began_ns, struct err *e)
{
	static union {
		struct vmm_hdr hdr;
		struct vmm_restore restore;
		uint8_t bytes[sizeof(struct vmm_restore) + 1];
	} m;
	size_t n_fds = VMM_RESTORE_FD_MAX;
	ssize_t n = io_recv_fds(vm->control_fd, &m, sizeof(m), job->fds, &n_fds, 0);
	int r;

	*ret_began_ns = io_now_ns();
	if (n == 0)
		_exit(0); /* not needed after all */
	if (n < 0)
		return err_sys(e, (int)n, "waiting for VMM_RESTORE");
	for (size_t i = n_fds; i < VMM_RESTORE_FD_MAX; i++)
		job->fds[i] = -1;
	if ((size_t)n < sizeof(m.hdr) || m.hdr.version != VMM_WIRE_VERSION ||
		m.hdr.len != (size_t)n)
		m.hdr.type = 0;
	if (m.hdr.type == VMM_QUIT && n == sizeof(m.hdr) && n_fds == 0)
		_exit(0);
	if (m.hdr.type != VMM_RESTORE)
		return err_set(e, -EPROTO,
			"a pre-warmed VMM takes VMM_RESTORE of version %d, and got something else",
			VMM_WIRE_VERSION);
	r = restore_check(&m.restore, (size_t)n, n_fds, e);
	if (r == 0)
		job->msg = m.restore;
	return r;
}

/* On vCPU 0's thread; see struct vm. */
static void
become(struct vm *vm)
{
	struct job *job = &the_job;
	uint64_t began_ns;

	job->r = receive(vm, job, &began_ns, &job->e);
	if (job->r == 0)
		job->r = take(vm, job, began_ns, &job->e);
	if (job->r < 0) {
		/* Still odd: nobody runs, but the main thread wakes. */
		atomic_fetch_add(&vm->epoch, 2);
		futex_wake(&vm->epoch);
	}
}

int
restore_make(struct vm *vm, uint64_t mem_mib, uint32_t vcpus, struct err *e)
{
	const struct vsock_loop loop = mainloop_vsock(vm);
	int r;

	vm->n_vcpus = vcpus;
	if ((r = vm_ask_kvm(vm, e)) < 0 || (r = mainloop_make(vm, e)) < 0 ||
		(r = guest_mem_reserve(&vm->mem, mem_mib, e)) < 0 ||
		(r = vm_init_devices(vm, ANY_CID, &loop, e)) < 0 ||
		(r = vm_make_kvm(vm, e)) < 0 || (r = vm_make_plan(vm, e)) < 0)
		return r;
	return rehearse(vm, e);
}

int
restore_prepare(
	struct vm *vm, uint64_t mem_mib, uint32_t vcpus, bool prewarmed, struct err *e)
{
	int r;

	vm->at_park = prewarmed ? become : NULL;
	track_open(&vm->track);
	if ((r = seal_surroundings(e)) < 0 ||
		(r = restore_make(vm, mem_mib, vcpus, e)) < 0 ||
		(prewarmed && (r = io_set_nonblock(vm->control_fd, 0)) < 0) ||
		(r = vcpu_install_signal(e)) < 0 || (r = seal_calls(e)) < 0 ||
		(r = vm_start_vcpus_parked(vm, e)) < 0)
		return r;
	guest_mem_open_hole(&vm->mem);
	return 0;
}

int
restore_wait(struct vm *vm, uint64_t seq, struct err *e)
{
	struct job *job = &the_job;
	struct vmm_done done = {0};
	unsigned epoch = PREWARMED_EPOCH;

	answer_send(vm, &done.hdr, VMM_DONE, sizeof(done), seq);
	if (vm->control_fd < 0)
		_exit(0);
	/* What is left to do after the wait can wait. */
	vm_let_others_first(pthread_self(), true);
	while (atomic_load(&vm->epoch) == epoch)
		futex_wait(&vm->epoch, epoch);
	vm_let_others_first(pthread_self(), false);
	if (job->r < 0) {
		*e = job->e;
		/* Before the message was understood there is no log of the VM's. */
		if (job->fds[VMM_RESTORE_FD_LISTEN] < 0)
			return job->r;
	}
	return settle(vm, job, job->r, e);
}

/* Behind the blob: what changed since which commit. */
static int
write_track(const struct vm *vm, int fd, size_t blob_len)
{
	const uint64_t at = (blob_len + VMM_TRACK_ALIGN - 1) / VMM_TRACK_ALIGN * VMM_TRACK_ALIGN;
	struct vmm_track head;
	int r;

	track_describe(&vm->track, &head);
	r = io_pwrite_full(fd, &head, sizeof(head), at);
	if (r < 0 || !(head.flags & VMM_TRACK_SINCE))
		return r;
	/* The second lies behind the first in memory, too. */
	return io_pwrite_full(fd, vm->track.changed, 2 * vm->track.bitmap_bytes,
		at + VMM_TRACK_ALIGN);
}

int
restore_answer_state(struct vm *vm, int fd, struct vmm_state_answer *ret, struct err *e)
{
	struct stat st;
	size_t len;
	int r;

	if (!vm->is_parked)
		return err_set(e, -EINVAL,
			"only a frozen fork has a state to give; fork one first");
	if (fstat(fd, &st) < 0)
		return err_sys(e, -errno, "the state's file");
	if (!S_ISREG(st.st_mode) || st.st_size != 0)
		return err_set(e, -EINVAL,
			"the state's file must be a regular, empty file or a memfd");
	len = snapshot_save(vm, blob, sizeof(blob));
	if (len == 0)
		return err_set(e, -EOVERFLOW, "the state is larger than %u bytes",
			VMM_STATE_BLOB_MAX);
	r = io_pwrite_full(fd, blob, len, 0);
	if (r == 0 && vm->is_tracked)
		r = write_track(vm, fd, len);
	if (r < 0)
		return err_sys(e, r, "writing the state");
	if ((r = seal_let_user_read(e)) < 0)
		return r;
	vm->is_readable = true;
	ret->flags = (vm->mem.on_image ? VMM_STATE_ON_IMAGE : 0) |
		     (vm->is_tracked ? VMM_STATE_TRACKED : 0);
	ret->blob_bytes = len;
	ret->mem_mib = (vm->mem.low_len + vm->mem.high_len) >> 20;
	ret->disk_mib = blk_disk_mib(&vm->blk);
	ret->vcpus = vm->n_vcpus;
	ret->n_ranges = vm->mem.high_len ? 2 : 1;
	ret->ranges[0] = (struct vmm_mem_range){
		.gpa = 0, .host = (uintptr_t)vm->mem.host, .len = vm->mem.low_len};
	if (vm->mem.high_len)
		ret->ranges[1] = (struct vmm_mem_range){.gpa = GUEST_HIGH_BASE,
			.host = (uintptr_t)vm->mem.host + vm->mem.low_len,
			.len = vm->mem.high_len};
	return 0;
}
