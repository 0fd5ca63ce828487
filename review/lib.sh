# shellcheck shell=bash disable=SC2034
# usage: . "$(dirname "$0")/lib.sh"
# lib/series.sh, and what the scripts behind make review share

# shellcheck source=lib/series.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/series.sh"

check=$cache/check
# Most is compiled once, and need not be preprocessed for ccache beforehand.
export CCACHE_DIR=$check/ccache CCACHE_DEPEND=1
# In this order: what x86_64 does not build is looked for in the next ones.
read -ra arches <<<"${ARCHES:-x86_64 i386 arm64 arm s390 corenet32 corenet64 riscv panfrost}"
# Where the series' code is, its callers' too. Nothing else is compiled.
check_dirs=(drivers/iommu/ drivers/vfio/ drivers/gpu/drm/panfrost/ drivers/gpu/drm/panthor/)

# use_arch NAME: sets $arch, $config_start, $cross for a name of review/configs/
use_arch() {
	config_start=tinyconfig cross=
	case $1 in
	x86_64 | i386) arch=$1 ;;
	arm64) arch=$1 cross=aarch64-linux-gnu- ;;
	arm) arch=$1 cross=arm-linux-gnueabihf- ;;
	panfrost) arch=arm cross=arm-linux-gnueabihf- ;;
	s390) arch=$1 cross=s390x-linux-gnu- ;;
	riscv) arch=$1 cross=riscv64-linux-gnu- ;;
	corenet32) arch=powerpc cross=powerpc-linux-gnu- config_start=corenet32_smp_defconfig ;;
	corenet64) arch=powerpc cross=powerpc64-linux-gnu- config_start=corenet64_smp_defconfig ;;
	*) die "no architecture $1: see review/lib.sh" ;;
	esac
}

# compiler: for who has called use_arch; LLVM=-19 in the environment builds with clang
compiler() { if [ -n "${LLVM:-}" ]; then echo "clang$LLVM"; else echo "${cross}gcc"; fi; }

# kernel_make OBJ TARGET...: the same
kernel_make() {
	local obj=$1 tools=(CROSS_COMPILE="$cross")
	shift
	[ -z "${LLVM:-}" ] || tools=(LLVM="$LLVM")
	nice make -C "$check/src" O="$obj" ARCH="$arch" "${tools[@]}" CC="ccache $(compiler)" \
		LOCALVERSION= "$@"
}

# fragments NAME: its configuration; panfrost has none of the common drivers, so no IOMMU_API
fragments() {
	[ "$1" = panfrost ] || echo "$top/review/configs/common.config"
	echo "$top/review/configs/$1.config"
}

# kernel_config NAME OBJ: the configuration of review/configs/NAME for what is checked out
kernel_config() {
	local fragments
	mapfile -t fragments < <(fragments "$1")
	kernel_make "$2" -s "$config_start" &&
		"$check/src/scripts/kconfig/merge_config.sh" -Q -m -O "$2" "$2/.config" \
			"${fragments[@]}" >/dev/null &&
		kernel_make "$2" -s olddefconfig
}

# messages LOG: its warnings and errors as "FILE<tab>LINE<tab>text", each once: a header's comes
# with each file that includes it
messages() {
	sed -nE "s#^($check/src/|(\.\./)*src/)?([A-Za-z0-9_./,+-]+):([0-9]+)(:[0-9]+)?: ?((fatal )?error|warning): ?(.*)#\3\t\4\t\6: \8#p
		s#^([A-Za-z0-9_./,+-]+\.o): (warning|error): (.*)#\1\t1\t\2: \3#p" "$1" | sort -u
}

# fresh KNOWN...: of such lines on stdin those that are in none of these files, whatever their line
fresh() {
	awk -F '\t' '{ key = $1 "\t" $3; gsub(/line [0-9]+/, "line", key) }
		FILENAME != "-" { known[key]; next }
		!(key in known) { known[key]; print }' "$@" -
}

# check_out REPO TREE: in $check/src; it takes a second to see that nothing is to be done
check_out() {
	[ "$(cat "$check/src.tree" 2>/dev/null)" != "$2" ] || return 0
	rm -f "$check/src.tree"
	checkout_src "$1" "$2" "$check/src" 2>"$logs/review-checkout.log" ||
		die "see $logs/review-checkout.log"
	echo "$2" >"$check/src.tree"
}

# compile NAME REPO TREE FILE...: prints the messages of TREE on the architecture NAME, those of
# these files and of what includes them at the least (for who holds `lock check`)
compile() {
	local name=$1 log=$logs/review-$1${LLVM:-}.log wanted targets=("${check_dirs[@]}") rc=0
	obj=$check/obj-$1${LLVM:-}
	use_arch "$1"
	need git make ccache flex bison bc sparse "$(compiler)"
	check_out "$2" "$3"
	mkdir -p "$obj"
	wanted=$( (git -C "$2" ls-tree -r "$3" -- "${check_dirs[@]}" |
		grep Kconfig; fragments "$1" | xargs cat) | sha256sum)
	if [ "$wanted" != "$(cat "$obj/.kconfig" 2>/dev/null)" ]; then
		kernel_config "$1" "$obj" >"$log" 2>&1 || die "no configuration for $1: see $log"
		echo "$wanted" >"$obj/.kconfig"
	fi
	shift 3
	# They are compiled again, even if they have been.
	(($# == 0)) || (cd "$check/src" && touch -c "$@")
	# a caller outside of these, on one architecture that has it
	[ "$name" != x86_64 ] || targets+=(drivers/net/ethernet/marvell/octeontx2/nic/otx2_pf.o)
	# Sparse says the same whoever compiles.
	[ -n "${LLVM:-}" ] || targets+=(C=1 CHECK="$top/review/sparse")
	kernel_make "$obj" -k -j"$(nproc)" -Otarget W=1 "${targets[@]}" >"$log" 2>&1 || rc=$?
	! grep -q 'C=1 specified, but' "$log" ||
		die "the kernel does not take this sparse: see $log"
	messages "$log" >"$obj/.messages"
	if ((rc)) && ! grep -q 'error: ' "$obj/.messages"; then
		printf 'Makefile\t1\terror: does not build: %s\n' \
			"$(grep -E '\*\*\*|rror' "$log" | tail -n 1)" >>"$obj/.messages"
	fi
	cat "$obj/.messages"
}

# base_messages NAME: the file with all that the base says there, which is built for that, once
base_messages() {
	local tree file
	tree=$(git -C "$linux" rev-parse 'base^{tree}')
	file=$check/base-$1${LLVM:-}-${tree:0:12}
	if [ ! -e "$file" ] || [ ! -e "$check/obj-$1${LLVM:-}" ]; then
		say "review: the base on $1"
		rm -rf "$check/obj-$1${LLVM:-}"
		compile "$1" "$linux" "$tree" >"$file.new"
		mv "$file.new" "$file"
	fi
	echo "$file"
}

# compiled NAME FILE: whether it was, there
compiled() { grep -rqF --include='.*.cmd' "/$2" "$check/obj-$1${LLVM:-}/drivers"; }
