/* Messages and connections: provider `net`. */
#include "common.h"

/* Powers of two: an index can be bounded. */
enum { TYPES = 64, NETWORKS = 8 };
/* How much of a message is copied: with it an event has two cache lines of 64 bytes, 8 of which the ring buffer takes. A third
 * one costs as much as reading the message does. A node announces up to 8 blocks with their headers; more are a sync's. */
enum { COPIED = 96, HEADER = 80, ANNOUNCED_HEADERS = 8 };
/* Types of inventory; one bit asks for witnesses. */
enum { MSG_BLOCK = 2, MSG_CMPCT_BLOCK = 4, MSG_WITNESS_FLAG = 1 << 30 };
/* The ring buffer is read when a block was connected, every few seconds, and after so many events, which take an eighth of it. */
enum { WAKEUP = 256 };

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

/* Numbers of the types of messages. */
NUMBERED_TEXTS_MAP(types_map);
const volatile __u64 multiplier;

/* Open connections of one direction: `before` + `opened` - `closed`. */
struct open {
	__u64 opened;
	__u64 closed;
	__u64 last_opened_ns; /* monotonic */
	__u64 last_closed_ns;
	/* How many were open before these counts began. */
	struct gauge before;
};
struct connections {
	struct open inbound;
	struct open outbound;
};
SINGLE_VALUE_MAP(connections_map, ARRAY, struct connections);

/* A node counts a closed connection until its network thread has come round, every 50 ms. */
enum { CLOSED_COUNTS_NS = 2000000000, OPENS_AT_ONCE_NS = 10000000 };

/* A message about a block, or one header of it. ALIVE is one that every peer sends periodically: `bytes` is the kind
 * of connection that it has, which the node passes with each message. NEW_HEADER and RECONSTRUCTED are tracepoints of their own,
 * with the hash in `bytes`. */
struct event {
	__u64 time_ns; /* monotonic */
	__s64 peer;
	/* Bytes of the message, of HEADERS those of the header. */
	__u32 size;
	enum kind {
		UNRELATED,
		INV,
		HEADERS,
		CMPCTBLOCK,
		BLOCKTXN,
		BLOCK,
		GETBLOCKTXN,
		GETDATA,
		ALIVE,
		NEW_HEADER,
		RECONSTRUCTED,
	} kind;
	__u8 bytes[COPIED];
};
EVENTS_MAP(256 * 1024);

/* `enum kind` by the number of a message's type. */
const volatile __u8 inbound_kinds[TYPES];
const volatile __u8 outbound_kinds[TYPES];

/* How many events there were. Two at once may count one: then it is read a little later. */
__u32 copied;

static __always_inline void submit(struct event *event)
{
	bpf_ringbuf_submit(event, ++copied % WAKEUP ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP);
}

/* Copies from a message what fits. `size` is how much there is. */
static __always_inline void read_message(void *to, const void *from, __u64 size)
{
	if (bpf_probe_read_user(to, size < COPIED ? size : COPIED, from))
		COUNT_ERROR(unreadable);
}

/* Hands the beginning of a message on: of an inventory what was read of it, of others what is read here. The event is not
 * zeroed: the bytes behind the message are undefined. */
static __always_inline void copy(struct pt_regs *ctx, const struct __bpf_usdt_spec *spec, __u32 kind, __u64 size,
				 const void *from, const __u64 *inventory)
{
	struct event *event = bpf_ringbuf_reserve(&events_map, sizeof(struct event), 0);

	if (!event) {
		COUNT_ERROR(lost);
		return;
	}
	/* If its second cache line has to be fetched from where the events are read, this begins early. */
	event->bytes[COPIED - 1] = 0;
	event->kind = kind;
	event->time_ns = bpf_ktime_get_ns();
	event->peer = fetch(ctx, spec, 1);
	event->size = size;
	if (inventory) {
		__builtin_memcpy(event->bytes, inventory, COPIED);
	} else if (kind == ALIVE) {
		if (bpf_probe_read_user_str(event->bytes, sizeof(event->bytes), (void *)fetch(ctx, spec, 3)) < 0)
			event->bytes[0] = 0;
	} else {
		read_message(event->bytes, from, size);
	}
	submit(event);
}

/* An inventory is handed on if its first entry is a block; a node puts blocks before transactions. */
static __always_inline void copy_inventory(struct pt_regs *ctx, const struct __bpf_usdt_spec *spec, __u32 kind, __u64 size,
					   const void *from)
{
	__u64 inventory[COPIED / 8] = {};
	__u32 type;

	read_message(inventory, from, size);
	type = inventory[0] >> ((inventory[0] & 0xff) == 0xfd ? 24 : 8);
	type &= ~MSG_WITNESS_FLAG;
	if (type == MSG_BLOCK || type == MSG_CMPCT_BLOCK)
		copy(ctx, spec, kind, size, from, inventory);
}

