#include "host/api/request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Percent-decodes len bytes. Control characters, decoded or not, are refused: nothing we
 * name has any. */
static int
decode(const char *src, size_t len, char *dst, size_t cap)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		int c = (unsigned char)src[i];

		if (c == '%') {
			int hi = len - i > 2 ? hex_digit(src[i + 1]) : -1;
			int lo = len - i > 2 ? hex_digit(src[i + 2]) : -1;

			if (hi < 0 || lo < 0)
				return -EINVAL;
			c = hi * 16 + lo;
			i += 2;
		}
		if (c < 0x20 || c == 0x7f)
			return -EINVAL;
		if (n + 1 >= cap)
			return -ENAMETOOLONG;
		dst[n++] = (char)c;
	}
	dst[n] = '\0';
	return 0;
}

static int
query_flag(const char *name, const char *value, bool *ret, struct err *e)
{
	if (!value || (strcmp(value, "1") != 0 && strcmp(value, "0") != 0))
		return err_set(e, -EINVAL, "\"%s\" must be 0 or 1", name);
	*ret = value[0] == '1';
	return 0;
}

static int
query_number(const char *name, const char *value, uint64_t *ret, struct err *e)
{
	char *end;

	errno = 0;
	if (value && value[0] >= '0' && value[0] <= '9') {
		*ret = strtoull(value, &end, 10);
		if (!errno && !*end)
			return 0;
	}
	return err_set(e, -EINVAL, "\"%s\" must be a number", name);
}

static int
query_label(char *value, struct labels *labels, struct err *e)
{
	char *eq = value ? strchr(value, '=') : NULL;
	struct label *l = &labels->items[labels->n];
	int r;

	if (!eq)
		return err_set(e, -EINVAL, "\"label\" must be name=value");
	if (labels->n == VM_LABELS_MAX)
		return err_set(
			e, -EINVAL, "more than %d labels are asked for", VM_LABELS_MAX);
	*eq = '\0';
	r = vm_spec_check_label(value, e);
	if (r < 0)
		return r;
	if (strlen(eq + 1) > VM_LABEL_VALUE_MAX)
		return err_set(e, -EINVAL,
			"label \"%s\": the value is longer than %d bytes", value,
			VM_LABEL_VALUE_MAX);
	memcpy(l->key, value, strlen(value) + 1);
	memcpy(l->value, eq + 1, strlen(eq + 1) + 1);
	labels->n++;
	return 0;
}

static int
query_name(const char *name, const char *value, char *dst, size_t cap, struct err *e)
{
	if (!value || !value[0] || strlen(value) >= cap)
		return err_set(e, -EINVAL, "\"%s\" must be a name of 1 to %zu letters",
			name, cap - 1);
	memcpy(dst, value, strlen(value) + 1);
	return 0;
}

static int
query_limit(const char *name, const char *value, uint32_t *ret, struct err *e)
{
	uint64_t n;
	int r = query_number(name, value, &n, e);

	if (r == 0 && (n < 1 || n > REQUEST_LIMIT_MAX))
		r = err_set(
			e, -ERANGE, "\"%s\" is from 1 to %u", name, REQUEST_LIMIT_MAX);
	if (r == 0)
		*ret = (uint32_t)n;
	return r;
}

static int
query_busy(const char *name, const char *value, uint64_t *ret, struct err *e)
{
	int r = query_number(name, value, ret, e);

	if (r == 0 && *ret > BUSY_TIMEOUT_MAX_MS)
		r = err_set(
			e, -ERANGE, "\"%s\" is at most %u", name, BUSY_TIMEOUT_MAX_MS);
	return r;
}

