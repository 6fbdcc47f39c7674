/*
 * pando-vmm: one process, one virtual machine.
 *
 * Runs as: the user whose VM it is; from the first instruction of the guest on with no
 * privileges, in namespaces of its own, behind a system call filter (vmm/seal.c). Is
 * handed: one end of a SOCK_SEQPACKET pair as descriptor VMM_CONTROL_FD, and over it
 * every other descriptor (common/wire/vmm_wire.h). It opens nothing but its own page map,
 * before it is sealed (vmm/track.h). Peers: pandod on the
 * control socket (trusted with this one VM; a message that is none closes the
 * connection), clients on the vsock socket (bytes for the guest; bounded), and the guest,
 * which may be hostile: whatever it does, the worst outcome is the end of this process,
 * with a sentence in its log.
 *
 * main: limits and namespaces; one message; build the VM; seal; run. (A pre-warmed VMM builds
 * and seals before it knows which VM it will be: vmm/restore.c.) `--probe` instead
 * tells what this host's KVM can do (vmm/probe.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "vmm/acpi.h"
#include "vmm/answer.h"
#include "vmm/control.h"
#include "vmm/mainloop.h"
#include "vmm/probe.h"
#include "vmm/restore.h"
#include "vmm/seal.h"
#include "vmm/vcpu.h"
#include "vmm/vm.h"

#define LOG_MAX_BYTES (1u << 20) /* of vmm.log */
#define MSR_MISC_ENABLE 0x1a0u
#define MISC_ENABLE_FAST_STRING 1u
#define MSR_MTRR_DEF_TYPE 0x2ffu
#define MTRR_ENABLED_WRITE_BACK (1u << 11 | 6u)

static struct vm vm; /* 250 KiB and more: not for a stack */

static int
check_boot(const struct vmm_boot *m, size_t len, size_t n_fds, struct err *e)
{
	if (len != sizeof(*m) || n_fds != VMM_BOOT_FD_COUNT)
		return err_set(e, -EPROTO,
			"VMM_BOOT came with %zu bytes and %zu descriptors, not %zu and %d",
			len, n_fds, sizeof(*m), VMM_BOOT_FD_COUNT);
	if (m->mem_mib < VMM_MEM_MIN_MIB || m->mem_mib > VMM_MEM_MAX_MIB)
		return err_set(e, -EINVAL, "memory of %llu MiB: it must be %d to %d",
			(unsigned long long)m->mem_mib, VMM_MEM_MIN_MIB, VMM_MEM_MAX_MIB);
	if (m->vcpus < 1 || m->vcpus > VMM_VCPUS_MAX)
		return err_set(e, -EINVAL, "%u vCPUs: it must be 1 to %d", m->vcpus,
			VMM_VCPUS_MAX);
	if (m->guest_cid < 3)
		return err_set(e, -EINVAL,
			"vsock context id %u is reserved: it must be 3 or more",
			m->guest_cid);
	if (m->flags & ~(VMM_BOOT_HAS_INITRD | VMM_BOOT_HAS_BASE))
		return err_set(e, -EINVAL, "unknown flags 0x%x", m->flags);
	if (!memchr(m->name, 0, sizeof(m->name)) ||
		!memchr(m->cmdline, 0, sizeof(m->cmdline)))
		return err_set(e, -EINVAL, "name or command line is not terminated");
	return 0;
}

static int
init_devices(const struct vmm_boot *m, int fds[], struct err *e)
{
	const struct vsock_loop loop = mainloop_vsock(&vm);
	int r = vm_init_devices(&vm, m->guest_cid, &loop, e);

	if (r < 0)
		return r;
	r = blk_attach(&vm.blk, m->disk_mib,
		m->flags & VMM_BOOT_HAS_BASE ? fds[VMM_BOOT_FD_BASE] : -1,
		fds + VMM_BOOT_FD_SEG, e);
	if (r < 0)
		return err_wrap(e, r, "disk");
	if (m->flags & VMM_BOOT_HAS_BASE)
		fds[VMM_BOOT_FD_BASE] = -1;
	for (unsigned i = 0; i < VMM_SEG_FDS; i++)
		fds[VMM_BOOT_FD_SEG + i] = -1;
	r = vsock_listen(&vm.vsock, fds[VMM_BOOT_FD_VSOCK], e);
	if (r < 0)
		return err_wrap(e, r, "vsock");
	fds[VMM_BOOT_FD_VSOCK] = -1;
	return console_open(&vm.console, fds[VMM_BOOT_FD_CONSOLE], e);
}

