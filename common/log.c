#include "common/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"

#define LIMIT_WINDOW_NS (10ULL * 1000 * 1000 * 1000)

static char tag[80] = "pando";
static enum log_level max_level = LOG_LEVEL_INFO;
static int log_fd = STDERR_FILENO;
static int stamps;
static unsigned long long bound;

void
log_init(const char *new_tag, enum log_level max)
{
	snprintf(tag, sizeof(tag), "%s", new_tag);
	max_level = max;
}

void
log_set_fd(int fd)
{
	log_fd = fd;
}

void
log_set_stamps(int on)
{
	stamps = on;
}

void
log_set_bound(unsigned long long max_bytes)
{
	bound = max_bytes;
}

/* Other threads and processes may write meanwhile; a line of theirs may then be lost. */
static void
keep_bound(void)
{
	static char kept[LOG_KEPT_BYTES];
	static atomic_flag busy = ATOMIC_FLAG_INIT;
	struct stat st;
	char *from = kept, *line;
	ssize_t n;

	if (!bound || fstat(log_fd, &st) < 0 || !S_ISREG(st.st_mode) ||
		(unsigned long long)st.st_size <= bound ||
		atomic_flag_test_and_set(&busy))
		return;
	n = pread(log_fd, kept, sizeof(kept), st.st_size - (off_t)sizeof(kept));
	if (n < 0)
		n = 0;
	/* From a line's beginning on. */
	line = memchr(kept, '\n', (size_t)n);
	if (line) {
		from = line + 1;
		n -= from - kept;
	}
	if (ftruncate(log_fd, 0) == 0) {
		static const char note[] =
			"<6>the log had grown too long: what is older than the next line was dropped\n";

		(void)io_write_full(log_fd, note, sizeof(note) - 1);
		(void)io_write_full(log_fd, from, (size_t)n);
	}
	atomic_flag_clear(&busy);
}

/*
 * "2026-01-02T03:04:05.678Z ". Not by gmtime_r(): glibc's takes a lock and, once, opens
 * the time zone's file, which neither a forked child nor a sealed process may. Years
 * start in March here, so that the leap day is the last one of a year.
 */
static int
put_stamp(char *dst, size_t cap)
{
	uint64_t ms = io_wall_ms(), days = ms / 86400000, second = ms / 1000 % 86400;
	uint64_t since_0000 = days + 719468; /* 1970-01-01, from 0000-03-01 */
	uint64_t era = since_0000 / 146097, of_era = since_0000 % 146097;
	uint64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	uint64_t of_year = of_era - (365 * year + year / 4 - year / 100);
	uint64_t month = (5 * of_year + 2) / 153,
		 day = of_year - (153 * month + 2) / 5 + 1;

	year += era * 400 + (month >= 10);
	month = month < 10 ? month + 3 : month - 9;
	return snprintf(dst, cap, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ ", (unsigned)year,
		(unsigned)month, (unsigned)day, (unsigned)(second / 3600),
		(unsigned)(second / 60 % 60), (unsigned)(second % 60),
		(unsigned)(ms % 1000));
}

int
log_wants(enum log_level level)
{
	return level <= max_level;
}

void
log_line(enum log_level level, const char *fmt, ...)
{
	char line[1024];
	int len;
	va_list ap;

	if (!log_wants(level))
		return;
	len = snprintf(line, sizeof(line) - 1, "<%d>", level);
	if (stamps)
		len += put_stamp(line + len, sizeof(line) - 1 - (size_t)len);
	len += snprintf(line + len, sizeof(line) - 1 - (size_t)len, "%s: ", tag);
	va_start(ap, fmt);
	len += vsnprintf(line + len, sizeof(line) - 1 - (size_t)len, fmt, ap);
	va_end(ap);
	if ((size_t)len > sizeof(line) - 2)
		len = sizeof(line) - 2;
	for (int i = 0; i < len; i++)
		if (line[i] == '\n')
			line[i] = ' ';
	line[len++] = '\n';
	/* A log that cannot be written has nobody to be told. */
	(void)io_write_full(log_fd, line, (size_t)len);
	keep_bound();
}

int
log_allowed(struct log_limit *limit)
{
	uint64_t now = io_now_ns();

	if (now - limit->window_start_ns > LIMIT_WINDOW_NS || !limit->window_start_ns) {
		if (limit->dropped)
			log_warn("%u more lines like the next were dropped",
				limit->dropped);
		limit->window_start_ns = now;
		limit->in_window = 0;
		limit->dropped = 0;
	}
	if (limit->in_window >= limit->burst) {
		limit->dropped++;
		return 0;
	}
	limit->in_window++;
	return 1;
}

const char *
log_escape(char *dst, size_t cap, const void *src, size_t len)
{
	static const char hex[] = "0123456789abcdef";
	const unsigned char *s = src;
	size_t n = 0;

	if (!cap)
		return dst;
	for (size_t i = 0; i < len; i++) {
		if (s[i] >= 0x20 && s[i] < 0x7f && s[i] != '\\') {
			if (n + 1 >= cap)
				break;
			dst[n++] = (char)s[i];
		} else {
			if (n + 4 >= cap)
				break;
			dst[n++] = '\\';
			dst[n++] = 'x';
			dst[n++] = hex[s[i] >> 4];
			dst[n++] = hex[s[i] & 15];
		}
	}
	dst[n] = '\0';
	return dst;
}
