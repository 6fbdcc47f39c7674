#!/bin/sh
# Runs one test script inside the test machine: the same script, the same names, the same build. The project folder and
# the images are there by the same paths (pando machine). When the machine itself dies under it, its last words are shown.
: "${B:?}"
folder=$(cd "$(dirname "$0")/../.." && pwd) || exit 2

"$B/bin/pando" machine exec -- env B="$B" ${SUBJECTS:+SUBJECTS="$SUBJECTS"} ${ROUNDS:+ROUNDS="$ROUNDS"} \
	${DEPTH:+DEPTH="$DEPTH"} ${WIDTH:+WIDTH="$WIDTH"} ${CHILDREN:+CHILDREN="$CHILDREN"} sh -c 'cd "$1" && shift && exec sh "$@"' sh "$folder" "$@"
status=$?
if [ $status = 125 ] && [ "$("$B/bin/pando" machine status -q)" != running ]; then
	echo "# the test machine itself died; what it said last:"
	console=${PANDO_MACHINE_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/pando/machine}/console.log
	tail -n 40 "$console" | tr -cd '\11\12\40-\176' | sed 's/^/# /'
fi
exit $status
