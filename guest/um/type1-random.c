// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random operations on two VFIO containers of type1, v1 or v2: maps of memory in order, scattered and
 * of a memfd, unmaps, groups with another page table each that come and go, so that what is mapped is
 * replayed, pins through a device without an IOMMU, memory that is replaced by other pages, limits of
 * locked memory. A model says what each operation has to return, to which page each IOVA leads in each
 * page table, how many pages are pinned and how many are accounted for. After a few hundred operations
 * all is closed, in any order, and no pin may be left. A WARN is a failure. The /init of
 * tests/type1-random.
 *
 * Kernel command line: OPERATIONS=n SEED=n, FAIL=n for the percentage of operations in which an
 * allocation fails, KEEP_GOING=1 to go on after a failure
 */
#define NAME "type1-random"
#include "random.h"
#include "native.h"

#define NR_CONTAINERS 2
#define MAX_DMAS 40
#define MAX_PINS 8
#define MAX_PAGES ((REGION + GAP) / PAGE)
#define MIB (1UL << 20)
#define RESERVED (64 * PAGE) /* of the kernel, at the end of the memfd; nobody pins it */
#define RESERVED_PHYS MIB

struct dma {
	uint64_t iova, size;
	uint8_t *va;
	uint32_t flags;
	bool mapped;
	uint64_t phys[MAX_PAGES]; /* when it is mapped */
	uint8_t pins[MAX_PAGES]; /* of the device without an IOMMU */
};

static struct container {
	int fd;
	unsigned int type; /* 0: it has no groups */
	int ndmas;
	struct dma *dmas[MAX_DMAS]; /* sorted by iova */
} containers[NR_CONTAINERS];

static struct group {
	int fd, device;
	struct container *container; /* NULL: it is in none */
} groups[NATIVE_ACCESS + 1];
static struct group *const access_group = &groups[NATIVE_ACCESS];

/* The last IOVA of each format */
static const uint64_t apertures[NATIVE_NR_FORMATS] = {
	UINT64_MAX, (1UL << 48) - 1, (1UL << 47) - 1, (1UL << 47) - 1,
};

static struct native_range pinned[MAX_PINS];
static int npinned, pagemap;

/* IOVAs around what page tables have borders at, and the ends of the formats */
static const uint64_t windows[] = {
	0, 1UL << 21, (1UL << 30) - 2 * MIB, (1UL << 32) - 2 * MIB, (1UL << 39) - 2 * MIB,
	(1UL << 47) - 4 * MIB, (1UL << 47), (1UL << 48) - 4 * MIB, -4 * MIB,
};
#define WINDOW (4 * MIB)

/* ---- the model ---- */

static uint64_t last_of(const struct dma *dma)
{
	return dma->iova + dma->size - 1;
}

static bool has(const struct container *container, const struct group *group)
{
	return group->container == container;
}

static int nr_domains(const struct container *container)
{
	int n = 0;

	for (int i = 0; i < NATIVE_NR_FORMATS; i++)
		n += has(container, &groups[i]);
	return n;
}

static struct dma *find_dma(const struct container *container, uint64_t first, uint64_t last)
{
	for (int i = 0; i < container->ndmas; i++)
		if (container->dmas[i]->iova <= last && last_of(container->dmas[i]) >= first)
			return container->dmas[i];
	return NULL;
}

static void add_dma(struct container *container, struct dma *dma)
{
	int i = container->ndmas++;

	for (; i && container->dmas[i - 1]->iova > dma->iova; i--)
		container->dmas[i] = container->dmas[i - 1];
	container->dmas[i] = dma;
}

static void remove_dma(struct container *container, struct dma *dma)
{
	int i = 0;

	while (container->dmas[i] != dma)
		i++;
	container->ndmas--;
	memmove(&container->dmas[i], &container->dmas[i + 1],
		(container->ndmas - i) * sizeof(*container->dmas));
	free(dma);
}

