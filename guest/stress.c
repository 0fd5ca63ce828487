// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random maps, unmaps, copies, hot attaches and detaches in type1 containers (v1 and v2) and two
 * IOAS of one iommufd, with allocations failing in the middle. What a driver in the kernel may do
 * with an IOAS, iommufd's own test interface does: it pins pages, reads and writes. A model knows
 * what has to be mapped. After each step two devices write through the IOMMU and memory must look
 * as the model says; locked_vm and the number of pinned pages must be what follows from it.
 * Scenarios that random steps seldom come by go first.
 *
 * usage: stress SEED ITERATIONS BDF BDF MDEV MDEV   (same seed, same kernel, -icount: same run)
 */
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <linux/iommufd.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include <iommufd_test.h>

#include "stress/model.h"
#include "stress/operations.h"
#include "stress/random.h"

#define TRACING "/sys/kernel/tracing/"

static void skip(const char *test, const char *reason)
{
	ksft_test_result_code(KSFT_SKIP, test, "%s", reason);
}

/* Hits of the kprobe events the job has set, -1 without any */
static long lookups(void)
{
	FILE *file = fopen(TRACING "kprobe_profile", "r");
	long sum = -1, hits;

	while (file && fscanf(file, "%*s %ld %*d", &hits) == 1)
		sum = (sum < 0 ? 0 : sum) + hits;
	if (file)
		fclose(file);
	return sum;
}

/* SIZE bytes from START on in the memory of KIND, at an IOVA behind BASE */
static struct mapping map_kind(struct space *space, int kind, size_t start, size_t size, u64 offset)
{
	const struct mapping new = {
		.va = kind_start[kind] + start, .size = size, .iova = BASE + offset,
		.writable = true,
	};

	VFIO_ASSERT_TRUE(map(space, new));
	return new;
}

static struct device *attach(struct space *space)
{
	struct device *device = &devices[0];

	VFIO_ASSERT_TRUE(is_type1(space) ? attach_type1(device, space) :
					   attach_iommufd(device, space, false));
	check_counters();
	return device;
}

static void detach(void)
{
	close_device(&devices[0]);
	check_counters();
}

/* vfio_iommu_replay() pins and maps what was mapped before there was an IOMMU. */
static void test_replay(void)
{
	struct space *space = &spaces[V2];
	int round, kind;

	for (kind = 0; kind < NR_KINDS; kind++) {
		const size_t size = kind_sizes[kind] - PAGE;

		/* as large leaves, and as 4 KiB */
		map_kind(space, kind, PAGE, size, kind * 16 * MIB + PAGE);
		map_kind(space, kind, PAGE, size, kind * 16 * MIB + 8 * MIB + 2 * PAGE);
	}
	check_counters();
	for (round = 0; round < 2; round++) {
		attach(space);
		check_edges();
		detach();
	}
	unmap(space, 0, 0);
	ksft_test_result_pass("replay\n");
}

/* vfio_iommu_replay() fails in a second mapping, the memory of which is gone, and undoes it all. */
static bool check_replay_unwind(int kind)
{
	const struct mapping gone = { .va = POOL_SIZE, .size = PAGE, .iova = 1UL << 47 };
	struct space *space = &spaces[V2];
	long before, count;
	u64 runs;

	memory_check_layout(pool + kind_start[kind], kind_sizes[kind], MEMORY_IN_ORDER, &runs);
	map_kind(space, kind, 0, kind_sizes[kind], 0);
	VFIO_ASSERT_TRUE(map(space, gone));
	before = lookups();
	VFIO_ASSERT_FALSE(attach_type1(&devices[0], space));
	count = lookups() - before;
	check_counters();
	unmap(space, gone.iova, gone.size);
	attach(space);
	check_edges();
	detach();
	unmap(space, 0, 0);
	ksft_print_msg("replay unwind: %ld lookups%s for %lu pages in %lu runs\n", count,
		       before < 0 ? " (not counted)" : "", kind_sizes[kind] / PAGE, runs);
	return count <= (long)(2 + 2 * runs);
}

static void test_replay_unwind(void)
{
	/* Few long runs: page by page would show in the number of lookups. More than fit an array. */
	bool ok = check_replay_unwind(HUGETLB);

	ksft_test_result(check_replay_unwind(SCATTERED) && ok, "replay_unwind\n");
}

