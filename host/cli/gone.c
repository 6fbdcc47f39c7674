#include "host/cli/gone.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "host/cli/pick.h"

/* How long pandod may take to hear of the end. */
#define TRIES 10
#define PAUSE_NS 100000000

int
gone_why(struct client *c, const struct client_vm *vm, struct err *e)
{
	for (int i = 0; i < TRIES; i++) {
		cleanup_client_vm struct client_vm now = {0};
		struct timespec ts = {.tv_nsec = PAUSE_NS};
		int r = client_get(c, vm->id, &now, NULL, NULL);

		if (r == -ENOENT)
			return err_set(
				e, -ESHUTDOWN, "\"%s\" was deleted", client_vm_name(vm));
		if (r < 0)
			return 0; /* pandod is another matter */
		if (now.resets != vm->resets)
			return err_set(e, -ESHUTDOWN,
				"\"%s\" was reset to a commit, and what ran in it is gone",
				client_vm_name(vm));
		r = pick_reachable(&now, e);
		if (r == -ESHUTDOWN)
			return r;
		nanosleep(&ts, NULL);
	}
	return 0;
}

void
gone_if_old(struct err *e)
{
	if (e->code == -EINVAL && (strstr(e->msg, " has no member \"") ||
					  strstr(e->msg, "no operation \"")))
		err_set(e, -EPROTONOSUPPORT,
			"the agent in that guest is older than this command; make a new image (`make images`) and boot that");
}
