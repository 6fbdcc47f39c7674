/*
 * The record of a run: JSON lines, one event a line, each with "event" and "t_ms" (since
 * the start). Every line is written with one write(2), to each of the descriptors. An
 * error sticks and comes out at the end, so that a full disk does not stop children that
 * are at work.
 *
 * start, base, branched, child (one for each child: timings, exit codes, tails of the
 * output, score or reason of failure), retry, choice (the receipt), collected, deleted,
 * end. Values of environment variables are not recorded: they are where keys are kept.
 */
#ifndef PANDO_SWARM_RECORD_H
#define PANDO_SWARM_RECORD_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "common/json.h"
#include "swarm/ops.h"

struct swarm_record {
	pthread_mutex_t lock;
	uint64_t start_ns;
	int fds[2]; /* borrowed; -1: none */
	int error;
};

void swarm_record_init(struct swarm_record *r, int file_fd, int copy_fd);
/* Starts a line in a zeroed json_out. */
void swarm_record_begin(struct swarm_record *r, struct json_out *o, const char *event);
/* Ends it, writes it and frees o. */
void swarm_record_end(struct swarm_record *r, struct json_out *o);
/* 0 or the first error of all. */
int swarm_record_finish(struct swarm_record *r, struct err *e);

/* A member that says how a command ended. */
void swarm_record_result(struct json_out *o, const char *key,
	const struct swarm_result *result, uint64_t ms);

/* "exit status 2", "signal 9 (Killed)", … */
void swarm_result_text(const struct swarm_result *result, char *dst, size_t cap);

/* Hexadecimal SHA-256, as sha256sum prints it. */
void swarm_sha256(const void *data, size_t len, char ret_hex[65]);

#endif
