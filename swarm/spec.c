#include "swarm/spec.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/toml.h"
#include "common/wire/vmm_wire.h"

/* A spec is made once and freed at once, so its memory is a chain of plain chunks. */
struct swarm_chunk {
	struct swarm_chunk *next;
	max_align_t data[];
};

struct reader {
	const char *path;
	size_t folder_len; /* of path, with the last '/'; 0: the current folder */
	struct swarm_spec *spec;
	struct err *e;
};

static void *
keep(struct reader *r, size_t size)
{
	struct swarm_chunk *c = calloc(1, sizeof(*c) + size);

	if (!c) {
		err_set(r->e, -ENOMEM, "%s: out of memory", r->path);
		return NULL;
	}
	c->next = r->spec->chunks;
	r->spec->chunks = c;
	return c->data;
}

static char *
keep_str(struct reader *r, const char *text, size_t len)
{
	char *copy = keep(r, len + 1);

	if (copy)
		memcpy(copy, text, len);
	return copy;
}

__attribute__((format(printf, 3, 4))) static int
bad(struct reader *r, const struct toml *at, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return err_set(r->e, -EINVAL, "%s:%u:%u: %s", r->path, toml_line(at),
		toml_column(at), text);
}

static int
bad_type(struct reader *r, const struct toml *at, const char *key, const char *wanted)
{
	return bad(r, at, "\"%s\" must be %s, not %s", key, wanted,
		toml_type_name(toml_type(at)));
}

/* `keys` ends with NULL; `where` is for the sentence: "the spec", "[score]". */
static int
check_keys(struct reader *r, const struct toml *table, const char *where,
	const char *const *keys)
{
	const char *key;
	const struct toml *value;

	for (size_t i = 0; (value = toml_member(table, i, &key)); i++) {
		char known[320] = "";
		size_t k;

		for (k = 0; keys[k] && strcmp(keys[k], key) != 0; k++)
			;
		if (keys[k])
			continue;
		for (k = 0; keys[k]; k++) {
			size_t at = strlen(known);

			snprintf(known + at, sizeof(known) - at, "%s%s", k ? ", " : "",
				keys[k]);
		}
		return bad(r, value, "unknown key \"%.60s\" in %s; it knows %s", key,
			where, known);
	}
	return 0;
}

static int
want_table(struct reader *r, const struct toml *t, const char *key)
{
	return toml_type(t) == TOML_TABLE ? 0 : bad_type(r, t, key, "a table");
}

/* The string itself, not copied. Absent: *ret is untouched. */
static int
peek_str(struct reader *r, const struct toml *table, const char *key, const char **ret,
	const struct toml **ret_at)
{
	const struct toml *t = toml_get(table, key);

	if (!t)
		return 0;
	if (ret_at)
		*ret_at = t;
	if (toml_type(t) != TOML_STRING)
		return bad_type(r, t, key, "a string");
	if (toml_str(t, ret, NULL) < 0)
		return bad(r, t, "\"%s\" must not hold a U+0000", key);
	if (!**ret)
		return bad(
			r, t, "\"%s\" is empty; leave the key out or give a value", key);
	return 0;
}

static int
read_str(struct reader *r, const struct toml *table, const char *key, const char **ret)
{
	const char *text = NULL;
	int rc = peek_str(r, table, key, &text, NULL);

	if (rc < 0 || !text)
		return rc;
	*ret = keep_str(r, text, strlen(text));
	return *ret ? 0 : -ENOMEM;
}

/* A path on the host: a relative one starts at the spec's folder. NULL: out of memory. */
static char *
keep_host_path(struct reader *r, const char *path)
{
	size_t folder = path[0] == '/' ? 0 : r->folder_len;
	char *whole = keep(r, folder + strlen(path) + 1);

	if (whole) {
		memcpy(whole, r->path, folder);
		strcpy(whole + folder, path);
	}
	return whole;
}

