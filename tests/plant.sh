# shellcheck shell=bash disable=SC2034
# usage: . "$(dirname "$0")/plant.sh"
# Sourced by the tests of make review: patches with a fault each on top of linux/

# shellcheck source=tests/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

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
	printf '%s\n\nA fault that make review has to find, or the lack of one.\n\n%s\n' "$2" \
		"${3-Assisted-by: LLM}" |
		plain_git -C "$repo" -c user.name=review -c user.email=review@localhost.invalid \
			commit -q --cleanup=verbatim -aF -
}

# plant_review STEPS: leaves what make review finds in $scratch/out
plant_review() {
	format_series "$repo" "$(git -C "$linux" rev-parse HEAD)" "$scratch/planted"
	STEPS=$1 BASE=HEAD ARCHES=x86_64 "$top/review/run" "$scratch/planted" >"$scratch/out" \
		2>"$scratch/err" || :
	grep -qE '^[0-9]+ patches, [0-9]+ findings$' "$scratch/out" ||
		{ cat "$scratch/err" >&2; die "make review did not end"; }
}

# found NAME FILE-LINE-TEXT: exactly that, an extended regular expression, is said of the patch;
# nothing with ok
found() {
	local i said
	for i in "${!planted[@]}"; do [ "${planted[i]}" != "$1" ] || break; done
	said=$(sed -nE "s/^$(printf %04d $((i + 1)))-[^ ]*\.patch: //p" "$scratch/out")
	if [[ $said =~ ^$2$ ]]; then ok "$1"; else not_ok "$1" "make review says \"${said//$'\n'/; }\", not \"$2\""; fi
}
