/*
 * Errors: a function returns 0 or a negative errno; the person gets the sentence.
 *
 * struct err is the caller's, comes last in every call that can fail for a
 * reason a person would want to read, may be NULL, is untouched on success and
 * never allocates.
 */
#ifndef PANDO_COMMON_ERR_H
#define PANDO_COMMON_ERR_H

struct err {
	int code;      /* negative errno */
	char msg[512]; /* one sentence, no newline */
};

/* Sets e (if not NULL) to code and the sentence; returns code, so that
 * `return err_set(e, -EINVAL, "…")` reads well. code must be negative. */
int err_set(struct err *e, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* As err_set, with ": strerror(-code)" appended. */
int err_sys(struct err *e, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the sentence that is there; returns e's code, or
 * fallback when e is NULL. */
int err_wrap(struct err *e, int fallback, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* What every verb ends with. The numbers are a contract with scripts. */
enum exit_code {
	EXIT_OK = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2, /* usage or bad input */
	EXIT_NOT_FOUND = 3,
	EXIT_CONFLICT = 4,
	EXIT_REFUSED = 5, /* permission, policy */
	EXIT_TIMED_OUT = 6,
	EXIT_CANCELLED = 7,
	EXIT_HOST_SIDE = 125, /* `execute`: our side failed, not the command */
};

/* EINVAL, E2BIG, ERANGE, ENAMETOOLONG: usage. ENOENT, ESRCH: not found. EEXIST, EBUSY,
 * ENOTEMPTY: conflict. EPERM, EACCES: refused. ETIMEDOUT: timed out.
 * ECANCELED, EINTR: cancelled. 0: ok. Anything else: failed. */
enum exit_code err_exit_code(int code);

#endif
