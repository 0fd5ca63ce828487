// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random operations on two IOAS of one iommufd: maps of memory in order, scattered and of a memfd,
 * copies of pieces of them, pins, reads and writes through accesses, unmaps, mock domains that come
 * and go, limits of locked memory. A model says what each operation has to return, where each IOVA
 * leads, how often each page is pinned and how many are accounted for. After a few hundred
 * operations all is closed, in any order, and no pin may be left. A WARN is a failure. The /init of
 * tests/iommufd-random.
 *
 * Kernel command line: OPERATIONS=n SEED=n, LIMIT=n for small limits of iommufd's temporary memory,
 * FAIL=n for the percentage of operations in which an allocation, or what iommufd lets fail, fails,
 * KEEP_GOING=1 to go on after a failure
 */
#define NAME "iommufd-random"
#include "random.h"
#include <linux/vfio.h>

#include <iommufd_test.h>

#define NR_IOAS 2
#define MAX_AREAS 40
#define MAX_PIECES 8
#define MAX_DOMAINS 4
#define MAX_DEVICES 3
#define MAX_ACCESSES 4
#define MAX_ITEMS 12
#define MAX_PAGES 512UL
#define WINDOW (16UL << 20) /* of the IOVAs, from MOCK_APERTURE_START */

/* struct iopt_pages of the kernel */
struct pages {
	uint8_t *va; /* of its first page */
	uint64_t address; /* the same as iommufd knows it: a file's starts at 0 */
	size_t npages;
	bool writable;
	int users;
	bool pinned[MAX_PAGES + 1]; /* for nr_pinned() */
};

struct area {
	uint64_t iova, length, start; /* start: in pages, in bytes */
	struct pages *pages;
	int prot;
};

struct item {
	uint32_t id;
	uint64_t iova, length;
};

static struct ioas {
	uint32_t id;
	size_t granule; /* what IOVAs, offsets and lengths are multiples of */
	bool small; /* nothing larger than a page is mapped, so areas may be cut */
	int nareas;
	struct area areas[MAX_AREAS]; /* sorted by iova */
} ioases[NR_IOAS];

static struct domain {
	uint32_t id;
	struct ioas *ioas; /* NULL: there is none here */
	bool huge, automatic;
	int users;
} domains[MAX_DOMAINS];

static struct device {
	uint32_t stdev, idev;
	struct domain *domain; /* NULL: there is none here */
} devices[MAX_DEVICES];

static struct access {
	int fd;
	struct ioas *ioas; /* NULL: there is none here */
	bool pins;
	int nitems;
	struct item items[MAX_ITEMS];
} accesses[MAX_ACCESSES];

static int iommufd;
static uint64_t limit;
static uint8_t buffer[(MAX_PAGES + 2) * PAGE];

/* ---- the model ---- */

static uint64_t last_of(const struct area *area)
{
	return area->iova + area->length - 1;
}

static uint8_t *area_va(const struct area *area, uint64_t iova)
{
	return area->pages->va + area->start + (iova - area->iova);
}

static bool overlaps(uint64_t start, uint64_t length, uint64_t start2, uint64_t length2)
{
	return start < start2 + length2 && start2 < start + length;
}

static int nr_domains(const struct ioas *ioas)
{
	int n = 0;

	for (int i = 0; i < MAX_DOMAINS; i++)
		n += domains[i].ioas == ioas;
	return n;
}

static struct domain *free_domain(void)
{
	for (int i = 0; i < MAX_DOMAINS; i++)
		if (!domains[i].ioas)
			return &domains[i];
	return NULL;
}

static size_t domain_page(const struct domain *domain)
{
	return domain->huge ? PAGE : MOCK_PAGE_SIZE;
}

static size_t alignment_of(const struct ioas *ioas)
{
	size_t alignment = ioas->small ? PAGE : 1;

	for (int i = 0; i < MAX_DOMAINS; i++)
		if (domains[i].ioas == ioas && domain_page(&domains[i]) > alignment)
			alignment = domain_page(&domains[i]);
	for (int i = 0; i < MAX_ACCESSES; i++)
		if (accesses[i].ioas == ioas && accesses[i].pins)
			alignment = PAGE;
	return alignment;
}

static bool areas_aligned(const struct ioas *ioas, size_t alignment)
{
	for (int i = 0; i < ioas->nareas; i++) {
		const struct area *area = &ioas->areas[i];

		if ((area->iova | area->length | area->start) % alignment)
			return false;
	}
	return true;
}

static bool outside_aperture(uint64_t iova, uint64_t length)
{
	return iova < MOCK_APERTURE_START || iova + length - 1 > MOCK_APERTURE_LAST;
}

static bool reserved(const struct ioas *ioas, uint64_t iova, uint64_t length)
{
	if (!outside_aperture(iova, length))
		return false;
	for (int i = 0; i < MAX_DOMAINS; i++)
		if (domains[i].ioas == ioas && !domains[i].huge)
			return true;
	return false;
}

static struct area *find_area(struct ioas *ioas, uint64_t iova)
{
	for (int i = 0; i < ioas->nareas; i++)
		if (ioas->areas[i].iova <= iova && iova <= last_of(&ioas->areas[i]))
			return &ioas->areas[i];
	return NULL;
}

static bool is_mapped(const struct ioas *ioas, uint64_t iova, uint64_t length)
{
	for (int i = 0; i < ioas->nareas; i++)
		if (overlaps(iova, length, ioas->areas[i].iova, ioas->areas[i].length))
			return true;
	return false;
}

static void add_area(struct ioas *ioas, const struct area *area)
{
	int i = ioas->nareas++;

	for (; i && ioas->areas[i - 1].iova > area->iova; i--)
		ioas->areas[i] = ioas->areas[i - 1];
	ioas->areas[i] = *area;
	area->pages->users++;
}

static void put_pages(struct pages *pages)
{
	if (!pages->users)
		free(pages);
}

