/*
 * What a frozen fork says of changed pages (vmm/track.h), against what changed: guests that
 * never rest, commits at random instants, some of which fail, branches between them, VMs that
 * go on from a commit. Every commit's memory is compared with that of the commit it is told
 * against, byte by byte.
 */
#include "tests/kvm/kvm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define PAGE 4096u
#define MEM_MIB 16u
#define PAGES (MEM_MIB * 256u)
#define PM_PRESENT (1ull << 63)
#define PM_SWAPPED (1ull << 62)
#define PM_FILE (1ull << 61)

/* A commit that was made durable: its id, and its memory. */
struct durable {
	uint64_t id; /* 0: none */
	uint8_t *memory;
};

static unsigned seed;
static uint8_t *image; /* that the VM lies on, since it was restored; owned */

static unsigned
below(unsigned n)
{
	return (unsigned)rand_r(&seed) % n;
}

static void
nap(unsigned us)
{
	const struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};

	nanosleep(&t, NULL);
}

static uint8_t *
load(const char *path)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint8_t *p = malloc(PAGES * PAGE);

	assert_true(fd >= 0 && p);
	assert_int_equal(io_pread_full(fd, p, PAGES * PAGE, 0), 0);
	return p;
}

static bool
has_bit(const uint8_t *bitmap, uint64_t page)
{
	return bitmap[page / 8] >> page % 8 & 1;
}

static uint64_t *
page_map(const struct commit *c)
{
	cleanup_close int fd = open(c->page_map, O_RDONLY | O_CLOEXEC);
	uint64_t *map = malloc(PAGES * sizeof(*map));

	assert_true(fd >= 0 && map);
	assert_int_equal(io_pread_full(fd, map, PAGES * sizeof(*map), 0), 0);
	return map;
}

/* What differs must be told, and be told so that pandod reads it. Returns how many pages
 * that rule has it read. */
static unsigned
assert_all_changes_are_told(
	const struct commit *c, const uint8_t *now, const struct durable *base)
{
	cleanup_free uint64_t *map = page_map(c);
	cleanup_free uint8_t *bits = NULL;
	unsigned told = 0, differ = 0;
	const uint8_t *given_back;

	MUST(driver_read_bitmaps(c, &bits, e));
	given_back = bits + VMM_TRACK_BITMAP_BYTES(c->track.pages);
	for (unsigned i = 0; i < PAGES; i++) {
		bool mapped = map[i] & (PM_PRESENT | PM_SWAPPED) && !(map[i] & PM_FILE);
		bool is_told = (has_bit(bits, i) && mapped) || has_bit(given_back, i);
		bool differs = memcmp(now + i * PAGE, base->memory + i * PAGE, PAGE) != 0;

		told += is_told;
		differ += differs;
		if (differs && !is_told)
			fail_msg("page %u changed since commit %llu, and is not told (map %llx)",
				i, (unsigned long long)base->id, (unsigned long long)map[i]);
	}
	/* A guest that writes a value which was there is rare. */
	assert_true(told >= differ);
	return told;
}

/* What the page map says is the image's must be so. */
static void
assert_the_rest_is_the_image_s(const struct commit *c, const uint8_t *now)
{
	cleanup_free uint64_t *map = page_map(c);

	for (unsigned i = 0; i < PAGES; i++) {
		bool is_private =
			map[i] & (PM_PRESENT | PM_SWAPPED) && !(map[i] & PM_FILE);

		if (!is_private && memcmp(now + i * PAGE, image + i * PAGE, PAGE) != 0)
			fail_msg("page %u is not the image's, and not private (map %llx)", i,
				(unsigned long long)map[i]);
	}
}

static void
set_durable(struct durable *d, uint64_t id, uint8_t *memory)
{
	free(d->memory);
	*d = (struct durable){id, memory};
}

