#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "tests/kvm/driver_parts.h"
#include "vmm/blockmap.h"

#define CHUNK (1u << 20)

int
driver_ask_state(struct vm *vm, int fd, struct vmm_state_answer *ret, struct err *e)
{
	struct vmm_hdr h = {.version = VMM_WIRE_VERSION,
		.type = VMM_STATE,
		.len = sizeof(h),
		.seq = ++vm->seq};
	union driver_message m;
	int r = io_send_fds(vm->control, &h, sizeof(h), &fd, 1);

	if (r < 0)
		return err_sys(e, r, "%s: asking for its state", vm->name);
	r = driver_answer(vm, &m, h.seq, VMM_STATE_ANSWER, DRIVER_ANSWER_MS, e);
	if (r < 0)
		return r;
	if (m.hdr.type != VMM_STATE_ANSWER)
		return err_set(
			e, -EBADMSG, "%s: answered by message %u", vm->name, m.hdr.type);
	*ret = m.state;
	ret->msg[sizeof(ret->msg) - 1] = 0;
	return ret->error ? err_set(e, ret->error, "%s", ret->msg) : 0;
}

static int
read_memory(const struct vm *vm, const struct vmm_state_answer *a, int fd, struct err *e)
{
	cleanup_free uint8_t *buf = malloc(CHUNK);
	uint64_t at = 0;

	if (!buf)
		return err_sys(e, -ENOMEM, "memory");
	for (uint32_t i = 0; i < a->n_ranges; i++)
		for (uint64_t off = 0; off < a->ranges[i].len;
			off += CHUNK, at += CHUNK) {
			struct iovec to = {buf, CHUNK};
			struct iovec from = {
				(void *)(uintptr_t)(a->ranges[i].host + off), CHUNK};
			ssize_t n = process_vm_readv(vm->pid, &to, 1, &from, 1, 0);
			int r;

			if (n != CHUNK)
				return err_sys(e, n < 0 ? -errno : -EIO,
					"process_vm_readv of %d at 0x%llx", vm->pid,
					(unsigned long long)(a->ranges[i].host + off));
			r = io_pwrite_full(fd, buf, CHUNK, at);
			if (r < 0)
				return err_sys(e, r, "writing the memory image");
		}
	return 0;
}

static int
read_page_map(const struct vm *vm, const struct vmm_state_answer *a, int fd, struct err *e)
{
	const uint64_t page = 4096, entry = sizeof(uint64_t);
	cleanup_free char *buf = malloc(CHUNK / page * entry);
	cleanup_close int map = -1;
	char path[64];
	uint64_t at = 0;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)vm->pid);
	map = open(path, O_RDONLY | O_CLOEXEC);
	if (map < 0 || !buf)
		return err_sys(e, map < 0 ? -errno : -ENOMEM, "%s", path);
	for (uint32_t i = 0; i < a->n_ranges; i++)
		for (uint64_t off = 0; off < a->ranges[i].len; off += CHUNK) {
			const size_t len = CHUNK / page * entry;
			int r = io_pread_full(
				map, buf, len, (a->ranges[i].host + off) / page * entry);

			if (r == 0)
				r = io_pwrite_full(fd, buf, len, at);
			if (r < 0)
				return err_sys(e, r, "%s", path);
			at += len;
		}
	return 0;
}

static uint64_t
track_at(const struct vmm_state_answer *a)
{
	return (a->blob_bytes + VMM_TRACK_ALIGN - 1) / VMM_TRACK_ALIGN * VMM_TRACK_ALIGN;
}

int
driver_take_state(struct vm *parked, const char *tag, struct commit *ret, struct err *e)
{
	cleanup_close int state = -1, memory = -1, map = -1;
	char name[64];
	int r;

	memset(ret, 0, sizeof(*ret));
	snprintf(name, sizeof(name), "%s.state", tag);
	driver_path(parked, name, ret->state);
	r = driver_create(parked, name, O_EXCL, &state, e);
	if (r < 0)
		return r;
	snprintf(name, sizeof(name), "%s.memory", tag);
	driver_path(parked, name, ret->memory);
	r = driver_create(parked, name, O_EXCL, &memory, e);
	if (r < 0)
		return r;
	snprintf(name, sizeof(name), "%s.map", tag);
	driver_path(parked, name, ret->page_map);
	r = driver_create(parked, name, O_EXCL, &map, e);
	if (r == 0)
		r = driver_ask_state(parked, state, &ret->answer, e);
	if (r == 0)
		r = read_page_map(parked, &ret->answer, map, e);
	if (r == 0 && ret->answer.flags & VMM_STATE_TRACKED) {
		r = io_pread_full(state, &ret->track, sizeof(ret->track),
			track_at(&ret->answer));
		if (r < 0)
			err_sys(e, r, "what changed");
	}
	return r < 0 ? r : read_memory(parked, &ret->answer, memory, e);
}

