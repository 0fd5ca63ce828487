// SPDX-License-Identifier: GPL-2.0-only
/*
 * A real device's view of map and unmap: QEMU's edu copies (nearly) a page by DMA through the IOMMU. It reads a buffer (which
 * fills the IOTLB); the buffer is unmapped and another one mapped at the same IOVA; what edu writes then must land in the
 * new buffer and not in the old one, and after the last unmap nowhere.
 *
 * usage: edu-dma [BDF]   (default: $VFIO_SELFTESTS_BDF)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#include "edu.h"

#define IOVA 0x40000000UL

enum { TYPE1, IOMMUFD };
enum { SMALL, SCATTERED, PIECES, THP, HUGETLB, NR_KINDS };
static const char *const backend_names[] = { "type1", "iommufd" };
static const char *const kind_names[] = { "4k", "4k_scattered", "4k_pieces", "thp", "hugetlb_2m" };

/* More pages than two of type1's unmap batches (512 runs each). */
static const size_t sizes[NR_KINDS] = { 16 * PAGE, 1100 * PAGE, 64 * PAGE, 4 * MIB, 4 * MIB };

static const char *bdf;
static int backend, container = -1, group = -1, device = -1;
static uint32_t ioas;
static volatile uint8_t *bar;
static size_t bar_size;
static unsigned int test_nr;
static bool failed;

static void die(const char *format, ...)
{
	va_list args;
	int err = errno;

	printf("Bail out! ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf(": %s\n", strerror(err));
	exit(1);
}

static void result(bool ok, int kind, const char *what)
{
	printf("%s %u %s.%s.%s\n", ok ? "ok" : "not ok", ++test_nr, backend_names[backend], kind_names[kind], what);
	failed |= !ok;
}

static void open_type1(void)
{
	container = xopen("/dev/vfio/vfio");
	group = open_group("/sys/bus/pci/devices/%s/iommu_group", bdf);
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) || ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		die("set up type1");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
	if (device < 0)
		die("get device %s", bdf);
}

static void open_iommufd(void)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };

	container = xopen("/dev/iommu");
	device = open_cdev(bdf);
	bind.iommufd = container;
	if (ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind) || ioctl(container, IOMMU_IOAS_ALLOC, &alloc))
		die("set up iommufd");
	ioas = attach.pt_id = alloc.out_ioas_id;
	if (ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach))
		die("attach to iommufd");
}

static void open_device(void)
{
	if (backend == TYPE1)
		open_type1();
	else
		open_iommufd();
	bar = map_bar(device, &bar_size);
}

static void close_device(void)
{
	munmap((void *)bar, bar_size);
	close(device);
	if (backend == TYPE1)
		close(group);
	close(container);
}

static void map_range(void *va, uint64_t iova, size_t size)
{
	struct vfio_iommu_type1_dma_map type1 = {
		.argsz = sizeof(type1), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)va, .iova = iova, .size = size,
	};
	struct iommu_ioas_map iommufd = {
		.size = sizeof(iommufd), .ioas_id = ioas, .user_va = (uintptr_t)va, .iova = iova, .length = size,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
	};

	if (backend == TYPE1 ? ioctl(container, VFIO_IOMMU_MAP_DMA, &type1) : ioctl(container, IOMMU_IOAS_MAP, &iommufd))
		die("map %s", backend_names[backend]);
}

static void map(void *va, int kind)
{
	size_t i;

	if (kind != PIECES)
		return map_range(va, IOVA, sizes[kind]);
	for (i = 0; i < sizes[kind]; i += PAGE)
		map_range(va + i, IOVA + i, PAGE);
}

static void unmap(int kind)
{
	size_t size = sizes[kind];
	struct vfio_iommu_type1_dma_unmap type1 = { .argsz = sizeof(type1), .iova = IOVA, .size = size };
	struct iommu_ioas_unmap iommufd = { .size = sizeof(iommufd), .ioas_id = ioas, .iova = IOVA, .length = size };

	if (backend == TYPE1 ? ioctl(container, VFIO_IOMMU_UNMAP_DMA, &type1) :
			       ioctl(container, IOMMU_IOAS_UNMAP, &iommufd))
		die("unmap %s", backend_names[backend]);
	if ((backend == TYPE1 ? type1.size : iommufd.length) != size)
		die("unmap %s: short", backend_names[backend]);
}

static void dma(uint64_t iova, uint64_t direction)
{
	edu_copy(bar, iova, 0, EDU_SIZE, direction);
}

/* Every page of every buffer has contents of its own. */
static void fill(uint8_t *va, size_t size, uint32_t seed)
{
	size_t i;

	for (i = 0; i < size; i += 4)
		*(uint32_t *)(va + i) = seed ^ (uint32_t)(i * 2654435761U);
}

