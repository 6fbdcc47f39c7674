/*
 * What tests of the tree share: a PANDO_HOME of their own, a pandod's tree in it whose VMMs are
 * processes of fake_vmm.h, and the thread that serves it. The agent's side is the test's.
 */
#ifndef PANDO_TESTS_UNIT_TREE_HELP_H
#define PANDO_TESTS_UNIT_TREE_HELP_H

#include "host/vm/tree.h"

extern char home[64], kernel[96];
extern struct tree_config config;
extern struct tree *tree; /* NULL: none is open */

/* In main(), first: where this process is one of the VMMs it does not return. Then it is
 * prepared as pandod prepares itself. */
void tree_test_begin(char **argv);

/* The home, a kernel as far as pandod looks at one, and config for them; answer_ms: how long a
 * VMM may take. */
void make_home(int answer_ms);
/* A pandod begins. */
void start(void);
/* Of a tree that the test has opened itself. */
void start_loop(void);
/* As a kill -9 of pandod would leave it, but that the database is closed: no word to anybody. */
void stop(void);

#endif