int
driver_read_bitmaps(const struct commit *c, uint8_t **ret, struct err *e)
{
	cleanup_close int fd = open(c->state, O_RDONLY | O_CLOEXEC);
	const size_t len = 2 * VMM_TRACK_BITMAP_BYTES(c->track.pages);
	uint8_t *p = malloc(len);
	int r;

	if (fd < 0 || !p) {
		free(p);
		return err_sys(e, fd < 0 ? -errno : -ENOMEM, "%s", c->state);
	}
	r = io_pread_full(fd, p, len, track_at(&c->answer) + VMM_TRACK_ALIGN);
	if (r < 0) {
		free(p);
		return err_sys(e, r, "the bitmaps of %s", c->state);
	}
	*ret = p;
	return 0;
}

static int
done(struct vm *vm, uint64_t seq, struct err *e)
{
	union driver_message m;
	int r = driver_answer(vm, &m, seq, VMM_DONE, DRIVER_ANSWER_MS, e);

	if (r < 0)
		return r;
	m.done.msg[sizeof(m.done.msg) - 1] = '\0';
	return m.done.error ? err_set(e, m.done.error, "%.400s", m.done.msg) : 0;
}

int
driver_hand_page_map(struct vm *vm, pid_t pid, struct err *e)
{
	struct vmm_hdr h = {.version = VMM_WIRE_VERSION, .type = VMM_TRACK, .len = sizeof(h)};
	cleanup_close int map = -1, null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	char path[64];
	int r = driver_request(vm, VMM_TRACK_OPEN, NULL, 0, VMM_DONE, DRIVER_ANSWER_MS, e);

	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	map = open(path, O_RDONLY | O_CLOEXEC);
	if (map < 0)
		return err_sys(e, -errno, "%s", path);
	h.seq = ++vm->seq;
	r = io_send_fds(vm->control, &h, sizeof(h), (int[]){map, null}, 2);
	return r < 0 ? err_sys(e, r, "VMM_TRACK") : done(vm, h.seq, e);
}

int
driver_committed(struct vm *vm, const uint8_t fork[static 16], uint64_t id, struct err *e)
{
	struct vmm_committed m = {.hdr = {.version = VMM_WIRE_VERSION,
					  .type = VMM_COMMITTED,
					  .len = sizeof(m),
					  .seq = ++vm->seq}};
	int r;

	memcpy(m.fork, fork, sizeof(m.fork));
	memcpy(m.commit, &id, sizeof(id));
	memset(m.note, 0x5a, sizeof(m.note));
	r = io_send_fds(vm->control, &m, sizeof(m), NULL, 0);
	return r < 0 ? err_sys(e, r, "VMM_COMMITTED") : done(vm, m.hdr.seq, e);
}

int
driver_take_disk(const struct vm *vm, const char *base, uint64_t records,
	uint64_t disk_mib, struct commit *c, struct err *e)
{
	char data[256], index[256], name[64];
	struct disk_segment segment = {
		.data_path = data, .index_path = index, .records = (int64_t)records};
	struct disk_chain chain = {
		.base_path = base, .segments = &segment, .n_segments = 1};
	cleanup_close int fd = -1;

	snprintf(name, sizeof(name), "%d.0.data", (int)(vm - vm->driver->vms));
	driver_path(vm, name, data);
	snprintf(name, sizeof(name), "%d.0.index", (int)(vm - vm->driver->vms));
	driver_path(vm, name, index);
	snprintf(c->disk, sizeof(c->disk), "%.240s.disk", c->state);
	fd = open(c->disk, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, -errno, "%s", c->disk);
	return disk_export(&chain, disk_mib, fd, NULL, e);
}

int
driver_prepare(struct driver *d, const char *name, uint64_t mem_mib, uint32_t vcpus,
	struct vm **ret, struct err *e)
{
	struct vmm_prepare m = {.mem_mib = mem_mib, .vcpus = vcpus};
	cleanup_close int log = -1;
	union driver_message a;
	struct vm *vm;
	int r;

