/*
 * What a VMM is handed: its folder with sockets, console and log, its disk segment, and
 * the process itself. pandod opens everything; the VMM opens nothing.
 */
#ifndef PANDO_HOST_VMMPROC_LAUNCH_H
#define PANDO_HOST_VMMPROC_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/wire/vmm_wire.h"

/* A VM's folder <home>/vms/<id>, opened. All owned, -1: none. */
struct vm_files {
	int listen_fd;	/* control.sock, SOCK_SEQPACKET, listening */
	int vsock_fd;	/* agent.sock, SOCK_STREAM, listening */
	int console_fd; /* empty */
	int log_fd;	/* append */
};
#define VM_FILES_INIT \
	{ \
		.listen_fd = -1, .vsock_fd = -1, .console_fd = -1, .log_fd = -1 \
	}

void vm_files_done(struct vm_files *f);
#define cleanup_vm_files __attribute__((cleanup(vm_files_done)))

/* Makes the folder; what was made is removed again on failure. ret: VM_FILES_INIT. */
int launch_files(const char *home, const char *id, struct vm_files *ret, struct err *e);
/* The same in a folder that is there: its sockets are made anew, its console and log are
 * kept as console.old and vmm.log.old. */
int launch_files_again(
	const char *home, const char *id, struct vm_files *ret, struct err *e);
/* Removes the folder and all in it; fine if it is not there. */
int launch_remove_files(const char *home, const char *id, struct err *e);

/* A new disk segment as a VMM is handed it: enum vmm_seg_fd. All owned, -1: none. */
struct vm_segment {
	int fd[VMM_SEG_FDS];
};
#define VM_SEGMENT_INIT \
	{ \
		{ \
			-1, -1, -1, -1 \
		} \
	}
void vm_segment_done(struct vm_segment *s);
#define cleanup_vm_segment __attribute__((cleanup(vm_segment_done)))
/* Puts its descriptors where they belong in a message. */
void vm_segment_put(const struct vm_segment *s, int *fds);

/* <home>/segments/<name>.{data,index}, new and empty. ret: VM_SEGMENT_INIT. */
int launch_segment(
	const char *home, const char *name, struct vm_segment *ret, struct err *e);
void launch_remove_segment(const char *home, const char *name);

/*
 * Starts a VMM, or pando-fill, with a control socket as descriptor 3, /dev/null as 0 and 1, log_fd as
 * 2, nothing else open, no environment, a session of its own. *ret_control: our end
 * (SOCK_SEQPACKET). The process is our child: its pid is not reused before somebody waits
 * for *ret_pidfd. name: its argv[0].
 */
int launch_spawn(const char *program, const char *name, int log_fd, int *ret_control,
	pid_t *ret_pid, int *ret_pidfd, struct err *e);

/* A fresh pair for a VMM that another VMM forks. */
int launch_control_pair(int *ret_ours, int *ret_theirs, struct err *e);

/*
 * Processes. A pid alone is not a process: it may be another one's by now.
 */
/* Fields of /proc/<pid>/stat; -ESRCH when there is none, or it is a zombie. */
int process_look(pid_t pid, pid_t *ret_ppid, uint64_t *ret_start);
/* A pidfd that is certain to be the process that started at `start` (field 22). */
int process_open(pid_t pid, uint64_t start, int *ret_pidfd);
bool process_lives(int pidfd);
/* Descriptors are given out from below, so one's number tells how many are open. Whether
 * as many as are kept for serving calls are still free, with `more` to be opened: without
 * those nobody could ask for a VM to be deleted. */
bool descriptors_left(int fd, unsigned more);
void process_kill(int pidfd); /* SIGKILL */

#endif
