#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/paths.h"
#include "host/cli/logs.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_logs;

#define FOLLOW_MS 200
#define STATE_EVERY 10 /* looks at the log between two questions to pandod */

enum { OPT_VMM = 256 };

static const struct opt options[] = {
	{'f', "follow", NULL, "go on until the VM ends", COMPLETE_NOTHING},
	{'n', "tail", "LINES", "only the last LINES of what is there", COMPLETE_NOTHING},
	{OPT_VMM, "vmm", NULL, "what the VMM process said, not the guest",
		COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* Where the answer goes. */
struct sink {
	const char *id; /* borrowed */
	bool json, terminal;
	struct logs_plain plain;
};

static int
sink_write(struct sink *to, uint64_t offset, const char *buf, size_t len)
{
	cleanup_json_out struct json_out o = {0};

	if (to->json) {
		json_out_object(&o, NULL);
		json_out_str(&o, "id", to->id);
		json_out_u64(&o, "offset", offset);
		json_out_strn(&o, "text", buf, len);
		json_out_end_object(&o);
		if (o.error)
			return o.error;
		puts(o.buf);
	} else if (to->terminal) {
		logs_put_plain(&to->plain, stdout, buf, len);
	} else {
		fwrite(buf, 1, len, stdout);
	}
	return fflush(stdout) || ferror(stdout) ? -EPIPE : 0;
}

/* Everything new since *at. */
static int
print_new(struct logs_source *src, uint64_t *at, struct sink *to, struct err *e)
{
	cleanup_free char *buf = malloc(LOGS_CHUNK);
	uint64_t lost;
	ssize_t n;

	if (!buf)
		return err_sys(e, -ENOMEM, "log");
	while ((n = logs_read(src, at, buf, LOGS_CHUNK, &lost, e)) > 0) {
		if (lost)
			out_complain("%llu bytes were overwritten before they were read",
				(unsigned long long)lost);
		if (sink_write(to, *at - (uint64_t)n, buf, (size_t)n) < 0)
			return err_set(e, -EPIPE, "standard output is closed or full");
	}
	return (int)n;
}

/* Whether pandod still knows it as alive. */
static bool
goes_on(struct client *c, const char *id)
{
	cleanup_client_vm struct client_vm vm = {0};
	struct err ignored;

	return client_get(c, id, &vm, NULL, NULL) == 0 &&
	       pick_reachable(&vm, &ignored) != -ESHUTDOWN;
}

static int
follow(struct client *c, struct logs_source *src, uint64_t *at, struct sink *to,
	struct err *e)
{
	struct pollfd p = {.fd = pick_cancel_fd(), .events = POLLIN};
	bool alive = true;
	int r = 0;

	for (unsigned round = 1; r == 0; round++) {
		r = print_new(src, at, to, e);
		if (r < 0 || !alive)
			return r;
		if (poll(&p, p.fd >= 0, FOLLOW_MS) > 0)
			return 0; /* Ctrl-C is how following ends */
		/* A guest may say nothing more for hours. */
		if (out_reader_left())
			return -EPIPE;
		/* What was written before the end is printed by one more round. */
		if (round % STATE_EVERY == 0)
			alive = goes_on(c, to->id);
	}
	return r;
}

static int
open_source(const struct client_vm *vm, bool vmm, struct logs_source *src, struct err *e)
{
	char path[PATHS_MAX];
	const char *slash;
	int r;

	if (!vm->console || !(slash = strrchr(vm->console, '/')))
		return err_set(e, -ENOENT, "\"%s\" has no console", client_vm_name(vm));
	if (vmm)
		r = paths_format(path, sizeof(path), e, "%.*s/vmm.log",
			(int)(slash - vm->console), vm->console);
	else
		r = paths_format(path, sizeof(path), e, "%s", vm->console);
	return r < 0 ? r : logs_open(path, !vmm, src, e);
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_logs, argc, argv);
	__attribute__((cleanup(logs_close))) struct logs_source src = LOGS_SOURCE_INIT;
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	bool following = false, vmm = false, tail_only = false;
	const char *name = NULL;
	uint64_t lines = 0, at = 0;
	struct err e = {0};
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		switch (key) {
		case 'f':
			following = true;
			break;
		case 'n':
			tail_only = true;
			if (opt_u64(s.arg, "--tail", 0, 1000000000, &lines, &e) < 0)
				return opt_leave(&s, OPT_ERROR, &e);
			break;
		case OPT_VMM:
			vmm = true;
			break;
		default:
			if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
				return opt_leave(&s, key, &e);
		}
	}
	if (pick_open(name, &c, &vm, NULL, &e) < 0 || open_source(&vm, vmm, &src, &e) < 0)
		return out_fail(&e);
	struct sink to = {
		.id = vm.id, .json = s.json, .terminal = isatty(STDOUT_FILENO) == 1};

	r = tail_only ? logs_tail(&src, lines, &at, &e) : 0;
	if (r == 0)
		r = following ? follow(c, &src, &at, &to, &e)
			      : print_new(&src, &at, &to, &e);
	/* A reader that left while nothing was written; else that is out_end()'s to judge. */
	if (r == -EPIPE && out_reader_left())
		return 128 + SIGPIPE;
	return r < 0 && r != -EPIPE ? out_fail(&e) : EXIT_OK;
}

const struct verb verb_logs = {
	.name = "logs",
	.aliases = "log",
	.summary = "What a VM's console said",
	.run = run,
	.usage = "[vm] [--follow] [--tail LINES] [--vmm]",
	.options = options,
	.text = "The last MiB of the console is kept. A branch begins with an empty console of its own. On a terminal,\n"
		"control characters are shown as \\xNN.",
	.words = COMPLETE_VM,
};
