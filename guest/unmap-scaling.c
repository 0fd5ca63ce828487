// SPDX-License-Identifier: GPL-2.0-only
/*
 * usage: unmap-scaling MODE MAX_GIB   (one unmap of 64 MiB to MAX_GIB, times four each; for bench/scaling)
 *
 * Beyond 1 GiB, the same 1 GiB of 2 MiB pages is mapped as often as it takes, one IOVA after the other.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

static unsigned long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void map(struct iommu *iommu, void *mem, u64 iova, u64 size)
{
	struct vfio_iommu_type1_dma_map type1 = {
		.argsz = sizeof(type1),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)mem,
		.iova = iova,
		.size = size,
	};
	struct iommu_ioas_map ioas = {
		.size = sizeof(ioas),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE,
		.ioas_id = iommu->ioas_id,
		.user_va = (uintptr_t)mem,
		.iova = iova,
		.length = size,
	};

	if (iommu->iommufd ? ioctl(iommu->iommufd, IOMMU_IOAS_MAP, &ioas) :
			     ioctl(iommu->container_fd, VFIO_IOMMU_MAP_DMA, &type1)) {
		perror("map");
		exit(1);
	}
}

static void unmap(struct iommu *iommu, u64 iova, u64 size)
{
	struct vfio_iommu_type1_dma_unmap type1 = { .argsz = sizeof(type1), .iova = iova, .size = size };
	struct iommu_ioas_unmap ioas = { .size = sizeof(ioas), .ioas_id = iommu->ioas_id, .iova = iova, .length = size };

	if (iommu->iommufd ? ioctl(iommu->iommufd, IOMMU_IOAS_UNMAP, &ioas) || ioas.length != size :
			     ioctl(iommu->container_fd, VFIO_IOMMU_UNMAP_DMA, &type1) || type1.size != size) {
		perror("unmap");
		exit(1);
	}
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
		const u64 iova = SZ_4G;
		const char *reason;
		u64 runs;
		void *mem;

		mem = mmap_reserve(part, SZ_2M, 0);
		reason = memory_populate(mem, part, MEMORY_HUGETLB_2MB);
		if (reason) {
			fprintf(stderr, "%s\n", reason);
			return 1;
		}
		start = now_ns();
		for (unsigned long long done = 0; done < size; done += part)
			map(iommu, mem, iova + done, part);
		map_ns = now_ns() - start;
		reason = memory_check_layout(mem, part, MEMORY_HUGETLB_2MB, &runs);
		if (reason) {
			fprintf(stderr, "%s\n", reason);
			return 1;
		}
		start = now_ns();
		unmap(iommu, iova, size);
		unmap_ns = now_ns() - start;
		printf("scaling: mode=%s size=%llu pages=%llu mappings=%llu runs=%llu map_ns=%llu unmap_ns=%llu\n", argv[1], size,
		       size / 4096, size / part, (unsigned long long)runs * (size / part), map_ns, unmap_ns);
		fflush(stdout);
		munmap(mem, part);
	}
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
	return 0;
}
