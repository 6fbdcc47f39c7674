/*
 * What a command left behind when it ended, and has its output open: whether that is about
 * to end, too. Looks into /proc at all that descends from a process.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_FINISH_H
#define PANDO_GUEST_AGENT_SERVER_FINISH_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum finish {
	FINISH_NEVER, /* that anybody could tell: it waits for something */
	FINISH_BUSY,  /* one of them runs, or would if there were a processor for it */
	FINISH_SOON,  /* one reads from a pipe that nobody can write to any more */
};
/* not_ino: a pipe that means nothing, the command's own standard input (0: none). */
enum finish finish_look(pid_t ancestor, uint64_t not_ino);
/* A sentence that says which stream is open (fd, or -1), and who has it if that is found. */
void finish_say_who(pid_t ancestor, int out_fd, int err_fd, char *dst, size_t cap);

#endif
