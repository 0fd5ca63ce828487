/* SPDX-License-Identifier: GPL-2.0-only */
/* Operations, each in the kernel and in the model, and what a device sees of them */

#define DEBUGFS "/sys/kernel/debug/"
/* Where nothing is ever mapped */
#define NOTHING 0x600000000000UL
/* What edu copies at once */
#define DMA_SIZE (PAGE - 8)

static int iommufd;
static const char *mdevs[2];
static bool debug_pagealloc;

static struct {
	unsigned long injected, injected_failed, dmas, attaches, maps, unmaps, accesses;
} stats;

static char history[16][192];
static unsigned int nr_history;

/*
 * Faults. fail-nth fails one allocation of this task, whatever it is for. fail_page_alloc fails a
 * page after some others, which are the page tables here; the first comes first, so that both
 * together are two faults in one operation. The job has set them up.
 */
static const struct fault {
	unsigned int nth;
	int pages;
} no_fault = { .pages = -1 };
static struct fault fault = no_fault;
static bool fault_hit, page_fault_hit;
/* -1 without any */
static int fail_nth_fd;

static void __printf(1, 2) log_step(const char *format, ...)
{
	char *line = history[nr_history++ % ARRAY_SIZE(history)];
	va_list args;

	va_start(args, format);
	vsnprintf(line, 144, format, args);
	va_end(args);
	sprintf(line + strlen(line), ", fail-nth %u, pages %d", fault.nth, fault.pages);
}

/* Also after one of libvfio's assertions */
static void print_history(void)
{
	unsigned int size = ARRAY_SIZE(history), i;

	for (i = nr_history > size ? nr_history - size : 0; i < nr_history; i++)
		ksft_print_msg("%s\n", history[i % size]);
}

static void write_file(const char *path, const char *format, int number)
{
	/* O_TRUNC is what empties the trace */
	int fd = open(path, O_WRONLY | O_TRUNC);

	VFIO_ASSERT_GT(dprintf(fd, format, number), 0, "Cannot write %s\n", path);
	close(fd);
}

static void random_fault(void)
{
	fault = no_fault;
	if (fail_nth_fd < 0)
		return;
	switch (any(10)) {
	case 0 ... 3:
		fault.nth = 1 + any(any(2) ? 6 : 40);
		break;
	case 4:
		fault.nth = 1 + any(40);
		/* fall through */
	case 5:
		fault.pages = any(any(2) ? 3 : 12);
		break;
	}
}

static void begin_fault(void)
{
	if (fault.pages >= 0) {
		write_file(DEBUGFS "fail_page_alloc/space", "%d", fault.pages);
		write_file(DEBUGFS "fail_page_alloc/times", "%d", 1);
		write_file("/proc/thread-self/make-it-fail", "%d", 1);
	}
	if (fault.nth)
		dprintf(fail_nth_fd, "%u", fault.nth);
}

static void end_fault(int ret)
{
	int err = errno, left;
	char text[16] = "";
	FILE *file;

	fault_hit = page_fault_hit = false;
	if (fault.nth) {
		/* Reads as 0 if it was used up */
		VFIO_ASSERT_GT(pread(fail_nth_fd, text, sizeof(text) - 1, 0), 0);
		VFIO_ASSERT_EQ(pwrite(fail_nth_fd, "0", 1, 0), 1);
		fault_hit = !atoi(text);
	}
	if (fault.pages >= 0) {
		write_file("/proc/thread-self/make-it-fail", "%d", 0);
		file = fopen(DEBUGFS "fail_page_alloc/times", "r");
		page_fault_hit = fscanf(file, "%d", &left) == 1 && !left;
		fclose(file);
		write_file(DEBUGFS "fail_page_alloc/times", "%d", 0);
	}
	fault = no_fault;
	fault_hit |= page_fault_hit;
	stats.injected += fault_hit;
	stats.injected_failed += fault_hit && ret;
	if (fault_hit)
		log_step("the fault came, returned %d", ret);
	errno = err;
}