static void remove_area(struct ioas *ioas, struct area *area)
{
	struct pages *pages = area->pages;

	ioas->nareas--;
	memmove(area, area + 1, (uint8_t *)&ioas->areas[ioas->nareas] - (uint8_t *)area);
	pages->users--;
	put_pages(pages);
}

/* The mock's accesses let go of what is unmapped. */
static void drop_items(const struct ioas *ioas, uint64_t iova, uint64_t length)
{
	for (int i = 0; i < MAX_ACCESSES; i++) {
		struct access *access = &accesses[i];

		for (int j = 0; access->ioas == ioas && j < access->nitems; j++)
			if (overlaps(iova, length, access->items[j].iova, access->items[j].length))
				access->items[j--] = access->items[--access->nitems];
	}
}

static bool is_accessed(const struct ioas *ioas, const struct area *area)
{
	for (int i = 0; i < MAX_ACCESSES; i++)
		for (int j = 0; accesses[i].ioas == ioas && j < accesses[i].nitems; j++)
			if (overlaps(area->iova, area->length, accesses[i].items[j].iova,
				     accesses[i].items[j].length))
				return true;
	return false;
}

/* Does an access hold the page that is at va, through this area? */
static bool page_accessed(const struct ioas *ioas, const struct area *area, const uint8_t *va)
{
	for (int i = 0; i < MAX_ACCESSES; i++) {
		for (int j = 0; accesses[i].ioas == ioas && j < accesses[i].nitems; j++) {
			const struct item *item = &accesses[i].items[j];
			uint64_t first = item->iova > area->iova ? item->iova : area->iova;
			uint64_t last = item->iova + item->length - 1;

			if (last > last_of(area))
				last = last_of(area);
			if (first <= last && va + PAGE > area_va(area, first) &&
			    va <= area_va(area, last))
				return true;
		}
	}
	return false;
}

/* Each struct iopt_pages pins a page once, whoever uses it. */
static unsigned int pins_of(const uint8_t *va)
{
	const struct pages *seen[NR_IOAS * MAX_AREAS];
	int nseen = 0;

	for (int i = 0; i < NR_IOAS; i++) {
		int n = nr_domains(&ioases[i]);

		for (int j = 0; j < ioases[i].nareas; j++) {
			const struct area *area = &ioases[i].areas[j];
			int k = 0;

			if (va + PAGE <= area_va(area, area->iova) ||
			    va > area_va(area, last_of(area)))
				continue;
			if (!n && !page_accessed(&ioases[i], area, va))
				continue;
			while (k < nseen && seen[k] != area->pages)
				k++;
			if (k == nseen)
				seen[nseen++] = area->pages;
		}
	}
	return nseen;
}

static unsigned long mark_pinned(const struct area *area, uint64_t iova, uint64_t last)
{
	unsigned long n = 0;

	if (iova < area->iova)
		iova = area->iova;
	if (last > last_of(area))
		last = last_of(area);
	for (uint64_t i = (area->start + (iova - area->iova)) / PAGE;
	     iova <= last && i <= (area->start + (last - area->iova)) / PAGE; i++) {
		n += !area->pages->pinned[i];
		area->pages->pinned[i] = true;
	}
	return n;
}

static unsigned long nr_pinned(void)
{
	unsigned long n = 0;

	for (int i = 0; i < NR_IOAS; i++)
		for (int j = 0; j < ioases[i].nareas; j++)
			memset(ioases[i].areas[j].pages->pinned, 0, MAX_PAGES + 1);
	for (int i = 0; i < NR_IOAS; i++)
		for (int j = 0; nr_domains(&ioases[i]) && j < ioases[i].nareas; j++)
			n += mark_pinned(&ioases[i].areas[j], 0, UINT64_MAX);
	for (int i = 0; i < MAX_ACCESSES; i++) {
		struct ioas *ioas = accesses[i].ioas;

		for (int j = 0; ioas && j < accesses[i].nitems; j++) {
			const struct item *item = &accesses[i].items[j];

			for (int k = 0; k < ioas->nareas; k++)
				n += mark_pinned(&ioas->areas[k], item->iova,
						 item->iova + item->length - 1);
		}
	}
	return n;
}

static void check_pins(const char *when)
{
	unsigned long want = nr_pinned(), pinned = pins_left() - lost;
	unsigned long accounted = number_behind(read_file("/proc/self/status"), "VmPin:") / 4;

	if (pinned != want || accounted != want)
		differs("%s %ld pages are pinned, %ld accounted for, expected %lu", when, pinned,
			accounted, want);
}

/* In the three below the model is as it would be after an operation. */
static bool exceeds(unsigned long before)
{
	unsigned long after = nr_pinned();

	return after > before && after > memlock;
}

static bool areas_exceed(struct ioas *ioas, const struct area *areas, int n)
{
	unsigned long before = nr_pinned();
	bool exceeded;

	if (!nr_domains(ioas))
		return false;
	memcpy(&ioas->areas[ioas->nareas], areas, n * sizeof(*areas));
	ioas->nareas += n;
	exceeded = exceeds(before);
	ioas->nareas -= n;
	return exceeded;
}

static bool item_exceeds(struct access *access, uint64_t iova, uint64_t length)
{
	unsigned long before = nr_pinned();
	bool exceeded;

	access->items[access->nitems++] = (struct item){ .iova = iova, .length = length };
	exceeded = exceeds(before);
	access->nitems--;
	return exceeded;
}

static bool domain_exceeds(struct ioas *ioas)
{
	unsigned long before = nr_pinned();
	struct domain *domain = free_domain();
	bool exceeded;

	domain->ioas = ioas;
	exceeded = exceeds(before);
	domain->ioas = NULL;
	return exceeded;
}

