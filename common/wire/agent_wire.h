/*
 * Host <-> pando-agent over vsock. The host dials; one connection a request.
 *
 * On the host: connect to the VM's agent.sock, send "CONNECT 1024\n", read "OK <n>\n". The
 * request may follow the line at once, without waiting for the answer: it saves a round trip.
 * Then: the host sends one JSON line (the request, <= AGENT_REQUEST_MAX bytes with its
 * LF), the agent answers one JSON line, {"ok":true,…} or
 * {"ok":false,"error":"sentence","errno":"ENOENT","code":-2}; after an ok, frames in both
 * directions until the agent's terminal frame. A stream that ends before its terminal
 * frame (AGENT_EXIT, AGENT_END, AGENT_ERROR) is an error, never success. Unknown members
 * of a request are errors that name the member. The host closes first; the agent closes
 * when it sees that.
 *
 * Where a request or answer has bytes that are no UTF-8 (argv, env, paths, names),
 * {"b64":"…"} (RFC 4648, padded) stands in place of the string.
 *
 * Requests ("op"), each with the answer to it:
 *
 *  ping        {}
 *              {"ok":true,"version":…,"uptime_ms":…,"boot_id":…}; no frames
 *  exec        {"argv":[…],"env":["NAME=value",…],"cwd":…,"user":…,"timeout_ms":…,
 *               "tty":{"rows":…,"cols":…,"term":…},"stdin":bool,"detach":bool,
 *               "login":bool,"hangup":bool}
 *              {"ok":true,"id":"e7"}; frames (none with detach)
 *  attach      {"id":"e7","stdout":offset,"stderr":offset,"stdin":bool}
 *              {"ok":true,"id":"e7","stdin_bytes":…}; output from those byte offsets on
 *  list_execs  {}
 *              {"ok":true,"execs":[…]}; no frames
 *  signal      {"id":"e7","signal":15}
 *              {"ok":true}; to the process group
 *  put         {"path":…,"user":…}
 *              {"ok":true}; the host sends DATA… END; the agent ends with END or ERROR
 *  get         {"path":…}
 *              {"ok":true}; the agent sends DATA… then END or ERROR
 *  list        {"path":…}
 *              {"ok":true,"entries":[…]}; no frames
 *  hello       see "Identity handshake" below
 *              {"ok":true}; AGENT_STEP… then AGENT_ACK or AGENT_ERROR
 *  kill_ssh    {"connection":n}
 *              {"ok":true}; kills all that was started over the connection to AGENT_SSH_PORT
 *              that was told "OK n"
 *  dial        {"port":…}
 *              {"ok":true} when a program of the guest has taken the connection; then
 *              AGENT_DATA both ways, see below
 *  stay        {}
 *              {"ok":true}, and nothing more: the connection lasts until one side goes, and
 *              so tells the other
 *
 * put and get carry a POSIX ustar/pax stream (common/wire/tar.h): modes, times, symbolic and
 * hard links, holes and names of any bytes are kept. A file that is put gets its name when it
 * is whole and on the disk; END of a put says so of all of them. All members stand under the
 * last component of the path that was asked for (tar_top_name()). A get follows a path that
 * is a link, and has no FIFOs. The answers of list and list_execs are one line too, of at
 * most AGENT_ANSWER_MAX bytes.
 *
 * Execute:
 *  - Output flows in step with the reader (a slow one slows the command, as on a pipe).
 * When nobody is attached, the last bytes of each stream stay in a bounded journal and
 * older ones are dropped: AGENT_GAP says which, on the next attach.
 *  - A connection that breaks, for whatever reason (the host's program died, the VM was
 * branched), leaves the command running and its stdin open: input cut short must never
 * look like its end. Its exit record is kept until somebody attaches and takes it
 * (AGENT_TAKEN, after AGENT_EXIT); the last AGENT_FINISHED_MAX are.
 *  - One reader at a time: attach ends whoever was attached before with AGENT_ERROR.
 *  - Stdin: at most AGENT_STDIN_WINDOW bytes may be under way beyond what the command has
 * taken, so that signals never queue behind input. AGENT_STDIN_CREDIT raises the limit,
 * AGENT_STDIN_CLOSED says that the command reads no more.
 *  - Exit comes when the command has ended and its output is drained. A background child
 * that holds the pipes open does not delay it by more than a moment, and is not killed by
 * it; one that is about to finish, because its standard input has no writer any more, is
 * waited for (10 s at most). The sentence behind the record says what still holds them.
 *  - The agent may be started anew, or be killed: commands, their input and output, and
 *    records go on under the same ids, which are never given again, also after a boot.
 *  - Input of a terminal ends as a person ends it: with its end-of-file character, twice
 *    where the last line has no end.
 *  - "user" is a name or number of /etc/passwd; a number that is not there is a user
 *    without a name, in the group of that number, at home in "/".
 *  - "login" (then without "argv") is the user's shell, as a login shell.
 *  - With "hangup" nobody takes the command up again: a connection that ends before it
 * does, hangs its terminal up, or without one sends its group a SIGHUP, and nothing is
 * kept.
 *
 * Dial: a TCP connection to that port of the guest's own loopback, 127.0.0.1 and then
 * ::1. Nowhere else: a tunnel must not make a guest the way into its networks.
 *  - AGENT_END from the host and AGENT_DATA_END from the agent end one direction each;
 * the other goes on. After both the agent sends AGENT_END (bytes: those from the guest).
 *  - Each side reads only what it could write on: a slow program slows the other.
 *  - A connection that the program breaks is AGENT_ERROR, after what it had written; one
 *    that the host breaks is reset in the guest.
 *
 * Identity handshake: who this machine is from now on. The host sends it after every boot,
 * branch, restore and spawn.
 *  {"op":"hello","id":12 hex digits,"name":…,"host_name":…,"generation":32 hex digits,
 *   "kind":"new"|"parent","entropy":64 to 128 hex digits,"wall_ns":…,
 *   "env":["NAME=value",…],"labels":{…},"ssh_key":"ssh-ed25519 AAAA…",
 *   "hook_ms":limit of each hook}
 *  - The agent does one step after the other. AGENT_STEP names each step before it begins, so
 *    that the host knows where one hangs. AGENT_ACK is the end:
 *    {"id","generation","kind","host_key":"ssh-ed25519 AAAA…"|null,"total_us",
 *     "steps":[{"step","us","done":bool}…],"hooks":[{"name","us"}…],
 *     "held_back":["NAME"…]}. The sentence of an AGENT_ERROR begins with the step.
 *  - "parent": somebody was forked from this machine, which stays who it is. Only the steps
 *    random, clock and identity are done; no env is given.
 *  - The same generation again, during the handshake or after it, gets the same answer;
 *    nothing is done twice. A generation that this machine has left behind is ESTALE. Another
 *    generation ends an earlier handshake that is under way: that one was meant for the
 *    machine this one was forked from.
 *  - ssh_key: its owner may log in over SSH as any user. It replaces the key of the handshake
 *    before; without one nobody may.
 *  - From the beginning of a handshake to its end no command is started (EINPROGRESS), and
 *    nobody can log in over SSH.
 *  - A connection that breaks does not end it.
 */
