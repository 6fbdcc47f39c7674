#include "common/systemd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"

int
systemd_dial(struct systemd *s, const char *address, uint64_t call_us)
{
	int r = sd_bus_new(&s->h);

	if (r >= 0)
		r = sd_bus_set_address(s->h, address);
	if (r >= 0)
		r = sd_bus_start(s->h);
	if (r >= 0)
		r = sd_bus_set_method_call_timeout(s->h, call_us);
	return r;
}

void
systemd_done(struct systemd *s)
{
	s->h = sd_bus_close_unref(s->h);
	free(s->job);
	s->job = NULL;
}

int
systemd_said(int r, const sd_bus_error *error, const char *doing, struct err *e)
{
	char text[300];

	if (!error->message)
		return err_sys(e, r, "%s", doing);
	log_escape(text, sizeof(text), error->message, strlen(error->message));
	return err_set(e, r, "%s: %s", doing, text);
}

static int
on_job_removed(sd_bus_message *m, void *systemd, sd_bus_error *error)
{
	struct systemd *s = systemd;
	const char *job, *unit, *result;
	uint32_t id;

	(void)error;
	if (sd_bus_message_read(m, "uoss", &id, &job, &unit, &result) < 0)
		return 0;
	if (s->job && strcmp(s->job, job) == 0) {
		s->over = true;
		snprintf(s->result, sizeof(s->result), "%s", result);
	}
	return 0;
}

int
systemd_listen(struct systemd *s, const char *sender, struct err *e)
{
	static const char doing[] = "listening to systemd";
	cleanup_bus_error sd_bus_error error = SD_BUS_ERROR_NULL;
	int r = sd_bus_match_signal(s->h, NULL, sender, SYSTEMD_PATH, SYSTEMD_MANAGER,
		"JobRemoved", on_job_removed, s);

	if (r < 0)
		return err_sys(e, r, "%s", doing);
	r = sd_bus_call_method(s->h, SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER, "Subscribe",
		&error, NULL, NULL);
	return r < 0 ? systemd_said(r, &error, doing, e) : 0;
}

int
systemd_process(struct systemd *s, const bool *over, uint64_t until_ns)
{
	for (;;) {
		uint64_t now_ns = io_now_ns();
		int r = sd_bus_process(s->h, NULL);

		if (r < 0)
			return r;
		if (over ? *over : sd_bus_is_ready(s->h) > 0)
			return 0;
		if (now_ns >= until_ns)
			return -ETIMEDOUT;
		if (r > 0)
			continue;
		r = sd_bus_wait(s->h, (until_ns - now_ns) / 1000 + 1);
		if (r < 0 && r != -EINTR)
			return r;
	}
}

int
systemd_job(struct systemd *s, sd_bus_message *answer, uint64_t until_ns)
{
	const char *job;
	int r = sd_bus_message_read(answer, "o", &job);

	if (r < 0)
		return r;
	free(s->job);
	s->job = strdup(job);
	s->over = false;
	return s->job ? systemd_process(s, &s->over, until_ns) : -ENOMEM;
}
