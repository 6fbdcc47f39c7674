#include "guest-agent/identity/identity_request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

#define HEX "0123456789abcdef"
#define LABELS_MAX 64
#define HOOK_MS_DEFAULT 10000
#define HOOK_MS_MAX 600000

static int
wrong(struct err *e, const char *name, const char *what)
{
	return err_set(e, -EINVAL, "identity handshake: \"%s\" must be %s", name, what);
}

static int
read_hex(const struct json *j, int tok, const char *name, size_t len, char *dst,
	struct err *e)
{
	char what[64];

	snprintf(what, sizeof(what), "%zu lower-case hex digits", len);
	if (json_str(j, tok, dst, len + 1) || strlen(dst) != len ||
		strspn(dst, HEX) != len)
		return wrong(e, name, what);
	return 0;
}

static int
read_id(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	return read_hex(j, tok, "id", AGENT_VM_ID_LEN, h->id, e);
}

static int
read_generation(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	int r = read_hex(j, tok, "generation", AGENT_GENERATION_LEN, h->generation, e);

	/* What the memory holds before anybody wrote one there. */
	if (!r && strspn(h->generation, "0") == AGENT_GENERATION_LEN)
		return wrong(e, "generation", "another one than zero");
	return r;
}

/* As VMs are named: a letter, then letters, digits and ".", "_", "-". */
static int
read_name(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	if (json_str(j, tok, h->name, sizeof(h->name)) ||
		strspn(h->name,
			"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
			"._-") != strlen(h->name) ||
		strchr("._-", h->name[0]))
		return wrong(e, "name", "a VM's name");
	return 0;
}

static int
read_host_name(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	const char *s = h->host_name;

	if (json_str(j, tok, h->host_name, sizeof(h->host_name)) || !*s ||
		strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
			  ".-") != strlen(s) ||
		*s == '.' || *s == '-' || strstr(s, "..") ||
		strchr(".-", s[strlen(s) - 1]))
		return wrong(e, "host_name", "a host name");
	return 0;
}

static int
read_kind(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	char kind[16];

	if (json_str(j, tok, kind, sizeof(kind)) ||
		(strcmp(kind, "new") != 0 && strcmp(kind, "parent") != 0))
		return wrong(e, "kind", "\"new\" or \"parent\"");
	h->parent = kind[0] == 'p';
	return 0;
}

static int
read_env(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	int it = 0, key, value, r;

	if (json_type(j, tok) != JSON_ARRAY)
		return wrong(e, "env", "an array of \"NAME=value\"");
	while (json_next(j, tok, &it, &key, &value)) {
		cleanup_free char *entry = NULL;

		r = json_str_dup(j, value, &entry);
		if (r == -ENOMEM)
			return err_sys(e, r, "identity handshake");
		if (r || !strchr(entry, '='))
			return wrong(e, "env", "an array of \"NAME=value\"");
		r = env_set(&h->env, entry, e);
		if (r)
			return err_wrap(e, r, "identity handshake");
	}
	return 0;
}

static int
read_labels(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	int it = 0, key, value;

	if (json_type(j, tok) != JSON_OBJECT || json_size(j, tok) > LABELS_MAX)
		return wrong(e, "labels", "an object of at most 64 strings");
	json_out_object(&o, NULL);
	while (json_next(j, tok, &it, &key, &value)) {
		char name[256], text[1024];

		if (json_str(j, key, name, sizeof(name)) ||
			json_str(j, value, text, sizeof(text)))
			return wrong(e, "labels", "an object of at most 64 strings");
		json_out_str(&o, name, text);
	}
	json_out_end_object(&o);
	if (o.error)
		return err_sys(e, o.error, "identity handshake");
	free(h->labels);
	h->labels = TAKE_PTR(o.buf);
	return 0;
}

static int
read_wall(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	/* Until 2262: what fits 63 bits. */
	if (json_u64(j, tok, &h->wall_ns) || !h->wall_ns || h->wall_ns > INT64_MAX)
		return wrong(e, "wall_ns", "nanoseconds since 1970");
	return 0;
}