/* A call with the faults asked for, once */
#define faulty(call) ({			\
	int __ret;			\
					\
	begin_fault();			\
	__ret = (call);			\
	end_fault(__ret);		\
	__ret;				\
})

/* Containers and IOAS */

static int open_group(const char *bus, const char *device)
{
	char path[128], link[256] = "";

	snprintf(path, sizeof(path), "/sys/bus/%s/devices/%s/iommu_group", bus, device);
	VFIO_ASSERT_GT(readlink(path, link, sizeof(link) - 1), 0, "No %s\n", path);
	snprintf(path, sizeof(path), "/dev/vfio/%s", strrchr(link, '/') + 1);
	return open(path, O_RDWR);
}

static void set_iommu(struct space *space)
{
	unsigned long type = space == &spaces[V1] ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU;

	space->has_iommu = !faulty(ioctl(space->iommu.container_fd, VFIO_SET_IOMMU, type));
	VFIO_ASSERT_TRUE(space->has_iommu || fault_hit);
}

static u32 allocate_ioas(void)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };

	ioctl_assert(iommufd, IOMMU_IOAS_ALLOC, &alloc);
	return alloc.out_ioas_id;
}

static void destroy(u32 id)
{
	struct iommu_destroy args = { .size = sizeof(args), .id = id };

	if (id)
		ioctl_assert(iommufd, IOMMU_DESTROY, &args);
}

/* An mdev has no IOMMU. It keeps the container and its mappings while no other device is there. */
static void open_space(struct space *space, bool with_mdev)
{
	struct iommu_test_cmd access = {
		.size = sizeof(access), .op = IOMMU_TEST_OP_CREATE_ACCESS,
		.create_access.flags = MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES,
	};

	*space = (struct space){ .name = space->name, .mdev_group = -1, .access = -1 };
	INIT_LIST_HEAD(&space->iommu.dma_regions);
	if (!is_type1(space)) {
		space->iommu.iommufd = iommufd;
		space->iommu.ioas_id = access.id = allocate_ioas();
		space->has_iommu = true;
		/* Without CONFIG_IOMMUFD_TEST there are none. */
		if (!ioctl(iommufd, IOMMU_TEST_CMD, &access))
			space->access = access.create_access.out_access_fd;
		return;
	}
	space->iommu.container_fd = open("/dev/vfio/vfio", O_RDWR);
	if (!with_mdev)
		return;
	space->mdev_group = open_group("mdev", mdevs[space - spaces]);
	ioctl_assert(space->mdev_group, VFIO_GROUP_SET_CONTAINER, &space->iommu.container_fd);
	set_iommu(space);
}

/* Releases what is mapped, too */
static void close_space(struct space *space)
{
	if (!is_type1(space))
		iommu_unmap_all(&space->iommu);
	close(is_type1(space) ? space->mdev_group : space->access);
	if (is_type1(space))
		close(space->iommu.container_fd);
	else
		destroy(space->iommu.ioas_id);
	while (space->nr_maps)
		forget(space, 0);
}

/* Map and unmap */

static bool map(struct space *space, struct mapping map)
{
	bool taken = find(space, map.iova, map.size);
	struct vfio_iommu_type1_dma_map type1 = {
		.argsz = sizeof(type1), .vaddr = (u64)pool + map.va, .iova = map.iova,
		.size = map.size, .flags = VFIO_DMA_MAP_FLAG_READ,
	};
	struct iommu_ioas_map ioas = {
		.size = sizeof(ioas), .user_va = type1.vaddr, .iova = map.iova, .length = map.size,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE,
		.ioas_id = space->iommu.ioas_id,
	};
	int ret;

	if (map.writable) {
		type1.flags |= VFIO_DMA_MAP_FLAG_WRITE;
		ioas.flags |= IOMMU_IOAS_MAP_WRITEABLE;
	}
	log_step("map %s iova %#lx size %#lx va %#lx %s", space->name, map.iova, map.size, map.va,
		 map.writable ? "rw" : "ro");
	ret = faulty(is_type1(space) ? ioctl(space->iommu.container_fd, VFIO_IOMMU_MAP_DMA, &type1) :
				       ioctl(iommufd, IOMMU_IOAS_MAP, &ioas));
	VFIO_ASSERT_TRUE(ret ? fault_hit || (taken && errno == EEXIST) : !taken);
	map.object = ++stats.maps;
	if (!ret)
		add(space, map);
	return !ret;
}

