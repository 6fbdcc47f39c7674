/*
 * pando-fill: fills the memory image of a commit while VMs run on it
 * (common/wire/fill_wire.h). pandod starts one for a commit that is not materialized.
 *
 * It runs as the user, sealed (fill_seal.h), in a session of its own, and opens nothing:
 * FILL_CONTROL_FD brings the image, the files of packs and the sockets of VMs. Its peers are
 * pandod and those VMMs. A VMM that lies about its memory spoils its own: what is woken or
 * zeroed is the memory that its own descriptor stands for. A peer that breaks the protocol is
 * dropped; pandod, too. When pandod ends, it goes on for the VMs that it has, as long as it
 * knows the whole plan.
 */
#include <unistd.h>

#include "common/log.h"
#include "common/wire/fill_wire.h"
#include "host/fill/fill_seal.h"
#include "host/fill/fill_serve.h"

int
main(void)
{
	struct err e;
	int r;

	log_init("pando-fill", LOG_LEVEL_INFO);
	r = fill_serve_open(FILL_CONTROL_FD);
	if (r < 0)
		err_sys(&e, r, "it cannot start");
	else
		r = fill_seal(&e);
	if (r < 0) {
		log_err("%s", e.msg);
		return 1;
	}
	while (!fill_serve_is_over())
		fill_serve_turn();
	_exit(fill_serve_error() ? 1 : 0);
}
