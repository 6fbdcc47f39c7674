/* What `pando run` and other verbs that boot a machine share. */
#ifndef PANDO_HOST_CLI_RUN_IMAGE_H
#define PANDO_HOST_CLI_RUN_IMAGE_H

#include <stdbool.h>

#include "common/err.h"
#include "host/client/client.h"

/* Builds the image "default" when spec needs it and it is missing: minutes, with progress
 * on stderr, or in a log below the home when quiet. Refuses an alias that is taken before
 * that. */
int run_prepare_image(
	struct client *c, const struct client_run *spec, bool quiet, struct err *e);

#endif
