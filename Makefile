MACHINE ?= x86_64-vtd
VARIANT ?= test
JOB ?= test
# what is measured is never a test kernel
PERF = $(or $(filter perf%,$(VARIANT)),perf-o2)
# as lib/lib.sh has it
CACHE = $(or $(IOVA_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/iova-to-phys-length)
CROSS = $(filter arm64 riscv64 s390x,$(firstword $(subst -, ,$(MACHINE))))
# needs GROUP...: asks before it installs what is missing; then linux/ is made
needs = lib/packages --ask tree $(1)
guest = $(call needs,build boot $(CROSS) $(1)) && tree/apply
review = $(call needs,build text review $(1)) && tree/apply

.PHONY: help bench scaling native latency profile clients readme test machines kunit stress faults \
	test-each-patch test-each-part review review-arch review-clang tree export roundtrip range-diff parts mbox \
	applies kernel boot packages lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | awk -F '\t' '{ printf "make %-16s %s\n", $$1, $$2 }'
	@echo "KERNEL=/path: your own kernel tree as the base. MACHINE=: one of machines/."
	@echo "VARIANT=perf: measure kernels built with -Os, not -O2. JOB=: one of guest/job-*, for make boot."

bench: ## build the plain and the patched kernel, measure both, print the table, write results/
	$(call guest,bench)
	bench/bench $(MACHINE) $(PERF)
	bench/report.py pages
	bench/report.py show $(MACHINE)-$(PERF)

scaling: ## measure unmap from 64 MiB to 1 TiB (the base to BASE_GIB=64), write results/
	$(call guest,bench)
	bench/scaling $(MACHINE) $(PERF)

native: ## measure map, unmap and lookups in ns of this CPU, in User Mode Linux; write results/
	$(call guest,bench)
	bench/native
	bench/lookup
	bench/report.py pages

latency: ## measure other containers and ways to unmap, and how long nothing else runs; write results/
	$(call guest,bench)
	bench/latency um
	bench/latency x86_64-vtd
	bench/report.py pages

profile: ## measure where the instructions of unmap go, write results/
	$(call guest)
	bench/profile $(MACHINE) $(PERF)
	bench/report.py pages

clients: ## start and kill QEMU and DPDK on VFIO with both kernels, write results/
	$(call guest,bench)
	bench/clients x86_64-vtd-clients
	bench/report.py pages

readme: ## write the generated tables of README.md, docs/ and the cover letter
	bench/report.py pages

test: ## build and run all tests; ends with "N passed, N failed" (MACHINE=: those that boot it)
	$(call guest,text $(if $(filter file,$(origin MACHINE)),arm64))
	tests/run

machines: ## the guest tests on every machine with known results; ends with a table (hours)
	$(call needs,build boot arm64 riscv64 s390x) && tree/apply
	tests/machines

kunit: ## run the KUnit tests on seven architectures (ARCH=x86_64: on one)
	$(call guest,kunit)
	ARCHES="$(or $(ARCH),all)" tests/kunit

stress: ## random maps, unmaps and hot attaches under KASAN (SEED=, ITERATIONS= for a long run)
	$(call guest)
	VARIANT=test-kasan SEED=$(SEED) ITERATIONS=$(or $(ITERATIONS),3000) tests/stress

faults: ## inject each fault of faults/, see which test finds it
	$(call guest)
	faults/run

test-each-patch: ## guest tests and KUnit at every patch; hours (FROM=, TO=: patch numbers)
	$(call guest)
	tests/at-each $$(seq $(or $(FROM),1) $(or $(TO),$$(ls series/*.patch | wc -l)))

test-each-part: ## guest tests and KUnit at the last patch of each part
	$(call guest)
	tests/at-each $$(tree/parts | awk 'NR > 1 { print $$4 }')

review: ## every patch as a maintainer would: W=1, sparse, checkpatch, kernel-doc, coccicheck
	$(call review)
	review/run

review-arch: ## W=1 and sparse in each of review/configs, base against series (ARCHES="x86_64 ...")
	$(call review)
	review/arch $(ARCHES)

review-clang: ## the same with clang, for x86_64 and arm64
	$(call review,clang)
	LLVM=-19 review/arch x86_64 arm64

tree: ## make linux/: the pinned base with series/ on branch series
	$(call needs)
	tree/apply

export: ## write the commits of linux/ to series/, and the tables that depend on it
	tree/export
	bench/report.py pages

roundtrip: tree ## see that series/ applies and agrees with linux/ byte for byte
	tree/roundtrip

range-diff: ## show what linux/ changes in series/ since the last make tree or make export
	git -C linux range-diff base..refs/series/commit base..series

parts: ## list the parts of the series, for the trees that would take them
	tree/parts

mbox: tree ## write the series as an mbox (PART=: one part, OUT=: where to, BRANCH=signed)
	PART=$(PART) OUT=$(OUT) BRANCH=$(BRANCH) post/mbox

applies: ## show which patches apply to the kernels of post/kernels
	lib/packages --ask tree
	post/applies

kernel: ## build the kernel in linux/ and print where it is
	$(call guest)
	vm/kernel $(MACHINE) $(VARIANT) series

boot: kernel ## boot it and run guest/job-JOB in it
	vm/boot $(MACHINE) "$$(vm/kernel $(MACHINE) $(VARIANT) series)" $(JOB) $(CACHE)/boot

packages: ## install everything that any of these needs
	lib/packages tree build boot arm64 riscv64 s390x kunit bench text review clang

lint: ## run shellcheck on every shell script
	$(call needs,build)
	tests/run lint

clean: ## remove kernels, build objects, programs and logs from the cache (linux/ and the base stay)
	rm -rf $(addprefix $(CACHE)/,src* build kernels rootfs boot check logs) $(CACHE)/tmp.* .tmp.*
