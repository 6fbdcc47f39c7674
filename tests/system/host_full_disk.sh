#!/bin/sh
# A full disk under the guest's writes: the guest sees an I/O error, its VM and pandod go on.
# shellcheck disable=SC2329,SC2317
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES

# The home is a small file system of its own, in a mount namespace of this script's.
if [ "${1:-}" != inside ]; then
	if unshare -m true 2>/dev/null; then
		unshare -m sh "$0" inside
		exit # with its status
	fi
	a_full_disk_is_an_io_error_in_the_guest() { skip "only root may mount a small file system"; }
	t a_full_disk_is_an_io_error_in_the_guest
	finish
fi
mount -t tmpfs -o size=6m,mode=700 small "$PANDO_HOME" || exit 1

a_full_disk_is_an_io_error_in_the_guest() {
	needs_kvm
	run_small -N full -- mode=work disk=1
	wait_until "what full says" console_says full 'disk ok'
	pid=$(info full 'j["pid"]')
	status_is 0 pando branch full -n other --no-wait
	wait_until "what full says" console_says full 'fork n=2 .*memory=ok .*disk=ok'
	wait_until "what other says" console_says other 'fork n=2 .*memory=ok .*disk=ok'
	# Files that are made while it is full must fail with a sentence, not half.
	dd if=/dev/zero of="$PANDO_HOME/filler" bs=4k 2>/dev/null || true
	got=0
	pando branch full -n third --no-wait >"$work/stdout" 2>"$work/stderr" || got=$?
	if [ "$got" -eq 0 ]; then
		wait_until "what full says" console_says full 'fork n=3 .*memory=ok .*disk=ERROR'
	else
		[ -s "$work/stderr" ] || fail "branch failed without a sentence"
		equal "the number of VMs" "$(pando status -q | wc -l)" 2
	fi
	kill -0 "$pid"
	# With room again everything works again.
	rm "$PANDO_HOME/filler"
	status_is 0 pando branch other -n fourth --no-wait
	wait_until "what fourth says" console_says fourth 'memory=ok .*disk=ok'
	kill -0 "$pid"
	status_is 0 pando delete -r -y full
}

t a_full_disk_is_an_io_error_in_the_guest
finish
