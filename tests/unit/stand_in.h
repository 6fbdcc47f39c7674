/*
 * A pandod that knows one VM, "a", or a few, and only says what they are and where their
 * agent listens; the shipped pando-agent there, on a Unix socket, with no VM around it;
 * and runs of the shipped `pando` against both. For tests of what a person's terminal or
 * script sees. Failures of the set-up are cmocka's.
 */
#ifndef PANDO_TESTS_UNIT_STAND_IN_H
#define PANDO_TESTS_UNIT_STAND_IN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define STAND_IN_LIMIT_S 120 /* for one command: machines of CI are busy */

extern char stand_in_home[];	     /* PANDO_HOME, a folder of its own */
extern char stand_in_agent_socket[]; /* "a"'s */
extern char stand_in_pando[];	     /* the program */
extern char stand_in_mark[]; /* a number that stands in no other process's words */
extern pid_t stand_in_agent; /* -1: none runs */

/* cmocka's set-up and tear-down of a group. */
int stand_in_setup(void **state);
int stand_in_teardown(void **state);
/* The set-up without the agent, for groups that have something to make before it starts.
 * 0 or -1. */
int stand_in_open(void);

/* What pandod says of a VM; a member that is NULL: "running", null, null, and "a"'s
 * agent. */
struct stand_in_vm {
	const char *name, *state, *reason, *host_key, *agent_socket;
};
/* pandod knows this VM from now on, or no longer says of it what it said. All that it
 * points to is borrowed, for as long as pandod stands. */
void stand_in_knows(const struct stand_in_vm *vm);
/* Of "a" alone; reason may be NULL. Both are borrowed. */
void stand_in_says(const char *state, const char *reason);
/* Is asked before all VMs: the body of a good answer, its own until the next request, or
 * NULL when the request is none of its. It runs in pandod's thread. */
void stand_in_answers(const char *(*answer)(const char *request));

void stand_in_kill_agent(void);
void stand_in_start_agent(void);
/* The same, with the folder root in the place of "/" (NULL: none), and after enter()
 * (NULL: none) in the agent's own process. False when enter() was: then there is no
 * agent. */
bool stand_in_start_agent_in(const char *root, bool (*enter)(void));
/* In place of the agent: the socket as an agent's, listening, and nobody accepts. The
 * descriptor is the caller's; the agent is killed first. */
int stand_in_fake_agent(void);

struct ran {
	int status; /* exit status; 1000 + n: signal n */
	char *out, *err;
	size_t out_len, err_len;
	uint64_t took_ns;
};
/* Starts it; *ret_out and *ret_err are the caller's to read. stdin_fd is closed here; -1:
 * /dev/null. argv[0]: "pando", or any other program. */
pid_t stand_in_start(char *const argv[], int stdin_fd, int *ret_out, int *ret_err);
/* Starts it on a terminal of that size, whose other side is the caller's. */
pid_t stand_in_start_on_terminal(
	char *const argv[], uint16_t rows, uint16_t cols, int *ret_master);
/* Reads both to their ends, and waits. ret must be {0} or one of before. */
void stand_in_finish(pid_t pid, int out, int err, struct ran *ret);
/* Waits for a process of ours; its status as in struct ran. */
int stand_in_wait(pid_t pid);
/* input NULL: stdin is /dev/null. */
void stand_in_run(const char *input, size_t len, char *const argv[], struct ran *ret);
void ran_done(struct ran *r);
#define cleanup_ran __attribute__((cleanup(ran_done)))
#define RUN_WITH(ran, input, len, ...) \
	stand_in_run(input, len, (char *[]){"pando", __VA_ARGS__, NULL}, ran)
#define RUN(ran, ...) RUN_WITH(ran, "", 0, __VA_ARGS__)

/* Reads from fd until the text was there; fails after the limit. Returns all that came,
 * good until the next call. */
const char *stand_in_await(int fd, const char *text);
/* Reads fd to its end, a terminal's too; the text is the caller's. */
char *stand_in_read_all(int fd);
/* How many processes of this host run `<program> <the mark>`, or are to run it. */
unsigned stand_in_running(const char *program);
/* In KiB, of a process; 0 when it is gone. key: "VmHWM:", "VmRSS:". */
size_t stand_in_memory(pid_t pid, const char *key);

#endif
