# The `pando` command: one file a verb.

# libcurl is called only in client.c; the swarm verb and the tests use it too.
LIBRARIES += pandoclient
pandoclient_SRCS := \
	host/client/client_path.c \
	host/client/client.c \
	host/client/client_vm.c \
	host/client/client_commit.c \
	host/client/project_config.c
pandoclient_PKGS := libcurl

# Everything of the command but its main(), so that tests can link it.
LIBRARIES += pandocli
pandocli_SRCS += \
	host/cli/near.c \
	host/cli/out.c \
	host/cli/verb.c \
	host/cli/opt_common.c \
	host/cli/help.c \
	host/cli/opt.c \
	host/cli/verbs.c \
	host/cli/pick.c \
	host/cli/doctor.c \
	host/cli/doctor_find.c \
	host/cli/doctor_vm.c \
	host/cli/logs.c \
	host/cli/execute.c \
	host/cli/verbs/cmd_help.c \
	host/cli/verbs/cmd_version.c \
	host/cli/verbs/cmd_completion.c \
	host/cli/verbs/cmd_run.c \
	host/cli/verbs/cmd_status.c \
	host/cli/verbs/cmd_info.c \
	host/cli/verbs/cmd_tree.c \
	host/cli/verbs/cmd_execute.c \
	host/cli/verbs/cmd_branch.c \
	host/cli/verbs/cmd_copy.c \
	host/cli/verbs/cmd_logs.c \
	host/cli/verbs/cmd_alias.c \
	host/cli/verbs/cmd_pause.c \
	host/cli/verbs/cmd_delete.c \
	host/cli/verbs/cmd_disk.c \
	host/cli/verbs/cmd_doctor.c \
	host/cli/verbs/cmd_swarm.c \
	host/cli/verbs/cmd_machine.c \
	host/cli/verbs/cmd_stop.c \
	host/cli/verbs/cmd_reset.c \
	host/cli/verbs/cmd_resize.c \
	host/cli/verbs/cmd_limit.c \
	host/cli/verbs/cmd_checkout.c \
	host/cli/head.c \
	host/cli/verbs/cmd_commit.c \
	host/cli/verbs/cmd_run_commit.c \
	host/cli/verbs/cmd_history.c \
	host/cli/verbs/cmd_tag.c \
	host/cli/verbs/cmd_diff.c \
	host/cli/verbs/cmd_verify.c \
	host/cli/verbs/cmd_gc.c \
	host/cli/verbs/cmd_prune.c \
	host/cli/points.c \
	host/cli/fan.c \
	host/cli/tree_commit.c \
	host/cli/tree_gaps.c \
	host/cli/verbs/cmd_env.c \
	host/cli/env_option.c \
	host/cli/verbs/cmd_rpc.c \
	host/cli/verbs/cmd_reports.c \
	host/cli/verbs/cmd_connect.c \
	host/cli/verbs/cmd_tunnel.c \
	host/cli/gone.c \
	host/cli/tunnel.c \
	host/cli/many.c

PROGRAMS += pando
pando_SRCS := host/cli/pando.c
pando_LIBS := pandocli machine swarm pandoclient agentclient vmmdisk store kvmprobe wire common
pando_PKGS := libcurl libsodium libssh
pando_LDLIBS := -lm

UNIT_TESTS += test_cli test_config test_client
test_cli_SRCS := tests/unit/test_cli.c
test_cli_LIBS := $(pando_LIBS)
test_cli_PKGS := cmocka $(pando_PKGS)
test_cli_LDLIBS := $(pando_LDLIBS)
test_config_SRCS := tests/unit/test_config.c
test_config_LIBS := pandoclient kvmprobe wire common
test_config_PKGS := cmocka libcurl
test_client_SRCS := tests/unit/test_client.c
test_client_LIBS := pandoclient kvmprobe wire common
test_client_PKGS := cmocka libcurl

# Manual pages and completions, where a prefix has them.
DATA += share/man/man1/pando.1 share/man/man5/pando.toml.5 \
	share/bash-completion/completions/pando share/zsh/site-functions/_pando

$(B)/share/man/man1/pando.1: host/cli/man/pando.1
	@mkdir -p $(@D)
	install -m 0644 $< $@

$(B)/share/man/man5/pando.toml.5: host/cli/man/pando.toml.5
	@mkdir -p $(@D)
	install -m 0644 $< $@

$(B)/share/bash-completion/completions/pando: $(B)/bin/pando
	@mkdir -p $(@D)
	$< completion bash >$@

