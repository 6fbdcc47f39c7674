# Processes of VMMs.
pandovm_SRCS += \
	host/vmmproc/launch.c \
	host/vmmproc/process_progress.c \
	host/vmmproc/vmmctl.c

UNIT_TESTS += test_vmmctl
test_vmmctl_SRCS := tests/unit/test_vmmctl.c
test_vmmctl_LIBS := pandovm wire common
test_vmmctl_PKGS := cmocka

# Whether this host's KVM boots Linux, asked by pandod and by `pando doctor`.
LIBRARIES += kvmprobe
kvmprobe_SRCS := host/vmmproc/kvm_probe.c

UNIT_TESTS += test_kvm_probe
test_kvm_probe_SRCS := tests/unit/test_kvm_probe.c
test_kvm_probe_LIBS := kvmprobe wire common
test_kvm_probe_PKGS := cmocka
