/* Lines of a coding agent, and reports of a guest: anything. What is taken for JSON must
 * be JSON for common/json.h too, and what is answered must be JSON. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "common/wire/json_line.h"
#include "guest-agent/supervisor/rpc_proto.h"
#include "host/agent/agent_report.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *line = malloc(size + 1); /* so that a byte too far is seen */
	struct agent_report report;
	struct json *j = NULL;
	struct rpc_span v;
	struct err e = {0};
	size_t at = 0;
	int r;

	memcpy(line, data, size);
	r = json_parse(line, size, 65536, &j, &e);
	/* The other reader takes less: no bare values, less depth, no key twice. */
	if (!r && json_line_check(line, size, NULL))
		abort();
	json_free(j);
	for (int p = RPC_RAW; p <= RPC_CLAUDE; p++) {
		char reason[RPC_REASON_MAX];

		rpc_proto_event((enum rpc_protocol)p, line, size, reason);
		if (memchr(reason, 0, sizeof(reason)) == NULL)
			abort();
		for (int d = 0; d <= RPC_DIALOGS_ASK; d++) {
			cleanup_json_out struct json_out o = {0};

			if (rpc_proto_answer((enum rpc_protocol)p, (enum rpc_dialogs)d,
				    line, size, &o) &&
				!o.error && json_line_check(o.buf, o.len, &e))
				abort();
		}
	}
	v = json_line_trim(line, size);
	while (json_line_element(v, &at, &v))
		at = 0;
	if (!agent_report_read(line, size, &report, NULL)) {
		if (json_line_check(report.json, strlen(report.json), NULL) ||
			strchr(report.json, '\n'))
			abort();
		agent_report_done(&report);
	}
	free(line);
	return 0;
}
