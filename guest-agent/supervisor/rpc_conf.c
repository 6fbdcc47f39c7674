#include "guest-agent/supervisor/rpc_conf.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/toml.h"

#define WORDS_MAX 256
#define DAY_S 86400

struct reading {
	const char *what; /* the file */
	bool *boot_said;
	struct rpc_conf *c;
	struct err *e;
};

static int
wrong(const struct reading *r, const struct toml *t, const char *key, const char *must)
{
	return err_set(r->e, -EINVAL, "%.200s:%u:%u: %.60s must be %s", r->what,
		toml_line(t), toml_column(t), key, must);
}

static int
read_u32(const struct reading *r, const struct toml *t, const char *key, uint32_t min,
	uint32_t max, uint32_t *ret)
{
	int64_t v;
	char must[64];

	snprintf(must, sizeof(must), "a number from %u to %u", min, max);
	if (toml_i64(t, &v) || v < min || v > max)
		return wrong(r, t, key, must);
	*ret = (uint32_t)v;
	return 0;
}

/* One of the words, separated by '|'. */
static int
read_word(const struct reading *r, const struct toml *t, const char *key,
	const char *words, int *ret)
{
	char must[128];
	const char *v, *at = words;

	if (!toml_str(t, &v, NULL)) {
		for (int i = 0;; i++) {
			size_t n = strcspn(at, "|");

			if (strlen(v) == n && strncmp(v, at, n) == 0) {
				*ret = i;
				return 0;
			}
			if (!at[n])
				break;
			at += n + 1;
		}
	}
	snprintf(must, sizeof(must), "one of %s", words);
	return wrong(r, t, key, must);
}

static int
read_text(const struct reading *r, const struct toml *t, const char *key, char **ret)
{
	const char *v;

	if (toml_str(t, &v, NULL) || !*v)
		return wrong(r, t, key, "a string that is not empty");
	free(*ret);
	*ret = strdup(v);
	return *ret ? 0 : err_sys(r->e, -ENOMEM, "%s", r->what);
}

static void
free_words(char **v)
{
	for (char **at = v; at && *at; at++)
		free(*at);
	free(v);
}

static int
read_words(const struct reading *r, const struct toml *t, const char *key, char ***ret)
{
	size_t n = toml_size(t);

	if (toml_type(t) != TOML_ARRAY || n > WORDS_MAX)
		return wrong(r, t, key, "an array of at most 256 strings");
	free_words(*ret);
	*ret = calloc(n + 1, sizeof(**ret));
	if (!*ret)
		return err_sys(r->e, -ENOMEM, "%s", r->what);
	for (size_t i = 0; i < n; i++) {
		const struct toml *item = toml_element(t, i);
		const char *v;

		if (toml_str(item, &v, NULL))
			return wrong(r, item, key, "an array of strings");
		(*ret)[i] = strdup(v);
		if (!(*ret)[i])
			return err_sys(r->e, -ENOMEM, "%s", r->what);
	}
	return 0;
}

static int
read_command(const struct reading *r, const struct toml *t)
{
	const char *text;
	int n;

	if (toml_type(t) == TOML_STRING) {
		if (toml_str(t, &text, NULL) || !*text)
			return wrong(r, t, "command", "a program");
		free_words(r->c->argv);
		r->c->argv = calloc(4, sizeof(*r->c->argv));
		if (!r->c->argv || !(r->c->argv[0] = strdup("/bin/sh")) ||
			!(r->c->argv[1] = strdup("-c")) ||
			!(r->c->argv[2] = strdup(text)))
			return err_sys(r->e, -ENOMEM, "%s", r->what);
		return 0;
	}
	n = read_words(r, t, "command", &r->c->argv);
	if (n)
		return n;
	return r->c->argv[0] && *r->c->argv[0] ? 0 : wrong(r, t, "command", "a program");
}

