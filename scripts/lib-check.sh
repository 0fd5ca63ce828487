# shellcheck shell=bash disable=SC2034
# usage: . "$(dirname "$0")/lib-check.sh"   (lib-series.sh, and what the scripts behind make check share)

. "$(dirname "${BASH_SOURCE[0]}")/lib-series.sh"

check=$cache/check
# In this order: what x86_64 does not build is looked for in the next ones.
read -ra arches <<<"${ARCHES:-x86_64 i386 arm64 arm s390 corenet32 corenet64 riscv}"
# Where the series' code is, its callers' too. Nothing else is compiled.
check_dirs=(drivers/iommu/ drivers/vfio/ drivers/gpu/drm/panfrost/ drivers/gpu/drm/panthor/)

# use_arch NAME: sets $arch, $config_start, $cross for a name of checks/arch/
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
	*) die "no architecture $1: see scripts/lib-check.sh" ;;
	esac
}

# compiler: for who has called use_arch; LLVM=-19 in the environment builds with clang
compiler() { if [ -n "${LLVM:-}" ]; then echo "clang$LLVM"; else echo "${cross}gcc"; fi; }

# kernel_make OBJ TARGET...: the same
kernel_make() {
	local obj=$1 tools=(CROSS_COMPILE="$cross")
	shift
	[ -z "${LLVM:-}" ] || tools=(LLVM="$LLVM")
	CCACHE_DIR=$check/ccache nice make -C "$check/src" O="$obj" ARCH="$arch" "${tools[@]}" CC="ccache $(compiler)" LOCALVERSION= "$@"
}

# kernel_config NAME OBJ: the configuration of checks/arch/NAME for what is checked out
kernel_config() {
	local fragments=("$top/checks/arch/common.config" "$top/checks/arch/$1.config")
	kernel_make "$2" -s "$config_start" &&
		"$check/src/scripts/kconfig/merge_config.sh" -Q -m -O "$2" "$2/.config" "${fragments[@]}" >/dev/null &&
		kernel_make "$2" -s olddefconfig
}

# messages LOG: its warnings and errors as "FILE<tab>LINE<tab>text", each once
messages() {
	# One per line of source: a header's message comes once for each file that includes it. kernel-doc's are checked elsewhere.
	sed -nE "s#^($check/src/|(\.\./)*src/)?([A-Za-z0-9_./,+-]+):([0-9]+)(:[0-9]+)?: ?((fatal )?error|warning): ?(.*)#\3\t\4\t\6: \8#p
		s#^([A-Za-z0-9_./,+-]+\.o): (warning|error): (.*)#\1\t1\t\2: \3#p" "$1" | sort -u
}

# fresh KNOWN: of "FILE<tab>LINE<tab>text" lines on stdin those that are more often there than in file KNOWN, lines not counted
fresh() {
	awk -F '\t' 'NR == FNR { known[$1 "\t" $3]++; next }
		{ key = $1 "\t" $3; if (++seen[key] > known[key]) print $1 ":" $2 ": " $3 }' "$1" -
}

# touched REPO BEFORE AFTER: files that are there after it
touched() { git -C "$1" diff --name-only --no-renames --diff-filter=d "$2" "$3"; }

# bookworm's sparse does not know one keyword that the kernel wants it to; the kernel itself only uses it with a newer compiler.
sparse="sparse -D__typeof_unqual__=__typeof__"

# kernel_targets NAME: what make is to build there
kernel_targets() {
	printf '%s\n' "${check_dirs[@]}"
	# a caller outside of these, on one architecture that has it
	[ "$1" != x86_64 ] || echo drivers/net/ethernet/marvell/octeontx2/nic/otx2_pf.o
}

# build NAME REPO TREE: bring the objects there to TREE of REPO, print the messages that are new (for who holds `lock check`)
build() {
	local name=$1 repo=$2 tree=$3 obj=$check/obj-$1${LLVM:-} log=$logs/check-$1${LLVM:-}.log rc=0 kconfig targets
	use_arch "$name"
	need git make ccache flex bison bc sparse "$(compiler)"
	checkout_src "$repo" "$tree" "$check/src" 2>/dev/null
	# Of a run that was killed: what it compiled will not be compiled again, and what the compiler said is lost.
	[ ! -e "$obj/.busy" ] || rm -rf "$obj"
	mkdir -p "$obj"
	touch "$obj/.busy" "$obj/.known"
	: >"$log"
	kconfig=$( (git -C "$repo" ls-tree -r "$tree" -- "${check_dirs[@]}" | grep Kconfig; cat "$top/checks/arch/"{common,"$name"}.config) | sha256sum)
	if [ "$kconfig" != "$(cat "$obj/.kconfig" 2>/dev/null)" ]; then
		kernel_config "$name" "$obj" >>"$log" 2>&1 || rc=$?
	fi
	mapfile -t targets < <(kernel_targets "$name")
	# Sparse says the same whoever compiles.
	[ -n "${LLVM:-}" ] || targets+=(C=1 CHECK="$sparse")
	((rc)) || kernel_make "$obj" -k -j"$(nproc)" W=1 "${targets[@]}" >>"$log" 2>&1 || rc=$?
	! grep -q 'C=1 specified, but' "$log" || die "the kernel does not take this sparse: see $log"
	messages "$log" >"$obj/.messages"
	fresh "$obj/.known" <"$obj/.messages" | sed "s/\$/ [$name]/" | tee "$obj/.fresh"
	if ((rc)) && [ ! -s "$obj/.fresh" ]; then
		echo "Makefile:1: error: does not build: $(grep -E '\*\*\*|rror' "$log" | tail -n 1) [$name]"
	fi
	# A file that was compiled says all it has to say; the others stand by what they said.
	{
		cut -f 1 "$obj/.messages"
		sed -nE 's#^  CC +(\[M\] +)?(.*)\.o$#\2.c#p' "$log"
	} | sort -u | awk -F '\t' 'NR == FNR { again[$1]; next } !($1 in again)' - "$obj/.known" >"$obj/.kept"
	cat "$obj/.kept" "$obj/.messages" >"$obj/.known"
	echo "$kconfig" >"$obj/.kconfig"
	echo "$tree" >"$obj/.tree"
	rm "$obj/.busy"
}

# complete_config NAME: dies if the last build there lacks what checks/arch asks for; before the last patch it may
complete_config() {
	"$top/scripts/config-check" "$check/obj-$1${LLVM:-}/.config" "$top/checks/arch/common.config" "$top/checks/arch/$1.config"
}