/* What firmware would have set up: write-back memory, fast string instructions. */
static void
init_msrs(void)
{
	for (unsigned i = 0; i < vm.n_vcpus; i++) {
		struct kvm_msr_table t = {
			.n = 2,
			.entries = {{.index = MSR_MTRR_DEF_TYPE,
					    .data = MTRR_ENABLED_WRITE_BACK},
				{.index = MSR_MISC_ENABLE,
					.data = MISC_ENABLE_FAST_STRING}},
		};
		unsigned done = 0;

		if (kvm_set_msrs(vm.vcpus[i].fd, &t, &done, NULL) < 0 || done != 2)
			log_debug("vCPU %u: MSR 0x%x keeps its reset value", i,
				t.entries[done < 2 ? done : 0].index);
	}
}

static int
init_registers(const struct boot_entry *entry, struct err *e)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	int fd = vm.vcpus[0].fd; /* the others wait for their start-up message */
	int r;

	if ((r = kvm_get_sregs(fd, &sregs, e)) < 0)
		return r;
	boot_registers(entry, &regs, &sregs);
	if ((r = kvm_set_sregs(fd, &sregs, e)) < 0)
		return r;
	return kvm_set_regs(fd, &regs, e);
}

static int
build(const struct vmm_boot *m, int fds[], struct err *e)
{
	struct boot_entry entry;
	int r;

	vm.n_vcpus = m->vcpus;
	if ((r = vm_ask_kvm(&vm, e)) < 0 || (r = mainloop_make(&vm, e)) < 0 ||
		(r = guest_mem_create(&vm.mem, m->mem_mib, e)) < 0)
		return r;
	r = boot_load(&vm.mem, fds[VMM_BOOT_FD_KERNEL],
		m->flags & VMM_BOOT_HAS_INITRD ? fds[VMM_BOOT_FD_INITRD] : -1, m->cmdline,
		&entry, e);
	if (r < 0)
		return r;
	if ((r = acpi_write_tables(&vm.mem, vm.n_vcpus, e)) < 0 ||
		(r = init_devices(m, fds, e)) < 0 || (r = vm_make_kvm(&vm, e)) < 0)
		return r;
	if ((r = vm_make_plan(&vm, e)) < 0)
		return r;
	vm_set_generation(&vm, m->generation);
	init_msrs();
	return init_registers(&entry, e);
}

/* A VM that boots a kernel. fds are taken over. */
static int
boot(const struct vmm_boot *m, int fds[], struct err *e)
{
	int r;

	memcpy(vm.name, m->name, sizeof(vm.name));
	vm_use_log(&vm, TAKE_FD(fds[VMM_BOOT_FD_LOG]));
	vm.listen_fd = TAKE_FD(fds[VMM_BOOT_FD_LISTEN]);
	vm.kvm_fd = TAKE_FD(fds[VMM_BOOT_FD_KVM]);

	track_open(&vm.track);
	r = seal_surroundings(e);
	if (r == 0)
		r = build(m, fds, e);
	if (r < 0)
		return r;
	log_info("%llu MiB, %u vCPU%s, %llu MiB disk; pid %d",
		(unsigned long long)m->mem_mib, m->vcpus, m->vcpus == 1 ? "" : "s",
		(unsigned long long)m->disk_mib, (int)getpid());
	if ((r = vcpu_install_signal(e)) < 0 || (r = seal_calls(e)) < 0)
		return r;
	return vm_start_vcpus(&vm, e);
}

/* A pre-warmed VMM, and the VM that it becomes. */
static int
prepare(const struct vmm_prepare *m, int fds[], struct err *e)
{
	int r;

	snprintf(vm.name, sizeof(vm.name), "pre-warmed");
	vm_use_log(&vm, TAKE_FD(fds[VMM_PREPARE_FD_LOG]));
	vm.kvm_fd = TAKE_FD(fds[VMM_PREPARE_FD_KVM]);
	r = restore_prepare(&vm, m->mem_mib, m->vcpus, true, e);
	return r < 0 ? r : restore_wait(&vm, m->hdr.seq, e);
}

