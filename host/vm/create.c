/* POST /v1/vms: a VM from a kernel and a disk image. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "host/vm/handshake.h"
#include "host/vm/image.h"
#include "host/vmmproc/kvm_probe.h"

#define DISK_DEFAULT_MIB 1024
#define GUEST_CID 3

void
process_end(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	siginfo_t si;

	process_kill(pidfd);
	while (poll(&p, 1, 10000) < 0 && errno == EINTR)
		;
	/* ECHILD: a fork of another VMM; that one's, or init's, to wait for. */
	waitid(P_PIDFD, (id_t)pidfd, &si, WEXITED | WNOHANG);
}

void
vm_undo(struct tree *t, struct vm **vms, unsigned n)
{
	struct err e;

	if (!n)
		return;
	/* A VMM that has not come to life yet finds this in its socket when it does. */
	for (unsigned i = 0; i < n; i++) {
		if (vms[i]->ctl)
			vmmctl_quit(vms[i]->ctl, NULL);
		if (vms[i]->pidfd >= 0)
			process_kill(vms[i]->pidfd);
	}
	for (unsigned i = 0; i < n; i++)
		if (vms[i]->pidfd >= 0)
			process_end(vms[i]->pidfd);
	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i < n; i++) {
		struct vm *vm = vms[i];

		vm->dead = true;
		if (db_delete(t->db, vm->row.id, &e) < 0)
			log_err("vm %s: %s", vm->row.id, e.msg);
		if (launch_remove_files(t->config.home, vm->row.id, &e) < 0)
			log_warn("vm %s: %s", vm->row.id, e.msg);
		tree_unlist_vm(t, vm);
	}
	/* Once for all: it waits for the disk, and everybody waits for it. */
	if (tree_sweep(t, &e) < 0)
		log_err("%s", e.msg);
	pthread_mutex_unlock(&t->lock);
}

int
vm_made(struct tree *t, struct vm *vm, struct err *e)
{
	uint64_t start = 0;
	pid_t ppid;
	int r = process_look((pid_t)vm->row.pid, &ppid, &start);

	if (r < 0)
		return err_sys(e, r, "vm \"%s\": its process %lld", vm_name(vm),
			(long long)vm->row.pid);
	pthread_mutex_lock(&t->lock);
	vm->row.pid_start = start;
	vm->row.made = true;
	vm->row.reason[0] = '\0'; /* that of a reboot */
	r = db_update(t->db, &vm->row, e);
	if (r == 0)
		r = tree_watch(t, vm, e);
	if (r < 0)
		vm->row.made = false; /* vm_undo's, not tree_remove's */
	else
		vm_enter_scope(t, vm, false);
	pthread_mutex_unlock(&t->lock);
	return r;
}

int
host_can_hold(uint32_t vcpus, uint64_t mem_mib, struct err *e)
{
	struct sysinfo si;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint64_t ram_mib;

	if (cpus > 0 && vcpus > (uint32_t)cpus)
		return err_set(e, -EINVAL,
			"\"vcpus\" is %u, and this host has %ld CPU%s online", vcpus,
			cpus, cpus == 1 ? "" : "s");
	if (sysinfo(&si) < 0)
		return err_sys(e, -errno, "sysinfo");
	ram_mib = ((uint64_t)si.totalram * si.mem_unit) >> 20;
	if (mem_mib > ram_mib)
		return err_set(e, -EINVAL,
			"\"mem_mib\" is %llu, and this host has %llu MiB of memory",
			(unsigned long long)mem_mib, (unsigned long long)ram_mib);
	return 0;
}

int
host_can_boot(struct tree *t, const struct image *image, struct err *e)
{
	struct kvm_probe p;
	struct err why;

	if (!image->is_linux || atomic_load(&t->boots_linux))
		return 0;
	if (access(t->config.kvm_path, R_OK | W_OK) < 0)
		return 0; /* vm_launch() says it */
	if (kvm_probe(t->config.vmm_path, t->config.kvm_path, &p, &why) < 0) {
		log_warn("what this host's KVM can run is not known: %s", why.msg);
		return 0;
	}
	if (p.kind == KVM_PROBE_LINUX) {
		atomic_store(&t->boots_linux, true);
		return 0;
	}
	return err_set(e, -ENODEV,
		"this host's KVM boots no Linux: %.200s; use the test machine: `pando machine start`, then `pando machine exec -- pando run` (`pando doctor` says more)",
		p.detail);
}

int
vm_boot_message(const struct vm *vm, const struct image *image, struct vmm_boot *ret,
	struct err *e)
{
	const char *added = vm->row.cmdline;
	int n;

