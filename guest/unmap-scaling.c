// SPDX-License-Identifier: GPL-2.0-only
/*
 * usage: unmap-scaling MODE MAX_GIB   (one unmap of 64 MiB to MAX_GIB, times four each; for bench/scaling)
 *
 * Beyond 1 GiB, the same 1 GiB of 2 MiB pages is mapped as often as it takes, one IOVA after the other.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <linux/sizes.h>

#include <libvfio.h>

static unsigned long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

int main(int argc, char **argv)
{
	unsigned long long max = argc == 3 ? strtoull(argv[2], NULL, 0) * SZ_1G : 0;
	struct vfio_pci_device *device;
	struct iommu *iommu;

	if (!max) {
		fprintf(stderr, "usage: unmap-scaling MODE MAX_GIB\n");
		return 2;
	}
	iommu = iommu_init(argv[1]);
	device = vfio_pci_device_init(getenv("VFIO_SELFTESTS_BDF"), iommu);

	for (unsigned long long size = SZ_64M; size <= max; size *= 4) {
		unsigned long long part = size < SZ_1G ? size : SZ_1G, start, map_ns, unmap_ns;
		struct dma_region whole = { .iova = SZ_4G, .size = size };
		struct dma_region *parts = calloc_assert(size / part, sizeof(*parts));
		const char *reason;
		u64 runs, unmapped;
		void *mem;

		mem = mmap_reserve(part, SZ_2M, 0);
		reason = memory_populate(mem, part, MEMORY_HUGETLB_2MB);
		if (reason) {
			fprintf(stderr, "%s\n", reason);
			return 1;
		}
		for (unsigned long long i = 0; i < size / part; i++)
			parts[i] = (struct dma_region){ .vaddr = mem, .iova = SZ_4G + i * part, .size = part };
		start = now_ns();
		for (unsigned long long i = 0; i < size / part; i++)
			iommu_map(iommu, &parts[i]);
		map_ns = now_ns() - start;
		reason = memory_check_layout(mem, part, MEMORY_HUGETLB_2MB, &runs);
		if (reason) {
			fprintf(stderr, "%s\n", reason);
			return 1;
		}
		/* All of them at once */
		INIT_LIST_HEAD(&iommu->dma_regions);
		INIT_LIST_HEAD(&whole.link);
		start = now_ns();
		VFIO_ASSERT_EQ(__iommu_unmap(iommu, &whole, &unmapped), 0);
		unmap_ns = now_ns() - start;
		VFIO_ASSERT_EQ(unmapped, whole.size);
		printf("scaling: mode=%s size=%llu pages=%llu mappings=%llu runs=%llu map_ns=%llu unmap_ns=%llu\n", argv[1], size,
		       size / 4096, size / part, (unsigned long long)runs * (size / part), map_ns, unmap_ns);
		fflush(stdout);
		munmap(mem, part);
		free(parts);
	}
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
	return 0;
}
