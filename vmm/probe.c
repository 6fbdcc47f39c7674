#include "vmm/probe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/json.h"
#include "vmm/boot.h"
#include "vmm/vm.h"

#define PROBE_PORT 0x510
#define PROBE_CODE 0x10000ull
#define PROBE_IDT 0x11000ull
#define PROBE_DATA 0x12000ull /* 64-byte aligned, room for xsave */
#define PROBE_STACK 0x18000ull
#define CR4_OSFXSR (1ull << 9)
#define CR4_OSXSAVE (1ull << 18)
#define HAS_CMPXCHG16B 1u
#define HAS_XSAVE 2u

/* The guest. Each step ends with its number on PROBE_PORT. rdi: PROBE_DATA; esi:
 * HAS_CMPXCHG16B and HAS_XSAVE, which Linux, too, uses only where they are. */
__asm__(".pushsection .rodata\n"
	"probe_code:\n"
	"	movw $0x510, %dx\n"
	"	xorl %eax, %eax\n"
	"	outb %al, %dx\n" /* 0: runs at all */
	"	xorl %ebx, %ebx\n"
	"	xorl %ecx, %ecx\n"
	"	xorl %edx, %edx\n"
	"	testl $1, %esi\n"
	"	jz 2f\n"
	"	lock cmpxchg16b (%rdi)\n"
	"2:	movw $0x510, %dx\n"
	"	movb $1, %al\n"
	"	outb %al, %dx\n" /* 1 */
	"	testl $2, %esi\n"
	"	jz 3f\n"
	"	xorl %edx, %edx\n"
	"	movl $1, %eax\n"
	"	xsave 64(%rdi)\n"
	"	xorl %edx, %edx\n"
	"	movl $1, %eax\n"
	"	xrstor 64(%rdi)\n"
	"3:	movw $0x510, %dx\n"
	"	movb $2, %al\n"
	"	outb %al, %dx\n" /* 2 */
	"	int3\n"
	"	movw $0x510, %dx\n"
	"	movb $4, %al\n"
	"	outb %al, %dx\n" /* 4: back from the handler */
	"1:	hlt\n"
	"	jmp 1b\n"
	"probe_handler:\n"
	"	movw $0x510, %dx\n"
	"	movb $3, %al\n"
	"	outb %al, %dx\n" /* 3: in the handler */
	"	iretq\n"
	"probe_code_end:\n"
	".popsection\n");
extern const uint8_t probe_code[], probe_handler[], probe_code_end[];

enum { STEP_RUNS, STEP_CMPXCHG16B, STEP_XSAVE, STEP_INT3, STEP_IRET, STEP_COUNT };
static const char *const step_names[STEP_COUNT] = {"a first instruction in long mode",
	"cmpxchg16b", "xsave and xrstor", "int3 through an IDT", "iretq"};

struct probe {
	struct vm vm;
	unsigned steps; /* done, in order */
	uint64_t create_vm_ns, set_up_ns, run_ns;
	struct err e;
};

/* The mappings and segments that boot_load would make, without a kernel. */
static int
write_guest(struct probe *p, struct boot_entry *ret)
{
	const struct guest_mem *m = &p->vm.mem;
	const uint64_t pml4_entry = 0x2003, pdpt_entry = 0x3003;
	const uint64_t gdt[4] = {0, 0, 0x00af9b000000ffffull, 0x00cf93000000ffffull};
	uint64_t handler = PROBE_CODE + (uint64_t)(probe_handler - probe_code);
	uint64_t gate[2] = {(handler & 0xffff) | 0x10ull << 16 | 0x8eull << 40 |
				    (handler >> 16 & 0xffff) << 48,
		handler >> 32};
	uint64_t dirs[512] = {0x83}; /* one page of 2 MiB is the whole guest */

	*ret = (struct boot_entry){.rip = PROBE_CODE,
		.rsp = PROBE_STACK,
		.cr3 = 0x1000,
		.gdt_base = 0x500,
		.gdt_limit = sizeof(gdt) - 1};
	if (guest_write(m, (gpa_t){0x1000}, &pml4_entry, 8) < 0 ||
		guest_write(m, (gpa_t){0x2000}, &pdpt_entry, 8) < 0 ||
		guest_write(m, (gpa_t){0x3000}, dirs, sizeof(dirs)) < 0 ||
		guest_write(m, (gpa_t){0x500}, gdt, sizeof(gdt)) < 0 ||
		guest_write(m, (gpa_t){PROBE_CODE}, probe_code,
			(size_t)(probe_code_end - probe_code)) < 0 ||
		guest_write(m, (gpa_t){PROBE_IDT + 3 * 16}, gate, sizeof(gate)) < 0)
		return err_set(&p->e, -EFAULT, "the probe's guest does not fit");
	return 0;
}

/* HAS_… by CPUID.1:ECX, of which `without` is taken away first. */
static unsigned
features_of(struct kvm_cpuid_table *cpuid, uint32_t without)
{
	for (uint32_t i = 0; i < cpuid->n; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		if (e->function != 1)
			continue;
		e->ecx &= ~without;
		return (e->ecx & PROBE_CMPXCHG16B ? HAS_CMPXCHG16B : 0) |
		       (e->ecx & PROBE_XSAVE ? HAS_XSAVE : 0);
	}
	return 0;
}

