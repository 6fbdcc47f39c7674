#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/paths.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "vmm/blockmap.h"

extern const struct verb verb_disk;

static const struct opt options[] = {
	{'f', "force", NULL, "replace FILE if it exists", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

struct chain {
	char *base;		       /* owned; NULL: none */
	struct disk_segment *segments; /* owned, with their paths */
	size_t n;
	uint64_t disk_mib;
};

static void
chain_done(struct chain *c)
{
	for (size_t i = 0; i < c->n; i++) {
		free((char *)(uintptr_t)c->segments[i].data_path);
		free((char *)(uintptr_t)c->segments[i].index_path);
	}
	free(c->segments);
	free(c->base);
}

static int
read_segment(const struct json *j, int tok, struct disk_segment *s)
{
	int records = json_get(j, tok, "records"), r;
	char *data = NULL, *index = NULL;

	s->records = -1;
	r = json_str_dup(j, json_get(j, tok, "data"), &data);
	s->data_path = data;
	if (r == 0) {
		r = json_str_dup(j, json_get(j, tok, "index"), &index);
		s->index_path = index;
	}
	if (r == 0 && records >= 0 && json_type(j, records) != JSON_NULL)
		r = json_i64(j, records, &s->records);
	return r;
}

static int
read_chain(const struct json *j, struct chain *c)
{
	int array = json_get(j, 0, "chain"), base = json_get(j, 0, "base"), n, r;

	r = json_u64(j, json_get(j, 0, "disk_mib"), &c->disk_mib);
	if (r == 0 && base >= 0 && json_type(j, base) != JSON_NULL)
		r = json_str_dup(j, base, &c->base);
	if (r < 0 || array < 0 || json_type(j, array) != JSON_ARRAY)
		return r < 0 ? r : -EPROTO;
	n = json_size(j, array);
	c->segments = calloc((size_t)n + 1, sizeof(*c->segments));
	if (!c->segments)
		return -ENOMEM;
	for (int i = 0; i < n; i++) {
		r = read_segment(j, json_at(j, array, i), &c->segments[c->n++]);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Writes beside the file and renames: whoever sees FILE sees a whole disk. */
static int export(const struct chain *c, const char *file, bool force, struct err *lost,
	struct err *e)
{
	struct disk_chain chain = {c->base, c->segments, c->n};
	cleanup_close int fd = -1;
	char temp[PATHS_MAX];
	int r;

	if (!force && access(file, F_OK) == 0)
		return err_set(e, -EEXIST, "%s exists; --force replaces it", file);
	r = paths_format(temp, sizeof(temp), e, "%s.XXXXXX", file);
	if (r < 0)
		return r;
	fd = mkostemp(temp, O_CLOEXEC);
	if (fd < 0)
		return err_sys(e, -errno, "%s", file);
	r = disk_export(&chain, c->disk_mib, fd, lost, e);
	if (r == 0 && fsync(fd) < 0)
		r = err_sys(e, -errno, "%s", file);
	if (r == 0 && rename(temp, file) < 0)
		r = err_sys(e, -errno, "%s", file);
	if (r < 0)
		unlink(temp);
	return r;
}

static int
ask_chain(struct client *c, const char *vm, struct chain *ret, struct err *e)
{
	cleanup_client_reply struct client_reply reply = {0};
	char path[1024];
	int r = client_vm_path(path, sizeof(path), vm, "/disk", e);

	if (r == 0)
		r = client_call(c, "GET", path, NULL, &reply, e);
	if (r == 0 && read_chain(reply.json, ret) < 0)
		r = err_set(e, -EPROTO,
			"pandod described the disk in a way this pando does not understand");
	return r;
}

/* pandod merges a chain's old segments, and then removes them: who has lost one in the middle
 * asks again. */
#define TRIES 20

static int
ask_and_export(struct client *c, const char *vm, const char *file, bool force,
	uint64_t *ret_disk_mib, struct err *lost, struct err *e)
{
	int r = 0;

	for (unsigned i = 0; i < TRIES; i++) {
		__attribute__((cleanup(chain_done))) struct chain chain = {0};

		*lost = (struct err){0};
		r = ask_chain(c, vm, &chain, e);
		if (r < 0)
			return r;
		*ret_disk_mib = chain.disk_mib;
		r = export(&chain, file, force, lost, e);
		if (r != -ENOENT)
			break;
	}
	return r;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_disk, argc, argv);
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_json_out struct json_out o = {0};
	cleanup_client struct client *c = NULL;
	const char *words[3] = {NULL, NULL, NULL};
	bool force = false;
	struct err e = {0}, lost = {0};
	uint64_t disk_mib = 0;
	size_t n = 0;
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		switch (key) {
		case 'f':
			force = true;
			break;
		case OPT_WORD:
			if (n < 3)
				words[n++] = s.arg;
			else
				n = 4;
			break;
		default:
			return opt_leave(&s, key, &e);
		}
	}
	if (n != 3 || strcmp(words[0], "export") != 0) {
		err_set(&e, -EINVAL, "it is: pando disk export <vm> FILE");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (strcmp(words[2], "-") == 0) {
		err_set(&e, -EINVAL,
			"an image is sparse, and is not written to standard output: name a file (./- if it is called -)");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_open(words[1], &c, &vm, NULL, &e) < 0)
		return out_fail(&e);
	if (!s.quiet && strcmp(vm.state, "running") == 0)
		out_complain(
			"\"%s\" runs: the file will be what a power cut now would leave",
			client_vm_name(&vm));
	if (ask_and_export(c, vm.id, words[2], force, &disk_mib, &lost, &e) < 0)
		return out_fail(&e);
	if (lost.code)
		out_complain("disk of \"%s\": %s", client_vm_name(&vm), lost.msg);
	if (!s.json) {
		puts(words[2]);
		return EXIT_OK;
	}
	json_out_object(&o, NULL);
	json_out_str(&o, "id", vm.id);
	json_out_str(&o, "file", words[2]);
	json_out_u64(&o, "disk_mib", disk_mib);
	json_out_str(&o, "lost", lost.code ? lost.msg : NULL);
	json_out_end_object(&o);
	return out_json(&o);
}

const struct verb verb_disk = {
	.name = "disk",
	.summary = "Writes a VM's disk as one raw image",
	.run = run,
	.usage = "export <vm> FILE",
	.options = options,
	.text = "The file is sparse. Of a VM that runs it is what a power cut would leave: a journal to replay, as\n"
		"`e2fsck -p FILE` does. After a power loss of the host the disk ends at the first record that did\nnot reach the host's disk: what the guest "
		"flushed is there, and a message says what is not.\n`--format json` says it as `lost`.",
	.subverbs = "export",
	.words = COMPLETE_VM,
};
