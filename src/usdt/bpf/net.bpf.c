/* Messages and connections: provider `net`. */
#include "common.h"

/* Powers of two, so that an index can be bounded. */
enum { TYPES = 64, NETWORKS = 8 };

struct messages {
	__u64 number;
	__u64 bytes;
};

struct direction {
	struct messages messages[TYPES];
	__u64 opened[NETWORKS];
};

struct counts {
	struct direction inbound;
	struct direction outbound;
	__u64 closed[NETWORKS];
	__u64 evicted;
	__u64 misbehaving;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);
NAMES_MAP(types_map, TYPES, NAME); /* of messages */

/* Open connections. */
struct connections {
	struct gauge inbound;
	struct gauge outbound;
};
SINGLE_VALUE_MAP(connections_map, ARRAY, struct connections);

static __always_inline void message(struct pt_regs *ctx, struct direction *direction)
{
	char type[NAME] = {};
	struct messages *messages;

	string(ctx, 4, type, sizeof(type));
	messages = &direction->messages[number_of(&types_map, type, TYPES)];
	count_up(&messages->number, 1);
	count_up(&messages->bytes, argument(ctx, 5));
}

TRACEPOINT(inbound_message)
{
	message(ctx, &counts->inbound);
}

TRACEPOINT(outbound_message)
{
	message(ctx, &counts->outbound);
}

/* The number of the connection's network; the last one for all that are not known. */
static __always_inline __u32 network(struct pt_regs *ctx)
{
	__u32 network = argument(ctx, 4);

	return (network < NETWORKS ? network : NETWORKS - 1) % NETWORKS;
}

/* The node tells how many are open, this one among them. */
TRACEPOINT(inbound_connection)
{
	struct connections *connections = single_value(&connections_map);

	count_up(&counts->inbound.opened[network(ctx)], 1);
	if (connections)
		set(&connections->inbound, argument(ctx, 5));
}

TRACEPOINT(outbound_connection)
{
	struct connections *connections = single_value(&connections_map);

	count_up(&counts->outbound.opened[network(ctx)], 1);
	if (connections)
		set(&connections->outbound, argument(ctx, 5));
}

TRACEPOINT(closed_connection)
{
	struct connections *connections = single_value(&connections_map);
	char type[NAME] = {};
	struct gauge *gauge;

	count_up(&counts->closed[network(ctx)], 1);
	string(ctx, 3, type, sizeof(type));
	if (!connections)
		return;
	gauge = type[0] == 'i' && type[1] == 'n' ? &connections->inbound : &connections->outbound;
	if (gauge->known && gauge->value > 0)
		__sync_fetch_and_add(&gauge->value, -1);
}

TRACEPOINT(evicted_inbound_connection)
{
	count_up(&counts->evicted, 1);
}

TRACEPOINT(misbehaving_connection)
{
	count_up(&counts->misbehaving, 1);
}