	if ((r = driver_start(d, name, &vm, e)) < 0 ||
		(r = driver_create(vm, "blank.log", O_APPEND, &log, e)) < 0)
		return r;
	m.hdr = (struct vmm_hdr){.version = VMM_WIRE_VERSION,
		.type = VMM_PREPARE,
		.len = sizeof(m),
		.seq = ++vm->seq};
	r = io_send_fds(vm->control, &m, sizeof(m), (int[]){d->kvm, log}, 2);
	if (r < 0)
		return err_sys(e, r, "sending the prepare message");
	r = driver_answer(vm, &a, m.hdr.seq, VMM_DONE, DRIVER_ANSWER_MS, e);
	if (r < 0)
		return vm->got_started && vm->started.error
			       ? err_set(e, vm->started.error, "%s", vm->started.msg)
			       : r;
	*ret = vm;
	return a.done.error ? err_set(e, a.done.error, "%.500s", a.done.msg) : 0;
}

static int
open_fds(struct vm *vm, const struct restore *restore, int fds[], struct err *e)
{
	const struct commit *c = restore->commit;
	char path[256];
	int r;

	if ((r = io_unix_listen(driver_path(vm, "control.sock", path), SOCK_SEQPACKET, 4,
		     &fds[VMM_RESTORE_FD_LISTEN], e)) < 0 ||
		(r = io_unix_listen(driver_path(vm, "vsock.sock", path), SOCK_STREAM, 64,
			 &fds[VMM_RESTORE_FD_VSOCK], e)) < 0 ||
		(r = driver_create(
			 vm, "console", O_EXCL, &fds[VMM_RESTORE_FD_CONSOLE], e)) < 0 ||
		(r = driver_map_console(vm, fds[VMM_RESTORE_FD_CONSOLE], e)) < 0 ||
		(r = driver_create(
			 vm, "vmm.log", O_APPEND, &fds[VMM_RESTORE_FD_LOG], e)) < 0 ||
		(r = driver_new_segment(vm, fds + VMM_RESTORE_FD_SEG, e)) < 0)
		return r;
	fds[VMM_RESTORE_FD_STATE] = open(c->state, O_RDONLY | O_CLOEXEC);
	fds[VMM_RESTORE_FD_MEMORY] = open(c->memory, O_RDONLY | O_CLOEXEC);
	fds[VMM_RESTORE_FD_BASE] =
		open(c->disk[0] ? c->disk : "/dev/null", O_RDONLY | O_CLOEXEC);
	fds[VMM_RESTORE_FD_KVM] = fcntl(vm->driver->kvm, F_DUPFD_CLOEXEC, 3);
	for (int i = 0; i < VMM_RESTORE_FD_COUNT; i++)
		if (fds[i] < 0)
			return err_sys(
				e, -errno, "descriptor %d of the restore message", i);
	return 0;
}

