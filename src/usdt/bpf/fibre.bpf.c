/* The tracepoints of FIBRE block relay: provider `udp`. */
#include "common.h"

/* Capacity of mechanisms_map and size of the names of relay mechanisms in bytes. MECHANISMS is a power of two,
 * because the programs then bound an index with a modulo operation. */
enum { MECHANISMS = 4, MECHANISM_NAME = 24 };
/* Size of a block hash as text: 64 hex digits and a NUL. */
enum { HASH_TEXT = 65 };

struct counts {
	__u64 reconstructed;
	__u64 sent;
	__u64 won;
	__u64 raced;
	__u64 detailed;
	__u64 header_chunks;
	__u64 chunks_used;
	__u64 chunks_received;
	__u64 wins[MECHANISMS];
	__u64 other_peers[MECHANISMS];
	__u64 races_with_both;
	__u64 all_from_mempool;
	struct histogram duration_us;
	struct histogram chunks;
	struct histogram udp_latency_ns;
	struct histogram compact_latency_ns;
	struct histogram udp_margin_ns;
	struct histogram compact_margin_ns;
	struct histogram missing_txs;
	struct histogram missing_bytes;
	struct histogram mempool_txs;
	struct histogram header_queue_us;
	struct histogram header_maps_us;
	struct histogram header_chunks_us;
	struct histogram header_finish_us;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);

NAMES_MAP(mechanisms_map, MECHANISMS, MECHANISM_NAME);

/* Key of deliveries_map: the relay mechanism and the peer that delivered a block first. */
struct delivery {
	__u32 mechanism;
	__u8 peer[ADDRESS];
};

/* Number of blocks that a peer delivered first, by relay mechanism and peer. If the map is full, further peers count
 * as `other`. */
TALLIES_MAP(deliveries_map, 1024, struct delivery);

/* An event for user space: a report of FIBRE about a block. Fields that do not apply to the event's kind are zero. */
struct event {
	enum kind { RECONSTRUCTED, WON, RACED, DETAILED } kind;
	__s32 height;
	__u32 height_known;
	__u64 time_ns; /* monotonic */
	/* The block hash as 32 raw bytes or as hex digits. raw_hash() in fibre.rs distinguishes the two forms. */
	__u8 hash[HASH_TEXT];
	__s64 chunks_used;
	__s64 chunks_received;
	__s64 peers;
	__s64 duration_us;
	__s64 udp_ns;
	__s64 compact_ns;
	__s64 missing;
	__s64 missing_bytes;
	__s64 from_mempool;
	__s64 transactions;
	__u32 mechanism;
	__u8 peer[ADDRESS];
	__u8 compact_peer[ADDRESS];
};
EVENTS_MAP(256 * 1024);

const volatile __u64 duration_us_bounds[BOUNDS];
const volatile __u64 chunk_bounds[BOUNDS];
const volatile __u64 latency_ns_bounds[BOUNDS];
const volatile __u64 margin_ns_bounds[BOUNDS];
const volatile __u64 tx_bounds[BOUNDS];
const volatile __u64 missing_tx_bounds[BOUNDS];
const volatile __u64 byte_bounds[BOUNDS];
const volatile __u64 stage_us_bounds[BOUNDS];

/* Copies the hash of a block. Some builds of the node pass the 32 raw bytes, other builds pass the hex digits. The
 * memory after 32 raw bytes may not be mapped, so if the longer read fails, only 32 bytes are read. */
static __always_inline void block_hash(struct pt_regs *ctx, struct event *event)
{
	const void *hash = (const void *)argument(ctx, 1);

	if (bpf_probe_read_user(event->hash, HASH_TEXT, hash) && bpf_probe_read_user(event->hash, HASH, hash))
		COUNT_ERROR(unreadable);
}

static __always_inline void block_height(struct event *event, __s32 height)
{
	event->height = height;
	event->height_known = 1;
}

