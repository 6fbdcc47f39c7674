/*
 * One run of a swarm: find or boot the base, branch it, let `parallel` children work at a
 * time, score each, keep the best, collect from it, delete the rest.
 *
 * Winner: the highest score; of equal scores the child that stands first in the spec. The
 * rule does not depend on who finishes first. A child fails when its command fails
 * (status, signal, time limit; never retried), when the score command fails or its last
 * line is no number, or when the infrastructure fails twice: after the first time the
 * child is branched anew from the base and starts over.
 *
 * A child that cannot win any more is deleted at once. Whatever happens, at the end no VM
 * of the run is left but a winner that is to be kept (and the machine it was branched
 * from, if the run booted it: pandod keeps a parent as long as it has children).
 */
#ifndef PANDO_SWARM_RUN_H
#define PANDO_SWARM_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "swarm/ops.h"
#include "swarm/spec.h"

#define SWARM_RUN_SIZE 64 /* of a run's id: <name>-<8 hex digits> */

struct swarm_options {
	const char *spec_path, *spec_sha256; /* for the record */
	const char *version;
	const char *output; /* overrides the spec's; NULL: it does not */
	unsigned parallel;  /* overrides; 0: does not */
	bool keep_winner;   /* or the spec's */
	int cancel_fd;	    /* readable: stop, delete everything, -ECANCELED. -1: none */
	int view_fd;	    /* for people; -1: none */
	bool live;	    /* view_fd is a terminal */
	int record_copy_fd; /* the record goes there too; -1: none */
};

struct swarm_summary {
	char run[SWARM_RUN_SIZE];
	char output[1024];  /* folder of record.jsonl and of what was collected */
	const char *winner; /* name, borrowed from the spec; NULL: none */
	double score;
	char winner_vm[SWARM_ID_SIZE]; /* "" when it was deleted */
	char reason[400];	       /* why it won */
	size_t n_scored, n_failed;
};

/* 0 with a winner; -ECANCELED; else what went wrong: ret is filled in as far as it came.
 */
int swarm_run(const struct swarm_spec *spec, const struct swarm_ops *ops, void *ctx,
	const struct swarm_options *options, struct swarm_summary *ret, struct err *e);

/* The number on the last line; trailing white space does not count. -EINVAL with a
 * sentence that quotes what was there. */
int swarm_parse_score(const struct swarm_tail *out, double *ret, struct err *e);

#endif
