#include "vmm/mappings.h"

#include <errno.h>
#include <link.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/wire/vmm_wire.h"

#define PAGE ((uintptr_t)4096)

/* Where what the process began with lies; found once, children inherit it. */
static uintptr_t heap_from, first_stack_from, first_stack_to;

static struct stack {
	uint8_t *at; /* owned; NULL: not made yet */
	bool taken;
} stacks[VMM_VCPUS_MAX + 3]; /* the vCPUs', the main thread's, the disk's, one to fork from */
#define N_STACKS (sizeof(stacks) / sizeof(*stacks))

static uintptr_t
down(uintptr_t address)
{
	return address & ~(PAGE - 1);
}

static uintptr_t
up(uintptr_t address)
{
	return down(address + PAGE - 1);
}

static bool
holds(uintptr_t from, uintptr_t len, const void *p)
{
	return (uintptr_t)p - from < len;
}

/* NULL: no memory, see errno. at: NULL, or what they take the place of. */
static uint8_t *
map_fresh(void *at, size_t len)
{
	void *p = mmap(at, len, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0), -1,
		0);

	return p == MAP_FAILED ? NULL : p;
}

static int
make_stack(struct stack *s, struct err *e)
{
	uint8_t *p = map_fresh(NULL, MAPPINGS_STACK_BYTES + PAGE);

	if (!p)
		return err_sys(e, -errno, "a thread's stack");
	if (mprotect(p, PAGE, PROT_NONE) < 0) {
		munmap(p, MAPPINGS_STACK_BYTES + PAGE);
		return err_sys(e, -errno, "a thread's stack");
	}
	s->at = p + PAGE;
	return 0;
}

/* A vCPU and the main thread may start one at the same time. */
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;

static int
start_thread(pthread_t *ret, void *(*start)(void *arg), void *arg, struct err *e)
{
	struct stack *s = stacks;
	pthread_attr_t attr;
	int r;

	while (s < stacks + N_STACKS && s->taken)
		s++;
	if (s == stacks + N_STACKS)
		return err_set(e, -EAGAIN, "a VMM has no stack for one more thread");
	if (!s->at && (r = make_stack(s, e)) < 0)
		return r;
	pthread_attr_init(&attr);
	pthread_attr_setstack(&attr, s->at, MAPPINGS_STACK_BYTES);
	r = pthread_create(ret, &attr, start, arg);
	pthread_attr_destroy(&attr);
	if (r)
		return err_sys(e, -r, "starting a thread");
	s->taken = true;
	return 0;
}

int
mappings_thread(pthread_t *ret, void *(*start)(void *arg), void *arg, struct err *e)
{
	int r;

	pthread_mutex_lock(&starting);
	r = start_thread(ret, start, arg, e);
	pthread_mutex_unlock(&starting);
	return r;
}

void
mappings_forked(void)
{
	/* Who started this thread may have been in there still. */
	pthread_mutex_init(&starting, NULL);
	for (size_t i = 0; i < N_STACKS; i++)
		stacks[i].taken = holds((uintptr_t)stacks[i].at, MAPPINGS_STACK_BYTES,
			__builtin_frame_address(0));
}

/* Reads the pages of a range into being. */
static bool
populate(uintptr_t from, uintptr_t to)
{
	return madvise((void *)from, to - from, MADV_POPULATE_READ) == 0;
}

/* The heap may begin where the program's data ends. */
static void
find_ranges(uintptr_t program_to)
{
	if (!heap_from) {
		heap_from = up((uintptr_t)sbrk(0));
		while (heap_from > program_to && populate(heap_from - PAGE, heap_from))
			heap_from -= PAGE;
	}
	if (!first_stack_to) {
		/* The name of the program stands at its end. */
		first_stack_to = up((uintptr_t)getauxval(AT_EXECFN));
		first_stack_from = first_stack_to;
		while (populate(first_stack_from - PAGE, first_stack_from))
			first_stack_from -= PAGE;
	}
}

static bool
is_zero(const uint8_t *page)
{
	return page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0;
}

