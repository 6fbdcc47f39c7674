/* What a guest says of itself: said by the agent that was built beside this, and judged.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/paths.h"
#include "host/cli/doctor.h"
#include "tests/unit/agent_help.h"

#define G "0123456789abcdef0123456789abcdef"
#define NS_PER_S UINT64_C(1000000000)

static struct doctor d;
static struct err e;

static int
judge(const char *text)
{
	d = (struct doctor){.n = 0};
	e = (struct err){0};
	return doctor_judge_guest(&d, "web", G, text, strlen(text), &e);
}

/* The one of that id whose detail has that in it. */
static const struct doctor_finding *
found(const char *id, const char *part)
{
	for (size_t i = 0; i < d.n; i++)
		if (strcmp(d.findings[i].id, id) == 0 &&
			strstr(d.findings[i].detail, part))
			return &d.findings[i];
	for (size_t i = 0; i < d.n; i++)
		print_message("%s: %s\n", d.findings[i].id, d.findings[i].detail);
	fail_msg("there is no %s with \"%s\"", id, part);
	return NULL;
}

#define HEAD \
	"{\"version\":\"" PANDO_VERSION "\",\"vm\":\"aaaaaaaaaaaa\",\"generation\":\"" G \
	"\","
#define WELL \
	"\"units\":{\"system\":\"running\",\"failed\":[],\"not_active\":[],\"paths\":[]" \
	"}," \
	"\"units_why\":null,"
#define DISKS \
	"\"disks\":[{\"path\":\"/\",\"mib\":1000,\"free_mib\":500,\"inodes\":1000," \
	"\"inodes_free\":900}],"
#define REST \
	"\"missing\":[],\"environment\":{\"why\":null,\"held_back\":[]},\"agents\":[]," \
	"\"time_ns\":1}"

static void
a_sound_guest_has_nothing_wrong(void **state)
{
	(void)state;
	assert_int_equal(judge(HEAD WELL DISKS REST), 0);
	for (size_t i = 0; i < d.n; i++)
		assert_int_equal(d.findings[i].verdict, DOCTOR_OK);
	found("agent", PANDO_VERSION);
	found("identity", "0123456789ab");
	found("units", "no unit has failed");
	found("disk", "have room");
}

static void
what_will_not_fire_again_is_a_problem_with_its_mend(void **state)
{
	const struct doctor_finding *f;

	(void)state;
	assert_int_equal(
		judge(HEAD
			"\"units\":{\"system\":\"degraded\",\"failed\":[{\"unit\":"
			"\"bad.service\","
			"\"why\":\"exit-code, status 1\"}],\"not_active\":["
			"{\"unit\":\"pi.path\",\"why\":\"it was never started\"},"
			"{\"unit\":\"once.service\",\"why\":\"it has ended\"}],\"paths\":["
			"{\"unit\":\"rpc.path\",\"service\":\"pi-rpc.service\","
			"\"state\":\"exited\"},"
			"{\"unit\":\"long.path\",\"service\":\"long.service\","
			"\"state\":\"running\"}]},"
			"\"units_why\":null," DISKS REST),
		0);
	f = found("failed", "bad.service has failed: exit-code, status 1");
	assert_int_equal(f->verdict, DOCTOR_PROBLEM);
	assert_non_null(strstr(f->mend, "systemctl restart bad.service"));
	f = found("not-active", "pi.path is enabled, but not active");
	assert_int_equal(f->verdict, DOCTOR_PROBLEM);
	assert_non_null(strstr(f->mend, "pando execute web -- systemctl start pi.path"));
	assert_int_equal(found("not-active", "once.service")->verdict, DOCTOR_NOTE);
	f = found("path", "rpc.path will not start pi-rpc.service again");
	assert_int_equal(f->verdict, DOCTOR_PROBLEM);
	assert_non_null(strstr(f->mend, "systemctl stop pi-rpc.service"));
	assert_int_equal(found("path", "long.path")->verdict, DOCTOR_NOTE);
}

