/* What the tests of the store share: a store in a folder of its own, contents of pages
 * that a number decides, and looks at files. */
#ifndef PANDO_TESTS_UNIT_STORE_HELP_H
#define PANDO_TESTS_UNIT_STORE_HELP_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "host/store/store.h"

extern char folder[64];	    /* of the test */
extern char store_path[96]; /* the store in it */
extern struct store *store; /* opened by setup_store */
extern struct err e;

int setup_store(void **state);
int teardown_store(void **state);
void reopen(void);

/* 0 or the sentence is printed and the test fails. */
void ok_at(int r, const char *where, int line);
#define ok(call) ok_at((call), #call, __LINE__)
/* An error of that code whose sentence has the text. */
void refused_at(int r, int code, const char *text, int line);
#define refused(call, code, text) refused_at((call), (code), (text), __LINE__)

/* A page that a number decides; 0 is zero. Odd ones compress, even ones do not. */
void fill(uint8_t *page, uint32_t value);
/* Puts the pages (values, by index) that differ from base_values (NULL: zero). */
struct store_tree put_values(struct store_writer *w, const struct store_tree *base,
	const uint32_t *base_values, const uint32_t *values, uint64_t n);
/* Reads all pages and compares. */
void has_values(const struct store_tree *t, const uint32_t *values, uint64_t n);
/* A commit whose memory has these values; created_ms counts up. */
void commit_values(const char *parent, const struct store_tree *base,
	const uint32_t *base_values, const uint32_t *values, uint64_t n,
	char ret_id[STORE_ID_MAX], struct store_stats *stats);

/* Reports of a verify. */
#define DAMAGES_MAX 64
extern struct store_damage damages[DAMAGES_MAX];
extern size_t n_damages;
/* Adds one. */
void note_damage_of(void *ctx, const struct store_damage *d);
/* Verifies all (NULL) or one; returns how many reports. */
size_t verify(const char *id);
void is_sound(void);

/* The only file of packs/ (or the nth by name); full path. */
void pack_path(unsigned nth, char *ret, size_t cap);
unsigned count_files(const char *sub);
/* Changes one byte. */
void flip(const char *path, long at);
long file_size(const char *path);

#endif
