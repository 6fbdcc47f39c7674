/*
 * Ends everything a command started. With control groups (v2) a command that has a time
 * limit lives in a group of its own below the agent's, and the kernel kills all of it at
 * once, whatever it forked or which sessions it made. Without, the process group, the
 * session and all descendants that /proc shows are killed until none is left; a process
 * that left the session and whose parent is gone already is not found then.
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_REAP_H
#define PANDO_GUEST_AGENT_SYSTEM_REAP_H

#include <stdint.h>
#include <sys/types.h>

/* Finds the agent's own group; without one, or where it may make none below, the other
 * way is taken. */
void reap_init(void);
/* A new group for command `num`: its open folder, or -1. */
int reap_group_make(uint64_t num);
/* Kills. group_fd may be -1. pid is the command's, still unreaped: its number cannot mean
 * another process. */
void reap_kill(pid_t pid, int group_fd);
/* Removes the group when it is empty; one that is not is tried again with later ones.
 * Closes group_fd. */
void reap_group_drop(uint64_t num, int group_fd);

#endif
