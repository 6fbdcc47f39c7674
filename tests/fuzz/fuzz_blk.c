/*
 * The disk under a driver that the input conducts. Sane requests are compared with a
 * shadow model: what was written is what is read, by the guest and from the files at
 * rest, also of every state that was cut on the way. Between them come wild ones: bytes
 * into registers, rings, descriptors; after those the driver resets the device and takes
 * the disk as it is. An input of odd length has flushes wait for rounds, as with a thread.
 */
#include <stdint.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/log.h"
#include "tests/unit/fake_driver.h"
#include "vmm/blk.h"
#include "vmm/blk_flush.h"

#define DISK_MIB 1u
#define DISK_BYTES (DISK_MIB << 20)
#define SECTORS (DISK_BYTES / BLK_SECTOR)
#define BASE_BYTES (300u * 1024 + 512)
#define CUTS_MAX 6
#define HDR FAKE_HEAP
#define STATUS (FAKE_HEAP + 0x100)
#define RANGE (FAKE_HEAP + 0x200)
#define DATA (FAKE_HEAP + 0x10000)
#define REQUEST_BYTES 65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *p;
	size_t left;
};

static struct fake_driver d;
static struct blk blk;
static bool rounds; /* flushes wait for them */
static int base_fd = -1;
static uint8_t model[DISK_BYTES];
static struct {
	int data_fd, index_fd;
	int64_t records;
	uint8_t *frozen_fork; /* of the disk at the cut that ended this segment */
} cuts[CUTS_MAX + 1];
static unsigned n_cuts;

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

static void
fill(uint8_t *p, size_t len, uint32_t seed)
{
	size_t i;

	for (i = 0; i < len; i++) {
		seed = seed * 1664525 + 1013904223;
		p[i] = (uint8_t)(seed >> 24);
	}
}

static bool
wakes(void *ctx)
{
	(void)ctx;
	return rounds;
}

/* A sane request in two data pieces; its status. */
static uint8_t
request(uint32_t type, uint64_t sector, uint32_t len, uint32_t split)
{
	struct virtio_blk_req req = {.type = type, .sector = sector};
	const bool in = type == VIRTIO_BLK_T_IN;
	struct fake_buf bufs[4] = {{HDR, sizeof(req), false}};
	uint8_t status = 0xee;
	unsigned n = 1;

	fake_poke(&d, HDR, &req, sizeof(req));
	fake_poke(&d, STATUS, &status, 1);
	split = len ? split % len : 0;
	if (split)
		bufs[n++] = (struct fake_buf){DATA, split, in};
	if (len - split)
		bufs[n++] = (struct fake_buf){DATA + split, len - split, in};
	bufs[n++] = (struct fake_buf){STATUS, 1, true};
	fake_add(&d, 0, bufs, n);
	fake_kick(&d, 0);
	while (rounds && blk_round(&blk))
		;
	MUST(fake_used(&d, 0, NULL, NULL));
	fake_peek(&d, STATUS, &status, 1);
	return status;
}

static void
read_back(uint64_t sector, uint32_t len, uint8_t *buf)
{
	MUST(request(VIRTIO_BLK_T_IN, sector, len, 0) == VIRTIO_BLK_S_OK);
	fake_peek(&d, DATA, buf, len);
}

static void
check_disk(void)
{
	static uint8_t got[REQUEST_BYTES];
	uint64_t sector;

	for (sector = 0; sector < SECTORS; sector += REQUEST_BYTES / BLK_SECTOR) {
		read_back(sector, REQUEST_BYTES, got);
		MUST(memcmp(got, model + sector * BLK_SECTOR, REQUEST_BYTES) == 0);
	}
}

static void
adopt_disk(void)
{
	uint64_t sector;

	MUST(fake_start(&d, &blk.dev, UINT64_MAX));
	for (sector = 0; sector < SECTORS; sector += REQUEST_BYTES / BLK_SECTOR)
		read_back(sector, REQUEST_BYTES, model + sector * BLK_SECTOR);
}

