// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random maps, unmaps, copies, hot attaches and detaches in type1 containers (v1 and v2) and two IOAS of one iommufd, with
 * allocations failing in the middle. What a driver in the kernel may do with an IOAS, iommufd's own test interface does: it pins
 * pages, reads and writes. A model knows what has to be mapped. After each step two edu devices write through the IOMMU and
 * memory must look as the model says; locked_vm and the number of pinned pages must be what follows from it.
 *
 * usage: stress SEED ITERATIONS BDF BDF MDEV MDEV   (same seed, same kernel, -icount: same run)
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
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#include <iommufd_test.h>

#include "edu.h"

#define MAX_MAPS 24
#define NR_SPACES 4
#define NR_DEVICES 2
#define DEBUGFS "/sys/kernel/debug/"
#define TRACING "/sys/kernel/tracing/"

/* Memory in one piece of address space: 2 MiB pages, THP, 4 KiB in order and 4 KiB scattered. */
enum { HUGETLB, THP, SMALL, SCATTERED, NR_KINDS };
static const size_t kind_sizes[NR_KINDS] = { 4 * MIB, 4 * MIB, 2 * MIB, 6 * MIB };
static size_t kind_start[NR_KINDS + 1];
static uint8_t *pool, *pristine;
static size_t pool_size;

/* IOVAs around what page tables have borders at: nothing, 4 GiB, an entry of each level, the end of what VT-d translates. */
static const struct window {
	uint64_t start, size;
} windows[] = {
	{ 0, 4 * MIB },
	{ 0x40000000 - 8 * MIB, 24 * MIB },
	{ 0x100000000 - 4 * MIB, 8 * MIB },
	{ 0x8000000000 - 8 * MIB, 16 * MIB },
	{ (1UL << 48) - 16 * MIB, 16 * MIB },
};
#define NR_WINDOWS (sizeof(windows) / sizeof(*windows))

struct mapping {
	uint64_t iova;
	size_t size, va;
	bool writable;
	/* Mappings of iommufd that share pinned pages, see IOMMU_IOAS_COPY */
	unsigned int object;
};

enum { V1, V2, IOAS0, IOAS1, NOWHERE };
static const char *const space_names[] = { "type1v1", "type1v2", "ioas0", "ioas1", "nowhere" };

/* What shares its mappings: a type1 container, or an IOAS. */
static struct space {
	int container, mdev_group;
	bool has_iommu;
	uint32_t ioas;
	/* A user of the IOAS inside the kernel, -1 without */
	int access;
	struct mapping maps[MAX_MAPS];
	unsigned int nr_maps;
	struct mapping gone[8];
	unsigned int nr_gone;
} spaces[NR_SPACES];

/* What accesses have pinned */
static struct pin {
	struct space *space;
	uint64_t iova;
	size_t size;
	uint32_t id;
} pins[8];
static unsigned int nr_pins;

static struct device {
	const char *bdf;
	int space, group, fd;
	bool bound;
	uint32_t id, hwpt;
	volatile uint8_t *bar;
	size_t bar_size;
	/* What is in edu's buffer, if loaded */
	uint8_t buffer[EDU_SIZE];
	bool loaded;
} devices[NR_DEVICES];

static int iommufd = -1;
static const char *mdevs[2];
static unsigned int next_object, test_nr;
static uint64_t random_state;
static bool failed, debug_pagealloc;

static char history[16][160];
static unsigned int nr_history;

static struct {
	unsigned long injected, injected_failed, dmas, attaches, maps, unmaps, accesses;
} stats;

static void die(const char *format, ...)
{
	unsigned int i;
	va_list args;
	int err = errno;

	for (i = nr_history > 16 ? nr_history - 16 : 0; i < nr_history; i++)
		printf("# %s\n", history[i % 16]);
	printf("Bail out! ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf(" (errno: %s)\n", strerror(err));
	exit(1);
}

static void log_step(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(history[nr_history++ % 16], sizeof(history[0]), format, args);
	va_end(args);
}

static void result(bool ok, const char *what)
{
	printf("%s %u %s\n", ok ? "ok" : "not ok", ++test_nr, what);
	failed |= !ok;
}

/* xorshift64* */
static uint64_t any(uint64_t below)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (random_state * 2685821657736338717ULL >> 16) % below;
}

static void write_file(const char *path, const char *format, ...)
{
	/* O_TRUNC is what empties the trace */
	int fd = open(path, O_WRONLY | O_TRUNC), len;
	char text[64];
	va_list args;

	va_start(args, format);
	len = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (fd < 0 || write(fd, text, len) != len)
		die("write %s to %s", text, path);
	close(fd);
}

/* The number behind NAME in a file like /proc/vmstat */
static long number(const char *path, const char *name)
{
	FILE *file = fopen(path, "r");
	char line[256];
	long n = -1;

	if (!file)
		die("open %s", path);
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			n = strtol(line + strlen(name), NULL, 10);
	fclose(file);
	if (n < 0)
		die("no %s in %s", name, path);
	return n;
}

static long pinned(void)
{
	char c;
	int fd = open("/proc/sys/vm/stat_refresh", O_RDONLY);

	/* These are sums of per-CPU counters that lag behind. */
	if (fd < 0 || read(fd, &c, 1) < 0)
		die("refresh the counters");
	close(fd);
	return number("/proc/vmstat", "nr_foll_pin_acquired ") - number("/proc/vmstat", "nr_foll_pin_released ");
}

static long locked_kb(void)
{
	return number("/proc/self/status", "VmLck:");
}

/* Hits of the kprobe events the job has set, -1 without any */
static long lookups(void)
{
	FILE *file = fopen(TRACING "kprobe_profile", "r");
	long sum = -1, hits;

	while (file && fscanf(file, "%*s %ld %*d", &hits) == 1)
		sum = (sum < 0 ? 0 : sum) + hits;
	if (file)
		fclose(file);
	return sum;
}

/*
 * Faults. fail-nth fails one allocation of this task, whatever it is for. fail_page_alloc fails a page after some others, which
 * are the page tables here; the first comes first, so that both together are two faults in one ioctl.
 */
static struct fault {
	unsigned int nth;
	int pages;
} fault;
static bool fault_hit, page_fault_hit, have_faults;
static int fail_nth_fd = -1;

static void setup_faults(void)
{
	static const char *const verbose[] = { "failslab", "fail_page_alloc", "fail_iommufd" };
	char path[100];
	unsigned int i;

	/* For IOMMUs that allocate to unmap. */
	have_faults = !getenv("NO_FAULTS") && !access("/proc/self/fail-nth", W_OK) && !access(DEBUGFS "fail_page_alloc", F_OK);
	if (!have_faults) {
		printf("# no fault injection\n");
		return;
	}
	for (i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), DEBUGFS "%s/verbose", verbose[i]);
		if (!access(path, W_OK))
			write_file(path, "0");
	}
	write_file(DEBUGFS "failslab/ignore-gfp-wait", "N");
	write_file(DEBUGFS "fail_page_alloc/times", "0");
	write_file(DEBUGFS "fail_page_alloc/probability", "100");
	write_file(DEBUGFS "fail_page_alloc/task-filter", "Y");
	write_file(DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N");
	write_file(DEBUGFS "fail_page_alloc/min-order", "0");
	fail_nth_fd = xopen("/proc/thread-self/fail-nth");
}