static void
who_it_is_not_is_a_problem(void **state)
{
	(void)state;
	assert_int_equal(
		judge("{\"version\":\"0.0.1\",\"vm\":null,\"generation\":null," WELL DISKS
				REST),
		0);
	assert_int_equal(found("agent", "version 0.0.1")->verdict, DOCTOR_NOTE);
	assert_int_equal(found("identity", "never told")->verdict, DOCTOR_PROBLEM);
	assert_int_equal(judge("{\"version\":\"" PANDO_VERSION "\",\"generation\":"
			       "\"ffffffffffffffffffffffffffffffff\"," WELL DISKS REST),
		0);
	assert_int_equal(
		found("identity", "believes to be of generation ffffffffffff")->verdict,
		DOCTOR_PROBLEM);
}

static void
full_disks_missing_programs_and_values_are_told(void **state)
{
	(void)state;
	assert_int_equal(
		judge(HEAD
			"\"units\":null,\"units_why\":\"there is no systemd to be asked\","
			"\"disks\":[{\"path\":\"/"
			"\",\"mib\":1000,\"free_mib\":20,\"inodes\":"
			"1000,\"inodes_free\":900},{\"path\":\"/tmp\",\"mib\":1000,"
			"\"free_mib\":80,\"inodes\":0,\"inodes_free\":0},{\"path\":\"/"
			"var\","
			"\"mib\":1000,\"free_mib\":900,\"inodes\":1000,\"inodes_"
			"free\":9}],"
			"\"missing\":[\"tmux\",\"sshd\"],\"environment\":{\"why\":"
			"\"/etc/environment:3: no name\",\"held_back\":[{\"name\":\"KEY\","
			"\"why\":\"a line break\"}]},\"agents\":[{\"name\":\"pi\",\"why\":"
			"\"it has no supervisor\"}],\"time_ns\":1}"),
		0);
	assert_int_equal(found("units", "no systemd")->verdict, DOCTOR_NOTE);
	assert_int_equal(
		found("disk", "/ is nearly full: 20 MiB")->verdict, DOCTOR_PROBLEM);
	assert_non_null(
		strstr(found("disk", "/ is")->mend, "pando resize web --fs-size 2000"));
	assert_int_equal(found("disk", "/tmp is")->verdict, DOCTOR_NOTE);
	assert_int_equal(found("disk", "only 9 more files")->verdict, DOCTOR_PROBLEM);
	found("programs", "no tmux");
	assert_non_null(strstr(found("programs", "no sshd")->mend, "openssh-server"));
	assert_int_equal(
		found("environment", "cannot be read as one")->verdict, DOCTOR_PROBLEM);
	found("environment", "KEY cannot be in /etc/environment (a line break)");
	assert_int_equal(found("agents", "pi is to run")->verdict, DOCTOR_PROBLEM);
}

/* Nothing that a guest says becomes a command or moves a cursor. */
static void
a_hostile_guests_word_is_refused(void **state)
{
	static const char *const bad[] = {
		"",
		"[]",
		"{}",
		"nonsense",
		HEAD
		"\"units\":{\"system\":\"running\",\"failed\":[{\"unit\":\"x; rm -rf /\","
		"\"why\":\"\"}],\"paths\":[]}," DISKS REST,
		HEAD "\"units\":{\"system\":\"running\",\"paths\":[{\"unit\":\"a.path\","
		     "\"service\":\"$(x)\",\"state\":\"exited\"}]}," DISKS REST,
		HEAD "\"units\":{\"system\":\"running\",\"failed\":[{\"unit\":\"-H\","
		     "\"why\":\"\"}]}," DISKS REST,
		HEAD WELL "\"disks\":[{\"path\":\"/\",\"mib\":-1}]," REST,
		HEAD WELL "\"disks\":7," REST,
		HEAD WELL DISKS
		"\"missing\":[\"`x`\"],\"environment\":{\"held_back\":[]},"
		"\"agents\":[]}",
		HEAD WELL DISKS
		"\"missing\":[],\"environment\":{\"held_back\":[]},\"agents\":"
		"[{\"name\":\"a b\",\"why\":\"x\"}]}",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(judge(bad[i]), -EPROTO);
		assert_non_null(strstr(e.msg, "the guest's word of itself"));
	}
	assert_int_equal(judge(HEAD "\"units\":{\"system\":\"\\u001b[2J\",\"failed\":[],"
				    "\"not_active\":[],\"paths\":[]}," DISKS REST),
		0);
	found("units", "\\x1b[2J");
}

