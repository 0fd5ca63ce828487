# shellcheck shell=bash disable=SC2034
# usage: . "$(dirname "$0")/lib-plant.sh"   (sourced by the checks of make check: a series with faults on top of linux/, each in a patch of its own)

# shellcheck source=scripts/lib-series.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib-series.sh"

name=$(basename "$0")
failed=0
ok() { echo "ok $name/$1"; }
not_ok() { echo "not ok $name/$1 - $2"; failed=1; }

# plant_start FILE: $file is it, in a repository of its own
plant_start() {
	linux_state
	make_scratch
	repo=$scratch/repo file=$scratch/repo/$1
	borrow "$linux" "$repo"
	plain_git -C "$repo" update-ref HEAD "$(git -C "$linux" rev-parse HEAD)"
	plain_git -C "$repo" config core.sparseCheckout true
	echo "/$1" >"$repo/.git/info/sparse-checkout"
	plain_git -C "$repo" read-tree -mu HEAD
	planted=()
}

# plant NAME SUBJECT [LAST-LINE]: the changes to $file as a patch
plant() {
	planted+=("$1")
	printf '%s\n\nA fault that make check has to find, or the lack of one.\n\n%s\n' "$2" "${3-Assisted-by: LLM}" |
		plain_git -C "$repo" -c user.name=check -c user.email=check@localhost.invalid commit -q --cleanup=verbatim -aF -
}

# plant_check CHECKS: leaves what make check finds in $scratch/out
plant_check() {
	format_series "$repo" "$(git -C "$linux" rev-parse HEAD)" "$scratch/planted"
	CHECKS=$1 BASE=HEAD ARCHES=x86_64 "$top/scripts/check" "$scratch/planted" >"$scratch/out" 2>"$scratch/err" || :
	grep -qE '^[0-9]+ patches, [0-9]+ findings$' "$scratch/out" || { cat "$scratch/err" >&2; die "make check did not end"; }
}

# found NAME FILE-LINE-TEXT: exactly that, an extended regular expression, is said of the patch; nothing with ok
found() {
	local i said
	for i in "${!planted[@]}"; do [ "${planted[i]}" != "$1" ] || break; done
	said=$(sed -nE "s/^$(printf %04d $((i + 1)))-[^ ]*\.patch: //p" "$scratch/out")
	if [[ $said =~ ^$2$ ]]; then ok "$1"; else not_ok "$1" "make check says \"${said//$'\n'/; }\", not \"$2\""; fi
}
