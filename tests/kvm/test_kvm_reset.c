/*
 * Reset: a VM goes back to a commit in the same process, and is then what a VM is that was just
 * started from it: memory, disk, devices, vCPUs, page tables. Branches of it live on.
 */
#include "tests/kvm/kvm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/blob.h"

#define START_MS 30000
#define PAGE 4096u
#define MEM_BYTES (16u << 20)

static void
nap(unsigned us)
{
	const struct timespec t = {.tv_nsec = us * 1000l};

	nanosleep(&t, NULL);
}

/* Parks a fork of vm, takes all of it, and ends the frozen fork. disk: it wrote one segment over
 * base (NULL: none). */
static void
commit_of(struct vm *vm, const char *base, bool disk, struct commit *c)
{
	struct vmm_forked f = {0};
	struct vm *parked = NULL;

	MUST(driver_fork(vm, "picture", DRIVER_PARK, &parked, &f, e));
	MUST(driver_take_state(parked, "commit", c, e));
	if (disk)
		MUST(driver_take_disk(
			vm, base, f.fork_point_records, c->answer.disk_mib, c, e));
}

static struct vm *
restored(const char *name, const struct commit *c)
{
	struct restore r = {.commit = c};
	struct vm *vm = NULL;

	MUST(driver_prepare(&driver, name, 16, c->answer.vcpus, &vm, e));
	MUST(driver_send_restore(vm, &r, e));
	MUST(driver_wait_started(vm, START_MS, e));
	return vm;
}

static void
reset(struct vm *vm, const struct commit *c, struct vmm_reset_answer *ret)
{
	MUST(driver_reset(vm, &(struct reset){.commit = c}, ret, e));
}

/* A commit of a guest with this command line, whose first VM has ended. */
static void
commit_from(const char *cmdline, unsigned vcpus, bool disk, const char *until, struct commit *c)
{
	struct vm *vm = boot("first", cmdline, vcpus);

	expect(vm, until, NULL, 0);
	commit_of(vm, NULL, disk, c);
	driver_kill(vm);
}

static void
goes_back_often(void **state, unsigned vcpus)
{
	struct vmm_reset_answer a;
	char line[LINE], cmdline[128];
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	snprintf(cmdline, sizeof(cmdline),
		"mode=work disk=1 dirty=300 redirty=1 cpus=%u tick=4000", vcpus);
	commit_from(cmdline, vcpus, true, "ready", &c);
	vm = restored("again", &c);
	expect_life(vm, 2, "ok", line);
	for (unsigned i = 1; i <= 12; i++) {
		if (i % 3 == 0)
			expect(vm, "tick ", NULL, 0); /* it has run for a while */
		reset(vm, &c, &a);
		assert_int_equal(a.resets, i);
		expect_life(vm, 2, "ok", line);
		if (vcpus > 1 && !strstr(line, "cpu1=counts"))
			fail_msg("the second CPU stands: %s", line);
	}
	expect(vm, "tick ", NULL, 0);
}

static void
a_vm_goes_back_to_its_commit_again_and_again(void **state)
{
	goes_back_often(state, 1);
}

static void
both_cpus_go_back(void **state)
{
	goes_back_often(state, 2);
}

static uint8_t *
load(const char *path, size_t len)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint8_t *p = malloc(len);

	assert_true(fd >= 0 && p);
	assert_int_equal(io_pread_full(fd, p, len, 0), 0);
	return p;
}

/* The n-th section of a state. */
static const uint8_t *
section(const uint8_t *p, size_t len, const char tag[4], size_t *ret_len)
{
	struct blob_section s;

	for (size_t at = sizeof(struct blob_header); at + sizeof(s) <= len;
		at += (s.bytes + 7u) & ~7u) {
		memcpy(&s, p + at, sizeof(s));
		at += sizeof(s);
		if (memcmp(&s.tag, tag, 4) == 0) {
			*ret_len = s.bytes;
			return p + at;
		}
	}
	fail_msg("no section %s", tag);
	return NULL;
}

