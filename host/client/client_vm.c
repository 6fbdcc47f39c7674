/* VMs as pandod describes them, and the calls about them (client.h). */
#include "host/client/client_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

void
client_vm_done(struct client_vm *vm)
{
	free(vm->reason);
	free(vm->kernel);
	free(vm->rootfs);
	free(vm->console);
	client_ids_free(vm->children);
	for (size_t i = 0; i < vm->n_labels; i++) {
		free(vm->labels[i].key);
		free(vm->labels[i].value);
	}
	free(vm->labels);
	*vm = (struct client_vm){0};
}

void
client_vms_done(struct client_vms *vms)
{
	for (size_t i = 0; i < vms->n; i++)
		client_vm_done(&vms->v[i]);
	free(vms->v);
	*vms = (struct client_vms){0};
}

void
client_ids_free(char **ids)
{
	for (char **id = ids; id && *id; id++)
		free(*id);
	free(ids);
}

const char *
client_vm_name(const struct client_vm *vm)
{
	return vm->alias[0] ? vm->alias : vm->id;
}

/* Absent and null are both "none". */
bool
client_is_none(const struct json *j, int tok)
{
	return tok < 0 || json_type(j, tok) == JSON_NULL;
}

int
client_read_text(
	const struct json *j, int vm, const char *key, bool must, char *dst, size_t cap)
{
	int tok = json_get(j, vm, key);

	dst[0] = '\0';
	if (client_is_none(j, tok))
		return must ? -EPROTO : 0;
	return json_str(j, tok, dst, cap);
}

int
client_read_dup(const struct json *j, int vm, const char *key, char **ret)
{
	int tok = json_get(j, vm, key);

	return client_is_none(j, tok) ? 0 : json_str_dup(j, tok, ret);
}

int
client_read_u64(const struct json *j, int vm, const char *key, uint64_t *ret)
{
	int tok = json_get(j, vm, key);

	return client_is_none(j, tok) ? 0 : json_u64(j, tok, ret);
}

int
client_read_ids(const struct json *j, int array, char ***ret)
{
	int n = client_is_none(j, array) ? 0 : json_size(j, array), r;
	char **ids;

	if (n && json_type(j, array) != JSON_ARRAY)
		return -EPROTO;
	ids = calloc((size_t)n + 1, sizeof(*ids));
	if (!ids)
		return -ENOMEM;
	for (int i = 0; i < n; i++) {
		r = json_str_dup(j, json_at(j, array, i), &ids[i]);
		if (r < 0) {
			client_ids_free(ids);
			return r;
		}
	}
	*ret = ids;
	return 0;
}

static int
read_labels(const struct json *j, int object, struct client_vm *vm)
{
	int n = client_is_none(j, object) ? 0 : json_size(j, object), it = 0, key, value,
	    r;

	if (!n)
		return 0;
	if (json_type(j, object) != JSON_OBJECT)
		return -EPROTO;
	vm->labels = calloc((size_t)n, sizeof(*vm->labels));
	if (!vm->labels)
		return -ENOMEM;
	while (json_next(j, object, &it, &key, &value)) {
		struct client_label *label = &vm->labels[vm->n_labels++];

		r = json_str_dup(j, key, &label->key);
		if (r == 0)
			r = json_str_dup(j, value, &label->value);
		if (r < 0)
			return r;
	}
	return 0;
}

