#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/client/project_config.h"

extern const struct verb verb_limit;

enum { OPT_BPS = 256, OPT_IOPS };

static const struct opt options[] = {
	{OPT_BPS, "disk-bps", "BYTES",
		"bytes in a second, read and written; 10M and the like are fine; 0: no limit",
		COMPLETE_NOTHING},
	{OPT_IOPS, "disk-iops", "N", "requests in a second; 0: no limit", COMPLETE_NOTHING},
	OPT_BUSY,
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_limit, argc, argv);
	uint64_t bps = CLIENT_LIMIT_AS_IT_IS, iops = CLIENT_LIMIT_AS_IT_IS;
	cleanup_client_vm struct client_vm vm = {0}, now = {0};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	const char *name = NULL;
	struct err e = {0};
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		r = 0;
		if (key == OPT_BPS)
			r = opt_bytes_per_s(s.arg, "--disk-bps", CONFIG_DISK_BPS_MIN,
				CONFIG_DISK_BPS_MAX, &bps, &e);
		else if (key == OPT_IOPS)
			r = opt_u64(s.arg, "--disk-iops", 0, CONFIG_DISK_IOPS_MAX, &iops, &e);
		else if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
		if (r < 0)
			return opt_leave(&s, OPT_ERROR, &e);
	}
	if (bps == CLIENT_LIMIT_AS_IT_IS && iops == CLIENT_LIMIT_AS_IT_IS) {
		err_set(&e, -EINVAL, "which limit? --disk-bps BYTES, --disk-iops N");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_open(name, &c, &vm, NULL, &e) < 0)
		return out_fail(&e);
	client_busy_timeout(c, s.has_busy, s.busy_timeout_ms);
	r = client_limit(c, vm.id, bps, iops, &now, &reply, &e);
	if (r < 0)
		return out_fail(&e);
	puts(s.json ? reply.text : now.id);
	return EXIT_OK;
}

const struct verb verb_limit = {
	.name = "limit",
	.summary = "Limits what a VM may have of its disk in a second, while it runs",
	.run = run,
	.usage = "[vm] [--disk-bps BYTES] [--disk-iops N]",
	.options = options,
	.text = "Branches made afterwards and VMs from later commits have the same limits, each for itself.",
	.words = COMPLETE_VM,
};
