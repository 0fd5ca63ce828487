# shellcheck shell=bash disable=SC2154
# usage: . "$(dirname "$0")/random.sh"
# Random operations of guest/um/NAME.c in User Mode Linux, NAME the test's: OPERATIONS of them for each
# SEED, without and with FAIL percent of those that allocate made to fail, for each of $limits
# shellcheck source=tests/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

random_operations() {
	local git=(git -C "$linux") commit kernel operations=${OPERATIONS:-300000} limit fail seed name log said
	need git cpio gcc timeout
	linux_state
	make_work
	commit=$("${git[@]}" rev-parse --verify -q "${WHICH:-series}^{commit}") || die "no commit $WHICH"
	commit=$(native_commit "$commit") || die "guest/um/native.patch does not apply to $commit"
	kernel=$("$top/vm/kernel" um "${VARIANT:-random}" "$commit") || die "no kernel to boot"

	mkdir -p "$work/include/linux" "$work/root"
	"${git[@]}" show "$commit:include/uapi/linux/iommufd.h" >"$work/include/linux/iommufd.h"
	"${git[@]}" show "$commit:drivers/iommu/iommufd/iommufd_test.h" >"$work/include/iommufd_test.h"
	"${git[@]}" show "$commit:drivers/vfio/native.h" >"$work/include/native.h"
	gcc -O2 -static -Wall -Wextra -Werror -I "$work/include" -o "$work/root/init" \
		"$top/guest/um/$test_name.c"
	(cd "$work/root" && cpio -o -H newc -R 0:0 --quiet <<<init) >"$work/initramfs"

	# UML's memory is a file in TMPDIR, and on a disk that is slow.
	if [ -w /dev/shm ]; then export TMPDIR=${TMPDIR:-/dev/shm}; fi
	for limit in ${limits:-0}; do
		for fail in ${FAIL:-0 30}; do
			for seed in ${SEED:-1}; do
				name=${limits:+limit-$limit/}fail-$fail/seed-$seed
				log=$test_name-${name//\//-}
				run_logged "$log" timeout --foreground --kill-after=10 \
					"${TIMEOUT:-$((60 + operations / 1000))}" "$kernel/image" \
					mem=256M initrd="$work/initramfs" rdinit=/init panic=-1 \
					con=null con0=fd:0,fd:1 seccomp=auto loglevel=5 uml_dir="$work" \
					vfio_iommu_type1.allow_unsafe_interrupts=1 OPERATIONS="$operations" \
					SEED="$seed" LIMIT="$limit" FAIL="$fail" \
					KEEP_GOING="${KEEP_GOING:-0}" </dev/null || :
				said=$(tr -d '\r' <"$logs/$log.log" | sed -n "s/^$test_name: /# /p")
				if grep -q "^# [0-9]* operations, seed $seed: ok$" <<<"$said" &&
					"$top/vm/scan" "$logs/$log.log"; then
					ok "$name" "$operations operations"
				else
					not_ok "$name" "see $logs/$log.log"
				fi
				echo "${said:-# it said nothing}"
			done
		done
	done
}
