# The daemon: its main() and what it opens and closes.
pandodcore_SRCS += \
	host/pandod/daemon_config.c

PROGRAMS += pandod
pandod_SRCS := host/pandod/pandod.c
pandod_LIBS := pandodcore agentclient vmmdisk store systemdjobs kvmprobe wire common
pandod_PKGS := libmicrohttpd sqlite3 libsodium libzstd libsystemd