/* Their number is one byte, and each is followed by a number of transactions, which is 0. */
static __always_inline void copy_headers(struct pt_regs *ctx, const struct __bpf_usdt_spec *spec, __u64 size,
					 const void *from)
{
	if (size > 1 + ANNOUNCED_HEADERS * (HEADER + 1))
		return;
	for (int i = 0; i < ANNOUNCED_HEADERS; i++) {
		__u64 at = 1 + i * (HEADER + 1);

		if (at + HEADER + 1 > size)
			return;
		copy(ctx, spec, HEADERS, HEADER, from + at, NULL);
	}
}

static __always_inline void message(struct pt_regs *ctx, struct direction *direction, const volatile __u8 *kinds)
{
	const struct __bpf_usdt_spec *spec = arguments(ctx);
	__u64 size = fetch(ctx, spec, 5);
	__u64 type[NAME_LEN / 8] = {};
	struct messages *messages;
	__u32 number, kind;
	const void *from;

	fetch_text(ctx, spec, 4, type);
	number = number_of_text(&types_map, multiplier, type, TYPES - 1) % TYPES;
	messages = &direction->messages[number];
	count_up(&messages->number, 1);
	count_up(&messages->bytes, size);
	kind = kinds[number];
	if (kind == UNRELATED)
		return;
	from = (const void *)fetch(ctx, spec, 6);
	if (kind == HEADERS)
		copy_headers(ctx, spec, size, from);
	else if (kind == INV || kind == GETDATA)
		copy_inventory(ctx, spec, kind, size, from);
	else
		copy(ctx, spec, kind, size, from, NULL);
}

TRACEPOINT(inbound_message)
{
	message(ctx, &counts->inbound, inbound_kinds);
}

TRACEPOINT(outbound_message)
{
	message(ctx, &counts->outbound, outbound_kinds);
}

/* A header is new, and valid. */
TRACEPOINT(block_header)
{
	struct event *event = RESERVE();

	if (!event)
		return;
	event->kind = NEW_HEADER;
	event->time_ns = bpf_ktime_get_ns();
	event->peer = argument(ctx, 2);
	read_user_bytes(ctx, 4, event->bytes, HASH);
	submit(event);
}

/* A compact block has become a block. Behind its hash come the numbers of transactions that were prefilled, from the mempool,
 * from the pool of extra transactions, and requested, and the bytes of these. */
TRACEPOINT(compact_block_reconstructed)
{
	struct event *event = RESERVE();

	if (!event)
		return;
	event->kind = RECONSTRUCTED;
	event->time_ns = bpf_ktime_get_ns();
	event->peer = argument(ctx, 1);
	for (int i = 0; i < 5; i++)
		((__u32 *)(event->bytes + HASH))[i] = argument(ctx, 2 + i);
	read_user_bytes(ctx, 7, event->bytes, HASH);
	submit(event);
}

/* The number of the connection's network; the last one for all that are not known. */
static __always_inline __u32 network(struct pt_regs *ctx)
{
	__u32 network = argument(ctx, 4);

	return (network < NETWORKS ? network : NETWORKS - 1) % NETWORKS;
}

/* The node passes the number of its connections of this direction. It is neither from the moment of the event nor without those
 * that have just been closed: `before`, which never changes, follows from it only when nothing else has happened of late. Until
 * then it is not known. */
static __always_inline void opened(struct pt_regs *ctx, struct open *open)
{
	__u64 now = bpf_ktime_get_ns();
	bool is_quiet = now - open->last_closed_ns > CLOSED_COUNTS_NS && now - open->last_opened_ns > OPENS_AT_ONCE_NS;

	count_up(&open->opened, 1);
	open->last_opened_ns = now;
	if (is_quiet)
		set(&open->before, argument(ctx, 5) - (__s64)(open->opened - open->closed));
}

TRACEPOINT(inbound_connection)
{
	struct connections *connections = single_value(&connections_map);

	count_up(&counts->inbound.opened[network(ctx)], 1);
	if (connections)
		opened(ctx, &connections->inbound);
}

TRACEPOINT(outbound_connection)
{
	struct connections *connections = single_value(&connections_map);

	count_up(&counts->outbound.opened[network(ctx)], 1);
	if (connections)
		opened(ctx, &connections->outbound);
}

TRACEPOINT(closed_connection)
{
	struct connections *connections = single_value(&connections_map);
	char type[NAME_LEN] = {};
	struct open *open;

	count_up(&counts->closed[network(ctx)], 1);
	read_user_str(ctx, 3, type, sizeof(type));
	if (!connections)
		return;
	open = type[0] == 'i' && type[1] == 'n' ? &connections->inbound : &connections->outbound;
	count_up(&open->closed, 1);
	open->last_closed_ns = bpf_ktime_get_ns();
}

TRACEPOINT(evicted_inbound_connection)
{
	count_up(&counts->evicted, 1);
}

TRACEPOINT(misbehaving_connection)
{
	count_up(&counts->misbehaving, 1);
}
