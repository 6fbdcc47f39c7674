#include "host/vm/chain_files.h"

#include <errno.h>
#include <stdlib.h>

void
chain_files_done(struct chain_files *f)
{
	free(f->segments);
	free(f->paths);
	*f = (struct chain_files){0};
}

int
chain_files_make(const char *home, const struct chain_link *links, size_t n,
	struct chain_files *ret, struct err *e)
{
	int r = 0;

	ret->segments = calloc(n + 1, sizeof(*ret->segments));
	ret->paths = calloc(n + 1, sizeof(*ret->paths));
	if (!ret->segments || !ret->paths)
		return err_set(e, -ENOMEM, "out of memory");
	for (size_t i = 0; i < n && r == 0; i++) {
		r = paths_format(ret->paths[i][0], PATHS_MAX, e, "%s/segments/%s.data", home,
			links[i].segment);
		if (r == 0)
			r = paths_format(ret->paths[i][1], PATHS_MAX, e,
				"%s/segments/%s.index", home, links[i].segment);
		ret->segments[i] = (struct disk_segment){
			ret->paths[i][0], ret->paths[i][1], links[i].records};
	}
	return r;
}
