#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"
#include "host/cli/copy.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/vmssh.h"

extern const struct verb verb_copy;

static const struct opt options[] = {
	{256, "ssh", NULL, "over SSH: needs openssh-server in the VM", COMPLETE_NOTHING},
	{'u', "user", "NAME", "with --ssh: as that user; root if not said",
		COMPLETE_NOTHING},
	/* What cp and scp are told, and is so here in any case. */
	{'r', "recursive", NULL, NULL, COMPLETE_NOTHING},
	{'R', NULL, NULL, NULL, COMPLETE_NOTHING},
	{'p', NULL, NULL, NULL, COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

struct watch {
	struct out_progress *progress;
	int cancel_fd; /* borrowed */
	uint64_t last_ns;
};

static int
on_progress(void *ctx, const struct agent_copy_stats *now)
{
	struct watch *w = ctx;
	struct signalfd_siginfo info;
	char bytes[32], say[128];

	if (w->cancel_fd >= 0 &&
		read(w->cancel_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
		return -ECANCELED;
	/* On a terminal four times a second; elsewhere the summary at the end is enough.
	 */
	if (w->progress->tty && io_now_ns() - w->last_ns > 250000000) {
		w->last_ns = io_now_ns();
		snprintf(say, sizeof(say), "%llu files, %s",
			(unsigned long long)now->files,
			out_bytes(bytes, sizeof(bytes), now->bytes));
		out_progress_say(w->progress, say);
	}
	return 0;
}

bool
copy_split(const char *word, char *vm, size_t cap, const char **ret_path)
{
	const char *colon = strchr(word, ':'), *slash = strchr(word, '/');

	if (!colon || colon == word || (slash && slash < colon) ||
		(size_t)(colon - word) >= cap)
		return false;
	snprintf(vm, cap, "%.*s", (int)(colon - word), word);
	*ret_path = colon[1] ? colon + 1 : ".";
	return true;
}

static const char *
plural(uint64_t n)
{
	return n == 1 ? "" : "s";
}

static int
print(const struct agent_copy_stats *n, const struct opt_scan *s, uint64_t took_ns)
{
	cleanup_json_out struct json_out o = {0};
	char bytes[32];

	if (s->json) {
		json_out_object(&o, NULL);
		json_out_u64(&o, "files", n->files);
		json_out_u64(&o, "folders", n->folders);
		json_out_u64(&o, "links", n->links);
		json_out_u64(&o, "skipped", n->skipped);
		json_out_u64(&o, "outside", n->outside);
		json_out_u64(&o, "bytes", n->bytes);
		json_out_end_object(&o);
		return out_json(&o);
	}
	if (!s->quiet)
		fprintf(stderr,
			"pando: %llu file%s, %llu folder%s, %llu link%s, %s in %.1f s\n",
			(unsigned long long)n->files, plural(n->files),
			(unsigned long long)n->folders, plural(n->folders),
			(unsigned long long)n->links, plural(n->links),
			out_bytes(bytes, sizeof(bytes), n->bytes), (double)took_ns / 1e9);
	if (n->skipped && !s->quiet)
		fprintf(stderr, "pando: %llu socket%s, device%s or FIFO%s left out\n",
			(unsigned long long)n->skipped, plural(n->skipped),
			plural(n->skipped), n->skipped == 1 ? " was" : "s were");
	if (n->outside && !s->quiet)
		out_complain(
			"%llu link%s that lead%s out of the copy %s left out; the first is \"%s\"",
			(unsigned long long)n->outside, plural(n->outside),
			n->outside == 1 ? "s" : "", n->outside == 1 ? "was" : "were",
			n->first_outside);
	return EXIT_OK;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_copy, argc, argv);
	const char *words[2] = {NULL, NULL}, *remote = NULL, *local;
	struct agent_copy_stats stats = {0};
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	struct out_progress progress;
	struct watch watch = {.progress = &progress};
	char name[256], other[256];
	const char *other_path;
	struct err e = {0};
	size_t n = 0;
	uint64_t start_ns;
	struct vmssh_copy over = {.progress = on_progress, .ctx = &watch};
	bool get, ssh = false;
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == 256 || key == 'u') {
			ssh = ssh || key == 256;
			over.user = key == 'u' ? s.arg : over.user;
			continue;
		}
		if (key == 'r' || key == 'R' || key == 'p')
			continue;
		if (key == OPT_WORD && n == 2)
			key = (err_set(&e, -EINVAL,
				       "copy takes a source and a destination"),
				OPT_ERROR);
		if (key != OPT_WORD)
			return opt_leave(&s, key, &e);
		words[n++] = s.arg;
	}
	get = n == 2 && copy_split(words[0], name, sizeof(name), &remote);
	if (n != 2)
		err_set(&e, -EINVAL, "copy takes a source and a destination");
	else if (get && copy_split(words[1], other, sizeof(other), &other_path))
		err_set(&e, -EINVAL,
			"one side must be on this host; copy to a folder here first");
	else if (!get && !copy_split(words[1], name, sizeof(name), &remote))
		err_set(&e, -EINVAL,
			"neither \"%.60s\" nor \"%.60s\" is in a VM: write vm:path",
			words[0], words[1]);
	else if (strcmp(words[!get ? 0 : 1], "-") == 0)
		err_set(&e, -EINVAL,
			get ? "\"-\" is a file of that name only as ./-; to standard output: pando execute %.60s -- cat FILE, or tar -c"
			    : "\"-\" is a file of that name only as ./-; from standard input: pando execute -i %.60s -- tee FILE, or tar -x",
			name);
	else if (over.user && !ssh)
		err_set(&e, -EINVAL, "--user goes with --ssh");
	if (e.code)
		return opt_leave(&s, OPT_ERROR, &e);
	local = get ? words[1] : words[0];

	if (pick_open(name, &c, &vm, NULL, &e) < 0 || pick_reachable(&vm, &e) < 0)
		return out_fail(&e);
	watch.cancel_fd = pick_cancel_fd();
	out_progress_start(&progress, s.quiet);
	start_ns = io_now_ns();
	over.vm = &vm;
	over.home = client_home(c);
	over.local = local;
	over.remote = remote;
	over.cancel_fd = watch.cancel_fd;
	if (ssh)
		r = get ? vmssh_get(&over, &stats, &e) : vmssh_put(&over, &stats, &e);
	else
		r = get ? agent_get(vm.agent_socket, remote, local, on_progress, &watch,
				  &stats, &e)
			: agent_put(vm.agent_socket, local, remote, on_progress, &watch,
				  &stats, &e);
	out_progress_end(&progress);
	if (r == -ECANCELED)
		err_set(&e, r, "cancelled; the files that were copied whole are there");
	if (r < 0)
		return out_fail(&e);
	return print(&stats, &s, io_now_ns() - start_ns);
}

const struct verb verb_copy = {
	.name = "copy",
	.aliases = "cp",
	.summary = "Copies files and trees into a VM or out of it",
	.run = run,
	.usage = "[options] <path> <vm>:<path>\n[options] <vm>:<path> <path>",
	.options = options,
	.text = "As `cp -r`: into a folder that exists, else under the new name; modes, times, links and holes are kept,\n"
		"owners are not. A FIFO or <(...) is read to its end. A path in a VM that does not begin with '/' is below root's home. A local name with ':' is written ./a:b.\n"
		"Links that lead out of the copy, FIFOs and devices do not come out of a VM.",
	.words = COMPLETE_FILE,
};
