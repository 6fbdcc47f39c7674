/*
 * The small guest's balloon driver: it does what Linux does with reported pages, and what
 * Linux would never do. Command line:
 *
 *   mode=balloon pages=N  fills N pages from 4 MiB on and says "full"; at each change of the VM
 *        generation id it reports them all and says "given back zero=… kept=… bad=…", or fills
 *        them again and says "full", in turns. All the time it does what the device wants in its
 *        balloon (of the upper half of the pages) and says "balloon …" when that is reached,
 *        or `most` pages are in it.
 *   hostile=1  instead of the first report: says "hostile", then reports and puts into the
 *        balloon what is not its to give: out of range, overlapping, rings in use, in the end
 *        all of its memory, for ever
 *   poison=V   negotiates PAGE_POISON with that value
 */
#include "tests/kvm/guest/tiny.h"

#define INFLATE 0
#define DEFLATE 1
#define REPORTING 3
#define PER_REPORT 512 /* pages */
#define PER_CHAIN 256  /* page numbers */
#define SIZE 8u

#define F_STATS (1u << 1)
#define F_DEFLATE_ON_OOM (1u << 2)
#define F_POISON (1u << 4)
#define F_REPORTING (1u << 5)

/* Two words a page; a page is looked at as a whole only where it is short of pages. */
static volatile u64 *
word(u64 page, u64 i)
{
	return (volatile u64 *)(page * PAGE + i * 8);
}

static void
fill(u64 first, u64 pages)
{
	for (u64 p = first; p < first + pages; p++)
		*word(p, 0) = *word(p, 511) = p * 0x9e3779b97f4a7c15ul;
}

/* A chain of one descriptor; waits until the device has it done, or gives the queue up. */
static int
give(u32 which, u64 addr, u32 len, u16 flags)
{
	struct queue *q = queue_of(BALLOON, which);
	u16 before = *(volatile u16 *)&q->used.idx;

	q->desc[0] = (struct desc){addr, len, flags, 0};
	q->avail.ring[q->avail.idx % SIZE] = 0;
	barrier();
	q->avail.idx++;
	barrier();
	write32(reg(BALLOON, 0x050), which);
	for (u64 patience = 0; patience < 20000000; patience++)
		if (*(volatile u16 *)&q->used.idx != before ||
			(patience % 256 == 255 && (read32(reg(BALLOON, 0x070)) & 64)))
			break;
	return *(volatile u16 *)&q->used.idx == (u16)(before + 1) ? 0 : -1;
}

int
balloon_start(void)
{
	const u64 poison = option_u64("poison", 1ul << 32);
	const u32 features = F_STATS | F_DEFLATE_ON_OOM | F_REPORTING;

	if (read32(reg(BALLOON, 0x008)) != 5)
		return -1;
	if (bring_up(BALLOON, BALLOON_QUEUES, SIZE, features | (poison >> 32 ? 0 : F_POISON)))
		return -1;
	if (!(poison >> 32))
		write32(reg(BALLOON, 0x10c), (u32)poison);
	return 0;
}

u64
balloon_report(u64 first, u64 pages, u64 look, u64 *bad)
{
	static u64 was[PER_REPORT];
	u64 zero = 0;

	if (pages > PER_REPORT)
		pages = PER_REPORT;
	for (u64 i = 0; i < pages; i++)
		was[i] = *word(first + i, 0);
	if (give(REPORTING, first * PAGE, (u32)pages * PAGE, 2)) {
		say("report not answered\n");
		++*bad;
	}
	for (u64 i = 0; i < pages; i += look) {
		u64 a = *word(first + i, 0), b = *word(first + i, 511);

		if (a == 0 && b == 0)
			zero++;
		else if (a != was[i])
			++*bad;
	}
	return zero;
}

static void
report_all(u64 first, u64 pages)
{
	u64 zero = 0, bad = 0;

	for (u64 done = 0; done < pages; done += PER_REPORT)
		zero += balloon_report(first + done,
			pages - done < PER_REPORT ? pages - done : PER_REPORT, 1, &bad);
	say("given back zero=");
	say_u64(zero);
	say(" kept=");
	say_u64(pages - zero - bad);
	say(" bad=");
	say_u64(bad);
	say("\n");
}

