# shellcheck shell=bash
# usage: . "$(dirname "$0")/boot-must-fail.sh"
# Sourced by the tests boot-JOB, for MACHINE, in KERNELDIR if one is given

# shellcheck source=tests/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# boot_must_fail LIMIT PATTERN...: vm/boot fails within LIMIT seconds and says every PATTERN
boot_must_fail() {
	local limit=$1 job=${test_name#boot-} machine=${MACHINE:-x86_64-vtd} out kernel pattern
	shift
	out=$cache/runs/$machine-$job
	mkdir -p "$out"
	kernel=${KERNELDIR:-$("$top/vm/kernel" "$machine" test series)} || die "no kernel to boot"
	# Failing is not enough: it has to be for this reason, and after the job began.
	if TIMEOUT=$limit "$top/vm/boot" "$machine" "$kernel" "$job" "$out" 2>"$out/messages"; then
		not_ok "" "vm/boot took it for a success, see $out"
	elif ! grep -q "^guest: begin $job" "$out/result"; then
		not_ok "" "the guest did not come to its job within $limit s, see $out"
	else
		for pattern; do
			grep -Eq "$pattern" "$out/messages" ||
				not_ok "" "vm/boot failed without saying \"$pattern\", see $out"
		done
	fi
	((failed)) || ok
	exit "$failed"
}
