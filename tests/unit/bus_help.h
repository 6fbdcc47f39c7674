/*
 * What the systemds of the tests have in common: they listen to nobody, and say which job
 * has ended.
 */
#ifndef PANDO_TESTS_UNIT_BUS_HELP_H
#define PANDO_TESTS_UNIT_BUS_HELP_H

#include "common/systemd.h"

#define BUS_HELP_JOB SYSTEMD_PATH "/job/7"

/* Of a manager's vtable. */
#define BUS_HELP_SUBSCRIBE \
	SD_BUS_METHOD("Subscribe", "", "", bus_help_subscribe, SD_BUS_VTABLE_UNPRIVILEGED)
int bus_help_subscribe(sd_bus_message *m, void *ctx, sd_bus_error *error);
/* JobRemoved, with systemd's word for how it ended. */
int bus_help_removed(sd_bus *bus, const char *job, const char *unit, const char *result);

#endif
