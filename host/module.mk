# host: pandod; host/cli/module.mk adds the `pando` command.

# What both pandod and pando need, and what the tests link.
LIBRARIES += pandohost
pandohost_SRCS := host/paths.c host/request.c host/image.c host/vmmctl.c

-include host/cli/module.mk
