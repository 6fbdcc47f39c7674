#include "swarm/record.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"

void
swarm_tail_add(struct swarm_tail *tail, const void *data, size_t len)
{
	const char *p = data;

	tail->total_bytes += len;
	if (len >= sizeof(tail->text)) {
		memcpy(tail->text, p + len - sizeof(tail->text), sizeof(tail->text));
		tail->len = sizeof(tail->text);
		return;
	}
	if (tail->len + len > sizeof(tail->text)) {
		size_t drop = tail->len + len - sizeof(tail->text);

		memmove(tail->text, tail->text + drop, tail->len - drop);
		tail->len -= drop;
	}
	memcpy(tail->text + tail->len, p, len);
	tail->len += len;
}

void
swarm_record_init(struct swarm_record *r, int file_fd, int copy_fd)
{
	*r = (struct swarm_record){
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.start_ns = io_now_ns(),
		.fds = {file_fd, copy_fd},
	};
}

void
swarm_record_begin(struct swarm_record *r, struct json_out *o, const char *event)
{
	json_out_object(o, NULL);
	json_out_str(o, "event", event);
	json_out_u64(o, "t_ms", (io_now_ns() - r->start_ns) / 1000000);
}

void
swarm_record_end(struct swarm_record *r, struct json_out *o)
{
	json_out_end_object(o);
	pthread_mutex_lock(&r->lock);
	if (o->error) {
		if (!r->error)
			r->error = o->error;
	} else {
		/* The writer keeps a NUL there; the line gets its end instead. */
		o->buf[o->len] = '\n';
		for (int i = 0; i < 2; i++) {
			int rc = r->fds[i] < 0
					 ? 0
					 : io_write_full(r->fds[i], o->buf, o->len + 1);

			if (rc < 0 && !r->error)
				r->error = rc;
		}
	}
	pthread_mutex_unlock(&r->lock);
	json_out_done(o);
	*o = (struct json_out){0};
}

int
swarm_record_finish(struct swarm_record *r, struct err *e)
{
	if (!r->error && r->fds[0] >= 0 && fsync(r->fds[0]) < 0 && errno != EINVAL &&
		errno != EROFS)
		r->error = -errno;
	return r->error ? err_sys(e, r->error, "writing the record") : 0;
}

void
swarm_result_text(const struct swarm_result *result, char *dst, size_t cap)
{
	switch (result->kind) {
	case SWARM_EXITED:
		snprintf(dst, cap, "exit status %d", result->value);
		break;
	case SWARM_SIGNALLED:
		snprintf(dst, cap, "signal %d (%s)", result->value,
			strsignal(result->value));
		break;
	case SWARM_TIMED_OUT:
		snprintf(dst, cap, "its time limit was over");
		break;
	case SWARM_NOT_STARTED:
		snprintf(dst, cap, "it could not be started (%s)",
			strerror(result->value));
		break;
	}
}

static void
record_tail(struct json_out *o, const char *key_tail, const char *key_bytes,
	const struct swarm_tail *tail)
{
	json_out_strn(o, key_tail, tail->text, tail->len);
	json_out_u64(o, key_bytes, tail->total_bytes);
}

void
swarm_record_result(struct json_out *o, const char *key,
	const struct swarm_result *result, uint64_t ms)
{
	static const char *const kinds[] = {
		[SWARM_EXITED] = "exited",
		[SWARM_SIGNALLED] = "signalled",
		[SWARM_TIMED_OUT] = "timed_out",
		[SWARM_NOT_STARTED] = "not_started",
	};

	json_out_object(o, key);
	json_out_str(o, "ended", kinds[result->kind]);
	if (result->kind == SWARM_EXITED)
		json_out_i64(o, "exit_status", result->value);
	if (result->kind == SWARM_SIGNALLED)
		json_out_i64(o, "signal", result->value);
	if (result->kind == SWARM_NOT_STARTED)
		json_out_str(o, "why", strerror(result->value));
	json_out_u64(o, "ms", ms);
	record_tail(o, "stdout_tail", "stdout_bytes", &result->out);
	record_tail(o, "stderr_tail", "stderr_bytes", &result->err);
	json_out_end_object(o);
}

void
swarm_sha256(const void *data, size_t len, char ret_hex[65])
{
	unsigned char hash[crypto_hash_sha256_BYTES];

	crypto_hash_sha256(hash, data, len);
	sodium_bin2hex(ret_hex, 65, hash, sizeof(hash));
}
