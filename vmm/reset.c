/*
 * How a VM goes back to a commit.
 *
 * What can be refused is looked at while the guest runs: files, state, shape. Then the vCPUs
 * park, which drains I/O, and vCPU 0's own thread does the rest, as for a fork: it is on a CPU,
 * and nobody has to be woken before the guest's next instruction. (In a paused VM it is the main
 * thread.)
 *
 * Memory. A VM of a commit is a private mapping of the commit's image. What it wrote are pages of
 * its own over it: PAGEMAP_SCAN names them (present or swapped, and not the file's), and
 * MADV_DONTNEED lets the file show again. Nothing is unmapped: KVM's slots stay, and so do its
 * translations of all pages that were only read. Where the kernel cannot name pages, all are
 * dropped; where the memory is not on this image (another commit, or a VM that was booted), the
 * image is mapped in its place. Ranges that lie near each other are dropped in one call, with the
 * clean pages between them: a call costs KVM a look at its translations and the CPUs a flush.
 *
 * Shadows. A KVM without EPT or NPT keeps shadows of the guest's page tables, kept right by
 * write-protecting these. It does not see that the file shows again, so a shadow may say what the
 * guest wrote into a page table since. Only the deletion of a memory slot drops them all; a slot of
 * one page is made for that (SHADOW_SLOT).
 *
 * vCPUs. Nothing of before may stay in them: see reset_vcpus(), and state_forget_banks() for what
 * KVM has and names in no list. One that cannot forget (it has
 * another CPUID, feature MSRs that KVM does not change after the first KVM_RUN, or MSRs that the
 * state has not) is made once more, with its VM: milliseconds, and rare.
 *
 * Devices begin anew and load their state. The disk is the commit's base and a new segment; the
 * descriptors of all older segments are closed, and nothing is written to them: branches read on.
 * vsock's connections end for clients now, and for the guest by a transport reset.
 *
 * To a fork point (VMM_RESET_TO_FORK_POINT) the same, but that state, memory and block map come from
 * the frozen fork that was kept (keep.h): the pages that the VM wrote since are copied from it
 * (track_keep.h; where nobody can say which, all are compared), the written pages of the block map too, and
 * the fork point's segments stay. The VM stays on whatever mapping it has.
 */
#include "vmm/reset.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "vmm/answer.h"
#include "vmm/blk_keep.h"
#include "vmm/ending.h"
#include "vmm/full_disk.h"
#include "vmm/futex.h"
#include "vmm/snapshot.h"
#include "vmm/steps.h"
#include "vmm/track_keep.h"

#define PAGE ((uint64_t)4096)
/* Own pages with no more than so many bytes between them are dropped by one call. */
#define NEAR (32 * PAGE)

/* Slots 0 and 1 are memory. The address is a device's: no vCPU runs while the slot is there. */
#define SHADOW_SLOT 2u
#define SHADOW_GPA LAYOUT_VIRTIO

static uint8_t blob[VMM_STATE_BLOB_MAX] __attribute__((aligned(64)));

/* One reset in a process at a time. */
static struct job {
	struct vmm_reset msg;
	int fds[VMM_RESET_FD_COUNT]; /* owned; -1 once handed on */
	struct snapshot snapshot;
	bool cpuid_changed;
	bool on_image; /* memory lies on the commit's already */
	uint64_t asked_ns;
	struct vmm_reset_answer answer;
	struct steps steps;
	unsigned n_past;
	atomic_uint done; /* a futex; the main thread sleeps on it */
} the_job;
static int past_fds[BLK_FDS_MAX]; /* owned: the disk's that is no more, until the guest runs */

/*
 * Memory.
 */

static int
drop(uint64_t from, uint64_t to)
{
	return madvise((void *)(uintptr_t)from, to - from, MADV_DONTNEED) < 0 ? -errno : 0;
}

/* -ENOSYS: nobody can say which. */
static int
drop_own_pages(const struct vm *vm, uint64_t *ret_pages)
{
	const uint64_t len = vm->mem.low_len + vm->mem.high_len;
	const uint64_t end = (uintptr_t)vm->mem.host + len;
	static struct pagemap_range ranges[TRACK_RANGES];
	uint64_t at = (uintptr_t)vm->mem.host, from = 0, to = 0;
	int n, r = 0;

	*ret_pages = 0;
	while (at < end && r == 0) {
		n = track_own_pages(&vm->track, &at, end, ranges);
		if (n < 0)
			return n;
		for (int i = 0; i < n && r == 0; i++) {
			*ret_pages += (ranges[i].end - ranges[i].start) / PAGE;
			if (to && ranges[i].start - to > NEAR) {
				r = drop(from, to);
				to = 0;
			}
			if (!to)
				from = ranges[i].start;
			to = ranges[i].end;
		}
	}
	return r == 0 && to ? drop(from, to) : r;
}

