/*
 * Changed pages of memory (vmm/track.h), of this very process: what userfaultfd and the page
 * map tell against what was written, with forks between; and soft-dirty from a page map that
 * is a file.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "vmm/track.h"

#define PAGE 4096u
#define MEM_MIB 16u
#define PAGES (MEM_MIB * 256u)
#define PM_PRESENT (1ull << 63)
#define PM_FILE (1ull << 61)
#define PM_SOFT_DIRTY (1ull << 55)

static struct err e;
static struct track track;
static struct guest_mem mem;
static uint8_t *base; /* the memory of the last commit */

static void
sys_madvise(size_t page, size_t n, int advice)
{
	assert_int_equal(madvise(mem.host + page * PAGE, n * PAGE, advice), 0);
}

static bool
has_bit(const uint8_t *bitmap, uint64_t page)
{
	return bitmap[page / 8] >> page % 8 & 1;
}

static bool
is_private(uint64_t page)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	assert_true(fd >= 0);
	assert_int_equal(io_pread_full(fd, &entry, sizeof(entry),
				 ((uintptr_t)mem.host / PAGE + page) * sizeof(entry)),
		0);
	close(fd);
	return entry & PM_PRESENT && !(entry & PM_FILE);
}

/* The fork: a scan, and then the comparison that pandod's rule must stand. */
static unsigned
scan_and_compare(uint8_t number)
{
	uint8_t fork_id[16] = {number};
	struct vmm_track told;
	unsigned n = 0;

	track_scan(&track, &mem, fork_id);
	track_describe(&track, &told);
	if (!(told.flags & VMM_TRACK_SINCE))
		return PAGES;
	for (unsigned i = 0; i < PAGES; i++) {
		bool is_told = has_bit(track.given_back, i) ||
			       (has_bit(track.changed, i) && is_private(i));

		n += is_told;
		if (!is_told && memcmp(base + i * PAGE, mem.host + i * PAGE, PAGE) != 0)
			fail_msg("page %u changed, and is not told", i);
	}
	return n;
}

static void
committed(uint8_t number)
{
	struct vmm_committed m = {.fork = {number}, .commit = {number}};

	assert_int_equal(track_committed(&track, &m, &e), 0);
	memcpy(base, mem.host, PAGES * PAGE);
}

static pid_t
fork_that_stays(void)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		pause();
		_exit(0);
	}
	return pid;
}

static void
end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static int
set_up(void **state)
{
	(void)state;
	track_init(&track);
	base = calloc(PAGES, PAGE);
	track_open(&track);
	return base ? 0 : -1;
}

static int
tear_down(void **state)
{
	(void)state;
	track_fork_child(&track, false);
	guest_mem_destroy(&mem);
	free(base);
	return 0;
}

static void
needs_means(enum vmm_track_means means)
{
	if (track.means != means) {
		print_message("# this kernel's means is %s\n", track_means_name(track.means));
		skip();
	}
}

static void
model(unsigned rounds)
{
	unsigned seed = (unsigned)getpid();
	uint8_t number = 0;

	print_message("# seed %u\n", seed);
	track_arm(&track, &mem);
	assert_true(track.armed);
	assert_int_equal(scan_and_compare(++number), PAGES);
	committed(number);
	for (unsigned round = 0; round < rounds; round++) {
		unsigned writes = (unsigned)rand_r(&seed) % 300;
		pid_t pid = -1;

		if (rand_r(&seed) % 2)
			pid = fork_that_stays();
		for (unsigned i = 0; i < writes; i++) {
			unsigned page = (unsigned)rand_r(&seed) % PAGES;
			unsigned n = (unsigned)rand_r(&seed) % 16 + 1;
			volatile uint8_t *p = mem.host + page * PAGE;

			if (rand_r(&seed) % 64 == 0)
				track_scan_ahead(&track, &mem);
			switch (rand_r(&seed) % 16) {
			case 0: /* given back, and perhaps written again at once */
				n = n < PAGES - page ? n : PAGES - page;
				sys_madvise(page, n, MADV_DONTNEED);
				track_given_back(&track, &mem, mem.host + page * PAGE,
					n * PAGE);
				if (i % 2)
					*p = (uint8_t)i;
				break;
			case 1:
			case 2: /* only looked at */
				(void)*p;
				break;
			default:
				p[rand_r(&seed) % PAGE] = (uint8_t)rand_r(&seed);
			}
		}
		(void)scan_and_compare(++number);
		if (rand_r(&seed) % 4)
			committed(number);
		if (pid > 0)
			end(pid);
	}
}