/* One commit; it may fail afterwards. Returns the pages that were told, or PAGES. */
static unsigned
commit_once(struct vm *vm, struct durable *base, uint64_t id, bool fails, struct commit *ret)
{
	uint8_t fork[16], *now;
	struct vm *frozen = NULL;
	unsigned told = PAGES;
	uint64_t since = 0;
	char tag[32];

	snprintf(tag, sizeof(tag), "commit-%llu", (unsigned long long)id);
	MUST(driver_fork(vm, tag, DRIVER_PARK | DRIVER_TRACK, &frozen, NULL, e));
	memcpy(fork, vm->generation, sizeof(fork));
	MUST(driver_take_state(frozen, tag, ret, e));
	assert_true(ret->answer.flags & VMM_STATE_TRACKED);
	assert_int_equal(ret->track.version, VMM_TRACK_VERSION);
	now = load(ret->memory);
	if (ret->answer.flags & VMM_STATE_ON_IMAGE)
		assert_the_rest_is_the_image_s(ret, now);
	if (base->id) {
		assert_true(ret->track.flags & VMM_TRACK_BASE);
		assert_true(ret->track.flags & VMM_TRACK_SINCE);
		assert_int_equal(ret->track.pages, PAGES);
		assert_int_equal(ret->track.note[127], 0x5a);
		memcpy(&since, ret->track.base, sizeof(since));
		assert_int_equal(since, base->id);
		told = assert_all_changes_are_told(ret, now, base);
	} else {
		assert_false(ret->track.flags & VMM_TRACK_SINCE);
	}
	if (fails) {
		free(now);
	} else {
		MUST(driver_committed(vm, fork, id, e));
		set_durable(base, id, now);
	}
	return told;
}

static void
needs_userfaultfd(void **state, struct vm *vm)
{
	struct vmm_stats_answer s;

	(void)state;
	MUST(driver_stats(vm, &s, e));
	assert_true(s.tracks & VMM_TRACKS);
	if (s.tracks >> VMM_TRACKS_MEANS_SHIFT == VMM_TRACK_NONE)
		skip();
}

static struct vm *
scatter(const char *name, unsigned pages, bool reports)
{
	char cmdline[96];
	struct vm *vm;

	snprintf(cmdline, sizeof(cmdline), "mode=scatter pages=%u seed=%u reports=%d", pages,
		below(1000), reports);
	vm = boot(name, cmdline, 1);
	expect(vm, "scattering", NULL, 0);
	return vm;
}

static struct vm *
restored(const struct commit *c, const char *name)
{
	struct restore r = {.commit = c};
	struct vm *vm = NULL;

	free(image);
	image = load(c->memory);
	MUST(driver_start(&driver, name, &vm, e));
	MUST(driver_send_restore(vm, &r, e));
	MUST(driver_wait_started(vm, 30000, e));
	return vm;
}

