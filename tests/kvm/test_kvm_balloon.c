/*
 * Memory that comes back (vmm/balloon.h, vmm/giveback.h): guests that report pages and fill a
 * balloon, on their own memory, in branches and over a commit's image; hostile ones; and machines
 * of before there was a balloon. (What a commit is told of such pages: test_kvm_track.)
 */
#include "tests/kvm/kvm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/blob.h"
#include "common/wire/snapshot_format.h"

#define MEM_MIB 64u
#define PAGES 8192u /* that the guest fills: 32 MiB */
#define FIRST (4u << 20)
#define FILLED_KIB (PAGES * 4u)

static struct vm *
boot_balloon(const char *name, const char *options)
{
	char cmdline[200];
	struct boot b = {.cmdline = cmdline, .mem_mib = MEM_MIB};
	struct vm *vm = NULL;

	snprintf(cmdline, sizeof(cmdline), "mode=balloon pages=%u mem=%u %s", PAGES, MEM_MIB,
		options);
	MUST(driver_boot(&driver, name, &b, &vm, e));
	expect(vm, "full", NULL, 0);
	return vm;
}

/* Of the VMM: what it has that no file backs, shared with parents or not. */
static unsigned long
anonymous_kib(const struct vm *vm)
{
	char path[64], text[8192];
	const char *at;
	cleanup_close int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)vm->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	n = read(fd, text, sizeof(text) - 1);
	assert_true(n > 0);
	text[n] = 0;
	at = strstr(text, "RssAnon:");
	assert_non_null(at);
	return strtoul(at + 8, NULL, 10);
}

static void
expect_all_given_back(struct vm *vm)
{
	char line[LINE], want[80];

	snprintf(want, sizeof(want), "zero=%u kept=0 bad=0", PAGES);
	expect(vm, "given back", line, sizeof(line));
	if (!strstr(line, want))
		fail_msg("%s: %s", vm->name, line);
}

static void
expect_small(const struct vm *vm)
{
	unsigned long kib = anonymous_kib(vm);

	if (kib > FILLED_KIB / 2)
		fail_msg("%s has %lu KiB still", vm->name, kib);
}

static struct vm *
frozen_of(struct vm *vm, const char *tag, struct commit *c)
{
	struct vm *frozen = fork_vm(vm, tag, DRIVER_PARK);

	MUST(driver_take_state(frozen, tag, c, e));
	return frozen;
}

static struct vm *
restored(const struct commit *c, const char *name)
{
	struct restore r = {.commit = c};
	struct vm *vm = NULL;

	MUST(driver_prepare(&driver, name, MEM_MIB, 1, &vm, e));
	MUST(driver_send_restore(vm, &r, e));
	MUST(driver_wait_started(vm, 30000, e));
	return vm;
}

/* Pages of the filled range in a commit's memory: how many are zero. */
static unsigned
zero_pages(const struct commit *c)
{
	static const uint8_t zero[4096];
	cleanup_close int fd = open(c->memory, O_RDONLY | O_CLOEXEC);
	uint8_t page[4096];
	unsigned n = 0;

	assert_true(fd >= 0);
	for (unsigned i = 0; i < PAGES; i++) {
		assert_int_equal(
			io_pread_full(fd, page, sizeof(page), FIRST + (uint64_t)i * 4096), 0);
		n += memcmp(page, zero, sizeof(page)) == 0;
	}
	return n;
}

static void
what_a_guest_reports_is_the_host_s_again_in_branches_too(void **state)
{
	struct vm *vm, *child;
	struct vmm_balloon_answer a;

	NEEDS_KVM(state);
	vm = boot_balloon("full", "");
	assert_true(anonymous_kib(vm) > FILLED_KIB);
	child = fork_vm(vm, "child", 0);
	expect_all_given_back(vm);
	expect_all_given_back(child);
	expect_small(vm);
	expect_small(child);
	MUST(driver_balloon(child, 0, &a, e));
	assert_int_equal(a.given_back_bytes, PAGES * 4096ull);
	/* And both take it again. */
	driver_kill(fork_vm(vm, "aside", 0));
	expect(vm, "full", NULL, 0);
	assert_true(anonymous_kib(vm) > FILLED_KIB);
	expect_small(child);
	driver_kill(fork_vm(vm, "aside-2", 0));
	expect_all_given_back(vm);
	expect_small(vm);
}

static void
a_frozen_fork_keeps_what_its_vm_gives_back(void **state)
{
	struct commit before, after;
	struct vm *vm, *frozen;

	NEEDS_KVM(state);
	vm = boot_balloon("full", "");
	frozen = frozen_of(vm, "before", &before);
	expect_all_given_back(vm);
	assert_int_equal(zero_pages(&before), 0);
	MUST(driver_take_state(frozen, "again", &after, e));
	assert_int_equal(zero_pages(&after), 0);
	frozen_of(vm, "after", &after);
	assert_int_equal(zero_pages(&after), PAGES);
}

