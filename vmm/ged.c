#include "vmm/ged.h"

#include <errno.h>
#include <string.h>

#include "vmm/layout.h"

#define SLEEP_ENABLE 0x20u
#define SLEEP_TYPE(v) ((v) >> 2 & 7u)

void
ged_init(struct ged *g, struct irq_line irq, void (*power_off)(void *),
	void (*reset)(void *), void *ctx)
{
	*g = (struct ged){.irq = irq, .power_off = power_off, .reset = reset, .ctx = ctx};
	pthread_mutex_init(&g->lock, NULL);
}

void
ged_fork_child(struct ged *g, struct irq_line irq, void *ctx)
{
	g->irq = irq;
	g->ctx = ctx;
	pthread_mutex_init(&g->lock, NULL);
}

void
ged_save(const struct ged *g, struct blob_out *out)
{
	blob_put_u32(out, g->events);
}

int
ged_load(struct ged *g, struct blob_in *in, struct err *e)
{
	g->events = blob_get_u32(in);
	if (g->events & ~(GED_EVENT_GENERATION | GED_EVENT_POWER_BUTTON))
		return err_set(e, -EBADMSG,
			"the state of the event device has events that there are not");
	return 0;
}

void
ged_resume(struct ged *g)
{
	ged_notify(g, 0);
}

void
ged_notify(struct ged *g, uint32_t events)
{
	pthread_mutex_lock(&g->lock);
	g->events |= events;
	if (g->events)
		irq_raise(&g->irq);
	pthread_mutex_unlock(&g->lock);
}

void
ged_read(struct ged *g, unsigned offset, void *data, unsigned len)
{
	uint32_t events;

	memset(data, 0xff, len);
	if (offset == 0 && len == 4) {
		pthread_mutex_lock(&g->lock);
		events = g->events;
		g->events = 0;
		pthread_mutex_unlock(&g->lock);
		memcpy(data, &events, 4);
	} else if (offset == LAYOUT_SLEEP_CONTROL - LAYOUT_GED_EVENTS ||
		   offset == LAYOUT_SLEEP_STATUS - LAYOUT_GED_EVENTS) {
		memset(data, 0, len);
	}
}

void
ged_write(struct ged *g, unsigned offset, const void *data, unsigned len)
{
	uint8_t value;

	if (len != 1)
		return;
	memcpy(&value, data, 1);
	if (offset == LAYOUT_SLEEP_CONTROL - LAYOUT_GED_EVENTS) {
		if ((value & SLEEP_ENABLE) && SLEEP_TYPE(value) == LAYOUT_SLEEP_TYPE_OFF)
			g->power_off(g->ctx);
	} else if (offset == LAYOUT_RESET - LAYOUT_GED_EVENTS) {
		if (value == LAYOUT_RESET_VALUE)
			g->reset(g->ctx);
	}
}