int
driver_send_restore(struct vm *vm, const struct restore *restore, struct err *e)
{
	const struct vmm_state_answer *a = &restore->commit->answer;
	struct vmm_restore m = {
		.hdr = {.version = VMM_WIRE_VERSION,
			.type = VMM_RESTORE,
			.len = sizeof(m),
			.seq = ++vm->seq},
		.mem_mib = restore->mem_mib ? restore->mem_mib : a->mem_mib,
		.disk_mib = restore->disk_mib ? restore->disk_mib : a->disk_mib,
		.blob_bytes = restore->blob_bytes ? restore->blob_bytes : a->blob_bytes,
		.vcpus = restore->vcpus ? restore->vcpus : a->vcpus,
		.flags = restore->commit->disk[0] ? VMM_RESTORE_HAS_BASE : 0,
	};
	int fds[VMM_RESTORE_FD_COUNT], r;

	for (int i = 0; i < VMM_RESTORE_FD_COUNT; i++)
		fds[i] = -1;
	memcpy(m.generation, vm->generation, sizeof(m.generation));
	snprintf(m.name, sizeof(m.name), "%s", vm->name);
	r = open_fds(vm, restore, fds, e);
	if (r == 0) {
		r = io_send_fds(vm->control, &m, sizeof(m), fds, VMM_RESTORE_FD_COUNT);
		if (r < 0)
			err_sys(e, r, "sending the restore message");
	}
	for (int i = 0; i < VMM_RESTORE_FD_COUNT; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return r;
}

int
driver_reset(struct vm *vm, const struct reset *reset, struct vmm_reset_answer *ret,
	struct err *e)
{
	const struct commit *c = reset->commit;
	struct vmm_reset m = {
		.hdr = {.version = VMM_WIRE_VERSION,
			.type = VMM_RESET,
			.len = sizeof(m),
			.seq = ++vm->seq},
		.disk_mib = reset->disk_mib ? reset->disk_mib : c ? c->answer.disk_mib : 16,
		.blob_bytes = reset->blob_bytes ? reset->blob_bytes
			      : c		? c->answer.blob_bytes
						: 0,
		.flags = !c ? VMM_RESET_TO_FORK_POINT : c->disk[0] ? VMM_RESET_HAS_BASE : 0,
	};
	int fds[VMM_RESET_FD_COUNT] = {[VMM_RESET_FD_SEG] = -1, -1, -1, -1};
	union driver_message a;
	int r;

	memset(vm->generation, 0, sizeof(vm->generation));
	memcpy(vm->generation, &vm->driver->next_generation, 8);
	vm->driver->next_generation++;
	vm->generation[15] = reset->rests ? 0x80 : 0;
	memcpy(m.generation, vm->generation, sizeof(m.generation));
	fds[VMM_RESET_FD_STATE] = open(c ? c->state : "/dev/null", O_RDONLY | O_CLOEXEC);
	fds[VMM_RESET_FD_MEMORY] = open(c ? c->memory : "/dev/null", O_RDONLY | O_CLOEXEC);
	fds[VMM_RESET_FD_BASE] =
		open(c && c->disk[0] ? c->disk : "/dev/null", O_RDONLY | O_CLOEXEC);
	r = driver_new_segment(vm, fds + VMM_RESET_FD_SEG, e);
	if (r == 0 && reset->used_segment && write(fds[VMM_RESET_FD_SEG], "used", 4) != 4)
		r = err_sys(e, -errno, "writing a segment");
	if (r == 0) {
		r = io_send_fds(vm->control, &m, sizeof(m), fds, VMM_RESET_FD_COUNT);
		if (r < 0)
			err_sys(e, r, "%s: sending the reset message", vm->name);
	}
	for (int i = 0; i < VMM_RESET_FD_COUNT; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	if (r == 0)
		r = driver_answer(vm, &a, m.hdr.seq, VMM_RESET_ANSWER, DRIVER_ANSWER_MS, e);
	if (r < 0)
		return r;
	if (a.hdr.type != VMM_RESET_ANSWER)
		return err_set(e, -EBADMSG, "%s: answered by message %u", vm->name, a.hdr.type);
	a.reset.msg[sizeof(a.reset.msg) - 1] = '\0';
	if (ret)
		*ret = a.reset;
	return a.reset.error ? err_set(e, a.reset.error, "%s", a.reset.msg) : 0;
}

int
driver_resize(struct vm *vm, uint64_t disk_mib, struct err *e)
{
	struct vmm_resize m = {
		.hdr = {.version = VMM_WIRE_VERSION,
			.type = VMM_RESIZE,
			.len = sizeof(m),
			.seq = ++vm->seq},
		.disk_mib = disk_mib,
	};
	union driver_message a;
	int r = io_send_fds(vm->control, &m, sizeof(m), NULL, 0);

	if (r < 0)
		return err_sys(e, r, "%s: sending the resize message", vm->name);
	r = driver_answer(vm, &a, m.hdr.seq, VMM_DONE, DRIVER_ANSWER_MS, e);
	if (r < 0 || !a.done.error)
		return r;
	a.done.msg[sizeof(a.done.msg) - 1] = 0;
	return err_set(e, a.done.error, "%s", a.done.msg);
}

int
driver_limit_disk(struct vm *vm, uint64_t bytes_per_s, uint64_t ops_per_s, struct err *e)
{
	struct vmm_disk_limits m = {
		.hdr = {.version = VMM_WIRE_VERSION,
			.type = VMM_DISK_LIMITS,
			.len = sizeof(m),
			.seq = ++vm->seq},
		.bytes_per_s = bytes_per_s,
		.ops_per_s = ops_per_s,
	};
	int r = io_send_fds(vm->control, &m, sizeof(m), NULL, 0);

	return r < 0 ? err_sys(e, r, "VMM_DISK_LIMITS") : done(vm, m.hdr.seq, e);
}

int
driver_balloon(
	struct vm *vm, uint64_t target_mib, struct vmm_balloon_answer *ret, struct err *e)
{
	struct vmm_balloon m = {
		.hdr = {.version = VMM_WIRE_VERSION,
			.type = VMM_BALLOON,
			.len = sizeof(m),
			.seq = ++vm->seq},
		.mem_target_mib = target_mib,
	};
	union driver_message a;
	int r = io_send_fds(vm->control, &m, sizeof(m), NULL, 0);

	if (r < 0)
		return err_sys(e, r, "%s: sending the balloon's message", vm->name);
	r = driver_answer(vm, &a, m.hdr.seq, VMM_BALLOON_ANSWER, DRIVER_ANSWER_MS, e);
	if (r < 0)
		return r;
	*ret = a.balloon;
	ret->msg[sizeof(ret->msg) - 1] = 0;
	return ret->error ? err_set(e, ret->error, "%s", ret->msg) : 0;
}
