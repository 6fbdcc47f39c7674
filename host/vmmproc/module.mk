# Processes of VMMs.
pandovm_SRCS += \
	host/vmmproc/launch.c \
	host/vmmproc/vmmctl.c

# Whether this host's KVM boots Linux, asked by pandod and by `pando doctor`.
LIBRARIES += kvmprobe
kvmprobe_SRCS := host/vmmproc/kvm_probe.c
