#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/paths.h"
#include "host/cli/doctor.h"
#include "host/cli/env_option.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/run_image.h"
#include "host/client/project_config.h"

extern const struct verb verb_run;

#define LABELS_MAX 64

enum {
	OPT_MEM = 256,
	OPT_VCPUS,
	OPT_DISK,
	OPT_ROOTFS,
	OPT_BPS,
	OPT_IOPS,
	OPT_KERNEL,
	OPT_CMDLINE,
	OPT_NO_WAIT,
	OPT_ENV,
	OPT_ENV_FILE
};

static const struct opt options[] = {
	{OPT_MEM, "mem-size", "MIB",
		"memory; 512 MiB if not said; 2G and the like are fine",
		COMPLETE_NOTHING},
	{OPT_VCPUS, "vcpu-count", "N", "CPUs, 1 to 8; 1 if not said", COMPLETE_NOTHING},
	{OPT_DISK, "fs-size-vm", "MIB", "size of the disk; 1024 MiB if not said",
		COMPLETE_NOTHING},
	{OPT_BPS, "disk-bps", "BYTES",
		"bytes of the disk in a second, read and written; 10M and the like are fine",
		COMPLETE_NOTHING},
	{OPT_IOPS, "disk-iops", "N", "requests to the disk in a second", COMPLETE_NOTHING},
	{OPT_ROOTFS, "rootfs", "IMAGE",
		"image, or path of a disk; \"default\" is built when it is missing",
		COMPLETE_IMAGE},
	{OPT_KERNEL, "kernel", "IMAGE", "image, or path of a bzImage", COMPLETE_IMAGE},
	{OPT_CMDLINE, "cmdline", "TEXT", "more for the kernel's command line",
		COMPLETE_NOTHING},
	{'N', "vm-alias", "NAME", "name the VM", COMPLETE_NOTHING},
	{'n', "name", "NAME", NULL, COMPLETE_NOTHING},
	{'l', "label", "key=value", "label the VM; may be given several times",
		COMPLETE_NOTHING},
	{'c', "checkout", NULL, "check the VM out in this folder", COMPLETE_NOTHING},
	{OPT_ENV, "env", "NAME=value", "environment variable; may be given several times",
		COMPLETE_NOTHING},
	{OPT_ENV_FILE, "env-file", "FILE", "environment variables, as a shell reads them",
		COMPLETE_FILE},
	{OPT_NO_WAIT, "no-wait", NULL,
		"return when its CPUs run, not when its agent is ready",
		COMPLETE_NOTHING},
	{'C', "config", "FILE",
		"settings, instead of pando.toml or vers.toml in this folder",
		COMPLETE_FILE},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* Image building ------------------------------------------------------------------- */

static bool
is_default(const char *image)
{
	return !image || strcmp(image, "default") == 0;
}

static bool
default_is_missing(struct err *e)
{
	char images[PATHS_MAX], path[PATHS_MAX + 16];

	if (paths_images(images, sizeof(images), e) < 0)
		return false;
	snprintf(path, sizeof(path), "%s/default", images);
	return access(path, F_OK) < 0;
}

/* Child side of build_default(). */
static void __attribute__((noreturn))
become_golden(const char *program, const char *log_path)
{
	char arg0[] = "pando-golden", arg1[] = "image";
	char *argv[] = {arg0, arg1, NULL};
	int null_fd = open("/dev/null", O_RDONLY);
	int out_fd = log_path ? open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600)
			      : STDERR_FILENO;

	signal(SIGPIPE, SIG_DFL);
	if (null_fd >= 0 && out_fd >= 0) {
		dup2(null_fd, STDIN_FILENO);
		dup2(out_fd, STDOUT_FILENO); /* ours is for the answer */
		dup2(out_fd, STDERR_FILENO);
		execv(program, argv);
	}
	_exit(127);
}

