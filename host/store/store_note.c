/*
 * What is remembered of the store beyond a process, as empty files in its folder:
 *
 *   note.damaged  somebody met with chunks that are missing or damaged
 *   note.garbage  commits were deleted since the last gc
 *
 * A note that cannot be written is kept in memory.
 */
#include <fcntl.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/store/store_priv.h"

static const char *const files[] = {
	[NOTE_DAMAGED] = "note.damaged",
	[NOTE_GARBAGE] = "note.garbage",
};

/* note_lock held. */
static void
set(struct store *s, enum note note)
{
	if (s->notes & 1u << note)
		return;
	s->notes |= 1u << note;
	cleanup_close int fd = openat(s->root_fd, files[note],
		O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	/* Garbage that is forgotten in a power cut is found by the next gc all the same. */
	if (fd >= 0 && note == NOTE_DAMAGED)
		(void)fsync(s->root_fd);
}

static void
drop(struct store *s, enum note note)
{
	if (s->notes & 1u << note)
		unlinkat(s->root_fd, files[note], 0);
	s->notes &= ~(1u << note);
}

void
notes_open(struct store *s)
{
	for (unsigned i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		if (faccessat(s->root_fd, files[i], F_OK, AT_SYMLINK_NOFOLLOW) == 0)
			s->notes |= 1u << i;
	s->was_damaged = s->notes & 1u << NOTE_DAMAGED;
	if (s->notes & 1u << NOTE_GARBAGE) {
		s->deleted = 1; /* at least */
		s->deleted_ms = io_now_ns() / 1000000;
	}
}

void
note_damage(struct store *s)
{
	pthread_mutex_lock(&s->note_lock);
	s->damage_seen++;
	set(s, NOTE_DAMAGED);
	pthread_mutex_unlock(&s->note_lock);
}

uint64_t
note_damage_seen(struct store *s)
{
	uint64_t seen;

	pthread_mutex_lock(&s->note_lock);
	seen = s->damage_seen;
	pthread_mutex_unlock(&s->note_lock);
	return seen;
}

void
note_sound(struct store *s, uint64_t seen)
{
	pthread_mutex_lock(&s->note_lock);
	if (seen == s->damage_seen) {
		__atomic_store_n(&s->was_damaged, false, __ATOMIC_RELAXED);
		drop(s, NOTE_DAMAGED);
	}
	pthread_mutex_unlock(&s->note_lock);
}

void
gc_note_deleted(struct store *s, uint64_t n)
{
	if (!n)
		return;
	pthread_mutex_lock(&s->note_lock);
	__atomic_add_fetch(&s->deleted, n, __ATOMIC_RELAXED);
	__atomic_store_n(&s->deleted_ms, io_now_ns() / 1000000, __ATOMIC_RELAXED);
	set(s, NOTE_GARBAGE);
	pthread_mutex_unlock(&s->note_lock);
}

void
gc_note_collected(struct store *s, uint64_t n)
{
	pthread_mutex_lock(&s->note_lock);
	if (__atomic_sub_fetch(&s->deleted, n, __ATOMIC_RELAXED) == 0)
		drop(s, NOTE_GARBAGE);
	pthread_mutex_unlock(&s->note_lock);
}

bool
store_gc_is_due(struct store *s)
{
	uint64_t now = io_now_ns() / 1000000;
	uint64_t n = __atomic_load_n(&s->deleted, __ATOMIC_RELAXED);
	uint64_t last = __atomic_load_n(&s->gc_ms, __ATOMIC_RELAXED);

	/* One that failed will fail again. */
	if (!n || (last && now - last < STORE_GC_PAUSE_MS))
		return false;
	return n >= STORE_GC_MANY ||
	       now - __atomic_load_n(&s->deleted_ms, __ATOMIC_RELAXED) >=
		       STORE_GC_QUIET_MS;
}
