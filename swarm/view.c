#include "swarm/view.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/io.h"
#include "common/log.h"

#define SUMMARY_NS (30ull * 1000000000)

static const char *const state_names[] = {
	[SWARM_WAITING] = "waiting",
	[SWARM_PUTTING] = "putting files",
	[SWARM_WORKING] = "working",
	[SWARM_SCORING] = "scoring",
	[SWARM_COLLECTING] = "collecting",
	[SWARM_SCORED] = "scored",
	[SWARM_FAILED] = "failed",
	[SWARM_CANCELLED] = "cancelled",
};

static double
seconds(uint64_t from_ns, uint64_t to_ns)
{
	return from_ns && to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

static void
put(struct swarm_view *v, const char *text, size_t len)
{
	/* A screen that went away is no reason to stop a run. */
	if (v->fd >= 0 && io_write_full(v->fd, text, len) < 0)
		v->fd = -1;
}

/* A line cut to the screen's width, so that the table's height is what we think it is. */
static void
put_line(struct swarm_view *v, const char *text)
{
	char line[512];
	int n = snprintf(line, sizeof(line) - 4, "%.*s",
		v->live ? (int)v->columns - 1 : 480, text);

	if (n > (int)sizeof(line) - 5)
		n = (int)sizeof(line) - 5;
	n += snprintf(line + n, 5, "%s\n", v->live ? "\033[K" : "");
	put(v, line, (size_t)n);
}

static void
draw(struct swarm_view *v)
{
	char line[400];
	uint64_t now = io_now_ns();
	int width = 5;
	size_t done = 0;

	if (!v->live || !v->n_rows)
		return;
	if (v->drawn) {
		int n = snprintf(line, sizeof(line), "\033[%zuA\r", v->drawn);

		put(v, line, (size_t)n);
	}
	for (size_t i = 0; i < v->n_rows; i++) {
		int n = (int)strlen(v->rows[i].name);

		if (n > width)
			width = n;
		done += v->rows[i].state >= SWARM_SCORED;
	}
	snprintf(line, sizeof(line), "%-*s  %-13s  %8s  %s", width, "CHILD", "STATE",
		"ELAPSED", "SCORE");
	put_line(v, line);
	for (size_t i = 0; i < v->n_rows; i++) {
		const struct swarm_row *r = &v->rows[i];
		char elapsed[24] = "", score[200] = "";

		if (r->start_ns)
			snprintf(elapsed, sizeof(elapsed), "%.1f s",
				seconds(r->start_ns, r->end_ns ? r->end_ns : now));
		if (r->state == SWARM_SCORED)
			snprintf(score, sizeof(score), "%.10g%s", r->score,
				r->leads ? " *" : "");
		else
			snprintf(score, sizeof(score), "%s", r->note);
		snprintf(line, sizeof(line), "%-*s  %-13s  %8s  %s", width, r->name,
			state_names[r->state], elapsed, score);
		put_line(v, line);
	}
	snprintf(line, sizeof(line), "%zu of %zu done, %.0f s", done, v->n_rows,
		seconds(v->start_ns, now));
	put_line(v, line);
	v->drawn = v->n_rows + 2;
}

/* Lock held. A note goes above the table. */
static void
say(struct swarm_view *v, const char *text)
{
	char line[600];

	if (v->fd < 0)
		return;
	if (v->drawn) {
		int n = snprintf(line, sizeof(line), "\033[%zuA\r\033[J", v->drawn);

		put(v, line, (size_t)n);
		v->drawn = 0;
	}
	snprintf(line, sizeof(line), "[%6.1f s] %s\n", seconds(v->start_ns, io_now_ns()),
		text);
	put(v, line, strlen(line));
	draw(v);
}

void
swarm_view_init(struct swarm_view *v, int fd, bool live)
{
	*v = (struct swarm_view){
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.fd = fd,
		.live = live,
		.columns = 80,
		.start_ns = io_now_ns(),
	};
}

void
swarm_view_start(struct swarm_view *v, struct swarm_row *rows, size_t n_rows)
{
	struct winsize w = {0};

	pthread_mutex_lock(&v->lock);
	v->rows = rows;
	v->n_rows = n_rows;
	v->next_summary_ns = io_now_ns() + SUMMARY_NS;
	if (v->live) {
		if (ioctl(v->fd, TIOCGWINSZ, &w) < 0 || w.ws_row < n_rows + 4 ||
			w.ws_col < 40)
			v->live = false;
		else
			v->columns = w.ws_col < 400 ? w.ws_col : 400;
	}
	draw(v);
	pthread_mutex_unlock(&v->lock);
}

void
swarm_view_note(struct swarm_view *v, const char *fmt, ...)
{
	char text[500];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&v->lock);
	say(v, text);
	pthread_mutex_unlock(&v->lock);
}

void
swarm_view_set(struct swarm_view *v, size_t i, enum swarm_state state, double score,
	const char *note)
{
	struct swarm_row *r = &v->rows[i];
	uint64_t now = io_now_ns();
	char line[400];

	pthread_mutex_lock(&v->lock);
	r->state = state;
	r->score = score;
	if (state != SWARM_WAITING && !r->start_ns)
		r->start_ns = now;
	if (state >= SWARM_SCORED)
		r->end_ns = now;
	log_escape(r->note, sizeof(r->note), note ? note : "", note ? strlen(note) : 0);
	if (v->live) {
		draw(v);
	} else if (state == SWARM_SCORED) {
		snprintf(line, sizeof(line), "%s: score %.10g after %.1f s", r->name,
			score, seconds(r->start_ns, now));
		say(v, line);
	} else if (state != SWARM_WAITING) {
		snprintf(line, sizeof(line), "%s: %s%s%s", r->name, state_names[state],
			note ? ": " : "", r->note);
		say(v, line);
	}
	pthread_mutex_unlock(&v->lock);
}

void
swarm_view_lead(struct swarm_view *v, size_t i)
{
	pthread_mutex_lock(&v->lock);
	for (size_t k = 0; k < v->n_rows; k++)
		v->rows[k].leads = k == i;
	draw(v);
	pthread_mutex_unlock(&v->lock);
}

void
swarm_view_tick(struct swarm_view *v)
{
	uint64_t now = io_now_ns();

	pthread_mutex_lock(&v->lock);
	if (v->live) {
		draw(v);
	} else if (v->n_rows && now >= v->next_summary_ns) {
		char line[400];
		size_t done = 0, at;

		for (size_t i = 0; i < v->n_rows; i++)
			done += v->rows[i].state >= SWARM_SCORED;
		at = (size_t)snprintf(
			line, sizeof(line), "%zu of %zu done", done, v->n_rows);
		for (size_t i = 0; i < v->n_rows && at < sizeof(line); i++) {
			const struct swarm_row *r = &v->rows[i];

			if (r->state > SWARM_WAITING && r->state < SWARM_SCORED)
				at += (size_t)snprintf(line + at, sizeof(line) - at,
					"; %s %s %.0f s", r->name, state_names[r->state],
					seconds(r->start_ns, now));
		}
		say(v, line);
		v->next_summary_ns = now + SUMMARY_NS;
	}
	pthread_mutex_unlock(&v->lock);
}

void
swarm_view_stop(struct swarm_view *v)
{
	pthread_mutex_lock(&v->lock);
	draw(v);
	v->drawn = 0;
	v->live = false;
	v->n_rows = 0;
	pthread_mutex_unlock(&v->lock);
}