static uint8_t *reserved_start(void)
{
	return region[MEMFD] + REGION - RESERVED;
}

static bool is_reserved(const uint8_t *va)
{
	return va >= reserved_start() && va < reserved_start() + RESERVED;
}

/* Pages that are pinned when it is mapped */
static unsigned long nr_pages(const struct dma *dma)
{
	unsigned long n = 0;

	for (size_t pos = 0; pos < dma->size; pos += PAGE)
		n += !is_reserved(dma->va + pos);
	return n;
}

static unsigned long nr_external(const struct dma *dma)
{
	unsigned long n = 0;

	for (size_t i = 0; npinned && i < dma->size / PAGE; i++)
		n += dma->pins[i] && !is_reserved(dma->va + i * PAGE);
	return n;
}

/* What is mapped, and what else or, with both, what also the device without an IOMMU has pinned */
static unsigned long count_pages(bool both)
{
	unsigned long n = 0;

	for (int i = 0; i < NR_CONTAINERS; i++) {
		for (int j = 0; j < containers[i].ndmas; j++) {
			const struct dma *dma = containers[i].dmas[j];

			if (dma->mapped)
				n += nr_pages(dma);
			if (!dma->mapped || both)
				n += nr_external(dma);
		}
	}
	return n;
}

static unsigned long nr_pinned(void)
{
	return count_pages(true);
}

/* A page is accounted for once. */
static unsigned long nr_accounted(void)
{
	return count_pages(false);
}

static void check_counters(const char *when)
{
	unsigned long want = nr_pinned(), is = pins_left() - lost;
	unsigned long accounted = number_behind(read_file("/proc/self/status"), "VmLck:") / 4;

	if (is != want)
		differs("%s %ld pages are pinned, expected %lu", when, is, want);
	if (accounted != nr_accounted())
		differs("%s %lu pages are accounted for, expected %lu", when, accounted,
			nr_accounted());
}

static bool exceeds(unsigned long pages)
{
	return pages && nr_accounted() + pages > memlock;
}

/* Which pages a dma has now */
static void note_pages(struct dma *dma)
{
	size_t n = dma->size / PAGE;

	if (pread(pagemap, dma->phys, n * 8, (uintptr_t)dma->va / PAGE * 8) != (ssize_t)n * 8)
		die("read pagemap");
	for (size_t i = 0; i < n; i++) {
		const uint8_t *va = dma->va + i * PAGE;

		/* pagemap does not show it */
		dma->phys[i] = is_reserved(va) ? RESERVED_PHYS + (va - reserved_start()) :
						 (dma->phys[i] & ((1UL << 55) - 1)) * PAGE;
	}
}

/* ---- operations ---- */

static int plain_call(int fd, unsigned long request, void *argument)
{
	int rc = ioctl(fd, request, argument);

	return rc < 0 ? -errno : rc;
}

/* What fails for want of memory fails as a whole: a second try does what the first one would have. */
static int call(int fd, unsigned long request, void *argument)
{
	int rc;

	operation++;
	if (!arm_failure())
		return plain_call(fd, request, argument);
	rc = plain_call(fd, request, argument);
	/* An unmap needs no memory. */
	if (!disarm_failure(rc) || request == VFIO_IOMMU_UNMAP_DMA)
		return rc;
	check_counters("after a failure");
	return plain_call(fd, request, argument);
}

static struct container *some_container(void)
{
	return &containers[rnd(NR_CONTAINERS)];
}

static struct dma *some_dma(const struct container *container)
{
	return container->ndmas ? container->dmas[rnd(container->ndmas)] : NULL;
}

