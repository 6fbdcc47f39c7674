#include "common/memfd.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

bool
memfd_setting_is_huge(const char *setting)
{
	return strstr(setting, "[always]") || strstr(setting, "[within_size]") ||
	       strstr(setting, "[force]");
}

bool
memfd_takes_huge_pages(void)
{
	cleanup_close int fd = open(MEMFD_HUGE_SETTING, O_RDONLY | O_CLOEXEC);
	char text[128];
	ssize_t n = fd < 0 ? -1 : io_read(fd, text, sizeof(text) - 1);

	if (n < 0)
		return false; /* a kernel without huge pages */
	text[n] = '\0';
	return memfd_setting_is_huge(text);
}
