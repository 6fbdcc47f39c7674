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
	{257, "vm", "VM",
		"look into this VM instead: its agent, identity, units, clock, disks, environment",
		COMPLETE_VM},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static const char *const verdicts[] = {
	[DOCTOR_OK] = "ok",
	[DOCTOR_NOTE] = "note",
	[DOCTOR_PROBLEM] = "problem",
};

/* host: what is looked at is this host. */
static int
print_json(const struct doctor *d, bool host)
{
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	if (host)
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
	return out_json(&o);
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
	bool kvm_only = false, wrong = false;
	const char *vm = NULL;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_WORD)
			key = (err_set(&e, -EINVAL, "doctor takes no words"), OPT_ERROR);
		if (key < 0)
			return opt_leave(&s, key, &e);
		if (key == 257)
			vm = s.arg;
		else
			kvm_only = true;
	}
	if (vm && kvm_only) {
		err_set(&e, -EINVAL, "--can-boot-linux is of this host, --vm of a VM");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (s.quiet)
		out_hush();
	if (kvm_only)
		doctor_check_kvm(&d);
	else if (!vm)
		doctor_check_all(&d);
	else if (doctor_check_vm(&d, vm, &e) < 0)
		return out_fail(&e);
	if (s.json) {
		if (print_json(&d, !vm) != EXIT_OK)
			return EXIT_FAILED;
	} else if (!s.quiet) {
		print_text(&d);
	} else if (!kvm_only) {
		for (size_t i = 0; i < d.n; i++)
			if (d.findings[i].verdict != DOCTOR_OK)
				puts(d.findings[i].id);
	}
	for (size_t i = 0; i < d.n; i++)
		wrong = wrong || d.findings[i].verdict == DOCTOR_PROBLEM;
	if (vm)
		return wrong ? EXIT_FAILED : EXIT_OK;
	return d.boots_linux ? EXIT_OK : EXIT_FAILED;
}

const struct verb verb_doctor = {
	.name = "doctor",
	.summary = "Says what this host can do, and how to mend what it cannot",
	.run = run,
	.usage = "[--can-boot-linux]\n"
		 "--vm VM",
	.options = options,
	.text = "Exit status: 0 when VMs can run on this host, 1 when they cannot (the test machine, `pando machine`, is\n"
		"the way then). Notes do not change it. -q prints the ids of what is not ok.\n"
		"\n"
		"--vm asks the VM's own agent: what has failed in it, what is enabled and not active, path units whose service\n"
		"is still active and will not start again (see there before a commit), and how to mend each; 1 when something\n"
		"is wrong.",
};
