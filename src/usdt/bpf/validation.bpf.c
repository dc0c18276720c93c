/* Connected blocks: provider `validation`. */
#include "common.h"

enum { CONNECTED };

struct counts {
	struct errors errors;
	struct histogram duration_ns;
	struct histogram txs;
	struct histogram inputs;
	struct histogram sigops;
};
COUNTS_MAP;
EVENTS_MAP;

const volatile __u64 duration_ns_bounds[BOUNDS];
const volatile __u64 tx_bounds[BOUNDS];
const volatile __u64 input_bounds[BOUNDS];
const volatile __u64 sigop_bounds[BOUNDS];

TRACEPOINT(block_connected)
{
	struct event *event = RESERVE(&counts->errors);
	__s64 txs = argument(ctx, &counts->errors, 3), inputs = argument(ctx, &counts->errors, 4);
	__s64 sigops = argument(ctx, &counts->errors, 5), duration = argument(ctx, &counts->errors, 6);

	observe(&counts->duration_ns, duration_ns_bounds, duration);
	observe(&counts->txs, tx_bounds, txs);
	observe(&counts->inputs, input_bounds, inputs);
	observe(&counts->sigops, sigop_bounds, sigops);
	if (!event)
		return;
	event->kind = CONNECTED;
	event->height = argument(ctx, &counts->errors, 2);
	event->values[0] = txs;
	event->values[1] = inputs;
	event->values[2] = sigops;
	event->values[3] = duration;
	bytes(ctx, &counts->errors, 1, event->hash, HASH);
	bpf_ringbuf_submit(event, 0);
}
