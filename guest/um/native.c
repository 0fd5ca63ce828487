/*
 * init of a UML guest with the driver of native.patch: what VFIO type1 and iommufd need to map and
 * unmap a page, in ns, on each page table format, beside its bound. Prints a line
 *
 *   native: format= container= memory= bytes= pages= runs= op= min= median= wall= bound=
 *
 * for each row and operation, ps of CPU time a page; wall and bound are minima. Every row is checked:
 * translations against /proc/self/pagemap, pins against /proc/vmstat.
 *
 * MIB= (32) is the size of most rows, MAX_MIB= the end of the scaling rows, ROUNDS= (8) of each
 * row, ROWS= those to run, as FORMAT:CONTAINER:MEMORY:BYTES,...
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/iommufd.h>
#include "native.h"

#define PAGE 4096UL
#define MAX_ROUNDS 64
#define die(...) (printf("native: failed: " __VA_ARGS__), puts(""), stop())
#define check(call) ({							\
	long ret_ = (long)(call);					\
	if (ret_ < 0)							\
		die("%s: %s, line %d", #call, strerror(errno), __LINE__);	\
	ret_;								\
})

static void stop(void)
{
	fflush(stdout);
	reboot(RB_POWER_OFF);
	_exit(1);
}

static size_t number(const char *name, size_t value)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : value;
}

/* Memory that is mapped, and what pagemap says of it */
struct memory {
	const char *name;
	int memfd;
	char *va;
	size_t bytes;
	uint64_t *phys;
};

static void make_memory(struct memory *m, const char *name, size_t bytes, int scattered, int memfd)
{
	size_t n = bytes / PAGE, done = 0;
	int pagemap = check(open("/proc/self/pagemap", O_RDONLY));
	uint32_t *order = malloc(n * sizeof(*order));
	uint64_t random = 1;

	m->name = name;
	m->bytes = bytes;
	m->memfd = memfd ? check(memfd_create(name, 0)) : -1;
	if (memfd)
		check(ftruncate(m->memfd, bytes));
	m->va = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		     memfd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, m->memfd, 0);
	m->phys = malloc(n * sizeof(*m->phys));
	if (m->va == MAP_FAILED || !m->phys || !order)
		die("no memory for %s", name);
	for (size_t i = 0; i < n; i++)
		order[i] = i;
	for (size_t i = n - 1; scattered && i; i--) {
		random = random * 6364136223846793005 + 1442695040888963407;
		size_t j = (random >> 32) % (i + 1);
		uint32_t swap = order[i];

		order[i] = order[j];
		order[j] = swap;
	}
	for (size_t i = 0; i < n; i++)
		m->va[order[i] * PAGE] = 1;
	while (done < n * 8)
		done += check(pread(pagemap, (char *)m->phys + done, n * 8 - done,
				    (uintptr_t)m->va / PAGE * 8 + done));
	for (size_t i = 0; i < n; i++)
		m->phys[i] = (m->phys[i] & ((1ULL << 55) - 1)) * PAGE;
	close(pagemap);
	free(order);
}

/* The two containers; fd is a device of the driver, bound to the one or the other */
static int container, group, ioas_fd, fd, access_fd;
static uint32_t ioas;

static int cdev(int number)
{
	char path[320];
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/devices/platform/vfio-native.%d/vfio-dev", number);
	dir = opendir(path);
	if (!dir)
		die("no %s", path);
	while ((entry = readdir(dir)) && entry->d_name[0] == '.')
		;
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry ? entry->d_name : "none");
	closedir(dir);
	return check(open(path, O_RDWR));
}

static void type1_open(int format)
{
	char path[64], link[256] = "", device[32];

	snprintf(path, sizeof(path), "/sys/devices/platform/vfio-native.%d/iommu_group", format);
	check(readlink(path, link, sizeof(link) - 1));
	snprintf(path, sizeof(path), "/dev/vfio/%.32s", strrchr(link, '/') + 1);
	container = check(open("/dev/vfio/vfio", O_RDWR));
	group = check(open(path, O_RDWR));
	check(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	check(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	snprintf(device, sizeof(device), "vfio-native.%d", format);
	fd = check(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, device));
}

static void type1_close(void)
{
	close(fd);
	close(group);
	close(container);
}

static void type1_map(const struct memory *m, size_t offset, uint64_t iova, size_t bytes)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)m->va + offset, .iova = iova, .size = bytes,
	};

	check(ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
}

