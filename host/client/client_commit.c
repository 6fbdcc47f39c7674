/* Commits as pandod describes them, and the calls about them (client.h). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/client/client_priv.h"

void
client_point_done(struct client_point *p)
{
	free(p->message);
	client_ids_free(p->tags);
	client_ids_free(p->vms);
	client_ids_free(p->cpu_features);
	*p = (struct client_point){0};
}

void
client_points_done(struct client_points *p)
{
	for (size_t i = 0; i < p->n; i++)
		client_point_done(&p->v[i]);
	free(p->v);
	free(p->damage);
	*p = (struct client_points){0};
}

int
client_path(char *dst, size_t cap, const char *base, const char *name, const char *suffix,
	struct err *e)
{
	char encoded[512];
	int n;

	if (!name[0])
		return err_set(e, -EINVAL, "a commit's name cannot be empty");
	/* Dots would be taken for folders on the way. */
	if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
		client_percent_encode(encoded, sizeof(encoded), name) < 0)
		return err_set(e, -ENOENT,
			"no commit or tag is named \"%.60s\"; `pando commit list` lists them",
			name);
	n = snprintf(dst, cap, "/v1/%s/%s%s", base, encoded, suffix);
	return n < 0 || (size_t)n >= cap ? err_set(e, -ENAMETOOLONG, "path too long") : 0;
}

static int
read_point(const struct json *j, int tok, struct client_point *ret, struct err *e)
{
	struct client_point p = {0};
	int r;

	if ((r = client_read_text(j, tok, "id", true, p.id, sizeof(p.id))) < 0 ||
		(r = client_read_text(
			 j, tok, "parent", false, p.parent, sizeof(p.parent))) < 0 ||
		(r = client_read_u64(j, tok, "created_ms", &p.created_ms)) < 0 ||
		(r = client_read_u64(j, tok, "mem_mib", &p.mem_mib)) < 0 ||
		(r = client_read_u64(j, tok, "vcpus", &p.vcpus)) < 0 ||
		(r = client_read_u64(j, tok, "disk_mib", &p.disk_mib)) < 0 ||
		(r = client_read_u64(j, tok, "expires_ms", &p.expires_ms)) < 0 ||
		(r = client_read_dup(j, tok, "message", &p.message)) < 0 ||
		(r = client_read_ids(j, json_get(j, tok, "tags"), &p.tags)) < 0 ||
		(r = client_read_ids(j, json_get(j, tok, "vms"), &p.vms)) < 0 ||
		(r = client_read_ids(j, json_get(j, json_get(j, tok, "cpu"), "features"),
			 &p.cpu_features)) < 0) {
		client_point_done(&p);
		return err_set(e, r == -ENOMEM ? r : -EPROTO,
			r == -ENOMEM
				? "no memory"
				: "pandod described a commit in a way this pando does not understand; are both the same version?");
	}
	(void)json_bool(j, json_get(j, tok, "pruned"), &p.pruned);
	*ret = p;
	return 0;
}

int
client_commit(struct client *c, const char *vm, const struct client_commit *spec,
	struct client_committed *ret, struct client_reply *reply, struct err *e)
{
	cleanup_client_reply struct client_reply own = {0};
	cleanup_json_out struct json_out o = {0};
	char path[1024];
	int r = client_turn_path(c, path, sizeof(path), vm, "/commit", e), tok;

	if (r < 0)
		return r;
	json_out_object(&o, NULL);
	if (spec->message)
		json_out_str(&o, "message", spec->message);
	if (spec->n_tags) {
		json_out_array(&o, "tags");
		for (size_t i = 0; i < spec->n_tags; i++)
			json_out_str(&o, NULL, spec->tags[i]);
		json_out_end_array(&o);
	}
	client_put_labels(&o, spec->labels, spec->n_labels);
	if (spec->expire_ms)
		json_out_u64(&o, "expire_ms", spec->expire_ms);
	if (spec->keep_last)
		json_out_u64(&o, "keep_last", spec->keep_last);
	r = client_body_end(&o, e);
	if (r == 0)
		r = client_call(c, "POST", path, o.buf, &own, e);
	if (r < 0)
		return r;
	tok = json_get(own.json, 0, "commit");
	if (tok < 0)
		return err_set(e, -EPROTO, "pandod's answer has no commit");
	r = read_point(own.json, tok, &ret->commit, e);
	if (r < 0)
		return r;
	(void)client_read_u64(own.json, 0, "pause_us", &ret->pause_us);
	(void)client_read_u64(own.json, 0, "written_bytes", &ret->written_bytes);
	client_hand_over(&own, reply);
	return 0;
}