static int
read_entropy(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	char text[2 * AGENT_ENTROPY_MAX + 1];
	size_t len;

	if (json_str(j, tok, text, sizeof(text)) || (len = strlen(text)) % 2 ||
		len / 2 < AGENT_ENTROPY_MIN || strspn(text, HEX) != len)
		return wrong(e, "entropy", "32 to 64 bytes as lower-case hex digits");
	h->entropy_len = len / 2;
	for (size_t i = 0; i < h->entropy_len; i++)
		h->entropy[i] = (uint8_t)((strchr(HEX, text[2 * i]) - HEX) << 4 |
					  (strchr(HEX, text[2 * i + 1]) - HEX));
	explicit_bzero(text, sizeof(text));
	return 0;
}

static int
read_hook_ms(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	uint64_t v;

	if (json_u64(j, tok, &v) || !v || v > HOOK_MS_MAX)
		return wrong(e, "hook_ms", "1 to 600000 milliseconds");
	h->hook_ms = (uint32_t)v;
	return 0;
}

static int
read_ssh_key(const struct json *j, int tok, struct handshake *h, struct err *e)
{
	static const char type[] = "ssh-ed25519 ";
	size_t n = strlen(type);

	/* It becomes a line of a file that says who may come in. */
	if (json_str(j, tok, h->ssh_key, sizeof(h->ssh_key)) ||
		strlen(h->ssh_key) != AGENT_SSH_KEY_LEN ||
		strncmp(h->ssh_key, type, n) != 0 ||
		strspn(h->ssh_key + n, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvw"
				       "xyz0123456789+/") != AGENT_SSH_KEY_LEN - n)
		return wrong(e, "ssh_key", "an Ed25519 key: \"ssh-ed25519 AAAA…\"");
	return 0;
}

static const struct {
	const char *name;
	int (*read)(const struct json *j, int tok, struct handshake *h, struct err *e);
	bool needed;
} members[] = {
	{"id", read_id, true},
	{"name", read_name, true},
	{"host_name", read_host_name, true},
	{"generation", read_generation, true},
	{"kind", read_kind, true},
	{"entropy", read_entropy, true},
	{"wall_ns", read_wall, true},
	{"env", read_env, false},
	{"labels", read_labels, false},
	{"hook_ms", read_hook_ms, false},
	{"ssh_key", read_ssh_key, false},
};

#define N(a) (sizeof(a) / sizeof((a)[0]))

int
handshake_read(const struct json *j, struct handshake *ret, struct err *e)
{
	struct handshake h = {.hook_ms = HOOK_MS_DEFAULT};
	int it = 0, key, value, r = 0;
	char name[64];
	size_t m;

	for (m = 0; m < N(members) && !r; m++)
		if (members[m].needed && json_get(j, 0, members[m].name) < 0)
			r = err_set(e, -EINVAL, "the identity handshake needs \"%s\"",
				members[m].name);
	while (!r && json_next(j, 0, &it, &key, &value)) {
		if (json_str(j, key, name, sizeof(name))) {
			r = err_set(e, -EINVAL,
				"the identity handshake has a member that the agent does not know");
			break;
		}
		if (strcmp(name, "op") == 0)
			continue;
		for (m = 0; m < N(members) && strcmp(members[m].name, name) != 0; m++)
			;
		r = m == N(members)
			    ? err_set(e, -EINVAL,
				      "the identity handshake has no member \"%s\"", name)
			    : members[m].read(j, value, &h, e);
	}
	if (!r && h.parent && h.env.n)
		r = err_set(e, -EINVAL,
			"identity handshake: a parent stays who it is: it has no \"env\"");
	if (r) {
		handshake_done(&h);
		return r;
	}
	*ret = h;
	explicit_bzero(h.entropy, sizeof(h.entropy));
	return 0;
}

void
handshake_done(struct handshake *h)
{
	for (size_t i = 0; i < h->env.n; i++)
		explicit_bzero(h->env.v[i], strlen(h->env.v[i]));
	env_done(&h->env);
	free(h->labels);
	explicit_bzero(h, sizeof(*h));
}
