/*
 * What pandod says to systemd and machined of the host, through sd-bus: root over the
 * system's bus or, where there is none, to systemd itself (/run/systemd/private); anybody
 * else over their own bus. The only caller of libsystemd on the host, with
 * common/systemd.c.
 *
 * One connection belongs to one thread. Every call has an end: BUS_CALL_MS, and as long
 * again for a job. A connection that broke (-ENOTCONN, -ECONNRESET, -EPIPE) is of no more
 * use: close it.
 */
#ifndef PANDO_HOST_SCOPE_BUS_H
#define PANDO_HOST_SCOPE_BUS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

#define BUS_CALL_MS 5000

struct bus;

/* -ENOENT, -ECONNREFUSED and the like: there is no bus; -ESRCH: there is one, and no
 * systemd on it; -ETIMEDOUT: nobody answers. */
int bus_open(struct bus **ret, struct err *e);
void bus_close(struct bus *b);
static inline void
bus_close_fn(struct bus **b)
{
	bus_close(*b);
}
#define cleanup_bus __attribute__((cleanup(bus_close_fn)))
/* Whether it is the system's: then machined may be on it. */
bool bus_is_system(const struct bus *b);
/* Whether r says that the connection is gone. */
bool bus_broke(int r);

struct bus_scope {
	const char *unit;	 /* "x.scope" */
	const char *description; /* for people */
	const char *slice;	 /* "x.slice" */
	pid_t pid;
	uint64_t memory_max; /* bytes */
	uint64_t cpu_weight; /* 1 to 10000 */
};
/* A transient scope with that process in it, once its job is done. -EEXIST: there is a
 * unit of that name. */
int bus_scope_start(struct bus *b, const struct bus_scope *s, struct err *e);
/* Another MemoryMax for one that is there. */
int bus_scope_limit(struct bus *b, const char *unit, uint64_t memory_max, struct err *e);

/* A VM's process, for `machinectl`. -ESRCH: no machined runs (none is started for it). */
int bus_machine_register(struct bus *b, const char *name, const uint8_t id[static 16],
	pid_t leader, const char *folder, struct err *e);
/* One that is not there is no error. */
int bus_machine_unregister(struct bus *b, const char *name, struct err *e);

#endif
