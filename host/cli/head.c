#include "host/cli/head.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define HEAD_FILE_MAX 256

static bool
is_project(const char *folder)
{
	static const char *const marks[] = {"pando.toml", "vers.toml", ".pando"};
	char path[PATHS_MAX];

	for (size_t i = 0; i < sizeof(marks) / sizeof(marks[0]); i++)
		if (paths_format(path, sizeof(path), NULL, "%s/%s", folder, marks[i]) ==
				0 &&
			access(path, F_OK) == 0)
			return true;
	return false;
}

int
head_find(const char *from, struct head *ret, struct err *e)
{
	cleanup_free char *here = from ? strdup(from) : getcwd(NULL, 0);
	struct head h = {.path = ""};
	char *up;
	int r;

	if (!here)
		return err_sys(e, -errno, "the current folder");
	r = paths_format(h.folder, sizeof(h.folder), e, "%s", here);
	while (r == 0) {
		/* "" is the root of all folders here: its marks are at "/<mark>". */
		if (is_project(here)) {
			r = paths_format(h.folder, sizeof(h.folder), e, "%s", here);
			break;
		}
		up = strrchr(here, '/');
		if (!up)
			break;
		*up = '\0';
	}
	if (r == 0)
		r = paths_format(h.path, sizeof(h.path), e, "%s/.pando/head", h.folder);
	if (r == 0)
		*ret = h;
	return r;
}

/* One line of the file: an id, or an alias somebody wrote there. */
static bool
take_line(char **text, char dst[HEAD_NAME_MAX])
{
	size_t len = strcspn(*text, "\n");

	if (len >= HEAD_NAME_MAX)
		return false;
	for (size_t i = 0; i < len; i++) {
		char c = (*text)[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			    (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-'))
			return false;
	}
	memcpy(dst, *text, len);
	dst[len] = '\0';
	*text += len + ((*text)[len] == '\n');
	return true;
}

int
head_read(const char *from, struct head *ret, struct err *e)
{
	cleanup_free char *text = NULL;
	struct head h;
	struct stat st;
	char *at;
	size_t len;
	int r = head_find(from, &h, e);

	if (r < 0)
		return r;
	if (stat(h.path, &st) < 0) {
		if (errno != ENOENT && errno != ENOTDIR)
			return err_sys(e, -errno, "%.300s", h.path);
		*ret = h;
		return 0;
	}
	/* Whoever may write it says what our commands are done to. */
	if (st.st_uid != geteuid() && st.st_uid != 0)
		return err_set(e, -EPERM,
			"%.300s belongs to another user, so the VM in it is not taken: name the VM, or set PANDO_VM",
			h.path);
	r = S_ISREG(st.st_mode) ? io_read_file(h.path, HEAD_FILE_MAX, &text, &len, NULL)
				: -EINVAL;
	at = text;
	if (r == 0 && strlen(text) == len && take_line(&at, h.current) &&
		take_line(&at, h.previous) && *at == '\0') {
		*ret = h;
		return 0;
	}
	return err_set(e, -EINVAL,
		"%.300s is damaged: `pando checkout <vm>` writes it anew, and `pando checkout --none` removes it",
		h.path);
}

int
head_write(struct head *h, const char *id, struct err *e)
{
	char folder[PATHS_MAX], ignore[PATHS_MAX], text[HEAD_FILE_MAX];
	bool same = id && strcmp(id, h->current) == 0;
	const char *previous = same || !h->current[0] ? h->previous : h->current;
	int r = paths_format(folder, sizeof(folder), e, "%s/.pando", h->folder), n;

	if (r < 0)
		return r;
	if (access(folder, F_OK) < 0) {
		r = io_mkdir_p(folder, 0755, e);
		if (r == 0)
			r = paths_format(
				ignore, sizeof(ignore), e, "%s/.gitignore", folder);
		if (r == 0)
			r = io_write_file_atomic(ignore, "*\n", 2, 0644, e);
		if (r < 0)
			return r;
	}
	n = snprintf(text, sizeof(text), "%s\n%s%s", id ? id : "", previous,
		previous[0] ? "\n" : "");
	r = io_write_file_atomic(h->path, text, (size_t)n, 0644, e);
	if (r < 0)
		return r;
	if (previous != h->previous)
		memmove(h->previous, previous, strlen(previous) + 1);
	snprintf(h->current, sizeof(h->current), "%s", id ? id : "");
	return 0;
}