#ifndef PANDO_COMMON_WIRE_AGENT_WIRE_H
#define PANDO_COMMON_WIRE_AGENT_WIRE_H

#include <stdint.h>

#define AGENT_PORT 1024u
/* SSH: of this protocol only that "CONNECT 22\n" leads there. Who is not served gets one
 * line that begins with AGENT_SSH_SAYS in the place of the server's "SSH-2.0-…". */
#define AGENT_SSH_PORT 22u
#define AGENT_SSH_SAYS "pando-agent: "
/* Behind that: it is a matter of moments. */
#define AGENT_SSH_BECOMING "this machine is becoming another one"
/* In the environment of what is started over SSH: the agent's program. */
#define AGENT_SSH_SELF "PANDO_AGENT"
/* "ssh-ed25519 " and the 68 letters of an Ed25519 key. */
#define AGENT_SSH_KEY_LEN 80
/* Linux takes 2 MiB of arguments and environment; as JSON that may be twice as much. */
#define AGENT_REQUEST_MAX (4u * 1024u * 1024u)
#define AGENT_FRAME_MAX (64u * 1024u) /* payload; more is a protocol error: close */
#define AGENT_ANSWER_MAX (8u * 1024u * 1024u)
#define AGENT_STDIN_WINDOW (256u * 1024u)
#define AGENT_EXECS_MAX 256 /* running at once; one more is EAGAIN */
/* Exit records nobody has taken: of as many commands as may run at once. */
#define AGENT_FINISHED_MAX AGENT_EXECS_MAX
#define AGENT_DIALS_MAX 256 /* open at once; one more is EAGAIN */
#define AGENT_VM_ID_LEN 12
#define AGENT_VM_NAME_MAX 63
#define AGENT_HOST_NAME_MAX 63
#define AGENT_GENERATION_LEN 32 /* hex digits */
#define AGENT_ENTROPY_MIN 32	/* bytes */
#define AGENT_ENTROPY_MAX 64
#define AGENT_STEPS_MAX 16
#define AGENT_STEP_NAME_MAX 31

