/*
 * Where things are (ARCHITECTURE.md, "Files on the host"). Nothing here makes a file.
 *
 * Programs find each other relative to their own /proc/self/exe: bin/{pando,pandod},
 * libexec/pando/…, share/pando/….
 */
#ifndef PANDO_COMMON_PATHS_H
#define PANDO_COMMON_PATHS_H

#include <stddef.h>

#include "common/err.h"

#define PATHS_MAX 4096
/* The longest file below PANDO_HOME that must be a Unix socket's address:
 * "/vms/<12 digits>/control.sock" must fit sun_path (108 with its NUL). */
#define PATHS_HOME_MAX (108 - 1 - 30)

/* $PANDO_HOME, else $XDG_DATA_HOME/pando, else ~/.local/share/pando: absolute, without a
 * trailing slash. A relative, unset-able or too long one is refused with a sentence. cap:
 * PATHS_MAX. */
int paths_home(char *dst, size_t cap, struct err *e);
/* $PANDO_IMAGES, else $XDG_CACHE_HOME/pando/images, else ~/.cache/pando/images. */
int paths_images(char *dst, size_t cap, struct err *e);
/* <home>/pandod.sock */
int paths_socket(char *dst, size_t cap, struct err *e);

/* A file of this installation: <folder of the running program>/../<relative>, for example
 * "libexec/pando/pando-vmm". Says nothing about its existence. */
int paths_program(const char *relative, char *dst, size_t cap, struct err *e);

/* snprintf that refuses truncation: -ENAMETOOLONG with a sentence. */
int paths_format(char *dst, size_t cap, struct err *e, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

#endif
