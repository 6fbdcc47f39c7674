#include "tests/unit/tree_help.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "common/log.h"
#include "tests/unit/fake_vmm.h"

char home[64], kernel[96];
struct tree_config config;
struct tree *tree;

static pthread_t loop_thread;
static int loop_stop[2];

void
tree_test_begin(char **argv)
{
	if (strcmp(argv[0], "pando-vmm") == 0)
		exit(fake_vmm_main());
	/* As pandod does: descriptors 0 to 3 occupied, forks of forks are ours to wait
	 * for. */
	while (open("/dev/null", O_RDWR) < 3)
		;
	fcntl(3, F_SETFD, FD_CLOEXEC);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	log_init("test", getenv("PANDO_TEST_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERR);
}

void
make_home(int answer_ms)
{
	uint8_t head[0x400] = {0};

	snprintf(home, sizeof(home), "/tmp/pando-test-XXXXXX");
	assert_non_null(mkdtemp(home));
	head[0x1fe] = 0x55;
	head[0x1ff] = 0xaa;
	memcpy(head + 0x202, "HdrS", 4);
	snprintf(kernel, sizeof(kernel), "%s/kernel", home);
	assert_int_equal(io_write_file_atomic(kernel, head, sizeof(head), 0600, NULL), 0);
	memset(&config, 0, sizeof(config));
	snprintf(config.home, sizeof(config.home), "%s", home);
	snprintf(config.images, sizeof(config.images), "%s/images", home);
	assert_true(readlink("/proc/self/exe", config.vmm_path,
			    sizeof(config.vmm_path) - 1) > 0);
	config.kvm_path = "/dev/null";
	config.start_timeout_ms = config.answer_timeout_ms = config.agent_timeout_ms =
		answer_ms;
}

static void *
loop_main(void *arg)
{
	(void)arg;
	for (;;) {
		struct pollfd p[2] = {{.fd = tree_fd(tree), .events = POLLIN},
			{.fd = loop_stop[0], .events = POLLIN}};

		poll(p, 2, -1);
		if (p[1].revents)
			return NULL;
		tree_dispatch(tree);
	}
}

void
start_loop(void)
{
	assert_int_equal(pipe2(loop_stop, O_CLOEXEC), 0);
	assert_int_equal(pthread_create(&loop_thread, NULL, loop_main, NULL), 0);
}

void
start(void)
{
	struct err e = {0};

	if (tree_open(&config, &tree, &e) < 0)
		fail_msg("%s", e.msg);
	tree_finish_reboots(tree);
	start_loop();
}

void
stop(void)
{
	assert_int_equal(write(loop_stop[1], "x", 1), 1);
	pthread_join(loop_thread, NULL);
	close(loop_stop[0]);
	close(loop_stop[1]);
	tree_close(tree);
	tree = NULL;
}