/* What adding a domain to the IOAS has to return */
static int expect_domain(const struct ioas *ioas, bool huge)
{
	size_t alignment = huge ? PAGE : MOCK_PAGE_SIZE;

	if (alignment > alignment_of(ioas) && !areas_aligned(ioas, alignment))
		return -EADDRINUSE;
	for (int i = 0; !huge && i < ioas->nareas; i++)
		if (outside_aperture(ioas->areas[i].iova, ioas->areas[i].length))
			return -EADDRINUSE;
	for (int i = 0; i < ioas->nareas; i++) {
		const struct area *area = &ioas->areas[i];

		if (in_gap(area_va(area, area->iova), area->length))
			return -EFAULT;
	}
	return 0;
}

/* What adding an access to the IOAS has to return */
static int expect_access(const struct ioas *ioas, bool pins)
{
	return !pins || alignment_of(ioas) == PAGE || areas_aligned(ioas, PAGE) ? 0 : -EADDRINUSE;
}

static uint64_t roundup_pow2(uint64_t n)
{
	return n > 1 ? 1UL << (64 - __builtin_clzl(n - 1)) : 1;
}

/* What mapping these pieces one after another has to return */
static int expect_map(const struct ioas *ioas, bool fixed, uint64_t iova, uint64_t length,
		      const struct area *pieces, int n, int prot)
{
	size_t alignment = alignment_of(ioas);
	uint64_t at = fixed ? iova : 0;

	if (length % alignment || !length)
		return -EINVAL;
	if (fixed) {
		if (iova % alignment || reserved(ioas, iova, length))
			return -EINVAL;
		if (is_mapped(ioas, iova, length))
			return -EEXIST;
	} else {
		uint64_t address = pieces[0].pages->address + pieces[0].start;
		uint64_t most = roundup_pow2(length);

		if (address && (address & -address) < most)
			most = address & -address;
		if ((most < PAGE ? most : PAGE) < alignment)
			return -EINVAL;
	}
	for (int i = 0; i < n; at += pieces[i++].length) {
		if ((prot & IOMMU_IOAS_MAP_WRITEABLE) && !pieces[i].pages->writable)
			return -EPERM;
		if ((pieces[i].start | at | pieces[i].length) % alignment)
			return -EINVAL;
	}
	for (int i = 0; nr_domains(ioas) && i < n; i++) {
		if (in_gap(pieces[i].pages->va + pieces[i].start, pieces[i].length))
			return -EFAULT;
	}
	return 0;
}

/* ---- operations ---- */

static int plain_call(unsigned long request, void *argument)
{
	return ioctl(iommufd, request, argument) ? -errno : 0;
}

/*
 * If something is made to fail, the operation fails as a whole: then it has to do in a second try
 * what it would have done in the first.
 */
static int call(unsigned long request, void *argument)
{
	char saved[sizeof(struct iommu_test_cmd)];
	uint32_t size = *(uint32_t *)argument;
	int rc;

	operation++;
	memcpy(saved, argument, size);
	if (!arm_failure())
		return plain_call(request, argument);
	rc = plain_call(request, argument);
	if (!disarm_failure(rc))
		return rc;
	/* An unmap needs no memory; what stops it has unmapped what is before it. */
	if (request == IOMMU_IOAS_UNMAP)
		check("IOAS_UNMAP, made to fail,", rc, -ENOENT);
	else
		check_pins("after a failure");
	memcpy(argument, saved, size);
	return plain_call(request, argument);
}

static int test(uint32_t op, uint32_t id, struct iommu_test_cmd *cmd)
{
	cmd->size = sizeof(*cmd);
	cmd->op = op;
	cmd->id = id;
	return call(IOMMU_TEST_CMD, cmd);
}

static struct ioas *some_ioas(void)
{
	return &ioases[rnd(NR_IOAS)];
}

static struct area *some_area(struct ioas *ioas)
{
	return ioas->nareas ? &ioas->areas[rnd(ioas->nareas)] : NULL;
}

static struct access *some_access(bool pins)
{
	int start = rnd(MAX_ACCESSES);

	for (int i = 0; i < MAX_ACCESSES; i++) {
		struct access *access = &accesses[(start + i) % MAX_ACCESSES];

		if (access->ioas && access->pins == pins)
			return access;
	}
	return NULL;
}

static struct domain *some_domain(void)
{
	int start = rnd(MAX_DOMAINS);

	for (int i = 0; i < MAX_DOMAINS; i++)
		if (domains[(start + i) % MAX_DOMAINS].ioas)
			return &domains[(start + i) % MAX_DOMAINS];
	return NULL;
}

static struct device *some_device(void)
{
	int start = rnd(MAX_DEVICES);

	for (int i = 0; i < MAX_DEVICES; i++)
		if (devices[(start + i) % MAX_DEVICES].domain)
			return &devices[(start + i) % MAX_DEVICES];
	return NULL;
}

static struct domain *automatic_domain(const struct ioas *ioas)
{
	for (int i = 0; i < MAX_DOMAINS; i++)
		if (domains[i].ioas == ioas && domains[i].automatic)
			return &domains[i];
	return NULL;
}

static struct domain *new_domain(struct ioas *ioas, uint32_t id, bool huge, bool automatic)
{
	struct domain *domain = free_domain();

	*domain = (struct domain){ .id = id, .ioas = ioas, .huge = huge, .automatic = automatic };
	domains_made++;
	return domain;
}

static size_t some_length(size_t granule)
{
	static const uint16_t most[] = { 2, 8, 8, 32, 64, MAX_PAGES };
	size_t length = (1 + rnd(most[rnd(ARRAY_SIZE(most))])) * PAGE;

	if (granule < PAGE && one_in(2))
		length -= rnd(PAGE / granule) * granule;
	return length;
}

static int some_prot(void)
{
	static const int prots[] = { IOMMU_IOAS_MAP_READABLE, IOMMU_IOAS_MAP_WRITEABLE };

	if (one_in(8))
		return prots[rnd(2)];
	return IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
}

