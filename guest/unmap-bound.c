// SPDX-License-Identifier: GPL-2.0-only
/*
 * usage: unmap-bound MEMORY BYTES   (the two things that no unmap of MEMORY can do without, each alone; for bench/profile)
 *
 * One window is gup_test, which pins the memory and unpins it, without an IOMMU. The other takes the memory, mapped in two domains,
 * out of the second, which iommufd does with one iommu_unmap() of the whole span while the first keeps the pages pinned.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

/* As in mm/gup_test.h */
struct gup_test {
	__u64 get_delta_usec, put_delta_usec, addr, size;
	__u32 nr_pages_per_call, gup_flags, test_flags, which_pages[8];
};
#define PIN_LONGTERM_BENCHMARK _IOWR('g', 3, struct gup_test)
#define FOLL_WRITE 1

static const struct {
	const char *name;
	enum memory_kind kind;
	u64 offset;
} memories[] = {
	{ "anonymous_hugetlb_2mb", MEMORY_HUGETLB_2MB, 0 },
	{ "anonymous_hugetlb_1gb", MEMORY_HUGETLB_1GB, 0 },
	{ "anonymous_thp", MEMORY_THP, 0 },
	{ "anonymous_in_order", MEMORY_IN_ORDER, 0 },
	{ "anonymous_scattered", MEMORY_SCATTERED, 0 },
	{ "anonymous_hugetlb_2mb_off_by_page", MEMORY_HUGETLB_2MB, 4096 },
};

/* bench/profile counts what is executed between these two, by their addresses, so they must not be merged. */
static noinline void window_begin(void) { asm volatile("# begin"); }
static noinline void window_end(void) { asm volatile("# end"); }

static void do_ioctl(int fd, unsigned long request, void *arg, const char *what)
{
	if (ioctl(fd, request, arg)) {
		perror(what);
		exit(1);
	}
}

static int open_or_die(const char *path)
{
	int fd = open(path, O_RDWR);

	if (fd < 0) {
		perror(path);
		exit(1);
	}
	return fd;
}

int main(int argc, char **argv)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct iommu_ioas_alloc ioas = { .size = sizeof(ioas) };
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE,
	};
	struct iommu_hwpt_alloc hwpt = { .size = sizeof(hwpt) };
	struct iommu_destroy destroy = { .size = sizeof(destroy) };
	struct gup_test gup = { .gup_flags = FOLL_WRITE };
	u64 size = argc == 3 ? strtoull(argv[2], NULL, 0) : 0;
	const char *reason;
	int fd, device;
	size_t i, m;
	u64 runs;
	void *mem;

	for (m = 0; m < ARRAY_SIZE(memories); m++)
		if (argc == 3 && !strcmp(memories[m].name, argv[1]))
			break;
	if (!size || m == ARRAY_SIZE(memories)) {
		fprintf(stderr, "usage: unmap-bound MEMORY BYTES\n");
		return 2;
	}

	mem = mmap_reserve(size, memory_page_size(memories[m].kind), 0);
	reason = memory_populate(mem, size, memories[m].kind);
	if (reason) {
		fprintf(stderr, "%s\n", reason);
		return 1;
	}

	fd = open_or_die("/sys/kernel/debug/gup_test");
	gup.addr = (uintptr_t)mem;
	gup.size = size;
	gup.nr_pages_per_call = size / 4096;
	window_begin();
	do_ioctl(fd, PIN_LONGTERM_BENCHMARK, &gup, "gup_test");
	window_end();
	if (gup.size != size) {
		fprintf(stderr, "gup_test: pinned %llu bytes only\n", gup.size);
		return 1;
	}

	fd = open_or_die("/dev/iommu");
	device = open_or_die(vfio_pci_get_cdev_path(getenv("VFIO_SELFTESTS_BDF")));
	bind.iommufd = fd;
	do_ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind, "bind");
	do_ioctl(fd, IOMMU_IOAS_ALLOC, &ioas, "IOAS_ALLOC");
	map.ioas_id = ioas.out_ioas_id;
	map.user_va = (uintptr_t)mem;
	map.iova = SZ_4G + memories[m].offset;
	map.length = size;
	do_ioctl(fd, IOMMU_IOAS_MAP, &map, "IOAS_MAP");
	reason = memory_check_layout(mem, size, memories[m].kind, &runs);
	if (reason) {
		fprintf(stderr, "%s\n", reason);
		return 1;
	}
	hwpt.dev_id = bind.out_devid;
	hwpt.pt_id = ioas.out_ioas_id;
	for (i = 0; i < 2; i++)
		do_ioctl(fd, IOMMU_HWPT_ALLOC, &hwpt, "HWPT_ALLOC");
	destroy.id = hwpt.out_hwpt_id;
	window_begin();
	do_ioctl(fd, IOMMU_DESTROY, &destroy, "DESTROY");
	window_end();
	printf("bound: memory=%s size=%llu runs=%llu\n", argv[1], (unsigned long long)size, (unsigned long long)runs);
	return 0;
}
