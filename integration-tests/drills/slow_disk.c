/* Loaded into a node (LD_PRELOAD), a disk that reads slowly: SLOW_DISK_BYTES_PER_SECOND, and only for the thread SLOW_DISK_THREAD if that
 * is set. The first large read is fast, so that the node answers as soon as it has its first blocks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int applies(void)
{
	const char *wanted = getenv("SLOW_DISK_THREAD");
	char name[16] = "";

	if (!wanted)
		return 1;
	pthread_getname_np(pthread_self(), name, sizeof(name));
	return !strcmp(name, wanted);
}

size_t fread(void *data, size_t size, size_t number, FILE *file)
{
	static size_t (*real)(void *, size_t, size_t, FILE *);
	static atomic_int large;
	size_t read, bytes;

	if (!real)
		real = (size_t (*)(void *, size_t, size_t, FILE *))dlsym(RTLD_NEXT, "fread");
	read = real(data, size, number, file);
	bytes = read * size;
	if (bytes > 1000000 && atomic_fetch_add(&large, 1) == 0)
		return read;
	if (applies())
		usleep(bytes * 1e6 / atof(getenv("SLOW_DISK_BYTES_PER_SECOND")));
	return read;
}
