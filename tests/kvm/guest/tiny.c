/*
 * The small guest of the KVM tests and benchmarks: no operating system, no interrupts (it
 * polls), simple instructions only, so that it also runs where KVM emulates guest code
 * instruction by instruction. Command line, numbers in decimal:
 *
 * mode=hello     says "hello" and stops in HLT.
 * mode=work      counts. At each change of the VM generation id it checks its memory and says
 *                "fork n=… counter=… gap=… memory=ok|BAD cpu1=… history=…" (gap: by its TSC, the
 *                longest time between two looks in the two rounds around the change). With it:
 *   dirty=N      writes N pages before "ready", with noise if noise=1 (not with disk=1); once
 *                more after each fork with redirty=1: again=N of them, every stride=N-th
 *   cpus=2       the second CPU counts, too
 *   disk=1       also checks the disk at each change: "disk=ok|BAD|TIMEOUT|none"; says
 *                "disk sectors=…" and tries the new end when the disk grows
 *   timer=N      "timer <n> late=…" every N million cycles of its LAPIC's TSC deadline timer,
 *                160 times at most
 *   tick=N       "tick <counter>" every N rounds
 *   rest=1       where the last bit of a new id is set, it rings a doorbell instead, and stops
 *                in HLT
 *   button=1     says "power button" and powers off when it is pressed
 *   mess=1       after each change it leaves registers, local APIC, IOAPIC and serial port as
 *                nobody would have them, having said whether the banks of machine checks were
 *                zeroes ("banks=empty|FULL")
 *   stand=1      after the first change it stops in HLT
 *   map=1        says of the pages of an address by which it is reached ("map=first|second"),
 *                and then changes that
 * mode=disk      a virtio-blk driver tries the device: "disk ok" or "disk BAD …".
 * mode=fuzz      seed=N rounds=N: random bytes into every register, ring and descriptor, then
 *                "fuzz done".
 * mode=flood     (two CPUs) says "flooding"; then one rings the disk's doorbell for ever, the
 *                other keeps its ring full.
 * mode=triple    a fault without any handler.
 * mode=off       powers off.
 * mode=reset     asks for a reset.
 * mode=panic     the same, after Linux's last words.
 * mode=reboot    (with a disk) the first time it runs it writes on its disk and asks for a
 *                reset; then it says so and works.
 * mode=flush     for ever: a write, and a flush that it does not wait for but counts meanwhile.
 *                Says "flush <n> begins" and "flush <n> status=0 took=… gap=…" (cycles; gap: the
 *                longest between two looks at the clock), and "flush <n> forked" when a fork
 *                comes between. pages=N are written before each flush.
 * mode=measure   blocks=B rounds=N: each kind of request, N times, on the first B blocks of
 *                4 KiB, beginning with two passes of writes; a line of cycles each: "measured
 *                <kind> …".
 * mode=endless   every=N: at each change of the generation id, the n-th, it checks and writes
 *                memory and writes some of its 256 blocks, zeroes into some; at each N-th it
 *                checks all of them and says "endless n=… memory=ok|BAD disk=ok|BAD|ERROR".
 * mode=scatter   pages=N seed=N: says "scattering", then writes at random places of N pages
 *                from 4 MiB on for ever, and has the disk read into some; reports=1: reports
 *                some of them, too.
 * mode=balloon   see balloon.c.
 * mode=vsock     see vsock.c.
 */
#include "tests/kvm/guest/tiny.h"

#define VIRTIO 0xd0000000ul
#define VIRTIO_STRIDE 0x1000ul
#define GENERATION 0xff000ul
#define COM1 0x3f8
#define GED_EVENTS 0x600
#define SLEEP_CONTROL 0x604
#define RESET 0x606
#define LAPIC 0xfee00000ul
#define IOAPIC 0xfec00000ul
#define FUZZ_BASE \
	0x800000ul /* 8 MiB … 12 MiB: what a fuzzed device may hit without ending the \
		      guest */
#define FUZZ_LEN 0x400000ul

void guest_main(const u8 *zero_page);
void ap_main(void);
extern const u8 trampoline[], trampoline_end[];

void *
memset(void *p, int c, u64 n)
{
	void *d = p;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return p;
}

void *
memcpy(void *d, const void *s, u64 n)
{
	void *to = d;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(s), "+c"(n) : : "memory");
	return d;
}

static void
outb(u16 port, u8 v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory");
}

