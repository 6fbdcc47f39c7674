/*
 * A process that speaks common/wire/vmm_wire.h and runs no guest: what pandod's tests start in
 * place of pando-vmm, and tell to misbehave at each step.
 *
 * Words in the kernel's command line (they hold for all its forks, too):
 *   agent          connections to agent.sock are answered with 'A'; else they are closed
 *   wakes          connections to agent.sock are answered with 'A' from FAKE_VMM_WAKES_MS on
 *   works, prints  its exits go up with each VMM_STATS; it writes to its console all the time
 *   boot=exit      ends before VMM_STARTED;       boot=refuse  VMM_STARTED with an error
 *   boot=silent    never answers;                 boot=nonsense  a message of an unknown
 * type boot=fd        VMM_STARTED with a descriptor attached fork=refuse fork=exit
 * fork=silent fork=nonsense   what it does with VMM_FORK Words in a fork's name (its
 * alias): stillborn (VMM_STARTED with an error), vanish (ends before it), mute (never
 * sends it)
 *
 * merge=refuse, merge=silent, merge=exit: what it does with VMM_MERGED; merge=old: it is of a version
 * that does not know it
 *
 * A byte sent to agent.sock is an order to the "guest": P power off, R reset, X exit(9),
 * G a message of nonsense to pandod, C close the control socket and go on, F flood pandod
 * with messages. 'K' comes back before it is followed; none: it came too late, send it
 * again.
 */
#ifndef PANDO_TESTS_UNIT_FAKE_VMM_H
#define PANDO_TESTS_UNIT_FAKE_VMM_H

#define FAKE_VMM_WAKES_MS 2500

/* main() of the process; descriptor 3 is the control socket. */
int fake_vmm_main(void);

#endif
