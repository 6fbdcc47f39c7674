/* A tag: a file that holds an id. */
#include <errno.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/store/store_priv.h"

int
store_tag_check(const char *tag, struct err *e)
{
	size_t len = strlen(tag);
	struct store_hash ignored;

	if (len == 0 || len >= STORE_TAG_MAX)
		return err_set(e, -EINVAL, "a tag has 1 to %u characters, this one %zu",
			STORE_TAG_MAX - 1, len);
	if (tag[0] == '.' ||
		strspn(tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX"
			    "YZ0123456789._-") != len)
		return err_set(e, -EINVAL,
			"a tag may have A-Z a-z 0-9 . _ - and not begin with a dot");
	if (strncmp(tag, PACK_TEMP, strlen(PACK_TEMP)) == 0)
		return err_set(e, -EINVAL,
			"tags that begin with \"" PACK_TEMP "\" are the store's own");
	if (hash_from_hex(tag, &ignored))
		return err_set(e, -EINVAL, "a tag may not look like a commit's id");
	return 0;
}

int
store_tag_get(
	struct store *s, const char *tag, char ret_id[static STORE_ID_MAX], struct err *e)
{
	cleanup_free char *text = NULL;
	struct store_hash ignored;
	size_t len;
	int r = store_tag_check(tag, e);

	if (r < 0)
		return r;
	r = store_read_at(s->tags_fd, tag, 256, &text, &len);
	if (r == -ENOENT)
		return err_set(e, r, "there is no commit or tag \"%s\"", tag);
	if (r < 0 && r != -EFBIG && r != -EBADMSG)
		return err_sys(e, r, "tag \"%s\"", tag);
	if (r == 0) {
		if (len && text[len - 1] == '\n')
			text[len - 1] = '\0';
		if (!hash_from_hex(text, &ignored))
			r = -EBADMSG;
	}
	if (r < 0)
		return err_set(e, -EBADMSG, "tag \"%s\" is damaged: set it again", tag);
	memcpy(ret_id, text, STORE_ID_MAX);
	return 0;
}