	ret->mem_mib = vm->row.mem_mib;
	ret->disk_mib = vm->row.disk_mib;
	ret->vcpus = vm->row.vcpus;
	ret->guest_cid = GUEST_CID;
	ret->flags = (image->initrd_fd >= 0 ? VMM_BOOT_HAS_INITRD : 0) |
		     (image->base_fd >= 0 ? VMM_BOOT_HAS_BASE : 0);
	memcpy(ret->generation, vm->row.generation, sizeof(ret->generation));
	snprintf(ret->name, sizeof(ret->name), "%s", vm_name(vm));
	n = snprintf(ret->cmdline, sizeof(ret->cmdline), "%s%s%s", image->cmdline,
		image->cmdline[0] && added[0] ? " " : "", added);
	if (n < 0 || (size_t)n >= sizeof(ret->cmdline))
		return err_set(e, -EINVAL,
			"\"cmdline\" is too long: with the image's own it has %d bytes, at most %zu fit",
			n, sizeof(ret->cmdline) - 1);
	return 0;
}

int
vm_launch(struct tree *t, struct vm *vm, const struct image *image, struct vmm_boot *boot,
	const struct vm_segment *segment, struct err *e)
{
	cleanup_vm_files struct vm_files files = VM_FILES_INIT;
	cleanup_vm_segment struct vm_segment first = VM_SEGMENT_INIT;
	cleanup_close int control = -1, kvm = -1, null = -1;
	struct vmmctl *ctl = NULL;
	int pidfd = -1;
	char name[DB_SEGMENT_MAX];
	bool again = segment != NULL;
	struct vmm_started started;
	pid_t pid, sender;
	int r;

	kvm = open(t->config.kvm_path, O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return err_sys(e, -errno, "%s (`pando doctor` says what to do)",
			t->config.kvm_path);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0)
		return err_sys(e, -errno, "/dev/null");
	snprintf(name, sizeof(name), "%s.0", vm->row.id);
	r = again ? launch_files_again(t->config.home, vm->row.id, &files, e)
		  : launch_files(t->config.home, vm->row.id, &files, e);
	if (r == 0 && !again)
		r = tree_make_segment(t, name, &first, e);
	if (r == 0)
		r = launch_spawn(t->config.vmm_path, "pando-vmm", files.log_fd, &control, &pid,
			&pidfd, e);
	if (r < 0)
		return r;
	fault_point(again ? "start.spawned" : "create.spawned");
	r = vmmctl_create(TAKE_FD(control), &ctl, e);
	if (r == 0)
		r = vmmctl_set_pidfd(ctl, pidfd);
	/* It is listed: others look at it. */
	pthread_mutex_lock(&t->lock);
	vm->pidfd = pidfd;
	vm->ctl = ctl;
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;

	int fds[VMM_BOOT_FD_COUNT] = {
		[VMM_BOOT_FD_LISTEN] = files.listen_fd,
		[VMM_BOOT_FD_KVM] = kvm,
		[VMM_BOOT_FD_VSOCK] = files.vsock_fd,
		[VMM_BOOT_FD_CONSOLE] = files.console_fd,
		[VMM_BOOT_FD_LOG] = files.log_fd,
		[VMM_BOOT_FD_KERNEL] = image->kernel_fd,
		[VMM_BOOT_FD_INITRD] = image->initrd_fd >= 0 ? image->initrd_fd : null,
		[VMM_BOOT_FD_BASE] = image->base_fd >= 0 ? image->base_fd : null,
	};

	vm_segment_put(again ? segment : &first, fds + VMM_BOOT_FD_SEG);
	r = vmmctl_boot(vm->ctl, boot, fds, e);
	if (r == 0)
		fault_point(again ? "start.booted" : "create.booted");
	if (r == 0)
		r = vmmctl_wait_started(
			vm->ctl, t->config.start_timeout_ms, &started, &sender, e);
	if (r < 0)
		return r;
	if (sender != pid)
		return err_set(e, -EPROTO, "process %d answered in place of the VMM, %d",
			(int)sender, (int)pid);
	r = vm_apply_limits(t, vm, e);
	if (r < 0)
		return r;
	pthread_mutex_lock(&t->lock);
	vm->row.pid = pid;
	pthread_mutex_unlock(&t->lock);
	fault_point(again ? "start.started" : "create.started");
	log_info("vm %s (%s): started, pid %d, %llu MiB, %u vCPU, set up in %llu us",
		vm->row.id, vm_name(vm), (int)pid, (unsigned long long)vm->row.mem_mib,
		vm->row.vcpus, (unsigned long long)(started.setup_ns / 1000));
	return 0;
}

/* The row, in the table and the database, claimed; a reference. NULL: *ret says why. */
static struct vm *
enter(struct tree *t, const struct create_request *q, const struct image *image, int *ret,
	struct err *e)
{
	char segment[DB_SEGMENT_MAX];
	struct vm *vm;
	int r;

