/* The mempool: provider `mempool`. */
#include "common.h"

enum { REASONS = 8 };

struct counts {
	__u64 added;
	__u64 added_vbytes;
	__u64 added_fees;
	__u64 removed[REASONS];
	__u64 replaced;
	__u64 rejected_other;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);
NAMES_MAP(reasons_map, REASONS, NAME); /* of removals */

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
	count_up(&counts->added_vbytes, argument(ctx, 2));
	count_up(&counts->added_fees, argument(ctx, 3));
}

TRACEPOINT(removed)
{
	char reason[NAME] = {};

	string(ctx, 2, reason, sizeof(reason));
	count_up(&counts->removed[number_of(&reasons_map, reason, REASONS)], 1);
}

TRACEPOINT(replaced)
{
	count_up(&counts->replaced, 1);
}

TRACEPOINT(rejected)
{
	char reason[TEXT] = {};
	__u64 none = 0, *rejected;

	string(ctx, 2, reason, sizeof(reason));
	rejected = bpf_map_lookup_elem(&rejected_map, reason);
	if (!rejected) {
		bpf_map_update_elem(&rejected_map, reason, &none, BPF_NOEXIST);
		rejected = bpf_map_lookup_elem(&rejected_map, reason);
	}
	count_up(rejected ?: &counts->rejected_other, 1);
}
