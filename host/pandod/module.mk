# The daemon: its main() and what it opens and closes.
pandodcore_SRCS += \
	host/pandod/daemon.c \
	host/pandod/daemon_config.c

PROGRAMS += pandod
pandod_SRCS := host/pandod/pandod.c
pandod_LIBS := pandodcore pandocommit pandovm agentclient vmmdisk store systemdjobs kvmprobe wire common
pandod_PKGS := libmicrohttpd sqlite3 libsodium libzstd libsystemd

UNIT_TESTS += test_daemon
test_daemon_SRCS := tests/unit/test_daemon.c
test_daemon_LIBS := $(pandod_LIBS)
test_daemon_PKGS := cmocka $(pandod_PKGS)