/* What the VM wrote is dropped. image_fd is borrowed; *ret_pages as in struct vmm_reset_answer. */
static int
reset_memory(struct vm *vm, int image_fd, uint64_t *ret_pages, struct err *e)
{
	const uint64_t begin = (uintptr_t)vm->mem.host;
	bool same;
	int r = guest_mem_check_image(&vm->mem, image_fd, &same, e);

	if (r < 0)
		return r;
	*ret_pages = UINT64_MAX;
	if (!same) {
		r = guest_mem_replace(&vm->mem, image_fd, e);
	} else {
		r = drop_own_pages(vm, ret_pages);
		if (r < 0) {
			*ret_pages = UINT64_MAX;
			r = drop(begin, begin + vm->mem.low_len + vm->mem.high_len);
		}
		if (r < 0)
			err_sys(e, r, "dropping pages of memory");
	}
	track_reset(&vm->track, !same);
	return r;
}

/* Pages of memory, from the frozen fork, where they differ from what is there. */
static int
compare_memory(struct vm *vm, uint64_t *ret_pages, struct err *e)
{
	static uint8_t was[64 * PAGE];
	const uint64_t len = vm->mem.low_len + vm->mem.high_len;
	int r = 0;

	*ret_pages = 0;
	for (uint64_t at = 0, n; at < len && r == 0; at += n) {
		n = len - at < sizeof(was) ? len - at : sizeof(was);
		r = keep_fetch_one(
			&vm->keep, KEEP_MEMORY, was, (struct keep_range){at, n}, e);
		for (uint64_t i = 0; i < n && r == 0; i += PAGE) {
			if (memcmp(vm->mem.host + at + i, was + i, PAGE) == 0)
				continue;
			memcpy(vm->mem.host + at + i, was + i, PAGE);
			++*ret_pages;
		}
	}
	return r;
}

static int
fetch_memory(struct vm *vm, uint64_t *ret_pages, struct err *e)
{
	static struct keep_range ranges[KEEP_RANGES];
	uint64_t at = 0;
	unsigned n;
	int r;

	*ret_pages = 0;
	if (track_keep_collect(&vm->track, &vm->mem) < 0)
		return compare_memory(vm, ret_pages, e);
	while ((n = track_keep_changed(&vm->track, &at, ranges))) {
		r = keep_fetch(&vm->keep, KEEP_MEMORY, vm->mem.host, ranges, n, e);
		if (r < 0)
			return r;
		for (unsigned i = 0; i < n; i++)
			*ret_pages += ranges[i].len / PAGE;
	}
	r = track_keep_restart(&vm->track, &vm->mem);
	return r < 0 ? err_sys(e, r, "watching memory again") : 0;
}

static int
fetch_map(struct vm *vm, struct err *e)
{
	static struct keep_range ranges[KEEP_RANGES];
	uint64_t at = 0;
	unsigned n;
	int r = 0;

	while (r == 0 && (n = blk_keep_written(&vm->blk, &at, ranges)))
		r = keep_fetch(&vm->keep, KEEP_MAP, vm->blk.map.entries, ranges, n, e);
	return r;
}

/*
 * vCPUs.
 */

static int
drop_shadows(struct vm *vm, struct err *e)
{
	int r = kvm_set_memory(
		vm->vm_fd, SHADOW_SLOT, SHADOW_GPA, vm->mem.host, PAGE, e);

	return r < 0 ? r
		     : kvm_set_memory(
			       vm->vm_fd, SHADOW_SLOT, SHADOW_GPA, vm->mem.host, 0, e);
}

/* What came for the vCPU and it has not taken yet (INIT, start-up, NMI, SMI) it takes now, into
 * what the load overwrites. KVM_RUN's last words did that for the only vCPU of a VM, but for a
 * start-up message, which nobody sends it. */
