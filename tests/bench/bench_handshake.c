/*
 * What becoming somebody of its own costs a branch, natively: the shipped pando-agent
 * with a folder in the place of "/", told again and again who it is. No hooks, no units.
 * Nothing is asserted about time.
 *
 *   bench_handshake [--json] [--rounds N] [--dir FOLDER]
 *
 * identity handshake     request until acknowledgement, as pandod sees it, over a Unix socket
 * agent     the same by the agent's own clock, and each of its steps
 * kernel    what an agent leaves undone that has only a folder: the kernel's generator
 *           reseeded, a host name set, boot_id covered; in namespaces of this process
 * The yardstick is a bare Ed25519 key and as many small files, written and renamed in the
 * same folder by a loop in this process, in the same run.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <sched.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/text.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_handshake.h"
#include "tests/bench/must.h"
#include "tests/bench/sample.h"

/* /etc/hostname, hosts, machine-id, environment, the host key and its public half;
 * /run/pando's boot_id, identity and generation; /var/lib/pando/id. */
#define FILES 10
#define FILE_BYTES 200

static struct json_out json;
static struct json_out *out; /* NULL: lines */
static unsigned rounds = 200;
static const char *dir = "/tmp";
static char folder[256], sock[280];
static pid_t agent;
static struct err e;

static void
done(void)
{
	if (agent > 0) {
		kill(agent, SIGTERM);
		waitpid(agent, NULL, 0);
	}
	if (folder[0])
		io_remove_tree(folder, NULL);
}

static void
put(const char *path, const char *text)
{
	char at[400];

	snprintf(at, sizeof(at), "%s%s", folder, path);
	*strrchr(at, '/') = 0;
	must(io_mkdir_p(at, 0755, &e), "start", &e);
	at[strlen(at)] = '/';
	must(io_write_file_atomic(at, text, strlen(text), 0644, &e), "start", &e);
}

static void
start_agent(void)
{
	char program[600], listen_on[300];
	ssize_t n = readlink("/proc/self/exe", program, 500);

	must(n < 0 ? err_sys(&e, -errno, "/proc/self/exe") : 0, "start", &e);
	program[n] = 0;
	*strrchr(program, '/') = 0;
	strcat(program, "/../libexec/pando/pando-agent");
	snprintf(listen_on, sizeof(listen_on), "unix:%s", sock);
	agent = fork();
	must(agent < 0 ? err_sys(&e, -errno, "fork") : 0, "start", &e);
	if (!agent) {
		char log[300];
		int fd;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		snprintf(log, sizeof(log), "%s/log", folder);
		fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		dup2(fd, STDERR_FILENO);
		execl(program, "pando-agent", "--listen", listen_on, "--connect-line",
			"--root", folder, (char *)NULL);
		_exit(127);
	}
	for (int i = 0; access(sock, F_OK) && i < 5000; i++)
		usleep(1000);
	must(agent_wait_ready(sock, 10000, NULL, NULL, &e), "pando-agent", &e);
}

static void
say_handshake(struct env *env, struct samples *handshake, struct samples *total,
	struct samples *steps, unsigned *n_steps)
{
	static const char *const labels[] = {"role", "bench", NULL};
	uint8_t generation[16], entropy[AGENT_ENTROPY_MAX], id[AGENT_VM_ID_LEN / 2];
	char id_hex[AGENT_VM_ID_LEN + 1], name[32];
	struct agent_handshake h = {
		.id = id_hex,
		.name = name,
		.host_name = name,
		.generation = generation,
		.entropy = entropy,
		.env = env,
		.labels = labels,
	};
	struct agent_ack ack;
	uint64_t from;

	randombytes_buf(generation, sizeof(generation));
	randombytes_buf(entropy, sizeof(entropy));
	randombytes_buf(id, sizeof(id));
	text_hex(id_hex, id, sizeof(id));
	snprintf(name, sizeof(name), "vm-%s", id_hex);
	handshake->tried++;
	total->tried++;
	from = io_now_ns();
	if (agent_handshake(sock, &h, 10000, NULL, NULL, &ack, &e)) {
		fprintf(stderr, "bench_handshake: %s\n", e.msg);
		return;
	}
	sample_add(handshake, io_now_ns() - from);
	sample_add(total, ack.total_us * 1000);
	for (unsigned i = 0; i < ack.n_steps; i++) {
		if (i == *n_steps) {
			sample_clear(
				&steps[i], strdup(ack.steps[i].name), "one step of it");
			++*n_steps;
		}
		steps[i].tried++;
		sample_add(&steps[i], ack.steps[i].us * 1000);
	}
}

