// SPDX-License-Identifier: GPL-2.0-only
/*
 * A real device's view of map and unmap. It copies pages by DMA through the IOMMU, within a buffer
 * (which fills the IOTLB). The buffer is unmapped and another one mapped at the same IOVA. What the
 * device writes then must land in the new buffer and not in the old one, and after the last unmap
 * nowhere.
 *
 * usage: edu-dma [BDF]   (default: $VFIO_SELFTESTS_BDF)
 */
#include <sys/mman.h>

#include <linux/sizes.h>

#include <libvfio.h>

#define IOVA SZ_1G
#define SOURCE_IOVA SZ_512M
#define PAGE ((size_t)getpagesize())
#define RESULTS 4

/* Also more pages than type1 unmaps at once, which is 512 runs, and pages mapped one by one */
static const struct {
	const char *name;
	enum memory_kind kind;
	size_t pages, pieces;
} buffers[] = {
	{ "pages", MEMORY_IN_ORDER, 16, 1 },
	{ "scattered", MEMORY_SCATTERED, 2048, 1 },
	{ "pieces", MEMORY_SCATTERED, 64, 64 },
	{ "thp", MEMORY_THP, 2, 1 },
	{ "hugetlb_2m", MEMORY_HUGETLB_2MB, 2, 1 },
};

static const char *const modes[] = { MODE_VFIO_TYPE1V2_IOMMU, MODE_IOMMUFD };
static const char *const results[RESULTS] = { "mapped", "lands_in_new", "old_untouched", "blocked" };

static struct vfio_pci_device *device;
/* What the device copies at once, up to a page */
static size_t copied;
static struct dma_region pieces[64];

static void map(void *vaddr, size_t size, size_t step)
{
	size_t i;

	for (i = 0; i < size / step; i++) {
		pieces[i] = (struct dma_region) {
			.vaddr = vaddr + i * step,
			.iova = IOVA + i * step,
			.size = step,
		};
		iommu_map(device->iommu, &pieces[i]);
	}
}

/* All pieces at once */
static void unmap(size_t size, size_t step)
{
	struct dma_region all = { .iova = IOVA, .size = size };
	u64 unmapped;
	size_t i;

	INIT_LIST_HEAD(&all.link);
	VFIO_ASSERT_EQ(__iommu_unmap(device->iommu, &all, &unmapped), 0);
	VFIO_ASSERT_EQ(unmapped, size);
	for (i = 0; i < size / step; i++)
		list_del(&pieces[i].link);
}

static void copy(iova_t source, size_t page)
{
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(device, source, IOVA + page * PAGE, copied), 0);
}

/* Every word of every buffer has contents of its own. */
static void fill(u32 *vaddr, size_t size, u32 seed)
{
	size_t i;

	for (i = 0; i < size / 4; i++)
		vaddr[i] = seed ^ (u32)(i * 4 * 2654435761U);
}

static bool filled(const u32 *vaddr, size_t size, u32 seed)
{
	size_t i;

	for (i = 0; i < size / 4; i++)
		if (vaddr[i] != (seed ^ (u32)(i * 4 * 2654435761U)))
			return false;
	return true;
}

/* Returns NULL, or why there is no such memory */
static const char *check(int nr, const void *source, bool *ok)
{
	const size_t align = memory_page_size(buffers[nr].kind), size = buffers[nr].pages * align;
	const size_t step = size / buffers[nr].pieces, last = size / PAGE - 1;
	/* First, last, and both sides of what is unmapped at once: 512 pages or runs */
	const size_t pages[] = { last, 0, 511, 512, 513, 1023, 1024 };
	const char *reason;
	void *vaddr[2];
	u64 nr_runs;
	size_t i;

	for (i = 0; i < 2; i++) {
		vaddr[i] = mmap_reserve(size, align, 0);
		reason = memory_populate(vaddr[i], size, buffers[nr].kind);
		if (reason)
			return reason;
		reason = memory_check_layout(vaddr[i], size, buffers[nr].kind, &nr_runs);
		/* Base pages are taken as they come. */
		if (reason && align > PAGE)
			return reason;
	}
	ksft_print_msg("%s: %zu KiB in %lu runs\n", buffers[nr].name, size / 1024, nr_runs);
	memset(ok, true, RESULTS);

#define for_each_page(i) for (i = 0; i < ARRAY_SIZE(pages); i++) if (!i || pages[i] < last)
	fill(vaddr[0], size, 0xaaaa0000);
	map(vaddr[0], size, step);
	for_each_page(i) {
		size_t from = pages[i] < last ? pages[i] + 1 : 0;

		copy(IOVA + from * PAGE, pages[i]);
		ok[0] &= !memcmp(vaddr[0] + pages[i] * PAGE, vaddr[0] + from * PAGE, copied);
		fill(vaddr[0], size, 0xaaaa0000);
	}
	unmap(size, step);

	fill(vaddr[1], size, 0xbbbb0000);
	map(vaddr[1], size, step);
	for_each_page(i) {
		copy(SOURCE_IOVA, pages[i]);
		ok[1] &= !memcmp(vaddr[1] + pages[i] * PAGE, source, copied);
		fill(vaddr[1], size, 0xbbbb0000);
	}
	ok[2] = filled(vaddr[0], size, 0xaaaa0000);
	unmap(size, step);

	for_each_page(i)
		copy(SOURCE_IOVA, pages[i]);
	ok[3] = filled(vaddr[0], size, 0xaaaa0000) && filled(vaddr[1], size, 0xbbbb0000);

	for (i = 0; i < 2; i++)
		munmap(vaddr[i], size);
	return NULL;
}

static void check_mode(const char *bdf, const char *mode)
{
	struct iommu *iommu = iommu_init(mode);
	struct dma_region source = { .iova = SOURCE_IOVA, .size = PAGE };
	bool ok[RESULTS];
	char name[64];
	size_t nr, i;

	device = vfio_pci_device_init(bdf, iommu);
	device->driver.region = (struct dma_region){ .iova = 0, .size = SZ_2M };
	device->driver.region.vaddr = mmap_reserve(SZ_2M, SZ_2M, 0);
	source.vaddr = mmap_reserve(PAGE, PAGE, 0);
	VFIO_ASSERT_NULL(memory_populate(device->driver.region.vaddr, SZ_2M, MEMORY_SCATTERED));
	VFIO_ASSERT_NULL(memory_populate(source.vaddr, PAGE, MEMORY_SCATTERED));
	iommu_map(iommu, &device->driver.region);
	iommu_map(iommu, &source);
	fill(source.vaddr, PAGE, 0xcccc0000);
	vfio_pci_driver_init(device);
	copied = min_t(u64, PAGE, device->driver.max_memcpy_size);

	for (nr = 0; nr < ARRAY_SIZE(buffers); nr++) {
		const char *reason = check(nr, source.vaddr, ok);

		for (i = 0; i < RESULTS; i++) {
			snprintf(name, sizeof(name), "%s.%s.%s", mode, buffers[nr].name, results[i]);
			ksft_test_result_code(reason ? KSFT_SKIP : ok[i] ? KSFT_PASS : KSFT_FAIL,
					      name, reason);
		}
	}
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
}

int main(int argc, char **argv)
{
	const char *bdf = vfio_selftests_get_bdf(&argc, argv);
	size_t i;

	ksft_print_header();
	ksft_set_plan(ARRAY_SIZE(modes) * ARRAY_SIZE(buffers) * RESULTS);
	for (i = 0; i < ARRAY_SIZE(modes); i++)
		check_mode(bdf, modes[i]);
	ksft_finished();
}
