#!/bin/sh
# What guests_pi.sh needs and a guest cannot fetch: an image with node, and pi with all that it depends on, packed in
# $B/tests/pi.tar. Runs on the host. Status 77: this host cannot have them, the last line of stderr says why.
#
# Which files these are says pi/package-lock.json, with the hash of each package; what was fetched once is kept in the
# user's cache. To have another version: in a copy of pi/, `npm install --package-lock-only --omit-lockfile-registry-resolved`.
set -eu
: "${B:?}"
folder=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pando/tests

cannot() {
	echo "$*" >&2
	exit 77
}

key=$(cat "$folder/pi/package.json" "$folder/pi/package-lock.json" "$folder/lib_before_guests_pi.sh" | sha256sum | cut -c1-16)
tar=$cache/pi-$key.tar
if [ ! -e "$tar" ]; then
	command -v npm >/dev/null || cannot "there is no npm on this host to fetch the coding agent pi with"
	mkdir -p "$cache"
	new=$(mktemp -d "$cache/.new-XXXXXXXX")
	trap 'rm -rf "$new"' EXIT
	trap 'exit 130' INT TERM HUP
	cp "$folder/pi/package.json" "$folder/pi/package-lock.json" "$new"
	echo "fetching the coding agent pi from npm's registry" >&2
	# No package's scripts are run, on the host or in a guest.
	(cd "$new" && timeout 3600 npm ci --omit=dev --omit=optional --ignore-scripts --no-audit --no-fund --no-update-notifier \
		--fetch-retries=1 --fetch-timeout=60000) >"$new/log" 2>&1 || {
		why=$(sed -n 's/^npm error //p; s/^npm ERR! //p' "$new/log" | head -n 2 | tr '\n' ' ')
		case $why in
		*ENOTFOUND* | *EAI_AGAIN* | *ECONN* | *ETIMEDOUT* | *ENETUNREACH* | *EHOSTUNREACH* | *E40[0-9]* | *E5[0-9][0-9]* | '')
			cannot "npm's registry gives this host no coding agent pi: ${why:-no answer in time}"
			;;
		esac
		echo "the coding agent pi could not be fetched: $why" >&2
		exit 1
	}
	# Two thirds of the bytes and files are for who writes programs with it.
	find "$new/node_modules" -type f \( -name '*.map' -o -name '*.ts' -o -name '*.mts' -o -name '*.cts' -o -name '*.md' \) -delete
	tar -c --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$new" -f "$new/pi.tar" node_modules
	rm -f "$cache"/pi-*.tar
	mv "$new/pi.tar" "$tar"
fi
# In the build folder, which the test machine has, too.
mkdir -p "$B/tests"
cmp -s "$tar" "$B/tests/pi.tar" || {
	cp --reflink=auto "$tar" "$B/tests/pi.tar.new"
	mv "$B/tests/pi.tar.new" "$B/tests/pi.tar"
}
"$B/libexec/pando/pando-golden" image --name test-node --package nodejs --no-default >&2
