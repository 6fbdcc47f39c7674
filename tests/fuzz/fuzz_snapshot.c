/*
 * State blobs. The input is a blob whose length and check sum are put right, so that what
 * is behind them is reached. Whatever loads must be a VM whose devices can work, and
 * whose state, saved, loads again and is the same.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "tests/unit/snapshot_vm.h"
#include "vmm/snapshot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x); \
			abort(); \
		} \
	} while (0)

#define VCPUS_AT \
	(sizeof(struct blob_header) + sizeof(struct blob_section) + \
		offsetof(struct snapshot_config, vcpus))

static struct vm vm;
static uint8_t in[1u << 16], first[1u << 18], second[1u << 18];

static int
load(const uint8_t *p, size_t len, struct err *e)
{
	struct snapshot s;
	bool changed;
	int r = snapshot_open(p, len, &s, e);

	if (r == 0)
		r = snapshot_load_cpuid(&s, &vm, &changed, e);
	return r == 0 ? snapshot_load(&s, &vm, e) : r;
}

static void
put_right(uint8_t *p, size_t len)
{
	struct blob_header h;

	if (len < sizeof(h))
		return;
	memcpy(&h, p, sizeof(h));
	h.bytes = len;
	h.check = blob_check(p + sizeof(h), len - sizeof(h));
	memcpy(p, &h, sizeof(h));
}

/* What vCPUs and the main thread would do with it. */
static void
use(struct virtio_dev *dev)
{
	uint32_t v = 0;

	virtio_dev_resume(dev);
	for (uint32_t queue = 0; queue <= VIRTIO_QUEUES_MAX; queue++)
		virtio_mmio_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, &queue, 4);
	for (uint64_t reg = 0; reg < VIRTIO_MMIO_SIZE; reg += 4)
		virtio_mmio_read(dev, reg, &v, 4);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool quiet;
	uint8_t byte = 'x';
	struct err e = {0, ""};
	size_t len, again;
	uint64_t reg;

	if (!quiet) {
		log_init("fuzz", LOG_LEVEL_ERR);
		quiet = true;
	}
	if (size > sizeof(in))
		return 0;
	memcpy(in, data, size);
	put_right(in, size);
	/* As many vCPUs as it says that it has, so far as 2. */
	snapshot_vm_init(&vm, size > VCPUS_AT && in[VCPUS_AT] == 2 ? 2 : 1);
	if (load(in, size, &e) < 0) {
		MUST(e.code < 0 && e.msg[0]);
		snapshot_vm_done(&vm);
		return 0;
	}
	len = snapshot_save(&vm, first, sizeof(first));
	MUST(len > 0);
	MUST(load(first, len, &e) == 0);
	again = snapshot_save(&vm, second, sizeof(second));
	MUST(again == len && memcmp(first, second, len) == 0);

	use(&vm.blk.dev);
	use(&vm.vsock.dev);
	use(&vm.rng.dev);
	use(&vm.balloon.dev);
	vsock_tick(&vm.vsock);
	ioapic_resume(&vm.ioapic);
	for (reg = 0; reg < 0x40; reg++)
		ioapic_write(&vm.ioapic, 0, &(uint32_t){(uint32_t)reg}, 4);
	ioapic_eoi(&vm.ioapic, 0x41);
	serial_resume(&vm.serial);
	for (reg = 0; reg < SERIAL_PORTS; reg++) {
		serial_read(&vm.serial, (unsigned)reg);
		serial_write_many(&vm.serial, (unsigned)reg, &byte, 1);
	}
	ged_resume(&vm.ged);
	snapshot_vm_done(&vm);
	return 0;
}
