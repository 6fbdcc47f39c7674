#!/bin/sh
# Runs one test script inside the test machine: the same script, the same names, the same build. The project folder and
# the images are there by the same paths (pando machine).
: "${B:?}"
folder=$(cd "$(dirname "$0")/../.." && pwd) || exit 2
exec "$B/bin/pando" machine exec -- env B="$B" sh -c 'cd "$1" && shift && exec sh "$@"' sh "$folder" "$@"
