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

# pair_order NUMBER: base and series, in the other order in every second pair
pair_order() { if (($1 % 2)); then echo base series; else echo series base; fi; }

# native_kernel VARIANT base|series: with the driver of bench/native, prints its directory
native_kernel() {
	local which=$2 commit dir symbol=iommu_iova_to_phys_runs only=()
	[ "$2" = base ] || which=HEAD
	# A header that changes would have all be compiled.
	[ "$machine" = um ] || only=(--include='drivers/*' --include='kernel/*')
	commit=$(native_commit "$which" "${only[@]}") ||
		die "guest/um/native.patch does not apply to $2"
	dir=$("$top/vm/kernel" "$machine" "$1" "$commit") || die "no kernel to boot"
	[ "$(grep -c " $symbol\$" "$dir/System.map")" = $((${#2} == 6)) ] || die "$dir is not a $2 kernel: $symbol"
	echo "$dir"
}

# native_initramfs DIR: with the program of bench/native, DIR/initramfs
native_initramfs() {
	local header git=(git -C "$linux")
	mkdir -p "$1/include/linux" "$1/root"
	for header in linux/vfio linux/iommufd; do
		"${git[@]}" show "HEAD:include/uapi/$header.h" >"$1/include/$header.h"
	done
	"${git[@]}" show "$(native_commit HEAD):drivers/vfio/native.h" >"$1/include/native.h"
	gcc -O2 -static -Wall -Wextra -Werror '-D__counted_by(x)=' -D__user= -I "$1/include" \
		-o "$1/root/init" "$top/guest/um/native.c"
	(cd "$1/root" && cpio -o -H newc -R 0:0 --quiet <<<init) >"$1/initramfs"
}

# native_host MIB MAPS: what UML needs of the host. Its memory is a file; each scattered page is a
# mapping of its own.
native_host() {
	local free
	[ "$(cat /proc/sys/vm/max_map_count)" -ge "$2" ] ||
		die "vm.max_map_count is too small, as root: sysctl vm.max_map_count=$2"
	for free in "$(df --output=avail -m "$TMPDIR" | tail -n 1)" \
		"$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))"; do
		((free >= $1)) || die "$free MiB free in $TMPDIR or memory, $1 are needed: see the usage line for less"
	done
	read -r load _ </proc/loadavg
	if awk "BEGIN { exit !($load > 0.5) }"; then
		say "the load is $load: this machine is not quiet, figures will be worse and take longer"
	fi
}

# native_boot KERNELDIR LOG MIB SECONDS KEY=VALUE...: UML on one CPU of the host
native_boot() {
	local cpu
	cpu=$(taskset -cp $$ | grep -o '[0-9]*$')
	timeout --foreground --kill-after=10 "$4" taskset -c "$cpu" \
		"$1/image" mem="$3M" initrd="$work/initramfs" \
		rdinit=/init panic=-1 con=null con0=fd:0,fd:1 seccomp=auto loglevel=5 \
		uml_dir="$work" vfio_iommu_type1.allow_unsafe_interrupts=1 \
		iommufd.allow_unsafe_interrupts=1 "${@:5}" </dev/null >"$2" 2>&1 || :
}

# native_result LOG KEY=VALUE...: its lines, with these in front, to $work/raw
native_result() {
	if ! grep -q '^native: done' "$1" || ! "$top/vm/scan" "$1"; then
		die "$(grep -a '^native: failed' "$1" || echo "see $1")"
	fi
	tr -d '\r' <"$1" | sed -n "s/^native: format/${*:2} format/p" >>"$work/raw"
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
