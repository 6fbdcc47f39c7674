#include "vmm/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define MIB (1ull << 20)
#define HUGE (2 * MIB)

static int
map_aligned(struct guest_mem *m, uint64_t mem_mib, int prot, struct err *e)
{
	uint64_t len, map_len, head;
	uint8_t *p;

	if (mem_mib == 0 || mem_mib > UINT64_MAX / MIB / 2)
		return err_set(e, -EINVAL, "guest memory of %llu MiB is out of range",
			(unsigned long long)mem_mib);
	len = mem_mib * MIB;
	map_len = (len + HUGE - 1) / HUGE * HUGE + HUGE;
	p = mmap(NULL, map_len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return err_sys(e, -errno, "mapping %llu MiB of guest memory",
			(unsigned long long)mem_mib);

	/* Trim to a 2 MiB boundary at the front; the slack at the end is given back too.
	 */
	head = -(uintptr_t)p % HUGE;
	if (head)
		munmap(p, head);
	p += head;
	map_len -= head;
	if (map_len > len)
		munmap(p + len, map_len - len);

	m->host = p;
	m->low_len = len < GUEST_LOW_MAX ? len : GUEST_LOW_MAX;
	m->high_len = len - m->low_len;
	m->on_image = false;
	m->image_inode = 0;
	m->anonymous = NULL;
	m->anonymous_maps = 0;
	return 0;
}

int
guest_mem_create(struct guest_mem *m, uint64_t mem_mib, struct err *e)
{
	int r = map_aligned(m, mem_mib, PROT_READ | PROT_WRITE, e);

	if (r < 0)
		return r;
	/* Huge pages make fork() of a VM 10 to 30 times cheaper. A host that has none
	 * still works. */
	madvise(m->host, m->low_len + m->high_len, MADV_HUGEPAGE);
	/* Guest memory holds other people's secrets: it stays out of core dumps. */
	madvise(m->host, m->low_len + m->high_len, MADV_DONTDUMP);
	return 0;
}

int
guest_mem_reserve(struct guest_mem *m, uint64_t mem_mib, struct err *e)
{
	return map_aligned(m, mem_mib, PROT_NONE, e);
}

int
guest_mem_lend_page(struct guest_mem *m, gpa_t page, struct err *e)
{
	const size_t len = 4096;
	void *p = guest_range(m, page, len);

	if (!p || mprotect(p, len, PROT_READ | PROT_WRITE) < 0)
		return err_sys(e, p ? -errno : -EFAULT, "a page of guest memory");
	return 0;
}

void
guest_mem_open_hole(struct guest_mem *m)
{
	munmap(m->host, m->low_len + m->high_len);
}

static int
check_image(const struct guest_mem *m, int image_fd, struct stat *ret, struct err *e)
{
	const uint64_t len = m->low_len + m->high_len;

	if (fstat(image_fd, ret) < 0)
		return err_sys(e, -errno, "memory image");
	if (!S_ISREG(ret->st_mode) || (uint64_t)ret->st_size != len)
		return err_set(e, -EINVAL,
			"the memory image must be a regular file of %llu MiB, not of %lld bytes",
			(unsigned long long)(len / MIB), (long long)ret->st_size);
	return 0;
}

static void
note_image(struct guest_mem *m, const struct stat *st)
{
	m->on_image = true;
	m->image_dev = st->st_dev;
	m->image_inode = st->st_ino;
}

int
guest_mem_map_image(struct guest_mem *m, int image_fd, struct err *e)
{
	const uint64_t len = m->low_len + m->high_len;
	struct stat st;
	void *p;
	int r = check_image(m, image_fd, &st, e);

	if (r < 0)
		return r;
	p = mmap(m->host, len, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_FIXED_NOREPLACE | MAP_NORESERVE, image_fd, 0);
	if (p == MAP_FAILED)
		return err_sys(e, -errno, "mapping the memory image");
	if (p != m->host) { /* before Linux 4.17 the flag is a wish */
		munmap(p, len);
		return err_set(e, -EEXIST,
			"mapping the memory image: something else lies there");
	}
	note_image(m, &st);
	return 0;
}

int
guest_mem_check_image(
	const struct guest_mem *m, int image_fd, bool *ret_same, struct err *e)
{
	struct stat st;
	int r = check_image(m, image_fd, &st, e);

	if (r < 0)
		return r;
	*ret_same = m->image_inode && m->image_dev == st.st_dev &&
		    m->image_inode == st.st_ino;
	return 0;
}

int
guest_mem_replace(struct guest_mem *m, int image_fd, struct err *e)
{
	struct stat st;
	int r = check_image(m, image_fd, &st, e);

	if (r < 0)
		return r;
	if (mmap(m->host, m->low_len + m->high_len, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, image_fd, 0) == MAP_FAILED)
		return err_sys(e, -errno, "mapping the memory image");
	note_image(m, &st);
	m->anonymous_maps = 0;
	if (m->anonymous && madvise(m->anonymous, guest_mem_unit_bytes(m), MADV_DONTNEED) < 0)
		return err_sys(e, -errno, "forgetting what was given back");
	return 0;
}

void
guest_mem_destroy(struct guest_mem *m)
{
	if (m->host)
		munmap(m->host, m->low_len + m->high_len);
	if (m->anonymous)
		munmap(m->anonymous, guest_mem_unit_bytes(m));
	*m = (struct guest_mem){0};
}

size_t
guest_mem_unit_bytes(const struct guest_mem *m)
{
	return ((m->low_len + m->high_len) / GUEST_UNIT + 7) / 8;
}

void *
guest_range(const struct guest_mem *m, gpa_t gpa, size_t len)
{
	uint64_t off;

	if (gpa.v < m->low_len) {
		if (len > m->low_len - gpa.v)
			return NULL;
		return m->host + gpa.v;
	}
	if (gpa.v < GUEST_HIGH_BASE)
		return NULL;
	off = gpa.v - GUEST_HIGH_BASE;
	if (off >= m->high_len || len > m->high_len - off)
		return NULL;
	return m->host + m->low_len + off;
}

int
guest_read(const struct guest_mem *m, gpa_t gpa, void *dst, size_t len)
{
	const void *p;

	if (len == 0)
		return 0;
	p = guest_range(m, gpa, len);
	if (!p)
		return -EFAULT;
	memcpy(dst, p, len);
	return 0;
}

int
guest_write(const struct guest_mem *m, gpa_t gpa, const void *src, size_t len)
{
	void *p;

	if (len == 0)
		return 0;
	p = guest_range(m, gpa, len);
	if (!p)
		return -EFAULT;
	memcpy(p, src, len);
	return 0;
}
