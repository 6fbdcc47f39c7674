/*
 * What pando-agent is besides the agent: programs of their own, by its first word or by
 *the name it is called (a link).
 *
 *	pando-agent rpc …            rpc.h
 *	pando-agent rpc-keeper NAME  supervisor.h; or a link <name>-keeper
 *	pando-agent report …         report.h
 *	pando-agent files …          files_main.h
 *	a link <name>-rpc            pando-agent rpc watch <name>
 */
#ifndef PANDO_GUEST_AGENT_COMMANDS_H
#define PANDO_GUEST_AGENT_COMMANDS_H

#include <stdbool.h>

/* True when it was one of them: *ret_status is what to exit with. */
bool commands_run(int argc, char **argv, int *ret_status);

#endif
