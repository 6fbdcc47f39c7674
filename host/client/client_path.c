/* Where pandod's API has a VM (client.h, client_priv.h). Below the calls themselves. */
#include "host/client/client_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int
client_percent_encode(char *dst, size_t cap, const char *text)
{
	static const char plain[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~";
	size_t n = 0;

	for (; *text; text++) {
		if (n + 4 > cap)
			return -ENAMETOOLONG;
		if (strchr(plain, *text))
			dst[n++] = *text;
		else
			n += (size_t)snprintf(
				dst + n, cap - n, "%%%02X", (unsigned char)*text);
	}
	dst[n] = '\0';
	return 0;
}

int
client_vm_path(char *dst, size_t cap, const char *vm, const char *suffix, struct err *e)
{
	char name[512];
	int n;

	if (!vm[0])
		return err_set(e, -EINVAL, "a VM's name cannot be empty");
	/* Two dots would be taken for a folder above on the way. */
	if (strcmp(vm, ".") == 0 || strcmp(vm, "..") == 0)
		return err_set(e, -ENOENT,
			"no VM is named \"%s\"; `pando status` lists them", vm);
	if (client_percent_encode(name, sizeof(name), vm) < 0)
		return err_set(e, -ENOENT,
			"no VM is named \"%.60s…\": a name has at most 63 letters", vm);
	n = snprintf(dst, cap, "/v1/vms/%s%s", name, suffix);
	return n < 0 || (size_t)n >= cap ? err_set(e, -ENAMETOOLONG, "path too long") : 0;
}