static void
all_changes_of_anonymous_memory_are_told(void **state)
{
	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	for (unsigned i = 0; i < PAGES / 2; i++)
		mem.host[i * PAGE] = 1;
	model(100);
}

static void
all_changes_of_memory_on_an_image_are_told(void **state)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_true(fd >= 0);
	for (unsigned i = 0; i < PAGES; i++) {
		memset(base, (int)i, PAGE);
		assert_int_equal(io_pwrite_full(fd, base, PAGE, (uint64_t)i * PAGE), 0);
	}
	assert_int_equal(guest_mem_reserve(&mem, MEM_MIB, &e), 0);
	guest_mem_open_hole(&mem);
	assert_int_equal(guest_mem_map_image(&mem, fd, &e), 0);
	close(fd);
	model(100);
}

/* A guest's vCPU beside the scan ahead, until it is asked to park. */
static atomic_bool park;

static void *
write_on(void *arg)
{
	unsigned seed = *(unsigned *)arg;

	while (!atomic_load(&park)) {
		unsigned page = (unsigned)rand_r(&seed) % PAGES;
		volatile uint8_t *p;

		/* Few pages often, others seldom; half of those are not there at first. */
		if (rand_r(&seed) % 4)
			page = page % 32 * 97;
		p = mem.host + page * PAGE;
		p[rand_r(&seed) % PAGE] = (uint8_t)rand_r(&seed);
		if (rand_r(&seed) % 256 == 0) {
			(void)madvise(mem.host + page * PAGE, PAGE, MADV_DONTNEED);
			track_given_back(&track, &mem, mem.host + page * PAGE, PAGE);
		}
	}
	return NULL;
}

static void
no_write_beside_a_scan_ahead_is_missed(void **state)
{
	unsigned seed = (unsigned)getpid();
	uint8_t number = 0;

	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	print_message("# seed %u\n", seed);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	for (unsigned i = 0; i < PAGES / 2; i++)
		mem.host[i * PAGE] = 1;
	track_arm(&track, &mem);
	(void)scan_and_compare(++number);
	committed(number);
	for (unsigned round = 0; round < 50; round++) {
		pthread_t vcpu;
		pid_t pid;

		seed++;
		atomic_store(&park, false);
		assert_int_equal(pthread_create(&vcpu, NULL, write_on, &seed), 0);
		for (unsigned i = 0; i < 20; i++)
			track_scan_ahead(&track, &mem);
		atomic_store(&park, true);
		assert_int_equal(pthread_join(vcpu, NULL), 0);
		(void)scan_and_compare(++number);
		pid = fork_that_stays(); /* the pages are shared, as a frozen fork's are */
		committed(number);
		end(pid);
	}
}

static void
what_was_found_ahead_is_told_once(void **state)
{
	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	memset(mem.host, 3, PAGES * PAGE);
	track_arm(&track, &mem);
	(void)scan_and_compare(1);
	committed(1);
	mem.host[7 * PAGE] = 1;
	track_scan_ahead(&track, &mem);
	mem.host[9 * PAGE] = 1;
	assert_int_equal(scan_and_compare(2), 2);
	committed(2);
	assert_int_equal(scan_and_compare(3), 0);
	mem.host[7 * PAGE] = 2;
	assert_int_equal(scan_and_compare(4), 1);
}

static unsigned long
page_tables_kib(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	unsigned long kib = 0;
	char line[256];

	assert_non_null(f);
	while (!kib && fgets(line, sizeof(line), f))
		(void)sscanf(line, "VmPTE: %lu", &kib);
	fclose(f);
	assert_true(kib > 0);
	return kib;
}

