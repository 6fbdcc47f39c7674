/*
 * What this host's KVM can run, as `pando-vmm --probe` finds it by trying: for doctor, and for
 * pandod before it boots a Linux kernel. Some KVMs (without hardware virtualization) run a
 * test's small guest and no Linux. And by what means its VMs' commits are incremental.
 */
#ifndef PANDO_HOST_VMMPROC_KVM_PROBE_H
#define PANDO_HOST_VMMPROC_KVM_PROBE_H

#include <stddef.h>

#include "common/err.h"

enum kvm_probe_kind {
	KVM_PROBE_NONE,	 /* nothing */
	KVM_PROBE_SMALL, /* small guests, not Linux */
	KVM_PROBE_LINUX,
};

struct kvm_probe {
	enum kvm_probe_kind kind;
	char detail[400];    /* a sentence, as the program gave it */
	double create_vm_us; /* 0: not said */
	/* By what means a VMM tells changed pages of memory (vmm/track.h): "userfaultfd",
	 * "soft-dirty", or "none": then each commit reads all of it. "": not said. */
	char dirty_pages[16];
};

/* Runs the program on the device, which takes some milliseconds (at most 15 s, then it is
 * killed). Any thread. */
int kvm_probe(
	const char *vmm_path, const char *device, struct kvm_probe *ret, struct err *e);
/* The program's line of JSON. */
int kvm_probe_read(const char *line, size_t len, struct kvm_probe *ret, struct err *e);

#endif
