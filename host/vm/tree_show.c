#include "host/vm/tree_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/text.h"
#include "host/vm/reset_row.h"

#define NS_PER_MS 1000000ull
#define STATS_TIMEOUT_MS 1000

static void
stats_json(const struct vmm_stats_answer *s, struct json_out *out)
{
	json_out_object(out, "stats");
	json_out_u64(out, "uptime_ms", s->uptime_ns / NS_PER_MS);
	json_out_u64(out, "vcpu_exits", s->vcpu_exits);
	json_out_u64(out, "disk_read_bytes", s->disk_read_bytes);
	json_out_u64(out, "disk_write_bytes", s->disk_write_bytes);
	json_out_u64(out, "disk_segment_bytes", s->disk_segment_bytes);
	json_out_u64(out, "vsock_connections", s->vsock_connections);
	json_out_u64(out, "doorbells", s->doorbells);
	json_out_end_object(out);
}

static void
handshake_json(const struct agent_ack *ack, struct json_out *out)
{
	json_out_object(out, "hello");
	json_out_u64(out, "total_us", ack->total_us);
	json_out_array(out, "steps");
	for (unsigned i = 0; i < ack->n_steps; i++) {
		json_out_object(out, NULL);
		json_out_str(out, "step", ack->steps[i].name);
		json_out_u64(out, "us", ack->steps[i].us);
		json_out_end_object(out);
	}
	json_out_end_array(out);
	json_out_end_object(out);
}

void
vm_json(struct tree *t, const struct vm *vm, const char *key, struct json_out *out,
	const struct vm_answers *answers, const struct vm_usage *usage)
{
	const struct vm_row *row = &vm->row;
	char text[PATHS_MAX];

	json_out_object(out, key);
	json_out_str(out, "id", row->id);
	json_out_str(out, "alias", row->alias[0] ? row->alias : NULL);
	json_out_str(out, "state",
		vm_state_name(vm_is_rebooting(vm) ? VM_STARTING : row->state));
	json_out_str(out, "reason", row->reason[0] ? row->reason : NULL);
	json_out_u64(out, "reboots", vm->reboots);
	json_out_u64(out, "resets", vm->resets);
	json_out_str(out, "parent", row->parent[0] ? row->parent : NULL);
	json_out_str(out, "commit", row->commit[0] ? row->commit : NULL);
	json_out_str(out, "reset_to",
		vm_keeps_fork_point(row) ? "fork-point"
		: row->origin[0]	 ? row->origin
					 : NULL);
	json_out_array(out, "children");
	for (unsigned i = 0; i < t->n_vms; i++)
		if (t->vms[i]->parent_handle == vm->handle)
			json_out_str(out, NULL, t->vms[i]->row.id);
	json_out_end_array(out);
	json_out_u64(out, "created_ms", row->created_ms);
	json_out_u64(out, "mem_mib", row->mem_mib);
	json_out_u64(out, "vcpus", row->vcpus);
	json_out_u64(out, "disk_mib", row->disk_mib);
	json_out_u64(out, "disk_bps", row->limits.bps);
	json_out_u64(out, "disk_iops", row->limits.iops);
	if (row->resize_mib)
		json_out_u64(out, "resize_mib", row->resize_mib);
	else
		json_out_null(out, "resize_mib");
	json_out_str(out, "kernel", row->kernel);
	json_out_str(out, "rootfs", row->rootfs);
	json_out_object(out, "labels");
	for (unsigned i = 0; i < row->labels.n; i++)
		json_out_str(out, row->labels.items[i].key, row->labels.items[i].value);
	json_out_end_object(out);
	if (vm_state_lives(row->state) && row->pid)
		json_out_i64(out, "pid", row->pid);
	else
		json_out_null(out, "pid");
	json_out_u64(out, "paused_ms",
		(vm->paused_ns +
			(vm->paused_at_ns ? io_now_ns() - vm->paused_at_ns : 0)) /
			NS_PER_MS);
	text_hex(text, row->generation, sizeof(row->generation));
	json_out_str(out, "generation", text);
	json_out_str(out, "host_key", row->host_key[0] ? row->host_key : NULL);
	snprintf(
		text, sizeof(text), "%.4000s/vms/%s/agent.sock", t->config.home, row->id);
	json_out_str(out, "agent_socket", text);
	snprintf(text, sizeof(text), "%.4000s/vms/%s/console", t->config.home, row->id);
	json_out_str(out, "console", text);
	if (answers)
		stats_json(&answers->stats, out);
	if (answers && answers->has_balloon)
		vm_balloon_json(&answers->balloon, out);
	if ((answers || usage) && vm->ack.n_steps)
		handshake_json(&vm->ack, out);
	if (usage)
		vm_usage_json(usage, out);
	json_out_end_object(out);
}