/* A mark on it would be a table of 4 KiB for each 2 MiB, which each fork copies. */
static void
memory_that_nobody_touched_costs_no_page_tables(void **state)
{
	const size_t mib = 256, big = 2048; /* in pages, in MiB */
	uint8_t fork_id[16] = {1};
	unsigned long before;

	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, big, &e), 0);
	sys_madvise(0, big * mib, MADV_NOHUGEPAGE);
	mem.host[PAGE] = mem.host[1000 * mib * PAGE] = 1;
	before = page_tables_kib();
	track_arm(&track, &mem);
	assert_true(track.armed);
	for (unsigned i = 0; i < 3; i++) {
		mem.host[PAGE] = (uint8_t)i;
		track_scan_ahead(&track, &mem);
		mem.host[1000 * mib * PAGE] = (uint8_t)i;
		track_scan(&track, &mem, fork_id);
		assert_true(has_bit(track.changed, 1));
		assert_true(has_bit(track.changed, 1000 * mib));
		assert_false(has_bit(track.changed, 500 * mib));
	}
	/* All of it marked: 4 MiB. */
	assert_true(page_tables_kib() < before + 400);
	/* The first write to it is seen all the same. */
	mem.host[500 * mib * PAGE] = 1;
	track_scan(&track, &mem, fork_id);
	assert_true(has_bit(track.changed, 500 * mib));
}

static void
only_what_was_written_is_told(void **state)
{
	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	memset(mem.host, 3, PAGES * PAGE);
	track_arm(&track, &mem);
	(void)scan_and_compare(1);
	committed(1);
	assert_int_equal(scan_and_compare(2), 0);
	mem.host[7 * PAGE] = 1;
	mem.host[900 * PAGE + 5] = 1;
	assert_int_equal(scan_and_compare(3), 2);
	/* That commit fails: the next is told both, and its own. */
	mem.host[8 * PAGE] = 1;
	assert_int_equal(scan_and_compare(4), 3);
	committed(4);
	assert_int_equal(scan_and_compare(5), 0);
}

static void
a_system_call_that_writes_is_seen(void **state)
{
	int fds[2];

	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	memset(mem.host, 3, PAGES * PAGE);
	track_arm(&track, &mem);
	(void)scan_and_compare(1);
	committed(1);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(write(fds[1], "disk", 4), 4);
	assert_int_equal(read(fds[0], mem.host + 33 * PAGE, 4), 4);
	assert_int_equal(scan_and_compare(2), 1);
	close(fds[0]);
	close(fds[1]);
}

