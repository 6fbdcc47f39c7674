/*
 * A kept fork point: a branch goes back to where it was forked, and is then what a branch is that
 * was just forked there: memory, disk, devices. The frozen fork lives as long as somebody may ask.
 */
#include "tests/kvm/kvm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/io.h"

#define PAGE 4096u
#define MEM_BYTES (16u << 20)
#define GONE_MS 20000

static struct vm *
keep(struct vm *parent, const char *name)
{
	return fork_vm(parent, name, DRIVER_PARK | DRIVER_KEEP);
}

/* As pandod does once all branches run. */
static void
leave(struct vm *kept)
{
	driver_drop_control(kept);
}

static void
go_back(struct vm *vm, struct vmm_reset_answer *ret)
{
	MUST(driver_reset(vm, &(struct reset){.commit = NULL}, ret, e));
}

/* What pandod hands over before the first reset. */
static enum vmm_track_means
hand_page_map(struct vm *vm)
{
	struct vmm_stats_answer s;

	MUST(driver_stats(vm, &s, e));
	assert_true(s.tracks & VMM_HAS_FORK_POINT);
	if (s.tracks & VMM_TRACKS_NEEDS_FDS)
		MUST(driver_hand_page_map(vm, vm->pid, e));
	return s.tracks >> VMM_TRACKS_MEANS_SHIFT & 0xff;
}

static struct vm *
ready(const char *cmdline, unsigned vcpus)
{
	struct vm *vm = boot("parent", cmdline, vcpus);

	expect(vm, "ready", NULL, 0);
	return vm;
}

static void
goes_back_often(void **state, unsigned vcpus)
{
	struct vm *parent, *kept, *children[2];
	struct vmm_reset_answer a;
	enum vmm_track_means means;
	char cmdline[128];

	NEEDS_KVM(state);
	snprintf(cmdline, sizeof(cmdline),
		"mode=work disk=1 dirty=300 redirty=1 cpus=%u tick=4000", vcpus);
	parent = ready(cmdline, vcpus);
	kept = keep(parent, "kept");
	for (int i = 0; i < 2; i++) {
		children[i] = fork_vm(kept, i ? "b" : "a", 0);
		expect_life(children[i], 2, "ok", NULL);
	}
	leave(kept);
	for (int i = 0; i < 2; i++)
		means = hand_page_map(children[i]);
	for (unsigned i = 1; i <= 10; i++) {
		struct vm *vm = children[i % 2];

		if (i % 3 == 0)
			expect(vm, "tick ", NULL, 0); /* it has run for a while */
		go_back(vm, &a);
		assert_int_equal(a.resets, (i + 1) / 2);
		/* As many as it wrote, not all. */
		if (means == VMM_TRACK_USERFAULTFD)
			assert_true(a.pages >= 300 && a.pages < MEM_BYTES / PAGE / 2);
		expect_life(vm, 2, "ok", NULL);
	}
	/* The parent has changed since, and writes to its disk still. */
	expect_life(parent, 2, "ok", NULL);
	expect(children[0], "tick ", NULL, 0);
	expect(parent, "tick ", NULL, 0);
}

static void
branches_go_back_to_their_fork_point_again_and_again(void **state)
{
	goes_back_often(state, 1);
}

static void
both_cpus_go_back(void **state)
{
	goes_back_often(state, 2);
}

static uint8_t *
memory_of(struct vm *vm)
{
	const struct timespec rest = {.tv_nsec = 20000000};
	struct vmm_stats_answer s = {0};
	uint8_t *p = malloc(MEM_BYTES);
	cleanup_close int fd = -1;
	struct commit c;

	while (!s.first_doorbell_ns)
		MUST(driver_stats(vm, &s, e));
	nanosleep(&rest, NULL); /* from the doorbell to its HLT */
	MUST(driver_take_state(fork_vm(vm, "picture", DRIVER_PARK), "commit", &c, e));
	fd = open(c.memory, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0 && p);
	assert_int_equal(io_pread_full(fd, p, MEM_BYTES, 0), 0);
	return p;
}