/* The first n cut segments at rest are this picture. */
static void
check_files(unsigned n, int64_t last_records, const uint8_t *frozen_fork)
{
	static uint8_t got[DISK_BYTES];
	static char paths[2 * (CUTS_MAX + 1) + 1][32];
	struct disk_segment segments[CUTS_MAX + 1];
	struct disk_chain chain = {paths[2 * n], segments, n};
	struct err e = {0};
	unsigned i;
	int out = memfd_create("out", MFD_CLOEXEC);

	for (i = 0; i < n; i++) {
		snprintf(paths[2 * i], sizeof(paths[0]), "/proc/self/fd/%d",
			cuts[i].data_fd);
		snprintf(paths[2 * i + 1], sizeof(paths[0]), "/proc/self/fd/%d",
			cuts[i].index_fd);
		segments[i] = (struct disk_segment){paths[2 * i], paths[2 * i + 1],
			i + 1 < n ? cuts[i].records : last_records};
	}
	snprintf(paths[2 * n], sizeof(paths[0]), "/proc/self/fd/%d", base_fd);
	if (disk_export(&chain, DISK_MIB, out, NULL, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		abort();
	}
	MUST(pread(out, got, sizeof(got), 0) == sizeof(got));
	close(out);
	MUST(memcmp(got, frozen_fork, sizeof(got)) == 0);
}

static void
new_files(int fds[VMM_SEG_FDS])
{
	char path[32];

	cuts[n_cuts].data_fd = memfd_create("data", MFD_CLOEXEC);
	cuts[n_cuts].index_fd = memfd_create("index", MFD_CLOEXEC);
	fds[0] = dup(cuts[n_cuts].data_fd);
	fds[1] = dup(cuts[n_cuts].index_fd);
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[i]);
		fds[i + 2] = open(path, O_RDONLY | O_CLOEXEC);
	}
}

static void
cut(void)
{
	uint64_t records, bytes;
	int fds[VMM_SEG_FDS];

	if (n_cuts == CUTS_MAX)
		return;
	cuts[n_cuts].frozen_fork = malloc(DISK_BYTES);
	MUST(cuts[n_cuts].frozen_fork);
	memcpy(cuts[n_cuts].frozen_fork, model, DISK_BYTES);
	n_cuts++;
	new_files(fds);
	MUST(blk_cut(&blk, fds, &records, &bytes, NULL) == 0);
	cuts[n_cuts - 1].records = (int64_t)records;
}

/* What is saved of it, whatever it is, is what is loaded. */
static void
save_and_load(void)
{
	static uint8_t blob[8192];
	struct blob_out out;
	struct blob_in in, section;

	blob_start(&out, blob, sizeof(blob));
	blob_begin(&out, 1);
	blk_save(&blk, &out);
	blob_end(&out);
	MUST(blob_open(blob, blob_finish(&out), &in, NULL) == 0);
	MUST(blob_next(&in, 1, "disk", &section, NULL) == 0);
	MUST(blk_load(&blk, DISK_MIB, &section, NULL) == 0);
	MUST(blob_end_in(&section, "disk", NULL) == 0);
}

static void
wild(struct input *in)
{
	unsigned n = (unsigned)take(in, 1) % 16 + 1;
	uint8_t raw[64];
	struct virtq_desc desc;
	struct virtio_blk_req req;
	uint64_t at;
	unsigned len;

	while (n-- && in->left) {
		switch (take(in, 1) % 8) {
		case 0:
			at = take(in, 2) % VIRTIO_MMIO_SIZE;
			fake_write(&d, at & ~3ull, (uint32_t)take(in, 4));
			break;
		case 1: /* rings */
			len = (unsigned)take(in, 1) % sizeof(raw);
			at = FAKE_RINGS + take(in, 2) % (0x10000 - sizeof(raw));
			memset(raw, 0, sizeof(raw));
			memcpy(raw, in->p, len < in->left ? len : in->left);
			take(in, len > 8 ? 8 : len);
			fake_poke(&d, at, raw, len);
			break;
		case 2:
			desc.addr =
				take(in, 1) & 1 ? FAKE_HEAP + take(in, 3) : take(in, 8);
			desc.len = (uint32_t)take(in, in->left & 1 ? 2 : 4);
			desc.flags = (uint16_t)take(in, 1) & 7;
			desc.next = (uint16_t)take(in, 1);
			fake_set_desc(&d, 0, (uint16_t)(take(in, 1) % d.q[0].size), desc);
			break;
		case 3:
			fake_offer(&d, 0, (uint16_t)take(in, 1));
			break;
		case 4:
			fake_kick(&d, (unsigned)take(in, 1) % 4);
			break;
		case 5:
			req.type = (uint32_t)take(in, 1) % 16;
			req.reserved = 0;
			req.sector = take(in, 8);
			fake_poke(&d, HDR, &req, sizeof(req));
			break;
		case 6:
			save_and_load();
			break;
		case 7:
			(void)blk_round(&blk);
			break;
		}
	}
	fake_kick(&d, 0);
	virtio_mmio_read(
		&blk.dev, take(in, 2) % VIRTIO_MMIO_SIZE, raw, 1 + take(in, 1) % 8);
	adopt_disk();
}

