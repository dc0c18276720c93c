/* Reads each argument of a tracepoint and each text twice: with the fast path of the exporter's BPF programs, and with
 * libbpf's helper. */
#include "common.h"

enum { ARGUMENTS = 12 };

struct counts {
	__u64 unused;
};
SINGLE_VALUE_MAP(counts_map, PERCPU_ARRAY, struct counts);

struct results {
	__s64 ours[ARGUMENTS];
	__s64 helpers[ARGUMENTS];
	__u64 our_text[NAME_WORDS];
	__u64 helpers_text[NAME_WORDS];
	/* Number of arguments with each kind of location (`enum __bpf_usdt_arg_type`). */
	__u64 places[4];
};
SINGLE_VALUE_MAP(results_map, ARRAY, struct results);

TRACEPOINT(operands)
{
	const struct __bpf_usdt_spec *spec = arguments(ctx);
	struct results *results = single_value(&results_map);

	if (!results || !spec)
		return;
#pragma unroll
	for (int i = 0; i < ARGUMENTS; i++) {
		long value = 0;

		results->ours[i] = fetch(ctx, spec, i + 1);
		bpf_usdt_arg(ctx, i, &value);
		results->helpers[i] = value;
		count_up(&results->places[spec->args[i].arg_type & 3], 1);
	}
}

TRACEPOINT(text)
{
	struct results *results = single_value(&results_map);
	__u64 text[NAME_WORDS] = {};
	long pointer = 0;

	if (!results)
		return;
	fetch_text(ctx, arguments(ctx), 1, text);
	results->our_text[0] = text[0];
	results->our_text[1] = text[1];
	__builtin_memset(text, 0, sizeof(text));
	bpf_usdt_arg(ctx, 0, &pointer);
	bpf_probe_read_user_str(text, sizeof(text), (void *)pointer);
	results->helpers_text[0] = text[0];
	results->helpers_text[1] = text[1];
}