static size_t type1_unmap(uint64_t iova, size_t bytes)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap), .iova = iova, .size = bytes,
	};

	check(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap));
	return unmap.size;
}

static void bind_to_ioas(int device)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = ioas_fd };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = ioas };

	check(ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	check(ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
}

static void iommufd_open(int format)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };

	ioas_fd = check(open("/dev/iommu", O_RDWR));
	check(ioctl(ioas_fd, IOMMU_IOAS_ALLOC, &alloc));
	ioas = alloc.out_ioas_id;
	fd = cdev(format);
	bind_to_ioas(fd);
}

static void iommufd_close(void)
{
	close(fd);
	close(ioas_fd);
}

static void iommufd_map(const struct memory *m, size_t offset, uint64_t iova, size_t bytes)
{
	const int flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE |
			  IOMMU_IOAS_MAP_READABLE;
	struct iommu_ioas_map map = {
		.size = sizeof(map), .flags = flags, .ioas_id = ioas,
		.user_va = (uintptr_t)m->va + offset, .length = bytes, .iova = iova,
	};
	struct iommu_ioas_map_file file = {
		.size = sizeof(file), .flags = flags, .ioas_id = ioas, .fd = m->memfd,
		.start = offset, .length = bytes, .iova = iova,
	};

	if (m->memfd >= 0)
		check(ioctl(ioas_fd, IOMMU_IOAS_MAP_FILE, &file));
	else
		check(ioctl(ioas_fd, IOMMU_IOAS_MAP, &map));
}

static size_t iommufd_unmap(uint64_t iova, size_t bytes)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap), .ioas_id = ioas, .iova = iova, .length = bytes,
	};

	check(ioctl(ioas_fd, IOMMU_IOAS_UNMAP, &unmap));
	return unmap.length;
}

static const struct api {
	const char *name;
	void (*open)(int format);
	void (*close)(void);
	void (*map)(const struct memory *m, size_t offset, uint64_t iova, size_t bytes);
	size_t (*unmap)(uint64_t iova, size_t bytes);
} apis[] = {
	{ "type1", type1_open, type1_close, type1_map, type1_unmap },
	{ "iommufd", iommufd_open, iommufd_close, iommufd_map, iommufd_unmap },
};
static const char *formats[NATIVE_NR_FORMATS] = { "amdv1", "vtdss", "x86_64", "riscv64" };

/* Time */

struct times {
	int nr;
	double cpu[MAX_ROUNDS], wall[MAX_ROUNDS];
};

static struct native_clock before, overhead;

static void start(void)
{
	check(ioctl(fd, NATIVE_CLOCK, &before));
}

/* The first round warms up */
static void stop_clock(struct times *t, int round, size_t pages)
{
	struct native_clock after;

	check(ioctl(fd, NATIVE_CLOCK, &after));
	if (round <= 0)
		return;
	t->cpu[t->nr] = (double)(after.cpu_ns - before.cpu_ns - overhead.cpu_ns) * 1000 / pages;
	t->wall[t->nr++] = (double)(after.wall_ns - before.wall_ns - overhead.wall_ns) * 1000 / pages;
}

static void measure_overhead(void)
{
	struct native_clock after;

	overhead = (struct native_clock){ -1, -1 };
	for (int i = 0; i < 1000; i++) {
		start();
		check(ioctl(fd, NATIVE_CLOCK, &after));
		if (after.cpu_ns - before.cpu_ns < overhead.cpu_ns)
			overhead.cpu_ns = after.cpu_ns - before.cpu_ns;
		if (after.wall_ns - before.wall_ns < overhead.wall_ns)
			overhead.wall_ns = after.wall_ns - before.wall_ns;
	}
}

static int compare(const void *a, const void *b)
{
	double difference = *(const double *)a - *(const double *)b;

	return difference < 0 ? -1 : difference > 0;
}

/* Checks */

static void count_pins(long *acquired, long *released)
{
	char line[128];
	FILE *file = fopen("/proc/vmstat", "r");

	while (file && fgets(line, sizeof(line), file)) {
		sscanf(line, "nr_foll_pin_acquired %ld", acquired);
		sscanf(line, "nr_foll_pin_released %ld", released);
	}
	if (!file)
		die("no /proc/vmstat");
	fclose(file);
}

