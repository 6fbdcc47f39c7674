#include "host/api/api.h"

#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/api/call_run.h"

/* Progress lines that wait for a client who does not read: more are dropped, the result
 * never is. */
#define STREAM_QUEUE_MAX (256u * 1024u)

_Static_assert(TREE_WAITERS_MAX < API_CONNECTIONS_MAX,
	"calls that wait leave connections for those that do not");

struct api {
	struct tree *tree;	   /* borrowed */
	struct commits *commits;   /* borrowed */
	struct MHD_Daemon *daemon; /* owned */
	void (*shutdown)(void *ctx);
	void *ctx; /* weak */
	atomic_uint connections;
};

/* What a call made, until its answer has left. */
struct made {
	char (*ids)[VM_ID_LEN + 1]; /* owned */
	size_t n;
};

struct stream;

/* One request, from its first line to its end. */
struct request {
	char *target; /* owned; the path and query as they came */
	char *body;   /* owned */
	size_t len, cap;
	bool begun;
	bool too_long;
	struct made made;
	bool told;	       /* the answer has left, for certain */
	struct stream *stream; /* borrowed; it takes itself out when it goes first */
};

unsigned
api_status(int code)
{
	switch (-code) {
	case EINVAL:
	case E2BIG:
	case ERANGE:
	case ENAMETOOLONG:
	case EFBIG:
		return 400;
	case EPERM:
	case EACCES:
		return 403;
	case ENOENT:
		return 404;
	case EOPNOTSUPP:
		return 405;
	case ETIMEDOUT:
		return 408;
	case EEXIST:
	case EBUSY:
	case ENOTEMPTY:
		return 409;
	case ECANCELED:
		return 499;
	case EAGAIN:
		return MHD_HTTP_SERVICE_UNAVAILABLE;
	}
	return 500;
}

void
api_error_json(const struct err *e, struct json_out *out)
{
	const char *name = strerrorname_np(-e->code);

	json_out_object(out, NULL);
	json_out_object(out, "error");
	json_out_str(out, "errno", name ? name : "EIO");
	json_out_i64(out, "code", e->code);
	json_out_str(out, "message", e->msg);
	json_out_end_object(out);
	json_out_end_object(out);
}

/* The answer's text: the call's own, or the error's. Returns the status. */
static unsigned
finish(int r, struct err *e, unsigned success, struct json_out *out)
{
	if (r == 0 && out->error)
		r = err_set(e, -ENOMEM, "out of memory");
	if (r == 0)
		return success;
	json_out_done(out);
	*out = (struct json_out){0};
	api_error_json(e, out);
	return api_status(e->code);
}

static enum MHD_Result
respond(struct MHD_Connection *c, unsigned status, struct json_out *out)
{
	struct MHD_Response *response;
	enum MHD_Result result;

	if (out->error || !out->buf)
		return MHD_NO;
	response = MHD_create_response_from_buffer(
		out->len, out->buf, MHD_RESPMEM_MUST_COPY);
	if (!response)
		return MHD_NO;
	MHD_add_response_header(response, "Content-Type", "application/json");
	if (status == MHD_HTTP_SERVICE_UNAVAILABLE)
		MHD_add_response_header(response, "Retry-After", "1");
	result = MHD_queue_response(c, status, response);
	MHD_destroy_response(response);
	return result;
}

static enum MHD_Result
respond_error(struct MHD_Connection *c, unsigned status, struct err *e)
{
	cleanup_json_out struct json_out out = {0};

	api_error_json(e, &out);
	return respond(c, status, &out);
}

/* A descriptor of the connection, for client_gone(): the caller's. -1: none. */
static int
connection_fd(struct MHD_Connection *c)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);

	return info ? fcntl(info->connect_fd, F_DUPFD_CLOEXEC, 0) : -1;
}

/* Whether the client has closed the connection, or its sending side, which is how one
 * says that it gives the call up. */
static bool
client_gone(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLRDHUP};

	return fd >= 0 && poll(&p, 1, 0) > 0;
}

static void
made_add(struct made *m, const char *id)
{
	char(*more)[VM_ID_LEN + 1] = reallocarray(m->ids, m->n + 1, sizeof(*more));

	if (!more)
		return; /* then it stays */
	m->ids = more;
	memcpy(more[m->n++], id, VM_ID_LEN + 1);
}

/* Whose call has no stream. */
struct caller {
	int fd; /* owned */
	struct request *request;
};

static bool
caller_gone(void *caller)
{
	return client_gone(((const struct caller *)caller)->fd);
}

static void
caller_made(void *caller, const char *id)
{
	made_add(&((struct caller *)caller)->request->made, id);
}

