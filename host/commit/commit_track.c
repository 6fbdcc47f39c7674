#include "host/commit/commit_track.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/text.h"

#define ANSWER_MS 10000

_Static_assert(VMM_COMMIT_ID_BYTES * 2 == STORE_HEX, "an id is a hash");

void
commit_track_done(struct commit_track *t)
{
	store_manifest_free(t->base);
	free(t->bitmaps);
	*t = (struct commit_track){0};
}

/* pid: who answered. It is the VM's process as long as that lives. */
static int
hand_over(struct vm *vm, pid_t pid, enum vmm_track_means means, struct err *e)
{
	cleanup_close int pagemap = -1, clear = -1;
	const char *refs = "/dev/null";
	char path[2][48];
	int r = vmmctl_command(vm->ctl, VMM_TRACK_OPEN, ANSWER_MS, e);

	if (r < 0)
		return r;
	snprintf(path[0], sizeof(path[0]), "/proc/%d/pagemap", (int)pid);
	snprintf(path[1], sizeof(path[1]), "/proc/%d/clear_refs", (int)pid);
	pagemap = open(path[0], O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		err_sys(e, r = -errno, "%s", path[0]);
	if (means == VMM_TRACK_SOFT_DIRTY)
		refs = path[1];
	clear = open(refs, O_WRONLY | O_CLOEXEC);
	if (clear < 0 && r == 0)
		err_sys(e, r = -errno, "%s", refs);
	if (r == 0 && vm->pidfd >= 0 && !process_lives(vm->pidfd))
		r = err_set(e, -ESRCH, "the VM's process ended");
	/* Any message ends the time in which it may be read. */
	if (r < 0) {
		struct vmm_stats_answer s;

		(void)vmmctl_stats(vm->ctl, ANSWER_MS, false, &s, NULL, NULL);
		return r;
	}
	return vmmctl_track(vm->ctl, (int[VMM_TRACK_FD_COUNT]){pagemap, clear}, ANSWER_MS, e);
}

uint32_t
commit_track_prepare(struct vm *vm)
{
	struct vmm_stats_answer s;
	struct err e;
	pid_t pid;

	if (vm->tracks)
		return VMM_FORK_TRACK;
	/* Of a VM that is ending the fork tells more. */
	if (vmmctl_stats(vm->ctl, ANSWER_MS, false, &s, &pid, &e) < 0 ||
		!(s.tracks & VMM_TRACKS))
		return 0;
	if ((s.tracks & VMM_TRACKS_NEEDS_FDS) &&
		hand_over(vm, pid, s.tracks >> VMM_TRACKS_MEANS_SHIFT & 0xff, &e) < 0)
		log_warn("vm %s: its commits read all of its memory: %s", vm->row.id, e.msg);
	else
		vm->tracks = true;
	return VMM_FORK_TRACK;
}

static int
read_bitmaps(int fd, uint64_t at, const struct vmm_track *said, struct commit_track *ret,
	struct err *e)
{
	const size_t len = VMM_TRACK_BITMAP_BYTES(said->pages);
	int r;

	ret->bitmaps = malloc(2 * len);
	if (!ret->bitmaps)
		return err_set(e, -ENOMEM, "out of memory");
	r = io_pread_full(fd, ret->bitmaps, 2 * len, at);
	if (r < 0)
		return err_set(e, -EPROTO, "the VMM does not say which pages changed");
	ret->has_memory = true;
	ret->since = (struct commit_since){.memory = ret->base->f.memory,
		.changed = ret->bitmaps,
		.given_back = ret->bitmaps + len};
	return 0;
}

int
commit_track_read(int fd, const struct vmm_state_answer *a, const struct vm_row *row,
	struct store *s, struct commit_track *ret, struct err *e)
{
	const uint64_t at = (a->blob_bytes + VMM_TRACK_ALIGN - 1) / VMM_TRACK_ALIGN *
			    VMM_TRACK_ALIGN;
	struct vmm_track said;
	char id[STORE_ID_MAX];
	int r;

	if (!(a->flags & VMM_STATE_TRACKED))
		return 0;
	if (io_pread_full(fd, &said, sizeof(said), at) < 0)
		return err_set(e, -EPROTO, "the VMM does not say what changed");
	if (said.version != VMM_TRACK_VERSION || !(said.flags & VMM_TRACK_BASE))
		return 0;
	text_hex(id, said.base, sizeof(said.base));
	if (strcmp(id, row->commit) != 0) {
		log_info("vm %s: its changed pages are known since commit %.12s, which is not its last: all is read",
			row->id, id);
		return 0;
	}
	/* The VM may have what the store has lost of that commit; chunks that are missed are
	 * stored again, where they are read. */
	if (store_is_damaged(s)) {
		log_info("vm %s: the store is damaged: its commit does not begin from commit %.12s",
			row->id, id);
		return 0;
	}
	r = store_load(s, id, &ret->base, NULL);
	if (r < 0) /* deleted, or damaged: then this commit does without */
		return 0;
	if (!(said.flags & VMM_TRACK_SINCE))
		return 0;
	if (said.pages != a->mem_mib * ((1u << 20) / STORE_PAGE))
		return err_set(e, -EPROTO, "the VMM says what changed of %llu pages of memory",
			(unsigned long long)said.pages);
	/* A commit of the same row: its memory cannot have grown. */
	if (ret->base->f.memory.length != a->mem_mib << 20)
		return 0;
	return read_bitmaps(fd, at + VMM_TRACK_ALIGN, &said, ret, e);
}

size_t
commit_track_links(const struct commit_track *t, const struct vm_row *row,
	const struct chain_link *links, size_t n_links)
{
	if (!t->base || !row->commit_segment[0])
		return 0;
	for (size_t i = n_links; i-- > 0;)
		if (strcmp(links[i].segment, row->commit_segment) == 0)
			return i + 1;
	return 0;
}

static int
unhex(char c)
{
	return c <= '9' ? c - '0' : c - 'a' + 10;
}

void
commit_track_durable(struct vm *vm, const uint8_t fork[static 16], const char *id)
{
	struct vmm_committed m = {0};
	struct err e;

	memcpy(m.fork, fork, sizeof(m.fork));
	for (size_t i = 0; i < sizeof(m.commit); i++)
		m.commit[i] = (uint8_t)(unhex(id[2 * i]) << 4 | unhex(id[2 * i + 1]));
	if (vmmctl_committed(vm->ctl, &m, &e) < 0)
		log_info("vm %s: its next commit does not begin from commit %.12s: %s",
			vm->row.id, id, e.msg);
}
