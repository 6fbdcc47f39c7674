/*
 * Whether a process makes progress: its CPU time and its page faults as /proc/<pid>/stat has
 * them, all threads together. A process that is stopped, or sleeps, has none of either. A
 * process that spins has both: who waits for progress needs a ceiling as well.
 */
#ifndef PANDO_HOST_VMMPROC_PROCESS_PROGRESS_H
#define PANDO_HOST_VMMPROC_PROCESS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct process_progress {
	bool known;
	uint64_t cpu_ms, faults; /* since the process began */
};

/* Reads the figures of the pidfd's process into *p. True when one of them has moved since the
 * last look; false at the first look, and where they cannot be read (no process, no /proc). */
bool process_progress_look(int pidfd, struct process_progress *p);

#endif