/* Runs `pando-golden image`; its progress is on stderr, or in a file when quiet. */
static int
build_default(const char *home, bool quiet, struct err *e)
{
	char program[PATHS_MAX], log_path[PATHS_MAX + 32];
	const char *where = "what it said is above";
	int status, r;
	pid_t pid;

	r = paths_program("libexec/pando/pando-golden", program, sizeof(program), e);
	if (r < 0)
		return r;
	if (access(program, X_OK) < 0)
		return err_set(e, -EIO,
			"there is no image \"default\", and what builds it is not there (%s): install pando again",
			program);
	snprintf(log_path, sizeof(log_path), "%s/image-build.log", home);
	if (quiet)
		where = log_path;
	else
		out_complain(
			"there is no image \"default\" yet: building it, once, takes some minutes");
	pid = fork();
	if (pid < 0)
		return err_sys(e, -errno, "fork");
	if (pid == 0)
		become_golden(program, quiet ? log_path : NULL);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return err_sys(e, -errno, "waiting for pando-golden");
	if (WIFSIGNALED(status))
		return err_set(e, WTERMSIG(status) == SIGINT ? -ECANCELED : -EIO,
			"building the image \"default\" was ended by signal %d",
			WTERMSIG(status));
	if (WEXITSTATUS(status))
		return err_set(e, -EIO,
			"the image \"default\" could not be built (status %d): %s",
			WEXITSTATUS(status), where);
	return 0;
}

/* What is wrong with the request is better known before minutes of building. */
static int
alias_is_free(struct client *c, const char *alias, struct err *e)
{
	cleanup_client_vm struct client_vm vm = {0};

	if (alias && client_get(c, alias, &vm, NULL, NULL) == 0)
		return err_set(e, -EEXIST, "there is a VM named \"%.64s\" already (%s)",
			alias, vm.id);
	return 0;
}

/* So is that VMs cannot run here at all; pandod looks again. */
static int
host_boots_linux(struct err *e)
{
	struct doctor d = {.n = 0};

	doctor_check_kvm(&d);
	if (d.boots_linux)
		return 0;
	return err_set(e, -ENODEV,
		"this host cannot run the image \"default\": %.300s; %.180s",
		d.findings[0].detail, d.findings[0].mend);
}

int
run_image_path(const char **image, char **ret_path, struct err *e)
{
	if (!*image || (*image)[0] == '/' || !strchr(*image, '/'))
		return 0;
	*ret_path = realpath(*image, NULL);
	if (!*ret_path)
		return err_sys(e, -errno, "%s", *image);
	*image = *ret_path;
	return 0;
}

int
run_prepare_image(
	struct client *c, const struct client_run *spec, bool quiet, struct err *e)
{
	struct err where = {0};
	int r;

	if (!is_default(spec->kernel) && !is_default(spec->rootfs))
		return 0;
	if (!default_is_missing(&where)) {
		if (where.code)
			return err_set(e, where.code, "%s", where.msg);
		return 0;
	}
	r = alias_is_free(c, spec->alias, e);
	if (r == 0)
		r = host_boots_linux(e);
	return r < 0 ? r : build_default(client_home(c), quiet, e);
}

/* The verb --------------------------------------------------------------------------- */

