/*
 * `pando ssh-config`: what makes stock OpenSSH, and whatever runs it, know our VMs.
 *
 * Host keys: pandod knows which one each VM has acknowledged, and KnownHostsCommand asks
 * it for each connection. No file of them is kept, so that a name that went to another VM
 * is no warning, and the key it had before is refused.
 */
#include <errno.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/paths.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/ssh/ssh_key.h"

#define CONFIG_MAX (1u << 20)

extern const struct verb verb_ssh_config;

static const struct opt options[] = {
	{256, "install", NULL,
		"write it to a file of PANDO_HOME, and a line that includes that at the top of ~/.ssh/config",
		COMPLETE_NOTHING},
	{257, "file", "FILE", "with --install: FILE in the place of ~/.ssh/config",
		COMPLETE_FILE},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* A path as OpenSSH reads it back between quotes of either kind, with % doubled; in a
 * shell's '…' it is the same. */
static int
in_config(char *dst, size_t cap, const char *path, struct err *e)
{
	size_t n = 0;

	for (const char *p = path; *p; p++) {
		if ((unsigned char)*p < ' ' || strchr("'\"\\$", *p))
			return err_set(e, -EINVAL,
				"OpenSSH's configuration cannot hold the path %.200s: it has a quote, \"\\\", \"$\" or a control character in it",
				path);
		if (n + 3 > cap)
			return err_set(e, -ENAMETOOLONG, "%.200s: too long", path);
		dst[n++] = *p;
		if (*p == '%')
			dst[n++] = '%';
	}
	dst[n] = '\0';
	return 0;
}

/* The block, malloc'd. */
static int
compose(const char *home, char **ret, struct err *e)
{
	char program[PATHS_MAX], quoted_program[2 * PATHS_MAX],
		quoted_home[2 * PATHS_MAX];
	int r = paths_program("bin/pando", program, sizeof(program), e);

	if (r == 0)
		r = in_config(quoted_program, sizeof(quoted_program), program, e);
	if (r == 0)
		r = in_config(quoted_home, sizeof(quoted_home), home, e);
	if (r < 0)
		return r;
	if (asprintf(ret,
		    "# The VMs of this PANDO_HOME, as `pando ssh-config` wrote it.\n"
		    "Host *.pando\n"
		    "\tUser root\n"
		    "\tProxyCommand '%s' ssh-proxy --home '%s' --fdpass -- '%%n'\n"
		    "\tProxyUseFdpass yes\n"
		    "\tIdentityFile \"%s/" SSH_KEY_FILE "\"\n"
		    "\tIdentitiesOnly yes\n"
		    "\tPreferredAuthentications publickey\n"
		    "\tKnownHostsCommand '%s' ssh-proxy --home '%s' --known-host %%H -- %%n\n"
		    "\tUserKnownHostsFile /dev/null\n"
		    "\tGlobalKnownHostsFile /dev/null\n"
		    "\tStrictHostKeyChecking yes\n"
		    "\tHostKeyAlgorithms ssh-ed25519\n"
		    "\tUpdateHostKeys no\n"
		    "\tCheckHostIP no\n",
		    quoted_program, quoted_home, quoted_home, quoted_program,
		    quoted_home) < 0)
		return err_sys(e, -ENOMEM, "ssh-config");
	return 0;
}

/* OpenSSH goes by the user database, not by HOME. */
static int
users_config(char dst[static PATHS_MAX], struct err *e)
{
	const struct passwd *pw = getpwuid(getuid());

	return pw ? paths_format(dst, PATHS_MAX, e, "%s/.ssh/config", pw->pw_dir)
		  : err_set(e, -ENOENT,
			    "user %u is not in the user database: --file says which file",
			    (unsigned)getuid());
}

/* The line, before all that is there: below a "Host" it would be that one's. */
static int
include(const char *file, const char *line, bool *ret_done, struct err *e)
{
	cleanup_free char *text = NULL, *all = NULL, *folder = strdup(file);
	cleanup_free char *real = realpath(file, NULL);
	const char *at;
	struct stat st = {.st_mode = 0600};
	int r;

	if (!folder)
		return err_sys(e, -ENOMEM, "%.200s", file);
	if (!real && errno != ENOENT)
		return err_sys(e, -errno, "%.200s", file);
	if (strrchr(folder, '/'))
		*strrchr(folder, '/') = '\0';
	r = real || !strchr(file, '/') ? 0 : io_mkdir_p(folder, 0700, e);
	if (r == 0 && real)
		r = stat(real, &st) < 0 ? err_sys(e, -errno, "%.200s", file)
					: io_read_file(real, CONFIG_MAX, &text, NULL, e);
	if (r < 0)
		return r;
	at = text ? strstr(text, line) : NULL;
	*ret_done = !(at && (at == text || at[-1] == '\n'));
	if (!*ret_done)
		return 0;
	if (asprintf(&all, "%s%s%s", line, text ? "\n" : "", text ? text : "") < 0)
		return err_sys(e, -ENOMEM, "%.200s", file);
	return io_write_file_atomic(
		real ? real : file, all, strlen(all), st.st_mode & 07777, e);
}

static int
install(const char *home, const char *text, const char *file, bool quiet, struct err *e)
{
	char path[PATHS_MAX], quoted[2 * PATHS_MAX], users[PATHS_MAX];
	cleanup_free char *line = NULL;
	bool done = false;
	int r = paths_format(path, sizeof(path), e, "%s/" SSH_KEY_FOLDER, home);

	if (r == 0)
		r = io_mkdir_p(path, 0700, e);
	if (r == 0)
		r = paths_format(
			path, sizeof(path), e, "%s/" SSH_KEY_FOLDER "/config", home);
	if (r == 0)
		r = in_config(quoted, sizeof(quoted), path, e);
	if (r == 0 && !file) {
		r = users_config(users, e);
		file = users;
	}
	if (r == 0)
		r = io_write_file_atomic(path, text, strlen(text), 0600, e);
	if (r == 0 && asprintf(&line, "Include \"%s\"\n", path) < 0)
		r = err_sys(e, -ENOMEM, "ssh-config");
	if (r == 0)
		r = include(file, line, &done, e);
	if (r == 0 && !quiet)
		out_complain(done ? "%s includes %s now" : "%s includes %s already", file,
			path);
	return r;
}

static int
print(const char *text, bool json)
{
	cleanup_json_out struct json_out o = {0};

	if (!json) {
		fputs(text, stdout);
		return EXIT_OK;
	}
	json_out_object(&o, NULL);
	json_out_str(&o, "config", text);
	json_out_end_object(&o);
	return out_json(&o);
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_ssh_config, argc, argv);
	cleanup_free char *text = NULL;
	const char *file = NULL;
	char home[PATHS_MAX];
	bool installs = false;
	struct err e = {0};
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == 256) {
			installs = true;
		} else if (key == 257) {
			file = s.arg;
		} else {
			if (key == OPT_WORD)
				key = (err_set(&e, -EINVAL, "ssh-config takes no words"),
					OPT_ERROR);
			return opt_leave(&s, key, &e);
		}
	}
	if (file && !installs) {
		err_set(&e, -EINVAL, "--file goes with --install");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	r = paths_home(home, sizeof(home), &e);
	if (r == 0)
		r = compose(home, &text, &e);
	if (r == 0 && installs)
		r = install(home, text, file, s.quiet, &e);
	if (r < 0)
		return out_fail(&e);
	return installs ? EXIT_OK : print(text, s.json);
}

const struct verb verb_ssh_config = {
	.name = "ssh-config",
	.summary = "Prints what makes `ssh <vm>.pando` work with stock OpenSSH",
	.run = run,
	.usage = "[--install [--file FILE]]",
	.options = options,
	.text = "With it ssh, scp, sftp, rsync, git and the remote modes of editors reach each VM of this PANDO_HOME as\n"
		"<name or id>.pando, over the vsock: the VM needs no network. Its host key is the one it acknowledged when it\n"
		"was told who it is; any other one is refused. OpenSSH 8.5 or later.\n"
		"\n"
		"Try it: pando ssh-config >c; ssh -F c <vm>.pando",
	.words = COMPLETE_NOTHING,
};
