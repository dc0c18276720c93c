/* The tracepoints of the thread that writes debug.log, on nodes that have this thread: provider `logging`.
 *
 * All threads of the node queue operations on debug.log, each with a sequence number. The debug.log thread executes the
 * operations in order. An operation writes a line to debug.log or reopens the file. */
#include "common.h"

/* Number of slots in queued_map, greater than the number of operations that can wait at once. It is a power of two,
 * because the programs then bound an index with a modulo operation. */
enum { SLOTS = 256 };
enum { OTHER, WRITE, REOPEN, KINDS = 4 };

struct counts {
	__u64 queued;
	__u64 completed[KINDS];
	struct histogram depth;
	struct histogram wait_ns;
	struct histogram write_ns;
	struct histogram reopen_ns;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);

/* An operation's sequence number, and the monotonic time at which the operation was queued or started. The time is 0
 * if no program recorded it. */
struct timestamp {
	__u64 sequence;
	__u64 time_ns;
};

/* Time at which each waiting operation was queued, by sequence number modulo SLOTS. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct timestamp);
} queued_map SEC(".maps");

/* The operation that the node's debug.log thread is executing, and the time at which the thread started it. */
SINGLE_VALUE_MAP(started_map, ARRAY, struct timestamp);

const volatile __u64 depth_bounds[BOUNDS];
const volatile __u64 wait_ns_bounds[BOUNDS];
const volatile __u64 operation_ns_bounds[BOUNDS];

/* Nanoseconds since start_timer() was called for the operation with this sequence number; 0 if start_timer() was not
 * called for this operation. Clears the timer. */
static __always_inline __u64 stop_timer(struct timestamp *started, __u64 sequence)
{
	__u64 time_ns;

	if (!started || !started->time_ns || started->sequence != sequence)
		return 0;
	time_ns = started->time_ns;
	started->time_ns = 0;
	return bpf_ktime_get_ns() - time_ns;
}

static __always_inline void start_timer(struct timestamp *started, __u64 sequence)
{
	if (!started)
		return;
	started->sequence = sequence;
	started->time_ns = bpf_ktime_get_ns();
}

/* The value in queued_map for the operation with this sequence number. */
static __always_inline struct timestamp *queued(__u64 sequence)
{
	__u32 slot = sequence % SLOTS;

	return bpf_map_lookup_elem(&queued_map, &slot);
}

TRACEPOINT(async_file_queued)
{
	__u64 sequence = argument(ctx, 1);

	count_up(&counts->queued, 1);
	observe(&counts->depth, depth_bounds, argument(ctx, 2));
	start_timer(queued(sequence), sequence);
}

TRACEPOINT(async_file_operation_started)
{
	__u64 sequence = argument(ctx, 1);
	__u64 waited = stop_timer(queued(sequence), sequence);

	if (waited)
		observe(&counts->wait_ns, wait_ns_bounds, waited);
	start_timer(single_value(&started_map), sequence);
}

TRACEPOINT(async_file_operation_completed)
{
	__u64 took = stop_timer(single_value(&started_map), argument(ctx, 1));
	__u32 kind = argument(ctx, 2);

	count_up(&counts->completed[kind < KINDS ? kind : OTHER], 1);
	if (took && kind == WRITE)
		observe(&counts->write_ns, operation_ns_bounds, took);
	if (took && kind == REOPEN)
		observe(&counts->reopen_ns, operation_ns_bounds, took);
}