/* An image's name, or, with a '/' in it, a path on the host. */
static int
read_image(struct reader *r, const struct toml *table, const char **ret)
{
	const char *text = NULL;
	int rc = peek_str(r, table, "name", &text, NULL);

	if (rc < 0 || !text)
		return rc;
	*ret = strchr(text, '/') ? keep_host_path(r, text)
				 : keep_str(r, text, strlen(text));
	return *ret ? 0 : -ENOMEM;
}

static int
read_bool(struct reader *r, const struct toml *table, const char *key, bool *ret)
{
	const struct toml *t = toml_get(table, key);

	if (t && toml_bool(t, ret) < 0)
		return bad_type(r, t, key, "true or false");
	return 0;
}

static int
read_unsigned(struct reader *r, const struct toml *table, const char *key, unsigned min,
	unsigned max, unsigned *ret)
{
	const struct toml *t = toml_get(table, key);
	int64_t v;

	if (!t)
		return 0;
	if (toml_i64(t, &v) < 0)
		return bad_type(r, t, key, "an integer");
	if (v < min || v > max)
		return bad(r, t, "\"%s\" must be %u to %u, not %lld", key, min, max,
			(long long)v);
	*ret = (unsigned)v;
	return 0;
}

static int
read_time_limit(struct reader *r, const struct toml *table, uint64_t *ret_ms)
{
	const struct toml *t = toml_get(table, "time_limit_s");
	double s;

	if (!t)
		return 0;
	if (toml_f64(t, &s) < 0)
		return bad_type(r, t, "time_limit_s", "a number of seconds");
	if (!(s > 0 && s <= SWARM_TIME_MAX_S))
		return bad(r, t,
			"\"time_limit_s\" must be above 0 and at most %u (a week)",
			SWARM_TIME_MAX_S);
	*ret_ms = (uint64_t)ceil(s * 1000);
	return 0;
}

/* The run's and the children's names become aliases, labels and folders. */
static bool
name_ok(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				"0123456789._-");

	return n && !name[n] && n <= SWARM_NAME_MAX && strchr(".-_", name[0]) == NULL;
}

/* Copies text with {index} replaced; index < 0: as it is. A shell's ${index} stays. */
static const char *
fill_in(struct reader *r, const char *text, int index)
{
	static const char mark[] = "{index}";
	char digits[12];
	size_t n_digits, marks = 0;
	char *out, *to;

	if (index < 0)
		return keep_str(r, text, strlen(text));
	n_digits = (size_t)snprintf(digits, sizeof(digits), "%d", index);
	for (const char *p = text; (p = strstr(p, mark)); p += sizeof(mark) - 1)
		marks++;
	out = to = keep(r, strlen(text) + marks * n_digits + 1);
	if (!out)
		return NULL;
	for (const char *p = text; *p;) {
		if (strncmp(p, mark, sizeof(mark) - 1) == 0 &&
			(p == text || p[-1] != '$')) {
			memcpy(to, digits, n_digits);
			to += n_digits;
			p += sizeof(mark) - 1;
		} else {
			*to++ = *p++;
		}
	}
	return out;
}

static int
read_command(struct reader *r, const struct toml *table, int index,
	const char *const **ret_argv)
{
	const struct toml *t = toml_get(table, "command");
	const char **argv, *text;
	size_t n;

	if (!t)
		return 0;
	if (toml_type(t) == TOML_STRING) {
		text = NULL;
		if (peek_str(r, table, "command", &text, NULL) < 0)
			return -EINVAL;
		argv = keep(r, 4 * sizeof(*argv));
		if (!argv)
			return -ENOMEM;
		argv[0] = "/bin/sh";
		argv[1] = "-c";
		argv[2] = fill_in(r, text, index);
		*ret_argv = argv;
		return argv[2] ? 0 : -ENOMEM;
	}
	if (toml_type(t) != TOML_ARRAY)
		return bad_type(
			r, t, "command", "an array of words, or a string for the shell");
	n = toml_size(t);
	if (n == 0 || n > SWARM_LIST_MAX)
		return bad(r, t, "\"command\" must have 1 to %d words", SWARM_LIST_MAX);
	argv = keep(r, (n + 1) * sizeof(*argv));
	if (!argv)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		const struct toml *word = toml_element(t, i);

		if (toml_type(word) != TOML_STRING)
			return bad(r, word,
				"word %zu of \"command\" must be a string, not %s", i + 1,
				toml_type_name(toml_type(word)));
		if (toml_str(word, &text, NULL) < 0)
			return bad(r, word,
				"word %zu of \"command\" must not hold a U+0000", i + 1);
		if (i == 0 && !*text)
			return bad(r, word, "the first word of \"command\" is empty");
		argv[i] = fill_in(r, text, index);
		if (!argv[i])
			return -ENOMEM;
	}
	*ret_argv = argv;
	return 0;
}

