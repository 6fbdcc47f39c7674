/*
 * node-random.node, an addon for files/guest/usr/lib/pando/node-random.cjs: the two things that
 * cannot be done in JavaScript.
 *
 * It gives Node the machine's generation as memory that changes by itself: require() of it is an
 * ArrayBuffer of the file's mapping, or no ArrayBuffer where there is no such file. The mapping is
 * read-only: who writes to the buffer ends its process. A worker thread has a mapping of its own.
 *
 * And it lets Node's OpenSSL draw from the kernel. Most Nodes have one of their own inside, which
 * reads no openssl.cnf of the system, and has made its generators before an addon is loaded:
 * RAND_set_rand_method(3) is what all versions obey at any time.
 *
 * The interface is Node-API, whose binary form is the same in all versions since 8; of that and
 * of OpenSSL no header is needed for what is used of them.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#define GENERATION "/run/pando/generation"
#define LEN 32

/* RAND_METHOD of <openssl/rand.h>: the same in all versions from 0.9.8 to 3.x. */
struct rand_method {
	int (*seed)(const void *buf, int num);
	int (*bytes)(unsigned char *buf, int num);
	void (*cleanup)(void);
	int (*add)(const void *buf, int num, double randomness);
	int (*pseudorand)(unsigned char *buf, int num);
	int (*status)(void);
};

typedef struct napi_env_of_node *napi_env;
typedef struct napi_value_of_node *napi_value;

int napi_create_external_arraybuffer(napi_env env, void *data, size_t len,
	void (*finalize)(napi_env, void *, void *), void *hint, napi_value *ret);
napi_value napi_register_module_v1(napi_env env, napi_value exports);

static int
kernel_bytes(unsigned char *buf, int num)
{
	while (num > 0) {
		ssize_t n = getrandom(buf, (size_t)num, 0);

		if (n < 0 && errno != EINTR)
			return 0;
		if (n > 0) {
			buf += n;
			num -= (int)n;
		}
	}
	return 1;
}

static int
kernel_seed(const void *buf, int num)
{
	(void)buf;
	(void)num;
	return 1;
}

static int
kernel_add(const void *buf, int num, double randomness)
{
	(void)randomness;
	return kernel_seed(buf, num);
}

static int
kernel_status(void)
{
	return 1;
}

static void
draw_from_kernel(void)
{
	static const struct rand_method method = {
		.seed = kernel_seed,
		.bytes = kernel_bytes,
		.add = kernel_add,
		.pseudorand = kernel_bytes,
		.status = kernel_status,
	};
	int (*set)(const struct rand_method *) = NULL;

	*(void **)&set = dlsym(RTLD_DEFAULT, "RAND_set_rand_method");
	if (set)
		set(&method);
}

static void
finalize(napi_env env, void *data, void *hint)
{
	(void)env;
	(void)hint;
	munmap(data, LEN);
}

static void *
map(void)
{
	const char *path = getenv("PANDO_GENERATION_FILE");
	int fd = open(path ? path : GENERATION, O_RDONLY | O_CLOEXEC);
	void *p;

	if (fd < 0)
		return NULL;
	/* Memory behind a shorter file's end cannot be read. */
	p = lseek(fd, 0, SEEK_END) < LEN ? MAP_FAILED
					 : mmap(NULL, LEN, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	return p == MAP_FAILED ? NULL : p;
}

__attribute__((visibility("default"))) napi_value
napi_register_module_v1(napi_env env, napi_value exports)
{
	void *p = map();
	napi_value buffer;

	if (!p)
		return exports;
	draw_from_kernel();
	if (napi_create_external_arraybuffer(env, p, LEN, finalize, NULL, &buffer)) {
		munmap(p, LEN);
		return exports;
	}
	return buffer;
}
