#include "guest-agent/tools/doctor_guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/env.h"
#include "common/io.h"
#include "common/json.h"
#include "common/wire/json_line.h"
#include "guest-agent/supervisor/rpc_place.h"

#define UNITS_PROGRAM "/usr/libexec/pando/pando-units"
#define UNITS_MS 20000
#define UNITS_BYTES_MAX (256u * 1024u)
#define FILE_MAX (1u << 20)
#define NS_PER_S UINT64_C(1000000000)

/*
 * Units.
 */

/* What the program writes to stdout, within the time; text and length, or -errno. */
static int
ask_units(const char *program, char **ret, size_t *ret_len)
{
	cleanup_close int out = -1, in = -1;
	cleanup_free char *buf = malloc(UNITS_BYTES_MAX + 1);
	uint64_t until_ns = io_now_ns() + UNITS_MS * UINT64_C(1000000), now_ns;
	size_t len = 0;
	int fd[2], status, r = -ETIMEDOUT;
	pid_t pid;

	if (!buf)
		return -ENOMEM;
	if (pipe2(fd, O_CLOEXEC))
		return -errno;
	out = fd[0];
	in = fd[1];
	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);

		dup2(null, 0);
		dup2(in, 1);
		dup2(null, 2);
		execl(program, program, "look", (char *)NULL);
		_exit(127);
	}
	close(TAKE_FD(in));
	while ((now_ns = io_now_ns()) < until_ns) {
		struct pollfd p = {.fd = out, .events = POLLIN};
		ssize_t n;

		if (poll(&p, 1, (int)((until_ns - now_ns) / 1000000) + 1) <= 0)
			continue;
		n = io_read(out, buf + len, UNITS_BYTES_MAX - len);
		if (n <= 0 || len + (size_t)n == UNITS_BYTES_MAX) {
			r = n < 0 ? (int)n : n ? -EFBIG : 0;
			break;
		}
		len += (size_t)n;
	}
	if (r)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (r)
		return r;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		return -EIO;
	buf[len] = 0;
	*ret = TAKE_PTR(buf);
	*ret_len = len;
	return 0;
}

static void
units(struct json_out *o)
{
	cleanup_free char *text = NULL;
	char program[PATH_MAX];
	struct rpc_span v;
	size_t len = 0;
	const char *why = NULL;
	int r = rpc_path(program, UNITS_PROGRAM, NULL);

	if (!r && access(program, X_OK))
		r = -ENOENT;
	if (!r)
		r = ask_units(program, &text, &len);
	if (r == -ENOENT)
		why = UNITS_PROGRAM " is not there";
	else if (r == -ETIMEDOUT)
		why = "systemd does not answer";
	else if (r)
		why = "there is no systemd to be asked";
	v = json_line_trim(text ? text : "", len);
	if (!why && (!v.len || *v.at != '{' || json_line_check(v.at, v.len, NULL)))
		why = UNITS_PROGRAM " says what is no JSON";
	if (why)
		json_out_null(o, "units");
	else
		json_out_raw(o, "units", v.at, v.len);
	json_out_str(o, "units_why", why);
}

/*
 * Files.
 */

static void
disks(struct json_out *o)
{
	static const char *const paths[] = {"/", "/home", "/var", "/tmp", "/run"};
	dev_t seen[sizeof(paths) / sizeof(paths[0])];
	char at[PATH_MAX];
	struct statvfs fs;
	struct stat st;
	size_t n = 0;

	json_out_array(o, "disks");
	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		bool known = false;

		if (rpc_path(at, paths[i], NULL) || stat(at, &st) || statvfs(at, &fs))
			continue;
		for (size_t k = 0; k < n; k++)
			known = known || seen[k] == st.st_dev;
		if (known)
			continue;
		seen[n++] = st.st_dev;
		json_out_object(o, NULL);
		json_out_str(o, "path", paths[i]);
		json_out_u64(o, "mib", (uint64_t)fs.f_blocks * fs.f_frsize >> 20);
		json_out_u64(o, "free_mib", (uint64_t)fs.f_bavail * fs.f_frsize >> 20);
		json_out_u64(o, "inodes", fs.f_files);
		json_out_u64(o, "inodes_free", fs.f_favail);
		json_out_end_object(o);
	}
	json_out_end_array(o);
}

static void
missing(struct json_out *o)
{
	static const char *const programs[] = {"tmux", "python3", "sshd"};
	static const char *const folders[] = {"/usr/bin", "/usr/sbin", "/usr/local/bin",
		"/usr/local/sbin", "/bin", "/sbin"};
	char path[64], at[PATH_MAX];

	json_out_array(o, "missing");
	for (size_t i = 0; i < sizeof(programs) / sizeof(programs[0]); i++) {
		bool there = false;

		for (size_t k = 0; k < sizeof(folders) / sizeof(folders[0]); k++) {
			snprintf(path, sizeof(path), "%s/%s", folders[k], programs[i]);
			there = there || (!rpc_path(at, path, NULL) && !access(at, X_OK));
		}
		if (!there)
			json_out_str(o, NULL, programs[i]);
	}
	json_out_end_array(o);
}

