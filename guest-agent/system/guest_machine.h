/*
 * The machine the agent runs in: the few things about it that an identity handshake changes, each one
 * function. With a root folder that is not "/" (pando-agent --root, for trying it and for
 * tests) files are below that folder, and the calls that change the kernel do nothing.
 *
 * Writes here are atomic (a temporary file, then a rename) and not synced: after a power
 * cut the file is the old one or the new one, and the next start is followed by an identity handshake.
 *
 * A machine whose disk is full (or has no inode left) must get its identity all the same: a
 * branch without one is refused. So there are files that hold nothing but room, and a write for
 * which there is none goes into one of those, which then takes the file's place. Where even that
 * cannot be, content that fits into the file's own blocks is written there, not atomically.
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_GUEST_MACHINE_H
#define PANDO_GUEST_AGENT_SYSTEM_GUEST_MACHINE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

/* "" or "/": the machine itself. Borrowed. Once, at the start. */
void machine_set_root(const char *root);
bool machine_is_real(void);
/* The file of that absolute path; returns dst. */
const char *machine_path(char dst[static PATH_MAX], const char *path);

/* The text of a file, at most max bytes; -errno. */
int machine_read(const char *path, size_t max, char **ret, struct err *e);
/* In the place of whatever is there; its folder is made when it is missing. What is there
 * stays when this fails. A file that something is mounted on is written in place. */
int machine_write(
	const char *path, const void *buf, size_t len, mode_t mode, struct err *e);
/* Makes the files that hold room, or fills up what a write took of them; where it cannot be,
 * there is less room. */
void machine_keep_room(void);
/* The same inode, so that those who have it open or mapped see the new content. */
int machine_overwrite(
	const char *path, const void *buf, size_t len, mode_t mode, struct err *e);
/* 1 when it was there, 0 when not. */
int machine_remove(const char *path, struct err *e);

/* Into the kernel's generator, which then starts anew from it. */
int machine_reseed(const void *entropy, size_t len, struct err *e);
int machine_random(void *dst, size_t len, struct err *e);
/*
 * The real-time clock. What the host says is old by its way here, on a busy host by seconds, and
 * the agent cannot know by how much: beside it a clock that is right is ahead. A branch's clock is
 * right (kvm-clock goes on), that of a VM restored from a commit is behind.
 * So a clock that is behind by more than MACHINE_CLOCK_SLACK_NS is stepped forward (a smaller step is
 * worth nothing), and one that is ahead is stepped back only where no such delay explains it, by
 * more than MACHINE_CLOCK_AHEAD_NS. A clock that is wrong and ahead by less stays.
 */
#define MACHINE_CLOCK_SLACK_NS 10000000ll
#define MACHINE_CLOCK_AHEAD_NS 60000000000ll
/* now_ns: this machine's. Both are since 1970. */
bool machine_clock_is_wrong(uint64_t now_ns, uint64_t wall_ns);
/* Steps a clock that is wrong: *ret_stepped. */
int machine_set_clock(uint64_t wall_ns, bool *ret_stepped, struct err *e);
int machine_set_name(const char *name, struct err *e);
/* Lets everybody see `path` (of this machine) as the boot id from now on: mounts it over
 * the kernel's. 1 done, 0 it cannot be done here. */
int machine_cover_boot_id(const char *path, struct err *e);

#endif
