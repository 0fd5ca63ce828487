# shellcheck shell=bash disable=SC2034
# usage: . "$(dirname "$0")/../lib/lib.sh"
# Sourced by every script: its options, -h, its arguments, messages, logs, locks, machines

set -euo pipefail
export LC_ALL=C
# Run from a git hook or `git rebase --exec`, git's own variables would point our git calls at the
# wrong repository.
if command -v git >/dev/null; then
	# shellcheck disable=SC2046
	unset $(git rev-parse --local-env-vars)
fi

die() { printf 'error: %s\n' "$*" >&2; exit 1; }
say() { printf '[%4ds] %s\n' "$SECONDS" "$*" >&2; }
usage() { sed -n '2,/^[^#]/s/^# //p' "$0"; }

# arguments MIN[-[MAX]] "$@": prints the usage and ends the script for any other number of them
arguments() {
	local min=${1%-*} max=${1#*-}
	shift
	if (($# < min || $# > ${max:-999})); then
		usage >&2
		exit 2
	fi
}

need() {
	local tool missing=()
	for tool; do command -v "$tool" >/dev/null || missing+=("$tool"); done
	((${#missing[@]} == 0)) || die "missing: ${missing[*]}; run: make packages"
}

# run_logged NAME PROGRAM ARG...   (a program: in a shell function called from here `set -e` would
# have no effect)
run_logged() {
	local name=$1 log=$logs/$1.log ticker last rc=0
	shift
	say "$name: log in $log"
	: >"$log"
	# `read -t` and not sleep: a sleep left behind would hold the caller's pipe open.
	{
		exec {never}<> <(:)
		for ((i = 1; ; i++)); do
			read -rt 1 -u "$never" || :
			kill -0 $$ 2>/dev/null || exit
			if ((i % 20 == 0)); then
				last=$(tail -c 4000 "$log" | tr '\r' '\n' | grep . | tail -n 1) || :
				say "$name ... still running, last line: $last"
			fi
		done
	} &
	ticker=$!
	"$@" >"$log" 2>&1 || rc=$?
	kill "$ticker" 2>/dev/null || :
	wait "$ticker" 2>/dev/null || :
	if ((rc)); then
		tail -n 20 "$log" >&2
		say "$name failed ($rc): $log"
	fi
	return "$rc"
}

# Held until the script and all it started have ended.
lock() {
	mkdir -p "$cache/locks"
	exec {lock_fd}>"$cache/locks/$1"
	if ! flock -n "$lock_fd"; then
		say "waiting for another run ($cache/locks/$1)"
		flock "$lock_fd"
	fi
}

# checkout_src REPOSITORY TREE [DIR]   (into the one build checkout $cache/src, for who holds `lock
# build`, or into one of the caller's own)
checkout_src() {
	local tree dir=${3:-$cache/src}
	tree=$(git -C "$1" rev-parse --verify -q "$2^{tree}") || die "no commit $2 in $1"
	say "check out ${tree:0:12} in $dir"
	mkdir -p "$dir"
	rm -f "$dir.index.lock" # of a run that was killed
	# A private index: only files that differ are touched, and nothing is fetched or copied.
	# All of it, though the repository itself may have only part checked out.
	GIT_INDEX_FILE=$dir.index git -C "$1" -c core.sparseCheckout=false \
		--work-tree="$dir" read-tree --reset -u "$tree" ||
		die "cannot check out $tree from $1 into $dir (disk full? delete $dir and $dir.index to start over)"
}

# load_machine NAME: reads machines/NAME/machine; $build is the machine whose kernel it boots
load_machine() {
	[ -f "$top/machines/$1/machine" ] || die "no machine $1: see machines/"
	# shellcheck source=machines/x86_64-vtd/machine
	. "$top/machines/$1/machine"
	machine=$1 build=${BUILD:-$1}
}

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${IOVA_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/iova-to-phys-length}
mkdir -p "$cache/logs" ||
	die "cannot make the cache $cache; set IOVA_CACHE to a place with 10 GB free"
cache=$(cd "$cache" && pwd -P)
logs=$cache/logs
linux=$top/linux

if [ "${1:-}" = -h ]; then
	usage
	exit
fi
