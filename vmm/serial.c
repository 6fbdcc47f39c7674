#include "vmm/serial.h"

#include <errno.h>

enum { REG_DATA, REG_IER, REG_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

#define IER_RX 0x01
#define IER_THR_EMPTY 0x02
#define IIR_NONE 0x01
#define IIR_THR_EMPTY 0x02
#define IIR_RX 0x04
#define IIR_FIFO 0xc0
#define LCR_DLAB 0x80
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define LSR_RX 0x01
#define LSR_THR_EMPTY 0x20
#define LSR_IDLE 0x40
#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_RI 0x40
#define MSR_DCD 0x80

void
serial_init(struct serial *s, struct console *console, struct irq_line irq)
{
	*s = (struct serial){.console = console, .irq = irq, .dll = 1, .lcr = 3};
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->released, NULL);
}

void
serial_fork_child(struct serial *s, struct irq_line irq)
{
	s->irq = irq;
	s->held = false;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->released, NULL);
}

enum { FLAG_FIFO = 1, FLAG_THR_EMPTY = 2, FLAG_LOOP_FULL = 4 };

void
serial_save(const struct serial *s, struct blob_out *out)
{
	blob_put_u8(out, s->ier);
	blob_put_u8(out, s->lcr);
	blob_put_u8(out, s->mcr);
	blob_put_u8(out, s->scr);
	blob_put_u8(out, s->dll);
	blob_put_u8(out, s->dlm);
	blob_put_u8(out, s->loop_byte);
	blob_put_u8(out, (s->fifo ? FLAG_FIFO : 0) |
				 (s->thr_empty_pending ? FLAG_THR_EMPTY : 0) |
				 (s->loop_full ? FLAG_LOOP_FULL : 0));
}

int
serial_load(struct serial *s, struct blob_in *in, struct err *e)
{
	uint8_t flags;

	s->ier = blob_get_u8(in);
	s->lcr = blob_get_u8(in);
	s->mcr = blob_get_u8(in);
	s->scr = blob_get_u8(in);
	s->dll = blob_get_u8(in);
	s->dlm = blob_get_u8(in);
	s->loop_byte = blob_get_u8(in);
	flags = blob_get_u8(in);
	if ((s->ier & ~0x0f) || (s->mcr & ~0x1f) || flags > 7)
		return err_set(e, -EBADMSG,
			"the state of the serial port has bits that cannot be set");
	s->fifo = flags & FLAG_FIFO;
	s->thr_empty_pending = flags & FLAG_THR_EMPTY;
	s->loop_full = flags & FLAG_LOOP_FULL;
	return 0;
}

/* The interrupt that IIR would report now. */
static uint8_t
cause(const struct serial *s)
{
	if ((s->ier & IER_RX) && s->loop_full)
		return IIR_RX;
	if ((s->ier & IER_THR_EMPTY) && s->thr_empty_pending)
		return IIR_THR_EMPTY;
	return IIR_NONE;
}

static void
interrupt(struct serial *s)
{
	if (cause(s) != IIR_NONE)
		irq_raise(&s->irq);
}

void
serial_resume(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	interrupt(s);
	pthread_mutex_unlock(&s->lock);
}

void
serial_hold(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	s->held = true;
	pthread_mutex_unlock(&s->lock);
}

void
serial_release(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	s->held = false;
	pthread_cond_broadcast(&s->released);
	pthread_mutex_unlock(&s->lock);
}

static uint8_t
modem_status(const struct serial *s)
{
	if (!(s->mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	/* Loop-back: the outputs drive the inputs. */
	return (s->mcr & 0x02 ? MSR_CTS : 0) | (s->mcr & 0x01 ? MSR_DSR : 0) |
	       (s->mcr & 0x04 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0);
}

uint8_t
serial_read(struct serial *s, unsigned reg)
{
	uint8_t v = 0;

	pthread_mutex_lock(&s->lock);
	switch (reg) {
	case REG_DATA:
		if (s->lcr & LCR_DLAB) {
			v = s->dll;
			break;
		}
		v = s->loop_full ? s->loop_byte : 0;
		s->loop_full = false;
		break;
	case REG_IER:
		v = s->lcr & LCR_DLAB ? s->dlm : s->ier;
		break;
	case REG_IIR:
		v = cause(s);
		if (v == IIR_THR_EMPTY) /* reading it is the acknowledgement */
			s->thr_empty_pending = false;
		v |= s->fifo ? IIR_FIFO : 0;
		break;
	case REG_LCR:
		v = s->lcr;
		break;
	case REG_MCR:
		v = s->mcr;
		break;
	case REG_LSR:
		v = LSR_THR_EMPTY | LSR_IDLE | (s->loop_full ? LSR_RX : 0);
		break;
	case REG_MSR:
		v = modem_status(s);
		break;
	case REG_SCR:
		v = s->scr;
		break;
	default:
		break;
	}
	pthread_mutex_unlock(&s->lock);
	return v;
}

static void
transmit(struct serial *s, const uint8_t *values, size_t n)
{
	if (s->mcr & MCR_LOOP) {
		s->loop_byte = values[n - 1];
		s->loop_full = true;
	} else {
		console_write(s->console, values, n);
	}
	s->thr_empty_pending = true;
	interrupt(s);
}

static void
write_one(struct serial *s, unsigned reg, uint8_t value)
{
	switch (reg) {
	case REG_DATA:
		if (s->lcr & LCR_DLAB)
			s->dll = value;
		else
			transmit(s, &value, 1);
		break;
	case REG_IER:
		if (s->lcr & LCR_DLAB) {
			s->dlm = value;
			break;
		}
		/* Enabling the interrupt while the transmitter is empty raises it. */
		if (!(s->ier & IER_THR_EMPTY) && (value & IER_THR_EMPTY))
			s->thr_empty_pending = true;
		s->ier = value & 0x0f;
		interrupt(s);
		break;
	case REG_IIR: /* FCR */
		s->fifo = value & 1;
		if (value & 2)
			s->loop_full = false;
		break;
	case REG_LCR:
		s->lcr = value;
		break;
	case REG_MCR:
		s->mcr = value & 0x1f;
		break;
	case REG_SCR:
		s->scr = value;
		break;
	default: /* LSR and MSR are read-only */
		break;
	}
}

void
serial_write(struct serial *s, unsigned reg, uint8_t value)
{
	serial_write_many(s, reg, &value, 1);
}

void
serial_write_many(struct serial *s, unsigned reg, const uint8_t *values, size_t n)
{
	if (n == 0)
		return;
	pthread_mutex_lock(&s->lock);
	while (s->held)
		pthread_cond_wait(&s->released, &s->lock);
	if (reg == REG_DATA && !(s->lcr & LCR_DLAB))
		transmit(s, values, n);
	else
		for (size_t i = 0; i < n; i++)
			write_one(s, reg, values[i]);
	pthread_mutex_unlock(&s->lock);
}
