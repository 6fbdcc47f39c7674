# guest-agent: pando-agent, and the host's side of its protocol.
agent_rpc_parts_SRCS := $(addprefix guest-agent/rpc_,conf.c proto.c journal.c place.c spool.c)
agent_rpc_SRCS := $(agent_rpc_parts_SRCS) $(addprefix guest-agent/,commands.c doctor.c report.c rpc.c rpc_follow.c \
	rpc_holder.c rpc_input.c rpc_revive.c rpc_keeper.c rpc_watch.c)
agent_rpc_SRCS += guest-agent/files_main.c
PROGRAMS += pando-agent
pando-agent_DIR := libexec/pando
pando-agent_SRCS := guest-agent/main.c guest-agent/conn.c guest-agent/conn_ask.c guest-agent/conn_out.c \
	guest-agent/exec.c guest-agent/files.c \
	guest-agent/loop.c guest-agent/reap.c guest-agent/request.c guest-agent/ring.c \
	guest-agent/spawn.c guest-agent/userdb.c guest-agent/become.c guest-agent/hello.c \
	guest-agent/helper.c guest-agent/identity.c guest-agent/machine.c guest-agent/sshkey.c \
	guest-agent/units.c guest-agent/agents.c guest-agent/watch.c guest-agent/peer.c guest-agent/tty.c guest-agent/dial.c
pando-agent_SRCS += $(agent_rpc_SRCS)
pando-agent_SRCS += guest-agent/hostkey.c guest-agent/sshd.c
pando-agent_LIBS := agentwire common
# libsodium is called only in sshkey.c, which pandod links too.
pando-agent_LDLIBS := -lsodium
# Static: one file for guests of any suite, and only the pages of libc that it uses. The sanitizers cannot have it.
pando-agent_LDFLAGS := $(if $(SAN),,-static)

# What both ends share.
LIBRARIES += agentwire
agentwire_SRCS := common/agent_frame.c common/json_bytes.c common/tar_pack.c common/tar_unpack.c \
	guest-agent/rpc_json.c

LIBRARIES += agentclient
agentclient_SRCS := host/agent_client.c host/agent_copy.c host/agent_exec.c host/agent_hello.c \
	host/agent_terminal.c host/agent_dial.c host/terminal.c host/terminal_text.c \
	host/agent_rpc.c host/agent_report.c

# Runs the agent that was built beside it.
UNIT_TESTS += test_agent
test_agent_SRCS := tests/unit/test_agent.c tests/unit/agent_help.c
test_agent_LIBS := agentclient agentwire common
test_agent_PKGS := cmocka
$(B)/tests/test_agent: | $(B)/libexec/pando/pando-agent

UNIT_TESTS += test_agent_parts
test_agent_parts_SRCS := tests/unit/test_agent_parts.c guest-agent/reap.c guest-agent/request.c \
	guest-agent/ring.c guest-agent/userdb.c guest-agent/hello.c guest-agent/machine.c guest-agent/peer.c
test_agent_parts_LIBS := agentwire common
test_agent_parts_PKGS := cmocka

UNIT_TESTS += test_agent_tar
test_agent_tar_SRCS := tests/unit/test_agent_tar.c
test_agent_tar_LIBS := agentwire common
test_agent_tar_PKGS := cmocka

agent_fuzz_SRCS := common/agent_frame.c common/json_bytes.c common/tar_pack.c common/tar_unpack.c \
	common/err.c common/io.c common/json.c common/log.c common/env.c common/text.c
FUZZERS += fuzz_agent_request fuzz_agent_frames_guest fuzz_agent_frames_host
fuzz_agent_request_SRCS := tests/fuzz/fuzz_agent_request.c guest-agent/request.c \
	guest-agent/hello.c $(agent_fuzz_SRCS)
fuzz_agent_request_CORPUS := tests/fuzz/corpus/agent_request
fuzz_agent_frames_guest_SRCS := tests/fuzz/fuzz_agent_frames_guest.c \
	$(filter-out guest-agent/main.c $(agent_rpc_SRCS),$(pando-agent_SRCS)) $(agent_fuzz_SRCS)
fuzz_agent_frames_guest_LDLIBS := -lsodium
fuzz_agent_frames_guest_CORPUS := tests/fuzz/corpus/agent_frames_guest
fuzz_agent_frames_host_SRCS := tests/fuzz/fuzz_agent_frames_host.c host/agent_client.c $(agent_fuzz_SRCS)
fuzz_agent_frames_host_CORPUS := tests/fuzz/corpus/agent_frames_host

