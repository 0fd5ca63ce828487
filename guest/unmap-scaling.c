// SPDX-License-Identifier: GPL-2.0-only
/*
 * usage: unmap-scaling MODE MAX_GIB     (one unmap of 64 MiB to MAX_GIB, times four each; for bench/scaling)
 *        unmap-scaling MODE bar ROUNDS  (of a device's largest BAR, as vfio_dma_unmap_perf_test says it; for bench/bench)
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

static struct vfio_pci_device *device;
static struct iommu *iommu;

static unsigned long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* Maps what is in the parts, one after the other, and unmaps all of them at once */
static void time_unmap(struct dma_region *parts, size_t nr_parts, unsigned long long *map_ns,
		       unsigned long long *unmap_ns)
{
	struct dma_region whole = { .iova = parts[0].iova, .size = nr_parts * parts[0].size };
	unsigned long long start = now_ns();
	u64 unmapped;

	for (size_t i = 0; i < nr_parts; i++)
		iommu_map(iommu, &parts[i]);
	*map_ns = now_ns() - start;
	INIT_LIST_HEAD(&iommu->dma_regions);
	INIT_LIST_HEAD(&whole.link);
	start = now_ns();
	VFIO_ASSERT_EQ(__iommu_unmap(iommu, &whole, &unmapped), 0);
	*unmap_ns = now_ns() - start;
	VFIO_ASSERT_EQ(unmapped, whole.size);
}

static int compare(const void *a, const void *b)
{
	const unsigned long long *na = a, *nb = b;

	return (*na > *nb) - (*na < *nb);
}

static void bar(const char *mode, unsigned int rounds)
{
	unsigned long long map_ns[16], unmap_ns[16];
	struct vfio_pci_bar *bar = device->bars;

	VFIO_ASSERT_TRUE(rounds && rounds <= 16);
	for (int i = 1; i < PCI_STD_NUM_BARS; i++)
		if (device->bars[i].info.size > bar->info.size)
			bar = &device->bars[i];
	for (unsigned int i = 0; i < rounds; i++) {
		struct dma_region part = { .vaddr = bar->vaddr, .iova = SZ_4G, .size = bar->info.size };

		time_unmap(&part, 1, &map_ns[i], &unmap_ns[i]);
	}
	qsort(map_ns, rounds, sizeof(*map_ns), compare);
	qsort(unmap_ns, rounds, sizeof(*unmap_ns), compare);
	printf("# unmap: mode=%s memory=bar size=%llu pages=%llu runs=1 rounds=%u map_ns_median=%llu unmap_ns_median=%llu\n",
	       mode, bar->info.size, bar->info.size / 4096, rounds, map_ns[rounds / 2], unmap_ns[rounds / 2]);
}

static void scaling(const char *mode, unsigned long long size)
{
	unsigned long long part = size < SZ_1G ? size : SZ_1G, map_ns, unmap_ns;
	struct dma_region *parts = calloc_assert(size / part, sizeof(*parts));
	void *mem = mmap_reserve(part, SZ_2M, 0);
	const char *reason;
	u64 runs;

	reason = memory_populate(mem, part, MEMORY_HUGETLB_2MB) ?:
		 memory_check_layout(mem, part, MEMORY_HUGETLB_2MB, &runs);
	if (reason) {
		fprintf(stderr, "%s\n", reason);
		exit(1);
	}
	for (unsigned long long i = 0; i < size / part; i++)
		parts[i] = (struct dma_region){ .vaddr = mem, .iova = SZ_4G + i * part, .size = part };
	time_unmap(parts, size / part, &map_ns, &unmap_ns);
	printf("scaling: mode=%s size=%llu pages=%llu mappings=%llu runs=%llu map_ns=%llu unmap_ns=%llu\n", mode, size,
	       size / 4096, size / part, (unsigned long long)runs * (size / part), map_ns, unmap_ns);
	fflush(stdout);
	munmap(mem, part);
	free(parts);
}

int main(int argc, char **argv)
{
	unsigned long long max = argc == 3 ? strtoull(argv[2], NULL, 0) * SZ_1G : 0;

	if (!max && (argc != 4 || strcmp(argv[2], "bar"))) {
		fprintf(stderr, "usage: unmap-scaling MODE MAX_GIB | unmap-scaling MODE bar ROUNDS\n");
		return 2;
	}
	iommu = iommu_init(argv[1]);
	device = vfio_pci_device_init(getenv("VFIO_SELFTESTS_BDF"), iommu);
	if (!max)
		bar(argv[1], strtoul(argv[3], NULL, 0));
	for (unsigned long long size = SZ_64M; size <= max; size *= 4)
		scaling(argv[1], size);
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
	return 0;
}