static uint64_t some_iova(struct ioas *ioas, uint64_t length)
{
	struct area *area = some_area(ioas);
	size_t step = one_in(4) ? ioas->granule : PAGE;

	switch (rnd(100)) {
	case 0: /* outside the mock's aperture */
		return MOCK_APERTURE_START - (1 + rnd(64)) * PAGE;
	case 1:
		return MOCK_APERTURE_LAST + 1UL - rnd(length / PAGE + 2) * PAGE;
	case 2 ... 29: /* behind another area, or before it */
		if (area)
			return last_of(area) + 1;
		break;
	case 30 ... 34:
		if (area && area->iova > length)
			return area->iova - length;
		break;
	}
	return MOCK_APERTURE_START + rnd(WINDOW / step) * step;
}

/* The IOVA that was chosen for us */
static void check_chosen(const struct ioas *ioas, uint64_t iova, uint64_t length)
{
	if (iova % alignment_of(ioas) || reserved(ioas, iova, length) ||
	    is_mapped(ioas, iova, length))
		differs("the chosen IOVA %lx, length %lx, is not free", iova, length);
}

static void map(void)
{
	struct ioas *ioas = some_ioas();
	int kind = rnd(NR_REGIONS), prot = some_prot(), rc, want;
	bool exceeded, fixed = !one_in(4), file = kind == MEMFD && !one_in(3);
	uint64_t length = some_length(ioas->granule), offset, iova = 0;
	struct area area = {};

	if (ioas->nareas == MAX_AREAS)
		return;
	offset = rnd((REGION - length) / PAGE + 1) * PAGE;
	if (ioas->granule < PAGE && one_in(2))
		offset += rnd(PAGE / ioas->granule) * ioas->granule;
	if (offset + length > REGION)
		offset = REGION - length;
	if (!file && one_in(100)) /* into the gap */
		offset = REGION - length + (1 + rnd(8)) * PAGE;
	if (fixed)
		iova = some_iova(ioas, length);

	area.pages = calloc(1, sizeof(*area.pages));
	area.pages->va = region[kind] + offset / PAGE * PAGE;
	area.pages->address = file ? offset / PAGE * PAGE : (uintptr_t)area.pages->va;
	area.pages->npages = (offset % PAGE + length + PAGE - 1) / PAGE;
	area.pages->writable = prot & IOMMU_IOAS_MAP_WRITEABLE;
	area.start = offset % PAGE;
	area.length = length;
	area.prot = prot;

	if (file) {
		struct iommu_ioas_map_file cmd = {
			.size = sizeof(cmd),
			.flags = prot | (fixed ? IOMMU_IOAS_MAP_FIXED_IOVA : 0),
			.ioas_id = ioas->id,
			.fd = memfd,
			.start = offset,
			.length = length,
			.iova = iova,
		};

		rc = call(IOMMU_IOAS_MAP_FILE, &cmd);
		area.iova = cmd.iova;
	} else {
		struct iommu_ioas_map cmd = {
			.size = sizeof(cmd),
			.flags = prot | (fixed ? IOMMU_IOAS_MAP_FIXED_IOVA : 0),
			.ioas_id = ioas->id,
			.user_va = (uintptr_t)region[kind] + offset,
			.length = length,
			.iova = iova,
		};

		rc = call(IOMMU_IOAS_MAP, &cmd);
		area.iova = cmd.iova;
	}
	want = expect_map(ioas, fixed, iova, length, &area, 1, prot);
	exceeded = areas_exceed(ioas, &area, 1);
	check_limited(file ? "IOAS_MAP_FILE" : "IOAS_MAP", rc, want, exceeded);
	if (rc || failed) {
		put_pages(area.pages);
		return;
	}
	mappings++;
	if (!fixed)
		check_chosen(ioas, area.iova, length);
	add_area(ioas, &area);
}

/* Some range of some area, perhaps on into its neighbours. False: the IOAS is empty. */
static bool some_range(struct ioas *ioas, uint64_t *iova, uint64_t *length)
{
	struct area *area = some_area(ioas), *next;
	size_t step = one_in(4) ? ioas->granule : PAGE, n;

	if (!area)
		return false;
	n = area->length / step;
	*iova = area->iova;
	*length = area->length;
	if (n < 2)
		return true;
	switch (rnd(8)) {
	case 0: /* all */
		return true;
	case 1 ... 3: /* one page */
		*iova += rnd(n) * step;
		*length = step;
		break;
	case 4 ... 5: /* from within on into what follows */
		*iova += rnd(n) * step;
		*length = last_of(area) + 1 - *iova;
		for (int i = rnd(3); i > 0; i--) {
			next = find_area(ioas, *iova + *length);
			if (!next)
				break;
			*length += i > 1 || next->length < 2 * step ?
					   next->length :
					   (1 + rnd(next->length / step - 1)) * step;
		}
		break;
	default:
		*iova += rnd(n) * step;
		*length = (1 + rnd((last_of(area) + 1 - *iova) / step)) * step;
		break;
	}
	if (one_in(50)) /* too far */
		*length += rnd(4) * PAGE;
	return true;
}

