/* SPDX-License-Identifier: GPL-2.0-only */
/* What has to be mapped where, and how many pages are pinned and locked for that */

#define PAGE 4096UL
#define MIB (1UL << 20)
#define BASE 0x40000000UL

/* Memory in one piece of address space: 2 MiB pages, THP, 4 KiB in order and 4 KiB scattered. */
enum { HUGETLB, THP, SMALL, SCATTERED, NR_KINDS };
static const size_t kind_sizes[] = { 4 * MIB, 4 * MIB, 2 * MIB, 6 * MIB };
static const size_t kind_start[] = { 0, 4 * MIB, 8 * MIB, 10 * MIB };
#define POOL_SIZE (16 * MIB)
/* They are the same, except while something writes to the pool. */
static u8 *pool, *pristine;

struct mapping {
	u64 iova;
	size_t size, va;
	bool writable;
	/* Mappings of iommufd that share pinned pages, see IOMMU_IOAS_COPY */
	unsigned int object;
};

#define MAX_MAPS 24
#define MAX_GONE 8

/* What shares its mappings: a type1 container, or an IOAS. */
struct space {
	const char *name;
	struct iommu iommu;
	int mdev_group;
	bool has_iommu;
	/* A user of the IOAS inside the kernel, -1 without */
	int access;
	struct mapping maps[MAX_MAPS];
	unsigned int nr_maps;
	struct mapping gone[MAX_GONE];
	unsigned int nr_gone;
};

enum { V1, V2, IOAS0, IOAS1, NR_SPACES, NOWHERE = NR_SPACES };
/* The last one is of devices that are in none of the others. */
static struct space spaces[NR_SPACES + 1] = {
	{ .name = "type1v1" }, { .name = "type1v2" }, { .name = "ioas0" }, { .name = "ioas1" },
	{ .name = "nowhere" },
};

/* What accesses have pinned */
static struct pin {
	struct space *space;
	u64 iova, end;
	u32 id;
} pins[8];
static unsigned int nr_pins;

static struct device {
	const char *bdf;
	struct space *space;
	/* NULL if it is closed */
	struct vfio_pci_device *pci;
	bool bound;
	u32 id, hwpt;
	/* A page that was mapped, NOTHING before there was one */
	u64 source;
} devices[2];

static u64 random_state;

/* xorshift64* */
static u64 any(u64 below)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (random_state * 2685821657736338717ULL >> 16) % below;
}

/* A page of a mapping where things tend to go wrong */
static u64 any_page(const struct mapping *map)
{
	size_t pages = map->size / PAGE, page = any(pages);

	switch (any(6)) {
	case 0:
		page = 0;
		break;
	case 1:
		page = pages - 1;
		break;
	case 2:
		/* what a batch of unmap or a leaf ends at */
		page = page / 512 * 512 ?: pages / 512 * 512 % pages;
		break;
	}
	return map->iova + page * PAGE;
}

static bool is_type1(const struct space *space)
{
	return space < &spaces[IOAS0];
}

static bool used(const struct space *space)
{
	return devices[0].space == space || devices[1].space == space;
}

/* The first mapping that has some of a range, NULL if none has */
static struct mapping *find(struct space *space, u64 iova, size_t size)
{
	struct mapping *map;

	for (map = space->maps; map < space->maps + space->nr_maps; map++)
		if (map->iova <= iova + size - 1 && iova <= map->iova + map->size - 1)
			return map;
	return NULL;
}

/* Sorted by IOVA */
static void add(struct space *space, struct mapping map)
{
	unsigned int i;

	for (i = space->nr_maps++; i && space->maps[i - 1].iova > map.iova; i--)
		space->maps[i] = space->maps[i - 1];
	space->maps[i] = map;
}

