/*
 * A project's settings: pando.toml, else vers.toml, in the current folder.
 *
 *	[machine]
 *	mem_size_mib = 512
 *	vcpu_count = 1
 *	fs_size_vm_mib = 1024
 *	[rootfs]
 *	name = "default"
 *	[kernel]
 *	name = "default"
 *
 * Every key may be left out. A key that is not one of these, a wrong type or a value out
 * of range is an error "file:line:column: …" that names the key. A command's flags win
 * over the file. In a vers.toml, the kernel name "default.bin" (what that tool writes)
 * means "default".
 */
#ifndef PANDO_HOST_CLIENT_PROJECT_CONFIG_H
#define PANDO_HOST_CLIENT_PROJECT_CONFIG_H

#include <stdint.h>

#include "common/err.h"
#include "common/toml.h"
#include "common/wire/vmm_wire.h"

#define CONFIG_MEM_MIN_MIB VMM_MEM_MIN_MIB
#define CONFIG_MEM_MAX_MIB VMM_MEM_MAX_MIB
#define CONFIG_VCPUS_MAX VMM_VCPUS_MAX
#define CONFIG_DISK_MIN_MIB 1u
#define CONFIG_DISK_MAX_MIB VMM_DISK_MAX_MIB
#define CONFIG_DISK_BPS_MIN VMM_DISK_BYTES_MIN
#define CONFIG_DISK_BPS_MAX (1ull << 40)
#define CONFIG_DISK_IOPS_MAX 1000000000ull

struct config {
	char *path;	  /* owned; the file that was read, NULL: none */
	uint64_t mem_mib; /* 0: not said; likewise below */
	uint64_t vcpus;
	uint64_t disk_mib;
	uint64_t disk_bps, disk_iops;
	char *rootfs; /* owned; NULL: not said */
	char *kernel; /* owned; NULL: not said */
};
void config_done(struct config *c);
#define cleanup_config __attribute__((cleanup(config_done)))

/* path: that file, which must exist. NULL: the two names in `folder`; none there is fine.
 * On failure *ret is untouched. */
int config_load(const char *path, const char *folder, struct config *ret, struct err *e);
/* One of the three tables, for files that have them among others. `file` is for the
 * sentences; ret keeps what it had for keys that are absent. -ENOENT without a sentence:
 * `key` is none of the three. */
int config_read_table(const char *file, const char *key, const struct toml *table,
	struct config *ret, struct err *e);

#endif