/* The group's page table translates these pages as the model says. */
static void check_range(const struct group *group, uint64_t iova, uint64_t size)
{
	static uint64_t phys[2 * MAX_PAGES];
	struct native_range range = { .vaddr = (uintptr_t)phys, .iova = iova };
	const struct dma *dma = NULL;

	range.size = size < sizeof(phys) / 8 * PAGE ? size : sizeof(phys) / 8 * PAGE;
	check("NATIVE_LOOKUP", plain_call(group->device, NATIVE_LOOKUP, &range), 0);
	for (uint64_t pos = 0; pos < range.size; pos += PAGE, iova += PAGE) {
		uint64_t want = 0;

		if (!dma || iova > last_of(dma))
			dma = find_dma(group->container, iova, UINT64_MAX);
		if (dma && iova >= dma->iova)
			want = dma->phys[(iova - dma->iova) / PAGE];
		if (phys[pos / PAGE] != want) {
			differs("format %td translates %lx to %lx, expected %lx", group - groups,
				iova, phys[pos / PAGE], want);
			return;
		}
	}
}

static void check_ranges(const struct container *container, uint64_t iova, uint64_t size)
{
	/* and the pages on both sides */
	if (iova) {
		iova -= PAGE;
		size += PAGE;
	}
	if (iova + size)
		size += PAGE;
	for (int i = 0; i < NATIVE_NR_FORMATS; i++)
		if (has(container, &groups[i]))
			check_range(&groups[i], iova, size);
}

static void check_dma(void)
{
	const struct container *container = some_container();
	const struct dma *dma = some_dma(container);

	if (dma && dma->mapped)
		check_ranges(container, dma->iova, dma->size);
}

static size_t some_pages(size_t most)
{
	size_t n = 1 + rnd(one_in(3) ? most : one_in(3) ? 600 : 8);

	return n < most ? n : most;
}

static int expect_map(const struct container *container, const struct dma *dma)
{
	if (find_dma(container, dma->iova, last_of(dma)))
		return -EEXIST;
	for (int i = 0; i < NATIVE_NR_FORMATS; i++)
		if (has(container, &groups[i]) && last_of(dma) > apertures[i])
			return -EINVAL;
	return nr_domains(container) && in_gap(dma->va, dma->size) ? -EFAULT : 0;
}

static void map(void)
{
	struct container *container = some_container();
	uint64_t window = windows[rnd(ARRAY_SIZE(windows))];
	size_t start, pages = some_pages(REGION_PAGES);
	const struct dma *other = some_dma(container);
	struct vfio_iommu_type1_dma_map cmd = { .argsz = sizeof(cmd) };
	struct dma *dma;
	bool exceeded;
	int rc, want;

	if (!container->type || container->ndmas == MAX_DMAS)
		return;
	dma = calloc(1, sizeof(*dma));
	if (!dma)
		die("allocate");
	/* seldom into the gap */
	start = rnd(REGION_PAGES - pages + 1 + (one_in(16) ? GAP / PAGE : 0));
	dma->va = region[rnd(NR_REGIONS)] + start * PAGE;
	dma->size = pages * PAGE;
	dma->iova = window + rnd((WINDOW - dma->size) / PAGE + 1) * PAGE;
	if (other && one_in(4)) {
		/* right behind it, in memory, too, if there is some */
		dma->iova = last_of(other) + 1;
		if (!in_gap(other->va + other->size, dma->size))
			dma->va = other->va + other->size;
	} else if (one_in(2)) {
		/* where large leaves fit */
		note_pages(dma);
		dma->iova = window + dma->phys[0] % (2 * MIB);
	}
	if (dma->iova + dma->size - 1 < dma->iova) {
		free(dma);
		return;
	}
	dma->flags = 1 + rnd(3);
	cmd.flags = dma->flags;
	cmd.vaddr = (uintptr_t)dma->va;
	cmd.iova = dma->iova;
	cmd.size = dma->size;
	want = expect_map(container, dma);
	exceeded = nr_domains(container) && exceeds(nr_pages(dma));
	rc = call(container->fd, VFIO_IOMMU_MAP_DMA, &cmd);
	check_limited("MAP_DMA", rc, want, exceeded);
	if (rc || failed) {
		free(dma);
		return;
	}
	mappings++;
	add_dma(container, dma);
	if (!nr_domains(container))
		return;
	dma->mapped = true;
	note_pages(dma);
	check_ranges(container, dma->iova, dma->size);
}