static int
set_up(struct probe *p, uint32_t without)
{
	struct vm *vm = &p->vm;
	struct boot_entry entry;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	unsigned features;
	uint64_t start;
	int r;

	start = io_now_ns();
	if ((r = kvm_create_vm(vm->kvm_fd, &vm->vm_fd, &p->e)) < 0)
		return r;
	p->create_vm_ns = io_now_ns() - start;
	vm_drop_kvm(vm, false);

	vm->n_vcpus = 1;
	if ((r = guest_mem_create(&vm->mem, 2, &p->e)) < 0 ||
		(r = write_guest(p, &entry)) < 0 || (r = vm_ask_kvm(vm, &p->e)) < 0)
		return r;
	features = features_of(&vm->vcpus[0].cpuid, without);
	start = io_now_ns();
	if ((r = vm_make_kvm(vm, &p->e)) < 0)
		return r;
	p->set_up_ns = io_now_ns() - start;
	if ((r = kvm_get_sregs(vm->vcpus[0].fd, &sregs, &p->e)) < 0)
		return r;
	boot_registers(&entry, &regs, &sregs);
	regs.rdi = PROBE_DATA;
	regs.rsi = features;
	sregs.idt.base = PROBE_IDT;
	sregs.idt.limit = 256 * 16 - 1;
	/* The bit is reserved where CPUID does not have XSAVE. */
	sregs.cr4 |= CR4_OSFXSR | (features & HAS_XSAVE ? CR4_OSXSAVE : 0);
	if ((r = kvm_set_sregs(vm->vcpus[0].fd, &sregs, &p->e)) < 0)
		return r;
	return kvm_set_regs(vm->vcpus[0].fd, &regs, &p->e);
}

/* Runs until the last step or the first exit that is none. */
static void
run(struct probe *p)
{
	struct vcpu *v = &p->vm.vcpus[0];
	uint64_t start = io_now_ns();
	int r;

	while (p->steps < STEP_COUNT) {
		r = kvm_run(v->fd);
		if (r == -EINTR)
			continue;
		if (r < 0) {
			err_sys(&p->e, r, "KVM_RUN");
			break;
		}
		if (v->run->exit_reason == KVM_EXIT_IO && v->run->io.port == PROBE_PORT &&
			((uint8_t *)v->run)[v->run->io.data_offset] == p->steps) {
			p->steps++;
			continue;
		}
		if (v->run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
			err_set(&p->e, -EIO, "KVM internal error %u",
				v->run->internal.suberror);
		else
			err_set(&p->e, -EIO, "exit reason %u", v->run->exit_reason);
		break;
	}
	p->run_ns = io_now_ns() - start;
}

static int
print(struct probe *p, const char *kind, const char *detail)
{
	struct kvm_caps *c = &p->vm.caps;
	cleanup_json_out struct json_out o = {0};
	bool known = c->api_version > 0;

	json_out_object(&o, NULL);
	json_out_str(&o, "kvm", kind);
	json_out_str(&o, "detail", detail);
	if (known) {
		json_out_i64(&o, "api", c->api_version);
		json_out_bool(&o, "split_irqchip", c->split_irqchip);
		json_out_bool(&o, "signal_msi", c->signal_msi);
		json_out_bool(&o, "immediate_exit", c->immediate_exit);
		json_out_bool(&o, "tsc_deadline_timer", c->tsc_deadline_timer);
		json_out_bool(&o, "vcpu_attributes", c->vcpu_attributes);
		json_out_u64(&o, "max_vcpus", c->max_vcpus);
		json_out_u64(&o, "xsave_bytes", c->xsave_size);
	}
	json_out_str(&o, "dirty_pages", track_means_name(p->vm.track.means));
	if (p->set_up_ns) {
		json_out_f64(&o, "create_vm_us", (double)p->create_vm_ns / 1000);
		json_out_f64(&o, "set_up_us", (double)p->set_up_ns / 1000);
		json_out_f64(&o, "run_us", (double)p->run_ns / 1000);
		json_out_u64(&o, "steps", p->steps);
	}
	json_out_end_object(&o);
	if (o.error) {
		fprintf(stderr, "pando-vmm: %s\n", strerror(-o.error));
		return 1;
	}
	return puts(o.buf) < 0 || fflush(stdout) != 0;
}

int
probe_main(int kvm_fd, uint32_t without)
{
	static struct probe p;
	char detail[512 + 128];

	vm_init(&p.vm);
	track_open(&p.vm.track);
	if (kvm_fd < 0) {
		snprintf(detail, sizeof(detail), "/dev/kvm cannot be opened: %s",
			strerror(-kvm_fd));
		return print(&p, "none", detail);
	}
	p.vm.kvm_fd = kvm_fd;
	if (kvm_read_caps(kvm_fd, &p.vm.caps, &p.e) < 0 ||
		kvm_check_caps(&p.vm.caps, &p.e) < 0 || set_up(&p, without) < 0)
		return print(&p, "none", p.e.msg);
	run(&p);
	if (p.steps == STEP_COUNT)
		return print(&p, "linux", "KVM runs the instructions that Linux needs");
	snprintf(detail, sizeof(detail),
		"KVM runs small guests but not Linux: it fails at %s (%s); it works without hardware virtualization",
		step_names[p.steps], p.e.msg);
	return print(&p, p.steps > STEP_RUNS ? "small" : "none", detail);
}
