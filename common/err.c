#include "common/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

__attribute__((format(printf, 2, 0))) static void
set_message(struct err *e, const char *fmt, va_list ap)
{
	if (vsnprintf(e->msg, sizeof(e->msg), fmt, ap) < 0)
		e->msg[0] = '\0';
}

int
err_set(struct err *e, int code, const char *fmt, ...)
{
	va_list ap;

	if (!e)
		return code;
	e->code = code;
	va_start(ap, fmt);
	set_message(e, fmt, ap);
	va_end(ap);
	return code;
}

int
err_sys(struct err *e, int code, const char *fmt, ...)
{
	char reason[128];
	size_t len;
	va_list ap;

	if (!e)
		return code;
	e->code = code;
	va_start(ap, fmt);
	set_message(e, fmt, ap);
	va_end(ap);
	len = strlen(e->msg);
	snprintf(e->msg + len, sizeof(e->msg) - len, ": %s",
		strerror_r(-code, reason, sizeof(reason)));
	return code;
}

int
err_wrap(struct err *e, int fallback, const char *fmt, ...)
{
	char inner[sizeof(e->msg)];
	size_t len;
	va_list ap;

	if (!e)
		return fallback;
	memcpy(inner, e->msg, sizeof(inner));
	va_start(ap, fmt);
	set_message(e, fmt, ap);
	va_end(ap);
	len = strlen(e->msg);
	snprintf(e->msg + len, sizeof(e->msg) - len, ": %s", inner);
	return e->code ? e->code : fallback;
}

enum exit_code
err_exit_code(int code)
{
	switch (code < 0 ? -code : code) {
	case 0:
		return EXIT_OK;
	case EINVAL:
	case E2BIG:
	case ERANGE:
	case ENAMETOOLONG:
		return EXIT_USAGE;
	case ENOENT:
	case ESRCH:
		return EXIT_NOT_FOUND;
	case EEXIST:
	case EBUSY:
	case ENOTEMPTY:
		return EXIT_CONFLICT;
	case EPERM:
	case EACCES:
		return EXIT_REFUSED;
	case ETIMEDOUT:
		return EXIT_TIMED_OUT;
	case ECANCELED:
	case EINTR:
		return EXIT_CANCELLED;
	default:
		return EXIT_FAILED;
	}
}
