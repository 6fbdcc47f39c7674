/* States that a hostile VMM may give: their CPU features are read (host/commit/commit_cpu.c). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "common/wire/blob.h"
#include "host/commit/commit_cpu.h"

static uint8_t in[1u << 18];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct blob_header h;
	struct json *j;
	char *text;
	struct err e = {0, ""};

	if (size > sizeof(in))
		return 0;
	memcpy(in, data, size);
	if (size >= sizeof(h)) { /* damage is not what is looked for */
		memcpy(&h, in, sizeof(h));
		h.bytes = size;
		h.check = blob_check(in + sizeof(h), size - sizeof(h));
		memcpy(in, &h, sizeof(h));
	}
	if (commit_cpu(in, size, &text, &e) < 0) {
		if (e.code >= 0 || !e.msg[0])
			abort();
		return 0;
	}
	if (json_parse(text, strlen(text), 2000, &j, &e) < 0 ||
		json_get(j, 0, "features") < 0)
		abort();
	json_free(j);
	free(text);
	return 0;
}
