#!/bin/sh
# Where Debian guests can run: says "direct" (this host's KVM boots Linux), "machine" (the test machine is up),
# "none" (this host can have neither; why is the last line of stderr) or "broken" (it should, but did not come
# up). Starts the machine and makes the guest image where they are missing; progress goes to stderr.
: "${B:?}"
pando=$B/bin/pando

if "$pando" doctor --can-boot-linux -q >/dev/null 2>&1; then
	"$B/libexec/pando/pando-golden" image >&2 || {
		echo "the guest image could not be made" >&2
		echo broken
		exit 0
	}
	echo direct
	exit 0
fi
if ! command -v qemu-system-x86_64 >/dev/null; then
	echo "this host's KVM boots no Linux and there is no qemu-system-x86_64 for the test machine; make deps" >&2
	echo none
	exit 0
fi
"$B/libexec/pando/pando-golden" image >&2 && timeout 7200 "$pando" machine start >&2 || {
	echo "the test machine did not start; see above" >&2
	echo broken
	exit 0
}
echo machine
