#include "common/text.h"

#include <string.h>

bool
text_is_hex(const char *text, size_t len)
{
	return strspn(text, "0123456789abcdef") >= len;
}

void
text_hex(char *dst, const uint8_t *src, size_t len)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < len; i++) {
		*dst++ = digits[src[i] >> 4];
		*dst++ = digits[src[i] & 0xf];
	}
	*dst = '\0';
}

bool
text_path_goes_up(const char *path)
{
	for (const char *at = path; *at; at += strcspn(at, "/")) {
		at += strspn(at, "/");
		if (strncmp(at, "..", 2) == 0 && (at[2] == '/' || !at[2]))
			return true;
	}
	return false;
}

void
text_keep_last(char *buf, size_t cap, size_t *used, const char *from, size_t len)
{
	if (len > cap) {
		from += len - cap;
		len = cap;
	}
	if (*used + len > cap) {
		size_t drop = *used + len - cap;

		memmove(buf, buf + drop, *used - drop);
		*used -= drop;
	}
	memcpy(buf + *used, from, len);
	*used += len;
}
