/* wordfreq [-n N] [-m LENGTH] [-t] [FILE…]: the most frequent words of the files, or of standard input. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "wordfreq.h"

static int
count_file(struct wf *wf, FILE *f, const char *name)
{
	char piece[4096];
	size_t n;

	while ((n = fread(piece, 1, sizeof(piece), f)) > 0)
		if (wf_add(wf, piece, n) < 0) {
			fprintf(stderr, "wordfreq: out of memory\n");
			return -1;
		}
	if (ferror(f)) {
		fprintf(stderr, "wordfreq: %s: %s\n", name, strerror(errno));
		return -1;
	}
	return wf_finish(wf);
}

static int
number(const char *text, size_t *ret)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno) {
		fprintf(stderr, "wordfreq: \"%s\" is not a whole number\n", text);
		return -1;
	}
	*ret = v;
	return 0;
}

static int
count_all(struct wf *wf, char **files)
{
	int status = 0;

	if (!*files)
		return count_file(wf, stdin, "standard input");
	for (; *files; files++) {
		FILE *f = fopen(*files, "r");

		if (!f) {
			fprintf(stderr, "wordfreq: %s: %s\n", *files, strerror(errno));
			status = -1;
			continue;
		}
		if (count_file(wf, f, *files) < 0)
			status = -1;
		fclose(f);
	}
	return status;
}

int
main(int argc, char **argv)
{
	size_t n = 10, min_len = 1, found;
	const struct wf_entry *top;
	int opt, totals = 0, status;
	struct wf *wf;

	while ((opt = getopt(argc, argv, "n:m:t")) != -1)
		switch (opt) {
		case 'n':
			if (number(optarg, &n) < 0)
				return 2;
			break;
		case 'm':
			if (number(optarg, &min_len) < 0)
				return 2;
			break;
		case 't':
			totals = 1;
			break;
		default:
			fprintf(stderr, "usage: wordfreq [-n N] [-m LENGTH] [-t] [FILE...]\n");
			return 2;
		}
	wf = wf_new(min_len);
	if (!wf) {
		fprintf(stderr, "wordfreq: out of memory\n");
		return 1;
	}
	status = count_all(wf, argv + optind);
	if (totals)
		printf("%lu words, %zu distinct\n", wf_total(wf), wf_distinct(wf));
	found = wf_top(wf, n, &top);
	for (size_t i = 0; i < found; i++)
		printf("%lu %s\n", top[i].count, top[i].word);
	wf_free(wf);
	if (fflush(stdout) == EOF) {
		fprintf(stderr, "wordfreq: standard output: %s\n", strerror(errno));
		return 1;
	}
	return status < 0;
}
