# tests
include deps.mk

UNIT_TESTS += test_err test_io test_json test_log test_memfd test_toml test_userns
test_err_SRCS := tests/unit/test_err.c
test_io_SRCS := tests/unit/test_io.c
test_json_SRCS := tests/unit/test_json.c
test_log_SRCS := tests/unit/test_log.c
test_memfd_SRCS := tests/unit/test_memfd.c
test_toml_SRCS := tests/unit/test_toml.c
test_userns_SRCS := tests/unit/test_userns.c
$(foreach t,test_err test_io test_json test_log test_memfd test_toml test_userns,$(eval $(t)_LIBS := wire common)$(eval $(t)_PKGS := cmocka))

# A script: what folders include from each other, and whose files call each other in circles.
UNIT_SCRIPTS += test_rooms
$(B)/tests/test_rooms: tests/unit/test_rooms.py $(LIBRARIES:%=$(B)/obj/lib%.a) $(B)/bin/pandod \
	$(B)/libexec/pando/pando-vmm $(B)/libexec/pando/pando-agent $(B)/libexec/pando/pando-units
	@mkdir -p $(@D)
	install -m 0755 $< $@

FUZZERS += fuzz_json fuzz_toml
fuzz_json_SRCS := \
	tests/fuzz/fuzz_json.c \
	common/json.c \
	common/err.c \
	common/utf8.c
fuzz_json_CORPUS := tests/fuzz/corpus/json
fuzz_toml_SRCS := \
	tests/fuzz/fuzz_toml.c \
	common/toml.c \
	common/toml_scalar.c \
	common/err.c \
	common/utf8.c \
	common/io.c
fuzz_toml_CORPUS := tests/fuzz/corpus/toml

# Lists are complete only when every module.mk has been read, so they are expanded in recipes and by
# secondary expansion.
FUZZ_SECONDS ?= 10
RUN_TESTS = ONLY='$(ONLY)' VERBOSE='$(VERBOSE)' JOBS='$(JOBS)' B='$(B)' UNIT_TESTS='$(UNIT_TESTS) $(UNIT_SCRIPTS)' KVM_TESTS='$(KVM_TESTS)' \
	FUZZ_SECONDS='$(FUZZ_SECONDS)' FUZZERS='$(foreach f,$(FUZZERS),$(f):$($(f)_CORPUS))' tests/run