/* The same without a pool: the shape is known only now. */
static int
restore(const struct vmm_restore *m, int fds[], uint64_t began_ns, struct err *e)
{
	int r;

	vm.kvm_fd = TAKE_FD(fds[VMM_RESTORE_FD_KVM]);
	r = restore_prepare(&vm, m->mem_mib, m->vcpus, false, e);
	return r < 0 ? r : restore_run(&vm, m, fds, began_ns, e);
}

/* Takes the first message and makes the VM that it asks for. */
static int
begin(struct err *e)
{
	static union {
		struct vmm_hdr hdr;
		struct vmm_boot boot;
		struct vmm_prepare prepare;
		struct vmm_restore restore;
	} m;
	enum {
		FDS = VMM_BOOT_FD_COUNT > (int)VMM_RESTORE_FD_MAX
			      ? VMM_BOOT_FD_COUNT
			      : (int)VMM_RESTORE_FD_MAX
	};
	int fds[FDS];
	size_t n_fds = FDS;
	ssize_t len = io_recv_fds(vm.control_fd, &m, sizeof(m), fds, &n_fds, 0);
	int r;

	if (len == 0)
		exit(0); /* not needed after all */
	if (len < 0)
		return err_sys(e, (int)len, "waiting for the first message");
	vm.born_ns = io_now_ns();
	if ((size_t)len < sizeof(m.hdr) || m.hdr.version != VMM_WIRE_VERSION ||
		m.hdr.len != (size_t)len)
		m.hdr.type = 0;
	switch (m.hdr.type) {
	case VMM_BOOT:
		r = check_boot(&m.boot, (size_t)len, n_fds, e);
		if (r == 0)
			r = boot(&m.boot, fds, e);
		break;
	case VMM_PREPARE:
		r = restore_check_prepare(&m.prepare, (size_t)len, n_fds, e);
		if (r == 0)
			r = prepare(&m.prepare, fds, e);
		break;
	case VMM_RESTORE:
		r = restore_check(&m.restore, (size_t)len, n_fds, e);
		if (r == 0)
			r = restore(&m.restore, fds, vm.born_ns, e);
		break;
	default:
		r = err_set(e, -EPROTO,
			"the first message is no VMM_BOOT, VMM_PREPARE or VMM_RESTORE of version %d",
			VMM_WIRE_VERSION);
	}
	for (size_t i = 0; i < n_fds; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return r;
}

static int
open_kvm(const char *arg)
{
	char *end;
	long fd;
	int r;

	if (!arg)
		arg = "/dev/kvm";
	fd = strtol(arg, &end, 10);
	if (*arg && !*end && fd >= 0 && fd <= 1 << 20)
		return (int)fd;
	r = open(arg, O_RDWR | O_CLOEXEC);
	return r < 0 ? -errno : r;
}

int
main(int argc, char **argv)
{
	struct err e = {0};
	struct stat st;
	const char *level = getenv("PANDO_LOG");
	int r;

	if (argc >= 2 && argc <= 3 && strcmp(argv[1], "--probe") == 0)
		return probe_main(open_kvm(argv[2]), 0);
	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		puts("pando-vmm " PANDO_VERSION);
		return 0;
	}
	if (argc != 1 || fstat(VMM_CONTROL_FD, &st) < 0 || !S_ISSOCK(st.st_mode)) {
		fputs("pando-vmm: pandod starts this program, with a socket as descriptor 3; by hand only `pando-vmm --probe [DEVICE]` and `--version` are of use\n",
			stderr);
		return EXIT_USAGE;
	}
	vm_init(&vm);
	control_init(&vm);
	vm.log_level =
		level && strcmp(level, "debug") == 0 ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO;
	log_init("vm", vm.log_level);
	log_set_stamps(1);
	log_set_bound(LOG_MAX_BYTES);
	/* Only what is handed over: whatever else the starter had open is not ours. */
	syscall(SYS_close_range, VMM_CONTROL_FD + 1, ~0u, 0);
	fcntl(VMM_CONTROL_FD, F_SETFD, FD_CLOEXEC);
	vm.control_fd = VMM_CONTROL_FD;

	r = begin(&e);
	if (r < 0) {
		log_err("%s", e.msg);
		answer_started(&vm, r, e.msg);
		/* No exit handlers: vCPU threads may be there, and the filter. */
		_exit(1);
	}
	mainloop_run(&vm);
}
