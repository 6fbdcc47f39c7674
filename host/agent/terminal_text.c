/* The parts of host/agent/terminal.h that only look at bytes. */
#include "host/agent/terminal.h"

#include <stdio.h>
#include <string.h>

#define CTRL_Z 26

size_t
terminal_keys_take(struct terminal_keys *k, const char *in, size_t len, char *out,
	size_t *ret_len, enum terminal_key *ret)
{
	size_t n = 0, i = 0;

	*ret = TERMINAL_NO_KEY;
	while (i < len && *ret == TERMINAL_NO_KEY) {
		char c = in[i++];

		if (k->held) {
			k->held = false;
			if (c == '.')
				*ret = TERMINAL_LEAVE;
			else if (c == '?')
				*ret = TERMINAL_HELP;
			else if (c == CTRL_Z)
				*ret = TERMINAL_SUSPEND;
			if (*ret != TERMINAL_NO_KEY)
				break; /* the line is still at its start */
			/* Doubled it stands for itself. */
			if (c != k->escape)
				out[n++] = k->escape;
		} else if (k->escape && c == k->escape && !k->in_line) {
			k->held = true;
			continue;
		}
		out[n++] = c;
		k->in_line = c != '\r' && c != '\n';
	}
	*ret_len = n;
	return i;
}

/*
 * Modes.
 */

enum { PLAIN, ESC, CSI, CSI_PRIVATE, CSI_OTHER };

/* Private modes that a program leaves behind, and what is right without one. */
static const struct {
	uint16_t mode;
	bool usual;
} modes[] = {
	{1, false}, /* cursor keys of applications */
	{7, true},  /* lines wrap */
	{25, true}, /* the cursor is seen */
	{9, false}, /* mouse */
	{1000, false},
	{1001, false},
	{1002, false},
	{1003, false},
	{1004, false},
	{1005, false},
	{1006, false},
	{1015, false},
	{1016, false},
	{2004, false}, /* paste */
	{2026, false}, /* drawing is put off */
	{47, false},   /* the alternate screen: last, it brings the other one back */
	{1047, false},
	{1049, false},
};

#define N(a) (sizeof(a) / sizeof((a)[0]))
_Static_assert(N(modes) <= 32, "a bit each");

static void
set_modes(struct terminal_modes *m, bool on)
{
	for (unsigned i = 0; i <= m->at && i < N(m->param); i++)
		for (size_t k = 0; k < N(modes); k++)
			if (modes[k].mode == m->param[i]) {
				if (on != modes[k].usual)
					m->on |= 1u << k;
				else
					m->on &= ~(1u << k);
			}
}

static void
csi_ends(struct terminal_modes *m, char c)
{
	if (m->state == CSI_PRIVATE && (c == 'h' || c == 'l'))
		set_modes(m, c == 'h');
	/* Colours end with no parameter or with a last one of 0. */
	if (m->state == CSI && c == 'm')
		m->coloured = m->param[m->at < N(m->param) ? m->at : 0] != 0;
}

static void
see(struct terminal_modes *m, unsigned char c)
{
	if (c == 0x1b) {
		m->state = ESC;
		return;
	}
	if (c < 0x20) /* done in the middle of a sequence, too */
		return;
	switch (m->state) {
	case ESC:
		m->state = PLAIN;
		if (c == '[') {
			m->state = CSI;
			m->at = 0;
			memset(m->param, 0, sizeof(m->param));
		} else if (c == '=' || c == '>') {
			m->keypad = c == '=';
		} else if (c == 'c') {
			*m = (struct terminal_modes){0};
		}
		return;
	case CSI:
	case CSI_PRIVATE:
	case CSI_OTHER:
		if (c >= '0' && c <= '9') {
			if (m->at < N(m->param) && m->param[m->at] < 6000)
				m->param[m->at] =
					(uint16_t)(m->param[m->at] * 10 + (c - '0'));
		} else if (c == ';' || c == ':') {
			if (m->at < N(m->param))
				m->at++;
		} else if (c == '?') {
			m->state = CSI_PRIVATE;
		} else if (c < 0x40) {
			m->state = CSI_OTHER;
		} else {
			csi_ends(m, (char)c);
			m->state = PLAIN;
		}
		return;
	default:
		return;
	}
}

void
terminal_modes_see(struct terminal_modes *m, const void *buf, size_t len)
{
	const unsigned char *s = buf;

	while (len) {
		if (m->state == PLAIN) {
			/* Most of what there is. */
			const unsigned char *esc = memchr(s, 0x1b, len);

			if (!esc)
				return;
			len -= (size_t)(esc - s);
			s = esc;
		}
		see(m, *s++);
		len--;
	}
}

const char *
terminal_modes_undo(const struct terminal_modes *m, char *dst)
{
	size_t at = 0;

	*dst = 0;
	for (size_t k = 0; k < N(modes); k++)
		if (m->on & 1u << k)
			at += (size_t)snprintf(dst + at, TERMINAL_UNDO_MAX - at,
				"\033[?%u%c", modes[k].mode, modes[k].usual ? 'h' : 'l');
	if (m->keypad)
		at += (size_t)snprintf(dst + at, TERMINAL_UNDO_MAX - at, "\033>");
	if (m->coloured)
		snprintf(dst + at, TERMINAL_UNDO_MAX - at, "\033[m");
	return dst;
}
