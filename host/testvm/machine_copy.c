#include "host/testvm/machine_copy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"

#define DEPTH_MAX 64
#define LIST_MAX (256u << 20)

extern char **environ;

/* What tells one state of a file from another. A folder's times change with what is in
 * it, so only its mode counts. All 0: not known to be in the machine. */
struct stamp {
	uint64_t mode, size, mtime_ns, ctime_ns, inode;
};

struct file {
	char *path; /* owned; relative to the folder */
	struct stamp stamp;
};

struct list {
	struct file *v; /* owned; by path, once sorted */
	size_t n, cap;
	uint64_t bytes;
};

static void
list_done(struct list *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->v[i].path);
	free(l->v);
}
#define cleanup_list __attribute__((cleanup(list_done)))

static int
list_add(struct list *l, const char *path, size_t len, const struct stamp *stamp)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 256;
		struct file *v = realloc(l->v, cap * sizeof(*v));

		if (!v)
			return -ENOMEM;
		l->v = v;
		l->cap = cap;
	}
	l->v[l->n].path = strndup(path, len);
	if (!l->v[l->n].path)
		return -ENOMEM;
	l->v[l->n++].stamp = *stamp;
	return 0;
}

static int
by_path(const void *a, const void *b)
{
	return strcmp(((const struct file *)a)->path, ((const struct file *)b)->path);
}

/*
 * What the host has.
 */

struct scan {
	const struct machine_folder *folder;
	struct list *list;
	char path[PATHS_MAX]; /* relative to the folder, of what is looked at */
	struct err *e;
};

static struct stamp
stamp_of(const struct stat *st)
{
	struct stamp s = {.mode = st->st_mode};

	if (S_ISDIR(st->st_mode))
		return s;
	s.size = (uint64_t)st->st_size;
	s.mtime_ns = (uint64_t)st->st_mtim.tv_sec * 1000000000u +
		     (uint64_t)st->st_mtim.tv_nsec;
	s.ctime_ns = (uint64_t)st->st_ctim.tv_sec * 1000000000u +
		     (uint64_t)st->st_ctim.tv_nsec;
	s.inode = st->st_ino;
	return s;
}

static bool
is_left_out(const struct scan *s)
{
	const char *base = strrchr(s->path, '/');

	if (strcmp(base ? base + 1 : s->path, ".git") == 0)
		return true;
	for (const char *const *w = s->folder->without; w && *w; w++)
		if (strcmp(*w, s->path) == 0)
			return true;
	return false;
}

static int scan_entry(
	struct scan *s, int parent, const char *name, size_t len, unsigned depth);

static int
scan_folder(struct scan *s, int fd, size_t len, unsigned depth)
{
	cleanup_closedir DIR *dir = fdopendir(fd);
	struct dirent *d;
	int r;

	if (!dir) {
		r = -errno;
		close(fd);
		return err_sys(s->e, r, "%.200s/%.200s", s->folder->path, s->path);
	}
	while ((d = readdir(dir))) {
		size_t n = strlen(d->d_name);

		if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
			continue;
		if (len + n + 2 > sizeof(s->path))
			return err_set(s->e, -ENAMETOOLONG,
				"a path below %.200s is too long", s->folder->path);
		if (len)
			s->path[len] = '/';
		memcpy(s->path + len + (len > 0), d->d_name, n + 1);
		r = scan_entry(s, dirfd(dir), d->d_name, len + (len > 0) + n, depth);
		if (r < 0)
			return r;
	}
	return 0;
}