static int model_unmap(struct container *container, uint64_t iova, uint64_t last, bool all,
		       uint64_t *unmapped)
{
	const struct dma *first = find_dma(container, iova, iova);
	const struct dma *behind = find_dma(container, last, last);
	struct dma *dma;

	*unmapped = 0;
	if (container->type == VFIO_TYPE1v2_IOMMU && !all &&
	    ((first && first->iova != iova) || (behind && last_of(behind) != last)))
		return -EINVAL;
	while ((dma = find_dma(container, iova, last)) &&
	       (container->type == VFIO_TYPE1v2_IOMMU || dma->iova >= iova)) {
		*unmapped += dma->size;
		remove_dma(container, dma);
	}
	return 0;
}

/* Without its driver letting go, the kernel would wait for what an unmap finds pinned. */
static bool any_pinned(const struct container *container, uint64_t iova, uint64_t last)
{
	for (int i = 0; i < container->ndmas; i++) {
		const struct dma *dma = container->dmas[i];

		if (dma->iova > last || last_of(dma) < iova)
			continue;
		for (size_t j = 0; j < dma->size / PAGE; j++)
			if (dma->pins[j])
				return true;
	}
	return false;
}

static void unmap(void)
{
	struct container *container = some_container();
	struct vfio_iommu_type1_dma_unmap cmd = { .argsz = sizeof(cmd) };
	const struct dma *dma = some_dma(container), *other = some_dma(container);
	uint64_t iova, last, unmapped;
	bool all = one_in(60);
	int rc, want;

	if (!dma)
		return;
	iova = dma->iova;
	last = last_of(dma);
	switch (rnd(12)) {
	case 0: /* several */
		if (last_of(other) > last)
			last = last_of(other);
		else
			iova = other->iova;
		break;
	case 1:
		iova += rnd(dma->size / PAGE) * PAGE;
		break;
	case 2:
		last -= rnd(dma->size / PAGE) * PAGE;
		break;
	case 3:
		iova -= iova >= WINDOW ? rnd(WINDOW / PAGE) * PAGE : iova;
		break;
	}
	/* The type has no size for all there is. */
	if (!iova && last == UINT64_MAX)
		all = true;
	if (all) {
		iova = 0;
		last = UINT64_MAX;
		cmd.flags = VFIO_DMA_UNMAP_FLAG_ALL;
	} else {
		cmd.iova = iova;
		cmd.size = last - iova + 1;
	}
	if (any_pinned(container, iova, last))
		return;
	rc = call(container->fd, VFIO_IOMMU_UNMAP_DMA, &cmd);
	want = model_unmap(container, iova, last, all, &unmapped);
	check("UNMAP_DMA", rc, want);
	if (!want && cmd.size != unmapped)
		differs("UNMAP_DMA unmapped %llx, expected %lx", cmd.size, unmapped);
	if (!want && !failed)
		check_ranges(container, iova, all ? PAGE : last - iova + 1);
}

static void unpin_one(int i)
{
	struct native_range range = pinned[i];

	check("NATIVE_UNPIN", plain_call(access_group->device, NATIVE_UNPIN, &range), 0);
	for (uint64_t iova = range.iova; iova < range.iova + range.size; iova += PAGE) {
		struct dma *dma = find_dma(access_group->container, iova, iova);

		dma->pins[(iova - dma->iova) / PAGE]--;
	}
	pinned[i] = pinned[--npinned];
}

static void unpin(void)
{
	if (!npinned)
		return;
	operation++;
	unpin_one(rnd(npinned));
}

