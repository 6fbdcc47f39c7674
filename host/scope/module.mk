# systemd's units and control groups of VMs.
pandovm_SRCS += \
	host/scope/bus.c \
	host/scope/cgroup.c \
	host/scope/scope.c

# A private D-Bus daemon, with a systemd and a machined of the test's own; control groups for real where they may be made.
UNIT_TESTS += test_scope
test_scope_SRCS := tests/unit/test_scope.c tests/unit/bus_help.c
test_scope_LIBS := pandovm systemdjobs kvmprobe wire common
test_scope_PKGS := cmocka libsystemd
