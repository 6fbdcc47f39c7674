/*
 * What a swarm is to do: a TOML file, read into one struct, checked completely before any VM
 * is touched. Every error names file, line, column and the key, and says the mend.
 *
 *	name = "wordfreq"            run name: letters, digits, . _ -; default: the file's name
 *	from = "warm"                branch this VM …
 *	[machine]                    … or boot one (exactly one of the two)
 *	mem_size_mib = 512           all optional; what is absent is the host's default
 *	vcpu_count = 1
 *	fs_size_vm_mib = 1024
 *	[rootfs]                     with [machine] only, likewise [kernel] and [setup]
 *	name = "default"
 *	[kernel]
 *	name = "default"
 *	[setup]                      warms the machine before it is branched
 *	files = [{ from = "program", to = "/root/program" }]
 *	command = ["make", "-C", "/root/program"]   an array is argv; a string is for /bin/sh -c
 *	time_limit_s = 300
 *
 *	files = […]                  put into every child before its work, as `cp -r` does
 *	collect = ["/root/out.patch"]   fetched into the output folder
 *	collect_from = "winner"      or "all": from every child that has a score
 *	output = "wordfreq-out"      default: the run's id; relative to the current folder
 *	keep_winner = false          true: the winning VM goes on, named like its child
 *	parallel = 2                 children that work at once; default: CPUs of this host
 *	[work]                       defaults for every child
 *	command, cwd, user, env, time_limit_s = 600
 *	[score]
 *	command = ["./score"]        last line of its standard output: a number; highest wins
 *	cwd, user, time_limit_s = 600
 *	failed_work = false          true: children whose work failed are scored too
 *	[[child]]
 *	name = "o3"                  default: child-<index>
 *	command, cwd, user, env, files, time_limit_s   override or (env, files) add to the above
 *	count = 4                    that many, with {index} replaced in name, command and env
 *
 * Paths on the host are relative to the spec's folder (but `output`). Limits of one run:
 * SWARM_CHILDREN_MAX children, SWARM_LIST_MAX words, variables, files or paths in one list.
 */
#ifndef PANDO_SWARM_SPEC_H
#define PANDO_SWARM_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define SWARM_CHILDREN_MAX 1024
#define SWARM_LIST_MAX 256
#define SWARM_NAME_MAX 63
#define SWARM_TIME_MAX_S (7u * 24 * 3600)

struct swarm_env {
	const char *key, *value;
};

struct swarm_file {
	const char *from; /* host path as it can be opened */
	const char *to;	  /* absolute path in the guest: a folder to put it in, or its new
			     name */
};

/* One command with its circumstances. argv is NULL-terminated, NULL when there is no
 * command. */
struct swarm_step {
	const char *const *argv;
	const char *cwd, *user; /* NULL: the agent's default */
	const struct swarm_env *env;
	size_t n_env;
	const struct swarm_file *files;
	size_t n_files;
	uint64_t time_limit_ms;
};

struct swarm_machine {
	unsigned mem_mib, vcpus, disk_mib; /* 0: the host's default */
	const char *rootfs, *kernel;	   /* NULL: the host's default */
};

struct swarm_child_spec {
	const char *name;
	struct swarm_step work;
};

/* Everything in it is owned by it. */
struct swarm_spec {
	const char *name;
	const char *from; /* NULL: `machine` is booted */
	struct swarm_machine machine;
	struct swarm_step setup;
	struct swarm_step score;
	bool score_failed_work;
	const struct swarm_child_spec *children;
	size_t n_children;
	const char *const *collect;
	size_t n_collect;
	bool collect_from_all;
	const char *output; /* NULL: the run's id */
	bool keep_winner;
	unsigned parallel;	    /* 0: CPUs of this host */
	struct swarm_chunk *chunks; /* the memory of all of the above */
};

/* `path` is named in errors, gives the default name and the folder for relative host
 * paths; the files that the spec names are not looked at. Free with swarm_spec_free. */
int swarm_spec_parse(const char *path, const char *text, size_t len,
	struct swarm_spec **ret, struct err *e);

/* Are the files that it puts there and readable? -ENOENT or -EACCES with the name. */
int swarm_spec_check_files(const struct swarm_spec *spec, struct err *e);

void swarm_spec_free(struct swarm_spec *spec);
static inline void
swarm_spec_free_fn(struct swarm_spec **spec)
{
	swarm_spec_free(*spec);
}
#define cleanup_swarm_spec __attribute__((cleanup(swarm_spec_free_fn)))

#endif
