/*
 * Hellos, for real: pando-agent runs on a Unix socket with a folder in the place of "/",
 * and is told who it is through host/agent/agent_handshake.h. Clock, host name and random numbers
 * of the machine under the test stay as they are.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <libssh/libssh.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/agent_frame.h"
#include "guest-agent/identity/watch.h"
#include "common/json.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_handshake.h"
#include "tests/unit/agent_help.h"

static char root[64], sock[96];
static pid_t agent_pid;
static struct err e;
static struct agent_ack ack;

static const char *
at(const char *path)
{
	static char full[4][256];
	static unsigned i;

	i = (i + 1) % 4;
	snprintf(full[i], sizeof(full[i]), "%s%s", root, path);
	return full[i];
}

static void
put(const char *path, const char *text, mode_t mode)
{
	cleanup_free char *folder = strdup(at(path));
	FILE *f;

	assert_int_equal(io_mkdir_p(dirname(folder), 0755, NULL), 0);
	f = fopen(at(path), "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	assert_int_equal(chmod(at(path), mode), 0);
}

static const char *
text_of(const char *path)
{
	static char *kept[4];
	static unsigned i;

	i = (i + 1) % 4;
	free(kept[i]);
	if (io_read_file(at(path), 1 << 20, &kept[i], NULL, NULL))
		kept[i] = strdup("(none)");
	return kept[i];
}

static bool
there(const char *path)
{
	return access(at(path), F_OK) == 0;
}

static void
log_apart(void)
{
	int log = open(at("/agent.log"), O_CREAT | O_WRONLY | O_APPEND, 0600);

	if (log >= 0 && !getenv("VERBOSE"))
		dup2(log, 2);
}

static bool
enter(void)
{
	log_apart();
	return true;
}

/* /etc of the agent, and nobody else's, is on a file system of 64 KiB. */
static bool
enter_limits(void)
{
	log_apart();
	return !unshare(CLONE_NEWNS) &&
	       !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
	       !mount("pando-test", at("/etc"), "tmpfs", 0, "size=64k");
}

static void
start_agent(void)
{
	agent_pid = agent_help_start(sock, root, enter);
}

static void
end_agent(void)
{
	agent_help_end(&agent_pid, SIGTERM);
}

static int
setup(void **state)
{
	(void)state;
	strcpy(root, "/tmp/pando-handshake-test-XXXXXX");
	assert_non_null(mkdtemp(root));
	snprintf(sock, sizeof(sock), "%s/sock", root);
	mkdir(at("/etc"), 0755);
	put("/usr/bin/systemctl", "#!/bin/sh\necho \"$@\" >>${0%/usr/*}/systemctl.log\n",
		0755);
	start_agent();
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	end_agent();
	return io_remove_tree(root, NULL);
}

static struct env env;

/* n: the generation. Names follow from the id. */
static int
handshake_as(const char *id, uint8_t n, bool parent, uint32_t hook_ms, int timeout_ms)
{
	static const char *const labels[] = {"role", "test \"1\"", NULL};
	uint8_t generation[16], entropy[AGENT_ENTROPY_MAX];
	char name[32];
	struct agent_handshake h = {
		.id = id,
		.name = name,
		.host_name = name,
		.generation = generation,
		.entropy = entropy,
		.parent = parent,
		.env = &env,
		.labels = labels,
		.hook_ms = hook_ms,
	};

	snprintf(name, sizeof(name), "vm-%.4s", id);
	memset(generation, n, sizeof(generation));
	memset(entropy, 0xa5, sizeof(entropy));
	e = (struct err){0};
	return agent_handshake(sock, &h, timeout_ms, NULL, NULL, &ack, &e);
}

static int
handshake(const char *id, uint8_t n)
{
	return handshake_as(id, n, false, 0, 20000);
}

#define A "aaaaaaaaaaaa"
#define B "bbbbbbbbbbbb"

