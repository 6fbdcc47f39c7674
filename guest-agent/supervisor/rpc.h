/*
 * `pando-agent rpc …`: what the host, or anybody in the machine, asks of a supervised coding
 * agent. Each call is a short process of its own, which the host runs like any other command
 * (/proc/self/exe is the agent there). A line of 16 MiB, a slow follower or a broken
 * connection therefore costs the agent itself nothing.
 *
 *	rpc start|stop|status|send|follow|watch [--root FOLDER] [options] [NAME]
 *
 * Without a name: the only one that /etc/pando/rpc.d describes. Answers are JSON on stdout,
 * sentences go to stderr, exit statuses are enum exit_code's; for `follow --until-done` 0 and
 * 1 are the prompt's. send and follow start a supervisor that was killed.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_H

/* argv[0] is "rpc". */
int rpc_main(int argc, char **argv);

#endif
