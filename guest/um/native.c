/*
 * init of a guest with the driver of native.patch: what VFIO type1 and iommufd need to map and unmap
 * a page, in ns, on each page table format, beside its bound. Prints a line
 *
 *   native: format= container= memory= bytes= pages= runs= op= min= median= wall= longest= bound=
 *
 * for each row and operation, ps of CPU time a page; wall and bound are minima. longest is the time
 * in ns in which no other task could run, the least of a few unmaps. Every row is checked:
 * translations against /proc/self/pagemap, pins against /proc/vmstat.
 *
 * MIB= (32) is the size of most rows, MAX_MIB= the end of the scaling rows, ROUNDS= (8) of each row,
 * ROWS= those to run, as FORMAT:CONTAINER:MEMORY:BYTES,... MORE=1 has other rows instead: other
 * containers and ways to unmap, and long ones up to LONG_GIB=.
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

static size_t number(const char *name, size_t value)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : value;
}

static void stop(void)
{
	fflush(stdout);
	/* QEMU ends at a reboot, and cannot be switched off without ACPI. */
	reboot(number("REBOOT", 0) ? RB_AUTOBOOT : RB_POWER_OFF);
	_exit(1);
}

/* In an order that is the same each time */
static uint32_t *make_order(size_t n, int shuffled)
{
	uint32_t *order = malloc(n * sizeof(*order));
	uint64_t random = 1;

	if (!order)
		die("no memory");
	for (size_t i = 0; i < n; i++)
		order[i] = i;
	for (size_t i = n - 1; shuffled && i; i--) {
		random = random * 6364136223846793005 + 1442695040888963407;
		size_t j = (random >> 32) % (i + 1);
		uint32_t swap = order[i];

		order[i] = order[j];
		order[j] = swap;
	}
	return order;
}

/* Memory that is mapped, and what pagemap says of it; behind its end it begins anew */
struct memory {
	const char *name;
	int memfd;
	char *va;
	/* of va, and of the pages behind it */
	size_t bytes, period;
	uint64_t *phys;
};

static uint64_t phys(const struct memory *m, size_t offset)
{
	return m->phys[offset % m->period / PAGE];
}

static void make_memory(struct memory *m, const char *name, size_t bytes, int scattered, int memfd)
{
	size_t n = bytes / PAGE, done = 0;
	int pagemap = check(open("/proc/self/pagemap", O_RDONLY));
	uint32_t *order = make_order(n, scattered);

	m->name = name;
	m->bytes = m->period = bytes;
	m->memfd = memfd ? check(memfd_create(name, 0)) : -1;
	if (memfd)
		check(ftruncate(m->memfd, bytes));
	m->va = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		     memfd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, m->memfd, 0);
	m->phys = malloc(n * sizeof(*m->phys));
	if (m->va == MAP_FAILED || !m->phys)
		die("no memory for %s", name);
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

/* The pages of a memfd in one piece of VA again and again */
static void repeat_memory(struct memory *m, const struct memory *file, size_t bytes)
{
	*m = *file;
	m->bytes = bytes;
	m->memfd = -1;
	m->va = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->va == MAP_FAILED)
		die("no room for %zu bytes of %s", bytes, m->name);
	for (size_t pos = 0; pos < bytes; pos += m->period)
		if (mmap(m->va + pos, m->period, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED | MAP_POPULATE, file->memfd, 0) == MAP_FAILED)
			die("%s: %s", m->name, strerror(errno));
}

/* fd is a device of the driver, other_fd one behind another IOMMU */
static int container, ioas_fd, fd, other_fd, access_fd, clock_fd;
static uint32_t ioas;

/* What a container has to be closed, the last first */
static int opened[8], nr_opened;

static int keep(long fd)
{
	return opened[nr_opened++] = fd;
}

static void close_all(void)
{
	while (nr_opened)
		close(opened[--nr_opened]);
}

/* What is there beside one device */
enum { OTHER_DEVICE = 1, DIRTY_TRACKING = 2 };

struct api {
	const char *name;
	void (*open)(const struct api *api, int format);
	void (*map)(const struct memory *m, size_t offset, uint64_t iova, size_t bytes);
	size_t (*unmap)(uint64_t iova, size_t bytes);
	const char *path;
	int type;
};
static int with;

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

