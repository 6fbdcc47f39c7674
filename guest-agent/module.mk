# guest-agent: pando-agent and pando-units.
agent_rpc_parts_SRCS := \
	guest-agent/supervisor/rpc_conf.c \
	guest-agent/supervisor/rpc_proto.c \
	guest-agent/supervisor/rpc_journal.c \
	guest-agent/supervisor/rpc_place.c \
	guest-agent/supervisor/rpc_scan.c \
	guest-agent/supervisor/rpc_spool.c
agent_rpc_SRCS := \
	$(agent_rpc_parts_SRCS) \
	guest-agent/commands.c \
	guest-agent/tools/doctor_guest.c \
	guest-agent/supervisor/report.c \
	guest-agent/supervisor/rpc.c \
	guest-agent/supervisor/rpc_follow.c \
	guest-agent/supervisor/shim.c \
	guest-agent/supervisor/rpc_input.c \
	guest-agent/supervisor/revive.c \
	guest-agent/supervisor/supervisor.c \
	guest-agent/supervisor/rpc_watch.c
agent_rpc_SRCS += guest-agent/tools/files_main.c
PROGRAMS += pando-agent
pando-agent_DIR := libexec/pando
pando-agent_SRCS := \
	guest-agent/main.c \
	guest-agent/server/conn.c \
	guest-agent/server/conn_ask.c \
	guest-agent/server/conn_out.c \
	guest-agent/server/conn_table.c \
	guest-agent/server/exec.c \
	guest-agent/server/files.c \
	guest-agent/server/put.c \
	guest-agent/server/finish.c \
	guest-agent/server/exec_shim.c \
	guest-agent/system/loop.c \
	guest-agent/system/reap.c \
	guest-agent/server/agent_request.c \
	guest-agent/system/ring.c \
	guest-agent/system/spawn.c \
	guest-agent/system/command_env.c \
	guest-agent/system/userdb.c \
	guest-agent/identity/apply.c \
	guest-agent/identity/identity_request.c \
	guest-agent/system/helper.c \
	guest-agent/identity/identity.c \
	guest-agent/system/guest_machine.c \
	guest-agent/identity/units.c \
	guest-agent/supervisor/restart.c \
	guest-agent/identity/watch.c \
	guest-agent/server/peer.c \
	guest-agent/system/tty.c \
	guest-agent/server/dial.c
pando-agent_SRCS += $(agent_rpc_SRCS)
pando-agent_SRCS += guest-agent/identity/hostkey.c guest-agent/server/sshd.c
pando-agent_LIBS := wire common
# For openssh_key.c.
pando-agent_LDLIBS := -lsodium
# Static: one file for guests of any suite, and only the pages of libc that it uses. The sanitizers cannot have it.
pando-agent_LDFLAGS := $(if $(SAN),,-static)

# Runs the agent that was built beside it.
UNIT_TESTS += test_agent
test_agent_SRCS := tests/unit/test_agent.c tests/unit/agent_help.c
test_agent_LIBS := agentclient wire common
test_agent_PKGS := cmocka
$(B)/tests/test_agent: | $(B)/libexec/pando/pando-agent

UNIT_TESTS += test_agent_parts
test_agent_parts_SRCS := \
	tests/unit/test_agent_parts.c \
	guest-agent/system/reap.c \
	guest-agent/server/agent_request.c \
	guest-agent/system/ring.c \
	guest-agent/system/userdb.c \
	guest-agent/identity/identity_request.c \
	guest-agent/system/guest_machine.c \
	guest-agent/server/peer.c \
	guest-agent/server/exec_shim.c \
	guest-agent/server/finish.c \
	guest-agent/system/spawn.c \
	guest-agent/system/loop.c
test_agent_parts_LIBS := wire common
test_agent_parts_PKGS := cmocka

UNIT_TESTS += test_agent_tar
test_agent_tar_SRCS := tests/unit/test_agent_tar.c tests/unit/tar_help.c
test_agent_tar_LIBS := wire common
test_agent_tar_PKGS := cmocka

agent_fuzz_SRCS := \
	common/wire/agent_frame.c \
	common/wire/json_bytes.c \
	common/wire/tar_pack.c \
	common/wire/tar_unpack.c \
	common/wire/tar_place.c \
	common/err.c \
	common/utf8.c \
	common/io.c \
	common/json.c \
	common/log.c \
	common/env.c \
	common/text.c
FUZZERS += fuzz_agent_request fuzz_agent_frames_guest fuzz_agent_frames_host
fuzz_agent_request_SRCS := \
	tests/fuzz/fuzz_agent_request.c \
	guest-agent/server/agent_request.c \
	guest-agent/identity/identity_request.c \
	$(agent_fuzz_SRCS)
fuzz_agent_request_CORPUS := tests/fuzz/corpus/agent_request
fuzz_agent_frames_guest_SRCS := \
	tests/fuzz/fuzz_agent_frames_guest.c \
	$(filter-out guest-agent/main.c $(agent_rpc_SRCS),$(pando-agent_SRCS)) \
	$(agent_fuzz_SRCS) \
	common/wire/openssh_key.c
fuzz_agent_frames_guest_LDLIBS := -lsodium
fuzz_agent_frames_guest_CORPUS := tests/fuzz/corpus/agent_frames_guest
fuzz_agent_frames_host_SRCS := \
	tests/fuzz/fuzz_agent_frames_host.c \
	host/agent/agent_client.c \
	$(agent_fuzz_SRCS)
