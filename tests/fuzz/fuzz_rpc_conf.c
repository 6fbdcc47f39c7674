/* What describes a coding agent, as text of whatever kind. What is accepted must keep the
 * promises of guest-agent/supervisor/rpc_conf.h. */
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "guest-agent/supervisor/rpc_conf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rpc_conf c = {0};
	struct err e = {0};

	if (rpc_conf_parse("x.conf", (const char *)data, size, &c, &e)) {
		if (c.argv || !e.msg[0] || e.code >= 0 ||
			strncmp(e.msg, "x.conf", 6) != 0)
			abort();
		return 0;
	}
	if (!c.argv || !c.argv[0] || !*c.argv[0] || !c.delay_ms ||
		c.delay_max_ms < c.delay_ms || !c.limit || c.limit > 1000 ||
		!c.window_s || !c.keep_mib || (c.folder && c.folder[0] != '/') ||
		(c.user && !*c.user) || c.stop_s > 3600 || c.protocol > RPC_CLAUDE ||
		c.dialogs > RPC_DIALOGS_ASK ||
		(c.on_fork == RPC_FORK_SIGNAL &&
			(c.fork_signal < 1 || c.fork_signal == SIGKILL)))
		abort();
	for (char **v = c.env; v && *v; v++)
		if (**v == '=' || !strchr(*v, '='))
			abort();
	rpc_conf_done(&c);
	return 0;
}