static int
read_on_fork(const struct reading *r, const struct toml *t)
{
	static const struct {
		const char *name;
		int number;
	} signals[] = {{"HUP", SIGHUP}, {"INT", SIGINT}, {"TERM", SIGTERM},
		{"USR1", SIGUSR1}, {"USR2", SIGUSR2}, {"WINCH", SIGWINCH}};
	const char *v;

	if (!toml_str(t, &v, NULL)) {
		if (strcmp(v, "keep") == 0 || strcmp(v, "restart") == 0) {
			r->c->on_fork = *v == 'k' ? RPC_FORK_KEEP : RPC_FORK_RESTART;
			return 0;
		}
		for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
			if (strncmp(v, "signal:", 7) == 0 &&
				strcmp(v + 7, signals[i].name) == 0) {
				r->c->on_fork = RPC_FORK_SIGNAL;
				r->c->fork_signal = signals[i].number;
				return 0;
			}
	}
	return wrong(r, t, "on_fork",
		"\"keep\", \"restart\", or \"signal:\" and HUP, INT, TERM, USR1, USR2 or WINCH");
}

static int
read_env(const struct reading *r, const struct toml *t)
{
	int n = read_words(r, t, "env", &r->c->env);

	for (char **v = r->c->env; !n && *v; v++)
		if (**v == '=' || !strchr(*v, '='))
			n = wrong(r, t, "env", "an array of \"NAME=value\"");
	return n;
}

static int
read_restart(const struct reading *r, const char *key, const struct toml *t)
{
	struct rpc_conf *c = r->c;
	int word, n;

	if (strcmp(key, "policy") == 0) {
		n = read_word(r, t, key, "on-failure|always|never", &word);
		if (!n)
			c->restart = (enum rpc_restart)word;
		return n;
	}
	if (strcmp(key, "boot") == 0) {
		*r->boot_said = true;
		return toml_bool(t, &c->boot) ? wrong(r, t, key, "true or false") : 0;
	}
	if (strcmp(key, "delay_ms") == 0)
		return read_u32(r, t, key, 1, DAY_S * 1000u, &c->delay_ms);
	if (strcmp(key, "delay_max_ms") == 0)
		return read_u32(r, t, key, 1, DAY_S * 1000u, &c->delay_max_ms);
	if (strcmp(key, "limit") == 0)
		return read_u32(r, t, key, 1, 1000, &c->limit);
	if (strcmp(key, "window_s") == 0)
		return read_u32(r, t, key, 1, DAY_S, &c->window_s);
	return -ENOENT;
}

static int
read_watchdog(const struct reading *r, const char *key, const struct toml *t)
{
	int word, n;

	if (strcmp(key, "quiet_s") == 0)
		return read_u32(r, t, key, 0, DAY_S, &r->c->quiet_s);
	if (strcmp(key, "exit_s") == 0)
		return read_u32(r, t, key, 0, DAY_S, &r->c->exit_s);
	if (strcmp(key, "action") == 0) {
		n = read_word(r, t, key, "restart|stop", &word);
		if (!n)
			r->c->quiet_stops = word == 1;
		return n;
	}
	return -ENOENT;
}

static int
read_journal(const struct reading *r, const char *key, const struct toml *t)
{
	return strcmp(key, "keep_mib") != 0
		       ? -ENOENT
		       : read_u32(r, t, key, 1, 65536, &r->c->keep_mib);
}

static int
unknown(const struct reading *r, const struct toml *t, const char *table, const char *key)
{
	return err_set(r->e, -EINVAL, "%.200s:%u:%u: unknown key \"%s%.60s\"", r->what,
		toml_line(t), toml_column(t), table, key);
}

static int
read_table(const struct reading *r, const char *name, const struct toml *t,
	int (*member)(const struct reading *, const char *, const struct toml *))
{
	const struct toml *v;
	const char *key;

	if (toml_type(t) != TOML_TABLE)
		return wrong(r, t, name, "a table");
	for (size_t i = 0; (v = toml_member(t, i, &key)); i++) {
		char prefix[32];
		int n = member(r, key, v);

		snprintf(prefix, sizeof(prefix), "%s.", name);
		if (n == -ENOENT)
			return unknown(r, v, prefix, key);
		if (n)
			return n;
	}
	return 0;
}

