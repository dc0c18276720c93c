// A program that fires tracepoints whose arguments have all kinds of locations and all widths. The program reads a text
// from each line of standard input, fires the tracepoints with the text, and prints `fired`. The test sends texts that are
// stored inside a std::string and texts that are too long for that.
#define _SDT_HAS_SEMAPHORES 1
#include <cstdint>
#include <iostream>
#include <string>
#include <sys/sdt.h>

#define SEMAPHORE(name) \
	__extension__ volatile unsigned short name##_semaphore __attribute__((unused, section(".probes")))

extern "C" {
SEMAPHORE(test_operands);
SEMAPHORE(test_text);
}

struct widths {
	int8_t i8;
	uint8_t u8;
	int16_t i16;
	uint16_t u16;
	int32_t i32;
	uint32_t u32;
	int64_t i64;
	uint64_t u64;
};

// The arguments are in memory addressed by one register, in registers, and in memory addressed by two registers. The
// last argument is a constant. (libbpf 1.7 misreads an argument in memory addressed by one register if the next
// argument is in memory addressed by two registers.)
static __attribute__((noinline)) void operands(const widths *all, const int32_t *table, int64_t index, uint8_t byte)
{
	if (test_operands_semaphore)
		STAP_PROBE12(test, operands, all->i8, all->u8, all->i16, all->u16, all->i32, all->u32, all->i64, all->u64,
			     index, table[index], byte, -7);
}

// Passes a text as a node passes the type of a message: the pointer to the text is in a std::string in memory.
static __attribute__((noinline)) void text(const std::string *strings)
{
	if (test_text_semaphore)
		STAP_PROBE1(test, text, strings[1].c_str());
}

int main()
{
	const widths all = {-1, 200, -300, 60000, -70000, 3000000000, -5000000000, UINT64_MAX - 1};
	const int32_t table[] = {1, -2, 3, -40000};
	const widths *values = &all;
	std::string strings[3];
	uint8_t byte = 250;

	asm volatile("" : "+r"(values), "+r"(byte)); // The compiler must not know the values.

	std::cout << "ready" << std::endl;
	while (std::getline(std::cin, strings[1])) {
		operands(values, table, strings[1].size() % 4, byte);
		text(strings);
		std::cout << "fired" << std::endl;
	}
}
