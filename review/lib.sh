# shellcheck shell=bash disable=SC2034
# usage: . "$(dirname "$0")/lib.sh"
# lib/series.sh, and what the scripts behind make review share

# shellcheck source=lib/series.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/series.sh"

check=$cache/check
# Most is compiled once, and need not be preprocessed for ccache beforehand.
export CCACHE_DIR=$check/ccache CCACHE_DEPEND=1
# In this order: what x86_64 does not build is looked for in the next ones.
read -ra arches <<<"${ARCHES:-x86_64 i386 arm64 arm s390 corenet32 corenet64 riscv}"
# Where the series' code is, its callers' too. Nothing else is compiled.
check_dirs=(drivers/iommu/ drivers/vfio/ drivers/gpu/drm/panfrost/ drivers/gpu/drm/panthor/)

# use_arch NAME: sets $arch, $config_start, $cross for a name of review/configs/
use_arch() {
	config_start=tinyconfig cross=
	case $1 in
	x86_64 | i386) arch=$1 ;;
	arm64) arch=$1 cross=aarch64-linux-gnu- ;;
	arm) arch=$1 cross=arm-linux-gnueabihf- ;;
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

# kernel_config NAME OBJ: the configuration of review/configs/NAME for what is checked out
kernel_config() {
	local fragments=("$top/review/configs/common.config" "$top/review/configs/$1.config")
	kernel_make "$2" -s "$config_start" &&
		"$check/src/scripts/kconfig/merge_config.sh" -Q -m -O "$2" "$2/.config" \
			"${fragments[@]}" >/dev/null &&
		kernel_make "$2" -s olddefconfig
}

# messages LOG: its warnings and errors as "FILE<tab>LINE<tab>text<tab>the file that was compiled",
# each once: a header's comes with each file that includes it
messages() {
	# kernel-doc's are checked elsewhere. A file that was compiled twice means what it said
	# last.
	sed -nE "s#^  CC +(\[M\] +)?(.*)\.o\$#\2.c#p
		s#^($check/src/|(\.\./)*src/)?([A-Za-z0-9_./,+-]+):([0-9]+)(:[0-9]+)?: ?((fatal )?error|warning): ?(.*)#\3\t\4\t\6: \8#p
		s#^([A-Za-z0-9_./,+-]+\.o): (warning|error): (.*)#\1\t1\t\2: \3#p" "$1" |
			awk -F '\t' '
		NF == 1 { now = $1; for (said in by) if (by[said] == now) delete by[said]; next }
		{ by[$0] = now }
		END { for (said in by) print said "\t" by[said] }' | sort
}

# fresh KNOWN: of "FILE<tab>LINE<tab>text" lines on stdin those that are more often there than in
# file KNOWN, whatever their lines
fresh() {
	awk -F '\t' '{ key = $1 "\t" $3; gsub(/line [0-9]+/, "line", key) }
		FILENAME != "-" { known[key]++; next }
		{ if (++seen[key] > known[key]) print $1 ":" $2 ": " $3 }' "$1" -
}

# touched REPO BEFORE AFTER: files that are there after it
touched() { git -C "$1" diff --name-only --no-renames --diff-filter=d "$2" "$3"; }

# check_out REPO TREE: in $check/src; it takes a second to see that nothing is to be done
check_out() {
	[ "$(cat "$check/src.tree" 2>/dev/null)" != "$2" ] || return 0
	rm -f "$check/src.tree"
	checkout_src "$1" "$2" "$check/src" 2>"$logs/review-checkout.log" ||
		die "see $logs/review-checkout.log"
	echo "$2" >"$check/src.tree"
}

# kernel_targets NAME: what make is to build there
kernel_targets() {
	printf '%s\n' "${check_dirs[@]}"
	# a caller outside of these, on one architecture that has it
	[ "$1" != x86_64 ] || echo drivers/net/ethernet/marvell/octeontx2/nic/otx2_pf.o
}

# configure NAME REPO TREE: the configuration of review/configs for what is checked out; $obj and
# $log are its (for who holds `lock check`)
configure() {
	local wanted
	obj=$check/obj-$1${LLVM:-} log=$obj/.log
	use_arch "$1"
	need git make ccache flex bison bc sparse "$(compiler)"
	mkdir -p "$obj"
	touch "$obj/.known" "$log"
	wanted=$( (git -C "$2" ls-tree -r "$3" -- "${check_dirs[@]}" |
		grep Kconfig; cat "$top/review/configs/"{common,"$1"}.config) | sha256sum)
	[ "$wanted" != "$(cat "$obj/.kconfig" 2>/dev/null)" ] || return 0
	rm -f "$obj/.kconfig"
	kernel_config "$1" "$obj" >>"$log" 2>&1 && echo "$wanted" >"$obj/.kconfig"
}

# build NAME REPO TREE TARGET...: bring these to TREE, which is checked out, and print the messages
# that are new
build() {
	local name=$1 obj log rc=0 targets=("${@:4}")
	# Sparse says the same whoever compiles.
	[ -n "${LLVM:-}" ] || targets+=(C=1 CHECK="$top/review/sparse")
	configure "$1" "$2" "$3" &&
		kernel_make "$obj" -k -j"$(nproc)" -Otarget W=1 "${targets[@]}" >>"$log" 2>&1 ||
			rc=$?
	! grep -q 'C=1 specified, but' "$log" ||
		die "the kernel does not take this sparse: see $log"
	messages "$log" >"$obj/.messages"
	fresh "$obj/.known" <"$obj/.messages" | sed "s/\$/ [$name]/" | tee "$obj/.fresh"
	if ((rc)) && [ ! -s "$obj/.fresh" ]; then
		echo "Makefile:1: error: does not build: $(grep -E '\*\*\*|rror' "$log" | tail -n 1) [$name]"
	fi
	# A file that was compiled, and then read by sparse, has said all it has to say. One that
	# did not compile has not, and the others stand by what they said.
	grep -oE '^  (CC|CHECK) +.*\.[oc]$' "$log" | awk -v sparse="${LLVM:-yes}" '
		{ sub(/\.o$/, ".c", $NF); if ($1 == "CC") compiled[$NF]; if ($1 == "CHECK" || sparse != "yes") read[$NF] }
		END { for (file in compiled) print file "\t" (file in read) }' >"$obj/.compiled"
	awk -F '\t' 'FILENAME ~ /compiled$/ { all[$1] = $2; next }
		FILENAME ~ /messages$/ { if (!($1 in all) || all[$1]) { all[$1] = 1; print }; next }
		!all[$1]' "$obj/.compiled" "$obj/.messages" "$obj/.known" >"$obj/.known.new"
	mv "$obj/.known.new" "$obj/.known"
	# Of a run that is killed the log stays: what it compiled will not be compiled again.
	mv "$log" "$logs/review-$name${LLVM:-}.log"
}

# complete_config NAME: dies if the last build there lacks what review/configs asks for; before the
# last patch it may
complete_config() {
	"$top/vm/config-check" "$check/obj-$1${LLVM:-}/.config" \
		"$top/review/configs/common.config" "$top/review/configs/$1.config"
}
