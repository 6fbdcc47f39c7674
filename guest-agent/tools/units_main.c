/*
 * pando-units look: what of the units is not as it should be (bus_look()).
 *
 * pando-units: starts, stops and restarts units in the guest for the agent (units.c), as
 * root, one after the other, and waits for their jobs. Peers: systemd. The first unit
 * that fails does not keep the others from their turn; the status is 1 then, and stderr
 * says why.
 */
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "guest-agent/tools/unit_bus.h"

/* The agent ends it after UNITS_LIMIT_MS at the latest. */
#define UNIT_LIMIT_MS 50000

static int
look(void)
{
	cleanup_json_out struct json_out o = {0};
	cleanup_bus struct bus *bus = NULL;
	struct err e = {0};

	if (bus_open(NULL, &bus, &e) < 0 || bus_look(bus, &o, &e) < 0) {
		fprintf(stderr, "%s\n", e.msg);
		return EXIT_FAILED;
	}
	puts(o.buf);
	return fflush(stdout) ? EXIT_FAILED : EXIT_OK;
}

int
main(int argc, char **argv)
{
	cleanup_bus struct bus *bus = NULL;
	struct err e = {0};
	int status = EXIT_OK;

	if (argc == 2 && strcmp(argv[1], "look") == 0)
		return look();
	if (argc < 3 || argv[1][0] == '-') {
		fputs("usage: pando-units start|stop|restart|try-restart UNIT...\n",
			stderr);
		fputs("       pando-units look\n", stderr);
		return EXIT_USAGE;
	}
	if (bus_open(NULL, &bus, &e) < 0) {
		fprintf(stderr, "%s\n", e.msg);
		return EXIT_FAILED;
	}
	for (int i = 2; i < argc; i++)
		if (bus_unit(bus, argv[1], argv[i], UNIT_LIMIT_MS, &e) < 0) {
			fprintf(stderr, "%s\n", e.msg);
			status = EXIT_FAILED;
		}
	return status;
}