/* An ioctl with the faults asked for, once */
static int faulty_ioctl(int fd, unsigned long request, void *arg)
{
	char text[16] = "";
	int ret, err;

	fault_hit = page_fault_hit = false;
	if (fault.pages >= 0) {
		write_file(DEBUGFS "fail_page_alloc/space", "%d", fault.pages);
		write_file(DEBUGFS "fail_page_alloc/times", "1");
		write_file("/proc/thread-self/make-it-fail", "1");
	}
	if (fault.nth) {
		snprintf(text, sizeof(text), "%u", fault.nth);
		if (pwrite(fail_nth_fd, text, strlen(text), 0) < 0)
			die("write fail-nth");
	}
	ret = ioctl(fd, request, arg);
	err = errno;
	if (fault.nth) {
		/* Reads as 0 if it was used up */
		memset(text, 0, sizeof(text));
		if (pread(fail_nth_fd, text, sizeof(text) - 1, 0) <= 0 || pwrite(fail_nth_fd, "0", 1, 0) != 1)
			die("read fail-nth");
		fault_hit |= !atoi(text);
	}
	if (fault.pages >= 0) {
		write_file("/proc/thread-self/make-it-fail", "0");
		page_fault_hit = !number(DEBUGFS "fail_page_alloc/times", "");
		fault_hit |= page_fault_hit;
		write_file(DEBUGFS "fail_page_alloc/times", "0");
	}
	fault = (struct fault){ .pages = -1 };
	stats.injected += fault_hit;
	stats.injected_failed += fault_hit && ret;
	errno = err;
	return ret;
}

static void random_fault(void)
{
	fault = (struct fault){ .pages = -1 };
	if (!have_faults)
		return;
	switch (any(10)) {
	case 0 ... 3:
		fault.nth = 1 + any(any(2) ? 6 : 40);
		break;
	case 4:
		fault.nth = 1 + any(40);
		/* fall through */
	case 5:
		fault.pages = any(any(2) ? 3 : 12);
		break;
	}
}

static const char *fault_name(void)
{
	static char text[64];

	snprintf(text, sizeof(text), "fail-nth %u, pages %d", fault.nth, fault.pages);
	return text;
}

/* The model */

static struct mapping *find(struct space *space, uint64_t iova)
{
	unsigned int i;

	for (i = 0; i < space->nr_maps; i++)
		if (iova - space->maps[i].iova < space->maps[i].size)
			return &space->maps[i];
	return NULL;
}

static bool overlaps(struct space *space, uint64_t iova, size_t size)
{
	unsigned int i;

	for (i = 0; i < space->nr_maps; i++)
		if (space->maps[i].iova <= iova + size - 1 && iova <= space->maps[i].iova + space->maps[i].size - 1)
			return true;
	return false;
}

/* Sorted by IOVA */
static void add(struct space *space, struct mapping mapping)
{
	unsigned int i;

	for (i = space->nr_maps++; i && space->maps[i - 1].iova > mapping.iova; i--)
		space->maps[i] = space->maps[i - 1];
	space->maps[i] = mapping;
}

/* An access has to let go of all that reaches into what is unmapped. */
static void forget_pins(const struct space *space, const struct mapping *mapping)
{
	unsigned int i = nr_pins;

	while (i--)
		if (pins[i].space == space && pins[i].iova < mapping->iova + mapping->size &&
		    mapping->iova < pins[i].iova + pins[i].size)
			pins[i] = pins[--nr_pins];
}

static size_t forget(struct space *space, unsigned int i)
{
	struct mapping mapping = space->maps[i];

	forget_pins(space, &mapping);
	space->gone[space->nr_gone++ % 8] = mapping;
	memmove(&space->maps[i], &space->maps[i + 1], (--space->nr_maps - i) * sizeof(mapping));
	return mapping.size;
}

static bool is_type1(const struct space *space)
{
	return space < &spaces[IOAS0];
}

static unsigned int users(const struct space *space)
{
	unsigned int i, n = 0;

	for (i = 0; i < NR_DEVICES; i++)
		n += devices[i].space == space - spaces;
	return n;
}

/* How many pages of a piece of a mapping are not among those SEEN */
static long unseen(uint8_t *seen, const struct mapping *map, uint64_t iova, size_t size)
{
	size_t page = (map->va + iova - map->iova) / PAGE, end = page + size / PAGE;
	long n = 0;

	for (; page < end; page++) {
		n += !seen[page];
		seen[page] = 1;
	}
	return n;
}

/*
 * Type1 pins each mapping. Of iommufd's, those of one object pin a page once, whatever IOAS they are in, and as long as it is in
 * a page table or an access has pinned it.
 */
static void expected(long *pages, long *locked)
{
	static uint8_t seen[MAX_MAPS * 2][16 * MIB / PAGE];
	unsigned int objects[MAX_MAPS * 2], nr_objects = 0, s, i, o;
	struct mapping *map;

	*pages = *locked = 0;
	for (s = 0; s < NR_SPACES; s++) {
		for (map = spaces[s].maps; map < spaces[s].maps + spaces[s].nr_maps; map++) {
			if (is_type1(&spaces[s])) {
				if (users(&spaces[s])) {
					*pages += map->size / PAGE;
					*locked += map->size / PAGE;
				}
				continue;
			}
			for (o = 0; o < nr_objects && objects[o] != map->object; o++)
				;
			if (o == nr_objects) {
				objects[nr_objects++] = map->object;
				memset(seen[o], 0, sizeof(seen[o]));
			}
			if (users(&spaces[s]))
				*pages += unseen(seen[o], map, map->iova, map->size);
			for (i = 0; i < nr_pins; i++) {
				uint64_t start = pins[i].iova, end = start + pins[i].size;

				if (start < map->iova)
					start = map->iova;
				if (end > map->iova + map->size)
					end = map->iova + map->size;
				if (pins[i].space == &spaces[s] && start < end)
					*pages += unseen(seen[o], map, start, end - start);
			}
		}
	}
}

static void check_counters(void)
{
	long pages, locked, pages_now = pinned(), locked_now = locked_kb() * 1024 / PAGE;

	expected(&pages, &locked);
	if (pages != pages_now)
		die("%ld pages are pinned, the model says %ld", pages_now, pages);
	if (locked != locked_now)
		die("locked_vm is %ld pages, the model says %ld", locked_now, locked);
}

/* Containers */

static void set_iommu(struct space *space)
{
	int version = space == &spaces[V1] ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU;

	space->has_iommu = !faulty_ioctl(space->container, VFIO_SET_IOMMU, (void *)(uintptr_t)version);
	if (!space->has_iommu && !fault_hit)
		die("set iommu %s", space_names[space - spaces]);
}

/* An mdev has no IOMMU. It keeps the container and its mappings while no other device is there. */
static void open_space(int s, bool with_mdev)
{
	struct space *space = &spaces[s];
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_test_cmd access = {
		.size = sizeof(access), .op = IOMMU_TEST_OP_CREATE_ACCESS,
		.create_access = { .flags = MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES },
	};

	if (!is_type1(space)) {
		if (ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc))
			die("allocate an IOAS");
		access.id = alloc.out_ioas_id;
		*space = (struct space){
			.container = iommufd, .mdev_group = -1, .has_iommu = true, .ioas = alloc.out_ioas_id,
			/* Without CONFIG_IOMMUFD_TEST there are none. */
			.access = ioctl(iommufd, IOMMU_TEST_CMD, &access) ? -1 : (int)access.create_access.out_access_fd,
		};
		return;
	}
	*space = (struct space){ .container = xopen("/dev/vfio/vfio"), .mdev_group = -1 };
	if (!with_mdev)
		return;
	space->mdev_group = open_group("/sys/bus/mdev/devices/%s/iommu_group", mdevs[s]);
	if (ioctl(space->mdev_group, VFIO_GROUP_SET_CONTAINER, &space->container))
		die("put an mdev into a container");
	set_iommu(space);
}