/* s->path is the entry's; len its length. What vanishes while we look was never there. */
static int
scan_entry(struct scan *s, int parent, const char *name, size_t len, unsigned depth)
{
	struct stamp stamp;
	struct stat st;
	int fd, r;

	if (is_left_out(s) || fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
		!(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) || S_ISLNK(st.st_mode)))
		return 0;
	/* What we may not read does not exist for the machine either. */
	if (!S_ISLNK(st.st_mode) && faccessat(parent, name, R_OK, 0) < 0)
		return 0;
	if (S_ISDIR(st.st_mode)) {
		fd = openat(
			parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0)
			return 0;
		if (faccessat(fd, "CACHEDIR.TAG", F_OK, 0) == 0 || depth == DEPTH_MAX) {
			close(fd);
			return 0;
		}
	} else {
		fd = -1;
	}
	stamp = stamp_of(&st);
	s->list->bytes += S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512 : 0;
	r = list_add(s->list, s->path, len, &stamp);
	if (r < 0)
		err_sys(s->e, r, "%.200s", s->folder->path);
	else if (s->list->n > MACHINE_COPY_FILES_MAX ||
		 s->list->bytes > MACHINE_COPY_BYTES_MAX)
		r = err_set(s->e, -EFBIG,
			"%.200s is too large to be copied into the machine (more than %u files or %u GiB): run this in a project's own folder; a folder that holds a "
			"CACHEDIR.TAG is left out",
			s->folder->path, MACHINE_COPY_FILES_MAX,
			(unsigned)(MACHINE_COPY_BYTES_MAX >> 30));
	if (r < 0) {
		if (fd >= 0)
			close(fd);
		return r;
	}
	if (fd < 0)
		return 0;
	return scan_folder(s, fd, len, depth + 1);
}

/* The folders above an entry of `only`, which the machine needs first. */
static int
scan_parents(struct scan *s, int root, const char *name)
{
	for (const char *slash = strchr(name, '/'); slash;
		slash = strchr(slash + 1, '/')) {
		size_t len = (size_t)(slash - name);
		struct stamp stamp;
		struct stat st;
		bool known = false;

		memcpy(s->path, name, len);
		s->path[len] = '\0';
		if (fstatat(root, s->path, &st, 0) < 0 || !S_ISDIR(st.st_mode))
			return 0;
		for (size_t i = 0; i < s->list->n && !known; i++)
			known = strcmp(s->list->v[i].path, s->path) == 0;
		stamp = stamp_of(&st);
		if (!known && list_add(s->list, s->path, len, &stamp) < 0)
			return err_sys(s->e, -ENOMEM, "%.200s", s->folder->path);
	}
	return 0;
}

static int
scan(const struct machine_folder *folder, struct list *list, struct err *e)
{
	cleanup_free struct scan *s = calloc(1, sizeof(*s));
	cleanup_close int root = open(folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r = 0;

	if (!s)
		return err_sys(e, -ENOMEM, "%.200s", folder->path);
	if (root < 0)
		return err_sys(e, -errno, "%.200s", folder->path);
	*s = (struct scan){.folder = folder, .list = list, .e = e};
	if (!folder->only)
		r = scan_folder(s, TAKE_FD(root), 0, 0);
	for (const char *const *o = folder->only; r == 0 && o && *o; o++) {
		if (strlen(*o) >= sizeof(s->path))
			return err_set(e, -ENAMETOOLONG,
				"a path below %.200s is too long", folder->path);
		r = scan_parents(s, root, *o);
		strcpy(s->path, *o);
		if (r == 0)
			r = scan_entry(s, root, *o, strlen(*o), 0);
	}
	if (r == 0 && list->n)
		qsort(list->v, list->n, sizeof(*list->v), by_path);
	return r;
}

/*
 * What the machine has.
 */

/* "mode size mtime ctime inode path", each ended by a NUL: a path may hold anything else.
 * The first one is the folder itself, because two names could share a hash. */
static int
read_list(const char *path, const char *folder, struct list *ret)
{
	cleanup_free char *text = NULL;
	size_t len;
	int r = access(path, F_OK) < 0 ? -ENOENT
				       : io_read_file(path, LIST_MAX, &text, &len, NULL);

	if (r < 0)
		return r;
	if (len < strlen(folder) + 1 || strcmp(text, folder) != 0)
		return -ENOENT;
	for (const char *p = text + strlen(folder) + 1; p < text + len;
		p += strlen(p) + 1) {
		struct stamp s;
		int at = 0;

		if (sscanf(p,
			    "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
			    " %n",
			    &s.mode, &s.size, &s.mtime_ns, &s.ctime_ns, &s.inode,
			    &at) != 5 ||
			!at)
			return -EINVAL;
		r = list_add(ret, p + at, strlen(p + at), &s);
		if (r < 0)
			return r;
	}
	return 0;
}

static int
write_list(const char *path, const char *folder, const struct list *l, struct err *e)
{
	cleanup_free char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);
	int r;

	if (!f)
		return err_sys(e, -errno, "%.200s", path);
	fprintf(f, "%s%c", folder, 0);
	for (size_t i = 0; i < l->n; i++) {
		const struct stamp *s = &l->v[i].stamp;

		fprintf(f,
			"%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64
			" %s%c",
			s->mode, s->size, s->mtime_ns, s->ctime_ns, s->inode,
			l->v[i].path, 0);
	}
	r = ferror(f);
	if (fclose(f) != 0 || r)
		return err_sys(e, -ENOMEM, "%.200s", path);
	return io_write_file_atomic(path, text, len, 0600, e);
}

