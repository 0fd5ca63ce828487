/* What lookup-loops.cocci has to find (found_*), and what not (fine_*). Only parsed, by tests/coccinelle. */

void found_do(void) { do { x = iommu_iova_to_phys(d, i); i += PAGE_SIZE; } while (i < e); }
void found_goto(void)
{
again:
	x = ops->iova_to_phys(ops, i);
	i += PAGE_SIZE;
	if (i < e)
		goto again;
}
void found_condition(void) { while (d->ops->iova_to_phys(d, i)) i += PAGE_SIZE; }
void found_macro(void) { for_each_sg(sgl, sg, n, i) { x = iommu_iova_to_phys(d, sg_dma_address(sg)); } }
void found_length_unused(void)
{
	size_t len;

	for (; i < e; i += PAGE_SIZE) {
		len = PAGE_SIZE;
		x = iommu_iova_to_phys_length(d, i, &len);
	}
}
static phys_addr_t fine_helper(struct iommu_domain *d, dma_addr_t i) { return iommu_iova_to_phys(d, i); }
void found_helper(void) { for (; i < e; i += PAGE_SIZE) x = fine_helper(d, i); }

void fine_twice(void) { x = iommu_iova_to_phys(d, i); y = iommu_iova_to_phys(d, j); }
void fine_length(void)
{
	size_t len;

	while (i < e) {
		len = e - i;
		x = ops->iova_to_phys_length(ops, i, &len);
		if (x == PHYS_ADDR_MAX) {
			i += PAGE_SIZE;
			continue;
		}
		i += len;
	}
}
static phys_addr_t fine_length_helper(struct iommu_domain *d, dma_addr_t i, size_t *len)
{
	return iommu_iova_to_phys_length(d, i, len);
}
void fine_length_by_helper(void) { size_t len; for (; i < e; i += len) x = fine_length_helper(d, i, &len); }
void fine_runs(void) { while (done < n) done += iommu_iova_to_phys_runs(d, i + done, n - done, runs, 16); }