static void pin(void)
{
	struct container *container = access_group->container;
	struct native_range range = {};
	unsigned long more = 0;
	const struct dma *dma;
	int rc, want = 0;
	bool exceeded;

	dma = container ? some_dma(container) : NULL;
	if (!dma || npinned == MAX_PINS)
		return;
	range.iova = dma->iova + rnd(dma->size / PAGE) * PAGE;
	range.size = some_pages(512) * PAGE; /* as many as the driver pins at once */
	if (range.iova + range.size < range.iova)
		return;
	if (container->type != VFIO_TYPE1v2_IOMMU)
		want = -EACCES;
	for (uint64_t pos = 0; pos < range.size && !want; pos += PAGE) {
		uint64_t iova = range.iova + pos;

		dma = find_dma(container, iova, iova);
		if (!dma)
			want = -EINVAL;
		else if (!(dma->flags & VFIO_DMA_MAP_FLAG_READ))
			want = -EPERM;
		else if (dma->pins[(iova - dma->iova) / PAGE])
			continue;
		else if (in_gap(dma->va + (iova - dma->iova), PAGE))
			want = -EFAULT;
		else
			more += !dma->mapped && !is_reserved(dma->va + (iova - dma->iova));
	}
	exceeded = exceeds(more);
	rc = call(access_group->device, NATIVE_PIN, &range);
	check_limited("NATIVE_PIN", rc, want, exceeded);
	if (rc || failed)
		return;
	for (uint64_t iova = range.iova; iova < range.iova + range.size; iova += PAGE) {
		struct dma *under = find_dma(container, iova, iova);

		under->pins[(iova - under->iova) / PAGE]++;
	}
	pinned[npinned++] = range;
}

/* What has to come of mapping all that is there in a new page table, in the order of IOVAs */
static int expect_attach(const struct container *container, const struct group *group)
{
	uint64_t end = apertures[group - groups];

	if (end != UINT64_MAX && find_dma(container, end + 1, UINT64_MAX))
		return -EINVAL;
	for (int i = 0; i < container->ndmas; i++) {
		const struct dma *dma = container->dmas[i];

		if (!dma->mapped && in_gap(dma->va, dma->size))
			return -EFAULT;
	}
	return 0;
}

static void open_device(struct group *group)
{
	char name[32];

	snprintf(name, sizeof(name), "vfio-native.%td", group - groups);
	group->device = plain_call(group->fd, VFIO_GROUP_GET_DEVICE_FD, name);
	if (group->device < 0)
		differs("GROUP_GET_DEVICE_FD returned %d", group->device);
}

static void attach(struct group *group)
{
	struct container *container = some_container();
	bool real = group != access_group, exceeded = false;
	unsigned int type = one_in(4) ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU;
	unsigned long more = 0;
	int rc, want = 0;

	if (real && container->type) {
		want = expect_attach(container, group);
		for (int i = 0; i < container->ndmas; i++)
			if (!container->dmas[i]->mapped)
				more += nr_pages(container->dmas[i]) - nr_external(container->dmas[i]);
		exceeded = exceeds(more);
	}
	rc = call(group->fd, VFIO_GROUP_SET_CONTAINER, &container->fd);
	check_limited("GROUP_SET_CONTAINER", rc, want, exceeded);
	if (rc || failed)
		return;
	if (!container->type) {
		check("SET_IOMMU", call(container->fd, VFIO_SET_IOMMU, (void *)(uintptr_t)type), 0);
		container->type = type;
	}
	group->container = container;
	open_device(group);
	if (!real || failed)
		return;
	domains_made++;
	for (int i = 0; i < container->ndmas; i++) {
		struct dma *dma = container->dmas[i];

		if (!dma->mapped)
			note_pages(dma);
		dma->mapped = true;
		check_range(group, dma->iova, dma->size);
	}
}