	vm = vm_new(t);
	if (!vm) {
		*ret = err_set(e, -ENOMEM, "out of memory");
		return NULL;
	}
	vm->op = "being made";
	vm->row.state = VM_STARTING;
	vm->row.created_ms = io_wall_ms();
	vm->row.mem_mib = q->mem_mib;
	vm->row.vcpus = q->vcpus;
	vm->row.disk_mib = q->disk_mib;
	vm->row.limits = q->limits;
	if (!vm->row.disk_mib)
		vm->row.disk_mib = image->base_mib > DISK_DEFAULT_MIB ? image->base_mib
								      : DISK_DEFAULT_MIB;
	memcpy(vm->row.kernel, q->kernel, sizeof(vm->row.kernel));
	memcpy(vm->row.rootfs, q->rootfs, sizeof(vm->row.rootfs));
	memcpy(vm->row.kernel_path, image->kernel_path, sizeof(vm->row.kernel_path));
	memcpy(vm->row.cmdline, q->cmdline, sizeof(vm->row.cmdline));
	memcpy(vm->row.base_path, image->base_path, sizeof(vm->row.base_path));
	vm->row.labels = q->labels;
	vm->row.next_segment = 1;
	r = t->stopping ? err_set(e, -ECANCELED, "pandod is stopping")
			: tree_enter_vm(t, vm, q->alias, 0, 1, e);
	if (r == 0) {
		snprintf(segment, sizeof(segment), "%s.0", vm->row.id);
		r = db_begin(t->db, e);
		if (r == 0)
			r = db_insert(t->db, &vm->row, e);
		if (r == 0)
			r = vm_environment_enter(t, vm, &q->env, 0, e);
		if (r == 0)
			r = db_chain_append(t->db, vm->row.id, segment, e);
		if (r == 0)
			r = db_commit(t->db, e);
		if (r < 0) {
			db_rollback(t->db);
			tree_unlist_vm(t, vm);
		}
	}
	*ret = r;
	if (r < 0) {
		vm_unref(vm);
		return NULL;
	}
	return vm;
}

int
vm_wait_booted(struct tree *t, struct vm *vm, const struct progress *p, struct err *e)
{
	struct err why = {0};
	int r = vm_wait_agent(t, vm, NULL, p, &why);

	if (r == 0)
		return 0;
	err_set(e, r, "%s", why.msg);
	if (r == -ECANCELED || r == -ESRCH)
		return r;
	/* It stays in the tree, as failed, with its console for who wants to know why. */
	pthread_mutex_lock(&t->lock);
	if (vm->row.answered) { /* only the database did not take it */
		pthread_mutex_unlock(&t->lock);
		return r;
	}
	if (!vm->kill_reason[0])
		snprintf(vm->kill_reason, sizeof(vm->kill_reason),
			"ended by pandod: %.450s", why.msg);
	if (vm->pidfd >= 0)
		process_kill(vm->pidfd);
	tree_wait_dead(t, vm, 10000);
	pthread_mutex_unlock(&t->lock);
	return r;
}

int
tree_create(struct tree *t, const struct create_request *q, const struct progress *p,
	struct json_out *out, struct err *e)
{
	cleanup_image struct image image = IMAGE_INIT;
	cleanup_free struct vmm_boot *boot = calloc(1, sizeof(*boot));
	char called[VM_CALLED_MAX];
	struct vm *vm;
	int r;

	if (!boot)
		return err_set(e, -ENOMEM, "out of memory");
	r = host_can_hold(q->vcpus, q->mem_mib, e);
	if (r == 0)
		r = image_open(t->config.images, q->kernel, q->rootfs, &image, e);
	if (r == 0)
		r = host_can_boot(t, &image, e);
	if (r < 0)
		return r;
	if (q->disk_mib && q->disk_mib < image.base_mib)
		return err_set(e, -EINVAL,
			"\"disk_mib\" is %llu, less than the %llu MiB of the disk image \"%.200s\"",
			(unsigned long long)q->disk_mib,
			(unsigned long long)image.base_mib, q->rootfs);

	pthread_mutex_lock(&t->lock);
	vm = enter(t, q, &image, &r, e);
	pthread_mutex_unlock(&t->lock);
	if (!vm)
		return r;
	fault_point("create.entered");
	say(p, "starting VM %s", vm_called(vm, called, sizeof(called)));
	r = vm_boot_message(vm, &image, boot, e);
	if (r == 0)
		r = vm_launch(t, vm, &image, boot, NULL, e);
	if (r == 0)
		r = vm_made(t, vm, e);
	if (r == 0) {
		fault_point("create.made");
		r = tree_sync(t, e);
	}
	if (r < 0) {
		if (e)
			log_info("vm %s (%s): not made: %s", vm->row.id, vm_name(vm),
				e->msg);
		vms_undo(t, &vm, 1);
		goto out;
	}
	if (q->wait) {
		say(p, "VM %s runs; waiting for its agent",
			vm_called(vm, called, sizeof(called)));
		r = vm_wait_booted(t, vm, p, e);
	}
	/* Nobody else knows its id. */
	if ((r == 0 && (r = check_not_gone(p, vm_name(vm), e)) < 0) ||
		(r == -ECANCELED && has_gone(p))) {
		log_info("vm %s (%s): who asked for it has gone; removed", vm->row.id,
			vm_name(vm));
		vms_undo(t, &vm, 1);
	}
out:
	pthread_mutex_lock(&t->lock);
	vm->op = NULL;
	vm->probe_at_ns = io_now_ns();
	pthread_cond_broadcast(&t->changed);
	if (r == 0) {
		vm_json(t, vm, NULL, out, NULL, NULL);
		tell_made(p, vm);
	}
	vm_unref(vm);
	pthread_mutex_unlock(&t->lock);
	return r;
}
