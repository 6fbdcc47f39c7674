# host: pandod; host/cli/module.mk adds the `pando` command.

# The agent's protocol from the host's side.
LIBRARIES += agentclient
agentclient_SRCS := host/agent/agent_client.c host/agent/agent_copy.c host/agent/agent_exec.c host/agent/agent_handshake.c \
	host/agent/agent_terminal.c host/agent/agent_dial.c host/agent/terminal.c host/agent/terminal_text.c \
	host/agent/agent_rpc.c host/agent/agent_report.c

# Whether this host's KVM boots Linux, asked by pandod and by `pando doctor`.
LIBRARIES += kvmprobe
kvmprobe_SRCS := host/vmmproc/kvm_probe.c

# All of pandod but its main().
LIBRARIES += pandodcore
# libsystemd is called only in bus.c and common/systemd.c.
pandodcore_PKGS := libmicrohttpd sqlite3 libsystemd
pandodcore_SRCS := host/api/request.c host/api/request_route.c host/api/call_run.c host/vm/image.c host/vmmproc/vmmctl.c host/vmmproc/launch.c host/vm/db.c \
	host/vm/vm_spec.c host/vm/tree.c host/vm/tree_sync.c host/vm/tree_show.c host/vm/tree_watch.c host/vm/create.c host/vm/branch.c host/vm/adopt.c host/api/api.c host/vm/delete.c \
	host/vm/lifecycle.c host/vm/reboot.c host/vm/guest.c host/vm/usage.c host/vm/frozen_fork.c host/vm/batch.c host/commit/commit.c \
	host/commit/commit_read.c host/commit/commit_cpu.c host/commit/commits.c host/pandod/daemon_config.c host/commit/materialize.c host/commit/spawn.c host/commit/pool.c host/commit/diff_files.c host/vm/handshake.c host/vm/reports.c host/vm/reports_watch.c \
	host/scope/bus.c host/scope/cgroup.c host/scope/scope.c

# The commit store, which knows nothing of VMs; libsodium is called only in store_hash.c, zstd only in store_zip.c.
LIBRARIES += store
store_PKGS := libsodium libzstd
store_SRCS := host/store/store.c host/store/store_list.c host/store/store_tag.c host/store/store_manifest.c host/store/store_hash.c \
	host/store/store_zip.c host/store/store_bloom.c host/store/store_pack.c host/store/store_pack_write.c host/store/store_chunks.c host/store/store_tree.c \
	host/store/store_write.c host/store/store_gc.c host/store/store_verify.c

# The key that guests let in.
pandodcore_SRCS += host/ssh/ssh_key.c

UNIT_TESTS += test_store test_store_crash test_store_hostile test_store_model
$(foreach t,test_store test_store_crash test_store_hostile test_store_model,\
	$(eval $(t)_SRCS := tests/unit/$(t).c tests/unit/store_help.c)\
	$(eval $(t)_LIBS := store wire common)$(eval $(t)_PKGS := cmocka libsodium libzstd))

FUZZERS += fuzz_store_pack fuzz_store_manifest
fuzz_store_pack_SRCS := tests/fuzz/fuzz_store_pack.c $(store_SRCS) common/err.c common/utf8.c common/io.c common/json.c common/fault.c
fuzz_store_pack_CORPUS := tests/fuzz/corpus/store_pack
fuzz_store_pack_PKGS := libsodium libzstd
fuzz_store_manifest_SRCS := tests/fuzz/fuzz_store_manifest.c $(store_SRCS) common/err.c common/utf8.c common/io.c common/json.c common/fault.c
fuzz_store_manifest_CORPUS := tests/fuzz/corpus/store_manifest
fuzz_store_manifest_PKGS := libsodium libzstd

# The test machine; libssh is called only in ssh.c.
LIBRARIES += machine
machine_PKGS := libssh
machine_SRCS := host/ssh/ssh.c host/testvm/machine.c host/testvm/machine_files.c host/testvm/machine_make.c host/testvm/machine_qemu.c \
	host/testvm/machine_copy.c host/testvm/machine_project.c

UNIT_TESTS += test_machine
test_machine_SRCS := tests/unit/test_machine.c
test_machine_LIBS := machine wire common
test_machine_PKGS := cmocka libssh
test_machine_WRAP := ssh_link_run

