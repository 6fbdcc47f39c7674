# guest-agent: pando-agent, and the host's side of its protocol.
PROGRAMS += pando-agent
pando-agent_DIR := libexec/pando
pando-agent_SRCS := guest-agent/main.c guest-agent/conn.c guest-agent/exec.c guest-agent/files.c \
	guest-agent/loop.c guest-agent/reap.c guest-agent/request.c guest-agent/ring.c \
	guest-agent/spawn.c guest-agent/userdb.c
pando-agent_LIBS := agentwire common
# Static: one file for guests of any suite, and only the pages of libc that it uses. The sanitizers cannot have it.
pando-agent_LDFLAGS := $(if $(SAN),,-static)

# What both ends share.
LIBRARIES += agentwire
agentwire_SRCS := common/agent_frame.c common/json_bytes.c common/tar_pack.c common/tar_unpack.c

LIBRARIES += agentclient
agentclient_SRCS := host/agent_client.c host/agent_copy.c host/agent_exec.c

# Runs the agent that was built beside it.
UNIT_TESTS += test_agent
test_agent_SRCS := tests/unit/test_agent.c
test_agent_LIBS := agentclient agentwire common
test_agent_PKGS := cmocka
$(B)/tests/test_agent: | $(B)/libexec/pando/pando-agent
