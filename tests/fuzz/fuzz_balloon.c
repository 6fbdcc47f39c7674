/*
 * The balloon under a driver that the input conducts. Sane requests are compared with a model of
 * the guest's memory: a page that was reported or put into the balloon is zero or as it was, every
 * other page is as it was. Between them come wild ones: bytes into registers, rings, descriptors and
 * page lists; after those the driver resets the device and takes memory as it is. Always: what the
 * device gives back lies in the guest's memory, whole pages of it.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/log.h"
#include "tests/unit/fake_driver.h"
#include "vmm/balloon.h"

#define PAGE 4096u
#define FIRST 0x800000u /* 8 MiB: the pages that are looked at */
#define PAGES 64u
#define LIST FAKE_HEAP
#define MEM_BYTES ((uint64_t)FAKE_MEM_MIB << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *p;
	size_t left;
};

static struct fake_driver d;
static struct balloon balloon;
static atomic_int stop;
static uint8_t model[PAGES]; /* each byte of the page; 0: zero */
static bool may_be_zero[PAGES];
static uint64_t turn_bytes;

#define MUST(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x); \
			abort(); \
		} \
	} while (0)

static uint64_t
take(struct input *in, unsigned bytes)
{
	uint64_t v = 0;

	if (bytes > in->left)
		bytes = (unsigned)in->left;
	memcpy(&v, in->p, bytes);
	in->p += bytes;
	in->left -= bytes;
	return v;
}

static uint64_t
give(void *ctx, void *host, size_t len, bool any)
{
	const uint64_t off = (uint64_t)((uint8_t *)host - d.mem.host);

	(void)ctx;
	(void)any;
	MUST(off % PAGE == 0 && len % PAGE == 0 && len > 0);
	MUST(off < MEM_BYTES && len <= MEM_BYTES - off);
	turn_bytes += len;
	MUST(madvise(host, len, MADV_DONTNEED) == 0);
	return len;
}

/* Every byte of a page is the same; a wild write may have made it otherwise. */
static void
adopt(void)
{
	atomic_store(&stop, 0);
	for (unsigned i = 0; i < PAGES; i++) {
		model[i] = d.mem.host[FIRST + i * PAGE];
		memset(d.mem.host + FIRST + i * PAGE, model[i], PAGE);
		may_be_zero[i] = false;
	}
	MUST(fake_start(&d, &balloon.dev, UINT64_MAX));
}

static void
check(void)
{
	for (unsigned i = 0; i < PAGES; i++) {
		const uint8_t *p = d.mem.host + FIRST + i * PAGE;

		MUST(memcmp(p, p + 1, PAGE - 1) == 0);
		MUST(p[0] == model[i] || (may_be_zero[i] && p[0] == 0));
		model[i] = p[0];
		may_be_zero[i] = false;
	}
}

static void
sane(struct input *in)
{
	const unsigned first = (unsigned)take(in, 1) % PAGES, n = (unsigned)take(in, 1) % 8 + 1;
	struct fake_buf bufs[8];
	uint32_t pfns[8];

	switch (take(in, 1) % 4) {
	case 0:
		model[first] = (uint8_t)take(in, 1);
		memset(d.mem.host + FIRST + first * PAGE, model[first], PAGE);
		return;
	case 1:
		for (unsigned i = 0; i < n; i++) {
			unsigned page = (first + i * 5) % PAGES, len = (unsigned)take(in, 1) % 3 + 1;

			len = len < PAGES - page ? len : PAGES - page;
			bufs[i] = (struct fake_buf){FIRST + page * PAGE, len * PAGE, true};
			for (unsigned k = page; k < page + len; k++)
				may_be_zero[k] = true;
		}
		fake_add(&d, 3, bufs, n);
		fake_kick(&d, 3);
		MUST(fake_used(&d, 3, NULL, NULL));
		break;
	case 2:
		for (unsigned i = 0; i < n; i++) {
			unsigned page = (unsigned)take(in, 1) % PAGES;

			pfns[i] = FIRST / PAGE + page;
			may_be_zero[page] = true;
		}
		fake_poke(&d, LIST, pfns, n * sizeof(*pfns));
		fake_add(&d, 0, &(struct fake_buf){LIST, n * (uint32_t)sizeof(*pfns), false}, 1);
		fake_kick(&d, 0);
		MUST(fake_used(&d, 0, NULL, NULL));
		break;
	default:
		balloon_set_target(&balloon, take(in, 3));
		fake_write(&d, VIRTIO_MMIO_CONFIG + 4, (uint32_t)take(in, 2));
	}
	check();
}

