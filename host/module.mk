# host: pandod, the `pando` command and the test machine; each folder's module.mk says what is in it.

# All of pandod but its main(), in three libraries. Each calls only those to its right, and a test that
# is linked with fewer shows it: pandodcore (api/, pandod/), pandocommit (commit/), pandovm (vm/, vmmproc/,
# scope/, ssh/). libsystemd is called only in scope/bus.c and common/systemd.c.
LIBRARIES += pandodcore pandocommit pandovm
pandodcore_PKGS := libmicrohttpd
pandodcore_SRCS :=
pandocommit_SRCS :=
pandovm_PKGS := sqlite3 libsystemd
pandovm_SRCS :=

include $(addprefix host/,$(addsuffix /module.mk,\
	agent vmmproc scope store fill vm commit commit/fsdiff api pandod testvm ssh cli))
