#include "tests/unit/snapshot_vm.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const uint32_t msrs[] = {0x174, 0x175, 0x176, 0xc0000081, 0xc0000082, 0x4b564d00,
	0x4b564d01, STATE_MSR_TSC_DEADLINE};

static const uint32_t leaves[][2] = {{1, 0}, {7, 0}, {7, 1}, {7, 2}, {0xd, 0}, {0xd, 1},
	{0x80000001, 0}, {0x80000007, 0}, {0x80000008, 0}, {0x80000021, 0},
	{0x40000001, 0}};

static void
must(int ok)
{
	if (!ok)
		abort();
}

static uint64_t
drop(void *ctx, void *host, size_t len, bool any)
{
	(void)ctx;
	(void)any;
	return madvise(host, len, MADV_DONTNEED) == 0 ? len : 0;
}

void
snapshot_vm_init(struct vm *vm, unsigned n_vcpus)
{
	int seg[VMM_SEG_FDS] = {memfd_create("data", MFD_CLOEXEC),
		memfd_create("index", MFD_CLOEXEC), -1, -1};
	struct irq_line irq = {.raise = ioapic_raise, .ctx = &vm->ioapic};

	memset(vm, 0, sizeof(*vm));
	vm->n_vcpus = n_vcpus;
	vm->caps.xsave_size = 4096;
	vm->caps.tsc_deadline_timer = vm->caps.adjust_clock = true;
	vm->plan.tsc_offset = true;
	vm->plan.tsc_khz = 2000000;
	for (unsigned i = 0; i < sizeof(msrs) / sizeof(*msrs); i++)
		vm->plan.msrs.indices[vm->plan.msrs.n++] = msrs[i];
	for (unsigned i = 0; i < n_vcpus; i++) {
		struct kvm_cpuid_table *t = &vm->vcpus[i].cpuid;

		for (unsigned k = 0; k < sizeof(leaves) / sizeof(*leaves); k++)
			t->entries[t->n++] =
				(struct kvm_cpuid_entry2){.function = leaves[k][0],
					.index = leaves[k][1],
					.eax = ~0u,
					.ebx = ~0u,
					.ecx = ~0u,
					.edx = ~0u};
	}
	vm->accepted = vm->vcpus[0].cpuid;
	must(guest_mem_create(&vm->mem, SNAPSHOT_VM_MEM_MIB, NULL) == 0);
	ioapic_init(&vm->ioapic, (struct ioapic_sink){0});
	serial_init(&vm->serial, &vm->console, irq);
	ged_init(&vm->ged, irq, NULL, NULL, NULL);
	rng_init(&vm->rng, &vm->mem, irq);
	balloon_init(&vm->balloon, &vm->mem, irq, &(struct balloon_host){.give_back = drop});
	for (int i = 0; i < 2; i++) {
		char path[32];

		snprintf(path, sizeof(path), "/proc/self/fd/%d", seg[i]);
		seg[i + 2] = open(path, O_RDONLY | O_CLOEXEC);
		must(seg[i] >= 0 && seg[i + 2] >= 0);
	}
	must(blk_init(&vm->blk, &vm->mem, irq, SNAPSHOT_VM_DISK_MIB, -1, seg, NULL) == 0);
	must(vsock_init(&vm->vsock, &vm->mem, irq, 3, -1, -1, NULL, NULL) == 0);
}

void
snapshot_vm_done(struct vm *vm)
{
	blk_destroy(&vm->blk);
	vsock_destroy(&vm->vsock);
	guest_mem_destroy(&vm->mem);
}

static void
start_driver(struct virtio_dev *dev, uint64_t rings)
{
	dev->status = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
		      VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK;
	dev->driver_features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX;
	dev->interrupt_status = VIRTIO_INTERRUPT_USED;
	dev->config_generation = 7;
	for (unsigned i = 0; i < dev->ops->n_queues; i++, rings += 0x10000) {
		struct virtq *q = &dev->queues[i];

		q->size = q->size_max < 16 ? q->size_max : 16;
		q->desc = rings;
		q->avail = rings + 0x4000;
		q->used = rings + 0x8000;
		q->event_idx = true;
		must(virtq_enable(q, dev->mem) == 0);
		q->next_avail = q->next_used = (uint16_t)(3 + i);
	}
}

void
snapshot_vm_fill(struct vm *vm)
{
	vm->clock.valid = true;
	vm->clock.clock.clock = 123456789;
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		struct vcpu_state *s = &vm->vcpus[i].state;

		memset(&s->regs, 0x11 + (int)i, sizeof(s->regs));
		memset(&s->sregs, 0x21, sizeof(s->sregs));
		memset(&s->lapic, 0x31, sizeof(s->lapic));
		memset(&s->debugregs, 0x41, sizeof(s->debugregs));
		memset(&s->xcrs, 0x51, sizeof(s->xcrs));
		memset(&s->events, 0x61, sizeof(s->events));
		memset(s->xsave.bytes, 0x71, 600);
		s->tsc_khz = 2000000;
		s->guest_tsc = 0x123456789abcull;
		s->msrs.n = vm->plan.msrs.n;
		for (unsigned k = 0; k < s->msrs.n; k++)
			s->msrs.entries[k] = (struct kvm_msr_entry){
				.index = vm->plan.msrs.indices[k], .data = 1000 + k};
	}
	vm->ioapic.select = 0x12;
	vm->ioapic.entry[4] = 0x31;
	vm->ioapic.entry[9] = 1ull << 15 | 1ull << 14 | 0x41; /* level, in service */
	vm->ioapic.pending = 1u << 5;
	vm->serial.ier = 3;
	vm->serial.lcr = 0x83;
	vm->serial.fifo = vm->serial.loop_full = true;
	vm->ged.events = GED_EVENT_POWER_BUTTON;
	start_driver(&vm->blk.dev, 0x100000);
	start_driver(&vm->vsock.dev, 0x200000);
	start_driver(&vm->rng.dev, 0x300000);
	start_driver(&vm->balloon.dev, 0x400000);
	vm->balloon.config = (struct balloon_config){.num_pages = 512, .actual = 256};
	vm->balloon.has_stats_chain = true;
	vm->balloon.stats_head = 3;
}