static void detach(struct group *group)
{
	struct container *container = group->container;

	operation++;
	while (group == access_group && npinned)
		unpin_one(0);
	close(group->device);
	check("GROUP_UNSET_CONTAINER", plain_call(group->fd, VFIO_GROUP_UNSET_CONTAINER, NULL), 0);
	group->container = NULL;
	if (nr_domains(container))
		return;
	for (int i = 0; i < container->ndmas; i++)
		container->dmas[i]->mapped = false;
	if (has(container, access_group))
		return;
	while (container->ndmas)
		remove_dma(container, container->dmas[0]);
	container->type = 0;
}

static void change_group(void)
{
	struct group *group = &groups[rnd(ARRAY_SIZE(groups))];

	if (!group->container)
		attach(group);
	else if (one_in(3))
		detach(group);
}

/* Other pages at the same address: what is mapped stays what it was. */
static void replace_memory(void)
{
	uint8_t *start = region[rnd(MEMFD)] + rnd(REGION_PAGES) * PAGE;
	size_t size = some_pages(REGION_PAGES) * PAGE;

	if (in_gap(start, size))
		return;
	operation++;
	if (mmap(start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	    MAP_FAILED)
		die("replace memory");
	memset(start, 1, size);
}

static void change_memlock(void)
{
	if (unprivileged)
		set_memlock(one_in(4) ? UNLIMITED : nr_accounted() + rnd(600));
}

static void check_all_counters(void)
{
	check_counters("after a success");
}

static const struct operation operations[] = {
	{ map, 30 },	      { unmap, 20 },	     { pin, 6 },	 { unpin, 4 },
	{ change_group, 3 },  { check_dma, 8 },	     { replace_memory, 1 }, { change_memlock, 1 },
	{ check_all_counters, 4 },
};

static void close_all(void)
{
	bool container_first = one_in(2);

	for (int i = 0; container_first && i < NR_CONTAINERS; i++)
		close(containers[i].fd);
	for (int i = 0; i < NATIVE_ACCESS; i++)
		if (groups[i].container && !one_in(3))
			detach(&groups[i]);
	for (int i = NATIVE_ACCESS; i >= 0; i--)
		if (groups[i].container)
			detach(&groups[i]);
	for (int i = 0; !container_first && i < NR_CONTAINERS; i++)
		close(containers[i].fd);
}

static void episode(uint64_t end)
{
	set_privilege(!one_in(8));
	set_memlock(UNLIMITED);
	for (int i = 0; i < NR_CONTAINERS; i++) {
		containers[i].fd = open("/dev/vfio/vfio", O_RDWR);
		if (containers[i].fd < 0)
			die("open /dev/vfio/vfio");
	}
	attach(&groups[rnd(ARRAY_SIZE(groups))]);
	while (operation < end && !failed) {
		run_some(operations, ARRAY_SIZE(operations));
		/* Without a group nothing else is an operation. */
		if (!containers[0].type && !containers[1].type)
			change_group();
		sometimes_read_kmsg();
	}
	close_all();
}

/* Pages of the kernel itself */
static void map_reserved(void)
{
	int mem = open("/dev/mem", O_RDWR);

	if (mem < 0 || mmap(reserved_start(), RESERVED, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			    mem, RESERVED_PHYS) == MAP_FAILED)
		die("map /dev/mem");
	close(mem);
}

static void open_groups(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(groups); i++) {
		char path[64], link[256] = "";

		snprintf(path, sizeof(path), "/sys/devices/platform/vfio-native.%zu/iommu_group", i);
		if (readlink(path, link, sizeof(link) - 1) < 0)
			die(path);
		snprintf(path, sizeof(path), "/dev/vfio/%.32s", strrchr(link, '/') + 1);
		groups[i].fd = open(path, O_RDWR);
		if (groups[i].fd < 0)
			die(path);
	}
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (pagemap < 0)
		die("open pagemap");
}

int main(void)
{
	start_random();
	map_reserved();
	open_groups();
	return run_episodes(episode);
}