/* A VM that rests, as a commit: nothing of it moves but clocks. */
struct still {
	struct commit c;
	uint8_t *memory, *state; /* owned */
	size_t state_len;
};

static void
still_of(struct vm *vm, struct still *ret)
{
	struct vmm_stats_answer s = {0};

	while (!s.first_doorbell_ns) {
		MUST(driver_stats(vm, &s, e));
		nap(1000);
	}
	nap(20000); /* from the doorbell to its HLT */
	commit_of(vm, NULL, false, &ret->c);
	ret->memory = load(ret->c.memory, MEM_BYTES);
	ret->state_len = ret->c.answer.blob_bytes;
	ret->state = load(ret->c.state, ret->state_len);
}

static void
still_done(struct still *s)
{
	free(s->memory);
	free(s->state);
}

static struct vm *
rests_from(const char *name, const struct commit *c)
{
	struct restore r = {.commit = c};
	struct vm *vm = NULL;

	MUST(driver_prepare(&driver, name, 16, c->answer.vcpus, &vm, e));
	vm->generation[15] = 0x80;
	MUST(driver_send_restore(vm, &r, e));
	MUST(driver_wait_started(vm, START_MS, e));
	return vm;
}

/* Words in which two spawns of one commit agree, and the VM that was reset does not. (By words: of
 * a time of the TSC the upper bytes agree in what was started at nearly the same time.) */
static unsigned
odd_words(const uint8_t *a, const uint8_t *b, const uint8_t *x, size_t len, size_t *ret_first)
{
	unsigned n = 0;

	for (size_t i = 0; i + 8 <= len; i += 8)
		if (memcmp(a + i, b + i, 8) == 0 && memcmp(x + i, a + i, 8) != 0 && n++ == 0)
			*ret_first = i;
	return n;
}

static void
assert_like_a_spawn(const struct still *a, const struct still *b, const struct still *x)
{
	static const char *const exact[] = {"IOAP", "SERI", "GEDV", "DISK", "VSCK", "RNGD"};
	size_t first = 0, len, other;

	if (odd_words(a->memory, b->memory, x->memory, MEM_BYTES, &first))
		fail_msg("memory differs from a spawn's, first at 0x%zx", first);
	for (size_t i = 0; i < sizeof(exact) / sizeof(*exact); i++) {
		const uint8_t *was = section(a->state, a->state_len, exact[i], &len);
		const uint8_t *is = section(x->state, x->state_len, exact[i], &other);

		assert_int_equal(len, other);
		if (memcmp(was, is, len) != 0)
			fail_msg("the section %s differs from a spawn's", exact[i]);
	}
	/* vCPUs: all that two spawns agree in. */
	{
		const uint8_t *pa = section(a->state, a->state_len, "VCPU", &len);
		const uint8_t *pb = section(b->state, b->state_len, "VCPU", &other);
		const uint8_t *px;

		assert_int_equal(len, other);
		px = section(x->state, x->state_len, "VCPU", &other);
		assert_int_equal(len, other);
		if (odd_words(pa, pb, px, len, &first))
			fail_msg("the vCPU differs from a spawn's, first at %zu of %zu", first,
				len);
	}
}

static void
is_like_a_spawn(void **state, const char *track)
{
	struct still a, b, x;
	struct vmm_reset_answer answer;
	char line[LINE];
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	commit_from("mode=work rest=1 dirty=1500 redirty=1 mess=1 map=1", 1, true, "ready", &c);
	/* One spawn before and one after it: what they agree in, of times of the TSC, too, it has. */
	still_of(rests_from("spawn a", &c), &a);
	if (track)
		setenv("PANDO_TRACK", track, 1);
	vm = restored("dirty", &c);
	unsetenv("PANDO_TRACK");
	for (int i = 0; i < 3; i++) {
		expect_life(vm, 2, "none", line); /* and then it makes its mess */
		if (i < 2)
			reset(vm, &c, &answer);
	}
	MUST(driver_reset(vm, &(struct reset){.commit = &c, .rests = true}, &answer, e));
	if (!track)
		assert_true(answer.pages >= 1500 && answer.pages < MEM_BYTES / PAGE);
	else
		assert_true(answer.pages == UINT64_MAX);
	still_of(vm, &x);
	still_of(rests_from("spawn b", &c), &b);
	assert_like_a_spawn(&a, &b, &x);
	still_done(&a);
	still_done(&b);
	still_done(&x);
}

