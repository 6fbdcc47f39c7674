/*
 * `pando machine`: the test machine of hosts whose own KVM boots no Linux
 * (host/testvm/machine.h).
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/remote.h"
#include "host/testvm/machine.h"
#include "host/testvm/machine_copy.h"

/* One command's connection: the machine may be busy with all its VMs, under emulation. */
#define CONNECT_MS 180000
#define SIGNAL_MS 30000
#define ENV_MAX 256
#define CPUS_MAX 64
/* Where VMs live in the machine: on its own disk, which the host's PANDO_HOME has no part
 * in. */
#define HOME_THERE "/var/lib/pando"
/* In the environment of what a command runs, so that it can be found. */
#define TOKEN "PANDO_MACHINE_EXEC"

extern const struct verb verb_machine;

static const struct opt options[] = {
	{'m', "mem-size", "MIB", "start: its memory; 10 GiB, or what the host can spare",
		COMPLETE_NOTHING},
	{'c', "cpus", "N", "start: its processors; 2 if not said", COMPLETE_NOTHING},
	{'d', "disk-size", "MIB",
		"start: its disk, when it is made; 24 GiB, taken as it fills",
		COMPLETE_NOTHING},
	{'e', "env", "NAME=VALUE",
		"exec: in the command's environment; may be given several times",
		COMPLETE_NOTHING},
	{'w', "cwd", "FOLDER", "exec: where it runs; this folder if not said",
		COMPLETE_FOLDER},
	{'T', "tty", NULL, "exec: with a terminal; so if both ends of ours are one",
		COMPLETE_NOTHING},
	{'n', "no-stdin", NULL, "exec: pass no standard input on, and give no terminal",
		COMPLETE_NOTHING},
	{'f', "force", NULL, "stop: pull the plug", COMPLETE_NOTHING},
	{'y', "yes", NULL, "delete: do not ask", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

struct request {
	const char *action;
	const char *const *command; /* NULL: none */
	const char *env[ENV_MAX];
	size_t n_env;
	const char *cwd;
	bool tty, no_stdin, force, yes, json, quiet;
	/* Tells the command from all others in the machine. */
	char token[REMOTE_TOKEN_LEN + 1];
	struct machine_spec spec;
};

/*
 * Status.
 */

static const char *
state_name(const struct machine *m)
{
	return m->state == MACHINE_RUNNING   ? "running"
	       : m->state == MACHINE_STOPPED ? "stopped"
					     : "absent";
}

static int
print_json(const struct machine *m)
{
	cleanup_json_out struct json_out o = {0};
	char path[PATHS_MAX + 16];
	struct stat st;

	json_out_object(&o, NULL);
	json_out_str(&o, "state", state_name(m));
	json_out_str(&o, "home", m->home);
	json_out_str(&o, "image", m->image[0] ? m->image : NULL);
	snprintf(path, sizeof(path), "%s/disk.raw", m->home);
	if (m->state != MACHINE_ABSENT && stat(path, &st) == 0) {
		json_out_u64(&o, "disk_mib", (uint64_t)st.st_size >> 20);
		json_out_u64(&o, "disk_used_mib", (uint64_t)st.st_blocks >> 11);
	}
	if (m->state == MACHINE_RUNNING) {
		json_out_u64(&o, "pid", (uint64_t)m->pid);
		json_out_u64(&o, "port", m->port);
		json_out_u64(&o, "mem_mib", m->mem_mib);
		json_out_u64(&o, "cpus", m->cpus);
		json_out_u64(&o, "started_ms", m->started_ms);
	}
	json_out_end_object(&o);
	return out_json(&o);
}

static int
print_state(const struct machine *m, const struct request *q)
{
	char cell[64];
	uint64_t now_ms = io_wall_ms();

	if (q->json)
		return print_json(m);
	if (q->quiet || m->state == MACHINE_ABSENT) {
		puts(state_name(m));
		return EXIT_OK;
	}
	printf("state   %s\n", state_name(m));
	if (m->state == MACHINE_RUNNING) {
		printf("since   %s\n",
			out_age(cell, sizeof(cell),
				now_ms > m->started_ms ? now_ms - m->started_ms : 0));
		printf("memory  %s\n", out_mib(cell, sizeof(cell), m->mem_mib));
		printf("cpus    %llu\n", (unsigned long long)m->cpus);
		printf("port    127.0.0.1:%u\n", m->port);
	}
	printf("image   %s\nfolder  %s\n", m->image, m->home);
	return EXIT_OK;
}

static int
do_status(const struct request *q, struct err *e)
{
	cleanup_free struct machine *m = calloc(1, sizeof(*m));

	if (!m)
		return err_sys(e, -ENOMEM, "machine");
	if (machine_look(m, e) < 0)
		return e->code;
	return print_state(m, q);
}

/*
 * Start, stop, delete.
 */

static int
do_start(const struct request *q, struct err *e)
{
	cleanup_free struct machine *m = calloc(1, sizeof(*m));
	struct out_progress p;
	int r;

	if (!m)
		return err_sys(e, -ENOMEM, "machine");
	out_progress_start(&p, q->quiet);
	r = machine_start(&q->spec, out_progress_say, &p, m, e);
	out_progress_end(&p);
	if (r < 0)
		return r;
	if (q->json)
		return print_json(m);
	if (!q->quiet)
		puts(state_name(m));
	return EXIT_OK;
}

static int
do_stop(const struct request *q, struct err *e)
{
	struct out_progress p;
	int r;

	out_progress_start(&p, q->quiet);
	r = machine_stop(q->force, out_progress_say, &p, e);
	out_progress_end(&p);
	return r;
}

static int
do_delete(const struct request *q, struct err *e)
{
	struct out_progress p;
	int r;

	if (!q->yes && !out_can_ask())
		return err_set(e, -EINVAL,
			"the machine, and every VM in it, would be lost: --yes says that is meant");
	if (!q->yes && !out_confirm("Delete the machine and every VM in it?"))
		return err_set(e, -ECANCELED, "the machine stays");
	out_progress_start(&p, q->quiet);
	r = machine_delete(out_progress_say, &p, e);
	out_progress_end(&p);
	return r;
}

/*
 * Exec.
 */

/* What of the host the command is to find in the machine. */
struct view {
	char cwd[PATHS_MAX];
	char project[PATHS_MAX]; /* "": the folder is in none */
	char prefix[PATHS_MAX];	 /* where this program is installed, or was built */
	char images[PATHS_MAX];
	bool is_build; /* the prefix is a build folder */
	char objects[4][PATHS_MAX];
};

static bool
below(const char *path, const char *folder)
{
	size_t n = strlen(folder);

	return strncmp(path, folder, n) == 0 && (path[n] == '\0' || path[n] == '/');
}

static int
look_around(const struct request *q, struct view *v, struct err *e)
{
	static const char *const objects[] = {"obj", "fuzz", "check"};
	char path[PATHS_MAX], home[PATHS_MAX] = "";
	const char *home_is = getenv("HOME");
	int r;

	if (q->cwd ? !realpath(q->cwd, v->cwd) : !getcwd(v->cwd, sizeof(v->cwd)))
		/* A folder that only the machine has. */
		if (!q->cwd || q->cwd[0] != '/' ||
			paths_format(v->cwd, sizeof(v->cwd), e, "%s", q->cwd) < 0)
			return err_sys(
				e, -errno, "%.200s", q->cwd ? q->cwd : "this folder");
	if (home_is && *home_is && !realpath(home_is, home))
		home[0] = '\0';
	v->project[0] = '\0';
	r = access(v->cwd, F_OK) < 0 ? 0 : machine_project(v->cwd, home, v->project, e);
	if (r >= 0)
		r = paths_program("", v->prefix, sizeof(v->prefix), e);
	if (r < 0)
		return r;
	v->prefix[strlen(v->prefix) - 1] = '\0'; /* the slash */
	r = paths_format(path, sizeof(path), e, "%s/obj", v->prefix);
	if (r == 0)
		r = paths_images(v->images, sizeof(v->images), e);
	if (r < 0)
		return r;
	v->is_build = access(path, F_OK) == 0;
	/* What nobody runs, as named from the folder that is copied. */
	for (size_t i = 0; r == 0 && v->is_build && i < 3; i++) {
		const char *from = v->project[0] && below(v->prefix, v->project) &&
						   strlen(v->prefix) > strlen(v->project)
					   ? v->prefix + strlen(v->project) + 1
					   : "";

		r = paths_format(v->objects[i], PATHS_MAX, e, "%s%s%s", from,
			*from ? "/" : "", objects[i]);
	}
	return r;
}

static int
copy_folder(const struct machine *m, struct ssh_link *link,
	const struct machine_folder *f, struct out_progress *p, struct err *e)
{
	struct machine_copy_stats stats;
	int r = machine_copy(m, link, f, &stats, e);

	(void)p;
	return r;
}

/* The project, the programs, the images. */
static int
bring_up_to_date(const struct machine *m, struct ssh_link *link, const struct view *v,
	struct out_progress *p, struct err *e)
{
	static const char *const installed[] = {
		"bin/pando", "bin/pandod", "libexec/pando", "share/pando", NULL};
	const char *const objects[] = {v->objects[0], v->objects[1], v->objects[2], NULL};
	cleanup_free const char *const *names = NULL;
	int r = 0;

	if (v->project[0]) {
		struct machine_folder f = {
			.path = v->project, .without = v->is_build ? objects : NULL};

		r = copy_folder(m, link, &f, p, e);
	}
	if (r == 0 && !(v->project[0] && below(v->prefix, v->project))) {
		struct machine_folder f = {.path = v->prefix,
			.only = v->is_build ? NULL : installed,
			.without = v->is_build ? objects : NULL};

		r = copy_folder(m, link, &f, p, e);
	}
	if (r == 0)
		r = machine_image_names(v->images, &names, e);
	if (r == 0 && names[0]) {
		struct machine_folder f = {
			.path = v->images, .only = names, .keep = true};

		r = copy_folder(m, link, &f, p, e);
	}
	return r;
}

/* What root's shell in the machine is to read. */
static int
compose(const struct request *q, const struct view *v, char **ret, struct err *e)
{
	cleanup_free char *text = NULL;
	char path[PATHS_MAX + 128];
	int r;

	/* Programs of a distribution's own prefix come after the machine's. */
	if (strcmp(v->prefix, "/usr") == 0)
		snprintf(path, sizeof(path), "PATH=%s",
			"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin");
	else
		snprintf(path, sizeof(path), "PATH=%s/bin:%s", v->prefix,
			"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	r = remote_append(&text, "export ", path, "");
	if (r == 0)
		r = remote_append(&text, " ", "PANDO_HOME=" HOME_THERE, "");
	snprintf(path, sizeof(path), "PANDO_IMAGES=%s", v->images);
	if (r == 0)
		r = remote_append(&text, " ", path, " LANG=C.UTF-8 " TOKEN "=");
	if (r == 0)
		r = remote_append(&text, "", q->token, "");
	for (size_t i = 0; r == 0 && i < q->n_env; i++)
		r = remote_append(&text, " ", q->env[i], "");
	if (r == 0)
		r = remote_append(&text, "; mkdir -p -- ", v->cwd, "");
	/* Not on the first CPU, on which guests are not safe: machine_qemu.c says why. */
	if (r == 0)
		r = remote_append(&text, " && cd -- ", v->cwd,
			" && taskset -cp " MACHINE_CPUS_FOR_USE
			" $$ >/dev/null || exit 125; exec --");
	for (const char *const *w = q->command; r == 0 && *w; w++)
		r = remote_append(&text, " ", *w, "");
	if (r == -E2BIG)
		return err_set(e, r,
			"the command, its folder and environment are longer than %u bytes: put long texts into a file or standard input",
			SSH_COMMAND_MAX);
	if (r < 0)
		return err_sys(e, r, "the command");
	*ret = TAKE_PTR(text);
	return 0;
}

struct signals {
	const struct machine *machine;
	const char *token;
};

/*
 * Over a connection of its own: to the process group of the one process that has our
 * token and was started by sshd. What the command started as a daemon is init's child,
 * and is left alone.
 */
static void
pass_signal(void *ctx, int number, unsigned nth)
{
	static const char script[] =
		"for e in $(grep -lszx " TOKEN
		"=%s /proc/[0-9]*/environ); do p=${e#/proc/} p=${p%%/environ}; parent=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$p/status) && "
		"[ \"$(cat /proc/$parent/comm)\" = sshd ] && kill -%d -- \"-$p\"; done 2>/dev/null; exit 0";
	const struct signals *s = ctx;
	cleanup_ssh_link struct ssh_link *link = NULL;
	struct ssh_command c = SSH_COMMAND_INIT;
	struct err e = {0};
	char text[1024];
	int status, r;

	snprintf(text, sizeof(text), script, s->token, nth > 1 ? SIGKILL : number);
	c.text = text;
	c.timeout_ms = SIGNAL_MS;
	r = machine_connect(s->machine, SIGNAL_MS, &link, &e);
	if (r == 0)
		r = ssh_link_run(link, &c, &status, &e);
	if (r < 0)
		out_complain(
			"the command could not be told, and may still run: %s", e.msg);
}

static int
run_command(const struct machine *m, struct ssh_link *link, const struct request *q,
	const char *text, int *ret_status, struct err *e)
{
	struct signals passing = {m, q->token};
	bool tty =
		q->tty || (!q->no_stdin && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO));
	cleanup_close int signals = remote_signals(tty);
	struct ssh_command c = {
		.text = text,
		.in_fd = q->no_stdin ? -1 : STDIN_FILENO,
		.out_fd = STDOUT_FILENO,
		.err_fd = STDERR_FILENO,
		.tty = tty,
		.term = getenv("TERM"),
		.signal_fd = signals,
		.on_signal = pass_signal,
		.ctx = &passing,
	};

	return remote_run(link, &c, ret_status, e);
}

static int
exec_there(struct request *q, int *ret_status, struct err *e)
{
	cleanup_free struct machine *m = calloc(1, sizeof(*m));
	cleanup_free struct view *v = calloc(1, sizeof(*v));
	cleanup_ssh_link struct ssh_link *link = NULL;
	cleanup_free char *text = NULL;
	struct out_progress p;
	int r;

	if (!m || !v)
		return err_sys(e, -ENOMEM, "machine");
	if (q->tty && !(isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)))
		return err_set(e, -EINVAL,
			"--tty needs a terminal on standard input and output");
	r = remote_token(q->token, e);
	if (r == 0)
		r = look_around(q, v, e);
	if (r == 0)
		r = compose(q, v, &text, e);
	if (r == 0)
		r = machine_look(m, e);
	if (r == 0)
		r = machine_connect(m, CONNECT_MS, &link, e);
	if (r < 0)
		return r;
	out_progress_start(&p, q->quiet || !isatty(STDERR_FILENO));
	out_progress_say(&p, "copying what has changed into the machine");
	r = bring_up_to_date(m, link, v, &p, e);
	out_progress_end(&p);
	return r < 0 ? r : run_command(m, link, q, text, ret_status, e);
}

/* What of ours fails must not be taken for the command's own end. */
static int
do_exec(struct request *q)
{
	struct err e = {0};
	int status = 0, r;

	(void)signal(SIGPIPE, SIG_IGN);
	r = exec_there(q, &status, &e);
	if (r == 0)
		return status;
	if (r == -EPIPE)
		return 128 + SIGPIPE;
	status = out_fail(&e);
	return status == EXIT_USAGE || status == EXIT_CANCELLED ? status : EXIT_HOST_SIDE;
}

/*
 * Words.
 */

static int
take_option(struct request *q, int key, const struct opt_scan *s, struct err *e)
{
	switch (key) {
	case 'm':
		return opt_mib(s->arg, "--mem-size", MACHINE_MEM_MIN_MIB,
			UINT64_C(1) << 22, &q->spec.mem_mib, e);
	case 'c':
		return opt_u64(s->arg, "--cpus", 1, CPUS_MAX, &q->spec.cpus, e);
	case 'd':
		return opt_mib(s->arg, "--disk-size", 4096, UINT64_C(1) << 24,
			&q->spec.disk_mib, e);
	case 'e':
		if (opt_env(s->arg, "--env", e) < 0)
			return e->code;
		if (q->n_env == ENV_MAX)
			return err_set(e, -E2BIG, "at most %d variables", ENV_MAX);
		q->env[q->n_env++] = s->arg;
		return 0;
	case 'w':
		q->cwd = s->arg;
		return 0;
	case 'T':
		q->tty = true;
		return 0;
	case 'n':
		q->no_stdin = true;
		return 0;
	case 'f':
		q->force = true;
		return 0;
	default:
		q->yes = true;
		return 0;
	}
}

static int
check(const struct request *q, struct err *e)
{
	bool is_exec = q->action && strcmp(q->action, "exec") == 0;

	if (!q->action)
		return err_set(e, -EINVAL,
			"machine needs a word: start, status, exec, stop or delete");
	if (is_exec && (!q->command || !q->command[0] || !q->command[0][0]))
		return err_set(e, -EINVAL,
			"no command: pando machine exec -- command arguments…");
	if (is_exec && q->json)
		return err_set(e, -EINVAL,
			"the output of machine exec is the command's: --format json says nothing there");
	if (is_exec && q->tty && q->no_stdin)
		return err_set(e, -EINVAL, "--tty does not go with --no-stdin");
	if (!is_exec && q->command)
		return err_set(e, -EINVAL, "machine %s takes no words: \"%.60s\"",
			q->action, q->command[0]);
	return 0;
}

static int
run(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(const struct request *q, struct err *e);
	} actions[] = {{"start", do_start}, {"status", do_status}, {"stop", do_stop},
		{"delete", do_delete}};
	struct opt_scan s = opt_scan(&verb_machine, argc, argv);
	struct request q = {0};
	struct err e = {0};
	int key, r;

	while (!q.command && (key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_HELP || key == OPT_ERROR)
			return opt_leave(&s, key, &e);
		if (key == OPT_WORD && !q.action)
			q.action = s.arg;
		else if (key == OPT_WORD)
			q.command = (const char *const *)s.argv + s.at - 1;
		else if (take_option(&q, key, &s, &e) < 0)
			return opt_leave(&s, OPT_ERROR, &e);
	}
	q.json = s.json;
	q.quiet = s.quiet;
	if (check(&q, &e) < 0)
		return opt_leave(&s, OPT_ERROR, &e);
	if (strcmp(q.action, "exec") == 0)
		return do_exec(&q);
	for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++)
		if (strcmp(actions[i].name, q.action) == 0) {
			r = actions[i].run(&q, &e);
			return r < 0 ? out_fail(&e) : r;
		}
	err_set(&e, -EINVAL,
		"machine knows start, status, exec, stop and delete, not \"%.60s\"",
		q.action);
	return opt_leave(&s, OPT_ERROR, &e);
}

const struct verb verb_machine = {
	.name = "machine",
	.summary = "The test machine, for hosts whose KVM boots no Linux",
	.run = run,
	.usage =
		"start [options]\nstatus\nexec [options] [--] <command> [arguments…]\nstop [--force]\n"
		"delete [--yes]",
	.options = options,
	.text = "A Debian that QEMU emulates, whose own /dev/kvm boots Linux: what does not work on this host works in it.\n"
		"start makes it, which takes minutes the first time and seconds later; one that runs is left as it is.\n"
		"exec runs a command in it as root, in the folder of the same name as this one. Before that, the project\n"
		"this folder belongs to (up to .git or pando.toml), this pando and the images are copied into it, as far as\n"
		"they have changed. What the command writes stays in the machine. Exit status: the command's own, 128 + n\n"
		"when signal n ended it, 125 when our side failed.\n"
		"\n"
		"It lives in PANDO_MACHINE_HOME, ~/.local/share/pando/machine if not said, whatever PANDO_HOME is.",
	.subverbs = "start status exec stop delete",
};
