/* The tracepoints of P2P messages and connections: provider `net`. */
#include "common.h"

/* Both are powers of two, because the programs then bound an index with a modulo operation. */
enum { TYPES = 64, NETWORKS = 8 };
/* COPIED is the maximum number of bytes copied from a message. With this number, an event and the 8-byte header of its
 * ring buffer record fill two cache lines of 64 bytes. A third cache line would cost as much as reading the message. A
 * peer announces at most ANNOUNCED_HEADERS blocks in a headers message. A message with more headers belongs to a header
 * sync. */
enum { COPIED = 96, HEADER = 80, ANNOUNCED_HEADERS = 8 };
/* Types of inventory entries. MSG_WITNESS_FLAG is a bit that requests witnesses. */
enum { MSG_BLOCK = 2, MSG_CMPCT_BLOCK = 4, MSG_WITNESS_FLAG = 1 << 30 };
/* Number of events after which user space is woken up; this number of events fills an eighth of the ring buffer. User
 * space also reads the ring buffer when a block was connected, and every few seconds. */
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

/* Index of each message type, by the type's name. */
NUMBERED_TEXTS_MAP(types_map);
const volatile __u64 multiplier;

/* Counts of the connections of one direction. The number of open connections is `before` + `opened` - `closed`. */
struct open {
	__u64 opened;
	__u64 closed;
	__u64 last_opened_ns; /* monotonic */
	__u64 last_closed_ns;
	/* Number of connections that were open before `opened` and `closed` were counted. */
	struct gauge before;
};
struct connections {
	struct open inbound;
	struct open outbound;
};
SINGLE_VALUE_MAP(connections_map, ARRAY, struct connections);

/* Minimum times since the last closed and the last opened connection for a valid `before`. A node counts a closed
 * connection as open until the node's network thread has handled the close, which happens every 50 ms. */
enum { CLOSED_COUNTS_NS = 2000000000, OPENS_AT_ONCE_NS = 10000000 };

/* An event for user space: a message about a block, or one header of a headers message. ALIVE is a message that every
 * peer sends after connecting or periodically. The `bytes` of an ALIVE event are the peer's connection type, which is
 * an argument of the tracepoint. NEW_HEADER and RECONSTRUCTED are not messages but have their own tracepoints, and
 * their `bytes` begin with the block's hash. */
struct event {
	__u64 time_ns; /* monotonic */
	__s64 peer;
	/* Size of the message in bytes; for HEADERS, the size of one header. */
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

/* Value of `enum kind` for each message type, by the index of the type. */
const volatile __u8 inbound_kinds[TYPES];
const volatile __u8 outbound_kinds[TYPES];

/* Number of submitted events. The increment is not atomic: two events that are submitted at the same time may count as
 * one, and user space is then woken up slightly later. */
__u32 copied;

/* Submits an event, and wakes up user space after each WAKEUP events. */
static __always_inline void submit(struct event *event)
{
	bpf_ringbuf_submit(event, ++copied % WAKEUP ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP);
}

/* Copies the first bytes of a message, at most COPIED. `size` is the size of the message. */
static __always_inline void read_message(void *to, const void *from, __u64 size)
{
	if (bpf_probe_read_user(to, size < COPIED ? size : COPIED, from))
		COUNT_ERROR(unreadable);
}

/* Passes the first bytes of a message to user space. For inv and getdata messages, `inventory` has the bytes, which the
 * caller has already read. For other messages, `inventory` is NULL and the bytes are read from `from`. The event is not
 * zeroed, and its bytes after the end of the message are undefined. */
static __always_inline void copy(struct pt_regs *ctx, const struct __bpf_usdt_spec *spec, __u32 kind, __u64 size,
				 const void *from, const __u64 *inventory)
{
	struct event *event = bpf_ringbuf_reserve(&events_map, sizeof(struct event), 0);

	if (!event) {
		COUNT_ERROR(lost);
		return;
	}
	/* Write to the second cache line of the event first. If this CPU has to fetch the line from the cache of the
	 * CPU that reads the events, the fetch then overlaps with the following code. */
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

/* Passes an inv or getdata message to user space if its first entry is a block. Other entries are not examined, because
 * a node puts blocks before transactions. */
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

/* Passes each header of a headers message to user space, unless there are more than ANNOUNCED_HEADERS. The message
 * begins with the number of headers in one byte, and each header is followed by a byte for its number of transactions,
 * which is 0. */
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

/* Counts a message, and passes it to user space if `kinds` has a kind for its type. */
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

/* Fires when the node accepts a block header that is new and valid. */
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

/* Fires when the node has reconstructed a block from a compact block. After the hash, `bytes` has five u32: the numbers
 * of transactions that were prefilled, found in the mempool, found in the extra pool, and requested, and the total size
 * of the requested transactions in bytes. */
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

/* Index of the connection's network; the last index for an unknown network. */
static __always_inline __u32 network(struct pt_regs *ctx)
{
	__u32 network = argument(ctx, 4);

	return (network < NETWORKS ? network : NETWORKS - 1) % NETWORKS;
}

/* Counts an opened connection. The tracepoint's fifth argument is the node's number of connections of this direction.
 * The node may have read this number slightly earlier or later, and the number includes connections that have just been
 * closed. `before` is therefore computed only if no other connection was opened or closed recently, and is unknown
 * until the first such moment. */
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
