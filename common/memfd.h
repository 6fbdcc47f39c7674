/*
 * Whether a memfd gets huge pages without asking. One that is filled page by page under the eyes
 * of those who have it mapped must not: the first write into a hole of it makes a whole huge page be
 * there, zeroes around what was written, and khugepaged fills holes likewise. Nobody takes a fault
 * there any more, also not by userfaultfd(2), and reads zeroes that are not so.
 *
 * Documentation/admin-guide/mm/transhuge.rst, "Hugepages in tmpfs/shmem": the setting
 * transparent_hugepage/shmem_enabled is that of memfds. "always", "within_size" and "force" hold
 * for every write (mm/shmem.c, shmem_is_huge(), without a mapping); "advise" only for mappings with
 * MADV_HUGEPAGE. Kernels come with "never". The sizes of hugepages-*kB/shmem_enabled are those of
 * anonymous shared memory, not of memfds.
 */
#ifndef PANDO_COMMON_MEMFD_H
#define PANDO_COMMON_MEMFD_H

#include <stdbool.h>

#define MEMFD_HUGE_SETTING "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* On this host, now. */
bool memfd_takes_huge_pages(void);
/* setting: what the kernel says there, the one that holds in brackets. */
bool memfd_setting_is_huge(const char *setting);

#endif
