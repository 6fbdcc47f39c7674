#include "guest-agent/identity/identity.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/json.h"
#include "common/log.h"
#include "common/text.h"
#include "guest-agent/system/guest_machine.h"

#define BOOT_ID_FILE "/run/pando/boot_id"
#define SAVED_ID_FILE "/var/lib/pando/id"
#define FILE_MAX 65536
#define HOSTS_MAX (4u << 20)
#define HOSTS_USUAL "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
#define TOKENS_MAX 512

static struct stat environment_written; /* st_ino 0: not by us */

void
identity_load(struct identity *ret)
{
	cleanup_free char *text = NULL;
	cleanup_json struct json *j = NULL;
	struct identity was = {0};

	if (!machine_read(IDENTITY_FILE, FILE_MAX, &text, NULL) &&
		!json_parse(text, strlen(text), TOKENS_MAX, &j, NULL)) {
		if (json_str(j, json_get(j, 0, "id"), was.id, sizeof(was.id)) ||
			json_str(j, json_get(j, 0, "name"), was.name, sizeof(was.name)) ||
			json_str(j, json_get(j, 0, "generation"), was.generation,
				sizeof(was.generation)))
			was = (struct identity){0};
	}
	if (!was.id[0]) {
		free(text);
		text = NULL;
		if (!machine_read(SAVED_ID_FILE, 64, &text, NULL) &&
			strspn(text, "0123456789abcdef") == AGENT_VM_ID_LEN)
			snprintf(was.id, sizeof(was.id), "%.*s", AGENT_VM_ID_LEN, text);
	}
	*ret = was;
}

int
identity_random(struct identity_change *c, struct err *e)
{
	int r = machine_reseed(c->handshake.entropy, c->handshake.entropy_len, e);

	explicit_bzero(c->handshake.entropy, sizeof(c->handshake.entropy));
	return r < 0 ? r : 1;
}

int
identity_clock(struct identity_change *c, struct err *e)
{
	bool stepped;
	int r = machine_set_clock(c->handshake.wall_ns, &stepped, e);

	return r < 0 ? r : stepped;
}

/* Whether one of the names on that line of /etc/hosts, behind the address, is this one. */
static bool
hosts_line_names(const char *line, size_t len, const char *name)
{
	const char *end = memchr(line, '#', len);
	size_t wanted = strlen(name), n;
	bool address = true;

	end = end ? end : line + len;
	for (; line < end; line += n) {
		while (line < end && strchr(" \t\r", *line))
			line++;
		for (n = 0; line + n < end && !strchr(" \t\r", line[n]); n++)
			;
		if (!address && n == wanted && strncasecmp(line, name, n) == 0)
			return true;
		address = false;
	}
	return false;
}

/* As Debian writes it: the whole name, then its first part where that is another one. */
static void
put_own_line(FILE *f, const char *name)
{
	size_t n = strcspn(name, ".");

	fprintf(f, "127.0.1.1\t%s", name);
	if (name[n])
		fprintf(f, " %.*s", (int)n, name);
}

/* The machine's own name resolves: the line of 127.0.1.1 (Debian's) gets it, and where no line
 * has that address or the name, there is one more. All other lines stay as they are. */
static int
name_in_hosts(const char *name, struct err *e)
{
	cleanup_free char *text = NULL, *new = NULL;
	bool resolves = false;
	size_t len = 0;
	FILE *f;
	int r = machine_read("/etc/hosts", HOSTS_MAX, &text, NULL);

	if (r && r != -ENOENT) {
		/* A list of a million names is no reason to refuse the machine. */
		log_warn(
			"/etc/hosts: it cannot be read (%s), so that it lacks the name \"%s\"",
			strerror(-r), name);
		return 0;
	}
	f = open_memstream(&new, &len);
	if (!f)
		return err_sys(e, -ENOMEM, "/etc/hosts");
	for (const char *s = text ? text : HOSTS_USUAL; *s;) {
		size_t n = strcspn(s, "\n");

		if (strncmp(s, "127.0.1.1", 9) == 0 && s[9] && strchr(" \t", s[9])) {
			put_own_line(f, name);
			resolves = true;
		} else {
			fwrite(s, 1, n, f);
			resolves = resolves || hosts_line_names(s, n, name);
		}
		putc('\n', f);
		s += n + (s[n] == '\n');
	}
	if (!resolves) {
		put_own_line(f, name);
		putc('\n', f);
	}
	if (fclose(f))
		return err_sys(e, -ENOMEM, "/etc/hosts");
	if (text && strcmp(text, new) == 0)
		return 0;
	return machine_write("/etc/hosts", new, len, 0644, e);
}

int
identity_host_name(struct identity_change *c, struct err *e)
{
	char line[AGENT_HOST_NAME_MAX + 2];
	int r = machine_set_name(c->handshake.host_name, e);

	snprintf(line, sizeof(line), "%s\n", c->handshake.host_name);
	if (!r)
		r = machine_write("/etc/hostname", line, strlen(line), 0644, e);
	if (!r)
		r = name_in_hosts(c->handshake.host_name, e);
	return r < 0 ? r : 1;
}

/* 32 hex digits of a random UUID (version 4), as machine-id(5) wants them. */
static int
new_uuid(char dst[static 33], struct err *e)
{
	uint8_t u[16];
	int r = machine_random(u, sizeof(u), e);

	u[6] = (u[6] & 0x0f) | 0x40;
	u[8] = (u[8] & 0x3f) | 0x80;
	text_hex(dst, u, sizeof(u));
	return r;
}

