/* cmocka, the skip where there is no /dev/kvm (a setup that leaves *state NULL), and calls
 * that must succeed. */
#ifndef PANDO_TESTS_KVM_KVM_SKIP_H
#define PANDO_TESTS_KVM_KVM_SKIP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/err.h"

#define NEEDS_KVM(state) \
	do { \
		if (!*(state)) \
			skip(); \
	} while (0)

#define MUST(call) \
	do { \
		struct err must_err_ = {0, ""}; \
		struct err *e = &must_err_; \
		if ((call) < 0) \
			fail_msg("%s: %s", #call, must_err_.msg); \
	} while (0)

#endif