/* A part of a mapping a second time, with the same pinned pages */
static void copy(struct space *from, struct mapping map, u64 start, struct space *to, u64 iova,
		 size_t size)
{
	struct iommu_ioas_copy ioas = {
		.size = sizeof(ioas), .src_ioas_id = from->iommu.ioas_id, .src_iova = start,
		.dst_ioas_id = to->iommu.ioas_id, .dst_iova = iova, .length = size,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 (map.writable ? IOMMU_IOAS_MAP_WRITEABLE : 0),
	};
	bool taken = find(to, iova, size);
	int ret;

	map.va += start - map.iova;
	map.iova = iova;
	map.size = size;
	log_step("copy %s iova %#lx size %#lx to %s iova %#lx", from->name, start, size, to->name,
		 iova);
	ret = faulty(ioctl(iommufd, IOMMU_IOAS_COPY, &ioas));
	VFIO_ASSERT_TRUE(ret ? fault_hit || (taken && errno == EEXIST) : !taken);
	if (!ret)
		add(to, map);
}

/* SIZE 0: all. What it does has to be known before: it cannot fail, whatever allocations do. */
static void unmap(struct space *space, u64 iova, u64 size)
{
	u64 last = size ? iova + size - 1 : UINT64_MAX, unmapped, want = 0;
	struct mapping *first = find(space, iova, 1), *end = find(space, last, 1);
	struct dma_region region = { .iova = iova, .size = size };
	bool bisected = false;
	int ret, error = 0;
	unsigned int i = 0;

	if (space == &spaces[V2] && size &&
	    ((first && first->iova != iova) || (end && end->iova + end->size - 1 != last))) {
		bisected = true;
		error = -EINVAL;
	}
	while (i < space->nr_maps && space->maps[i].iova + space->maps[i].size - 1 < iova)
		i++;
	while (i < space->nr_maps && space->maps[i].iova <= last && !bisected) {
		/* v1 takes all of what begins in the range, and stops at what does not */
		bisected = space->maps[i].iova < iova ||
			   (!is_type1(space) && space->maps[i].iova + space->maps[i].size - 1 > last);
		if (!bisected)
			want += forget(space, i);
	}
	if (!is_type1(space) && size && (bisected || !want))
		error = -ENOENT;

	/* The first one of iommufd's is in the lookup of the IOAS, nothing has happened by then. */
	if (!is_type1(space) && fault.nth)
		fault.nth++;
	log_step("unmap %s iova %#lx size %#lx", space->name, iova, size);
	INIT_LIST_HEAD(&region.link);
	ret = faulty(size ? __iommu_unmap(&space->iommu, &region, &unmapped) :
			    __iommu_unmap_all(&space->iommu, &unmapped));
	stats.unmaps++;
	VFIO_ASSERT_EQ(ret, error);
	VFIO_ASSERT_EQ(ret ? want : unmapped, want);
}

/* Accesses inside the kernel */

