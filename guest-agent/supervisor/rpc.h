/*
 * `pando-agent rpc …`: what the host asks of a kept coding agent, and what anybody in the
 * machine may. Each is a short process of its own, which the host runs as any other
 *command
 * (/proc/self/exe is the agent there): so a line of 16 MiB, a slow follower and a broken
 * connection are what they are for every command, and cost the agent itself nothing.
 *
 *	rpc start|stop|status|send|follow|watch [--root FOLDER] [options] [NAME]
 *
 * Without a name: the only one that is described in /etc/pando/rpc.d. Answers are JSON on
 * stdout, sentences go to stderr, exit statuses are enum exit_code's; of `follow
 * --until-done` 0 and 1 are the prompt's. send and follow start a supervisor anew
 *that was killed.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_H

/* argv[0] is "rpc". */
int rpc_main(int argc, char **argv);

#endif
