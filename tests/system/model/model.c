/* The model itself, and the program: sequences of random steps (model.h). */
#include "tests/system/model/model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/io.h"

struct model m;

static bool loud;

void
differ(const char *fmt, ...)
{
	va_list ap;

	printf("# seed %llu, %lu steps; %s: ", (unsigned long long)m.seed, m.steps,
		m.step);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	exit(1);
}

void
step(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(m.step, sizeof(m.step), fmt, ap);
	va_end(ap);
	if (loud) {
		printf("#   %s\n", m.step);
		fflush(stdout);
	}
}

uint32_t
pick(uint32_t below)
{
	m.random = m.random * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(m.random >> 33) % below;
}

bool
vm_is(const struct vm *v)
{
	return v->there;
}

bool
vm_lives(const struct vm *v)
{
	return v->there && (v->life == LIFE_RUNS || v->life == LIFE_PAUSED);
}

bool
vm_is_dead(const struct vm *v)
{
	return v->there && !vm_lives(v);
}

unsigned
vm_count(bool (*is)(const struct vm *))
{
	unsigned n = 0;

	for (unsigned i = 0; i < VMS_MAX; i++)
		n += is(&m.vms[i]);
	return n;
}

int
vm_any(bool (*is)(const struct vm *))
{
	unsigned n = vm_count(is);
	unsigned left = n ? pick(n) : 0;

	for (unsigned i = 0; n && i < VMS_MAX; i++)
		if (is(&m.vms[i]) && left-- == 0)
			return (int)i;
	return -1;
}

struct vm *
vm_by_id(const char *id)
{
	for (unsigned i = 0; i < VMS_MAX; i++)
		if (m.vms[i].there && strcmp(m.vms[i].id, id) == 0)
			return &m.vms[i];
	return NULL;
}

struct vm *
vm_new(void)
{
	for (unsigned i = 0; i < VMS_MAX; i++)
		if (!m.vms[i].there) {
			m.vms[i] = (struct vm){.there = true, .parent = -1};
			return &m.vms[i];
		}
	differ("the model has no room for another VM");
}

int
commit_any(void)
{
	unsigned n = 0, left;

	for (unsigned i = 0; i < COMMITS_MAX; i++)
		n += m.commits[i].there;
	left = n ? pick(n) : 0;
	for (unsigned i = 0; n && i < COMMITS_MAX; i++)
		if (m.commits[i].there && left-- == 0)
			return (int)i;
	return -1;
}

struct commit *
commit_by_id(const char *id)
{
	for (unsigned i = 0; i < COMMITS_MAX; i++)
		if (m.commits[i].there && strcmp(m.commits[i].id, id) == 0)
			return &m.commits[i];
	return NULL;
}

struct commit *
commit_new(void)
{
	for (unsigned i = 0; i < COMMITS_MAX; i++)
		if (!m.commits[i].there) {
			m.commits[i] = (struct commit){.there = true};
			return &m.commits[i];
		}
	differ("the model has no room for another commit");
}

bool
vm_uses(const struct vm *v, const char *commit)
{
	return vm_lives(v) &&
	       (strcmp(v->commit, commit) == 0 || strcmp(v->image, commit) == 0 ||
		       strcmp(v->base, commit) == 0);
}

uint64_t
generation_of(const struct client_vm *vm)
{
	uint64_t v = 0;

	for (unsigned i = 8; i > 0; i--) {
		unsigned byte;

		if (sscanf(vm->generation + 2 * (i - 1), "%2x", &byte) != 1)
			differ("VM %s has the generation \"%s\"", vm->id, vm->generation);
		v = v << 8 | byte;
	}
	return v;
}

struct vm *
vm_adopt(const struct client_vm *told, int parent, const char *commit, const char *image,
	const char *base, const struct past *past)
{
	struct vm *v = vm_new();

	snprintf(v->id, sizeof(v->id), "%s", told->id);
	snprintf(v->alias, sizeof(v->alias), "%s", told->alias);
	snprintf(v->commit, sizeof(v->commit), "%s", commit);
	snprintf(v->image, sizeof(v->image), "%s", image);
	snprintf(v->base, sizeof(v->base), "%s", base);
	v->parent = parent;
	v->life = LIFE_RUNS;
	v->booted = !past;
	if (past)
		v->past = *past;
	v->generation = generation_of(told);
	v->pending = true;
	v->pid = (pid_t)told->pid;
	return v;
}

