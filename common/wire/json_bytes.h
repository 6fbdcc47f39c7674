/*
 * Byte strings in JSON: a string where the bytes are UTF-8, else {"b64":"…"} (RFC 4648
 * §4, padded). What a file name or an argument is must not depend on what JSON can say.
 */
#ifndef PANDO_COMMON_WIRE_JSON_BYTES_H
#define PANDO_COMMON_WIRE_JSON_BYTES_H

#include "common/json.h"

/* A C string of any bytes. */
void json_out_bytes(struct json_out *o, const char *key, const char *value);

/* malloc'd C string, owned by the caller. -ENOENT absent, -EINVAL neither form, or with a
 * NUL inside. */
int json_bytes_dup(const struct json *j, int tok, char **ret);

#endif
