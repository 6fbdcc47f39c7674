#include "common/toml_scalar.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool
is_token(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
	       c == '_' || c == '+' || c == '-' || c == '.' || c == ':';
}

static bool
digits_at(const char *s, size_t len, size_t at, size_t n)
{
	if (at > len || len - at < n)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!is_digit(s[at + i]))
			return false;
	return true;
}

static bool
looks_like_date(const char *s, size_t len)
{
	return digits_at(s, len, 0, 4) && len > 4 && s[4] == '-';
}

static bool
looks_like_time(const char *s, size_t len)
{
	return digits_at(s, len, 0, 2) && len > 2 && s[2] == ':';
}

size_t
toml_scalar_span(const char *s, const char *end)
{
	size_t max = (size_t)(end - s), n = 0;

	while (n < max && is_token(s[n]))
		n++;
	/* "1979-05-27 07:32:00": a date, one space, and what starts as a time. */
	if (n == 10 && looks_like_date(s, n) && max > n && s[n] == ' ' &&
		digits_at(s, max, n + 1, 2)) {
		n++;
		while (n < max && is_token(s[n]))
			n++;
	}
	return n;
}

/* ---- integers and floats ---- */

static int
digit_value(char c)
{
	if (is_digit(c))
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return 99;
}

/* Digits with single underscores between them, from *at on; stops at the first other
 * byte. */
static const char *
skip_digits(const char *s, size_t len, size_t *at, int base)
{
	size_t start = *at;

	for (; *at < len; ++*at) {
		if (digit_value(s[*at]) < base)
			continue;
		if (s[*at] != '_')
			break;
		if (*at == start || *at + 1 >= len || digit_value(s[*at - 1]) >= base ||
			digit_value(s[*at + 1]) >= base)
			return "has an underscore that is not between two digits";
	}
	return *at == start ? "lacks a digit here" : NULL;
}

static const char *
read_integer(const char *s, size_t len, size_t start, int base, bool negative,
	int64_t *ret, size_t *ret_at)
{
	uint64_t v = 0, limit = negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX;

	for (size_t i = start; i < len; i++) {
		uint64_t d;

		if (s[i] == '_')
			continue;
		d = (uint64_t)digit_value(s[i]);
		if (v > (limit - d) / (uint64_t)base) {
			*ret_at = 0;
			return "does not fit in 64 bits with a sign";
		}
		v = v * (uint64_t)base + d;
	}
	*ret = negative ? (int64_t)(0 - v) : (int64_t)v;
	return NULL;
}

static const char *
read_float(const char *s, size_t len, double *ret, size_t *ret_at)
{
	cleanup_free char *plain = malloc(len + 1);
	locale_t c = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
	size_t n = 0;

	*ret_at = 0;
	if (!plain || !c) {
		if (c)
			freelocale(c);
		return "cannot be read: out of memory";
	}
	for (size_t i = 0; i < len; i++)
		if (s[i] != '_')
			plain[n++] = s[i];
	plain[n] = 0;
	*ret = strtod_l(plain, NULL, c); /* the user's locale may write a comma */
	freelocale(c);
	return NULL;
}

static const char *
read_number(const char *s, size_t len, struct toml_scalar *ret, size_t *ret_at)
{
	bool negative = len && s[0] == '-', sign = negative || (len && s[0] == '+');
	bool is_float = false;
	size_t at = sign, start = at;
	const char *why;

	if (len - at == 3 &&
		(memcmp(s + at, "inf", 3) == 0 || memcmp(s + at, "nan", 3) == 0)) {
		ret->type = TOML_FLOAT;
		ret->f = s[at] == 'i' ? (double)INFINITY : (double)NAN;
		if (negative)
			ret->f = -ret->f;
		return NULL;
	}
	if (len - at >= 2 && s[at] == '0' && strchr("xob", s[at + 1])) {
		int base = s[at + 1] == 'x' ? 16 : s[at + 1] == 'o' ? 8 : 2;

		*ret_at = 0;
		if (sign)
			return "may not have a sign: hexadecimal, octal and binary have none";
		at += 2;
		why = skip_digits(s, len, &at, base);
		*ret_at = at;
		if (why)
			return why;
		if (at != len)
			return base == 16 ? "has a character that is no hexadecimal digit"
			       : base == 8 ? "has a character that is no octal digit"
					   : "has a character that is no binary digit";
		ret->type = TOML_INTEGER;
		return read_integer(s, len, 2, base, false, &ret->i, ret_at);
	}

	why = skip_digits(s, len, &at, 10);
	*ret_at = at;
	if (why)
		return why;
	if (s[start] == '0' && at - start > 1) {
		*ret_at = start;
		return "may not start with a zero";
	}
	if (at < len && s[at] == '.') {
		is_float = true;
		at++;
		why = skip_digits(s, len, &at, 10);
		*ret_at = at;
		if (why)
			return why;
	}
	if (at < len && (s[at] == 'e' || s[at] == 'E')) {
		is_float = true;
		at++;
		if (at < len && (s[at] == '+' || s[at] == '-'))
			at++;
		why = skip_digits(s, len, &at, 10);
		*ret_at = at;
		if (why)
			return why;
	}
	if (at != len) {
		*ret_at = at;
		return "has a character that no number has";
	}
	if (is_float) {
		ret->type = TOML_FLOAT;
		return read_float(s, len, &ret->f, ret_at);
	}
	ret->type = TOML_INTEGER;
	return read_integer(s, len, start, 10, negative, &ret->i, ret_at);
}

