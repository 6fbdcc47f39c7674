#include "host/cli/doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/memfd.h"
#include "common/paths.h"
#include "common/userns.h"
#include "host/cli/out.h"
#include "host/client/client.h"
#include "host/vmmproc/kvm_probe.h"

/* A small file of /proc or /sys without its last line feed; false if it cannot be read.
 */
static bool
read_setting(const char *path, char *dst, size_t cap)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = io_read(fd, dst, cap - 1);
	if (n < 0)
		return false;
	while (n > 0 && dst[n - 1] == '\n')
		n--;
	dst[n] = '\0';
	return true;
}

/* KVM -------------------------------------------------------------------------------- */

/* What a VM's second commit and those after it cost. */
static void
judge_dirty_pages(struct doctor *d, const struct kvm_probe *p)
{
	struct doctor_finding *f;

	if (strcmp(p->dirty_pages, "userfaultfd") == 0) {
		doctor_find(d, "commits", DOCTOR_OK,
			"commits read the memory that changed since the last one (userfaultfd)");
	} else if (strcmp(p->dirty_pages, "soft-dirty") == 0) {
		doctor_find(d, "commits", DOCTOR_OK,
			"commits read the memory that changed since the last one (soft-dirty pages; Linux 6.7 has a faster way)");
	} else if (strcmp(p->dirty_pages, "none") == 0) {
		f = doctor_find(d, "commits", DOCTOR_NOTE,
			"each commit reads all of a VM's memory: this kernel cannot tell what changed");
		doctor_mend(f,
			"use Linux 6.7 or later, or a kernel with CONFIG_MEM_SOFT_DIRTY");
	}
}

/* What the first VM of a commit waits for (vmm/fill.h). */
static void
check_restores(struct doctor *d)
{
	cleanup_close int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	struct doctor_finding *f;

	if (fd >= 0 && memfd_takes_huge_pages()) {
		f = doctor_find(d, "restores", DOCTOR_NOTE,
			"the first VM of a commit waits until all of its memory was read: "
			MEMFD_HUGE_SETTING " gives memory in huge pages that were not asked for");
		doctor_mend(f, "echo advise | sudo tee " MEMFD_HUGE_SETTING);
		return;
	}
	if (fd >= 0) {
		doctor_find(d, "restores", DOCTOR_OK,
			"VMs of a commit start before all of their memory is there (/dev/userfaultfd)");
		return;
	}
	f = doctor_find(d, "restores", DOCTOR_NOTE,
		"the first VM of a commit waits until all of its memory was read: /dev/userfaultfd: %s",
		strerror(errno));
	if (errno == EACCES || errno == EPERM)
		doctor_mend(f,
			"let your user open it: `sudo setfacl -m u:$USER:rw /dev/userfaultfd`, and for good the udev rule KERNEL==\"userfaultfd\", GROUP=\"kvm\", MODE=\"0660\"");
	else
		doctor_mend(f, "use Linux 6.1 or later, with CONFIG_USERFAULTFD");
}

static void
judge_probe(struct doctor *d, const struct kvm_probe *p)
{
	struct doctor_finding *f;
	char plain[400];

	out_plain(plain, sizeof(plain), p->detail);
	switch (p->kind) {
	case KVM_PROBE_LINUX:
		d->boots_linux = d->runs_small = true;
		f = doctor_find(d, "kvm", DOCTOR_OK,
			"KVM boots Linux: VMs run on this host directly");
		if (p->create_vm_us > 5000) {
			f = doctor_find(d, "kvm-speed", DOCTOR_NOTE,
				"making a KVM VM took %.1f ms", p->create_vm_us / 1e3);
			doctor_mend(f, "see kvm-hugepages and cgroup below");
		}
		break;
	case KVM_PROBE_SMALL:
		d->runs_small = true;
		f = doctor_find(d, "kvm", DOCTOR_PROBLEM, "%s", plain);
		doctor_mend(f,
			"use a host with hardware virtualization (nested is enough), or the same verbs in the test machine: `pando machine start`, then `pando machine exec -- pando run`");
		break;
	case KVM_PROBE_NONE:
		f = doctor_find(d, "kvm", DOCTOR_PROBLEM, "%s", plain);
		doctor_mend(f,
			"use a host with hardware virtualization, or the test machine: `pando machine start`");
		break;
	}
	if (p->kind != KVM_PROBE_NONE)
		judge_dirty_pages(d, p);
}