static int
read_query(const char *query, unsigned taken, struct route *route, struct err *e)
{
	while (*query) {
		size_t len = strcspn(query, "&");
		char item[VM_LABEL_KEY_MAX + VM_LABEL_VALUE_MAX + 16], shown[160];
		char *eq, *value;
		int r;

		if (len == 0) {
			query++;
			continue;
		}
		if (decode(query, len, item, sizeof(item)) < 0)
			return err_set(e, -EINVAL,
				"the query \"%s\" is too long or badly encoded",
				log_escape(shown, sizeof(shown), query, len));
		query += len;
		eq = strchr(item, '=');
		value = eq ? eq + 1 : NULL;
		if (eq)
			*eq = '\0';
		if (taken & QUERY_RECURSIVE && strcmp(item, "recursive") == 0)
			r = query_flag(item, value, &route->recursive, e);
		else if (taken & QUERY_DRY_RUN && strcmp(item, "dry_run") == 0)
			r = query_flag(item, value, &route->dry_run, e);
		else if (taken & QUERY_WITH && strcmp(item, "with") == 0)
			r = query_name(
				item, value, route->other, sizeof(route->other), e);
		else if (taken & QUERY_FILES && strcmp(item, "files") == 0)
			r = query_flag(item, value, &route->files, e);
		else if (taken & QUERY_REPAIR && strcmp(item, "repair") == 0)
			r = query_flag(item, value, &route->repair, e);
		else if (taken & QUERY_MEMORY && strcmp(item, "memory") == 0)
			r = query_flag(item, value, &route->memory, e);
		else if (taken & QUERY_PAGE && strcmp(item, "after") == 0)
			r = query_name(
				item, value, route->cursor, sizeof(route->cursor), e);
		else if (taken & QUERY_PAGE && strcmp(item, "limit") == 0)
			r = query_limit(item, value, &route->limit, e);
		else if (taken & QUERY_AFTER && strcmp(item, "after") == 0)
			r = query_number(item, value, &route->after, e);
		else if (taken & QUERY_WAIT && strcmp(item, "wait") == 0)
			r = query_flag(item, value, &route->wait, e);
		else if (taken & QUERY_BUSY && strcmp(item, "busy_timeout_ms") == 0)
			r = query_busy(item, value, &route->busy_timeout_ms, e);
		else if (taken & QUERY_LABEL && strcmp(item, "label") == 0)
			r = query_label(value, &route->labels, e);
		else
			r = err_set(e, -EINVAL, "unknown query parameter \"%s\"",
				log_escape(shown, sizeof(shown), item, strlen(item)));
		if (r < 0)
			return r;
	}
	return 0;
}

static const struct {
	const char *method, *path;
	unsigned query;
} calls[] = {
#define ROW(name, method, path, body, flags, query) {method, path, query},
	API_CALLS(ROW)
#undef ROW
};

/* Does path (len bytes) match the pattern? *ret_vm, *ret_len: where the "*" part lies. */
static bool
path_matches(const char *pattern, const char *path, size_t len, const char **ret_vm,
	size_t *ret_len)
{
	const char *end = path + len;

	*ret_vm = NULL;
	for (; *pattern; pattern++) {
		if (*pattern == '*') {
			*ret_vm = path;
			while (path < end && *path != '/')
				path++;
			*ret_len = (size_t)(path - *ret_vm);
			if (*ret_len == 0)
				return false;
		} else if (path < end && *path == *pattern) {
			path++;
		} else {
			return false;
		}
	}
	return path == end;
}

int
request_route(const char *method, const char *target, struct route *ret, struct err *e)
{
	size_t path_len = strcspn(target, "?");
	bool path_known = false;
	char shown[200], shown_method[40];

	if (strlen(target) > REQUEST_TARGET_MAX)
		return err_set(e, -EINVAL, "the request's path is longer than %d bytes",
			REQUEST_TARGET_MAX);
	for (unsigned i = 0; i < CALL_COUNT; i++) {
		struct route route = {
			.call = (enum call)i,
			.limit = REQUEST_LIMIT_MAX,
			.busy_timeout_ms = BUSY_TIMEOUT_MS};
		const char *vm;
		size_t vm_len = 0;
		int r;

		if (!path_matches(calls[i].path, target, path_len, &vm, &vm_len))
			continue;
		path_known = true;
		if (strcmp(method, calls[i].method) != 0)
			continue;
		if (vm) {
			bool is_vm = strncmp(calls[i].path, "/v1/vms/", 8) == 0;

			r = decode(vm, vm_len, is_vm ? route.vm : route.name,
				is_vm ? sizeof(route.vm) : sizeof(route.name));
			if (r < 0)
				return err_set(e, r == -ENAMETOOLONG ? -ENOENT : -EINVAL,
					"\"%s\" names no %s: it is %s",
					log_escape(shown, sizeof(shown), vm,
						vm_len > 60 ? 60 : vm_len),
					is_vm ? "VM" : "commit",
					r == -ENAMETOOLONG ? "too long"
							   : "badly encoded");
		}
		r = target[path_len]
			    ? read_query(target + path_len + 1, calls[i].query, &route, e)
			    : 0;
		if (r == 0)
			*ret = route;
		return r;
	}
	log_escape(shown, sizeof(shown), target, path_len > 100 ? 100 : path_len);
	log_escape(shown_method, sizeof(shown_method), method, strnlen(method, 16));
	if (path_known)
		return err_set(e, -EOPNOTSUPP, "%s takes no %s", shown, shown_method);
	return err_set(e, -ENOENT, "there is no call %s %s", shown_method, shown);
}
