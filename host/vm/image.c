#include "host/vm/image.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "common/wire/segment_wire.h"

/* Documentation/arch/x86/boot.rst: boot_flag, the header's magic, and where the text of
 * the version stands (0: there is none). */
#define BOOT_FLAG_AT 0x1fe
#define BOOT_MAGIC_AT 0x202
#define BOOT_VERSION_AT 0x20e
/* Documentation/filesystems/ext4/super.rst: the superblock lies at byte 1024. */
#define EXT4_SUPER_AT 1024
#define EXT4_BLOCKS_LO 0x04
#define EXT4_LOG_BLOCK_SIZE 0x18
#define EXT4_MAGIC_AT 0x38
#define EXT4_INCOMPAT 0x60
#define EXT4_BLOCKS_HI 0x150
#define EXT4_INCOMPAT_64BIT 0x80u

void
image_done(struct image *i)
{
	cleanup_close_fn(&i->kernel_fd);
	cleanup_close_fn(&i->initrd_fd);
	cleanup_close_fn(&i->base_fd);
	*i = (struct image)IMAGE_INIT;
}

/* Opens a regular file; what: "kernel", for the sentence. */
static int
open_file(const char *what, const char *path, int *ret_fd, uint64_t *ret_size,
	struct err *e)
{
	/* Not blocking: the path is the user's, and may be a FIFO. */
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0)
		return err_sys(e, -errno, "%s %.200s", what, path);
	if (fstat(fd, &st) < 0)
		return err_sys(e, -errno, "%s %.200s", what, path);
	if (!S_ISREG(st.st_mode))
		return err_set(e, -EINVAL, "%s %.200s is not a regular file", what, path);
	if (st.st_size == 0)
		return err_set(e, -EINVAL, "%s %.200s is empty", what, path);
	*ret_size = (uint64_t)st.st_size;
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int
check_kernel(int fd, const char *path, uint64_t size, bool *ret_is_linux, struct err *e)
{
	uint8_t head[0x210];
	int r;

	if (size < sizeof(head))
		return err_set(e, -EINVAL,
			"kernel %.200s is no Linux kernel: it has only %llu bytes", path,
			(unsigned long long)size);
	r = io_pread_full(fd, head, sizeof(head), 0);
	if (r < 0)
		return err_sys(e, r, "reading kernel %.200s", path);
	if (memcmp(head, "\177ELF", 4) == 0)
		return err_set(e, -EINVAL,
			"kernel %.200s is an ELF file; a bzImage (arch/x86/boot/bzImage, /boot/vmlinuz-…) is needed",
			path);
	if (head[BOOT_FLAG_AT] != 0x55 || head[BOOT_FLAG_AT + 1] != 0xaa ||
		memcmp(head + BOOT_MAGIC_AT, "HdrS", 4) != 0)
		return err_set(e, -EINVAL,
			"kernel %.200s is no Linux kernel: it has no bzImage header",
			path);
	*ret_is_linux = head[BOOT_VERSION_AT] || head[BOOT_VERSION_AT + 1];
	return 0;
}

