/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What random operations in User Mode Linux need, whatever they are of: numbers that a seed repeats,
 * memory, operations that fail in an allocation or at the limit of locked memory, what the kernel
 * says of them, episodes. NAME is that of the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <linux/capability.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof(*(a)))
#define PAGE 4096UL
#define UNLIMITED UINT64_MAX

/* What may be mapped; behind each region is a gap that cannot be. */
enum { IN_ORDER, SCATTERED, MEMFD, NR_REGIONS };
#define REGION_PAGES 1024UL
#define REGION (REGION_PAGES * PAGE)
#define GAP (16 * PAGE)
static uint8_t *region[NR_REGIONS];
static int memfd;

static int kmsg, fail_nth;
static uint64_t prng, seed, operation, fail;
static uint64_t memlock; /* RLIMIT_MEMLOCK in pages */
static bool failed, unprivileged, may_fail = true;
static unsigned long differences, warnings, lost, injected, over_limit;
static unsigned long mappings, domains_made, pinned_pages;

static uint64_t rnd(uint64_t n)
{
	prng ^= prng << 13;
	prng ^= prng >> 7;
	prng ^= prng << 17;
	return (prng >> 11) % n;
}

static bool one_in(unsigned int n)
{
	return rnd(n) == 0;
}

static void __attribute__((format(printf, 1, 2))) differs(const char *format, ...)
{
	va_list args;

	failed = true;
	if (differences++ >= 10)
		return;
	printf(NAME ": operation %lu, seed %lu: ", operation, seed);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

static void __attribute__((noreturn)) die(const char *what)
{
	printf(NAME ": cannot %s: %s\n", what, strerror(errno));
	fflush(stdout);
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void check(const char *what, int rc, int want)
{
	if (rc != want)
		differs("%s returned %d, expected %d", what, rc, want);
}

/* Counts the kernel's complaints, shows the first ones. */
static void read_kmsg(void)
{
	static const char *const trouble[] = {
		"WARNING:", "BUG:",	  "BUG ",	 "KASAN:",   "UBSAN:",
		"Oops",	    "corruption", "refcount_t:", "Bad page",
	};
	char record[4096];
	ssize_t n;

	while ((n = read(kmsg, record, sizeof(record) - 1)) > 0 || (n < 0 && errno == EPIPE)) {
		if (n < 0)
			continue;
		record[n] = '\0';
		for (size_t i = 0; i < ARRAY_SIZE(trouble); i++) {
			if (!strstr(record, trouble[i]))
				continue;
			if (!warnings++)
				differs("here or a little before it the kernel says: %s",
					strchr(record, ';') + 1);
			failed = true;
			break;
		}
	}
}

static const char *read_file(const char *path)
{
	static char text[16384];
	int fd = open(path, O_RDONLY);
	ssize_t n;

	if (fd < 0)
		die(path);
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	return text;
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static unsigned long number_behind(const char *text, const char *name)
{
	text = strstr(text, name);
	if (!text)
		die(name);
	return strtoul(text + strlen(name), NULL, 10);
}

static unsigned long pins_left(void)
{
	const char *text = read_file("/proc/vmstat");

	pinned_pages = number_behind(text, "nr_foll_pin_acquired ");
	return pinned_pages - number_behind(text, "nr_foll_pin_released ");
}

static bool in_gap(const uint8_t *va, size_t length)
{
	for (int i = 0; i < NR_REGIONS; i++)
		if (va >= region[i] && va < region[i] + REGION + GAP)
			return va + length > region[i] + REGION;
	return true;
}

/* As check(), of an operation that pins; one that exceeds the limit does not succeed. */
static void check_limited(const char *what, int rc, int want, bool exceeded)
{
	if (exceeded && rc == -ENOMEM)
		over_limit++;
	else if (exceeded && !want)
		differs("%s returned %d, expected it to exceed the limit of %lu", what, rc, memlock);
	else
		check(what, rc, want);
}

/* With fail, of a call that may: from here on an allocation fails, perhaps. */
static bool arm_failure(void)
{
	char text[12];

	if (!may_fail || rnd(100) >= fail)
		return false;
	snprintf(text, sizeof(text), "%lu", 1 + rnd(one_in(4) ? 100 : 10));
	if (pwrite(fail_nth, text, strlen(text), 0) < 0)
		die("write fail-nth");
	return true;
}

/* Did the call fail because of it? */
static bool disarm_failure(int rc)
{
	char text[12];

	if (pread(fail_nth, text, sizeof(text), 0) < 0 || pwrite(fail_nth, "0", 1, 0) < 0)
		die("read fail-nth");
	if (!rc || text[0] != '0')
		return false;
	injected++;
	return true;
}

static void set_memlock(uint64_t pages)
{
	uint64_t bytes = pages == UNLIMITED ? RLIM_INFINITY : pages * PAGE;
	struct rlimit rlimit = { .rlim_cur = bytes, .rlim_max = RLIM_INFINITY };

	if (setrlimit(RLIMIT_MEMLOCK, &rlimit))
		die("set RLIMIT_MEMLOCK");
	memlock = pages;
}

/* Without CAP_IPC_LOCK there is a limit of locked memory, of the user or of the process. */
static void set_privilege(bool privileged)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		die("read capabilities");
	data[0].effective = data[0].permitted;
	if (!privileged)
		data[0].effective &= ~(1u << CAP_IPC_LOCK);
	if (syscall(SYS_capset, &header, data))
		die("set capabilities");
	unprivileged = !privileged;
}

static void fill(uint8_t *memory)
{
	for (size_t i = 0; i < REGION; i += 8) {
		uint64_t word = (uintptr_t)(memory + i) * 0x9e3779b97f4a7c15;

		memcpy(memory + i, &word, 8);
	}
}

static void make_memory(void)
{
	for (int i = 0; i < NR_REGIONS; i++) {
		region[i] = mmap(NULL, REGION + GAP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (region[i] == MAP_FAILED)
			die("map memory");
		if (i != MEMFD && mprotect(region[i], REGION, PROT_READ | PROT_WRITE))
			die("make memory accessible");
	}
	memfd = memfd_create("random", 0);
	if (memfd < 0 || ftruncate(memfd, REGION) ||
	    mmap(region[MEMFD], REGION, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd, 0) ==
		    MAP_FAILED)
		die("map a memfd");
	/* 389 and the number of pages have no common divisor. */
	for (size_t i = 0; i < REGION_PAGES; i++)
		region[SCATTERED][i * 389 % REGION_PAGES * PAGE] = 1;
	for (int i = 0; i < NR_REGIONS; i++)
		fill(region[i]);
}

/* All allocations may fail, and say nothing. */
static void make_failures(void)
{
	write_file("/debug/failslab/ignore-gfp-wait", "N");
	write_file("/debug/fail_page_alloc/ignore-gfp-wait", "N");
	write_file("/debug/fail_page_alloc/ignore-gfp-highmem", "N");
	write_file("/debug/fail_page_alloc/min-order", "0");
	write_file("/debug/failslab/verbose", "0");
	write_file("/debug/fail_page_alloc/verbose", "0");
	write_file("/debug/fail_iommufd/verbose", "0");
}

static uint64_t setting(const char *name)
{
	const char *value = getenv(name);

	return value ? strtoul(value, NULL, 0) : 0;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void start_random(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	seed = setting("SEED");
	fail = setting("FAIL");
	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mkdir("/debug", 0755);
	mkdir("/sys", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) ||
	    mount("sysfs", "/sys", "sysfs", 0, NULL) ||
	    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL) ||
	    mount("debugfs", "/debug", "debugfs", 0, NULL))
		die("mount /proc, /sys, /dev and /debug");
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	if (kmsg < 0)
		die("open /dev/kmsg");
	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR);
	if (fail_nth < 0)
		die("open fail-nth");
	make_failures();
	make_memory();
	if (pins_left())
		die("start: pages are pinned already");
}

struct operation {
	void (*run)(void);
	int weight;
};

/* One of them, as often as its weight says */
static void run_some(const struct operation *operations, size_t n)
{
	int sum = 0, left;

	for (size_t i = 0; i < n; i++)
		sum += operations[i].weight;
	left = rnd(sum);
	while (left >= operations->weight)
		left -= operations++->weight;
	operations->run();
}

/* A call costs more than most operations. */
static void sometimes_read_kmsg(void)
{
	if (one_in(16))
		read_kmsg();
}

/* Episodes until there are OPERATIONS; what an episode has opened it closes, and no pin may be left. */
static int run_episodes(void (*episode)(uint64_t end))
{
	uint64_t wanted = setting("OPERATIONS"), episodes = 0;
	bool keep_going = setting("KEEP_GOING"), bad = false;
	double start = now();

	for (; operation < wanted && (!bad || keep_going); episodes++) {
		unsigned long left;
		uint64_t end;

		/* Each episode starts from the seed alone, whatever went wrong before it. */
		prng = (seed + 1) * 0x9e3779b97f4a7c15 ^ (episodes + 1) * 0xbf58476d1ce4e5b9;
		for (int i = 0; i < 4; i++)
			rnd(2);
		end = operation + 20 + rnd(600);
		failed = false;
		episode(end < wanted ? end : wanted);
		read_kmsg();
		left = pins_left();
		if (left != lost)
			differs("%ld pages are still pinned after all is closed", left - lost);
		lost = left;
		bad |= failed;
	}
	printf(NAME ": %lu operations, seed %lu: ", operation, seed);
	if (bad)
		printf("FAILED, %lu WARNs, %lu pages still pinned\n", warnings, lost);
	else
		printf("ok\n");
	printf(NAME ": %.1f s, closed %lu times, %lu maps, %lu domains, %lu pins, "
	       "%lu made to fail, %lu beyond the limit of locked memory\n",
	       now() - start, episodes, mappings, domains_made, pinned_pages, injected, over_limit);
	fflush(stdout);
	reboot(RB_POWER_OFF);
	return 1;
}