static void
more_than_there_is_room_for_is_no_harm(void **state)
{
	cleanup_json_out struct json_out o = {0};

	(void)state;
	json_out_object(&o, NULL);
	json_out_str(&o, "version", PANDO_VERSION);
	json_out_str(&o, "generation", G);
	json_out_object(&o, "units");
	json_out_str(&o, "system", "degraded");
	json_out_array(&o, "failed");
	for (int i = 0; i < 500; i++) {
		json_out_object(&o, NULL);
		json_out_str(&o, "unit", "x.service");
		json_out_str(&o, "why", "");
		json_out_end_object(&o);
	}
	json_out_end_array(&o);
	json_out_end_object(&o);
	json_out_end_object(&o);
	assert_int_equal(judge(o.buf), -EPROTO); /* no agents, no disks */
	assert_int_equal(d.n, DOCTOR_MAX);
}

static void
a_clock_is_judged_by_what_may_have_been(void **state)
{
	uint64_t t = 1700000000 * NS_PER_S;

	(void)state;
	d = (struct doctor){.n = 0};
	doctor_judge_clock(&d, "web", t, t - 5, t + 5);
	doctor_judge_clock(&d, "web", t - NS_PER_S / 2, t, t + 5);
	doctor_judge_clock(&d, "web", t + 3 * NS_PER_S, t, t + NS_PER_S / 2);
	doctor_judge_clock(&d, "web", t, t + 3600 * NS_PER_S, t + 3600 * NS_PER_S);
	assert_int_equal(d.findings[0].verdict, DOCTOR_OK);
	assert_int_equal(d.findings[1].verdict, DOCTOR_NOTE);
	assert_non_null(strstr(d.findings[1].detail, "0.5 s behind the host's"));
	assert_int_equal(d.findings[2].verdict, DOCTOR_PROBLEM);
	assert_non_null(strstr(d.findings[2].detail, "2.5 s ahead of the host's"));
	assert_int_equal(d.findings[3].verdict, DOCTOR_PROBLEM);
	assert_non_null(strstr(d.findings[3].mend, "pando execute web -- date -s"));
}

static void
what_pandod_says_of_scopes_is_told(void **state)
{
	static const struct {
		const char *text, *part;
		enum doctor_verdict verdict;
	} cases[] = {
		{"{\"how\":\"systemd\",\"detail\":\"D\",\"limits\":true,\"lingers\":true,"
		 "\"machined\":true,\"vms\":1}",
			"D; machinectl", DOCTOR_OK},
		{"{\"how\":\"systemd\",\"detail\":\"D\",\"limits\":true,\"lingers\":"
		 "false,"
		 "\"machined\":false,\"vms\":1}",
			"last session", DOCTOR_NOTE},
		{"{\"how\":\"none\",\"detail\":\"D\",\"limits\":false,\"lingers\":true,"
		 "\"machined\":false,\"vms\":1}",
			"D", DOCTOR_NOTE},
		{"{\"how\":\"cgroup\",\"detail\":\"D\",\"limits\":false,\"lingers\":true,"
		 "\"machined\":false,\"vms\":1}",
			"D", DOCTOR_NOTE},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		cleanup_json struct json *j = NULL;

		d = (struct doctor){.n = 0};
		assert_int_equal(
			json_parse(cases[i].text, strlen(cases[i].text), 64, &j, &e), 0);
		assert_true(doctor_read_scopes(&d, j, 0));
		assert_int_equal(
			found("scopes", cases[i].part)->verdict, cases[i].verdict);
		assert_int_equal(
			d.findings[0].mend[0] != 0, cases[i].verdict != DOCTOR_OK);
	}
}

