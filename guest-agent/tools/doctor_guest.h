/*
 * `pando-agent doctor`: what this guest looks like from within, for `pando doctor --vm`.
 * One JSON object on stdout:
 *
 *	{"version", "vm", "generation",        who it believes to be
 *	 "units": {...} | null, "units_why",   of pando-units look (unit_bus.h); why there is none
 *	 "disks": [{"path", "mib", "free_mib", "inodes", "inodes_free"}…],
 *	 "missing": ["tmux"…],
 *	 "environment": {"why" | null,         a file that cannot be read as one
 *	                 "held_back": [{"name", "why"}…]},
 *	 "agents": [{"name", "why"}…],         supervised coding agents that do not run
 *	 "time_ns"}                            the clock, last; with --clock nothing else
 *
 * Before the clock "generators": [{"pid", "program", "keeps"}…] and "generators_more", processes
 * that keep random numbers of which their branches would have the same, and how many more there are.
 *
 * Values of the environment are not in it. It judges nothing: the host does.
 */
#ifndef PANDO_GUEST_AGENT_TOOLS_DOCTOR_GUEST_H
#define PANDO_GUEST_AGENT_TOOLS_DOCTOR_GUEST_H

/* argv[0] is "doctor". The exit status. */
int doctor_main(int argc, char **argv);

#endif
