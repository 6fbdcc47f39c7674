/*
 * What the files of the small guest share (tiny.c has the modes of its command line).
 */
#ifndef PANDO_TESTS_KVM_GUEST_TINY_H
#define PANDO_TESTS_KVM_GUEST_TINY_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define PAGE 4096
#define DIRTY_BASE 0x400000ul /* 4 MiB and up: nobody else's */

/* virtio-mmio slots */
#define BLK 0
#define RNG 2
#define BALLOON 3
#define BALLOON_QUEUES 5

struct desc {
	u64 addr;
	u32 len;
	u16 flags, next;
};

struct queue {
	_Alignas(PAGE) struct desc desc[256];
	_Alignas(PAGE) struct {
		u16 flags, idx, ring[256], event;
	} avail;
	_Alignas(PAGE) struct {
		u16 flags, idx;
		struct {
			u32 id, len;
		} ring[256];
		u16 event;
	} used;
};

/* The balloon has its own beside another device's. */
#define QUEUES_MAX (1 + BALLOON_QUEUES)
extern struct queue queues[QUEUES_MAX];
struct queue *queue_of(u32 dev, u32 i);

void *memset(void *p, int c, u64 n);
void *memcpy(void *d, const void *s, u64 n);
u32 read32(u64 at);
void write32(u64 at, u32 v);
void barrier(void);
void halt(void);
void say(const char *s);
void say_u64(u64 v);
u64 option_u64(const char *key, u64 otherwise);
int option_is(const char *key, const char *value);
u64 below(u64 n); /* by chance */

/* The address of a device's register. */
u64 reg(u32 dev, u32 offset);
/* Brings a device up with its queues of `size`; 0 when it takes our features. */
int bring_up(u32 dev, u32 n_queues, u32 size, u32 features_low);
/* Whether the VM generation id is another one than at the last call. */
int generation_changed(void);

/* guest/vsock.c */
void mode_vsock(void);

/* guest/balloon.c */
void mode_balloon(void);
int balloon_start(void);
/* Reports pages of memory from page `first` on, and looks at every `look`-th (a look brings a page
 * back): pages that read as zero afterwards; bad: those that are neither zero nor as they were. */
u64 balloon_report(u64 first, u64 pages, u64 look, u64 *bad);

#endif
