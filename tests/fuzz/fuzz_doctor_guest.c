/* What a hostile guest says of itself to `pando doctor --vm` (host/cli/doctor_vm.c). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "host/agent/agent_client.h"
#include "host/agent/agent_rpc.h"
#include "host/cli/doctor.h"
#include "host/cli/pick.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What asks, which is not tried here. */
int
pick_open(const char *name, struct client **ret_client, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	(void)name;
	(void)ret_client;
	(void)ret;
	(void)reply;
	return err_set(e, -1, "nobody");
}

int
pick_reachable(const struct client_vm *vm, struct err *e)
{
	(void)vm;
	return err_set(e, -1, "nobody");
}

int
pick_cancel_fd(void)
{
	return -1;
}

void
client_close(struct client *c)
{
	(void)c;
}

void
client_reply_done(struct client_reply *r)
{
	(void)r;
}

void
client_vm_done(struct client_vm *vm)
{
	(void)vm;
}

const char *
client_vm_name(const struct client_vm *vm)
{
	return vm->id;
}

int
agent_ping(const char *path, int timeout_ms, struct agent_pong *ret, struct err *e)
{
	(void)path;
	(void)timeout_ms;
	(void)ret;
	return err_set(e, -1, "nobody");
}

int
agent_rpc_call(const char *path, const char *const *words, const void *input, size_t len,
	size_t max, int timeout_ms, int wake_fd, char **ret, struct err *e)
{
	(void)path;
	(void)words;
	(void)input;
	(void)len;
	(void)max;
	(void)timeout_ms;
	(void)wake_fd;
	(void)ret;
	return err_set(e, -1, "nobody");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct doctor d;
	struct err e = {0, ""};
	char *text = malloc(size + 1);
	int r;

	if (!text)
		return 0;
	memcpy(text, data, size);
	text[size] = 0;
	d.n = 0;
	r = doctor_judge_guest(
		&d, "web", "0123456789abcdef0123456789abcdef", text, size, &e);
	if (r < 0 && (e.code >= 0 || !e.msg[0]))
		abort();
	for (size_t i = 0; i < d.n; i++) {
		/* A command that is to be copied has no surprise in it. */
		if (strpbrk(d.findings[i].mend, "\n\033\r`|<>&") ||
			strpbrk(d.findings[i].detail, "\n\033\r"))
			abort();
	}
	free(text);
	return 0;
}