/*
 * The difference.
 */

struct change {
	struct list send;   /* what the host has and the machine has not, or not so */
	struct list remove; /* what the machine has and the host has not, or as another
			       kind */
	struct list during; /* what may be in the machine if we are cut short */
};

static void
change_done(struct change *c)
{
	list_done(&c->send);
	list_done(&c->remove);
	list_done(&c->during);
}

static int
note(struct list *l, const struct file *f, bool unknown)
{
	static const struct stamp zero;

	return list_add(l, f->path, strlen(f->path), unknown ? &zero : &f->stamp);
}

static int
compare(const struct list *host, const struct list *machine, bool keep, struct change *c)
{
	size_t h = 0, m = 0;
	int r = 0;

	while (r == 0 && (h < host->n || m < machine->n)) {
		const struct file *on_host = h < host->n ? &host->v[h] : NULL;
		const struct file *there = m < machine->n ? &machine->v[m] : NULL;
		int order = !on_host ? 1
			    : !there ? -1
				     : strcmp(on_host->path, there->path);

		if (order > 0) { /* only there */
			if (!keep)
				r = note(&c->remove, there, true);
			if (r == 0 && !keep)
				r = note(&c->during, there, true);
			m++;
			continue;
		}
		h++;
		if (order == 0)
			m++;
		if (order == 0 && memcmp(&on_host->stamp, &there->stamp,
					  sizeof(struct stamp)) == 0) {
			r = note(&c->during, on_host, false);
			continue;
		}
		/* tar replaces a file by a file, but not a folder by a file or a file by
		 * a folder. */
		if (order == 0 &&
			(on_host->stamp.mode & S_IFMT) != (there->stamp.mode & S_IFMT))
			r = note(&c->remove, there, true);
		if (r == 0)
			r = note(&c->send, on_host, false);
		if (r == 0)
			r = note(&c->during, on_host, true);
		c->send.bytes += S_ISREG(on_host->stamp.mode) ? on_host->stamp.size : 0;
	}
	return r;
}

/*
 * Sending.
 */

/* The paths, each ended by a NUL, in memory, to be read from the start. */
static int
paths_fd(const struct list *l, int *ret_fd)
{
	cleanup_close int fd = memfd_create("pando-paths", MFD_CLOEXEC);
	cleanup_fclose FILE *f = NULL;
	int copy;

	if (fd < 0)
		return -errno;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	f = copy < 0 ? NULL : fdopen(copy, "w");
	if (!f)
		return -errno;
	for (size_t i = 0; i < l->n; i++)
		fwrite(l->v[i].path, 1, strlen(l->v[i].path) + 1, f);
	if (fflush(f) != 0)
		return -errno;
	if (lseek(fd, 0, SEEK_SET) < 0)
		return -errno;
	*ret_fd = TAKE_FD(fd);
	return 0;
}

/* Runs text in the machine with in_fd as its input; what it complains about is the
 * sentence. */
static int
run_there(struct ssh_link *link, const char *text, int in_fd, struct err *e)
{
	cleanup_close int complaints = memfd_create("pando-stderr", MFD_CLOEXEC);
	struct ssh_command c = SSH_COMMAND_INIT;
	char said[300], shown[300];
	int status, r;
	ssize_t n;

	if (complaints < 0)
		return err_sys(e, -errno, "memfd_create");
	c.text = text;
	c.in_fd = in_fd;
	c.err_fd = complaints;
	r = ssh_link_run(link, &c, &status, e);
	if (r < 0 || status == 0)
		return r;
	n = pread(complaints, said, sizeof(said) - 1, 0);
	said[n > 0 ? n : 0] = '\0';
	said[strcspn(said, "\n")] = '\0';
	return err_set(e, -EIO, "copying into the machine failed (status %d): %s", status,
		log_escape(shown, sizeof(shown), said, strlen(said)));
}

/* What is written down as sent must outlive the machine, which may be ended at any
 * moment. */
#define ON_ITS_DISK " && exec sync"