# Of a suite's programs those that ONLY names, as tests/run picks them: nothing else is built. $(1) suite, $(2) names
ONLY ?=
wanted = $(if $(ONLY),$(notdir $(shell printf '%s\n' $(2:%=$(1)/%) | grep -E -- '$(ONLY)')),$(2))
unit_programs = $(addprefix $(B)/tests/,$(call wanted,unit,$(UNIT_TESTS) $(UNIT_SCRIPTS)))
kvm_programs = $(addprefix $(B)/tests/,$(call wanted,kvm,$(KVM_TESTS)))
fuzz_programs = $(addprefix $(B)/fuzz/,$(call wanted,fuzz,$(FUZZERS)))
system_scripts = $(call wanted,system,$(patsubst %.sh,%,$(filter-out lib%,$(notdir $(wildcard tests/system/*.sh)))))
# Scripts drive what is installed, and these.
system_programs = $(if $(system_scripts),all $(addprefix $(B)/tests/,$(SYSTEM_PROGRAMS)))

.SECONDEXPANSION:
check-unit: $$(unit_programs)
	$(RUN_TESTS) unit
check-kvm: $$(if $$(kvm_programs),all) $$(kvm_programs)
	$(RUN_TESTS) kvm
check-fuzz: $$(fuzz_programs)
	$(RUN_TESTS) fuzz
check-system: $$(system_programs)
	$(RUN_TESTS) system
check-vmx: all $$(addprefix $(B)/tests/,$$(KVM_TESTS))
	$(RUN_TESTS) vmx
check: $$(if $$(ONLY),,all) $$(unit_programs) $$(if $$(kvm_programs),all) $$(kvm_programs) $$(fuzz_programs) $$(system_programs)
	$(RUN_TESTS) unit kvm fuzz system

# One after the other: a benchmark beside another measures the other.
bench: all $$(addprefix $(B)/bench/,$$(BENCHES))
	@for b in $(BENCHES); do $(B)/bench/$$b $(BENCH_FLAGS) || exit 1; done
	@export B='$(abspath $(B))'; case $$(sh tests/system/lib_where.sh) in \
	direct) sh tests/bench/guests.sh $(BENCH_FLAGS) ;; \
	machine) sh tests/system/lib_in_machine.sh tests/bench/guests.sh $(BENCH_FLAGS) ;; \
	*) echo "bench: no Debian guests here (see above)" >&2 ;; esac

# All test programs, not run.
.PHONY: tests
tests: $$(addprefix $(B)/tests/,$$(UNIT_TESTS) $$(UNIT_SCRIPTS) $$(KVM_TESTS) $$(SYSTEM_PROGRAMS)) $$(addprefix $(B)/bench/,$$(BENCHES)) \
	$$(addprefix $(B)/fuzz/,$$(FUZZERS))

# The layout of an installation is the layout of the build folder: bin, libexec/pando, share/pando.
install: all
	@set -e; for f in $(foreach p,$(PROGRAMS),$(or $($(p)_DIR),bin)/$(p)) $(DATA); do \
		if [ -x $(B)/$$f ]; then mode=755; else mode=644; fi; \
		install -D -m $$mode $(B)/$$f $(DESTDIR)$(PREFIX)/$$f; done
	@echo "installed in $(DESTDIR)$(PREFIX)"

# The small guest: freestanding, simple instructions, packed as a bzImage.
GUEST_CFLAGS := -std=gnu11 -O1 -ffreestanding -fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fcf-protection=none -mcmodel=small $(WARNINGS)
TINY := $(B)/tests/guest/tiny
$(TINY): tests/kvm/guest/start.S tests/kvm/guest/tiny.c tests/kvm/guest/balloon.c tests/kvm/guest/vsock.c tests/kvm/guest/tiny.h tests/kvm/guest/tiny.ld
	@mkdir -p $(@D)
	$(CC) $(GUEST_CFLAGS) $(if $(WERROR),-Werror) -c -o $@.start.o tests/kvm/guest/start.S
	$(CC) $(GUEST_CFLAGS) -I. $(if $(WERROR),-Werror) -c -o $@.c.o tests/kvm/guest/tiny.c
	$(CC) $(GUEST_CFLAGS) -I. $(if $(WERROR),-Werror) -c -o $@.balloon.o tests/kvm/guest/balloon.c
	$(CC) $(GUEST_CFLAGS) -I. $(if $(WERROR),-Werror) -c -o $@.vsock.o tests/kvm/guest/vsock.c
	$(LD) -m elf_x86_64 -nostdlib -static -no-pie -z noexecstack --no-warn-rwx-segments -T tests/kvm/guest/tiny.ld -o $@.elf $@.start.o $@.c.o $@.balloon.o $@.vsock.o
	$(OBJCOPY) -O binary $@.elf $@
OBJCOPY ?= objcopy

LIBRARIES += kvmdriver
kvmdriver_SRCS := \
	tests/kvm/driver.c \
	tests/kvm/driver_restore.c \
	tests/kvm/slow_disk.c \
	tests/kvm/console_line.c
KVM_TESTS_OF_OURS := test_kvm_boot test_kvm_fork test_kvm_hostile test_kvm_restore test_kvm_reset test_kvm_keep test_kvm_track \
	test_kvm_disk test_kvm_balloon
KVM_TESTS += $(KVM_TESTS_OF_OURS)
test_kvm_boot_SRCS := tests/kvm/test_kvm_boot.c
test_kvm_fork_SRCS := tests/kvm/test_kvm_fork.c
test_kvm_hostile_SRCS := tests/kvm/test_kvm_hostile.c
test_kvm_restore_SRCS := tests/kvm/test_kvm_restore.c common/wire/blob.c
test_kvm_reset_SRCS := tests/kvm/test_kvm_reset.c common/wire/blob.c
test_kvm_keep_SRCS := tests/kvm/test_kvm_keep.c
test_kvm_track_SRCS := tests/kvm/test_kvm_track.c
test_kvm_disk_SRCS := tests/kvm/test_kvm_disk.c
test_kvm_balloon_SRCS := tests/kvm/test_kvm_balloon.c common/wire/blob.c
$(foreach t,$(KVM_TESTS_OF_OURS),$(eval $(t)_LIBS := kvmdriver vmmdisk wire common)$(eval $(t)_PKGS := cmocka))
# The VMM's code in the test's own process.
KVM_TESTS += test_kvm_cpu
test_kvm_cpu_SRCS := tests/kvm/test_kvm_cpu.c
test_kvm_cpu_LIBS := vmmcore vmmdev vmmdisk wire sandbox common
test_kvm_cpu_PKGS := cmocka libseccomp
# pandod's commits, on the shipped VMM.
KVM_TESTS += test_kvm_commit
test_kvm_commit_SRCS := tests/kvm/test_kvm_commit.c
test_kvm_commit_LIBS := pandocommit pandovm agentclient vmmcore vmmdev vmmdisk store systemdjobs kvmprobe wire sandbox common
test_kvm_commit_PKGS := cmocka sqlite3 libsodium libzstd libseccomp libsystemd
$(B)/tests/test_kvm_commit: | $(TINY)
# Their guest and the VMM are part of them.
$(foreach t,$(KVM_TESTS_OF_OURS),$(eval $(B)/tests/$(t): | $(TINY)))

# What system tests drive.
SYSTEM_PROGRAMS += endless
endless_SRCS := tests/system/endless.c
endless_LIBS := pandoclient kvmprobe wire common
endless_PKGS := libcurl

SYSTEM_PROGRAMS += tree_model
tree_model_SRCS := \
	tests/system/model/model.c \
	tests/system/model/model_look.c \
	tests/system/model/model_pandod.c \
	tests/system/model/model_steps.c \
	tests/system/model/model_crash.c
tree_model_LIBS := pandoclient kvmprobe wire common
tree_model_PKGS := libcurl
$(B)/tests/tree_model: | $(TINY)

# They drive VMs through pandod's own code.
BENCHES_OF_VMS := bench_spawn bench_restore bench_reset bench_branch bench_commit
BENCHES += $(BENCHES_OF_VMS)
bench_spawn_SRCS := tests/bench/bench_spawn.c tests/bench/floor.c
bench_reset_SRCS := tests/bench/bench_reset.c tests/bench/floor.c
bench_branch_SRCS := tests/bench/bench_branch.c tests/bench/bare.c
bench_commit_SRCS := tests/bench/bench_commit.c
bench_restore_SRCS := tests/bench/bench_restore.c
define bench_of_vms
$(1)_SRCS += tests/bench/bench.c tests/bench/must.c tests/bench/sample.c tests/kvm/console_line.c
$(1)_LIBS := pandocommit pandovm agentclient vmmcore vmmdev vmmdisk store systemdjobs kvmprobe wire sandbox common
$(1)_PKGS := sqlite3 libsodium libzstd libseccomp libsystemd
$(B)/bench/$(1): | $(TINY)
endef
$(foreach b,$(BENCHES_OF_VMS),$(eval $(call bench_of_vms,$(b))))
BENCHES += bench_store bench_catalog bench_handshake bench_exec bench_vsock bench_vsock_device bench_disk bench_giveback
bench_disk_SRCS := tests/bench/bench_disk.c tests/bench/must.c tests/bench/sample.c
bench_disk_LIBS := kvmdriver vmmdisk wire common
$(B)/bench/bench_disk: | $(TINY)
bench_vsock_SRCS := tests/bench/bench_vsock.c tests/bench/must.c tests/bench/sample.c
bench_vsock_LIBS := kvmdriver vmmdisk wire common
$(B)/bench/bench_vsock: | $(TINY)
bench_vsock_device_SRCS := tests/bench/bench_vsock_device.c tests/bench/must.c tests/bench/sample.c \
	tests/unit/fake_driver.c vmm/memory.c
bench_vsock_device_LIBS := vmmdev vmmdisk wire common
bench_giveback_SRCS := tests/bench/bench_giveback.c tests/bench/must.c
bench_giveback_LIBS := kvmdriver vmmdisk wire common
$(B)/bench/bench_giveback: | $(TINY)
bench_store_SRCS := tests/bench/bench_store.c tests/bench/must.c
bench_store_LIBS := store wire common
bench_store_PKGS := libsodium libzstd sqlite3
bench_catalog_SRCS := tests/bench/bench_catalog.c tests/bench/must.c tests/bench/sample.c
bench_catalog_LIBS := pandocommit pandovm agentclient vmmdisk store systemdjobs kvmprobe wire common
bench_catalog_PKGS := sqlite3 libsodium libzstd libsystemd
bench_handshake_SRCS := \
	tests/bench/bench_handshake.c \
	tests/bench/must.c \
	tests/bench/sample.c
bench_handshake_LIBS := agentclient wire common
bench_handshake_PKGS := libsodium
$(B)/bench/bench_handshake: | $(B)/libexec/pando/pando-agent
bench_exec_SRCS := tests/bench/bench_exec.c tests/bench/must.c tests/bench/sample.c
bench_exec_LIBS := agentclient wire common
bench_exec_PKGS := libsodium
$(B)/bench/bench_exec: | $(B)/libexec/pando/pando-agent