/*
 * A stream of progress: the call runs in a thread of its own and fills a queue that the
 * connection's thread empties.
 */
struct stream {
	struct api *a;
	struct request *request; /* borrowed; NULL: it is over */
	struct route route;
	char *body; /* owned */
	size_t len;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	char *queue; /* owned; lines not sent yet */
	size_t queued, cap;
	int fd;		  /* owned: the connection's, for client_gone() */
	struct made made; /* the thread's, until it ended */
	bool joined;	  /* it has */
	bool told;	  /* all that was in the queue has left, the last line, too */
	bool done;	  /* the last line is in the queue */
	bool failed;	  /* no memory for the last line */
};

/* Called with the lock. */
static bool
stream_put(struct stream *s, const char *line, size_t len, size_t limit)
{
	if (s->queued + len + 1 > limit)
		return false;
	if (s->queued + len + 1 > s->cap) {
		size_t cap = (s->queued + len + 1) * 2;
		char *more = realloc(s->queue, cap);

		if (!more)
			return false;
		s->queue = more;
		s->cap = cap;
	}
	memcpy(s->queue + s->queued, line, len);
	s->queued += len;
	s->queue[s->queued++] = '\n';
	pthread_cond_signal(&s->changed);
	return true;
}

static void
stream_say(void *stream, const char *sentence)
{
	struct stream *s = stream;
	cleanup_json_out struct json_out out = {0};

	json_out_object(&out, NULL);
	json_out_str(&out, "progress", sentence);
	json_out_end_object(&out);
	if (out.error)
		return;
	pthread_mutex_lock(&s->lock);
	stream_put(s, out.buf, out.len, STREAM_QUEUE_MAX);
	pthread_mutex_unlock(&s->lock);
}

static bool
stream_gone(void *stream)
{
	return client_gone(((const struct stream *)stream)->fd);
}

static void
stream_made(void *stream, const char *id)
{
	made_add(&((struct stream *)stream)->made, id);
}

