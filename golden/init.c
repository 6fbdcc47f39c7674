/*
 * init: process 1 of the initramfs, in guests and in the test machine.
 *
 * Runs as root, alone, with nothing but the kernel's own files: statically linked, no
 * shell, no other program. It loads the modules that /modules/load lists (in that order,
 * which the image build computed from modules.dep), makes the device nodes of
 * /modules/devices, waits for the root disk, mounts it,
 * grows an ext4 that is smaller than its disk, empties the initramfs, makes the disk the
 * root and becomes its /sbin/init. Arguments the kernel gave us are handed on.
 *
 * From the kernel command line it takes root=/dev/NAME (or PARTUUID-less device paths
 * only), rootfstype= (default ext4), rootflags=, ro or rw, init=.
 *
 * Whatever goes wrong is one sentence on the console. Where no system can come of it,
 * process 1 ends, the kernel panics and `panic=-1` makes that a reset that the VMM
 * reports.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

/* fs/ext4/ext4.h; not in the exported kernel headers. Takes the new size in file system
 * blocks. */
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)

#define NEW_ROOT "/root"
#define ROOT_WAIT_MS 10000

struct cmdline {
	char text[4096];
	const char *root, *fstype, *flags, *init;
	bool ro;
};

__attribute__((format(printf, 1, 2))) static void
say(const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	n = snprintf(line, sizeof(line), "pando-init: ");
	va_start(ap, fmt);
	vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	n = (int)strlen(line);
	line[n++] = '\n';
	if (write(2, line, (size_t)n) < 0)
		return; /* no console: there is nobody to tell */
}

__attribute__((noreturn, format(printf, 1, 2))) static void
die(const char *fmt, ...)
{
	char text[448];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	say("%s", text);
	_exit(1); /* process 1 ends: the kernel panics, panic=-1 resets */
}

/* Reads a small file; returns its length or -errno. The text is terminated. */
static ssize_t
slurp(const char *path, char *buf, size_t cap)
{
	size_t len = 0;
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	while (len + 1 < cap && (n = read(fd, buf + len, cap - 1 - len)) > 0)
		len += (size_t)n;
	close(fd);
	buf[len] = '\0';
	return (ssize_t)len;
}

/* Splits the command line in place. The last of two equal keys wins, as in the kernel.
 * Text after
 * "--" is for the system's own init and came to us as arguments. */
static void
read_cmdline(struct cmdline *c)
{
	char *save = NULL, *word;

	c->root = "/dev/vda";
	c->fstype = "ext4";
	c->flags = "";
	c->init = "/sbin/init";
	if (slurp("/proc/cmdline", c->text, sizeof(c->text)) < 0)
		return;
	for (word = strtok_r(c->text, " \t\n", &save); word && strcmp(word, "--") != 0;
		word = strtok_r(NULL, " \t\n", &save)) {
		if (strncmp(word, "root=", 5) == 0)
			c->root = word + 5;
		else if (strncmp(word, "rootfstype=", 11) == 0)
			c->fstype = word + 11;
		else if (strncmp(word, "rootflags=", 10) == 0)
			c->flags = word + 10;
		else if (strncmp(word, "init=", 5) == 0)
			c->init = word + 5;
		else if (strcmp(word, "ro") == 0)
			c->ro = true;
		else if (strcmp(word, "rw") == 0)
			c->ro = false;
	}
}

/* Every line of /modules/load is a module file, its parameters after a space. */
static void
load_modules(void)
{
	static char list[16384];
	char path[512], *save = NULL, *line, *args;
	int fd;

	if (slurp("/modules/load", list, sizeof(list)) < 0)
		return; /* a kernel that has everything built in */
	for (line = strtok_r(list, "\n", &save); line;
		line = strtok_r(NULL, "\n", &save)) {
		args = strchr(line, ' ');
		if (args)
			*args++ = '\0';
		snprintf(path, sizeof(path), "/modules/%s", line);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0) {
			say("module %s is listed but not in the initramfs: %s", line,
				strerror(errno));
			continue;
		}
		if (syscall(SYS_finit_module, fd, args ? args : "", 0) < 0 &&
			errno != EEXIST)
			say("module %s did not load: %s", line, strerror(errno));
		close(fd);
	}
}

/* Every line of /modules/devices is a node that udev would make: its name below /dev, c or b, the
 * device's numbers and the mode. To open one loads the module behind it. */
static void
make_devices(void)
{
	static char list[16384];
	char name[128], path[160], type, *save = NULL, *line, *slash;
	unsigned major, minor, mode;

	if (slurp("/modules/devices", list, sizeof(list)) < 0)
		return; /* a root without modules */
	for (line = strtok_r(list, "\n", &save); line;
		line = strtok_r(NULL, "\n", &save)) {
		if (sscanf(line, "%127s %c %u %u %o", name, &type, &major, &minor,
			    &mode) != 5)
			continue;
		snprintf(path, sizeof(path), "/dev/%s", name);
		slash = strrchr(path, '/');
		*slash = '\0';
		mkdir(path, 0755);
		*slash = '/';
		if (mknod(path, type == 'b' ? S_IFBLK : S_IFCHR, makedev(major, minor)) <
				0 &&
			errno != EEXIST)
			say("%s cannot be made: %s", path, strerror(errno));
		else if (chmod(path, mode) < 0) /* the kernel's own, too */
			say("the mode of %s cannot be set: %s", path, strerror(errno));
	}
}

/* virtio disks are probed while their driver's module loads, so that the first look
 * mostly succeeds. */
