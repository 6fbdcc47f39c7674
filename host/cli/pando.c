/*
 * `pando`: the command line. Runs as the user, holds nothing between two calls: what it
 * knows it asks pandod (host/client/client.h) or reads from files that pandod names. Commands
 * and files in a guest go straight to that VM's socket (host/agent/agent_client.h); a guest
 * that lies can spoil its own output and nothing else, and what it says is escaped before
 * it reaches a terminal unless it is the answer itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "host/cli/help.h"
#include "host/cli/out.h"
#include "host/cli/verb.h"

/* A descriptor 0, 1 or 2 that is closed would be given to the next file we open, and an
 * answer written into it. In the place of standard output stands one that takes nothing:
 * out_end() then says that the answer was lost. */
static void
fill_standard_fds(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			(void)open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_RDWR);
}

int
main(int argc, char **argv)
{
	char help[] = "help", version[] = "version";
	const struct verb *v;
	const char *near;

	fill_standard_fds();
	verb_use(verbs);
	signal(SIGPIPE,
		SIG_IGN); /* a closed stdout is found by out_end(), sockets say EPIPE */
	if (argc < 2) {
		help_all(stderr);
		return EXIT_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
		argv[1] = help;
	else if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)
		argv[1] = version;
	v = verb_find(argv[1]);
	if (!v && argv[1][0] == '-') {
		out_complain(
			"\"%s\" is no verb; options stand behind one: pando status -q",
			argv[1]);
		return EXIT_USAGE;
	}
	if (!v) {
		near = verb_nearest(argv[1]);
		out_complain("there is no verb \"%s\"%s%s%s", argv[1],
			near ? "; did you mean " : "",
			near ? near : "; `pando help` lists them", near ? "?" : "");
		return EXIT_USAGE;
	}
	return out_end(v->run(argc - 1, argv + 1));
}