static int open_group(int format)
{
	char path[64], link[256] = "";
	int group;

	snprintf(path, sizeof(path), "/sys/devices/platform/vfio-native.%d/iommu_group", format);
	check(readlink(path, link, sizeof(link) - 1));
	snprintf(path, sizeof(path), "/dev/vfio/%.32s", strrchr(link, '/') + 1);
	group = keep(check(open(path, O_RDWR)));
	check(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	return group;
}

static int open_group_device(int group, int format)
{
	char device[32];

	snprintf(device, sizeof(device), "vfio-native.%d", format);
	return keep(check(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, device)));
}

static void type1_open(const struct api *api, int format)
{
	struct vfio_iommu_type1_dirty_bitmap dirty = {
		.argsz = sizeof(dirty), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
	};
	int group, other = (format + 1) % NATIVE_NR_FORMATS;

	container = keep(check(open(api->path, O_RDWR)));
	group = open_group(format);
	check(ioctl(container, VFIO_SET_IOMMU, api->type));
	fd = open_group_device(group, format);
	if (with & OTHER_DEVICE)
		other_fd = open_group_device(open_group(other), other);
	if (with & DIRTY_TRACKING)
		check(ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &dirty));
}

static void type1_map(const struct memory *m, size_t offset, uint64_t iova, size_t bytes)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)m->va + offset, .iova = iova, .size = bytes,
	};

	check(ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
}

/* With SIZE_MAX bytes all that there is */
static size_t type1_unmap(uint64_t iova, size_t bytes)
{
	static uint64_t bitmap[(1 << 20) / 64];
	struct {
		struct vfio_iommu_type1_dma_unmap unmap;
		struct vfio_bitmap dirty;
	} arg = {
		{ .argsz = sizeof(arg), .iova = iova, .size = bytes },
		{ .pgsize = PAGE, .size = (bytes / PAGE + 63) / 64 * 8, .data = (void *)bitmap },
	};

	if (bytes == SIZE_MAX) {
		arg.unmap.flags = VFIO_DMA_UNMAP_FLAG_ALL;
		arg.unmap.size = 0;
	} else if (with & DIRTY_TRACKING) {
		arg.unmap.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
	}
	check(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &arg));
	return arg.unmap.size;
}

static uint32_t bind_device(int device)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = ioas_fd };

	check(ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	return bind.out_devid;
}

static void attach_device(int device, uint32_t pt_id)
{
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = pt_id };

	check(ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
}

static uint32_t dirty_hwpt(uint32_t device)
{
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc), .flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
		.dev_id = device, .pt_id = ioas,
	};
	struct iommu_hwpt_set_dirty_tracking on = {
		.size = sizeof(on), .flags = IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
	};

	check(ioctl(ioas_fd, IOMMU_HWPT_ALLOC, &alloc));
	on.hwpt_id = alloc.out_hwpt_id;
	check(ioctl(ioas_fd, IOMMU_HWPT_SET_DIRTY_TRACKING, &on));
	return alloc.out_hwpt_id;
}

static void iommufd_open(const struct api *api, int format)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	uint32_t device;

	ioas_fd = keep(check(open(api->path, O_RDWR)));
	check(ioctl(ioas_fd, IOMMU_IOAS_ALLOC, &alloc));
	ioas = alloc.out_ioas_id;
	fd = keep(cdev(format));
	device = bind_device(fd);
	attach_device(fd, with & DIRTY_TRACKING ? dirty_hwpt(device) : ioas);
	if (with & OTHER_DEVICE) {
		other_fd = keep(cdev((format + 1) % NATIVE_NR_FORMATS));
		bind_device(other_fd);
		attach_device(other_fd, ioas);
	}
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

