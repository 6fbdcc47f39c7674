#include "guest-agent/commands.h"

#include <stdio.h>
#include <string.h>

#include "common/err.h"
#include "guest-agent/supervisor/report.h"
#include "guest-agent/supervisor/rpc.h"
#include "guest-agent/supervisor/rpc_place.h"
#include "guest-agent/supervisor/rpc_watch.h"
#include "guest-agent/supervisor/supervisor.h"
#include "guest-agent/tools/doctor_guest.h"
#include "guest-agent/tools/files_main.h"

/* "<name><end>" -> name, when that is a coding agent's. */
static bool
called(const char *program, const char *end, char name[static RPC_NAME_MAX + 1])
{
	size_t len = strlen(program), end_len = strlen(end);

	if (len <= end_len || len - end_len > RPC_NAME_MAX ||
		strcmp(program + len - end_len, end) != 0)
		return false;
	snprintf(name, RPC_NAME_MAX + 1, "%.*s", (int)(len - end_len), program);
	return !rpc_name_check(name, NULL);
}

static int
supervisor_command(int argc, char **argv, const char *name)
{
	bool wanted = false;

	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "--root=", 7) == 0)
			rpc_root_set(argv[i] + 7);
		else if (strcmp(argv[i], "--wanted") == 0)
			wanted = true;
		else if (!name && argv[i][0] != '-')
			name = argv[i];
		else
			name = "";
	}
	if (!name || !*name) {
		fputs("usage: pando-agent rpc-keeper [--root=FOLDER] NAME\n", stderr);
		return EXIT_USAGE;
	}
	return supervisor_main(name, wanted);
}

bool
commands_run(int argc, char **argv, int *ret_status)
{
	const char *slash = strrchr(argv[0], '/');
	char name[RPC_NAME_MAX + 1];
	const char *program = slash ? slash + 1 : argv[0];

	if (called(program, "-keeper", name)) {
		*ret_status = supervisor_command(argc, argv, name);
	} else if (called(program, "-rpc", name)) {
		*ret_status = rpc_watch_main(name, false);
	} else if (argc > 1 && strcmp(argv[1], "rpc") == 0) {
		*ret_status = rpc_main(argc - 1, argv + 1);
	} else if (argc > 1 && strcmp(argv[1], "rpc-keeper") == 0) {
		*ret_status = supervisor_command(argc - 1, argv + 1, NULL);
	} else if (argc > 1 && strcmp(argv[1], "files") == 0) {
		*ret_status = files_main(argc - 1, argv + 1);
	} else if (argc > 1 && strcmp(argv[1], "report") == 0) {
		*ret_status = report_main(argc - 1, argv + 1);
	} else if (argc > 1 && strcmp(argv[1], "doctor") == 0) {
		*ret_status = doctor_main(argc - 1, argv + 1);
	} else {
		return false;
	}
	return true;
}
