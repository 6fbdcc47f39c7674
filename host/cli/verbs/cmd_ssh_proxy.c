/*
 * `pando ssh-proxy`: what stock OpenSSH reaches a VM through, as `pando ssh-config` says
 * it. Asks a pandod that runs, starts none, and gives ssh the connection itself when that
 * can take it (ProxyUseFdpass).
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/vmssh.h"

#define SUFFIX ".pando"
#define NAME_MAX_BYTES 255
#define PIECE 65536u

extern const struct verb verb_ssh_proxy;

static const struct opt options[] = {
	{256, "home", "FOLDER", "the PANDO_HOME whose VM it is", COMPLETE_FOLDER},
	{257, "fdpass", NULL,
		"give standard output, when it is a socket, the connection itself, and end (ProxyUseFdpass)",
		COMPLETE_NOTHING},
	{258, "known-host", "HOST",
		"only print the VM's host key, as known_hosts(5) has it for HOST",
		COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* One direction, until either end is closed. */
static void
pump(int from, int to)
{
	cleanup_free char *buf = malloc(PIECE);
	ssize_t n;

	while (buf && (n = io_read(from, buf, PIECE)) > 0)
		if (io_write_full(to, buf, (size_t)n) < 0)
			return;
}

static void *
feed(void *arg)
{
	int fd = *(const int *)arg;

	pump(STDIN_FILENO, fd);
	/* Wakes the other direction, which still reads what has come. */
	shutdown(fd, SHUT_RDWR);
	return NULL;
}

/* Ends when either side closes; what is left of a thread ends with the process. */
static int
splice_both(int fd, struct err *e)
{
	static int shared;
	pthread_t thread;
	int r;

	shared = fd;
	r = -pthread_create(&thread, NULL, feed, &shared);
	if (r < 0)
		return err_sys(e, r, "a thread");
	pthread_detach(thread);
	pump(fd, STDOUT_FILENO);
	return 0;
}

static bool
is_unix_socket(int fd)
{
	int domain = 0;
	socklen_t len = sizeof(domain);

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 &&
	       domain == AF_UNIX;
}

static int
print_known_host(const struct client_vm *vm, const char *host, struct err *e)
{
	/* It becomes a line of a file that says who is trusted. */
	if (!*host || strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				   "0123456789.-_[]:") != strlen(host))
		return err_set(e, -EINVAL, "--known-host \"%.60s\" is no host", host);
	if (!vm->host_key[0])
		return err_set(e, -ENOKEY,
			"\"%s\" has not acknowledged an SSH host key yet",
			client_vm_name(vm));
	printf("%s %s\n", host, vm->host_key);
	return 0;
}

static int
connect_through(const struct client_vm *vm, bool fdpass, struct err *e)
{
	/* Static: a thread may still use it when this returns. */
	static int fd = -1;
	int r = pick_reachable(vm, e);

	if (r == 0 && !vm->host_key[0])
		r = err_set(e, -EAGAIN, "\"%s\": its agent is not ready (state \"%s\")",
			client_vm_name(vm), vm->state);
	if (r == 0)
		r = vmssh_dial(vm, &fd, e);
	if (r < 0)
		return r;
	if (!fdpass || !is_unix_socket(STDOUT_FILENO))
		return splice_both(fd, e);
	r = io_send_fds(STDOUT_FILENO, "", 1, &fd, 1);
	return r < 0 ? err_sys(e, r, "giving ssh the connection") : 0;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_ssh_proxy, argc, argv);
	const char *home = NULL, *host = NULL, *word = NULL;
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	char name[NAME_MAX_BYTES + 1];
	bool fdpass = false;
	struct err e = {0};
	size_t len;
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == 256)
			home = s.arg;
		else if (key == 257)
			fdpass = true;
		else if (key == 258)
			host = s.arg;
		else if ((key = opt_one_word(&s, key, &word, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	}
	len = word ? strlen(word) : 0;
	if (len > strlen(SUFFIX) && strcmp(word + len - strlen(SUFFIX), SUFFIX) == 0)
		len -= strlen(SUFFIX);
	if (!len || len > NAME_MAX_BYTES) {
		err_set(&e, -EINVAL, "ssh-proxy needs a VM: its name, or name" SUFFIX);
		return opt_leave(&s, OPT_ERROR, &e);
	}
	snprintf(name, sizeof(name), "%.*s", (int)len, word);
	r = client_open(home, 0, &c, &e);
	if (r == 0)
		r = pick_vm(c, name, &vm, NULL, &e);
	if (r == 0)
		r = host ? print_known_host(&vm, host, &e)
			 : connect_through(&vm, fdpass, &e);
	return r < 0 ? out_fail(&e) : EXIT_OK;
}

const struct verb verb_ssh_proxy = {
	.name = "ssh-proxy",
	.summary = "Connects OpenSSH to a VM; `pando ssh-config` says how",
	.run = run,
	.usage = "[options] <vm>",
	.options = options,
	.text = "Standard input and output become those of the VM's SSH server, over the vsock; it ends when either is\n"
		"closed. <vm> may have the end \"" SUFFIX
		"\". Starts nothing: a pandod must run.",
	.words = COMPLETE_VM,
};
