/*
 * bench_restore [--json] [--rounds N] [--mem MIB]: the VMM's part of a VM's start from a
 * commit, in a blank VMM and in a new process. One small guest with 128 MiB touched is
 * committed; each round restores it and ends it.
 *
 * set-up: message received … the first KVM_RUN, as the VMM says. answer: message sent …
 * the guest's first byte; the files and sockets are made before, as a pool does.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "tests/bench/sample.h"
#include "tests/kvm/driver.h"

#define TOUCHED_PAGES 32768u

static struct driver driver;
static struct json_out json, *out;

static void
die(const char *what, const struct err *e)
{
	fprintf(stderr, "bench_restore: %s: %s\n", what, e->msg);
	driver_done(&driver);
	exit(1);
}

static void
measure(const struct commit *c, bool blank, unsigned rounds)
{
	static struct samples setup, answer;
	const struct timespec nap = {.tv_nsec = 5000};
	struct err e;

	memset(&setup, 0, sizeof(setup));
	memset(&answer, 0, sizeof(answer));
	setup.name = blank ? "restore set-up, blank VMM" : "restore set-up, new process";
	setup.clock = "message received … first KVM_RUN";
	answer.name = blank ? "restore answer, blank VMM" : "restore answer, new process";
	answer.clock = "files made, message sent … the guest's first byte";
	for (unsigned i = 0; i < rounds; i++) {
		struct restore r = {.commit = c};
		struct vm *vm = NULL;
		uint64_t began, deadline;
		int err = blank ? driver_prepare(&driver, "blank", c->answer.mem_mib,
					  c->answer.vcpus, &vm, &e)
				: driver_start(&driver, "cold", &vm, &e);

		if (err < 0)
			die("start", &e);
		usleep(2000);
		setup.tried++;
		answer.tried++;
		began = io_now_ns();
		deadline = began + 30000000000ull;
		if (driver_send_restore(vm, &r, &e) < 0)
			die("restore", &e);
		while (!driver_console_written(vm) && io_now_ns() < deadline)
			nanosleep(&nap, NULL);
		if (driver_console_written(vm))
			sample_add(&answer, io_now_ns() - began);
		if (driver_wait_started(vm, 30000, &e) < 0)
			die("restore", &e);
		sample_add(&setup, vm->started.setup_ns);
		if (i == rounds - 1 && getenv("BENCH_LOG")) {
			char log[8192];

			fprintf(stderr, "%s\n", driver_log(vm, log, sizeof(log)));
		}
		driver_kill(vm);
	}
	sample_report(&setup, NULL, out);
	sample_report(&answer, NULL, out);
}

int
main(int argc, char **argv)
{
	uint64_t mem_mib = 512;
	unsigned rounds = 40;
	struct boot boot = {0};
	struct vm *vm = NULL, *parked = NULL;
	struct commit c;
	char cmdline[64], why[160];
	struct err e;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--json")) {
			out = &json;
		} else if (!strcmp(argv[i], "--rounds") && i + 1 < argc) {
			rounds = (unsigned)atoi(argv[++i]);
		} else if (!strcmp(argv[i], "--mem") && i + 1 < argc) {
			mem_mib = strtoull(argv[++i], NULL, 10);
		} else {
			fprintf(stderr, "usage: bench_restore [--json] [--rounds N] "
					"[--mem MIB]\n");
			return 2;
		}
	}
	if (rounds < 1 || rounds > SAMPLES_MAX || mem_mib < 256 || mem_mib > 1 << 20) {
		fprintf(stderr,
			"bench_restore: --rounds takes 1 to %d, --mem 256 or more\n",
			SAMPLES_MAX);
		return 2;
	}
	if (!driver_has_kvm(why)) {
		fprintf(stderr, "bench_restore: skipped: %s\n", why);
		return 0;
	}
	if (driver_init(&driver, &e) < 0) {
		fprintf(stderr, "bench_restore: %s\n", e.msg);
		return 1;
	}
	prctl(PR_SET_TIMERSLACK, 1);
	if (out) {
		json_out_object(out, NULL);
		json_out_str(out, "bench", "restore");
		json_out_u64(out, "mem_mib", mem_mib);
		json_out_array(out, "rows");
	} else {
		printf("restore: small guest of %llu MiB, %u of them touched\n",
			(unsigned long long)mem_mib, TOUCHED_PAGES / 256);
		sample_header();
	}
	snprintf(cmdline, sizeof(cmdline), "mode=work dirty=%u", TOUCHED_PAGES);
	boot.mem_mib = mem_mib;
	boot.cmdline = cmdline;
	if (driver_boot(&driver, "first", &boot, &vm, &e) < 0 ||
		driver_expect(vm, "ready", 120000, NULL, 0, &e) < 0 ||
		driver_fork(vm, "picture", DRIVER_PARK, &parked, NULL, &e) < 0 ||
		driver_take_state(parked, "commit", &c, &e) < 0 ||
		driver_request(vm, VMM_PAUSE, NULL, 0, VMM_DONE, 30000, &e) < 0)
		die("commit", &e);
	measure(&c, true, rounds);
	measure(&c, false, rounds);
	if (out) {
		json_out_end_array(out);
		json_out_end_object(out);
		puts(json.buf);
		json_out_done(&json);
	}
	driver_done(&driver);
	return 0;
}
