#include "host/cli/tunnel.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"
#include "host/cli/out.h"

/* A thread has a few buffers of 0.5 KiB on it; the big ones are on the heap. */
#define STACK_BYTES (256u * 1024u)
/* The agent of a guest that runs comes back, if it can: after its crash, or a restart. */
#define AGAIN_NS 200000000

struct shared {
	const struct tunnel *t;
	pthread_mutex_t lock;
	pthread_cond_t ended;
	unsigned n;	/* threads */
	int stop_fd;	/* eventfd: all are to end */
	int news_fd;	/* eventfd: one has ended, or the guest went */
	bool gone;	/* the guest went */
	struct err why; /* and that is why */
};

struct caller {
	struct shared *s;
	struct tunnel_door *door;
	int fd; /* owned */
};

bool
tunnel_is_door(const char *word)
{
	size_t a = strspn(word, "0123456789"), b;

	if (word[a] == ':') {
		b = strspn(word + a + 1, "0123456789");
		return a <= 5 && b && b <= 5 && !word[a + 1 + b];
	}
	return a && a <= 5 && !word[a];
}

static int
read_port(const char *text, size_t len, uint16_t *ret)
{
	unsigned v = 0;

	if (!len || len > 5)
		return -EINVAL;
	for (size_t i = 0; i < len; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -EINVAL;
		v = v * 10 + (unsigned)(text[i] - '0');
	}
	*ret = (uint16_t)v;
	return v > UINT16_MAX ? -EINVAL : 0;
}

int
tunnel_read_door(const char *text, struct tunnel_door *ret, struct err *e)
{
	struct tunnel_door d = {.fd = -1};
	const char *colon = strchr(text, ':'), *port = colon ? colon + 1 : text;
	int r = read_port(port, strlen(port), &d.guest);

	if (r == 0 && colon)
		r = read_port(text, (size_t)(colon - text), &d.local);
	else
		d.local = d.guest;
	if (r < 0 || !d.guest)
		return err_set(e, -EINVAL,
			"\"%s\": a port of the guest, or LOCAL:PORT; ports are 1 to 65535, and LOCAL 0 is any that is free",
			text);
	*ret = d;
	return 0;
}

static bool
is_loopback(const struct sockaddr *a)
{
	if (a->sa_family == AF_INET)
		return ntohl(((const struct sockaddr_in *)(const void *)a)
				       ->sin_addr.s_addr) >>
			       24 ==
		       127;
	return IN6_IS_ADDR_LOOPBACK(
		&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

int
tunnel_listen(struct tunnel_door *d, const char *bind_to, bool *ret_open, struct err *e)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_PASSIVE | AI_NUMERICSERV,
				.ai_socktype = SOCK_STREAM},
			*list;
	struct sockaddr_storage a = {0};
	socklen_t len = sizeof(a);
	char port[8], host[INET6_ADDRSTRLEN];
	cleanup_close int fd = -1;
	int on = 1, r = 0;

	snprintf(port, sizeof(port), "%u", d->local);
	if (getaddrinfo(bind_to, port, &hints, &list))
		return err_set(e, -EINVAL,
			"--bind \"%s\": an address of this host in numbers, such as 127.0.0.1 or ::1",
			bind_to);
	fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		r = err_sys(e, -errno, "a socket");
	if (r == 0)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	/* [::] is not to take 0.0.0.0, too: what was said is what is opened. */
	if (r == 0 && list->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	if (r == 0 &&
		(bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, SOMAXCONN)))
		r = errno == EADDRINUSE || errno == EACCES
			    ? err_sys(e, -errno,
				      "port %u of this host (0:%u takes one that is free)",
				      d->local, d->guest)
			    : err_sys(e, -errno, "listening on %s port %u", bind_to,
				      d->local);
	if (r == 0 && getsockname(fd, (struct sockaddr *)&a, &len))
		r = err_sys(e, -errno, "a socket's address");
	*ret_open = r == 0 && !is_loopback(list->ai_addr);
	freeaddrinfo(list);
	if (r < 0)
		return r;
	if (a.ss_family == AF_INET6) {
		const struct sockaddr_in6 *v6 = (const void *)&a;

		d->local = ntohs(v6->sin6_port);
		inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host));
		snprintf(d->address, sizeof(d->address), "[%s]:%u", host, d->local);
	} else {
		const struct sockaddr_in *v4 = (const void *)&a;

		d->local = ntohs(v4->sin_port);
		inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host));
		snprintf(d->address, sizeof(d->address), "%s:%u", host, d->local);
	}
	d->fd = TAKE_FD(fd);
	return 0;
}

static void
tell(int event_fd)
{
	uint64_t one = 1;

	(void)!write(event_fd, &one, sizeof(one));
}

/* A thread ends: its last word to s. */
static void
leave(struct shared *s)
{
	pthread_mutex_lock(&s->lock);
	s->n--;
	tell(s->news_fd);
	pthread_cond_signal(&s->ended);
	pthread_mutex_unlock(&s->lock);
}

