# VMs, and what is known of them.
pandovm_SRCS += \
	host/vm/adopt.c \
	host/vm/agent_wait.c \
	host/vm/batch.c \
	host/vm/branch.c \
	host/vm/chain_files.c \
	host/vm/create.c \
	host/vm/db.c \
	host/vm/delete.c \
	host/vm/frozen_fork.c \
	host/vm/guest.c \
	host/vm/handshake.c \
	host/vm/image.c \
	host/vm/lifecycle.c \
	host/vm/limits.c \
	host/vm/mem_target.c \
	host/vm/merge.c \
	host/vm/merge_dead.c \
	host/vm/merge_plan.c \
	host/vm/merge_swap.c \
	host/vm/reset_row.c \
	host/vm/reboot.c \
	host/vm/reports.c \
	host/vm/reports_watch.c \
	host/vm/tree.c \
	host/vm/tree_show.c \
	host/vm/tree_sync.c \
	host/vm/tree_watch.c \
	host/vm/usage.c \
	host/vm/vm_spec.c

UNIT_TESTS += test_image
test_image_SRCS := tests/unit/test_image.c
test_image_LIBS := pandovm wire common
test_image_PKGS := cmocka

UNIT_TESTS += test_db
test_db_SRCS := tests/unit/test_db.c
test_db_LIBS := pandovm wire common
test_db_PKGS := cmocka sqlite3

UNIT_TESTS += test_full_btrfs
test_full_btrfs_SRCS := tests/unit/test_full_btrfs.c
test_full_btrfs_LIBS := pandovm wire common
test_full_btrfs_PKGS := cmocka sqlite3

UNIT_TESTS += test_merge_plan
test_merge_plan_SRCS := tests/unit/test_merge_plan.c host/vm/merge_plan.c
test_merge_plan_PKGS := cmocka

UNIT_TESTS += test_tree
test_tree_SRCS := tests/unit/test_tree.c tests/unit/tree_help.c tests/unit/fake_vmm.c
test_tree_LIBS := pandovm vmmdisk systemdjobs kvmprobe wire common
test_tree_PKGS := cmocka sqlite3 libsodium libsystemd

UNIT_TESTS += test_power_cut
test_power_cut_SRCS := tests/unit/test_power_cut.c tests/unit/tree_help.c tests/unit/fake_vmm.c
test_power_cut_LIBS := pandovm vmmdisk systemdjobs kvmprobe wire common
test_power_cut_PKGS := cmocka sqlite3 libsodium libsystemd