bool
doctor_read_probe(struct doctor *d, const char *line, size_t len)
{
	struct kvm_probe p;

	if (kvm_probe_read(line, len, &p, NULL) < 0)
		return false;
	judge_probe(d, &p);
	return true;
}

static void
kvm_cannot_be_opened(struct doctor *d, int error)
{
	struct doctor_finding *f;

	if (error == ENOENT || error == ENXIO || error == ENODEV) {
		f = doctor_find(d, "kvm", DOCTOR_PROBLEM,
			"there is no KVM here (/dev/kvm: %s)", strerror(error));
		doctor_mend(f,
			"load kvm_intel or kvm_amd, switch virtualization on in the firmware or (in a VM) nested virtualization on its host; else `pando machine start`");
	} else if (error == EACCES || error == EPERM) {
		f = doctor_find(d, "kvm", DOCTOR_PROBLEM,
			"KVM is there, but you may not use it (/dev/kvm: %s)",
			strerror(error));
		doctor_mend(f, "sudo usermod -aG kvm \"$USER\", then log in again");
	} else {
		f = doctor_find(d, "kvm", DOCTOR_PROBLEM, "/dev/kvm cannot be opened: %s",
			strerror(error));
	}
}

void
doctor_check_kvm(struct doctor *d)
{
	cleanup_close int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	char program[PATHS_MAX];
	struct doctor_finding *f;
	struct err e = {0};
	struct kvm_probe p;

	if (fd < 0) {
		kvm_cannot_be_opened(d, errno);
		return;
	}
	close(TAKE_FD(fd));
	if (paths_program("libexec/pando/pando-vmm", program, sizeof(program), &e) < 0) {
		doctor_find(d, "kvm", DOCTOR_PROBLEM, "%s", e.msg);
		return;
	}
	if (access(program, X_OK) < 0) {
		f = doctor_find(d, "kvm", DOCTOR_PROBLEM,
			"what KVM can do cannot be tried: %s: %s", program,
			strerror(errno));
		doctor_mend(f, "the installation is not complete: install pando again");
		return;
	}
	if (kvm_probe(program, "/dev/kvm", &p, &e) == 0) {
		judge_probe(d, &p);
		return;
	}
	f = doctor_find(d, "kvm", DOCTOR_PROBLEM, "%s (%s --probe)", e.msg, program);
	doctor_mend(f, "run it by hand; KVM on this host may hang");
}

static void
check_nested(struct doctor *d)
{
	static const char *const files[] = {"/sys/module/kvm_intel/parameters/nested",
		"/sys/module/kvm_amd/parameters/nested"};
	char v[16];

	for (size_t i = 0; i < 2; i++)
		if (read_setting(files[i], v, sizeof(v)))
			doctor_find(d, "nested", DOCTOR_OK,
				"VMs made here %s run VMs of their own (%s is %s)",
				v[0] == 'Y' || v[0] == '1' ? "can" : "cannot", files[i],
				v);
}

static void
check_nx_huge_pages(struct doctor *d)
{
	static const char path[] = "/sys/module/kvm/parameters/nx_huge_pages";
	struct doctor_finding *f;
	char v[16];

	if (!read_setting(path, v, sizeof(v)))
		return;
	if (v[0] != 'Y' && v[0] != '1' && v[0] != 'f') {
		doctor_find(d, "kvm-hugepages", DOCTOR_OK, "kvm.nx_huge_pages is %s", v);
		return;
	}
	f = doctor_find(d, "kvm-hugepages", DOCTOR_NOTE,
		"kvm.nx_huge_pages is %s: each VM starts a kernel thread, which makes creating VMs slow in a cgroup",
		v);
	doctor_mend(f,
		"if this CPU does not have the iTLB multihit bug (see /sys/devices/system/cpu/vulnerabilities/itlb_multihit): echo never | sudo tee %s; else "
		"mount cgroup2 with favordynmods",
		path);
}

int
doctor_favordynmods(const char *mounts)
{
	int found = -1;

	while (*mounts) {
		size_t n = strcspn(mounts, "\n");
		char line[1024], type[64], options[512];

		snprintf(line, sizeof(line), "%.*s", (int)n, mounts);
		if (sscanf(line, "%*s %*s %63s %511s", type, options) == 2 &&
			strcmp(type, "cgroup2") == 0)
			found = strstr(options, "favordynmods") || found == 1;
		mounts += n + (mounts[n] == '\n');
	}
	return found;
}

