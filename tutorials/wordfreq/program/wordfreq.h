/*
 * Counts the words of a text that comes in pieces.
 *
 * A word is letters (every byte above 127 counts as one, so UTF-8 works), digits, and apostrophes
 * between these. ASCII letters are folded to lower case. Words longer than WF_WORD_MAX bytes
 * are cut to that.
 */
#ifndef WORDFREQ_H
#define WORDFREQ_H

#include <stddef.h>

#define WF_WORD_MAX 63

struct wf;

struct wf_entry {
	char word[WF_WORD_MAX + 1];
	unsigned long count;
};

/* NULL: out of memory. Words shorter than min_len bytes are not counted. */
struct wf *wf_new(size_t min_len);
void wf_free(struct wf *wf);

/* One piece; a word may go on in the next. 0, or -1: out of memory. */
int wf_add(struct wf *wf, const char *text, size_t len);
/* The text has ended. 0, or -1: out of memory. */
int wf_finish(struct wf *wf);

unsigned long wf_total(const struct wf *wf);
size_t wf_distinct(const struct wf *wf);
/* The n most frequent words (fewer if there are fewer), most frequent first, words of equal count
 * in the order of their bytes. Returns how many; the array belongs to wf. */
size_t wf_top(struct wf *wf, size_t n, const struct wf_entry **ret);

#endif
