#include "host/cli/fan.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "host/cli/env_option.h"
#include "host/cli/pick.h"

static int
take_label(struct fan *f, const char *label, struct err *e)
{
	int r = opt_label(label, "--label", e);

	if (r >= 0 && f->spec.n_labels == FAN_LABELS_MAX)
		r = err_set(e, -E2BIG, "at most %d labels", FAN_LABELS_MAX);
	if (r >= 0)
		f->labels[f->spec.n_labels++] = label;
	return r;
}

int
fan_read(struct opt_scan *s, const char *one_word, struct fan *ret, struct err *e)
{
	int key, r;

	*ret = (struct fan){.name = NULL};
	ret->spec.labels = ret->labels;
	ret->spec.env = &ret->env;
	while ((key = opt_next(s, e)) != OPT_END) {
		r = 0;
		switch (key) {
		case 'c':
			ret->checkout = true;
			break;
		case FAN_COUNT:
			r = opt_u64(
				s->arg, "--count", 1, FAN_COUNT_MAX, &ret->spec.count, e);
			break;
		case 'n':
		case 'N':
		case FAN_NAME:
			ret->spec.alias = s->arg;
			break;
		case 'l':
			r = take_label(ret, s->arg, e);
			break;
		case FAN_ENV:
			r = cli_env_add(&ret->env, s->arg, e);
			break;
		case FAN_ENV_FILE:
			r = cli_env_file(&ret->env, s->arg, e);
			break;
		case FAN_NO_WAIT:
			ret->spec.no_wait = true;
			break;
		case FAN_KEEP:
			ret->spec.keep_fork_point = true;
			break;
		case FAN_WAIT_FOR:
			if (strcmp(s->arg, "full") != 0)
				r = err_set(e, -EINVAL,
					"--wait-for takes \"full\", not \"%.64s\"", s->arg);
			ret->spec.full = true;
			break;
		case OPT_WORD:
			if (ret->name)
				r = err_set(e, -EINVAL, "%s", one_word);
			ret->name = s->arg;
			break;
		default:
			return key;
		}
		if (r >= 0 && ret->checkout && ret->spec.count > 1)
			r = err_set(e, -EINVAL,
				"--checkout takes one VM, not %llu: check one of them out afterwards",
				(unsigned long long)ret->spec.count);
		if (r < 0)
			return OPT_ERROR;
	}
	return OPT_END;
}

void
fan_done(struct fan *f)
{
	env_done(&f->env);
}

void
fan_print(const struct fan *f, const struct opt_scan *s, const struct client_vms *vms,
	const struct client_reply *reply)
{
	if (s->json)
		puts(reply->text);
	else
		for (size_t i = 0; i < vms->n; i++)
			puts(vms->v[i].id);
	if (!s->quiet)
		cli_env_tell(&f->env);
	if (f->checkout && vms->n == 1)
		pick_checkout(&vms->v[0], s->quiet);
}
