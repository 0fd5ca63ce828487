# shellcheck shell=bash disable=SC2034
# usage: . "$(dirname "$0")/sandbox.sh"
# Sourced by tests that run in a temporary copy of this repo, with a cache of their own

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export IOVA_CACHE=$tmp/cache GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
# shellcheck source=tests/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
export GIT_AUTHOR_NAME=check GIT_AUTHOR_EMAIL=check@localhost.invalid
export GIT_COMMITTER_NAME=check GIT_COMMITTER_EMAIL=check@localhost.invalid
unset KERNEL MIRROR MAKEFLAGS # make hands KERNEL= on in the last

# the first thing that is wrong ends the test
not_ok() {
	echo "not ok $test_name - $*"
	[ ! -s "$tmp/out" ] || sed 's/^/# /' "$tmp/out"
	exit 1
}

# refused WORD... -- COMMAND...: the command has to fail, and to say every word
refused() {
	local words=()
	while [ "$1" != -- ]; do words+=("$1"); shift; done
	shift
	! "$@" >"$tmp/out" 2>&1 || not_ok "$* was not refused"
	local word
	for word in "${words[@]}"; do grep -qF -- "$word" "$tmp/out" ||
		not_ok "$* does not say \"$word\""; done
}

works() { "$@" >"$tmp/out" 2>&1 || not_ok "$* failed"; }

# small_checkout DIR: this repo in DIR, but with a base kernel of two small files, two patches, and
# linux/ made
small_checkout() {
	local n kernel=$tmp/kernel
	git init -q "$kernel"
	for n in $(seq 40); do echo "line $n"; done | tee "$kernel/one.c" >"$kernel/two.c"
	git -C "$kernel" add .
	git -C "$kernel" commit -qm base
	export KERNEL=$kernel
	mkdir -p "$1/series"
	cp -r "$top"/{Makefile,bench,faults,lib,post,tree,vm} "$1"
	sed "s/^commit=.*/commit=$(git -C "$kernel" rev-parse HEAD)/" "$top/series/base" \
		>"$1/series/base"
	cd "$1" || exit
	works tree/apply
	change one.c 10 first
	change two.c 30 second
	works tree/export
}

# change FILE LINE SUBJECT: a commit in linux/
change() {
	sed -i "$2s/.*/changed by $3/" "linux/$1"
	git -C linux commit -qam "$3"
}

# everything that must not get lost
state() {
	git -C linux rev-parse HEAD refs/heads/series
	git -C linux --no-optional-locks status --porcelain
	git -C linux diff
	tail -n +1 series/*.patch
}
