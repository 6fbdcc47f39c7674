#include <errno.h>
#include <stdio.h>

#include "common/json.h"
#include "host/cli/doctor.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"

extern const struct verb verb_doctor;

static const struct opt options[] = {
	{256, "can-boot-linux", NULL,
		"look only whether VMs can run on this host; with -q say nothing",
		COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static const char *const verdicts[] = {
	[DOCTOR_OK] = "ok",
	[DOCTOR_NOTE] = "note",
	[DOCTOR_PROBLEM] = "problem",
};

static int
print_json(const struct doctor *d)
{
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	json_out_str(&o, "kvm",
		d->boots_linux	? "linux"
		: d->runs_small ? "small"
				: "none");
	json_out_array(&o, "findings");
	for (size_t i = 0; i < d->n; i++) {
		const struct doctor_finding *f = &d->findings[i];

		json_out_object(&o, NULL);
		json_out_str(&o, "id", f->id);
		json_out_str(&o, "verdict", verdicts[f->verdict]);
		json_out_str(&o, "detail", f->detail);
		json_out_str(&o, "mend", f->mend[0] ? f->mend : NULL);
		json_out_end_object(&o);
	}
	json_out_end_array(&o);
	json_out_end_object(&o);
	if (o.error)
		return o.error;
	puts(o.buf);
	return 0;
}

static void
print_text(const struct doctor *d)
{
	char plain[1100];

	for (size_t i = 0; i < d->n; i++) {
		const struct doctor_finding *f = &d->findings[i];

		printf("%-8s %-14s %s\n", verdicts[f->verdict], f->id,
			out_plain(plain, sizeof(plain), f->detail));
		if (f->mend[0])
			printf("%-8s %-14s -> %s\n", "", "",
				out_plain(plain, sizeof(plain), f->mend));
	}
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_doctor, argc, argv);
	struct doctor d = {.n = 0};
	bool kvm_only = false;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_WORD)
			key = (err_set(&e, -EINVAL, "doctor takes no words"), OPT_ERROR);
		if (key < 0)
			return opt_leave(&s, key, &e);
		kvm_only = true;
	}
	if (kvm_only)
		doctor_check_kvm(&d);
	else
		doctor_check_all(&d);
	if (s.json) {
		if (print_json(&d) < 0)
			return EXIT_FAILED;
	} else if (!s.quiet) {
		print_text(&d);
	} else if (!kvm_only) {
		for (size_t i = 0; i < d.n; i++)
			if (d.findings[i].verdict != DOCTOR_OK)
				puts(d.findings[i].id);
	}
	return d.boots_linux ? EXIT_OK : EXIT_FAILED;
}

const struct verb verb_doctor = {
	.name = "doctor",
	.summary = "Says what this host can do, and how to mend what it cannot",
	.run = run,
	.usage = "[--can-boot-linux]",
	.options = options,
	.text = "Exit status: 0 when VMs can run on this host, 1 when they cannot (the "
		"test machine, `pando machine`, is\n"
		"the way then). Notes do not change it. -q prints the ids of what is not "
		"ok.",
};
