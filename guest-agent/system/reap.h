/*
 * Ends everything a command started. With control groups (v2) a command that has a time
 * limit lives in a group of its own below the agent's, and the kernel kills all of it at
 * once, whatever it forked or which sessions it made. Without, the process group, the
 * session and all descendants that /proc shows are killed until none is left; a process
 * that left the session and whose parent is gone already is not found then.
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_REAP_H
#define PANDO_GUEST_AGENT_SYSTEM_REAP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Finds the agent's own group; without one, or where it may make none below, the other
 * way is taken. */
void reap_init(void);
/* A number that no command has, for what is none: 2^63 or more. */
uint64_t reap_group_number(void);
/* A new group for command `num`, a number never used before: its open folder, or -1. */
int reap_group_make(uint64_t num);
/* One that is there: made by an agent before this one. */
int reap_group_open(uint64_t num);
/* Kills. group_fd may be -1. pid is the command's, still unreaped: its number cannot mean
 * another process. */
void reap_kill(pid_t pid, int group_fd);
/* Removes the group when it is empty; one that is not is tried again with later ones.
 * Closes group_fd. */
void reap_group_drop(uint64_t num, int group_fd);

/* Kills all that descends from pid, which itself goes on, as the calling process does. Of
 * a pid that is a subreaper (PR_SET_CHILD_SUBREAPER) that is also what detached itself. */
void reap_kill_below(pid_t pid);

/* Of an SSH server that serves one connection: kills it and all that was started over it,
 * also in the group that systemd gave that login. */
void reap_kill_login(pid_t pid, int group_fd);

/*
 * Groups that outlive the process that made them, for the programs of coding agents.
 */
#define REAP_PATH_MAX 1200
/* A new one, beside the caller's own: its open folder, and its path; or -1. */
int reap_named_make(const char *name, char path[static REAP_PATH_MAX]);
/* Kills all that is in it, waits until that is gone (at most a second) and removes it.
 * True also when it is not there any more; false when it must be done in the other way. */
bool reap_named_end(const char *path);

#endif