/* Releases what is mapped, too */
static void close_space(int s)
{
	struct iommu_destroy destroy = { .size = sizeof(destroy), .id = spaces[s].ioas };
	struct iommu_ioas_unmap unmap = { .size = sizeof(unmap), .ioas_id = spaces[s].ioas, .length = UINT64_MAX };

	if (is_type1(&spaces[s])) {
		if (spaces[s].mdev_group >= 0)
			close(spaces[s].mdev_group);
		close(spaces[s].container);
	} else {
		if (ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap))
			die("unmap an IOAS");
		if (spaces[s].access >= 0)
			close(spaces[s].access);
		if (ioctl(iommufd, IOMMU_DESTROY, &destroy))
			die("destroy an IOAS");
	}
	while (spaces[s].nr_maps)
		forget(&spaces[s], 0);
}

/* Devices */

static void open_bar(struct device *device)
{
	device->bar = map_bar(device->fd, &device->bar_size);
	device->loaded = false;
}

/* VT-d shows where a device's page table is. */
static unsigned long page_table(const struct device *device)
{
	unsigned long table = 0;
	char path[100];
	FILE *file;

	snprintf(path, sizeof(path), DEBUGFS "iommu/intel/%s/domain_translation_struct", device->bdf);
	file = fopen(path, "r");
	if (file && fscanf(file, "Device %*s @%lx", &table) != 1)
		die("read %s", path);
	if (file)
		fclose(file);
	return table;
}

static bool two_domains(void)
{
	return devices[0].space == devices[1].space && devices[0].space <= V2 && page_table(&devices[0]) != page_table(&devices[1]);
}

static void unmap(struct space *space, uint64_t iova, uint64_t size, bool all);

static void close_device(struct device *device)
{
	struct vfio_device_detach_iommufd_pt detach = { .argsz = sizeof(detach) };
	struct iommu_destroy destroy = { .size = sizeof(destroy), .id = device->hwpt };
	struct space *space = &spaces[device->space];

	if (device->fd < 0)
		return;
	/* Of two domains, vfio frees the first with all that is mapped in it. This debugging takes it for mapped for ever. */
	if (debug_pagealloc && !device->bound && two_domains())
		unmap(space, 0, 0, true);
	munmap((void *)device->bar, device->bar_size);
	if (!device->bound) {
		close(device->fd);
		/* No fault: going back to its default domain takes an allocation, which the kernel says must succeed. */
		if (ioctl(device->group, VFIO_GROUP_UNSET_CONTAINER))
			die("take %s out of its container", device->bdf);
		close(device->group);
		device->space = NOWHERE;
		if (space->mdev_group < 0 && !users(space)) {
			space->has_iommu = false;
			while (space->nr_maps)
				forget(space, 0);
		}
	} else {
		if (device->space != NOWHERE && any(2) && faulty_ioctl(device->fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach))
			die("detach %s", device->bdf);
		close(device->fd);
		if (device->hwpt && ioctl(iommufd, IOMMU_DESTROY, &destroy))
			die("destroy a page table");
		device->hwpt = 0;
	}
	fault = (struct fault){ .pages = -1 };
	device->fd = -1;
	device->bound = false;
	device->space = NOWHERE;
}

static bool attach_type1(struct device *device, int s)
{
	struct space *space = &spaces[s];

	device->group = open_group("/sys/bus/pci/devices/%s/iommu_group", device->bdf);
	if (faulty_ioctl(device->group, VFIO_GROUP_SET_CONTAINER, &space->container)) {
		if (!fault_hit && errno != EFAULT)
			die("put %s into %s", device->bdf, space_names[s]);
		close(device->group);
		return false;
	}
	if (!space->has_iommu) {
		random_fault();
		set_iommu(space);
		if (!space->has_iommu) {
			close(device->group);
			return false;
		}
	}
	device->fd = ioctl(device->group, VFIO_GROUP_GET_DEVICE_FD, device->bdf);
	if (device->fd < 0)
		die("get device %s", device->bdf);
	device->space = s;
	open_bar(device);
	return true;
}

static void bind_iommufd(struct device *device)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };

	device->fd = open_cdev(device->bdf);
	if (ioctl(device->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind))
		die("bind %s to iommufd", device->bdf);
	device->id = bind.out_devid;
	device->bound = true;
	open_bar(device);
}

/* With a page table of its own or the one that the IOAS shares; in place of another one if there is one. */
static bool attach_iommufd(struct device *device, int s, bool own)
{
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = spaces[s].ioas };
	struct iommu_hwpt_alloc alloc = { .size = sizeof(alloc), .dev_id = device->id, .pt_id = spaces[s].ioas };
	struct iommu_destroy destroy = { .size = sizeof(destroy) };
	bool ok;

	if (own) {
		if (faulty_ioctl(iommufd, IOMMU_HWPT_ALLOC, &alloc)) {
			if (!fault_hit)
				die("allocate a page table");
			return false;
		}
		attach.pt_id = alloc.out_hwpt_id;
		random_fault();
	}
	ok = !faulty_ioctl(device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
	if (!ok && !fault_hit)
		die("attach %s to %s", device->bdf, space_names[s]);
	destroy.id = ok ? device->hwpt : own ? alloc.out_hwpt_id : 0;
	if (destroy.id && ioctl(iommufd, IOMMU_DESTROY, &destroy))
		die("destroy a page table");
	if (ok) {
		device->hwpt = own ? alloc.out_hwpt_id : 0;
		device->space = s;
	}
	return ok;
}

/* Map and unmap, in the kernel and in the model */

static bool map(struct space *space, struct mapping mapping)
{
	struct vfio_iommu_type1_dma_map type1 = {
		.argsz = sizeof(type1), .flags = VFIO_DMA_MAP_FLAG_READ | (mapping.writable ? VFIO_DMA_MAP_FLAG_WRITE : 0),
		.vaddr = (uintptr_t)pool + mapping.va, .iova = mapping.iova, .size = mapping.size,
	};
	struct iommu_ioas_map ioas = {
		.size = sizeof(ioas), .ioas_id = space->ioas, .user_va = (uintptr_t)pool + mapping.va, .iova = mapping.iova,
		.length = mapping.size, .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
						 (mapping.writable ? IOMMU_IOAS_MAP_WRITEABLE : 0),
	};
	bool taken = overlaps(space, mapping.iova, mapping.size);
	int ret;

	if (is_type1(space))
		ret = faulty_ioctl(space->container, VFIO_IOMMU_MAP_DMA, &type1);
	else
		ret = faulty_ioctl(space->container, IOMMU_IOAS_MAP, &ioas);
	stats.maps++;
	if (!ret && taken)
		die("a mapping over another one was accepted");
	if (ret && !fault_hit && !(taken && errno == EEXIST))
		die("map");
	if (ret)
		return false;
	mapping.object = next_object++;
	add(space, mapping);
	return true;
}

/* A part of a mapping a second time, with the same pinned pages */
static void copy(struct space *from, unsigned int i, struct space *to, uint64_t iova, size_t offset, size_t size)
{
	struct mapping mapping = from->maps[i];
	struct iommu_ioas_copy ioas = {
		.size = sizeof(ioas), .dst_ioas_id = to->ioas, .src_ioas_id = from->ioas, .length = size, .dst_iova = iova,
		.src_iova = mapping.iova + offset, .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
							     (mapping.writable ? IOMMU_IOAS_MAP_WRITEABLE : 0),
	};
	bool taken = overlaps(to, iova, size);
	int ret = faulty_ioctl(iommufd, IOMMU_IOAS_COPY, &ioas);

	if (!ret && taken)
		die("a copy over another mapping was accepted");
	if (ret && !fault_hit && !(taken && errno == EEXIST))
		die("copy");
	if (ret)
		return;
	mapping.iova = iova;
	mapping.va += offset;
	mapping.size = size;
	add(to, mapping);
}

