# The test machine.
LIBRARIES += machine
machine_PKGS := libssh
machine_SRCS := \
	host/testvm/machine.c \
	host/testvm/machine_files.c \
	host/testvm/machine_make.c \
	host/testvm/machine_qemu.c \
	host/testvm/machine_copy.c \
	host/testvm/machine_project.c

UNIT_TESTS += test_machine
test_machine_SRCS := tests/unit/test_machine.c
test_machine_LIBS := machine wire common
test_machine_PKGS := cmocka libssh
test_machine_WRAP := ssh_link_run
