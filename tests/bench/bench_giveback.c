/*
 * Memory that comes back in branches: a small guest holds MIB, BRANCHES are forked from one frozen
 * fork of it, and each reports all of that as free (vmm/balloon.h). What they have of the host's
 * memory before and after, of their own and with what they share. The yardstick is MIB a branch,
 * what each would have of its own if it wrote zeroes there, as a guest with init_on_free does.
 *
 *	bench_giveback [--json]		MIB=60 BRANCHES=20 in the environment
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/must.h"
#include "tests/kvm/driver.h"

#define WAIT_MS 600000
#define BRANCHES_MAX 200
#define SPARE_MIB 36u /* the small guest's own, and what it leaves free */

static struct driver driver;

static unsigned long
setting(const char *name, unsigned long otherwise, unsigned long most)
{
	const char *text = getenv(name);
	unsigned long v = text ? strtoul(text, NULL, 10) : otherwise;

	if (v < 1 || v > most) {
		fprintf(stderr, "bench_giveback: %s must be 1 to %lu\n", name, most);
		exit(2);
	}
	return v;
}

/* KiB behind a word in a file of a process. */
static unsigned long
kib(const struct vm *vm, const char *file, const char *word)
{
	char path[64], text[8192];
	const char *at;
	size_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)vm->pid, file);
	f = fopen(path, "r");
	if (f) {
		n = fread(text, 1, sizeof(text) - 1, f);
		fclose(f);
	}
	text[n] = 0;
	at = strstr(text, word);
	return at ? strtoul(at + strlen(word), NULL, 10) : 0;
}

struct sums {
	unsigned long own_kib, resident_kib;
};

static struct sums
sum(struct vm *const *vms, unsigned long n)
{
	struct sums s = {0};

	for (unsigned long i = 0; i < n; i++) {
		s.own_kib += kib(vms[i], "smaps_rollup", "Private_Clean:") +
			     kib(vms[i], "smaps_rollup", "Private_Dirty:");
		s.resident_kib += kib(vms[i], "status", "RssAnon:");
	}
	return s;
}

static void
clean_up(void)
{
	driver_done(&driver);
}

int
main(int argc, char **argv)
{
	const unsigned long mib = setting("MIB", 60, 2048),
			    branches = setting("BRANCHES", 20, BRANCHES_MAX);
	struct vm *vm = NULL, *frozen = NULL, *all[BRANCHES_MAX];
	char cmdline[64], name[32], why[160];
	struct boot boot = {.cmdline = cmdline, .mem_mib = mib + SPARE_MIB};
	struct sums before, after;
	struct err e = {0};

	if (!driver_has_kvm(why)) {
		fprintf(stderr, "bench_giveback: %s\n", why);
		return 0;
	}
	must(driver_init(&driver, &e), "the driver", &e);
	atexit(clean_up);
	snprintf(cmdline, sizeof(cmdline), "mode=balloon pages=%lu", mib * 256);
	must(driver_boot(&driver, "parent", &boot, &vm, &e), "booting", &e);
	must(driver_expect(vm, "full", WAIT_MS, NULL, 0, &e), "the parent", &e);
	must(driver_fork(vm, "frozen", DRIVER_PARK, &frozen, NULL, &e), "forking", &e);
	for (unsigned long i = 0; i < branches; i++) {
		snprintf(name, sizeof(name), "branch-%lu", i);
		must(driver_fork(frozen, name, DRIVER_NO_WAIT, &all[i], NULL, &e), "forking", &e);
	}
	before = sum(all, branches);
	for (unsigned long i = 0; i < branches; i++)
		must(driver_expect(all[i], "given back", WAIT_MS, NULL, 0, &e), "a branch", &e);
	after = sum(all, branches);
	if (argc > 1 && strcmp(argv[1], "--json") == 0)
		printf("{\"name\":\"giveback\",\"branches\":%lu,\"mib\":%lu,\"own_kib\":[%lu,%lu],\"resident_kib\":[%lu,%lu]}\n",
			branches, mib, before.own_kib, after.own_kib, before.resident_kib,
			after.resident_kib);
	else
		printf("%lu branches of a VM that holds %lu MiB, each of which gives it back: own memory %.1f MiB before, %.1f after (%.3f of %lu); resident, shared too, %.1f MiB before, %.1f after\n",
			branches, mib, (double)before.own_kib / 1024, (double)after.own_kib / 1024,
			(double)after.own_kib / 1024 / (double)(mib * branches), mib * branches,
			(double)before.resident_kib / 1024, (double)after.resident_kib / 1024);
	return 0;
}
