#include "host/cli/remote.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "host/cli/pick.h"

int
remote_append(char **text, const char *before, const char *word, const char *after)
{
	cleanup_free char *quoted = NULL;
	char *longer;
	int r = ssh_quote(&quoted, word);

	if (r < 0)
		return r;
	if (asprintf(&longer, "%s%s%s%s", *text ? *text : "", before, quoted, after) < 0)
		return -ENOMEM;
	free(*text);
	*text = longer;
	return strlen(longer) > SSH_COMMAND_MAX ? -E2BIG : 0;
}

int
remote_token(char token[static REMOTE_TOKEN_LEN + 1], struct err *e)
{
	uint8_t random[REMOTE_TOKEN_LEN / 2];

	if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
		return err_sys(e, -errno, "getrandom");
	text_hex(token, random, sizeof(random));
	return 0;
}

int
remote_signals(bool and_size)
{
	sigset_t set;

	pick_end_signals(&set);
	if (and_size)
		sigaddset(&set, SIGWINCH);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -1;
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int
remote_run(struct ssh_link *link, const struct ssh_command *c, int *ret_status,
	struct err *e)
{
	struct termios was, raw;
	bool is_raw = c->tty && tcgetattr(STDIN_FILENO, &was) == 0;
	int r;

	if (is_raw) {
		raw = was;
		cfmakeraw(&raw);
		tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
	}
	r = ssh_link_run(link, c, ret_status, e);
	if (is_raw)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &was);
	return r;
}
