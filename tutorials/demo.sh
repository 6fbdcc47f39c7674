#!/bin/sh
# The demonstration (`make demo`): eight branches of one warm machine try eight ways to better a small C program
# (tutorials/wordfreq); the best one's patch is applied to a copy here, where its tests pass.
#
#	demo.sh BUILD-FOLDER
#
# Guests run on this host where its KVM boots Linux, else in the test machine; either way the result lies in
# BUILD-FOLDER/demo. Progress goes to stderr, the result to stdout.
set -eu

say() {
	printf 'demo: %s\n' "$*" >&2
}

die() {
	say "$*"
	exit 1
}

[ $# = 1 ] || die "usage: demo.sh BUILD-FOLDER"
build=$(cd "$1" && pwd)
project=$(cd "$(dirname "$0")/.." && pwd)
pando=$build/bin/pando
spec=$project/tutorials/wordfreq/swarm.toml
result=$build/demo
start=$(date +%s)

cd "$project" || exit 1
[ -x "$pando" ] || die "$pando is not built; run make"
for tool in patch gcc make tar; do
	command -v "$tool" >/dev/null || die "there is no $tool; run make deps"
done
rm -rf "$result"
mkdir -p "$result"

if "$pando" doctor --can-boot-linux -q >/dev/null 2>&1; then
	say "guests run on this host"
	"$pando" swarm run "$spec" --output "$result/swarm" >"$result/answer"
else
	say "this host's KVM boots no Linux, so guests run in the test machine (emulated: minutes, not seconds)"
	"$pando" machine start >&2
	"$pando" machine exec -q -- rm -rf /var/tmp/pando-demo </dev/null
	"$pando" machine exec -q -- "$pando" swarm run "$spec" --output /var/tmp/pando-demo \
		</dev/null >"$result/answer" || {
		status=$?
		say "the swarm failed; its record is /var/tmp/pando-demo/record.jsonl in the machine"
		exit $status
	}
	mkdir "$result/swarm"
	"$pando" machine exec -q -- tar -C /var/tmp/pando-demo -cf - . </dev/null | tar -C "$result/swarm" -xf -
	"$pando" machine exec -q -- rm -rf /var/tmp/pando-demo </dev/null
fi

winner=$(sed -n 's/^winner  *//p' "$result/answer")
score=$(sed -n 's/^score  *//p' "$result/answer")
change=$result/swarm/winner/result.patch
[ -n "$winner" ] && [ -s "$change" ] || die "the swarm ended without a winner's patch"

say "applying the patch of $winner to a copy of the program"
cp -r "$project/tutorials/wordfreq/program" "$result/program"
patch -s -d "$result/program" -p1 <"$change" >&2 || die "the patch $change does not apply"
make -s -C "$result/program" clean >&2
make -s -C "$result/program" test >"$result/test.log" 2>&1 || {
	cat "$result/test.log" >&2
	die "the patched program does not pass its tests"
}

seconds=$(($(date +%s) - start))
echo "winner  $winner, score $score"
echo "patch   $change"
echo "record  $result/swarm/record.jsonl"
echo "copy    $result/program"
tail -n 1 "$result/test.log"
say "done in $((seconds / 60)) min $((seconds % 60)) s"
