# Processes of VMMs.
pandovm_SRCS += \
	host/vmmproc/launch.c \
	host/vmmproc/vmmctl.c

# Whether this host's KVM boots Linux, asked by pandod and by `pando doctor`.
LIBRARIES += kvmprobe
kvmprobe_SRCS := host/vmmproc/kvm_probe.c

UNIT_TESTS += test_kvm_probe
test_kvm_probe_SRCS := tests/unit/test_kvm_probe.c
test_kvm_probe_LIBS := kvmprobe wire common
test_kvm_probe_PKGS := cmocka