static void
a_handshake_makes_a_machine_somebody_of_its_own(void **state)
{
	static const char *const steps[] = {"random", "clock", "host-name", "machine-id",
		"boot-id", "seeds", "environment", "ssh-keys", "identity", "hooks",
		"units", "agents"};
	char machine_id[64], boot_id[64], key[AGENT_HOST_KEY_MAX];
	struct stat st;

	(void)state;
	put("/etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\told old.lan\n::1 x\n", 0644);
	put("/etc/pando/authorized_keys", "the parent's", 0644);
	put("/etc/ssh/ssh_host_rsa_key", "the parent's", 0600);
	put("/etc/ssh/ssh_host_rsa_key.pub", "the parent's", 0644);
	put("/etc/ssh/ssh_config", "stays", 0644);
	put("/var/lib/systemd/random-seed", "the parent's", 0600);
	put("/etc/environment", "OLD=1\n", 0644);
	assert_int_equal(env_set(&env, "NEW=it's new", &e), 0);
	assert_int_equal(handshake(A, 1), 0);
	assert_int_equal(ack.n_steps, 12);
	for (unsigned i = 0; i < 12; i++)
		assert_string_equal(ack.steps[i].name, steps[i]);
	assert_true(agent_is_host_key(ack.host_key));
	assert_string_equal(text_of("/etc/hostname"), "vm-aaaa\n");
	assert_string_equal(text_of("/etc/hosts"),
		"127.0.0.1\tlocalhost\n127.0.1.1\tvm-aaaa\n::1 x\n");
	/* The host said no key of its own: none comes in. */
	assert_false(there("/etc/pando/authorized_keys"));
	assert_false(there("/etc/ssh/ssh_host_rsa_key"));
	assert_false(there("/etc/ssh/ssh_host_rsa_key.pub"));
	assert_string_equal(text_of("/etc/ssh/ssh_config"), "stays");
	assert_false(there("/var/lib/systemd/random-seed"));
	/* Replaced, not merged. */
	assert_string_equal(text_of("/etc/environment"), "NEW=\"it's new\"\n");
	assert_int_equal(stat(at("/etc/ssh/ssh_host_ed25519_key"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(strncmp(text_of("/etc/ssh/ssh_host_ed25519_key.pub"),
				 ack.host_key, strlen(ack.host_key)),
		0);
	assert_int_equal(strspn(text_of("/etc/machine-id"), "0123456789abcdef"), 32);
	assert_string_equal(
		text_of("/run/pando/generation"), "01010101010101010101010101010101\n");
	assert_non_null(strstr(text_of("/run/pando/identity"), "\"test \\\"1\\\"\""));
	/* Nothing half-written is left. */
	assert_int_equal(
		system("find /tmp/pando-handshake-test-* -name '.pando*' | grep ."), 256);

	snprintf(machine_id, sizeof(machine_id), "%s", text_of("/etc/machine-id"));
	snprintf(key, sizeof(key), "%s", ack.host_key);
	/* It is forked: all of it is another one's. */
	env_done(&env);
	assert_int_equal(stat(at("/run/pando/generation"), &st), 0);
	assert_int_equal(handshake(B, 2), 0);
	assert_string_not_equal(text_of("/etc/machine-id"), machine_id);
	assert_string_not_equal(ack.host_key, key);
	assert_int_equal(strlen(text_of("/run/pando/boot_id")), 37);
	snprintf(boot_id, sizeof(boot_id), "%s", text_of("/run/pando/boot_id"));
	assert_string_equal(text_of("/etc/environment"), "");
	assert_non_null(strstr(text_of("/run/pando/identity"), "\"old_id\":\"" A "\""));
	/* Whoever has mapped it sees the new one. */
	struct stat now;

	assert_int_equal(stat(at("/run/pando/generation"), &now), 0);
	assert_int_equal(now.st_ino, st.st_ino);
	assert_int_equal(stat(at("/run/pando/boot_id"), &st), 0);
	assert_int_equal(handshake("cccccccccccc", 3), 0);
	assert_int_equal(stat(at("/run/pando/boot_id"), &now), 0);
	assert_int_equal(now.st_ino, st.st_ino);
	assert_string_not_equal(text_of("/run/pando/boot_id"), boot_id);
}

static void
a_machines_own_name_resolves_whatever_its_hosts_file_was(void **state)
{
	static const struct {
		const char *was, *becomes;
	} files[] = {
		/* None, and an empty one. */
		{NULL, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
		       "127.0.1.1\tvm-aaaa\n"},
		{"", "127.0.1.1\tvm-aaaa\n"},
		/* Without a line of its own, and without an end of the last line. */
		{"127.0.0.1 localhost\n", "127.0.0.1 localhost\n127.0.1.1\tvm-aaaa\n"},
		{"127.0.0.1 localhost", "127.0.0.1 localhost\n127.0.1.1\tvm-aaaa\n"},
		/* Neither is it: a comment, a longer name, an address. */
		{"#127.0.1.1 vm-aaaa\n10.0.0.1 vm-aaaa.lan # vm-aaaa\n127.0.1.10 x\n",
			"#127.0.1.1 vm-aaaa\n10.0.0.1 vm-aaaa.lan # vm-aaaa\n127.0.1.10 x\n"
			"127.0.1.1\tvm-aaaa\n"},
		/* Its user has said which address it has. */
		{"10.0.0.1\tother VM-aaaa\n", "10.0.0.1\tother VM-aaaa\n"},
		{"127.0.1.1\told\n::1 x\n", "127.0.1.1\tvm-aaaa\n::1 x\n"},
	};

	(void)state;
	for (uint8_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		if (files[i].was)
			put("/etc/hosts", files[i].was, 0644);
		assert_int_equal(handshake(A, (uint8_t)(i + 1)), 0);
		assert_string_equal(text_of("/etc/hosts"), files[i].becomes);
	}
	/* A branch has its own name there, and not its parent's. */
	assert_int_equal(handshake(B, 100), 0);
	assert_string_equal(text_of("/etc/hosts"), "127.0.1.1\tvm-bbbb\n::1 x\n");
}

/* What a command of the agent has in a variable. */
static const char *
variable(const char *name, const char *given)
{
	static char said[200];
	const char *const argv[] = {"printenv", name, NULL};
	const char *const own[] = {given, NULL};
	struct agent_exec_req q = {.argv = argv, .env = given ? own : NULL};
	cleanup_agent_captured struct agent_captured c = {0};

	assert_int_equal(
		agent_exec_capture(sock, &q, NULL, 0, sizeof(said) - 1, &c, &e), 0);
	snprintf(said, sizeof(said), "%.*s", (int)strcspn(c.out, "\n"), c.out);
	return said;
}

static void
node_is_told_to_load_what_its_image_has_for_it(void **state)
{
#define OURS "--require=/usr/lib/pando/node-random.cjs"
	(void)state;
	assert_int_equal(handshake(A, 1), 0);
	assert_string_equal(variable("NODE_OPTIONS", NULL), "");
	assert_string_equal(variable("NODE_OPTIONS", "NODE_OPTIONS=--x"), "--x");
	put("/usr/lib/pando/node-random.cjs", "", 0644);
	assert_string_equal(variable("NODE_OPTIONS", NULL), OURS);
	assert_string_equal(variable("NODE_OPTIONS", "NODE_OPTIONS="), OURS);
	assert_int_equal(env_set(&env, "NODE_OPTIONS=--max-old-space-size=100", &e), 0);
	assert_int_equal(handshake(A, 2), 0);
	env_done(&env);
	assert_string_equal(
		variable("NODE_OPTIONS", NULL), OURS " --max-old-space-size=100");
	assert_string_equal(
		variable("NODE_OPTIONS", "NODE_OPTIONS=--y " OURS), "--y " OURS);
}

static void
text_is_utf8_where_nobody_says_otherwise(void **state)
{
	(void)state;
	put("/etc/pando/fork.d/hook", "#!/bin/sh\necho $LANG >${0%/etc/*}/hook.log\n",
		0755);
	assert_int_equal(handshake(A, 1), 0);
	assert_string_equal(variable("LANG", NULL), "C.UTF-8");
	assert_string_equal(text_of("/hook.log"), "C.UTF-8\n");
	/* The machine's own setting, its environment, the command's. */
	put("/etc/locale.conf", "LANG=en_GB.UTF-8\n", 0644);
	assert_string_equal(variable("LANG", NULL), "en_GB.UTF-8");
	put("/etc/default/locale", "LANG=\"de_DE.UTF-8\"\n", 0644);
	assert_string_equal(variable("LANG", NULL), "de_DE.UTF-8");
	assert_int_equal(env_set(&env, "LANG=C", &e), 0);
	assert_int_equal(handshake(A, 2), 0);
	env_done(&env);
	assert_string_equal(variable("LANG", NULL), "C");
	assert_string_equal(variable("LANG", "LANG=cs_CZ.UTF-8"), "cs_CZ.UTF-8");
}

/* Who holds that lock of the coding agent "a"; 0: nobody. */
static pid_t
lock_of(const char *what)
{
	struct flock f = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char path[96];
	cleanup_close int fd = -1;

	snprintf(path, sizeof(path), "/var/lib/pando/rpc/a/lock.%s", what);
	fd = open(at(path), O_RDWR | O_CLOEXEC);
	return fd >= 0 && !fcntl(fd, F_GETLK, &f) && f.l_type != F_UNLCK ? f.l_pid : 0;
}

/* Its supervisor, its shim and the program, as a power cut does. */
static void
end_kept(void)
{
	pid_t program = atoi(text_of("/var/lib/pando/rpc/a/run/program")), pid;

	while ((pid = lock_of("keeper")) > 0 || (pid = lock_of("holder")) > 0) {
		kill(pid, SIGKILL);
		usleep(1000);
	}
	if (program > 1)
		kill(program, SIGKILL);
}

/* Once in each boot, and with the environment of the identity handshake. */
static void
kept_coding_agents_are_started_with_the_machine(void **state)
{
	char line[300];

	(void)state;
	snprintf(line, sizeof(line),
		"command = [\"sh\", \"-c\", \"echo $KEY >>%s/started; exec cat\"]\ntmux = false\nstop_s = 0\n",
		root);
	put("/etc/pando/rpc.d/a.conf", line, 0644);
	put("/etc/pando/rpc.d/never.conf", line, 0644);
	put("/var/lib/pando/rpc/a/wanted", "", 0600);
	mkdir(at("/tmp"), 0755);
	assert_int_equal(env_set(&env, "KEY=new", &e), 0);
	assert_int_equal(handshake(A, 1), 0);
	for (int i = 0; i < 500 && !there("/started"); i++)
		usleep(10000);
	assert_string_equal(text_of("/started"), "new\n");
	assert_false(there("/var/lib/pando/rpc/never"));
	/* As a branch it has it already; as it has after the agent's own restart. */
	assert_int_equal(handshake(B, 2), 0);
	end_agent();
	start_agent();
	assert_int_equal(handshake(A, 3), 0);
	usleep(300000);
	assert_string_equal(text_of("/started"), "new\n");
	/* The machine is started anew: all of its processes are gone, and /run. */
	end_kept();
	end_agent();
	assert_int_equal(io_remove_tree(at("/run/pando"), NULL), 0);
	start_agent();
	assert_int_equal(env_set(&env, "KEY=newer", &e), 0);
	assert_int_equal(handshake(A, 4), 0);
	for (int i = 0; i < 500 && strcmp(text_of("/started"), "new\nnewer\n") != 0; i++)
		usleep(10000);
	assert_string_equal(text_of("/started"), "new\nnewer\n");
	end_kept();
	env_done(&env);
}

static void
ssh_reads_the_host_key(void **state)
{
	ssh_key private = NULL, public = NULL;
	char *b64 = NULL;

	(void)state;
	assert_int_equal(handshake(A, 1), 0);
	assert_int_equal(ssh_pki_import_privkey_file(at("/etc/ssh/ssh_host_ed25519_key"),
				 NULL, NULL, NULL, &private),
		SSH_OK);
	assert_int_equal(ssh_key_type(private), SSH_KEYTYPE_ED25519);
	assert_int_equal(ssh_pki_export_privkey_to_pubkey(private, &public), SSH_OK);
	assert_int_equal(ssh_pki_export_pubkey_base64(public, &b64), SSH_OK);
	assert_string_equal(b64, ack.host_key + strlen("ssh-ed25519 "));
	ssh_string_free_char(b64);
	ssh_key_free(public);
	ssh_key_free(private);
}

static void
a_machine_that_boots_again_stays_who_it_was(void **state)
{
	char machine_id[64], key[AGENT_HOST_KEY_MAX];

	(void)state;
	assert_int_equal(handshake(A, 1), 0);
	snprintf(machine_id, sizeof(machine_id), "%s", text_of("/etc/machine-id"));
	snprintf(key, sizeof(key), "%s", ack.host_key);
	end_agent();
	assert_int_equal(io_remove_tree(at("/run"), NULL), 0);
	start_agent();
	assert_int_equal(handshake(A, 2), 0);
	assert_string_equal(text_of("/etc/machine-id"), machine_id);
	assert_string_equal(ack.host_key, key);
	/* What was damaged is made anew. */
	put("/etc/machine-id", "uninitialized\n", 0444);
	unlink(at("/etc/ssh/ssh_host_ed25519_key"));
	assert_int_equal(handshake(A, 3), 0);
	assert_string_not_equal(text_of("/etc/machine-id"), "uninitialized\n");
	assert_string_not_equal(ack.host_key, key);
}

static void
a_parent_is_reseeded_and_stays_who_it_is(void **state)
{
	char machine_id[64], key[512];

	(void)state;
	put("/etc/pando/fork.d/hook", "#!/bin/sh\necho x >>${0%/etc/*}/hook.log\n", 0755);
	assert_int_equal(handshake(A, 1), 0);
	snprintf(machine_id, sizeof(machine_id), "%s", text_of("/etc/machine-id"));
	snprintf(key, sizeof(key), "%s", text_of("/etc/ssh/ssh_host_ed25519_key"));
	put("/etc/environment", "MINE=1\n", 0644);
	assert_int_equal(handshake_as(A, 2, true, 0, 5000), 0);
	assert_int_equal(ack.n_steps, 3);
	assert_string_equal(ack.steps[0].name, "random");
	assert_string_equal(ack.host_key, "");
	assert_string_equal(text_of("/etc/machine-id"), machine_id);
	assert_string_equal(text_of("/etc/ssh/ssh_host_ed25519_key"), key);
	assert_string_equal(text_of("/etc/environment"), "MINE=1\n");
	assert_string_equal(text_of("/hook.log"), "x\n");
	assert_string_equal(
		text_of("/run/pando/generation"), "02020202020202020202020202020202\n");
	assert_non_null(strstr(text_of("/run/pando/identity"), "\"role\""));
	/* Somebody else's. */
	assert_int_equal(handshake_as(B, 3, true, 0, 5000), -ESTALE);
	assert_non_null(strstr(e.msg, "this machine is " A ", not " B));
}

static void
a_generation_left_behind_is_refused_and_a_repeated_one_not_redone(void **state)
{
	char key[AGENT_HOST_KEY_MAX];

	(void)state;
	put("/etc/pando/fork.d/hook", "#!/bin/sh\necho x >>${0%/etc/*}/hook.log\n", 0755);
	assert_int_equal(handshake(A, 1), 0);
	snprintf(key, sizeof(key), "%s", ack.host_key);
	assert_int_equal(handshake(A, 1), 0);
	assert_string_equal(ack.host_key, key);
	assert_string_equal(text_of("/hook.log"), "x\n");
	assert_int_equal(handshake(B, 2), 0);
	assert_int_equal(handshake(A, 1), -ESTALE);
	assert_non_null(strstr(e.msg, "left behind"));
	assert_int_equal(handshake(B, 1), -ESTALE);
	assert_string_equal(text_of("/etc/hostname"), "vm-bbbb\n");
	assert_int_equal(handshake(B, 0), -EINVAL);
	assert_non_null(strstr(e.msg, "\"generation\""));
	/* An agent that was started again knows which it has. */
	end_agent();
	start_agent();
	assert_int_equal(handshake(A, 3), 0);
	assert_non_null(strstr(text_of("/run/pando/identity"),
		"\"old_generation\":\"02020202020202020202020202020202\""));
}

static void
only_the_host_says_who_a_machine_is(void **state)
{
	(void)state;
	end_agent();
	agent_pid = agent_help_start(sock, NULL, enter);
	assert_int_equal(handshake(A, 1), -EPERM);
	assert_non_null(strstr(e.msg, "only the host"));
	assert_false(there("/etc/hostname"));
}

static void
hooks_run_by_name_and_know_who_it_was(void **state)
{
	(void)state;
	put("/etc/pando/fork.d/20-b", "#!/bin/sh\necho b $PANDO_ID >>${0%/etc/*}/log\n",
		0755);
	put("/etc/pando/fork.d/10-a",
		"#!/bin/sh\n"
		"echo a $PANDO_OLD_ID $PANDO_OLD_GENERATION $PANDO_OLD_NAME "
		"$PANDO_GENERATION "
		"$PANDO_NAME $PANDO_HOST_NAME $SECRET $PWD >>${0%/etc/*}/log\n",
		0755);
	put("/etc/pando/fork.d/no-exec", "#!/bin/sh\necho no >>${0%/etc/*}/log\n", 0644);
	put("/etc/pando/fork.d/.hidden", "#!/bin/sh\necho no >>${0%/etc/*}/log\n", 0755);
	put("/etc/pando/fork.d/editor~", "#!/bin/sh\necho no >>${0%/etc/*}/log\n", 0755);
	mkdir(at("/etc/pando/fork.d/folder"), 0755);
	assert_int_equal(env_set(&env, "SECRET=s3", &e), 0);
	assert_int_equal(handshake(A, 1), 0);
	unlink(at("/log"));
	assert_int_equal(handshake(B, 2), 0);
	env_done(&env);
	assert_string_equal(text_of("/log"),
		"a " A " 01010101010101010101010101010101 vm-aaaa "
		"02020202020202020202020202020202 vm-bbbb vm-bbbb s3 /\n"
		"b " B "\n");
}

static unsigned
rss_kib(void)
{
	char path[64], *line, *text = NULL;
	unsigned kib = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", agent_pid);
	assert_int_equal(io_read_file(path, 65536, &text, NULL, NULL), 0);
	line = strstr(text, "VmRSS:");
	assert_non_null(line);
	assert_int_equal(sscanf(line, "VmRSS: %u", &kib), 1);
	free(text);
	return kib;
}

static void
a_hook_that_fails_fails_the_handshake_with_what_it_said(void **state)
{
	(void)state;
	put("/etc/pando/fork.d/bad",
		"#!/bin/sh\necho reseeding; printf 'no \\033[31mdice\\n' >&2; exit 3\n",
		0755);
	assert_int_equal(handshake(A, 1), -EIO);
	assert_string_equal(e.msg, "in the guest: hooks: /etc/pando/fork.d/bad ended "
				   "with status 3; it said: "
				   "reseeding\\x0ano \\x1b[31mdice");
	put("/etc/pando/fork.d/bad", "#!/no/such/interpreter\n", 0755);
	assert_int_equal(handshake(A, 1), -ENOENT);
	assert_non_null(strstr(e.msg, "/etc/pando/fork.d/bad cannot be started"));
	put("/etc/pando/fork.d/bad", "#!/bin/sh\nkill -9 $$\n", 0755);
	assert_int_equal(handshake(A, 1), -EIO);
	assert_non_null(strstr(e.msg, "signal 9"));
	/* Said again it is done anew. */
	put("/etc/pando/fork.d/bad", "#!/bin/sh\n", 0755);
	assert_int_equal(handshake(A, 1), 0);
}

static void
a_hook_that_hangs_is_ended_with_all_it_started(void **state)
{
	uint64_t began = io_now_ns();
	int pid = 0;

	(void)state;
	put("/etc/pando/fork.d/slow",
		"#!/bin/sh\nsleep 1000 &\necho $! >${0%/etc/*}/pid\nsleep 1000\n", 0755);
	assert_int_equal(handshake_as(A, 1, false, 300, 20000), -ETIMEDOUT);
	assert_non_null(strstr(e.msg, "hooks: /etc/pando/fork.d/slow did not end within "
				      "300 ms"));
	assert_true(io_now_ns() - began < 10000000000ull);
	assert_int_equal(sscanf(text_of("/pid"), "%d", &pid), 1);
	for (int i = 0; i < 200 && kill(pid, 0) == 0; i++)
		usleep(10000);
	assert_int_equal(kill(pid, 0), -1);
}

static void
a_hook_that_writes_megabytes_usage_nothing(void **state)
{
	(void)state;
	put("/etc/pando/fork.d/loud",
		"#!/bin/sh\nhead -c 30000000 /dev/zero\nhead -c 3000000 /dev/zero >&2\n",
		0755);
	assert_int_equal(handshake(A, 1), 0);
#ifndef PANDO_SAN
	assert_true(rss_kib() < 2048);
#endif
	/* One that leaves somebody behind with its output does not hold the identity handshake. */
	put("/etc/pando/fork.d/loud", "#!/bin/sh\nsleep 3 &\necho $! >${0%/etc/*}/pid\n",
		0755);
	uint64_t began = io_now_ns();
	int pid = 0;

	assert_int_equal(handshake(A, 2), 0);
	assert_true(io_now_ns() - began < 2500000000ull);
	assert_int_equal(sscanf(text_of("/pid"), "%d", &pid), 1);
	kill(pid, SIGKILL);
}

static void
the_host_learns_which_step_hangs_and_may_ask_again(void **state)
{
	(void)state;
	put("/etc/pando/fork.d/slow",
		"#!/bin/sh\necho x >>${0%/etc/*}/log\nuntil [ -e ${0%/etc/*}/go ]; do "
		"sleep "
		"0.02; done\n",
		0755);
	assert_int_equal(handshake_as(A, 1, false, 0, 300), -ETIMEDOUT);
	assert_non_null(strstr(e.msg, "it is in the step \"hooks\""));
	put("/go", "", 0644);
	assert_int_equal(handshake(A, 1), 0);
	/* It went on; nothing was done twice. */
	assert_string_equal(text_of("/log"), "x\n");
}

/*
 * An agent of this test's own: it names steps at a pace, and then acknowledges or not.
 */

struct paced {
	const char *const *steps; /* ends with NULL */
	unsigned pause_ms; /* before each of them, and before the acknowledgement */
	unsigned rounds;   /* so often all of them */
	bool acknowledges;
	int listener;
	char path[128];
	pthread_t thread;
};

static bool
paced_frame(int fd, uint8_t type, const char *text)
{
	const struct agent_frame_hdr h = agent_frame_hdr(type, 0, (uint32_t)strlen(text));
	char whole[512];

	memcpy(whole, &h, sizeof(h));
	memcpy(whole + sizeof(h), text, h.len);
	return send(fd, whole, sizeof(h) + h.len, MSG_NOSIGNAL) > 0;
}

static void
paced_serve(const struct paced *x, int fd)
{
	static const char ok[] = "OK 1\n", yes[] = "{\"ok\":true,\"id\":\"e1\"}\n";
	char c;

	for (int lines = 0; lines < 2; lines += c == '\n') {
		if (io_read(fd, &c, 1) != 1)
			return;
		if (c == '\n' && !lines)
			(void)send(fd, ok, strlen(ok), MSG_NOSIGNAL);
	}
	(void)send(fd, yes, strlen(yes), MSG_NOSIGNAL);
	for (unsigned i = 0; i < x->rounds; i++)
		for (const char *const *step = x->steps; *step; step++) {
			usleep(x->pause_ms * 1000);
			if (!paced_frame(fd, AGENT_STEP, *step))
				return;
		}
	usleep(x->pause_ms * 1000);
	if (x->acknowledges)
		paced_frame(fd, AGENT_ACK,
			"{\"id\":\"" A
			"\",\"generation\":\"01010101010101010101010101010101\","
			"\"kind\":\"new\",\"host_key\":null,\"total_us\":1,\"steps\":[]}");
	else
		(void)!read(fd, &c, 1); /* until the host hangs up */
}

static void *
paced_main(void *arg)
{
	const struct paced *x = arg;
	int fd;

	while ((fd = accept4(x->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		paced_serve(x, fd);
		close(fd);
	}
	return NULL;
}

static char steps_seen[256];

static void
note_step(void *ctx, const char *step)
{
	size_t n = strlen(steps_seen);

	(void)ctx;
	snprintf(steps_seen + n, sizeof(steps_seen) - n, "%s ", step);
}

/* A handshake with that agent: its result, and how long it took. */
static int
paced_handshake(struct paced *x, int timeout_ms, uint64_t *ret_ms)
{
	uint8_t generation[16], entropy[AGENT_ENTROPY_MAX] = {0};
	struct agent_handshake h = {
		.id = A,
		.name = "a",
		.host_name = "a",
		.generation = generation,
		.entropy = entropy,
		.on_step = note_step,
	};
	uint64_t began = io_now_ns();
	int r;

	memset(generation, 1, sizeof(generation));
	steps_seen[0] = '\0';
	e = (struct err){0};
	snprintf(x->path, sizeof(x->path), "%s/paced.sock", root);
	assert_int_equal(io_unix_listen(x->path, SOCK_STREAM, 4, &x->listener, NULL), 0);
	assert_int_equal(pthread_create(&x->thread, NULL, paced_main, x), 0);
	r = agent_handshake(x->path, &h, timeout_ms, NULL, NULL, &ack, &e);
	*ret_ms = (io_now_ns() - began) / 1000000;
	shutdown(x->listener, SHUT_RDWR);
	pthread_join(x->thread, NULL);
	close(x->listener);
	unlink(x->path);
	return r;
}

static const char *const three_steps[] = {"random", "clock", "hooks", NULL};

static void
a_handshake_that_is_slow_and_goes_on_is_waited_for(void **state)
{
	struct paced x = {
		three_steps, .pause_ms = 600, .rounds = 1, .acknowledges = true};
	uint64_t ms;

	(void)state;
	/* Four times 600 ms, and never 1500 in one step. */
	if (paced_handshake(&x, 1500, &ms) < 0)
		fail_msg("%s", e.msg);
	assert_true(ms >= 2400);
	assert_string_equal(steps_seen, "random clock hooks ");
}

static void
a_handshake_that_stands_still_in_a_step_is_not(void **state)
{
	struct paced x = {three_steps, .pause_ms = 10, .rounds = 1};
	uint64_t ms;

	(void)state;
	assert_int_equal(paced_handshake(&x, 700, &ms), -ETIMEDOUT);
	assert_in_range(ms, 700, 700 * (AGENT_HANDSHAKE_CEILING - 1));
	assert_non_null(strstr(e.msg, "it is in the step \"hooks\", number 3, for "));
}

static void
a_step_that_is_named_again_is_no_progress(void **state)
{
	static const char *const again[] = {"hooks", NULL};
	struct paced x = {again, .pause_ms = 50, .rounds = 1000};
	uint64_t ms;

	(void)state;
	assert_int_equal(paced_handshake(&x, 700, &ms), -ETIMEDOUT);
	assert_in_range(ms, 700, 700 * (AGENT_HANDSHAKE_CEILING - 1));
	assert_string_equal(steps_seen, "hooks ");
}

static void
a_handshake_with_steps_without_end_has_a_ceiling(void **state)
{
	struct paced x = {three_steps, .pause_ms = 50, .rounds = 1000};
	uint64_t ms;

	(void)state;
	assert_int_equal(paced_handshake(&x, 500, &ms), -ETIMEDOUT);
	assert_in_range(
		ms, 500 * AGENT_HANDSHAKE_CEILING, 500 * AGENT_HANDSHAKE_CEILING * 4);
}

static void
no_command_is_started_before_the_end(void **state)
{
	const char *const argv[] = {"true", NULL};
	struct agent_exec_req q = {.argv = argv, .timeout_ms = 300};
	struct agent_captured c = {0};

	(void)state;
	put("/etc/pando/fork.d/slow",
		"#!/bin/sh\nuntil [ -e ${0%/etc/*}/go ]; do sleep 0.02; done\n", 0755);
	assert_int_equal(handshake_as(A, 1, false, 0, 200), -ETIMEDOUT);
	assert_int_equal(
		agent_exec_capture(sock, &q, NULL, 0, 100, &c, &e), -EINPROGRESS);
	assert_non_null(strstr(e.msg, "an identity handshake is under way"));
	assert_int_equal(agent_ping(sock, 1000, NULL, &e), 0);
	put("/go", "", 0644);
	assert_int_equal(handshake(A, 1), 0);
	assert_int_equal(agent_exec_capture(sock, &q, NULL, 0, 100, &c, &e), 0);
	assert_int_equal(agent_exit_status(&c.result), 0);
	agent_captured_done(&c);
}

static void *
lets_go_soon(void *arg)
{
	(void)arg;
	usleep(300000);
	put("/go", "", 0644);
	return NULL;
}

/* A parent that was just told of a branch: who asks in that moment is not turned away. */
static void
a_command_asked_for_too_early_waits_for_the_end(void **state)
{
	const char *const argv[] = {"true", NULL};
	struct agent_exec_req q = {.argv = argv};
	struct agent_captured c = {0};
	pthread_t thread;

	(void)state;
	put("/etc/pando/fork.d/slow",
		"#!/bin/sh\nuntil [ -e ${0%/etc/*}/go ]; do sleep 0.02; done\n", 0755);
	assert_int_equal(handshake_as(A, 1, false, 0, 200), -ETIMEDOUT);
	assert_int_equal(pthread_create(&thread, NULL, lets_go_soon, NULL), 0);
	assert_int_equal(agent_exec_capture(sock, &q, NULL, 0, 100, &c, &e), 0);
	assert_int_equal(agent_exit_status(&c.result), 0);
	agent_captured_done(&c);
	pthread_join(thread, NULL);
}

static void
a_machine_forked_in_its_handshake_is_told_anew(void **state)
{
	(void)state;
	put("/etc/pando/fork.d/slow",
		"#!/bin/sh\necho $PANDO_NAME $PANDO_OLD_NAME >>${0%/etc/*}/log\n"
		"[ $PANDO_NAME = vm-bbbb ] || { echo $$ >${0%/etc/*}/pid; exec sleep "
		"1000; }\n",
		0755);
	assert_int_equal(handshake_as(A, 1, false, 0, 300), -ETIMEDOUT);
	assert_int_equal(handshake(B, 2), 0);
	assert_string_equal(text_of("/log"), "vm-aaaa\nvm-bbbb vm-aaaa\n");
	int pid = 0;

	assert_int_equal(sscanf(text_of("/pid"), "%d", &pid), 1);
	assert_int_equal(kill(pid, 0), -1);
	assert_string_equal(text_of("/etc/hostname"), "vm-bbbb\n");
}

static void
a_full_disk_leaves_the_old_environment_and_says_so(void **state)
{
	char path[300];
	cleanup_free char *old = NULL, *big = malloc(80000);
	int fd;

	(void)state;
	end_agent();
	agent_pid = agent_help_start(sock, root, enter_limits);
	if (!agent_pid) {
		start_agent();
		print_message("no mounts here: not tried\n");
		skip();
	}
	assert_int_equal(env_set(&env, "OLD=1", &e), 0);
	assert_int_equal(handshake(A, 1), 0);
	/* The rest of the file system, but for less than the new environment takes. */
	snprintf(path, sizeof(path), "/proc/%d/root%s", agent_pid, at("/etc/filler"));
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	memset(big, 'x', 80000);
	while (write(fd, big, 4096) > 0)
		;
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(pwrite(fd, big, 16384, 0), 16384);
	close(fd);
	memcpy(big, "N0=", 3);
	big[1000] = 0;
	for (int i = 0; i < 50; i++) {
		char entry[1004];

		snprintf(entry, sizeof(entry), "N%02d%s", i, big + 2);
		assert_int_equal(env_set(&env, entry, &e), 0);
	}
	assert_int_equal(handshake(B, 2), -ENOSPC);
	assert_non_null(strstr(e.msg,
		"in the guest: environment: writing /etc/environment: No space left on device"));
	snprintf(
		path, sizeof(path), "/proc/%d/root%s", agent_pid, at("/etc/environment"));
	assert_int_equal(io_read_file(path, 65536, &old, NULL, NULL), 0);
	assert_string_equal(old, "OLD='1'\n");
	snprintf(path, sizeof(path), "/proc/%d/root%s", agent_pid,
		at("/etc/.pando.environment"));
	assert_int_equal(access(path, F_OK), -1);
	/* With less it goes. */
	env_done(&env);
	assert_int_equal(handshake(B, 2), 0);
}

/* The whole machine on a file system of its own, on which everything is taken in a moment. */
static bool
mount_root(bool ext4)
{
	char command[300];
	bool done;

	end_agent();
	assert_int_equal(unshare(CLONE_NEWNS), 0);
	assert_int_equal(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	snprintf(command, sizeof(command),
		"PATH=$PATH:/sbin:/usr/sbin; cd %s && truncate -s 8M image && mke2fs -q -t ext4 -b 4096 -m 0 -N 200 image && mount -o loop image .",
		root);
	done = ext4 ? !system(command)
		    : !mount("pando-test", root, "tmpfs", 0,
			      "size=2m,nr_inodes=100,mode=755");
	mkdir(at("/etc"), 0755);
	start_agent();
	return done;
}

static void
unmount_root(void)
{
	end_agent();
	assert_int_equal(umount2(root, MNT_DETACH), 0);
	start_agent();
}

/* Till neither a block nor an inode is left. */
static void
fill_disk(void)
{
	char path[32], block[4096] = {1};
	int fd;

	for (unsigned i = 0;; i++) {
		snprintf(path, sizeof(path), "/filler%u", i);
		fd = open(at(path), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
		if (fd < 0)
			break;
		while (write(fd, block, sizeof(block)) == sizeof(block))
			;
		close(fd);
	}
	assert_int_equal(errno, ENOSPC);
	fd = open(at("/filler0"), O_APPEND | O_WRONLY | O_CLOEXEC);
	assert_int_equal(write(fd, block, sizeof(block)), -1);
	assert_int_equal(errno, ENOSPC);
	close(fd);
}

static void
branch_a_full_machine(bool ext4)
{
	char id[13], name[16], key[AGENT_HOST_KEY_MAX] = "", line[200], entry[8192];

	if (geteuid()) {
		print_message("mounts take root: not tried\n");
		skip();
	}
	if (!mount_root(ext4)) {
		print_message("no such file system can be made here: not tried\n");
		skip();
	}
	assert_int_equal(handshake(A, 1), 0);
	fill_disk();
	/* Of one another, and each with an environment that takes more than its parent's. */
	memset(entry, 'x', sizeof(entry));
	memcpy(entry, "BIG=", 4);
	for (unsigned i = 2; i < 12; i++) {
		snprintf(id, sizeof(id), "%012x", i);
		snprintf(name, sizeof(name), "vm-%.4s", id);
		entry[400 * i - 1] = 0;
		assert_int_equal(env_set(&env, entry, &e), 0);
		entry[400 * i - 1] = 'x';
		if (handshake(id, (uint8_t)i))
			fail_msg("branch %u: %s", i, e.msg);
		snprintf(line, sizeof(line), "%s\n", name);
		assert_string_equal(text_of("/etc/hostname"), line);
		assert_non_null(strstr(text_of("/etc/hosts"), name));
		assert_non_null(strstr(text_of("/run/pando/identity"), id));
		/* What PAM would cut off is in the second file. */
		assert_int_equal(strlen(text_of("/etc/environment")) +
					 strlen(text_of("/etc/pando/environment")),
			i < 3 ? 400 * i + 2 + strlen("(none)") : 400 * i + 2);
		assert_int_equal(strlen(text_of("/run/pando/boot_id")), 37);
		assert_string_not_equal(ack.host_key, key);
		strcpy(key, ack.host_key);
		fill_disk();
	}
	/* Without any room: into the blocks that the files have. */
	snprintf(line, sizeof(line),
		"rm %s/var/lib/pando/reserve.* %s/run/pando/reserve.*", root, root);
	assert_int_equal(system(line), 0);
	fill_disk();
	if (handshake(B, 12))
		fail_msg("without a reserve: %s", e.msg);
	assert_string_equal(text_of("/etc/hostname"), "vm-bbbb\n");
	assert_non_null(strstr(text_of("/etc/hosts"), "vm-bbbb"));
	env_done(&env);
	unmount_root();
}

static void
branches_of_a_machine_with_a_full_disk_are_somebody_of_their_own(void **state)
{
	(void)state;
	branch_a_full_machine(true);
}

static void
branches_of_a_machine_whose_run_is_full_too_are_somebody_of_their_own(void **state)
{
	(void)state;
	branch_a_full_machine(false);
}

/* How often systemctl was asked to restart what must see the environment. */
static unsigned
restarts(void)
{
	const char *s = text_of("/systemctl.log");
	unsigned n = 0;

	for (; (s = strchr(s, '\n')); s++)
		n++;
	return n;
}

/* Since when the environment is being changed. */
static uint64_t change_began_ns;

/* A reaction to the change that was made just now, one. Where it took so long that the agent may
 * have seen two (a busy host), two are right as well. */
static void
settles_at_one_more(unsigned *n)
{
	bool may_be_two = io_now_ns() - change_began_ns > WATCH_QUIET_MS * 1000000ull / 2;

	++*n;
	for (int i = 0; i < 3000 && restarts() < *n; i++)
		usleep(10000);
	usleep(250000);
	if (may_be_two && restarts() > *n)
		*n = restarts();
	assert_int_equal(restarts(), *n);
	change_began_ns = io_now_ns();
}

static void
one_reaction_to_each_change_of_the_environment_by_others(void **state)
{
	unsigned n = 0;
	int fd;

	(void)state;
	put("/etc/pando/restart",
		"# what reads it\nmy-agent.service\n\n other@1.service #x\n", 0644);
	assert_int_equal(env_set(&env, "A=1", &e), 0);
	assert_int_equal(handshake(A, 1), 0);
	change_began_ns = io_now_ns();
	env_done(&env);
	/* The identity handshake's own, and no second one for its writing. */
	settles_at_one_more(&n);
	assert_string_equal(text_of("/systemctl.log"),
		"try-restart my-agent.service other@1.service\n");
	/* The same content. */
	put("/etc/environment", "A='1'\n", 0644);
	settles_at_one_more(&n);
	/* By rename. */
	put("/etc/environment.new", "A=2\n", 0644);
	assert_int_equal(rename(at("/etc/environment.new"), at("/etc/environment")), 0);
	settles_at_one_more(&n);
	/* By truncation. */
	assert_int_equal(truncate(at("/etc/environment"), 0), 0);
	settles_at_one_more(&n);
	/* Twice in a millisecond. */
	put("/etc/environment", "A=3\n", 0644);
	put("/etc/environment", "A=4\n", 0644);
	settles_at_one_more(&n);
	/* Deleted and made again. */
	assert_int_equal(unlink(at("/etc/environment")), 0);
	put("/etc/environment", "A=5\n", 0644);
	settles_at_one_more(&n);
	/* Deleted for good. */
	assert_int_equal(unlink(at("/etc/environment")), 0);
	settles_at_one_more(&n);
	/* Others in that folder are nobody's business. */
	put("/etc/environment.d", "A=6\n", 0644);
	put("/etc/passwd", "x\n", 0644);
	usleep(250000);
	assert_int_equal(restarts(), n);
	/* Somebody who never stops does not put it off for ever. */
	fd = open(at("/etc/environment"), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
	for (int i = 0; i < 130; i++) {
		assert_int_equal(write(fd, "\n", 1), 1);
		usleep(10000);
	}
	close(fd);
	assert_true(restarts() > n);
}

static void
units_that_do_not_start_again_are_said(void **state)
{
	(void)state;
	put("/etc/pando/restart", "my-agent.service\n", 0644);
	put("/usr/bin/systemctl",
		"#!/bin/sh\necho 'Job for my-agent.service failed because of a timeout.' >&2\nexit 1\n",
		0755);
	assert_int_equal(handshake(A, 1), -EIO);
	assert_non_null(strstr(e.msg,
		"units: restarting what /etc/pando/restart names ended with status 1; it said: Job for my-agent.service failed"));
	/* The program that knows more is taken where there is one. */
	put("/usr/libexec/pando/pando-units",
		"#!/bin/sh\necho \"my-agent.service is not restarted (failed): exit-code, status 203\" >&2\nexit 1\n",
		0755);
	assert_int_equal(handshake(A, 1), -EIO);
	assert_non_null(strstr(e.msg,
		"it said: my-agent.service is not restarted (failed): exit-code, status 203"));
	put("/usr/libexec/pando/pando-units", "#!/bin/sh\n", 0755);
	assert_int_equal(handshake(A, 1), 0);
	put("/etc/pando/restart", "my-agent.service\n--force\n", 0644);
	assert_int_equal(handshake(A, 2), -EINVAL);
	assert_non_null(strstr(e.msg, "\"--force\" is no unit"));
	put("/etc/pando/restart", "# none\n", 0644);
	assert_int_equal(handshake(A, 3), 0);
}

static void
what_was_given_arrives_exactly(void **state)
{
	static const char *const entries[] = {"LINES=one\ntwo\n", "HASH=a#b",
		"BOTH=it's \"$x\" `y` \\z", "DOLLAR=$HOME", "UTF8=Žluťoučký 🐎",
		"EMPTY=", "BLANKS=  x  ", "INJECT=x'\nLD_PRELOAD='/evil"};

	(void)state;
	for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++)
		assert_int_equal(env_set(&env, entries[i], &e), 0);
	assert_int_equal(handshake(A, 1), 0);
	env_done(&env);
	for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
		const char *value = strchr(entries[i], '=');
		char script[64];
		const char *const argv[] = {"sh", "-c", script, NULL};
		struct agent_exec_req q = {.argv = argv};
		cleanup_agent_captured struct agent_captured c = {0};

		assert_non_null(value);
		strcpy(script, "printf %s \"$");
		strncat(script, entries[i], (size_t)(value - entries[i]));
		strcat(script, "\"");
		assert_int_equal(agent_exec_capture(sock, &q, NULL, 0, 4096, &c, &e), 0);
		assert_string_equal(c.out, value + 1);
	}
	assert_null(strstr(text_of("/etc/environment"), "LD_PRELOAD"));
	/* Nothing of it is left for the next one. */
	assert_int_equal(handshake(B, 2), 0);
	assert_string_equal(text_of("/etc/environment"), "");
	assert_false(there("/etc/pando/environment"));
}

static void
broken_handshakes_are_refused_by_member(void **state)
{
#define REST \
	"\"id\":\"" A "\",\"name\":\"x\",\"host_name\":\"x\",\"kind\":\"new\"," \
	"\"generation\":\"11111111111111111111111111111111\",\"wall_ns\":5," \
	"\"entropy\":" \
	"\"1111111111111111111111111111111111111111111111111111111111111111\""
	static const struct {
		const char *line, *says;
	} bad[] = {
		{"{\"op\":\"hello\"}", "needs \\\"id\\\""},
		{"{\"op\":\"hello\"," REST ",\"x\":1}", "no member \\\"x\\\""},
		{"{\"op\":\"hello\"," REST ",\"env\":{}}", "\\\"env\\\""},
		{"{\"op\":\"hello\"," REST ",\"env\":[\"A\"]}", "\\\"env\\\""},
		{"{\"op\":\"hello\"," REST ",\"env\":[\"A=\\u0007\"]}", "\\\"A\\\""},
		{"{\"op\":\"hello\"," REST ",\"labels\":{\"a\":1}}", "\\\"labels\\\""},
		{"{\"op\":\"hello\"," REST ",\"hook_ms\":0}", "\\\"hook_ms\\\""},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_close int fd = -1;
		char got[1024];
		ssize_t n;

		assert_int_equal(agent_connect(sock, 1000, &fd, &e), 0);
		assert_int_equal(io_write_full(fd, bad[i].line, strlen(bad[i].line)), 0);
		assert_int_equal(io_write_full(fd, "\n", 1), 0);
		n = io_read(fd, got, sizeof(got) - 1);
		assert_true(n > 0);
		got[n] = 0;
		if (!strstr(got, "\"ok\":false") || !strstr(got, bad[i].says))
			fail_msg("%s: %s", bad[i].line, got);
	}
	assert_false(there("/etc/hostname"));
}

static void
the_agent_stays_small(void **state)
{
	(void)state;
	for (uint8_t i = 1; i < 60; i++)
		assert_int_equal(handshake(i % 2 ? A : B, i), 0);
	print_message("after 59 hellos: %u KiB resident, the last one %llu us\n",
		rss_kib(), (unsigned long long)ack.total_us);
#ifndef PANDO_SAN
	assert_true(rss_kib() < 2048);
#endif
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_handshake_makes_a_machine_somebody_of_its_own),
		T(a_machines_own_name_resolves_whatever_its_hosts_file_was),
		T(text_is_utf8_where_nobody_says_otherwise),
		T(node_is_told_to_load_what_its_image_has_for_it),
		T(kept_coding_agents_are_started_with_the_machine),
		T(ssh_reads_the_host_key),
		T(a_machine_that_boots_again_stays_who_it_was),
		T(a_parent_is_reseeded_and_stays_who_it_is),
		T(a_generation_left_behind_is_refused_and_a_repeated_one_not_redone),
		T(only_the_host_says_who_a_machine_is),
		T(hooks_run_by_name_and_know_who_it_was),
		T(a_hook_that_fails_fails_the_handshake_with_what_it_said),
		T(a_hook_that_hangs_is_ended_with_all_it_started),
		T(a_hook_that_writes_megabytes_usage_nothing),
		T(the_host_learns_which_step_hangs_and_may_ask_again),
		T(a_handshake_that_is_slow_and_goes_on_is_waited_for),
		T(a_handshake_that_stands_still_in_a_step_is_not),
		T(a_step_that_is_named_again_is_no_progress),
		T(a_handshake_with_steps_without_end_has_a_ceiling),
		T(no_command_is_started_before_the_end),
		T(a_command_asked_for_too_early_waits_for_the_end),
		T(a_machine_forked_in_its_handshake_is_told_anew),
		T(a_full_disk_leaves_the_old_environment_and_says_so),
		T(branches_of_a_machine_with_a_full_disk_are_somebody_of_their_own),
		T(branches_of_a_machine_whose_run_is_full_too_are_somebody_of_their_own),
		T(one_reaction_to_each_change_of_the_environment_by_others),
		T(units_that_do_not_start_again_are_said),
		T(what_was_given_arrives_exactly),
		T(broken_handshakes_are_refused_by_member),
		T(the_agent_stays_small),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