static int
read_all(const struct json *j, int tok, struct client_vm *vm)
{
	int children = json_get(j, tok, "children"), pid = json_get(j, tok, "pid"), r;
	int usage = json_get(j, tok, "costs"), unique;

	if ((r = client_read_text(j, tok, "id", true, vm->id, sizeof(vm->id))) < 0 ||
		(r = client_read_text(
			 j, tok, "alias", false, vm->alias, sizeof(vm->alias))) < 0 ||
		(r = client_read_text(
			 j, tok, "state", true, vm->state, sizeof(vm->state))) < 0 ||
		(r = client_read_text(
			 j, tok, "parent", false, vm->parent, sizeof(vm->parent))) < 0 ||
		(r = client_read_text(
			 j, tok, "commit", false, vm->commit, sizeof(vm->commit))) < 0 ||
		(r = client_read_text(j, tok, "generation", false, vm->generation,
			 sizeof(vm->generation))) < 0 ||
		(r = client_read_text(j, tok, "host_key", false, vm->host_key,
			 sizeof(vm->host_key))) < 0 ||
		(r = client_read_text(j, tok, "agent_socket", false, vm->agent_socket,
			 sizeof(vm->agent_socket))) < 0 ||
		(r = client_read_dup(j, tok, "reason", &vm->reason)) < 0 ||
		(r = client_read_dup(j, tok, "kernel", &vm->kernel)) < 0 ||
		(r = client_read_dup(j, tok, "rootfs", &vm->rootfs)) < 0 ||
		(r = client_read_dup(j, tok, "console", &vm->console)) < 0 ||
		(r = client_read_u64(j, tok, "created_ms", &vm->created_ms)) < 0 ||
		(r = client_read_u64(j, tok, "mem_mib", &vm->mem_mib)) < 0 ||
		(r = client_read_u64(j, tok, "vcpus", &vm->vcpus)) < 0 ||
		(r = client_read_u64(j, tok, "disk_mib", &vm->disk_mib)) < 0 ||
		(r = client_read_u64(j, tok, "disk_bps", &vm->disk_bps)) < 0 ||
		(r = client_read_u64(j, tok, "disk_iops", &vm->disk_iops)) < 0 ||
		(r = client_read_u64(j, tok, "paused_ms", &vm->paused_ms)) < 0 ||
		(r = client_read_u64(j, tok, "resize_mib", &vm->resize_mib)) < 0 ||
		(r = client_read_u64(j, tok, "reboots", &vm->reboots)) < 0 ||
		(r = client_read_u64(j, tok, "resets", &vm->resets)) < 0 ||
		(r = client_is_none(j, pid) ? 0 : json_i64(j, pid, &vm->pid)) < 0 ||
		(r = client_read_ids(j, children, &vm->children)) < 0)
		return r;
	while (vm->children[vm->n_children])
		vm->n_children++;
	if (!client_is_none(j, usage)) {
		unique = json_get(j, usage, "memory_unique_bytes");
		vm->has_usage = true;
		vm->has_memory = !client_is_none(j, unique);
		if ((r = client_read_u64(j, usage, "memory_unique_bytes",
			     &vm->memory_unique_bytes)) < 0 ||
			(r = client_read_u64(j, usage, "memory_shared_bytes",
				 &vm->memory_shared_bytes)) < 0 ||
			(r = client_read_u64(
				 j, usage, "disk_own_bytes", &vm->disk_own_bytes)) < 0)
			return r;
	}
	return read_labels(j, json_get(j, tok, "labels"), vm);
}

int
client_vm_read(const struct json *j, int tok, struct client_vm *ret, struct err *e)
{
	struct client_vm vm = {0};
	int r = read_all(j, tok, &vm);

	if (r < 0) {
		client_vm_done(&vm);
		return err_set(e, r == -ENOMEM ? r : -EPROTO,
			r == -ENOMEM
				? "no memory"
				: "pandod described a VM in a way this pando does not understand; are both the same version?");
	}
	*ret = vm;
	return 0;
}

static int
read_vms(const struct json *j, struct client_vms *ret, struct err *e)
{
	struct client_vms vms = {0};
	int array = json_get(j, 0, "vms"), n, r;

	if (array < 0 || json_type(j, array) != JSON_ARRAY)
		return err_set(e, -EPROTO, "pandod's answer has no list of VMs");
	n = json_size(j, array);
	vms.v = calloc((size_t)n + 1, sizeof(*vms.v));
	if (!vms.v)
		return err_sys(e, -ENOMEM, "list of VMs");
	for (int i = 0; i < n; i++) {
		r = client_vm_read(j, json_at(j, array, i), &vms.v[i], e);
		if (r < 0) {
			client_vms_done(&vms);
			return r;
		}
		vms.n++;
	}
	(void)client_read_u64(j, 0, "pause_us", &vms.pause_us);
	*ret = vms;
	return 0;
}

void
client_hand_over(struct client_reply *own, struct client_reply *reply)
{
	if (!reply)
		return;
	*reply = *own;
	*own = (struct client_reply){0};
}

/* Calls; what the answer is made of is the caller's, the answer itself goes to reply or
 * is dropped. */
