/* The tracepoints of the UTXO cache: provider `utxocache`. The tracepoints of coins (`add`, `spent`, `uncache`) fire
 * tens of thousands of times per block. */
#include "common.h"

struct coins {
	__u64 number;
	__u64 value;
};

struct counts {
	struct coins added;
	struct coins spent;
	struct coins uncached;
	struct histogram flush_us;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);

struct last_flush {
	struct gauge coins;
	struct gauge bytes;
};
SINGLE_VALUE_MAP(last_flush_map, ARRAY, struct last_flush);

/* An event for user space: the node has flushed the UTXO cache to disk. */
struct event {
	__u64 time_ns; /* end of the flush, monotonic */
	__s64 duration_us;
	__s64 mode;
	__s64 coins;
	__s64 bytes;
};
EVENTS_MAP(256 * 1024);

const volatile __u64 flush_us_bounds[BOUNDS];

static __always_inline void count(struct pt_regs *ctx, struct coins *coins)
{
	__s64 value = argument(ctx, 4);

	count_up(&coins->number, 1);
	/* The value of a coin that was already spent is -1. A node spends coins a second time when it replays blocks
	 * after a crash. */
	count_up(&coins->value, value > 0 ? value : 0);
}

TRACEPOINT(add)
{
	count(ctx, &counts->added);
}

TRACEPOINT(spent)
{
	count(ctx, &counts->spent);
}

TRACEPOINT(uncache)
{
	count(ctx, &counts->uncached);
}

TRACEPOINT(flush)
{
	struct last_flush *last = single_value(&last_flush_map);
	__u64 duration = argument(ctx, 1);
	struct event *event;

	observe(&counts->flush_us, flush_us_bounds, duration);
	if (last) {
		set(&last->coins, argument(ctx, 3));
		set(&last->bytes, argument(ctx, 4));
	}
	event = RESERVE();
	if (!event)
		return;
	event->time_ns = bpf_ktime_get_ns();
	event->duration_us = duration;
	event->mode = argument(ctx, 2);
	event->coins = argument(ctx, 3);
	event->bytes = argument(ctx, 4);
	bpf_ringbuf_submit(event, 0);
}