/* Pins pages as a driver in the kernel does. They have to be those of the process. */
static bool pin(struct space *space, uint64_t iova, size_t size, bool write)
{
	struct mapping *mapping = find(space, iova);
	struct iommu_test_cmd access = {
		.size = sizeof(access), .op = IOMMU_TEST_OP_ACCESS_PAGES, .id = space->access,
		.access_pages = { .flags = write ? MOCK_FLAGS_ACCESS_WRITE : 0, .iova = iova, .length = size },
	};
	bool mapped = true, writable = true, one_piece = true;
	struct mapping *part;
	uint64_t next;

	for (next = iova; next < iova + size; next = part->iova + part->size) {
		part = find(space, next);
		if (!part) {
			mapped = false;
			break;
		}
		writable &= part->writable;
		one_piece &= part->va - mapping->va == part->iova - mapping->iova;
	}
	if (mapped && one_piece)
		access.access_pages.uptr = (uintptr_t)pool + mapping->va + (iova - mapping->iova);
	stats.accesses++;
	if (faulty_ioctl(iommufd, IOMMU_TEST_CMD, &access)) {
		if (!fault_hit && !(errno == ENOENT && !mapped) && !(errno == EPERM && write && !writable))
			die("pin %#lx bytes at IOVA %#lx of %s", size, iova, space_names[space - spaces]);
		return false;
	}
	if (!mapped || (write && !writable))
		die("what is not mapped so could be pinned");
	pins[nr_pins++] = (struct pin){ .space = space, .iova = iova, .size = size, .id = access.access_pages.out_access_pages_id };
	return true;
}

static void unpin(unsigned int i)
{
	struct iommu_test_cmd access = {
		.size = sizeof(access), .op = IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, .id = pins[i].space->access,
		.destroy_access_pages = { .access_pages_id = pins[i].id },
	};

	if (faulty_ioctl(iommufd, IOMMU_TEST_CMD, &access))
		die("unpin %#lx bytes at IOVA %#lx of %s", pins[i].size, pins[i].iova, space_names[pins[i].space - spaces]);
	pins[i] = pins[--nr_pins];
}

/* Reads or writes as a driver in the kernel does, the long way: by page tables if memory is in one. */
static void check_access(struct space *space, const struct mapping *mapping, size_t offset, size_t size, bool write)
{
	static uint8_t buffer[256 * PAGE];
	struct iommu_test_cmd access = {
		.size = sizeof(access), .op = IOMMU_TEST_OP_ACCESS_RW, .id = space->access,
		.access_rw = { .iova = mapping->iova + offset, .length = size, .uptr = (uintptr_t)buffer,
			       .flags = MOCK_ACCESS_RW_SLOW_PATH | (write ? MOCK_ACCESS_RW_WRITE : 0) },
	};
	uint8_t *va = pool + mapping->va + offset;
	size_t i;
	int ret;

	if (size > sizeof(buffer))
		size = access.access_rw.length = sizeof(buffer);
	for (i = 0; i < size; i++)
		buffer[i] = write ? ~va[i] : 0;
	stats.accesses++;
	ret = faulty_ioctl(iommufd, IOMMU_TEST_CMD, &access);
	if (ret && !fault_hit && !(errno == EPERM && write && !mapping->writable))
		die("access %#lx bytes at IOVA %#llx of %s", size, access.access_rw.iova, space_names[space - spaces]);
	if (!ret && memcmp(va, buffer, size))
		die("an access to %#lx bytes at IOVA %#llx of %s did not go to memory", size, access.access_rw.iova,
		    space_names[space - spaces]);
	if (write)
		memcpy(va, pristine + (va - pool), size);
	if (memcmp(pool, pristine, pool_size))
		die("an access to %#lx bytes at IOVA %#llx of %s changed other memory", size, access.access_rw.iova,
		    space_names[space - spaces]);
}

/* What an unmap does has to be known before: it cannot fail, whatever allocations do. */
static void unmap(struct space *space, uint64_t iova, uint64_t size, bool all)
{
	struct vfio_iommu_type1_dma_unmap type1 = {
		.argsz = sizeof(type1), .iova = iova, .size = size, .flags = all ? VFIO_DMA_UNMAP_FLAG_ALL : 0
	};
	struct iommu_ioas_unmap ioas = {
		.size = sizeof(ioas), .ioas_id = space->ioas, .iova = iova, .length = all ? UINT64_MAX : size
	};
	uint64_t last = all ? UINT64_MAX : iova + size - 1, unmapped, want = 0;
	bool v2 = space == &spaces[V2], bisected = false;
	int ret, error = 0;
	unsigned int i;

	if (v2 && !all) {
		struct mapping *first = find(space, iova), *end = find(space, last);

		bisected = (first && first->iova != iova) || (end && end->iova + end->size - 1 != last);
		if (bisected)
			error = EINVAL;
	}
	for (i = 0; i < space->nr_maps && !bisected; ) {
		struct mapping *mapping = &space->maps[i];

		if (mapping->iova + mapping->size - 1 < iova) {
			i++;
			continue;
		}
		if (mapping->iova > last)
			break;
		/* v1 takes all of what begins in the range, and stops at what does not */
		if (mapping->iova < iova || (!is_type1(space) && mapping->iova + mapping->size - 1 > last)) {
			bisected = true;
			break;
		}
		want += forget(space, i);
	}
	if (!is_type1(space) && !all && (bisected || !want))
		error = ENOENT;

	/* The first one of iommufd's is in the lookup of the IOAS, nothing has happened by then. */
	if (!is_type1(space) && fault.nth)
		fault.nth++;
	if (is_type1(space))
		ret = faulty_ioctl(space->container, VFIO_IOMMU_UNMAP_DMA, &type1);
	else
		ret = faulty_ioctl(space->container, IOMMU_IOAS_UNMAP, &ioas);
	stats.unmaps++;
	if (ret ? errno != error : error)
		die("unmap returned %d, not error %d", ret, error);
	unmapped = is_type1(space) ? type1.size : ioas.length;
	if (!ret && unmapped != want)
		die("unmap of %#lx bytes reported %#lx", want, unmapped);
}

/* Through the device */

static void dma(struct device *device, uint64_t iova, unsigned int offset, size_t size, uint64_t direction)
{
	edu_copy(device->bar, iova, offset, size, direction);
	stats.dmas++;
}

/* Writes SIZE bytes at IOVA, and looks at all memory unless they are seen where they belong. */
static void check_write(struct device *device, uint64_t iova, size_t size)
{
	struct space *space = &spaces[device->space];
	size_t i, n, reached = 0, seen = 0;
	struct mapping *mapping;
	uint8_t *va;

	dma(device, iova, 0, size, TO_RAM);
	for (i = 0; i < size; i += n) {
		n = PAGE - ((iova + i) & (PAGE - 1));
		if (n > size - i)
			n = size - i;
		mapping = device->space == NOWHERE ? NULL : find(space, iova + i);
		if (!mapping || !mapping->writable)
			continue;
		va = pool + mapping->va + (iova + i - mapping->iova);
		if (device->loaded && memcmp(va, device->buffer + i, n))
			die("%s wrote to IOVA %#lx of %s, but it is not in memory", device->bdf, iova + i,
			    space_names[device->space]);
		reached += n;
		/* Not if it was the same before */
		if (device->loaded && memcmp(pristine + (va - pool), device->buffer + i, n))
			seen += n;
	}
	/* Only afterwards, IOVAs can have the same page. */
	for (i = 0; i < size && reached; i += n) {
		n = PAGE - ((iova + i) & (PAGE - 1));
		if (n > size - i)
			n = size - i;
		mapping = find(space, iova + i);
		if (mapping && mapping->writable) {
			va = pool + mapping->va + (iova + i - mapping->iova);
			memcpy(va, pristine + (va - pool), n);
		}
	}
	if (seen == size || !memcmp(pool, pristine, pool_size))
		return;
	for (i = 0; pool[i] == pristine[i]; i++)
		;
	die("%s wrote to %#lx bytes at IOVA %#lx of %s and changed page %#lx of memory", device->bdf, size, iova,
	    space_names[device->space], i / PAGE);
}

