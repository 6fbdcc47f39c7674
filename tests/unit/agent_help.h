/*
 * For tests that start the shipped pando-agent themselves, with no VM around it and
 * perhaps with a folder of the test's own in the place of its "/". Failures are cmocka's.
 */
#ifndef PANDO_TESTS_UNIT_AGENT_HELP_H
#define PANDO_TESTS_UNIT_AGENT_HELP_H

#include <stdbool.h>
#include <sys/types.h>

/* The agent that was built beside the test. */
const char *agent_help_program(void);
/* Starts it on a Unix socket and waits until it answers. root: in the place of "/" (NULL:
 * none). enter() (NULL: none) runs in the agent's own process before it; where it says
 * false there is no agent, and 0 is returned. */
pid_t agent_help_start(const char *sock, const char *root, bool (*enter)(void));
/* Sends the signal and waits for the end; what holds its commands is killed, too. Nothing where *pid is 0, which it is then. */
void agent_help_end(pid_t *pid, int signo);

/* A file below root, with the folders it lies in. */
void agent_help_put(const char *root, const char *path, const char *text, mode_t mode);
/* Makes root, a template of mkdtemp(), with the folders that kept coding agents need. */
void agent_help_make_root(char *root);

#endif
