#include "common/wire/json_bytes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/utf8.h"

static const char alphabet[] =
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static bool
is_utf8(const char *s)
{
	size_t left = strlen(s), n;

	for (; left; s += n, left -= n) {
		n = utf8_len(s, left);
		if (!n)
			return false;
	}
	return true;
}

void
json_out_bytes(struct json_out *o, const char *key, const char *value)
{
	const unsigned char *s = (const unsigned char *)value;
	cleanup_free char *text = NULL;
	size_t len, n = 0;

	if (!value || is_utf8(value)) {
		json_out_str(o, key, value);
		return;
	}
	len = strlen(value);
	text = malloc((len + 2) / 3 * 4 + 1);
	if (!text) {
		o->error = -ENOMEM;
		return;
	}
	for (size_t i = 0; i < len; i += 3) {
		uint32_t v = (uint32_t)s[i] << 16;

		if (i + 1 < len)
			v |= (uint32_t)s[i + 1] << 8;
		if (i + 2 < len)
			v |= s[i + 2];
		text[n++] = alphabet[v >> 18];
		text[n++] = alphabet[v >> 12 & 63];
		text[n++] = i + 1 < len ? alphabet[v >> 6 & 63] : '=';
		text[n++] = i + 2 < len ? alphabet[v & 63] : '=';
	}
	text[n] = 0;
	json_out_object(o, key);
	json_out_str(o, "b64", text);
	json_out_end_object(o);
}

int
json_bytes_dup(const struct json *j, int tok, char **ret)
{
	cleanup_free char *text = NULL;
	size_t len, n = 0;
	int r;

	if (tok < 0)
		return -ENOENT;
	if (json_type(j, tok) == JSON_STRING)
		return json_str_dup(j, tok, ret);
	if (json_type(j, tok) != JSON_OBJECT || json_size(j, tok) != 1)
		return -EINVAL;
	r = json_str_dup(j, json_get(j, tok, "b64"), &text);
	if (r < 0)
		return r == -ENOMEM ? r : -EINVAL;
	len = strlen(text);
	if (len % 4)
		return -EINVAL;
	/* Decoded in place: three bytes never overtake the four they came from. */
	for (size_t i = 0; i < len; i += 4) {
		uint32_t v = 0;
		unsigned bytes = 3;

		for (unsigned k = 0; k < 4; k++) {
			char c = text[i + k];
			const char *at = memchr(alphabet, c, 64);

			if (c == '=' && i + 4 == len &&
				(k == 3 || (k == 2 && text[i + 3] == '='))) {
				if (bytes == 3)
					bytes = k - 1;
				v <<= 6;
				continue;
			}
			if (!at)
				return -EINVAL;
			v = v << 6 | (uint32_t)(at - alphabet);
		}
		for (unsigned k = 0; k < bytes; k++) {
			char c = (char)(v >> (16 - 8 * k) & 0xff);

			if (!c)
				return -EINVAL;
			text[n++] = c;
		}
	}
	text[n] = 0;
	*ret = TAKE_PTR(text);
	return 0;
}