static void
bare(struct samples *s)
{
	uint8_t seed[crypto_sign_SEEDBYTES], public[crypto_sign_PUBLICKEYBYTES],
		secret[crypto_sign_SECRETKEYBYTES];
	char path[300], temp[300], text[FILE_BYTES];
	uint64_t from = io_now_ns();
	int fd, r = 0;

	s->tried++;
	randombytes_buf(seed, sizeof(seed));
	crypto_sign_seed_keypair(public, secret, seed);
	memset(text, 'x', sizeof(text));
	for (int i = 0; i < FILES && !r; i++) {
		snprintf(path, sizeof(path), "%s/bare-%d", folder, i);
		snprintf(temp, sizeof(temp), "%s/.bare-%d", folder, i);
		fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		r = fd < 0 ? -errno : io_write_full(fd, text, sizeof(text));
		if (fd >= 0)
			close(fd);
		if (!r && rename(temp, path))
			r = -errno;
	}
	must(r ? err_sys(&e, r, "%s", path) : 0, "bare", &e);
	sample_add(s, io_now_ns() - from);
}

/* false: this process may not. */
static bool
kernel(struct samples *s)
{
	static const char boot_id[] = "/proc/sys/kernel/random/boot_id";
	uint8_t pool[sizeof(struct rand_pool_info) + AGENT_ENTROPY_MAX]
		__attribute__((aligned(__alignof__(struct rand_pool_info))));
	const struct rand_pool_info head = {
		.buf_size = AGENT_ENTROPY_MAX, .entropy_count = 8 * AGENT_ENTROPY_MAX};
	char id[300];
	cleanup_close int fd = -1;
	uint64_t from;

	snprintf(id, sizeof(id), "%s/run/pando/boot_id", folder);
	memcpy(pool, &head, sizeof(head));
	randombytes_buf(pool + sizeof(head), AGENT_ENTROPY_MAX);
	from = io_now_ns();
	fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, pool) || ioctl(fd, RNDRESEEDCRNG) ||
		sethostname("vm-bench", 8) || mount(id, boot_id, NULL, MS_BIND, NULL))
		return false;
	sample_add(s, io_now_ns() - from);
	s->tried++;
	umount2(boot_id, MNT_DETACH);
	return true;
}

static int
arguments(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			out = &json;
		else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
			rounds = (unsigned)strtoul(argv[++i], NULL, 10);
		else if (strcmp(argv[i], "--dir") == 0 && i + 1 < argc)
			dir = argv[++i];
		else if (strcmp(argv[i], "--mem") == 0 && i + 1 < argc)
			i++; /* the other benchmarks' */
		else
			return -EINVAL;
	}
	return rounds && rounds <= SAMPLES_MAX ? 0 : -EINVAL;
}

int
main(int argc, char **argv)
{
	static struct samples handshake, total, steps[AGENT_STEPS_MAX], calls, files;
	cleanup_env struct env env = {0};
	unsigned n_steps = 0;
	double ratio;

	if (arguments(argc, argv)) {
		fprintf(stderr,
			"usage: bench_handshake [--json] [--rounds 1..%d] [--dir FOLDER]\n",
			SAMPLES_MAX);
		return 2;
	}
	atexit(done);
	must(sodium_init() < 0 ? err_set(&e, -EIO, "it does not start") : 0, "libsodium",
		&e);
	snprintf(folder, sizeof(folder), "%.200s/pando-bench-XXXXXX", dir);
	if (!mkdtemp(folder)) {
		fprintf(stderr, "bench_handshake: %s: %s\n", folder, strerror(errno));
		return 1;
	}
	snprintf(sock, sizeof(sock), "%s/sock", folder);
	put("/etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\tgolden\n");
	put("/etc/ssh/sshd_config", "");
	put("/run/pando/boot_id", "");
	put("/var/lib/pando/none", "");
	for (int i = 0; i < 10; i++) {
		char entry[64];

		snprintf(entry, sizeof(entry), "STRATEGY_%d=a value of some length", i);
		must(env_set(&env, entry, &e), "start", &e);
	}
	start_agent();
	sample_clear(&handshake, "hello", "request to acknowledgement, from outside");
	sample_clear(&total, "agent", "the same, by the agent's clock");
	sample_clear(&calls, "kernel", "reseed, host name, boot_id's mount");
	sample_clear(&files, "bare", "an Ed25519 key and ten small files, bare");
	if (unshare(CLONE_NEWNS | CLONE_NEWUTS) ||
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		fprintf(stderr,
			"bench_handshake: no namespaces of its own here: the row \"kernel\" stays empty\n");
	else
		for (unsigned i = 0; i < rounds && kernel(&calls); i++)
			;
	for (unsigned i = 0; i < rounds; i++) {
		say_handshake(&env, &handshake, &total, steps, &n_steps);
		bare(&files);
	}
	sample_begin(out, "hello");
	sample_row_begin(out, "hello: an agent with a folder in %s for its \"/\"", dir);
	sample_report(&handshake, out);
	sample_report(&total, out);
	for (unsigned i = 0; i < n_steps; i++)
		sample_report(&steps[i], out);
	sample_report(&calls, out);
	sample_report(&files, out);
	ratio = (double)sample_percentile(&total, 50) /
		(double)sample_percentile(&files, 50);
	if (out)
		json_out_f64(out, "agent_to_bare_p50", ratio);
	else
		printf("  agent / bare at p50: %.2f\n", ratio);
	sample_row_end(out);
	sample_end(out);
	return total.n == rounds ? 0 : 1;
}
