/* SPDX-License-Identifier: GPL-2.0-only */
/* Random operations, the same for a seed */

/* IOVAs around what page tables have borders at: nothing, 4 GiB, entries of levels, VT-d's end */
static const struct window {
	u64 start, size;
} windows[] = {
	{ 0, 4 * MIB },
	{ BASE - 8 * MIB, 24 * MIB },
	{ 0x100000000 - 4 * MIB, 8 * MIB },
	{ 0x8000000000 - 8 * MIB, 16 * MIB },
	{ (1UL << 48) - 16 * MIB, 16 * MIB },
};

static struct mapping *any_map(struct space *space)
{
	return &space->maps[any(space->nr_maps)];
}

static struct mapping make_map(struct space *space)
{
	const struct window window = windows[any(ARRAY_SIZE(windows))];
	struct mapping map = { .writable = any(8) };
	int kind = any(NR_KINDS);
	size_t pages = kind_sizes[kind] / PAGE, max = min(window.size / PAGE, pages), n;
	u64 iova;

	n = any(5);
	n = min(max, 1 + any(n < 2 ? 8 : n < 4 ? 600 : max));
	map.size = n * PAGE;
	map.va = kind_start[kind] + any(pages - n + 1) * PAGE;
	map.iova = window.start + any(window.size / PAGE - n + 1) * PAGE;
	/* Often where large leaves fit */
	iova = (map.iova & ~(2 * MIB - 1)) | (map.va & (2 * MIB - 1));
	if (any(2) && iova >= window.start && iova + map.size <= window.start + window.size)
		map.iova = iova;
	/* Or right behind another one, in memory too if possible: runs must not go across */
	if (space->nr_maps && any(4) == 0) {
		const struct mapping *before = any_map(space);

		if (before->iova + before->size + map.size <= 1UL << 48) {
			map.iova = before->iova + before->size;
			if (before->va + before->size + map.size <= POOL_SIZE)
				map.va = before->va + before->size;
		}
	}
	return map;
}

static void step_map(struct space *space)
{
	struct mapping new = make_map(space);

	if (space->nr_maps == MAX_MAPS || !space->has_iommu)
		return;
	random_fault();
	if (!map(space, new))
		space->gone[space->nr_gone++ % MAX_GONE] = new;
}

static void step_copy(struct space *from, struct space *to)
{
	struct mapping new = make_map(to), *map;
	size_t offset, size;

	if (!from->nr_maps || to->nr_maps == MAX_MAPS)
		return;
	map = any_map(from);
	offset = any(2) ? 0 : any(map->size / PAGE) * PAGE;
	size = map->size - offset;
	if (any(2))
		size = (1 + any(size / PAGE)) * PAGE;
	random_fault();
	copy(from, *map, map->iova + offset, to, new.iova, min(size, new.size));
}

static void step_access(struct space *space)
{
	const struct mapping *map;
	size_t offset, size;
	bool write = any(2);

	if (nr_pins && any(3) == 0) {
		random_fault();
		unpin(any(nr_pins));
		return;
	}
	if (space->access < 0 || !space->nr_maps)
		return;
	map = any_map(space);
	offset = any(2) ? any_page(map) - map->iova : 0;
	size = map->size - offset;
	random_fault();
	if (any(2)) {
		offset += any(PAGE);
		access_map(space, map, offset, 1 + any(size - offset % PAGE), write);
		return;
	}
	if (nr_pins == ARRAY_SIZE(pins))
		return;
	if (any(2))
		size = (1 + any(size / PAGE)) * PAGE;
	else if (any(4) == 0)
		/* and what follows */
		size += (1 + any(200)) * PAGE;
	pin(space, map->iova + offset, size, write);
}