static void
wild(struct input *in)
{
	unsigned n = (unsigned)take(in, 1) % 16 + 1;
	struct balloon_view view;
	struct virtq_desc desc;
	uint8_t raw[64];
	unsigned len, q;
	uint64_t at;

	while (n-- && in->left) {
		q = (unsigned)take(in, 1) % VIRTIO_QUEUES_MAX;
		switch (take(in, 1) % 8) {
		case 0:
			at = take(in, 2) % (VIRTIO_MMIO_SIZE + 16);
			fake_write(&d, at & ~3ull, (uint32_t)take(in, 4));
			break;
		case 1: /* rings, page lists, statistics */
			len = (unsigned)take(in, 1) % sizeof(raw);
			at = take(in, 1) & 1 ? LIST
					     : FAKE_RINGS + q * 0x10000u +
						       take(in, 2) % (0x10000 - sizeof(raw));
			memset(raw, 0, sizeof(raw));
			memcpy(raw, in->p, len < in->left ? len : in->left);
			take(in, len > 8 ? 8 : len);
			fake_poke(&d, at, raw, len);
			break;
		case 2:
			desc.addr = take(in, 1) & 1 ? FAKE_HEAP + take(in, 3) : take(in, 8);
			desc.len = (uint32_t)take(in, in->left & 1 ? 2 : 4);
			desc.flags = (uint16_t)take(in, 1) & 7;
			desc.next = (uint16_t)take(in, 1);
			fake_set_desc(&d, q, (uint16_t)(take(in, 1) % d.q[q].size), desc);
			break;
		case 3:
			fake_offer(&d, q, (uint16_t)take(in, 1));
			break;
		case 4:
			fake_kick(&d, q);
			break;
		case 5:
			balloon_look(&balloon, &view);
			break;
		case 6:
			atomic_store(&stop, (int)take(in, 1) & 1);
			break;
		case 7:
			turn_bytes = 0;
			(void)virtio_dev_go_on(&balloon.dev);
			/* A turn of each queue, each of which may end with a piece or a list. */
			MUST(turn_bytes <= VIRTIO_QUEUES_MAX *
						   (BALLOON_TURN_BYTES + BALLOON_PIECE_BYTES +
							   BALLOON_PFNS_MAX * PAGE));
			break;
		}
	}
	for (q = 0; q < VIRTIO_QUEUES_MAX; q++)
		fake_kick(&d, q);
	virtio_mmio_read(
		&balloon.dev, take(in, 2) % VIRTIO_MMIO_SIZE, raw, 1 + take(in, 1) % 8);
	adopt();
}

/* What is saved of it, whatever it is, is what is loaded. */
static void
save_and_load(void)
{
	static uint8_t first[4096], second[4096];
	uint8_t *const at[2] = {first, second};
	size_t len[2];

	for (unsigned i = 0; i < 2; i++) {
		struct blob_out out;
		struct blob_in in, section;

		blob_start(&out, at[i], sizeof(first));
		blob_begin(&out, 1);
		balloon_save(&balloon, &out);
		blob_end(&out);
		len[i] = blob_finish(&out);
		MUST(blob_open(at[i], len[i], &in, NULL) == 0);
		MUST(blob_next(&in, 1, "balloon", &section, NULL) == 0);
		MUST(balloon_load(&balloon, &section, NULL) == 0);
	}
	MUST(len[0] == len[1] && memcmp(first, second, len[0]) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct balloon_host host = {.give_back = give};
	struct input in = {data, size};

	if (!d.mem.host) {
		log_init("fuzz", (enum log_level)0);
		fake_driver_init(&d);
	}
	MUST(madvise(d.mem.host, MEM_BYTES, MADV_DONTNEED) == 0);
	balloon_init(&balloon, &d.mem, fake_irq(&d), &host);
	balloon.dev.stop = &stop;
	for (unsigned i = 0; i < PAGES; i++)
		memset(d.mem.host + FIRST + i * PAGE, (int)(i + 1), PAGE);
	d.dev = &balloon.dev;
	adopt();
	while (in.left) {
		unsigned op = (unsigned)take(&in, 1) % 8;

		if (op < 5)
			sane(&in);
		else if (op == 5)
			save_and_load();
		else
			wild(&in);
	}
	return 0;
}
