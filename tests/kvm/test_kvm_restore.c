/*
 * Commits, as far as the VMM has to do with them: a frozen fork gives its state and
 * its memory; a pre-warmed VMM and one that was just started go on from them as if nothing had
 * been; what is damaged, hostile or of another shape is refused with a sentence.
 */
#include "tests/kvm/kvm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/blob.h"

#define START_MS 30000

/* Parks a fork of vm, takes all of it, and ends the frozen fork. */
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
	assert_int_equal(c->answer.n_ranges, 1);
	assert_int_equal(c->answer.ranges[0].gpa, 0);
	assert_int_equal(c->answer.ranges[0].len, c->answer.mem_mib << 20);
}

static struct vm *
prewarmed(const char *name, uint32_t vcpus)
{
	struct vm *vm = NULL;

	MUST(driver_prepare(&driver, name, 16, vcpus, &vm, e));
	return vm;
}

static struct vm *
restored(const char *name, const struct commit *c, bool from_prewarmed)
{
	struct restore r = {.commit = c};
	struct vm *vm = NULL;

	if (from_prewarmed)
		vm = prewarmed(name, c->answer.vcpus);
	else
		MUST(driver_start(&driver, name, &vm, e));
	MUST(driver_send_restore(vm, &r, e));
	MUST(driver_wait_started(vm, START_MS, e));
	assert_true(vm->started.setup_ns > 0);
	return vm;
}

static uint64_t
generation_of(const struct vm *vm)
{
	uint64_t g;

	memcpy(&g, vm->generation, 8);
	return g;
}

/* The line a guest says after its generation changed for the n-th time. */
static void
expect_goes_on(struct vm *vm, unsigned n, const char *disk, char line[static LINE])
{
	char want[96];

	snprintf(want, sizeof(want), "fork n=%u ", n);
	expect(vm, want, line, LINE);
	if (!strstr(line, " memory=ok "))
		fail_msg("%s: memory is not its own: %s", vm->name, line);
	snprintf(want, sizeof(want), " disk=%s ", disk);
	if (!strstr(line, want))
		fail_msg("%s: disk is not %s: %s", vm->name, disk, line);
	snprintf(want, sizeof(want), "%016llx", (unsigned long long)generation_of(vm));
	if (strlen(line) < 16 || strcmp(line + strlen(line) - 16, want) != 0)
		fail_msg("%s: its generation is not %s: %s", vm->name, want, line);
}

static void
goes_on_after_restore(void **state, bool from_prewarmed, unsigned vcpus)
{
	char line[LINE], cmdline[128];
	struct vm *vm, *again;
	struct commit c;
	uint64_t ticked;

	NEEDS_KVM(state);
	snprintf(cmdline, sizeof(cmdline), "mode=work tick=2000 disk=1 cpus=%u", vcpus);
	vm = boot("first", cmdline, vcpus);
	expect(vm, "tick ", line, sizeof(line));
	ticked = strtoull(line + 5, NULL, 10);
	commit_of(vm, NULL, true, &c);
	driver_kill(vm); /* a commit needs nothing of where it came from */
	again = restored("again", &c, from_prewarmed);
	expect_goes_on(again, 2, "ok", line);
	assert_true(console_line_number(line, "counter") >= ticked);
	if (vcpus > 1 && !strstr(line, "cpu1=counts"))
		fail_msg("the second CPU stands: %s", line);
	expect(again, "tick ", line, sizeof(line));
}

static void
a_prewarmed_vmm_goes_on_from_a_commit(void **state)
{
	goes_on_after_restore(state, true, 1);
}

static void
a_cold_vmm_goes_on_from_a_commit(void **state)
{
	goes_on_after_restore(state, false, 1);
}

static void
two_cpus_go_on_in_a_prewarmed_vmm(void **state)
{
	goes_on_after_restore(state, true, 2);
}

static void
two_cpus_go_on_in_a_cold_vmm(void **state)
{
	goes_on_after_restore(state, false, 2);
}

