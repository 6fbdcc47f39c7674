/* The options that every verb takes; opt.c reads them, help.c shows them. */
#include <stddef.h>

#include "host/cli/opt.h"

const struct opt opt_common[OPT_COMMON_N + 1] = {
	{'q', "quiet", NULL, "ids only, no notes and no progress", COMPLETE_NOTHING},
	{OPT_FORMAT, "format", "table|json", "how the answer is written", COMPLETE_WORDS},
	{'h', "help", NULL, "this text", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};
