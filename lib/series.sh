# shellcheck shell=bash disable=SC2034
# usage: . "$(dirname "$0")/../lib/series.sh"
# lib.sh, and what scripts that handle the patches share

# shellcheck source=lib/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

series=$top/series

# git without the user's configuration, attributes and hooks: what it makes is the same on every
# machine.
plain_git() {
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_ATTR_NOSYSTEM=1 \
		HOME=/nonexistent XDG_CONFIG_HOME=/nonexistent GIT_TERMINAL_PROMPT=0 TZ=UTC \
		env -u GIT_EXTERNAL_DIFF -u GIT_DIFF_OPTS -u GIT_TEMPLATE_DIR git "$@"
}

disk_room() { echo "(free on its disk: $(df -h --output=avail,target "$1" | tail -n 1))"; }

pin() { sed -n "s/^$1=//p" "$series/base"; }

# patches DIR: its patches in order
patches() { find "$1" -maxdepth 1 -name '[0-9][0-9][0-9][0-9]-*.patch' | sort; }

# subjects: path and subject of the patches of series/ in order, with a tab between
subjects() { "$top/tree/parts" --subjects; }

# same_patches DIR DIR
same_patches() { [ "$(listing "$1")" = "$(listing "$2")" ]; }

# listing DIR: names and sums of its patches
listing() { (cd "$1" && patches . | xargs -r sha256sum); }

# make_scratch: sets $scratch to a directory on the checkout's file system that goes away with the
# script
make_scratch() {
	scratch=$(mktemp -d "$top/.tmp.XXXXXX") || die "cannot write to $top $(disk_room "$top")"
	trap 'rm -rf "$scratch"' EXIT
}

# borrow REPO DIR INIT-OPTION...: a new repository DIR that sees the objects of REPO, but none of
# its configuration
borrow() {
	plain_git init -q --template= "${@:3}" "$2"
	local dir
	dir=$(plain_git -C "$2" rev-parse --absolute-git-dir)
	mkdir -p "$dir/info"
	git -C "$1" rev-parse --path-format=absolute --git-path objects \
		>"$dir/objects/info/alternates"
}

# format_series REPO BASE DIR: BASE..HEAD as patches in DIR, byte for byte the same for the same
# commits
format_series() {
	local range
	range=$(git -C "$1" rev-parse "$2^{commit}")..$(git -C "$1" rev-parse HEAD)
	mkdir "$3"
	# A bare repository has no .gitattributes either, whose diff drivers differ from one git to
	# the next.
	borrow "$1" "$3.git" --bare
	plain_git -C "$3.git" format-patch --quiet --output-directory "$3" \
		--no-numbered --no-signature --zero-commit --full-index --no-renames \
		--diff-algorithm=myers "$range" >&2 || return
	[ "$(patches "$3" | wc -l)" = "$(plain_git -C "$3.git" rev-list --count "$range")" ]
}