/* Fills edu's buffer from a mapped page, which the next write shows. */
static void load(struct device *device, struct mapping *mapping, size_t page)
{
	size_t at = page * PAGE;

	dma(device, mapping->iova + at, 0, EDU_SIZE, 0);
	memcpy(device->buffer, pristine + mapping->va + at, EDU_SIZE);
	device->loaded = true;
}

/* A page of a mapping where things tend to go wrong */
static size_t any_page(struct mapping *mapping)
{
	size_t pages = mapping->size / PAGE, page = any(pages);

	switch (any(6)) {
	case 0:
		return 0;
	case 1:
		return pages - 1;
	case 2:
		/* what a batch of unmap or a leaf ends at */
		return page / 512 * 512 ?: pages / 512 * 512 % pages;
	default:
		return page;
	}
}

static void check_dma(struct device *device)
{
	struct space *space = &spaces[device->space];
	struct mapping *mapping = NULL;
	const struct window *window;
	uint64_t iova;

	if (device->fd < 0)
		return;
	if (device->space != NOWHERE && space->nr_maps)
		mapping = &space->maps[any(space->nr_maps)];
	if (mapping && (!device->loaded || any(4) == 0))
		load(device, mapping, any_page(mapping));

	window = &windows[any(NR_WINDOWS)];
	iova = window->start + any(window->size / PAGE) * PAGE;
	switch (any(8)) {
	case 0 ... 4:
		if (mapping)
			iova = mapping->iova + any_page(mapping) * PAGE;
		break;
	case 5:
		/* just outside */
		if (mapping)
			iova = any(2) && mapping->iova ? mapping->iova - PAGE : mapping->iova + mapping->size;
		break;
	case 6:
		if (device->space != NOWHERE && space->nr_gone) {
			mapping = &space->gone[any(space->nr_gone < 8 ? space->nr_gone : 8)];
			iova = mapping->iova + any_page(mapping) * PAGE;
		}
		break;
	}
	/* Also from the middle of a page into the next one; edu cannot address more than 48 bits. */
	if (any(3) == 0)
		iova += any(PAGE / 8) * 8;
	if (iova > (1UL << 48) - EDU_SIZE)
		iova = (1UL << 48) - PAGE;
	check_write(device, iova, any(4) ? EDU_SIZE : 8 + any(EDU_SIZE / 8 - 1) * 8);
}

/* All edges of all mappings, through all devices */
static void check_edges(void)
{
	struct device *device;
	unsigned int i;

	for (device = devices; device < devices + NR_DEVICES; device++) {
		struct space *space = &spaces[device->space];

		if (device->space == NOWHERE)
			continue;
		for (i = 0; i < space->nr_maps; i++) {
			struct mapping *mapping = &space->maps[i];

			load(device, mapping, any_page(mapping));
			check_write(device, mapping->iova, EDU_SIZE);
			check_write(device, mapping->iova + mapping->size - PAGE, EDU_SIZE);
		}
	}
}

/* Steps */

static struct mapping any_mapping(struct space *space)
{
	const struct window *window = &windows[any(NR_WINDOWS)];
	struct mapping mapping = { .writable = any(8) };
	int kind = any(NR_KINDS);
	size_t pages = kind_sizes[kind] / PAGE, max, n;

	max = window->size / PAGE < pages ? window->size / PAGE : pages;
	switch (any(5)) {
	case 0 ... 1:
		n = 1 + any(8);
		break;
	case 2 ... 3:
		n = 1 + any(600);
		break;
	default:
		n = 1 + any(max);
	}
	if (n > max)
		n = max;
	mapping.size = n * PAGE;
	mapping.va = kind_start[kind] + any(pages - n + 1) * PAGE;
	mapping.iova = window->start + any(window->size / PAGE - n + 1) * PAGE;
	/* Often where large leaves fit */
	if (any(2)) {
		uint64_t iova = (mapping.iova & ~(2 * MIB - 1)) | (mapping.va & (2 * MIB - 1));

		if (iova >= window->start && iova + mapping.size <= window->start + window->size)
			mapping.iova = iova;
	}
	/* Or right behind another one, in memory too if possible: runs must not go over from one to the other */
	if (space->nr_maps && any(4) == 0) {
		struct mapping *before = &space->maps[any(space->nr_maps)];

		if (before->iova + before->size + mapping.size <= 1UL << 48) {
			mapping.iova = before->iova + before->size;
			if (before->va + before->size + mapping.size <= pool_size)
				mapping.va = before->va + before->size;
		}
	}
	return mapping;
}

static void step_map(struct space *space)
{
	struct mapping mapping = any_mapping(space);
	bool ok;

	if (space->nr_maps == MAX_MAPS || !space->has_iommu)
		return;
	random_fault();
	log_step("map %s iova %#lx size %#lx va %#lx %s, %s", space_names[space - spaces], mapping.iova, mapping.size, mapping.va,
		 mapping.writable ? "rw" : "ro", fault_name());
	ok = map(space, mapping);
	log_step("map: %s%s", ok ? "done" : "failed", fault_hit ? ", fault" : "");
	if (!ok)
		space->gone[space->nr_gone++ % 8] = mapping;
}

static void step_copy(void)
{
	struct space *from = &spaces[IOAS0 + any(2)], *to = &spaces[IOAS0 + any(2)];
	struct mapping target = any_mapping(to), *source;
	size_t offset, size;
	unsigned int i;

	if (!from->nr_maps || to->nr_maps == MAX_MAPS)
		return;
	i = any(from->nr_maps);
	source = &from->maps[i];
	offset = any(2) ? 0 : any(source->size / PAGE) * PAGE;
	size = source->size - offset;
	if (any(2))
		size = (1 + any(size / PAGE)) * PAGE;
	if (size > target.size)
		size = target.size;
	random_fault();
	log_step("copy %s iova %#lx size %#lx to %s iova %#lx, %s", space_names[from - spaces], source->iova + offset, size,
		 space_names[to - spaces], target.iova, fault_name());
	copy(from, i, to, target.iova, offset, size);
}

static void step_access(struct space *space)
{
	struct mapping *mapping;
	size_t offset, size;
	bool write = any(2);

	if (nr_pins && any(3) == 0) {
		random_fault();
		log_step("unpin, %s", fault_name());
		unpin(any(nr_pins));
		return;
	}
	if (space->access < 0 || !space->nr_maps)
		return;
	mapping = &space->maps[any(space->nr_maps)];
	offset = any(2) ? any_page(mapping) * PAGE : 0;
	size = mapping->size - offset;
	random_fault();
	if (any(2)) {
		offset += any(PAGE);
		size = 1 + any(size - offset % PAGE);
		log_step("%s %s iova %#lx size %#lx, %s", write ? "write" : "read", space_names[space - spaces],
			 mapping->iova + offset, size, fault_name());
		check_access(space, mapping, offset, size, write);
		return;
	}
	if (nr_pins == sizeof(pins) / sizeof(*pins))
		return;
	if (any(2))
		size = (1 + any(size / PAGE)) * PAGE;
	else if (any(4) == 0)
		/* and what follows */
		size += (1 + any(200)) * PAGE;
	log_step("pin %s iova %#lx size %#lx %s, %s", space_names[space - spaces], mapping->iova + offset, size,
		 write ? "rw" : "ro", fault_name());
	pin(space, mapping->iova + offset, size, write);
}

