/*
 * Small questions about texts that others wrote, and the end of what they say.
 */
#ifndef PANDO_COMMON_TEXT_H
#define PANDO_COMMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* text begins with len lower-case hex digits. */
bool text_is_hex(const char *text, size_t len);
/* 2 * len lower-case hex digits, terminated. */
void text_hex(char *dst, const uint8_t *src, size_t len);
/* One of the path's components is "..". */
bool text_path_goes_up(const char *path);
/* Appends len bytes to the *used of buf; what does not fit into cap goes away at the
 * front.
 */
void text_keep_last(char *buf, size_t cap, size_t *used, const char *from, size_t len);

#endif