/* Pins pages as a driver in the kernel does. They have to be those of the process. */
static bool pin(struct space *space, u64 iova, size_t size, bool write)
{
	const struct mapping *map = find(space, iova, 1), *part;
	struct iommu_test_cmd access = {
		.size = sizeof(access), .op = IOMMU_TEST_OP_ACCESS_PAGES, .id = space->access,
		.access_pages.flags = write ? MOCK_FLAGS_ACCESS_WRITE : 0,
		.access_pages.iova = iova, .access_pages.length = size,
	};
	bool allowed = true, one_piece = true;
	u64 next, end = iova + size;

	for (next = iova; next < end; next = part->iova + part->size) {
		part = find(space, next, 1);
		if (!part)
			break;
		allowed &= part->writable || !write;
		one_piece &= part->va - map->va == part->iova - map->iova;
	}
	if (next >= end && one_piece)
		access.access_pages.uptr = (uintptr_t)pool + map->va + (iova - map->iova);
	log_step("pin %s iova %#lx size %#lx %s", space->name, iova, size, write ? "rw" : "ro");
	stats.accesses++;
	if (faulty(ioctl(iommufd, IOMMU_TEST_CMD, &access))) {
		VFIO_ASSERT_TRUE(fault_hit || (errno == ENOENT && next < end) ||
				 (errno == EPERM && !allowed));
		return false;
	}
	VFIO_ASSERT_TRUE(next >= end && allowed);
	pins[nr_pins++] = (struct pin) {
		.space = space, .iova = iova, .end = end,
		.id = access.access_pages.out_access_pages_id,
	};
	return true;
}

static void unpin(unsigned int i)
{
	struct iommu_test_cmd access = {
		.size = sizeof(access), .op = IOMMU_TEST_OP_DESTROY_ACCESS_PAGES,
		.id = pins[i].space->access, .destroy_access_pages.access_pages_id = pins[i].id,
	};

	log_step("unpin %s iova %#lx", pins[i].space->name, pins[i].iova);
	VFIO_ASSERT_EQ(faulty(ioctl(iommufd, IOMMU_TEST_CMD, &access)), 0);
	pins[i] = pins[--nr_pins];
}

/* Reads or writes as a driver in the kernel does, the long way: by page tables if it is in one. */
static void access_map(struct space *space, const struct mapping *map, size_t offset, size_t size,
		       bool write)
{
	static u8 buffer[256 * PAGE];
	u8 *va = pool + map->va + offset;
	struct iommu_test_cmd access = {
		.size = sizeof(access), .op = IOMMU_TEST_OP_ACCESS_RW, .id = space->access,
		.access_rw.iova = map->iova + offset, .access_rw.uptr = (uintptr_t)buffer,
		.access_rw.flags = MOCK_ACCESS_RW_SLOW_PATH | (write ? MOCK_ACCESS_RW_WRITE : 0),
	};
	size_t i;
	int ret;

	size = access.access_rw.length = min(size, sizeof(buffer));
	for (i = 0; i < size; i++)
		buffer[i] = write ? ~va[i] : 0;
	log_step("%s %s iova %#lx size %#lx", write ? "write" : "read", space->name,
		 map->iova + offset, size);
	stats.accesses++;
	ret = faulty(ioctl(iommufd, IOMMU_TEST_CMD, &access));
	VFIO_ASSERT_TRUE(!ret || fault_hit || (errno == EPERM && write && !map->writable));
	VFIO_ASSERT_TRUE(ret || !memcmp(va, buffer, size), "It did not go to memory\n");
	if (write)
		memcpy(va, pristine + (va - pool), size);
	VFIO_ASSERT_EQ(memcmp(pool, pristine, POOL_SIZE), 0, "It changed other memory\n");
}

/* Devices */

