#include "host/vm/vm_spec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

bool
vm_spec_is_id(const char *s)
{
	return strlen(s) == VM_ID_LEN && strspn(s, "0123456789abcdef") == VM_ID_LEN;
}

static bool
is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool
is_word(char c)
{
	return is_letter(c) || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

int
vm_spec_check_alias(const char *alias, struct err *e)
{
	char shown[128];
	size_t len = strlen(alias);
	bool ok = len >= 1 && len <= VM_ALIAS_MAX && is_letter(alias[0]);

	for (size_t i = 0; ok && i < len; i++)
		ok = is_word(alias[i]);
	if (!ok)
		return err_set(e, -EINVAL,
			"alias \"%s\": an alias starts with a letter and has at most %d letters, digits, '.', '_' and '-'",
			log_escape(shown, sizeof(shown), alias, len), VM_ALIAS_MAX);
	if (vm_spec_is_id(alias))
		return err_set(e, -EINVAL,
			"alias \"%s\" looks like a VM's id: choose one that is not 12 hex digits",
			alias);
	return 0;
}

int
vm_spec_check_label(const char *key, struct err *e)
{
	char shown[160];
	size_t len = strlen(key);
	bool ok = len >= 1 && len <= VM_LABEL_KEY_MAX;

	for (size_t i = 0; ok && i < len; i++)
		ok = is_word(key[i]) || key[i] == '/';
	if (ok)
		return 0;
	return err_set(e, -EINVAL,
		"label \"%s\": a label's name has 1 to %d letters, digits, '.', '_', '-' and '/'",
		log_escape(shown, sizeof(shown), key, len), VM_LABEL_KEY_MAX);
}

void
environment_request_done(struct environment_request *q)
{
	env_done(&q->set);
	free(q->remove);
	*q = (struct environment_request){0};
}