static void
check_cgroup(struct doctor *d)
{
	cleanup_free char *mounts = NULL;
	struct doctor_finding *f;
	size_t len;
	char v[16];

	/* It matters only where each VM starts a thread. */
	if (!read_setting("/sys/module/kvm/parameters/nx_huge_pages", v, sizeof(v)) ||
		v[0] == 'N')
		return;
	if (io_read_file("/proc/mounts", 1 << 20, &mounts, &len, NULL) < 0)
		return;
	switch (doctor_favordynmods(mounts)) {
	case 1:
		doctor_find(
			d, "cgroup", DOCTOR_OK, "cgroup2 is mounted with favordynmods");
		break;
	case 0:
		f = doctor_find(d, "cgroup", DOCTOR_NOTE,
			"cgroup2 is mounted without favordynmods: threads move between cgroups slowly");
		doctor_mend(f, "sudo mount -o remount,favordynmods /sys/fs/cgroup");
		break;
	}
}

/* The rest ----------------------------------------------------------------------------
 */

static void
check_namespaces(struct doctor *d)
{
	/* What a VMM does (vmm/seal.c). */
	const int flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;
	struct doctor_finding *f;
	struct err why;
	char v[32];

	if (userns_try(flags, &why) == 0) {
		doctor_find(d, "namespaces", DOCTOR_OK,
			"user namespaces can be made: VMMs run in their own");
		return;
	}
	f = doctor_find(d, "namespaces", DOCTOR_NOTE,
		"user namespaces cannot be used here (%s): VMMs run with less isolation, images are built with more rights",
		why.msg);
	if (read_setting("/proc/sys/kernel/unprivileged_userns_clone", v, sizeof(v)) &&
		v[0] == '0')
		doctor_mend(f, "sudo sysctl kernel.unprivileged_userns_clone=1");
	else if (read_setting("/proc/sys/user/max_user_namespaces", v, sizeof(v)) &&
		 v[0] == '0')
		doctor_mend(f, "sudo sysctl user.max_user_namespaces=10000");
	else if (read_setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", v,
			 sizeof(v)) &&
		 v[0] == '1')
		doctor_mend(
			f, "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0");
	else
		doctor_mend(f, "a container's or the system's policy forbids it");
}

static bool
have_program(const char *name)
{
	const char *path = getenv("PATH");
	char all[8192], *at, *folder, file[4400];

	snprintf(all, sizeof(all), "%s:/usr/sbin:/sbin:/usr/bin:/bin", path ? path : "");
	for (at = all; (folder = strsep(&at, ":"));) {
		snprintf(file, sizeof(file), "%.4096s/%s", folder, name);
		if (folder[0] && access(file, X_OK) == 0)
			return true;
	}
	return false;
}

static void
check_programs(struct doctor *d)
{
	static const struct {
		const char *program, *package, *what;
		bool machine; /* needed only where KVM boots no Linux */
	} needed[] = {
		{"mmdebstrap", "mmdebstrap", "building images", false},
		{"mke2fs", "e2fsprogs", "building images", false},
		{"cpio", "cpio", "building images", false},
		{"xz", "xz-utils", "building images", false},
		{"qemu-system-x86_64", "qemu-system-x86", "the test machine", true},
		{"iasl", "acpica-tools", "building pando itself", false},
	};
	char packages[256] = "", whats[256] = "";
	struct doctor_finding *f;

	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
		size_t n = strlen(packages), m = strlen(whats);

		if ((needed[i].machine && d->boots_linux) ||
			have_program(needed[i].program))
			continue;
		snprintf(packages + n, sizeof(packages) - n, " %s", needed[i].package);
		if (!strstr(whats, needed[i].what))
			snprintf(whats + m, sizeof(whats) - m, "%s%s", m ? ", " : "",
				needed[i].what);
	}
	if (!packages[0]) {
		doctor_find(d, "packages", DOCTOR_OK, "all programs are there");
		return;
	}
	f = doctor_find(d, "packages", DOCTOR_NOTE,
		"packages are missing, needed for %s:%s", whats, packages);
	doctor_mend(f, "sudo apt-get install%s", packages);
}