static void copy(void)
{
	struct ioas *from = some_ioas(), *to = some_ioas();
	struct iommu_ioas_copy cmd = { .size = sizeof(cmd),
				       .src_ioas_id = from->id,
				       .dst_ioas_id = to->id };
	struct area pieces[MAX_PIECES];
	uint64_t iova, length, at, left;
	int prot = some_prot(), n = 0, rc, want;
	bool fixed = !one_in(4), exceeded;

	if (!some_range(from, &iova, &length) || length > sizeof(buffer))
		return;
	if (from->granule < to->granule && !one_in(4)) {
		/* whole pages */
		struct area *area = find_area(from, iova);
		uint64_t skip = -(uintptr_t)area_va(area, iova) % PAGE;

		if (length < skip + PAGE)
			return;
		iova += skip;
		length = (length - skip) / PAGE * PAGE;
	}
	want = 0;
	for (at = iova, left = length; left; n++) {
		struct area *area = find_area(from, at);

		if (!area) {
			want = -ENOENT;
			break;
		}
		if (n == MAX_PIECES)
			return;
		pieces[n] = *area;
		pieces[n].start += at - area->iova;
		pieces[n].length = last_of(area) + 1 - at < left ? last_of(area) + 1 - at : left;
		pieces[n].prot = prot;
		at += pieces[n].length;
		left -= pieces[n].length;
	}
	if (to->nareas + n > MAX_AREAS)
		return;
	cmd.flags = prot | (fixed ? IOMMU_IOAS_MAP_FIXED_IOVA : 0);
	cmd.length = length;
	cmd.src_iova = iova;
	if (fixed)
		cmd.dst_iova = some_iova(to, length);
	if (!want)
		want = expect_map(to, fixed, cmd.dst_iova, length, pieces, n, prot);
	exceeded = areas_exceed(to, pieces, n);
	rc = call(IOMMU_IOAS_COPY, &cmd);
	check_limited("IOAS_COPY", rc, want, exceeded);
	if (rc || failed)
		return;
	mappings++;
	if (!fixed)
		check_chosen(to, cmd.dst_iova, length);
	for (int i = 0; i < n; i++) {
		pieces[i].iova = cmd.dst_iova;
		cmd.dst_iova += pieces[i].length;
		add_area(to, &pieces[i]);
	}
}

static int model_unmap(struct ioas *ioas, uint64_t iova, uint64_t last, uint64_t *unmapped)
{
	*unmapped = 0;
	for (int i = 0; i < ioas->nareas; i++) {
		struct area *area = &ioas->areas[i];

		if (last_of(area) < iova || area->iova > last)
			continue;
		if (area->iova < iova || last_of(area) > last)
			return -ENOENT;
		*unmapped += area->length;
		drop_items(ioas, area->iova, area->length);
		remove_area(ioas, area);
		i--;
	}
	return 0;
}

/* Makes iova the last one of an area. */
static int model_cut(struct ioas *ioas, uint64_t iova)
{
	struct area *area = find_area(ioas, iova), right;
	size_t alignment = alignment_of(ioas);

	if (!area || iova == area->iova || iova == last_of(area))
		return 0;
	if ((iova + 1) % alignment || (area->start + (iova + 1 - area->iova)) % alignment)
		return -EINVAL;
	if (is_accessed(ioas, area) || (nr_domains(ioas) && !ioas->small))
		return -EINVAL;
	right = *area;
	right.iova = iova + 1;
	right.length = last_of(area) - iova;
	right.start += right.iova - area->iova;
	area->length -= right.length;
	add_area(ioas, &right);
	return 0;
}

static void unmap_all(struct ioas *ioas)
{
	struct iommu_ioas_unmap cmd = { .size = sizeof(cmd),
					.ioas_id = ioas->id,
					.length = UINT64_MAX };
	int rc = call(IOMMU_IOAS_UNMAP, &cmd);
	uint64_t unmapped;

	check("IOAS_UNMAP of all", rc, model_unmap(ioas, 0, UINT64_MAX, &unmapped));
	if (cmd.length != unmapped)
		differs("IOAS_UNMAP of all unmapped %llx, expected %lx", cmd.length, unmapped);
}

static void unmap(void)
{
	struct ioas *ioas = some_ioas();
	struct iommu_ioas_unmap cmd = { .size = sizeof(cmd), .ioas_id = ioas->id };
	struct area *area = some_area(ioas);
	uint64_t iova, length, unmapped;
	int rc, want;

	if (!area)
		return;
	if (one_in(60)) {
		unmap_all(ioas);
		return;
	}
	iova = area->iova;
	length = area->length;
	switch (rnd(12)) {
	case 0 ... 1: /* several */
		length += rnd(WINDOW / 8);
		break;
	case 2:
		if (!some_range(ioas, &iova, &length))
			return;
		break;
	case 3:
		iova = MOCK_APERTURE_START + rnd(WINDOW);
		break;
	}
	if (ioas == &ioases[0] && ioas->small && ioas->nareas < MAX_AREAS - 2 && one_in(2)) {
		/* VFIO's way, which cuts areas, goes to the compatible IOAS. */
		struct vfio_iommu_type1_dma_unmap dma = { .argsz = sizeof(dma) };

		if (one_in(2) && !some_range(ioas, &iova, &length))
			return;
		dma.iova = iova;
		dma.size = length;
		rc = call(VFIO_IOMMU_UNMAP_DMA, &dma);
		want = model_cut(ioas, iova + length - 1);
		if (!want)
			want = model_cut(ioas, iova - 1);
		if (want)
			unmapped = length;
		else
			want = model_unmap(ioas, iova, iova + length - 1, &unmapped);
		check("VFIO_IOMMU_UNMAP_DMA", rc, want);
		if (dma.size != unmapped)
			differs("VFIO_IOMMU_UNMAP_DMA unmapped %llx, expected %lx", dma.size,
				unmapped);
		return;
	}
	cmd.iova = iova;
	cmd.length = length;
	rc = call(IOMMU_IOAS_UNMAP, &cmd);
	want = model_unmap(ioas, iova, iova + length - 1, &unmapped);
	if (!want && !unmapped)
		want = -ENOENT;
	check("IOAS_UNMAP", rc, want);
	if (!want && cmd.length != unmapped)
		differs("IOAS_UNMAP unmapped %llx, expected %lx", cmd.length, unmapped);
}

static void close_access(struct access *access)
{
	operation++;
	close(access->fd);
	access->ioas = NULL;
	access->nitems = 0;
}

