#!/bin/sh
# Runs the tutorials: every ```sh block of tutorials/*.md, in order, in a folder of its own, as a test each. What a block
# prints on standard output must be what the ```output block behind it says, where there is one; "…" in it stands for
# anything within a line.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

# Splits a document into $2/<n>.sh, $2/<n>.output (if it has one) and $2/<n>.place.
extract() { # document, folder
	awk -v dir="$2" '
		/^#+ / && !file { heading = $0; sub(/^#+ /, "", heading) }
		/^```sh$/ { n++; file = dir "/" n ".sh"; printf "" >file
			print "line " NR + 1 " (" heading ")" >(dir "/" n ".place"); next }
		/^```output$/ { if (!n) exit 1
			file = dir "/" n ".output"; printf "" >file; next }
		/^```/ { if (file) close(file); file = ""; next }
		file { print >file }
		END { print n + 0 }' "$1"
}

# A line of expectation as a pattern for `case`.
pattern() {
	printf '%s\n' "$1" | sed 's/[][*?\\]/\\&/g; s/…/*/g'
}

matches() { # expected, got
	while IFS= read -r want <&3; do
		IFS= read -r got <&4 || {
			echo "expected one more line: $want"
			return 1
		}
		like=$(pattern "$want")
		# shellcheck disable=SC2254 # a pattern it is
		case $got in
		$like) ;;
		*)
			printf 'expected: %s\ngot:      %s\n' "$want" "$got"
			return 1
			;;
		esac
	done 3<"$1" 4<"$2"
	[ "$(wc -l <"$1")" -ge "$(wc -l <"$2")" ] || {
		echo "more lines than expected:"
		cat "$2"
		return 1
	}
}

block() { # folder, number
	cd "$1/cwd"
	. "$1/$2.sh" >"$1/$2.got"
	cat "$1/$2.got"
	if [ -e "$1/$2.output" ]; then
		matches "$1/$2.output" "$1/$2.got"
	fi
}

# A reader of the expectations that accepts everything would make all of this worthless.
expectations_are_compared() {
	printf 'a [x] …\nb\n' >"$work/want"
	printf 'a [x] 12 s\nb\n' >"$work/got"
	matches "$work/want" "$work/got"
	printf 'a x 12 s\nb\n' >"$work/got"
	! matches "$work/want" "$work/got" || return 1
	printf 'a [x] 12 s\n' >"$work/got"
	! matches "$work/want" "$work/got" || return 1
	printf 'a [x] 12 s\nb\nc\n' >"$work/got"
	! matches "$work/want" "$work/got" || return 1
}
it "expectations in the tutorials are compared with what commands print" expectations_are_compared

for document in "$here"/../../tutorials/[0-9]*.md; do
	name=$(basename "$document" .md)
	folder=$work/$name
	mkdir -p "$folder/cwd"
	blocks=$(extract "$document" "$folder") || blocks=0
	has_blocks() { [ "$blocks" -gt 0 ]; }
	it "$name has commands to run" has_blocks
	n=1
	while [ "$n" -le "$blocks" ]; do
		it "$name, $(cat "$folder/$n.place"): the commands work as the page says" \
			block "$folder" "$n"
		n=$((n + 1))
	done
done
finish