static u8
inb(u16 port)
{
	u8 v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static u32
inl(u16 port)
{
	u32 v;

	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static u64
rdtsc(void)
{
	u32 low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

void
barrier(void)
{
	__asm__ volatile("" : : : "memory");
}

u32
read32(u64 at)
{
	return *(volatile u32 *)at;
}

void
write32(u64 at, u32 v)
{
	*(volatile u32 *)at = v;
}

void
halt(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

/* ---- saying ---- */

void
say(const char *s)
{
	for (; *s; s++)
		outb(COM1, (u8)*s);
}

void
say_u64(u64 v)
{
	char buf[24];
	u32 n = 0;

	do
		buf[n++] = (char)('0' + v % 10);
	while (v /= 10);
	while (n)
		outb(COM1, (u8)buf[--n]);
}

static void
say_hex(u64 v)
{
	for (int i = 60; i >= 0; i -= 4)
		outb(COM1, (u8) "0123456789abcdef"[v >> i & 15]);
}

/* ---- the command line ---- */

static const char *cmdline;

static const char *
option(const char *key)
{
	for (const char *p = cmdline; *p;) {
		const char *k = key;

		while (*p == ' ')
			p++;
		while (*k && *p == *k) {
			p++;
			k++;
		}
		if (!*k && *p == '=')
			return p + 1;
		while (*p && *p != ' ')
			p++;
	}
	return "";
}

u64
option_u64(const char *key, u64 otherwise)
{
	const char *p = option(key);
	u64 v = 0;

	if (*p < '0' || *p > '9')
		return otherwise;
	for (; *p >= '0' && *p <= '9'; p++)
		v = v * 10 + (u64)(*p - '0');
	return v;
}

int
option_is(const char *key, const char *value)
{
	const char *p = option(key);

	for (; *value; p++, value++)
		if (*p != *value)
			return 0;
	return !*p || *p == ' ';
}

/* ---- chance ---- */

static u64 random_state;

static u64
chance(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state * 0x2545f4914f6cdd1dul >> 8;
}

u64
below(u64 n)
{
	return chance() % n;
}

/* ---- virtio: registers by the offsets of virtio 1.2, 4.2.2 ---- */

struct queue queues[QUEUES_MAX];

u64
reg(u32 dev, u32 offset)
{
	return VIRTIO + dev * VIRTIO_STRIDE + offset;
}

struct queue *
queue_of(u32 dev, u32 i)
{
	return &queues[dev == BALLOON ? 1 + i : i];
}

int
bring_up(u32 dev, u32 n_queues, u32 size, u32 features_low)
{
	write32(reg(dev, 0x070), 0);
	write32(reg(dev, 0x070), 1 | 2);
	write32(reg(dev, 0x024), 0);
	write32(reg(dev, 0x020), features_low);
	write32(reg(dev, 0x024), 1);
	write32(reg(dev, 0x020), 1); /* VERSION_1 */
	write32(reg(dev, 0x070), 1 | 2 | 8);
	if (!(read32(reg(dev, 0x070)) & 8))
		return -1;
	for (u32 i = 0; i < n_queues; i++) {
		struct queue *q = queue_of(dev, i);

		memset(q, 0, sizeof(*q));
		write32(reg(dev, 0x030), i);
		write32(reg(dev, 0x038), size);
		write32(reg(dev, 0x080), (u32)(u64)q->desc);
		write32(reg(dev, 0x084), 0);
		write32(reg(dev, 0x090), (u32)(u64)&q->avail);
		write32(reg(dev, 0x094), 0);
		write32(reg(dev, 0x0a0), (u32)(u64)&q->used);
		write32(reg(dev, 0x0a4), 0);
		write32(reg(dev, 0x044), 1);
	}
	write32(reg(dev, 0x070), 1 | 2 | 8 | 4);
	return 0;
}

#define PATIENCE 300000000000ul /* cycles: a minute or more of a host that is slow */

static volatile u8 blk_status;
static u16 blk_before; /* requests that were answered when this one was made */

/* Makes a block request; blk_answered() says when it is over, blk_status then how: 0 good, 1
 * I/O error, 2 unsupported. */
static void
blk_begin(u32 type, u64 sector, void *data, u32 len)
{
	static struct {
		u32 type, reserved;
		u64 sector;
	} header;
	struct queue *q = &queues[0];
	u32 n = 0;

	blk_before = *(volatile u16 *)&q->used.idx;
	header.type = type;
	header.sector = sector;
	blk_status = 255;
	q->desc[n] = (struct desc){(u64)&header, 16, 1, 1};
	n++;
	if (len) {
		q->desc[n] = (struct desc){
			(u64)data, len, (u16)(1 | (type == 0 || type == 8 ? 2 : 0)), 2};
		n++;
	}
	q->desc[n] = (struct desc){(u64)&blk_status, 1, 2, 0};
	q->avail.ring[q->avail.idx % 8] = 0;
	barrier();
	q->avail.idx++;
	barrier();
	write32(reg(BLK, 0x050), 0);
}

static int
blk_answered(void)
{
	return *(volatile u16 *)&queues[0].used.idx != blk_before;
}

/* One block request and its status; 255: never answered. */
static u32
blk(u32 type, u64 sector, void *data, u32 len)
{
	u64 began = rdtsc();

	blk_begin(type, sector, data, len);
	while (!blk_answered())
		if (rdtsc() - began > PATIENCE)
			return 255;
	return blk_status;
}

static _Alignas(PAGE) u8 block[PAGE], block2[PAGE];

static void
pattern(u8 *p, u64 key)
{
	for (u64 i = 0; i < PAGE / 8; i++)
		((volatile u64 *)p)[i] = key * 0x9e3779b97f4a7c15ul + i;
}

static int
has_pattern(const u8 *p, u64 key)
{
	for (u64 i = 0; i < PAGE / 8; i++)
		if (((const volatile u64 *)p)[i] != key * 0x9e3779b97f4a7c15ul + i)
			return 0;
	return 1;
}

static void
disk_failed(const char *what, u64 number)
{
	say("disk BAD: ");
	say(what);
	say(" ");
	say_u64(number);
	say("\n");
	halt();
}

static void
mode_disk(void)
{
	u64 sectors;
	u32 r;

	if (read32(reg(BLK, 0)) != 0x74726976 || read32(reg(BLK, 4)) != 2 ||
		read32(reg(BLK, 8)) != 2)
		disk_failed("no virtio-blk device", read32(reg(BLK, 8)));
	if (bring_up(BLK, 1, 8, 1u << 9 | 1u << 13 | 1u << 14))
		disk_failed("features refused", 0);
	sectors = read32(reg(BLK, 0x100)) | (u64)read32(reg(BLK, 0x104)) << 32;
	/* what nobody wrote is zero */
	memset(block, 0xaa, PAGE);
	r = blk(0, 8, block, PAGE);
	for (u32 i = 0; r == 0 && i < PAGE; i++)
		if (block[i])
			disk_failed("a block nobody wrote is not zero, byte", i);
	for (u64 n = 0; r == 0 && n < 16; n++) {
		pattern(block, n + 1);
		r = blk(1, n * 8 * 7, block, PAGE);
	}
	if (r == 0)
		r = blk(4, 0, 0, 0); /* flush */
	for (u64 n = 0; r == 0 && n < 16; n++) {
		memset(block, 0, PAGE);
		r = blk(0, n * 8 * 7, block, PAGE);
		if (r == 0 && !has_pattern(block, n + 1))
			disk_failed("a block reads back differently", n);
	}
	if (r)
		disk_failed("a plain request answers", r);
	/* one sector in the middle of a block */
	memset(block2, 0x5a, 512);
	r = blk(1, 3, block2, 512);
	if (r == 0)
		r = blk(0, 0, block, PAGE);
	if (r || block[3 * 512] != 0x5a || block[4 * 512 - 1] != 0x5a ||
		*(u64 *)block != 0x9e3779b97f4a7c15ul ||
		*(u64 *)(block + 2048) != 0x9e3779b97f4a7c15ul + 256)
		disk_failed("a partial block, answer", r);
	/* discard and write-zeroes */
	for (u32 type = 11; type <= 13; type += 2) {
		struct {
			u64 sector;
			u32 sectors, flags;
		} range = {7 * 8 * (type - 10), 8, 0};

		r = blk(type, 0, &range, 16);
		if (r == 0)
			r = blk(0, range.sector, block, PAGE);
		if (r)
			disk_failed("zeroing request of type", type);
		for (u32 i = 0; i < PAGE; i++)
			if (block[i])
				disk_failed("a zeroed block is not zero, type", type);
	}
	/* the last block is there, the one behind it is not */
	r = blk(0, sectors - 8, block, PAGE);
	if (r)
		disk_failed("the last block answers", r);
	r = blk(0, sectors, block, PAGE);
	if (r != 1)
		disk_failed("a read past the end answers", r);
	r = blk(1, sectors - 4, block, PAGE);
	if (r != 1)
		disk_failed("a write across the end answers", r);
	r = blk(99, 0, block, 512);
	if (r != 2)
		disk_failed("an unknown request answers", r);
	say("disk ok\n");
	halt();
}

/* ---- work ---- */

#define HISTORY_MAX 64
#define LEDGER_PAGES 16

#define FLOOD 128 /* requests: the whole ring */

static u64 history[HISTORY_MAX]; /* first halves of the generation ids that were seen, in
				    order */
static u32 n_history;
static u64 generation[2];
static volatile u64 counter, ap_counter;
static volatile u32 ap_up, ap_floods;
static _Alignas(PAGE) u8
	ledger[LEDGER_PAGES][PAGE]; /* filled with a pattern of the newest generation */

int
generation_changed(void)
{
	u64 a, b;

	/* A fork may come between two looks: half an old one and half a new one is
	 * none. */
	do {
		a = *(volatile u64 *)GENERATION;
		b = *(volatile u64 *)(GENERATION + 8);
	} while (a != *(volatile u64 *)GENERATION);
	if (a == generation[0] && b == generation[1])
		return 0;
	generation[0] = a;
	generation[1] = b;
	return 1;
}

static const char *
disk_round(void)
{
	u32 r;

	/* Block i holds what was written in generation i of this machine's own history,
	 * no other's. */
	for (u32 i = 0; i + 1 < n_history; i++) {
		r = blk(0, i * 8, block, PAGE);
		if (r)
			return r == 255 ? "TIMEOUT" : "ERROR";
		if (!has_pattern(block, history[i]))
			return "BAD";
	}
	pattern(block, history[n_history - 1]);
	r = blk(1, (n_history - 1) * 8, block, PAGE);
	if (r == 0)
		r = blk(4, 0, 0, 0);
	if (r)
		return r == 255 ? "TIMEOUT" : "ERROR";
	memset(block2, 0, PAGE);
	r = blk(0, (n_history - 1) * 8, block2, PAGE);
	if (r)
		return r == 255 ? "TIMEOUT" : "ERROR";
	return has_pattern(block2, history[n_history - 1]) ? "ok" : "BAD";
}

static int
ledger_is_ours(void)
{
	for (u32 i = 0; i < LEDGER_PAGES; i++)
		if (!has_pattern(ledger[i], history[n_history - 1] + i))
			return 0;
	return 1;
}

static void
ledger_write(void)
{
	for (u32 i = 0; i < LEDGER_PAGES; i++)
		pattern(ledger[i], history[n_history - 1] + i);
}

/* Fills n pages with noise, by the random number generator; its queue is the disk's. Every
 * stride-th of `of`, which is prime to it: each another one, up to `of`. */
static void
make_noise(u64 n, u64 stride, u64 of)
{
	struct queue *q = &queues[0];

	for (u64 i = 0; i < n; i++) {
		u16 before = *(volatile u16 *)&q->used.idx;

		q->desc[0] = (struct desc){DIRTY_BASE + i * stride % of * PAGE, PAGE, 2, 0};
		q->avail.ring[q->avail.idx % 8] = 0;
		barrier();
		q->avail.idx++;
		barrier();
		write32(reg(RNG, 0x050), 0);
		while (*(volatile u16 *)&q->used.idx == before)
			barrier();
	}
}

/* Every stride-th of `of`, likewise. */
static void
dirty(u64 pages, u64 value, u64 stride, u64 of)
{
	for (u64 i = 0; i < pages; i++)
		*(volatile u64 *)(DIRTY_BASE + i * stride % of * PAGE) = value;
}

static void
start_second_cpu(void)
{
	memcpy((void *)0x8000, trampoline, (u64)(trampoline_end - trampoline));
	write32(LAPIC + 0x0f0, read32(LAPIC + 0x0f0) | 0x100); /* software enable */
	write32(LAPIC + 0x310, 1u << 24);
	write32(LAPIC + 0x300, 0x4500); /* INIT */
	write32(LAPIC + 0x310, 1u << 24);
	write32(LAPIC + 0x300, 0x4608); /* start-up, page 8 */
	for (u64 patience = 0; patience < 20000000 && !ap_up; patience++)
		barrier();
	say(ap_up ? "cpu1 up\n" : "cpu1 DOWN\n");
}

void
ap_main(void)
{
	ap_up = 1;
	while (!ap_floods)
		ap_counter++;
	for (;;) {
		queues[0].avail.idx = (u16)(*(volatile u16 *)&queues[0].used.idx + FLOOD);
		barrier();
	}
}

/* Interrupts stay off: a timer's shows as a bit in the LAPIC's request register. Each
 * time another vector, since none is ever taken. */
static u64 timer_cycles, timer_deadline;
static u32 timer_n;

static void
timer_arm(void)
{
	u32 vector = 0x40 + timer_n;

	write32(LAPIC + 0x0f0, read32(LAPIC + 0x0f0) | 0x100); /* software enable */
	write32(LAPIC + 0x320, 2u << 17 | vector);	       /* TSC deadline mode */
	timer_deadline = rdtsc() + timer_cycles;
	__asm__ volatile(
		"wrmsr"
		:
		: "c"(0x6e0), "a"((u32)timer_deadline), "d"((u32)(timer_deadline >> 32))
		: "memory");
}

static void
timer_look(void)
{
	u32 vector = 0x40 + timer_n;

	if (timer_n >= 160 ||
		!(read32(LAPIC + 0x200 + vector / 32 * 16) >> vector % 32 & 1))
		return;
	say("timer ");
	say_u64(timer_n++);
	say(" late=");
	say_u64((rdtsc() - timer_deadline) / 1000000);
	say("\n");
	timer_arm();
}

static u64 disk_sectors;

static u64
disk_size(void)
{
	u64 sectors;
	u32 before;

	do {
		before = read32(reg(BLK, 0x0fc));
		sectors = read32(reg(BLK, 0x100)) | (u64)read32(reg(BLK, 0x104)) << 32;
	} while (read32(reg(BLK, 0x0fc)) != before);
	return sectors;
}

/* The new end can be written and read, what lies behind it cannot. */
static void
disk_look(void)
{
	u64 sectors = disk_size();
	u32 r;

	if (sectors == disk_sectors)
		return;
	say("disk sectors=");
	say_u64(sectors);
	say(" interrupt=");
	say_u64(read32(reg(BLK, 0x060)));
	write32(reg(BLK, 0x064), 3);
	pattern(block, sectors);
	r = blk(1, sectors - 8, block, PAGE);
	memset(block, 0, PAGE);
	if (r == 0)
		r = blk(0, sectors - 8, block, PAGE);
	say(r == 0 && has_pattern(block, sectors) && blk(0, sectors, block, PAGE) == 1
			? " end=ok"
			: " end=BAD");
	say("\n");
	disk_sectors = sectors;
}

static void mode_work(void);

/* Its mark lies beyond the blocks that mode_work() writes. */
static void
mode_reboot(void)
{
	const u64 mark = 1024;

	if (bring_up(BLK, 1, 8, 1u << 9) || blk(0, mark, block, PAGE))
		say("disk BAD\n");
	if (has_pattern(block, mark)) {
		say("rebooted, and the disk is as it was\n");
		mode_work();
	}
	pattern(block, mark);
	say(blk(1, mark, block, PAGE) == 0 ? "rebooting\n" : "disk BAD\n");
	outb(RESET, 0x42);
}

/* Reads so large that the other CPU always comes back in time. */
static void
mode_flood(void)
{
	static u32 header[4]; /* a read of sector 0 */
	struct queue *q = &queues[0];

	start_second_cpu();
	if (bring_up(BLK, 1, FLOOD, 1u << 9))
		say("disk features refused\n");
	q->desc[0] = (struct desc){(u64)header, 16, 1, 1};
	q->desc[1] = (struct desc){FUZZ_BASE, FUZZ_LEN, 1 | 2, 2};
	q->desc[2] = (struct desc){FUZZ_BASE - 1, 1, 2, 0};
	say("flooding\n");
	ap_floods = 1;
	for (;;)
		write32(reg(BLK, 0x050), 0);
}

/* ---- what a reset must undo ---- */

#define MAPPED 0x8000000000ul /* of the second entry of the highest table */

static _Alignas(PAGE) u64 tables[3][512];
static _Alignas(PAGE) u8 mapped[2][PAGE];

static void
map_to(u32 which)
{
	tables[2][0] = (u64)mapped[which] | 3;
	__asm__ volatile("invlpg (%0)" : : "r"(MAPPED) : "memory");
}

static void
map_begin(void)
{
	u64 top;

	__asm__ volatile("mov %%cr3, %0" : "=r"(top));
	mapped[0][0] = 1;
	mapped[1][0] = 2;
	tables[0][0] = (u64)tables[1] | 3;
	tables[1][0] = (u64)tables[2] | 3;
	((volatile u64 *)(top & ~0xffful))[1] = (u64)tables[0] | 3;
	map_to(0);
	(void)*(volatile u8 *)MAPPED;
}

static void
map_round(void)
{
	say(" map=");
	say(*(volatile u8 *)MAPPED == 1 ? "first" : "second");
	map_to(*(volatile u8 *)MAPPED == 1);
	/* All is looked up anew, so that shadows of it are made, and made right. */
	__asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
	(void)*(volatile u8 *)MAPPED;
}

static void
write_msr(u32 index, u64 v)
{
	__asm__ volatile("wrmsr" : : "c"(index), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}

static u64
read_msr(u32 index)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
	return (u64)high << 32 | low;
}

/* Address and what else of each of KVM's banks of machine checks. */
#define BANKS 0x400u
#define N_BANKS 32u

static void
say_banks(void)
{
	int empty = 1;

	for (u32 i = 0; i < 4 * N_BANKS; i++)
		empty &= read_msr(BANKS + i) == 0;
	say(empty ? " banks=empty" : " banks=FULL");
}

static void
make_mess(void)
{
	static const u32 msrs[] = {0xc0000102, 0xc0000082, 0xc0000083, 0xc0000084, 0x174, 0x175,
		0x176};

	for (u32 i = 0; i < sizeof(msrs) / sizeof(*msrs); i++)
		write_msr(msrs[i], 0x1230 + i);
	__asm__ volatile("mov %0, %%dr0" : : "r"(0xdead000ul));
	__asm__ volatile("mov %0, %%dr3" : : "r"(0xbeef000ul));
	for (u32 i = 0; i < 4 * N_BANKS; i += 4) {
		write_msr(BANKS + i, ~0ul);
		write_msr(BANKS + i + 2, 0x5ec000 + i);
		write_msr(BANKS + i + 3, 0x5ec000 + i);
	}
	write32(LAPIC + 0x0f0, read32(LAPIC + 0x0f0) | 0x100);
	write32(LAPIC + 0x080, 0x20);		 /* task priority */
	write32(LAPIC + 0x300, 0x44000 | 0x93); /* to itself, and never taken */
	write32(LAPIC + 0x350, 0x10000 | 0x71);
	write32(IOAPIC, 0x10 + 2 * 7);
	write32(IOAPIC + 0x10, 0x8000 | 0x77); /* pin 7: a level, not masked */
	outb(COM1 + 7, 0x5a);
	outb(COM1 + 1, 0x0f);
}

#define LOOKS 8 /* in a row; what happens every N rounds has an N of these */

static void
mode_work(void)
{
	u64 dirty_pages = option_u64("dirty", 0),
	    again = option_u64("again", dirty_pages), tick = option_u64("tick", 0),
	    stride = option_u64("stride", 1), ap_before = 0;
	int disk = option_is("disk", "1"), cpus = option_is("cpus", "2"),
	    redirty = option_is("redirty", "1"), rest = option_is("rest", "1"),
	    noise = option_is("noise", "1"), button = option_is("button", "1");
	int mess = option_is("mess", "1"), map = option_is("map", "1"),
	    stand = option_is("stand", "1");
	u64 last, gap = 0;

	if (map)
		map_begin();
	if (cpus)
		start_second_cpu();
	if (disk && bring_up(BLK, 1, 8, 1u << 9))
		say("disk features refused\n");
	generation_changed();
	history[n_history++] = generation[0];
	ledger_write();
	if (noise && bring_up(RNG, 1, 8, 0))
		say("random number generator refused\n");
	if (noise)
		make_noise(dirty_pages, 1, dirty_pages);
	else
		dirty(dirty_pages, 1, 1, dirty_pages);
	timer_cycles = option_u64("timer", 0) * 1000000;
	if (disk) {
		say("disk ");
		say(disk_round());
		say("\n");
	}
	if (disk)
		disk_sectors = disk_size();
	if (timer_cycles)
		timer_arm();
	say("ready\n");
	last = rdtsc();
	for (;;) {
		u64 now, longest = 0;

		/* Short looks, so that what a look takes is little beside a pause. Each
		 * counts as a round. */
		for (u32 i = 0; i < LOOKS && *(volatile u64 *)GENERATION == generation[0];
			i++) {
			now = rdtsc();
			if (now - last > longest)
				longest = now - last;
			last = now;
		}
		counter += LOOKS;
		/* Each look is an exit: not in every round. */
		if (button && counter % 256 == 0 && (inl(GED_EVENTS) & 2)) {
			say("power button\n");
			outb(SLEEP_CONTROL, 5 << 2 | 0x20);
		}
		if (generation_changed()) {
			int good;

			/* The VM stood still in this round or in the one before. */
			now = rdtsc();
			if (now - last > longest)
				longest = now - last;
			if (gap < longest)
				gap = longest;
			/* The first thing a watcher sees. */
			write32(reg(RNG, 0x050), 0);
			if (rest && generation[1] >> 63)
				halt();
			outb(COM1, '!');
			good = ledger_is_ours();
			if (n_history < HISTORY_MAX)
				history[n_history++] = generation[0];
			ledger_write();
			if (redirty && noise)
				make_noise(again, stride, dirty_pages);
			else if (redirty)
				dirty(again, n_history, stride, dirty_pages);
			say("fork n=");
			say_u64(n_history);
			say(" counter=");
			say_u64(counter);
			say(" gap=");
			say_u64(gap);
			say(" tsc=");
			say_u64(now);
			say(" memory=");
			say(good ? "ok" : "BAD");
			if (cpus) {
				u64 c = ap_counter;

				/* The other CPU must count on: give it time to. */
				for (u64 i = 0; i < 2000000 && ap_counter == c; i++)
					barrier();
				say(" cpu1=");
				say(ap_counter != c && c >= ap_before ? "counts"
								      : "STOPPED");
				ap_before = c;
			}
			if (map)
				map_round();
			if (mess) {
				say_banks();
				make_mess();
			}
			say(" disk=");
			say(disk ? disk_round() : "none");
			say(" history=");
			for (u32 i = 0; i < n_history; i++) {
				if (i)
					say(",");
				say_hex(history[i]);
			}
			say("\n");
			if (stand)
				halt();
			last = rdtsc();
		}
		gap = longest;
		if (timer_cycles && counter % 64 == 0)
			timer_look();
		if (disk && counter % 2048 == 0)
			disk_look();
		if (tick && counter % tick == 0) {
			say("tick ");
			say_u64(counter);
			say("\n");
			last = rdtsc();
		}
	}
}

/* ---- fuzz ---- */

static u64
odd_address(void)
{
	switch (below(8)) {
	case 0:
		return 0;
	case 1:
		return VIRTIO + below(0x4000);
	case 2:
		return ~0ul - below(0x10000);
	case 3:
		return (16ul << 20) - below(0x2000); /* the end of a 16 MiB guest */
	case 4:
		return chance() << 20;
	default:
		return FUZZ_BASE + below(FUZZ_LEN - 0x40000);
	}
}

static u32
odd_length(void)
{
	static const u32 lengths[] = {0, 1, 15, 16, 17, 44, 512, 513, 4096, 65536,
		0x20000, 0x7fffffff, 0xffffffff};

	return below(3) ? lengths[below(13)] : (u32)chance();
}

static u32
odd_value(void)
{
	switch (below(6)) {
	case 0:
		return 0;
	case 1:
		return (u32)below(16);
	case 2:
		return 1u << below(32);
	case 3:
		return (u32)(FUZZ_BASE + (below(FUZZ_LEN) & ~0xffful));
	case 4:
		return 0xffffffff;
	default:
		return (u32)chance();
	}
}

static void
fuzz_register(void)
{
	static const u16 known[] = {0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50,
		0x60, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xb0, 0xfc, 0x100,
		0x104, 0x120};
	u64 at = reg((u32)below(4), below(4) ? known[below(23)] : (u32)below(0x1000));

	switch (below(8)) {
	case 0:
		*(volatile u8 *)at = (u8)chance();
		break;
	case 1:
		*(volatile u16 *)at = (u16)chance();
		break;
	case 2:
		*(volatile u64 *)(at & ~7ul) = chance();
		break;
	case 3:
		(void)*(volatile u8 *)at;
		break;
	case 4:
		(void)*(volatile u64 *)(at & ~7ul);
		break;
	case 5:
		(void)read32(at & ~3ul);
		break;
	default:
		write32(at & ~3ul, odd_value());
		break;
	}
}

static void
fuzz_queue(void)
{
	static const u8 n_queues[3] = {1, 3, 1};
	u32 dev = (u32)below(3), size = 1u << below(9), which = (u32)below(n_queues[dev]);
	struct queue *q = queue_of(dev, which);

	if (below(4) == 0 && bring_up(dev, n_queues[dev], size,
				     (u32)(chance() & (1u << 28 | 1u << 29))))
		return;
	for (u32 n = 0, i; n < 24; n++) {
		i = (u32)below(n < 12 ? 16 : 256);
		q->desc[i] = (struct desc){odd_address(), odd_length(),
			(u16)below(below(8) ? 8 : 65536),
			(u16)below(below(8) ? size : 65536)};
		q->avail.ring[i] = (u16)below(below(16) ? size : 65536);
	}
	/* Often something that begins as a request should, so that what comes after it is
	 * reached. */
	if (below(2)) {
		u32 *header = (u32 *)FUZZ_BASE;

		header[0] = (u32)below(15);
		header[2] = odd_value();
		header[3] = below(4) ? 0 : odd_value();
		q->desc[0] = (struct desc){FUZZ_BASE, dev == 1 ? 44 : 16, 1, 1};
		q->desc[1] = (struct desc){FUZZ_BASE + 0x1000, odd_length() & 0x3ffff,
			(u16)(1 | below(2) * 2), 2};
		q->desc[2] = (struct desc){FUZZ_BASE + 0x50000, 1, 2, 0};
		for (u32 i = 0; i < 8; i++)
			q->avail.ring[i] = 0;
	}
	if (dev == 1) { /* a packet header with fields that nearly fit */
		u64 *p = (u64 *)FUZZ_BASE;

		p[0] = below(4) ? 3 : chance();
		p[1] = below(4) ? 2 : chance();
		p[2] = below(2) ? (u64)1024 << 32 | 1024 : chance();
		p[3] = odd_length() | (u64)(below(4) ? 1 : chance() & 0xffff) << 32 |
		       (u64)below(9) << 48;
		p[4] = chance();
		((u32 *)p)[10] = odd_value();
	}
	q->avail.flags = (u16)below(4);
	q->avail.event = (u16)chance();
	barrier();
	q->avail.idx += (u16)(below(8) ? 1 + below(4) : chance());
	barrier();
	write32(reg(dev, 0x050), below(8) ? which : odd_value());
}

static void
fuzz_ports(void)
{
	/* Not sleep control and reset: they would end it with good reason. */
	u16 port = (u16)(below(2) ? COM1 + below(8) : 0x600 + below(4));

	switch (below(4)) {
	case 0:
		inb(port);
		break;
	case 1:
		inl((u16)(below(2) ? 0x600 : chance()));
		break;
	case 2:
		if (port != COM1) /* what we say must stay readable */
			outb(port, (u8)chance());
		break;
	default:
		inb((u16)chance());
	}
}

static void
fuzz_ioapic(void)
{
	/* Vectors and masks, no INIT or SMI: delivery mode fixed. */
	write32(IOAPIC, (u32)below(80));
	write32(IOAPIC + 0x10, (u32)chance() & ~0x700u);
	(void)read32(IOAPIC + 0x10 + (u32)below(4) * 4);
}

static void
mode_fuzz(void)
{
	u64 rounds = option_u64("rounds", 2000);

	random_state = option_u64("seed", 1) * 0x9e3779b97f4a7c15ul | 1;
	memset((void *)FUZZ_BASE, 0, 0x60000);
	say("fuzz begins\n");
	for (u64 i = 0; i < rounds; i++) {
		switch (below(8)) {
		case 0:
			fuzz_ports();
			break;
		case 1:
			fuzz_ioapic();
			break;
		case 2:
		case 3:
		case 4:
			fuzz_register();
			break;
		default:
			fuzz_queue();
		}
		if (i % 100 == 0)
			outb(COM1 + 3,
				3); /* no divisor latch, else our words go nowhere */
	}
	outb(COM1 + 3, 3);
	outb(COM1 + 4, 0); /* no loop-back */
	say("\nfuzz done\n");
	halt();
}

/* Never at rest: writes at random places of its memory, and has the disk write some, too. */
static void
mode_scatter(void)
{
	u64 pages = option_u64("pages", 2048), bad = 0;
	int reports = option_is("reports", "1");
	u32 r;

	random_state = option_u64("seed", 1) * 2654435761u + 88172645463325252ul;
	if (reports && balloon_start())
		say("scatter: no balloon\n");
	if (bring_up(BLK, 1, 8, 1u << 9 | 1u << 13 | 1u << 14)) {
		say("scatter: no disk\n");
		return;
	}
	pattern(block, 7);
	r = blk(1, 0, block, PAGE);
	say("scattering\n");
	for (u64 n = 1; r == 0; n++) {
		u64 page = DIRTY_BASE + below(pages) * PAGE;

		*(volatile u64 *)(page + below(PAGE / 8) * 8) = chance();
		if (n % 64 == 0)
			r = blk(0, 0, (void *)(DIRTY_BASE + below(pages) * PAGE), PAGE);
		if (n % 1024 == 0)
			r = blk(1, below(64) * 8, (void *)page, PAGE);
		if (reports && n % 128 == 0) {
			u64 first = below(pages), len = 1 + below(48);

			balloon_report(DIRTY_BASE / PAGE + first,
				len < pages - first ? len : pages - first, 5, &bad);
			if (bad)
				break;
		}
	}
	say(bad ? "scatter: what was reported is BAD\n" : "scatter: the disk fails\n");
}

/* A flush that lasts is no reason for a clock to stand still. */
static void
mode_flush(void)
{
	u64 pages = option_u64("pages", 1), pause = option_u64("pause", 20) * 1000000, now, last;

	if (bring_up(BLK, 1, 8, 1u << 9)) {
		say("flush: no disk\n");
		return;
	}
	generation_changed();
	for (u64 n = 0;; n++) {
		u64 began, gap = 0;

		for (u64 i = 0; i < pages; i++) {
			pattern(block, n);
			if (blk(1, (n % 16 * pages + i) * 8, block, PAGE))
				say("flush: a write failed\n");
		}
		say("flush ");
		say_u64(n);
		say(" begins\n");
		last = began = rdtsc();
		blk_begin(4, 0, 0, 0);
		while (!blk_answered()) {
			if (generation_changed()) {
				say("flush ");
				say_u64(n);
				say(" forked\n");
				last = rdtsc();
			}
			now = rdtsc();
			if (now - last > gap)
				gap = now - last;
			last = now;
		}
		now = rdtsc();
		if (now - last > gap)
			gap = now - last;
		say("flush ");
		say_u64(n);
		say(" status=");
		say_u64(blk_status);
		say(" took=");
		say_u64(now - began);
		say(" gap=");
		say_u64(gap);
		say("\n");
		for (last = now; now - last < pause;)
			now = rdtsc();
	}
}

static void
measure(const char *kind, u64 rounds, u64 blocks)
{
	u8 *data = (u8 *)DIRTY_BASE;
	u64 at = 0, began;
	u32 len, r;

	say("measured ");
	say(kind);
	for (u64 i = 0; i < rounds; i++) {
		len = kind[0] == 's' ? 128 << 10 : PAGE; /* sequential */
		at = kind[0] == 's' ? (at + len / PAGE) % blocks : below(blocks);
		if (at + len / PAGE > blocks)
			at = 0;
		pattern(data, i);
		if (kind[0] == 'f' && blk(1, at * 8, data, len)) /* fsync */
			say(" FAILED");
		began = rdtsc();
		if (kind[0] == 'f' || kind[0] == 'n')
			r = blk(4, 0, 0, 0);
		else
			r = blk(kind[0] == 'w' || kind[1] == 'w', at * 8, data, len);
		say(" ");
		say_u64(rdtsc() - began);
		if (r)
			say(" FAILED");
	}
	say("\n");
}

static void
mode_measure(void)
{
	u64 rounds = option_u64("rounds", 200), blocks = option_u64("blocks", 4096);
	u8 *data = (u8 *)DIRTY_BASE;

	random_state = 88172645463325252ul;
	if (bring_up(BLK, 1, 8, 1u << 9)) {
		say("measure: no disk\n");
		return;
	}
	for (u64 i = 0; i < 2 * blocks; i += 32) {
		pattern(data, i);
		if (blk(1, i % blocks * 8, data, 128 << 10))
			say("measure: FAILED\n");
	}
	measure("read", rounds, blocks);
	measure("write", rounds, blocks);
	measure("sread", rounds, blocks);
	measure("swrite", rounds, blocks);
	measure("fsync", rounds, blocks);
	measure("nothing", rounds, blocks);
	say("measured all\n");
}

#define ENDLESS_BLOCKS 256u
#define ENDLESS_AT(i) ((i) * 37ul % 2048 * 8) /* sector: no two neighbours */
#define ENDLESS_ZERO 0x80000000u

static u32 written[ENDLESS_BLOCKS]; /* in which n, and ENDLESS_ZERO; 0: never */

static const char *
endless_check(void)
{
	for (u32 i = 0; i < ENDLESS_BLOCKS; i++) {
		if (!written[i])
			continue;
		if (blk(0, ENDLESS_AT(i), block, PAGE))
			return "ERROR";
		if (written[i] & ENDLESS_ZERO) {
			for (u64 k = 0; k < PAGE / 8; k++)
				if (((const volatile u64 *)block)[k])
					return "BAD";
		} else if (!has_pattern(block, (u64)written[i] << 8 | i)) {
			return "BAD";
		}
	}
	return "ok";
}

static u32
endless_write(u32 n)
{
	static u32 random = 1;
	static struct {
		u64 sector;
		u32 sectors, flags;
	} range;
	u32 r = 0;

	for (u32 k = 0; k < 3; k++) {
		u32 i = (random = random * 1664525u + 1013904223u) >> 24;

		if (k == 2) {
			range.sector = ENDLESS_AT(i);
			range.sectors = 8;
			r |= blk(13, 0, &range, sizeof(range));
			written[i] = n | ENDLESS_ZERO;
		} else {
			pattern(block, (u64)n << 8 | i);
			r |= blk(1, ENDLESS_AT(i), block, PAGE);
			written[i] = n;
		}
	}
	if (n % 8 == 0)
		r |= blk(4, 0, 0, 0);
	return r;
}

static void
mode_endless(void)
{
	const u64 every = option_u64("every", 100);
	int good = 1;
	u32 n = 0, failed = 0;

	if (bring_up(BLK, 1, 8, 1u << 9 | 1u << 14))
		say("disk features refused\n");
	generation_changed();
	for (u32 i = 0; i < LEDGER_PAGES; i++)
		pattern(ledger[i], i);
	say("ready\n");
	for (;;) {
		if (!generation_changed())
			continue;
		for (u32 i = n % 4; i < LEDGER_PAGES; i += 4) {
			u32 was = n < 4 ? 0 : n;

			good &= has_pattern(ledger[i], (u64)was << 8 | i);
			pattern(ledger[i], (u64)(n + 4) << 8 | i);
		}
		failed |= endless_write(++n);
		if (n % every)
			continue;
		say("endless n=");
		say_u64(n);
		say(" memory=");
		say(good ? "ok" : "BAD");
		say(" disk=");
		say(failed ? "ERROR" : endless_check());
		say("\n");
	}
}

void
guest_main(const u8 *zero_page)
{
	cmdline = (const char *)(u64) * (const u32 *)(zero_page + 0x228);
	if (option_is("mode", "work")) {
		mode_work();
	} else if (option_is("mode", "disk")) {
		mode_disk();
	} else if (option_is("mode", "fuzz")) {
		mode_fuzz();
	} else if (option_is("mode", "flood")) {
		mode_flood();
	} else if (option_is("mode", "scatter")) {
		mode_scatter();
	} else if (option_is("mode", "flush")) {
		mode_flush();
	} else if (option_is("mode", "measure")) {
		mode_measure();
	} else if (option_is("mode", "balloon")) {
		mode_balloon();
	} else if (option_is("mode", "vsock")) {
		mode_vsock();
	} else if (option_is("mode", "triple")) {
		say("falling\n");
		__asm__ volatile("lidt (%0); ud2" : : "r"("\0\0\0\0\0\0\0\0\0\0"));
	} else if (option_is("mode", "off")) {
		say("powering off\n");
		outb(SLEEP_CONTROL, 5 << 2 | 0x20);
	} else if (option_is("mode", "panic")) {
		say("[    1.250000] Kernel panic - not syncing: Attempted to kill init!\n");
		outb(RESET, 0x42);
	} else if (option_is("mode", "endless")) {
		mode_endless();
	} else if (option_is("mode", "reboot")) {
		mode_reboot();
	} else if (option_is("mode", "reset")) {
		say("resetting\n");
		outb(RESET, 0x42);
	} else {
		say("hello from the small guest: ");
		say(cmdline);
		say("\n");
	}
	halt();
}