/* Both files: the second one has what the first cannot. */
static void
environment(struct json_out *o)
{
	static const char *const files[] = {"/etc/environment", "/etc/pando/environment"};
	cleanup_env struct env all = {0};
	struct err e = {0};
	char at[PATH_MAX];

	for (size_t i = 0; i < 2 && !e.code; i++) {
		cleanup_free char *text = NULL;
		int r = rpc_path(at, files[i], &e);

		if (!r && io_read_file(at, FILE_MAX, &text, NULL, NULL) < 0)
			continue;
		if (!r)
			env_read(&all, files[i], text, &e);
	}
	json_out_object(o, "environment");
	json_out_str(o, "why", e.code ? e.msg : NULL);
	json_out_array(o, "held_back");
	for (size_t i = 0; i < all.n; i++) {
		const char *why = env_held_back(all.v[i]);

		if (!why)
			continue;
		json_out_object(o, NULL);
		json_out_strn(o, "name", all.v[i], strcspn(all.v[i], "="));
		json_out_str(o, "why", why);
		json_out_end_object(o);
	}
	json_out_end_array(o);
	json_out_end_object(o);
}

/*
 * Random numbers that a process keeps: those of two branches are the same.
 */

/* By what it has mapped. */
static const struct {
	const char *mapped, *unless[2], *keeps;
} libraries[] = {
	{"/libcrypto.so.3", {"/openssl-random.so", "/node-random.node"}, "openssl"},
	{"/libcrypto.so.1", {"/node-random.node", NULL}, "openssl1"},
	{"/libgnutls.so", {NULL, NULL}, "gnutls"},
	{"/libjvm.so", {NULL, NULL}, "java"},
	{"/numpy/random/", {NULL, NULL}, "numpy"},
};

/* By what it is. folder: the program may lie there. */
static const struct {
	const char *program, *unless, *folder, *keeps;
} programs_that_keep[] = {
	{"node", "/node-random.node", NULL, "node"},
	{"python", "/run/pando/generation", "/usr/bin/", "python"},
	{"bun", NULL, NULL, "own"},
	{"deno", NULL, NULL, "own"},
	{"perl", NULL, NULL, "own"},
	{"php", NULL, NULL, "own"},
	{"ruby", NULL, NULL, "own"},
};

#define N_LIBRARIES (sizeof(libraries) / sizeof(libraries[0]))
#define N_PROGRAMS (sizeof(programs_that_keep) / sizeof(programs_that_keep[0]))
#define SUPERVISORS_MAX 64

/* "python3.13" is a python, "perlbug" no perl. */
static bool
is_called(const char *name, const char *program)
{
	size_t n = strlen(program);

	return strncmp(name, program, n) == 0 &&
	       strspn(name + n, "0123456789.js") == strlen(name + n);
}

static void
keeps(struct json_out *o, long pid, const char *name, const char *what, unsigned *n)
{
	if ((*n)++ >= SUPERVISORS_MAX)
		return;
	json_out_object(o, NULL);
	json_out_u64(o, "pid", (uint64_t)pid);
	json_out_str(o, "program", name);
	json_out_str(o, "keeps", what);
	json_out_end_object(o);
}

static void
look_at_process(struct json_out *o, const char *proc, const char *pid, unsigned *n)
{
	bool has[N_LIBRARIES] = {false}, without[N_LIBRARIES] = {false};
	bool program_without[N_PROGRAMS] = {false};
	char path[PATH_MAX + NAME_MAX + 8], exe[PATH_MAX], *name;
	cleanup_free char *line = NULL;
	size_t cap = 0;
	ssize_t len;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s/exe", proc, pid);
	len = readlink(path, exe, sizeof(exe) - 1);
	if (len <= 0)
		return; /* of the kernel, or gone */
	exe[len] = 0;
	name = strrchr(exe, '/');
	if (!name)
		return;
	name++;
	snprintf(path, sizeof(path), "%s/%s/maps", proc, pid);
	f = fopen(path, "re");
	if (!f)
		return;
	while (getline(&line, &cap, f) > 0) {
		for (size_t i = 0; i < N_LIBRARIES; i++) {
			has[i] = has[i] || strstr(line, libraries[i].mapped);
			for (size_t k = 0; k < 2; k++)
				without[i] =
					without[i] ||
					(libraries[i].unless[k] &&
						strstr(line, libraries[i].unless[k]));
		}
		for (size_t i = 0; i < N_PROGRAMS; i++)
			program_without[i] =
				program_without[i] ||
				(programs_that_keep[i].unless &&
					strstr(line, programs_that_keep[i].unless));
	}
	fclose(f);
	for (size_t i = 0; i < N_LIBRARIES; i++)
		if (has[i] && !without[i])
			keeps(o, atol(pid), name, libraries[i].keeps, n);
	for (size_t i = 0; i < N_PROGRAMS; i++) {
		const char *folder = programs_that_keep[i].folder;

		if (is_called(name, programs_that_keep[i].program) &&
			!program_without[i] &&
			!(folder && (size_t)(name - exe) == strlen(folder) &&
				strncmp(exe, folder, strlen(folder)) == 0))
			keeps(o, atol(pid), name, programs_that_keep[i].keeps, n);
	}
}

