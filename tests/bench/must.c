#include "tests/bench/must.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

_Noreturn void
must_not_go_on(const char *what, const struct err *e)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, e->msg);
	exit(1);
}

void
must(int r, const char *what, const struct err *e)
{
	if (r < 0)
		must_not_go_on(what, e);
}
