#include "guest-agent/tools/files_main.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "guest-agent/server/files.h"

#define PIECE (256u * 1024u)

static int
put(const char *path, char *buf, struct err *e)
{
	struct tar_unpack_opts opts = {.dest = path, .keep_setid = true, .sync = true};
	struct tar_unpack *u = NULL;
	ssize_t n = 1;
	int r = tar_unpack_open(&opts, &u, e);

	while (!r && n > 0) {
		n = io_read(STDIN_FILENO, buf, PIECE);
		if (n < 0)
			r = err_sys(e, (int)n, "the stream");
		else if (n > 0)
			r = tar_unpack_feed(u, buf, (size_t)n, e);
	}
	if (!r)
		r = tar_unpack_finish(u, e);
	tar_unpack_close(u);
	return r;
}

static int
get(const char *path, char *buf, uint64_t *ret_skipped, struct err *e)
{
	struct tar_pack *p = NULL;
	struct stat st;
	ssize_t n = 1;
	int r = lstat(path, &st) ? err_sys(e, -errno, "\"%s\"", path)
				 : files_get(path, &p, e);

	while (!r && n > 0) {
		n = tar_pack_read(p, buf, PIECE, e);
		if (n < 0)
			r = (int)n;
		else if (n > 0 && (r = io_write_full(STDOUT_FILENO, buf, (size_t)n)))
			err_sys(e, r, "the stream");
	}
	if (!r)
		*ret_skipped = tar_pack_stats(p)->skipped;
	tar_pack_close(p);
	return r;
}

int
files_main(int argc, char **argv)
{
	cleanup_free char *buf = malloc(PIECE);
	uint64_t skipped = 0;
	struct err e = {0};
	int r;

	if (argc != 3 || !*argv[2] ||
		(strcmp(argv[1], "put") != 0 && strcmp(argv[1], "get") != 0)) {
		fputs("usage: pando-agent files put|get PATH\n", stderr);
		return EXIT_USAGE;
	}
	if (!buf)
		r = err_sys(&e, -ENOMEM, "a copy");
	else if (argv[1][0] == 'p')
		r = put(argv[2], buf, &e);
	else
		r = get(argv[2], buf, &skipped, &e);
	if (r) {
		fprintf(stderr, "pando-agent: %s\n", e.msg);
		return err_exit_code(r);
	}
	fprintf(stderr, "{\"skipped\":%llu}\n", (unsigned long long)skipped);
	return 0;
}