enum agent_frame_type {
	/* host -> agent, 1.. */
	AGENT_STDIN = 1,
	AGENT_STDIN_EOF = 2,
	AGENT_WINSIZE = 3, /* struct agent_winsize */
	AGENT_SIGNAL = 4,  /* uint32_t signal number, to the process group */
	AGENT_DETACH = 5,  /* leave it running; the agent closes */
	AGENT_TAKEN = 6, /* the exit record has arrived: the agent forgets the command */
	/* agent -> host, 32.. */
	AGENT_STDOUT = 32, /* struct agent_output, then bytes */
	AGENT_STDERR = 33,
	AGENT_GAP = 34,	 /* struct agent_gap: output dropped while nobody took it */
	AGENT_EXIT = 35, /* struct agent_exit, and a sentence or none: terminal */
	AGENT_STDIN_CREDIT = 36, /* struct agent_stdin_credit */
	AGENT_STDIN_CLOSED = 37, /* no payload: further input is discarded */
	AGENT_STEP = 38,	 /* a step of an identity handshake begins: its name */
	AGENT_ACK = 39,		 /* JSON: terminal */
	AGENT_DATA_END = 40,	 /* of a dial: no AGENT_DATA follows */
	/* both, 64.. */
	AGENT_DATA = 64, /* bytes of a file stream */
	AGENT_END =
		65, /* from the host empty, from the agent struct agent_end: terminal */
	AGENT_ERROR = 66, /* struct agent_error, then a UTF-8 sentence: terminal */
};

struct agent_frame_hdr {
	uint8_t type;
	uint8_t stream; /* 0, or 1 stdout, 2 stderr for AGENT_GAP */
	uint16_t pad;
	uint32_t len; /* of the payload */
};
_Static_assert(sizeof(struct agent_frame_hdr) == 8, "wire format");

struct agent_winsize {
	uint16_t rows, cols;
};
_Static_assert(sizeof(struct agent_winsize) == 4, "wire format");

struct agent_output {
	uint64_t offset; /* of the first byte in that stream since the process started */
};
_Static_assert(sizeof(struct agent_output) == 8, "wire format");

struct agent_gap {
	uint64_t offset; /* first missing byte */
	uint64_t len;
};
_Static_assert(sizeof(struct agent_gap) == 16, "wire format");

struct agent_stdin_credit {
	uint64_t limit; /* bytes of input in all, since the command started, that may be
			   sent */
};
_Static_assert(sizeof(struct agent_stdin_credit) == 8, "wire format");

struct agent_end {
	uint64_t files, folders, links, skipped,
		bytes; /* what was written (put) or sent (get) */
};
_Static_assert(sizeof(struct agent_end) == 40, "wire format");

struct agent_error {
	int32_t code; /* negative errno */
	uint32_t pad;
};
_Static_assert(sizeof(struct agent_error) == 8, "wire format");

enum agent_exit_kind {
	AGENT_EXITED = 1,    /* value: exit status */
	AGENT_SIGNALLED = 2, /* value: signal number */
	AGENT_TIMED_OUT = 3, /* value: 0; the process group was killed */
	AGENT_SPAWN_FAILED =
		4, /* value: errno of chdir, user switch or execve; message follows */
};

struct agent_exit {
	uint32_t kind;
	uint32_t value;
	uint64_t stdout_bytes; /* totals, so that the reader knows it has all */
	uint64_t stderr_bytes;
};
_Static_assert(sizeof(struct agent_exit) == 24, "wire format");

#endif