static void step_unmap(struct space *space)
{
	uint64_t iova, size, seen = 0;
	struct device *device = &devices[any(NR_DEVICES)];
	unsigned int i;

	if (!space->has_iommu)
		return;
	if (space->nr_maps && device->space == space - spaces) {
		/* Into the IOTLB, to see that it leaves it */
		i = any(space->nr_maps);
		seen = space->maps[i].iova + any_page(&space->maps[i]) * PAGE;
		load(device, &space->maps[i], (seen - space->maps[i].iova) / PAGE);
		check_write(device, seen, EDU_SIZE);
	}
	random_fault();
	if (any(12) == 0 || !space->nr_maps) {
		log_step("unmap all of %s, %s", space_names[space - spaces], fault_name());
		unmap(space, 0, 0, true);
		if (seen)
			check_write(device, seen, EDU_SIZE);
		return;
	}
	/* The one that was looked at, mostly */
	for (i = 0; seen && any(4) && seen - space->maps[i].iova >= space->maps[i].size; )
		i++;
	if (!seen)
		i = any(space->nr_maps);
	iova = space->maps[i].iova;
	size = space->maps[i].size;
	switch (any(8)) {
	case 0:
		/* cut off at the end */
		size = (1 + any(size / PAGE)) * PAGE;
		break;
	case 1:
		/* cut off at the start */
		iova += any(size / PAGE) * PAGE;
		size -= iova - space->maps[i].iova;
		break;
	case 2:
		/* and what follows */
		size += any(8 * MIB / PAGE) * PAGE;
		break;
	case 3:
		/* up to the end of some other one */
		i += any(space->nr_maps - i);
		size = space->maps[i].iova + space->maps[i].size - iova;
		break;
	}
	log_step("unmap %s iova %#lx size %#lx, %s", space_names[space - spaces], iova, size, fault_name());
	unmap(space, iova, size, false);
	if (seen)
		check_write(device, seen, EDU_SIZE);
}

static void step_move(struct device *device)
{
	int target = any(NR_SPACES + 1);
	bool was_bound = device->bound && target >= IOAS0;
	bool ok = true;

	/* Between IOAS without closing, mostly */
	if (!was_bound || any(4) == 0) {
		random_fault();
		log_step("close %s in %s, %s", device->bdf, space_names[device->space], fault_name());
		close_device(device);
	}
	if (target == NOWHERE)
		return;
	if (!users(&spaces[target]) && any(4) == 0) {
		log_step("close and open %s", space_names[target]);
		close_space(target);
		open_space(target, any(4));
	}
	/* Half of them without, or few come to an end. */
	if (any(2))
		random_fault();
	log_step("attach %s to %s, %s", device->bdf, space_names[target], fault_name());
	if (target < IOAS0) {
		ok = attach_type1(device, target);
	} else {
		struct fault keep = fault;

		if (!device->bound)
			bind_iommufd(device);
		fault = keep;
		ok = attach_iommufd(device, target, any(2));
	}
	stats.attaches += ok;
	log_step("attach: %s%s", ok ? "done" : "failed", fault_hit ? ", fault" : "");
	/* The core has it stay where it was, but VT-d blocks a device before what can fail, and leaves it blocked. */
	if (!ok && device->space != NOWHERE) {
		log_step("close %s in %s", device->bdf, space_names[device->space]);
		close_device(device);
	}
}

static void random_steps(unsigned long iterations)
{
	unsigned long i;
	unsigned int d;

	for (i = 0; i < iterations; i++) {
		struct space *space = &spaces[any(NR_SPACES)];

		switch (any(24)) {
		case 0 ... 8:
			step_map(space);
			break;
		case 9 ... 13:
			step_unmap(space);
			break;
		case 14:
			step_copy();
			break;
		case 15 ... 18:
			step_access(&spaces[IOAS0 + any(2)]);
			break;
		default:
			step_move(&devices[any(NR_DEVICES)]);
		}
		check_counters();
		for (d = 0; d < NR_DEVICES; d++)
			check_dma(&devices[d]);
		if ((i + 1) % 100 == 0)
			printf("# %lu iterations: %lu maps, %lu unmaps, %lu attaches, %lu accesses, %lu DMAs, %lu faults, %lu ioctls failed for them\n",
			       i + 1, stats.maps, stats.unmaps, stats.attaches, stats.accesses, stats.dmas, stats.injected,
			       stats.injected_failed);
	}
}

static void close_everything(void)
{
	int i;

	for (i = 0; i < NR_DEVICES; i++)
		close_device(&devices[i]);
	for (i = 0; i < NR_SPACES; i++)
		close_space(i);
}

static void open_everything(void)
{
	int i;

	for (i = 0; i < NR_SPACES; i++)
		open_space(i, true);
}

/* vfio_iommu_replay() pins and maps what was mapped before there was an IOMMU. */
static void test_replay(void)
{
	int round;

	for (round = 0; round < 2; round++) {
		struct space *space = &spaces[V2];
		struct mapping mapping = { .writable = true };
		int kind;

		for (kind = 0; kind < NR_KINDS && !round; kind++) {
			mapping.va = kind_start[kind] + PAGE;
			mapping.size = kind_sizes[kind] - PAGE;
			/* as large leaves, and as 4 KiB */
			mapping.iova = 0x40000000 + kind * 16 * MIB + PAGE;
			if (!map(space, mapping))
				die("map");
			mapping.iova += 8 * MIB + PAGE;
			if (!map(space, mapping))
				die("map");
		}
		check_counters();
		if (!attach_type1(&devices[0], V2))
			die("attach");
		check_counters();
		check_edges();
		close_device(&devices[0]);
		check_counters();
	}
	unmap(&spaces[V2], 0, 0, true);
	result(true, "replay");
}

/* vfio_iommu_replay() fails in a second mapping, the memory of which is gone, and undoes the first. */
static bool check_replay_unwind(int kind)
{
	const struct mapping first = { .va = kind_start[kind], .size = kind_sizes[kind], .iova = 0x40000000, .writable = true };
	const struct mapping second = { .va = pool_size, .size = PAGE, .iova = 1UL << 47, .writable = true };
	long before, count, runs = 1;
	uint64_t entry, last = 0;
	size_t i;
	int fd = xopen("/proc/self/pagemap");

	for (i = 0; i < first.size; i += PAGE, last = entry) {
		if (pread(fd, &entry, 8, ((uintptr_t)pool + first.va + i) / PAGE * 8) != 8)
			die("read pagemap");
		runs += i && entry != last + 1;
	}
	close(fd);
	if (!map(&spaces[V2], first) || !map(&spaces[V2], second))
		die("map");
	before = lookups();
	if (attach_type1(&devices[0], V2))
		die("%s could be attached, with a mapping of what is no memory", devices[0].bdf);
	count = lookups() - before;
	check_counters();
	unmap(&spaces[V2], second.iova, second.size, false);
	if (!attach_type1(&devices[0], V2))
		die("attach");
	check_counters();
	check_edges();
	close_device(&devices[0]);
	unmap(&spaces[V2], 0, 0, true);
	if (before < 0)
		printf("# replay unwind: lookups are not counted\n");
	else
		printf("# replay unwind: %ld lookups for %lu pages in %ld runs\n", count, first.size / PAGE, runs);
	return count <= 2 + 2 * runs;
}