void
vm_regenerated(struct vm *v, bool forked)
{
	struct client_vm told = {0};
	uint64_t generation;
	struct err e;

	if (client_get(m.client, v->id, &told, NULL, &e) < 0)
		differ("%s: %s", v->alias, e.msg);
	generation = generation_of(&told);
	if (generation != v->generation) {
		v->generation = generation;
		v->pending = true;
	} else if (forked) {
		v->past.unknown++;
	}
	client_vm_done(&told);
}

void
vm_forget(struct vm *v)
{
	int number = (int)(v - m.vms);

	v->there = false;
	for (unsigned i = 0; i < VMS_MAX; i++)
		if (m.vms[i].there && m.vms[i].parent == number)
			m.vms[i].parent = -1;
}

void
commit_forget(struct commit *c)
{
	c->there = false;
	for (unsigned i = 0; i < TAGS_MAX; i++)
		if (m.tags[i].there && strcmp(m.tags[i].commit, c->id) == 0)
			m.tags[i].there = false;
	for (unsigned i = 0; i < VMS_MAX; i++)
		if (m.vms[i].there && strcmp(m.vms[i].commit, c->id) == 0)
			m.vms[i].commit[0] = '\0';
}

/* All VMs are deleted, and most of the time all commits. */
static void
end_sequence(void)
{
	struct err e;

	while (vm_count(vm_is)) {
		struct vm *v = &m.vms[vm_any(vm_is)];

		step("delete -r %s", v->alias);
		if (client_delete(m.client, v->id, true, NULL, &e) < 0)
			differ("%s", e.msg);
		model_deleted(v, true);
	}
	for (int at = pick(4) ? commit_any() : -1; at >= 0; at = commit_any()) {
		struct commit *c = &m.commits[at];
		char **ids = NULL;

		step("commit delete -r %.12s", c->id);
		if (client_commit_delete(m.client, c->id, true, false, &ids, &e) < 0)
			differ("%s", e.msg);
		client_ids_free(ids);
		model_commit_deleted(c, true);
	}
	step("gc at the end");
	if (call_gc(m.client, &e) < 0)
		differ("%s", e.msg);
	look_tree();
	look_empty();
}

static void
sequence(uint64_t seed)
{
	unsigned n;

	m.seed = seed;
	m.random = seed * 0x9e3779b97f4a7c15ull + 1;
	for (unsigned i = 0; i < 8; i++)
		pick(2);
	n = 4 + pick(12);
	step_run();
	for (unsigned i = 0; i < n; i++) {
		m.steps++;
		step_once();
		look_tree();
	}
	look_closely();
	end_sequence();
}

int
main(int argc, char **argv)
{
	uint64_t began_ns = io_now_ns();
	unsigned long n, last = 0;
	uint64_t seed;

	if (argc < 6) {
		fputs("model <home> <kernel> <rootfs> <first seed> <sequences> [loud]\n",
			stderr);
		return 2;
	}
	snprintf(m.home, sizeof(m.home), "%s", argv[1]);
	snprintf(m.kernel, sizeof(m.kernel), "%s", argv[2]);
	snprintf(m.rootfs, sizeof(m.rootfs), "%s", argv[3]);
	seed = strtoull(argv[4], NULL, 10);
	n = strtoul(argv[5], NULL, 10);
	loud = argc > 6;
	step("begin");
	pandod_open(NULL);
	for (unsigned long i = 0; i < n; i++) {
		sequence(seed + i);
		if (i + 1 == n || io_now_ns() - began_ns > (last + 1) * 20000000000ull) {
			last++;
			printf("# %lu sequences, %lu steps, %lu forks, %lu commits, %lu refusals, %lu crashes in %llu s\n",
				i + 1, m.steps, m.forks, m.commits_made, m.refusals,
				m.crashes,
				(unsigned long long)((io_now_ns() - began_ns) /
						     1000000000u));
			fflush(stdout);
		}
	}
	step("end");
	pandod_kill();
	look_no_process();
	return 0;
}