/* A copy of a commit's state that may be changed. */
static uint8_t *
state_of(const struct commit *c, size_t *ret_len)
{
	char *p = NULL;

	MUST(io_read_file(c->state, VMM_STATE_BLOB_MAX, &p, ret_len, e));
	return (uint8_t *)p;
}

/* The n-th section of a tag: where its content begins. */
static size_t
section(const uint8_t *p, size_t len, const char tag[4])
{
	struct blob_section s;

	for (size_t at = sizeof(struct blob_header); at + sizeof(s) <= len;
		at += (s.bytes + 7u) & ~7u) {
		memcpy(&s, p + at, sizeof(s));
		at += sizeof(s);
		if (memcmp(&s.tag, tag, 4) == 0)
			return at;
	}
	fail_msg("no section %s", tag);
	return 0;
}

/* Cycles in a second of the guest's TSC; where KVM does not say, 1 GHz. */
static uint64_t
tsc_hz_of(const struct commit *c)
{
	cleanup_free uint8_t *p = NULL;
	uint32_t khz;
	size_t len;

	p = state_of(c, &len);
	memcpy(&khz, p + section(p, len, "VCPU") + 4, sizeof(khz));
	return khz ? khz * 1000ull : 1000 * 1000 * 1000;
}

/* What vmm/state.h calls so: the VM's state taken again still counts as the host does. */
static bool
tsc_is_fixed(struct vm *vm)
{
	uint64_t saved, before, after;
	cleanup_free uint8_t *p = NULL;
	struct commit c;
	size_t len;

	before = __rdtsc();
	commit_of(vm, NULL, false, &c);
	after = __rdtsc();
	p = state_of(&c, &len);
	memcpy(&saved, p + section(p, len, "VCPU") + 8, sizeof(saved));
	return saved >= before && saved <= after;
}

static void
clock_and_timer_go_on_from_the_commit(void **state)
{
	char line[LINE];
	struct vm *vm, *again;
	struct commit c;
	uint64_t gap, hz;
	unsigned fired;
	char next[32];

	NEEDS_KVM(state);
	vm = boot("first", "mode=work timer=300", 1);
	expect(vm, "timer 1 ", line, sizeof(line));
	commit_of(vm, NULL, false, &c);
	hz = tsc_hz_of(&c);
	driver_kill(
		vm); /* it would poll meanwhile, which an emulated host has to count out */
	/* What passes meanwhile is nothing to the guest. */
	sleep(6);
	again = restored("again", &c, true);
	expect_goes_on(again, 2, "none", line);
	gap = console_line_number(line, "gap");
	if (tsc_is_fixed(again))
		print_message(
			"# this host's KVM cannot offset a guest's TSC: not compared\n");
	else if (gap > 5 * hz)
		fail_msg("the TSC did not go on from the commit: %s", line);
	/* Armed before the commit, it fires after the restore, and then again. On a busy host it may have
	 * fired before the guest told of its new generation: what is there by now is behind. */
	expect(again, "timer ", line, sizeof(line));
	if (sscanf(strstr(line, "timer "), "timer %u ", &fired) != 1 || fired < 2)
		fail_msg("the timer did not go on from the commit: %s", line);
	snprintf(next, sizeof(next), "timer %u ", fired + 2);
	expect(again, next, line, sizeof(line));
}

static void
a_restored_vm_forks_and_is_committed_again(void **state)
{
	struct vm *vm, *second, *child, *third;
	struct commit c, c2;
	char line[LINE];

	NEEDS_KVM(state);
	vm = boot("first", "mode=work tick=3000 disk=1", 1);
	expect(vm, "ready", line, sizeof(line));
	commit_of(vm, NULL, true, &c);
	assert_int_equal(c.answer.flags & VMM_STATE_ON_IMAGE, 0);
	second = restored("second", &c, true);
	expect_goes_on(second, 2, "ok", line);

	commit_of(second, c.disk, true, &c2); /* its generation changes a third time */
	assert_true(c2.answer.flags & VMM_STATE_ON_IMAGE);
	expect_goes_on(second, 3, "ok", line);
	child = fork_vm(second, "child", 0);
	expect_goes_on(child, 4, "ok", line);
	expect_goes_on(second, 4, "ok", line);
	third = restored("third", &c2, false);
	expect_goes_on(third, 3, "ok", line);
	if (strstr(line, "counter=0 "))
		fail_msg("it began anew: %s", line);
	/* and ten more of the first */
	for (int i = 0; i < 10; i++) {
		struct vm *one = restored("one", &c, i & 1);

		expect_goes_on(one, 2, "ok", line);
		driver_kill(one);
	}
	expect(second, "tick ", line, sizeof(line));
	expect(third, "tick ", line, sizeof(line));
}

