/* The machine's folder: small files by name, and what /proc says of a process. */
#include "host/testvm/machine_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"

int
machine_path(
	const struct machine *m, const char *name, char dst[PATHS_MAX], struct err *e)
{
	return paths_format(dst, PATHS_MAX, e, "%s/%s", m->home, name);
}

int
machine_write(const struct machine *m, const char *name, const char *text, struct err *e)
{
	char path[PATHS_MAX];
	int r = machine_path(m, name, path, e);

	return r < 0 ? r : io_write_file_atomic(path, text, strlen(text), 0600, e);
}

int
machine_start_ticks(const char *stat_text, uint64_t *ret)
{
	/* The second field is the program's name in parentheses, which may hold anything.
	 */
	const char *p = strrchr(stat_text, ')');
	char *end;

	if (!p)
		return -EINVAL;
	for (int field = 2; field < 22; field++) {
		p = strchr(p, ' ');
		if (!p)
			return -EINVAL;
		p++;
	}
	errno = 0;
	*ret = strtoull(p, &end, 10);
	return errno || end == p ? -EINVAL : 0;
}
