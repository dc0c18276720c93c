/* Fast paths: code that replaces libbpf's helpers and the kernel's hash maps, because it takes less time. Each hit of a
 * tracepoint delays the node, and most hits come from P2P messages and coins. The table shows how much longer a hit
 * took without each fast path; the heading of a column has the time of a hit with all fast paths, to which the
 * percentages refer. The times were measured on x86-64 with Linux 6.18: medians of 500 rounds of 200 hits in one run of
 * the bench `tracepoint_overhead`, with programs that each lack one fast path, on a machine where a hit of an empty
 * program took 611 ns.
 *
 *                      utxocache:add, 748 ns   net:inbound_message: tx, 792 ns   inv, 883 ns   about a block, 1050 ns
 *   1. arguments       46 ns   6.2 %           49 ns    6.2 %                    98 ns 11.1 %  88 to 122 ns  8 to 12 %
 *   2. short texts     -                       91 ns   11.5 %                   109 ns 12.4 %  73 to  98 ns  7 to  9 %
 *   3. numbered texts  -                       62 ns    7.8 %                    68 ns  7.7 %  60 to  77 ns  6 to  7 %
 *
 * A fast path that saves less than 5 % of the time of a hit is not worth its code. integration-tests/usdt/fast_paths.rs
 * checks that the arguments and texts equal the results of libbpf's helpers. The tests of net.rs check the indexes of
 * the texts. */
#pragma once

/* 1. Arguments. libbpf's bpf_usdt_arg() looks up the description of the arguments again for each argument, and reads
 * registers with a helper. This code loads a register directly as a word of the program's context, and a program that
 * reads several arguments can look up the description once for all of them. The description is a private struct of
 * libbpf (usdt.bpf.h). If a new version of libbpf changes the struct, integration-tests/usdt/fast_paths.rs fails. */

/* libbpf's description of the locations of the current tracepoint's arguments. */
static __always_inline const struct __bpf_usdt_spec *arguments(struct pt_regs *ctx)
{
	int id = __bpf_usdt_spec_id(ctx);

	return bpf_map_lookup_elem(&__bpf_usdt_specs, &id);
}

/* Inline assembly prevents the compiler from merging the loads into one load at a variable offset, which the verifier
 * rejects. */
#define WORD(number)                                                                               \
	case (number) * 8:                                                                         \
		asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(word) : "r"(ctx), "i"((number) * 8)); \
		break

/* The value of the register at this offset of the program's context `ctx`. */
static __always_inline unsigned long read_register(struct pt_regs *ctx, short offset)
{
	unsigned long word = 0;

	switch (offset) {
		WORD(0); WORD(1); WORD(2); WORD(3); WORD(4); WORD(5); WORD(6); WORD(7); WORD(8); WORD(9);
		WORD(10); WORD(11); WORD(12); WORD(13); WORD(14); WORD(15); WORD(16); WORD(17); WORD(18); WORD(19);
#ifdef __TARGET_ARCH_arm64
		WORD(20); WORD(21); WORD(22); WORD(23); WORD(24); WORD(25); WORD(26); WORD(27); WORD(28); WORD(29);
		WORD(30); WORD(31);
#endif
	default:
		bpf_probe_read_kernel(&word, sizeof(word), (void *)ctx + offset);
	}
	return word;
}

/* The value of the tracepoint's argument `number`, counted from 1. If the argument cannot be read, the value is 0 and
 * an error is counted. */
static __always_inline long fetch(struct pt_regs *ctx, const struct __bpf_usdt_spec *spec, __u64 number)
{
	const struct __bpf_usdt_arg_spec *argument;
	unsigned long value;

	if (!spec || number > BPF_USDT_MAX_ARG_CNT || number > spec->arg_cnt)
		goto failed;
	argument = &spec->args[number - 1];
	switch (argument->arg_type) {
	case BPF_USDT_ARG_CONST:
		value = argument->val_off;
		break;
	case BPF_USDT_ARG_REG:
		value = read_register(ctx, argument->reg_off);
		break;
	case BPF_USDT_ARG_REG_DEREF:
	case BPF_USDT_ARG_SIB:
		value = read_register(ctx, argument->reg_off) + argument->val_off;
		if (argument->arg_type == BPF_USDT_ARG_SIB)
			value += read_register(ctx, argument->idx_reg_off) << argument->scale_bitshift;
		if (bpf_probe_read_user(&value, sizeof(value), (void *)value))
			goto failed;
		break;
	default:
		goto failed;
	}
	value <<= argument->arg_bitshift;
	return argument->arg_signed ? (long)value >> argument->arg_bitshift : value >> argument->arg_bitshift;
failed:
	COUNT_ERROR(argument);
	return 0;
}

/* 2. Short texts of at most NAME_WORDS * 8 - 1 bytes, which libstdc++ stores inside a std::string. If an argument is
 * the pointer in a std::string and is read from memory, the length and the text follow the pointer in memory. One read
 * then gets the pointer, the length and the text, and no second read is needed. */
enum { NAME_WORDS = NAME_LEN / 8 };

static __always_inline void fetch_text(struct pt_regs *ctx, const struct __bpf_usdt_spec *spec, __u64 number, __u64 *text)
{
	struct {
		__u64 pointer;
		__u64 length;
		__u64 text[NAME_WORDS];
	} string;
	const struct __bpf_usdt_arg_spec *argument;

	if (spec && number <= BPF_USDT_MAX_ARG_CNT && number <= spec->arg_cnt &&
	    (argument = &spec->args[number - 1])->arg_type == BPF_USDT_ARG_REG_DEREF) {
		__u64 at = read_register(ctx, argument->reg_off) + argument->val_off;

		if (!bpf_probe_read_user(&string, sizeof(string), (void *)at) && string.length < NAME_LEN &&
		    string.pointer == at + __builtin_offsetof(typeof(string), text)) {
			/* The bytes after the end of the text are undefined; clear them. */
			__u64 bits = string.length * 8;

			text[0] = bits < 64 ? string.text[0] & ((1ull << bits) - 1) : string.text[0];
			text[1] = bits > 64 ? string.text[1] & ((1ull << (bits - 64)) - 1) : 0;
			return;
		}
	}
	if (bpf_probe_read_user_str(text, NAME_LEN, (void *)fetch(ctx, spec, number)) < 0)
		COUNT_ERROR(unreadable);
}

/* 3. Indexes of known texts, for example of the names of P2P message types. The slot of a text is computed from the
 * text and a multiplier. User space chooses a multiplier for which no two texts share a slot. A slot without a text has
 * the index for unknown texts. */
struct numbered_text {
	__u64 text[NAME_WORDS];
	__u64 number;
};
enum { TEXT_SLOTS = 256 };
#define NUMBERED_TEXTS_MAP(name)                           \
	struct {                                           \
		__uint(type, BPF_MAP_TYPE_ARRAY);          \
		__uint(max_entries, TEXT_SLOTS);               \
		__type(key, __u32);                        \
		__type(value, struct numbered_text);       \
	} name SEC(".maps")

/* The index of a text; `other` if the map does not contain the text. */
static __always_inline __u32 number_of_text(void *texts, __u64 multiplier, const __u64 *text, __u32 other)
{
	__u32 slot = ((text[0] ^ text[1]) * multiplier) >> 56;
	const struct numbered_text *found = bpf_map_lookup_elem(texts, &slot);

	return found && found->text[0] == text[0] && found->text[1] == text[1] ? found->number : other;
}
