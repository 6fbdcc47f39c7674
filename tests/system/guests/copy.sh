# Sourced by ../guests.sh: files there and back.

make_tree() { # folder
	mkdir -p "$1/a/b/c" "$1/empty" "$1/name with spaces"
	for i in 1 2 3 4 5; do
		head -c 10000000 /dev/urandom >"$1/a/big$i"
	done
	i=0
	while [ $i -lt 200 ]; do
		echo "file $i" >"$1/a/b/small$i"
		i=$((i + 1))
	done
	printf 'odd\n' >"$1/name with spaces/$(printf 'new\nline')"
	printf '#!/bin/sh\n' >"$1/a/run"
	chmod 755 "$1/a/run"
	chmod 600 "$1/a/big1"
	chmod 444 "$1/a/big2"
	chmod 700 "$1/empty"
	ln -s ../a/run "$1/a/link"
	: >"$1/a/zero"
	touch -d '2020-01-02 03:04:05' "$1/a/zero"
}

describe_tree() { # folder
	(cd "$1" && find . -printf '%p %y %m %s %l\n' | sort | sed 's/^\(.* d [0-9]*\) [0-9]* /\1 /' && \
		find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

tree_there_and_back() {
	make_tree "$work/tree"
	pando copy "$work/tree" g:/root/tree
	pando copy g:/root/tree "$work/back"
	describe_tree "$work/tree" >"$work/tree.txt"
	describe_tree "$work/back" >"$work/back.txt"
	diff "$work/tree.txt" "$work/back.txt"
	equal "the time of zero" "$(stat -c %Y "$work/back/a/zero")" "$(stat -c %Y "$work/tree/a/zero")"
	pando execute g -- rm -rf /root/tree
	rm -rf "$work/tree" "$work/back"
}

missing_is_said() {
	status_is 3 pando copy g:/no/such/file "$work/x"
	contains "the error" "$stderr" /no/such/file
	status_is 3 pando copy "$work/nothing-here" g:/root/x
	contains "the error" "$stderr" nothing-here
}

it "a 50 MB tree with modes goes there and back unchanged" tree_there_and_back
it "copying what is not there names it" missing_is_said
