/* The UTXO cache: provider `utxocache`. The three for coins fire tens of thousands of times a block. */
#include "common.h"

enum { COINS, BYTES, GAUGES };
enum { FLUSH };

struct coins {
	__u64 number;
	__u64 value;
};

struct counts {
	struct errors errors;
	struct coins added;
	struct coins spent;
	struct coins uncached;
	struct histogram flush_us;
};
COUNTS_MAP;
GAUGES_MAP(GAUGES); /* of the last flush */
EVENTS_MAP;

const volatile __u64 flush_us_bounds[BOUNDS];

static __always_inline void count(struct pt_regs *ctx, struct counts *counts, struct coins *coins)
{
	count_up(&coins->number, 1);
	count_up(&coins->value, argument(ctx, &counts->errors, 4));
}

TRACEPOINT(add)
{
	count(ctx, counts, &counts->added);
}

TRACEPOINT(spent)
{
	count(ctx, counts, &counts->spent);
}

TRACEPOINT(uncache)
{
	count(ctx, counts, &counts->uncached);
}

TRACEPOINT(flush)
{
	struct gauge *coins = gauge_at(&gauges_map, COINS), *size = gauge_at(&gauges_map, BYTES);
	__u64 duration = argument(ctx, &counts->errors, 1);
	struct event *event = RESERVE(&counts->errors);

	observe(&counts->flush_us, flush_us_bounds, duration);
	if (coins && size) {
		set(coins, argument(ctx, &counts->errors, 3));
		set(size, argument(ctx, &counts->errors, 4));
	}
	if (!event)
		return;
	event->kind = FLUSH;
	event->values[0] = duration;
	event->values[1] = argument(ctx, &counts->errors, 2);
	event->values[2] = argument(ctx, &counts->errors, 3);
	event->values[3] = argument(ctx, &counts->errors, 4);
	bpf_ringbuf_submit(event, 0);
}
