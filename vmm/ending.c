#include "vmm/ending.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

void
ending_tell(struct vm *vm, enum vmm_exit_reason reason, const char *fmt, ...)
{
	const uint64_t one = 1;
	int expected = 0;
	va_list ap;

	if (!atomic_compare_exchange_strong(&vm->ending, &expected, 1))
		return;
	vm->end_reason = reason;
	va_start(ap, fmt);
	vsnprintf(vm->end_msg, sizeof(vm->end_msg), fmt, ap);
	va_end(ap);
	atomic_store(&vm->ending, 2);
	(void)!write(vm->event_fd, &one, sizeof(one));
}
