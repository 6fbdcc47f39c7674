#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/client/client.h"

extern const struct verb verb_version;

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_version, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_json_out struct json_out o = {0};
	cleanup_client struct client *c = NULL;
	char daemon[64] = "";
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_WORD)
			key = (err_set(&e, -EINVAL, "version takes no words"), OPT_ERROR);
		return opt_leave(&s, key, &e);
	}
	/* Only asks a pandod that is there: a version is no reason to start one. */
	if (client_open(NULL, 0, &c, NULL) == 0 &&
		client_call(c, "GET", "/v1/version", NULL, &reply, NULL) == 0)
		(void)json_str(reply.json, json_get(reply.json, 0, "version"), daemon,
			sizeof(daemon));
	if (s.json) {
		json_out_object(&o, NULL);
		json_out_str(&o, "version", PANDO_VERSION);
		json_out_str(&o, "pandod", daemon[0] ? daemon : NULL);
		json_out_end_object(&o);
		return out_json(&o);
	}
	printf("%s\n", PANDO_VERSION);
	if (daemon[0] && strcmp(daemon, PANDO_VERSION) != 0 && !s.quiet)
		out_complain("the pandod that runs here is version %s", daemon);
	return EXIT_OK;
}

const struct verb verb_version = {
	.name = "version",
	.summary = "Which version this is",
	.run = run,
	.usage = "",
	.text = "JSON has the running pandod's version too (null: none runs).",
};