static int
parse(struct opt_scan *s, struct client_run *spec, struct env *env, const char **labels,
	const char **config, bool *checkout, struct err *e)
{
	int key;

	while ((key = opt_next(s, e)) != OPT_END) {
		int r = 0;

		switch (key) {
		case OPT_MEM:
			r = opt_mib(s->arg, "--mem-size", CONFIG_MEM_MIN_MIB,
				CONFIG_MEM_MAX_MIB, &spec->mem_mib, e);
			break;
		case OPT_VCPUS:
			r = opt_u64(s->arg, "--vcpu-count", 1, CONFIG_VCPUS_MAX,
				&spec->vcpus, e);
			break;
		case OPT_DISK:
			r = opt_mib(s->arg, "--fs-size-vm", CONFIG_DISK_MIN_MIB,
				CONFIG_DISK_MAX_MIB, &spec->disk_mib, e);
			break;
		case OPT_BPS:
			r = opt_bytes_per_s(s->arg, "--disk-bps", CONFIG_DISK_BPS_MIN,
				CONFIG_DISK_BPS_MAX, &spec->disk_bps, e);
			break;
		case OPT_IOPS:
			r = opt_u64(s->arg, "--disk-iops", 0, CONFIG_DISK_IOPS_MAX,
				&spec->disk_iops, e);
			break;
		case OPT_ROOTFS:
			spec->rootfs = s->arg;
			break;
		case OPT_KERNEL:
			spec->kernel = s->arg;
			break;
		case OPT_CMDLINE:
			spec->cmdline = s->arg;
			break;
		case 'N':
		case 'n':
			spec->alias = s->arg;
			break;
		case 'l':
			r = opt_label(s->arg, "--label", e);
			if (r >= 0 && spec->n_labels == LABELS_MAX)
				r = err_set(e, -E2BIG, "at most %d labels", LABELS_MAX);
			if (r >= 0)
				labels[spec->n_labels++] = s->arg;
			break;
		case 'c':
			*checkout = true;
			break;
		case OPT_ENV:
			r = cli_env_add(env, s->arg, e);
			break;
		case OPT_ENV_FILE:
			r = cli_env_file(env, s->arg, e);
			break;
		case OPT_NO_WAIT:
			spec->no_wait = true;
			break;
		case 'C':
			*config = s->arg;
			break;
		case OPT_WORD:
			r = err_set(e, -EINVAL,
				"run takes options only, not \"%.64s\"; a name goes behind --vm-alias",
				s->arg);
			break;
		default:
			return key;
		}
		if (r < 0)
			return OPT_ERROR;
	}
	return OPT_END;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_run, argc, argv);
	cleanup_free char *kernel_path = NULL, *rootfs_path = NULL;
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_env struct env env = {0};
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_config struct config config = {0};
	cleanup_client struct client *c = NULL;
	const char *labels[LABELS_MAX], *config_path = NULL;
	struct client_run spec = {.labels = labels, .env = &env};
	struct out_progress progress;
	struct err e = {0};
	bool checkout = false;
	uint64_t start_ns;
	int r;

	r = parse(&s, &spec, &env, labels, &config_path, &checkout, &e);
	if (r != OPT_END)
		return opt_leave(&s, r, &e);
	if (config_load(config_path, ".", &config, &e) < 0)
		return out_fail(&e);
	spec.mem_mib = spec.mem_mib ? spec.mem_mib : config.mem_mib;
	spec.vcpus = spec.vcpus ? spec.vcpus : config.vcpus;
	spec.disk_mib = spec.disk_mib ? spec.disk_mib : config.disk_mib;
	spec.disk_bps = spec.disk_bps ? spec.disk_bps : config.disk_bps;
	spec.disk_iops = spec.disk_iops ? spec.disk_iops : config.disk_iops;
	spec.kernel = spec.kernel ? spec.kernel : config.kernel;
	spec.rootfs = spec.rootfs ? spec.rootfs : config.rootfs;
	if (run_image_path(&spec.kernel, &kernel_path, &e) < 0 ||
		run_image_path(&spec.rootfs, &rootfs_path, &e) < 0 || pick_pandod(&c, &e) < 0 ||
		run_prepare_image(c, &spec, s.quiet, &e) < 0)
		return out_fail(&e);

	out_progress_start(&progress, s.quiet);
	client_on_progress(c, out_progress_say, &progress);
	client_cancel_asking(c, pick_cancel_fd());
	start_ns = io_now_ns();
	r = client_run(c, &spec, &vm, &reply, &e);
	out_progress_end(&progress);
	/* pandod did not say what became of it. */
	if (r == -ECANCELED && strcmp(e.msg, "cancelled") == 0)
		err_set(&e, r,
			"cancelled; pandod removes the VM when it comes to that, `pando status` shows what is there");
	if (r < 0)
		return out_fail(&e);
	puts(s.json ? reply.text : vm.id);
	if (!s.quiet)
		fprintf(stderr, "pando: %s is %s after %.1f s\n", client_vm_name(&vm),
			vm.state, (double)(io_now_ns() - start_ns) / 1e9);
	if (!s.quiet)
		cli_env_tell(&env);
	if (checkout)
		pick_checkout(&vm, s.quiet);
	return EXIT_OK;
}

const struct verb verb_run = {
	.name = "run",
	.summary = "Boots a new VM and prints its id",
	.run = run,
	.usage = "[options]",
	.options = options,
	.text = "What no option says is taken from pando.toml (or vers.toml) in this folder, see pando.toml(5).",
};
