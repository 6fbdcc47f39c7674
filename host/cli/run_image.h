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

/* An image that is named by a path: made absolute, because pandod does not share the caller's
 * folder. *image then points to *ret_path, which is the caller's to free; a name is left. */
int run_image_path(const char **image, char **ret_path, struct err *e);

#endif