/*
 * Pages may be unpinned only when they are unmapped and the IOTLB is flushed. Nothing else would
 * notice if not, as long as nobody gets the page in between.
 */
static void test_order(struct space *space, const char *test)
{
	bool stale = false, ok = true, traced = !access(TRACING "events/order", F_OK);
	struct device *device = attach(space);
	unsigned long events = 0, unpins = 0;
	struct mapping mapped;
	char line[256];
	FILE *file;

	mapped = map_kind(space, SCATTERED, 0, 600 * PAGE, 0);
	check_edges();
	if (traced) {
		write_file(TRACING "trace", "\n", 0);
		write_file(TRACING "events/order/enable", "%d", 1);
	}
	unmap(space, mapped.iova, mapped.size);
	/* Both ends are in the IOTLB if that was not flushed. */
	check_ends(device, mapped);
	if (traced)
		write_file(TRACING "events/order/enable", "%d", 0);
	detach();
	if (!traced) {
		skip(test, "no kprobe events");
		return;
	}
	file = fopen(TRACING "trace", "r");
	while (fgets(line, sizeof(line), file)) {
		if (strstr(line, ": unmap: "))
			stale = true;
		else if (strstr(line, ": flush: "))
			stale = false;
		else if (strstr(line, ": unpin: ")) {
			/* A page before there was any unmap, or behind one that was not flushed */
			ok &= events && !stale;
			unpins++;
		} else
			continue;
		events++;
	}
	fclose(file);
	ksft_print_msg("%s: %lu events, %lu unpins\n", test, events, unpins);
	ksft_test_result(ok && unpins, "%s\n", test);
}

/* Memory of each kind in three mappings, one right behind the other, without the middle one */
static void check_neighbours(struct space *space)
{
	struct device *device = attach(space);
	size_t start, size, part;
	int kind, i;

	for (kind = 0; kind < NR_KINDS; kind++) {
		/* also in the middle of a leaf */
		part = kind_sizes[kind] / 4 + 3 * PAGE;
		for (i = 0, start = 0; i < 3; i++, start += size) {
			size = i < 2 ? part : kind_sizes[kind] - start;
			map_kind(space, kind, start, size, kind_start[kind] + start);
		}
	}
	for (kind = 0; kind < NR_KINDS; kind++) {
		const u64 iova = BASE + kind_start[kind] + kind_sizes[kind] / 2;
		const struct mapping middle = *find(space, iova, 1);

		unmap(space, middle.iova, middle.size);
		check_counters();
		check_edges();
		check_ends(device, middle);
	}
	unmap(space, 0, 0);
	check_counters();
	detach();
}

static void test_neighbours(void)
{
	check_neighbours(&spaces[V2]);
	check_neighbours(&spaces[IOAS0]);
	ksft_test_result_pass("neighbours\n");
}

static void pin_pages(struct space *space, u64 iova, size_t pages)
{
	VFIO_ASSERT_TRUE(pin(space, iova, pages * PAGE, true));
}

static void unpin_and_check(unsigned int i)
{
	unpin(i);
	check_counters();
}

/* Pages that are in a page table and pinned by an access too: everything has to look at both. */
static void test_access(void)
{
	struct space *space = &spaces[IOAS0], *other = &spaces[IOAS1];
	struct mapping mapped;
	int kind;

	if (space->access < 0) {
		skip("access", "no CONFIG_IOMMUFD_TEST");
		return;
	}
	attach(space);
	for (kind = 0; kind < NR_KINDS; kind++) {
		mapped = map_kind(space, kind, 0, kind_sizes[kind] / 2 - PAGE, kind_start[kind]);
		access_map(space, &mapped, 5, mapped.size - 10, false);
		access_map(space, &mapped, 100 * PAGE + 5, 77 * PAGE, true);
		/* More pieces than are looked up at once, and not up to the end */
		pin_pages(space, mapped.iova + PAGE, 203);
		pin_pages(space, mapped.iova + 99 * PAGE, 77);
		check_counters();
		unpin_and_check(nr_pins - 2);
	}
	/* Without page table, back into one, and out of it while something else keeps some pages */
	detach();
	for (kind = 0; kind < NR_KINDS; kind++) {
		mapped = space->maps[kind];
		copy(space, mapped, mapped.iova + PAGE, other, mapped.iova, 200 * PAGE);
	}
	attach(other);
	check_edges();
	for (kind = 0; kind < NR_KINDS; kind++) {
		pin_pages(space, space->maps[kind].iova, 240);
		check_counters();
		unmap(other, space->maps[kind].iova, 200 * PAGE);
		check_counters();
		unpin_and_check(nr_pins - 1);
	}
	unmap(space, 0, 0);
	check_counters();
	detach();
	ksft_test_result_pass("access\n");
}

