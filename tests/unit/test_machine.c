/*
 * The test machine without a machine: its arithmetic, its words, which folders are
 * copied; and the copying itself, with tar and rm as they are, into a folder that stands
 * for the machine.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/testvm/machine.h"
#include "host/testvm/machine_copy.h"

static char root[64]; /* of one test: src/ is the host's folder, there/ the machine's */
static bool machine_refuses;
static unsigned commands;
static struct machine machine;

/* --- stands for the connection: the shell runs here, in the folder that stands for the
 * machine --------- */

int __wrap_ssh_link_run(
	struct ssh_link *l, const struct ssh_command *c, int *ret_status, struct err *e);

static void
replace(char *text, size_t cap, const char *what, const char *by)
{
	char *at = strstr(text, what), rest[8192];

	assert_non_null(at);
	snprintf(rest, sizeof(rest), "%s", at + strlen(what));
	snprintf(at, cap - (size_t)(at - text), "%s%s", by, rest);
}

int
__wrap_ssh_link_run(
	struct ssh_link *l, const struct ssh_command *c, int *ret_status, struct err *e)
{
	char text[8192], from[128], to[128];
	int status;
	pid_t pid;

	(void)l;
	(void)e;
	commands++;
	if (machine_refuses) {
		assert_int_equal(dprintf(c->err_fd, "no room\nat all\n"), 15);
		*ret_status = 2;
		return 0;
	}
	snprintf(text, sizeof(text), "%s", c->text);
	snprintf(from, sizeof(from), "'%s/src'", root);
	snprintf(to, sizeof(to), "'%s/there'", root);
	replace(text, sizeof(text), from, to);
	if (strstr(text, "/run/pando-machine/transfer")) {
		snprintf(to, sizeof(to), "%s/home/transfer", root);
		replace(text, sizeof(text), "/run/pando-machine/transfer", to);
	}
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (c->in_fd >= 0)
			dup2(c->in_fd, 0);
		execl("/bin/sh", "sh", "-c", text, NULL);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	*ret_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
	return 0;
}

/* --- folders
 * ----------------------------------------------------------------------------------------
 */

static int
setup(void **state)
{
	char path[128];

	(void)state;
	machine_refuses = false;
	commands = 0;
	snprintf(root, sizeof(root), "/tmp/pando-machine.XXXXXX");
	assert_non_null(mkdtemp(root));
	snprintf(path, sizeof(path), "%s/src", root);
	assert_int_equal(mkdir(path, 0755), 0);
	snprintf(path, sizeof(path), "%s/home/transfer", root);
	assert_int_equal(io_mkdir_p(path, 0700, NULL), 0);
	memset(&machine, 0, sizeof(machine));
	snprintf(machine.home, sizeof(machine.home), "%s/home", root);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	return io_remove_tree(root, NULL);
}

static const char *
at(const char *relative)
{
	static char path[4][256];
	static unsigned n;

	snprintf(path[n = (n + 1) % 4], sizeof(path[0]), "%s/%s", root, relative);
	return path[n];
}

static void
put(const char *relative, const char *text, mode_t mode)
{
	char path[256];

	snprintf(path, sizeof(path), "%s", at(relative));
	*strrchr(path, '/') = '\0';
	assert_int_equal(io_mkdir_p(path, 0755, NULL), 0);
	assert_int_equal(
		io_write_file_atomic(at(relative), text, strlen(text), mode, NULL), 0);
}

static void
holds_text(const char *relative, const char *text)
{
	cleanup_free char *is = NULL;
	size_t len;

	assert_int_equal(io_read_file(at(relative), 65536, &is, &len, NULL), 0);
	assert_string_equal(is, text);
}

static void
is_absent(const char *relative)
{
	struct stat st;

	assert_int_equal(lstat(at(relative), &st), -1);
}

static struct machine_copy_stats
copy(const struct machine_folder *how)
{
	struct machine_folder f = how ? *how : (struct machine_folder){0};
	struct machine_copy_stats stats = {0};
	struct err e = {0};

	f.path = at("src");
	if (machine_copy(&machine, NULL, &f, &stats, &e) < 0)
		fail_msg("%s", e.msg);
	return stats;
}

