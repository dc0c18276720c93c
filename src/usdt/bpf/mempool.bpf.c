/* The tracepoints of the mempool: provider `mempool`. */
#include "common.h"

enum { REASONS = 8 };
/* Size in bytes of the text of the reason for which the node rejects a transaction. The longest such text has 118
 * characters. */
enum { REJECTION = 128 };

struct counts {
	__u64 added;
	__u64 added_vbytes;
	__u64 added_fees;
	__u64 removed[REASONS];
	__u64 replaced;
	__u64 replaced_vbytes;
	__u64 replaced_fees;
	__u64 rejected_other;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);
NAMES_MAP(reasons_map, REASONS, NAME_LEN); /* reasons for which the node removes a transaction from the mempool */

/* Number of rejected transactions by the node's reason. If the map is full, transactions with further reasons count as
 * `other`. */
TALLIES_MAP(rejected_map, 256, char[REJECTION]);

TRACEPOINT(added)
{
	count_up(&counts->added, 1);
	count_up(&counts->added_vbytes, argument(ctx, 2));
	count_up(&counts->added_fees, argument(ctx, 3));
}

TRACEPOINT(removed)
{
	char reason[NAME_LEN] = {};

	read_user_str(ctx, 2, reason, sizeof(reason));
	count_up(&counts->removed[lookup_index(&reasons_map, reason, REASONS)], 1);
}

TRACEPOINT(replaced)
{
	count_up(&counts->replaced, 1);
	count_up(&counts->replaced_vbytes, argument(ctx, 2));
	count_up(&counts->replaced_fees, argument(ctx, 3));
}

TRACEPOINT(rejected)
{
	char reason[REJECTION] = {};

	read_user_str(ctx, 2, reason, sizeof(reason));
	if (!count_key(&rejected_map, reason))
		count_up(&counts->rejected_other, 1);
}