$(B)/share/zsh/site-functions/_pando: $(B)/bin/pando
	@mkdir -p $(@D)
	$< completion zsh >$@

# The two programs as they are shipped, the one speaking to the other.
stand_in_SRCS := tests/unit/stand_in.c tests/unit/agent_help.c
UNIT_TESTS += test_connect test_tunnel test_terminal
test_connect_SRCS := tests/unit/test_connect.c $(stand_in_SRCS)
test_tunnel_SRCS := \
	tests/unit/test_tunnel.c \
	$(stand_in_SRCS) \
	host/cli/tunnel.c \
	host/cli/out.c
test_terminal_SRCS := tests/unit/test_terminal.c
$(foreach t,test_connect test_tunnel test_terminal,\
	$(eval $(t)_LIBS := agentclient wire common)$(eval $(t)_PKGS := cmocka))
$(B)/tests/test_connect $(B)/tests/test_tunnel: | $(B)/bin/pando $(B)/libexec/pando/pando-agent

UNIT_TESTS += test_execute
test_execute_SRCS := tests/unit/test_execute.c $(stand_in_SRCS)
test_execute_LIBS := agentclient wire common
test_execute_PKGS := cmocka
$(B)/tests/test_execute: | $(B)/bin/pando $(B)/libexec/pando/pando-agent
UNIT_TESTS += test_copy
test_copy_SRCS := \
	tests/unit/test_copy.c \
	tests/unit/tar_help.c \
	$(stand_in_SRCS)
test_copy_LIBS := agentclient wire common
test_copy_PKGS := cmocka
$(B)/tests/test_copy: | $(B)/bin/pando $(B)/libexec/pando/pando-agent
UNIT_TESTS += test_habits
test_habits_SRCS := tests/unit/test_habits.c $(stand_in_SRCS)
test_habits_LIBS := agentclient wire common
test_habits_PKGS := cmocka
$(B)/tests/test_habits: | $(B)/bin/pando $(B)/libexec/pando/pando-agent
UNIT_TESTS += test_rpc_cli
test_rpc_cli_SRCS := tests/unit/test_rpc_cli.c $(stand_in_SRCS)
test_rpc_cli_LIBS := agentclient wire common
test_rpc_cli_PKGS := cmocka
$(B)/tests/test_rpc_cli: | $(B)/bin/pando $(B)/libexec/pando/pando-agent

# SSH into VMs.
pandocli_SRCS += \
	host/cli/remote.c \
	host/cli/vmssh.c \
	host/cli/vmssh_copy.c \
	host/cli/verbs/cmd_ssh_proxy.c \
	host/cli/verbs/cmd_ssh_config.c
UNIT_TESTS += test_ssh
test_ssh_SRCS := \
	tests/unit/test_ssh.c \
	$(stand_in_SRCS) \
	host/ssh/ssh_key.c
test_ssh_LIBS := $(pando_LIBS)
test_ssh_PKGS := cmocka $(pando_PKGS)
test_ssh_LDLIBS := $(pando_LDLIBS)
$(B)/tests/test_ssh: | $(B)/bin/pando $(B)/libexec/pando/pando-agent
# What a guest says of itself, judged; runs the agent that was built beside it.
UNIT_TESTS += test_doctor_vm
test_doctor_vm_SRCS := tests/unit/test_doctor_vm.c tests/unit/agent_help.c
test_doctor_vm_LIBS := $(pando_LIBS)
test_doctor_vm_PKGS := cmocka $(pando_PKGS)
test_doctor_vm_LDLIBS := $(pando_LDLIBS)
$(B)/tests/test_doctor_vm: | $(B)/libexec/pando/pando-agent

FUZZERS += fuzz_doctor_guest
fuzz_doctor_guest_SRCS := \
	tests/fuzz/fuzz_doctor_guest.c \
	host/cli/doctor_find.c \
	host/cli/doctor_vm.c \
	host/cli/out.c \
	common/err.c \
	common/utf8.c \
	common/io.c \
	common/json.c
fuzz_doctor_guest_CORPUS := tests/fuzz/corpus/doctor_guest

# The manual and the completion say all that --help says.
UNIT_TESTS += test_manual
test_manual_SRCS := tests/unit/test_manual.c
test_manual_LIBS := $(pando_LIBS)
test_manual_PKGS := cmocka $(pando_PKGS)
test_manual_LDLIBS := $(pando_LDLIBS)
$(B)/tests/test_manual: | $(B)/share/man/man1/pando.1 $(B)/share/bash-completion/completions/pando \
	$(B)/share/zsh/site-functions/_pando
