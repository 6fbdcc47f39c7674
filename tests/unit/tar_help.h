/*
 * tar streams put together by hand, member by member, for tests that play a side which
 * means harm. Modes are 06755 and times 1000000000, but where a test sets others.
 */
#ifndef PANDO_TESTS_UNIT_TAR_HELP_H
#define PANDO_TESTS_UNIT_TAR_HELP_H

#include <stddef.h>

struct stream {
	char buf[64 * 1024];
	size_t len;
};

/* type: a typeflag of ustar; link and data may be NULL. */
void stream_add(struct stream *s, char type, const char *name, const char *link,
	const char *data);
void stream_end(struct stream *s);

#endif