static void change_access(void)
{
	struct access *access = &accesses[rnd(MAX_ACCESSES)];
	struct ioas *ioas = some_ioas();
	struct iommu_test_cmd cmd = {};
	int rc, want;

	if (!access->ioas) {
		bool pins = !one_in(4);

		cmd.create_access.flags = pins ? MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES : 0;
		want = expect_access(ioas, pins);
		rc = test(IOMMU_TEST_OP_CREATE_ACCESS, ioas->id, &cmd);
		check("CREATE_ACCESS", rc, want);
		if (!rc)
			*access = (struct access){ .fd = cmd.create_access.out_access_fd,
						   .ioas = ioas,
						   .pins = pins };
	} else if (one_in(3)) {
		close_access(access);
	} else if (one_in(3)) {
		cmd.access_replace_ioas.ioas_id = ioas->id;
		want = ioas == access->ioas ? 0 : expect_access(ioas, access->pins);
		check("ACCESS_REPLACE_IOAS",
		      test(IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, access->fd, &cmd), want);
		if (!want && ioas != access->ioas) {
			access->ioas = ioas;
			access->nitems = 0;
		}
	}
}

static bool may(int prot, bool writing)
{
	return prot & (writing ? IOMMU_IOAS_MAP_WRITEABLE : IOMMU_IOAS_MAP_READABLE);
}

static void pin(void)
{
	struct access *access = some_access(true);
	struct iommu_test_cmd cmd = {};
	uint8_t *va = NULL, *next = NULL;
	uint64_t iova, length, at;
	bool writing = one_in(2), straight = true, exceeded;
	int rc, want = 0;

	if (!access || access->nitems == MAX_ITEMS || !some_range(access->ioas, &iova, &length) ||
	    length > sizeof(buffer))
		return;
	for (at = iova; at < iova + length && !want;) {
		struct area *area = find_area(access->ioas, at);
		uint64_t bytes;

		if (!area) {
			want = -ENOENT;
			break;
		}
		bytes = last_of(area) + 1 - at;
		if ((area->start + (at - area->iova)) % PAGE ||
		    (bytes < iova + length - at && (area->start + area->length) % PAGE))
			want = -EINVAL;
		else if (!may(area->prot, writing) || (writing && !area->pages->writable))
			want = -EPERM;
		if (bytes > iova + length - at)
			bytes = iova + length - at;
		if (!va)
			va = area_va(area, at);
		else if (area_va(area, at) != next)
			straight = false;
		next = area_va(area, at) + bytes;
		if (!want && in_gap(area_va(area, at), bytes))
			want = -EFAULT;
		at += bytes;
	}
	cmd.access_pages.flags = writing ? MOCK_FLAGS_ACCESS_WRITE : 0;
	cmd.access_pages.iova = iova;
	cmd.access_pages.length = length;
	if (straight && iova % PAGE == 0) /* the mock compares the pages */
		cmd.access_pages.uptr = (uintptr_t)va;
	exceeded = item_exceeds(access, iova, length);
	rc = test(IOMMU_TEST_OP_ACCESS_PAGES, access->fd, &cmd);
	check_limited("ACCESS_PAGES", rc, want, exceeded);
	if (!rc)
		access->items[access->nitems++] = (struct item){
			.id = cmd.access_pages.out_access_pages_id, .iova = iova, .length = length
		};
}

static void unpin(void)
{
	struct access *access = some_access(true);
	struct iommu_test_cmd cmd = {};
	int i;

	if (!access || !access->nitems)
		return;
	i = rnd(access->nitems);
	cmd.destroy_access_pages.access_pages_id = access->items[i].id;
	check("DESTROY_ACCESS_PAGES", test(IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, access->fd, &cmd),
	      0);
	access->items[i] = access->items[--access->nitems];
}

/* An access reads or writes where the model says. All words of memory differ, see fill(). */
static void read_or_write(void)
{
	struct access *access = some_access(one_in(2));
	struct iommu_test_cmd cmd = {};
	uint64_t iova, length, at;
	bool writing = one_in(4);
	int rc, want = 0;

	if (!access || !some_range(access->ioas, &iova, &length) || length > sizeof(buffer))
		return;
	if (length > 64 && one_in(3)) { /* any byte will do */
		uint64_t cut = rnd(length - 1);

		iova += cut;
		length = 1 + rnd(length - cut);
	}
	if (length > 16 * PAGE && !one_in(8))
		length = 16 * PAGE - rnd(PAGE);
	for (at = iova; at < iova + length && !want;) {
		struct area *area = find_area(access->ioas, at);
		uint64_t bytes;

		if (!area) {
			want = -ENOENT;
			break;
		}
		bytes = last_of(area) + 1 - at;
		if (bytes > iova + length - at)
			bytes = iova + length - at;
		if (!may(area->prot, writing) || (writing && !area->pages->writable))
			want = -EPERM;
		else if (in_gap(area_va(area, at), bytes))
			want = -EFAULT;
		at += bytes;
	}
	if (writing && want) /* which part would be written is not modelled */
		writing = false, want = 1;
	for (uint64_t i = 0; writing && i < length; i += 8) {
		uint64_t word = prng * (i + 1) ^ operation << 32;

		memcpy(buffer + i, &word, 8);
	}
	cmd.access_rw.flags = (writing ? MOCK_ACCESS_RW_WRITE : 0) |
			      (one_in(4) ? 0 : MOCK_ACCESS_RW_SLOW_PATH);
	cmd.access_rw.iova = iova;
	cmd.access_rw.length = length;
	cmd.access_rw.uptr = (uintptr_t)buffer;
	rc = test(IOMMU_TEST_OP_ACCESS_RW, access->fd, &cmd);
	if (want != 1)
		check(writing ? "ACCESS_RW, writing" : "ACCESS_RW", rc, want);
	if (rc || failed)
		return;
	for (at = iova; at < iova + length;) {
		struct area *area = find_area(access->ioas, at);
		uint64_t bytes = last_of(area) + 1 - at;

		if (bytes > iova + length - at)
			bytes = iova + length - at;
		/* A page may be there twice, then what was written last is in it. */
		if ((!writing || bytes == length) &&
		    memcmp(buffer + (at - iova), area_va(area, at), bytes))
			differs("ACCESS_RW %s other data at %lx, %lx bytes",
				writing ? "wrote" : "read", at, bytes);
		at += bytes;
	}
}

