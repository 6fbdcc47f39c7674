/*
 * Lines of the small guest (guest/tiny.c), as the tests and benchmarks find them on its
 * console.
 */
#ifndef PANDO_TESTS_KVM_CONSOLE_LINE_H
#define PANDO_TESTS_KVM_CONSOLE_LINE_H

#include <stddef.h>
#include <stdint.h>

/* The first whole line of n bytes that holds text, into line (NULL: not wanted). Returns
 * how many bytes it ends behind; 0: there is none. */
size_t console_line_find(
	const char *buf, size_t n, const char *text, char *line, size_t cap);
/* The number behind "key=", UINT64_MAX when there is none. */
uint64_t console_line_number(const char *line, const char *key);

#endif