/* "<before><folder, quoted><after>" */
static int
sentence(char **ret, const char *before, const char *folder, const char *after)
{
	cleanup_free char *quoted = NULL;
	int r = ssh_quote(&quoted, folder);

	if (r < 0)
		return r;
	return asprintf(ret, "%s%s%s", before, quoted, after) < 0 ? -ENOMEM : 0;
}

static int
remove_there(
	struct ssh_link *link, const char *folder, const struct list *l, struct err *e)
{
	cleanup_free char *text = NULL;
	cleanup_close int fd = -1;
	int r = paths_fd(l, &fd);

	if (r == 0)
		r = sentence(
			&text, "cd ", folder, " && xargs -0 -r rm -rf --" ON_ITS_DISK);
	return r < 0 ? err_sys(e, r, "copying into the machine")
		     : run_there(link, text, fd, e);
}

/* Packs the paths into the new file `archive`. A file that vanished or changed meanwhile
 * is no failure (status 1, 2), only *ret_all is false then: the next call sees it. */
static int
pack(const char *folder, const struct list *l, const char *archive, bool *ret_all,
	struct err *e)
{
	/* The options are read in order: where the files are comes before their list. */
	const char *argv[] = {"tar", "--create", "--file", archive, "--format=gnu",
		"--sparse", "--no-recursion", "--owner=0", "--group=0", "--null",
		"--verbatim-files-from", "--directory", folder, "--files-from=-", NULL};
	posix_spawn_file_actions_t actions;
	cleanup_close int paths = -1;
	int status, r = paths_fd(l, &paths);
	pid_t pid;

	if (r < 0)
		return err_sys(e, r, "copying into the machine");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, paths, 0);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_adddup2(
		&actions, 1, 2); /* what it says is in its status */
	r = posix_spawnp(
		&pid, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (r)
		return err_sys(e, -r, "tar");
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return err_sys(e, -errno, "waiting for tar");
	*ret_all = WIFEXITED(status) && WEXITSTATUS(status) == 0;
	return 0;
}

/* Whether all of an archive is there: tar ends it with two empty blocks. A full disk cuts
 * it short. */
static int
check_archive(const char *archive, struct err *e)
{
	cleanup_close int fd = open(archive, O_RDONLY | O_CLOEXEC);
	char end[1024];
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return err_sys(e, -errno, "%.200s", archive);
	if (st.st_size >= (off_t)sizeof(end) &&
		io_pread_full(fd, end, sizeof(end), (uint64_t)st.st_size - sizeof(end)) ==
			0) {
		size_t i = 0;

		while (i < sizeof(end) && end[i] == 0)
			i++;
		if (i == sizeof(end))
			return 0;
	}
	return err_set(
		e, -EIO, "%.200s could not be written whole; is the disk full?", archive);
}

/* The archive goes through a file that the machine sees: emulated network is slow. One at
 * a time: we hold the lock. */
static int
send_there(const struct machine *m, struct ssh_link *link, const char *folder,
	const struct list *l, bool *ret_all, struct err *e)
{
	cleanup_free char *text = NULL;
	char archive[PATHS_MAX];
	int r = paths_format(
		archive, sizeof(archive), e, "%s/transfer/archive.tar", m->home);

	if (r < 0)
		return r;
	if (sentence(&text,
		    "tar --extract --blocking-factor=960 --file=/run/pando-machine/transfer/archive.tar --preserve-permissions --no-same-owner --delay-directory-restore --directory ",
		    folder, ON_ITS_DISK) < 0)
		return err_sys(e, -ENOMEM, "copying into the machine");
	r = pack(folder, l, archive, ret_all, e);
	if (r == 0)
		r = check_archive(archive, e);
	if (r == 0)
		r = run_there(link, text, -1, e);
	unlink(archive);
	return r;
}

/* FNV-1a: a file name for a folder. */
static uint64_t
name_of(const char *folder)
{
	uint64_t h = UINT64_C(14695981039346656037);

	for (; *folder; folder++)
		h = (h ^ (unsigned char)*folder) * UINT64_C(1099511628211);
	return h;
}