static void *
stream_main(void *stream)
{
	struct stream *s = stream;
	struct progress p = {
		.say = stream_say,
		.ctx = s,
		.gone = stream_gone,
		.made = stream_made,
		.busy_timeout_ms = (uint32_t)s->route.busy_timeout_ms,
	};
	cleanup_json_out struct json_out out = {0};
	cleanup_json_out struct json_out line = {0};
	struct err e = {0};
	int r = call_run(
		s->a->tree, s->a->commits, &s->route, s->body, s->len, &p, &out, &e);

	if (r == 0 && out.error)
		r = err_set(&e, -ENOMEM, "out of memory");
	if (r == 0) {
		json_out_object(&line, NULL);
		json_out_raw(&line, "result", out.buf, out.len);
		json_out_end_object(&line);
	} else {
		api_error_json(&e, &line);
	}
	pthread_mutex_lock(&s->lock);
	s->failed = line.error || !stream_put(s, line.buf, line.len, SIZE_MAX);
	s->done = true;
	pthread_cond_signal(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static ssize_t
stream_read(void *stream, uint64_t pos, char *buf, size_t max)
{
	struct stream *s = stream;
	ssize_t n;

	(void)pos;
	pthread_mutex_lock(&s->lock);
	while (!s->queued && !s->done)
		pthread_cond_wait(&s->changed, &s->lock);
	if (s->queued) {
		size_t take = s->queued < max ? s->queued : max;

		memcpy(buf, s->queue, take);
		memmove(s->queue, s->queue + take, s->queued - take);
		s->queued -= take;
		n = (ssize_t)take;
	} else {
		/* More is asked for when what was given before has been sent. */
		s->told = !s->failed;
		n = s->failed ? MHD_CONTENT_READER_END_WITH_ERROR
			      : MHD_CONTENT_READER_END_OF_STREAM;
	}
	pthread_mutex_unlock(&s->lock);
	return n;
}

static void
stream_done(struct stream *s)
{
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
	cleanup_close_fn(&s->fd);
	free(s->made.ids);
	free(s->queue);
	free(s->body);
	free(s);
}

/* What its thread made becomes the request's. Of the request's end and the stream's either
 * may come first; both come in the connection's thread. */
static void
stream_hand_over(struct stream *s)
{
	struct request *q = s->request;

	if (!s->joined)
		pthread_join(s->thread, NULL);
	s->joined = true;
	s->request = NULL;
	if (!q)
		return;
	q->made = s->made;
	s->made = (struct made){0};
	q->told = s->told;
	q->stream = NULL;
}

/* The connection is over, perhaps before the call is: a call that has begun is carried
 * through, but who makes VMs asks whether anybody is still there. */
static void
stream_free(void *stream)
{
	struct stream *s = stream;

	stream_hand_over(s);
	stream_done(s);
}

static enum MHD_Result
respond_stream(struct api *a, struct MHD_Connection *c, const struct route *route,
	struct request *q)
{
	struct stream *s = calloc(1, sizeof(*s));
	struct MHD_Response *response;
	enum MHD_Result result;

	if (!s)
		return MHD_NO;
	s->a = a;
	s->route = *route;
	s->body = TAKE_PTR(q->body);
	s->len = q->len;
	s->fd = connection_fd(c);
	s->request = q;
	q->stream = s;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	if (pthread_create(&s->thread, NULL, stream_main, s) != 0) {
		q->stream = NULL;
		stream_done(s);
		return MHD_NO;
	}
	response = MHD_create_response_from_callback(
		MHD_SIZE_UNKNOWN, 16384, stream_read, s, stream_free);
	if (!response) {
		stream_free(s);
		return MHD_NO;
	}
	MHD_add_response_header(response, "Content-Type", "application/x-ndjson");
	result = MHD_queue_response(c, 200, response);
	MHD_destroy_response(response);
	return result;
}

/*
 * HTTP.
 */

static bool
peer_is_us(struct MHD_Connection *c)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct ucred cred;
	socklen_t len = sizeof(cred);

	return info &&
	       getsockopt(info->connect_fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 &&
	       cred.uid == geteuid();
}

static void
on_connection(void *ctx, struct MHD_Connection *c, void **socket_ctx,
	enum MHD_ConnectionNotificationCode what)
{
	struct api *a = ctx;

	(void)c;
	(void)socket_ctx;
	if (what == MHD_CONNECTION_NOTIFY_STARTED)
		atomic_fetch_add(&a->connections, 1);
	else
		atomic_fetch_sub(&a->connections, 1);
}

/* Too many: each is told, and let go, so that the places behind them come free soon. */
static enum MHD_Result
respond_full(struct MHD_Connection *c)
{
	cleanup_json_out struct json_out out = {0};
	struct MHD_Response *response;
	enum MHD_Result result;
	struct err e;

	err_set(&e, -EBUSY,
		"pandod serves %d connections at once, and has as many: try again when some calls are done",
		API_CONNECTIONS_MAX);
	api_error_json(&e, &out);
	if (out.error)
		return MHD_NO;
	response =
		MHD_create_response_from_buffer(out.len, out.buf, MHD_RESPMEM_MUST_COPY);
	if (!response)
		return MHD_NO;
	MHD_add_response_header(response, "Content-Type", "application/json");
	MHD_add_response_header(response, "Connection", "close");
	MHD_add_response_header(response, "Retry-After", "1");
	result = MHD_queue_response(c, MHD_HTTP_SERVICE_UNAVAILABLE, response);
	MHD_destroy_response(response);
	return result;
}

static bool
wants_stream(struct MHD_Connection *c)
{
	const char *accept = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Accept");

	return accept && strstr(accept, "application/x-ndjson");
}

/* MHD calls it with the request's target as it came, before anything else. */
static void *
on_target(void *ctx, const char *target, struct MHD_Connection *c)
{
	struct request *q = calloc(1, sizeof(*q));

	(void)ctx;
	(void)c;
	if (q)
		q->target = strndup(target, REQUEST_TARGET_MAX + 1);
	return q;
}

static void
on_completed(void *ctx, struct MHD_Connection *c, void **con_cls,
	enum MHD_RequestTerminationCode why)
{
	struct request *q = *con_cls;
	struct api *a = ctx;

	(void)c;
	if (!q)
		return;
	if (q->stream)
		stream_hand_over(q->stream);
	/* Nobody knows of what it made. A pandod that stops lets it live. */
	if (q->made.n && !q->told && why != MHD_REQUEST_TERMINATED_COMPLETED_OK &&
		why != MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN)
		tree_take_back(a->tree, q->made.ids, q->made.n);
	free(q->made.ids);
	free(q->target);
	free(q->body);
	free(q);
	*con_cls = NULL;
}

static bool
add_body(struct request *q, const char *data, size_t len)
{
	if (q->len + len > REQUEST_BODY_MAX) {
		q->too_long = true;
		return true;
	}
	if (q->len + len > q->cap) {
		size_t cap = (q->len + len) * 2 < 4096 ? 4096 : (q->len + len) * 2;
		char *more = realloc(q->body, cap);

		if (!more)
			return false;
		q->body = more;
		q->cap = cap;
	}
	memcpy(q->body + q->len, data, len);
	q->len += len;
	return true;
}

static enum MHD_Result
answer(struct api *a, struct MHD_Connection *c, const char *method, struct request *q)
{
	cleanup_json_out struct json_out out = {0};
	struct err e = {0};
	struct route route;
	enum MHD_Result result;
	struct caller caller = {.request = q};
	struct progress p;
	unsigned status;
	int r;

	if (q->too_long) {
		err_set(&e, -E2BIG, "the request's body is longer than %u bytes",
			REQUEST_BODY_MAX);
		return respond_error(c, 413, &e);
	}
	r = request_route(method, q->target, &route, &e);
	if (r < 0)
		return respond_error(c, api_status(r), &e);
	/* However long the call takes, it is not the client who is slow. */
	MHD_set_connection_option(c, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
	if (call_flags(route.call) & CALL_PROGRESS && wants_stream(c))
		return respond_stream(a, c, &route, q);
	caller.fd = connection_fd(c);
	p = (struct progress){
		.ctx = &caller,
		.gone = caller_gone,
		.made = caller_made,
		.busy_timeout_ms = (uint32_t)route.busy_timeout_ms,
	};
	r = call_run(a->tree, a->commits, &route, q->body ? q->body : "", q->len, &p,
		&out, &e);
	cleanup_close_fn(&caller.fd);
	status = finish(r, &e, call_flags(route.call) & CALL_CREATES ? 201 : 200, &out);
	MHD_set_connection_option(c, MHD_CONNECTION_OPTION_TIMEOUT, (unsigned)API_IDLE_S);
	result = respond(c, status, &out);
	if (route.call == CALL_SHUTDOWN && r == 0)
		a->shutdown(a->ctx);
	return result;
}

static enum MHD_Result
on_request(void *ctx, struct MHD_Connection *c, const char *url, const char *method,
	const char *version, const char *data, size_t *len, void **con_cls)
{
	struct api *a = ctx;
	struct request *q = *con_cls;
	struct err e;

	(void)url;
	(void)version;
	if (!q || !q->target)
		return MHD_NO;
	if (!q->begun) {
		q->begun = true;
		if (!peer_is_us(c)) {
			err_set(&e, -EPERM, "this pandod belongs to user %u", geteuid());
			return respond_error(c, 403, &e);
		}
		if (atomic_load(&a->connections) > API_CONNECTIONS_MAX)
			return respond_full(c);
		return MHD_YES;
	}
	if (*len) {
		if (!add_body(q, data, *len))
			return MHD_NO;
		*len = 0;
		return MHD_YES;
	}
	return answer(a, c, method, q);
}

__attribute__((format(printf, 2, 0))) static void
on_log(void *ctx, const char *fmt, va_list ap)
{
	static struct log_limit limit = {.burst = 10};
	char line[300], shown[400];

	(void)ctx;
	vsnprintf(line, sizeof(line), fmt, ap);
	line[strcspn(line, "\n")] = '\0';
	if (log_allowed(&limit))
		log_debug(
			"http: %s", log_escape(shown, sizeof(shown), line, strlen(line)));
}

int
api_start(struct tree *t, struct commits *c, int listen_fd, void (*shutdown)(void *ctx),
	void *ctx, struct api **ret, struct err *e)
{
	struct api *a = calloc(1, sizeof(*a));
	int r;

	if (!a) {
		close(listen_fd);
		return err_set(e, -ENOMEM, "out of memory");
	}
	a->tree = t;
	a->commits = c;
	a->shutdown = shutdown;
	a->ctx = ctx;
	a->daemon = MHD_start_daemon(
		MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION |
			MHD_USE_POLL | MHD_USE_ITC | MHD_USE_ERROR_LOG,
		0, NULL, NULL, on_request, a, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
		MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_CONNECTION_LIMIT,
		(unsigned)(API_CONNECTIONS_MAX + API_SURPLUS_MAX),
		MHD_OPTION_NOTIFY_CONNECTION, on_connection, a,
		MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)API_IDLE_S,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)(32 * 1024),
		MHD_OPTION_THREAD_STACK_SIZE, (size_t)(1024 * 1024),
		MHD_OPTION_URI_LOG_CALLBACK, on_target, a, MHD_OPTION_NOTIFY_COMPLETED,
		on_completed, a, MHD_OPTION_END);
	if (!a->daemon) {
		r = err_set(e, -EIO, "the HTTP server cannot be started");
		close(listen_fd);
		free(a);
		return r;
	}
	*ret = a;
	return 0;
}

void
api_stop(struct api *a)
{
	if (!a)
		return;
	MHD_stop_daemon(a->daemon);
	free(a);
}