int
client_spawn(struct client *c, const char *commit, const struct client_branch *spec,
	struct client_vms *ret, struct client_reply *reply, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	char path[1024];
	int r = client_path(path, sizeof(path), "commits", commit, "/run", e);

	if (r == 0)
		r = client_branch_body(spec, &o, e);
	return r < 0 ? r : client_call_vms(c, "POST", path, o.buf, ret, reply, e);
}

int
client_point(struct client *c, const char *commit, struct client_point *ret,
	struct client_reply *reply, struct err *e)
{
	cleanup_client_reply struct client_reply own = {0};
	char path[1024];
	int r = client_path(path, sizeof(path), "commits", commit, "", e);

	if (r == 0)
		r = client_call(c, "GET", path, NULL, &own, e);
	if (r == 0)
		r = read_point(own.json, 0, ret, e);
	if (r == 0)
		client_hand_over(&own, reply);
	return r;
}

static int
read_points(struct client *c, const char *path, struct client_points *ret,
	struct client_reply *reply, struct err *e)
{
	cleanup_client_reply struct client_reply own = {0};
	struct client_points points = {0};
	int r = client_call(c, "GET", path, NULL, &own, e), array, n;

	if (r < 0)
		return r;
	array = json_get(own.json, 0, "commits");
	if (array < 0 || json_type(own.json, array) != JSON_ARRAY)
		return err_set(e, -EPROTO, "pandod's answer has no list of commits");
	n = json_size(own.json, array);
	points.v = calloc((size_t)n + 1, sizeof(*points.v));
	if (!points.v)
		return err_sys(e, -ENOMEM, "list of commits");
	for (int i = 0; i < n && r == 0; i++) {
		r = read_point(
			own.json, json_at(own.json, array, i), &points.v[points.n], e);
		points.n += r == 0;
	}
	(void)client_read_u64(own.json, 0, "damaged", &points.damaged);
	if (r == 0)
		r = client_read_text(
			own.json, 0, "next", false, points.next, sizeof(points.next));
	if (r == 0)
		r = client_read_dup(own.json, 0, "damage", &points.damage);
	if (r < 0) {
		client_points_done(&points);
		return r;
	}
	*ret = points;
	client_hand_over(&own, reply);
	return 0;
}

int
client_points_page(struct client *c, const char *of, const char *after, uint64_t limit,
	struct client_points *ret, struct client_reply *reply, struct err *e)
{
	char path[1024] = "/v1/commits", encoded[400], more[512] = "";
	int r = of ? client_path(path, sizeof(path), "commits", of, "/history", e) : 0;
	size_t n;

	if (r < 0)
		return r;
	if (client_percent_encode(encoded, sizeof(encoded), after) < 0)
		return err_set(e, -EPROTO, "pandod gave a cursor that is too long");
	if (after[0])
		snprintf(more, sizeof(more), "?after=%s", encoded);
	if (limit) {
		n = strlen(more);
		snprintf(more + n, sizeof(more) - n, "%climit=%llu", n ? '&' : '?',
			(unsigned long long)limit);
	}
	n = strlen(path);
	if (n + strlen(more) >= sizeof(path))
		return err_set(e, -ENAMETOOLONG, "path too long");
	strcpy(path + n, more);
	return read_points(c, path, ret, reply, e);
}

int
client_points(struct client *c, struct client_points *ret, struct client_reply *reply,
	struct err *e)
{
	struct client_points all = {0};
	char after[sizeof(all.next)] = "";
	int r;

	do {
		cleanup_client_points struct client_points page = {0};
		cleanup_client_reply struct client_reply own = {0};
		struct client_point *bigger;

		r = client_points_page(c, NULL, after, 0, &page, &own, e);
		if (r < 0)
			break;
		bigger = reallocarray(all.v, all.n + page.n + 1, sizeof(*all.v));
		if (!bigger) {
			r = err_sys(e, -ENOMEM, "list of commits");
			break;
		}
		all.v = bigger;
		if (page.n)
			memcpy(all.v + all.n, page.v, page.n * sizeof(*all.v));
		all.n += page.n;
		page.n = 0; /* they are the list's now */
		all.damaged = page.damaged;
		free(all.damage);
		all.damage = TAKE_PTR(page.damage);
		memcpy(after, page.next, sizeof(after));
		if (!after[0])
			client_hand_over(&own, reply);
	} while (after[0]);
	if (r < 0) {
		client_points_done(&all);
		return r;
	}
	*ret = all;
	return 0;
}

int
client_commit_delete(struct client *c, const char *commit, bool recursive, bool dry,
	char ***ret_ids, struct err *e)
{
	char path[1024], query[48];
	int r;

	snprintf(query, sizeof(query), "?recursive=%d&dry_run=%d", recursive, dry);
	r = client_path(path, sizeof(path), "commits", commit, query, e);
	return r < 0 ? r
		     : client_delete_ids(c, path, commit,
			       dry ? "would_delete" : "deleted", ret_ids, e);
}
