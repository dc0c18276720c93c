/* A program with the tracepoints of FIBRE and Bitcoin Core. Each line of standard input is a command that fires tracepoints:
 *
 *   [repeat THREADS TIMES] reconstructed SOURCE USED RECEIVED PEERS MICROSECONDS [HEIGHT]
 *   [repeat THREADS TIMES] send
 *   [repeat THREADS TIMES] winner HEIGHT MECHANISM PEER
 *   [repeat THREADS TIMES] time HEIGHT UDP_NS UDP_PEER COMPACT_NS COMPACT_PEER
 *   [repeat THREADS TIMES] detail MISSING BYTES MEMPOOL TOTAL ALL      (with -DDETAIL)
 *   [repeat THREADS TIMES] header_chunk QUEUE MAPS CHUNKS FINISH       (with -DNEWEST)
 *   [repeat THREADS TIMES] log_queued SEQUENCE DEPTH                   (with -DNEWEST, as log_started and log_completed)
 *   [repeat THREADS TIMES] log_started SEQUENCE KIND
 *   [repeat THREADS TIMES] log_completed SEQUENCE KIND DEPTH
 *   message TYPE SIZE                                                              (with -DSTANDARD)
 *   misbehaving REASON                                                             (with -DSTANDARD)
 *   [repeat THREADS TIMES] standard NUMBER NUMBER NUMBER NUMBER NUMBER TEXT TEXT   (with -DSTANDARD)
 *   way PREFILLED MEMPOOL EXTRA_POOL REQUESTED BYTES                               (with -DSTANDARD)
 *
 *   [main | named THREAD] block HEIGHT HASH_BYTE NANOSECONDS                      (with -DSTANDARD)
 *
 * After each command the program prints `fired`. A command runs on new threads (by default one), or on the main thread if the
 * command begins with `main`. With -DNEWEST, the tracepoint of `reconstructed` has the hash as text, and the height. */
#define _SDT_HAS_SEMAPHORES 1
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sdt.h>

#define SEMAPHORE(name) \
	__extension__ volatile unsigned short name##_semaphore __attribute__((unused, section(".probes")))