/* The nearest folder above that exists. */
static bool
space_of(const char *path, struct statvfs *st)
{
	char at[PATHS_MAX];

	snprintf(at, sizeof(at), "%s", path);
	while (statvfs(at, st) < 0) {
		char *slash = strrchr(at, '/');

		if (errno != ENOENT || !slash || slash == at)
			return statvfs("/", st) == 0;
		*slash = '\0';
	}
	return true;
}

static void
check_space(struct doctor *d, const char *id, const char *path, uint64_t want_mib)
{
	struct doctor_finding *f;
	char free_text[32];
	struct statvfs st;
	uint64_t mib;

	if (!space_of(path, &st))
		return;
	mib = (uint64_t)st.f_bavail * st.f_frsize >> 20;
	out_mib(free_text, sizeof(free_text), mib);
	if (mib >= want_mib) {
		doctor_find(d, id, DOCTOR_OK, "%s free at %s", free_text, path);
		return;
	}
	f = doctor_find(d, id, DOCTOR_NOTE, "only %s free at %s", free_text, path);
	doctor_mend(f, "free some, or set %s to a roomier place",
		strcmp(id, "home-space") == 0 ? "PANDO_HOME" : "PANDO_IMAGES");
}

static void
check_home(struct doctor *d)
{
	struct doctor_finding *f;
	char home[PATHS_MAX];
	struct err e = {0};

	if (paths_home(home, sizeof(home), &e) < 0) {
		f = doctor_find(d, "home", DOCTOR_PROBLEM, "%s", e.msg);
		doctor_mend(f, "set PANDO_HOME to a short absolute path");
		return;
	}
	/* One that is not there yet is made. */
	if (access(home, W_OK | X_OK) < 0 && errno != ENOENT) {
		f = doctor_find(d, "home", DOCTOR_PROBLEM, "state cannot be written in %s: %s",
			home, strerror(errno));
		doctor_mend(f, "make it your user's to write, or set PANDO_HOME to a folder that is");
	} else {
		doctor_find(d, "home", DOCTOR_OK, "state is kept in %s", home);
	}
	check_space(d, "home-space", home, 2048);
}

static void
check_image(struct doctor *d)
{
	char images[PATHS_MAX], path[PATHS_MAX + 32];
	struct doctor_finding *f;
	struct err e = {0};

	if (paths_images(images, sizeof(images), &e) < 0) {
		f = doctor_find(d, "image", DOCTOR_PROBLEM, "%s", e.msg);
		doctor_mend(f, "set PANDO_IMAGES to an absolute path");
		return;
	}
	snprintf(path, sizeof(path), "%s/default/image.json", images);
	if (access(path, R_OK) == 0) {
		doctor_find(
			d, "image", DOCTOR_OK, "there is a default image in %s", images);
	} else {
		f = doctor_find(d, "image", DOCTOR_NOTE,
			"there is no default image yet in %s", images);
		doctor_mend(f, "nothing: the first `pando run` builds it");
		check_space(d, "image-space", images, 4096);
	}
}

static void
check_memory(struct doctor *d)
{
	cleanup_free char *text = NULL;
	struct doctor_finding *f;
	unsigned long long kib;
	const char *at;
	char free_text[32];
	size_t len;

	if (io_read_file("/proc/meminfo", 1 << 16, &text, &len, NULL) < 0 ||
		!(at = strstr(text, "MemAvailable:")) ||
		sscanf(at, "MemAvailable: %llu", &kib) != 1)
		return;
	out_mib(free_text, sizeof(free_text), kib >> 10);
	if (kib >> 10 >= 1024) {
		doctor_find(
			d, "memory", DOCTOR_OK, "%s of memory are available", free_text);
		return;
	}
	f = doctor_find(d, "memory", DOCTOR_NOTE,
		"only %s of memory are available: a VM wants 512 MiB", free_text);
	doctor_mend(f, "run fewer VMs, or smaller ones (--mem-size)");
}

bool
doctor_chosen_word(const char *text, char *dst, size_t cap)
{
	const char *open = strchr(text, '['), *close = open ? strchr(open, ']') : NULL;

	if (!close || (size_t)(close - open) > cap)
		return false;
	snprintf(dst, cap, "%.*s", (int)(close - open - 1), open + 1);
	return true;
}

