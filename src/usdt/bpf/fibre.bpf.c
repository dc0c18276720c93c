/* FIBRE block relay: provider `udp`. */
#include "common.h"

/* SLOTS is a power of two, so that an index can be bounded. */
enum mechanism { FIBRE_UDP, BIP152_CMPCT, OTHER, SLOTS = 4 };
enum { MECHANISM = 24 };
enum { HEIGHT, GAUGES };
enum { RECONSTRUCTED, SENT, WINNER, RACE, DETAIL, KINDS };

struct counts {
	struct errors errors;
	__u64 events[KINDS];
	__u64 chunks_used;
	__u64 chunks_received;
	__u64 wins[SLOTS];
	__u64 other_peers[SLOTS];
	__u64 races_with_both;
	__u64 all_from_mempool;
	struct histogram duration_us;
	struct histogram chunks;
	struct histogram latency_ns[2];
	struct histogram margin_ns[2];
	struct histogram missing_txs;
	struct histogram missing_bytes;
	struct histogram mempool_txs;
};
COUNTS_MAP;
GAUGES_MAP(GAUGES);
EVENTS_MAP;

/* The names of the mechanisms, filled by user space with their places. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLOTS);
	__type(key, char[MECHANISM]);
	__type(value, __u32);
} mechanisms_map SEC(".maps");

struct delivery {
	__u32 mechanism;
	char peer[TEXT];
};

/* Deliveries by peer. When it is full, further peers are `other`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct delivery);
	__type(value, __u64);
} deliveries_map SEC(".maps");

const volatile __u64 duration_us_bounds[BOUNDS];
const volatile __u64 chunk_bounds[BOUNDS];
const volatile __u64 latency_ns_bounds[BOUNDS];
const volatile __u64 margin_ns_bounds[BOUNDS];
const volatile __u64 tx_bounds[BOUNDS];
const volatile __u64 byte_bounds[BOUNDS];

static __always_inline void seen_height(__s32 height)
{
	struct gauge *gauge = gauge_at(&gauges_map, HEIGHT);

	if (gauge)
		set(gauge, height);
}

TRACEPOINT(block_reconstructed)
{
	__u64 used = argument(ctx, &counts->errors, 3), received = argument(ctx, &counts->errors, 4);
	__u64 duration = argument(ctx, &counts->errors, 6);
	struct event *event;

	count_up(&counts->events[RECONSTRUCTED], 1);
	count_up(&counts->chunks_used, used);
	count_up(&counts->chunks_received, received);
	observe(&counts->chunks, chunk_bounds, used);
	observe(&counts->duration_us, duration_us_bounds, duration);
	event = RESERVE(&counts->errors);
	if (!event)
		return;
	event->kind = RECONSTRUCTED;
	bytes(ctx, &counts->errors, 1, event->hash, HASH);
	string(ctx, &counts->errors, 2, event->texts[0], TEXT);
	event->values[0] = used;
	event->values[1] = received;
	event->values[2] = argument(ctx, &counts->errors, 5);
	event->values[3] = duration;
	bpf_ringbuf_submit(event, 0);
}

TRACEPOINT(block_send_start)
{
	count_up(&counts->events[SENT], 1);
}

static __always_inline void deliver(struct counts *counts, const struct delivery *delivery)
{
	__u64 none = 0, *deliveries = bpf_map_lookup_elem(&deliveries_map, delivery);

	if (!deliveries) {
		bpf_map_update_elem(&deliveries_map, delivery, &none, BPF_NOEXIST);
		deliveries = bpf_map_lookup_elem(&deliveries_map, delivery);
	}
	if (deliveries)
		count_up(deliveries, 1);
	else
		count_up(&counts->other_peers[delivery->mechanism % SLOTS], 1);
}

TRACEPOINT(block_race_winner)
{
	__s32 height = argument(ctx, &counts->errors, 2);
	struct delivery delivery = { .mechanism = OTHER };
	char mechanism[MECHANISM] = {};
	__u32 *known;
	struct event *event;

	string(ctx, &counts->errors, 3, mechanism, sizeof(mechanism));
	string(ctx, &counts->errors, 4, delivery.peer, TEXT);
	known = bpf_map_lookup_elem(&mechanisms_map, mechanism);
	delivery.mechanism = known ? *known % SLOTS : OTHER;
	count_up(&counts->events[WINNER], 1);
	count_up(&counts->wins[delivery.mechanism % SLOTS], 1);
	deliver(counts, &delivery);
	seen_height(height);
	event = RESERVE(&counts->errors);
	if (!event)
		return;
	event->kind = WINNER;
	event->height = height;
	event->values[0] = delivery.mechanism;
	bytes(ctx, &counts->errors, 1, event->hash, HASH);
	__builtin_memcpy(event->texts[0], delivery.peer, TEXT);
	bpf_ringbuf_submit(event, 0);
}

TRACEPOINT(block_race_time)
{
	__s32 height = argument(ctx, &counts->errors, 2);
	__s64 udp = argument(ctx, &counts->errors, 3), compact = argument(ctx, &counts->errors, 5);
	struct event *event;

	count_up(&counts->events[RACE], 1);
	if (udp >= 0)
		observe(&counts->latency_ns[FIBRE_UDP], latency_ns_bounds, udp);
	if (compact >= 0)
		observe(&counts->latency_ns[BIP152_CMPCT], latency_ns_bounds, compact);
	if (udp >= 0 && compact >= 0) {
		count_up(&counts->races_with_both, 1);
		if (udp <= compact)
			observe(&counts->margin_ns[FIBRE_UDP], margin_ns_bounds, compact - udp);
		else
			observe(&counts->margin_ns[BIP152_CMPCT], margin_ns_bounds, udp - compact);
	}
	seen_height(height);
	event = RESERVE(&counts->errors);
	if (!event)
		return;
	event->kind = RACE;
	event->height = height;
	event->values[0] = udp;
	event->values[1] = compact;
	bytes(ctx, &counts->errors, 1, event->hash, HASH);
	string(ctx, &counts->errors, 4, event->texts[0], TEXT);
	string(ctx, &counts->errors, 6, event->texts[1], TEXT);
	bpf_ringbuf_submit(event, 0);
}

TRACEPOINT(block_reconstruction_detail)
{
	count_up(&counts->events[DETAIL], 1);
	observe(&counts->missing_txs, tx_bounds, argument(ctx, &counts->errors, 3));
	observe(&counts->missing_bytes, byte_bounds, argument(ctx, &counts->errors, 4));
	observe(&counts->mempool_txs, tx_bounds, argument(ctx, &counts->errors, 5));
	if (argument(ctx, &counts->errors, 7) & 1)
		count_up(&counts->all_from_mempool, 1);
}