/*
 * The agent's own part.
 */

static char root[64];

static void
put(const char *path, const char *text, mode_t mode)
{
	agent_help_put(root, path, text, mode);
}

/* A process of its own group that says a line and stays; its id. */
static pid_t
start_program(const char *command)
{
	int fd[2];
	pid_t pid;
	char c;

	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	pid = fork();
	if (!pid) {
		dup2(fd[1], 1);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	close(fd[1]);
	/* Without one there is no such program here. Open until our end: it may say more. */
	if (read(fd[0], &c, 1) != 1) {
		waitpid(pid, NULL, 0);
		pid = 0;
	}
	return pid;
}

static void
end_program(pid_t pid)
{
	if (!pid)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static bool
is_named(pid_t pid, const char *what)
{
	char part[64];

	snprintf(part, sizeof(part), "process %d ", (int)pid);
	for (size_t i = 0; i < d.n; i++)
		if (strcmp(d.findings[i].id, "random") == 0 &&
			strstr(d.findings[i].detail, part) &&
			strstr(d.findings[i].detail, what))
			return true;
	return false;
}

static void
ask_agent(char *text, size_t cap)
{
	char command[PATHS_MAX + 200];
	FILE *f;

	snprintf(command, sizeof(command), "%s doctor --root %s", agent_help_program(),
		root);
	memset(text, 0, cap);
	f = popen(command, "re");
	assert_non_null(f);
	assert_true(fread(text, 1, cap - 1, f) > 0);
	assert_int_equal(pclose(f), 0);
	if (judge(text))
		fail_msg("%s: %s", e.msg, text);
}

/* Real processes, looked at by the real agent. */
static void
processes_whose_random_numbers_branches_share_are_named(void **state)
{
#define NODE_ADDON "golden/files/guest/usr/lib/pando/node-random.node"
	cleanup_free char *text = calloc(1, 1 << 18);
	char addon[PATHS_MAX], command[PATHS_MAX + 200];
	pid_t perl, ssl, node, reached, plain;

	(void)state;
	strcpy(root, "/tmp/pando-doctor-test-XXXXXX");
	assert_non_null(mkdtemp(root));
	put("/run/pando/generation", G "\n", 0644);
	snprintf(command, sizeof(command), "%s/proc", root);
	assert_int_equal(symlink("/proc", command), 0);
	snprintf(addon, sizeof(addon), "%s", agent_help_program());
	*strstr(addon, "libexec/") = 0;
	strcat(addon, "share/pando/" NODE_ADDON);

	perl = start_program("exec perl -e '$| = 1; print 1; sleep 1000'");
	ssl = start_program(
		"exec python3 -c 'import ssl, time; print(1, flush=True); time.sleep(1000)'");
	node = start_program("exec node -e 'console.log(1); setTimeout(() => 0, 1e6)'");
	snprintf(command, sizeof(command),
		"PANDO_GENERATION_FILE=%s/run/pando/generation exec node -e 'require(\"%s\"); console.log(1); setTimeout(() => 0, 1e6)'",
		root, addon);
	reached = start_program(command);
	plain = start_program("echo 1; exec sleep 1000");
	ask_agent(text, 1 << 18);
	assert_true(!perl || is_named(perl, "(perl) keeps"));
	assert_true(!ssl || is_named(ssl, "OpenSSL's"));
	assert_true(!node || is_named(node, "(node) keeps"));
	assert_true(!reached || !is_named(reached, ""));
	assert_true(plain && !is_named(plain, ""));
	if (!perl && !ssl && !node)
		fail_msg("there is neither Perl nor Python nor Node here");
	end_program(perl);
	end_program(ssl);
	end_program(node);
	end_program(reached);
	end_program(plain);
	io_remove_tree(root, NULL);
	/* What is no such word. */
	assert_int_equal(
		judge(HEAD WELL DISKS "\"generators\":[],\"generators_more\":0," REST),
		0);
	assert_int_equal(found("random", "no process")->verdict, DOCTOR_OK);
	assert_int_equal(judge(HEAD WELL DISKS
				 "\"generators\":[{\"pid\":7,\"program\":\"x\\u001b\","
				 "\"keeps\":\"java\"}],\"generators_more\":3," REST),
		0);
	assert_null(strchr(found("random", "process 7")->detail, 27));
	found("random", "3 more");
	assert_int_equal(
		judge(HEAD WELL DISKS "\"generators\":[{\"pid\":7,\"program\":\"x\","
				      "\"keeps\":\"what\"}],\"generators_more\":3," REST),
		-EPROTO);
}

static void
the_agents_word_is_one(void **state)
{
	char command[PATHS_MAX + 200];
	cleanup_free char *text = calloc(1, 65536);
	FILE *f;

	(void)state;
	strcpy(root, "/tmp/pando-doctor-test-XXXXXX");
	assert_non_null(mkdtemp(root));
	put("/run/pando/generation", G "\n", 0644);
	put("/etc/environment", "A='1'\nB='with # in it'\n", 0644);
	put("/etc/pando/environment", "SECRET='two\nlines'\n", 0644);
	put("/usr/bin/tmux", "", 0755);
	put("/etc/pando/rpc.d/pi.conf", "command = [\"sleep\", \"9\"]\n", 0644);
	put("/var/lib/pando/rpc/pi/wanted", "", 0644);
	put("/usr/libexec/pando/pando-units",
		"#!/bin/sh\n[ \"$1\" = look ] && echo '{\"system\":\"running\",\"failed\":[],"
		"\"not_active\":[{\"unit\":\"x.path\",\"why\":\"it was never started\"}],"
		"\"paths\":[]}'\n",
		0755);
	snprintf(command, sizeof(command), "%s doctor --root %s", agent_help_program(),
		root);
	f = popen(command, "re");
	assert_non_null(f);
	assert_true(fread(text, 1, 65535, f) > 0);
	assert_int_equal(pclose(f), 0);
	if (judge(text))
		fail_msg("%s: %s", e.msg, text);
	assert_null(strstr(text, "lines"));
	found("identity", "knows who it is");
	found("not-active", "x.path");
	found("environment", "B cannot be");
	found("environment", "SECRET cannot be");
	found("agents", "pi is to run and does not: it has no supervisor");
	found("programs", "no sshd");
	found("programs", "no python3");
	assert_null(strstr(text, "tmux"));
	/* Without the program, with one that says nothing of use, with one that fails. */
	put("/usr/libexec/pando/pando-units", "#!/bin/sh\necho nonsense\n", 0755);
	f = popen(command, "re");
	memset(text, 0, 65536);
	assert_true(fread(text, 1, 65535, f) > 0);
	assert_int_equal(pclose(f), 0);
	assert_int_equal(judge(text), 0);
	found("units", "says what is no JSON");
	put("/usr/libexec/pando/pando-units", "#!/bin/sh\nexit 1\n", 0755);
	f = popen(command, "re");
	memset(text, 0, 65536);
	assert_true(fread(text, 1, 65535, f) > 0);
	assert_int_equal(pclose(f), 0);
	assert_int_equal(judge(text), 0);
	found("units", "no systemd to be asked");
	io_remove_tree(root, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_sound_guest_has_nothing_wrong),
		cmocka_unit_test(what_will_not_fire_again_is_a_problem_with_its_mend),
		cmocka_unit_test(who_it_is_not_is_a_problem),
		cmocka_unit_test(full_disks_missing_programs_and_values_are_told),
		cmocka_unit_test(a_hostile_guests_word_is_refused),
		cmocka_unit_test(more_than_there_is_room_for_is_no_harm),
		cmocka_unit_test(a_clock_is_judged_by_what_may_have_been),
		cmocka_unit_test(what_pandod_says_of_scopes_is_told),
		cmocka_unit_test(the_agents_word_is_one),
		cmocka_unit_test(processes_whose_random_numbers_branches_share_are_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