static void check_translation(const struct memory *m, size_t offset, uint64_t iova, size_t bytes,
			      int mapped)
{
	static uint64_t phys[512];

	for (size_t pos = 0; pos < bytes; pos += sizeof(phys) / 8 * PAGE) {
		size_t n = (bytes - pos) / PAGE < 512 ? (bytes - pos) / PAGE : 512;
		struct native_range range = { (uintptr_t)phys, iova + pos, n * PAGE };

		check(ioctl(fd, NATIVE_LOOKUP, &range));
		for (size_t i = 0; i < n; i++) {
			uint64_t want = mapped ? m->phys[(offset + pos) / PAGE + i] : 0;

			if (phys[i] != want)
				die("%s: IOVA %#lx is at %#lx, not %#lx", m->name,
				    (long)(iova + pos + i * PAGE), (long)phys[i], (long)want);
		}
	}
}

/* Rows */

struct row {
	const char *name;
	struct memory *m;
	size_t offset, bytes;
	/* of each area, 0: all in one */
	size_t step;
	/* how the IOVA lies to most of the memory: 1 allows 4 KiB leaves only, 0 all that there are */
	size_t skew;
	int access;
};

static uint64_t row_iova(const struct row *r)
{
	static uint32_t seen[512];
	size_t best = 0;

	memset(seen, 0, sizeof(seen));
	for (size_t i = r->offset / PAGE; i < (r->offset + r->bytes) / PAGE; i++)
		seen[(r->m->phys[i] / PAGE - i) % 512]++;
	for (size_t i = 0; i < 512; i++)
		if (seen[i] > seen[best])
			best = i;
	return 0x40000000 + (best + r->skew) * PAGE + r->offset;
}

static void say(const struct row *r, const char *format, const struct api *api, const char *op,
		struct times *t, struct times *bound)
{
	size_t pages = r->bytes / PAGE, runs = 1, first = r->offset / PAGE;

	for (size_t i = first + 1; i < first + pages; i++)
		runs += r->m->phys[i] != r->m->phys[i - 1] + PAGE;
	qsort(t->cpu, t->nr, sizeof(double), compare);
	qsort(t->wall, t->nr, sizeof(double), compare);
	printf("native: format=%s container=%s memory=%s bytes=%zu pages=%zu runs=%zu op=%s min=%.0f median=%.0f wall=%.0f",
	       format, api->name, r->name, r->bytes, pages, runs, op, t->cpu[0],
	       t->cpu[t->nr / 2], t->wall[0]);
	if (bound && bound->nr) {
		qsort(bound->cpu, bound->nr, sizeof(double), compare);
		printf(" bound=%.0f", bound->cpu[0]);
	}
	puts("");
	fflush(stdout);
}

static void run_access(const struct row *r, const char *format, const struct api *api, int rounds)
{
	uint64_t iova = row_iova(r);
	struct native_range range = { 0, iova, r->bytes };
	struct times read = {}, pin = {}, unpin = {};
	size_t pages = r->bytes / PAGE;

	access_fd = cdev(NATIVE_ACCESS);
	bind_to_ioas(access_fd);
	api->map(r->m, r->offset, iova, r->bytes);
	for (int round = 0; round <= rounds; round++) {
		start();
		check(ioctl(access_fd, NATIVE_READ, &range));
		stop_clock(&read, round, pages);
		start();
		check(ioctl(access_fd, NATIVE_PIN, &range));
		stop_clock(&pin, round, pages);
		start();
		check(ioctl(access_fd, NATIVE_UNPIN, &range));
		stop_clock(&unpin, round, pages);
	}
	api->unmap(iova, r->bytes);
	close(access_fd);
	say(r, format, api, "read", &read, NULL);
	say(r, format, api, "pin", &pin, NULL);
	say(r, format, api, "unpin", &unpin, NULL);
}

static int wanted(const struct row *r, int format, const struct api *api)
{
	const char *rows = getenv("ROWS"), *at = rows;
	char name[96];
	size_t length;

	if (!rows)
		return 1;
	length = snprintf(name, sizeof(name), "%s:%s:%s:%zu", formats[format], api->name, r->name,
			  r->bytes);
	while ((at = strstr(at, name)) && at[length] && at[length] != ',')
		at += length;
	return !!at;
}

