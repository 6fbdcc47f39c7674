/*
 * A pandod that knows one VM, "a", and only says where its agent listens; the shipped
 * pando-agent there, on a Unix socket, with no VM around it; and runs of the shipped
 * `pando` against both. For tests of what a person's terminal or script sees. Failures of
 * the set-up are cmocka's.
 */
#ifndef PANDO_TESTS_STAND_IN_H
#define PANDO_TESTS_STAND_IN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define STAND_IN_LIMIT_S 120 /* for one command: machines of CI are busy */

extern char stand_in_home[];	     /* PANDO_HOME, a folder of its own */
extern char stand_in_agent_socket[]; /* "a"'s */
extern char stand_in_pando[];	     /* the program */
extern pid_t stand_in_agent;	     /* -1: none runs */

/* cmocka's set-up and tear-down of a group. */
int stand_in_setup(void **state);
int stand_in_teardown(void **state);

/* What pandod says of "a" from now on; reason may be NULL. Both are borrowed. */
void stand_in_says(const char *state, const char *reason);
void stand_in_kill_agent(void);
void stand_in_start_agent(void);
/* In place of the agent: the socket as an agent's, listening, and nobody accepts. The
 * descriptor is the caller's; the agent is killed first. */
int stand_in_fake_agent(void);

struct ran {
	int status; /* exit status; 1000 + n: signal n */
	char *out, *err;
	size_t out_len, err_len;
	uint64_t took_ns;
};
/* Starts it; *ret_out and *ret_err are the caller's to read. stdin_fd is closed here. */
pid_t stand_in_start(char *const argv[], int stdin_fd, int *ret_out, int *ret_err);
/* Reads both to their ends, and waits. ret must be {0} or one of before. */
void stand_in_finish(pid_t pid, int out, int err, struct ran *ret);
void stand_in_run(const char *input, size_t len, char *const argv[], struct ran *ret);
void ran_done(struct ran *r);
#define cleanup_ran __attribute__((cleanup(ran_done)))
#define RUN(ran, ...) stand_in_run("", 0, (char *[]){"pando", __VA_ARGS__, NULL}, ran)

/* Reads from fd until the text was there; fails after the limit. Returns all that came,
 * good until the next call. */
const char *stand_in_await(int fd, const char *text);
/* In KiB, of a process; 0 when it is gone. key: "VmHWM:", "VmRSS:". */
size_t stand_in_memory(pid_t pid, const char *key);

#endif
