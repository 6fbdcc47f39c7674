/*
 * How many times as fast as the original is this wordfreq.c? Links both: the original's functions
 * have the prefix ref_. They take turns on the same text, and the best round of each counts: what
 * else the machine does makes rounds slower, never faster. Stops after about BUDGET_S seconds of
 * processor time. Prints one number.
 */
#include <stdio.h>
#include <time.h>

#include "wordfreq.h"

struct wf *ref_new(size_t min_len);
void ref_free(struct wf *wf);
int ref_add(struct wf *wf, const char *text, size_t len);
int ref_finish(struct wf *wf);

#define BUDGET_S 3.0
#define TURNS_MIN 3
#define TURNS_MAX 200
#define ROUNDS_MAX 4096
#define WORDS 4000
#define VOCABULARY 1500

static double
cpu_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Half of the words from the first tenth of the vocabulary, as in texts people write. */
static size_t
make_text(char *text)
{
	unsigned long long seed = 42;
	size_t len = 0;

	for (int i = 0; i < WORDS; i++) {
		unsigned word;

		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		word = (unsigned)(seed >> 33) % VOCABULARY;
		if (seed >> 63)
			word /= 10;
		len += (size_t)sprintf(text + len, "%c%c%u ", 'a' + word % 26, 'a' + word / 26 % 26,
			word);
	}
	return len;
}

typedef struct wf *make(size_t min_len);
typedef void unmake(struct wf *wf);
typedef int add(struct wf *wf, const char *text, size_t len);
typedef int finish(struct wf *wf);

/* Processor time of so many rounds; negative: out of memory. */
static double
measure(unsigned rounds, make *new, add *add_text, finish *end, unmake *free_it,
	const char *text, size_t len)
{
	double start = cpu_seconds();

	for (unsigned i = 0; i < rounds; i++) {
		struct wf *wf = new(1);

		if (!wf || add_text(wf, text, len) < 0 || end(wf) < 0)
			return -1;
		free_it(wf);
	}
	return cpu_seconds() - start;
}

int
main(void)
{
	static char text[WORDS * 12];
	size_t len = make_text(text);
	double best_ref = 1e9, best = 1e9, start = cpu_seconds();
	unsigned rounds = 1;

	for (int turn = 0; turn < TURNS_MAX; turn++) {
		double ref = measure(1, ref_new, ref_add, ref_finish, ref_free, text, len);
		double own = measure(rounds, wf_new, wf_add, wf_finish, wf_free, text, len);

		if (ref < 0 || own < 0) {
			fprintf(stderr, "bench: out of memory\n");
			return 1;
		}
		best_ref = ref > 0 && ref < best_ref ? ref : best_ref;
		if (own < ref / 3 && rounds < ROUNDS_MAX) {
			/* Too quick for a clock that may be coarse: more of it at a time. */
			rounds *= 2;
			turn = -1;
			continue;
		}
		best = own / rounds < best ? own / rounds : best;
		if (turn + 1 >= TURNS_MIN && cpu_seconds() - start > BUDGET_S)
			break;
	}
	if (best <= 0) {
		fprintf(stderr, "bench: the clock of this machine stands still\n");
		return 1;
	}
	printf("%.2f\n", best_ref / best);
	return 0;
}
