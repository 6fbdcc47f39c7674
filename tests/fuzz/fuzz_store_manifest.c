/*
 * Manifests and the JSON in them (host/store/store_manifest.c). Oracle: no crash, no sanitizer
 * finding; what was made canonical stays as it is when that is done again; a manifest
 * that is taken is written the same again.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "host/store/store_priv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Plain abort: an assert may be compiled out. */
static void
must(int condition)
{
	if (!condition)
		abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1), *once, *twice;
	struct store_manifest *m;
	struct err e = {0};
	size_t len;

	if (!text)
		return 0;
	memcpy(text, data, size);
	text[size] = '\0';
	if (json_canonical(text, size, &once, &e) == 0) {
		must(json_canonical(once, strlen(once), &twice, &e) == 0);
		must(strcmp(once, twice) == 0);
		free(once);
		free(twice);
	} else {
		must(e.code < 0 && e.msg[0]);
	}
	if (manifest_parse(text, size, &m, &e) == 0) {
		must(manifest_format(&m->f, &once, &len, &e) == 0);
		must(len == size && memcmp(once, text, len) == 0);
		must(m->f.memory.length <= STORE_LENGTH_MAX);
		free(once);
		store_manifest_free(m);
	} else {
		must(e.code < 0 && e.msg[0]);
	}
	free(text);
	return 0;
}
