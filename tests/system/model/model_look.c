/* What pandod, the guests and the host say, beside the model. */
#include "tests/system/model/model.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/wire/console_ring.h"

#define PATIENCE_NS 900000000000ull /* for a host that does much else */
#define TAIL_BYTES 16384u

static void
nap(void)
{
	nanosleep(&(struct timespec){0, 500000}, NULL);
}

/*
 * Guests.
 */

/* The end of what a guest has said, terminated. */
static void
console_tail(const struct vm *v, char dst[static TAIL_BYTES + 1])
{
	struct console_hdr hdr = {0};
	uint64_t end, from;
	char path[400];
	int fd;

	snprintf(path, sizeof(path), "%s/vms/%s/console", m.home, v->id);
	dst[0] = '\0';
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (io_pread_full(fd, &hdr, sizeof(hdr), 0) == 0) {
		end = atomic_load(&hdr.written);
		from = end > TAIL_BYTES ? end - TAIL_BYTES : 0;
		if (end <= CONSOLE_RING_BYTES &&
			io_pread_full(fd, dst, end - from, CONSOLE_HDR_BYTES + from) == 0)
			dst[end - from] = '\0';
	}
	close(fd);
}

/* The past that the guest has told last; false: none yet. */
static bool
past_told(char *said, bool booted, struct past *ret, const char **ret_line)
{
	char *line = NULL, *p, *end;

	for (p = said; (p = strstr(p, "fork n=")) && (end = strchr(p, '\n')); p = end)
		line = p;
	*ret_line = line ? line : said;
	if (!line)
		return booted && strstr(said, "ready\n");
	*strchr(line, '\n') = '\0';
	p = strstr(line, "history=");
	*ret = (struct past){.n = 0};
	for (p = p ? p + 8 : line + strlen(line); *p && ret->n < PAST_MAX;
		p = *end ? end + 1 : end) {
		ret->seen[ret->n++] = strtoull(p, &end, 16);
		if (end == p)
			break;
	}
	return true;
}

static bool
past_fits(const struct vm *v, const struct past *told)
{
	unsigned more = v->pending ? 1 : 0;

	return told->n >= v->past.n + more &&
	       told->n <= v->past.n + v->past.unknown + more &&
	       memcmp(told->seen, v->past.seen, v->past.n * sizeof(uint64_t)) == 0 &&
	       (!more || told->seen[told->n - 1] == v->generation);
}

static bool
says_it_is_bad(const char *said)
{
	return strstr(said, "BAD") || strstr(said, "TIMEOUT") || strstr(said, "ERROR") ||
	       strstr(said, "STOPPED");
}

void
guest_sync(struct vm *v)
{
	uint64_t until = io_now_ns() + PATIENCE_NS;
	char said[TAIL_BYTES + 1];
	const char *line;

	if (!v->there || v->life != LIFE_RUNS)
		return;
	/* A generation that pandod does not know of may come at any time. */
	if (!v->pending)
		return;
	for (;;) {
		struct past told = {.seen = {v->generation}, .n = 1};

		console_tail(v, said);
		if (says_it_is_bad(said))
			differ("%s says: %s", v->alias, said);
		if (past_told(said, v->booted, &told, &line) && past_fits(v, &told)) {
			v->past = told;
			v->pending = v->booted = false;
			return;
		}
		if (io_now_ns() > until)
			differ("%s has not seen %016llx after %u generations (%u unknown); it says: %s",
				v->alias, (unsigned long long)v->generation, v->past.n,
				v->past.unknown, line);
		nap();
	}
}

/*
 * Lists.
 */

static const char *
state_name(const struct vm *v)
{
	static const char *const names[] = {"starting", "paused", "stopped", "failed"};

	return names[v->life];
}

