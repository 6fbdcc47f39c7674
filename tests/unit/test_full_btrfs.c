/*
 * Files that are mapped, on a btrfs that is full (common/io.h, io_write_in_place()): a VM's console
 * (host/vmmproc/launch.c) and the database (host/vm/db.c). What would be SIGBUS ends the child that
 * does it. As root, with mkfs.btrfs and a loop device.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/wire/console_ring.h"
#include "host/vm/db.h"
#include "host/vmmproc/launch.h"

#define DISK_BYTES (256ll << 20)

enum { FINE, REFUSED, FAILED };

/* With random bytes: they cannot be made smaller. */
static void
fill(const char *folder)
{
	static char bytes[1 << 20];
	char path[96];
	int fd;

	snprintf(path, sizeof(path), "%s/filler", folder);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	for (size_t at = 0; at < sizeof(bytes); at += 256)
		if (getrandom(bytes + at, 256, 0) != 256)
			_exit(FAILED);
	for (int i = 0; i < 2; i++) {
		for (size_t n = sizeof(bytes); n >= 4096; n /= 4)
			while (write(fd, bytes, n) > 0)
				;
		if (errno != ENOSPC)
			_exit(FAILED);
		fsync(fd);
	}
	close(fd);
	sync();
}

static void
write_all(char *p, char value)
{
	for (size_t at = 0; at < CONSOLE_FILE_BYTES; at += 4096)
		((volatile char *)p)[at] = value;
}

static void
print_on_a_console(const char *folder)
{
	struct vm_files files = VM_FILES_INIT;
	char path[96], *p;
	struct err e;

	snprintf(path, sizeof(path), "%s/vms", folder);
	if (mkdir(path, 0700) < 0 || launch_files(folder, "one", &files, &e) < 0)
		_exit(FAILED);
	p = mmap(NULL, CONSOLE_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
		files.console_fd, 0);
	if (p == MAP_FAILED)
		_exit(FAILED);
	write_all(p, 1);
	fsync(files.console_fd);
	fill(folder);
	for (char i = 2; i < 5; i++) {
		write_all(p, i);
		fsync(files.console_fd);
	}
}

static void
read_the_database(const char *folder)
{
	struct chain_link *links;
	struct vm_row row = {.state = VM_RUNNING, .mem_mib = 1, .vcpus = 1, .id = "one"};
	char path[96];
	struct db *db;
	struct err e;
	size_t n;

	snprintf(path, sizeof(path), "%s/state.db", folder);
	if (db_open(path, &db, &e) < 0 || db_insert(db, &row, &e) < 0 ||
		db_chain_append(db, "one", "a", &e) < 0)
		_exit(FAILED);
	fill(folder);
	/* The read notes how far it may look, in what is mapped. */
	if (db_chain(db, "one", &links, &n, &e) < 0 || n != 1)
		_exit(FAILED);
	/* This has no room, and says so. */
	(void)db_chain_append(db, "one", "b", &e);
	if (db_chain(db, "one", &links, &n, &e) < 0)
		_exit(FAILED);
}

/* A file, made as a file system and mounted where only this process sees it. */
static void
mount_btrfs(const char *folder)
{
	char command[256];
	int fd;

	snprintf(command, sizeof(command), "%s/disk", folder);
	fd = open(command, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, DISK_BYTES) < 0 || unshare(CLONE_NEWNS) < 0 ||
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		_exit(REFUSED);
	close(fd);
	snprintf(command, sizeof(command),
		"cd %s && mkdir fs && mkfs.btrfs -q disk && mount -o loop disk fs", folder);
	if (system(command) != 0)
		_exit(REFUSED);
}

static void
on_a_full_btrfs(void (*act)(const char *folder))
{
	char folder[] = "/var/tmp/pando-test-XXXXXX", fs[64];
	int status = -1;
	pid_t pid;

	if (geteuid() != 0 || system("command -v mkfs.btrfs mount >/dev/null") != 0) {
		print_message("# needs root and mkfs.btrfs\n");
		skip();
	}
	assert_non_null(mkdtemp(folder));
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		signal(SIGBUS, SIG_DFL); /* cmocka would go on */
		mount_btrfs(folder);
		snprintf(fs, sizeof(fs), "%s/fs", folder);
		act(fs);
		_exit(FINE);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(io_remove_tree(folder, NULL), 0);
	if (WIFSIGNALED(status))
		fail_msg("it was killed: %s", strsignal(WTERMSIG(status)));
	if (WEXITSTATUS(status) == REFUSED) {
		print_message("# this host mounts no btrfs\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), FINE);
}

static void
a_guest_may_print_where_the_disk_is_full(void **state)
{
	(void)state;
	on_a_full_btrfs(print_on_a_console);
}

static void
the_database_is_read_where_the_disk_is_full(void **state)
{
	(void)state;
	on_a_full_btrfs(read_the_database);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_guest_may_print_where_the_disk_is_full),
		cmocka_unit_test(the_database_is_read_where_the_disk_is_full),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
