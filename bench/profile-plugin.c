// SPDX-License-Identifier: GPL-2.0-only
/*
 * QEMU plugin: counts executed instructions by kernel function and by class between two user addresses.
 *
 *   -plugin FILE.so,map=SYSTEM.MAP,classes=FILE,start=ADDR,stop=ADDR,out=FILE   (one CPU, addresses in hex)
 *
 * CLASSES has lines "CLASS FUNCTION". What such a function executes counts for its class, with all that it calls, as far as no
 * function of another class is called. A function is left with the return that matches its call: calls and returns in the kernel
 * are counted. Interrupts and exceptions, from the entry (x86: asm_*; arm64: the handlers of the vectors) to the iretq or eret,
 * are a class of their own, "interrupt".
 *
 * It marks the windows in QEMU's log, too, for what QEMU traces there.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* From QEMU's qemu-plugin.h, which Debian does not ship; API version 1 */
typedef uint64_t qemu_plugin_id_t;
typedef struct {
	const char *target_name; /* the first of several members */
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*tb_cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
typedef void (*insn_cb)(unsigned int cpu, void *data);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_cb cb);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, insn_cb cb, enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, enum qemu_plugin_op op, void *ptr, uint64_t imm);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_outs(const char *string);
__attribute__((visibility("default"))) int qemu_plugin_version = 1;

#define MAX_SYMBOLS 200000
#define MAX_CLASSES 16
#define MAX_DEPTH 256

struct symbol {
	uint64_t addr;
	char *name;
	int class;	/* 0: none */
	uint64_t count, before;
};

static struct symbol symbols[MAX_SYMBOLS];
static size_t nr_symbols = 1;	/* 0: whatever is not in the kernel */
static char *classes[MAX_CLASSES] = { "other", "interrupt" };
static int nr_classes = 2;
static uint64_t class_count[MAX_CLASSES];
static uint64_t start_addr, stop_addr;
static bool arm64;
static uint64_t kernel = 0xffffffff80000000;	/* where it begins */
static FILE *out;

static uint64_t executed, mark, depth;
static bool active;
static struct { int class; uint64_t depth; } stack[MAX_DEPTH];
static int top;		/* stack[0] is "other" */
static unsigned int windows, entries;

static void account(void)
{
	class_count[stack[top].class] += executed - mark;
	mark = executed;
}

static void on_enter(unsigned int cpu, void *data)
{
	int class = (intptr_t)data;

	/* A loop back to the first instruction is no call */
	if (!active || (stack[top].class == class && stack[top].depth == depth && class != 1))
		return;
	account();
	if (top + 1 == MAX_DEPTH) {
		fprintf(stderr, "profile-plugin: nested too deep\n");
		exit(1);
	}
	top++;
	stack[top].class = class;
	stack[top].depth = depth;
	entries += class != 1;
}

static void on_return(unsigned int cpu, void *data)
{
	if (active && top && stack[top].depth == depth && stack[top].class != 1) {
		account();
		while (top && stack[top].depth == depth && stack[top].class != 1)
			top--;
	}
	depth--;
}

static void on_iret(unsigned int cpu, void *data)
{
	int i;

	for (i = top; active && i; i--)
		if (stack[i].class == 1) {
			account();
			depth = stack[i].depth;
			top = i - 1;
			return;
		}
}

static void on_start(unsigned int cpu, void *data)
{
	active = true;
	mark = executed;
	top = 0;
	entries = 0;
	memset(class_count, 0, sizeof(class_count));
	for (size_t i = 0; i < nr_symbols; i++)
		symbols[i].before = symbols[i].count;
	qemu_plugin_outs("window begins\n");
}

static void on_stop(unsigned int cpu, void *data)
{
	uint64_t total = 0;

	if (!active)
		return;
	account();
	active = false;
	/* Some other program has code at these addresses */
	if (!entries)
		return;
	windows++;
	qemu_plugin_outs("window ends\n");
	for (int i = 0; i < nr_classes; i++) {
		fprintf(out, "%u class %s %" PRIu64 "\n", windows, classes[i], class_count[i]);
		total += class_count[i];
	}
	fprintf(out, "%u total - %" PRIu64 "\n%u open - %d\n", windows, total, windows, top);
	for (size_t i = 0; i < nr_symbols; i++)
		if (symbols[i].count != symbols[i].before)
			fprintf(out, "%u function %s %" PRIu64 "\n", windows, symbols[i].name, symbols[i].count - symbols[i].before);
	fflush(out);
}

static struct symbol *find(uint64_t addr)
{
	size_t low = 0, high = nr_symbols;

	if (addr < kernel)
		return symbols;
	while (high - low > 1) {
		size_t mid = (low + high) / 2;

		if (symbols[mid].addr <= addr)
			low = mid;
		else
			high = mid;
	}
	return &symbols[low];
}

static uint32_t arm64_insn(const uint8_t *code)
{
	return code[0] | code[1] << 8 | code[2] << 16 | (uint32_t)code[3] << 24;
}

