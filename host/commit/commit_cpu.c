#include "host/commit/commit_cpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/json.h"
#include "common/wire/cpu_features.h"
#include "common/wire/snapshot_format.h"

#define NAMES_MAX 16384u /* all names that there are, and more */

/* vCPU 0's table. */
static int
read_table(const void *state, size_t len, struct kvm_cpuid_table *ret, struct err *e)
{
	struct blob_in all, in;
	const void *entries;
	uint32_t n, pad;
	int r;

	if ((r = blob_open(state, len, &all, e)) < 0 ||
		(r = blob_next(&all, SNAPSHOT_TAG_CONFIG, "configuration", &in, e)) < 0 ||
		(r = blob_next(&all, SNAPSHOT_TAG_CPUID, "CPUID", &in, e)) < 0)
		return r;
	n = blob_get_u32(&in);
	pad = blob_get_u32(&in);
	if (in.bad || pad || n > KVM_CPUID_MAX)
		return err_set(e, -EBADMSG,
			"the state has a CPUID table of %u entries; %d are allowed", n,
			KVM_CPUID_MAX);
	entries = blob_take(&in, n * sizeof(ret->entries[0]));
	if (!entries)
		return err_set(e, -EBADMSG, "the state has a CPUID table cut short");
	ret->n = n;
	memcpy(ret->entries, entries, n * sizeof(ret->entries[0]));
	return 0;
}

int
commit_cpu(const void *state, size_t len, char **ret, struct err *e)
{
	cleanup_free struct kvm_cpuid_table *wanted = calloc(1, sizeof(*wanted));
	cleanup_free struct kvm_cpuid_table *none = calloc(1, sizeof(*none));
	cleanup_free char *names = malloc(NAMES_MAX);
	cleanup_json_out struct json_out out = {0};
	char *name, *end;
	int r;

	if (!wanted || !none || !names)
		return err_set(e, -ENOMEM, "out of memory");
	r = read_table(state, len, wanted, e);
	if (r < 0)
		return r;
	/* All that a CPU without any feature lacks. */
	cpu_features_missing(wanted, none, names, NAMES_MAX);
	json_out_object(&out, NULL);
	json_out_array(&out, "features");
	/* A bit without a name is called by its place, with blanks. */
	for (name = names; *name; name = end) {
		size_t name_len;

		end = strstr(name, ", ");
		name_len = end ? (size_t)(end - name) : strlen(name);
		end = end ? end + 2 : name + name_len;
		json_out_strn(&out, NULL, name, name_len);
	}
	json_out_end_array(&out);
	json_out_end_object(&out);
	if (out.error)
		return err_set(e, out.error, "out of memory");
	*ret = TAKE_PTR(out.buf);
	return 0;
}
