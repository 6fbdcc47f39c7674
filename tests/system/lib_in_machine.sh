#!/bin/sh
# Runs one test script inside the test machine: the same script, the same names, the same build. The project folder and
# the images are there by the same paths (pando machine). When the machine itself dies under it, its last words are shown.
: "${B:?}"
folder=$(cd "$(dirname "$0")/../.." && pwd) || exit 2

# What a script needs of this host, which may reach a network, is got ready by lib_before_<its name>. Status 77: it cannot be had.
before=$folder/tests/system/lib_before_${1##*/}
if [ -e "$before" ]; then
	why=$(sh "$before" 2>&1 >/dev/null)
	status=$?
	why=$(printf '%s\n' "$why" | tail -n 1)
	name=${1##*/}
	case $status in
	0) ;;
	77)
		printf 'ok 1 - %s # SKIP %s\n1..1\n' "${name%.sh}" "$why"
		exit 0
		;;
	*)
		printf '# %s\nnot ok 1 - %s has what it needs\n1..1\n' "$why" "${name%.sh}"
		exit 1
		;;
	esac
fi

"$B/bin/pando" machine exec -- env B="$B" ${SUBJECTS:+SUBJECTS="$SUBJECTS"} ${ROUNDS:+ROUNDS="$ROUNDS"} \
	${DEPTH:+DEPTH="$DEPTH"} ${WIDTH:+WIDTH="$WIDTH"} ${CHILDREN:+CHILDREN="$CHILDREN"} ${BOOTS:+BOOTS="$BOOTS"} \
	${MIB:+MIB="$MIB"} ${MEM:+MEM="$MEM"} ${ORDERS:+ORDERS="$ORDERS"} ${SETTINGS:+SETTINGS="$SETTINGS"} sh -c 'cd "$1" && shift && exec sh "$@"' sh "$folder" "$@"
status=$?
if [ $status = 125 ] && [ "$("$B/bin/pando" machine status -q)" != running ]; then
	echo "# the test machine itself died; what it said last:"
	console=${PANDO_MACHINE_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/pando/machine}/console.log
	tail -n 40 "$console" | tr -cd '\11\12\40-\176' | sed 's/^/# /'
fi
exit $status