/*
 * The mock device of iommufd translates half pages, so that an area can begin in the middle of a
 * page. An access to the whole page finds it there, when it is a copy.
 */
static void test_half_page(void)
{
	struct space *space = &spaces[IOAS0];
	struct iommu_test_cmd mock = { .size = sizeof(mock), .op = IOMMU_TEST_OP_MOCK_DOMAIN };
	struct iommu_ioas_copy half = {
		.size = sizeof(half), .length = 300 * PAGE,
		.src_ioas_id = space->iommu.ioas_id, .src_iova = BASE + MOCK_PAGE_SIZE,
		.dst_iova = MOCK_APERTURE_START + MOCK_PAGE_SIZE,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
	};
	struct iommu other = { .iommufd = iommufd };
	struct mapping mapped;
	int kind;

	if (space->access < 0) {
		skip("half_page", "no CONFIG_IOMMUFD_TEST");
		return;
	}
	INIT_LIST_HEAD(&other.dma_regions);
	mock.id = half.dst_ioas_id = other.ioas_id = allocate_ioas();
	ioctl_assert(iommufd, IOMMU_TEST_CMD, &mock);
	for (kind = 0; kind < NR_KINDS; kind++) {
		mapped = map_kind(space, kind, 0, 301 * PAGE, 0);
		ioctl_assert(iommufd, IOMMU_IOAS_COPY, &half);
		VFIO_ASSERT_EQ(pinned(), 301UL);
		access_map(space, &mapped, 5, mapped.size - 10, false);
		access_map(space, &mapped, PAGE + 5, 77 * PAGE, true);
		/* The copy ends in the middle of a page, too. */
		pin_pages(space, BASE, 301);
		unpin(nr_pins - 1);
		pin_pages(space, BASE, 300);
		pin_pages(space, BASE + PAGE, 300);
		VFIO_ASSERT_EQ(pinned(), 301UL);
		unpin(nr_pins - 1);
		iommu_unmap_all(&other);
		check_counters();
		unpin_and_check(nr_pins - 1);
		unmap(space, 0, 0);
	}
	destroy(mock.mock_domain.out_stdev_id);
	destroy(mock.id);
	ksft_test_result_pass("half_page\n");
}

/* Unmap while two domains are there, and look what both devices see. */
static void check_two_domains(struct space *space)
{
	struct mapping middle;

	check_edges();
	while (space->nr_maps > 1) {
		middle = space->maps[1];
		unmap(space, middle.iova, middle.size);
		check_edges();
		check_write(&devices[0], middle.iova, DMA_SIZE);
		check_write(&devices[1], middle.iova, DMA_SIZE);
		check_counters();
	}
}

/*
 * Two IOMMU domains in one container. There is one IOMMU here, so that a second group joins the
 * first one's domain, unless that fails: then vfio tries a domain of its own and copies the
 * mappings to it. First each allocation fails, some of which make for a second domain. Then its
 * page tables fail, one after the other.
 */