static int
lock_copies(const struct machine *m, int *ret_fd, struct err *e)
{
	cleanup_close int fd = -1;
	char path[PATHS_MAX];
	int r = paths_format(path, sizeof(path), e, "%s/copied", m->home);

	if (r == 0)
		r = io_mkdir_p(path, 0700, e);
	if (r < 0)
		return r;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return err_sys(e, -errno, "%.200s", path);
	while (flock(fd, LOCK_EX) < 0)
		if (errno != EINTR)
			return err_sys(e, -errno, "%.200s", path);
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int
apply(const struct machine *m, struct ssh_link *link, const struct machine_folder *f,
	const struct change *c, bool is_new, bool *ret_all, struct err *e)
{
	cleanup_free char *text = NULL;
	int r = 0;

	*ret_all = true;
	if (is_new) {
		r = sentence(&text, "exec mkdir -p ", f->path, "");
		r = r < 0 ? err_sys(e, r, "%.200s", f->path)
			  : run_there(link, text, -1, e);
	}
	if (r == 0 && c->remove.n)
		r = remove_there(link, f->path, &c->remove, e);
	if (r == 0 && c->send.n)
		r = send_there(m, link, f->path, &c->send, ret_all, e);
	return r;
}

int
machine_copy(const struct machine *m, struct ssh_link *link,
	const struct machine_folder *f, struct machine_copy_stats *ret, struct err *e)
{
	__attribute__((cleanup(change_done))) struct change c = {0};
	cleanup_list struct list host = {0}, there = {0}, after = {0};
	cleanup_close int lock = -1;
	char path[PATHS_MAX];
	bool all = false, is_new;
	int r = lock_copies(m, &lock, e);

	if (r == 0)
		r = paths_format(path, sizeof(path), e, "%s/copied/%016" PRIx64, m->home,
			name_of(f->path));
	if (r == 0)
		r = scan(f, &host, e);
	if (r < 0)
		return r;
	is_new = read_list(path, f->path, &there) < 0;
	if (compare(&host, &there, f->keep, &c) < 0)
		return err_sys(e, -ENOMEM, "%.200s", f->path);
	*ret = (struct machine_copy_stats){host.n, c.send.n, c.remove.n, c.send.bytes};
	if (!c.send.n && !c.remove.n && !is_new)
		return 0;
	r = write_list(path, f->path, &c.during, e);
	if (r == 0)
		r = apply(m, link, f, &c, is_new, &all, e);
	if (r < 0)
		return r;
	if (all)
		return write_list(path, f->path, &host, e);
	/* Something moved under tar's hands: what looks the same before and after has
	 * arrived. */
	r = scan(f, &after, e);
	if (r < 0)
		return r;
	change_done(&c);
	c = (struct change){0};
	if (compare(&after, &host, false, &c) < 0)
		return err_sys(e, -ENOMEM, "%.200s", f->path);
	return write_list(path, f->path, &c.during, e);
}

int
machine_image_names(const char *images, const char *const **ret, struct err *e)
{
	cleanup_list struct list names = {0};
	static const struct stamp zero;
	cleanup_closedir DIR *dir = opendir(images);
	char target[256], **v, *text;
	struct dirent *d;
	size_t bytes = 0;
	ssize_t n;

	if (!dir && errno != ENOENT)
		return err_sys(e, -errno, "%.200s", images);
	while (dir && (d = readdir(dir))) {
		if (d->d_name[0] == '.')
			continue;
		n = readlinkat(dirfd(dir), d->d_name, target, sizeof(target) - 1);
		if (n <= 0)
			continue;
		target[n] = '\0';
		/* A link to elsewhere is the host's business. */
		if (strchr(target, '/') || target[0] == '.')
			continue;
		if (list_add(&names, d->d_name, strlen(d->d_name), &zero) < 0 ||
			list_add(&names, target, (size_t)n, &zero) < 0)
			return err_sys(e, -ENOMEM, "%.200s", images);
	}
	if (names.n)
		qsort(names.v, names.n, sizeof(*names.v), by_path);
	for (size_t i = 0; i < names.n; i++)
		bytes += strlen(names.v[i].path) + 1;
	v = malloc((names.n + 1) * sizeof(*v) + bytes);
	if (!v)
		return err_sys(e, -ENOMEM, "%.200s", images);
	text = (char *)(v + names.n + 1);
	n = 0;
	for (size_t i = 0; i < names.n; i++) {
		if (i && strcmp(names.v[i].path, names.v[i - 1].path) == 0)
			continue;
		v[n++] = strcpy(text, names.v[i].path);
		text += strlen(text) + 1;
	}
	v[n] = NULL;
	*ret = (const char *const *)v;
	return 0;
}