PROGRAMS += pandod
pandod_SRCS := host/pandod/pandod.c
pandod_LIBS := pandodcore agentclient vmmdisk store systemdjobs kvmprobe wire common
pandod_PKGS := libmicrohttpd sqlite3 libsodium libzstd libsystemd

UNIT_TESTS += test_request test_image test_db test_tree test_api test_commit test_power_cut
test_power_cut_SRCS := tests/unit/test_power_cut.c tests/unit/fake_vmm.c
test_power_cut_LIBS := pandodcore vmmdisk store systemdjobs kvmprobe wire common
test_power_cut_PKGS := cmocka libmicrohttpd sqlite3 libsodium libzstd libsystemd
test_commit_SRCS := tests/unit/test_commit.c
test_commit_LIBS := pandodcore agentclient vmmdisk store systemdjobs kvmprobe wire common
test_commit_PKGS := cmocka libmicrohttpd sqlite3 libsodium libzstd libsystemd
test_request_SRCS := tests/unit/test_request.c
test_request_LIBS := pandodcore systemdjobs kvmprobe wire common
test_request_PKGS := cmocka
test_image_SRCS := tests/unit/test_image.c
test_image_LIBS := pandodcore systemdjobs kvmprobe wire common
test_image_PKGS := cmocka
test_db_SRCS := tests/unit/test_db.c
test_db_LIBS := pandodcore systemdjobs kvmprobe wire common
test_db_PKGS := cmocka sqlite3
test_api_SRCS := tests/unit/test_api.c
test_api_LIBS := pandodcore agentclient vmmdisk store systemdjobs kvmprobe wire common
test_api_PKGS := cmocka libmicrohttpd sqlite3 libsodium libzstd libsystemd
test_tree_SRCS := tests/unit/test_tree.c tests/unit/fake_vmm.c
test_tree_LIBS := pandodcore vmmdisk store systemdjobs kvmprobe wire common
test_tree_PKGS := cmocka libmicrohttpd sqlite3 libsodium libzstd libsystemd

# A private D-Bus daemon, with a systemd and a machined of the test's own; control groups for real where they may be made.
UNIT_TESTS += test_scope
test_scope_SRCS := tests/unit/test_scope.c tests/unit/bus_help.c
test_scope_LIBS := pandodcore systemdjobs kvmprobe wire common
test_scope_PKGS := cmocka libsystemd

# Reads the file systems of two disks, for pandod; libext2fs is called only in ext4.c.
PROGRAMS += pando-fsdiff
pando-fsdiff_SRCS := host/commit/fsdiff/main.c host/commit/fsdiff/disk.c host/commit/fsdiff/journal.c host/commit/fsdiff/ext4.c
pando-fsdiff_PKGS := ext2fs
pando-fsdiff_DIR := libexec/pando

FUZZERS += fuzz_fsdiff_journal
fuzz_fsdiff_journal_SRCS := tests/fuzz/fuzz_fsdiff_journal.c host/commit/fsdiff/journal.c
fuzz_fsdiff_journal_CORPUS := tests/fuzz/corpus/fsdiff_journal

UNIT_TESTS += test_diff_files
test_diff_files_SRCS := tests/unit/test_diff_files.c
test_diff_files_LIBS := pandodcore vmmdisk store systemdjobs kvmprobe wire common
test_diff_files_PKGS := cmocka libsodium libzstd
$(B)/tests/test_diff_files: | $(B)/libexec/pando/pando-fsdiff

# What a VMM says of its CPUs. The corpus is that of the whole state.
FUZZERS += fuzz_commit_cpu
fuzz_commit_cpu_SRCS := tests/fuzz/fuzz_commit_cpu.c host/commit/commit_cpu.c common/wire/blob.c common/wire/cpu_features.c common/err.c common/utf8.c common/json.c
fuzz_commit_cpu_CORPUS := tests/fuzz/corpus/snapshot

FUZZERS += fuzz_http_body
fuzz_http_body_SRCS := tests/fuzz/fuzz_http_body.c host/api/request.c host/api/request_route.c host/vm/vm_spec.c host/vmmproc/vmmctl.c \
	common/err.c common/utf8.c common/io.c common/json.c common/log.c common/env.c
fuzz_http_body_CORPUS := tests/fuzz/corpus/http_body

-include host/cli/module.mk
