/* What client_vm.c and client_commit.c share. Nobody else includes this. */
#ifndef PANDO_HOST_CLIENT_CLIENT_PRIV_H
#define PANDO_HOST_CLIENT_CLIENT_PRIV_H

#include "host/client/client.h"

/* Absent and null are both "none". */
bool client_is_none(const struct json *j, int tok);
/* Members of an object: "none" leaves "", NULL or what there was. */
int client_read_text(
	const struct json *j, int obj, const char *key, bool must, char *dst, size_t cap);
int client_read_dup(const struct json *j, int obj, const char *key, char **ret);
int client_read_u64(const struct json *j, int obj, const char *key, uint64_t *ret);
/* client_vm_path() of a call that waits for its turn at the VM: with what
 * client_busy_timeout() said. */
int client_turn_path(const struct client *c, char *dst, size_t cap, const char *vm,
	const char *suffix, struct err *e);
/* An array of strings; client_ids_free() ends it. */
int client_read_ids(const struct json *j, int array, char ***ret);

int client_percent_encode(char *dst, size_t cap, const char *text);
void client_put_labels(struct json_out *o, const char *const *labels, size_t n);
int client_body_end(struct json_out *o, struct err *e);
int client_branch_body(
	const struct client_branch *spec, struct json_out *o, struct err *e);
/* What an answer is made of is the caller's; the answer itself goes to reply (NULL: it is
 * dropped). */
void client_hand_over(struct client_reply *own, struct client_reply *reply);
int client_call_vms(struct client *c, const char *method, const char *path,
	const char *body, struct client_vms *ret, struct client_reply *reply,
	struct err *e);
int client_delete_ids(struct client *c, const char *path, const char *what,
	const char *member, char ***ret_ids, struct err *e);

#endif
