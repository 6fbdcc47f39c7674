/* A VM whose host's disk is full, without KVM; with it: test_kvm_disk. */
#include "vmm/full_disk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/snapshot_vm.h"
#include "vmm/futex.h"

static struct vm vm;
static int peer;
static bool resets_disk;

static int
setup(void **state)
{
	int fds[2];

	(void)state;
	snapshot_vm_init(&vm, 1);
	vm.started_sent = true;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds))
		return -1;
	vm.control_fd = fds[0];
	peer = fds[1];
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	close(vm.control_fd);
	close(peer);
	snapshot_vm_done(&vm);
	return 0;
}

/* What a vCPU does when it is asked to park in the middle of the guest. */
static void *
vcpu(void *arg)
{
	const uint32_t zero = 0;

	(void)arg;
	while (!(atomic_load(&vm.epoch) & 1))
		sched_yield();
	if (resets_disk)
		virtio_mmio_write(&vm.blk.dev, VIRTIO_MMIO_STATUS, &zero, sizeof(zero));
	atomic_fetch_add(&vm.parked, 1);
	futex_wake(&vm.parked);
	return NULL;
}

static void
find_full(void)
{
	pthread_t thread;

	atomic_store(&vm.blk.full, -ENOSPC);
	assert_int_equal(pthread_create(&thread, NULL, vcpu, NULL), 0);
	full_disk_look(&vm);
	pthread_join(thread, NULL);
}

static void
a_vm_with_a_full_disk_stands_and_says_so(void **state)
{
	struct vmm_disk_full m;

	(void)state;
	resets_disk = false;
	find_full();
	assert_true(vm.is_full);
	assert_true(atomic_load(&vm.epoch) & 1);
	assert_int_equal(recv(peer, &m, sizeof(m), 0), sizeof(m));
	assert_int_equal(m.hdr.type, VMM_DISK_FULL);
	assert_int_equal(m.error, -ENOSPC);
}

static void
a_guest_that_resets_its_full_disk_before_it_stands_goes_on(void **state)
{
	struct vmm_disk_full m;

	(void)state;
	resets_disk = true;
	find_full();
	assert_false(vm.is_full);
	assert_false(atomic_load(&vm.epoch) & 1);
	assert_int_equal(recv(peer, &m, sizeof(m), 0), -1);
	/* One that a person paused meanwhile stays so. */
	vm.is_paused = true;
	find_full();
	assert_false(vm.is_full);
	assert_true(atomic_load(&vm.epoch) & 1);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_vm_with_a_full_disk_stands_and_says_so),
		T(a_guest_that_resets_its_full_disk_before_it_stands_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