static void
memory_devices_and_registers_are_a_spawns_byte_for_byte(void **state)
{
	is_like_a_spawn(state, NULL);
}

/* KVM lets a guest write them, and lists them nowhere. */
static void
machine_check_banks_keep_nothing_of_another_life(void **state)
{
	struct vmm_reset_answer answer;
	char line[LINE];
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	commit_from("mode=work mess=1", 1, false, "ready", &c);
	vm = restored("dirty", &c);
	for (int i = 0; i < 3; i++) {
		expect_life(vm, 2, "none", line);
		if (!strstr(line, " banks=empty "))
			fail_msg("they are not empty: %s", line);
		reset(vm, &c, &answer);
	}
}

static void
a_kernel_that_names_no_pages_goes_back_whole(void **state)
{
	is_like_a_spawn(state, "none");
}

/* A KVM with shadows of page tables would go on with what the guest wrote. */
static void
page_tables_are_the_commits(void **state)
{
	char line[LINE];
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	commit_from("mode=work map=1", 1, false, "ready", &c);
	vm = restored("again", &c);
	for (int i = 0; i < 6; i++) {
		expect_life(vm, 2, "none", line);
		if (!strstr(line, "map=first"))
			fail_msg("it reaches the page that it mapped later: %s", line);
		reset(vm, &c, NULL);
	}
}

static void
branches_of_a_vm_that_goes_back_live_on(void **state)
{
	struct vm *vm, *child, *grandchild;
	char line[LINE];
	struct commit c;

	NEEDS_KVM(state);
	commit_from("mode=work disk=1 dirty=200 redirty=1", 1, true, "ready", &c);
	vm = restored("parent", &c);
	expect_life(vm, 2, "ok", line);
	/* The child reads on in the segment that the parent wrote before. */
	child = fork_vm(vm, "child", 0);
	expect_life(child, 3, "ok", line);
	expect_life(vm, 3, "ok", line);
	reset(vm, &c, NULL);
	expect_life(vm, 2, "ok", line);
	grandchild = fork_vm(child, "grandchild", 0);
	expect_life(grandchild, 4, "ok", line);
	expect_life(child, 4, "ok", line);
	/* The branch lies on the commit's image, too. */
	reset(child, &c, NULL);
	expect_life(child, 2, "ok", line);
	child = fork_vm(vm, "another", 0);
	expect_life(child, 3, "ok", line);
	expect_life(vm, 3, "ok", line);
	child = fork_vm(grandchild, "last", 0);
	expect_life(child, 5, "ok", line);
}

static void
a_booted_vm_and_another_commit(void **state)
{
	struct vmm_reset_answer a;
	char line[LINE];
	struct commit c, later;
	struct vm *vm, *other;

	NEEDS_KVM(state);
	vm = boot("first", "mode=work disk=1 dirty=100 redirty=1", 1);
	expect(vm, "ready", NULL, 0);
	commit_of(vm, NULL, true, &c);
	expect_life(vm, 2, "ok", line);
	/* Its memory is no image's: the commit's is mapped in its place, and then it is. */
	reset(vm, &c, &a);
	assert_true(a.pages == UINT64_MAX);
	expect_life(vm, 2, "ok", line);
	reset(vm, &c, &a);
	assert_true(a.pages < MEM_BYTES / PAGE);
	expect_life(vm, 2, "ok", line);
	/* A commit of another VM, with more history; and back. */
	other = restored("other", &c);
	expect_life(other, 2, "ok", line);
	commit_of(other, c.disk, true, &later);
	reset(vm, &later, &a);
	assert_true(a.pages == UINT64_MAX);
	expect_life(vm, 3, "ok", line);
	reset(vm, &later, &a);
	assert_true(a.pages < MEM_BYTES / PAGE);
	expect_life(vm, 3, "ok", line);
	reset(vm, &c, &a);
	expect_life(vm, 2, "ok", line);
}

