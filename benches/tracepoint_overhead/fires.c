/* A program that fires the two tracepoints that a node hits most often, utxocache:add and net:inbound_message, with arguments as in
 * a node. As in a node that was built with GCC, the arguments of a message that the exporter reads are in registers, except the
 * message type, which is a std::string in memory.
 *
 * Each line of standard input is a command: `add TIMES`, or a message type and TIMES, for example `inv TIMES`. With `inv_block
 * TIMES`, the message is an inv that announces a block. After each command the program prints the time for a hit in nanoseconds. */
#define _SDT_HAS_SEMAPHORES 1
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sdt.h>
#include <time.h>

#define SEMAPHORE(name) \
	__extension__ volatile unsigned short name##_semaphore __attribute__((unused, section(".probes")))

SEMAPHORE(utxocache_add);
SEMAPHORE(net_inbound_message);

/* The memory to which the arguments of the tracepoints point. */
struct coin {
	unsigned char hash[32];
	uint32_t index, height;
	int64_t value;
	char address[64], connection[32];
	struct {
		const char *pointer;
		uint64_t length;
		char text[16];
	} type; /* has the layout of libstdc++'s std::string */
	unsigned char message[16384];
};

static __attribute__((noinline)) void add(const struct coin *coin)
{
	if (utxocache_add_semaphore)
		STAP_PROBE5(utxocache, add, coin->hash, coin->index, coin->height, coin->value, (_Bool)0);
}

static __attribute__((noinline)) void inbound_message(const struct coin *coin, uint64_t size, int64_t peer)
{
	if (net_inbound_message_semaphore)
		STAP_PROBE6(net, inbound_message, peer, coin->address, coin->connection, coin->type.pointer,
			    size, coin->message);
}

int main(void)
{
	struct coin *coin = calloc(1, sizeof(*coin));
	char what[32];
	uint64_t size;
	long times;

	if (!coin)
		return 1;
	coin->value = 5000;
	coin->type.pointer = coin->type.text;
	coin->index = 61;
	strcpy(coin->address, "127.0.0.1:8333");
	strcpy(coin->connection, "outbound-full-relay");
	while (scanf("%31s %ld", what, &times) == 2) {
		struct timespec from, to;

		bool is_inv = !strncmp(what, "inv", 3);

		snprintf(coin->type.text, sizeof(coin->type.text), "%.15s", is_inv ? "inv" : what);
		coin->type.length = strlen(coin->type.text);
		memset(coin->message, 0, sizeof(coin->message));
		coin->message[0] = 1; /* the number of inventory entries or of headers in the message */
		coin->message[1] = is_inv ? 1 + (what[3] != 0) : 0;
		size = !strcmp(what, "headers") ? 82 : sizeof(coin->message);
		clock_gettime(CLOCK_MONOTONIC, &from);
		for (long i = 0; i < times; i++)
			if (!strcmp(what, "add"))
				add(coin);
			else
				inbound_message(coin, size, times);
		clock_gettime(CLOCK_MONOTONIC, &to);
		printf("%.1f\n", ((to.tv_sec - from.tv_sec) * 1e9 + to.tv_nsec - from.tv_nsec) / times);
		fflush(stdout);
	}
	return 0;
}