/* Between the copy and the move nothing may write to what is moved. */
static bool
move(uintptr_t from, uintptr_t to, int prot)
{
	size_t len = to - from;
	uint8_t *fresh;

	if (len == 0 || !populate(from, to))
		return false;
	fresh = map_fresh(NULL, len);
	if (!fresh)
		return false;
	for (size_t i = 0; i < len; i += PAGE)
		if (!is_zero((uint8_t *)from + i))
			memcpy(fresh + i, (uint8_t *)from + i, PAGE);
	if ((prot != (PROT_READ | PROT_WRITE) && mprotect(fresh, len, prot) < 0) ||
		mremap(fresh, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)from) ==
			MAP_FAILED) {
		munmap(fresh, len);
		return false;
	}
	return true;
}

/* The stack that this runs on: no instruction between its copy and its move may use it.
 */
static bool
move_this_stack(uint8_t *at)
{
	uintptr_t used = down((uintptr_t)__builtin_frame_address(0) - PAGE);
	size_t from = used > (uintptr_t)at ? used - (uintptr_t)at : 0,
	       len = MAPPINGS_STACK_BYTES;
	uint8_t *fresh = map_fresh(NULL, len);
	register long r10 __asm__("r10") = MREMAP_MAYMOVE | MREMAP_FIXED;
	register uint8_t *r8 __asm__("r8") = at;
	size_t left = len - from;
	uint8_t *src = at + from, *dst = fresh + from;
	long r;

	if (!fresh)
		return false;
	__asm__ volatile("rep movsb\n\t"
			 "mov %[fresh], %%rdi\n\t"
			 "mov %[len], %%rsi\n\t"
			 "mov %[len], %%rdx\n\t"
			 "mov %[call], %%eax\n\t"
			 "syscall"
			 : "=&a"(r), "+S"(src), "+D"(dst), "+c"(left)
			 : [fresh] "r"(fresh), [len] "r"(len), [call] "i"(SYS_mremap),
			 "r"(r10), "r"(r8)
			 : "rdx", "r11", "memory");
	if (r != (long)(uintptr_t)at) {
		munmap(fresh, len);
		return false;
	}
	return true;
}

struct program {
	uintptr_t from, to;	  /* its writable segment */
	uintptr_t ro_from, ro_to; /* of that, what became read-only after relocation */
};

/* The first object is the program. */
static int
find_program(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct program *p = arg;

	(void)size;
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *h = &info->dlpi_phdr[i];
		uintptr_t from = info->dlpi_addr + h->p_vaddr, to = from + h->p_memsz;

		if (h->p_type == PT_LOAD && h->p_flags & PF_W) {
			p->from = down(from);
			p->to = up(to);
		} else if (h->p_type == PT_GNU_RELRO) {
			p->ro_from = down(from);
			p->ro_to = down(to);
		}
	}
	return 1;
}

static unsigned
move_program(const struct program *p)
{
	if (p->ro_to <= p->ro_from)
		return move(p->from, p->to, PROT_READ | PROT_WRITE);
	/* Anything else than read-only first is not how it is linked. */
	if (p->ro_from != p->from || p->ro_to > p->to)
		return 0;
	return move(p->ro_from, p->ro_to, PROT_READ) +
	       move(p->ro_to, p->to, PROT_READ | PROT_WRITE);
}

unsigned
mappings_renew(const struct own_range *more, size_t n)
{
	const void *here = __builtin_frame_address(0);
	const int rw = PROT_READ | PROT_WRITE;
	struct program program = {0};
	unsigned moved = 0;

#ifdef PANDO_SAN
	return 0; /* their own tables of this memory would not follow */
#endif
	if (!populate(down((uintptr_t)here), up((uintptr_t)here)))
		return 0;
	dl_iterate_phdr(find_program, &program);
	find_ranges(program.to);
	moved += move_program(&program);
	moved += move(heap_from, up((uintptr_t)sbrk(0)), rw);
	if (!holds(first_stack_from, first_stack_to - first_stack_from, here))
		moved += move(first_stack_from, first_stack_to, rw);
	for (size_t i = 0; i < N_STACKS; i++) {
		uint8_t *at = stacks[i].at;

		if (at && holds((uintptr_t)at, MAPPINGS_STACK_BYTES, here))
			moved += move_this_stack(at);
		else if (at)
			moved += move(
				(uintptr_t)at, (uintptr_t)at + MAPPINGS_STACK_BYTES, rw);
	}
	for (size_t i = 0; i < n; i++) {
		uintptr_t from = (uintptr_t)more[i].at, to = up(from + more[i].len);

		if (!more[i].empty)
			moved += move(from, to, rw);
		else
			moved += map_fresh(more[i].at, to - from) != NULL;
	}
	return moved;
}