/* Adds the table's variables to those of `step`; the same name is replaced. */
static int
read_env(struct reader *r, const struct toml *table, int index, struct swarm_step *step)
{
	const struct toml *t = toml_get(table, "env"), *value;
	struct swarm_env *env;
	size_t n = step->n_env;
	const char *key;

	if (!t)
		return 0;
	if (want_table(r, t, "env") < 0)
		return -EINVAL;
	env = keep(r, (n + toml_size(t) + 1) * sizeof(*env));
	if (!env)
		return -ENOMEM;
	if (n)
		memcpy(env, step->env, n * sizeof(*env));
	for (size_t i = 0; (value = toml_member(t, i, &key)); i++) {
		const char *text;
		size_t k;

		if (!*key || (*key >= '0' && *key <= '9') ||
			key[strspn(key,
				"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				"0123456789_")])
			return bad(r, value,
				"\"%.60s\" is no name for a variable (letters, digits and _, no digit first)",
				key);
		if (toml_type(value) != TOML_STRING)
			return bad(r, value,
				"variable \"%.60s\" must be a string, not %s; put it in quotes",
				key, toml_type_name(toml_type(value)));
		if (toml_str(value, &text, NULL) < 0)
			return bad(r, value, "variable \"%.60s\" must not hold a U+0000",
				key);
		for (k = 0; k < n && strcmp(env[k].key, key) != 0; k++)
			;
		if (k == SWARM_LIST_MAX)
			return bad(r, value, "more than %d variables", SWARM_LIST_MAX);
		env[k].key = keep_str(r, key, strlen(key));
		env[k].value = fill_in(r, text, index);
		if (!env[k].key || !env[k].value)
			return -ENOMEM;
		if (k == n)
			n++;
	}
	step->env = env;
	step->n_env = n;
	return 0;
}

/* What is left of a path without its folders and trailing slashes. */
static const char *
base_name(const char *path, size_t *ret_len)
{
	const char *end = path + strlen(path), *p;

	while (end > path && end[-1] == '/')
		end--;
	for (p = end; p > path && p[-1] != '/'; p--)
		;
	*ret_len = (size_t)(end - p);
	return p;
}

static int
check_guest_path(
	struct reader *r, const struct toml *at, const char *key, const char *path)
{
	size_t len;
	const char *last = base_name(path, &len);

	if (path[0] != '/' || !len || (len <= 2 && strncmp(last, "..", len) == 0))
		return bad(r, at,
			"\"%s\" must be an absolute path to something in the guest, not \"%.100s\"",
			key, path);
	return 0;
}

/* Adds to those of `step`. */
static int
read_files(struct reader *r, const struct toml *table, struct swarm_step *step)
{
	static const char *const keys[] = {"from", "to", NULL};
	const struct toml *t = toml_get(table, "files"), *item;
	struct swarm_file *files;

	if (!t)
		return 0;
	if (toml_type(t) != TOML_ARRAY)
		return bad_type(r, t, "files", "an array of { from = …, to = … }");
	if (step->n_files + toml_size(t) > SWARM_LIST_MAX)
		return bad(
			r, t, "more than %d files; put a folder instead", SWARM_LIST_MAX);
	files = keep(r, (step->n_files + toml_size(t) + 1) * sizeof(*files));
	if (!files)
		return -ENOMEM;
	if (step->n_files)
		memcpy(files, step->files, step->n_files * sizeof(*files));
	for (size_t i = 0; (item = toml_element(t, i)); i++) {
		struct swarm_file *f = &files[step->n_files + i];
		const char *from = NULL, *to = NULL;
		const struct toml *to_at = item;

		if (want_table(r, item, "files") < 0 ||
			check_keys(r, item, "an entry of \"files\"", keys) < 0 ||
			peek_str(r, item, "from", &from, NULL) < 0 ||
			peek_str(r, item, "to", &to, &to_at) < 0)
			return -EINVAL;
		if (!from || !to)
			return bad(r, item, "an entry of \"files\" needs \"%s\"",
				from ? "to" : "from");
		if (check_guest_path(r, to_at, "to", to) < 0)
			return -EINVAL;
		f->from = keep_host_path(r, from);
		if (!f->from)
			return -ENOMEM;
		f->to = keep_str(r, to, strlen(to));
		if (!f->to)
			return -ENOMEM;
	}
	step->files = files;
	step->n_files += toml_size(t);
	return 0;
}

static int
read_step(struct reader *r, const struct toml *table, int index, struct swarm_step *step)
{
	const struct toml *at = NULL;
	const char *cwd = NULL;

	if (read_command(r, table, index, &step->argv) < 0 ||
		peek_str(r, table, "cwd", &cwd, &at) < 0 ||
		(cwd && check_guest_path(r, at, "cwd", cwd) < 0) ||
		read_str(r, table, "cwd", &step->cwd) < 0 ||
		read_str(r, table, "user", &step->user) < 0 ||
		read_env(r, table, index, step) < 0 || read_files(r, table, step) < 0 ||
		read_time_limit(r, table, &step->time_limit_ms) < 0)
		return -EINVAL;
	return 0;
}

/* A table at the top; absent: *ret stays NULL. */
static int
top_table(struct reader *r, const struct toml *root, const char *key,
	const char *const *keys, const struct toml **ret)
{
	const struct toml *t = toml_get(root, key);
	char where[32];

	if (!t)
		return 0;
	snprintf(where, sizeof(where), "[%s]", key);
	if (want_table(r, t, key) < 0 || check_keys(r, t, where, keys) < 0)
		return -EINVAL;
	*ret = t;
	return 0;
}

static int
read_base(struct reader *r, const struct toml *root)
{
	static const char *const machine_keys[] = {
		"mem_size_mib", "vcpu_count", "fs_size_vm_mib", NULL};
	static const char *const image_keys[] = {"name", NULL};
	static const char *const setup_keys[] = {
		"command", "cwd", "user", "env", "files", "time_limit_s", NULL};
	struct swarm_spec *s = r->spec;
	const struct toml *machine = NULL, *rootfs = NULL, *kernel = NULL, *setup = NULL,
			  *image;

	if (read_str(r, root, "from", &s->from) < 0 ||
		top_table(r, root, "machine", machine_keys, &machine) < 0 ||
		top_table(r, root, "rootfs", image_keys, &rootfs) < 0 ||
		top_table(r, root, "kernel", image_keys, &kernel) < 0 ||
		top_table(r, root, "setup", setup_keys, &setup) < 0)
		return -EINVAL;
	if (s->from && machine)
		return bad(r, machine,
			"both \"from\" and [machine]: a swarm branches a VM or boots one; leave one of them out");
	if (!s->from && !machine)
		return bad(r, root,
			"what is to be branched? Give from = \"<vm>\", or [machine] to boot one");
	image = rootfs ? rootfs : kernel;
	if (image && !machine)
		return bad(r, image,
			"[rootfs] and [kernel] are for a machine that the swarm boots; give [machine] too, or leave them out");
	if (setup && !machine)
		return bad(r, setup,
			"[setup] is for a machine that the swarm boots; it does not change the VM named by \"from\"");
	if (machine &&
		(read_unsigned(r, machine, "mem_size_mib", 16, VMM_MEM_MAX_MIB,
			 &s->machine.mem_mib) < 0 ||
			read_unsigned(r, machine, "vcpu_count", 1, VMM_VCPUS_MAX, &s->machine.vcpus) <
				0 ||
			read_unsigned(r, machine, "fs_size_vm_mib", 1, VMM_DISK_MAX_MIB,
				&s->machine.disk_mib) < 0 ||
			(rootfs && read_image(r, rootfs, &s->machine.rootfs) < 0) ||
			(kernel && read_image(r, kernel, &s->machine.kernel) < 0)))
		return -EINVAL;
	s->setup.time_limit_ms = 600 * 1000;
	return setup ? read_step(r, setup, -1, &s->setup) : 0;
}

static int
read_score(struct reader *r, const struct toml *root)
{
	static const char *const keys[] = {
		"command", "cwd", "user", "env", "time_limit_s", "failed_work", NULL};
	const struct toml *score = NULL;

	if (top_table(r, root, "score", keys, &score) < 0)
		return -EINVAL;
	if (!score)
		return bad(r, root,
			"how is the winner found? Give [score] with a command whose last line of output is a number");
	r->spec->score.time_limit_ms = 600 * 1000;
	if (read_step(r, score, -1, &r->spec->score) < 0 ||
		read_bool(r, score, "failed_work", &r->spec->score_failed_work) < 0)
		return -EINVAL;
	if (!r->spec->score.argv)
		return bad(r, score,
			"[score] needs a \"command\" whose last line of output is a number");
	return 0;
}

static bool
same_base_name(const char *a, const char *b)
{
	size_t a_len, b_len;

	a = base_name(a, &a_len);
	b = base_name(b, &b_len);
	return a_len == b_len && memcmp(a, b, a_len) == 0;
}

static int
read_collect(struct reader *r, const struct toml *root)
{
	const struct toml *t = toml_get(root, "collect"), *item, *from_at = NULL;
	const char *from = NULL, **paths;

	if (peek_str(r, root, "collect_from", &from, &from_at) < 0)
		return -EINVAL;
	if (from && strcmp(from, "winner") != 0 && strcmp(from, "all") != 0)
		return bad(r, from_at, "\"collect_from\" must be \"winner\" or \"all\"");
	r->spec->collect_from_all = from && strcmp(from, "all") == 0;
	if (!t)
		return 0;
	if (toml_type(t) != TOML_ARRAY)
		return bad_type(r, t, "collect", "an array of paths");
	if (toml_size(t) > SWARM_LIST_MAX)
		return bad(r, t, "more than %d paths in \"collect\"; collect a folder",
			SWARM_LIST_MAX);
	paths = keep(r, (toml_size(t) + 1) * sizeof(*paths));
	if (!paths)
		return -ENOMEM;
	for (size_t i = 0; (item = toml_element(t, i)); i++) {
		const char *text;

		if (toml_type(item) != TOML_STRING || toml_str(item, &text, NULL) < 0)
			return bad_type(r, item, "collect", "an array of paths");
		if (check_guest_path(r, item, "collect", text) < 0)
			return -EINVAL;
		paths[i] = keep_str(r, text, strlen(text));
		if (!paths[i])
			return -ENOMEM;
		for (size_t k = 0; k < i; k++)
			if (same_base_name(paths[k], paths[i]))
				return bad(r, item,
					"\"%.100s\" and \"%.100s\" would be collected under the same name; collect their folders",
					paths[k], paths[i]);
	}
	r->spec->collect = paths;
	r->spec->n_collect = toml_size(t);
	return 0;
}

/* One [[child]] entry: `copies` children from `at` on. [work] is read for each of them,
 * for the sake of {index}; `work` may be NULL. */
static int
read_child(struct reader *r, const struct toml *table, const struct swarm_step *defaults,
	const struct toml *work, struct swarm_child_spec *at, size_t first,
	unsigned copies, bool counted)
{
	const char *pattern = NULL;
	const struct toml *name_at = table;

	if (peek_str(r, table, "name", &pattern, &name_at) < 0)
		return -EINVAL;
	for (unsigned i = 0; i < copies; i++) {
		struct swarm_child_spec *c = &at[i];
		int index = counted ? (int)i : -1;
		char name[512];

		if (!pattern)
			snprintf(name, sizeof(name), "child-%zu", first + i);
		else if (counted && !strstr(pattern, "{index}"))
			snprintf(name, sizeof(name), "%.400s-%u", pattern, i);
		else
			snprintf(name, sizeof(name), "%.400s", pattern);
		c->name = fill_in(r, name, index);
		if (!c->name)
			return -ENOMEM;
		if (!name_ok(c->name))
			return bad(r, name_at,
				"child name \"%.80s\": use letters, digits, . _ -, at most %d, a letter or digit first",
				c->name, SWARM_NAME_MAX);
		c->work = *defaults;
		if ((work && read_step(r, work, index, &c->work) < 0) ||
			read_step(r, table, index, &c->work) < 0)
			return -EINVAL;
		if (!c->work.argv)
			return bad(r, table,
				"child \"%s\" has no \"command\", and [work] gives none",
				c->name);
	}
	return 0;
}

struct named {
	const char *name;
	const struct toml *at;
};

static int
compare_names(const void *a, const void *b)
{
	return strcmp(((const struct named *)a)->name, ((const struct named *)b)->name);
}

static int
read_children(struct reader *r, const struct toml *root)
{
	static const char *const work_keys[] = {
		"command", "cwd", "user", "env", "time_limit_s", NULL};
	static const char *const child_keys[] = {"name", "command", "cwd", "user", "env",
		"files", "time_limit_s", "count", NULL};
	const struct toml *list = toml_get(root, "child"), *work = NULL, *item;
	struct swarm_step defaults = {.time_limit_ms = 600 * 1000};
	struct swarm_child_spec *children;
	cleanup_free struct named *names = NULL;
	size_t total = 0;

	if (top_table(r, root, "work", work_keys, &work) < 0)
		return -EINVAL;
	if (!list)
		return bad(r, root, "no children: give at least one [[child]]");
	if (toml_type(list) != TOML_ARRAY)
		return bad(
			r, list, "\"child\" must be an array of tables; write [[child]]");
	for (size_t i = 0; (item = toml_element(list, i)); i++) {
		unsigned count = 1;

		if (want_table(r, item, "child") < 0 ||
			check_keys(r, item, "[[child]]", child_keys) < 0 ||
			read_unsigned(r, item, "count", 1, SWARM_CHILDREN_MAX, &count) <
				0)
			return -EINVAL;
		total += count;
		if (total > SWARM_CHILDREN_MAX)
			return bad(r, item, "more than %d children", SWARM_CHILDREN_MAX);
	}
	if (!total)
		return bad(r, list, "no children: give at least one [[child]]");

	if (read_files(r, root, &defaults) < 0)
		return -EINVAL;
	children = keep(r, total * sizeof(*children));
	names = calloc(total, sizeof(*names));
	if (!children || !names)
		return err_set(r->e, -ENOMEM, "%s: out of memory", r->path);
	r->spec->children = children;
	for (size_t i = 0; (item = toml_element(list, i)); i++) {
		size_t first = r->spec->n_children;
		unsigned count = 1;
		bool counted = toml_get(item, "count") != NULL;

		if (read_unsigned(r, item, "count", 1, SWARM_CHILDREN_MAX, &count) < 0 ||
			read_child(r, item, &defaults, work, &children[first], first,
				count, counted) < 0)
			return -EINVAL;
		for (unsigned k = 0; k < count; k++)
			names[first + k] = (struct named){children[first + k].name, item};
		r->spec->n_children += count;
	}
	qsort(names, total, sizeof(*names), compare_names);
	for (size_t i = 1; i < total; i++)
		if (strcmp(names[i - 1].name, names[i].name) == 0)
			return bad(r, names[i].at,
				"two children are named \"%s\"; names must differ",
				names[i].name);
	return 0;
}

static int
read_name(struct reader *r, const struct toml *root)
{
	const struct toml *at = root;
	const char *name = NULL;
	char from_path[SWARM_NAME_MAX + 1];
	size_t n = 0;

	if (peek_str(r, root, "name", &name, &at) < 0)
		return -EINVAL;
	if (name && (!name_ok(name) || strlen(name) > 40))
		return bad(r, at,
			"\"name\" must be letters, digits, . _ -, at most 40, a letter or digit first");
	if (!name) {
		/* The file's name as far as its characters serve. */
		const char *base = r->path + r->folder_len, *end = strrchr(base, '.');

		if (!end || end == base)
			end = base + strlen(base);
		for (const char *p = base; p < end && n < 40; p++)
			if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
				(*p >= '0' && *p <= '9') || (n && strchr("._-", *p)))
				from_path[n++] = *p;
		from_path[n] = '\0';
		name = n ? from_path : "swarm";
	}
	r->spec->name = keep_str(r, name, strlen(name));
	return r->spec->name ? 0 : -ENOMEM;
}

static int
read_spec(struct reader *r, const struct toml *root)
{
	static const char *const keys[] = {"name", "from", "machine", "rootfs", "kernel",
		"setup", "files", "work", "score", "child", "collect", "collect_from",
		"output", "keep_winner", "parallel", NULL};
	struct swarm_spec *s = r->spec;

	if (check_keys(r, root, "the spec", keys) < 0 || read_name(r, root) < 0 ||
		read_base(r, root) < 0 || read_score(r, root) < 0 ||
		read_collect(r, root) < 0 || read_children(r, root) < 0 ||
		read_str(r, root, "output", &s->output) < 0 ||
		read_bool(r, root, "keep_winner", &s->keep_winner) < 0 ||
		read_unsigned(r, root, "parallel", 1, SWARM_CHILDREN_MAX, &s->parallel) <
			0)
		return -EINVAL;
	return 0;
}

int
swarm_spec_parse(const char *path, const char *text, size_t len, struct swarm_spec **ret,
	struct err *e)
{
	cleanup_toml struct toml *root = NULL;
	cleanup_swarm_spec struct swarm_spec *spec = calloc(1, sizeof(*spec));
	const char *slash = strrchr(path, '/');
	struct err why = {0};
	struct reader r = {path, slash ? (size_t)(slash + 1 - path) : 0, spec, &why};
	int rc;

	if (!spec)
		return err_set(e, -ENOMEM, "%s: out of memory", path);
	rc = toml_parse(text, len, &root, &why);
	if (rc < 0) {
		unsigned line, column;
		int n = 0;

		/* One form of place in all sentences about a spec. */
		if (sscanf(why.msg, "line %u, column %u: %n", &line, &column, &n) == 2 &&
			n)
			return err_set(e, rc, "%s:%u:%u: %.400s", path, line, column,
				why.msg + n);
		return err_set(e, rc, "%s: %.400s", path, why.msg);
	}
	rc = read_spec(&r, root);
	if (rc < 0)
		return err_set(e, why.code ? why.code : rc, "%s", why.msg);
	*ret = TAKE_PTR(spec);
	return 0;
}

static int
check_step_files(const struct swarm_step *step, struct err *e)
{
	for (size_t i = 0; i < step->n_files; i++) {
		const char *from = step->files[i].from;
		struct stat st;

		if (stat(from, &st) < 0)
			return err_sys(e, -errno, "file to put into the guest: %s", from);
		if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
			return err_set(e, -EINVAL,
				"file to put into the guest: %s is neither a file nor a folder",
				from);
		if (access(from, S_ISDIR(st.st_mode) ? R_OK | X_OK : R_OK) < 0)
			return err_sys(e, -errno, "file to put into the guest: %s", from);
	}
	return 0;
}

int
swarm_spec_check_files(const struct swarm_spec *spec, struct err *e)
{
	int rc = check_step_files(&spec->setup, e);

	for (size_t i = 0; rc == 0 && i < spec->n_children; i++)
		rc = check_step_files(&spec->children[i].work, e);
	return rc;
}

void
swarm_spec_free(struct swarm_spec *spec)
{
	if (!spec)
		return;
	while (spec->chunks) {
		struct swarm_chunk *next = spec->chunks->next;

		free(spec->chunks);
		spec->chunks = next;
	}
	free(spec);
}
