# shellcheck shell=bash disable=SC2034
# usage: . "$(dirname "$0")/lib.sh"
# Sourced by the tests: they print "ok NAME", "not ok NAME - why" or "skip NAME - why"

# shellcheck source=lib/series.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/series.sh"

test_name=$(basename "$0")
failed=0
# each takes the case, if the test has several, and what there is to say of it
ok() { echo "ok $test_name${1:+/$1}${2:+ $2}"; }
not_ok() {
	echo "not ok $test_name${1:+/$1} - $2"
	failed=1
}
skip() { echo "skip $test_name${1:+/$1} - $2"; }
# make_work: sets $work to a directory in the cache that goes away with the script
make_work() {
	work=$(mktemp -d "$cache/tmp.XXXXXX")
	trap 'rm -rf "$work"' EXIT
}
# run_block PAGE [MARK]: the indented block after the mark "<!-- run -->" of a page in docs/
run_block() {
	awk -v mark="<!-- ${2:-run} -->" '$0 == mark { on = 1; next }
		on && /^    / { print substr($0, 5); any = 1; next }
		on && any && /^$/ { exit }' "$top/docs/$1"
}