static void
wait_for_root(const struct cmdline *c)
{
	struct stat st;
	int waited_ms;

	if (c->root[0] != '/')
		die("root=%s is no device path; say root=/dev/vda or the like", c->root);
	for (waited_ms = 0; stat(c->root, &st) < 0; waited_ms++) {
		if (waited_ms == ROOT_WAIT_MS)
			die("root disk %s did not appear in %d s: is a disk attached, and is its driver's module in /modules/load?",
				c->root, ROOT_WAIT_MS / 1000);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	if (!S_ISBLK(st.st_mode))
		die("root=%s is no block device", c->root);
}

/* The size in blocks that the ext4 on disk has now; 0 if there is none that we
 * understand. Documentation/filesystems/ext4/super.rst: the superblock lies at byte 1024,
 * little-endian as we are. */
static uint64_t
ext4_blocks(int disk, uint32_t *ret_block_size)
{
	uint8_t super[1024];
	uint32_t lo, hi, shift, incompat;
	uint16_t magic;

	if (pread(disk, super, sizeof(super), 1024) != (ssize_t)sizeof(super))
		return 0;
	memcpy(&lo, super + 0x04, sizeof(lo));
	memcpy(&shift, super + 0x18, sizeof(shift));
	memcpy(&magic, super + 0x38, sizeof(magic));
	memcpy(&incompat, super + 0x60, sizeof(incompat));
	memcpy(&hi, super + 0x150, sizeof(hi));
	if (magic != 0xef53 || shift > 6)
		return 0;
	*ret_block_size = 1024u << shift;
	return incompat & 0x80 ? (uint64_t)hi << 32 | lo : lo; /* 0x80: 64bit */
}

/* The image's file system has one size; the disk is as large as its owner wanted. */
static void
grow_root(const struct cmdline *c)
{
	uint64_t disk_bytes = 0, has, wants;
	uint32_t block_size = 0;
	int disk, dir;

	disk = open(c->root, O_RDONLY | O_CLOEXEC);
	if (disk < 0 || ioctl(disk, BLKGETSIZE64, &disk_bytes) < 0) {
		say("the size of %s cannot be read, its file system stays as it is: %s",
			c->root, strerror(errno));
		if (disk >= 0)
			close(disk);
		return;
	}
	has = ext4_blocks(disk, &block_size);
	close(disk);
	if (!has)
		return;
	wants = disk_bytes / block_size;
	if (wants <= has)
		return;
	dir = open(NEW_ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0 || ioctl(dir, EXT4_IOC_RESIZE_FS, &wants) < 0)
		say("the file system on %s could not grow from %llu to %llu blocks: %s",
			c->root, (unsigned long long)has, (unsigned long long)wants,
			strerror(errno));
	if (dir >= 0)
		close(dir);
}

/* Frees the initramfs's memory. Stays on the file system it starts on. */
static void
empty_folder(int dirfd, dev_t dev)
{
	struct dirent *d;
	struct stat st;
	DIR *dir = fdopendir(dirfd);
	int fd;

	if (!dir) {
		close(dirfd);
		return;
	}
	while ((d = readdir(dir))) {
		if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
			continue;
		if (fstatat(dirfd, d->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
			st.st_dev != dev)
			continue;
		if (S_ISDIR(st.st_mode)) {
			fd = openat(dirfd, d->d_name,
				O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (fd >= 0)
				empty_folder(fd, dev);
			unlinkat(dirfd, d->d_name, AT_REMOVEDIR);
		} else {
			unlinkat(dirfd, d->d_name, 0);
		}
	}
	closedir(dir);
}

/* A kernel-made file system follows the root if the root has a folder for it. */
static void
carry_mount(const char *from)
{
	char to[64];

	snprintf(to, sizeof(to), NEW_ROOT "%s", from);
	if (mount(from, to, NULL, MS_MOVE, NULL) < 0)
		umount2(from, MNT_DETACH);
}

static void
switch_root(void)
{
	struct stat st;
	int old, console;

	old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	carry_mount("/dev");
	carry_mount("/proc");
	if (chdir(NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 ||
		chroot(".") < 0 || chdir("/") < 0)
		die("the root disk cannot become the root: %s", strerror(errno));
	if (old >= 0 && fstat(old, &st) == 0)
		empty_folder(old, st.st_dev);
	console = open("/dev/console", O_RDWR | O_NOCTTY);
	if (console >= 0) {
		dup2(console, 0);
		dup2(console, 1);
		dup2(console, 2);
		if (console > 2)
			close(console);
	}
}

int
main(int argc, char **argv)
{
	struct cmdline c = {.ro = false};
	char *no_arguments[2];

	if (getpid() != 1) {
		fprintf(stderr,
			"pando-init: I am the first process of a virtual machine, not a command\n");
		return 2;
	}
	mkdir("/dev", 0755);
	mkdir("/proc", 0555);
	mkdir(NEW_ROOT, 0700);
	if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755") <
			0 &&
		errno != EBUSY)
		die("devtmpfs cannot be mounted: %s", strerror(errno));
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL) < 0)
		say("proc cannot be mounted, so the command line's root= is not seen: %s",
			strerror(errno));
	read_cmdline(&c);
	load_modules();
	make_devices();
	wait_for_root(&c);
	if (mount(c.root, NEW_ROOT, c.fstype, MS_NOATIME | (c.ro ? MS_RDONLY : 0),
		    c.flags) < 0)
		die("%s cannot be mounted as %s (%s): %s", c.root, c.fstype,
			c.ro ? "read-only" : "writable", strerror(errno));
	if (!c.ro && strcmp(c.fstype, "ext4") == 0)
		grow_root(&c);
	switch_root();
	if (argc < 1) {
		no_arguments[0] = NULL;
		no_arguments[1] = NULL;
		argv = no_arguments;
	}
	argv[0] = (char *)(uintptr_t)c.init;
	execv(c.init, argv);
	die("%s cannot be started: %s", c.init, strerror(errno));
}
