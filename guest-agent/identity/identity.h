/*
 * Who this machine is: what an identity handshake changes in files and in the kernel, one function a
 * step, in the order in which they are done. Each returns 1 when it has done something, 0
 * when there was nothing to do, -errno with a sentence. Nothing here waits but on the
 * file system.
 */
#ifndef PANDO_GUEST_AGENT_IDENTITY_IDENTITY_H
#define PANDO_GUEST_AGENT_IDENTITY_IDENTITY_H

#include <stdbool.h>

#include "common/wire/openssh_key.h"
#include "guest-agent/identity/identity_request.h"

/* Who has this key may log in over SSH as any user; sshd reads it (server/sshd.c). */
#define IDENTITY_AUTHORIZED_KEYS "/etc/pando/authorized_keys"

#define IDENTITY_FILE "/run/pando/identity" /* JSON, for people and programs */
#define GENERATION_FILE \
	"/run/pando/generation" /* 32 hex digits and LF; always one inode */
#define ENVIRONMENT_FILE "/etc/environment"
#define HELD_BACK_FILE "/etc/pando/environment"

/* What the machine was called before; texts empty: not known. */
struct identity {
	char id[AGENT_VM_ID_LEN + 1];
	char name[AGENT_VM_NAME_MAX + 1];
	char generation[AGENT_GENERATION_LEN + 1];
};

struct identity_change {
	struct handshake handshake;
	struct identity old;
	bool same; /* the machine has this id already: it was started again */
	char host_key[OPENSSH_KEY_PUBLIC_MAX];
};

/* Of the running system, else (after a boot) of the disk. */
void identity_load(struct identity *ret);

int identity_random(struct identity_change *c, struct err *e);
int identity_clock(struct identity_change *c, struct err *e);
int identity_host_name(struct identity_change *c, struct err *e);
int identity_machine_id(struct identity_change *c, struct err *e);
int identity_boot_id(struct identity_change *c, struct err *e);
int identity_seeds(struct identity_change *c, struct err *e);
int identity_environment(struct identity_change *c, struct err *e);
int identity_ssh_keys(struct identity_change *c, struct err *e);
int identity_note(struct identity_change *c, struct err *e);

/* Whether /etc/environment is as identity_environment() left it. */
bool identity_environment_is_ours(void);

#endif