/* The domain translates as the model says. */
static void check_map(void)
{
	struct domain *domain = some_domain();
	struct iommu_test_cmd cmd = {};
	uint64_t iova, length, step;
	struct area *area;
	int want = 0;

	if (!domain || !some_range(domain->ioas, &iova, &length))
		return;
	step = domain_page(domain);
	area = find_area(domain->ioas, iova);
	iova = iova / step * step;
	if (iova < area->iova)
		return;
	if (length > last_of(area) + 1 - iova)
		length = last_of(area) + 1 - iova;
	if (length > 32 * PAGE)
		length = 32 * PAGE;
	length = length / step * step;
	cmd.check_map.uptr = (uintptr_t)area_va(area, iova);
	if (!length)
		return;
	if (one_in(4)) { /* nothing is behind it */
		iova = last_of(area) + 1;
		length = step;
		cmd.check_map.uptr = (uintptr_t)area_va(area, area->iova);
		if (find_area(domain->ioas, iova))
			return;
		want = -EINVAL;
	}
	cmd.check_map.iova = iova;
	cmd.check_map.length = length;
	check("MD_CHECK_MAP", test(IOMMU_TEST_OP_MD_CHECK_MAP, domain->id, &cmd), want);
}

static void check_refs(void)
{
	struct area *area = some_area(some_ioas());
	struct iommu_test_cmd cmd = {};
	uint8_t *va;

	if (!area)
		return;
	va = area_va(area, area->iova + (one_in(3) ? 0 :
					 one_in(3) ? area->length - 1 :
						     rnd(area->length)));
	va = (uint8_t *)((uintptr_t)va & -PAGE);
	if (in_gap(va, PAGE))
		return;
	cmd.check_refs.uptr = (uintptr_t)va;
	cmd.check_refs.length = PAGE;
	cmd.check_refs.refs = pins_of(va);
	if (test(IOMMU_TEST_OP_MD_CHECK_REFS, 0, &cmd))
		differs("MD_CHECK_REFS: a page is not pinned %u times", cmd.check_refs.refs);
}

static void detach(struct device *device)
{
	struct domain *domain = device->domain;

	device->domain = NULL;
	if (!--domain->users && domain->automatic)
		domain->ioas = NULL;
}

static int destroy(uint32_t id)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };

	return call(IOMMU_DESTROY, &cmd);
}

/* A device and, if its IOAS has no domain that the kernel made by itself, one for it */
static void new_device(struct ioas *ioas)
{
	struct domain *domain = automatic_domain(ioas);
	struct iommu_test_cmd cmd = {};
	struct device *device = NULL;
	bool exceeded;
	int rc;

	for (int i = 0; i < MAX_DEVICES; i++)
		if (!devices[i].domain)
			device = &devices[i];
	if (!device || (!domain && !free_domain()))
		return;
	exceeded = !domain && domain_exceeds(ioas);
	may_fail = !domain; /* it would get another one */
	rc = test(IOMMU_TEST_OP_MOCK_DOMAIN, ioas->id, &cmd);
	may_fail = true;
	check_limited("MOCK_DOMAIN", rc, domain ? 0 : expect_domain(ioas, false), exceeded);
	if (rc || failed)
		return;
	if (!domain)
		domain = new_domain(ioas, cmd.mock_domain.out_hwpt_id, false, true);
	else if (cmd.mock_domain.out_hwpt_id != domain->id)
		differs("MOCK_DOMAIN is another one");
	domain->users++;
	*device = (struct device){ .stdev = cmd.mock_domain.out_stdev_id,
				   .idev = cmd.mock_domain.out_idev_id,
				   .domain = domain };
}

static void change_device(void)
{
	struct ioas *ioas = some_ioas();
	struct device *device = some_device();
	struct domain *domain = some_domain(), *old;
	bool exceeded = false;
	int rc;

	switch (rnd(10)) {
	case 0 ... 3:
		new_device(ioas);
		break;
	case 4:
		if (!device)
			return;
		check("IOMMU_DESTROY of a device", destroy(device->stdev), 0);
		detach(device);
		break;
	case 5 ... 6: {
		struct iommu_hwpt_selftest data = {
			.pagetable_type = one_in(2) ? MOCK_IOMMUPT_HUGE : MOCK_IOMMUPT_DEFAULT
		};
		struct iommu_hwpt_alloc cmd = {
			.size = sizeof(cmd),
			.pt_id = ioas->id,
			.data_type = IOMMU_HWPT_DATA_SELFTEST,
			.data_len = sizeof(data),
			.data_uptr = (uintptr_t)&data,
		};
		bool huge = data.pagetable_type == MOCK_IOMMUPT_HUGE;

		if (!device || !free_domain())
			return;
		cmd.dev_id = device->idev;
		exceeded = domain_exceeds(ioas);
		rc = call(IOMMU_HWPT_ALLOC, &cmd);
		check_limited(huge ? "HWPT_ALLOC, huge" : "HWPT_ALLOC", rc,
			      expect_domain(ioas, huge), exceeded);
		if (!rc)
			new_domain(ioas, cmd.out_hwpt_id, huge, false);
		break;
	}
	case 7:
		if (!domain)
			return;
		check("IOMMU_DESTROY of a domain", destroy(domain->id), domain->users ? -EBUSY : 0);
		if (!domain->users)
			domain->ioas = NULL;
		break;
	default: {
		struct iommu_test_cmd cmd = {};
		int want = 0;

		if (!device)
			return;
		if (one_in(3)) {
			domain = automatic_domain(ioas);
			if (!domain && !free_domain())
				return;
			if (!domain) {
				want = expect_domain(ioas, false);
				exceeded = domain_exceeds(ioas);
			}
			may_fail = !domain;
			cmd.mock_domain_replace.pt_id = ioas->id;
		} else {
			cmd.mock_domain_replace.pt_id = domain->id;
		}
		rc = test(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, device->stdev, &cmd);
		may_fail = true;
		check_limited("MOCK_DOMAIN_REPLACE", rc, want, exceeded);
		if (rc || failed)
			return;
		if (!domain)
			domain = new_domain(ioas, cmd.mock_domain_replace.pt_id, false, true);
		if (cmd.mock_domain_replace.pt_id != domain->id)
			differs("MOCK_DOMAIN_REPLACE gave another domain");
		old = device->domain;
		if (old != domain) {
			detach(device);
			device->domain = domain;
			domain->users++;
		}
		break;
	}
	}
}

