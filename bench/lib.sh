# shellcheck shell=bash disable=SC2034,SC2154
# usage: . "$top/bench/lib.sh"
# Shared by what records results, for who has loaded a machine and set $variant

# common_conditions KERNEL: of every run, of which KERNEL is the series
common_conditions() {
	local git=(git -C "$linux")
	cat <<-END
		# date: $(date -u +%F)
		# base: $(sed -n 's/^package_version=//p' "$top/series/base") tree $("${git[@]}" rev-parse 'base^{tree}')
		# series: $("${git[@]}" rev-list --count base..HEAD) patches, tree $("${git[@]}" rev-parse 'HEAD^{tree}')
		# code: $("$top/bench/report.py" code "$machine")
		# compiler: $("${CROSS_COMPILE}gcc" --version | head -n 1), $(grep -o '^CONFIG_CC_OPTIMIZE[A-Z_]*' "$1/config")
	END
}

# start_run KIND: builds both $kernels, empties $work, writes the conditions of the run there
start_run() {
	declare -gA kernels
	local kernel
	for kernel in base series; do
		kernels[$kernel]=$("$top/vm/kernel" "$machine" "$variant" "$kernel")
	done
	[ -z "${NEWER_QEMU:-}" ] || PATH=$("$top/vm/qemu"):$PATH
	work=$cache/$1/$machine-$variant
	rm -rf "$work"
	mkdir -p "$work"
	# Now, as linux/ may go on while this runs.
	{
		echo "# machine: $machine (${QEMU[*]}, TCG)"
		echo "# qemu: $("${QEMU[0]}" --version | head -n 1)"
		common_conditions "${kernels[series]}"
	} >"$work/conditions"
}

# both FUNCTION ARGUMENT...: with the base and with the series kernel, at the same time
both() {
	local kernel pid pids=()
	for kernel in base series; do
		"$1" $kernel "${@:2}" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do wait "$pid" || die "see above"; done
}
