#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/json.h"
#include "host/agent/agent_client.h"
#include "host/cli/gone.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/tunnel.h"

extern const struct verb verb_tunnel;

struct words {
	const char *vm, *bind;
	struct tunnel_door doors[TUNNEL_DOORS_MAX];
	unsigned n;
};

static void
words_done(struct words *w)
{
	for (unsigned i = 0; i < w->n; i++)
		if (w->doors[i].fd >= 0)
			close(w->doors[i].fd);
}

static const struct opt options[] = {
	{'b', "bind", "ADDRESS", "listen there; 127.0.0.1 if not said", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* OPT_END, or what opt_leave() takes. */
static int
read_words(struct opt_scan *s, struct words *w, struct err *e)
{
	bool first = true;
	int key;

	while ((key = opt_next(s, e)) != OPT_END) {
		if (key == 'b') {
			w->bind = s->arg;
			continue;
		}
		if (key != OPT_WORD)
			return key;
		/* A VM whose name looks like a port is named by its id. */
		if (first && !tunnel_is_door(s->arg)) {
			w->vm = s->arg;
		} else if (w->n == TUNNEL_DOORS_MAX) {
			err_set(e, -E2BIG, "at most %d ports", TUNNEL_DOORS_MAX);
			return OPT_ERROR;
		} else if (tunnel_read_door(s->arg, &w->doors[w->n], e) < 0) {
			return OPT_ERROR;
		} else {
			w->n++;
		}
		first = false;
	}
	if (w->n)
		return OPT_END;
	err_set(e, -EINVAL,
		"no port: pando tunnel %s 8080:80 makes the guest's port 80 this host's 8080",
		w->vm ? w->vm : "<vm>");
	return OPT_ERROR;
}

static int
print_json(const struct words *w, const char *name)
{
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	json_out_str(&o, "vm", name);
	json_out_array(&o, "listens");
	for (unsigned i = 0; i < w->n; i++) {
		json_out_object(&o, NULL);
		json_out_str(&o, "address", w->doors[i].address);
		json_out_u64(&o, "port", w->doors[i].local);
		json_out_u64(&o, "guest_port", w->doors[i].guest);
		json_out_end_object(&o);
	}
	json_out_end_array(&o);
	json_out_end_object(&o);
	if (o.error)
		return o.error;
	puts(o.buf);
	return 0;
}

/* What is listened on; at once, for those that wait for it. */
static int
print(const struct words *w, const struct opt_scan *s, const char *name)
{
	int r = s->json ? print_json(w, name) : 0;

	for (unsigned i = 0; i < w->n && !s->json; i++)
		if (s->quiet)
			puts(w->doors[i].address);
		else
			printf("%s -> %s:%u\n", w->doors[i].address, name,
				w->doors[i].guest);
	return r < 0 ? r : fflush(stdout) ? -errno : 0;
}

static int
run(int argc, char **argv)
{
	__attribute__((cleanup(words_done))) struct words w = {.bind = "127.0.0.1"};
	struct opt_scan s = opt_scan(&verb_tunnel, argc, argv);
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	struct tunnel t = {0};
	struct err e = {0}, why = {0};
	int r;

	r = read_words(&s, &w, &e);
	if (r != OPT_END)
		return opt_leave(&s, r, &e);
	if (pick_open(w.vm, &c, &vm, NULL, &e) < 0 || pick_reachable(&vm, &e) < 0 ||
		agent_ping(vm.agent_socket, 60000, NULL, &e) < 0)
		return out_fail(&e);
	/* Before anybody can be let in, so that no Ctrl-C is missed. */
	t.signal_fd = pick_cancel_fd();
	for (unsigned i = 0; i < w.n; i++) {
		bool open;

		if (tunnel_listen(&w.doors[i], w.bind, &open, &e) < 0)
			return out_fail(&e);
		if (open)
			out_complain(
				"%s: whoever reaches this host there reaches port %u of \"%s\", too",
				w.doors[i].address, w.doors[i].guest,
				client_vm_name(&vm));
	}
	r = print(&w, &s, client_vm_name(&vm));
	if (r < 0) {
		err_sys(&e, r, "standard output");
		return out_fail(&e);
	}
	t.name = client_vm_name(&vm);
	t.socket = vm.agent_socket;
	t.doors = w.doors;
	t.n_doors = w.n;
	r = tunnel_run(&t, &e);
	if (r == -ECANCELED)
		return EXIT_OK;
	gone_if_old(&e);
	if (r != -ENOENT && r != -ENOTCONN)
		return out_fail(&e);
	if (gone_why(c, &vm, &why) < 0)
		out_complain("the tunnel ends: %s", why.msg);
	else
		out_complain("the tunnel ends: \"%s\" runs no more", t.name);
	return EXIT_NOT_FOUND;
}

const struct verb verb_tunnel = {
	.name = "tunnel",
	.summary = "Makes TCP ports of a VM ports of this host",
	.run = run,
	.usage = "[options] [vm] [LOCAL:]PORT…",
	.options = options,
	.text = "Listens on 127.0.0.1 and carries each connection to the same port of the guest's own loopback\n"
		"(127.0.0.1, else ::1); the guest needs no network for it. LOCAL is the port here: PORT if not said, 0\n"
		"for any that is free. Every user of this host can connect to it. Prints what it listens on, and goes on\n"
		"until Ctrl-C (status 0) or until the VM ends (3). Where nothing listens in the guest, connections are\n"
		"closed and standard error says so once.",
	.words = COMPLETE_VM,
};
