/*
 * The other programs that the pando-agent binary contains. The first word, or the name it is
 * called by (a link), selects one:
 *
 *	pando-agent rpc …            supervisor/rpc.h
 *	pando-agent rpc-keeper NAME  supervisor/supervisor.h; or a link <name>-keeper
 *	pando-agent report …         supervisor/report.h
 *	pando-agent files …          tools/files_main.h
 *	a link <name>-rpc            pando-agent rpc watch <name>
 */
#ifndef PANDO_GUEST_AGENT_COMMANDS_H
#define PANDO_GUEST_AGENT_COMMANDS_H

#include <stdbool.h>

/* True when it was one of them: *ret_status is what to exit with. */
bool commands_run(int argc, char **argv, int *ret_status);

#endif