fuzz_agent_frames_host_CORPUS := tests/fuzz/corpus/agent_frames_host
FUZZERS += fuzz_tar
fuzz_tar_SRCS := \
	tests/fuzz/fuzz_tar.c \
	common/wire/tar_unpack.c \
	common/wire/tar_place.c \
	common/wire/tar_pack.c \
	common/err.c \
	common/utf8.c \
	common/io.c
fuzz_tar_CORPUS := tests/fuzz/corpus/tar

# The real agent, below a folder, and the host's side of an identity handshake.
UNIT_TESTS += test_agent_handshake
test_agent_handshake_SRCS := tests/unit/test_agent_handshake.c tests/unit/agent_help.c
test_agent_handshake_LIBS := agentclient wire common
test_agent_handshake_PKGS := cmocka libssh
$(B)/tests/test_agent_handshake: | $(B)/libexec/pando/pando-agent

UNIT_TESTS += test_env
test_env_SRCS := tests/unit/test_env.c
test_env_LIBS := common
test_env_PKGS := cmocka

FUZZERS += fuzz_agent_handshake fuzz_env
fuzz_agent_handshake_SRCS := \
	tests/fuzz/fuzz_agent_handshake.c \
	guest-agent/server/agent_request.c \
	guest-agent/identity/identity_request.c \
	$(agent_fuzz_SRCS)
fuzz_agent_handshake_CORPUS := tests/fuzz/corpus/agent_handshake
fuzz_env_SRCS := \
	tests/fuzz/fuzz_env.c \
	common/env.c \
	common/err.c \
	common/utf8.c \
	common/io.c \
	common/log.c
fuzz_env_CORPUS := tests/fuzz/corpus/env

FUZZERS += fuzz_ssh_key
fuzz_ssh_key_SRCS := \
	tests/fuzz/fuzz_ssh_key.c \
	common/wire/openssh_key.c \
	common/err.c \
	common/utf8.c
fuzz_ssh_key_PKGS := libsodium
fuzz_ssh_key_CORPUS := tests/fuzz/corpus/ssh_key

# Units, for the agent; libsystemd is called only in unit_bus.c and common/systemd.c.
PROGRAMS += pando-units
pando-units_DIR := libexec/pando
pando-units_SRCS := guest-agent/tools/units_main.c guest-agent/tools/unit_bus.c
pando-units_LIBS := systemdjobs wire common
pando-units_PKGS := libsystemd

UNIT_TESTS += test_agent_bus
test_agent_bus_SRCS := \
	tests/unit/test_agent_bus.c \
	tests/unit/bus_help.c \
	guest-agent/tools/unit_bus.c
test_agent_bus_LIBS := systemdjobs wire common
test_agent_bus_PKGS := cmocka libsystemd
# Coding agents and their supervisor: runs the agent that was built beside it.
UNIT_TESTS += test_rpc
test_rpc_SRCS := \
	tests/unit/test_rpc.c \
	tests/unit/agent_help.c \
	$(agent_rpc_parts_SRCS)
test_rpc_LIBS := agentclient wire common
test_rpc_PKGS := cmocka
$(B)/tests/test_rpc: | $(B)/libexec/pando/pando-agent

# The same from the host's side.
UNIT_TESTS += test_agent_rpc
test_agent_rpc_SRCS := tests/unit/test_agent_rpc.c tests/unit/agent_help.c
test_agent_rpc_LIBS := agentclient wire common
test_agent_rpc_PKGS := cmocka
$(B)/tests/test_agent_rpc: | $(B)/libexec/pando/pando-agent

rpc_fuzz_SRCS := common/wire/json_line.c $(agent_fuzz_SRCS)
FUZZERS += fuzz_rpc_conf fuzz_rpc_journal fuzz_rpc_line fuzz_rpc_frames
fuzz_rpc_conf_SRCS := \
	tests/fuzz/fuzz_rpc_conf.c \
	guest-agent/supervisor/rpc_conf.c \
	common/toml.c \
	common/toml_scalar.c \
	common/err.c \
	common/utf8.c \
	common/io.c
fuzz_rpc_conf_CORPUS := tests/fuzz/corpus/rpc_conf
fuzz_rpc_journal_SRCS := \
	tests/fuzz/fuzz_rpc_journal.c \
	guest-agent/supervisor/rpc_journal.c \
	common/err.c \
	common/utf8.c \
	common/io.c \
	common/text.c
fuzz_rpc_journal_CORPUS := tests/fuzz/corpus/rpc_journal
fuzz_rpc_line_SRCS = \
	tests/fuzz/fuzz_rpc_line.c \
	guest-agent/supervisor/rpc_proto.c \
	$(agentclient_SRCS) \
	$(rpc_fuzz_SRCS)
fuzz_rpc_line_CORPUS := tests/fuzz/corpus/rpc_line
fuzz_rpc_frames_SRCS = \
	tests/fuzz/fuzz_rpc_frames.c \
	$(agentclient_SRCS) \
	$(rpc_fuzz_SRCS)
fuzz_rpc_frames_CORPUS := tests/fuzz/corpus/rpc_frames

UNIT_TESTS += test_rpc_parts
test_rpc_parts_SRCS := tests/unit/test_rpc_parts.c $(agent_rpc_parts_SRCS)
test_rpc_parts_LIBS := wire common
test_rpc_parts_PKGS := cmocka
