#include "host/cli/near.h"

#include <string.h>

static unsigned
min3(unsigned a, unsigned b, unsigned c)
{
	unsigned m = a < b ? a : b;

	return m < c ? m : c;
}

unsigned
near_distance(const char *a, const char *b)
{
	unsigned row[3][NEAR_MAX + 1];
	size_t la = strlen(a), lb = strlen(b);

	if (la > NEAR_MAX || lb > NEAR_MAX)
		return NEAR_MAX;
	for (size_t j = 0; j <= lb; j++)
		row[0][j] = (unsigned)j;
	for (size_t i = 1; i <= la; i++) {
		unsigned *now = row[i % 3], *up = row[(i - 1) % 3];
		const unsigned *upup = row[(i + 1) % 3];

		now[0] = (unsigned)i;
		for (size_t j = 1; j <= lb; j++) {
			now[j] = min3(up[j] + 1, now[j - 1] + 1,
				up[j - 1] + (a[i - 1] != b[j - 1]));
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] &&
				a[i - 2] == b[j - 1] && upup[j - 2] + 1 < now[j])
				now[j] = upup[j - 2] + 1;
		}
	}
	return row[la % 3][lb];
}

int
near_enough(const char *typed, const char *name)
{
	size_t len = strlen(typed);
	unsigned d;

	if (len >= 2 && strncmp(typed, name, len) == 0)
		return 1;
	d = near_distance(typed, name);
	return d <= 2 && 2 * d < strlen(name);
}
