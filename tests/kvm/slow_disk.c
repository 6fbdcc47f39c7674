#include "tests/kvm/slow_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"

#define UNDER_MIB 96
#define UPPER_MIB 64

static int command(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int
command(const char *fmt, ...)
{
	char line[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	return system(line);
}

int
slow_disk_make(struct slow_disk *s, const char *folder, struct err *e)
{
	*s = (struct slow_disk){.under_fd = -1};
	if (geteuid() != 0)
		return err_set(e, -ENOTSUP, "only root may mount a file system");
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return err_set(e, -ENOTSUP, "no mount namespace on this host");
	snprintf(s->under, sizeof(s->under), "%.100s/under", folder);
	snprintf(s->folder, sizeof(s->folder), "%.100s/slow", folder);
	if (mkdir(s->under, 0700) < 0 || mkdir(s->folder, 0700) < 0)
		return err_sys(e, -errno, "%s", folder);
	if (command("exec >/dev/null 2>&1; truncate -s %dM %s.img && mkfs.ext4 -q %s.img && "
		    "mount -o loop %s.img %s && truncate -s %dM %s/img && "
		    "mkfs.ext4 -q %s/img && mount -o loop %s/img %s",
		    UNDER_MIB, s->under, s->under, s->under, s->under, UPPER_MIB, s->under,
		    s->under, s->under, s->folder)) {
		slow_disk_done(s);
		return err_set(e, -ENOTSUP, "this host mounts no loop devices");
	}
	s->under_fd = open(s->under, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return s->under_fd < 0 ? err_sys(e, -errno, "%s", s->under) : 0;
}

int
slow_disk_hold(struct slow_disk *s, struct err *e)
{
	if (ioctl(s->under_fd, FIFREEZE, 0) < 0)
		return err_sys(e, -errno, "FIFREEZE");
	s->held = true;
	return 0;
}

void
slow_disk_release(struct slow_disk *s)
{
	if (s->held)
		ioctl(s->under_fd, FITHAW, 0);
	s->held = false;
}

void
slow_disk_done(struct slow_disk *s)
{
	if (!s->folder[0])
		return;
	slow_disk_release(s);
	cleanup_close_fn(&s->under_fd);
	umount2(s->folder, MNT_DETACH);
	umount2(s->under, MNT_DETACH);
	s->folder[0] = 0;
}
