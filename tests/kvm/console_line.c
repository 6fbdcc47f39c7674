#include "tests/kvm/console_line.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t
console_line_find(const char *buf, size_t n, const char *text, char *line, size_t cap)
{
	const char *found = memmem(buf, n, text, strlen(text)), *start, *end;

	end = found ? memchr(found, '\n', n - (size_t)(found - buf)) : NULL;
	if (!end)
		return 0;
	for (start = found; start > buf && start[-1] != '\n'; start--)
		;
	if (line)
		snprintf(line, cap, "%.*s", (int)(end - start), start);
	return (size_t)(end - buf) + 1;
}

uint64_t
console_line_number(const char *line, const char *key)
{
	char pattern[64];
	const char *p;

	snprintf(pattern, sizeof(pattern), "%s=", key);
	p = strstr(line, pattern);
	return p ? strtoull(p + strlen(pattern), NULL, 10) : UINT64_MAX;
}