static void
generators(struct json_out *o)
{
	cleanup_closedir DIR *d = NULL;
	char proc[PATH_MAX];
	struct dirent *de;
	unsigned n = 0;

	json_out_array(o, "generators");
	if (!rpc_path(proc, "/proc", NULL))
		d = opendir(proc);
	while (d && (de = readdir(d)))
		if (strspn(de->d_name, "0123456789") == strlen(de->d_name))
			look_at_process(o, proc, de->d_name, &n);
	json_out_end_array(o);
	json_out_u64(o, "generators_more", n > SUPERVISORS_MAX ? n - SUPERVISORS_MAX : 0);
}

/*
 * Coding agents.
 */

static void
agent(const char *name, struct json_out *o)
{
	cleanup_rpc_place struct rpc_place p = RPC_PLACE_INIT;
	cleanup_rpc_conf struct rpc_conf c = {0};
	char text[8192], why[300] = "";
	struct rpc_span state, v;
	struct err e = {0};
	ssize_t n;

	if (rpc_place_open(name, false, &p, NULL) || faccessat(p.dir, "wanted", F_OK, 0))
		return;
	n = rpc_read_file(p.dir, "state", text, sizeof(text));
	state = json_line_trim(text, n > 0 ? (size_t)n : 0);
	if (rpc_conf_read(p.conf, &c, &e)) {
		snprintf(why, sizeof(why), "%.290s", e.msg);
	} else if (rpc_lock_owner(&p, RPC_LOCK_SUPERVISOR) <= 0) {
		snprintf(why, sizeof(why), "it has no supervisor");
	} else if (n > 0 && !json_line_check(state.at, state.len, NULL) &&
		   json_line_member(state, "state", &v) && json_line_is(v, "failed")) {
		if (!json_line_member(state, "reason", &v))
			v = (struct rpc_span){"?", 1};
		snprintf(why, sizeof(why), "it was given up: %.*s",
			v.len > 250 ? 250 : (int)v.len, v.at);
	}
	if (!*why)
		return;
	json_out_object(o, NULL);
	json_out_str(o, "name", name);
	json_out_str(o, "why", why);
	json_out_end_object(o);
}

static void
agents(struct json_out *o)
{
	cleanup_closedir DIR *d = NULL;
	char path[PATH_MAX], name[NAME_MAX + 1];
	struct dirent *de;

	json_out_array(o, "agents");
	if (!rpc_path(path, "/var/lib/pando/rpc", NULL))
		d = opendir(path);
	while (d && (de = readdir(d))) {
		snprintf(name, sizeof(name), "%s", de->d_name);
		if (!rpc_name_check(name, NULL))
			agent(name, o);
	}
	json_out_end_array(o);
}

static int
answer(struct json_out *o)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	json_out_u64(
		o, "time_ns", (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec);
	json_out_end_object(o);
	if (o->error) {
		fputs("pando-agent: no memory for the answer\n", stderr);
		return EXIT_FAILED;
	}
	puts(o->buf);
	return fflush(stdout) ? EXIT_FAILED : EXIT_OK;
}

int
doctor_main(int argc, char **argv)
{
	cleanup_json_out struct json_out o = {0};
	struct rpc_identity who;

	json_out_object(&o, NULL);
	if (argc == 2 && strcmp(argv[1], "--clock") == 0)
		return answer(&o);
	if (argc == 3 && strcmp(argv[1], "--root") == 0) {
		rpc_root_set(argv[2]);
	} else if (argc > 1) {
		fputs("usage: pando-agent doctor [--clock | --root FOLDER]\n", stderr);
		return EXIT_USAGE;
	}
	rpc_identity_read(&who);
	json_out_str(&o, "version", PANDO_VERSION);
	json_out_str(&o, "vm", who.vm[0] ? who.vm : NULL);
	json_out_str(&o, "generation", who.generation[0] ? who.generation : NULL);
	units(&o);
	disks(&o);
	missing(&o);
	environment(&o);
	agents(&o);
	generators(&o);
	return answer(&o);
}
