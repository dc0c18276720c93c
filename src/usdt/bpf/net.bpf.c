/* The tracepoints of P2P messages and connections: provider `net`. */
#include "common.h"

/* Maximum numbers of message types, networks and connection types, including the last index for unknown ones. The
 * numbers are powers of two, because the programs then bound an index with a modulo operation. */
enum { TYPES = 64, NETWORKS = 8, CONNECTION_TYPES = 8 };
/* Size of the name of a connection type in bytes; the longest name has 19 characters. */
enum { CONNECTION_NAME = 24 };
/* Size in bytes of a reason for which the node marks a peer as misbehaving, a multiple of 8; the longest reason has
 * 128 characters. */
enum { REASON = 136 };
/* Sizes in bytes of an entry in an inv message and in an addr message. An entry in an addrv2 message has at least
 * ADDRV2_ENTRY bytes. */
enum { INV_ENTRY = 36, ADDR_ENTRY = 30, ADDRV2_ENTRY = 9 };
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
	__u64 opened[NETWORKS][CONNECTION_TYPES];
	/* Number of inv messages by size. inv messages are not counted in `messages[].number`, and the sum of their
	 * entries is computed from `messages[].bytes`. Counting an inv message therefore needs as many additions as
	 * counting any other message. */
	__u64 inv_sizes[BOUNDS + 1];
	struct histogram addr_entries;
	struct histogram closed_age_s;
};

struct counts {
	struct direction inbound;
	struct direction outbound;
	__u64 closed[NETWORKS];
	__u64 evicted;
	struct histogram evicted_age_s;
	__u64 misbehaving_other;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);

NAMES_MAP(connection_types_map, CONNECTION_TYPES, CONNECTION_NAME);

/* Number of misbehaving peers by the node's reason. Each digit in the reason is replaced by `N`, because peers choose
 * the numbers. If the map is full, peers with further reasons count as `other`. */
TALLIES_MAP(misbehaving_map, 256, char[REASON]);

/* Unix time at which the monotonic clock was 0, in nanoseconds. User space updates this time every few seconds,
 * because the wall clock can be set. */
SINGLE_VALUE_MAP(epoch_map, ARRAY, __s64);

/* A connection: the node's ID for the peer, and the time at which it was established, Unix seconds. */
struct connection {
	__s64 peer;
	__u64 established;
};
/* Inbound connections that the node has evicted and not closed yet. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct connection);
	__type(value, __u32);
} evicted_map SEC(".maps");

const volatile __u64 inv_bounds[BOUNDS];
const volatile __u64 addr_bounds[BOUNDS];
const volatile __u64 age_s_bounds[BOUNDS];

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

/* `before` is computed only if at least these times have passed since a connection was last closed, and since a
 * connection was last opened. A node counts a closed connection as open until the node's network thread has handled the
 * close, which happens every 50 ms. */
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
		/* Kinds of messages whose entries are counted, and that are not passed to user space. */
		SENT_INV,
		ADDR,
		ADDRV2,
	} kind;
	__u8 bytes[COPIED];
};
EVENTS_MAP(256 * 1024);

/* Value of `enum kind` for each P2P message type, by the index that types_map assigns to the type. */
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

/* The number of entries of an addrv2 message, from its first bytes. Peers can send a wrong number, so the result is at
 * most the number of entries that the message has room for. */
static __always_inline __u64 addrv2_entries(const void *from, __u64 size)
{
	__u64 most = size / ADDRV2_ENTRY, number;
	__u8 first[3] = {};

	if (bpf_probe_read_user(first, size < sizeof(first) ? size : sizeof(first), from))
		COUNT_ERROR(unreadable);
	if (first[0] < 0xfd)
		number = first[0];
	else if (first[0] == 0xfd)
		number = first[1] | first[2] << 8;
	else
		number = most;
	return number < most ? number : most;
}

/* Counts a message. Depending on the kind that `kinds` has for the type of the message, also counts its entries or
 * passes its first bytes to user space. */
