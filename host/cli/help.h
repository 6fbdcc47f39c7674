/* Help texts and shell completions, all from the tables in verbs.c. */
#ifndef PANDO_HOST_CLI_HELP_H
#define PANDO_HOST_CLI_HELP_H

#include <stdio.h>

#include "host/cli/verb.h"

void help_all(FILE *f);
void help_verb(FILE *f, const struct verb *v);

#endif
