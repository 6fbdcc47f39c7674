#include "tests/unit/bus_help.h"

int
bus_help_subscribe(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	(void)ctx;
	(void)error;
	return sd_bus_reply_method_return(m, "");
}

int
bus_help_removed(sd_bus *bus, const char *job, const char *unit, const char *result)
{
	return sd_bus_emit_signal(bus, SYSTEMD_PATH, SYSTEMD_MANAGER, "JobRemoved",
		"uoss", 7u, job, unit, result);
}
