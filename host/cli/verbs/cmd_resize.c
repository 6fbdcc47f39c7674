#include <errno.h>
#include <stdio.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/client/project_config.h"

extern const struct verb verb_resize;

enum { OPT_SIZE = 256, OPT_SIZE_VM, OPT_MEM_TARGET };

static const struct opt options[] = {
	{OPT_SIZE, "fs-size", "MIB", "the new size of its disk; 2G and the like are fine",
		COMPLETE_NOTHING},
	{OPT_MEM_TARGET, "mem-target", "MIB",
		"how much of its memory the guest shall keep; the rest is the host's",
		COMPLETE_NOTHING},
	{OPT_SIZE_VM, "fs-size-vm", "MIB", NULL, COMPLETE_NOTHING},
	OPT_BUSY,
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_resize, argc, argv);
	cleanup_client_vm struct client_vm vm = {0}, now = {0};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	cleanup_free char *note = NULL;
	struct out_progress progress;
	const char *name = NULL;
	uint64_t disk_mib = 0, mem_target_mib = 0;
	struct err e = {0};
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_SIZE || key == OPT_SIZE_VM) {
			if (opt_mib(s.arg, "--fs-size", CONFIG_DISK_MIN_MIB,
				    CONFIG_DISK_MAX_MIB, &disk_mib, &e) < 0)
				return opt_leave(&s, OPT_ERROR, &e);
		} else if (key == OPT_MEM_TARGET) {
			if (opt_mib(s.arg, "--mem-target", CONFIG_MEM_MIN_MIB, CONFIG_MEM_MAX_MIB,
				    &mem_target_mib, &e) < 0)
				return opt_leave(&s, OPT_ERROR, &e);
		} else if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD) {
			return opt_leave(&s, key, &e);
		}
	}
	if (!disk_mib && !mem_target_mib) {
		err_set(&e, -EINVAL, "how large? --fs-size MIB, --mem-target MIB");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_open(name, &c, &vm, NULL, &e) < 0)
		return out_fail(&e);
	out_progress_start(&progress, s.quiet);
	client_on_progress(c, out_progress_say, &progress);
	client_busy_timeout(c, s.has_busy, s.busy_timeout_ms);
	r = client_resize(c, vm.id, disk_mib, mem_target_mib, &now, &note, &reply, &e);
	out_progress_end(&progress);
	if (r < 0)
		return out_fail(&e);
	puts(s.json ? reply.text : now.id);
	if (note)
		out_note("\"%s\": %s", client_vm_name(&vm), note);
	return EXIT_OK;
}

const struct verb verb_resize = {
	.name = "resize",
	.summary = "Grows a VM's disk, or asks its guest for memory, while it runs",
	.run = run,
	.usage = "[vm] [--fs-size MIB] [--mem-target MIB]",
	.options = options,
	.text = "Disks only grow. The disk of a stopped VM grows when it is started. Branches keep the size they have.\n"
		"--mem-target N: the guest fills a balloon until it keeps N of its memory; what it needs after all, it takes\n"
		"back by itself. N as large as its memory empties the balloon. What the guest frees is the host's in any case.",
	.words = COMPLETE_VM,
};
