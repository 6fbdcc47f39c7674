/*
 * Reading a VM's console ring (common/wire/console_ring.h) or a plain log file by offsets that stay
 * true while somebody writes.
 */
#ifndef PANDO_HOST_CLI_LOGS_H
#define PANDO_HOST_CLI_LOGS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "common/err.h"

#define LOGS_CHUNK 65536u

struct logs_source {
	int fd; /* owned */
	bool ring;
};
#define LOGS_SOURCE_INIT \
	{ \
		.fd = -1 \
	}

int logs_open(const char *path, bool ring, struct logs_source *ret, struct err *e);
void logs_close(struct logs_source *s);
/* Up to cap bytes from *at on, which moves behind them; 0: nothing new. *ret_lost: bytes
 * that were overwritten and are skipped. -EBADMSG: no console ring. */
ssize_t logs_read(struct logs_source *s, uint64_t *at, char *buf, size_t cap,
	uint64_t *ret_lost, struct err *e);
/* Sets *ret_at to where the last `lines` lines begin. */
int logs_tail(struct logs_source *s, uint64_t lines, uint64_t *ret_at, struct err *e);

/* A guest's bytes for a terminal: line feed, tab and UTF-8 stay, carriage returns are
 * dropped, other controls (U+0080 to U+009F among them) become \xNN. One struct for one
 * stream. */
struct logs_plain {
	bool c2; /* the byte 0xc2 waits for its successor */
};
void logs_put_plain(struct logs_plain *p, FILE *f, const char *buf, size_t len);

#endif
