MACHINE ?= x86_64-vtd
VARIANT ?= test
# what bench measures is never a test kernel
BENCH = $(or $(filter perf%,$(VARIANT)),perf)
JOB ?= test
# everything a bench or a test run needs, installed as the first step
PACKAGES = scripts/packages tree build boot $(filter arm64 s390x,$(firstword $(subst -, ,$(MACHINE))))
# as lib.sh has it
CACHE = $(or $(IOVA_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/iova-to-phys-length)

.PHONY: help bench profile scaling kunit readme test stress faults check check-arch clang check-self bisect-boot tree export check-series parts parts-test mbox send-preview sign range-diff kernel boot packages lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | awk -F '\t' '{ printf "make %-14s %s\n", $$1, $$2 }'
	@echo "KERNEL=/path uses your own kernel tree as the base; MACHINE= is one of machines/; VARIANT= and JOB= choose for kernel and boot."

bench: ## build the plain and the patched kernel, measure both, print the table, write results/ (VARIANT=perf-o2: with -O2)
	$(PACKAGES) bench
	scripts/tree
	scripts/bench $(MACHINE) $(BENCH)
	scripts/plot $(MACHINE)-$(BENCH)
	scripts/readme
	scripts/table $(MACHINE)-$(BENCH)

profile: ## say where the instructions of unmap go, before and after, beside a lower bound; write results/
	$(PACKAGES)
	scripts/tree
	scripts/profile $(MACHINE) $(BENCH)

scaling: ## measure unmap from 64 MiB to 1 TiB (the base to BASE_GIB=64), write results/
	$(PACKAGES) bench
	scripts/tree
	scripts/scaling $(MACHINE) $(BENCH)
	scripts/scaling-plot $(MACHINE)-$(BENCH)

readme: ## put the tables of results/ into README.md, docs/machines.md and the cover letter, there also the parts and the diffstat
	scripts/readme

test: ## build and run all checks; ends with "N passed, N failed" (MACHINE=: only those that boot that machine)
	$(PACKAGES) text $(if $(filter file,$(origin MACHINE)),arm64)
	scripts/tree
	scripts/test

kunit: ## run the KUnit tests on every architecture with drivers of its own (ARCH=um, x86_64, i386, arm, arm64, s390 or powerpc: one of them)
	$(PACKAGES) kunit
	scripts/tree
	ARCHES="$(or $(ARCH),all)" checks/kunit

stress: ## random maps, unmaps and hot attaches under KASAN, with faults (SEED=, ITERATIONS= for a long run)
	$(PACKAGES)
	scripts/tree
	VARIANT=test-kasan SEED=$(SEED) ITERATIONS=$(or $(ITERATIONS),3000) checks/stress

faults: ## see which planted fault is found by what (builds a kernel with KASAN and the faults in it, and KUnit once for each in the lookup)
	$(PACKAGES)
	scripts/tree
	scripts/lookup-faults
	scripts/faults

check: ## every patch as a maintainer would: applies, W=1, sparse, checkpatch, kernel-doc, coccicheck, its message (CHECKS="text docs cocci build")
	scripts/packages tree build text check
	scripts/tree
	scripts/check

check-arch: ## compile base and series for eight architectures with W=1 and sparse, say what is new (ARCHES="x86_64 i386 ...")
	scripts/packages tree build text check
	scripts/tree
	scripts/check-arch $(ARCHES)

clang: ## the same with clang, for x86_64 and arm64
	scripts/packages tree build text check clang
	scripts/tree
	LLVM=-19 scripts/check-arch x86_64 arm64

check-self: ## plant faults in patches, see that make check finds them
	scripts/packages tree build text check
	scripts/tree
	scripts/test check-text check-build

bisect-boot: ## build, boot and KUnit-test linux/ at every patch; hours (FROM=, TO=, STEP=: patch numbers)
	$(PACKAGES)
	scripts/tree
	FROM=$(FROM) TO=$(TO) STEP=$(STEP) scripts/bisect-boot

tree: ## make linux/: the pinned base with series/ on branch series
	scripts/packages tree
	scripts/tree

export: ## write the commits of linux/ to series/, and what the cover letter says about them
	scripts/export
	scripts/readme

check-series: tree ## check that series/ applies and agrees with linux/ byte for byte
	scripts/roundtrip

parts: ## list the parts of the series, for the trees that would take them
	scripts/parts

parts-test: ## run guest tests and KUnit at the last commit of each part (PART=: only that one; long, goes on where it stopped)
	$(PACKAGES)
	scripts/tree
	scripts/parts-test $(PART)

mbox: ## write the series as an mbox for b4 or git am (PART=: only one part of it, OUT=: where to, SERIES=: signed copies)
	scripts/packages tree
	scripts/tree
	PART=$(PART) OUT=$(OUT) SERIES=$(SERIES) scripts/mbox

send-preview: ## show what would go to whom, part by part; sends nothing (PART=, SERIES=)
	scripts/packages tree
	scripts/tree
	PART=$(PART) SERIES=$(SERIES) scripts/send-preview

sign: ## for the person who posts it: copies with your name and Signed-off-by in OUT=signed, after showing what that certifies
	scripts/packages tree
	scripts/tree
	OUT=$(OUT) scripts/sign

range-diff: ## show what linux/ changes in the committed series/ (REVISION=, default HEAD)
	scripts/range-diff $(REVISION)

kernel: ## build the kernel in linux/ and print where it is
	$(PACKAGES)
	scripts/tree
	scripts/kernel $(MACHINE) $(VARIANT) series

boot: kernel ## boot it and run guest/job-JOB in it
	scripts/boot $(MACHINE) "$$(scripts/kernel $(MACHINE) $(VARIANT) series)" $(JOB) $(CACHE)/boot

packages: ## install everything that any of these needs
	$(PACKAGES) arm64 s390x kunit bench text check clang dev

lint: ## run shellcheck on every shell script
	scripts/packages dev
	scripts/lint

clean: ## remove built kernels, build objects, programs and logs from the cache (linux/ and the base stay)
	rm -rf $(addprefix $(CACHE)/,src src.index build kernels rootfs boot check logs) $(CACHE)/tmp.* .tmp.*