static size_t forget(struct space *space, unsigned int i)
{
	struct mapping map = space->maps[i];
	unsigned int p = nr_pins;

	/* An access has to let go of all that reaches into what is unmapped. */
	while (p--)
		if (pins[p].space == space && pins[p].iova < map.iova + map.size &&
		    map.iova < pins[p].end)
			pins[p] = pins[--nr_pins];
	space->gone[space->nr_gone++ % MAX_GONE] = map;
	memmove(&space->maps[i], &space->maps[i + 1], (--space->nr_maps - i) * sizeof(map));
	return map.size;
}

/* How many pages of [IOVA, END) in a mapping are not among those SEEN, which they are then */
static u64 unseen(u8 *seen, const struct mapping *map, u64 iova, u64 end)
{
	u64 n = 0;

	end = min(end, map->iova + map->size);
	for (iova = max(iova, map->iova); iova < end; iova += PAGE)
		n += !seen[(map->va + iova - map->iova) / PAGE]++;
	return n;
}

/*
 * Type1 pins each mapping. Of iommufd's, those of one object pin a page once, whatever IOAS they
 * are in, and as long as it is in a page table or an access has pinned it.
 */
static void expect(u64 *pages, u64 *locked)
{
	static u8 seen[MAX_MAPS * 2][POOL_SIZE / PAGE];
	unsigned int objects[MAX_MAPS * 2], nr_objects = 0, i, o, p;
	struct space *space;

	memset(seen, 0, sizeof(seen));
	*pages = *locked = 0;
	for (space = spaces; space < &spaces[NR_SPACES]; space++) {
		for (i = 0; i < space->nr_maps; i++) {
			const struct mapping *map = &space->maps[i];

			if (is_type1(space)) {
				*locked += used(space) ? map->size / PAGE : 0;
				continue;
			}
			for (o = 0; o < nr_objects && objects[o] != map->object; o++)
				;
			if (o == nr_objects)
				objects[nr_objects++] = map->object;
			if (used(space))
				*pages += unseen(seen[o], map, 0, UINT64_MAX);
			for (p = 0; p < nr_pins; p++)
				if (pins[p].space == space)
					*pages += unseen(seen[o], map, pins[p].iova, pins[p].end);
		}
	}
	*pages += *locked;
}

static u64 pinned(void)
{
	VFIO_ASSERT_EQ(procfs_vmstat_refresh(), 0);
	return procfs_value_get("/proc/vmstat", "nr_foll_pin_acquired") -
	       procfs_value_get("/proc/vmstat", "nr_foll_pin_released");
}

static u64 locked_vm(void)
{
	return procfs_value_get("/proc/self/status", "VmLck:") * 1024 / PAGE;
}

static void check_counters(void)
{
	u64 pages, locked;

	expect(&pages, &locked);
	VFIO_ASSERT_EQ(pinned(), pages, "Not as many pages are pinned as in the model\n");
	VFIO_ASSERT_EQ(locked_vm(), locked, "locked_vm is not as in the model\n");
}

static void make_pool(void)
{
	size_t i, kind, pages;

	pool = mmap_reserve(POOL_SIZE, 2 * MIB, 0);
	pristine = malloc_assert(POOL_SIZE);
	for (kind = 0; kind < NR_KINDS; kind++) {
		u8 *va = mmap(pool + kind_start[kind], kind_sizes[kind], PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED |
			      (kind == HUGETLB ? MAP_HUGETLB : 0), -1, 0);

		VFIO_ASSERT_NE(va, MAP_FAILED, "No memory of kind %zu\n", kind);
		if (kind != HUGETLB)
			madvise(va, kind_sizes[kind], kind == THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		pages = kind_sizes[kind] / PAGE;
		for (i = 0; i < pages; i++)
			va[(kind == SCATTERED ? i * 37 % pages : i) * PAGE] = 1;
	}
	/* No two pages are alike. */
	for (i = 0; i < POOL_SIZE; i += 8)
		*(u64 *)(pristine + i) = (i + 1) * 0x9e3779b97f4a7c15ULL;
	memcpy(pool, pristine, POOL_SIZE);
}