int
identity_machine_id(struct identity_change *c, struct err *e)
{
	cleanup_free char *now = NULL;
	char id[34];
	int r;

	if (c->same && !machine_read("/etc/machine-id", 256, &now, NULL) &&
		strspn(now, "0123456789abcdef") == 32)
		return 0;
	r = new_uuid(id, e);
	if (r)
		return r;
	strcat(id, "\n");
	r = machine_write("/etc/machine-id", id, strlen(id), 0444, e);
	return r < 0 ? r : 1;
}

int
identity_boot_id(struct identity_change *c, struct err *e)
{
	char id[33], text[40];
	int r;

	/* It has booted, and its kernel made one. */
	if (!c->old.generation[0])
		return 0;
	r = new_uuid(id, e);
	if (r)
		return r;
	snprintf(text, sizeof(text), "%.8s-%.4s-%.4s-%.4s-%.12s\n", id, id + 8, id + 12,
		id + 16, id + 20);
	/* The inode that is mounted already, if one is. */
	r = machine_overwrite(BOOT_ID_FILE, text, strlen(text), 0444, e);
	return r < 0 ? r : machine_cover_boot_id(BOOT_ID_FILE, e);
}

int
identity_seeds(struct identity_change *c, struct err *e)
{
	static const char *const seeds[] = {
		"/var/lib/systemd/random-seed",
		"/var/lib/urandom/random-seed",
		"/var/lib/random-seed",
		"/boot/loader/random-seed",
		"/boot/efi/loader/random-seed",
		"/efi/loader/random-seed",
	};
	int done = 0;

	(void)c;
	for (size_t i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++) {
		int r = machine_remove(seeds[i], e);

		if (r < 0)
			return r;
		done |= r;
	}
	return done;
}

int
identity_environment(struct identity_change *c, struct err *e)
{
	cleanup_free char *text = NULL, *rest = NULL;
	char path[PATH_MAX];
	int r = env_write(&c->handshake.env, false, &text, e);

	if (!r)
		r = env_write(&c->handshake.env, true, &rest, e);
	/* The second file first: the first one is what others watch. */
	if (!r && *rest)
		r = machine_write(HELD_BACK_FILE, rest, strlen(rest), 0644, e);
	else if (!r)
		r = machine_remove(HELD_BACK_FILE, e) < 0 ? -EIO : 0;
	if (!r)
		r = machine_write(ENVIRONMENT_FILE, text, strlen(text), 0644, e);
	if (text)
		explicit_bzero(text, strlen(text));
	if (rest)
		explicit_bzero(rest, strlen(rest));
	if (r)
		return r;
	if (stat(machine_path(path, ENVIRONMENT_FILE), &environment_written))
		environment_written.st_ino = 0;
	return 1;
}

bool
identity_environment_is_ours(void)
{
	const struct stat *w = &environment_written;
	char path[PATH_MAX];
	struct stat now;

	return w->st_ino && !stat(machine_path(path, ENVIRONMENT_FILE), &now) &&
	       now.st_dev == w->st_dev && now.st_ino == w->st_ino &&
	       now.st_size == w->st_size && now.st_mtim.tv_sec == w->st_mtim.tv_sec &&
	       now.st_mtim.tv_nsec == w->st_mtim.tv_nsec &&
	       now.st_ctim.tv_sec == w->st_ctim.tv_sec &&
	       now.st_ctim.tv_nsec == w->st_ctim.tv_nsec;
}

/* The one key of the host that may log in as any user. Empty: none may, any more. */
static int
authorize(const char *public_key, struct err *e)
{
	char line[OPENSSH_KEY_PUBLIC_MAX + 16];
	int r;

	if (!*public_key) {
		r = machine_remove(IDENTITY_AUTHORIZED_KEYS, e);
		return r < 0 ? r : 0;
	}
	snprintf(line, sizeof(line), "%s pando\n", public_key);
	/* sshd reads it as the user who comes in. */
	return machine_write(IDENTITY_AUTHORIZED_KEYS, line, strlen(line), 0644, e);
}

int
identity_ssh_keys(struct identity_change *c, struct err *e)
{
	char comment[AGENT_HOST_NAME_MAX + 8];
	int r;

	snprintf(comment, sizeof(comment), "root@%s", c->handshake.host_name);
	r = openssh_key_install(comment, c->same, c->host_key, e);
	if (!r)
		r = authorize(c->handshake.ssh_key, e);
	return r < 0 ? r : !c->same;
}

int
identity_note(struct identity_change *c, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	const struct handshake *h = &c->handshake;
	char text[AGENT_GENERATION_LEN + 2];
	int r;

	snprintf(text, sizeof(text), "%s\n", h->id);
	r = c->same ? 0 : machine_write(SAVED_ID_FILE, text, strlen(text), 0644, e);
	json_out_object(&o, NULL);
	json_out_str(&o, "id", h->id);
	json_out_str(&o, "name", h->name);
	json_out_str(&o, "host_name", h->host_name);
	json_out_str(&o, "generation", h->generation);
	json_out_str(&o, "old_id", c->old.id[0] ? c->old.id : NULL);
	json_out_str(
		&o, "old_generation", c->old.generation[0] ? c->old.generation : NULL);
	if (h->labels)
		json_out_raw(&o, "labels", h->labels, strlen(h->labels));
	json_out_end_object(&o);
	if (!r && o.error)
		r = err_sys(e, o.error, IDENTITY_FILE);
	if (!r)
		r = machine_write(IDENTITY_FILE, o.buf, o.len, 0644, e);
	/* Last: programs that have it mapped act on it at once. */
	snprintf(text, sizeof(text), "%s\n", h->generation);
	if (!r)
		r = machine_overwrite(GENERATION_FILE, text, strlen(text), 0644, e);
	return r < 0 ? r : 1;
}
