/* What a commit's configuration says, and how two commits differ. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/commit/commits_priv.h"
#include "host/commit/diff_files.h"

#define CONFIG_TOKENS 64
#define RANGES_MAX 4096u /* of a diff: what is listed at most; all is counted */

/*
 * A commit's configuration.
 */

int
commit_config_write(const struct vm_row *row, char **ret, struct err *e)
{
	cleanup_json_out struct json_out out = {0};

	json_out_object(&out, NULL);
	json_out_str(&out, "alias", row->alias);
	json_out_str(&out, "cmdline", row->cmdline);
	json_out_u64(&out, "disk_mib", row->disk_mib);
	json_out_str(&out, "kernel", row->kernel);
	json_out_str(&out, "kernel_path", row->kernel_path);
	json_out_u64(&out, "mem_mib", row->mem_mib);
	json_out_str(&out, "rootfs", row->rootfs);
	json_out_u64(&out, "vcpus", row->vcpus);
	json_out_end_object(&out);
	if (out.error)
		return err_set(e, out.error, "out of memory");
	*ret = TAKE_PTR(out.buf);
	return 0;
}

static int
config_text(const struct json *j, const char *key, char *dst, size_t cap)
{
	int tok = json_get(j, 0, key);

	dst[0] = '\0';
	return tok < 0 ? 0 : json_str(j, tok, dst, cap);
}

int
commit_config_read(const struct store_manifest *m, struct vm_row *ret, struct err *e)
{
	cleanup_json struct json *j = NULL;
	struct vm_row row = {0};
	uint64_t vcpus = 0;
	int r = json_parse(m->f.config, strlen(m->f.config), CONFIG_TOKENS, &j, NULL);

	/* The store vouches for its own bytes, not for who wrote them: it may have been
	 * copied here. */
	if (r < 0 || json_type(j, 0) != JSON_OBJECT ||
		config_text(j, "alias", row.alias, sizeof(row.alias)) < 0 ||
		config_text(j, "cmdline", row.cmdline, sizeof(row.cmdline)) < 0 ||
		config_text(j, "kernel", row.kernel, sizeof(row.kernel)) < 0 ||
		config_text(j, "kernel_path", row.kernel_path, sizeof(row.kernel_path)) <
			0 ||
		config_text(j, "rootfs", row.rootfs, sizeof(row.rootfs)) < 0 ||
		json_u64(j, json_get(j, 0, "mem_mib"), &row.mem_mib) < 0 ||
		json_u64(j, json_get(j, 0, "disk_mib"), &row.disk_mib) < 0 ||
		json_u64(j, json_get(j, 0, "vcpus"), &vcpus) < 0 ||
		row.mem_mib < VMM_MEM_MIN_MIB || row.mem_mib > VMM_MEM_MAX_MIB ||
		row.disk_mib < 1 || row.disk_mib > VM_DISK_MAX_MIB || vcpus < 1 ||
		vcpus > VMM_VCPUS_MAX || m->f.memory.length != row.mem_mib << 20 ||
		m->f.disk.length != row.disk_mib << 20 || m->f.state.length == 0 ||
		m->f.state.length > VMM_STATE_BLOB_MAX)
		return err_set(e, r == -ENOMEM ? r : -EBADMSG,
			"commit %.12s was not made by pando: its configuration is not that of a VM",
			m->id);
	row.vcpus = (uint32_t)vcpus;
	*ret = row;
	return 0;
}

/*
 * Differences.
 */

struct ranges {
	uint64_t pages;
	uint64_t first[RANGES_MAX], n[RANGES_MAX];
	unsigned count;
	bool cut;
};

static int
add_page(void *ctx, uint64_t page, const void *data, struct err *e)
{
	struct ranges *l = ctx;

	(void)data;
	(void)e;
	l->pages++;
	if (l->count && l->first[l->count - 1] + l->n[l->count - 1] == page)
		l->n[l->count - 1]++;
	else if (l->count == RANGES_MAX)
		l->cut = true;
	else {
		l->first[l->count] = page;
		l->n[l->count++] = 1;
	}
	return 0;
}

static int
put_diff(struct store *s, const char *what, const struct store_tree *a,
	const struct store_tree *b, struct json_out *out, struct err *e)
{
	cleanup_free struct ranges *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return err_set(e, -ENOMEM, "out of memory");
	r = store_tree_diff(s, a, b, add_page, l, e);
	if (r < 0)
		return r;
	json_out_object(out, what);
	json_out_u64(out, "pages", l->pages);
	json_out_u64(out, "bytes_a", a->length);
	json_out_u64(out, "bytes_b", b->length);
	json_out_array(out, "ranges");
	for (unsigned i = 0; i < l->count; i++) {
		json_out_array(out, NULL);
		json_out_u64(out, NULL, l->first[i]);
		json_out_u64(out, NULL, l->n[i]);
		json_out_end_array(out);
	}
	json_out_end_array(out);
	json_out_bool(out, "ranges_complete", !l->cut);
	json_out_end_object(out);
	return 0;
}

/* It lies beside the VMM. */
static int
fsdiff_path(const struct tree *t, char dst[static PATHS_MAX], struct err *e)
{
	const char *slash = strrchr(t->config.vmm_path, '/');

	return paths_format(dst, PATHS_MAX, e, "%.*s/pando-fsdiff",
		slash ? (int)(slash - t->config.vmm_path) : 0, t->config.vmm_path);
}

int
commits_diff(struct commits *c, const char *a, const char *b, bool files,
	struct json_out *out, struct err *e)
{
	struct tree *t = c->tree;
	char program[PATHS_MAX];
	struct store_manifest *ma = NULL, *mb = NULL;
	struct store *s;
	int r;

	if (!b[0])
		return err_set(e, -EINVAL, "a diff is with another commit: ?with=…");
	r = commits_store(c, &s, e);
	if (r < 0)
		return r;
	store_hold(s);
	r = store_load(s, a, &ma, e);
	if (r == 0)
		r = store_load(s, b, &mb, e);
	if (r == 0) {
		json_out_object(out, NULL);
		json_out_str(out, "a", ma->id);
		json_out_str(out, "b", mb->id);
		r = put_diff(s, "memory", &ma->f.memory, &mb->f.memory, out, e);
	}
	if (r == 0)
		r = put_diff(s, "disk", &ma->f.disk, &mb->f.disk, out, e);
	if (r == 0 && files)
		r = fsdiff_path(t, program, e);
	if (r == 0 && files)
		r = diff_files(s, program, &ma->f.disk, &mb->f.disk, out, e);
	if (r == 0)
		json_out_end_object(out);
	store_release(s);
	store_manifest_free(ma);
	store_manifest_free(mb);
	return r;
}