static void
a_forked_child_is_untracked(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	track_arm(&track, &mem);
	(void)scan_and_compare(1);
	committed(1);
	pid = fork();
	if (pid == 0) {
		struct vmm_track told;
		bool ok;

		track_fork_child(&track, false);
		track_describe(&track, &told);
		ok = told.flags == 0 && track_needs_fds(&track) && track.pagemap_fd < 0 &&
		     track.uffd_fd < 0 && !track.changed;
		track_arm(&track, &mem); /* cannot, yet */
		ok = ok && !track.armed;
		ok = ok && track_take_fds(&track, open("/proc/self/pagemap", O_RDONLY),
				   open("/dev/null", O_WRONLY), &e) == 0;
		track_arm(&track, &mem);
		_exit(ok && track.armed ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_true(track.armed);
}

static void
the_page_map_of_another_process_is_refused(void **state)
{
	char path[64];
	pid_t pid;
	int fd;

	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	pid = fork_that_stays();
	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	fd = open(path, O_RDONLY);
	assert_true(fd >= 0);
	track_fork_child(&track, false);
	assert_int_equal(
		track_take_fds(&track, fd, open("/dev/null", O_WRONLY), &e), -EBADF);
	assert_false(track_needs_fds(&track));
	end(pid);
}

static void
a_frozen_fork_keeps_what_changed(void **state)
{
	struct vmm_track told;

	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	memset(mem.host, 3, PAGES * PAGE);
	track_arm(&track, &mem);
	(void)scan_and_compare(1);
	committed(1);
	mem.host[PAGE] = 9;
	(void)scan_and_compare(2);
	track_fork_child(&track, true);
	track_wrote(&track, &mem, (gpa_t){5 * PAGE + 8});
	track_describe(&track, &told);
	assert_int_equal(told.flags, VMM_TRACK_BASE | VMM_TRACK_SINCE);
	assert_int_equal(told.base[0], 1);
	assert_true(has_bit(track.changed, 1) && has_bit(track.changed, 5));
	assert_false(has_bit(track.changed, 4));
}

/* What is given back between the scan and the word that its commit is durable. */
static void
what_is_given_back_after_the_scan_is_the_next_commits(void **state)
{
	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	memset(mem.host, 3, PAGES * PAGE);
	track_arm(&track, &mem);
	(void)scan_and_compare(1);
	memcpy(base, mem.host, PAGES * PAGE);
	sys_madvise(512, 512, MADV_DONTNEED);
	track_given_back(&track, &mem, mem.host + 512 * PAGE, 512 * PAGE);
	{
		struct vmm_committed m = {.fork = {1}, .commit = {1}};

		assert_int_equal(track_committed(&track, &m, &e), 0);
	}
	assert_int_equal(scan_and_compare(2), 512);
	committed(2);
	assert_int_equal(scan_and_compare(3), 0);
}

/* The page map comes late: with the second commit, whose fork then fails before its scan. */
static void
a_commit_from_before_the_watch_tells_no_changes(void **state)
{
	struct vmm_track told;

	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	memset(mem.host, 3, PAGES * PAGE);
	assert_int_equal(scan_and_compare(1), PAGES);
	memcpy(base, mem.host, PAGES * PAGE);
	mem.host[7 * PAGE] = 1;
	track_arm(&track, &mem);
	assert_true(track.armed);
	{
		struct vmm_committed m = {.fork = {1}, .commit = {1}};

		assert_int_equal(track_committed(&track, &m, &e), 0);
	}
	assert_int_equal(scan_and_compare(2), PAGES);
	track_describe(&track, &told);
	assert_int_equal(told.flags, VMM_TRACK_BASE);
	committed(2);
	mem.host[8 * PAGE] = 1;
	assert_int_equal(scan_and_compare(3), 1);
}

/* A kernel that has soft-dirty shows it in bit 55 and clears it at "4". */
static void
soft_dirty_is_read_from_the_page_map(void **state)
{
	int map = memfd_create("pagemap", MFD_CLOEXEC);
	int clear = memfd_create("clear_refs", MFD_CLOEXEC);
	const uint64_t dirty = PM_PRESENT | PM_SOFT_DIRTY, clean = PM_PRESENT;
	uint8_t fork_id[16] = {1};
	struct vmm_committed m = {.fork = {1}, .commit = {1}};
	uint64_t at;
	char said[8] = "";

	(void)state;
	assert_true(map >= 0 && clear >= 0);
	track_fork_child(&track, false);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	at = (uintptr_t)mem.host / PAGE * 8;
	assert_int_equal(ftruncate(map, (off_t)(at + PAGES * 8)), 0);
	track.means = VMM_TRACK_SOFT_DIRTY;
	track.pagemap_fd = map;
	track.clear_refs_fd = clear;
	track_arm(&track, &mem);
	assert_true(track.armed);
	assert_int_equal(io_pread_full(clear, said, 1, 0), 0);
	assert_string_equal(said, "4");
	track_scan(&track, &mem, fork_id);
	assert_int_equal(track_committed(&track, &m, &e), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(io_pwrite_full(map, i % 1000 == 7 ? &dirty : &clean, 8,
					 at + i * 8),
			0);
	track_scan(&track, &mem, fork_id);
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(has_bit(track.changed, i), i % 1000 == 7);
	/* Once when it was armed, once a scan. */
	assert_int_equal(lseek(clear, 0, SEEK_CUR), 3);
}

static void
soft_dirty_sees_writes_where_the_kernel_has_it(void **state)
{
	(void)state;
	track_fork_child(&track, false);
	track_init(&track);
	setenv("PANDO_TRACK", "soft-dirty", 1);
	track_open(&track);
	unsetenv("PANDO_TRACK");
	needs_means(VMM_TRACK_SOFT_DIRTY);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	for (unsigned i = 0; i < PAGES / 2; i++)
		mem.host[i * PAGE] = 1;
	model(100);
}

/* The own pages of a private mapping of a file, by the kernel's word, against what was written. */
static void
own_pages_of_an_image_are_named_and_no_others(void **state)
{
	uint64_t at = (uintptr_t)mem.host, end;
	struct pagemap_range r[TRACK_RANGES];
	char name[] = "/tmp/test_track.XXXXXX";
	bool own[PAGES] = {false}, said[PAGES] = {false};
	volatile uint8_t sum = 0;
	int fd = mkstemp(name), n;

	(void)state;
	assert_true(fd >= 0);
	unlink(name);
	assert_int_equal(ftruncate(fd, MEM_MIB << 20), 0);
	if (track.pagemap_fd < 0)
		skip();
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	assert_int_equal(guest_mem_replace(&mem, fd, &e), 0);
	close(fd);
	for (unsigned i = 0; i < PAGES; i++) {
		if (i % 3 == 0)
			sum = (uint8_t)(sum + mem.host[i * PAGE]);
		own[i] = i % 5 == 1 || (i > 3000 && i < 3100);
		if (own[i])
			mem.host[i * PAGE] = (uint8_t)i;
	}
	at = (uintptr_t)mem.host;
	end = at + (MEM_MIB << 20);
	while (at < end) {
		n = track_own_pages(&track, &at, end, r);
		if (n == -ENOSYS)
			skip();
		assert_true(n >= 0);
		for (int i = 0; i < n; i++)
			for (uint64_t p = r[i].start; p < r[i].end; p += PAGE)
				said[(p - (uintptr_t)mem.host) / PAGE] = true;
	}
	assert_memory_equal(own, said, sizeof(own));
}

static unsigned
count_own_pages(void)
{
	uint64_t at = (uintptr_t)mem.host, end = at + (MEM_MIB << 20);
	struct pagemap_range r[TRACK_RANGES];
	unsigned pages = 0;

	while (at < end) {
		int n = track_own_pages(&track, &at, end, r);

		assert_true(n >= 0);
		for (int i = 0; i < n; i++)
			pages += (unsigned)((r[i].end - r[i].start) / PAGE);
	}
	return pages;
}

/* Where the watch set its marks nothing need be mapped. */
static void
after_a_commit_own_pages_are_still_those_that_were_written(void **state)
{
	int fd = memfd_create("image", MFD_CLOEXEC);
	volatile uint8_t sum = 0;
	const uint8_t one[16] = {1};
	struct vmm_track told;

	(void)state;
	needs_means(VMM_TRACK_USERFAULTFD);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, MEM_MIB << 20), 0);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	assert_int_equal(guest_mem_replace(&mem, fd, &e), 0);
	close(fd);
	for (unsigned i = 0; i < PAGES; i += 300)
		sum = (uint8_t)(sum + mem.host[i * PAGE]);
	mem.host[7 * PAGE] = 1;
	track_arm(&track, &mem);
	track_scan(&track, &mem, one);
	committed(1);
	mem.host[900 * PAGE] = 1;
	track_unwatch(&track, &mem);
	mem.host[901 * PAGE] = 1;
	assert_int_equal(count_own_pages(), 3);
	/* The next commit does not take the watch for one that never ended. */
	track_describe(&track, &told);
	assert_false(told.flags & VMM_TRACK_SINCE);
	track_arm(&track, &mem);
	assert_true(track.armed);
	track_scan(&track, &mem, one);
	committed(1);
	mem.host[950 * PAGE] = 1;
	track_scan(&track, &mem, one);
	assert_true(has_bit(track.changed, 950));
}

/* A commit of before a reset has nothing to say of what is after it. */
static void
after_a_reset_nothing_is_known_and_earlier_forks_count_no_more(void **state)
{
	struct vmm_committed m = {.fork = {1}, .commit = {1}};
	const uint8_t one[16] = {1};
	struct vmm_track told;

	(void)state;
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	for (int mapped = 0; mapped < 2; mapped++) {
		track_arm(&track, &mem);
		track_scan(&track, &mem, one);
		assert_int_equal(track_committed(&track, &m, &e), 0);
		track_describe(&track, &told);
		assert_true(told.flags & VMM_TRACK_BASE);
		track_scan(&track, &mem, one);
		track_reset(&track, mapped);
		track_describe(&track, &told);
		assert_int_equal(told.flags, 0);
		assert_int_equal(track_committed(&track, &m, &e), -ESTALE);
	}
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(all_changes_of_anonymous_memory_are_told),
		TEST(all_changes_of_memory_on_an_image_are_told),
		TEST(no_write_beside_a_scan_ahead_is_missed),
		TEST(what_was_found_ahead_is_told_once),
		TEST(memory_that_nobody_touched_costs_no_page_tables),
		TEST(only_what_was_written_is_told),
		TEST(a_system_call_that_writes_is_seen),
		TEST(a_forked_child_is_untracked),
		TEST(the_page_map_of_another_process_is_refused),
		TEST(a_frozen_fork_keeps_what_changed),
		TEST(what_is_given_back_after_the_scan_is_the_next_commits),
		TEST(a_commit_from_before_the_watch_tells_no_changes),
		TEST(own_pages_of_an_image_are_named_and_no_others),
		TEST(after_a_commit_own_pages_are_still_those_that_were_written),
		TEST(after_a_reset_nothing_is_known_and_earlier_forks_count_no_more),
		TEST(soft_dirty_is_read_from_the_page_map),
		TEST(soft_dirty_sees_writes_where_the_kernel_has_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