static void
sane(struct input *in, unsigned op)
{
	static uint8_t buf[REQUEST_BYTES];
	uint64_t sector = take(in, 2) % SECTORS;
	uint32_t sectors = (uint32_t)take(in, 1) % 128 + 1;
	uint32_t x = (uint32_t)take(in, 2);
	struct virtio_blk_range range;
	uint32_t len;

	if (sectors > SECTORS - sector)
		sectors = (uint32_t)(SECTORS - sector);
	len = sectors * BLK_SECTOR;
	switch (op) {
	case 0:
		read_back(sector, len, buf);
		MUST(memcmp(buf, model + sector * BLK_SECTOR, len) == 0);
		break;
	case 1:
		fill(model + sector * BLK_SECTOR, len, x);
		fake_poke(&d, DATA, model + sector * BLK_SECTOR, len);
		MUST(request(VIRTIO_BLK_T_OUT, sector, len, x) == VIRTIO_BLK_S_OK);
		break;
	case 2:
		range = (struct virtio_blk_range){sector, sectors, x & 1};
		fake_poke(&d, DATA, &range, sizeof(range));
		MUST(request(VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(range), x) ==
			VIRTIO_BLK_S_OK);
		memset(model + sector * BLK_SECTOR, 0, len);
		break;
	case 3: /* what a discard leaves is undefined: zeroes or what was there, a block
		   whole */
		range = (struct virtio_blk_range){sector, sectors, 0};
		fake_poke(&d, DATA, &range, sizeof(range));
		MUST(request(VIRTIO_BLK_T_DISCARD, 0, sizeof(range), x) ==
			VIRTIO_BLK_S_OK);
		read_back(sector, len, buf);
		for (x = 0; x < len; x++)
			MUST(buf[x] == 0 || buf[x] == model[sector * BLK_SECTOR + x]);
		memcpy(model + sector * BLK_SECTOR, buf, len);
		break;
	case 4:
		MUST(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0) == VIRTIO_BLK_S_OK);
		break;
	}
}

static void
start(void)
{
	static const uint8_t zeroes[0x20000];
	static uint8_t base[BASE_BYTES];
	struct err e = {0};
	int fds[VMM_SEG_FDS];

	if (base_fd < 0) {
		log_init("fuzz", (enum log_level)0);
		fake_driver_init(&d);
		base_fd = memfd_create("base", MFD_CLOEXEC);
		fill(base, sizeof(base), 1);
		MUST(write(base_fd, base, sizeof(base)) == sizeof(base));
	}
	n_cuts = 0;
	new_files(fds);
	fake_poke(&d, FAKE_HEAP, zeroes, sizeof(zeroes));
	MUST(blk_init(&blk, &d.mem, fake_irq(&d), DISK_MIB, dup(base_fd), fds, &e) == 0);
	memset(model, 0, sizeof(model));
	MUST(pread(base_fd, model, BASE_BYTES, 0) == BASE_BYTES);
	MUST(fake_start(&d, &blk.dev, UINT64_MAX));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	unsigned op, i;

	start();
	rounds = size & 1;
	blk.waker = (struct blk_waker){.wake = wakes};
	blk.index_limit = 40; /* within reach */
	while (in.left) {
		op = (unsigned)take(&in, 1) % 8;
		if (op < 5)
			sane(&in, op);
		else if (op == 5)
			cut();
		else if (op == 6)
			wild(&in);
		else if (rounds)
			(void)blk_round(&blk);
		else
			MUST(blk_flush(&blk, NULL) == 0);
		MUST(blk.data_blocks <= blk.map.n_blocks);
		MUST(blk.index_records <= blk.index_limit + blk.map.n_blocks);
	}
	check_disk();
	check_files(n_cuts + 1, -1, model);
	for (i = 0; i < n_cuts; i++)
		check_files(i + 1, cuts[i].records, cuts[i].frozen_fork);
	blk_destroy(&blk);
	for (i = 0; i <= n_cuts; i++) {
		close(cuts[i].data_fd);
		close(cuts[i].index_fd);
		free(cuts[i].frozen_fork);
		cuts[i].frozen_fork = NULL;
	}
	return 0;
}