enum { TYPE1, IOMMUFD, TYPE1_V1, COMPAT, COMPAT_V1, NR_APIS };
enum { MAIN = 1 << TYPE1 | 1 << IOMMUFD, OTHERS = 1 << TYPE1_V1 | 1 << COMPAT | 1 << COMPAT_V1 };
static const struct api apis[NR_APIS] = {
	{ "type1", type1_open, type1_map, type1_unmap, "/dev/vfio/vfio", VFIO_TYPE1v2_IOMMU },
	{ "iommufd", iommufd_open, iommufd_map, iommufd_unmap, "/dev/iommu", 0 },
	{ "type1_v1", type1_open, type1_map, type1_unmap, "/dev/vfio/vfio", VFIO_TYPE1_IOMMU },
	{ "compat", type1_open, type1_map, type1_unmap, "/dev/iommu", VFIO_TYPE1v2_IOMMU },
	{ "compat_v1", type1_open, type1_map, type1_unmap, "/dev/iommu", VFIO_TYPE1_IOMMU },
};
enum { VTDSS = 1 };
static const char *formats[NATIVE_NR_FORMATS] = { "amdv1", "vtdss", "x86_64", "riscv64" };

/* Time */

struct times {
	int nr;
	double cpu[MAX_ROUNDS], wall[MAX_ROUNDS];
	/* without a point at which another task could run */
	uint64_t longest;
};

static struct native_clock before, overhead;

static void start(int watch)
{
	check(ioctl(clock_fd, NATIVE_CLOCK, &before));
	if (watch)
		check(ioctl(clock_fd, NATIVE_WATCH));
}

/* The first round warms up; who watches disturbs, and does not count if there are others */
static void stop_clock(struct times *t, int round, size_t pages)
{
	struct native_clock after;

	check(ioctl(clock_fd, NATIVE_CLOCK, &after));
	if (after.longest_ns && (!t->longest || after.longest_ns < t->longest))
		t->longest = after.longest_ns;
	if (round <= 0 || (after.longest_ns && t->nr))
		return;
	t->cpu[t->nr] = (double)(after.cpu_ns - before.cpu_ns - overhead.cpu_ns) * 1000 / pages;
	t->wall[t->nr++] = (double)(after.wall_ns - before.wall_ns - overhead.wall_ns) * 1000 / pages;
}

