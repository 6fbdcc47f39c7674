#!/bin/sh
# test.sh PROGRAM: runs the tests; the last line is "tests: N passed, N failed".
wordfreq=${1:-./wordfreq}
passed=0
failed=0

# check NAME TEXT EXPECTED ARGUMENTS…; TEXT and EXPECTED with printf's escapes.
check() {
	name=$1
	expected=$(printf "$3")
	got=$(printf "$2" | {
		shift 3
		"$wordfreq" "$@"
	} 2>&1)
	if [ "$got" = "$expected" ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		printf 'FAILED: %s\n%s\n  instead of\n%s\n' "$name" "$got" "$expected"
	fi
}

check 'words are counted' 'a b a\n' '2 a\n1 b'
check 'case is folded' 'The the THE\n' '3 the'
check 'apostrophes only inside words' "don't 'quoted' don't\n" "2 don't\n1 quoted"
check '-n limits' 'c c c b b a\n' '3 c\n2 b' -n 2
check '-m leaves short words out' 'aa aa b cc cc cc d\n' '3 cc\n2 aa' -m 2
check 'totals' 'one two\nthree\n' '3 words, 3 distinct' -t -n 0
check 'no text, no words' '' '0 words, 0 distinct' -t
check 'text may end in the middle of a line' 'a a b' '2 a\n1 b'
check 'one word without a newline' 'end' '1 words, 1 distinct\n1 end' -t
check 'equal counts are in order' 'pear apple fig apple fig pear kiwi\n' \
	'2 apple\n2 fig\n2 pear\n1 kiwi'
check 'order decides who is cut off' 'z y x w\n' '1 w\n1 x' -n 2
check 'many words are told apart' "$(seq -s ' ' -f 'w%g' 3000)\n" \
	'3000 words, 3000 distinct' -t -n 0

echo "tests: $passed passed, $failed failed"
[ "$failed" = 0 ]
