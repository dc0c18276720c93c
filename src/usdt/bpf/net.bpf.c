/* Messages and connections: provider `net`. */
#include "common.h"

enum direction { IN, OUT, DIRECTIONS };
/* Powers of two, so that an index can be masked. */
enum { TYPES = 64, GROUP = 32, NETWORKS = 8 };

struct messages {
	__u64 number;
	__u64 bytes;
};

struct counts {
	struct errors errors;
	struct messages messages[DIRECTIONS][TYPES / GROUP][GROUP];
	__u64 opened[DIRECTIONS][NETWORKS];
	__u64 closed[NETWORKS];
	__u64 evicted;
	__u64 misbehaving;
};
COUNTS_MAP;
GAUGES_MAP(DIRECTIONS); /* open connections */

/* The message types that are told apart, filled by user space with their places. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TYPES);
	__type(key, char[NAME]);
	__type(value, __u32);
} types_map SEC(".maps");

static __always_inline void message(struct pt_regs *ctx, struct counts *counts, enum direction direction)
{
	char type[NAME] = {};
	__u32 *known, place = TYPES - 1;
	struct messages *messages;

	string(ctx, &counts->errors, 4, type, sizeof(type));
	known = bpf_map_lookup_elem(&types_map, type);
	if (known)
		place = *known;
	messages = &counts->messages[direction][place / GROUP % (TYPES / GROUP)][place % GROUP];
	count_up(&messages->number, 1);
	count_up(&messages->bytes, argument(ctx, &counts->errors, 5));
}

TRACEPOINT(inbound_message)
{
	message(ctx, counts, IN);
}

TRACEPOINT(outbound_message)
{
	message(ctx, counts, OUT);
}

static __always_inline __u32 network(struct pt_regs *ctx, struct counts *counts)
{
	__u32 network = argument(ctx, &counts->errors, 4);

	return network < NETWORKS ? network : NETWORKS - 1;
}

static __always_inline void opened(struct pt_regs *ctx, struct counts *counts, enum direction direction)
{
	struct gauge *connections = gauge_at(&gauges_map, direction);

	count_up(&counts->opened[direction][network(ctx, counts) & (NETWORKS - 1)], 1);
	/* The node tells how many there are, this one among them. */
	if (connections)
		set(connections, argument(ctx, &counts->errors, 5));
}

TRACEPOINT(inbound_connection)
{
	opened(ctx, counts, IN);
}

TRACEPOINT(outbound_connection)
{
	opened(ctx, counts, OUT);
}

TRACEPOINT(closed_connection)
{
	char type[NAME] = {};
	struct gauge *connections;

	count_up(&counts->closed[network(ctx, counts) & (NETWORKS - 1)], 1);
	string(ctx, &counts->errors, 3, type, sizeof(type));
	connections = gauge_at(&gauges_map, type[0] == 'i' && type[1] == 'n' ? IN : OUT);
	if (connections && connections->known && connections->value > 0)
		__sync_fetch_and_add(&connections->value, -1);
}

TRACEPOINT(evicted_inbound_connection)
{
	count_up(&counts->evicted, 1);
}

TRACEPOINT(misbehaving_connection)
{
	count_up(&counts->misbehaving, 1);
}