static void
check_huge_pages(struct doctor *d)
{
	static const char path[] = "/sys/kernel/mm/transparent_hugepage/enabled";
	struct doctor_finding *f;
	char text[128], word[32];

	if (!read_setting(path, text, sizeof(text)) ||
		!doctor_chosen_word(text, word, sizeof(word)))
		return;
	if (strcmp(word, "never") != 0) {
		doctor_find(
			d, "huge-pages", DOCTOR_OK, "transparent huge pages: %s", word);
		return;
	}
	f = doctor_find(d, "huge-pages", DOCTOR_NOTE,
		"transparent huge pages are off: a branch of a 512 MiB VM takes milliseconds longer");
	doctor_mend(f, "echo madvise | sudo tee %s", path);
}

static void
check_overcommit(struct doctor *d)
{
	struct doctor_finding *f;
	char v[16];

	if (!read_setting("/proc/sys/vm/overcommit_memory", v, sizeof(v)) || v[0] != '2')
		return;
	f = doctor_find(d, "overcommit", DOCTOR_NOTE,
		"vm.overcommit_memory is 2: branches are refused when their memory, all of it, would not fit");
	doctor_mend(f, "sudo sysctl vm.overcommit_memory=0");
}

bool
doctor_read_scopes(struct doctor *d, const struct json *j, int tok)
{
	struct doctor_finding *f;
	bool limits, lingers, machined;
	char how[16], detail[400];

	if (json_str(j, json_get(j, tok, "how"), how, sizeof(how)) < 0 ||
		json_str(j, json_get(j, tok, "detail"), detail, sizeof(detail)) < 0 ||
		json_bool(j, json_get(j, tok, "limits"), &limits) < 0 ||
		json_bool(j, json_get(j, tok, "lingers"), &lingers) < 0 ||
		json_bool(j, json_get(j, tok, "machined"), &machined) < 0)
		return false;
	if (strcmp(how, "unknown") == 0)
		return true;
	if (!lingers) {
		f = doctor_find(d, "scopes", DOCTOR_NOTE,
			"%s, which ends with your last session, and VMs with it", detail);
		doctor_mend(f, "sudo loginctl enable-linger \"$USER\"");
	} else if (limits) {
		doctor_find(d, "scopes", DOCTOR_OK, "%s%s", detail,
			machined ? "; machinectl lists them" : "");
	} else {
		f = doctor_find(d, "scopes", DOCTOR_NOTE, "%s", detail);
		doctor_mend(f,
			strcmp(how, "none") == 0
				? "for limits of each VM, start pandod where a systemd is (log in, or as a service), or in a control group that is writable"
				: "for limits of each VM, start pandod where a systemd is (log in, or as a service), or alone in a control group that has the memory and cpu controllers");
	}
	return true;
}

static void
check_pandod(struct doctor *d)
{
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	struct doctor_finding *f;
	char version[64] = "?";
	uint64_t pid = 0;
	struct err e = {0};

	if (client_open(NULL, 0, &c, &e) < 0) {
		doctor_find(d, "pandod", DOCTOR_OK,
			"no pandod runs; the first command starts one");
		return;
	}
	if (client_call(c, "GET", "/v1/version", NULL, &reply, &e) < 0) {
		f = doctor_find(d, "pandod", DOCTOR_PROBLEM, "%s", e.msg);
		doctor_mend(f, "see %s/pandod.log", client_home(c));
		return;
	}
	(void)json_str(
		reply.json, json_get(reply.json, 0, "version"), version, sizeof(version));
	(void)json_u64(reply.json, json_get(reply.json, 0, "pid"), &pid);
	(void)doctor_read_scopes(d, reply.json, json_get(reply.json, 0, "scopes"));
	if (strcmp(version, PANDO_VERSION) == 0) {
		doctor_find(d, "pandod", DOCTOR_OK, "pandod %s runs (pid %llu)", version,
			(unsigned long long)pid);
		return;
	}
	f = doctor_find(d, "pandod", DOCTOR_NOTE,
		"pandod %s runs (pid %llu), this is pando %s", version,
		(unsigned long long)pid, PANDO_VERSION);
	doctor_mend(f, "kill %llu; VMs go on, and the next command starts the new one",
		(unsigned long long)pid);
}

void
doctor_check_all(struct doctor *d)
{
	doctor_check_kvm(d);
	check_restores(d);
	check_nested(d);
	check_nx_huge_pages(d);
	check_cgroup(d);
	check_huge_pages(d);
	check_overcommit(d);
	check_memory(d);
	check_namespaces(d);
	check_home(d);
	check_image(d);
	check_programs(d);
	check_pandod(d);
}