static int
take_pending(const struct vm *vm, const struct vcpu *v, struct err *e)
{
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp;
	int r;

	if (vm->n_vcpus == 1 && v->synced)
		return 0;
	r = kvm_get_mp_state(v->fd, &mp, e);
	return r < 0 ? r : kvm_get_vcpu_events(v->fd, &events, e);
}

/* What vm_load() leaves alone because a fresh vCPU has it so. */
static int
load_like_fresh(const struct vm *vm, const struct vcpu *v, struct err *e)
{
	const struct vcpu_state *s = &v->state;
	int r = 0;

	if (memcmp(&s->xcrs, &vm->plan.fresh_xcrs, sizeof(s->xcrs)) == 0)
		r = kvm_set_xcrs(v->fd, &s->xcrs, e);
	if (r == 0 &&
		memcmp(&s->debugregs, &vm->plan.fresh_debugregs, sizeof(s->debugregs)) == 0)
		r = kvm_set_debugregs(v->fd, &s->debugregs, e);
	return r;
}

/* vCPUs that do not run are given the state that vm has, and hold nothing of what they were. */
static int
reset_vcpus(struct vm *vm, bool no_shadows, struct err *e)
{
	int r = no_shadows ? 0 : drop_shadows(vm, e);

	for (unsigned i = 0; i < vm->n_vcpus && r == 0; i++) {
		struct vcpu *v = &vm->vcpus[i];

		r = take_pending(vm, v, e);
		if (r == 0)
			r = state_forget_banks(&v->state, &vm->caps, e);
		/* Valid, whatever a blob says: what is not there is cleared. */
		v->state.events.flags |=
			KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
	}
	if (r == 0)
		r = vm_load(vm, e);
	for (unsigned i = 0; i < vm->n_vcpus && r == 0; i++) {
		r = load_like_fresh(vm, &vm->vcpus[i], e);
		vm->vcpus[i].synced = false;
	}
	return r;
}

/* What a vCPU is told of its clock only when it differs from a fresh one's. */
static int
set_tsc_khz(const struct vm *vm, const int before[], struct err *e)
{
	int r = 0;

	for (unsigned i = 0; i < vm->n_vcpus && r == 0; i++) {
		const struct vcpu *v = &vm->vcpus[i];
		int khz = v->state.tsc_khz ? v->state.tsc_khz : vm->plan.tsc_khz;

		if (before[i] && khz && before[i] != khz)
			r = kvm_set_tsc_khz(v->fd, (unsigned)khz, e);
	}
	return r;
}

static bool
have_other_features(const struct vm *vm)
{
	bool have = false;

	for (unsigned i = 0; i < vm->n_vcpus && !have; i++)
		have = state_has_other_features(&vm->vcpus[i].state, &vm->plan);
	return have;
}

static bool
have_all_msrs(const struct vm *vm)
{
	bool have = true;

	for (unsigned i = 0; i < vm->n_vcpus && have; i++)
		have = state_has_all_msrs(&vm->vcpus[i].state, &vm->plan);
	return have;
}

/* The state that was parsed, into the vCPUs there are or into new ones. */
static int
load_vcpus(struct vm *vm, struct job *job, bool features_before, const int khz_before[],
	struct err *e)
{
	const bool make = job->cpuid_changed || features_before || have_other_features(vm) ||
			  !have_all_msrs(vm);
	int r = 0;

	if (make) {
		vm_drop_kvm(vm, false);
		r = vm_make_kvm(vm, e);
		steps_add(&job->steps, "vcpus");
	} else {
		r = set_tsc_khz(vm, khz_before, e);
	}
	if (r == 0)
		r = vm_take_up(vm, e);
	return r < 0 ? r
		     : reset_vcpus(vm, make || job->msg.flags & VMM_RESET_NO_SHADOWS, e);
}

/*
 * The whole.
 */

/* The disk is a commit's. */
static int
attach(struct vm *vm, struct job *job, struct err *e)
{
	const bool has_base = job->msg.flags & VMM_RESET_HAS_BASE;
	int *fds = job->fds;
	int r;

	job->n_past = blk_detach(&vm->blk, past_fds);
	r = blk_attach(&vm->blk, job->msg.disk_mib, has_base ? fds[VMM_RESET_FD_BASE] : -1,
		fds + VMM_RESET_FD_SEG, e);
	if (r < 0)
		return err_wrap(e, r, "disk");
	if (has_base)
		fds[VMM_RESET_FD_BASE] = -1;
	return 0;
}