/* The end of vfio_pci_device_init(), which as a whole cannot fail and go on, and the driver */
static void start(struct device *device)
{
	struct vfio_pci_device *pci = device->pci;
	struct vfio_region_info *bar = &pci->bars[0].info;

	*bar = pci->config_space = (struct vfio_region_info){ .argsz = sizeof(*bar) };
	pci->config_space.index = VFIO_PCI_CONFIG_REGION_INDEX;
	ioctl_assert(pci->fd, VFIO_DEVICE_GET_REGION_INFO, &pci->config_space);
	ioctl_assert(pci->fd, VFIO_DEVICE_GET_REGION_INFO, bar);
	pci->bars[0].vaddr = mmap(NULL, bar->size, PROT_READ | PROT_WRITE, MAP_SHARED, pci->fd,
				  bar->offset);
	VFIO_ASSERT_NE(pci->bars[0].vaddr, MAP_FAILED);
	memset(pci->msi_eventfds, 0xff, sizeof(pci->msi_eventfds));
	vfio_pci_driver_probe(pci);
	/* Mapped nowhere: edu's driver keeps nothing there for the device. */
	pci->driver.region.size = PAGE;
	pci->driver.region.vaddr = calloc_assert(1, PAGE);
	vfio_pci_driver_init(pci);
	device->source = NOTHING;
}

/* VT-d shows where a device's page table is, elsewhere it is 0. */
static unsigned long page_table(const struct device *device)
{
	unsigned long table = 0;
	char path[100];
	FILE *file;

	snprintf(path, sizeof(path), DEBUGFS "iommu/intel/%s/domain_translation_struct",
		 device->bdf);
	file = fopen(path, "r");
	if (!file)
		return 0;
	if (fscanf(file, "Device %*s @%lx", &table) != 1)
		VFIO_FAIL("Cannot read %s\n", path);
	fclose(file);
	return table;
}

static bool two_domains(void)
{
	return devices[0].space == devices[1].space && is_type1(devices[0].space) &&
	       page_table(&devices[0]) != page_table(&devices[1]);
}

static void close_device(struct device *device)
{
	struct vfio_device_detach_iommufd_pt detach = { .argsz = sizeof(detach) };
	struct space *space = device->space;
	u32 hwpt = device->hwpt;
	void *region;

	if (!device->pci)
		return;
	/*
	 * Of two domains, vfio frees the first with all that is mapped in it. This debugging takes
	 * it for mapped for ever.
	 */
	if (debug_pagealloc && two_domains())
		unmap(space, 0, 0);
	log_step("close %s in %s", device->bdf, space->name);
	if (device->bound && space != &spaces[NOWHERE] && any(2))
		VFIO_ASSERT_EQ(faulty(ioctl(device->pci->fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach)), 0);
	fault = no_fault;
	region = device->pci->driver.region.vaddr;
	vfio_pci_device_cleanup(device->pci);
	free(region);
	*device = (struct device){ .bdf = device->bdf, .space = &spaces[NOWHERE] };
	destroy(hwpt);
	if (is_type1(space) && space->mdev_group < 0 && !used(space)) {
		space->has_iommu = false;
		while (space->nr_maps)
			forget(space, 0);
	}
}

static bool attach_type1(struct device *device, struct space *space)
{
	struct vfio_pci_device *pci = vfio_pci_device_alloc(device->bdf, &space->iommu);
	int *container = &space->iommu.container_fd;

	pci->group_fd = open_group("pci", device->bdf);
	if (faulty(ioctl(pci->group_fd, VFIO_GROUP_SET_CONTAINER, container))) {
		VFIO_ASSERT_TRUE(fault_hit || errno == EFAULT);
		goto failed;
	}
	if (!space->has_iommu) {
		random_fault();
		set_iommu(space);
		if (!space->has_iommu)
			goto failed;
	}
	__vfio_pci_group_get_device_fd(pci, device->bdf, NULL);
	device->pci = pci;
	device->space = space;
	start(device);
	return true;

failed:
	close(pci->group_fd);
	vfio_pci_device_free(pci);
	return false;
}

