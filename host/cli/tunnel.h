/*
 * The listening side of `pando tunnel`: doors (a local address each, and the port of the
 * guest behind it), and a thread for each connection that came through one.
 *
 * Bounded: TUNNEL_CONNS_MAX connections, each with a buffer each way
 * (host/agent/agent_client.h); more wait in the listening queues until one ends.
 */
#ifndef PANDO_HOST_CLI_TUNNEL_H
#define PANDO_HOST_CLI_TUNNEL_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "common/err.h"

#define TUNNEL_DOORS_MAX 64
#define TUNNEL_CONNS_MAX 240 /* the guest's agent takes AGENT_DIALS_MAX of all */

struct tunnel_door {
	uint16_t local, guest;		    /* local 0: any */
	int fd;				    /* owned; -1 */
	char address[INET6_ADDRSTRLEN + 8]; /* as it is written: 127.0.0.1:8080 */
	int told; /* the last failure that was complained of; 0 after a success */
};

/* "PORT" or "LOCAL:PORT"; LOCAL may be 0. -EINVAL with the sentence. */
int tunnel_read_door(const char *text, struct tunnel_door *ret, struct err *e);
/* Whether a word can only be one: digits and at most one colon among them. */
bool tunnel_is_door(const char *word);

/* Binds and listens at the numeric address bind; local and address are filled in.
 * *ret_open: others than this host reach it. */
int tunnel_listen(struct tunnel_door *d, const char *bind, bool *ret_open, struct err *e);

struct tunnel {
	const char *name;   /* borrowed: of the VM, for sentences */
	const char *socket; /* borrowed: its agent.sock */
	struct tunnel_door *doors;
	unsigned n_doors;
	int signal_fd; /* borrowed: readable when it is to end */
};
/* Until the guest goes or signal_fd is readable: -ECANCELED for that, else the sentence
 * (-EPIPE, -ENOENT, -ENOTCONN: it went). All its threads have ended then. */
int tunnel_run(struct tunnel *t, struct err *e);

#endif