/* Of many connections in a row that fail alike the first is spoken of. One that its own
 * ends broke is their affair, and of the end of all the watch speaks. */
static void
complain(struct shared *s, struct tunnel_door *door, int r, const struct err *e)
{
	bool say;

	if (r == -ECANCELED || r == -ECONNRESET || r == -EPIPE || r == -ENOENT ||
		r == -ENOTCONN)
		return;
	pthread_mutex_lock(&s->lock);
	say = r && door->told != r;
	door->told = r;
	pthread_mutex_unlock(&s->lock);
	if (say)
		out_complain("vm \"%s\", port %u: %s%s", s->t->name, door->guest, e->msg,
			r == -ECONNREFUSED
				? "; connections are closed until something does"
				: "");
}

static void *
serve(void *arg)
{
	struct caller *c = arg;
	struct err e = {0};
	int r = agent_dial(c->s->t->socket, c->door->guest, c->fd, c->s->stop_fd, &e);

	complain(c->s, c->door, r, &e);
	close(c->fd);
	leave(c->s);
	free(c);
	return NULL;
}

/* Sits with the guest until it goes. */
static void *
watch(void *arg)
{
	struct shared *s = arg;
	struct timespec ts = {.tv_nsec = AGAIN_NS};
	struct pollfd p = {.fd = s->stop_fd, .events = POLLIN};
	struct err e;
	int r;

	do {
		e = (struct err){0};
		r = agent_stay(s->t->socket, s->stop_fd, &e);
		nanosleep(&ts, NULL);
	} while ((r == -EPIPE || r == -ECONNREFUSED || r == -ETIMEDOUT || r == -EAGAIN) &&
		 poll(&p, 1, 0) == 0);
	pthread_mutex_lock(&s->lock);
	s->gone = true;
	s->why = e;
	pthread_mutex_unlock(&s->lock);
	leave(s);
	return NULL;
}

static int
start(struct shared *s, void *(*run)(void *), void *arg)
{
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_mutex_lock(&s->lock);
	s->n++;
	pthread_mutex_unlock(&s->lock);
	r = pthread_create(&thread, &attr, run, arg);
	pthread_attr_destroy(&attr);
	if (r != 0)
		leave(s);
	return -r;
}

static void
let_in(struct shared *s, struct tunnel_door *door)
{
	int fd = accept4(door->fd, NULL, NULL, SOCK_CLOEXEC), on = 1, r;
	struct caller *c;
	struct err e = {0};

	if (fd < 0) {
		/* Out of descriptors: the queue waits, and so do we. */
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
			errno == ENOBUFS)
			usleep(20000);
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	c = malloc(sizeof(*c));
	if (c)
		*c = (struct caller){s, door, fd};
	r = c ? start(s, serve, c) : -ENOMEM;
	if (r < 0) {
		err_sys(&e, r, "a thread for a connection");
		complain(s, door, r, &e);
		close(fd);
		free(c);
	}
}

/* Accepts, until the end. */
static int
listen_on(struct shared *s, struct err *e)
{
	const struct tunnel *t = s->t;

	while (1) {
		struct pollfd p[TUNNEL_DOORS_MAX + 2] = {
			{.fd = t->signal_fd, .events = POLLIN},
			{.fd = s->news_fd, .events = POLLIN}};
		uint64_t count;
		bool full, gone;

		pthread_mutex_lock(&s->lock);
		full = s->n > TUNNEL_CONNS_MAX; /* one watches */
		gone = s->gone;
		pthread_mutex_unlock(&s->lock);
		if (gone)
			return err_set(e, s->why.code, "%s", s->why.msg);
		for (unsigned i = 0; i < t->n_doors; i++)
			p[2 + i] = (struct pollfd){
				.fd = full ? -1 : t->doors[i].fd, .events = POLLIN};
		if (poll(p, 2 + t->n_doors, -1) < 0 && errno != EINTR)
			return err_sys(e, -errno, "poll");
		if (p[0].revents)
			return err_set(e, -ECANCELED, "ended");
		if (p[1].revents)
			(void)!read(s->news_fd, &count, sizeof(count));
		for (unsigned i = 0; i < t->n_doors; i++)
			if (p[2 + i].revents)
				let_in(s, &t->doors[i]);
	}
}

int
tunnel_run(struct tunnel *t, struct err *e)
{
	struct shared s = {.t = t,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.ended = PTHREAD_COND_INITIALIZER,
		.stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
		.news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
	int r;

	if (s.stop_fd < 0 || s.news_fd < 0)
		r = err_sys(e, -errno, "an eventfd");
	else if ((r = start(&s, watch, &s)) < 0)
		r = err_sys(e, r, "a thread");
	else
		r = listen_on(&s, e);
	if (s.stop_fd >= 0)
		tell(s.stop_fd);
	pthread_mutex_lock(&s.lock);
	while (s.n)
		pthread_cond_wait(&s.ended, &s.lock);
	pthread_mutex_unlock(&s.lock);
	if (s.stop_fd >= 0)
		close(s.stop_fd);
	if (s.news_fd >= 0)
		close(s.news_fd);
	return r;
}