static void
is_like_a_new_branch(void **state, const char *track)
{
	cleanup_free uint8_t *a = NULL, *b = NULL, *x = NULL;
	struct vm *parent, *kept, *vm;
	struct vmm_reset_answer answer;

	NEEDS_KVM(state);
	if (track)
		setenv("PANDO_TRACK", track, 1);
	parent = ready("mode=work rest=1 dirty=1500 redirty=1 mess=1 map=1", 1);
	unsetenv("PANDO_TRACK");
	kept = keep(parent, "kept");
	/* One branch before and one after it: in all that they agree in, it agrees. */
	a = memory_of(fork_vm(kept, "a", DRIVER_RESTS));
	vm = fork_vm(kept, "dirty", 0);
	hand_page_map(vm);
	for (int i = 0; i < 3; i++) {
		expect_life(vm, 2, "none", NULL); /* and then it makes its mess */
		if (i < 2)
			go_back(vm, &answer);
	}
	MUST(driver_reset(vm, &(struct reset){.rests = true}, &answer, e));
	assert_true(answer.pages >= 1500 && answer.pages < MEM_BYTES / PAGE);
	x = memory_of(vm);
	b = memory_of(fork_vm(kept, "b", DRIVER_RESTS));
	for (size_t i = 0; i + 8 <= MEM_BYTES; i += 8)
		if (memcmp(a + i, b + i, 8) == 0 && memcmp(x + i, a + i, 8) != 0)
			fail_msg("memory differs from a new branch's, first at 0x%zx", i);
}

static void
memory_is_a_new_branchs_byte_for_byte(void **state)
{
	is_like_a_new_branch(state, NULL);
}

static void
a_kernel_that_names_no_pages_has_all_compared(void **state)
{
	is_like_a_new_branch(state, "none");
}

static void
a_branch_of_a_branch_has_a_fork_point_of_its_own(void **state)
{
	struct vm *parent, *first, *second, *child, *grandchild, *plain;
	struct err why = {0};

	NEEDS_KVM(state);
	parent = ready("mode=work disk=1 dirty=200 redirty=1", 1);
	first = keep(parent, "first");
	child = fork_vm(first, "child", 0);
	expect_life(child, 2, "ok", NULL);
	second = keep(child, "second");
	grandchild = fork_vm(second, "grandchild", 0);
	expect_life(grandchild, 3, "ok", NULL);
	expect_life(child, 3, "ok", NULL);
	plain = fork_vm(grandchild, "plain", 0);
	expect_life(plain, 4, "ok", NULL);
	leave(first);
	leave(second);
	hand_page_map(child);
	hand_page_map(grandchild);
	for (int i = 0; i < 3; i++) {
		go_back(grandchild, NULL);
		expect_life(grandchild, 3, "ok", NULL);
		go_back(child, NULL);
		expect_life(child, 2, "ok", NULL);
	}
	/* One that nothing was kept for, and the one that was branched. */
	assert_int_equal(driver_reset(plain, &(struct reset){0}, NULL, &why), -ESTALE);
	assert_int_equal(driver_reset(parent, &(struct reset){0}, NULL, &why), -ESTALE);
	assert_non_null(strstr(why.msg, "not kept"));
	plain = fork_vm(plain, "later", 0);
	expect_life(plain, 5, "ok", NULL);
}

static void
without_its_frozen_fork_a_branch_stays_as_it_is(void **state)
{
	struct vm *kept, *child;
	struct vmm_stats_answer s;
	struct err why = {0};

	NEEDS_KVM(state);
	kept = keep(ready("mode=work disk=1 dirty=100 redirty=1 tick=3000", 1), "kept");
	child = fork_vm(kept, "child", 0);
	expect_life(child, 2, "ok", NULL);
	hand_page_map(child);
	assert_int_equal(kill(kept->pid, SIGKILL), 0);
	MUST(driver_wait_gone(kept, GONE_MS, e));
	assert_int_equal(driver_reset(child, &(struct reset){0}, NULL, &why), -ESTALE);
	assert_non_null(strstr(why.msg, "gone"));
	expect(child, "tick ", NULL, 0);
	MUST(driver_stats(child, &s, e));
	assert_false(s.tracks & VMM_HAS_FORK_POINT);
	assert_int_equal(s.tracks >> VMM_RESETS_SHIFT, 0);
	child = fork_vm(child, "goes on", 0);
	expect_life(child, 3, "ok", NULL);
}

