/*
 * What this host can do, found by looking and, where looking is not enough, by trying.
 * Each finding has a sentence and, unless all is well, a mend.
 */
#ifndef PANDO_HOST_CLI_DOCTOR_H
#define PANDO_HOST_CLI_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

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

#define DOCTOR_MAX 96

struct doctor {
	struct doctor_finding findings[DOCTOR_MAX];
	size_t n;
	bool boots_linux; /* this host's KVM runs a Linux kernel, and we may use it */
	bool runs_small;  /* … or at least small guests of our own */
};

/* Adds a finding; the last one is overwritten when there is no more room. */
struct doctor_finding *doctor_find(struct doctor *d, const char *id,
	enum doctor_verdict verdict, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* Its mend. */
void doctor_mend(struct doctor_finding *f, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Only what decides whether VMs can run here: the finding "kvm". */
void doctor_check_kvm(struct doctor *d);
/* Everything, "kvm" first. */
void doctor_check_all(struct doctor *d);

/* What a VM is like from within (doctor_vm.c). name NULL: as pick_vm() chooses. An error:
 * there is no such VM, or no pandod; what is wrong with the guest is a finding. */
int doctor_check_vm(struct doctor *d, const char *name, struct err *e);
/* The guest's word (guest-agent/tools/doctor_guest.h), judged. vm: how it is called in commands;
 * generation: that pandod knows. -EPROTO: it is no such word; what was found until then
 * stays. */
int doctor_judge_guest(struct doctor *d, const char *vm, const char *generation,
	const char *text, size_t len, struct err *e);
/* The guest's clock, asked for between two moments of ours. */
void doctor_judge_clock(struct doctor *d, const char *vm, uint64_t guest_ns,
	uint64_t before_ns, uint64_t after_ns);

/* What pandod says of scopes (host/scope/scope.h); false: nothing. */
struct json;
bool doctor_read_scopes(struct doctor *d, const struct json *j, int tok);

/* The probe's JSON line (`pando-vmm --probe`); false if it is none. */
bool doctor_read_probe(struct doctor *d, const char *line, size_t len);
/* The bracketed word of "always [madvise] never" into dst; false if there is none. */
bool doctor_chosen_word(const char *text, char *dst, size_t cap);
/* Whether a line of /proc/mounts-like text is a cgroup2 mount with favordynmods; -1: no
 * cgroup2. */
int doctor_favordynmods(const char *mounts);

#endif