# apply_series REPO BASE PATCHDIR DIR: a new repository DIR with the patches on BASE, checked out
# only where they touch it
apply_series() {
	local base=$2 dir=$4 all=() three=() n
	mapfile -t all < <(patches "$3")
	borrow "$1" "$dir"
	plain_git -C "$dir" update-ref HEAD "$base"
	((${#all[@]})) || return 0
	plain_git -C "$dir" config core.sparseCheckout true
	sed -n 's|^diff --git a/\(.*\) b/\(.*\)|/\1\n/\2|p' "${all[@]}" \
		>"$dir/.git/info/sparse-checkout"
	plain_git -C "$dir" read-tree -mu HEAD
	# On the pinned base every hunk has to fit as it is; on another one it may have to be
	# merged.
	[ "$base" = "$(pin commit)" ] || three=(--3way)
	GIT_COMMITTER_NAME=$committer_name GIT_COMMITTER_EMAIL=$committer_email \
		plain_git -C "$dir" am --quiet "${three[@]}" --keep-non-patch --keep-cr \
		--no-scissors --whitespace=nowarn --committer-date-is-author-date \
		"${all[@]}" >"$dir/.git/am.log" 2>&1 && return
	# where; not its advice, this repository is gone in a moment
	grep -E '^(error|fatal|CONFLICT)' "$dir/.git/am.log" >&2 || :
	n=$(cat "$dir/.git/rebase-apply/next" 2>/dev/null) || die "git am cannot read the patches"
	die "patch $n of ${#all[@]}, ${all[n - 1]##*/}, does not apply to ${base:0:12} with the patches before it"
}

committer_name=$(git -C "$top" config user.name || echo "series builder")
committer_email=$(git -C "$top" config user.email || echo "series@localhost.invalid")

# linux_state: dies unless linux/ is a tree of ours that stands still on branch series
linux_state() {
	local branch state
	[ -e "$linux/.git" ] || die "there is no linux/; run: make tree"
	git -C "$linux" rev-parse -q --verify 'refs/tags/base^{commit}' >/dev/null ||
		die "$linux has no tag base, so it was not made by make tree; move it away"
	for state in rebase-merge rebase-apply MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD BISECT_LOG; do
		[ ! -e "$(git -C "$linux" rev-parse --path-format=absolute --git-path "$state")" ] ||
			die "linux/ is in the middle of something ($state); finish or abort it: git -C linux status"
	done
	branch=$(git -C "$linux" symbolic-ref -q --short HEAD || echo "a detached HEAD")
	[ "$branch" = series ] ||
		die "linux/ is on $branch, not on branch series; run: git -C linux switch series"
}

# linux_clean: dies if linux/ has uncommitted changes
linux_clean() {
	local changes
	changes=$(git -C "$linux" --no-optional-locks status --porcelain)
	[ -z "$changes" ] || die "linux/ has uncommitted changes; commit them, or: git -C linux stash -u
$(head -n 20 <<<"$changes")"
}

# What linux/ and series/ last agreed on: a commit, and the names and sums of the patches.
set_synced() {
	local sums
	if sums=$(listing "$series" | git -C "$linux" hash-object -w --stdin) &&
		git -C "$linux" update-ref refs/series/patches "$sums" &&
		git -C "$linux" update-ref refs/series/commit \
			"$(git -C "$linux" rev-parse HEAD)"; then
		return
	fi
	die "linux/ and series/ agree, but linux/.git has no room to note that $(disk_room "$linux"); make some and run this again"
}
synced_commit() { git -C "$linux" rev-parse -q --verify refs/series/commit || echo none; }
series_changed() {
	! git -C "$linux" cat-file blob refs/series/patches 2>/dev/null | cmp -s - <(listing "$series")
}
linux_changed() { [ "$(synced_commit)" != "$(git -C "$linux" rev-parse HEAD)" ]; }

# patched COMMIT MESSAGE PATCH...: a commit of linux/ that no branch knows with these on top of it,
# the same each time; prints it
patched() {
	local commit=$1 message=$2 index git=(git -C "$linux") tree rc=0
	shift 2
	index=$(mktemp -u "$cache/tmp.XXXXXX")
	local -x GIT_INDEX_FILE=$index GIT_AUTHOR_DATE='@0 +0000' GIT_COMMITTER_DATE='@0 +0000'
	"${git[@]}" read-tree "$commit" && { (($# == 0)) || "${git[@]}" apply --cached "$@"; } &&
		tree=$("${git[@]}" write-tree) &&
		"${git[@]}" -c user.name=iova -c user.email=iova@localhost.invalid \
			commit-tree -m "$message" -p "$commit" "$tree" || rc=$?
	rm -f "$index"
	return "$rc"
}

# native_commit COMMIT [GIT-APPLY-OPTION...]: COMMIT with the driver of guest/um/native.patch
native_commit() { patched "$1" "The driver of bench/native" "${@:2}" "$top/guest/um/native.patch"; }
