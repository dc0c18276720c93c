/* Code that all BPF programs share. The programs count the hits of the node's tracepoints in the kernel, and the
 * exporter (user space) reads the totals when Prometheus scrapes it. */
#pragma once

#include <stdbool.h>
#include <linux/types.h>
#include <linux/ptrace.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>

/* Maximum number of upper bounds of a histogram's buckets. A histogram has BOUNDS + 1 buckets: the last bucket counts
 * the values above all bounds. */
#define BOUNDS 15
#define HASH 32
#define NAME_LEN 16
/* Size of a peer's address in bytes. The longest address that a node prints is an onion service with its port, which
 * has 68 characters. */
#define ADDRESS 72

struct histogram {
	__u64 sum;
	__u64 buckets[BOUNDS + 1];
};

/* A BPF map with a single value. */
#define SINGLE_VALUE_MAP(name, map_type, value_type)   \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_##map_type); \
		__uint(max_entries, 1);                \
		__type(key, __u32);                    \
		__type(value, value_type);             \
	} name SEC(".maps")

/* A BPF map from a name of at most `length` bytes to its index. User space assigns the indexes, counted from 0. `size`
 * is the capacity of the map, a power of two. */
#define NAMES_MAP(name, size, length)            \
	struct {                                 \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, size);       \
		__type(key, char[length]);       \
		__type(value, __u32);            \
	} name SEC(".maps")

/* Value of a TALLIES_MAP: the number of hits of a tracepoint with one key, and the time of the last such hit. Peers can
 * cause hits with any number of keys, for example with any number of reasons for which the node rejects a transaction.
 * `Maps::tallies` in maps.rs therefore limits the number of keys. */
struct tally {
	__u64 number;
	__u64 last_ns; /* monotonic */
};
#define TALLIES_MAP(name, size, key_type)        \
	struct {                                 \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, size);       \
		__type(key, key_type);           \
		__type(value, struct tally);     \
	} name SEC(".maps")

/* A ring buffer of `size` bytes with events for user space. Each BPF file that uses this macro declares its own
 * `struct event`. */
#define EVENTS_MAP(size)                                                                               \
	const volatile struct event event_layout; /* puts the struct into the generated Rust code */ \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                \
		__uint(max_entries, size);                                                         \
	} events_map SEC(".maps")

struct errors {
	__u64 argument;   /* an argument of a tracepoint could not be read */
	__u64 unreadable; /* node memory that an argument points to is not resident */
	__u64 lost;       /* the ring buffer had no room for an event */
};
SINGLE_VALUE_MAP(errors_map, PERCPU_ARRAY, struct errors);

/* A value that is valid only if `known` is not 0. */
struct gauge {
	__u64 known;
	__s64 value;
};

/* Adds `amount` atomically. Per-CPU values also need atomic additions, because another program on the same CPU can
 * preempt a program. */
static __always_inline void count_up(__u64 *to, __u64 amount)
{
	__sync_fetch_and_add(to, amount);
}

static __always_inline void *single_value(void *map)
{
	__u32 first = 0;

	return bpf_map_lookup_elem(map, &first);
}

#define COUNT_ERROR(kind)                                            \
	({                                                           \
		struct errors *errors = single_value(&errors_map);   \
		if (errors)                                          \
			count_up(&errors->kind, 1);                  \
	})

/* Returns the index of a value's bucket: the number of bounds that are smaller than the value. The index is computed
 * without branches, because with a branch for each bound the verifiers of old kernels have too many paths to check and
 * reject the program. */
static __always_inline __u32 bucket_of(const volatile __u64 *bounds, __s64 value)
{
	__u32 bucket = 0;

#pragma unroll
	for (int i = 0; i < BOUNDS; i++)
		bucket += (bounds[i] - value) >> 63;
	return bucket & BOUNDS;
}

/* Counts a value in a histogram. Negative values are omitted, because nodes measure some durations with the wall
 * clock, which can be set back. */
static __always_inline void observe(struct histogram *histogram, const volatile __u64 *bounds, __s64 value)
{
	if (value < 0)
		return;
	count_up(&histogram->sum, value);
	count_up(&histogram->buckets[bucket_of(bounds, value)], 1);
}

/* Sets a value and marks it as known. */
static __always_inline void set(struct gauge *gauge, __s64 value)
{
	gauge->value = value;
	gauge->known = 1;
}

/* Adds 1 to the count of this key, and returns true. Returns false if the key is new and the map is full. */
static __always_inline bool count_key(void *tallies, const void *key)
{
	struct tally none = {}, *tally = bpf_map_lookup_elem(tallies, key);

	if (!tally) {
		bpf_map_update_elem(tallies, key, &none, BPF_NOEXIST);
		tally = bpf_map_lookup_elem(tallies, key);
	}
	if (!tally)
		return false;
	count_up(&tally->number, 1);
	tally->last_ns = bpf_ktime_get_ns();
	return true;
}

/* The index of a name in a NAMES_MAP; `size` - 1 if the map does not contain the name. */
static __always_inline __u32 lookup_index(void *names, const void *name, __u32 size)
{
	__u32 *number = bpf_map_lookup_elem(names, name);

	return (number ? *number : size - 1) % size;
}

#include "fast_paths.h"

/* The value of a tracepoint's argument; 0 if the argument cannot be read. Arguments are counted from 1, as in the
 * node's documentation of its tracepoints. */
static __noinline long argument(struct pt_regs *ctx, int number)
{
	return fetch(ctx, arguments(ctx), number);
}

/* Copies `size` bytes of the node's memory, from the address that the tracepoint passes in the argument `number`. */
static __always_inline void read_user_bytes(struct pt_regs *ctx, int number, void *to, __u32 size)
{
	if (bpf_probe_read_user(to, size, (void *)argument(ctx, number)))
		COUNT_ERROR(unreadable);
}

/* Copies at most `size` bytes of a string in the node's memory, whose address the tracepoint passes in the argument
 * `number`. The caller must have zeroed `to`. */
static __always_inline void read_user_str(struct pt_regs *ctx, int number, void *to, __u32 size)
{
	if (bpf_probe_read_user_str(to, size, (void *)argument(ctx, number)) < 0)
		COUNT_ERROR(unreadable);
}

/* Defines the BPF program for a tracepoint. In its body, `counts` is the value of the file's `counts_map` for this
 * CPU. */
#define TRACEPOINT(name)                                                                   \
	static __always_inline void on_##name(struct pt_regs *ctx, struct counts *counts); \
	SEC("usdt") int name(struct pt_regs *ctx)                                          \
	{                                                                                  \
		struct counts *counts = single_value(&counts_map);                         \
		if (counts)                                                                \
			on_##name(ctx, counts);                                            \
		return 0;                                                                  \
	}                                                                                  \
	static __always_inline void on_##name(struct pt_regs *ctx, struct counts *counts)

/* Reserves a zeroed event in `events_map`. If the ring buffer is full, the result is NULL and an error is counted. The
 * caller has to compare the result with NULL at once: before about Linux 6.2, the verifier rejects a program that runs
 * other code before the comparison. */
#define RESERVE()                                                                                \
	({                                                                                       \
		struct event *event = bpf_ringbuf_reserve(&events_map, sizeof(struct event), 0); \
		if (event)                                                                       \
			__builtin_memset(event, 0, sizeof(*event));                              \
		else                                                                             \
			COUNT_ERROR(lost);                                                       \
		event;                                                                           \
	})

char LICENSE[] SEC("license") = "Dual MIT/GPL";
