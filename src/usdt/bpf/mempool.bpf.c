/* The mempool: provider `mempool`. */
#include "common.h"

enum { REASONS = 7 }; /* six that a node has, and `other` */

struct counts {
	struct errors errors;
	__u64 added;
	__u64 added_vbytes;
	__u64 added_fees;
	__u64 removed[REASONS + 1];
	__u64 replaced;
	__u64 rejected_other;
};
COUNTS_MAP;

/* The reasons of removals, filled by user space with their places. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REASONS);
	__type(key, char[NAME]);
	__type(value, __u32);
} reasons_map SEC(".maps");

/* The reasons of rejections, as they come. When it is full, further ones are `other`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, char[TEXT]);
	__type(value, __u64);
} rejected_map SEC(".maps");

TRACEPOINT(added)
{
	count_up(&counts->added, 1);
	count_up(&counts->added_vbytes, argument(ctx, &counts->errors, 2));
	count_up(&counts->added_fees, argument(ctx, &counts->errors, 3));
}

TRACEPOINT(removed)
{
	char reason[NAME] = {};
	__u32 *known, place = REASONS - 1;

	string(ctx, &counts->errors, 2, reason, sizeof(reason));
	known = bpf_map_lookup_elem(&reasons_map, reason);
	if (known)
		place = *known;
	count_up(&counts->removed[place & REASONS], 1);
}

TRACEPOINT(replaced)
{
	count_up(&counts->replaced, 1);
}

TRACEPOINT(rejected)
{
	char reason[TEXT] = {};
	__u64 none = 0, *rejected;

	string(ctx, &counts->errors, 2, reason, sizeof(reason));
	rejected = bpf_map_lookup_elem(&rejected_map, reason);
	if (!rejected) {
		bpf_map_update_elem(&rejected_map, reason, &none, BPF_NOEXIST);
		rejected = bpf_map_lookup_elem(&rejected_map, reason);
	}
	count_up(rejected ?: &counts->rejected_other, 1);
}