/* What the VM was, and is no more. */
static int
begin_anew(struct vm *vm, struct job *job, struct err *e)
{
	const bool to_fork_point = job->msg.flags & VMM_RESET_TO_FORK_POINT;
	int r;

	if (to_fork_point) {
		r = fetch_memory(vm, &job->answer.pages, e);
		track_reset(&vm->track, false);
	} else {
		keep_drop(&vm->keep);
		track_keep_end(&vm->track);
		blk_keep_end(&vm->blk);
		r = reset_memory(
			vm, job->fds[VMM_RESET_FD_MEMORY], &job->answer.pages, e);
	}
	steps_add(&job->steps, "memory");
	if (r == 0 && to_fork_point)
		r = fetch_map(vm, e);
	if (r < 0)
		return r;
	ioapic_forget(&vm->ioapic);
	vsock_forget(&vm->vsock);
	virtio_dev_forget(&vm->rng.dev);
	virtio_dev_forget(&vm->balloon.dev);
	virtio_dev_forget(&vm->blk.dev);
	if (to_fork_point)
		job->n_past = blk_keep_go_back(
			&vm->blk, job->fds + VMM_RESET_FD_SEG, past_fds);
	else if ((r = attach(vm, job, e)) < 0)
		return r;
	for (unsigned i = 0; i < VMM_SEG_FDS; i++)
		job->fds[VMM_RESET_FD_SEG + i] = -1;
	steps_add(&job->steps, "devices");
	return 0;
}

/* All vCPUs are parked. Below 0: the VM is neither what it was nor what it was to be. */
static int
go_back(struct vm *vm, struct job *job, struct err *e)
{
	const bool features_before = have_other_features(vm);
	int khz_before[VMM_VCPUS_MAX];
	int r;

	steps_add(&job->steps, "park");
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		khz_before[i] = vm->vcpus[i].state.tsc_khz;
	if ((r = begin_anew(vm, job, e)) < 0 ||
		(r = snapshot_load(&job->snapshot, vm, e)) < 0)
		return r;
	steps_add(&job->steps, "parse");
	if ((r = load_vcpus(vm, job, features_before, khz_before, e)) < 0)
		return r;
	steps_add(&job->steps, "state");
	/* Interrupts after the LAPICs' state, or loading it would wipe them out. */
	ioapic_resume(&vm->ioapic);
	serial_resume(&vm->serial);
	vm_set_generation(vm, job->msg.generation);
	steps_add(&job->steps, "generation");
	return 0;
}

/* With all vCPUs parked. */
static void
act(struct vm *vm, struct job *job)
{
	struct err e;

	if (atomic_load(&vm->ending)) {
		job->answer.error = -ESHUTDOWN;
		snprintf(job->answer.msg, sizeof(job->answer.msg), "the VM is ending");
		return;
	}
	if (go_back(vm, job, &e) < 0) {
		ending_tell(vm, VMM_EXIT_HOST_FAULT, "in the middle of a reset: %s", e.msg);
		return;
	}
	vm->resets++;
	vm->is_paused = false;
}

/* On vCPU 0's thread; see struct vm. The main thread waits. */
static void
act_at_park(struct vm *vm)
{
	struct job *job = &the_job;

	act(vm, job);
	if (!atomic_load(&vm->ending)) {
		job->answer.pause_ns = io_now_ns() - job->asked_ns;
		vm_run_vcpus(vm);
	}
	atomic_store(&job->done, 1);
	futex_wake(&job->done);
}

/* The files of a commit, and its state. */
static int
open_commit(struct vm *vm, struct job *job, size_t *ret_len, struct err *e)
{
	const struct vmm_reset *m = &job->msg;
	const int *fds = job->fds;
	int r;

	if (m->blob_bytes > VMM_STATE_BLOB_MAX)
		return err_set(e, -EINVAL, "a state of %llu bytes: at most %u are read",
			(unsigned long long)m->blob_bytes, VMM_STATE_BLOB_MAX);
	if ((r = guest_mem_check_image(&vm->mem, fds[VMM_RESET_FD_MEMORY], &job->on_image,
		     e)) < 0 ||
		(r = blk_check_attach(m->disk_mib,
			 m->flags & VMM_RESET_HAS_BASE ? fds[VMM_RESET_FD_BASE] : -1,
			 fds + VMM_RESET_FD_SEG, e)) < 0)
		return r;
	*ret_len = m->blob_bytes;
	r = io_pread_full(fds[VMM_RESET_FD_STATE], blob, m->blob_bytes, 0);
	return r < 0 ? err_sys(e, r, "reading the state") : 0;
}