static uint32_t
le32_at(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static int
check_base(int fd, const char *path, uint64_t size, struct err *e)
{
	uint8_t super[1024];
	uint64_t blocks, need;
	uint32_t shift;
	int r;

	if (size % SEGMENT_BLOCK != 0)
		return err_set(e, -EINVAL,
			"disk image %.200s is truncated: its %llu bytes are no multiple of %u",
			path, (unsigned long long)size, SEGMENT_BLOCK);
	r = io_pread_full(fd, super, sizeof(super), EXT4_SUPER_AT);
	if (r < 0)
		return err_sys(e, r, "reading disk image %.200s", path);
	if (super[EXT4_MAGIC_AT] != 0x53 || super[EXT4_MAGIC_AT + 1] != 0xef)
		return 0; /* another file system, or a partition table: the guest's
			     business */
	shift = le32_at(super + EXT4_LOG_BLOCK_SIZE);
	if (shift > 6)
		return err_set(e, -EINVAL,
			"disk image %.200s has a damaged ext4 superblock", path);
	blocks = le32_at(super + EXT4_BLOCKS_LO);
	if (le32_at(super + EXT4_INCOMPAT) & EXT4_INCOMPAT_64BIT)
		blocks |= (uint64_t)le32_at(super + EXT4_BLOCKS_HI) << 32;
	if (__builtin_mul_overflow(blocks, (uint64_t)1024 << shift, &need) || need > size)
		return err_set(e, -EINVAL,
			"disk image %.200s is truncated: its ext4 file system has %llu blocks of %u bytes, the file only %llu bytes; fetch or build it again",
			path, (unsigned long long)blocks, 1024u << shift,
			(unsigned long long)size);
	return 0;
}

static bool
is_folder(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Where name lies: *ret_path is an image folder (*ret_folder) or a file. */
static int
find_image(const char *images, const char *what, const char *name, char *ret_path,
	bool *ret_folder, struct err *e)
{
	char shown[200];
	int r;

	log_escape(shown, sizeof(shown), name, strlen(name) > 90 ? 90 : strlen(name));
	if (name[0] == '/') {
		r = paths_format(ret_path, PATHS_MAX, e, "%s", name);
		*ret_folder = r == 0 && is_folder(ret_path);
		return r;
	}
	if (name[0] == '.' || strchr(name, '/'))
		return err_set(e, -EINVAL,
			"%s \"%s\" is neither an image's name nor an absolute path", what,
			shown);
	r = paths_format(ret_path, PATHS_MAX, e, "%s/%s", images, name);
	if (r < 0)
		return r;
	if (!is_folder(ret_path))
		return err_set(e, -ENOENT,
			"no image named \"%s\" below %.200s: `make images` builds the default one; a file is named by its path, as in ./%s",
			shown, images, shown);
	*ret_folder = true;
	return 0;
}

/* The command line in image.json; an image without the file, or without the member, has
 * none. */
static int
read_cmdline(const char *folder, char *dst, size_t cap, struct err *e)
{
	char path[PATHS_MAX];
	cleanup_free char *text = NULL;
	cleanup_json struct json *j = NULL;
	size_t len;
	int tok, r;

	dst[0] = '\0';
	r = paths_format(path, sizeof(path), e, "%s/image.json", folder);
	if (r < 0)
		return r;
	if (access(path, F_OK) < 0)
		return 0;
	r = io_read_file(path, IMAGE_JSON_MAX, &text, &len, e);
	if (r < 0)
		return r;
	r = json_parse(text, len, 1024, &j, e);
	if (r < 0)
		return err_wrap(e, r, "%.200s", path);
	tok = json_get(j, 0, "cmdline");
	if (tok < 0)
		return 0;
	r = json_str(j, tok, dst, cap);
	if (r < 0)
		return err_set(e, -EINVAL,
			"%.200s: \"cmdline\" is not a string of at most %zu bytes", path,
			cap - 1);
	return 0;
}

static int
open_kernel(const char *images, const char *kernel, struct image *i, struct err *e)
{
	char path[PATHS_MAX], file[PATHS_MAX];
	bool folder;
	uint64_t size;
	int r = find_image(images, "kernel", kernel, path, &folder, e);

	if (r < 0)
		return r;
	r = paths_format(file, sizeof(file), e, "%s%s", path, folder ? "/kernel" : "");
	if (r == 0)
		r = open_file("kernel", file, &i->kernel_fd, &size, e);
	if (r == 0)
		r = check_kernel(i->kernel_fd, file, size, &i->is_linux, e);
	/* As with the base: a VM that is started again boots what it booted at first. */
	if (r == 0 && !realpath(path, i->kernel_path))
		r = err_sys(e, -errno, "%.200s", path);
	if (r < 0 || !folder)
		return r;
	r = paths_format(file, sizeof(file), e, "%s/initrd", path);
	if (r < 0)
		return r;
	if (access(file, F_OK) == 0) {
		r = open_file("initrd", file, &i->initrd_fd, &size, e);
		if (r < 0)
			return r;
	}
	return read_cmdline(path, i->cmdline, sizeof(i->cmdline), e);
}

static int
open_base(const char *images, const char *rootfs, struct image *i, struct err *e)
{
	char path[PATHS_MAX], file[PATHS_MAX];
	bool folder;
	uint64_t size;
	int r;

	if (strcmp(rootfs, "none") == 0)
		return 0;
	r = find_image(images, "rootfs", rootfs, path, &folder, e);
	if (r < 0)
		return r;
	r = paths_format(
		file, sizeof(file), e, "%s%s", path, folder ? "/rootfs.ext4" : "");
	if (r == 0)
		r = open_file("disk image", file, &i->base_fd, &size, e);
	if (r == 0)
		r = check_base(i->base_fd, file, size, e);
	if (r < 0)
		return r;
	/* The name may be a symbolic link that tomorrow leads elsewhere; this VM's disk
	 * stays. */
	if (!realpath(file, i->base_path))
		return err_sys(e, -errno, "%.200s", file);
	i->base_mib = (size + (1u << 20) - 1) >> 20;
	return 0;
}

int
image_open(const char *images, const char *kernel, const char *rootfs, struct image *ret,
	struct err *e)
{
	int r = open_kernel(images, kernel, ret, e);

	if (r == 0)
		r = open_base(images, rootfs, ret, e);
	if (r < 0)
		image_done(ret);
	return r;
}
