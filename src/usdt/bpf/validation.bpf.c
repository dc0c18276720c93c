/* The tracepoint of connected blocks: provider `validation`. */
#include "common.h"

struct counts {
	__u64 fired;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);

/* An event for user space: the node has connected a block. active_chain.rs decides in user space whether the block
 * belongs to the active chain. */
struct event {
	__u64 time_ns; /* monotonic */
	__s32 height;
	__u32 is_main_thread;
	char thread[NAME_LEN];
	__u8 hash[HASH];
	__s64 txs;
	__s64 inputs;
	__s64 sigops;
	__s64 duration_ns;
};
/* The ring buffer has room for about 10,000 blocks, because a syncing node connects thousands of blocks within
 * seconds. */
EVENTS_MAP(1024 * 1024);

TRACEPOINT(block_connected)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct event *event;

	count_up(&counts->fired, 1);
	event = RESERVE();
	if (!event)
		return;
	event->time_ns = bpf_ktime_get_ns();
	event->is_main_thread = (__u32)thread == thread >> 32;
	bpf_get_current_comm(event->thread, sizeof(event->thread));
	read_user_bytes(ctx, 1, event->hash, HASH);
	event->height = argument(ctx, 2);
	event->txs = argument(ctx, 3);
	event->inputs = argument(ctx, 4);
	event->sigops = argument(ctx, 5);
	event->duration_ns = argument(ctx, 6);
	bpf_ringbuf_submit(event, 0);
}
