/*
 * pando-fsdiff: which files differ between the file systems of two disks.
 *
 * Runs as: the user, started by pandod for one question; it has one descriptor
 * (FSDIFF_SOCKET) and, once it has begun, may do nothing but read and write there and
 * take memory, of which there is a bound, as there is of its time. The file systems may
 * be of a hostile guest: the worst that they can do is to end this process, or to make it
 * lie; pandod checks what it says and believes none of it.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host/commit/fsdiff/ext4.h"
#include "host/commit/fsdiff/wire.h"

#define FSDIFF_SOCKET 3
#define MEMORY_MAX (UINT64_C(2) << 30)
#define CPU_SECONDS 120
#define DEPTH_MAX 200u

struct walk {
	struct ext4 *fs[2];
	uint8_t *seen[2]; /* owned: a bit a folder's inode; a folder is in one place only
			   */
	char path[FSDIFF_PATH_MAX + 1];
	size_t path_len;
	unsigned depth;
};

static int
seal(void)
{
#ifndef PANDO_SAN
	static const int allowed[] = {SYS_read, SYS_write, SYS_recvfrom, SYS_sendto,
		SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_madvise, SYS_getrandom,
		SYS_futex, SYS_clock_gettime, SYS_gettimeofday, SYS_time, SYS_getpid,
		SYS_exit, SYS_exit_group, SYS_rt_sigreturn};
	enum { N = sizeof(allowed) / sizeof(allowed[0]) };
	struct sock_filter filter[N + 6] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	struct sock_fprog program = {.len = N + 6, .filter = filter};

	for (unsigned i = 0; i < N; i++)
		filter[4 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
			(unsigned)allowed[i], (uint8_t)(N - i), 0);
	filter[4 + N] =
		(struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	filter[5 + N] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	if (setrlimit(RLIMIT_AS, &(struct rlimit){MEMORY_MAX, MEMORY_MAX}) < 0 ||
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		return -errno;
#endif
	return 0;
}

static int
begin(void)
{
	if (setrlimit(RLIMIT_CPU, &(struct rlimit){CPU_SECONDS, CPU_SECONDS}) < 0 ||
		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}) < 0 ||
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return seal();
}

static void
end(int error, const char *text)
{
	struct fsdiff_end m = {.type = FSDIFF_END, .error = error};

	snprintf(m.text, sizeof(m.text), "%s", text);
	_exit(send(FSDIFF_SOCKET, &m, sizeof(m), 0) == (ssize_t)sizeof(m) ? 0 : 1);
}

static int
tell(struct walk *w, enum fsdiff_what what, enum fsdiff_kind kind, uint32_t fields,
	uint64_t size_a, uint64_t size_b)
{
	static struct fsdiff_change m;
	size_t len = offsetof(struct fsdiff_change, path) + w->path_len;

	m = (struct fsdiff_change){.type = FSDIFF_CHANGE,
		.what = what,
		.kind = kind,
		.fields = fields,
		.size = {size_a, size_b},
		.path_len = (uint32_t)w->path_len};
	memcpy(m.path, w->path, w->path_len);
	return send(FSDIFF_SOCKET, &m, len, 0) == (ssize_t)len ? 0 : -EPIPE;
}

/* "/name" behind the path; -ENAMETOOLONG. */
static int
enter(struct walk *w, const char *name)
{
	size_t len = strlen(name);

	if (w->path_len + 1 + len > FSDIFF_PATH_MAX)
		return -ENAMETOOLONG;
	w->path[w->path_len] = '/';
	memcpy(w->path + w->path_len + 1, name, len);
	w->path_len += 1 + len;
	return 0;
}

/* Whether it was there before: then the file system is a lie. */
static bool
seen_before(struct walk *w, unsigned side, uint32_t inode)
{
	uint8_t *byte, bit = (uint8_t)(1u << inode % 8);

	if (!w->seen[side])
		w->seen[side] =
			calloc(UINT32_MAX / 8 + 1, 1); /* mapped as it is touched */
	if (!w->seen[side])
		return true;
	byte = &w->seen[side][inode / 8];
	if (*byte & bit)
		return true;
	*byte |= bit;
	return false;
}

static int walk_folder(struct walk *w, uint32_t a, uint32_t b);

/* On one side only. */
static int
one_side(struct walk *w, unsigned side, uint32_t inode)
{
	struct ext4_stat st;
	int r = ext4_stat(w->fs[side], inode, &st);

	if (r == 0)
		r = tell(w, side ? FSDIFF_ADDED : FSDIFF_REMOVED, st.kind, 0,
			side ? 0 : st.size, side ? st.size : 0);
	if (r == 0 && st.kind == FSDIFF_FOLDER)
		r = walk_folder(w, side ? 0 : inode, side ? inode : 0);
	return r;
}

static int
both_sides(struct walk *w, uint32_t a, uint32_t b)
{
	struct ext4_stat x, y;
	uint32_t fields = 0;
	bool same = true;
	int r = ext4_stat(w->fs[0], a, &x);

	if (r == 0)
		r = ext4_stat(w->fs[1], b, &y);
	if (r < 0)
		return r;
	if ((x.mode & 07777) != (y.mode & 07777))
		fields |= FSDIFF_MODE;
	if (x.uid != y.uid || x.gid != y.gid)
		fields |= FSDIFF_OWNER;
	if (x.kind != y.kind) {
		r = tell(w, FSDIFF_CHANGED, y.kind, fields | FSDIFF_KIND, x.size, y.size);
		if (r == 0 && x.kind == FSDIFF_FOLDER)
			r = walk_folder(w, a, 0);
		if (r == 0 && y.kind == FSDIFF_FOLDER)
			r = walk_folder(w, 0, b);
		return r;
	}
	/* A folder's time and size are those of what is in it, which is told itself. */
	if (x.kind != FSDIFF_FOLDER) {
		if (x.mtime_s != y.mtime_s || x.mtime_ns != y.mtime_ns)
			fields |= FSDIFF_MTIME;
		if (x.size != y.size)
			fields |= FSDIFF_SIZE | FSDIFF_CONTENT;
		else if (x.kind == FSDIFF_FILE || x.kind == FSDIFF_SYMLINK)
			r = ext4_same(w->fs[0], a, w->fs[1], b, &same);
		else
			same = x.device == y.device && x.mode == y.mode;
		if (r == 0 && !same)
			fields |= FSDIFF_CONTENT;
	}
	if (r == 0 && fields)
		r = tell(w, FSDIFF_CHANGED, y.kind, fields, x.size, y.size);
	if (r == 0 && x.kind == FSDIFF_FOLDER)
		r = walk_folder(w, a, b);
	return r;
}

/* Inode 0: it is not there on that side. */
static int
walk_folder(struct walk *w, uint32_t a, uint32_t b)
{
	struct ext4_entry *ea = NULL, *eb = NULL;
	size_t na = 0, nb = 0, i = 0, j = 0, len = w->path_len;
	int r = 0;

	if ((a && seen_before(w, 0, a)) || (b && seen_before(w, 1, b)) ||
		w->depth == DEPTH_MAX)
		return -EBADMSG;
	w->depth++;
	if (a)
		r = ext4_list(w->fs[0], a, &ea, &na);
	if (r == 0 && b)
		r = ext4_list(w->fs[1], b, &eb, &nb);
	while (r == 0 && (i < na || j < nb)) {
		int order = i == na ? 1 : j == nb ? -1 : strcmp(ea[i].name, eb[j].name);

		r = enter(w, order <= 0 ? ea[i].name : eb[j].name);
		if (r < 0)
			break;
		if (order == 0)
			r = both_sides(w, ea[i].inode, eb[j].inode);
		else
			r = one_side(w, order > 0, order > 0 ? eb[j].inode : ea[i].inode);
		w->path_len = len;
		i += order <= 0;
		j += order >= 0;
	}
	w->depth--;
	ext4_entries_free(ea, na);
	ext4_entries_free(eb, nb);
	return r;
}

int
main(void)
{
	static struct walk w;
	struct disk *disks[2];
	char text[FSDIFF_TEXT_MAX], why[200];
	int r = begin();

	if (r < 0)
		end(r, "it cannot seal itself");
	r = disk_open_both(FSDIFF_SOCKET, &disks[0], &disks[1]);
	if (r < 0)
		end(r, "it did not understand the question");
	for (unsigned i = 0; i < 2; i++) {
		r = ext4_open(disks[i], i, &w.fs[i], why, sizeof(why));
		if (r < 0) {
			snprintf(text, sizeof(text), "the %s disk: %s",
				i ? "second" : "first", why);
			end(r, text);
		}
	}
	r = walk_folder(&w, EXT4_ROOT, EXT4_ROOT);
	if (r < 0) {
		snprintf(text, sizeof(text), "below \"%.60s\": %s",
			w.path_len ? w.path : "/",
			r == -EBADMSG ? "a file system is damaged" : strerror(-r));
		for (char *p = text; *p; p++)
			if ((unsigned char)*p < ' ' || *p == 127)
				*p = '?';
		end(r, text);
	}
	end(0, "");
}