static void
the_frozen_fork_ends_with_the_last_that_may_come_back(void **state)
{
	struct vm *parent, *kept, *a, *b, *c, *heir, *parked;
	struct commit commit;

	NEEDS_KVM(state);
	parent = ready("mode=work dirty=100 redirty=1", 1);
	parked = fork_vm(parent, "commit", DRIVER_PARK);
	MUST(driver_take_state(parked, "commit", &commit, e));
	kept = keep(parent, "kept");
	a = fork_vm(kept, "a", 0);
	b = fork_vm(kept, "b", 0);
	c = fork_vm(kept, "c", 0);
	expect_life(b, 3, "none", NULL);
	heir = fork_vm(c, "heir", 0); /* it holds nothing of it */
	driver_kill(parent);
	leave(kept);
	driver_kill(a);
	go_back(b, NULL);
	expect_life(b, 3, "none", NULL);
	/* One goes elsewhere, one ends. */
	MUST(driver_reset(b, &(struct reset){.commit = &commit}, NULL, e));
	expect_life(b, 2, "none", NULL);
	assert_true(driver_alive(kept));
	go_back(c, NULL);
	driver_kill(c);
	MUST(driver_wait_gone(kept, GONE_MS, e));
	assert_true(driver_alive(heir));
	assert_int_equal(driver_reset(b, &(struct reset){0}, NULL, NULL), -ESTALE);
}

static void
without_any_branch_it_ends_with_its_pandod(void **state)
{
	struct vm *parent, *kept;

	NEEDS_KVM(state);
	parent = ready("mode=work", 1);
	kept = keep(parent, "kept");
	leave(kept);
	MUST(driver_wait_gone(kept, GONE_MS, e));
	assert_true(driver_alive(parent));
}

static void
a_disk_that_grew_is_as_small_as_it_was(void **state)
{
	char line[LINE];
	struct vm *vm;

	NEEDS_KVM(state);
	vm = fork_vm(keep(ready("mode=work disk=1", 1), "kept"), "grows", 0);
	expect_life(vm, 2, "ok", NULL);
	for (int i = 0; i < 2; i++) {
		MUST(driver_resize(vm, 32, e));
		expect(vm, "disk sectors=65536 ", line, LINE);
		assert_non_null(strstr(line, "end=ok"));
		assert_int_equal(driver_reset(vm, &(struct reset){.disk_mib = 32}, NULL, NULL),
			-EINVAL);
		go_back(vm, NULL);
		expect_life(vm, 2, "ok", NULL);
	}
}

static void
commits_between_and_after_resets_know_what_changed(void **state)
{
	struct vm *vm, *parked;
	struct commit now;

	NEEDS_KVM(state);
	vm = fork_vm(keep(ready("mode=work dirty=200 redirty=1", 1), "kept"), "child", 0);
	expect_life(vm, 2, "none", NULL);
	hand_page_map(vm);
	/* Their scans take the marks that the reset looks for. */
	for (unsigned i = 0; i < 3; i++) {
		parked = fork_vm(vm, "one", DRIVER_PARK | DRIVER_TRACK);
		driver_kill(parked);
		MUST(driver_committed(vm, vm->generation, 71 + i, e));
		expect_life(vm, 3, "none", NULL);
		parked = fork_vm(vm, "two", DRIVER_PARK | DRIVER_TRACK);
		MUST(driver_take_state(parked, "two", &now, e));
		driver_kill(parked);
		assert_true(now.track.flags & VMM_TRACK_BASE);
		go_back(vm, NULL);
		expect_life(vm, 2, "none", NULL);
		parked = fork_vm(vm, "three", DRIVER_PARK | DRIVER_TRACK);
		MUST(driver_take_state(parked, "three", &now, e));
		driver_kill(parked);
		/* Nothing is known of what differs from that commit: all is read. */
		assert_false(now.track.flags & (VMM_TRACK_BASE | VMM_TRACK_SINCE));
		go_back(vm, NULL);
		expect_life(vm, 2, "none", NULL);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		KVM_TEST(branches_go_back_to_their_fork_point_again_and_again),
		KVM_TEST(both_cpus_go_back),
		KVM_TEST(memory_is_a_new_branchs_byte_for_byte),
		KVM_TEST(a_kernel_that_names_no_pages_has_all_compared),
		KVM_TEST(a_branch_of_a_branch_has_a_fork_point_of_its_own),
		KVM_TEST(without_its_frozen_fork_a_branch_stays_as_it_is),
		KVM_TEST(the_frozen_fork_ends_with_the_last_that_may_come_back),
		KVM_TEST(without_any_branch_it_ends_with_its_pandod),
		KVM_TEST(a_disk_that_grew_is_as_small_as_it_was),
		KVM_TEST(commits_between_and_after_resets_know_what_changed),
	};

	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