static void test_replay_unwind(void)
{
	/* Few long runs: going through them page by page would show in the number of page table lookups. More than fit an array. */
	bool ok = check_replay_unwind(HUGETLB);

	result(check_replay_unwind(SCATTERED) && ok, "replay_unwind");
}

/*
 * Pages may be unpinned only when they are unmapped and the IOTLB is flushed. Nothing else would notice if not, as long as nobody
 * gets the page in between.
 */
static void check_order(struct device *device)
{
	const struct mapping mapping = { .va = kind_start[SCATTERED], .size = 600 * PAGE, .iova = 0x40000000, .writable = true };
	bool stale = false, ok = true, traced = !access(TRACING "events/order", F_OK);
	struct space *space = &spaces[device->space];
	const char *name = is_type1(space) ? "order_type1" : "order_iommufd";
	unsigned long events = 0;
	char line[256];
	FILE *file;

	if (!map(space, mapping))
		die("map");
	check_edges();
	if (traced) {
		write_file(TRACING "trace", "\n");
		write_file(TRACING "events/order/enable", "1");
	}
	unmap(space, mapping.iova, mapping.size, false);
	/* Both pages are in the IOTLB if that was not flushed. */
	check_write(device, mapping.iova, EDU_SIZE);
	check_write(device, mapping.iova + mapping.size - PAGE, EDU_SIZE);
	if (!traced) {
		printf("ok %u %s # SKIP no kprobe events\n", ++test_nr, name);
		return;
	}
	write_file(TRACING "events/order/enable", "0");
	file = fopen(TRACING "trace", "r");
	while (fgets(line, sizeof(line), file)) {
		if (strstr(line, ": unmap: ")) {
			stale = true;
		} else if (strstr(line, ": flush: ")) {
			stale = false;
		} else if (strstr(line, ": unpin: ")) {
			/* A page before there was any unmap, or behind one that was not flushed */
			ok &= events && !stale;
		} else {
			continue;
		}
		events++;
	}
	fclose(file);
	if (!ok || events < 3)
		printf("# %s unpins before it flushes, or was not seen: %lu events\n", space_names[space - spaces], events);
	result(ok && events >= 3, name);
}

/* The same with type1 and with iommufd */
static void with_both(void (*check)(struct device *device))
{
	struct device *device = &devices[0];

	if (!attach_type1(device, V2))
		die("attach");
	check(device);
	close_device(device);
	bind_iommufd(device);
	if (!attach_iommufd(device, IOAS0, false))
		die("attach");
	check(device);
	close_device(device);
}

/*
 * Two IOMMU domains in one container. There is one IOMMU here, so that a second group joins the first one's domain, unless that
 * fails: then vfio tries a domain of its own and copies the mappings to it.
 */
static void test_two_domains(void)
{
	struct mapping mapping = { .writable = true };
	unsigned int n = 1, found = 0, tries = 0, failures = 0;
	struct space *space = &spaces[V2];
	bool ok, used_up, page_fault;
	int kind, pages = -1;
	long before, copied;

	do {
		for (kind = 0; kind < NR_KINDS; kind++) {
			/* One right behind the other, of contiguous memory if that is to be had */
			mapping.iova = 0x40000000 + kind_start[kind] + PAGE;
			mapping.va = kind_start[kind];
			mapping.size = kind_sizes[kind] / 2;
			if (!map(space, mapping))
				die("map");
			mapping.iova += mapping.size;
			mapping.va += mapping.size;
			if (!map(space, mapping))
				die("map");
		}
		if (!attach_type1(&devices[0], V2))
			die("attach");
		if (!have_faults || !page_table(&devices[0])) {
			printf("ok %u two_domains # SKIP no fault injection or no debugfs of VT-d\n", ++test_nr);
			close_device(&devices[0]);
			unmap(space, 0, 0, true);
			return;
		}
		fault = (struct fault){ .nth = n, .pages = pages };
		before = lookups();
		ok = attach_type1(&devices[1], V2);
		copied = lookups() - before;
		page_fault = page_fault_hit;
		used_up = fault_hit;
		check_counters();
		failures += page_fault && !ok;
		if (ok && two_domains()) {
			if (pages < 0 && before >= 0)
				printf("# second domain with fail-nth %u, copied with %ld lookups\n", n, copied);
			if (!found)
				found = n;
			check_edges();
			/* Unmap while both are there, and look what both devices see. */
			while (space->nr_maps > 1) {
				unmap(space, space->maps[1].iova, space->maps[1].size, false);
				check_edges();
				check_write(&devices[0], space->gone[(space->nr_gone - 1) % 8].iova, EDU_SIZE);
				check_write(&devices[1], space->gone[(space->nr_gone - 1) % 8].iova, EDU_SIZE);
				check_counters();
			}
		}
		close_device(&devices[1]);
		check_counters();
		check_edges();
		close_device(&devices[0]);
		unmap(space, 0, 0, true);
		/* First all allocations, some of which make for a second domain. Then fail its page tables, one after the other. */
		if (pages < 0 && used_up) {
			n++;
			continue;
		}
		if (pages < 0 || page_fault) {
			pages++;
			tries = 0;
		} else {
			tries++;
		}
		/* How many allocations there are varies by one. */
		n = found + (tries == 1 ? -1 : tries == 2);
	} while (pages < 0 || (found && tries < 3));
	printf("# %u page tables failed while copying to a second domain\n", failures);
	result(found && failures, "two_domains");
}

/* Memory of each kind in three mappings, one right behind the other, and what the middle one ends and begins with stays. */
static void check_neighbours(struct device *device)
{
	struct space *space = &spaces[device->space];
	struct mapping mapping = { .writable = true };
	int kind, i;

	for (kind = 0; kind < NR_KINDS; kind++) {
		mapping.iova = 0x40000000 + kind_start[kind];
		mapping.va = kind_start[kind];
		for (i = 0; i < 3; i++) {
			/* also in the middle of a leaf */
			mapping.size = i == 2 ? kind_start[kind + 1] - mapping.va : kind_sizes[kind] / 4 + 3 * PAGE;
			if (!map(space, mapping))
				die("map");
			mapping.iova += mapping.size;
			mapping.va += mapping.size;
		}
	}
	for (kind = 0; kind < NR_KINDS; kind++) {
		struct mapping middle = *find(space, 0x40000000 + kind_start[kind] + kind_sizes[kind] / 2);

		unmap(space, middle.iova, middle.size, false);
		check_counters();
		check_edges();
		check_write(device, middle.iova, EDU_SIZE);
		check_write(device, middle.iova + middle.size - PAGE, EDU_SIZE);
	}
	unmap(space, 0, 0, true);
	check_counters();
}

static void test_neighbours(void)
{
	with_both(check_neighbours);
	result(true, "neighbours");
}