static void
a_disk_that_grew_is_as_small_as_it_was(void **state)
{
	char line[LINE];
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	commit_from("mode=work disk=1", 1, true, "ready", &c);
	vm = restored("grows", &c);
	expect_life(vm, 2, "ok", line);
	for (int i = 0; i < 2; i++) {
		MUST(driver_resize(vm, 32, e));
		expect(vm, "disk sectors=65536 ", line, LINE);
		assert_non_null(strstr(line, "end=ok"));
		reset(vm, &c, NULL);
		expect_life(vm, 2, "ok", line);
	}
}

static void
a_paused_vm_goes_back_and_runs(void **state)
{
	struct vmm_stats_answer s;
	char line[LINE];
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	commit_from("mode=work disk=1 tick=3000", 1, true, "ready", &c);
	vm = restored("paused", &c);
	expect_life(vm, 2, "ok", line);
	MUST(driver_request(vm, VMM_PAUSE, NULL, 0, VMM_DONE, 10000, e));
	reset(vm, &c, NULL);
	expect_life(vm, 2, "ok", line);
	MUST(driver_stats(vm, &s, e));
	assert_int_equal(s.paused, 0);
	assert_int_equal(s.tracks >> VMM_RESETS_SHIFT, 1);
	/* Nothing is owed any more. */
	MUST(driver_request(vm, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
	expect(vm, "tick ", NULL, 0);
}

static int
dial(const struct vm *vm)
{
	char path[256];
	int fd = -1;

	MUST(io_unix_connect(driver_path(vm, "vsock.sock", path), SOCK_STREAM, &fd, e));
	return fd;
}

static void
clients_are_cut_and_new_ones_come_in(void **state)
{
	cleanup_close int old = -1, fresh = -1;
	struct vmm_stats_answer s;
	char line[LINE], byte;
	struct commit c;
	struct pollfd p;
	struct vm *vm;

	NEEDS_KVM(state);
	commit_from("mode=work", 1, false, "ready", &c);
	vm = restored("talks", &c);
	expect_life(vm, 2, "none", line);
	old = dial(vm);
	do
		MUST(driver_stats(vm, &s, e));
	while (s.vsock_connections != 1);
	reset(vm, &c, NULL);
	p = (struct pollfd){.fd = old, .events = POLLIN};
	assert_int_equal(poll(&p, 1, 10000), 1);
	assert_true(recv(old, &byte, 1, 0) <= 0);
	MUST(driver_stats(vm, &s, e));
	assert_int_equal(s.vsock_connections, 0);
	fresh = dial(vm);
	assert_int_equal(send(fresh, "CONNECT 1\n", 10, 0), 10);
	p = (struct pollfd){.fd = fresh, .events = POLLIN};
	assert_int_equal(poll(&p, 1, 10000), 1);
	/* The small guest has no driver for it. */
	assert_int_equal(recv(fresh, line, 3, 0), 3);
	assert_memory_equal(line, "ERR", 3);
}

/* Guests that do not listen: one with its disk always under way, one that keeps a vCPU in its
 * disk, one that stands with interrupts off. */
static void
a_guest_cannot_resist(void **state)
{
	static const struct {
		const char *cmdline, *until;
		unsigned vcpus;
	} guests[] = {{"mode=scatter pages=1024", "scattering", 1},
		{"mode=flood", "flooding", 2}, {"mode=hello", "hello", 1}};
	struct vmm_reset_answer a;
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	for (size_t i = 0; i < sizeof(guests) / sizeof(*guests); i++) {
		uint64_t before;

		commit_from(guests[i].cmdline, guests[i].vcpus, true, guests[i].until, &c);
		vm = restored("resists", &c);
		for (unsigned k = 1; k <= 25; k++) {
			nap(k * 400);
			reset(vm, &c, &a);
			assert_int_equal(a.resets, k);
		}
		before = driver_console_written(vm);
		nap(50000);
		assert_true(driver_alive(vm));
		/* It would say that its disk fails. */
		assert_true(driver_console_written(vm) == before);
		driver_kill(vm);
	}
}

static void
a_guest_that_powered_off_is_gone(void **state)
{
	struct err why = {0, ""};
	struct commit c;
	struct vm *vm;

	NEEDS_KVM(state);
	commit_from("mode=work tick=1000 button=1", 1, false, "ready", &c);
	vm = restored("off", &c);
	expect(vm, "tick ", NULL, 0);
	MUST(driver_request(vm, VMM_POWER_BUTTON, NULL, 0, VMM_DONE, 10000, e));
	expect(vm, "power button", NULL, 0);
	if (driver_reset(vm, &(struct reset){.commit = &c}, NULL, &why) == 0)
		print_message("# the reset was first\n");
	else
		assert_ended_well(vm);
}

static void
what_cannot_be_is_refused_and_changes_nothing(void **state)
{
	struct err why = {0, ""};
	struct commit c, bad, small;
	struct vm *vm, *parked;
	char line[LINE];

	NEEDS_KVM(state);
	commit_from("mode=work disk=1 tick=3000", 1, true, "ready", &c);
	vm = restored("stays", &c);
	expect_life(vm, 2, "ok", line);
	/* a segment that somebody wrote */
	assert_true(driver_reset(vm, &(struct reset){.commit = &c, .used_segment = true}, NULL,
			    &why) < 0);
	assert_non_null(strstr(why.msg, "empty"));
	/* another size of disk, a state cut short */
	assert_true(driver_reset(vm, &(struct reset){.commit = &c, .disk_mib = 24}, NULL, &why) <
		    0);
	assert_non_null(strstr(why.msg, "disk of 16 MiB"));
	assert_true(driver_reset(vm, &(struct reset){.commit = &c, .blob_bytes = 100}, NULL,
			    &why) < 0);
	/* another shape */
	commit_from("mode=work cpus=2", 2, false, "ready", &bad);
	assert_true(driver_reset(vm, &(struct reset){.commit = &bad}, NULL, &why) < 0);
	assert_non_null(strstr(why.msg, "2 vCPUs"));
	small = c;
	snprintf(small.memory, sizeof(small.memory), "%s", c.state);
	assert_true(driver_reset(vm, &(struct reset){.commit = &small}, NULL, &why) < 0);
	assert_non_null(strstr(why.msg, "memory image"));
	/* a frozen fork */
	parked = fork_vm(vm, "parked", DRIVER_PARK);
	assert_true(driver_reset(parked, &(struct reset){.commit = &c}, NULL, &why) < 0);
	assert_non_null(strstr(why.msg, "frozen fork"));
	expect_life(vm, 3, "ok", line);
	expect(vm, "tick ", NULL, 0);
}

/* A state whose check sum is right and whose end is missing: it is found out when the VM is not what
 * it was any more. */
static void
a_state_that_cannot_be_loaded_ends_the_vm_with_a_sentence(void **state)
{
	cleanup_free uint8_t *p = NULL;
	struct err why = {0, ""};
	struct blob_header h;
	char line[LINE];
	struct commit c;
	struct vm *vm;
	size_t len;

	NEEDS_KVM(state);
	commit_from("mode=work", 1, false, "ready", &c);
	vm = restored("ends", &c);
	expect_life(vm, 2, "none", line);
	len = c.answer.blob_bytes;
	p = load(c.state, len);
	len = (size_t)(section(p, len, "RNGD", &(size_t){0}) - p) - sizeof(struct blob_section);
	memcpy(&h, p, sizeof(h));
	h.bytes = len;
	h.check = blob_check(p + sizeof(h), len - sizeof(h));
	memcpy(p, &h, sizeof(h));
	strcat(c.state, "x");
	MUST(io_write_file_atomic(c.state, p, len, 0600, e));
	c.answer.blob_bytes = len;
	assert_true(driver_reset(vm, &(struct reset){.commit = &c}, NULL, &why) < 0);
	MUST(driver_wait_gone(vm, 20000, e));
	assert_true(vm->got_exiting);
	assert_int_equal(vm->exiting.reason, VMM_EXIT_HOST_FAULT);
	assert_non_null(strstr(vm->exiting.msg, "reset"));
}

/* After a reset nothing counts that was told of pages before. */
static void
commits_begin_anew_after_a_reset(void **state)
{
	uint8_t before[16];
	struct err why = {0, ""};
	struct vmm_reset_answer a;
	struct vm *vm, *parked;
	struct commit c, now;
	char line[LINE];

	NEEDS_KVM(state);
	commit_from("mode=work dirty=200 redirty=1", 1, false, "ready", &c);
	vm = restored("committed", &c);
	expect_life(vm, 2, "none", line);
	parked = fork_vm(vm, "one", DRIVER_PARK | DRIVER_TRACK);
	driver_kill(parked);
	MUST(driver_committed(vm, vm->generation, 71, e));
	expect_life(vm, 3, "none", line);
	parked = fork_vm(vm, "two", DRIVER_PARK | DRIVER_TRACK);
	MUST(driver_take_state(parked, "two", &now, e));
	driver_kill(parked);
	assert_true(now.track.flags & VMM_TRACK_BASE);
	memcpy(before, vm->generation, sizeof(before));
	reset(vm, &c, &a);
	/* Not those that the watch of the commits marked, too. */
	if (a.pages != UINT64_MAX)
		assert_in_range(a.pages, 1, MEM_BYTES / PAGE / 4);
	expect_life(vm, 2, "none", line);
	/* The commit of that fork is durable only now. */
	assert_true(driver_committed(vm, before, 72, &why) < 0);
	parked = fork_vm(vm, "three", DRIVER_PARK | DRIVER_TRACK);
	MUST(driver_take_state(parked, "three", &now, e));
	driver_kill(parked);
	assert_false(now.track.flags & (VMM_TRACK_BASE | VMM_TRACK_SINCE));
	assert_true(now.answer.flags & VMM_STATE_ON_IMAGE);
	/* And from there on changes are known again. */
	MUST(driver_committed(vm, vm->generation, 73, e));
	expect_life(vm, 3, "none", line);
	parked = fork_vm(vm, "four", DRIVER_PARK | DRIVER_TRACK);
	MUST(driver_take_state(parked, "four", &now, e));
	assert_true(now.track.flags & VMM_TRACK_BASE);
	if (now.track.means != VMM_TRACK_NONE)
		assert_true(now.track.flags & VMM_TRACK_SINCE);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		KVM_TEST(a_vm_goes_back_to_its_commit_again_and_again),
		KVM_TEST(both_cpus_go_back),
		KVM_TEST(memory_devices_and_registers_are_a_spawns_byte_for_byte),
		KVM_TEST(machine_check_banks_keep_nothing_of_another_life),
		KVM_TEST(a_kernel_that_names_no_pages_goes_back_whole),
		KVM_TEST(page_tables_are_the_commits),
		KVM_TEST(branches_of_a_vm_that_goes_back_live_on),
		KVM_TEST(a_booted_vm_and_another_commit),
		KVM_TEST(a_disk_that_grew_is_as_small_as_it_was),
		KVM_TEST(a_paused_vm_goes_back_and_runs),
		KVM_TEST(clients_are_cut_and_new_ones_come_in),
		KVM_TEST(a_guest_cannot_resist),
		KVM_TEST(a_guest_that_powered_off_is_gone),
		KVM_TEST(what_cannot_be_is_refused_and_changes_nothing),
		KVM_TEST(a_state_that_cannot_be_loaded_ends_the_vm_with_a_sentence),
		KVM_TEST(commits_begin_anew_after_a_reset),
	};

	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
