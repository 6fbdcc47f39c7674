/*
 * Nodes of trees that writers have read or written lately, decoded, by their names: the
 * next commit of the same machine rewrites the leaves that the last one wrote, and need
 * not read, decode and hash them again. Only writers use it; who checks something reads.
 *
 * A table of NODES_KEPT places in sets of NODES_A_SET; a name leads to a set, in which the
 * oldest goes. A node is what its name says for as long as there are hashes, whether it is stored or not:
 * who needs it stored asks the packs (store_write.c).
 */
#include <stdlib.h>
#include <string.h>

#include "host/store/store_priv.h"

#define NODES_A_SET 4u
#define NODES_KEPT 8192u /* 17 MiB */

struct kept {
	struct store_hash name; /* zero: nothing */
	struct store_hash child[NODE_FANOUT];
	struct store_hash reference; /* of a delta; zero: it is none */
	uint64_t used;		     /* when, in uses of the table */
};

static struct kept *
find(struct store *s, const struct store_hash *name, struct kept **ret_oldest)
{
	struct kept *set;
	uint32_t at;

	memcpy(&at, name->b, sizeof(at));
	set = &s->nodes[at % (NODES_KEPT / NODES_A_SET) * NODES_A_SET];
	*ret_oldest = set;
	for (unsigned i = 0; i < NODES_A_SET; i++) {
		if (hash_equal(&set[i].name, name))
			return &set[i];
		if (set[i].used < (*ret_oldest)->used)
			*ret_oldest = &set[i];
	}
	return NULL;
}

void
nodes_put(struct store *s, const struct store_hash *name, const void *node,
	const struct store_hash *reference)
{
	struct kept *k, *oldest;

	pthread_mutex_lock(&s->nodes_lock);
	if (!s->nodes)
		s->nodes = calloc(NODES_KEPT, sizeof(*s->nodes));
	if (s->nodes) {
		k = find(s, name, &oldest);
		if (!k)
			k = oldest;
		k->used = ++s->nodes_uses;
		k->name = *name;
		memcpy(k->child, node, sizeof(k->child));
		if (reference)
			k->reference = *reference;
		else
			memset(&k->reference, 0, sizeof(k->reference));
	}
	pthread_mutex_unlock(&s->nodes_lock);
}

bool
nodes_get(struct store *s, const struct store_hash *name, void *ret,
	struct store_hash *ret_reference)
{
	struct kept *k, *ignored;

	pthread_mutex_lock(&s->nodes_lock);
	k = s->nodes ? find(s, name, &ignored) : NULL;
	if (k) {
		k->used = ++s->nodes_uses;
		memcpy(ret, k->child, sizeof(k->child));
		*ret_reference = k->reference;
	}
	pthread_mutex_unlock(&s->nodes_lock);
	return k;
}