static __always_inline void message(struct pt_regs *ctx, struct direction *direction, const volatile __u8 *kinds)
{
	const struct __bpf_usdt_spec *spec = arguments(ctx);
	__u64 size = fetch(ctx, spec, 5);
	__u64 type[NAME_LEN / 8] = {};
	struct messages *messages;
	__u32 index, kind;
	const void *from;

	fetch_text(ctx, spec, 4, type);
	index = number_of_text(&types_map, multiplier, type, TYPES - 1) % TYPES;
	messages = &direction->messages[index];
	count_up(&messages->bytes, size);
	kind = kinds[index];
	if (kind == INV || kind == SENT_INV)
		/* An inv of N entries has more than N * INV_ENTRY bytes, and fewer than (N + 1) * INV_ENTRY. */
		count_up(&direction->inv_sizes[bucket_of(inv_bounds, size - (INV_ENTRY - 1))], 1);
	else
		count_up(&messages->number, 1);
	if (kind == UNRELATED || kind == SENT_INV)
		return;
	from = (const void *)fetch(ctx, spec, 6);
	if (kind == ADDR || kind == ADDRV2)
		observe(&direction->addr_entries, addr_bounds,
			kind == ADDR ? size / ADDR_ENTRY : addrv2_entries(from, size));
	else if (kind == HEADERS)
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

/* The index of the connection's type; the last index for unknown types. */
static __always_inline __u32 connection_type(struct pt_regs *ctx)
{
	char name[CONNECTION_NAME] = {};

	read_user_str(ctx, 3, name, sizeof(name));
	return lookup_index(&connection_types_map, name, CONNECTION_TYPES);
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

	count_up(&counts->inbound.opened[network(ctx)][connection_type(ctx)], 1);
	if (connections)
		opened(ctx, &connections->inbound);
}

TRACEPOINT(outbound_connection)
{
	struct connections *connections = single_value(&connections_map);

	count_up(&counts->outbound.opened[network(ctx)][connection_type(ctx)], 1);
	if (connections)
		opened(ctx, &connections->outbound);
}

/* Counts the age of a connection in seconds. The node measures the start of the connection with the wall clock. If the
 * wall clock has been set back to an earlier time than the start, the age counts as 0. */
static __always_inline void observe_age(struct histogram *ages, __u64 established)
{
	__s64 *epoch_ns = single_value(&epoch_map), age_s;

	if (!epoch_ns || !established)
		return;
	age_s = (bpf_ktime_get_ns() + *epoch_ns) / 1000000000 - established;
	observe(ages, age_s_bounds, age_s < 0 ? 0 : age_s);
}

TRACEPOINT(closed_connection)
{
	struct connection connection = {.peer = argument(ctx, 1), .established = argument(ctx, 5)};
	struct connections *connections = single_value(&connections_map);
	char type[NAME_LEN] = {};
	bool is_inbound;
	struct open *open;

	count_up(&counts->closed[network(ctx)], 1);
	read_user_str(ctx, 3, type, sizeof(type));
	is_inbound = type[0] == 'i' && type[1] == 'n';
	if (bpf_map_delete_elem(&evicted_map, &connection))
		observe_age(is_inbound ? &counts->inbound.closed_age_s : &counts->outbound.closed_age_s,
			    connection.established);
	if (!connections)
		return;
	open = is_inbound ? &connections->inbound : &connections->outbound;
	count_up(&open->closed, 1);
	open->last_closed_ns = bpf_ktime_get_ns();
}

/* The node closes an evicted connection shortly after this tracepoint. The connection's age is counted here, and not
 * again in closed_connection. */
TRACEPOINT(evicted_inbound_connection)
{
	struct connection connection = {.peer = argument(ctx, 1), .established = argument(ctx, 5)};
	__u32 none = 0;

	count_up(&counts->evicted, 1);
	observe_age(&counts->evicted_age_s, connection.established);
	bpf_map_update_elem(&evicted_map, &connection, &none, BPF_ANY);
}

/* Replaces each digit in eight characters by `N`. The first sum sets the highest bit of each byte whose character is
 * at least '0', the second sum sets the highest bit of each byte whose character is above '9'. Bytes of characters that
 * are not ASCII already have the highest bit set, and are excluded. */
static __always_inline __u64 without_digits(__u64 text)
{
	const __u64 each = 0x0101010101010101, ascii = text & 0x7f * each;
	__u64 digits = (ascii + (0x80 - '0') * each) & ~(ascii + (0x7f - '9') * each) & ~text & 0x80 * each;

	digits = (digits >> 7) * 0xff;
	return (text & ~digits) | ('N' * each & digits);
}

TRACEPOINT(misbehaving_connection)
{
	__u64 reason[REASON / 8] = {};

	if (bpf_probe_read_user_str(reason, sizeof(reason), (void *)argument(ctx, 2)) < 0) {
		COUNT_ERROR(unreadable);
		count_up(&counts->misbehaving_other, 1);
		return;
	}
#pragma unroll
	for (int i = 0; i < REASON / 8; i++)
		reason[i] = without_digits(reason[i]);
	if (!count_key(&misbehaving_map, reason))
		count_up(&counts->misbehaving_other, 1);
}
