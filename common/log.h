/*
 * Log lines on stderr, "<N>tag: text" with syslog priorities so that journald sorts
 * them. Libraries return errors; processes log them, once. Text that a guest or a
 * user supplied goes through log_escape first.
 */
#ifndef PANDO_COMMON_LOG_H
#define PANDO_COMMON_LOG_H

#include <stddef.h>

enum log_level {
	LOG_LEVEL_ERR = 3,
	LOG_LEVEL_WARN = 4,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7
};

/* tag is copied ("vm/frontend"); lines above max are dropped. */
void log_init(const char *tag, enum log_level max);
/* The descriptor lines go to; 2 until told otherwise. One write(2) a line; allocates
 * nothing. */
void log_set_fd(int fd);
/* Puts the time (UTC, milliseconds) into every line from here on: for logs that are
 * files. */
void log_set_stamps(int on);

/* Bounds the file that lines go to: one that has grown beyond max_bytes is cut down to its
 * newest LOG_KEPT_BYTES, after a line that says so. For a process that cannot rename its
 * log. The file is one that is appended to (O_APPEND); where it cannot be read, nothing of
 * it is kept. max_bytes: more than LOG_KEPT_BYTES; 0, as at the start: no bound. */
#define LOG_KEPT_BYTES (64u << 10)
void log_set_bound(unsigned long long max_bytes);

/* Whether a line of this level is written: for those that are costly to put together. */
int log_wants(enum log_level level);
void log_line(enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
#define log_err(...) log_line(LOG_LEVEL_ERR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* For what a guest can trigger: at most `burst` lines in every 10 s window, then one
 * line that says how many were dropped. Define a static struct log_limit per call site.
 */
struct log_limit {
	unsigned burst;
	unsigned in_window;
	unsigned dropped;
	unsigned long long window_start_ns;
};
int log_allowed(struct log_limit *limit);

/* Copies len bytes of src to dst (cap bytes, always terminated), control and non-ASCII
 * bytes as \xNN. Returns dst. */
const char *log_escape(char *dst, size_t cap, const void *src, size_t len);

#endif
