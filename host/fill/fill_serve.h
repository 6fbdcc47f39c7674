/*
 * What pando-fill does, one turn after the other: it hears pandod and the VMs, fills pages and
 * serves faults. One a process.
 *
 * The main thread serves faults. As many threads as there are CPUs fill the rest, behind
 * them, in the order of the plan, which begins with what the last restore touched first.
 * Whoever fills a page wakes those that wait for it, so that no fault is lost: one that came
 * before the page was there is woken after, one that came later is answered at once.
 *
 * A VM's userfaultfd stays that VMM's, too, which may make it block or read from it itself. One
 * that blocks is dropped: poll(2) says POLLERR of it, and a read that waits is interrupted.
 */
#ifndef PANDO_HOST_FILL_FILL_SERVE_H
#define PANDO_HOST_FILL_FILL_SERVE_H

#include <stdbool.h>

/* Before the seal: signals, descriptors, what the host says of itself. control_fd: to pandod,
 * taken over. A negative errno: there is not enough of something. */
int fill_serve_open(int control_fd);
/* Waits for something to happen and deals with it. */
void fill_serve_turn(void);
/* pandod is gone, and there is nobody else. */
bool fill_serve_is_over(void);
/* Why memory will never be whole; 0: it is or may be. */
int fill_serve_error(void);

#endif
