/*
 * Scope-bound ownership. A descriptor starts at -1; 0 is valid. Hand over with
 * TAKE_FD / TAKE_PTR. A type's own cleanup_<type> lives in that type's header.
 */
#ifndef PANDO_COMMON_CLEANUP_H
#define PANDO_COMMON_CLEANUP_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <dirent.h>

static inline void
cleanup_close_fn(int *fd)
{
	if (*fd >= 0)
		close(*fd); /* never retried: the descriptor is gone either way */
}

static inline void
cleanup_free_fn(void *p)
{
	free(*(void **)p);
}

static inline void
cleanup_fclose_fn(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void
cleanup_closedir_fn(DIR **d)
{
	if (*d)
		closedir(*d);
}

#define cleanup_close __attribute__((cleanup(cleanup_close_fn)))
#define cleanup_free __attribute__((cleanup(cleanup_free_fn)))
#define cleanup_fclose __attribute__((cleanup(cleanup_fclose_fn)))
#define cleanup_closedir __attribute__((cleanup(cleanup_closedir_fn)))

#define TAKE_FD(fd) \
	__extension__({ \
		int take_fd_ = (fd); \
		(fd) = -1; \
		take_fd_; \
	})
#define TAKE_PTR(p) \
	__extension__({ \
		__typeof__(p) take_ptr_ = (p); \
		(p) = NULL; \
		take_ptr_; \
	})

#endif
