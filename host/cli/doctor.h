/*
 * What this host can do, found by looking and, where looking is not enough, by trying.
 * Each finding has a sentence and, unless all is well, a mend.
 */
#ifndef PANDO_CLI_DOCTOR_H
#define PANDO_CLI_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>

enum doctor_verdict {
	DOCTOR_OK,
	DOCTOR_NOTE,	/* works, slower or with less */
	DOCTOR_PROBLEM, /* VMs cannot run here, or images cannot be built here, until it
			   is mended */
};

struct doctor_finding {
	const char *id; /* a word for scripts */
	enum doctor_verdict verdict;
	char detail[512];
	char mend[512]; /* "" if there is nothing to do */
};

#define DOCTOR_MAX 24

struct doctor {
	struct doctor_finding findings[DOCTOR_MAX];
	size_t n;
	bool boots_linux; /* this host's KVM runs a Linux kernel, and we may use it */
	bool runs_small;  /* … or at least small guests of our own */
};

/* Only what decides whether VMs can run here: the finding "kvm". */
void doctor_check_kvm(struct doctor *d);
/* Everything, "kvm" first. */
void doctor_check_all(struct doctor *d);

/* The probe's JSON line (`pando-vmm --probe`); false if it is none. */
bool doctor_read_probe(struct doctor *d, const char *line, size_t len);
/* The bracketed word of "always [madvise] never" into dst; false if there is none. */
bool doctor_chosen_word(const char *text, char *dst, size_t cap);
/* Whether a line of /proc/mounts-like text is a cgroup2 mount with favordynmods; -1: no
 * cgroup2. */
int doctor_favordynmods(const char *mounts);

#endif