static int
call_vm(struct client *c, const char *method, const char *path, const char *body,
	struct client_vm *ret, struct client_reply *reply, struct err *e)
{
	cleanup_client_reply struct client_reply own = {0};
	int r = client_call(c, method, path, body, &own, e);

	if (r == 0)
		r = client_vm_read(own.json, 0, ret, e);
	if (r < 0)
		return r;
	client_hand_over(&own, reply);
	return 0;
}

int
client_call_vms(struct client *c, const char *method, const char *path, const char *body,
	struct client_vms *ret, struct client_reply *reply, struct err *e)
{
	cleanup_client_reply struct client_reply own = {0};
	int r = client_call(c, method, path, body, &own, e);

	if (r == 0)
		r = read_vms(own.json, ret, e);
	if (r < 0)
		return r;
	client_hand_over(&own, reply);
	return 0;
}

int
client_list_with(struct client *c, const char *const *labels, size_t n_labels,
	unsigned flags, struct client_vms *ret, struct client_reply *reply, struct err *e)
{
	char path[2048], encoded[1024];
	size_t at = (size_t)snprintf(path, sizeof(path), "/v1/vms");

	for (size_t i = 0; i < n_labels; i++) {
		if (client_percent_encode(encoded, sizeof(encoded), labels[i]) < 0 ||
			at + strlen(encoded) + 32 > sizeof(path))
			return err_set(e, -ENAMETOOLONG, "the labels are too long");
		at += (size_t)snprintf(path + at, sizeof(path) - at, "%clabel=%s",
			i ? '&' : '?', encoded);
	}
	if (flags & CLIENT_MEMORY)
		snprintf(
			path + at, sizeof(path) - at, "%cmemory=1", n_labels ? '&' : '?');
	return client_call_vms(c, "GET", path, NULL, ret, reply, e);
}

int
client_list(struct client *c, const char *label, struct client_vms *ret,
	struct client_reply *reply, struct err *e)
{
	return client_list_with(c, &label, label ? 1 : 0, 0, ret, reply, e);
}

int
client_get(struct client *c, const char *vm, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	char path[1024];
	int r = client_vm_path(path, sizeof(path), vm, "", e);

	return r < 0 ? r : call_vm(c, "GET", path, NULL, ret, reply, e);
}

void
client_put_labels(struct json_out *o, const char *const *labels, size_t n)
{
	if (!n)
		return;
	json_out_object(o, "labels");
	for (size_t i = 0; i < n; i++) {
		const char *eq = strchr(labels[i], '=');
		char key[128];

		snprintf(key, sizeof(key), "%.*s", eq ? (int)(eq - labels[i]) : 127,
			labels[i]);
		json_out_str(o, key, eq ? eq + 1 : "");
	}
	json_out_end_object(o);
}

static void
put_env(struct json_out *o, const struct env *env)
{
	char name[ENV_NAME_MAX + 1];

	if (!env || !env->n)
		return;
	json_out_object(o, "env");
	for (size_t i = 0; i < env->n; i++) {
		size_t len = strcspn(env->v[i], "=");

		snprintf(name, sizeof(name), "%.*s", (int)len, env->v[i]);
		json_out_str(o, name, env->v[i] + len + 1);
	}
	json_out_end_object(o);
}

int
client_body_end(struct json_out *o, struct err *e)
{
	json_out_end_object(o);
	return o->error ? err_sys(e, o->error, "request") : 0;
}

int
client_run(struct client *c, const struct client_run *spec, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	int r;

	json_out_object(&o, NULL);
	if (spec->alias)
		json_out_str(&o, "alias", spec->alias);
	if (spec->mem_mib)
		json_out_u64(&o, "mem_mib", spec->mem_mib);
	if (spec->vcpus)
		json_out_u64(&o, "vcpus", spec->vcpus);
	if (spec->disk_mib)
		json_out_u64(&o, "disk_mib", spec->disk_mib);
	if (spec->disk_bps)
		json_out_u64(&o, "disk_bps", spec->disk_bps);
	if (spec->disk_iops)
		json_out_u64(&o, "disk_iops", spec->disk_iops);
	if (spec->kernel)
		json_out_str(&o, "kernel", spec->kernel);
	if (spec->rootfs)
		json_out_str(&o, "rootfs", spec->rootfs);
	if (spec->cmdline)
		json_out_str(&o, "cmdline", spec->cmdline);
	client_put_labels(&o, spec->labels, spec->n_labels);
	put_env(&o, spec->env);
	json_out_bool(&o, "wait", !spec->no_wait);
	r = client_body_end(&o, e);
	return r < 0 ? r : call_vm(c, "POST", "/v1/vms", o.buf, ret, reply, e);
}