/* With a page table of its own or the one that the IOAS shares, in place of one if there is one. */
static bool attach_iommufd(struct device *device, struct space *space, bool own)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach), .pt_id = space->iommu.ioas_id,
	};
	struct iommu_hwpt_alloc hwpt = { .size = sizeof(hwpt), .pt_id = space->iommu.ioas_id };
	bool ok;

	if (!device->pci) {
		device->pci = vfio_pci_device_alloc(device->bdf, &space->iommu);
		vfio_pci_cdev_open(device->pci, device->bdf);
		ioctl_assert(device->pci->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind);
		device->id = bind.out_devid;
		device->bound = true;
		start(device);
	}
	if (own) {
		hwpt.dev_id = device->id;
		ok = !faulty(ioctl(iommufd, IOMMU_HWPT_ALLOC, &hwpt));
		VFIO_ASSERT_TRUE(ok || fault_hit);
		if (!ok)
			return false;
		attach.pt_id = hwpt.out_hwpt_id;
		random_fault();
	}
	ok = !faulty(ioctl(device->pci->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	VFIO_ASSERT_TRUE(ok || fault_hit);
	/* The one that is not used (any more) */
	destroy(ok ? device->hwpt : hwpt.out_hwpt_id);
	if (ok) {
		device->hwpt = hwpt.out_hwpt_id;
		device->space = space;
	}
	return ok;
}

/* Through the device */

/* Where it writes to for IOVA, NULL if nowhere */
static u8 *target(const struct device *device, u64 iova)
{
	const struct mapping *map = find(device->space, iova, 1);

	return map && map->writable ? pool + map->va + (iova - map->iova) : NULL;
}

/*
 * Where to copy from to IOVA, and in DATA what is there. If something is mapped it is that, best
 * another page, or the copy would change nothing.
 */
static u64 choose_source(const struct device *device, u64 iova, const u8 **data)
{
	struct space *space = device->space;
	u8 *to = target(device, iova);
	const struct mapping *map;
	u64 source = NOTHING;
	unsigned int i;

	*data = NULL;
	for (i = 0; i <= space->nr_maps; i++) {
		u64 page = i ? space->maps[i - 1].iova : device->source;

		map = find(space, page, 1);
		if (!map)
			continue;
		source = page;
		*data = pristine + map->va + (page - map->iova);
		if (!to || (to - pool) / PAGE != (*data - pristine) / PAGE)
			break;
	}
	return source;
}

/* Writes SIZE bytes at IOVA, and looks at all memory unless they are seen where they belong. */
static void check_write(struct device *device, u64 iova, size_t size)
{
	const u8 *data;
	u64 source = choose_source(device, iova, &data);
	size_t i, n, seen = 0;
	u8 *va;

	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(device->pci, source, iova, size), 0);
	stats.dmas++;
	for (i = 0; i < size; i += n) {
		n = min(PAGE - (iova + i) % PAGE, size - i);
		va = target(device, iova + i);
		if (!va)
			continue;
		VFIO_ASSERT_EQ(memcmp(va, data + i, n), 0,
			       "%s wrote to IOVA %#lx of %s, but it is not in memory\n",
			       device->bdf, iova + i, device->space->name);
		memcpy(va, pristine + (va - pool), n);
		/* Not if it was the same before */
		if (memcmp(va, data + i, n))
			seen += n;
	}
	if (seen == size || !memcmp(pool, pristine, POOL_SIZE))
		return;
	for (i = 0; pool[i] == pristine[i]; i++)
		;
	VFIO_FAIL("%s wrote to %#lx bytes at IOVA %#lx of %s and changed page %#lx of memory\n",
		  device->bdf, size, iova, device->space->name, i / PAGE);
}

static void check_ends(struct device *device, const struct mapping map)
{
	check_write(device, map.iova, DMA_SIZE);
	check_write(device, map.iova + map.size - PAGE, DMA_SIZE);
}

/* All edges of all mappings, through all devices */
static void check_edges(void)
{
	unsigned int d, i;

	for (d = 0; d < ARRAY_SIZE(devices); d++) {
		for (i = 0; i < devices[d].space->nr_maps; i++) {
			devices[d].source = any_page(&devices[d].space->maps[i]);
			check_ends(&devices[d], devices[d].space->maps[i]);
		}
	}
}
