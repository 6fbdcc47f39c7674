#include "host/cli/pick.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>

#include "common/cleanup.h"
#include "host/cli/head.h"
#include "host/cli/near.h"
#include "host/cli/out.h"
#include "host/cli/verb.h"

int
pick_pandod(struct client **ret, struct err *e)
{
	return client_open(NULL, CLIENT_START, ret, e);
}

bool
pick_looks_like_id(const char *name)
{
	size_t len = strlen(name);

	return len >= 4 && len <= 12 && strspn(name, "0123456789abcdef") == len;
}

static bool
lives(const struct client_vm *vm)
{
	return strcmp(vm->state, "running") == 0 || strcmp(vm->state, "paused") == 0 ||
	       strcmp(vm->state, "starting") == 0;
}

/* Nobody said which. */
static int
only_one(struct client *c, const char **ret_id, struct client_vms *all, struct err *e)
{
	char names[256] = "";
	size_t n = 0, used = 0;
	int r = client_list(c, NULL, all, NULL, e);

	if (r < 0)
		return r;
	for (size_t i = 0; i < all->n; i++) {
		if (!lives(&all->v[i]))
			continue;
		*ret_id = all->v[i].id;
		if (n++ < 8 && used < sizeof(names) - 70)
			used += (size_t)snprintf(names + used, sizeof(names) - used,
				"%s%s", used ? ", " : "", client_vm_name(&all->v[i]));
	}
	if (n == 0)
		return err_set(e, -ENOENT, "no VM runs; `pando run` starts one");
	if (n > 1)
		return err_set(e, -EINVAL, "which VM? there are %zu: %s%s", n, names,
			n > 8 ? ", …" : "");
	return 0;
}

/* Adds to "not found" what may have been meant. */
static void
suggest(struct client *c, const char *name, struct err *e)
{
	cleanup_client_point struct client_point commit = {0};
	cleanup_client_vms struct client_vms all = {0};
	const char *best = NULL;
	unsigned best_distance = NEAR_MAX;

	if (client_point(c, name, &commit, NULL, NULL) == 0) {
		err_set(e, -ENOENT,
			"no VM named \"%.64s\", but commit %.12s: `pando run-commit %.64s` starts a VM from it",
			name, commit.id, name);
		return;
	}
	if (client_list(c, NULL, &all, NULL, NULL) < 0)
		return;
	for (size_t i = 0; i < all.n; i++) {
		unsigned d = near_distance(name, all.v[i].alias);

		if (all.v[i].alias[0] && near_enough(name, all.v[i].alias) &&
			d < best_distance) {
			best = all.v[i].alias;
			best_distance = d;
		}
	}
	if (best)
		err_set(e, -ENOENT, "no VM named \"%.64s\"; did you mean \"%s\"?", name,
			best);
	else if (verb_find(name))
		err_set(e, -ENOENT,
			"no VM named \"%.64s\"; `pando help %.64s` describes the verb", name,
			name);
}

int
pick_head(struct client *c, const struct head *h, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	int r = client_get(c, h->current, ret, reply, e);

	if (r == -ENOENT)
		return err_set(e, r,
			"the VM checked out here, %s, is no more (%.250s): `pando checkout <vm>` takes another, `pando checkout --none` none",
			h->current, h->path);
	return r;
}

void
pick_checkout(const struct client_vm *vm, bool quiet)
{
	struct err e = {0};
	struct head h;
	int r = head_read(NULL, &h, &e);

	if (r == -EINVAL)
		r = head_find(NULL, &h, &e);
	if (r == 0)
		r = head_write(&h, vm->id, &e);
	if (r < 0)
		out_complain("not checked out: %s", e.msg);
	else if (!quiet)
		out_complain("%s is checked out in %s", client_vm_name(vm), h.folder);
}

int
pick_open(const char *name, struct client **ret_client, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	int r = pick_pandod(ret_client, e);

	return r < 0 ? r : pick_vm(*ret_client, name, ret, reply, e);
}

static int
get_named(struct client *c, const char *name, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	int r = client_get(c, name, ret, reply, e);

	if (r == -ENOENT && e)
		suggest(c, name, e);
	return r;
}

int
pick_unnamed(struct client *c, struct client_vm *ret, struct client_reply *reply,
	const char **ret_why, struct err *e)
{
	cleanup_client_vms struct client_vms all = {0};
	const char *name = getenv("PANDO_VM");
	struct head h;
	int r;

	if (name && name[0]) {
		*ret_why = PICK_FROM_ENV;
		return get_named(c, name, ret, reply, e);
	}
	r = head_read(NULL, &h, e);
	if (r < 0)
		return r;
	if (h.current[0]) {
		*ret_why = PICK_CHECKED_OUT;
		return pick_head(c, &h, ret, reply, e);
	}
	*ret_why = PICK_ONLY_ONE;
	r = only_one(c, &name, &all, e);
	return r < 0 ? r : get_named(c, name, ret, reply, e);
}

int
pick_vm(struct client *c, const char *name, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	const char *why = NULL;
	int r;

	if (name)
		return get_named(c, name, ret, reply, e);
	r = pick_unnamed(c, ret, reply, &why, e);
	if (r == 0 && strcmp(why, PICK_CHECKED_OUT) == 0)
		out_note("using vm %s (%s)", client_vm_name(ret), why);
	if (r == -EINVAL && e && why && strcmp(why, PICK_ONLY_ONE) == 0) {
		struct err which = *e;

		return err_set(e, r, "%s (or set PANDO_VM)", which.msg);
	}
	return r;
}

int
pick_reachable(const struct client_vm *vm, struct err *e)
{
	const char *name = client_vm_name(vm);

	if (strcmp(vm->state, "paused") == 0)
		return err_set(e, -EBUSY, "\"%s\" is paused%s%s; `pando resume %s` lets it go on",
			name, vm->reason ? ": " : "", vm->reason ? vm->reason : "", name);
	/* Until it has acknowledged who it is it may believe to be the machine it comes
	 * from. One that boots is nobody else, and somebody may want to know why it is
	 * slow. */
	if (strcmp(vm->state, "starting") == 0 && (vm->parent[0] || vm->commit[0]))
		return err_set(e, -EAGAIN,
			"\"%s\": its agent is not ready (state \"starting\"); try again, or omit --no-wait to wait for it",
			name);
	if (!lives(vm) || !vm->agent_socket[0])
		return err_set(e, -ESHUTDOWN, "\"%s\" is %s%s%s", name, vm->state,
			vm->reason ? ": " : "", vm->reason ? vm->reason : "");
	return 0;
}

const char *
pick_short_id(char *dst, size_t cap, const char *id, const struct client_vms *all)
{
	size_t digits = 6;

	for (size_t i = 0; i < all->n; i++) {
		size_t same = 0;

		if (strcmp(all->v[i].id, id) == 0)
			continue;
		while (id[same] && id[same] == all->v[i].id[same])
			same++;
		if (same + 1 > digits)
			digits = same + 1;
	}
	snprintf(dst, cap, "%.*s", (int)digits, id);
	return dst;
}

void
pick_end_signals(sigset_t *ret)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
	struct sigaction now;

	sigemptyset(ret);
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (sigaction(signals[i], NULL, &now) == 0 && now.sa_handler != SIG_IGN)
			sigaddset(ret, signals[i]);
}

int
pick_cancel_fd(void)
{
	static int fd = -1;
	sigset_t set;

	if (fd >= 0)
		return fd;
	pick_end_signals(&set);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -1;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		sigprocmask(SIG_UNBLOCK, &set, NULL);
	return fd;
}
