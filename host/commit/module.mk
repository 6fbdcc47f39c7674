# Commits of VMs, and VMs of commits.
pandocommit_SRCS += \
	host/commit/commit.c \
	host/commit/commit_cpu.c \
	host/commit/commit_read.c \
	host/commit/commit_track.c \
	host/commit/commits.c \
	host/commit/commits_care.c \
	host/commit/commits_delete.c \
	host/commit/commits_list.c \
	host/commit/commits_open.c \
	host/commit/commits_prune.c \
	host/commit/commits_use.c \
	host/commit/diff_files.c \
	host/commit/disk_changes.c \
	host/commit/fill.c \
	host/commit/materialize.c \
	host/commit/pool.c \
	host/commit/run_commit.c \
	host/commit/reset_to.c

UNIT_TESTS += test_commits
test_commits_SRCS := tests/unit/test_commits.c
test_commits_LIBS := pandocommit pandovm agentclient vmmdisk store systemdjobs kvmprobe wire common
test_commits_PKGS := cmocka sqlite3 libsodium libzstd libsystemd

UNIT_TESTS += test_commit
test_commit_SRCS := tests/unit/test_commit.c
test_commit_LIBS := pandocommit pandovm agentclient vmmdisk store systemdjobs kvmprobe wire common
test_commit_PKGS := cmocka sqlite3 libsodium libzstd libsystemd

UNIT_TESTS += test_disk_changes
test_disk_changes_SRCS := tests/unit/test_disk_changes.c tests/unit/store_help.c
test_disk_changes_LIBS := pandocommit pandovm vmmdisk store wire common
test_disk_changes_PKGS := cmocka libsodium libzstd sqlite3

UNIT_TESTS += test_diff_files
test_diff_files_SRCS := tests/unit/test_diff_files.c
test_diff_files_LIBS := pandocommit pandovm vmmdisk store wire common
test_diff_files_PKGS := cmocka libsodium libzstd sqlite3
$(B)/tests/test_diff_files: | $(B)/libexec/pando/pando-fsdiff

# What a VMM says of its CPUs. The corpus is that of the whole state.
FUZZERS += fuzz_commit_cpu
fuzz_commit_cpu_SRCS := \
	tests/fuzz/fuzz_commit_cpu.c \
	host/commit/commit_cpu.c \
	common/wire/blob.c \
	common/wire/cpu_features.c \
	common/err.c \
	common/utf8.c \
	common/json.c
fuzz_commit_cpu_CORPUS := tests/fuzz/corpus/snapshot
