/* A library for LD_PRELOAD, which injects faults into a node. These environment variables select the faults:
 *
 *   PRELOAD_BYTES_PER_SECOND  limits the rate at which the node reads files with reads of more than 1 MB. The first of
 *                             these reads is not limited, because a node with -reindex responds only after this read.
 *   PRELOAD_HANGS             makes the thread hang that sets its name to this value. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

size_t fread(void *data, size_t size, size_t number, FILE *file)
{
	static size_t (*real)(void *, size_t, size_t, FILE *);
	static atomic_int large;
	const char *rate = getenv("PRELOAD_BYTES_PER_SECOND");
	size_t read, bytes;

	if (!real)
		real = (size_t (*)(void *, size_t, size_t, FILE *))dlsym(RTLD_NEXT, "fread");
	read = real(data, size, number, file);
	bytes = read * size;
	if (!rate || bytes <= 1000000 || atomic_fetch_add(&large, 1) == 0)
		return read;
	usleep(bytes * 1e6 / atof(rate));
	return read;
}

int prctl(int option, ...)
{
	static int (*real)(int, ...);
	const char *hangs = getenv("PRELOAD_HANGS");
	unsigned long arguments[4];
	va_list list;

	if (!real)
		real = (int (*)(int, ...))dlsym(RTLD_NEXT, "prctl");
	va_start(list, option);
	for (int at = 0; at < 4; at++)
		arguments[at] = va_arg(list, unsigned long);
	va_end(list);
	while (option == PR_SET_NAME && hangs && !strcmp((const char *)arguments[0], hangs))
		pause();
	return real(option, arguments[0], arguments[1], arguments[2], arguments[3]);
}
