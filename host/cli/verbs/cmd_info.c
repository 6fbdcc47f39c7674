#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_info;

static void
line(const char *what, const char *value)
{
	char plain[1024];

	printf("%-12s %s\n", what, out_plain(plain, sizeof(plain), value));
}

static void
print_stats(const struct client_reply *reply)
{
	static const struct {
		const char *key, *say;
		enum { COUNT, BYTES, MILLISECONDS } unit;
	} known[] = {
		{"uptime_ms", "uptime", MILLISECONDS},
		{"vcpu_exits", "cpu exits", COUNT},
		{"disk_read_bytes", "disk read", BYTES},
		{"disk_write_bytes", "disk written", BYTES},
		{"disk_segment_bytes", "own segment", BYTES},
		{"vsock_connections", "connections", COUNT},
	};
	int stats = json_get(reply->json, 0, "stats");
	char text[64];
	uint64_t v;

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (json_u64(reply->json, json_get(reply->json, stats, known[i].key),
			    &v) < 0)
			continue;
		switch (known[i].unit) {
		case BYTES:
			out_bytes(text, sizeof(text), v);
			break;
		case MILLISECONDS:
			out_age(text, sizeof(text), v);
			break;
		default:
			snprintf(text, sizeof(text), "%llu", (unsigned long long)v);
		}
		line(known[i].say, text);
	}
}

/* What the VMM and the guest say of memory that is not the guest's now. */
static void
print_balloon(const struct client_vm *vm, const struct client_reply *reply)
{
	const int balloon = json_get(reply->json, 0, "balloon");
	char text[64], both[160];
	uint64_t target, v;

	if (balloon < 0)
		return;
	if (json_u64(reply->json, json_get(reply->json, balloon, "mem_target_mib"), &target) == 0 &&
		json_u64(reply->json, json_get(reply->json, balloon, "balloon_bytes"), &v) == 0 &&
		(target != vm->mem_mib || v)) {
		snprintf(both, sizeof(both), "%s of it given up",
			out_bytes(text, sizeof(text), v));
		snprintf(both + strlen(both), sizeof(both) - strlen(both), ", to keep %s",
			out_mib(text, sizeof(text), target));
		line("balloon", both);
	}
	if (json_u64(reply->json, json_get(reply->json, balloon, "guest_free_bytes"), &v) == 0)
		line("guest free", out_bytes(text, sizeof(text), v));
	if (json_u64(reply->json, json_get(reply->json, balloon, "given_back_bytes"), &v) == 0)
		line("given back", out_bytes(text, sizeof(text), v));
}

static void
print_usage(const struct client_vm *vm)
{
	char text[64], more[64], both[160];

	if (vm->has_memory) {
		snprintf(both, sizeof(both), "%s, and %s shared with other VMs",
			out_bytes(text, sizeof(text), vm->memory_unique_bytes),
			out_bytes(more, sizeof(more), vm->memory_shared_bytes));
		line("own memory", both);
	}
	if (vm->has_usage)
		line("own disk", out_bytes(text, sizeof(text), vm->disk_own_bytes));
}

static void
print_vm(const struct client_vm *vm, const struct client_reply *reply)
{
	uint64_t now_ms = io_wall_ms();
	char text[256];

	line("id", vm->id);
	line("name", vm->alias[0] ? vm->alias : "-");
	line("state", vm->state);
	if (vm->reason)
		line("reason", vm->reason);
	if (vm->reboots) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)vm->reboots);
		line("reboots", text);
	}
	line("age", out_age(text, sizeof(text),
			    now_ms > vm->created_ms ? now_ms - vm->created_ms : 0));
	line("memory", out_mib(text, sizeof(text), vm->mem_mib));
	print_balloon(vm, reply);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)vm->vcpus);
	line("cpus", text);
	out_mib(text, sizeof(text), vm->disk_mib);
	if (vm->resize_mib > vm->disk_mib) {
		size_t len = strlen(text);
		char to[32];

		snprintf(text + len, sizeof(text) - len, ", %s from its next start on",
			out_mib(to, sizeof(to), vm->resize_mib));
	}
	line("disk", text);
	if (vm->disk_bps || vm->disk_iops) {
		text[0] = '\0';
		if (vm->disk_bps)
			out_bytes(text, sizeof(text), vm->disk_bps);
		if (vm->disk_iops)
			snprintf(text + strlen(text), sizeof(text) - strlen(text),
				"%s%llu requests", vm->disk_bps ? " and " : "",
				(unsigned long long)vm->disk_iops);
		snprintf(text + strlen(text), sizeof(text) - strlen(text), " in a second");
		line("limits", text);
	}
	print_usage(vm);
	line("kernel", vm->kernel ? vm->kernel : "-");
	line("rootfs", vm->rootfs ? vm->rootfs : "-");
	line("parent", vm->parent[0] ? vm->parent : "-");
	if (vm->commit[0])
		line("commit", vm->commit);
	for (size_t i = 0; i < vm->n_children; i++)
		line(i ? "" : "children", vm->children[i]);
	for (size_t i = 0; i < vm->n_labels; i++) {
		snprintf(text, sizeof(text), "%s=%s", vm->labels[i].key,
			vm->labels[i].value);
		line(i ? "" : "labels", text);
	}
	if (vm->pid) {
		snprintf(text, sizeof(text), "%lld", (long long)vm->pid);
		line("pid", text);
	}
	if (vm->generation[0])
		line("generation", vm->generation);
	if (vm->host_key[0])
		line("host key", vm->host_key);
	if (vm->agent_socket[0])
		line("socket", vm->agent_socket);
	if (vm->console)
		line("console", vm->console);
	print_stats(reply);
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_info, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	const char *name = NULL;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	}
	if (pick_open(name, &c, &vm, &reply, &e) < 0)
		return out_fail(&e);
	if (s.json)
		puts(reply.text);
	else if (s.quiet)
		puts(vm.id);
	else
		print_vm(&vm, &reply);
	return EXIT_OK;
}

const struct verb verb_info = {
	.name = "info",
	.aliases = "inspect",
	.summary = "All that is known about one VM",
	.run = run,
	.usage = "[vm]",
	.text = "A VM is named by its alias, its id, or at least 4 leading digits of the id. Without one: $PANDO_VM,\n"
		"else the one checked out here, else the only VM that runs. Own memory is what comes back when the VM goes:\n"
		"pages that no other VM has; a branch shares what neither it nor its parent wrote since.",
	.words = COMPLETE_VM,
};
