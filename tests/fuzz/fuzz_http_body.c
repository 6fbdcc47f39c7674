/*
 * What a client's bytes meet before the tree: request line, query and bodies
 * (host/api/request.c), and the same for a VMM's messages (host/vmmproc/vmmctl.c). First byte: which
 * decoder. Oracle: no crash, no sanitizer finding, and what is accepted keeps the
 * promises of host/api/request.h.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "host/api/request.h"
#include "host/vmmproc/vmmctl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Plain abort: an assert may be compiled out. */
static void
must(int condition)
{
	if (!condition)
		abort();
}

static void
check_alias(const char *alias)
{
	must(alias[0] == '\0' || request_check_alias(alias, NULL) == 0);
}

static void
check_text(const char *text, size_t cap)
{
	size_t len = strnlen(text, cap);

	must(len < cap);
	for (size_t i = 0; i < len; i++)
		must((unsigned char)text[i] >= 0x20 && text[i] != 0x7f);
}

static void
check_labels(const struct labels *l)
{
	must(l->n <= VM_LABELS_MAX);
	for (unsigned i = 0; i < l->n; i++) {
		check_text(l->items[i].key, sizeof(l->items[i].key));
		check_text(l->items[i].value, sizeof(l->items[i].value));
		must(l->items[i].key[0] != '\0');
	}
}

static void
check_error(int r, const struct err *e)
{
	must(r < 0 && e->code == r && e->msg[0]);
	check_text(e->msg, sizeof(e->msg));
}

static void
fuzz_route(const char *text)
{
	static const char *const methods[] = {"GET", "POST", "PUT", "DELETE", "PATCH"};
	struct err e = {0};

	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
		struct route route;
		int r = request_route(methods[i], text, &route, &e);

		if (r < 0) {
			check_error(r, &e);
			continue;
		}
		check_text(route.vm, sizeof(route.vm));
		check_text(route.name, sizeof(route.name));
		check_text(route.other, sizeof(route.other));
		check_labels(&route.labels);
	}
}

/* Every entry has a name and a value, and the whole its bounds. Ends it. */
static void
check_env(struct env *env)
{
	must(env->n <= ENV_VARS_MAX && env->bytes <= ENV_BYTES_MAX);
	for (size_t i = 0; i < env->n; i++)
		must(env->v[i][0] != '=' && strchr(env->v[i], '='));
	env_done(env);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct create_request create;
	static struct branch_request branch;
	static struct commit_request commit;
	struct environment_request environment;
	struct tag_request tag;
	struct alias_request alias;
	struct resize_request resize;
	struct start_request start;
	struct stop_request stop;
	struct err e = {0};
	char *text;
	int r;

	if (size < 1)
		return 0;
	/* Exactly as many bytes as there are, so that reading one more is seen. */
	text = malloc(size);
	if (!text)
		return 0;
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';
	switch (data[0] % 13) {
	case 0:
		fuzz_route(text);
		break;
	case 1:
		r = request_create(text, size - 1, &create, &e);
		if (r < 0) {
			check_error(r, &e);
			break;
		}
		check_alias(create.alias);
		check_labels(&create.labels);
		check_text(create.kernel, sizeof(create.kernel));
		check_text(create.rootfs, sizeof(create.rootfs));
		check_text(create.cmdline, sizeof(create.cmdline));
		must(create.mem_mib >= VMM_MEM_MIN_MIB &&
			create.mem_mib <= VMM_MEM_MAX_MIB);
		must(create.vcpus >= 1 && create.vcpus <= VMM_VCPUS_MAX);
		must(create.disk_mib <= VM_DISK_MAX_MIB);
		check_env(&create.env);
		break;
	case 2:
		r = request_branch(text, size - 1, &branch, &e);
		if (r < 0) {
			check_error(r, &e);
			break;
		}
		check_alias(branch.alias);
		check_labels(&branch.labels);
		must(branch.count >= 1 && branch.count <= VM_BRANCH_MAX);
		check_env(&branch.env);
		break;
	case 12:
		r = request_environment(text, size - 1, &environment, &e);
		if (r < 0) {
			check_error(r, &e);
			break;
		}
		must(environment.n_remove <= ENV_VARS_MAX);
		check_env(&environment.set);
		environment_request_done(&environment);
		break;
	case 3:
		r = request_alias(text, size - 1, &alias, &e);
		if (r < 0)
			check_error(r, &e);
		else
			check_alias(alias.alias);
		break;
	case 4:
		r = request_empty(text, size - 1, &e);
		if (r < 0)
			check_error(r, &e);
		break;
	case 6:
		r = request_stop(text, size - 1, &stop, &e);
		if (r < 0)
			check_error(r, &e);
		else
			must(stop.timeout_ms >= 1 &&
				stop.timeout_ms <= VM_STOP_TIMEOUT_MAX_MS);
		break;
	case 7:
		r = request_start(text, size - 1, &start, &e);
		if (r < 0)
			check_error(r, &e);
		break;
	case 8:
		r = request_resize(text, size - 1, &resize, &e);
		if (r < 0)
			check_error(r, &e);
		else
			must(resize.disk_mib >= 1 && resize.disk_mib <= VM_DISK_MAX_MIB);
		break;
	case 9:
		r = request_commit(text, size - 1, &commit, &e);
		if (r < 0) {
			check_error(r, &e);
			break;
		}
		check_labels(&commit.labels);
		must(strnlen(commit.message, sizeof(commit.message)) <=
			COMMIT_MESSAGE_MAX);
		must(commit.n_tags <= COMMIT_TAGS_MAX);
		for (unsigned i = 0; i < commit.n_tags; i++) {
			check_text(commit.tags[i], sizeof(commit.tags[i]));
			must(commit.tags[i][0]);
		}
		break;
	case 10:
		r = request_spawn(text, size - 1, &branch, &e);
		if (r < 0) {
			check_error(r, &e);
			break;
		}
		check_alias(branch.alias);
		check_labels(&branch.labels);
		must(branch.count >= 1 && branch.count <= VM_BRANCH_MAX);
		check_env(&branch.env);
		break;
	case 11:
		r = request_tag(text, size - 1, &tag, &e);
		if (r < 0) {
			check_error(r, &e);
			break;
		}
		check_text(tag.commit, sizeof(tag.commit));
		must(tag.commit[0]);
		break;
	case 5:
		r = vmmctl_check(text, size - 1, &e);
		if (r < 0)
			check_error(r, &e);
		break;
	}
	free(text);
	return 0;
}
