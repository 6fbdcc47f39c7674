/* All verbs of `pando`, in the order of `pando help`. */
#include "host/cli/verb.h"

#include <stddef.h>

extern const struct verb verb_ssh_config, verb_ssh_proxy;
extern const struct verb verb_run, verb_status, verb_info, verb_execute, verb_branch,
	verb_tree, verb_copy, verb_logs, verb_alias, verb_pause, verb_resume, verb_delete,
	verb_disk, verb_doctor, verb_machine, verb_version, verb_completion, verb_help,
	verb_swarm, verb_stop, verb_start, verb_resize, verb_checkout, verb_head,
	verb_commit, verb_run_commit, verb_history, verb_tag, verb_diff, verb_verify,
	verb_gc, verb_prune, verb_limit, verb_reset, verb_env, verb_rpc, verb_reports,
	verb_connect, verb_tunnel;

const struct verb *const verbs[] = {
	&verb_run,
	&verb_branch,
	&verb_execute,
	&verb_connect,
	&verb_tunnel,
	&verb_copy,
	&verb_ssh_config,
	&verb_ssh_proxy,
	&verb_rpc,
	&verb_reports,
	&verb_swarm,
	&verb_status,
	&verb_info,
	&verb_tree,
	&verb_logs,
	&verb_alias,
	&verb_pause,
	&verb_resume,
	&verb_stop,
	&verb_start,
	&verb_resize,
	&verb_limit,
	&verb_reset,
	&verb_env,
	&verb_checkout,
	&verb_head,
	&verb_commit,
	&verb_run_commit,
	&verb_history,
	&verb_tag,
	&verb_diff,
	&verb_verify,
	&verb_prune,
	&verb_gc,
	&verb_delete,
	&verb_disk,
	&verb_machine,
	&verb_doctor,
	&verb_completion,
	&verb_version,
	&verb_help,
	NULL,
};

/* Whether `name` is one of the blank-separated words. */
