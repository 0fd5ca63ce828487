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

int main(int argc, char **argv)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct iommu_hwpt_alloc hwpt = { .size = sizeof(hwpt) };
	struct iommu_destroy destroy = { .size = sizeof(destroy) };
	struct gup_test gup = { .gup_flags = FOLL_WRITE };
	struct dma_region region = { .size = argc == 3 ? strtoull(argv[2], NULL, 0) : 0 };
	struct vfio_pci_device device = {};
	struct iommu *iommu;
	const char *reason;
	size_t i, m;
	u64 runs;
	int fd;

	for (m = 0; m < ARRAY_SIZE(memories); m++)
		if (argc == 3 && !strcmp(memories[m].name, argv[1]))
			break;
	if (!region.size || m == ARRAY_SIZE(memories)) {
		fprintf(stderr, "usage: unmap-bound MEMORY BYTES\n");
		return 2;
	}

	region.vaddr = mmap_reserve(region.size, memory_page_size(memories[m].kind), 0);
	region.iova = SZ_4G + memories[m].offset;
	reason = memory_populate(region.vaddr, region.size, memories[m].kind);
	VFIO_ASSERT_NULL(reason, "%s", reason);

	fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	VFIO_ASSERT_GE(fd, 0);
	gup.addr = (uintptr_t)region.vaddr;
	gup.size = region.size;
	gup.nr_pages_per_call = region.size / 4096;
	window_begin();
	ioctl_assert(fd, PIN_LONGTERM_BENCHMARK, &gup);
	window_end();
	VFIO_ASSERT_EQ(gup.size, region.size);

	iommu = iommu_init(MODE_IOMMUFD);
	vfio_pci_cdev_open(&device, getenv("VFIO_SELFTESTS_BDF"));
	bind.iommufd = iommu->iommufd;
	ioctl_assert(device.fd, VFIO_DEVICE_BIND_IOMMUFD, &bind);
	iommu_map(iommu, &region);
	reason = memory_check_layout(region.vaddr, region.size, memories[m].kind, &runs);
	VFIO_ASSERT_NULL(reason, "%s", reason);
	hwpt.dev_id = bind.out_devid;
	hwpt.pt_id = iommu->ioas_id;
	for (i = 0; i < 2; i++)
		ioctl_assert(iommu->iommufd, IOMMU_HWPT_ALLOC, &hwpt);
	destroy.id = hwpt.out_hwpt_id;
	window_begin();
	ioctl_assert(iommu->iommufd, IOMMU_DESTROY, &destroy);
	window_end();
	printf("bound: memory=%s size=%llu runs=%llu\n", argv[1], (unsigned long long)region.size, (unsigned long long)runs);
	return 0;
}