static void test_two_domains(void)
{
	unsigned int n = 1, found = 0, tries = 0, failures = 0;
	struct space *space = &spaces[V2];
	bool ok, used_up, page_fault;
	int kind, pages = -1;
	long before;

	if (fail_nth_fd < 0 || access(DEBUGFS "iommu/intel", F_OK)) {
		skip("two_domains", "no fault injection or no debugfs of VT-d");
		return;
	}
	do {
		for (kind = 0; kind < NR_KINDS; kind++) {
			const size_t start = kind_start[kind] + PAGE, half = kind_sizes[kind] / 2;

			/* One right behind the other, of contiguous memory if that is to be had */
			map_kind(space, kind, 0, half, start);
			map_kind(space, kind, half, half, start + half);
		}
		attach(space);
		fault = (struct fault){ .nth = n, .pages = pages };
		before = lookups();
		ok = attach_type1(&devices[1], space);
		page_fault = page_fault_hit;
		used_up = fault_hit;
		failures += page_fault && !ok;
		if (ok && two_domains()) {
			if (pages < 0)
				ksft_print_msg("second domain with fail-nth %u, copied with %ld lookups\n",
					       n, lookups() - before);
			found = found ?: n;
			check_two_domains(space);
		}
		check_counters();
		close_device(&devices[1]);
		check_counters();
		check_edges();
		detach();
		unmap(space, 0, 0);
		if (pages < 0 && used_up) {
			n++;
			continue;
		}
		if (pages < 0 || page_fault) {
			pages++;
			tries = 0;
		} else {
			tries++;
		}
		/* How many allocations there are varies by one. */
		n = found + (tries == 1 ? -1 : tries == 2);
	} while (pages < 0 || (found && tries < 3));
	ksft_print_msg("%u page tables failed while copying to a second domain\n", failures);
	ksft_test_result(found && failures, "two_domains\n");
}

/* All of the pool, as often as said. Returns how much could be mapped. */
static int map_and_unmap(struct iommu *iommu, unsigned int rounds)
{
	struct dma_region regions[NR_KINDS];
	int kind, maps = 0;

	while (rounds--) {
		INIT_LIST_HEAD(&iommu->dma_regions);
		for (kind = 0; kind < NR_KINDS; kind++) {
			regions[kind] = (struct dma_region){
				.vaddr = pool + kind_start[kind], .iova = BASE + kind_start[kind],
				.size = kind_sizes[kind],
			};
			INIT_LIST_HEAD(&regions[kind].link);
			maps += !__iommu_map(iommu, &regions[kind]);
		}
		for (kind = 0; kind < NR_KINDS; kind++)
			__iommu_unmap(iommu, &regions[kind], NULL);
	}
	/* What the other process had unmapped is still in it. */
	INIT_LIST_HEAD(&iommu->dma_regions);
	return maps;
}

/* A process with memory of its own does it, with a device of its own if MODE says how. */
static pid_t start_process(struct iommu *iommu, const char *mode, unsigned int rounds)
{
	pid_t child;
	int status;

	VFIO_ASSERT_EQ(madvise(pool, POOL_SIZE, MADV_DONTFORK), 0);
	child = fork();
	VFIO_ASSERT_GE(child, 0);
	if (!child) {
		make_pool();
		if (mode) {
			iommu = iommu_init(mode);
			vfio_pci_device_init(devices[0].bdf, iommu);
		}
		VFIO_ASSERT_EQ(map_and_unmap(iommu, 1), NR_KINDS);
		raise(SIGSTOP);
		map_and_unmap(iommu, rounds);
		_exit(0);
	}
	VFIO_ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
	VFIO_ASSERT_TRUE(WIFSTOPPED(status));
	kill(child, SIGCONT);
	return child;
}

/* A process that maps and unmaps is killed somewhere, and leaves nothing pinned. */
static void test_killed(const char *mode, const char *test)
{
	int i, status;
	pid_t child;

	for (i = 0; i < 30; i++) {
		child = start_process(NULL, mode, -1);
		usleep(any(20000));
		kill(child, SIGKILL);
		VFIO_ASSERT_EQ(waitpid(child, &status, 0), child);
		VFIO_ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		check_counters();
	}
	ksft_test_result_pass("%s\n", test);
}

static void test_two_processes(struct space *space, const char *test)
{
	struct device *device = attach(space);
	pid_t child = start_process(&space->iommu, NULL, 200);
	int kind, maps, status;

	maps = map_and_unmap(&space->iommu, 200);
	VFIO_ASSERT_EQ(waitpid(child, &status, 0), child);
	VFIO_ASSERT_EQ(status, 0);
	/* Some fail, as the other process has mapped there. */
	ksft_print_msg("%s: %d of %d maps\n", test, maps, 200 * NR_KINDS);
	iommu_unmap_all(&space->iommu);
	check_counters();
	for (kind = 0; kind < NR_KINDS; kind++)
		check_write(device, BASE + kind_start[kind], DMA_SIZE);
	detach();
	ksft_test_result(maps > 0 && maps < 200 * NR_KINDS, "%s\n", test);
}