static void
a_paused_vm_forks_and_stays_paused(void **state)
{
	struct vm *vm, *child, *again;
	struct commit c;
	char line[LINE];
	uint64_t before;

	NEEDS_KVM(state);
	vm = boot("first", "mode=work disk=1", 1);
	expect(vm, "ready", line, sizeof(line));
	MUST(driver_request(vm, VMM_PAUSE, NULL, 0, VMM_DONE, 10000, e));
	before = driver_console_written(vm);
	commit_of(vm, NULL, true, &c);
	child = fork_vm(vm, "child", 0);
	/* the generation that the parent got with the commit it has not seen */
	expect_goes_on(child, 2, "ok", line);
	again = restored("again", &c, true);
	expect_goes_on(again, 2, "ok", line);
	usleep(200000);
	assert_true(driver_console_written(vm) == before);
	MUST(driver_request(vm, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
	expect_goes_on(vm, 2, "ok", line);
}

static void
control_goes_on_after_a_restore(void **state)
{
	struct vmm_stats_answer s;
	struct vm *vm, *again;
	struct commit c;
	char line[LINE];

	NEEDS_KVM(state);
	vm = boot("first", "mode=work tick=3000", 1);
	expect(vm, "ready", line, sizeof(line));
	commit_of(vm, NULL, false, &c);
	again = restored("again", &c, true);
	expect_goes_on(again, 2, "none", line);
	MUST(driver_stats(again, &s, e));
	assert_int_equal(s.paused, 0);
	MUST(driver_request(again, VMM_PAUSE, NULL, 0, VMM_DONE, 10000, e));
	driver_drop_control(again);
	MUST(driver_adopt(again, 10000, e));
	MUST(driver_stats(again, &s, e));
	assert_int_equal(s.paused, 1);
	MUST(driver_request(again, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
	expect(again, "tick ", line, sizeof(line));
}

static void
a_prewarmed_vmm_quits_when_asked_and_when_left(void **state)
{
	struct vmm_hdr quit = {
		.version = VMM_WIRE_VERSION, .type = VMM_QUIT, .len = sizeof(quit)};
	struct vm *vm;

	NEEDS_KVM(state);
	vm = prewarmed("asked", 1);
	assert_int_equal(driver_send_raw(vm, &quit, sizeof(quit), NULL, 0), 0);
	assert_ended_well(vm);
	vm = prewarmed("left", 1);
	driver_drop_control(vm);
	assert_ended_well(vm);
	vm = prewarmed("nonsense", 1);
	quit.type = VMM_PAUSE;
	assert_int_equal(driver_send_raw(vm, &quit, sizeof(quit), NULL, 0), 0);
	assert_ended_well(vm);
}

static void
a_running_vm_gives_no_state_and_a_used_file_takes_none(void **state)
{
	struct vmm_state_answer a;
	struct vm *vm, *parked;
	struct err why = {0, ""};
	char line[LINE], path[256];
	cleanup_close int fd = -1, pipe_end = -1;

	NEEDS_KVM(state);
	vm = boot("first", "mode=work tick=3000", 1);
	expect(vm, "ready", line, sizeof(line));
	fd = open(driver_path(vm, "state", path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_true(driver_ask_state(vm, fd, &a, &why) < 0);
	assert_non_null(strstr(why.msg, "frozen fork"));
	parked = fork_vm(vm, "parked", DRIVER_PARK);
	assert_int_equal(write(fd, "x", 1), 1);
	assert_true(driver_ask_state(parked, fd, &a, &why) < 0);
	assert_non_null(strstr(why.msg, "empty"));
	pipe_end = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_true(driver_ask_state(parked, pipe_end, &a, &why) < 0);
	assert_true(driver_resize(parked, 1000, &why) < 0);
	assert_non_null(strstr(why.msg, "frozen fork"));
	expect(vm, "tick ", line, sizeof(line));
}

/* Sends a restore that must fail; the reason is left in why. */
static void
refused(const struct restore *r, bool from_prewarmed, struct err *why)
{
	struct vm *vm = NULL;

	if (from_prewarmed)
		vm = prewarmed("refused", 1);
	else
		MUST(driver_start(&driver, "refused", &vm, e));
	MUST(driver_send_restore(vm, r, e));
	if (driver_wait_started(vm, START_MS, why) == 0)
		fail_msg("it was not refused");
	assert_true(vm->got_started && vm->started.error < 0 && why->msg[0]);
	MUST(driver_wait_gone(vm, 10000, e));
	assert_int_equal(vm->status & 0x7f, 0);
	driver_kill(vm);
}

static void
another_shape_is_refused(void **state)
{
	struct err why = {0, ""};
	struct commit c, bad;
	struct vm *vm;
	char line[LINE];

	NEEDS_KVM(state);
	vm = boot("first", "mode=work", 1);
	expect(vm, "ready", line, sizeof(line));
	commit_of(vm, NULL, false, &c);

	refused(&(struct restore){.commit = &c, .vcpus = 2}, true, &why);
	assert_non_null(strstr(why.msg, "vCPU"));
	refused(&(struct restore){.commit = &c, .vcpus = 2}, false, &why);
	assert_non_null(strstr(why.msg, "vCPU"));
	refused(&(struct restore){.commit = &c, .mem_mib = 32}, true, &why);
	assert_non_null(strstr(why.msg, "MiB"));
	refused(&(struct restore){.commit = &c, .mem_mib = 32}, false, &why);
	assert_non_null(strstr(why.msg, "memory image"));
	refused(&(struct restore){.commit = &c, .mem_mib = 8}, false, &why);
	refused(&(struct restore){.commit = &c, .disk_mib = 8}, true, &why);
	assert_non_null(strstr(why.msg, "only grow"));
	/* a memory image that was cut short */
	bad = c;
	assert_int_equal(truncate(bad.memory, 15 << 20), 0);
	refused(&(struct restore){.commit = &bad}, true, &why);
	assert_non_null(strstr(why.msg, "memory image"));
}

static void
use_state(struct commit *c, const uint8_t *p, size_t len, bool fix_check)
{
	cleanup_free uint8_t *copy = malloc(len + 1);
	struct blob_header h;

	assert_non_null(copy);
	memcpy(copy, p, len);
	if (fix_check && len >= sizeof(h)) {
		memcpy(&h, copy, sizeof(h));
		h.bytes = len;
		h.check = blob_check(copy + sizeof(h), len - sizeof(h));
		memcpy(copy, &h, sizeof(h));
	}
	strcat(c->state, "x");
	MUST(io_write_file_atomic(c->state, copy, len, 0600, e));
	c->answer.blob_bytes = len;
}

static void
damaged_states_are_refused_with_a_sentence(void **state)
{
	cleanup_free uint8_t *p = NULL;
	struct err why = {0, ""};
	struct commit c, bad;
	struct vm *vm;
	char line[LINE];
	size_t len;

	NEEDS_KVM(state);
	vm = boot("first", "mode=work disk=1", 1);
	expect(vm, "ready", line, sizeof(line));
	commit_of(vm, NULL, true, &c);
	p = state_of(&c, &len);

	/* cut short, with and without the message saying so */
	bad = c;
	use_state(&bad, p, len - 8, false);
	refused(&(struct restore){.commit = &bad}, true, &why);
	assert_non_null(strstr(why.msg, "bytes long"));
	refused(&(struct restore){.commit = &bad, .blob_bytes = len}, true, &why);
	assert_non_null(strstr(why.msg, "shorter"));
	bad = c;
	use_state(&bad, p, 16, false);
	refused(&(struct restore){.commit = &bad}, false, &why);
	/* a bit flipped */
	bad = c;
	p[len / 2] ^= 0x10;
	use_state(&bad, p, len, false);
	refused(&(struct restore){.commit = &bad}, true, &why);
	assert_non_null(strstr(why.msg, "check sum"));
	p[len / 2] ^= 0x10;
	/* another format */
	bad = c;
	p[8]++;
	use_state(&bad, p, len, false);
	refused(&(struct restore){.commit = &bad}, true, &why);
	assert_non_null(strstr(why.msg, "version"));
	p[8]--;
	/* a queue outside memory: driver's queue addresses stand after the device's 40
	 * bytes and the queue's first 10 */
	bad = c;
	p[section(p, len, "DISK") + 40 + 10 + 5] ^= 1;
	use_state(&bad, p, len, true);
	refused(&(struct restore){.commit = &bad}, true, &why);
	assert_non_null(strstr(why.msg, "does not lie in the guest's memory"));
	p[section(p, len, "DISK") + 40 + 10 + 5] ^= 1;
	/* an interrupt controller with bits that there are not */
	bad = c;
	p[section(p, len, "IOAP") + 3] ^= 1;
	use_state(&bad, p, len, true);
	refused(&(struct restore){.commit = &bad}, false, &why);
	assert_non_null(strstr(why.msg, "interrupt controller"));
	p[section(p, len, "IOAP") + 3] ^= 1;
	/* cut at each section's begin, sound otherwise */
	for (size_t at = sizeof(struct blob_header); at < len;) {
		struct blob_section s;

		bad = c;
		use_state(&bad, p, at, true);
		refused(&(struct restore){.commit = &bad}, true, &why);
		assert_true(strstr(why.msg, "section") || strstr(why.msg, "state"));
		memcpy(&s, p + at, sizeof(s));
		at += sizeof(s) + ((s.bytes + 7u) & ~7u);
	}
	/* and as it was, it works */
	expect_goes_on(restored("again", &c, true), 2, "ok", line);
}

/* One bit of a register of a CPUID leaf in a state; reg 0 is EAX. */
static bool
flip_cpuid(uint8_t *p, size_t len, uint32_t leaf, unsigned reg, unsigned bit)
{
	size_t at = section(p, len, "CPID");
	uint32_t n, function, index, value;

	memcpy(&n, p + at, 4);
	for (uint32_t i = 0; i < n; i++) {
		size_t entry = at + 8 + i * 40u;

		memcpy(&function, p + entry, 4);
		memcpy(&index, p + entry + 4, 4);
		if (function != leaf || index != 0)
			continue;
		memcpy(&value, p + entry + 12 + 4 * reg, 4);
		value ^= 1u << bit;
		memcpy(p + entry + 12 + 4 * reg, &value, 4);
		return value >> bit & 1;
	}
	fail_msg("CPUID leaf 0x%x is not there", leaf);
	return false;
}

static void
a_feature_the_host_lacks_is_refused_by_name(void **state)
{
	cleanup_free uint8_t *p = NULL;
	struct err why = {0, ""};
	struct commit c, bad;
	struct vm *vm;
	char line[LINE];
	size_t len;

	NEEDS_KVM(state);
	vm = boot("first", "mode=work", 1);
	expect(vm, "ready", line, sizeof(line));
	commit_of(vm, NULL, false, &c);
	p = state_of(&c, &len);
	/* 3DNow! and IA-64 emulation: of no CPU that runs this. */
	assert_true(flip_cpuid(p, len, 0x80000001, 3, 31));
	assert_true(flip_cpuid(p, len, 1, 3, 30));
	bad = c;
	use_state(&bad, p, len, true);
	refused(&(struct restore){.commit = &bad}, true, &why);
	assert_non_null(strstr(why.msg, "3dnow"));
	assert_non_null(strstr(why.msg, "ia64"));
	refused(&(struct restore){.commit = &bad}, false, &why);
	assert_non_null(strstr(why.msg, "3dnow"));
	flip_cpuid(p, len, 0x80000001, 3, 31);
	flip_cpuid(p, len, 1, 3, 30);
	/* A feature less than the host has is the VM's own affair, and it has it so. */
	assert_false(flip_cpuid(p, len, 1, 3, 19)); /* CLFLUSH */
	bad = c;
	use_state(&bad, p, len, true);
	expect_goes_on(restored("less", &bad, true), 2, "none", line);
	expect_goes_on(restored("less too", &bad, false), 2, "none", line);
}

/* One MSR of vCPU 0 in a state, or NULL. */
static uint8_t *
msr_in(uint8_t *p, size_t len, uint32_t index)
{
	size_t at = section(p, len, "VCPU") + sizeof(struct kvm_mp_state) + 4 + 8 +
		    sizeof(struct kvm_regs) + sizeof(struct kvm_sregs) +
		    sizeof(struct kvm_xcrs) + sizeof(struct kvm_debugregs) +
		    sizeof(struct kvm_lapic_state) + sizeof(struct kvm_vcpu_events);
	struct kvm_msr_entry m;
	uint32_t n;

	memcpy(&n, p + at, 4);
	for (uint32_t i = 0; i < n; i++) {
		memcpy(&m, p + at + 4 + i * sizeof(m), sizeof(m));
		if (m.index == index)
			return p + at + 4 + i * sizeof(m) +
			       offsetof(struct kvm_msr_entry, data);
	}
	return NULL;
}

/* What an update of a host's microcode or kernel changes: what the CPU is immune to, its
 * clock's ratio, the microcode's number. The VM keeps what it was told. */
static void
a_commit_from_before_a_microcode_update_starts_and_keeps_its_feature_msrs(void **state)
{
	static const uint32_t features[] = {0x10a, 0xce, 0x8b};
	cleanup_free uint8_t *p = NULL;
	struct commit c, other, again;
	char line[LINE], name[32];
	struct vm *vm, *restored_vm;
	unsigned n = 0;
	size_t len;

	NEEDS_KVM(state);
	vm = boot("first", "mode=work", 1);
	expect(vm, "ready", line, sizeof(line));
	commit_of(vm, NULL, false, &c);
	p = state_of(&c, &len);
	for (size_t i = 0; i < sizeof(features) / sizeof(*features); i++) {
		uint8_t *data = msr_in(p, len, features[i]);
		uint64_t was, wanted;

		if (!data)
			continue;
		n++;
		memcpy(&was, data, 8);
		/* immunities less, or any number */
		wanted = features[i] == 0x10a ? was & (was - 1) : was ^ 1ull << 33;
		if (features[i] == 0xce)
			wanted = was & ~(1ull << 31); /* no faulting CPUID */
		memcpy(data, &wanted, 8);
		other = c;
		use_state(&other, p, len, true);
		for (int cold = 0; cold < 2; cold++) {
			cleanup_free uint8_t *q = NULL;
			size_t q_len;
			uint8_t *kept;

			snprintf(name, sizeof(name), "msr-%x-%d", features[i], cold);
			restored_vm = restored(name, &other, !cold);
			expect_goes_on(restored_vm, 2, "none", line);
			commit_of(restored_vm, NULL, false, &again);
			q = state_of(&again, &q_len);
			kept = msr_in(q, q_len, features[i]);
			assert_non_null(kept);
			assert_memory_equal(kept, &wanted, 8);
			driver_kill(restored_vm);
		}
		memcpy(data, &was, 8);
	}
	if (n == 0)
		skip(); /* a KVM without feature MSRs */
}

static void
the_guest_sees_its_disk_grow(void **state)
{
	struct vm *vm, *child, *again;
	struct err why = {0, ""};
	char line[LINE];
	struct commit c;
	struct restore r = {.commit = &c, .disk_mib = 96};

	NEEDS_KVM(state);
	vm = boot("first", "mode=work disk=1", 1);
	expect(vm, "ready", line, sizeof(line));
	MUST(driver_resize(vm, 16, e)); /* what it is: nothing happens */
	MUST(driver_resize(vm, 24, e));
	expect(vm, "disk sectors=49152 interrupt=", line, sizeof(line));
	if (!(console_line_number(line, "interrupt") & 2) || !strstr(line, "end=ok"))
		fail_msg("%s", line);
	assert_true(driver_resize(vm, 23, &why) < 0);
	assert_non_null(strstr(why.msg, "only grow"));
	assert_true(driver_resize(vm, 1ull << 50, &why) < 0);
	assert_true(driver_resize(vm, 0, &why) < 0);
	child = fork_vm(vm, "child", 0);
	expect_goes_on(child, 2, "ok", line);
	MUST(driver_resize(child, 4096, e));
	expect(child, "disk sectors=8388608 ", line, sizeof(line));
	if (!strstr(line, "end=ok"))
		fail_msg("%s", line);
	/* larger at the restore than it was at the commit */
	driver_kill(vm);
	vm = boot("second", "mode=work disk=1", 1);
	expect(vm, "ready", line, sizeof(line));
	commit_of(vm, NULL, true, &c);
	again = prewarmed("again", 1);
	MUST(driver_send_restore(again, &r, e));
	MUST(driver_wait_started(again, START_MS, e));
	expect(again, "disk sectors=196608 interrupt=", line, sizeof(line));
	if (!(console_line_number(line, "interrupt") & 2) || !strstr(line, "end=ok"))
		fail_msg("%s", line);
}

static void
a_segment_in_use_is_refused_before_the_fork(void **state)
{
	struct vmm_fork f = {
		.hdr = {.version = VMM_WIRE_VERSION,
			.type = VMM_FORK,
			.len = sizeof(f),
			.seq = 900},
		.child_name = "never",
	};
	struct vmm_forked answer = {0};
	struct vm *vm, *child;
	char line[LINE], path[256], name[16];

	NEEDS_KVM(state);
	vm = boot("first", "mode=work tick=3000 disk=1", 1);
	expect(vm, "ready", line, sizeof(line));
	/* Each file once with something in it, and once with the descriptor that is to read
	 * it good for writing, too. */
	for (int which = VMM_FORK_FD_SEG; which <= VMM_FORK_FD_PARENT_SEG_END; which++) {
		bool writes = (which - VMM_FORK_FD_SEG) % VMM_SEG_FDS < 2;
		int fds[VMM_FORK_FD_COUNT];

		for (int i = 0; i < VMM_FORK_FD_COUNT; i++) {
			bool rw = (i - VMM_FORK_FD_SEG) % VMM_SEG_FDS < 2;

			snprintf(name, sizeof(name), "f%d.%d", which, rw ? i : i - 2);
			fds[i] =
				i < VMM_FORK_FD_SEG
					? open("/dev/null", O_RDWR | O_CLOEXEC)
					: open(driver_path(vm, name, path),
						  (rw || i == which ? O_RDWR : O_RDONLY) |
							  O_CREAT | O_CLOEXEC,
						  0600);
			assert_true(fds[i] >= 0);
		}
		if (writes)
			assert_int_equal(write(fds[which], "used", 4), 4);
		assert_int_equal(
			driver_send_raw(vm, &f, sizeof(f), fds, VMM_FORK_FD_COUNT), 0);
		for (int i = 0; i < VMM_FORK_FD_COUNT; i++)
			close(fds[i]);
		assert_int_equal(
			recv(vm->control, &answer, sizeof(answer), 0), sizeof(answer));
		assert_int_equal(answer.hdr.type, VMM_FORKED);
		assert_int_equal(answer.error, -EINVAL);
		assert_non_null(
			strstr(answer.msg, writes ? "empty" : "for reading only"));
	}
	child = fork_vm(vm, "child", 0);
	expect_goes_on(child, 2, "ok", line);
	expect(vm, "tick ", line, sizeof(line));
}

/* In a process of its own, which becomes nobody: 0, or the step that failed. */
static int
read_as_nobody(void)
{
	struct boot b = {.cmdline = "mode=work tick=3000"};
	struct vm *vm = NULL, *parked = NULL, *again = NULL, *child = NULL;
	struct restore r = {.commit = NULL};
	struct commit c;
	struct err e;

	if (chown(driver.folder, 65534, 65534) < 0 ||
		setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0)
		return 1;
	if (driver_boot(&driver, "first", &b, &vm, &e) < 0 ||
		driver_expect(vm, "ready", LINE_MS, NULL, 0, &e) < 0 ||
		driver_fork(vm, "parked", DRIVER_PARK, &parked, NULL, &e) < 0) {
		fprintf(stderr, "# %s\n", e.msg);
		return 2;
	}
	/* Before it was asked for its state nobody may read it, nor what runs. */
	for (int i = 0; i < 2; i++) {
		char path[64];
		int fd;

		snprintf(path, sizeof(path), "/proc/%d/mem", i ? parked->pid : vm->pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0)
			return 3;
	}
	if (driver_take_state(parked, "commit", &c, &e) < 0) {
		fprintf(stderr, "# %s\n", e.msg);
		return 4;
	}
	for (int i = 0; i < 2; i++) {
		char path[64];
		uint64_t entry;
		int fd;

		/* pagemap of the frozen fork; a child of the frozen fork is closed again */
		if (i && driver_fork(parked, "child", 0, &child, NULL, &e) < 0)
			return 5;
		snprintf(path, sizeof(path), "/proc/%d/pagemap",
			i ? child->pid : parked->pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (i ? fd >= 0
		      : pread(fd, &entry, 8,
				(off_t)(c.answer.ranges[0].host / 4096 * 8)) != 8)
			return 6;
	}
	r.commit = &c;
	if (driver_prepare(&driver, "again", 16, 1, &again, &e) < 0 ||
		driver_send_restore(again, &r, &e) < 0 ||
		driver_expect(again, "memory=ok", LINE_MS, NULL, 0, &e) < 0) {
		fprintf(stderr, "# %s\n", e.msg);
		return 7;
	}
	return 0;
}

static void
an_ordinary_user_reads_a_frozen_fork_and_nothing_else(void **state)
{
	int status = -1;
	pid_t pid;

	NEEDS_KVM(state);
	if (getuid() != 0)
		skip(); /* then all the other tests show it */
	pid = fork();
	if (pid == 0) {
		int r = read_as_nobody();

		driver_done(&driver);
		_exit(r);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		KVM_TEST(a_prewarmed_vmm_goes_on_from_a_commit),
		KVM_TEST(a_cold_vmm_goes_on_from_a_commit),
		KVM_TEST(two_cpus_go_on_in_a_prewarmed_vmm),
		KVM_TEST(two_cpus_go_on_in_a_cold_vmm),
		KVM_TEST(clock_and_timer_go_on_from_the_commit),
		KVM_TEST(a_restored_vm_forks_and_is_committed_again),
		KVM_TEST(a_paused_vm_forks_and_stays_paused),
		KVM_TEST(control_goes_on_after_a_restore),
		KVM_TEST(a_prewarmed_vmm_quits_when_asked_and_when_left),
		KVM_TEST(a_running_vm_gives_no_state_and_a_used_file_takes_none),
		KVM_TEST(another_shape_is_refused),
		KVM_TEST(damaged_states_are_refused_with_a_sentence),
		KVM_TEST(a_feature_the_host_lacks_is_refused_by_name),
		KVM_TEST(
			a_commit_from_before_a_microcode_update_starts_and_keeps_its_feature_msrs),
		KVM_TEST(the_guest_sees_its_disk_grow),
		KVM_TEST(a_segment_in_use_is_refused_before_the_fork),
		KVM_TEST(an_ordinary_user_reads_a_frozen_fork_and_nothing_else),
	};

	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
