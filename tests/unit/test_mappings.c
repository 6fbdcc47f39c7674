/* A forked process moves its own memory into new mappings, and does not notice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm/mappings.h"
#include "vmm/vm.h"

#ifdef PANDO_SAN
#define MOVED_AT_LEAST 0u
#else
#define MOVED_AT_LEAST 6u /* program twice, heap, first or own stack, two of ours */
#endif
#define BLOCKS 200
#define GENERATIONS 6

static uint32_t data[3000] = {0x70616e64, 0x6f}; /* initialized: .data */
static uint32_t bss[50000];
static uint8_t *blocks[BLOCKS];
static uint32_t *own, *dropped;

static uint32_t
pattern(uint32_t seed, uint32_t i)
{
	return (seed + i) * 2654435761u;
}

static void
fill(uint32_t *p, size_t n, uint32_t seed)
{
	for (size_t i = 0; i < n; i++)
		p[i] = pattern(seed, (uint32_t)i);
}

static bool
holds(const uint32_t *p, size_t n, uint32_t seed)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != pattern(seed, (uint32_t)i))
			return false;
	return true;
}

static bool
heap_holds(void)
{
	for (uint32_t i = 0; i < BLOCKS; i++)
		for (uint32_t j = 0; j < 8 * i; j++)
			if (blocks[i][j] != (uint8_t)pattern(i, j))
				return false;
	return true;
}

static void
fill_heap(void)
{
	for (uint32_t i = 0; i < BLOCKS; i++) {
		free(blocks[i]);
		blocks[i] = malloc(8 * i + 1);
		for (uint32_t j = 0; blocks[i] && j < 8 * i; j++)
			blocks[i][j] = (uint8_t)pattern(i, j);
	}
}

/* Whether the mapping that holds p is of a file; -1: not found. */
static int
is_of_file(const void *p)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long from, to, inode;
	char line[512];
	int found = -1;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx %*s %*s %*s %lu", &from, &to, &inode) == 3 &&
			(uintptr_t)p >= from && (uintptr_t)p < to)
			found = inode != 0;
	if (f)
		fclose(f);
	return found;
}

static uint32_t
deep(uint32_t depth)
{
	volatile uint32_t room[200];

	room[depth % 200] = depth;
	return depth ? deep(depth - 1) + room[depth % 200] : 0;
}

static void *
uses_its_stack(void *arg)
{
	*(uint32_t *)arg = deep(150);
	return NULL;
}

/* In a new process: 0, or the line of what is wrong. */
static int
check_renewed(uint32_t *local, size_t n, bool expect_own_stack)
{
	struct own_range more[2] = {{own, 8 * 4096, false}, {dropped, 4 * 4096, true}};
	uint32_t sum = 0;
	pthread_t thread;
	unsigned moved;

	mappings_forked();
	moved = mappings_renew(more, 2);
	if (MOVED_AT_LEAST && moved < MOVED_AT_LEAST + expect_own_stack)
		return __LINE__;
	if (MOVED_AT_LEAST && (is_of_file(data) != 0 || dropped[7] != 0))
		return __LINE__;
	if (!holds(data, 3000, 1) || !holds(bss, 50000, 2) || !holds(local, n, 3) ||
		!holds(own, 8 * 1024, 4) || !heap_holds())
		return __LINE__;
	/* All goes on to be of use. */
	fill_heap();
	if (!heap_holds() || !getenv("PATH") || setenv("PANDO_MOVED", "yes", 1) != 0)
		return __LINE__;
	free(malloc(100000));
	if (mappings_thread(&thread, uses_its_stack, &sum, NULL) < 0 ||
		pthread_join(thread, NULL) != 0 || sum != 150 * 151 / 2)
		return __LINE__;
	return 0;
}

/* Each generation checks itself and is the next one's parent. */
static int
generations(unsigned left, bool on_own_stack)
{
	uint32_t local[2000];
	int status, r;
	pid_t pid;

	fill(data, 3000, 1);
	fill(bss, 50000, 2);
	fill(local, 2000, 3);
	fill(own, 8 * 1024, 4);
	fill(dropped, 4 * 1024, 5);
	fill_heap();
	pid = fork();
	if (pid == 0) {
		r = check_renewed(local, 2000, on_own_stack);
		if (r == 0 && left)
			r = generations(left - 1, on_own_stack) ? __LINE__ : 0;
		if (r)
			fprintf(stderr, "line %d, %u generations left\n", r, left);
		fflush(NULL);
		_exit(r != 0);
	}
	/* What the child does is not seen here. */
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		return -1;
	return holds(data, 3000, 1) && holds(local, 2000, 3) && holds(own, 8 * 1024, 4) &&
			       heap_holds()
		       ? 0
		       : -1;
}

static void *
run_generations(void *arg)
{
	*(int *)arg = generations(GENERATIONS, true);
	return NULL;
}

static void
six_generations_move_and_hold_all(void **state)
{
	pthread_t thread;
	int r = -1;

	(void)state;
	assert_int_equal(mappings_thread(&thread, run_generations, &r, NULL), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(r, 0);
}

static void
the_first_thread_moves_all_but_its_stack(void **state)
{
	(void)state;
	assert_int_equal(generations(GENERATIONS, false), 0);
}

static void *
sleeps(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return NULL;
}

/* In a process of its own: the threads never end. */
static int
start_too_many(void)
{
	pthread_t thread;
	struct err e = {0};
	unsigned n = 0;
	int r;

	mappings_forked();
	while ((r = mappings_thread(&thread, sleeps, NULL, &e)) == 0)
		n++;
	if (r != -EAGAIN || n < VMM_VCPUS_MAX + 1 || !e.msg[0])
		return __LINE__;
	return 0;
}

static void
there_are_stacks_for_all_vcpus_and_the_main_thread(void **state)
{
	pid_t pid = fork();
	int status;

	(void)state;
	if (pid == 0)
		_exit(start_too_many() != 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(six_generations_move_and_hold_all),
		cmocka_unit_test(the_first_thread_moves_all_but_its_stack),
		cmocka_unit_test(there_are_stacks_for_all_vcpus_and_the_main_thread),
	};

	own = mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		-1, 0);
	dropped = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (own == MAP_FAILED || dropped == MAP_FAILED)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