static void
look_vm(const struct client_vm *told)
{
	struct vm *v = vm_by_id(told->id);
	const char *parent;
	unsigned n = 0;

	if (!v)
		differ("there is a VM %s (%s, %s)", told->id, told->alias, told->state);
	if (strcmp(told->alias, v->alias) != 0)
		differ("VM %s is called %s, not %s", v->id, told->alias, v->alias);
	if (strcmp(told->state, state_name(v)) != 0)
		differ("%s is %s, not %s: %s", v->alias, told->state, state_name(v),
			told->reason ? told->reason : "");
	parent = v->parent >= 0 ? m.vms[v->parent].id : "";
	if (strcmp(told->parent, parent) != 0)
		differ("%s has the parent \"%s\", not \"%s\"", v->alias, told->parent,
			parent);
	if (strcmp(told->commit, v->commit) != 0)
		differ("%s is of commit \"%.12s\", not \"%.12s\"", v->alias, told->commit,
			v->commit);
	if (told->pid != v->pid)
		differ("%s has process %lld, not %d", v->alias, (long long)told->pid,
			(int)v->pid);
	for (unsigned i = 0; i < VMS_MAX; i++)
		n += m.vms[i].there && m.vms[i].parent == (int)(v - m.vms);
	if (told->n_children != n)
		differ("%s has %zu branches, not %u", v->alias, told->n_children, n);
	for (size_t i = 0; i < told->n_children; i++) {
		struct vm *child = vm_by_id(told->children[i]);

		if (!child || child->parent != (int)(v - m.vms))
			differ("%s has the branch %s", v->alias, told->children[i]);
	}
}

static void
look_commit(const struct client_point *told)
{
	struct commit *c = commit_by_id(told->id);
	unsigned n = 0, want = 0;

	if (!c)
		differ("there is a commit %.12s", told->id);
	if (strcmp(told->parent, c->parent) != 0)
		differ("commit %.12s has the parent \"%.12s\", not \"%.12s\"", c->id,
			told->parent, c->parent);
	for (char **name = told->tags; *name; name++) {
		bool found = false;

		for (unsigned i = 0; i < TAGS_MAX; i++)
			found |= m.tags[i].there && strcmp(m.tags[i].name, *name) == 0 &&
				 strcmp(m.tags[i].commit, c->id) == 0;
		if (!found)
			differ("commit %.12s has the tag %s", c->id, *name);
		n++;
	}
	for (unsigned i = 0; i < TAGS_MAX; i++)
		want += m.tags[i].there && strcmp(m.tags[i].commit, c->id) == 0;
	if (n != want)
		differ("commit %.12s has %u tags, not %u", c->id, n, want);
	n = want = 0;
	for (char **id = told->vms; *id; id++, n++) {
		struct vm *v = vm_by_id(*id);

		if (!v || !vm_uses(v, c->id))
			differ("commit %.12s is used by %s", c->id, *id);
	}
	for (unsigned i = 0; i < VMS_MAX; i++)
		want += vm_uses(&m.vms[i], c->id);
	if (n != want)
		differ("commit %.12s is used by %u VMs, not %u", c->id, n, want);
}

void
look_tree(void)
{
	struct client_points points = {0};
	struct client_vms vms = {0};
	unsigned n = 0;
	struct err e;

	if (client_list(m.client, NULL, &vms, NULL, &e) < 0 ||
		client_points(m.client, &points, NULL, &e) < 0)
		differ("%s", e.msg);
	for (size_t i = 0; i < vms.n; i++)
		look_vm(&vms.v[i]);
	if (vms.n != vm_count(vm_is))
		differ("there are %zu VMs, not %u", vms.n, vm_count(vm_is));
	for (size_t i = 0; i < points.n; i++)
		look_commit(&points.v[i]);
	for (unsigned i = 0; i < COMMITS_MAX; i++)
		n += m.commits[i].there;
	if (points.n != n || points.damaged)
		differ("there are %zu commits and %llu damaged, not %u", points.n,
			(unsigned long long)points.damaged, n);
	client_vms_done(&vms);
	client_points_done(&points);
}

/* `pando history`, of a commit or a VM whose last commit it is. */
static void
look_history(const char *name, const char *commit)
{
	struct client_points points = {0};
	char after[sizeof(points.next)] = "";
	bool has = commit[0];
	struct err e;

	do {
		int r = client_points_page(m.client, name, after, 0, &points, NULL, &e);

		if (!has) {
			if (r != -ENOENT)
				differ("the history of %s, which has none: %d", name, r);
			return;
		}
		if (r < 0)
			differ("the history of %s: %s", name, e.msg);
		for (size_t i = 0; i < points.n; i++) {
			if (strcmp(points.v[i].id, commit) != 0)
				differ("the history of %s has %.12s, not %.12s", name,
					points.v[i].id, commit);
			commit = commit_by_id(commit)->parent;
		}
		memcpy(after, points.next, sizeof(after));
		client_points_done(&points);
	} while (after[0]);
	if (commit[0])
		differ("the history of %s ends before %.12s", name, commit);
}