static void new_ioas(struct ioas *ioas, size_t granule)
{
	struct iommu_ioas_alloc cmd = { .size = sizeof(cmd) };

	check("IOAS_ALLOC", call(IOMMU_IOAS_ALLOC, &cmd), 0);
	memset(ioas, 0, sizeof(*ioas));
	ioas->id = cmd.out_ioas_id;
	ioas->granule = granule;
}

static void change_ioas(void)
{
	struct ioas *ioas = &ioases[1];
	bool busy = nr_domains(ioas);
	uint64_t unmapped;

	for (int i = 0; i < MAX_ACCESSES; i++)
		busy |= accesses[i].ioas == ioas;
	check("IOMMU_DESTROY of an IOAS", destroy(ioas->id), busy ? -EBUSY : 0);
	if (busy || failed)
		return;
	model_unmap(ioas, 0, UINT64_MAX, &unmapped);
	new_ioas(ioas, ioas->granule);
}

static void change_limit(void)
{
	struct iommu_test_cmd cmd = {};

	if (!limit)
		return;
	/* 12 is the least that iommufd takes */
	cmd.memory_limit.limit = one_in(2) ? limit : 12 + rnd(4 * limit);
	check("SET_TEMP_MEMORY_LIMIT", test(IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, 0, &cmd), 0);
}

static void change_memlock(void)
{
	if (!unprivileged)
		return;
	set_memlock(one_in(4) ? UNLIMITED : nr_pinned() + rnd(300));
}

static void check_all_pins(void)
{
	check_pins("after a success");
}

static const struct operation operations[] = {
	{ map, 15 },	      { copy, 18 },	     { unmap, 13 },	  { pin, 14 },
	{ unpin, 8 },	      { read_or_write, 14 }, { check_map, 8 },	  { check_refs, 6 },
	{ change_access, 2 }, { change_device, 2 },  { change_limit, 1 },    { change_memlock, 2 },
	{ check_all_pins, 1 },
};

static void close_all(bool orderly)
{
	uint64_t unmapped;

	for (int i = 0; orderly && !failed && i < 40; i++) {
		struct access *access = &accesses[rnd(MAX_ACCESSES)];
		struct device *device = some_device();
		struct domain *domain = some_domain();

		switch (rnd(4)) {
		case 0:
			if (access->ioas)
				close_access(access);
			break;
		case 1:
			if (!device)
				break;
			check("IOMMU_DESTROY of a device", destroy(device->stdev), 0);
			detach(device);
			break;
		case 2:
			if (!domain || domain->users)
				break;
			check("IOMMU_DESTROY of a domain", destroy(domain->id), 0);
			domain->ioas = NULL;
			break;
		case 3:
			if (one_in(2))
				unmap_all(some_ioas());
			else
				unmap();
			break;
		}
	}
	if (orderly)
		close(iommufd);
	for (int i = 0; i < MAX_ACCESSES; i++)
		if (accesses[i].ioas)
			close_access(&accesses[i]);
	if (!orderly)
		close(iommufd);
	memset(devices, 0, sizeof(devices));
	memset(domains, 0, sizeof(domains));
	for (int i = 0; i < NR_IOAS; i++)
		model_unmap(&ioases[i], 0, UINT64_MAX, &unmapped);
}

static void episode(uint64_t end)
{
	size_t granule = one_in(16) ? 8 : one_in(2) ? MOCK_PAGE_SIZE : PAGE;

	iommufd = open("/dev/iommu", O_RDWR);
	if (iommufd < 0)
		die("open /dev/iommu");
	set_privilege(!one_in(4));
	set_memlock(UNLIMITED);
	if (unprivileged && one_in(2)) {
		struct iommu_option cmd = { .size = sizeof(cmd),
					    .option_id = IOMMU_OPTION_RLIMIT_MODE,
					    .op = IOMMU_OPTION_OP_SET,
					    .val64 = 1 };

		check("OPTION_RLIMIT_MODE", call(IOMMU_OPTION, &cmd), 0);
	}
	for (int i = 0; i < NR_IOAS; i++)
		new_ioas(&ioases[i], one_in(3) ? PAGE : granule);
	if (one_in(4)) {
		struct iommu_vfio_ioas cmd = { .size = sizeof(cmd),
					       .ioas_id = ioases[0].id,
					       .op = IOMMU_VFIO_IOAS_SET };

		check("VFIO_IOAS_SET", call(IOMMU_VFIO_IOAS, &cmd), 0);
		check("VFIO_SET_IOMMU", plain_call(VFIO_SET_IOMMU, (void *)VFIO_TYPE1_IOMMU), 0);
		ioases[0].small = true;
		ioases[0].granule = PAGE;
	}
	if (!one_in(4))
		new_device(some_ioas());
	while (operation < end && !failed) {
		run_some(operations, ARRAY_SIZE(operations));
		if (one_in(500))
			change_ioas();
		sometimes_read_kmsg();
	}
	close_all(one_in(2));
}

int main(void)
{
	start_random();
	limit = setting("LIMIT");
	return run_episodes(episode);
}