/* ---- dates and times (RFC 3339) ---- */

static int
two_digits(const char *s)
{
	return (s[0] - '0') * 10 + (s[1] - '0');
}

static int
days_in_month(int year, int month)
{
	static const int days[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

	return days[month - 1] + (month == 2 && leap);
}

static const char *
read_date(const char *s, size_t len, size_t *at, struct toml_datetime *dt)
{
	if (!digits_at(s, len, 0, 4) || !digits_at(s, len, 5, 2) || s[4] != '-' ||
		!digits_at(s, len, 8, 2) || s[7] != '-')
		return "is no date: it is written as 1979-05-27";
	dt->year = two_digits(s) * 100 + two_digits(s + 2);
	dt->month = two_digits(s + 5);
	dt->day = two_digits(s + 8);
	*at = 5;
	if (dt->month < 1 || dt->month > 12)
		return "has a month that is not between 01 and 12";
	*at = 8;
	if (dt->day < 1 || dt->day > days_in_month(dt->year, dt->month))
		return "has a day that this month does not have";
	*at = 10;
	return NULL;
}

static const char *
read_time(const char *s, size_t len, size_t *at, struct toml_datetime *dt)
{
	size_t t = *at;

	if (!digits_at(s, len, t, 2) || !digits_at(s, len, t + 3, 2) || s[t + 2] != ':')
		return "has no time where one must stand: it is written as 07:32:00";
	if (!digits_at(s, len, t + 6, 2) || s[t + 5] != ':')
		return "has a time without seconds: it is written as 07:32:00";
	dt->hour = two_digits(s + t);
	dt->minute = two_digits(s + t + 3);
	dt->second = two_digits(s + t + 6);
	if (dt->hour > 23)
		return "has an hour above 23";
	*at = t + 3;
	if (dt->minute > 59)
		return "has a minute above 59";
	*at = t + 6;
	if (dt->second > 60) /* 60: a leap second */
		return "has a second above 59";
	*at = t + 8;
	if (*at < len && s[*at] == '.') {
		uint32_t scale = 100000000;

		++*at;
		if (!digits_at(s, len, *at, 1))
			return "lacks a digit after the point";
		for (; *at < len && is_digit(s[*at]); ++*at) {
			/* What is finer than a nanosecond is cut off, as the text asks.
			 */
			dt->nanosecond += (uint32_t)(s[*at] - '0') * scale;
			scale /= 10;
		}
	}
	return NULL;
}

static const char *
read_datetime(const char *s, size_t len, struct toml_scalar *ret, size_t *ret_at)
{
	struct toml_datetime *dt = &ret->dt;
	bool has_date = looks_like_date(s, len);
	const char *why;
	size_t at = 0;

	memset(dt, 0, sizeof(*dt));
	if (has_date) {
		why = read_date(s, len, &at, dt);
		*ret_at = at;
		if (why)
			return why;
		if (at == len) {
			ret->type = TOML_LOCAL_DATE;
			return NULL;
		}
		if (s[at] != 'T' && s[at] != 't' && s[at] != ' ')
			return "has a character after the date that no date has";
		at++;
	}
	why = read_time(s, len, &at, dt);
	*ret_at = at;
	if (why)
		return why;
	if (at == len) {
		ret->type = has_date ? TOML_LOCAL_DATETIME : TOML_LOCAL_TIME;
		return NULL;
	}
	if (!has_date)
		return "has a character after the time that no time has";
	ret->type = TOML_OFFSET_DATETIME;
	if ((s[at] == 'Z' || s[at] == 'z') && at + 1 == len)
		return NULL;
	if ((s[at] == '+' || s[at] == '-') && digits_at(s, len, at + 1, 2) &&
		digits_at(s, len, at + 4, 2) && s[at + 3] == ':' && at + 6 == len) {
		int hours = two_digits(s + at + 1), minutes = two_digits(s + at + 4);

		if (hours > 23 || minutes > 59)
			return "has an offset above 23:59";
		dt->offset_minutes = hours * 60 + minutes;
		if (s[at] == '-')
			dt->offset_minutes = -dt->offset_minutes;
		return NULL;
	}
	return "has an offset that is neither Z nor as +07:00";
}

const char *
toml_scalar_read(const char *s, size_t len, struct toml_scalar *ret, size_t *ret_at)
{
	*ret_at = 0;
	if (len == 4 && memcmp(s, "true", 4) == 0) {
		ret->type = TOML_BOOL;
		ret->b = true;
		return NULL;
	}
	if (len == 5 && memcmp(s, "false", 5) == 0) {
		ret->type = TOML_BOOL;
		ret->b = false;
		return NULL;
	}
	if (looks_like_date(s, len) || looks_like_time(s, len))
		return read_datetime(s, len, ret, ret_at);
	if (len && (is_digit(s[0]) || s[0] == '+' || s[0] == '-' || s[0] == '.' ||
			   (len == 3 && (memcmp(s, "inf", 3) == 0 ||
						memcmp(s, "nan", 3) == 0))))
		return read_number(s, len, ret, ret_at);
	return "is no value: text stands in quotes, and the only bare words are true, false, inf and nan";
}
