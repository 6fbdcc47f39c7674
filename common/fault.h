/*
 * Fault points: named places at which a test lets a process die, as kill -9 or a power
 * cut would have it. With PANDO_FAULT=name in the environment the process sends itself
 * SIGKILL when it passes fault_point("name"); PANDO_FAULT=name:3 means the third time.
 * The environment is read once; without the variable a point costs one predictable
 * branch. Points are named <module>.<what was just done>.
 */
#ifndef PANDO_COMMON_FAULT_H
#define PANDO_COMMON_FAULT_H

/* 0: the environment was not read yet; 1: nothing is armed; 2: armed. */
extern int fault_state;
void fault_passed(const char *name);

static inline void
fault_point(const char *name)
{
	if (__builtin_expect(__atomic_load_n(&fault_state, __ATOMIC_RELAXED) != 1, 0))
		fault_passed(name);
}

/* For tests that fork: from now on as if PANDO_FAULT were spec; NULL disarms. spec is
 * copied. Not while other threads pass points. */
void fault_arm(const char *spec);

#endif
