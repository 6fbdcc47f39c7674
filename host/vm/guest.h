/*
 * What pandod itself asks a guest's agent to do: short commands with an end. The guest
 * may be hostile, so nothing it says is believed; it is told to whoever asked, escaped.
 */
#ifndef PANDO_HOST_VM_GUEST_H
#define PANDO_HOST_VM_GUEST_H

#include <stdint.h>

#include "common/err.h"

/* Runs a shell script as root. timeout_ms covers all of it, also a guest that says
 * nothing: -ETIMEDOUT. A status other than 0 is -EIO with what the script last wrote to
 * stderr. */
int guest_script(
	const char *agent_socket, const char *script, int timeout_ms, struct err *e);

/* `systemctl poweroff`; 0 when the guest took the command, whatever becomes of it. */
int guest_power_off(const char *agent_socket, int timeout_ms, struct err *e);
/* The root filesystem (ext2/3/4 on a whole disk) takes all of a disk of disk_mib. */
int guest_grow_root(
	const char *agent_socket, uint64_t disk_mib, int timeout_ms, struct err *e);

#endif
