# host: pandod; host/cli/module.mk adds the `pando` command.

# What both pandod and pando need, and what the tests link.
LIBRARIES += pandohost
pandohost_SRCS := host/paths.c

# All of pandod but its main().
LIBRARIES += pandodcore
pandodcore_PKGS := libmicrohttpd sqlite3
pandodcore_SRCS := host/request.c host/image.c host/vmmctl.c host/launch.c host/db.c \
	host/tree.c host/create.c host/branch.c host/adopt.c host/api.c

PROGRAMS += pandod
pandod_SRCS := host/pandod.c
pandod_LIBS := pandodcore agentclient agentwire pandohost common
pandod_PKGS := libmicrohttpd sqlite3

UNIT_TESTS += test_tree
test_tree_SRCS := tests/unit/test_tree.c tests/unit/fake_vmm.c
test_tree_LIBS := pandodcore pandohost common
test_tree_PKGS := cmocka libmicrohttpd sqlite3

-include host/cli/module.mk