static bool filled(const uint8_t *va, size_t size, uint32_t seed)
{
	size_t i;

	for (i = 0; i < size; i += 4)
		if (*(const uint32_t *)(va + i) != (seed ^ (uint32_t)(i * 2654435761U)))
			return false;
	return true;
}

static size_t count_runs(const uint8_t *va, size_t size)
{
	uint64_t entry, pfn, last = 0;
	size_t i, runs = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0)
		die("open pagemap");
	for (i = 0; i < size; i += PAGE, last = pfn) {
		if (pread(fd, &entry, 8, ((uintptr_t)va + i) / PAGE * 8) != 8)
			die("read pagemap");
		pfn = entry & ((1ULL << 55) - 1);
		runs += pfn != last + 1;
	}
	close(fd);
	return runs;
}

static uint8_t *allocate(int kind)
{
	size_t size = sizes[kind], pages = size / PAGE, i;
	uint8_t *va;

	va = mmap(NULL, size + 2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	va = (uint8_t *)(((uintptr_t)va + 2 * MIB - 1) & ~(2 * MIB - 1));
	va = mmap(va, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (kind == HUGETLB ? MAP_HUGETLB : 0),
		  -1, 0);
	if (va == MAP_FAILED)
		return NULL;
	if (kind != HUGETLB && madvise(va, size, kind == THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		die("madvise");
	/* Touched with a stride that no page count here shares a divisor with: neighbours are no neighbours in memory. */
	for (i = 0; i < pages; i++)
		va[(kind == SMALL ? i : i * 37 % pages) * PAGE] = 1;
	return va;
}

static void check(int kind)
{
	const size_t size = sizes[kind], last = size / PAGE - 1;
	/* First, last, and both sides of what unmap handles at once: a 2 MiB leaf or a batch of 512 runs. */
	const size_t candidates[] = { 0, 511, 512, 513, 1023, 1024, last };
	uint8_t *old = allocate(kind), *new = allocate(kind);
	bool mapped = true, lands = true, old_clean = true, blocked = true;
	size_t pages[16], n = 0, i;

	if (!old || !new || (kind == THP && count_runs(old, size) > size / (2 * MIB))) {
		const char *const names[] = { "mapped", "lands_in_new", "old_untouched", "blocked" };

		for (i = 0; i < 4; i++)
			printf("ok %u %s.%s.%s # SKIP no such memory\n", ++test_nr, backend_names[backend], kind_names[kind],
			       names[i]);
		return;
	}
	for (i = 0; i < sizeof(candidates) / sizeof(*candidates); i++)
		if (candidates[i] < last || i == sizeof(candidates) / sizeof(*candidates) - 1)
			pages[n++] = candidates[i];
	printf("# %s %s: %zu KiB in %zu runs, %zu pages looked at\n", backend_names[backend], kind_names[kind], size / 1024,
	       count_runs(old, size), n);

	/* Through the mapping: the page after the one read gets its contents. */
	fill(old, size, 0xaaaa0000);
	map(old, kind);
	for (i = 0; i < n; i++) {
		size_t page = pages[i] * PAGE, copy = pages[i] < last ? page + PAGE : page - PAGE;

		dma(IOVA + page, 0);
		dma(IOVA + copy, TO_RAM);
		mapped &= !memcmp(old + page, old + copy, EDU_SIZE);
		fill(old, size, 0xaaaa0000);
	}
	result(mapped, kind, "mapped");
	unmap(kind);

	fill(new, size, 0xbbbb0000);
	map(new, kind);
	/* edu's buffer holds the last page of old; new must get it where it is written and keep all the rest. */
	for (i = 0; i < n; i++) {
		size_t page = pages[i] * PAGE;

		dma(IOVA + page, TO_RAM);
		lands &= !memcmp(new + page, old + pages[n - 1] * PAGE, EDU_SIZE);
		fill(new, size, 0xbbbb0000);
	}
	old_clean = filled(old, size, 0xaaaa0000);
	result(lands, kind, "lands_in_new");
	result(old_clean, kind, "old_untouched");
	unmap(kind);

	for (i = 0; i < n; i++)
		dma(IOVA + pages[i] * PAGE, TO_RAM);
	blocked = filled(new, size, 0xbbbb0000) && filled(old, size, 0xaaaa0000);
	result(blocked, kind, "blocked");

	munmap(old, size);
	munmap(new, size);
}

int main(int argc, char **argv)
{
	int kind;

	setbuf(stdout, NULL);
	bdf = argc > 1 ? argv[1] : getenv("VFIO_SELFTESTS_BDF");
	if (!bdf) {
		printf("1..0 # SKIP no device given\n");
		return 4;
	}
	printf("TAP version 13\n1..%d\n", 2 * NR_KINDS * 4);
	for (backend = TYPE1; backend <= IOMMUFD; backend++) {
		open_device();
		for (kind = 0; kind < NR_KINDS; kind++)
			check(kind);
		close_device();
	}
	return failed;
}
