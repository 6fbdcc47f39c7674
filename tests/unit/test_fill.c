/* Memory that is filled while it is used: the pages (host/fill/fill_page.h), where they lie
 * (host/store/store_place.c), and the VMM's side (vmm/fill.h). */
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <linux/userfaultfd.h>

#include "common/cleanup.h"
#include "host/fill/fill_page.h"
#include "tests/unit/store_help.h"
#include "vmm/fill.h"

#define PAGES 1000u

static uint32_t values[PAGES];
static struct store_tree tree;
static struct fill_pages *pages;
static int memory_fd, image_fd, plan_fd;
static uint64_t n_places;

static int
take_pack(void *ctx, int fd, struct err *why)
{
	unsigned *n = ctx;

	(*n)++;
	return fill_pages_pack(pages, fcntl(fd, F_DUPFD_CLOEXEC, 0), why);
}

static void
add_place(const struct fill_place *p)
{
	assert_int_equal(io_pwrite_full(plan_fd, p, sizeof(*p), n_places++ * sizeof(*p)), 0);
}

static struct fill_place
place_of(const struct store_place *from)
{
	struct fill_place p = {.page = from->page,
		.offset = from->offset,
		.stored = from->stored,
		.pack = (uint16_t)from->pack,
		.coding = from->is_zipped ? FILL_ZSTD : FILL_RAW};

	memcpy(p.hash, from->hash.b, sizeof(p.hash));
	return p;
}

static void
plan_leaf(struct store_places *places, uint64_t leaf, unsigned *n_packs)
{
	struct store_place found[STORE_LEAF_PAGES];
	struct fill_place end = {.page = leaf * STORE_LEAF_PAGES, .coding = FILL_LEAF};
	size_t n;

	ok(store_places_leaf(places, leaf, take_pack, n_packs, found, &n, &e));
	for (size_t i = 0; i < n; i++) {
		struct fill_place p = place_of(&found[i]);

		add_place(&p);
	}
	add_place(&end);
}

static int
setup(void **state)
{
	char id[STORE_ID_MAX];
	struct store_manifest *m;

	assert_int_equal(setup_store(state), 0);
	for (uint32_t i = 0; i < PAGES; i++)
		values[i] = i % 5 < 2 || (i >= 300 && i < 500) ? 0 : i + 1;
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	ok(store_load(store, id, &m, &e));
	tree = m->f.memory;
	store_manifest_free(m);
	memory_fd = memfd_create("memory", MFD_CLOEXEC);
	image_fd = memfd_create("image", MFD_CLOEXEC);
	plan_fd = memfd_create("plan", MFD_CLOEXEC);
	assert_int_equal(ftruncate(memory_fd, PAGES * STORE_PAGE), 0);
	assert_int_equal(ftruncate(image_fd, PAGES * STORE_PAGE), 0);
	n_places = 0;
	ok(fill_pages_new(PAGES, memory_fd, image_fd, plan_fd, &pages, &e));
	return 0;
}

static int
teardown(void **state)
{
	close(memory_fd);
	close(image_fd);
	close(plan_fd);
	fill_pages_free(pages);
	return teardown_store(state);
}

static void
plan_all(void)
{
	struct store_places *places;
	unsigned n_packs = 0;

	store_hold(store);
	ok(store_places_open(store, &tree, &places, &e));
	for (uint64_t leaf = (PAGES + STORE_LEAF_PAGES - 1) / STORE_LEAF_PAGES; leaf-- > 0;)
		plan_leaf(places, leaf, &n_packs);
	store_places_close(places);
	store_release(store);
	assert_int_equal(n_packs, 1);
	ok(fill_pages_plan(pages, n_places, true, &e));
}

static void *
work(void *arg)
{
	uint64_t first, n, page, filled, places;
	struct zip *zip;
	struct err why;

	(void)arg;
	assert_int_equal(zip_new(&zip), 0);
	while (fill_pages_next(pages, 10, &first, &n))
		for (; n; first += places, n -= places)
			assert_int_equal(fill_pages_fill(pages, first, n, zip, &page, &filled,
						 &places, &why),
				0);
	zip_free(zip);
	return NULL;
}

static void
has_all(int fd)
{
	uint8_t is[STORE_PAGE], must[STORE_PAGE];

	for (uint32_t i = 0; i < PAGES; i++) {
		fill(must, values[i]);
		assert_int_equal(io_pread_full(fd, is, sizeof(is), i * sizeof(is)), 0);
		assert_memory_equal(is, must, sizeof(is));
	}
}

