# The agent's protocol from the host's side.
LIBRARIES += agentclient
agentclient_SRCS := \
	host/agent/agent_client.c \
	host/agent/agent_copy.c \
	host/agent/agent_exec.c \
	host/agent/agent_handshake.c \
	host/agent/agent_terminal.c \
	host/agent/agent_dial.c \
	host/agent/terminal.c \
	host/agent/terminal_text.c \
	host/agent/agent_rpc.c \
	host/agent/agent_report.c
