/* Code that the BPF programs share. The programs count in the kernel, and user space reads the totals at a scrape. */
#pragma once

#include <stdbool.h>
#include <linux/types.h>
#include <linux/ptrace.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>

/* Number of upper bounds of a histogram. One more bucket has the values above all bounds. */
#define BOUNDS 15
#define HASH 32
#define NAME_LEN 16
/* The longest address that a node prints is that of an onion service with its port: 68 characters. */
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

/* A BPF map from names to their indexes, which user space assigns from 0 on. `size` is the capacity of the map, a power of two. */
#define NAMES_MAP(name, size, length)            \
	struct {                                 \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, size);       \
		__type(key, char[length]);       \
		__type(value, __u32);            \
	} name SEC(".maps")

/* The count of a key that peers choose, and the time of its last hit. User space keeps the number of keys small: `TallyMap` in maps.rs. */
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

/* A ring buffer of `size` bytes with events for user space. Each BPF file that uses it declares its own `struct event`. */
#define EVENTS_MAP(size)                                                                               \
	const volatile struct event event_layout; /* puts the struct into the generated Rust code */ \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                \
		__uint(max_entries, size);                                                         \
	} events_map SEC(".maps")

struct errors {
	__u64 argument;   /* an argument could not be fetched */
	__u64 unreadable; /* memory that an argument points to is not resident */
	__u64 lost;       /* the ring buffer had no room for an event */
};
SINGLE_VALUE_MAP(errors_map, PERCPU_ARRAY, struct errors);

/* A value that is not known until `known` is set. */
struct gauge {
	__u64 known;
	__s64 value;
};

/* Adds atomically, even to per-CPU values: a program can be preempted by another one on the same CPU. */
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

/* The bucket of a value: the number of bounds that are smaller. It is computed without branches: with a branch for each bound there would
 * be so many paths that the verifiers of old kernels do not finish. */
static __always_inline __u32 bucket_of(const volatile __u64 *bounds, __s64 value)
{
	__u32 bucket = 0;

#pragma unroll
	for (int i = 0; i < BOUNDS; i++)
		bucket += (bounds[i] - value) >> 63;
	return bucket & BOUNDS;
}

/* Counts a value in a histogram. Negative values are omitted: nodes measure some durations with the wall clock, which can be set back. */
static __always_inline void observe(struct histogram *histogram, const volatile __u64 *bounds, __s64 value)
{
	if (value < 0)
		return;
	count_up(&histogram->sum, value);
	count_up(&histogram->buckets[bucket_of(bounds, value)], 1);
}

/* Sets a value, which is known from now on. */
static __always_inline void set(struct gauge *gauge, __s64 value)
{
	gauge->value = value;
	gauge->known = 1;
}

/* Adds one to the count of this key; false if the map is full. */
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

/* The index of a name; `size` - 1 for a name without an index. */
static __always_inline __u32 lookup_index(void *names, const void *name, __u32 size)
{
	__u32 *number = bpf_map_lookup_elem(names, name);

	return (number ? *number : size - 1) % size;
}

#include "fast_paths.h"

/* The value of an argument; 0 if it cannot be fetched. Arguments are counted from 1, as in the documentation of the tracepoints. */
static __noinline long argument(struct pt_regs *ctx, int number)
{
	return fetch(ctx, arguments(ctx), number);
}

/* Copies `size` bytes from the address that an argument contains. */
static __always_inline void read_user_bytes(struct pt_regs *ctx, int number, void *to, __u32 size)
{
	if (bpf_probe_read_user(to, size, (void *)argument(ctx, number)))
		COUNT_ERROR(unreadable);
}

/* Copies at most `size` bytes of the string whose address an argument contains; `to` must be zeroed. */
static __always_inline void read_user_str(struct pt_regs *ctx, int number, void *to, __u32 size)
{
	if (bpf_probe_read_user_str(to, size, (void *)argument(ctx, number)) < 0)
		COUNT_ERROR(unreadable);
}

/* Defines the BPF program for a tracepoint. In its body, `counts` is the value of the file's `counts_map` for this CPU. */
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

/* Reserves a zeroed event in `events_map`. If the ring buffer is full, the result is NULL and an error is counted. Test the result at
 * once: before about Linux 6.2, the verifier forgets that a reservation was NULL when other code follows first. */
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
