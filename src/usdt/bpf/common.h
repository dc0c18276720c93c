/* What the programs share. Counting is done here, in the kernel: user space reads the totals when it is scraped. */
#pragma once

#include <stdbool.h>
#include <linux/types.h>
#include <linux/ptrace.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>

/* So many upper bounds of buckets; the bucket after them is for what is larger than all. */
#define BOUNDS 15
#define HASH 32
#define NAME 16
#define TEXT 64

struct histogram {
	__u64 sum;
	__u64 buckets[BOUNDS + 1];
};

struct errors {
	__u64 argument;   /* an argument could not be fetched */
	__u64 unreadable; /* memory that an argument points to is not resident */
	__u64 lost;       /* no room for a log event */
};

/* A value that is absent until it is known. */
struct gauge {
	__u64 known;
	__s64 value;
};

/* For the log. Unused fields are zero. */
struct event {
	__u32 kind;
	__s32 height;
	__u8 hash[HASH];
	__s64 values[4];
	char texts[2][TEXT];
};

/* Programs can be preempted by others on their processor, so even what is per processor is added to atomically. */
static __always_inline void count_up(__u64 *to, __u64 amount)
{
	__sync_fetch_and_add(to, amount);
}

static __always_inline void observe(struct histogram *histogram, const volatile __u64 *bounds, __u64 value)
{
	__u32 bucket = BOUNDS;

#pragma unroll
	for (int i = BOUNDS - 1; i >= 0; i--)
		if (value <= bounds[i])
			bucket = i;
	count_up(&histogram->sum, value);
	count_up(&histogram->buckets[bucket & BOUNDS], 1);
}

static __always_inline void set(struct gauge *gauge, __s64 value)
{
	gauge->value = value;
	gauge->known = 1;
}

/* An argument, counted from 1 as the documentation of the tracepoints does; 0 if it cannot be fetched. */
static __always_inline long argument(struct pt_regs *ctx, struct errors *errors, int number)
{
	long value = 0;

	if (bpf_usdt_arg(ctx, number - 1, &value))
		count_up(&errors->argument, 1);
	return value;
}

static __always_inline void bytes(struct pt_regs *ctx, struct errors *errors, int number, void *to, __u32 size)
{
	if (bpf_probe_read_user(to, size, (void *)argument(ctx, errors, number)))
		count_up(&errors->unreadable, 1);
}

/* Of the string no more than fits. The rest of `to` has to be zero already. */
static __always_inline void string(struct pt_regs *ctx, struct errors *errors, int number, char *to, __u32 size)
{
	if (bpf_probe_read_user_str(to, size, (void *)argument(ctx, errors, number)) < 0)
		count_up(&errors->unreadable, 1);
}

/* A program for a tracepoint, with `counts`, this processor's. */
#define TRACEPOINT(name)                                                                   \
	static __always_inline void on_##name(struct pt_regs *ctx, struct counts *counts); \
	SEC("usdt") int name(struct pt_regs *ctx)                                          \
	{                                                                                  \
		__u32 first = 0;                                                           \
		struct counts *counts = bpf_map_lookup_elem(&counts_map, &first);          \
		if (counts)                                                                \
			on_##name(ctx, counts);                                            \
		return 0;                                                                  \
	}                                                                                  \
	static __always_inline void on_##name(struct pt_regs *ctx, struct counts *counts)

#define COUNTS_MAP                                       \
	struct {                                         \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); \
		__uint(max_entries, 1);                  \
		__type(key, __u32);                      \
		__type(value, struct counts);            \
	} counts_map SEC(".maps")

#define GAUGES_MAP(number)                        \
	struct {                                  \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(max_entries, number);      \
		__type(key, __u32);               \
		__type(value, struct gauge);      \
	} gauges_map SEC(".maps")

#define EVENTS_MAP                                  \
	struct {                                    \
		__uint(type, BPF_MAP_TYPE_RINGBUF); \
		__uint(max_entries, 256 * 1024);    \
	} events_map SEC(".maps")

/* Room for an event in `events_map`, zeroed; NULL, counted, if there is none. */
#define RESERVE(errors)                                                                              \
	({                                                                                           \
		struct event *event = bpf_ringbuf_reserve(&events_map, sizeof(struct event), 0);     \
		if (event)                                                                           \
			__builtin_memset(event, 0, sizeof(*event));                                  \
		else                                                                                 \
			count_up(&(errors)->lost, 1);                                                     \
		event;                                                                               \
	})

static __always_inline struct gauge *gauge_at(void *map, __u32 index)
{
	return bpf_map_lookup_elem(map, &index);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