static void
a_folder_arrives_whole_with_modes_and_links(void **state)
{
	struct stat st;
	char target[16] = "";

	(void)state;
	put("src/a", "1", 0600);
	put("src/bin/tool", "2", 0755);
	put("src/odd 'name'\n\\x/b", "3", 0644);
	assert_int_equal(symlink("bin/tool", at("src/link")), 0);
	assert_int_equal(mkdir(at("src/empty"), 0750), 0);
	copy(NULL);
	holds_text("there/a", "1");
	holds_text("there/odd 'name'\n\\x/b", "3");
	assert_int_equal(stat(at("there/bin/tool"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0755);
	assert_int_equal(stat(at("there/empty"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0750);
	assert_int_equal(readlink(at("there/link"), target, sizeof(target)), 8);
	is_absent("home/transfer/archive.tar");
}

static void
nothing_is_sent_when_nothing_has_changed(void **state)
{
	struct machine_copy_stats s;

	(void)state;
	put("src/a", "1", 0644);
	copy(NULL);
	commands = 0;
	s = copy(NULL);
	assert_int_equal(s.sent + s.removed, 0);
	assert_int_equal(commands, 0);
}

static void
only_what_changed_is_sent_and_what_is_gone_is_removed(void **state)
{
	struct machine_copy_stats s;

	(void)state;
	put("src/a", "1", 0644);
	put("src/b", "1", 0644);
	put("src/gone/c", "1", 0644);
	copy(NULL);
	put("src/b", "2", 0644); /* as long as before, and within the same second */
	assert_int_equal(io_remove_tree(at("src/gone"), NULL), 0);
	s = copy(NULL);
	assert_int_equal(s.sent, 1);
	assert_int_equal(s.removed, 2);
	holds_text("there/b", "2");
	holds_text("there/a", "1");
	is_absent("there/gone");
}

static void
a_file_is_replaced_and_not_written_over(void **state)
{
	cleanup_close int fd = -1;
	char byte = 0;

	(void)state;
	put("src/program", "1", 0755);
	copy(NULL);
	fd = open(at("there/program"), O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	put("src/program", "2", 0755);
	copy(NULL);
	holds_text("there/program", "2");
	assert_int_equal(pread(fd, &byte, 1, 0), 1);
	assert_int_equal(byte, '1');
}

static void
what_the_machine_wrote_stays(void **state)
{
	(void)state;
	put("src/a", "1", 0644);
	copy(NULL);
	put("there/own", "kept", 0644);
	put("src/b", "1", 0644);
	copy(NULL);
	holds_text("there/own", "kept");
}

static void
a_file_becomes_a_folder_and_a_folder_a_file(void **state)
{
	(void)state;
	put("src/a", "1", 0644);
	put("src/b/c", "1", 0644);
	copy(NULL);
	assert_int_equal(unlink(at("src/a")), 0);
	put("src/a/d", "2", 0644);
	assert_int_equal(io_remove_tree(at("src/b"), NULL), 0);
	put("src/b", "2", 0644);
	copy(NULL);
	holds_text("there/a/d", "2");
	holds_text("there/b", "2");
}

static void
a_copy_that_failed_is_made_again(void **state)
{
	struct machine_folder f = {.path = at("src")};
	struct machine_copy_stats stats;
	struct err e = {0};

	(void)state;
	put("src/a", "1", 0644);
	put("src/b", "1", 0644);
	copy(NULL);
	put("src/a", "2", 0644);
	assert_int_equal(unlink(at("src/b")), 0);
	machine_refuses = true;
	f.path = at("src");
	assert_int_equal(machine_copy(&machine, NULL, &f, &stats, &e), -EIO);
	assert_non_null(strstr(e.msg, "no room"));
	assert_null(strstr(e.msg, "at all"));
	machine_refuses = false;
	copy(NULL);
	holds_text("there/a", "2");
	is_absent("there/b");
}

static void
histories_caches_and_what_is_named_are_left_out(void **state)
{
	const char *const without[] = {"build/obj", NULL};

	(void)state;
	put("src/.git/config", "1", 0644);
	put("src/sub/.git/config", "1", 0644);
	put("src/cache/CACHEDIR.TAG", "1", 0644);
	put("src/cache/big", "1", 0644);
	put("src/build/obj/a.o", "1", 0644);
	put("src/build/bin/a", "1", 0755);
	assert_int_equal(mkfifo(at("src/fifo"), 0600), 0);
	copy(&(struct machine_folder){.without = without});
	holds_text("there/build/bin/a", "1");
	is_absent("there/.git");
	is_absent("there/sub/.git");
	is_absent("there/cache");
	is_absent("there/build/obj");
	is_absent("there/fifo");
}

static void
of_an_installation_only_what_is_named_is_copied(void **state)
{
	const char *const only[] = {"bin/pando", "libexec/pando", "share/absent", NULL};

	(void)state;
	put("src/bin/pando", "1", 0755);
	put("src/bin/other", "1", 0755);
	put("src/libexec/pando/deep/x", "1", 0755);
	copy(&(struct machine_folder){.only = only});
	holds_text("there/bin/pando", "1");
	holds_text("there/libexec/pando/deep/x", "1");
	is_absent("there/bin/other");
	is_absent("there/share");
}

static void
images_that_names_lead_to_are_copied_and_kept(void **state)
{
	cleanup_free const char *const *names = NULL;

	(void)state;
	put("src/t-1/kernel", "1", 0444);
	put("src/t-2/kernel", "2", 0444);
	assert_int_equal(symlink("t-1", at("src/default")), 0);
	assert_int_equal(symlink("t-1", at("src/t")), 0);
	assert_int_equal(symlink("/etc", at("src/elsewhere")), 0);
	assert_int_equal(machine_image_names(at("src"), &names, NULL), 0);
	assert_string_equal(names[0], "default");
	assert_string_equal(names[1], "t");
	assert_string_equal(names[2], "t-1");
	assert_null(names[3]);
	copy(&(struct machine_folder){.only = names, .keep = true});
	holds_text("there/default/kernel", "1");
	is_absent("there/t-2");
	assert_int_equal(unlink(at("src/default")), 0);
	assert_int_equal(symlink("t-2", at("src/default")), 0);
	free((void *)(uintptr_t)names);
	names = NULL;
	assert_int_equal(machine_image_names(at("src"), &names, NULL), 0);
	copy(&(struct machine_folder){.only = names, .keep = true});
	holds_text("there/default/kernel", "2");
	holds_text("there/t-1/kernel", "1"); /* a VM may still read from it */
}

static void
no_images_are_no_names(void **state)
{
	cleanup_free const char *const *names = NULL;

	(void)state;
	assert_int_equal(machine_image_names(at("nowhere"), &names, NULL), 0);
	assert_null(names[0]);
}

static void
a_list_of_another_folder_or_a_damaged_one_is_not_believed(void **state)
{
	char list[256] = "";
	cleanup_closedir DIR *dir = NULL;
	struct dirent *d;

	(void)state;
	put("src/a", "1", 0644);
	copy(NULL);
	dir = opendir(at("home/copied"));
	assert_non_null(dir);
	while ((d = readdir(dir)))
		if (d->d_name[0] != '.')
			snprintf(list, sizeof(list), "home/copied/%.200s", d->d_name);
	assert_true(list[0] != '\0');
	put(list, "/another/folder", 0600);
	assert_int_equal(copy(NULL).sent, 1);
	put(list, "", 0600);
	assert_int_equal(copy(NULL).sent, 1);
}

/* --- which folder
 * -------------------------------------------------------------------------------------
 */

static void
a_project_is_found_from_below(void **state)
{
	char dst[PATHS_MAX];

	(void)state;
	put("src/pando.toml", "", 0644);
	put("src/a/b/c", "", 0644);
	assert_int_equal(machine_project(at("src/a/b"), "/home/me", dst, NULL), 1);
	assert_string_equal(dst, at("src"));
	/* in none: the folder itself */
	assert_int_equal(machine_project(at("home"), "/home/me", dst, NULL), 1);
	assert_string_equal(dst, at("home"));
}

static void
homes_and_the_systems_folders_are_never_copied(void **state)
{
	static const char *const never[] = {"/", "/usr", "/usr/lib", "/etc", "/etc/ssh",
		"/tmp", "/var", "/home", "/home/me", "/proc/1", "/dev", "/usr/local",
		"/var/lib/pando/vms"};
	char dst[PATHS_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++)
		assert_int_equal(machine_project(never[i], "/home/me", dst, NULL), 0);
	/* a home under version control makes no project of what is in it */
	put("src/.git/config", "", 0644);
	put("src/work/file", "", 0644);
	assert_int_equal(machine_project(at("src/work"), at("src"), dst, NULL), 1);
	assert_string_equal(dst, at("src/work"));
	assert_int_equal(machine_project(at("src"), at("src"), dst, NULL), 0);
	assert_int_equal(machine_project("/usr/src/linux", "/home/me", dst, NULL), 1);
}

/* --- words and numbers
 * ------------------------------------------------------------------------------- */

static void
a_quoted_word_is_read_back_by_the_shell(void **state)
{
	static const char *const words[] = {"", "a", "a b", "it's", "''",
		"$HOME `x` \\ \"q\" *", "-n", "line\nline", "tab\t!", "\xc3\xa4\xff"};

	(void)state;
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		cleanup_free char *text = NULL, *command = NULL;
		char read_back[64] = "";
		FILE *f;
		size_t n;

		assert_int_equal(ssh_quote(&text, words[i]), 0);
		assert_true(asprintf(&command, "printf '[%%s]' %s", text) > 0);
		f = popen(command, "r");
		assert_non_null(f);
		n = fread(read_back, 1, sizeof(read_back) - 1, f);
		assert_int_equal(pclose(f), 0);
		assert_int_equal(n, strlen(words[i]) + 2);
		assert_memory_equal(read_back + 1, words[i], strlen(words[i]));
	}
}

static void
quoted_words_have_a_blank_between_and_a_limit(void **state)
{
	cleanup_free char *text = NULL, *big = malloc(SSH_COMMAND_MAX + 1);

	(void)state;
	assert_non_null(big);
	memset(big, 'x', SSH_COMMAND_MAX);
	big[SSH_COMMAND_MAX] = '\0';
	assert_int_equal(ssh_quote(&text, "a"), 0);
	assert_int_equal(ssh_quote(&text, ""), 0);
	assert_string_equal(text, "'a' ''");
	assert_int_equal(ssh_quote(&text, big), -E2BIG);
	assert_string_equal(text, "'a' ''");
}

static void
memory_is_what_was_asked_or_what_the_host_can_spare(void **state)
{
	struct err e = {0};
	uint64_t mib;

	(void)state;
	assert_int_equal(machine_memory(0, 64000, &mib, &e), 0);
	assert_int_equal(mib, MACHINE_MEM_MIB);
	assert_int_equal(machine_memory(0, 8000, &mib, &e), 0);
	assert_int_equal(mib, 7000);
	assert_int_equal(machine_memory(2048, 8000, &mib, &e), 0);
	assert_int_equal(mib, 2048);
	assert_int_equal(machine_memory(8000, 8000, &mib, &e), -ENOMEM);
	assert_non_null(strstr(e.msg, "--mem-size"));
	assert_int_equal(machine_memory(0, 800, &mib, &e), -ENOMEM);
	assert_int_equal(machine_memory(100, 64000, &mib, &e), -ERANGE);
}

static void
commas_in_a_path_do_not_end_a_value_of_qemus(void **state)
{
	char value[16];
	struct err e = {0};

	(void)state;
	assert_int_equal(machine_qemu_value(value, sizeof(value), "/a,b=c", &e), 0);
	assert_string_equal(value, "/a,,b=c");
	assert_int_equal(machine_qemu_value(value, 6, ",,,,", &e), -ENAMETOOLONG);
}

static void
a_start_time_is_found_behind_any_name(void **state)
{
	const char *rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
	char text[256];
	uint64_t ticks;

	(void)state;
	snprintf(text, sizeof(text), "12 (a) b) (c%s", ")");
	assert_int_equal(machine_start_ticks(text, &ticks), -EINVAL);
	snprintf(text, sizeof(text), "12 (a) b) (c)%s", rest);
	assert_int_equal(machine_start_ticks(text, &ticks), 0);
	assert_int_equal(ticks, 4711);
	assert_int_equal(machine_start_ticks("", &ticks), -EINVAL);
	assert_int_equal(
		machine_start_ticks(
			"1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 ", &ticks),
		-EINVAL);
}

static void
a_process_that_has_the_number_now_is_not_the_machine(void **state)
{
	struct machine m;
	char text[256];
	struct err e = {0};

	(void)state;
	assert_int_equal(setenv("PANDO_MACHINE_HOME", at("home"), 1), 0);
	assert_int_equal(machine_look(&m, &e), 0);
	assert_int_equal(m.state, MACHINE_ABSENT);
	put("home/disk.raw", "", 0600);
	put("home/image", "an-image\n", 0600);
	snprintf(text, sizeof(text),
		"{\"pid\":%d,\"start_ticks\":1,\"port\":22,\"mem_mib\":1,\"cpus\":1,"
		"\"started_ms\":1}",
		(int)getpid());
	put("home/running.json", text, 0600);
	assert_int_equal(machine_look(&m, &e), 0);
	assert_int_equal(m.state, MACHINE_STOPPED);
	assert_string_equal(m.image, "an-image");
	/* and it is not signalled either: we are still here afterwards */
	assert_int_equal(setenv("HOME", "/", 1), 0);
	put("home/running.json", "{\"pid\":", 0600);
	assert_true(machine_look(&m, &e) < 0);
	assert_non_null(strstr(e.msg, "running.json"));
	assert_int_equal(setenv("PANDO_MACHINE_HOME", "relative", 1), 0);
	assert_int_equal(machine_look(&m, &e), -EINVAL);
	unsetenv("PANDO_MACHINE_HOME");
}

static void
says_nothing(void *ctx, const char *sentence)
{
	(void)ctx;
	(void)sentence;
}

static void
deleting_a_stopped_machine_leaves_its_folder_empty_but_for_the_lock(void **state)
{
	cleanup_closedir DIR *dir = NULL;
	struct err e = {0};
	struct dirent *d;
	char text[256];

	(void)state;
	assert_int_equal(setenv("PANDO_MACHINE_HOME", at("home"), 1), 0);
	put("home/disk.raw", "", 0600);
	put("home/image", "an-image\n", 0600);
	put("home/copied/x", "", 0600);
	snprintf(text, sizeof(text),
		"{\"pid\":%d,\"start_ticks\":1,\"port\":22,\"mem_mib\":1,\"cpus\":1,"
		"\"started_ms\":1}",
		(int)getpid());
	put("home/running.json", text, 0600);
	assert_int_equal(machine_delete(says_nothing, NULL, &e), 0);
	dir = opendir(at("home"));
	assert_non_null(dir);
	while ((d = readdir(dir)))
		if (d->d_name[0] != '.')
			assert_string_equal(d->d_name, "lock");
	unsetenv("PANDO_MACHINE_HOME");
}

static void
a_made_key_is_private_and_its_public_half_one_word(void **state)
{
	char public[SSH_PUBLIC_MAX];
	struct err e = {0};
	struct stat st;

	(void)state;
	assert_int_equal(ssh_make_key(at("key"), public, &e), 0);
	assert_int_equal(stat(at("key"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_memory_equal(public, "AAAAC3NzaC1lZDI1NTE5", 20);
	assert_int_equal(strcspn(public, " \n"), strlen(public));
	assert_true(ssh_make_key(at("no/such/folder/key"), public, &e) < 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_folder_arrives_whole_with_modes_and_links),
		T(nothing_is_sent_when_nothing_has_changed),
		T(only_what_changed_is_sent_and_what_is_gone_is_removed),
		T(a_file_is_replaced_and_not_written_over),
		T(what_the_machine_wrote_stays),
		T(a_file_becomes_a_folder_and_a_folder_a_file),
		T(a_copy_that_failed_is_made_again),
		T(histories_caches_and_what_is_named_are_left_out),
		T(of_an_installation_only_what_is_named_is_copied),
		T(images_that_names_lead_to_are_copied_and_kept),
		T(no_images_are_no_names),
		T(a_list_of_another_folder_or_a_damaged_one_is_not_believed),
		T(a_project_is_found_from_below),
		T(homes_and_the_systems_folders_are_never_copied),
		T(a_quoted_word_is_read_back_by_the_shell),
		T(quoted_words_have_a_blank_between_and_a_limit),
		T(memory_is_what_was_asked_or_what_the_host_can_spare),
		T(commas_in_a_path_do_not_end_a_value_of_qemus),
		T(a_start_time_is_found_behind_any_name),
		T(a_process_that_has_the_number_now_is_not_the_machine),
		T(deleting_a_stopped_machine_leaves_its_folder_empty_but_for_the_lock),
		T(a_made_key_is_private_and_its_public_half_one_word),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