static bool is_call(const uint8_t *code, size_t size)
{
	/* bl, blr */
	if (arm64)
		return arm64_insn(code) >> 26 == 0x25 || (arm64_insn(code) & ~0x3e0) == 0xd63f0000;
	/* Prefixes: REX and segments */
	while (size > 1 && ((*code & 0xf0) == 0x40 || *code == 0x2e || *code == 0x65)) {
		code++;
		size--;
	}
	return *code == 0xe8 || (*code == 0xff && size > 1 && ((code[1] >> 3) & 7) == 2);
}

static bool is_return(const uint8_t *code, size_t size)
{
	if (arm64)
		return (arm64_insn(code) & ~0x3e0) == 0xd65f0000;
	return *code == 0xc3 || *code == 0xc2 || (size == 2 && *code == 0xf3 && code[1] == 0xc3);
}

static bool is_exception_return(const uint8_t *code, size_t size)
{
	if (arm64)
		return arm64_insn(code) == 0xd69f03e0;
	return size == 2 && code[0] == 0x48 && code[1] == 0xcf;
}

/* But for system calls, which are what is measured */
static bool is_exception_entry(const char *symbol)
{
	if (arm64)
		return !strncmp(symbol, "el1h_64_", 8) ? strstr(symbol, "_handler") == NULL : !strcmp(symbol, "el0t_64_irq");
	return !strncmp(symbol, "asm_", 4);
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t addr = qemu_plugin_insn_vaddr(insn);
		const uint8_t *code = qemu_plugin_insn_data(insn);
		size_t size = qemu_plugin_insn_size(insn);
		struct symbol *symbol = find(addr);

		if (addr == start_addr)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_start, QEMU_PLUGIN_CB_NO_REGS, NULL);
		if (addr == stop_addr)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_stop, QEMU_PLUGIN_CB_NO_REGS, NULL);
		if (addr >= kernel) {
			if (addr == symbol->addr && symbol->class)
				qemu_plugin_register_vcpu_insn_exec_cb(insn, on_enter, QEMU_PLUGIN_CB_NO_REGS,
								       (void *)(intptr_t)symbol->class);
			if (is_return(code, size))
				qemu_plugin_register_vcpu_insn_exec_cb(insn, on_return, QEMU_PLUGIN_CB_NO_REGS, NULL);
			else if (is_exception_return(code, size))
				qemu_plugin_register_vcpu_insn_exec_cb(insn, on_iret, QEMU_PLUGIN_CB_NO_REGS, NULL);
			else if (is_call(code, size))
				qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, &depth, 1);
		}
		qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, &symbol->count, 1);
		qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, &executed, 1);
	}
}

static FILE *open_or_die(const char *name, const char *mode)
{
	FILE *file = fopen(name, mode);

	if (!file) {
		perror(name);
		exit(1);
	}
	return file;
}

static void read_map(const char *name)
{
	FILE *map = open_or_die(name, "r");
	char line[512], type, symbol[512];
	uint64_t addr;

	symbols[0].name = "user";
	while (fgets(line, sizeof(line), map)) {
		if (sscanf(line, "%" SCNx64 " %c %511s", &addr, &type, symbol) != 3 || !strchr("tTwW", type) ||
		    addr < kernel || nr_symbols == MAX_SYMBOLS)
			continue;
		/* The first of several names for an address */
		if (symbols[nr_symbols - 1].addr == addr)
			continue;
		symbols[nr_symbols].addr = addr;
		symbols[nr_symbols].name = strdup(symbol);
		symbols[nr_symbols].class = is_exception_entry(symbol);
		nr_symbols++;
	}
	fclose(map);
}

static void read_classes(const char *name)
{
	FILE *file = open_or_die(name, "r");
	char line[512], class[512], function[512];
	int c;

	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%511s %511s", class, function) != 2 || *class == '#')
			continue;
		for (c = 0; c < nr_classes && strcmp(classes[c], class); c++)
			;
		if (c == MAX_CLASSES) {
			fprintf(stderr, "profile-plugin: too many classes\n");
			exit(1);
		}
		if (c == nr_classes)
			classes[nr_classes++] = strdup(class);
		for (size_t i = 1; i < nr_symbols; i++) {
			size_t length = strcspn(symbols[i].name, ".");

			/* What gcc made of it, NAME.constprop.0 and the like, but not a part of it that it moved away */
			if (strlen(function) == length && !strncmp(symbols[i].name, function, length) &&
			    !strstr(symbols[i].name, ".cold"))
				symbols[i].class = c;
		}
	}
	fclose(file);
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
	const char *map = NULL, *class_file = NULL;

	for (int i = 0; i < argc; i++) {
		char *value = strchr(argv[i], '=');

		if (!value)
			return -1;
		value++;
		if (!strncmp(argv[i], "map=", 4))
			map = value;
		else if (!strncmp(argv[i], "classes=", 8))
			class_file = value;
		else if (!strncmp(argv[i], "start=", 6))
			start_addr = strtoull(value, NULL, 16);
		else if (!strncmp(argv[i], "stop=", 5))
			stop_addr = strtoull(value, NULL, 16);
		else if (!strncmp(argv[i], "out=", 4))
			out = open_or_die(value, "w");
	}
	if (!map || !class_file || !start_addr || !stop_addr || !out)
		return -1;
	arm64 = !strcmp(info->target_name, "aarch64");
	if (arm64)
		kernel = 0xffff800000000000;
	read_map(map);
	read_classes(class_file);
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
	return 0;
}