static void
over_a_commit_s_image_it_reads_as_zero_and_stays_so_in_what_comes_of_it(void **state)
{
	struct vm *vm, *first, *second, *third, *child;
	struct commit c, again;

	NEEDS_KVM(state);
	vm = boot_balloon("full", "");
	frozen_of(vm, "commit", &c);
	assert_int_equal(zero_pages(&c), 0);
	first = restored(&c, "first");
	expect_all_given_back(first);
	expect_small(first);
	/* The next of the same image has it all. */
	second = restored(&c, "second");
	expect_all_given_back(second);
	/* It writes there again, and gives it back again; a branch has both. */
	child = fork_vm(first, "child", 0);
	expect(first, "full", NULL, 0);
	expect(child, "full", NULL, 0);
	assert_true(anonymous_kib(child) > FILLED_KIB);
	driver_kill(fork_vm(child, "aside", 0));
	expect_all_given_back(child);
	expect_small(child);
	frozen_of(child, "again", &again);
	assert_true(again.answer.flags & VMM_STATE_ON_IMAGE);
	assert_int_equal(zero_pages(&again), PAGES);
	third = restored(&again, "third");
	expect(third, "full", NULL, 0);
	assert_int_equal(zero_pages(&c), 0);
}

static void
pages_keep_their_bytes_where_a_guest_expects_others_than_zero(void **state)
{
	char line[LINE], want[80];
	struct vm *vm;

	NEEDS_KVM(state);
	vm = boot_balloon("poisoned", "poison=2863311530");
	driver_kill(fork_vm(vm, "aside", 0));
	expect(vm, "given back", line, sizeof(line));
	snprintf(want, sizeof(want), "zero=0 kept=%u bad=0", PAGES);
	assert_non_null(strstr(line, want));
	/* Zero itself is as good as none. */
	vm = boot_balloon("zero", "poison=0");
	driver_kill(fork_vm(vm, "aside-2", 0));
	expect_all_given_back(vm);
}

static void
expect_balloon(struct vm *vm, unsigned pages)
{
	char want[40];

	snprintf(want, sizeof(want), "balloon %u\r", pages);
	want[strlen(want) - 1] = 0;
	expect(vm, want, NULL, 0);
}

static void
a_target_fills_the_balloon_and_empties_it(void **state)
{
	struct vmm_balloon_answer a;
	struct vmm_stats_answer s;
	unsigned long before;
	struct err why;
	struct vm *vm;

	NEEDS_KVM(state);
	vm = boot_balloon("full", "");
	expect_balloon(vm, 0);
	MUST(driver_stats(vm, &s, e));
	assert_true(s.tracks & VMM_HAS_BALLOON);
	before = anonymous_kib(vm);
	MUST(driver_balloon(vm, MEM_MIB - 12, &a, e));
	assert_true(a.flags & VMM_BALLOON_DRIVER);
	assert_int_equal(a.mem_target_mib, MEM_MIB - 12);
	expect_balloon(vm, 12 * 256);
	MUST(driver_balloon(vm, 0, &a, e));
	assert_int_equal(a.balloon_bytes, 12 << 20);
	assert_int_equal(a.mem_target_mib, MEM_MIB - 12);
	assert_int_equal(a.guest_free_bytes, VMM_BALLOON_UNKNOWN);
	assert_true(anonymous_kib(vm) + 11 * 1024 < before);
	MUST(driver_balloon(vm, MEM_MIB, &a, e));
	expect_balloon(vm, 0);
	assert_true(anonymous_kib(vm) + 1024 > before);
	assert_int_equal(driver_balloon(vm, MEM_MIB + 1, &a, &why), -EINVAL);
	assert_int_equal(driver_balloon(vm, 1, &a, &why), -EINVAL);
	assert_non_null(strstr(why.msg, "16 to 64"));
}

static void
a_half_filled_balloon_goes_on_in_a_branch_and_from_a_commit(void **state)
{
	struct vmm_balloon_answer a;
	struct vm *vm, *child, *back;
	struct commit c;
	struct err why;

	NEEDS_KVM(state);
	/* The guest stops at half of what is wanted. */
	vm = boot_balloon("half", "most=1536");
	MUST(driver_balloon(vm, MEM_MIB - 12, &a, e));
	expect_balloon(vm, 1536);
	child = fork_vm(vm, "child", 0);
	struct vm *frozen = frozen_of(child, "commit", &c);
	assert_int_equal(driver_balloon(frozen, MEM_MIB, &a, &why), -EINVAL);
	back = restored(&c, "back");
	struct vm *const all[] = {vm, child, back};
	for (unsigned i = 0; i < 3; i++) {
		MUST(driver_balloon(all[i], 0, &a, e));
		assert_true(a.flags & VMM_BALLOON_DRIVER);
		assert_int_equal(a.mem_target_mib, MEM_MIB - 12);
		assert_int_equal(a.balloon_bytes, 6 << 20);
		MUST(driver_balloon(all[i], MEM_MIB - 4, &a, e));
		expect_balloon(all[i], 1024);
		MUST(driver_balloon(all[i], 0, &a, e));
		assert_int_equal(a.balloon_bytes, 4 << 20);
	}
}

