#include "host/vmmproc/kvm_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"

#define TIMEOUT_MS 15000
#define ANSWER_MAX 4096

int
kvm_probe_read(const char *line, size_t len, struct kvm_probe *ret, struct err *e)
{
	static const char *const kinds[] = {[KVM_PROBE_NONE] = "none",
		[KVM_PROBE_SMALL] = "small",
		[KVM_PROBE_LINUX] = "linux"};
	cleanup_json struct json *j = NULL;
	struct kvm_probe p = {0};
	char kind[16];

	if (json_parse(line, len, 256, &j, NULL) < 0 ||
		json_str(j, json_get(j, 0, "kvm"), kind, sizeof(kind)) < 0)
		return err_set(e, -EBADMSG, "the probe guest gave no answer");
	while (strcmp(kind, kinds[p.kind]) != 0)
		if (++p.kind > KVM_PROBE_LINUX)
			return err_set(e, -EBADMSG, "the probe guest gave no answer");
	if (json_str(j, json_get(j, 0, "detail"), p.detail, sizeof(p.detail)) < 0)
		snprintf(p.detail, sizeof(p.detail), "no more is known");
	(void)json_f64(j, json_get(j, 0, "create_vm_us"), &p.create_vm_us);
	if (json_str(j, json_get(j, 0, "dirty_pages"), p.dirty_pages,
		    sizeof(p.dirty_pages)) < 0 ||
		(strcmp(p.dirty_pages, "userfaultfd") != 0 &&
			strcmp(p.dirty_pages, "soft-dirty") != 0 &&
			strcmp(p.dirty_pages, "none") != 0))
		p.dirty_pages[0] = '\0';
	*ret = p;
	return 0;
}

/* In the child of a process that may have threads: only what is safe there. */
static _Noreturn void
become_probe(const char *program, char *const argv[], int out_fd)
{
	int null_fd = open("/dev/null", O_RDWR);

	dup2(null_fd, STDIN_FILENO);
	dup2(out_fd, STDOUT_FILENO);
	dup2(null_fd, STDERR_FILENO);
	execv(program, argv);
	_exit(127);
}

int
kvm_probe(const char *vmm_path, const char *device, struct kvm_probe *ret, struct err *e)
{
	cleanup_close int read_fd = -1, write_fd = -1;
	uint64_t end_ns = io_now_ns() + TIMEOUT_MS * UINT64_C(1000000), now_ns;
	char name[] = "pando-vmm", option[] = "--probe", path[256], answer[ANSWER_MAX];
	char *argv[] = {name, option, path, NULL};
	int fds[2], status;
	size_t len = 0;
	pid_t pid;

	snprintf(path, sizeof(path), "%s", device);
	if (pipe2(fds, O_CLOEXEC) < 0)
		return err_sys(e, -errno, "pipe");
	read_fd = fds[0];
	write_fd = fds[1];
	pid = fork();
	if (pid < 0)
		return err_sys(e, -errno, "fork");
	if (pid == 0)
		become_probe(vmm_path, argv, write_fd);
	close(TAKE_FD(write_fd));
	while (len < sizeof(answer) && (now_ns = io_now_ns()) < end_ns) {
		struct pollfd p = {.fd = read_fd, .events = POLLIN};
		ssize_t n;

		if (poll(&p, 1, (int)((end_ns - now_ns) / 1000000) + 1) <= 0)
			continue;
		n = io_read(read_fd, answer + len, sizeof(answer) - len);
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	if (io_now_ns() >= end_ns)
		kill(pid, SIGKILL); /* not reaped yet, so the number is still its own */
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return kvm_probe_read(answer, len, ret, e);
}
