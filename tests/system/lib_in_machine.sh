#!/bin/sh
# Runs one test script inside the test machine: the same script, the same names, the same build. The project folder and
# the images are there by the same paths (pando machine).
#
# The machine is an emulated computer, and its own kernel has been seen to panic in the middle of a long run ("corrupted
# stack end"). When the machine itself died under a script, that script is run once
# more in a new one, and says so; whatever else fails has failed.
: "${B:?}"
folder=$(cd "$(dirname "$0")/../.." && pwd) || exit 2
said=$(mktemp) || exit 2
trap 'rm -f "$said"' EXIT

for attempt in first second; do
	"$B/bin/pando" machine exec -- env B="$B" ${SUBJECTS:+SUBJECTS="$SUBJECTS"} ${ROUNDS:+ROUNDS="$ROUNDS"} \
		${DEPTH:+DEPTH="$DEPTH"} ${WIDTH:+WIDTH="$WIDTH"} ${CHILDREN:+CHILDREN="$CHILDREN"} sh -c 'cd "$1" && shift && exec sh "$@"' sh "$folder" "$@" >"$said"
	status=$?
	[ $attempt = first ] && [ $status = 125 ] && [ "$("$B/bin/pando" machine status -q)" != running ] || break
	echo "# the test machine itself died; what it said last:"
	console=${PANDO_MACHINE_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/pando/machine}/console.log
	tail -n 40 "$console" | tr -cd '\11\12\40-\176' | sed 's/^/# /'
	echo "# once more, in a new one"
	"$B/bin/pando" machine start >&2 || break
done
cat "$said"
exit $status