/* The blob of a VMM that knew no balloon: its flag and its section, which is the last, are
 * not there. */
static void
take_the_balloon_away(const struct commit *c)
{
	cleanup_free char *blob = NULL;
	struct blob_section *s, *balloon = NULL;
	struct snapshot_config *config;
	struct blob_header *h;
	size_t len = 0;

	MUST(io_read_file(c->state, VMM_STATE_BLOB_MAX, &blob, &len, e));
	h = (struct blob_header *)blob;
	for (size_t at = sizeof(*h); at < h->bytes;
		at += sizeof(*s) + (s->bytes + 7) / 8 * 8) {
		s = (struct blob_section *)(blob + at);
		if (s->tag == SNAPSHOT_TAG_CONFIG) {
			config = (struct snapshot_config *)(s + 1);
			assert_true(config->flags & SNAPSHOT_BALLOON);
			config->flags &= ~SNAPSHOT_BALLOON;
		}
		balloon = s->tag == BLOB_TAG('B', 'A', 'L', 'N') ? s : NULL;
	}
	assert_non_null(balloon);
	h->bytes = (uint64_t)((char *)balloon - blob);
	h->check = blob_check(h + 1, h->bytes - sizeof(*h));
	MUST(io_write_file_atomic(c->state, blob, h->bytes, 0600, e));
}

static void
a_commit_of_before_the_balloon_starts_without_one(void **state)
{
	struct restore r = {0};
	struct vmm_balloon_answer a;
	struct vmm_stats_answer s;
	struct vm *vm, *old, *child;
	struct commit c, again;
	struct err why;
	struct stat st;
	char line[LINE];

	NEEDS_KVM(state);
	vm = boot("new", "mode=work", 1);
	expect(vm, "ready", NULL, 0);
	frozen_of(vm, "commit", &c);
	take_the_balloon_away(&c);
	assert_int_equal(stat(c.state, &st), 0);
	r = (struct restore){.commit = &c, .blob_bytes = (uint64_t)st.st_size};
	MUST(driver_start(&driver, "old", &old, e));
	MUST(driver_send_restore(old, &r, e));
	MUST(driver_wait_started(old, 30000, e));
	expect(old, "fork n=", line, sizeof(line));
	assert_non_null(strstr(line, "memory=ok"));
	child = fork_vm(old, "child", 0);
	MUST(driver_stats(child, &s, e));
	assert_false(s.tracks & VMM_HAS_BALLOON);
	assert_int_equal(driver_balloon(child, 0, &a, &why), -ENOTSUP);
	/* Its commits are as old as it is. */
	frozen_of(child, "again", &again);
	assert_true(again.answer.blob_bytes < c.answer.blob_bytes);
}

/* Whatever happens to the guest. */
static void
a_hostile_guest_hurts_itself_alone(void **state)
{
	const struct vmm_hdr quit = {
		.version = VMM_WIRE_VERSION, .type = VMM_QUIT, .len = sizeof(quit), .seq = 99};
	struct commit before, after;
	struct vm *vm, *frozen, *other;
	struct vmm_stats_answer s;
	char line[LINE];
	struct err why;

	NEEDS_KVM(state);
	other = boot_balloon("other", "");
	vm = boot_balloon("hostile", "hostile=1");
	frozen = frozen_of(vm, "before", &before);
	expect(vm, "hostile", NULL, 0);
	/* A branch begins in the midst of it, or is refused since the VM is gone; each is
	 * answered. */
	for (unsigned i = 0; i < 5 && driver_alive(vm); i++) {
		char name[32];
		struct vm *child = NULL;

		snprintf(name, sizeof(name), "child-%u", i);
		if (driver_fork(vm, name, 0, &child, NULL, &why) == 0)
			driver_kill(child);
		usleep(20000);
	}
	driver_console(vm, line, sizeof(line));
	assert_null(strstr(line, "does not come back"));
	(void)driver_send_raw(vm, &quit, sizeof(quit), NULL, 0); /* it may be gone */
	assert_ended_well(vm);
	MUST(driver_take_state(frozen, "after", &after, e));
	assert_int_equal(zero_pages(&before), 0);
	assert_int_equal(zero_pages(&after), 0);
	driver_kill(fork_vm(other, "aside", 0));
	expect_all_given_back(other);
	MUST(driver_stats(other, &s, e));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		KVM_TEST(what_a_guest_reports_is_the_host_s_again_in_branches_too),
		KVM_TEST(a_frozen_fork_keeps_what_its_vm_gives_back),
		KVM_TEST(over_a_commit_s_image_it_reads_as_zero_and_stays_so_in_what_comes_of_it),
		KVM_TEST(pages_keep_their_bytes_where_a_guest_expects_others_than_zero),
		KVM_TEST(a_target_fills_the_balloon_and_empties_it),
		KVM_TEST(a_half_filled_balloon_goes_on_in_a_branch_and_from_a_commit),
		KVM_TEST(a_commit_of_before_the_balloon_starts_without_one),
		KVM_TEST(a_hostile_guest_hurts_itself_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
