# vmm

# The reader of disks at rest, for the host's tools.
LIBRARIES += vmmdisk
vmmdisk_SRCS := vmm/blockmap.c vmm/segment_merge.c

# The devices behind virtio-mmio.
LIBRARIES += vmmdev
vmmdev_SRCS := \
	vmm/virtqueue.c \
	vmm/virtio_mmio.c \
	vmm/blk.c \
	vmm/blk_flush.c \
	vmm/blk_keep.c \
	vmm/blk_limit.c \
	vmm/blk_swap.c \
	vmm/vsock.c \
	vmm/vsock_conn.c \
	vmm/vsock_queue.c \
	vmm/vsock_rx.c \
	vmm/vsock_tx.c \
	vmm/rng.c \
	vmm/balloon.c

DEVICE_TESTS := test_virtqueue test_blk test_blk_power test_blockmap test_segment_merge test_blk_swap test_vsock test_balloon
UNIT_TESTS += $(DEVICE_TESTS)
define device_test
$(1)_SRCS := tests/unit/$(1).c tests/unit/fake_driver.c vmm/memory.c
$(1)_LIBS := vmmdev vmmdisk wire common
$(1)_PKGS := cmocka
endef
$(foreach t,$(DEVICE_TESTS),$(eval $(call device_test,$(t))))
test_vsock_WRAP := io_now_ns

# The machine itself.
LIBRARIES += vmmcore
vmmcore_SRCS := \
	vmm/memory.c \
	vmm/kvm.c \
	vmm/cpuid.c \
	vmm/state.c \
	vmm/ioapic.c \
	vmm/serial.c \
	vmm/ged.c \
	vmm/acpi.c \
	vmm/boot.c \
	vmm/futex.c \
	vmm/ending.c \
	vmm/vm.c \
	vmm/vcpu.c \
	vmm/mappings.c \
	vmm/pagemap.c \
	vmm/track.c \
	vmm/track_keep.c \
	vmm/giveback.c \
	vmm/fill.c \
	vmm/steps.c \
	vmm/disk_thread.c \
	vmm/mainloop.c \
	vmm/answer.c \
	vmm/fork.c \
	vmm/snapshot.c \
	vmm/keep.c \
	vmm/restore.c \
	vmm/full_disk.c \
	vmm/reset.c \
	vmm/control.c \
	vmm/seal.c \
	vmm/probe.c
vmmcore_PKGS := libseccomp

PROGRAMS += pando-vmm
pando-vmm_SRCS := vmm/main.c
pando-vmm_LIBS := vmmcore vmmdev vmmdisk wire sandbox common
pando-vmm_PKGS := libseccomp
pando-vmm_DIR := libexec/pando
# Every mapping that a fork copies costs it time, and again for each ancestor: one file instead of four.
pando-vmm_LDFLAGS := $(if $(SAN),,-static-pie)

$(B)/gen/vmm/dsdt.hex: vmm/dsdt.asl
	@mkdir -p $(@D)
	iasl -tc -p $(@:.hex=) $< >$(@:.hex=.log) || { cat $(@:.hex=.log); exit 1; }
$(B)/obj/vmm/acpi.o: $(B)/gen/vmm/dsdt.hex

FUZZED_DEVICES := \
	tests/unit/fake_driver.c \
	$(vmmdev_SRCS) \
	$(vmmdisk_SRCS) \
	common/wire/blob.c \
	vmm/memory.c \
	common/err.c \
	common/fault.c \
	common/io.c \
	common/log.c
FUZZERS += fuzz_segment_merge
fuzz_segment_merge_SRCS := tests/fuzz/fuzz_segment_merge.c $(vmmdisk_SRCS) common/err.c common/fault.c common/io.c
fuzz_segment_merge_CORPUS := tests/fuzz/corpus/segment_merge

FUZZERS += fuzz_blk
fuzz_blk_SRCS := tests/fuzz/fuzz_blk.c $(FUZZED_DEVICES)
fuzz_blk_CORPUS := tests/fuzz/corpus/blk

MACHINE_TESTS := test_memory test_giveback test_mappings test_track test_track_keep \
	test_ioapic test_console test_boot test_cpuid
UNIT_TESTS += $(MACHINE_TESTS)
define machine_test
$(1)_SRCS := tests/unit/$(1).c
$(1)_LIBS := vmmcore vmmdev vmmdisk wire sandbox common
$(1)_PKGS := cmocka libseccomp
endef
$(foreach t,$(MACHINE_TESTS),$(eval $(call machine_test,$(t))))

FUZZERS += fuzz_balloon
fuzz_balloon_SRCS := tests/fuzz/fuzz_balloon.c $(FUZZED_DEVICES)
fuzz_balloon_CORPUS := tests/fuzz/corpus/balloon

FUZZERS += fuzz_vsock
fuzz_vsock_SRCS := tests/fuzz/fuzz_vsock.c $(FUZZED_DEVICES)
fuzz_vsock_LDLIBS := -Wl,--wrap=io_now_ns
fuzz_vsock_CORPUS := tests/fuzz/corpus/vsock

UNIT_TESTS += test_full_disk
test_full_disk_SRCS := tests/unit/test_full_disk.c tests/unit/snapshot_vm.c
test_full_disk_LIBS := vmmcore vmmdev vmmdisk wire common
test_full_disk_PKGS := cmocka libseccomp

UNIT_TESTS += test_snapshot
test_snapshot_SRCS := tests/unit/test_snapshot.c tests/unit/snapshot_vm.c
test_snapshot_LIBS := vmmcore vmmdev vmmdisk wire sandbox common
test_snapshot_PKGS := cmocka libseccomp

FUZZERS += fuzz_snapshot
fuzz_snapshot_SRCS := \
	tests/fuzz/fuzz_snapshot.c \
	tests/unit/snapshot_vm.c \
	$(filter-out tests/unit/fake_driver.c,$(FUZZED_DEVICES)) \
	vmm/snapshot.c \
	vmm/cpuid.c \
	vmm/state.c \
	vmm/kvm.c \
	common/wire/cpu_features.c \
	vmm/ioapic.c \
	vmm/serial.c \
	common/wire/console_ring.c \
	vmm/ged.c
fuzz_snapshot_CORPUS := tests/fuzz/corpus/snapshot