/* Fires a tracepoint if a tracer is attached. Without a tracer, nothing is computed, as in a node. */
#define FIRE(arguments, provider, name, ...)   \
	if (provider##_##name##_semaphore)     \
		STAP_PROBE##arguments(provider, name, __VA_ARGS__)

#ifndef NONE
SEMAPHORE(udp_block_reconstructed);
SEMAPHORE(udp_block_send_start);
SEMAPHORE(udp_block_race_winner);
SEMAPHORE(udp_block_race_time);
#ifdef DETAIL
SEMAPHORE(udp_block_reconstruction_detail);
#endif
#ifdef NEWEST
SEMAPHORE(udp_block_header_chunk);
SEMAPHORE(udp_block_coinbase);
SEMAPHORE(logging_async_file_queued);
SEMAPHORE(logging_async_file_operation_started);
SEMAPHORE(logging_async_file_operation_completed);
#endif
#endif

#ifdef STANDARD
SEMAPHORE(validation_block_connected);
SEMAPHORE(utxocache_add);
SEMAPHORE(utxocache_spent);
SEMAPHORE(utxocache_uncache);
SEMAPHORE(utxocache_flush);
SEMAPHORE(mempool_added);
SEMAPHORE(mempool_removed);
SEMAPHORE(mempool_replaced);
SEMAPHORE(mempool_rejected);
SEMAPHORE(net_inbound_message);
SEMAPHORE(net_outbound_message);
SEMAPHORE(net_inbound_connection);
SEMAPHORE(net_outbound_connection);
SEMAPHORE(net_closed_connection);
SEMAPHORE(net_evicted_inbound_connection);
SEMAPHORE(net_misbehaving_connection);
SEMAPHORE(net_block_header);
SEMAPHORE(net_compact_block_reconstructed);

/* Fires each tracepoint of Bitcoin Core once. */
static __attribute__((noinline)) void fire_standard(const void *hash, const char (*texts)[128], const int64_t *n)
{
	FIRE(6, validation, block_connected, hash, (int32_t)n[0], (uint64_t)n[1], (int32_t)n[2], (uint64_t)n[3], n[4]);
	FIRE(5, utxocache, add, hash, (uint32_t)n[0], (uint32_t)n[1], n[2], (bool)0);
	FIRE(5, utxocache, spent, hash, (uint32_t)n[0], (uint32_t)n[1], n[2], (bool)0);
	FIRE(5, utxocache, uncache, hash, (uint32_t)n[0], (uint32_t)n[1], n[2], (bool)0);
	FIRE(5, utxocache, flush, n[4], (uint32_t)n[0], (uint64_t)n[1], (uint64_t)n[2], (bool)0);
	FIRE(3, mempool, added, hash, (int32_t)n[0], n[1]);
	FIRE(5, mempool, removed, hash, texts[0], (int32_t)n[0], n[1], (uint64_t)n[2]);
	FIRE(3, mempool, replaced, hash, (int32_t)n[0], n[1]);
	FIRE(2, mempool, rejected, hash, texts[1]);
	FIRE(6, net, inbound_message, n[0], texts[1], texts[1], texts[0], (uint64_t)n[1], hash);
	FIRE(6, net, outbound_message, n[0], texts[1], texts[1], texts[0], (uint64_t)n[1], hash);
	FIRE(5, net, inbound_connection, n[0], texts[1], texts[1], (uint32_t)n[3], (uint64_t)n[1]);
	FIRE(5, net, outbound_connection, n[0], texts[1], texts[1], (uint32_t)n[3], (uint64_t)n[1]);
	FIRE(5, net, closed_connection, n[0], texts[1], texts[1], (uint32_t)n[3], (uint64_t)n[1]);
	FIRE(5, net, evicted_inbound_connection, n[0], texts[1], texts[1], (uint32_t)n[3], (uint64_t)n[1]);
	FIRE(2, net, misbehaving_connection, n[0], texts[1]);
	FIRE(4, net, block_header, (int32_t)n[0], n[1], (bool)1, hash);
	FIRE(7, net, compact_block_reconstructed, n[0], (uint32_t)n[0], (uint32_t)n[1], (uint32_t)n[2], (uint32_t)n[3],
	     (uint32_t)n[4], hash);
}

/* Fires the tracepoint of a connected block. All bytes of the block's hash are equal. */
static __attribute__((noinline)) void fire_block(const int64_t *n)
{
	unsigned char hash[32];

	memset(hash, n[1], sizeof(hash));
	FIRE(6, validation, block_connected, hash, (int32_t)n[0], (uint64_t)1, (int32_t)1, (uint64_t)0, n[2]);
}

/* Fires the tracepoints of a received and of a sent message. The message's first byte is 5, and all other bytes are 0. */
static __attribute__((noinline)) void fire_message(const char *type, uint64_t size)
{
	static const unsigned char bytes[4096] = {5};

	FIRE(6, net, inbound_message, (int64_t)1, "address", "inbound", type, size, bytes);
	FIRE(6, net, outbound_message, (int64_t)1, "address", "inbound", type, size, bytes);
}

/* Fires the tracepoints of a block's arrival: an inv message from peer 1, the header and the reconstruction of a compact block
 * from peer 2, and the connection of the block. */
static __attribute__((noinline)) void fire_way(const void *hash, const int64_t *n)
{
	const uint32_t prefilled = n[0], mempool = n[1], extra_pool = n[2], requested = n[3], bytes = n[4];
	unsigned char inv[37] = {1, 2};

	memcpy(inv + 5, hash, 32);
	FIRE(6, net, inbound_message, (int64_t)1, "address", "inbound", "inv", sizeof(inv), inv);
	FIRE(4, net, block_header, (int32_t)7, (int64_t)2, (bool)1, hash);
	FIRE(7, net, compact_block_reconstructed, (int64_t)2, prefilled, mempool, extra_pool, requested, bytes, hash);
	FIRE(6, validation, block_connected, hash, (int32_t)7, (uint64_t)(prefilled + mempool + extra_pool + requested),
	     (int32_t)0, (uint64_t)0, (int64_t)0);
}
#endif

struct event {
	unsigned char *hash;
	char hash_text[65];
	char what[32], texts[2][128], reason[160];
	int64_t numbers[5];
	char thread[16]; /* Name of the thread that fires the event. If empty, the thread keeps its name. */
	long times;
};

#ifdef UNREADABLE
int64_t sent; /* The tracepoint's argument contains the name of this symbol, which tracers cannot read. */
#define SENT sent
#else
#define SENT hash
#endif

static __attribute__((noinline)) void fire(const struct event *event)
{
	const unsigned char *hash = event->hash;
	const char *what = event->what;
	const int64_t *numbers = event->numbers;
	const char (*texts)[128] = event->texts;

#ifndef NONE
	if (!strcmp(what, "reconstructed"))
#ifdef NEWEST
		FIRE(7, udp, block_reconstructed, event->hash_text, texts[0], (uint32_t)numbers[0],
		     (uint32_t)numbers[1], (uint64_t)numbers[2], numbers[3], (int32_t)numbers[4]);
	if (!strcmp(what, "header_chunk")) {
		FIRE(5, udp, block_header_chunk, *(uint64_t *)hash, numbers[0], numbers[1], numbers[2], numbers[3]);
		FIRE(2, udp, block_coinbase, hash, (uint64_t)numbers[0]);
	}
	if (!strcmp(what, "log_queued"))
		FIRE(2, logging, async_file_queued, (uint64_t)numbers[0], (uint64_t)numbers[1]);
	if (!strcmp(what, "log_started"))
		FIRE(2, logging, async_file_operation_started, (uint64_t)numbers[0], (uint32_t)numbers[1]);
	if (!strcmp(what, "log_completed"))
		FIRE(3, logging, async_file_operation_completed, (uint64_t)numbers[0], (uint32_t)numbers[1],
		     (uint64_t)numbers[2]);
#else
		FIRE(6, udp, block_reconstructed, hash, texts[0], (uint32_t)numbers[0], (uint32_t)numbers[1],
		     (uint64_t)numbers[2], numbers[3]);
#endif
	if (!strcmp(what, "send"))
		FIRE(1, udp, block_send_start, SENT);
	if (!strcmp(what, "winner"))
		FIRE(4, udp, block_race_winner, hash, (int32_t)numbers[0], texts[0], texts[1]);
	if (!strcmp(what, "time"))
		FIRE(6, udp, block_race_time, hash, (int32_t)numbers[0], numbers[1], texts[0], numbers[2], texts[1]);
#ifdef DETAIL
	if (!strcmp(what, "detail"))
		FIRE(7, udp, block_reconstruction_detail, hash, 0, (uint64_t)numbers[0], (uint64_t)numbers[1],
		     (uint64_t)numbers[2], (uint64_t)numbers[3], (bool)numbers[4]);
#endif
#endif
#ifdef STANDARD
	if (!strcmp(what, "standard"))
		fire_standard(hash, texts, numbers);
	if (!strcmp(what, "way"))
		fire_way(hash, numbers);
	if (!strcmp(what, "block"))
		fire_block(numbers);
	if (!strcmp(what, "message"))
		fire_message(texts[0], numbers[0]);
	if (!strcmp(what, "misbehaving"))
		FIRE(2, net, misbehaving_connection, (int64_t)1, event->reason);
#endif
}

static void *fire_all(void *event)
{
	if (((struct event *)event)->thread[0])
		prctl(PR_SET_NAME, ((struct event *)event)->thread);
	for (long i = 0; i < ((struct event *)event)->times; i++)
		fire(event);
	return event;
}

static bool understood(const char *line, struct event *event)
{
	static const char *const formats[] = {
		"%31s %127s %ld %ld %ld %ld %ld",  /* reconstructed */
		"%31s %ld %127s %127s",        /* winner */
		"%31s %ld %ld %127s %ld %127s",/* time */
		"%31s %ld %ld %ld %ld %ld",    /* detail, header_chunk, way */
		"%31s %ld %ld %ld %ld %ld %127s %127s", /* standard */
	};
	int64_t *n = event->numbers;
	char *what = event->what, (*texts)[128] = event->texts;

	sscanf(line, "%31s", what);
	if (!strcmp(what, "reconstructed"))
		return sscanf(line, formats[0], what, texts[0], n, n + 1, n + 2, n + 3, n + 4) >= 6;
	if (!strcmp(what, "winner"))
		return sscanf(line, formats[1], what, n, texts[0], texts[1]) == 4;
	if (!strcmp(what, "time"))
		return sscanf(line, formats[2], what, n, n + 1, texts[0], n + 2, texts[1]) == 6;
	if (!strcmp(what, "detail") || !strcmp(what, "way"))
		return sscanf(line, formats[3], what, n, n + 1, n + 2, n + 3, n + 4) == 6;
	if (!strcmp(what, "block"))
		return sscanf(line, formats[3], what, n, n + 1, n + 2) == 4;
	if (!strcmp(what, "message"))
		return sscanf(line, "%31s %127s %ld", what, texts[0], n) == 3;
	if (!strcmp(what, "misbehaving"))
		return sscanf(line, "%31s %159[^\n]", what, event->reason) == 2;
	if (!strcmp(what, "header_chunk"))
		return sscanf(line, formats[3], what, n, n + 1, n + 2, n + 3) == 5;
	if (!strncmp(what, "log_", 4))
		return sscanf(line, formats[3], what, n, n + 1, n + 2) >= 3;
	if (!strcmp(what, "standard"))
		return sscanf(line, formats[4], what, n, n + 1, n + 2, n + 3, n + 4, texts[0], texts[1]) == 8;
	return !strcmp(what, "send");
}

int main(void)
{
	char line[512];
	struct event *event = calloc(1, sizeof(*event));

	/* The hash is at the end of a mapped page. A BPF program that reads more than 32 bytes gets an error. */
	char *pages = mmap(NULL, 2 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!event || pages == MAP_FAILED || munmap(pages + (1 << 16), 1 << 16))
		return 1;
	event->hash = (unsigned char *)pages + (1 << 16) - 32;
	for (int i = 0; i < 32; i++) {
		event->hash[i] = i;
		sprintf(event->hash_text + 2 * i, "%02x", 31 - i);
	}
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		char *rest = line;
		int threads = 1, length;
		pthread_t started[64];

		event->times = 1;
		event->thread[0] = 0;
		if (sscanf(line, "repeat %d %ld %n", &threads, &event->times, &length) == 2)
			rest += length;
		if (sscanf(rest, "named %15s %n", event->thread, &length) == 1)
			rest += length;
		if (!strncmp(line, "main ", 5))
			rest += 5;
		if (threads < 1 || threads > 64 || !understood(rest, event)) {
			fprintf(stderr, "not understood: %s", line);
			return 1;
		}
		if (!strncmp(line, "main ", 5)) {
			fire(event);
			threads = 0;
		}
		for (int i = 0; i < threads; i++)
			if (pthread_create(&started[i], NULL, fire_all, event))
				return 1;
		for (int i = 0; i < threads; i++)
			pthread_join(started[i], NULL);
		puts("fired");
		fflush(stdout);
	}
	return 0;
}