static void
go_on_and_commit(void **state, bool reports)
{
	struct durable base = {0};
	struct commit last = {0};
	struct vm *vm, *old;
	uint64_t id = 0, last_id = 0;
	unsigned rounds = 60, told = 0, n_told = 0;
	char console[512];
	const char *set = getenv("KVM_TRACK_ROUNDS"), *from = getenv("KVM_TRACK_SEED");

	NEEDS_KVM(state);
	if (set)
		rounds = (unsigned)atoi(set);
	seed = from ? (unsigned)atoi(from) : (unsigned)getpid();
	print_message("# KVM_TRACK_SEED=%u\n", seed);
	vm = scatter("scatter", 1024, reports);
	needs_userfaultfd(state, vm);
	for (unsigned round = 0; round < rounds; round++) {
		struct commit c;
		char name[32];
		bool fails = below(4) == 0;
		unsigned n;

		nap(below(20000));
		if (below(4) == 0) { /* a branch between two commits changes nothing */
			snprintf(name, sizeof(name), "aside-%u", round);
			driver_kill(fork_vm(vm, name, below(2) ? DRIVER_PARK : 0));
		}
		n = commit_once(vm, &base, ++id, fails, &c);
		driver_console(vm, console, sizeof(console));
		if (strstr(console, "scatter:"))
			fail_msg("the guest stopped: %s", console);
		if (n < PAGES) {
			told += n;
			n_told++;
		}
		if (!fails) {
			last = c;
			last_id = id;
		}
		if (last_id && below(8) == 0) {
			/* From the last commit on: the whole of it is private anew. */
			snprintf(name, sizeof(name), "again-%u", round);
			old = vm;
			vm = restored(&last, name);
			driver_kill(old);
			set_durable(&base, 0, NULL);
		} else if (below(8) == 0) {
			snprintf(name, sizeof(name), "child-%u", round);
			old = vm;
			vm = fork_vm(vm, name, 0);
			if (below(2)) /* a child outlives its parent */
				driver_kill(old);
			MUST(driver_hand_page_map(vm, vm->pid, e));
			set_durable(&base, 0, NULL);
		}
		for (int i = 0; i < DRIVER_VMS_MAX; i++)
			if (driver.vms[i].used && &driver.vms[i] != vm &&
				strcmp(driver.vms[i].name, "scatter") != 0 &&
				strncmp(driver.vms[i].name, "commit-", 7) != 0)
				driver_kill(&driver.vms[i]);
		/* Their files are needed while a VM may begin from them. */
		for (int i = 0; i < DRIVER_VMS_MAX; i++)
			if (driver.vms[i].used &&
				strncmp(driver.vms[i].name, "commit-", 7) == 0) {
				if (!strstr(last.state, driver.vms[i].folder))
					driver_kill(&driver.vms[i]);
			}
	}
	assert_true(n_told > rounds / 4);
	print_message("# %u commits were told %u pages each, of %u\n", n_told, told / n_told,
		PAGES);
	/* Tracking that tells everything would miss nothing, too, nor that of a guest at rest. */
	assert_true(told / n_told > 4);
	assert_true(told / n_told < PAGES / 2);
	set_durable(&base, 0, NULL);
}

static void
no_change_is_missed(void **state)
{
	go_on_and_commit(state, false);
}

/* In branches, and over commits' images, too. */
static void
no_change_is_missed_of_guests_that_give_memory_back(void **state)
{
	go_on_and_commit(state, true);
}

static void
a_vm_at_rest_tells_next_to_nothing(void **state)
{
	struct durable base = {0};
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	vm = boot("rest", "mode=hello", 1);
	needs_userfaultfd(state, vm);
	expect(vm, "hello", NULL, 0);
	nap(20000);
	commit_once(vm, &base, 1, false, &c);
	for (uint64_t id = 2; id < 6; id++) {
		unsigned told = commit_once(vm, &base, id, id == 3, &c);

		/* The generation's page. */
		if (told > 2)
			fail_msg("commit %u is told %u pages", (unsigned)id, told);
	}
	set_durable(&base, 0, NULL);
}

static void
a_commit_of_another_fork_is_not_the_base(void **state)
{
	struct durable base = {0};
	uint8_t nobody[16] = {1, 2, 3};
	struct commit c;
	struct err why;
	struct vm *vm;

	NEEDS_KVM(state);
	vm = scatter("scatter", 64, false);
	needs_userfaultfd(state, vm);
	assert_int_equal(driver_committed(vm, nobody, 9, &why), -ESTALE);
	commit_once(vm, &base, 1, false, &c);
	commit_once(vm, &base, 2, true, &c);
	assert_int_equal(driver_committed(vm, nobody, 9, &why), -ESTALE);
	/* Still told since the first. */
	commit_once(vm, &base, 3, false, &c);
	set_durable(&base, 0, NULL);
}