static void run(const struct row *r, int format, const struct api *api)
{
	size_t pages = r->bytes / PAGE, step = r->step ?: r->bytes;
	struct times map = {}, unmap = {}, bound = {};
	uint64_t iova = row_iova(r);
	struct native_range range = { (uintptr_t)r->m->va + r->offset, iova, r->bytes };
	long acquired[2], released[2], pinned, unpinned, holds = 0;
	int rounds = number("ROUNDS", 8);

	/* Small ones are cheap, and noisy */
	if (pages <= 8192 && !r->step)
		rounds *= 4;
	if (rounds >= MAX_ROUNDS)
		rounds = MAX_ROUNDS - 1;
	api->open(format);
	measure_overhead();
	count_pins(&acquired[0], &released[0]);
	if (r->access)
		run_access(r, formats[format], api, rounds);
	for (int round = 0; round <= rounds && !r->access; round++) {
		start();
		for (size_t pos = 0; pos < r->bytes; pos += step)
			api->map(r->m, r->offset + pos, iova + pos, step);
		stop_clock(&map, round, pages);
		if (!round) {
			check_translation(r->m, r->offset, iova, r->bytes, 1);
			count_pins(&pinned, &unpinned);
			if (pinned - acquired[0] - (unpinned - released[0]) != (long)pages)
				die("%s: %zu pages are mapped, %ld pinned", r->name, pages,
				    pinned - acquired[0] - (unpinned - released[0]));
		}
		start();
		size_t unmapped = api->unmap(iova, r->bytes);
		stop_clock(&unmap, round, pages);
		if (unmapped != r->bytes)
			die("%s: %zu bytes of %zu unmapped", r->name, unmapped, r->bytes);
		if (!round)
			check_translation(r->m, r->offset, iova, r->bytes, 0);
		/* Pinning for the bound takes long */
		if (round > rounds / 2)
			continue;
		check(ioctl(fd, NATIVE_HOLD, &range));
		start();
		check(ioctl(fd, NATIVE_RELEASE));
		stop_clock(&bound, round, pages);
		holds++;
	}
	count_pins(&acquired[1], &released[1]);
	if (acquired[1] - acquired[0] != released[1] - released[0] ||
	    (!r->access && acquired[1] - acquired[0] != (long)pages * (rounds + 1 + holds)))
		die("%s: %ld pages were pinned, %ld unpinned", r->name, acquired[1] - acquired[0],
		    released[1] - released[0]);
	api->close();
	if (r->access)
		return;
	say(r, formats[format], api, "map", &map, NULL);
	say(r, formats[format], api, "unmap", &unmap, &bound);
}

int main(void)
{
	size_t bytes = number("MIB", 32) << 20, small = 4 << 20;
	size_t max = number("MAX_MIB", 0) << 20;
	struct memory in_order, scattered, file, scattered_file, large;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	check(mount("proc", "/proc", "proc", 0, NULL));
	check(mount("sys", "/sys", "sysfs", 0, NULL));
	check(mount("dev", "/dev", "devtmpfs", 0, NULL));
	make_memory(&in_order, "in_order", bytes, 0, 0);
	make_memory(&file, "memfd_in_order", bytes, 0, 1);
	make_memory(&scattered_file, "memfd_scattered", bytes, 1, 1);
	make_memory(&scattered, "scattered", bytes, 1, 0);
	if (max > bytes && (!getenv("ROWS") || strstr(getenv("ROWS"), "scaling")))
		make_memory(&large, "scattered", max, 1, 0);
	else
		large = scattered;

	const struct row rows[] = {
		{ "in_order", &in_order, 0, bytes, 0, 1, 0 },
		{ "scattered", &scattered, 0, bytes, 0, 1, 0 },
		{ "large", &in_order, 0, bytes, 0, 0, 0 },
		/* begins in the middle of what a large leaf could hold */
		{ "large_off_by_page", &in_order, PAGE, bytes - PAGE, 0, 0, 0 },
		{ "memfd_in_order", &file, 0, bytes, 0, 1, 0 },
		{ "memfd_scattered", &scattered_file, 0, bytes, 0, 1, 0 },
		{ "page_by_page", &in_order, 0, small, PAGE, 1, 0 },
		{ "access_in_order", &in_order, 0, bytes, 0, 1, 1 },
		{ "access_scattered", &scattered, 0, bytes, 0, 1, 1 },
	};

	for (int format = 0; format < NATIVE_NR_FORMATS; format++)
		for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
			for (int api = rows[i].access; api < 2; api++)
				if (wanted(&rows[i], format, &apis[api]))
					run(&rows[i], format, &apis[api]);
	/* vtdss, from 64 KiB on */
	for (size_t size = 64 << 10; size <= max; size *= 4)
		for (int api = 0; api < 2; api++) {
			struct row row = { "scaling", size > bytes ? &large : &scattered,
					   0, size, 0, 1, 0 };

			if (wanted(&row, 1, &apis[api]))
				run(&row, 1, &apis[api]);
		}
	puts("native: done");
	stop();
}