static void
look_verify(void)
{
	struct client_reply reply = {0};
	struct err e;
	bool sound;

	if (client_call(m.client, "POST", "/v1/verify", NULL, &reply, &e) < 0)
		differ("verify: %s", e.msg);
	if (json_bool(reply.json, json_get(reply.json, 0, "sound"), &sound) < 0 || !sound)
		differ("verify: %.900s", reply.text);
	client_reply_done(&reply);
}

/* The command, not the API: each VM once, below its parent. */
static void
look_drawn(void)
{
	static const char *const argv[] = {"pando", "tree", "--format", "json", NULL};
	char *text = NULL;
	size_t len = 0;
	struct json *j;
	int fds[2], status, list, n;
	struct err e;
	pid_t pid;
	FILE *f;

	if (pipe2(fds, O_CLOEXEC) < 0 || (pid = fork()) < 0)
		differ("no process");
	if (pid == 0) {
		dup2(fds[1], 1);
		execvp(argv[0], (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	close(fds[1]);
	f = fdopen(fds[0], "r");
	if (!f || getdelim(&text, &len, '\0', f) < 0)
		differ("`pando tree` says nothing");
	fclose(f);
	waitpid(pid, &status, 0);
	if (status != 0 || json_parse(text, strlen(text), 100000, &j, &e) < 0)
		differ("`pando tree` ended with %d and said %s", status, text);
	list = json_get(j, 0, "vms");
	n = json_size(j, list);
	if ((unsigned)n != vm_count(vm_is))
		differ("`pando tree` draws %d VMs, not %u", n, vm_count(vm_is));
	for (int i = 0; i < n; i++) {
		char id[32] = "";
		uint64_t depth = 0, want = 0;
		const struct vm *v;
		int row = json_at(j, list, i);

		json_str(j, json_get(j, row, "id"), id, sizeof(id));
		json_u64(j, json_get(j, row, "depth"), &depth);
		v = vm_by_id(id);
		if (!v)
			differ("`pando tree` draws %s", id);
		for (int at = v->parent; at >= 0; at = m.vms[at].parent)
			want++;
		if (depth != want)
			differ("`pando tree` draws %s at depth %llu, not %llu", v->alias,
				(unsigned long long)depth, (unsigned long long)want);
	}
	json_free(j);
	free(text);
}

/*
 * The host.
 */

/* Processes of that name which have a file below one of the home's folders open. */
static unsigned
count_processes(const char *const *folders)
{
	DIR *proc = opendir("/proc");
	struct dirent *d, *f;
	unsigned n = 0;

	while (proc && (d = readdir(proc))) {
		char path[600], comm[32] = "", target[600];
		bool ours = false;
		DIR *fds;
		int fd;

		if (!isdigit((unsigned char)d->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/comm", d->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		(void)!read(fd, comm, sizeof(comm) - 1);
		close(fd);
		if (strcmp(comm, "pando-vmm\n") != 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/fd", d->d_name);
		fds = opendir(path);
		while (fds && !ours && (f = readdir(fds))) {
			ssize_t len = readlinkat(
				dirfd(fds), f->d_name, target, sizeof(target) - 1);

			for (unsigned i = 0; len > 0 && folders[i] && !ours; i++) {
				target[len] = '\0';
				snprintf(path, sizeof(path), "%s/%s", m.home, folders[i]);
				ours = strncmp(target, path, strlen(path)) == 0;
			}
		}
		if (fds)
			closedir(fds);
		n += ours;
	}
	if (proc)
		closedir(proc);
	return n;
}

static unsigned
count_entries(const char *folder, const char *suffix)
{
	char path[400];
	struct dirent *d;
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/%s", m.home, folder);
	dir = opendir(path);
	while (dir && (d = readdir(dir))) {
		size_t len = strlen(d->d_name), end = strlen(suffix);

		n += d->d_name[0] != '.' && len >= end &&
		     strcmp(d->d_name + len - end, suffix) == 0;
	}
	if (dir)
		closedir(dir);
	return n;
}

/* Sockets that listen below the home. */
static unsigned
count_sockets(void)
{
	char line[600];
	unsigned n = 0;
	FILE *f = fopen("/proc/net/unix", "re");

	while (f && fgets(line, sizeof(line), f))
		n += strstr(line, " 00010000 ") && strstr(line, m.home);
	if (f)
		fclose(f);
	return n;
}

/* The segments that the VMs' chains name, each once. */
static unsigned
count_chained(void)
{
	static char names[4096][200];
	unsigned n = 0;

	for (unsigned v = 0; v < VMS_MAX; v++) {
		struct client_reply reply = {0};
		char path[200];
		struct err e;
		int chain;

		if (!m.vms[v].there)
			continue;
		if (client_vm_path(path, sizeof(path), m.vms[v].id, "/disk", &e) < 0 ||
			client_call(m.client, "GET", path, NULL, &reply, &e) < 0)
			differ("%s", e.msg);
		chain = json_get(reply.json, 0, "chain");
		for (int i = 0; i < json_size(reply.json, chain); i++) {
			char name[400] = "";
			unsigned at = 0;

			json_str(reply.json,
				json_get(reply.json, json_at(reply.json, chain, i),
					"data"),
				name, sizeof(name));
			if (access(name, F_OK) < 0)
				differ("%s is in the chain of %s and is not there", name,
					m.vms[v].alias);
			while (at < n && strncmp(names[at], name, 199) != 0)
				at++;
			if (at == n && n < 4096)
				snprintf(names[n++], 200, "%.199s", name);
		}
		client_reply_done(&reply);
	}
	return n;
}

/* What a killed pandod left may take a moment to end. */
static void
look_host(void)
{
	static const char *const folders[] = {"vms/", "segments/", NULL};
	uint64_t until = io_now_ns() + PATIENCE_NS;
	unsigned living = vm_count(vm_lives), segments = count_chained();

	for (;;) {
		unsigned processes = count_processes(folders), sockets = count_sockets(),
			 homes = count_entries("vms", ""),
			 data = count_entries("segments", ".data"),
			 index = count_entries("segments", ".index"),
			 parts = count_entries("bases", ".part") +
				 count_entries("store/packs", ".tmp") +
				 count_entries("store", "tmp.");

		if (processes == living && sockets == 1 + 2 * living &&
			homes == vm_count(vm_is) && data == segments &&
			index == segments && parts == 0)
			return;
		if (io_now_ns() > until)
			differ("of %u VMs %u live, with %u segments; there are %u processes, %u sockets, %u folders, %u and %u files of segments, %u unfinished files",
				vm_count(vm_is), living, segments, processes, sockets,
				homes, data, index, parts);
		nap();
	}
}

void
look_closely(void)
{
	for (unsigned i = 0; i < VMS_MAX; i++) {
		struct client_vm told = {0};
		struct err e;

		if (!m.vms[i].there)
			continue;
		guest_sync(&m.vms[i]);
		if (client_get(m.client, m.vms[i].alias, &told, NULL, &e) < 0)
			differ("%s: %s", m.vms[i].alias, e.msg);
		look_vm(&told);
		client_vm_done(&told);
		look_history(m.vms[i].id, m.vms[i].commit);
	}
	for (unsigned i = 0; i < COMMITS_MAX; i++)
		if (m.commits[i].there)
			look_history(m.commits[i].id, m.commits[i].id);
	look_tree();
	look_drawn();
	look_verify();
	look_host();
}

void
look_empty(void)
{
	look_host();
	if (count_entries("segments", "") || count_entries("bases", ""))
		differ("no VM is there, and files of disks are");
}

void
look_no_process(void)
{
	static const char *const folders[] = {"", NULL};
	uint64_t until = io_now_ns() + PATIENCE_NS;
	unsigned n;

	while ((n = count_processes(folders))) {
		if (io_now_ns() > until)
			differ("%u processes are left", n);
		nap();
	}
}