TRACEPOINT(block_reconstructed)
{
	__u64 used = argument(ctx, 3), received = argument(ctx, 4);
	__u64 duration = argument(ctx, 6);
	/* Only newer builds of the node pass the height, and only if the node has the previous block. */
	__s32 height = bpf_usdt_arg_cnt(ctx) >= 7 ? argument(ctx, 7) : 0;
	bool has_height = height > 0;
	struct event *event;

	count_up(&counts->reconstructed, 1);
	count_up(&counts->chunks_used, used);
	count_up(&counts->chunks_received, received);
	observe(&counts->chunks, chunk_bounds, used);
	observe(&counts->duration_us, duration_us_bounds, duration);
	event = RESERVE();
	if (!event)
		return;
	event->kind = RECONSTRUCTED;
	event->time_ns = bpf_ktime_get_ns();
	if (has_height)
		block_height(event, height);
	block_hash(ctx, event);
	read_user_str(ctx, 2, event->peer, ADDRESS);
	event->chunks_used = used;
	event->chunks_received = received;
	event->peers = argument(ctx, 5);
	event->duration_us = duration;
	bpf_ringbuf_submit(event, 0);
}

TRACEPOINT(block_send_start)
{
	count_up(&counts->sent, 1);
}

TRACEPOINT(block_race_winner)
{
	__s32 height = argument(ctx, 2);
	struct delivery delivery = {};
	char mechanism[MECHANISM_NAME] = {};
	struct event *event;

	read_user_str(ctx, 3, mechanism, sizeof(mechanism));
	read_user_str(ctx, 4, delivery.peer, ADDRESS);
	delivery.mechanism = lookup_index(&mechanisms_map, mechanism, MECHANISMS);
	count_up(&counts->won, 1);
	count_up(&counts->wins[delivery.mechanism % MECHANISMS], 1);
	if (!count_key(&deliveries_map, &delivery))
		count_up(&counts->other_peers[delivery.mechanism % MECHANISMS], 1);
	event = RESERVE();
	if (!event)
		return;
	event->kind = WON;
	event->time_ns = bpf_ktime_get_ns();
	block_height(event, height);
	event->mechanism = delivery.mechanism;
	block_hash(ctx, event);
	__builtin_memcpy(event->peer, delivery.peer, ADDRESS);
	bpf_ringbuf_submit(event, 0);
}

TRACEPOINT(block_race_time)
{
	__s32 height = argument(ctx, 2);
	__s64 udp = argument(ctx, 3), compact = argument(ctx, 5);
	struct event *event;

	count_up(&counts->raced, 1);
	if (udp >= 0)
		observe(&counts->udp_latency_ns, latency_ns_bounds, udp);
	if (compact >= 0)
		observe(&counts->compact_latency_ns, latency_ns_bounds, compact);
	if (udp >= 0 && compact >= 0) {
		count_up(&counts->races_with_both, 1);
		if (udp <= compact)
			observe(&counts->udp_margin_ns, margin_ns_bounds, compact - udp);
		else
			observe(&counts->compact_margin_ns, margin_ns_bounds, udp - compact);
	}
	event = RESERVE();
	if (!event)
		return;
	event->kind = RACED;
	event->time_ns = bpf_ktime_get_ns();
	block_height(event, height);
	event->udp_ns = udp;
	event->compact_ns = compact;
	block_hash(ctx, event);
	read_user_str(ctx, 4, event->peer, ADDRESS);
	read_user_str(ctx, 6, event->compact_peer, ADDRESS);
	bpf_ringbuf_submit(event, 0);
}

TRACEPOINT(block_reconstruction_detail)
{
	__s32 height = argument(ctx, 2);
	__u64 missing = argument(ctx, 3), missing_bytes = argument(ctx, 4);
	__u64 from_mempool = argument(ctx, 5);
	struct event *event;

	count_up(&counts->detailed, 1);
	observe(&counts->missing_txs, missing_tx_bounds, missing);
	observe(&counts->missing_bytes, byte_bounds, missing_bytes);
	observe(&counts->mempool_txs, tx_bounds, from_mempool);
	if (argument(ctx, 7) & 1)
		count_up(&counts->all_from_mempool, 1);
	event = RESERVE();
	if (!event)
		return;
	event->kind = DETAILED;
	if (height > 0)
		block_height(event, height);
	block_hash(ctx, event);
	event->missing = missing;
	event->missing_bytes = missing_bytes;
	event->from_mempool = from_mempool;
	event->transactions = argument(ctx, 6);
	bpf_ringbuf_submit(event, 0);
}

TRACEPOINT(block_header_chunk)
{
	count_up(&counts->header_chunks, 1);
	observe(&counts->header_queue_us, stage_us_bounds, argument(ctx, 2));
	observe(&counts->header_maps_us, stage_us_bounds, argument(ctx, 3));
	observe(&counts->header_chunks_us, stage_us_bounds, argument(ctx, 4));
	observe(&counts->header_finish_us, stage_us_bounds, argument(ctx, 5));
}