static void measure_overhead(void)
{
	struct native_clock after;

	clock_fd = check(open("/dev/vfio-native", O_RDWR));
	overhead = (struct native_clock){ -1, -1, 0 };
	for (int i = 0; i < 10000; i++) {
		start(0);
		check(ioctl(clock_fd, NATIVE_CLOCK, &after));
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
	/* With SMP these are sums of counters of each CPU, which lag behind. */
	FILE *file = fopen("/proc/sys/vm/stat_refresh", "r");
	char line[128];

	if (file) {
		fgetc(file);
		fclose(file);
	}
	file = fopen("/proc/vmstat", "r");
	while (file && fgets(line, sizeof(line), file)) {
		sscanf(line, "nr_foll_pin_acquired %ld", acquired);
		sscanf(line, "nr_foll_pin_released %ld", released);
	}
	if (!file)
		die("no /proc/vmstat");
	fclose(file);
}

static void check_device(int device, const struct memory *m, size_t offset, uint64_t iova,
			 size_t bytes, int mapped)
{
	static uint64_t found[512];
	/* Of much, something here and there */
	const size_t step = sizeof(found) / 8 * PAGE * (bytes > 1UL << 30 ? 61 : 1);

	for (size_t pos = 0; pos < bytes; pos += step) {
		size_t n = (bytes - pos) / PAGE < 512 ? (bytes - pos) / PAGE : 512;
		struct native_range range = { (uintptr_t)found, iova + pos, n * PAGE };

		check(ioctl(device, NATIVE_LOOKUP, &range));
		for (size_t i = 0; i < n; i++) {
			uint64_t want = mapped ? phys(m, offset + pos + i * PAGE) : 0;

			if (found[i] != want)
				die("%s: IOVA %#lx is at %#lx, not %#lx", m->name,
				    (long)(iova + pos + i * PAGE), (long)found[i], (long)want);
		}
	}
}

static void check_translation(const struct memory *m, size_t offset, uint64_t iova, size_t bytes,
			      int mapped)
{
	check_device(fd, m, offset, iova, bytes, mapped);
	if (with & OTHER_DEVICE)
		check_device(other_fd, m, offset, iova, bytes, mapped);
}

/* Rows */

/* What is timed: unmap of all with one call for the range, or for everything; of each area, a tenth
 * of them at random, or the one in the middle; close; or accesses */
enum how { RANGE, ALL, EACH, TENTH, MIDDLE, CLOSE, ACCESS };

struct row {
	const char *name;
	const struct memory *m;
	size_t offset, bytes;
	/* of each area, 0: all in one */
	size_t step;
	/* how the IOVA lies to most of the memory: 1 allows 4 KiB leaves only, 0 all that there are */
	size_t skew;
	int apis;
	enum how how;
	int with;
};

static uint64_t row_iova(const struct row *r)
{
	const size_t bytes = r->bytes < r->m->period ? r->bytes : r->m->period;
	static uint32_t seen[512];
	size_t best = 0;

	memset(seen, 0, sizeof(seen));
	for (size_t i = r->offset / PAGE; i < (r->offset + bytes) / PAGE; i++)
		seen[(phys(r->m, i * PAGE) / PAGE - i) % 512]++;
	for (size_t i = 0; i < 512; i++)
		if (seen[i] > seen[best])
			best = i;
	return 0x40000000 + (best + r->skew) * PAGE + r->offset;
}

static void say(const struct row *r, const char *format, const struct api *api, const char *op,
		struct times *t, struct times *bound)
{
	size_t pages = r->bytes / PAGE, runs = 1;

	for (size_t pos = r->offset + PAGE; pos < r->offset + r->bytes; pos += PAGE)
		runs += phys(r->m, pos) != phys(r->m, pos - PAGE) + PAGE;
	qsort(t->cpu, t->nr, sizeof(double), compare);
	qsort(t->wall, t->nr, sizeof(double), compare);
	printf("native: format=%s container=%s memory=%s bytes=%zu pages=%zu runs=%zu op=%s min=%.0f median=%.0f wall=%.0f",
	       format, api->name, r->name, r->bytes, pages, runs, op, t->cpu[0],
	       t->cpu[t->nr / 2], t->wall[0]);
	if (t->longest)
		printf(" longest=%lu", (long)t->longest);
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
	bind_device(access_fd);
	attach_device(access_fd, ioas);
	api->map(r->m, r->offset, iova, r->bytes);
	for (int round = 0; round <= rounds; round++) {
		start(0);
		check(ioctl(access_fd, NATIVE_READ, &range));
		stop_clock(&read, round, pages);
		start(0);
		check(ioctl(access_fd, NATIVE_PIN, &range));
		stop_clock(&pin, round, pages);
		start(0);
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

/* Returns how much */
static size_t timed_unmap(const struct row *r, const struct api *api, uint64_t iova, size_t step,
			  const uint32_t *order)
{
	size_t areas = r->bytes / step, bytes = 0;

	if (r->how == TENTH)
		areas /= 10;
	switch (r->how) {
	case ALL:
		return api->unmap(0, SIZE_MAX);
	case MIDDLE:
		return api->unmap(iova + areas / 2 * step, step);
	case CLOSE:
		close_all();
		return r->bytes;
	case EACH:
	case TENTH:
		for (size_t i = 0; i < areas; i++)
			bytes += api->unmap(iova + order[i] * step, step);
		return bytes;
	default:
		return api->unmap(iova, r->bytes);
	}
}

static void run(const struct row *r, int format, const struct api *api)
{
	size_t pages = r->bytes / PAGE, step = r->step ?: r->bytes, areas = r->bytes / step;
	size_t part = r->how == TENTH ? areas / 10 : r->how == MIDDLE ? 1 : areas;
	uint32_t *order = make_order(areas, r->how == TENTH);
	struct times map = {}, unmap = {}, bound = {};
	uint64_t iova = row_iova(r);
	struct native_range range = { (uintptr_t)r->m->va + r->offset, iova, r->bytes };
	long acquired[2], released[2], pinned, unpinned, held = 0, mapped = 0;
	int rounds = number("ROUNDS", 8), watched = 3, first = 0;

	/* Small ones are cheap, and noisy; many calls take long */
	if (pages <= 8192 && !r->step)
		rounds *= 4;
	if (rounds >= MAX_ROUNDS - watched)
		rounds = MAX_ROUNDS - watched - 1;
	if (areas > 8192)
		rounds = watched = 1;
	if (r->bytes > 1UL << 30) {
		rounds = 0;
		first = 1;
	}
	with = r->with;
	api->open(api, format);
	count_pins(&acquired[0], &released[0]);
	if (r->how == ACCESS) {
		run_access(r, formats[format], api, rounds);
		rounds = watched = -1;
	}
	for (int round = first; round <= rounds + watched; round++) {
		start(0);
		for (size_t pos = 0; pos < r->bytes; pos += step)
			api->map(r->m, (r->offset + pos) % r->m->bytes, iova + pos, step);
		stop_clock(&map, round, pages);
		mapped += pages;
		if (round == first) {
			check_translation(r->m, r->offset, iova, r->bytes, 1);
			count_pins(&pinned, &unpinned);
			if (pinned - acquired[0] - (unpinned - released[0]) != (long)pages)
				die("%s: %zu pages are mapped, %ld pinned", r->name, pages,
				    pinned - acquired[0] - (unpinned - released[0]));
		}
		start(round > rounds);
		size_t unmapped = timed_unmap(r, api, iova, step, order);
		stop_clock(&unmap, round, part * step / PAGE);
		if (unmapped != part * step)
			die("%s: %zu bytes of %zu unmapped", r->name, unmapped, part * step);
		if (part != areas) {
			check_translation(r->m, order[areas - 1] * step, iova + order[areas - 1] * step,
					  step, 1);
			api->unmap(0, SIZE_MAX);
		}
		if (r->how == CLOSE)
			api->open(api, format);
		if (round == first)
			check_translation(r->m, r->offset, iova, r->bytes, 0);
		/* What takes seconds is timed once. */
		if (first && unmap.wall[0] * pages > 5e12)
			break;
		/* Pinning for the bound takes long */
		if (round > rounds / 2 || part != areas || r->bytes > r->m->bytes)
			continue;
		check(ioctl(fd, NATIVE_HOLD, &range));
		start(0);
		check(ioctl(fd, NATIVE_RELEASE));
		stop_clock(&bound, round, pages);
		held += pages;
	}
	count_pins(&acquired[1], &released[1]);
	if (acquired[1] - acquired[0] != released[1] - released[0] ||
	    (mapped && acquired[1] - acquired[0] != mapped + held))
		die("%s: %ld pages were pinned, %ld unpinned", r->name, acquired[1] - acquired[0],
		    released[1] - released[0]);
	close_all();
	free(order);
	if (r->how == ACCESS)
		return;
	say(r, formats[format], api, "map", &map, NULL);
	say(r, formats[format], api, "unmap", &unmap, &bound);
}

static void run_wanted(const struct row *r, int format)
{
	for (int api = 0; api < NR_APIS; api++)
		if (r->apis >> api & 1 && wanted(r, format, &apis[api]))
			run(r, format, &apis[api]);
}

#define run_all(rows, format)							\
	for (size_t row_ = 0; row_ < sizeof(rows) / sizeof(*rows); row_++)	\
		run_wanted(&rows[row_], format)

/* Is any row of the kind wanted? */
static int asked(const char *kind)
{
	const char *rows = getenv("ROWS");

	return !rows || strstr(rows, kind);
}

int main(void)
{
	size_t bytes = number("MIB", 32) << 20, small = 4 << 20, gib = 1UL << 30;
	size_t max = number("MAX_MIB", 0) << 20, long_bytes = number("LONG_GIB", 0) * gib, more = number("MORE", 0);
	size_t area = long_bytes < 64 * gib ? long_bytes : 64 * gib;
	struct memory in_order, scattered, file, scattered_file, large, large_file, repeated;
	/* as many as type1 allows */
	const size_t many = 65535 * PAGE;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	check(mount("proc", "/proc", "proc", 0, NULL));
	check(mount("sys", "/sys", "sysfs", 0, NULL));
	check(mount("dev", "/dev", "devtmpfs", 0, NULL));
	measure_overhead();
	make_memory(&in_order, "in_order", bytes, 0, 0);
	make_memory(&file, "memfd_in_order", bytes, 0, 1);
	make_memory(&scattered_file, "memfd_scattered", bytes, 1, 1);
	make_memory(&scattered, "scattered", bytes, 1, 0);
	if (max > bytes && asked(more ? "long_" : "scaling"))
		make_memory(&large, "scattered", max, 1, 0);
	else
		large = scattered;

	const struct row of_each_format[] = {
		{ "in_order", &in_order, 0, bytes, 0, 1, MAIN, RANGE, 0 },
		{ "scattered", &scattered, 0, bytes, 0, 1, MAIN, RANGE, 0 },
		{ "large", &in_order, 0, bytes, 0, 0, MAIN, RANGE, 0 },
		/* begins in the middle of what a large leaf could hold */
		{ "large_off_by_page", &in_order, PAGE, bytes - PAGE, 0, 0, MAIN, RANGE, 0 },
		{ "memfd_in_order", &file, 0, bytes, 0, 1, MAIN, RANGE, 0 },
		{ "memfd_scattered", &scattered_file, 0, bytes, 0, 1, MAIN, RANGE, 0 },
		{ "page_by_page", &in_order, 0, small, PAGE, 1, MAIN, RANGE, 0 },
		{ "access_in_order", &in_order, 0, bytes, 0, 1, 1 << IOMMUFD, ACCESS, 0 },
		{ "access_scattered", &scattered, 0, bytes, 0, 1, 1 << IOMMUFD, ACCESS, 0 },
	};
	const struct row of_vtdss[] = {
		{ "in_order", &in_order, 0, bytes, 0, 1, OTHERS, RANGE, 0 },
		{ "scattered", &scattered, 0, bytes, 0, 1, OTHERS, RANGE, 0 },
		{ "large", &in_order, 0, bytes, 0, 0, OTHERS, RANGE, 0 },
		{ "memfd_in_order", &file, 0, bytes, 0, 1, MAIN, RANGE, 0 },
		{ "memfd_scattered", &scattered_file, 0, bytes, 0, 1, MAIN, RANGE, 0 },
		{ "many_at_once", &scattered, 0, many, PAGE, 1, MAIN, RANGE, 0 },
		{ "many_unmap_all", &scattered, 0, many, PAGE, 1, MAIN, ALL, 0 },
		{ "many_one_by_one", &scattered, 0, many, PAGE, 1, MAIN, EACH, 0 },
		{ "many_a_tenth", &scattered, 0, many, PAGE, 1, MAIN, TENTH, 0 },
		{ "one_area_of_64", &in_order, 0, 16 * bytes, bytes / 4, 0, MAIN, MIDDLE, 0 },
		{ "two_domains_in_order", &in_order, 0, bytes, 0, 1, MAIN, RANGE, OTHER_DEVICE },
		{ "two_domains_scattered", &scattered, 0, bytes, 0, 1, MAIN, RANGE, OTHER_DEVICE },
		{ "dirty_in_order", &in_order, 0, bytes, 0, 1, MAIN, RANGE, DIRTY_TRACKING },
		{ "dirty_scattered", &scattered, 0, bytes, 0, 1, MAIN, RANGE, DIRTY_TRACKING },
		{ "close_in_order", &in_order, 0, bytes, 0, 1, MAIN, CLOSE, 0 },
		{ "close_scattered", &scattered, 0, bytes, 0, 1, MAIN, CLOSE, 0 },
	};

	for (int format = 0; !more && format < NATIVE_NR_FORMATS; format++)
		run_all(of_each_format, format);
	/* from 64 KiB on */
	for (size_t size = 64 << 10; !more && size <= max; size *= 4) {
		const struct row row = { "scaling", size > bytes ? &large : &scattered,
					 0, size, 0, 1, MAIN, RANGE, 0 };

		run_wanted(&row, VTDSS);
	}
	if (more)
		run_all(of_vtdss, VTDSS);
	if (!asked("long_"))
		long_bytes = 0;
	if (long_bytes) {
		make_memory(&large_file, "large_file", large.bytes, 0, 1);
		repeat_memory(&repeated, &large_file, area);
	}
	for (size_t size = area; long_bytes && size <= long_bytes; size *= 16) {
		const struct row rows[] = {
			{ "long_large", &repeated, 0, size, area, 0, MAIN, RANGE, 0 },
			{ "long_in_order", &repeated, 0, size, area, 1, MAIN, RANGE, 0 },
			{ "long_scattered", &large, 0, size, large.bytes, 1, MAIN, RANGE, 0 },
			{ "long_close_in_order", &repeated, 0, size, area, 1, MAIN, CLOSE, 0 },
			{ "long_two_domains", &repeated, 0, size, area, 1, MAIN, RANGE, OTHER_DEVICE },
		};

		run_all(rows, VTDSS);
	}
	puts("native: done");
	stop();
}