static bool
has_labels(const struct vm_row *row, const struct labels *wanted)
{
	for (unsigned i = 0; i < wanted->n; i++) {
		const struct label *w = &wanted->items[i];
		bool found = false;

		for (unsigned j = 0; j < row->labels.n && !found; j++)
			found = strcmp(row->labels.items[j].key, w->key) == 0 &&
				strcmp(row->labels.items[j].value, w->value) == 0;
		if (!found)
			return false;
	}
	return true;
}

/* A VM's answer with what it takes of the host; the counting is done without the lock. */
static void
costly_json(struct tree *t, struct vm *vm, struct json_out *out,
	const struct vm_answers *answers)
{
	struct vm_usage usage;
	bool locked = vm_usage_begin(t, vm, &usage);

	pthread_mutex_unlock(&t->lock);
	if (locked)
		vm_usage_count(t, &usage);
	pthread_mutex_lock(&t->lock);
	vm_json(t, vm, NULL, out, answers, locked ? &usage : NULL);
	vm_usage_done(&usage);
}

int
tree_list(struct tree *t, const struct labels *filter, bool memory, struct json_out *out,
	struct err *e)
{
	cleanup_free struct vm **vms = NULL;
	unsigned n = 0;

	pthread_mutex_lock(&t->lock);
	vms = calloc(t->n_vms + 1, sizeof(struct vm *));
	if (!vms) {
		pthread_mutex_unlock(&t->lock);
		return err_set(e, -ENOMEM, "out of memory");
	}
	for (unsigned i = 0; i < t->n_vms; i++)
		if (!filter || has_labels(&t->vms[i]->row, filter)) {
			vms[n] = t->vms[i];
			vms[n++]->refs++;
		}
	json_out_object(out, NULL);
	json_out_array(out, "vms");
	for (unsigned i = 0; i < n; i++) {
		if (!memory)
			vm_json(t, vms[i], NULL, out, NULL, NULL);
		else if (vms[i]->listed) /* the lock is given up between two */
			costly_json(t, vms[i], out, NULL);
		vm_unref(vms[i]);
	}
	pthread_mutex_unlock(&t->lock);
	json_out_end_array(out);
	json_out_end_object(out);
	return 0;
}

int
tree_info(struct tree *t, const char *name, struct json_out *out, struct err *e)
{
	struct vm_answers a = {0};
	bool has_stats = false;
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_find(t, name, &vm, e);
	if (r == 0) {
		if (vm->ctl && !vm->dead && vm_state_lives(vm->row.state) && !vm->op) {
			pthread_mutex_unlock(&t->lock);
			has_stats = vmmctl_stats(vm->ctl, STATS_TIMEOUT_MS, true, &a.stats,
					    NULL, NULL) == 0;
			a.has_balloon = has_stats && (a.stats.tracks & VMM_HAS_BALLOON) &&
					vmmctl_balloon(vm->ctl, 0, STATS_TIMEOUT_MS,
						&a.balloon, NULL) == 0;
			pthread_mutex_lock(&t->lock);
		}
		costly_json(t, vm, out, has_stats ? &a : NULL);
		vm_unref(vm);
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

int
tree_disk(struct tree *t, const char *name, struct json_out *out, struct err *e)
{
	cleanup_free struct chain_link *links = NULL;
	char path[PATHS_MAX];
	struct vm *vm;
	size_t n = 0;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_find(t, name, &vm, e);
	if (r == 0) {
		r = db_chain(t->db, vm->row.id, &links, &n, e);
		if (r == 0) {
			json_out_object(out, NULL);
			json_out_u64(out, "disk_mib", vm_disk_mib(&vm->row));
			json_out_str(out, "base",
				vm->row.base_path[0] ? vm->row.base_path : NULL);
			json_out_array(out, "chain");
		}
		vm_unref(vm);
	}
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++) {
		json_out_object(out, NULL);
		snprintf(path, sizeof(path), "%.4000s/segments/%s.data", t->config.home,
			links[i].segment);
		json_out_str(out, "data", path);
		snprintf(path, sizeof(path), "%.4000s/segments/%s.index", t->config.home,
			links[i].segment);
		json_out_str(out, "index", path);
		if (links[i].records < 0)
			json_out_null(out, "records");
		else
			json_out_i64(out, "records", links[i].records);
		json_out_end_object(out);
	}
	json_out_end_array(out);
	json_out_end_object(out);
	return 0;
}
