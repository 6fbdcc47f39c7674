/*
 * Fault points: where a test ends a process as `kill -9` would, at a named step. A
 * process whose environment has PANDO_FAULT=<name> kills itself when it reaches that
 * point; any other goes on, at the price of one look at its environment.
 */
#ifndef PANDO_FAULT_H
#define PANDO_FAULT_H

void fault_point(const char *name);

#endif
