/*
 * One control connection to one VMM (common/wire/vmm_wire.h): pandod's end of it, and the only
 * code that reads what a VMM says.
 *
 * A hostile guest may own the VMM. Every message is checked for version, type, length and
 * descriptors (none may come); text is terminated and escaped here; who is talking is
 * taken from the kernel (SCM_CREDENTIALS on every message), never from the message. The
 * first wrong message breaks the connection for good: what follows is -EPROTO, and the
 * caller ends that VM.
 *
 * SO_PEERCRED is no help here: on a pair it names the maker of the pair, on an accepted
 * connection whoever called listen(), and both were a pandod.
 *
 * Calls are serialised by a lock inside; the thread that waits for an answer also takes
 * unasked messages and keeps them (vmmctl_exiting). A process that ends wakes the waiter
 * through its pidfd.
 *
 * A timeout_ms is the time in which the VMM's process, where its pidfd is known, makes no
 * progress: CPU time and page faults renew it (process_progress.h), up to VMMCTL_CEILING times
 * timeout_ms in all. So a busy host delays an answer and does not lose it. A stopped process
 * makes none. Only vmmctl_stats() has no more than its timeout_ms: it is a look that may be
 * repeated.
 */
#ifndef PANDO_HOST_VMMPROC_VMMCTL_H
#define PANDO_HOST_VMMPROC_VMMCTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/wire/vmm_wire.h"

#define VMMCTL_TEXT_MAX 512
/* Times timeout_ms: the longest wait for a VMM that works and does not answer. */
#define VMMCTL_CEILING 10

struct vmmctl;

/* Takes over fd (a connected SOCK_SEQPACKET Unix socket), also on failure. */
int vmmctl_create(int fd, struct vmmctl **ret, struct err *e);
void vmmctl_free(struct vmmctl *c); /* nobody may be inside; NULL is fine */
static inline void
vmmctl_free_fn(struct vmmctl **c)
{
	vmmctl_free(*c);
}
#define cleanup_vmmctl __attribute__((cleanup(vmmctl_free_fn)))

/* The descriptor, for an event loop; weak: valid as long as c is. */
int vmmctl_fd(const struct vmmctl *c);
/* Called after every exchange, without the lock: where the loop arms its one-shot watch
 * again. */
void vmmctl_on_idle(struct vmmctl *c, void (*idle)(void *ctx, uint64_t handle), void *ctx,
	uint64_t handle);
/* The process at the other end; duplicated. Waits then end with -ESRCH when it ends. */
int vmmctl_set_pidfd(struct vmmctl *c, int pidfd);

/* What every VMM starts with. fds are sent, not taken. */
int vmmctl_boot(struct vmmctl *c, struct vmm_boot *msg,
	const int fds[static VMM_BOOT_FD_COUNT], struct err *e);
/* Sends the request, waits for VMM_FORKED; ret's text is terminated. A refusal by the VMM
 * is an error with its sentence. *ret_uncertain (may be NULL): the request left but no
 * answer came, so that the fork may or may not have happened. */
int vmmctl_fork(struct vmmctl *c, struct vmm_fork *msg,
	const int fds[static VMM_FORK_FD_COUNT], int timeout_ms, struct vmm_forked *ret,
	bool *ret_uncertain, struct err *e);
/* Waits for VMM_STARTED, the first thing a VMM says after VMM_BOOT or a fork. *ret_pid:
 * the sender. */
int vmmctl_wait_started(struct vmmctl *c, int timeout_ms, struct vmm_started *ret,
	pid_t *ret_pid, struct err *e);
/* VMM_PAUSE, VMM_RESUME, VMM_POWER_BUTTON: waits for VMM_DONE. */
int vmmctl_command(
	struct vmmctl *c, enum vmm_msg_type type, int timeout_ms, struct err *e);
/* VMM_RESIZE: the guest sees a disk of that size once this returned. */
int vmmctl_resize(struct vmmctl *c, uint64_t disk_mib, int timeout_ms, struct err *e);
/* *ret_pid (may be NULL): the sender. try_only: -EAGAIN when another call is under way.
 */
int vmmctl_stats(struct vmmctl *c, int timeout_ms, bool try_only,
	struct vmm_stats_answer *ret, pid_t *ret_pid, struct err *e);
/* VMM_STATE: the frozen fork writes its state into blob_fd (empty, read-write). What comes
 * back is checked as far as its own numbers go: ranges that are page-aligned, add up to
 * mem_mib and do not wrap; a blob that is not larger than it may be. */
int vmmctl_state(struct vmmctl *c, int blob_fd, int timeout_ms,
	struct vmm_state_answer *ret, struct err *e);
/* VMM_PREPARE, the first message to a VMM that shall be pre-warmed; waits until it is. fds are
 * sent, not taken. */
int vmmctl_prepare(struct vmmctl *c, struct vmm_prepare *msg,
	const int fds[static VMM_PREPARE_FD_COUNT], int timeout_ms, struct err *e);
/* VMM_RESTORE, to a pre-warmed VMM or as the first message; vmmctl_wait_started() follows. */
int vmmctl_restore(struct vmmctl *c, struct vmm_restore *msg,
	const int fds[static VMM_RESTORE_FD_COUNT], struct err *e);
/* VMM_TRACK, after vmmctl_command(VMM_TRACK_OPEN). fds are sent, not taken. */
int vmmctl_track(struct vmmctl *c, const int fds[static VMM_TRACK_FD_COUNT], int timeout_ms,
	struct err *e);
/* VMM_COMMITTED. Its answer is not waited for: a VMM for which a later fork was tracked keeps the
 * base it had. */
int vmmctl_committed(struct vmmctl *c, struct vmm_committed *msg, struct err *e);
/* VMM_MERGED, to a VMM that knows it. fds are sent, not taken. *ret_refused: the VMM said that it
 * did not take it all; on other failures it may have. */
int vmmctl_merged(struct vmmctl *c, struct vmm_merged *msg,
	const int fds[static VMM_MERGED_FD_COUNT], int timeout_ms, bool *ret_refused,
	struct err *e);
/* VMM_QUIT; no answer comes. */
int vmmctl_quit(struct vmmctl *c, struct err *e);

/* Takes what has come unasked, without waiting. wait_lock false: -EAGAIN when a call is
 * under way (it will take it). 0 nothing more for now, -EPIPE the other end is closed,
 * -EPROTO nonsense came. */
int vmmctl_drain(struct vmmctl *c, bool wait_lock, struct err *e);

/* Has the VMM broken the protocol, and how. Never waits. */
bool vmmctl_broken(struct vmmctl *c, char *ret_why, size_t cap);
/* Last words, if any came. Never waits. */
bool vmmctl_exiting(struct vmmctl *c, uint32_t *ret_reason, char *ret_msg, size_t cap);

/* Exposed for its fuzzer and tests: checks one message of len bytes as it came. */
int vmmctl_check(const void *msg, size_t len, struct err *e);

#endif
