#include "host/testvm/machine_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

/* Room on the host's disk to make a machine: the copy of its image and something to work
 * with. */
#define FREE_MIN_MIB 4096

extern char **environ;

/* Runs a program and takes one line of its stdout; its stderr is ours. */
static int
read_program(char *const argv[], char *line, size_t cap, int *ret_status, struct err *e)
{
	posix_spawn_file_actions_t actions;
	cleanup_close int in = -1, out = -1;
	int pipe_fds[2], r, status;
	size_t len = 0;
	ssize_t n;
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return err_sys(e, -errno, "pipe");
	in = pipe_fds[0];
	out = pipe_fds[1];
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, out, 1);
	r = posix_spawn(&pid, argv[0], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (r)
		return err_sys(e, -r, "%.200s", argv[0]);
	cleanup_close_fn(&out);
	out = -1;
	while (len + 1 < cap && (n = io_read(in, line + len, cap - 1 - len)) > 0)
		len += (size_t)n;
	line[len] = '\0';
	line[strcspn(line, "\n")] = '\0';
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return err_sys(e, -errno, "waiting for %.200s", argv[0]);
	*ret_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return 0;
}

/* Where the image lies; pando-golden makes it when it has to, and tells the user about
 * it. if_made: only if it need not; *folder is "" otherwise. */
static int
find_image(bool if_made, char folder[PATHS_MAX], struct err *e)
{
	char program[PATHS_MAX], verb[] = "machine", option[] = "--if-made";
	char *argv[] = {program, verb, if_made ? option : NULL, NULL};
	int status = 0,
	    r = paths_program("libexec/pando/pando-golden", program, sizeof(program), e);

	if (r == 0 && access(program, X_OK) < 0)
		return err_sys(e, -errno, "%.200s", program);
	if (r == 0)
		r = read_program(argv, folder, PATHS_MAX, &status, e);
	if (r < 0)
		return r;
	if (status != 0)
		return err_set(e, -EIO,
			"the machine's image could not be made (status %d): see above",
			status);
	if (folder[0] != '/' && !(if_made && !folder[0]))
		return err_set(e, -EPROTO,
			"pando-golden did not say where the machine's image is");
	return 0;
}

/* Data without its holes. */
static int
copy_sparse(int from, int to, off_t size)
{
	cleanup_free char *buf = malloc(1 << 20);
	off_t at = 0, end;
	int r;

	if (!buf)
		return -ENOMEM;
	if (ioctl(to, FICLONE, from) == 0)
		return 0;
	while (at < size) {
		at = lseek(from, at, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? 0 : -errno;
		end = lseek(from, at, SEEK_HOLE);
		if (end < 0)
			return -errno;
		while (at < end) {
			size_t n = end - at < (1 << 20) ? (size_t)(end - at) : 1 << 20;

			r = io_pread_full(from, buf, n, (uint64_t)at);
			if (r == 0)
				r = io_pwrite_full(to, buf, n, (uint64_t)at);
			if (r < 0)
				return r;
			at += (off_t)n;
		}
	}
	return 0;
}

/* size_mib 0: as large as the original. */
static int
copy_file(const char *folder, const char *name, const struct machine *m, const char *as,
	uint64_t size_mib, struct err *e)
{
	cleanup_close int from = -1, to = -1;
	char path[PATHS_MAX], place[PATHS_MAX], temp[PATHS_MAX];
	struct stat st;
	off_t size;
	int r = paths_format(path, sizeof(path), e, "%s/%s", folder, name);

	if (r == 0)
		r = machine_path(m, as, place, e);
	if (r == 0)
		r = paths_format(temp, sizeof(temp), e, "%s.new", place);
	if (r < 0)
		return r;
	from = open(path, O_RDONLY | O_CLOEXEC);
	if (from < 0 || fstat(from, &st) < 0)
		return err_sys(e, -errno, "%.200s", path);
	to = open(temp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (to < 0)
		return err_sys(e, -errno, "%.200s", temp);
	r = copy_sparse(from, to, st.st_size);
	size = (off_t)(size_mib << 20);
	if (r == 0 && ftruncate(to, size > st.st_size ? size : st.st_size) < 0)
		r = -errno;
	if (r == 0 && fsync(to) < 0)
		r = -errno;
	if (r == 0 && rename(temp, place) < 0)
		r = -errno;
	if (r < 0) {
		unlink(temp);
		return err_sys(e, r, "copying %.150s to %.150s", path, place);
	}
	return 0;
}

/* The private half in `name`, the public one as a line of text in `name`.pub. */
static int
make_key(const struct machine *m, const char *name, struct err *e)
{
	char path[PATHS_MAX], public_name[32], public[SSH_PUBLIC_MAX],
		line[SSH_PUBLIC_MAX + 32];
	int r = machine_path(m, name, path, e);

	if (r == 0)
		r = ssh_make_key(path, public, e);
	if (r < 0)
		return r;
	snprintf(public_name, sizeof(public_name), "%s.pub", name);
	snprintf(line, sizeof(line), "ssh-ed25519 %s\n", public);
	return machine_write(m, public_name, line, e);
}

int
machine_make(
	struct machine *m, uint64_t disk_mib, machine_say *say, void *ctx, struct err *e)
{
	char folder[PATHS_MAX], copied[PATHS_MAX];
	struct statvfs vfs;
	int r;

	say(ctx, "looking for the machine's image");
	r = find_image(false, folder, e);
	if (r < 0)
		return r;
	if (statvfs(m->home, &vfs) == 0 &&
		(uint64_t)vfs.f_bavail * vfs.f_frsize >> 20 < FREE_MIN_MIB)
		return err_set(e, -ENOSPC,
			"the disk of %.200s has %llu MiB free and a machine needs %u: free some, or point PANDO_MACHINE_HOME elsewhere",
			m->home,
			(unsigned long long)((uint64_t)vfs.f_bavail * vfs.f_frsize >> 20),
			FREE_MIN_MIB);
	say(ctx, "making the machine's disk");
	snprintf(m->image, sizeof(m->image), "%.120s", strrchr(folder, '/') + 1);
	r = machine_path(m, "copied", copied, e);
	if (r == 0)
		r = io_remove_tree(copied, e);
	if (r == 0)
		r = make_key(m, "host_key", e);
	if (r == 0)
		r = make_key(m, "client_key", e);
	if (r == 0)
		r = copy_file(folder, "kernel", m, "kernel", 0, e);
	if (r == 0)
		r = copy_file(folder, "initrd", m, "initrd", 0, e);
	if (r == 0)
		r = copy_file(folder, "image.json", m, "image.json", 0, e);
	if (r == 0)
		r = machine_write(m, "image", m->image, e);
	return r < 0 ? r : copy_file(folder, "rootfs.ext4", m, "disk.raw", disk_mib, e);
}

void
machine_look_for_newer(const struct machine *m, machine_say *say, void *ctx)
{
	char folder[PATHS_MAX], note[256];

	if (find_image(true, folder, NULL) < 0 || !folder[0] ||
		strcmp(strrchr(folder, '/') + 1, m->image) == 0)
		return;
	snprintf(note, sizeof(note),
		"the machine is of image %.60s, and there is %.60s: `pando machine delete` makes room for it",
		m->image, strrchr(folder, '/') + 1);
	say(ctx, note);
}