int
client_branch_body(const struct client_branch *spec, struct json_out *o, struct err *e)
{
	json_out_object(o, NULL);
	if (spec->count)
		json_out_u64(o, "count", spec->count);
	if (spec->alias)
		json_out_str(o, "alias", spec->alias);
	client_put_labels(o, spec->labels, spec->n_labels);
	put_env(o, spec->env);
	json_out_bool(o, "wait", !spec->no_wait);
	if (spec->full)
		json_out_bool(o, "full", true);
	if (spec->keep_fork_point)
		json_out_bool(o, "keep_fork_point", true);
	return client_body_end(o, e);
}

int
client_branch(struct client *c, const char *vm, const struct client_branch *spec,
	struct client_vms *ret, struct client_reply *reply, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	char path[1024];
	int r = client_turn_path(c, path, sizeof(path), vm, "/branch", e);

	if (r < 0)
		return r;
	r = client_branch_body(spec, &o, e);
	return r < 0 ? r : client_call_vms(c, "POST", path, o.buf, ret, reply, e);
}

int
client_delete_ids(struct client *c, const char *path, const char *what,
	const char *member, char ***ret_ids, struct err *e)
{
	cleanup_client_reply struct client_reply reply = {0};
	char **ids;
	int r = client_call(c, "DELETE", path, NULL, &reply, e), tok;

	if (r < 0)
		return r;
	tok = json_get(reply.json, 0, member);
	r = tok < 0 ? tok : client_read_ids(reply.json, tok, &ids);
	if (r < 0)
		return err_set(e, -EPROTO,
			"pandod's answer about deleting \"%s\" is not understood", what);
	if (ret_ids)
		*ret_ids = ids;
	else
		client_ids_free(ids);
	return 0;
}

static int
delete_ids(struct client *c, const char *vm, const char *query, const char *member,
	char ***ret_ids, struct err *e)
{
	char path[1024];
	int r = client_turn_path(c, path, sizeof(path), vm, query, e);

	return r < 0 ? r : client_delete_ids(c, path, vm, member, ret_ids, e);
}

int
client_delete(
	struct client *c, const char *vm, bool recursive, char ***ret_ids, struct err *e)
{
	return delete_ids(c, vm, recursive ? "?recursive=1" : "", "deleted", ret_ids, e);
}

int
client_delete_dry(
	struct client *c, const char *vm, bool recursive, char ***ret_ids, struct err *e)
{
	return delete_ids(c, vm, recursive ? "?dry_run=1&recursive=1" : "?dry_run=1",
		"would_delete", ret_ids, e);
}

int
client_alias(struct client *c, const char *vm, const char *alias, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	char path[1024];
	int r = client_vm_path(path, sizeof(path), vm, "/alias", e);

	if (r < 0)
		return r;
	json_out_object(&o, NULL);
	json_out_str(&o, "alias", alias);
	r = client_body_end(&o, e);
	return r < 0 ? r : call_vm(c, "PUT", path, o.buf, ret, reply, e);
}

static int
call_simple(struct client *c, const char *vm, const char *suffix, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	char path[1024];
	int r = client_turn_path(c, path, sizeof(path), vm, suffix, e);

	return r < 0 ? r : call_vm(c, "POST", path, NULL, ret, reply, e);
}

int
client_pause(struct client *c, const char *vm, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	return call_simple(c, vm, "/pause", ret, reply, e);
}

int
client_resume(struct client *c, const char *vm, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	return call_simple(c, vm, "/resume", ret, reply, e);
}

int
client_stop(struct client *c, const char *vm, bool force, uint64_t timeout_ms,
	struct client_vm *ret, struct client_reply *reply, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	char path[1024];
	int r = client_turn_path(c, path, sizeof(path), vm, "/stop", e);

	if (r < 0)
		return r;
	json_out_object(&o, NULL);
	json_out_bool(&o, "force", force);
	if (timeout_ms)
		json_out_u64(&o, "timeout_ms", timeout_ms);
	r = client_body_end(&o, e);
	return r < 0 ? r : call_vm(c, "POST", path, o.buf, ret, reply, e);
}