static void
threads_fill_all_of_it_once(void **state)
{
	pthread_t threads[3];
	struct stat st;
	bool filled;
	struct zip *zip;

	(void)state;
	assert_false(fill_pages_are_whole(pages));
	plan_all();
	assert_int_equal(fill_pages_state(pages, 0), PAGE_ZERO);
	assert_int_equal(fill_pages_state(pages, 2), PAGE_PLANNED);
	assert_int_equal(zip_new(&zip), 0);
	ok(fill_pages_fill_page(pages, 2, zip, &filled, &e));
	assert_true(filled);
	ok(fill_pages_fill_page(pages, 2, zip, &filled, &e));
	assert_false(filled);
	zip_free(zip);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, work, NULL), 0);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	assert_true(fill_pages_are_whole(pages));
	assert_int_equal(fill_pages_image_error(pages), 0);
	has_all(memory_fd);
	has_all(image_fd);
	/* What is zero was not written. */
	assert_int_equal(fstat(memory_fd, &st), 0);
	assert_true(st.st_blocks * 512 <= 500 * (long)STORE_PAGE);
}

static void
an_image_that_cannot_be_written_costs_the_image_only(void **state)
{
	(void)state;
	assert_int_equal(fcntl(image_fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	close(image_fd);
	image_fd = open("/dev/full", O_RDWR | O_CLOEXEC);
	fill_pages_free(pages);
	ok(fill_pages_new(PAGES, memory_fd, image_fd, plan_fd, &pages, &e));
	plan_all();
	work(NULL);
	assert_true(fill_pages_are_whole(pages));
	assert_int_equal(fill_pages_image_error(pages), -ENOSPC);
	has_all(memory_fd);
}

static void
a_damaged_page_is_named(void **state)
{
	char path[256];
	uint64_t first, n, page, filled, places;
	struct zip *zip;
	int r = 0;

	(void)state;
	plan_all();
	pack_path(0, path, sizeof(path));
	flip(path, 30000);
	assert_int_equal(zip_new(&zip), 0);
	while (r == 0 && fill_pages_next(pages, 1, &first, &n))
		r = fill_pages_fill(pages, first, 1, zip, &page, &filled, &places, &e);
	zip_free(zip);
	refused(r, -EBADMSG, "is damaged in the commit store");
	assert_false(fill_pages_are_whole(pages));
}

static void
a_plan_that_cannot_be_is_refused(void **state)
{
	struct fill_place good = {.page = 5, .offset = 16, .stored = 100, .coding = FILL_ZSTD};
	struct fill_place bad[6];

	(void)state;
	for (unsigned i = 0; i < 6; i++)
		bad[i] = good;
	bad[0].page = PAGES;
	bad[1].pack = 1;
	bad[2].coding = 7;
	bad[3].stored = STORE_PAGE + 1;
	bad[4].coding = FILL_RAW;
	bad[5] = (struct fill_place){.page = UINT64_MAX, .coding = FILL_LEAF};
	ok(fill_pages_pack(pages, dup(plan_fd), &e));
	for (unsigned i = 0; i < 6; i++) {
		n_places = 0;
		add_place(&bad[i]);
		refused(fill_pages_plan(pages, 1, false, &e), -EPROTO, "a place of page");
	}
	n_places = 0;
	add_place(&good);
	add_place(&good); /* twice */
	refused(fill_pages_plan(pages, 2, false, &e), -EPROTO, "a place of page");
	refused(fill_pages_plan(pages, UINT64_MAX, false, &e), -EPROTO, "a plan");
}

/* ---- the VMM's side ---- */

static struct guest_mem mem;
static struct fill vm_fill;
static int sock[2], device;

static int
setup_vm(void **state)
{
	(void)state;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	memory_fd = memfd_create("memory", MFD_CLOEXEC);
	assert_int_equal(ftruncate(memory_fd, 1 << 20), 0);
	mem = (struct guest_mem){.low_len = 1 << 20};
	mem.host = mmap(NULL, mem.low_len, PROT_READ | PROT_WRITE, MAP_PRIVATE, memory_fd, 0);
	assert_true(mem.host != MAP_FAILED);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock), 0);
	vm_fill = (struct fill){.sock_fd = -1, .uffd_fd = -1};
	return 0;
}

static int
teardown_vm(void **state)
{
	(void)state;
	if (sock[0] >= 0)
		close(sock[0]);
	if (!vm_fill.is_on && sock[1] >= 0)
		close(sock[1]);
	if (vm_fill.is_on) {
		close(vm_fill.sock_fd);
		close(vm_fill.uffd_fd);
	}
	munmap(mem.host, mem.low_len);
	close(memory_fd);
	if (device >= 0)
		close(device);
	return 0;
}