static void
a_child_is_not_given_its_parents_page_map(void **state)
{
	struct durable base = {0};
	struct vmm_stats_answer s;
	struct commit c;
	struct vm *vm, *child;
	struct err why;

	NEEDS_KVM(state);
	vm = scatter("scatter", 64, false);
	needs_userfaultfd(state, vm);
	commit_once(vm, &base, 1, false, &c);
	child = fork_vm(vm, "child", 0);
	MUST(driver_stats(child, &s, e));
	assert_true(s.tracks & VMM_TRACKS_NEEDS_FDS);
	assert_int_equal(driver_hand_page_map(child, getpid(), &why), -EBADF);
	/* It is told so once, and commits read all from then on. */
	MUST(driver_stats(child, &s, e));
	assert_false(s.tracks & VMM_TRACKS_NEEDS_FDS);
	set_durable(&base, 0, NULL);
	commit_once(child, &base, 2, true, &c);
	assert_false(c.track.flags & VMM_TRACK_SINCE);
	assert_true(driver_alive(vm) && driver_alive(child));
	set_durable(&base, 0, NULL);
}

/* Its memory is closed to its user again, whatever came instead of the page map. */
static void
a_vmm_that_was_opened_closes_with_the_next_message(void **state)
{
	struct vmm_stats_answer s;
	struct vm *vm, *child;
	char path[64];
	struct stat st;

	NEEDS_KVM(state);
	vm = scatter("scatter", 64, false);
	needs_userfaultfd(state, vm);
	child = fork_vm(vm, "child", 0);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)child->pid);
	MUST(driver_request(child, VMM_TRACK_OPEN, NULL, 0, VMM_DONE, 10000, e));
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_uid, getuid());
	MUST(driver_stats(child, &s, e));
	assert_true(s.tracks & VMM_TRACKS_NEEDS_FDS);
	/* A process that is not dumpable has its files owned by root: seen where we are not. */
	assert_int_equal(stat(path, &st), 0);
	if (getuid() != 0)
		assert_int_equal(st.st_uid, 0);
	MUST(driver_hand_page_map(child, child->pid, e));
	MUST(driver_stats(child, &s, e));
	assert_false(s.tracks & VMM_TRACKS_NEEDS_FDS);
}

/* An old pandod's fork: nobody asked, and nothing is told. */
static void
a_fork_that_does_not_ask_is_told_nothing(void **state)
{
	struct vm *vm, *frozen = NULL;
	struct commit c;

	NEEDS_KVM(state);
	vm = scatter("scatter", 64, false);
	MUST(driver_fork(vm, "plain", DRIVER_PARK, &frozen, NULL, e));
	MUST(driver_take_state(frozen, "plain", &c, e));
	assert_int_equal(c.answer.flags & VMM_STATE_TRACKED, 0);
}

static void
without_means_each_commit_is_whole(void **state)
{
	struct durable base = {0};
	struct vmm_stats_answer s;
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	setenv("PANDO_TRACK", "none", 1);
	vm = scatter("scatter", 64, false);
	unsetenv("PANDO_TRACK");
	MUST(driver_stats(vm, &s, e));
	assert_int_equal(s.tracks,
		VMM_TRACKS | VMM_RESETS | VMM_HAS_BALLOON | VMM_LIMITS_DISK |
			VMM_TAKES_MERGED | VMM_KEEPS_FORK_POINTS);
	for (uint64_t id = 1; id < 4; id++) {
		set_durable(&base, 0, NULL);
		commit_once(vm, &base, id, false, &c);
		/* The note and the id are kept all the same. */
		if (id > 1)
			assert_int_equal(c.track.flags, VMM_TRACK_BASE);
	}
	set_durable(&base, 0, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		KVM_TEST(no_change_is_missed),
		KVM_TEST(no_change_is_missed_of_guests_that_give_memory_back),
		KVM_TEST(a_vm_at_rest_tells_next_to_nothing),
		KVM_TEST(a_commit_of_another_fork_is_not_the_base),
		KVM_TEST(a_child_is_not_given_its_parents_page_map),
		KVM_TEST(a_vmm_that_was_opened_closes_with_the_next_message),
		KVM_TEST(a_fork_that_does_not_ask_is_told_nothing),
		KVM_TEST(without_means_each_commit_is_whole),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