int
client_start(struct client *c, const char *vm, bool no_wait, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	char path[1024];
	int r = client_turn_path(c, path, sizeof(path), vm, "/start", e);

	return r < 0 ? r
		     : call_vm(c, "POST", path,
			       no_wait ? "{\"wait\":false}" : "{\"wait\":true}", ret,
			       reply, e);
}

int
client_limit(struct client *c, const char *vm, uint64_t disk_bps, uint64_t disk_iops,
	struct client_vm *ret, struct client_reply *reply, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	char path[1024];
	int r = client_turn_path(c, path, sizeof(path), vm, "/limits", e);

	if (r < 0)
		return r;
	json_out_object(&o, NULL);
	if (disk_bps != CLIENT_LIMIT_AS_IT_IS)
		json_out_u64(&o, "disk_bps", disk_bps);
	if (disk_iops != CLIENT_LIMIT_AS_IT_IS)
		json_out_u64(&o, "disk_iops", disk_iops);
	r = client_body_end(&o, e);
	return r < 0 ? r : call_vm(c, "PUT", path, o.buf, ret, reply, e);
}

int
client_reset(struct client *c, const char *vm, const char *commit, bool no_wait,
	struct client_vm *ret, struct client_reset *ret_reset, struct client_reply *reply,
	struct err *e)
{
	cleanup_client_reply struct client_reply own = {0};
	cleanup_json_out struct json_out o = {0};
	struct client_reset reset = {.pages = UINT64_MAX};
	char path[1024];
	int r = client_turn_path(c, path, sizeof(path), vm, "/reset", e), tok;

	if (r < 0)
		return r;
	json_out_object(&o, NULL);
	if (commit)
		json_out_str(&o, "commit", commit);
	json_out_bool(&o, "wait", !no_wait);
	r = client_body_end(&o, e);
	if (r == 0)
		r = client_call(c, "POST", path, o.buf, &own, e);
	if (r < 0)
		return r;
	tok = json_get(own.json, 0, "vm");
	if (tok < 0 || client_read_text(own.json, 0, "commit", false, reset.commit,
			       sizeof(reset.commit)) < 0 ||
		client_read_u64(own.json, 0, "pause_us", &reset.pause_us) < 0)
		return err_set(
			e, -EPROTO, "pandod's answer to a reset is not understood");
	if (json_type(own.json, json_get(own.json, 0, "pages")) != JSON_NULL)
		(void)client_read_u64(own.json, 0, "pages", &reset.pages);
	r = client_vm_read(own.json, tok, ret, e);
	if (r < 0)
		return r;
	*ret_reset = reset;
	client_hand_over(&own, reply);
	return 0;
}

int
client_resize(struct client *c, const char *vm, uint64_t disk_mib, uint64_t mem_target_mib,
	struct client_vm *ret, char **ret_note, struct client_reply *reply, struct err *e)
{
	cleanup_client_reply struct client_reply own = {0};
	char path[1024], body[96], *note = NULL;
	int r = client_turn_path(c, path, sizeof(path), vm, "/resize", e), tok;
	size_t len = 0;

	if (r < 0)
		return r;
	if (disk_mib)
		len = (size_t)snprintf(body, sizeof(body), "{\"disk_mib\":%llu",
			(unsigned long long)disk_mib);
	if (mem_target_mib)
		len += (size_t)snprintf(body + len, sizeof(body) - len,
			"%s\"mem_target_mib\":%llu", disk_mib ? "," : "{",
			(unsigned long long)mem_target_mib);
	snprintf(body + len, sizeof(body) - len, "%s", len ? "}" : "{}");
	r = client_call(c, "POST", path, body, &own, e);
	if (r < 0)
		return r;
	tok = json_get(own.json, 0, "vm");
	if (tok < 0 || client_read_dup(own.json, 0, "note", &note) < 0)
		return err_set(
			e, -EPROTO, "pandod's answer to a resize is not understood");
	r = client_vm_read(own.json, tok, ret, e);
	if (r < 0) {
		free(note);
		return r;
	}
	*ret_note = note;
	client_hand_over(&own, reply);
	return 0;
}
