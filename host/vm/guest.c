#include "host/vm/guest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "host/agent/agent_client.h"

#define SAID_MAX 300

struct said {
	char text[SAID_MAX]; /* the last of stderr */
	size_t len;
};

static int
on_output(void *ctx, int stream, const void *buf, size_t len)
{
	struct said *s = ctx;

	if (stream == 2)
		text_keep_last(s->text, sizeof(s->text), &s->len, buf, len);
	return 0;
}

static int
on_timer(void *ctx, struct agent_session *session)
{
	(void)ctx;
	(void)session;
	return -ETIMEDOUT;
}

static int
run(const char *socket, const char *const *argv, int timeout_ms, struct said *said,
	struct agent_exec_result *ret, struct err *e)
{
	cleanup_close int timer =
		timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	struct itimerspec at = {
		.it_value = {timeout_ms / 1000, (long)(timeout_ms % 1000) * 1000000}};
	struct agent_exec_req req = {.argv = argv, .timeout_ms = (uint64_t)timeout_ms};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;

	if (timer < 0 || timerfd_settime(timer, 0, &at, NULL) < 0)
		return err_sys(e, -errno, "a timer");
	io.output = on_output;
	io.wake_fd = timer;
	io.wake = on_timer;
	io.ctx = said;
	return agent_exec(socket, &req, &io, ret, e);
}

int
guest_script(const char *agent_socket, const char *script, int timeout_ms, struct err *e)
{
	const char *const argv[] = {"/bin/sh", "-c", script, NULL};
	struct agent_exec_result result = {0};
	struct said said = {.len = 0};
	char shown[SAID_MAX + 100];
	int r = run(agent_socket, argv, timeout_ms, &said, &result, e), status;

	if (r < 0)
		return r;
	status = agent_exit_status(&result);
	if (status == 0)
		return 0;
	while (said.len &&
		(said.text[said.len - 1] == '\n' || said.text[said.len - 1] == ' '))
		said.len--;
	log_escape(shown, sizeof(shown), said.text, said.len);
	if (result.kind != AGENT_EXITED || !said.len)
		return err_set(
			e, -EIO, "the guest's command ended with status %d", status);
	return err_set(e, -EIO, "the guest says: %s", shown);
}

int
guest_power_off(const char *agent_socket, int timeout_ms, struct err *e)
{
	const char *const argv[] = {"systemctl", "poweroff", NULL};
	struct agent_exec_result result = {0};
	struct said said = {.len = 0};
	int r = run(agent_socket, argv, timeout_ms, &said, &result, e);

	/* The agent may go before its answer does. */
	return r == -EPIPE ? 0 : r;
}

int
guest_grow_root(
	const char *agent_socket, uint64_t disk_mib, int timeout_ms, struct err *e)
{
	char script[640];

	/* The guest hears of the new size by an interrupt, a moment after the VMM has it.
	 */
	snprintf(script, sizeof(script),
		"PATH=$PATH:/usr/sbin:/sbin\n"
		"d=$(findmnt -nro SOURCE /) && d=$(readlink -f \"$d\") || exit 1\n"
		"s=/sys/class/block/${d##*/}/size i=0\n"
		"while [ \"$(cat \"$s\")\" -lt %llu ] && [ $i -lt 50 ]; do\n"
		"  sleep 0.1; i=$((i + 1))\n"
		"done\n"
		"said=$(resize2fs \"$d\" 2>&1) || { echo \"$said\" | tail -n 1 >&2; exit 1; }\n",
		(unsigned long long)disk_mib * 2048);
	return guest_script(agent_socket, script, timeout_ms, e);
}
