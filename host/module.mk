# host: pandod, the `pando` command and the test machine; each folder's module.mk says what is in it.

# All of pandod but its main(); api/, vm/, commit/, vmmproc/, scope/, ssh/ and pandod/ add to it.
LIBRARIES += pandodcore
# libsystemd is called only in scope/bus.c and common/systemd.c.
pandodcore_PKGS := libmicrohttpd sqlite3 libsystemd
pandodcore_SRCS :=

include $(addprefix host/,$(addsuffix /module.mk,\
	agent vmmproc scope store vm commit commit/fsdiff api pandod testvm ssh cli))
