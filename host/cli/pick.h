/* What most verbs begin with: pandod, and the VM that is meant. */
#ifndef PANDO_HOST_CLI_PICK_H
#define PANDO_HOST_CLI_PICK_H

#include <signal.h>

#include "host/client/client.h"

/* pandod, started if need be. */
int pick_pandod(struct client **ret, struct err *e);

/*
 * The VM somebody named. name NULL: the one in PANDO_VM, else the one checked out in this
 * folder (said on stderr), else the only VM that runs; several or none is -EINVAL with a
 * sentence that says how to choose. A name that is no VM is -ENOENT, with a near name if
 * there is one; a checkout that is no more is -ENOENT with the mend.
 */
int pick_vm(struct client *c, const char *name, struct client_vm *ret,
	struct client_reply *reply, struct err *e);

/* As pick_vm() does for the name NULL, and says nothing on stderr: *ret_why is one of these. */
#define PICK_FROM_ENV "named by PANDO_VM"
#define PICK_CHECKED_OUT "checked out here"
#define PICK_ONLY_ONE "the only VM that runs"
int pick_unnamed(struct client *c, struct client_vm *ret, struct client_reply *reply,
	const char **ret_why, struct err *e);

/* pick_pandod() and pick_vm(): what most verbs begin with. reply may be NULL. */
int pick_open(const char *name, struct client **ret_client, struct client_vm *ret,
	struct client_reply *reply, struct err *e);

/* The VM of a head that has one. */
struct head;
int pick_head(struct client *c, const struct head *h, struct client_vm *ret,
	struct client_reply *reply, struct err *e);

/* Checks the VM out in this folder, and says so unless quiet; a failure is said and is no
 * other. */
void pick_checkout(const struct client_vm *vm, bool quiet);

/* Whether commands and files can go to it: a VM that is paused, stopped or failed is a
 * sentence that says so (-EBUSY paused, -EAGAIN a branch that may still believe to be its
 * parent, -ESHUTDOWN otherwise). */
int pick_reachable(const struct client_vm *vm, struct err *e);

/* As many leading digits of id as no other id begins with, at least 6. */
const char *pick_short_id(
	char *dst, size_t cap, const char *id, const struct client_vms *all);

/* SIGINT, SIGTERM and SIGHUP without those that whoever started us has us ignore, as nohup
 * and a script's "&" do: a signalfd would bring them all the same, because a signal that is
 * blocked waits even when it is ignored. */
void pick_end_signals(sigset_t *ret);

/* Descriptor that becomes readable on one of these, which are blocked from here on: a
 * signalfd, for client_cancel_fd(). -1 if there can be none. The process's for
 * good. */
int pick_cancel_fd(void);

/* 12 lower-case hex digits, or a prefix of at least 4. */
bool pick_looks_like_id(const char *name);

#endif
