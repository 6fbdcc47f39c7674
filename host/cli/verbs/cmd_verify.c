#include <errno.h>
#include <stdio.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_verify;

static uint64_t
number(const struct client_reply *reply, const char *key)
{
	uint64_t v = 0;

	(void)json_u64(reply->json, json_get(reply->json, 0, key), &v);
	return v;
}

static void
print_damages(const struct client_reply *reply)
{
	int damages = json_get(reply->json, 0, "damages");
	int n = damages < 0 ? 0 : json_size(reply->json, damages);

	for (int i = 0; i < n; i++) {
		cleanup_free char *text = NULL;
		char plain[1024];

		if (json_str_dup(reply->json,
			    json_get(reply->json, json_at(reply->json, damages, i),
				    "text"),
			    &text) == 0)
			puts(out_plain(plain, sizeof(plain), text));
	}
}

enum { OPT_REPAIR = 256 };

static const struct opt options[] = {
	{OPT_REPAIR, "repair", NULL, "first save what is sound of packs that cannot be read",
		COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
ask(struct client *c, bool repair, const char *path, bool quiet,
	struct client_reply *reply, struct err *e)
{
	struct out_progress progress;
	int r;

	if (!repair)
		return client_call(c, "POST", path, NULL, reply, e);
	out_progress_start(&progress, quiet);
	client_on_progress(c, out_progress_say, &progress);
	r = client_call(c, "POST", "/v1/verify?repair=1", NULL, reply, e);
	out_progress_end(&progress);
	return r;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_verify, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	const char *name = NULL;
	char path[1024] = "/v1/verify";
	struct err e = {0};
	bool sound = false, repair = false;
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_REPAIR) {
			repair = true;
			continue;
		}
		if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	}
	if (repair && name) {
		err_set(&e, -EINVAL, "--repair is of the whole store: name no commit");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_pandod(&c, &e) < 0 ||
		(name && client_path(path, sizeof(path), "commits", name, "/verify", &e) <
				 0) ||
		ask(c, repair, path, s.quiet, &reply, &e) < 0)
		return out_fail(&e);
	(void)json_bool(reply.json, json_get(reply.json, 0, "sound"), &sound);
	if (s.json)
		puts(reply.text);
	else
		print_damages(&reply);
	if (repair && !s.json)
		out_note("%llu chunks saved, %llu damaged packs removed",
			(unsigned long long)number(&reply, "chunks_saved"),
			(unsigned long long)number(&reply, "packs_removed"));
	if (!sound) {
		out_complain("%llu damaged; commits without them are sound",
			(unsigned long long)number(&reply, "damaged"));
		return EXIT_FAILED;
	}
	out_note("sound: %llu commit%s, %llu pages",
		(unsigned long long)number(&reply, "commits"),
		number(&reply, "commits") == 1 ? "" : "s",
		(unsigned long long)number(&reply, "pages"));
	return EXIT_OK;
}

const struct verb verb_verify = {
	.name = "verify",
	.summary =
		"Recomputes every hash of a commit, or of all, and names what is damaged",
	.run = run,
	.usage = "[--repair | commit]",
	.options = options,
	.text = "Status 1 when anything is damaged; each damage is a line on stdout.\n"
		"--repair puts right what can be, and prints what stays damaged.",
	.words = COMPLETE_COMMIT,
};
