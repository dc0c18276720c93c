/* Connected blocks: provider `validation`. */
#include "common.h"

struct counts {
	struct histogram duration_ns;
	struct histogram txs;
	struct histogram inputs;
	struct histogram sigops;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);
LAST_HEIGHT_MAP;

struct event {
	__u64 time_ns; /* monotonic */
	__s32 height;
	__u8 hash[HASH];
	__s64 txs;
	__s64 inputs;
	__s64 sigops;
	__s64 duration_ns;
};
EVENTS_MAP;

const volatile __u64 duration_ns_bounds[BOUNDS];
const volatile __u64 tx_bounds[BOUNDS];
const volatile __u64 input_bounds[BOUNDS];
const volatile __u64 sigop_bounds[BOUNDS];

TRACEPOINT(block_connected)
{
	__s64 txs = argument(ctx, 3), inputs = argument(ctx, 4);
	__s64 sigops = argument(ctx, 5), duration = argument(ctx, 6);
	__s32 height = argument(ctx, 2);
	struct event *event;

	SEEN_HEIGHT(height);
	observe(&counts->duration_ns, duration_ns_bounds, duration);
	observe(&counts->txs, tx_bounds, txs);
	observe(&counts->inputs, input_bounds, inputs);
	observe(&counts->sigops, sigop_bounds, sigops);
	event = RESERVE();
	if (!event)
		return;
	event->time_ns = bpf_ktime_get_ns();
	event->height = height;
	event->txs = txs;
	event->inputs = inputs;
	event->sigops = sigops;
	event->duration_ns = duration;
	bytes(ctx, 1, event->hash, HASH);
	bpf_ringbuf_submit(event, 0);
}