/* What the device wants in the balloon, one chain at a time. */
static void
balloon_look(u64 first, u64 pages, u64 most)
{
	static u32 pfns[PER_CHAIN];
	static u64 inside, said = ~0ul;
	u64 wanted = read32(reg(BALLOON, 0x100)), n = 0;

	wanted = wanted < pages ? wanted : pages;
	wanted = wanted < most ? wanted : most;
	if (wanted > inside) {
		/* From the top down, as Linux's come. */
		while (n < PER_CHAIN && inside < wanted)
			pfns[n++] = (u32)(first + pages - 1 - inside++);
		give(INFLATE, (u64)pfns, (u32)n * 4, 0);
	} else if (wanted < inside) {
		while (n < PER_CHAIN && inside > wanted)
			pfns[n++] = (u32)(first + pages - inside--);
		give(DEFLATE, (u64)pfns, (u32)n * 4, 0);
		for (u64 i = 0; i < n; i++)
			fill(pfns[i], 1);
	} else if (said != inside) {
		said = inside;
		say("balloon ");
		say_u64(inside);
		say("\n");
	}
	if (n)
		write32(reg(BALLOON, 0x104), (u32)inside);
}

static void
hostile(void)
{
	static u32 wild[64];
	const u64 end = option_u64("mem", 16) << 20;
	struct queue *q = queue_of(BALLOON, REPORTING);

	say("hostile\n");
	for (u32 i = 0; i < 2000; i++) {
		u64 addr = below(end) & ~(below(2) ? 0ul : PAGE - 1ul);
		u32 len = (u32)below(below(2) ? 3 * PAGE : 0x400000);

		/* Not the guest's own first 4 MiB yet: it has more to try. */
		if (addr < DIRTY_BASE)
			addr += DIRTY_BASE;
		switch (below(8)) {
		case 0: /* out of range, in part or as a whole */
			give(REPORTING, below(2) ? end - PAGE : ~0ul - below(9) * PAGE,
				0xffffffff, 2);
			break;
		case 1: /* a ring of another queue, and this one's */
			give(REPORTING, (u64)&queue_of(BALLOON, below(2) ? DEFLATE : REPORTING)->used, PAGE, 2);
			break;
		case 2:
			give(REPORTING, (u64)q->desc, PAGE, 2);
			break;
		case 3: /* page numbers beyond all bounds, and many */
			for (u32 k = 0; k < 64; k++)
				wild[k] = (u32)below(below(4) ? end / PAGE : 1ul << 32) |
					  (u32)(DIRTY_BASE / PAGE);
			give((u32)below(2), (u64)wild, (u32)below(sizeof(wild)) + 1, 0);
			break;
		case 4: /* a chain that is as long as the queue, of the same range */
			for (u32 k = 0; k < SIZE; k++)
				q->desc[k] = (struct desc){DIRTY_BASE, (u32)(end - DIRTY_BASE),
					(u16)(2 | (k + 1 < SIZE)), (u16)(k + 1)};
			q->avail.ring[q->avail.idx % SIZE] = 0;
			barrier();
			q->avail.idx++;
			barrier();
			write32(reg(BALLOON, 0x050), REPORTING);
			break;
		default:
			if (addr < end && len)
				give(REPORTING, addr, len < end - addr ? len : (u32)(end - addr), 2);
		}
		if (read32(reg(BALLOON, 0x070)) & 64 && balloon_start())
			say("the balloon does not come back\n");
	}
	say("everything\n");
	for (;;)
		give(REPORTING, 0, (u32)end, 2);
}

void
mode_balloon(void)
{
	const u64 first = DIRTY_BASE / PAGE, pages = option_u64("pages", 1024),
		  most = option_u64("most", ~0ul);
	int is_full = 1;

	if (balloon_start())
		say("no balloon\n");
	generation_changed();
	fill(first, pages);
	say("full\n");
	for (;;) {
		balloon_look(first + pages / 2, pages / 2, most);
		if (!generation_changed())
			continue;
		if (option_is("hostile", "1"))
			hostile();
		if (is_full)
			report_all(first, pages);
		else
			fill(first, pages);
		if (!is_full)
			say("full\n");
		is_full = !is_full;
	}
}