# The real agent, below a folder, and the host's side of a hello.
UNIT_TESTS += test_agent_hello
test_agent_hello_SRCS := tests/unit/test_agent_hello.c tests/unit/agent_help.c
test_agent_hello_LIBS := agentclient agentwire common
test_agent_hello_PKGS := cmocka libssh
$(B)/tests/test_agent_hello: | $(B)/libexec/pando/pando-agent

UNIT_TESTS += test_env
test_env_SRCS := tests/unit/test_env.c guest-agent/userdb.c guest-agent/machine.c
test_env_LIBS := common
test_env_PKGS := cmocka

FUZZERS += fuzz_agent_hello fuzz_env
fuzz_agent_hello_SRCS := tests/fuzz/fuzz_agent_hello.c guest-agent/request.c guest-agent/hello.c $(agent_fuzz_SRCS)
fuzz_agent_hello_CORPUS := tests/fuzz/corpus/agent_hello
fuzz_env_SRCS := tests/fuzz/fuzz_env.c guest-agent/userdb.c guest-agent/machine.c common/env.c common/err.c common/io.c common/log.c
fuzz_env_CORPUS := tests/fuzz/corpus/env

FUZZERS += fuzz_ssh_key
fuzz_ssh_key_SRCS := tests/fuzz/fuzz_ssh_key.c guest-agent/sshkey.c common/err.c
fuzz_ssh_key_PKGS := libsodium
fuzz_ssh_key_CORPUS := tests/fuzz/corpus/ssh_key

# Units, for the agent; libsystemd is called only in bus.c and common/systemd.c.
PROGRAMS += pando-units
pando-units_DIR := libexec/pando
pando-units_SRCS := guest-agent/units_main.c guest-agent/bus.c common/systemd.c
pando-units_LIBS := common
pando-units_PKGS := libsystemd

UNIT_TESTS += test_agent_bus
test_agent_bus_SRCS := tests/unit/test_agent_bus.c tests/unit/bus_help.c guest-agent/bus.c common/systemd.c
test_agent_bus_LIBS := common
test_agent_bus_PKGS := cmocka libsystemd
# Coding agents and their keeper: runs the agent that was built beside it.
UNIT_TESTS += test_rpc
test_rpc_SRCS := tests/unit/test_rpc.c tests/unit/agent_help.c $(agent_rpc_parts_SRCS)
test_rpc_LIBS := agentclient agentwire common
test_rpc_PKGS := cmocka
$(B)/tests/test_rpc: | $(B)/libexec/pando/pando-agent

# The same from the host's side.
UNIT_TESTS += test_agent_rpc
test_agent_rpc_SRCS := tests/unit/test_agent_rpc.c tests/unit/agent_help.c
test_agent_rpc_LIBS := agentclient agentwire common
test_agent_rpc_PKGS := cmocka
$(B)/tests/test_agent_rpc: | $(B)/libexec/pando/pando-agent

rpc_fuzz_SRCS := guest-agent/rpc_json.c $(agent_fuzz_SRCS)
FUZZERS += fuzz_rpc_conf fuzz_rpc_journal fuzz_rpc_line fuzz_rpc_frames
fuzz_rpc_conf_SRCS := tests/fuzz/fuzz_rpc_conf.c guest-agent/rpc_conf.c common/toml.c common/toml_scalar.c common/err.c common/io.c
fuzz_rpc_conf_CORPUS := tests/fuzz/corpus/rpc_conf
fuzz_rpc_journal_SRCS := tests/fuzz/fuzz_rpc_journal.c guest-agent/rpc_journal.c common/err.c common/io.c common/text.c
fuzz_rpc_journal_CORPUS := tests/fuzz/corpus/rpc_journal
fuzz_rpc_line_SRCS := tests/fuzz/fuzz_rpc_line.c guest-agent/rpc_proto.c $(agentclient_SRCS) $(rpc_fuzz_SRCS)
fuzz_rpc_line_CORPUS := tests/fuzz/corpus/rpc_line
fuzz_rpc_frames_SRCS := tests/fuzz/fuzz_rpc_frames.c $(agentclient_SRCS) $(rpc_fuzz_SRCS)
fuzz_rpc_frames_CORPUS := tests/fuzz/corpus/rpc_frames

UNIT_TESTS += test_rpc_parts
test_rpc_parts_SRCS := tests/unit/test_rpc_parts.c $(agent_rpc_parts_SRCS)
test_rpc_parts_LIBS := agentwire common
test_rpc_parts_PKGS := cmocka
