#include "wordfreq.h"

#include <stdlib.h>
#include <string.h>

struct wf {
	struct wf_entry *entries; /* in the order of their first appearance, until wf_top() sorts */
	size_t n_entries, capacity;
	unsigned long total;
	size_t min_len;
	char word[WF_WORD_MAX + 1]; /* the one being read */
	size_t word_len;            /* as in the text, may be more than fits */
	int apostrophe;             /* the last byte was one, after a letter */
};

struct wf *
wf_new(size_t min_len)
{
	struct wf *wf = calloc(1, sizeof(*wf));

	if (wf)
		wf->min_len = min_len;
	return wf;
}

void
wf_free(struct wf *wf)
{
	if (!wf)
		return;
	free(wf->entries);
	free(wf);
}

static int
is_word_byte(unsigned char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c >= 128;
}

static char
fold(unsigned char c)
{
	return (char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
}

static struct wf_entry *
find(struct wf *wf, const char *word)
{
	for (size_t i = 0; i < wf->n_entries; i++)
		if (strcmp(wf->entries[i].word, word) == 0)
			return &wf->entries[i];
	return NULL;
}

static struct wf_entry *
insert(struct wf *wf, const char *word)
{
	struct wf_entry *e;

	if (wf->n_entries == wf->capacity) {
		size_t capacity = wf->capacity ? 2 * wf->capacity : 64;
		struct wf_entry *more = realloc(wf->entries, capacity * sizeof(*more));

		if (!more)
			return NULL;
		wf->entries = more;
		wf->capacity = capacity;
	}
	e = &wf->entries[wf->n_entries++];
	memset(e, 0, sizeof(*e));
	strcpy(e->word, word);
	return e;
}

/* Counts the word that was being read. */
static int
end_word(struct wf *wf)
{
	struct wf_entry *e;
	size_t len = wf->word_len;

	wf->word_len = 0;
	wf->apostrophe = 0;
	if (len == 0 || len < wf->min_len)
		return 0;
	wf->word[len < WF_WORD_MAX ? len : WF_WORD_MAX] = '\0';
	e = find(wf, wf->word);
	if (!e)
		e = insert(wf, wf->word);
	if (!e)
		return -1;
	e->count++;
	wf->total++;
	return 0;
}

static void
add_byte(struct wf *wf, char c)
{
	if (wf->word_len < WF_WORD_MAX)
		wf->word[wf->word_len] = c;
	wf->word_len++;
}

int
wf_add(struct wf *wf, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (is_word_byte(c)) {
			/* An apostrophe belongs to the word only now that a letter follows. */
			if (wf->apostrophe)
				add_byte(wf, '\'');
			wf->apostrophe = 0;
			add_byte(wf, fold(c));
		} else if (c == '\'' && wf->word_len && !wf->apostrophe) {
			wf->apostrophe = 1;
		} else if (wf->word_len && end_word(wf) < 0) {
			return -1;
		}
	}
	return 0;
}

int
wf_finish(struct wf *wf)
{
	wf->word_len = 0;
	wf->apostrophe = 0;
	return 0;
}

unsigned long
wf_total(const struct wf *wf)
{
	return wf->total;
}

size_t
wf_distinct(const struct wf *wf)
{
	return wf->n_entries;
}

static int
compare(const void *a, const void *b)
{
	const struct wf_entry *x = a, *y = b;

	if (x->count != y->count)
		return x->count < y->count ? 1 : -1;
	return strcmp(y->word, x->word);
}

size_t
wf_top(struct wf *wf, size_t n, const struct wf_entry **ret)
{
	if (wf->n_entries)
		qsort(wf->entries, wf->n_entries, sizeof(*wf->entries), compare);
	*ret = wf->entries;
	return n < wf->n_entries ? n : wf->n_entries;
}
