/*
 * What VMs take of the host.
 *
 * Memory. A branch shares its parent's pages until either side writes one; the kernel
 * counts them as shared as long as two processes map them. What is a VM's alone, and
 * comes back when it goes, is Private_* of /proc/<pid>/smaps_rollup. When a parent dies,
 * what it shared with one branch becomes that branch's own.
 *
 * Disk. The blocks allocated in segments, and in a base, that no other VM's chain has.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/vm/tree_priv.h"

/* Left to the host whatever is asked for. */
#define ROOM_LEFT_MIB 64u
/* A VMM that runs and has written nothing yet: its process, its KVM VM, stacks. */
#define CHILD_MIB 1u
/* Page tables of all of a guest's memory: 1/512 for the process, 1/512 for the guest. */
#define CHILD_TABLES(mem_mib) ((mem_mib) / 256)

bool
vm_usage_begin(struct tree *t, struct vm *vm, struct vm_usage *ret)
{
	char prefix[PATHS_MAX];
	bool shared = false;

	*ret = (struct vm_usage){.pidfd = -1, .pid = vm->row.pid};
	if (db_chain_own(t->db, vm->row.id, &ret->segments, &ret->n_segments, NULL) < 0)
		return false;
	if (vm->pidfd >= 0 && !vm->dead)
		ret->pidfd = fcntl(vm->pidfd, F_DUPFD_CLOEXEC, 0);
	if (paths_format(prefix, sizeof(prefix), NULL, "%s/bases/", t->config.home) < 0 ||
		strncmp(vm->row.base_path, prefix, strlen(prefix)) != 0)
		return true;
	for (unsigned i = 0; i < t->n_vms && !shared; i++)
		shared = t->vms[i] != vm &&
			 strcmp(t->vms[i]->row.base_path, vm->row.base_path) == 0;
	if (!shared)
		memcpy(ret->base, vm->row.base_path, sizeof(ret->base));
	return true;
}

void
vm_usage_done(struct vm_usage *c)
{
	cleanup_close_fn(&c->pidfd);
	c->pidfd = -1;
	free(c->segments);
	c->segments = NULL;
}

/* "Name:   123 kB" somewhere in the text, in bytes. */
static bool
find_kib(const char *text, const char *name, uint64_t *ret_bytes)
{
	size_t len = strlen(name);
	unsigned long long kib;

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, name, len) == 0 && line[len] == ':' &&
			sscanf(line + len + 1, "%llu kB", &kib) == 1) {
			*ret_bytes = (uint64_t)kib * 1024;
			return true;
		}
	}
	return false;
}

static bool
read_small(const char *path, char *dst, size_t cap)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n = 0;

	while (fd >= 0 && len < cap - 1 &&
		(n = io_read(fd, dst + len, cap - 1 - len)) > 0)
		len += (size_t)n;
	dst[len] = '\0';
	return fd >= 0 && n >= 0 && len > 0;
}

static void
count_memory(struct vm_usage *c)
{
	char path[48], text[4096];
	uint64_t clean, dirty, huge, shared_clean, shared_dirty;

	if (c->pidfd < 0)
		return;
	snprintf(path, sizeof(path), "/proc/%lld/smaps_rollup", (long long)c->pid);
	/* Alive afterwards, so the number was that process's while it was read. */
	if (!read_small(path, text, sizeof(text)) || !process_lives(c->pidfd) ||
		!find_kib(text, "Private_Clean", &clean) ||
		!find_kib(text, "Private_Dirty", &dirty) ||
		!find_kib(text, "Shared_Clean", &shared_clean) ||
		!find_kib(text, "Shared_Dirty", &shared_dirty))
		return;
	if (!find_kib(text, "Private_Hugetlb", &huge))
		huge = 0;
	c->unique_bytes = clean + dirty + huge;
	c->shared_bytes = shared_clean + shared_dirty;
	c->has_memory = true;
}

static void
count_file(struct vm_usage *c, const char *path)
{
	struct stat st;

	if (stat(path, &st) == 0)
		c->disk_bytes += (uint64_t)st.st_blocks * 512;
}

void
vm_usage_count(struct tree *t, struct vm_usage *c)
{
	static const char *const suffixes[] = {"data", "index"};
	char path[PATHS_MAX];

	count_memory(c);
	for (size_t i = 0; i < c->n_segments; i++)
		for (size_t j = 0; j < 2; j++)
			if (paths_format(path, sizeof(path), NULL, "%s/segments/%s.%s",
				    t->config.home, c->segments[i], suffixes[j]) == 0)
				count_file(c, path);
	if (c->base[0])
		count_file(c, c->base);
}

void
vm_usage_json(const struct vm_usage *c, struct json_out *out)
{
	json_out_object(out, "costs");
	if (c->has_memory) {
		json_out_u64(out, "memory_unique_bytes", c->unique_bytes);
		json_out_u64(out, "memory_shared_bytes", c->shared_bytes);
	} else {
		json_out_null(out, "memory_unique_bytes");
		json_out_null(out, "memory_shared_bytes");
	}
	json_out_u64(out, "disk_own_bytes", c->disk_bytes);
	json_out_end_object(out);
}

int
host_has_room(const struct tree *t, const char *name, uint64_t mem_mib, uint64_t own_bytes,
	uint32_t count, struct err *e)
{
	const char *path =
		t->config.meminfo_path ? t->config.meminfo_path : "/proc/meminfo";
	uint64_t need_mib, each_mib, has_mib, bytes, to_come;
	char text[8192];

	if (!read_small(path, text, sizeof(text)) ||
		!find_kib(text, "MemAvailable", &bytes))
		return 0; /* a host that does not say */
	to_come = t->memory_to_come ? t->memory_to_come() : 0;
	has_mib = bytes > to_come ? (bytes - to_come) >> 20 : 0;
	each_mib = CHILD_MIB + CHILD_TABLES(mem_mib) + ((own_bytes + (1u << 20) - 1) >> 20);
	need_mib = count * each_mib + ROOM_LEFT_MIB;
	if (need_mib <= has_mib)
		return 0;
	return err_set(e, -ENOMEM,
		"\"%s\": %u VM%s at least %llu MiB of memory (%llu MiB each, %u for the host), and %llu MiB are available: ask for fewer, or stop other VMs",
		name, count, count == 1 ? " needs" : "s need", (unsigned long long)need_mib,
		(unsigned long long)each_mib, ROOM_LEFT_MIB, (unsigned long long)has_mib);
}
