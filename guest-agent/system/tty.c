#include "guest-agent/system/tty.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "guest-agent/system/guest_machine.h"

#define TERM_USUAL "xterm-256color"

int
tty_open(uint16_t rows, uint16_t cols, uid_t owner, int *ret_master, int *ret_slave,
	struct err *e)
{
	cleanup_close int master = -1, slave = -1;
	struct winsize ws = {.ws_row = rows, .ws_col = cols};
	int unlock = 0;

	master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (master < 0)
		return err_sys(e, -errno, "/dev/ptmx");
	if (ioctl(master, TIOCSPTLCK, &unlock))
		return err_sys(e, -errno, "unlocking a terminal");
	slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return err_sys(e, -errno, "opening a terminal");
	if (owner != (uid_t)-1 &&
		(fchown(slave, owner, (gid_t)-1) || fchmod(slave, 0620)))
		return err_sys(
			e, -errno, "giving the terminal to user %u", (unsigned)owner);
	if ((rows || cols) && ioctl(master, TIOCSWINSZ, &ws))
		return err_sys(e, -errno, "the terminal's size");
	*ret_master = TAKE_FD(master);
	*ret_slave = TAKE_FD(slave);
	return 0;
}

static bool
is_known(const char *name)
{
	/* terminfo(5), in the order of ncurses as distributions build it. */
	static const char *const folders[] = {
		"/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo"};
	char path[PATH_MAX], file[320];
	size_t len = strlen(name);

	if (!len || len > 255 || strchr(name, '/') || name[0] == '.')
		return false;
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		snprintf(file, sizeof(file), "%s/%c/%s", folders[i], name[0], name);
		if (!access(machine_path(path, file), F_OK))
			return true;
	}
	return false;
}

const char *
tty_term(const char *name)
{
	if (name && is_known(name))
		return name;
	return name && !is_known(TERM_USUAL) ? name : TERM_USUAL;
}