static void
begin_vm(int *ret_uffd)
{
	struct fill_memory m;
	size_t n_fds = 1;

	if (device < 0)
		skip();
	ok(fill_begin(&vm_fill, &mem, device, sock[1], &e));
	sock[1] = -1;
	assert_int_equal(io_recv_fds(sock[0], &m, sizeof(m), ret_uffd, &n_fds, 0), sizeof(m));
	assert_int_equal(n_fds, 1);
	assert_int_equal(m.host, (uintptr_t)mem.host);
	assert_int_equal(m.len, mem.low_len);
}

static void *
touch(void *arg)
{
	return (void *)(uintptr_t)(*(volatile uint8_t *)arg);
}

static void
a_page_that_is_missing_is_waited_for_and_the_rest_is_zero_at_the_end(void **state)
{
	const uint8_t page[4096] = {42};
	struct fill_whole whole = {.hdr = {FILL_VERSION, FILL_WHOLE, sizeof(whole)}};
	struct uffdio_range range = {.start = (uintptr_t)mem.host + 8192, .len = 4096};
	struct uffd_msg m;
	pthread_t thread;
	void *value;
	int uffd;

	(void)state;
	begin_vm(&uffd);
	assert_int_equal(fill_event(&vm_fill, &mem, &e), 0);
	assert_true(vm_fill.is_on);
	assert_int_equal(pthread_create(&thread, NULL, touch, mem.host + 8192), 0);
	assert_int_equal(io_set_nonblock(uffd, 0), 0);
	assert_int_equal(read(uffd, &m, sizeof(m)), sizeof(m));
	assert_int_equal(m.event, UFFD_EVENT_PAGEFAULT);
	assert_int_equal(m.arg.pagefault.address & ~4095ull, range.start);
	/* Written into the file, it is there for the mapping. */
	assert_int_equal(io_pwrite_full(memory_fd, page, sizeof(page), 8192), 0);
	assert_int_equal(ioctl(uffd, UFFDIO_WAKE, &range), 0);
	pthread_join(thread, &value);
	assert_int_equal((uintptr_t)value, 42);
	assert_int_equal(io_send_fds(sock[0], &whole, sizeof(whole), NULL, 0), 0);
	ok(fill_wait(&vm_fill, &mem, &e));
	assert_false(vm_fill.is_on);
	assert_int_equal(mem.host[4096], 0);
	assert_int_equal(recv(sock[0], &whole, sizeof(whole), 0), 0);
	close(uffd);
}

static void
the_end_of_the_filler_is_an_error_and_nothing_is_zero(void **state)
{
	int uffd;

	(void)state;
	begin_vm(&uffd);
	close(uffd);
	close(TAKE_FD(sock[0]));
	refused(fill_event(&vm_fill, &mem, &e), -EPIPE, "ended before all of it was there");
	assert_true(vm_fill.is_on);
	assert_true(vm_fill.has_failed);
	refused(fill_wait(&vm_fill, &mem, &e), -EIO, "not all there");
	/* Who asks for it now waits on. */
	assert_true(vm_fill.uffd_fd >= 0);
}

static void
a_reason_and_a_message_that_is_none_are_told(void **state)
{
	struct fill_whole whole = {
		.hdr = {FILL_VERSION, FILL_WHOLE, sizeof(whole)}, .error = -EBADMSG};
	int uffd;

	(void)state;
	begin_vm(&uffd);
	memset(whole.msg, 'x', sizeof(whole.msg)); /* not terminated */
	assert_int_equal(io_send_fds(sock[0], &whole, sizeof(whole), NULL, 0), 0);
	refused(fill_event(&vm_fill, &mem, &e), -EBADMSG, "xxx");
	vm_fill.has_failed = false;
	assert_int_equal(io_send_fds(sock[0], &whole, 9, NULL, 0), 0);
	refused(fill_wait(&vm_fill, &mem, &e), -EPROTO, "no message");
	close(uffd);
}

#define PAGE_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define VM_TEST(name) cmocka_unit_test_setup_teardown(name, setup_vm, teardown_vm)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		PAGE_TEST(threads_fill_all_of_it_once),
		PAGE_TEST(an_image_that_cannot_be_written_costs_the_image_only),
		PAGE_TEST(a_damaged_page_is_named),
		PAGE_TEST(a_plan_that_cannot_be_is_refused),
		VM_TEST(a_page_that_is_missing_is_waited_for_and_the_rest_is_zero_at_the_end),
		VM_TEST(the_end_of_the_filler_is_an_error_and_nothing_is_zero),
		VM_TEST(a_reason_and_a_message_that_is_none_are_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
