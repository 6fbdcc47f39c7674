/*
 * A model of the tree: what VMs, commits and tags there should be, and what each guest's
 * memory should have seen. tests/system/host_model.sh runs sequences of random operations
 * against a real pandod with the small guest, and after each step what pandod, the guests
 * and the host say must be what the model says.
 *
 * A guest's mark is the VM generation ids that its memory has lived through, in order;
 * the small guest (tests/kvm/guest/tiny.c, mode=work) says after each change of it
 * whether its memory and disk hold exactly the marks of that past, and tells the past.
 *
 * One thread but where an operation makes another for a while. A difference is told and
 * ends the program with status 1: differ().
 */
#ifndef PANDO_TESTS_SYSTEM_MODEL_MODEL_H
#define PANDO_TESTS_SYSTEM_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "host/client/client.h"

#define VMS_MAX 64u
#define COMMITS_MAX 64u
#define TAGS_MAX 32u
#define PAST_MAX 60u /* the small guest tells 64 */
#define ID_MAX 65u

/* What a memory has seen. */
struct past {
	uint64_t seen[PAST_MAX];
	unsigned n;
	/* Generations that it may have seen after these: of forks that a killed pandod
	   has not told of. */
	unsigned unknown;
};

enum life { LIFE_RUNS, LIFE_PAUSED, LIFE_STOPPED, LIFE_FAILED };

struct vm {
	bool there;
	char id[16], alias[64];
	int parent; /* number; -1: none */
	enum life life;
	char commit[ID_MAX]; /* it comes from or was last committed as; "": none */
	char image[ID_MAX];  /* its memory lies on; "": none */
	char base[ID_MAX];   /* its disk lies on; "": none */
	struct past past;
	uint64_t generation; /* what pandod says it has */
	bool pending;	     /* the guest has not told of it yet */
	bool booted;	     /* began with an empty past, and tells of it with "ready" */
	pid_t pid;
};

struct commit {
	bool there;
	char id[ID_MAX], parent[ID_MAX];
	struct past past;
};

struct tag {
	bool there;
	char name[24], commit[ID_MAX];
};

struct model {
	char home[256];
	char kernel[512], rootfs[512];
	struct vm vms[VMS_MAX];
	struct commit commits[COMMITS_MAX];
	struct tag tags[TAGS_MAX];
	struct client *client; /* owned */
	pid_t pandod;
	unsigned names; /* given so far */
	char step[256]; /* what is being done, for differ() */
	uint64_t seed, random;
	unsigned long steps, crashes, forks, commits_made, refusals;
};

extern struct model m;

/* Says what is wrong, the seed and the step, and exits. */
void differ(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void step(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
uint32_t pick(uint32_t below);

int vm_any(bool (*is)(const struct vm *)); /* a number, or -1 */
bool vm_is(const struct vm *v);		   /* any */
bool vm_lives(const struct vm *v);
bool vm_is_dead(const struct vm *v);
unsigned vm_count(bool (*is)(const struct vm *));
struct vm *vm_by_id(const char *id);
struct vm *vm_new(void); /* NULL: the model is full */
int commit_any(void);
struct commit *commit_by_id(const char *id);
struct commit *commit_new(void);
bool vm_uses(const struct vm *v, const char *commit); /* as long as it lives */
uint64_t generation_of(const struct client_vm *vm);

/* A VM that pandod told of, as a fork of a past. */
struct vm *vm_adopt(const struct client_vm *told, int parent, const char *commit,
	const char *image, const char *base, const struct past *past);
/* The VM has another generation now: pandod is asked which. forked: it has another one
 * for sure, even where pandod does not know. */
void vm_regenerated(struct vm *v, bool forked);
void vm_forget(struct vm *v); /* deleted: its branches become roots */
void commit_forget(struct commit *c);

/* model_pandod.c */
/* Connects, and starts a pandod that dies at that point (NULL: none) where none runs. */
void pandod_open(const char *fault);
/* SIGKILL, and nobody answers any more. */
void pandod_kill(void);
/* While an operation runs: a thread that kills pandod, or a process, after so long. */
void killer_start(pid_t pid, unsigned after_us);
void killer_join(void);
void vmm_kill(struct vm *v);
void wait_state(struct vm *v, const char *state);

/* model_look.c */
/* The guest has told of its generation: its past is what it should be. */
void guest_sync(struct vm *v);
void look_tree(void);	 /* VMs, commits and tags, as the API lists them */
void look_closely(void); /* info, history, verify, `pando tree`, the guests, the host */
void look_empty(void);	 /* nothing is left of any VM */
void look_no_process(void);

/* model_steps.c */
void step_once(void);
void step_run(void);
/* model_crash.c */
void step_crash(void);
void step_race(void);

/* Calls on pandod, for both. r is what was answered. */
int call_branch(struct vm *v, unsigned count, const char *alias, struct client_vms *ret,
	struct err *e);
int call_spawn(const char *commit, unsigned count, const char *alias,
	struct client_vms *ret, struct err *e);
int call_commit(struct client *c, struct vm *v, const char *tag,
	struct client_committed *ret, struct err *e);
int call_reset(struct vm *v, const char *commit, struct err *e);
int call_run(const char *alias, struct client_vm *ret, struct err *e);
int call_gc(struct client *c, struct err *e);
void model_branched(struct vm *v, const struct client_vms *told);
void model_spawned(const struct commit *c, const struct client_vms *told);
void model_reset(struct vm *v, const struct commit *c);
void model_ran(const struct client_vm *told);
void model_committed(struct vm *v, const char *id, const char *tag);
void model_deleted(struct vm *v, bool recursive);
void model_commit_deleted(struct commit *c, bool recursive);
/* Of which it is refused: living branches. */
bool has_living_branches(const struct vm *v);
bool commit_has_children(const struct commit *c);
/* Of the commit, and with recursive of its descendants. */
bool commit_in_use(const struct commit *c, bool recursive);
void new_name(char dst[static 64], const char *stem);

#endif