static void *remove_device(void *directory)
{
	char path[120];

	snprintf(path, sizeof(path), "%s/remove", (char *)directory);
	write_file(path, "%d", 1);
	return NULL;
}

/* A device is removed while it is mapped, is gone as soon as it is closed, and comes back. */
static void test_removed(struct space *space, const char *test)
{
	char directory[100], path[120];
	struct mapping middle;
	pthread_t thread;
	int kind, waits;

	snprintf(directory, sizeof(directory), "/sys/bus/pci/devices/%s", devices[0].bdf);
	attach(space);
	for (kind = 0; kind < NR_KINDS; kind++)
		map_kind(space, kind, 0, kind_sizes[kind], kind_start[kind]);
	VFIO_ASSERT_EQ(pthread_create(&thread, NULL, remove_device, directory), 0);
	/* It has begun, and waits for us. */
	snprintf(path, sizeof(path), "%s/vfio-dev", directory);
	for (waits = 0; !access(path, F_OK) && waits < 1000; waits++)
		usleep(1000);
	VFIO_ASSERT_EQ(access(directory, F_OK), 0);
	VFIO_ASSERT_NE(access(path, F_OK), 0);
	check_edges();
	middle = space->maps[1];
	unmap(space, middle.iova, middle.size);
	check_counters();
	check_ends(&devices[0], middle);
	detach();
	pthread_join(thread, NULL);
	VFIO_ASSERT_NE(access(directory, F_OK), 0);
	check_counters();

	write_file("/sys/bus/pci/rescan", "%d", 1);
	snprintf(path, sizeof(path), "%s/driver_override", directory);
	write_file(path, "vfio-pci", 0);
	write_file("/sys/bus/pci/drivers_probe", devices[0].bdf, 0);
	attach(space);
	check_edges();
	unmap(space, 0, 0);
	detach();
	ksft_test_result_pass("%s\n", test);
}

int main(int argc, char **argv)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	u64 pinned_before, locked_before;
	int i;

	if (argc != 7) {
		fprintf(stderr, "usage: stress SEED ITERATIONS BDF BDF MDEV MDEV\n");
		return 2;
	}
	ksft_print_header();
	ksft_set_plan(16);
	ksft_print_msg("seed %s, %s iterations\n", argv[1], argv[2]);
	random_state = strtoull(argv[1], NULL, 0) ?: 1;
	debug_pagealloc = getenv("DEBUG_PAGEALLOC");
	fail_nth_fd = getenv("FAULTS") ? open("/proc/thread-self/fail-nth", O_RDWR) : -1;
	iommufd = open("/dev/iommu", O_RDWR);
	setrlimit(RLIMIT_MEMLOCK, &unlimited);
	make_pool();
	pinned_before = pinned();
	locked_before = locked_vm();
	for (i = 0; i < 2; i++) {
		devices[i] = (struct device){ .bdf = argv[3 + i], .space = &spaces[NOWHERE] };
		mdevs[i] = argv[5 + i];
	}
	for (i = 0; i < NR_SPACES; i++)
		open_space(&spaces[i], true);
	atexit(print_history);

	test_replay();
	test_replay_unwind();
	test_order(&spaces[V2], "order_type1");
	test_order(&spaces[IOAS0], "order_iommufd");
	test_neighbours();
	test_access();
	test_half_page();
	test_two_domains();
	test_killed("vfio_type1v2_iommu", "killed_type1");
	test_killed("iommufd", "killed_iommufd");
	test_two_processes(&spaces[V2], "two_processes_type1");
	test_two_processes(&spaces[IOAS0], "two_processes_iommufd");
	test_removed(&spaces[V2], "removed_type1");
	test_removed(&spaces[IOAS0], "removed_iommufd");
	random_steps(strtoul(argv[2], NULL, 0));
	ksft_test_result_pass("random\n");

	for (i = 0; i < 2; i++)
		close_device(&devices[i]);
	for (i = 0; i < NR_SPACES; i++)
		close_space(&spaces[i]);
	nr_history = 0;
	ksft_print_msg("pinned pages: %lu, at start %lu; locked_vm: %lu pages, at start %lu\n",
		       pinned(), pinned_before, locked_vm(), locked_before);
	ksft_test_result(pinned() == pinned_before && locked_vm() == locked_before,
			 "nothing_pinned\n");
	ksft_finished();
}
