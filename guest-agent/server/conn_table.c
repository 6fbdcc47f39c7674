#include <stdlib.h>

#include "guest-agent/identity/apply.h"
#include "guest-agent/server/conn_priv.h"
#include "guest-agent/server/dial.h"
#include "guest-agent/server/exec.h"

#define FIRST_RX 2048

static struct conn *conns;
static unsigned n_conns;

struct conn *
conn_new(int fd)
{
	struct conn *c = n_conns < CONN_MAX ? calloc(1, sizeof(*c)) : NULL;

	if (!c)
		return NULL;
	c->rx = malloc(FIRST_RX);
	if (!c->rx) {
		free(c);
		return NULL;
	}
	c->rx_cap = FIRST_RX;
	source_init(&c->src, fd, NULL);
	c->next = conns;
	conns = c;
	n_conns++;
	return c;
}

unsigned
conn_count(void)
{
	return n_conns;
}

void
conn_close_files(struct conn *c)
{
	tar_unpack_close(c->unpack);
	tar_pack_close(c->pack);
	c->unpack = NULL;
	c->pack = NULL;
}

void
conn_drop(struct conn *c)
{
	struct conn **at = &conns;

	if (c->dead)
		return;
	c->dead = true;
	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	n_conns--;
	if (c->exec)
		exec_detach(c->exec, c);
	if (c->role == IN_HANDSHAKE)
		apply_leave(c);
	if (c->dial)
		dial_cancel(c->dial);
	source_close(&c->src);
	timer_stop(&c->deadline);
	deferred_drop(&c->flush);
	conn_close_files(c);
	free(c->rx);
	free(c->tx);
	loop_free(c);
}
