/*
 * UTF-8 as RFC 3629 has it: no overlong form, no surrogate, nothing above U+10FFFF.
 */
#ifndef PANDO_COMMON_UTF8_H
#define PANDO_COMMON_UTF8_H

#include <stddef.h>

/* Bytes of the well-formed sequence at s, of which `left` (at least 1) bytes may be read; 0:
 * there is none. A NUL is a sequence of one byte. */
size_t utf8_len(const void *s, size_t left);

#endif