static int
open_fork_point(struct vm *vm, const struct job *job, size_t *ret_len, struct err *e)
{
	int r;

	if (vm->keep.origin_fd < 0)
		return err_set(e, -ESTALE, "its fork point is not kept");
	r = blk_check_segment(job->fds + VMM_RESET_FD_SEG, e);
	return r < 0 ? r : keep_fetch_state(&vm->keep, blob, sizeof(blob), ret_len, e);
}

/* Before anything happens. */
static int
check(struct vm *vm, struct job *job, struct err *e)
{
	const struct vmm_reset *m = &job->msg;
	const uint64_t mem_mib = (vm->mem.low_len + vm->mem.high_len) >> 20;
	struct snapshot *s = &job->snapshot;
	size_t len = 0;
	int r;

	if (vm->is_parked)
		return err_set(e, -EINVAL, "a frozen fork does not change; reset a VM");
	if (m->flags & ~(VMM_RESET_HAS_BASE | VMM_RESET_NO_SHADOWS | VMM_RESET_TO_FORK_POINT))
		return err_set(e, -EINVAL, "unknown flags 0x%x", m->flags);
	r = m->flags & VMM_RESET_TO_FORK_POINT ? open_fork_point(vm, job, &len, e)
						: open_commit(vm, job, &len, e);
	if (r < 0 || (r = snapshot_open(blob, len, s, e)) < 0)
		return r;
	if (s->config.mem_mib != mem_mib || s->config.vcpus != vm->n_vcpus ||
		s->config.disk_mib != m->disk_mib)
		return err_set(e, -EINVAL,
			"the state is of a VM of %llu MiB, %u vCPUs and a disk of %llu MiB; this one has %llu MiB and %u, and is to have a disk of %llu",
			(unsigned long long)s->config.mem_mib, s->config.vcpus,
			(unsigned long long)s->config.disk_mib,
			(unsigned long long)mem_mib, vm->n_vcpus,
			(unsigned long long)m->disk_mib);
	r = snapshot_load_cpuid(s, vm, &job->cpuid_changed, e);
	if (r == 0 && job->on_image) /* its own pages are asked for, in the pause */
		track_unwatch(&vm->track, &vm->mem);
	return r;
}

static void
run(struct vm *vm, struct job *job)
{
	if (vm_stands(vm)) {
		act(vm, job);
		if (job->answer.error || atomic_load(&vm->ending))
			return;
		full_disk_forget(vm);
		job->answer.pause_ns = io_now_ns() - job->asked_ns;
		vm_run_vcpus(vm);
	} else {
		vm_stop_and(vm, act_at_park);
		while (!atomic_load(&job->done))
			futex_wait(&job->done, 0);
	}
	if (!atomic_load(&vm->ending))
		vm_resume_devices(vm);
}

void
reset_vm(struct vm *vm, const struct vmm_reset *m, int fds[])
{
	struct job *job = &the_job;
	struct err e = {0};
	int r;

	*job = (struct job){.msg = *m, .asked_ns = io_now_ns()};
	steps_begin(&job->steps, job->asked_ns);
	memcpy(job->fds, fds, sizeof(job->fds));
	r = check(vm, job, &e);
	steps_add(&job->steps, "check");
	if (r < 0) {
		job->answer.error = r;
		snprintf(job->answer.msg, sizeof(job->answer.msg), "%s", e.msg);
	} else {
		job->asked_ns = io_now_ns();
		run(vm, job);
	}
	io_close_all(job->fds, VMM_RESET_FD_COUNT);
	while (job->n_past)
		close(past_fds[--job->n_past]);
	steps_add(&job->steps, "run");
	/* It ends instead, with a sentence. */
	if (r == 0 && !job->answer.error && atomic_load(&vm->ending))
		return;
	job->answer.resets = vm->resets;
	answer_send(vm, &job->answer.hdr, VMM_RESET_ANSWER, sizeof(job->answer), m->hdr.seq);
	if (job->answer.error)
		return;
	log_info("reset to %s state, %u times now; stopped for %llu us",
		m->flags & VMM_RESET_TO_FORK_POINT ? "its fork point's" : "a commit's",
		vm->resets,
		(unsigned long long)(job->answer.pause_ns / 1000));
	steps_log(&job->steps, "reset");
}