static int
read_member(const struct reading *r, const char *key, const struct toml *t)
{
	struct rpc_conf *c = r->c;
	int word, n;

	if (strcmp(key, "command") == 0)
		return read_command(r, t);
	if (strcmp(key, "protocol") == 0) {
		n = read_word(r, t, key, "raw|pi|claude", &word);
		if (!n)
			c->protocol = (enum rpc_protocol)word;
		return n;
	}
	if (strcmp(key, "dialogs") == 0) {
		n = read_word(r, t, key, "deny|allow|ask", &word);
		if (!n)
			c->dialogs = (enum rpc_dialogs)word;
		return n;
	}
	if (strcmp(key, "folder") == 0) {
		n = read_text(r, t, key, &c->folder);
		return n || c->folder[0] == '/' ? n
						: wrong(r, t, key, "an absolute path");
	}
	if (strcmp(key, "user") == 0)
		return read_text(r, t, key, &c->user);
	if (strcmp(key, "env") == 0)
		return read_env(r, t);
	if (strcmp(key, "on_fork") == 0)
		return read_on_fork(r, t);
	if (strcmp(key, "stop_s") == 0)
		return read_u32(r, t, key, 0, 3600, &c->stop_s);
	if (strcmp(key, "tmux") == 0)
		return toml_bool(t, &c->tmux) ? wrong(r, t, key, "true or false") : 0;
	if (strcmp(key, "restart") == 0)
		return read_table(r, key, t, read_restart);
	if (strcmp(key, "watchdog") == 0)
		return read_table(r, key, t, read_watchdog);
	if (strcmp(key, "journal") == 0)
		return read_table(r, key, t, read_journal);
	return unknown(r, t, "", key);
}

int
rpc_conf_parse(const char *what, const char *text, size_t len, struct rpc_conf *ret,
	struct err *e)
{
	cleanup_rpc_conf struct rpc_conf c = {
		.delay_ms = 500,
		.delay_max_ms = 30000,
		.limit = 5,
		.window_s = 300,
		.stop_s = 10,
		.tmux = true,
		.keep_mib = 64,
	};
	bool boot_said = false;
	struct reading reading = {.what = what, .boot_said = &boot_said, .c = &c, .e = e};
	cleanup_toml struct toml *root = NULL;
	const struct toml *t;
	const char *key;
	int r;

	if (len > RPC_CONF_MAX)
		return err_set(
			e, -E2BIG, "%.200s has more than %u bytes", what, RPC_CONF_MAX);
	r = toml_parse(text, len, &root, e);
	if (r)
		return err_wrap(e, r, "%.200s", what);
	for (size_t i = 0; (t = toml_member(root, i, &key)); i++) {
		r = read_member(&reading, key, t);
		if (r)
			return r;
	}
	if (!c.argv)
		return err_set(e, -EINVAL,
			"%.200s has no command: command = [\"pi\", \"--mode\", \"rpc\"]",
			what);
	if (c.delay_max_ms < c.delay_ms)
		c.delay_max_ms = c.delay_ms;
	if (!boot_said)
		c.boot = c.restart != RPC_RESTART_NEVER;
	*ret = c;
	memset(&c, 0, sizeof(c));
	return 0;
}

int
rpc_conf_read(const char *path, struct rpc_conf *ret, struct err *e)
{
	cleanup_free char *text = NULL;
	size_t len;
	int r = io_read_file(path, RPC_CONF_MAX, &text, &len, e);

	if (r == -ENOENT)
		return err_set(e, r,
			"there is no %s: write one, with a command = [...] in it", path);
	return r ? r : rpc_conf_parse(path, text, len, ret, e);
}

void
rpc_conf_done(struct rpc_conf *c)
{
	free_words(c->argv);
	free_words(c->env);
	free(c->folder);
	free(c->user);
	memset(c, 0, sizeof(*c));
}

int
rpc_name_check(const char *name, struct err *e)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-");

	if (!*name || name[n] || n > RPC_NAME_MAX || *name == '-' || *name == '_')
		return err_set(e, -EINVAL,
			"\"%.60s\" is no name of a coding agent: at most %d of a-z, 0-9, - and _, with a letter or digit first",
			name, RPC_NAME_MAX);
	return 0;
}