/* Pages that are in a page table and pinned by an access too: reading, pinning and unmapping have to look at both. */
static void test_access(void)
{
	struct space *space = &spaces[IOAS0];
	struct mapping mapping = { .writable = true };
	int kind;

	if (space->access < 0) {
		printf("ok %u access # SKIP no CONFIG_IOMMUFD_TEST\n", ++test_nr);
		return;
	}
	bind_iommufd(&devices[0]);
	if (!attach_iommufd(&devices[0], IOAS0, false))
		die("attach");
	for (kind = 0; kind < NR_KINDS; kind++) {
		mapping.iova = 0x40000000 + kind_start[kind];
		mapping.va = kind_start[kind];
		mapping.size = kind_sizes[kind] / 2 - PAGE;
		if (!map(space, mapping))
			die("map");
		check_access(space, &mapping, 5, mapping.size - 10, false);
		check_access(space, &mapping, 100 * PAGE + 5, 77 * PAGE, true);
		/* More pieces than are looked up at once, and not up to the end */
		if (!pin(space, mapping.iova + PAGE, 203 * PAGE, true) || !pin(space, mapping.iova + 99 * PAGE, 77 * PAGE, true))
			die("pin");
		check_counters();
		unpin(nr_pins - 2);
		check_counters();
	}
	/* Without page table, back into one, and out of it while something else keeps some pages pinned */
	close_device(&devices[0]);
	check_counters();
	for (kind = 0; kind < NR_KINDS; kind++)
		copy(space, kind, &spaces[IOAS1], 0x40000000 + kind_start[kind], PAGE, 200 * PAGE);
	bind_iommufd(&devices[0]);
	if (!attach_iommufd(&devices[0], IOAS1, false))
		die("attach");
	check_counters();
	check_edges();
	for (kind = 0; kind < NR_KINDS; kind++) {
		if (!pin(space, space->maps[kind].iova, 240 * PAGE, true))
			die("pin");
		check_counters();
		unmap(&spaces[IOAS1], 0x40000000 + kind_start[kind], 200 * PAGE, false);
		check_counters();
		unpin(nr_pins - 1);
		check_counters();
	}
	unmap(space, 0, 0, true);
	check_counters();
	close_device(&devices[0]);
	result(true, "access");
}

/*
 * The mock device of iommufd translates half pages, so that an area can begin in the middle of a page. An access to the whole page
 * finds it there, when it is a copy.
 */
static void test_half_page(void)
{
	struct space *space = &spaces[IOAS0];
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_destroy destroy = { .size = sizeof(destroy) };
	struct iommu_test_cmd mock = { .size = sizeof(mock), .op = IOMMU_TEST_OP_MOCK_DOMAIN };
	struct mapping mapping = { .writable = true, .iova = 0x40000000 };
	struct iommu_ioas_copy half = {
		.size = sizeof(half), .src_ioas_id = space->ioas, .src_iova = mapping.iova + MOCK_PAGE_SIZE,
		.dst_iova = MOCK_APERTURE_START + MOCK_PAGE_SIZE,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
	};
	struct iommu_ioas_unmap unmap_half = { .size = sizeof(unmap_half), .iova = half.dst_iova };
	int kind;

	if (space->access < 0) {
		printf("ok %u half_page # SKIP no CONFIG_IOMMUFD_TEST\n", ++test_nr);
		return;
	}
	if (ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc))
		die("allocate an IOAS");
	mock.id = half.dst_ioas_id = unmap_half.ioas_id = alloc.out_ioas_id;
	if (ioctl(iommufd, IOMMU_TEST_CMD, &mock))
		die("make a mock device");
	for (kind = 0; kind < NR_KINDS; kind++) {
		mapping.va = kind_start[kind];
		mapping.size = 301 * PAGE;
		if (!map(space, mapping))
			die("map");
		half.length = unmap_half.length = mapping.size - PAGE;
		if (ioctl(iommufd, IOMMU_IOAS_COPY, &half))
			die("copy");
		if (pinned() != 301)
			die("%ld pages are pinned, not 301", pinned());
		check_access(space, &mapping, 5, mapping.size - 10, false);
		check_access(space, &mapping, PAGE + 5, 77 * PAGE, true);
		/* The copy ends in the middle of a page, too. */
		if (!pin(space, mapping.iova, mapping.size, true))
			die("pin");
		unpin(nr_pins - 1);
		if (!pin(space, mapping.iova, 300 * PAGE, true) || !pin(space, mapping.iova + PAGE, 300 * PAGE, true))
			die("pin");
		if (pinned() != 301)
			die("%ld pages are pinned, not 301", pinned());
		unpin(nr_pins - 1);
		if (ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap_half))
			die("unmap");
		check_counters();
		unpin(nr_pins - 1);
		check_counters();
		unmap(space, 0, 0, true);
	}
	destroy.id = mock.mock_domain.out_stdev_id;
	if (ioctl(iommufd, IOMMU_DESTROY, &destroy))
		die("destroy the mock device");
	destroy.id = alloc.out_ioas_id;
	if (ioctl(iommufd, IOMMU_DESTROY, &destroy))
		die("destroy an IOAS");
	result(true, "half_page");
}

static void make_pool(void)
{
	size_t i, kind, pages;

	for (kind = 0; kind < NR_KINDS; kind++)
		kind_start[kind + 1] = kind_start[kind] + kind_sizes[kind];
	pool_size = kind_start[NR_KINDS];
	pool = mmap(NULL, pool_size + 2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pool = (uint8_t *)(((uintptr_t)pool + 2 * MIB - 1) & ~(2 * MIB - 1));
	pristine = malloc(pool_size);
	for (kind = 0; kind < NR_KINDS; kind++) {
		uint8_t *va = mmap(pool + kind_start[kind], kind_sizes[kind], PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (kind == HUGETLB ? MAP_HUGETLB : 0), -1, 0);

		if (va == MAP_FAILED)
			die("allocate memory of kind %zu", kind);
		if (kind != HUGETLB && madvise(va, kind_sizes[kind], kind == THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
			die("madvise");
		pages = kind_sizes[kind] / PAGE;
		for (i = 0; i < pages; i++)
			va[(kind == SCATTERED ? i * 37 % pages : i) * PAGE] = 1;
	}
	/* No two pages are alike. */
	for (i = 0; i < pool_size; i += 8)
		*(uint64_t *)(pristine + i) = (i + 1) * 0x9e3779b97f4a7c15ULL;
	memcpy(pool, pristine, pool_size);
}

int main(int argc, char **argv)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	long pinned_at_start, locked_at_start;
	unsigned int i;

	setbuf(stdout, NULL);
	if (argc != 7) {
		fprintf(stderr, "usage: stress SEED ITERATIONS BDF BDF MDEV MDEV\n");
		return 2;
	}
	random_state = strtoull(argv[1], NULL, 0) ?: 1;
	debug_pagealloc = getenv("DEBUG_PAGEALLOC");
	printf("TAP version 13\n1..10\n# seed %s, %s iterations\n", argv[1], argv[2]);
	for (i = 0; i < 2; i++) {
		devices[i] = (struct device){ .bdf = argv[3 + i], .space = NOWHERE, .fd = -1 };
		mdevs[i] = argv[5 + i];
	}
	if (setrlimit(RLIMIT_MEMLOCK, &unlimited))
		die("setrlimit");
	make_pool();
	setup_faults();
	fault.pages = -1;
	pinned_at_start = pinned();
	locked_at_start = locked_kb();
	iommufd = xopen("/dev/iommu");

	open_everything();
	test_replay();
	test_replay_unwind();
	with_both(check_order);
	test_neighbours();
	test_access();
	test_half_page();
	test_two_domains();
	random_steps(strtoul(argv[2], NULL, 0));
	result(true, "random");
	close_everything();
	close(iommufd);
	printf("# pinned pages: %ld, at start %ld; locked_vm: %ld kB, at start %ld kB\n", pinned(), pinned_at_start, locked_kb(),
	       locked_at_start);
	result(pinned() == pinned_at_start && locked_kb() == locked_at_start, "nothing_pinned");
	return failed;
}