static void step_unmap(struct space *space)
{
	struct device *device = &devices[any(ARRAY_SIZE(devices))];
	u64 iova = 0, size = 0, seen = 0;
	const struct mapping *map;

	if (!space->has_iommu)
		return;
	if (space->nr_maps && device->space == space) {
		/* Into the IOTLB, to see that it leaves it */
		seen = device->source = any_page(any_map(space));
		check_write(device, seen, DMA_SIZE);
	}
	random_fault();
	/* Everything, or the one that was looked at, mostly */
	if (any(12) && space->nr_maps) {
		for (map = space->maps; seen && any(4) && seen - map->iova >= map->size; )
			map++;
		if (!seen)
			map = any_map(space);
		iova = map->iova;
		size = map->size;
		switch (any(8)) {
		case 0:
			/* cut off at the end */
			size = (1 + any(size / PAGE)) * PAGE;
			break;
		case 1:
			/* cut off at the start */
			iova += any(size / PAGE) * PAGE;
			size -= iova - map->iova;
			break;
		case 2:
			/* and what follows */
			size += any(8 * MIB / PAGE) * PAGE;
			break;
		case 3:
			/* up to the end of some other one */
			map += any(space->maps + space->nr_maps - map);
			size = map->iova + map->size - iova;
			break;
		}
	}
	unmap(space, iova, size);
	if (seen)
		check_write(device, seen, DMA_SIZE);
}

static void step_move(struct device *device, struct space *to)
{
	bool ok;

	/* Between IOAS without closing, mostly */
	if (!device->bound || is_type1(to) || any(4) == 0) {
		random_fault();
		close_device(device);
	}
	if (to == &spaces[NOWHERE])
		return;
	if (!used(to) && any(4) == 0) {
		log_step("close and open %s", to->name);
		close_space(to);
		open_space(to, any(4));
	}
	/* Half of them without, or few come to an end. */
	if (any(2))
		random_fault();
	log_step("attach %s to %s", device->bdf, to->name);
	ok = is_type1(to) ? attach_type1(device, to) : attach_iommufd(device, to, any(2));
	stats.attaches += ok;
	/*
	 * The core has it stay where it was, but VT-d blocks a device before what can fail, and
	 * leaves it blocked.
	 */
	if (!ok && device->space != &spaces[NOWHERE])
		close_device(device);
}

/* A device writes to some IOVA, often one that is or was mapped. */
static void step_dma(struct device *device)
{
	struct space *space = device->space;
	const struct mapping *map = NULL;
	struct window window;
	u64 iova;

	if (!device->pci)
		return;
	if (space->nr_maps)
		map = any_map(space);
	if (map && (device->source == NOTHING || any(4) == 0))
		device->source = any_page(map);

	window = windows[any(ARRAY_SIZE(windows))];
	iova = window.start + any(window.size / PAGE) * PAGE;
	switch (any(8)) {
	case 0 ... 4:
		if (map)
			iova = any_page(map);
		break;
	case 5:
		/* just outside */
		if (map)
			iova = any(2) && map->iova ? map->iova - PAGE : map->iova + map->size;
		break;
	case 6:
		if (space->nr_gone)
			iova = any_page(&space->gone[any(min_t(u64, space->nr_gone, MAX_GONE))]);
		break;
	}
	/* Also from the middle of a page into the next one; edu has no more than 48 bits. */
	if (any(3) == 0)
		iova += any(PAGE / 8) * 8;
	if (iova > (1UL << 48) - DMA_SIZE)
		iova = (1UL << 48) - PAGE;
	check_write(device, iova, any(4) ? DMA_SIZE : 8 + any(DMA_SIZE / 8 - 1) * 8);
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
			space = &spaces[IOAS0 + any(2)];
			step_copy(space, &spaces[IOAS0 + any(2)]);
			break;
		case 15 ... 18:
			step_access(&spaces[IOAS0 + any(2)]);
			break;
		default:
			d = any(ARRAY_SIZE(devices));
			step_move(&devices[d], &spaces[any(NR_SPACES + 1)]);
		}
		check_counters();
		for (d = 0; d < ARRAY_SIZE(devices); d++)
			step_dma(&devices[d]);
		if ((i + 1) % 100 == 0)
			ksft_print_msg("%lu iterations: %lu maps, %lu unmaps, %lu attaches, %lu accesses, %lu DMAs, %lu faults, %lu ioctls failed for them\n",
				       i + 1, stats.maps, stats.unmaps, stats.attaches, stats.accesses,
				       stats.dmas, stats.injected, stats.injected_failed);
	}
}
