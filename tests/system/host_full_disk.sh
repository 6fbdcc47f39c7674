#!/bin/sh
# A full disk under the guest's writes: the VM is paused with a sentence, and goes on with room.
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
	a_full_disk_pauses_the_vm_and_room_lets_it_go_on() { skip "only root may mount a small file system"; }
	a_vm_whose_disk_is_full_says_so_and_can_be_resumed() { skip "only root may mount a small file system"; }
	t a_full_disk_pauses_the_vm_and_room_lets_it_go_on
	t a_vm_whose_disk_is_full_says_so_and_can_be_resumed
	finish
fi
mount -t tmpfs -o size=6m,mode=700 small "$PANDO_HOME" || exit 1

is_paused_by_its_disk() { # vm
	[ "$(info "$1" '(j["state"], "no room" in (j["reason"] or ""))')" = "('paused', True)" ]
}

a_full_disk_pauses_the_vm_and_room_lets_it_go_on() {
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
	third=
	pando branch full -n third --no-wait >"$work/stdout" 2>"$work/stderr" || got=$?
	if [ "$got" -eq 0 ]; then
		wait_until "full's state" is_paused_by_its_disk full
		third=yes
	else
		[ -s "$work/stderr" ] || fail "branch failed without a sentence"
		equal "the number of VMs" "$(pando status -q | wc -l)" 2
	fi
	kill -0 "$pid"
	# With room again everything works again.
	rm "$PANDO_HOME/filler"
	if [ "$third" ]; then
		wait_until "what full says" console_says full 'fork n=3 .*memory=ok .*disk=ok'
		wait_until "what third says" console_says third 'fork n=3 .*memory=ok .*disk=ok'
		wait_until "full's state" state_is full starting
		equal "full's reason" "$(info full 'j["reason"]')" None
	fi
	status_is 0 pando branch other -n fourth --no-wait
	wait_until "what fourth says" console_says fourth 'memory=ok .*disk=ok'
	kill -0 "$pid"
	status_is 0 pando delete -r -y full
}

a_vm_whose_disk_is_full_says_so_and_can_be_resumed() {
	needs_kvm
	run_small -N writer -- mode=flush pages=40 pause=1000
	wait_until "what writer says" console_says writer 'flush 0 status=0'
	dd if=/dev/zero of="$PANDO_HOME/filler" bs=4k 2>/dev/null || true
	wait_until "writer's state" is_paused_by_its_disk writer
	contains "status" "$(pando status)" '"writer" is paused: the host has no room'
	got=0
	pando execute writer -- true >/dev/null 2>"$work/stderr" || got=$?
	not [ "$got" -eq 0 ]
	contains "execute" "$(cat "$work/stderr")" 'no room'
	# pandod may be another one meanwhile, and a person may try too early.
	end_daemon
	wait_until "writer's state" is_paused_by_its_disk writer
	pando resume writer >/dev/null 2>&1 || true # state.db has no room either
	wait_until "writer's state" is_paused_by_its_disk writer
	rm "$PANDO_HOME/filler"
	wait_until "what writer says" console_says writer 'flush 20 status=0'
	not console_says writer failed
	wait_until "writer's state" state_is writer starting
	equal "writer's reason" "$(info writer 'j["reason"]')" None
	status_is 0 pando delete -r -y writer
}

# A reset with no room for its note, or for a new segment: said, and the VM is what it was; or done, and it is the commit's.
a_full_disk_and_a_reset() {
	needs_kvm
	umount "$PANDO_HOME" 2>/dev/null || umount -l "$PANDO_HOME"
	mount -t tmpfs -o size=64m,mode=700 small "$PANDO_HOME"
	run_small -N one -- mode=work tick=20000 disk=1
	wait_until "what one says" console_says one tick
	pando commit one --tag c >/dev/null
	pando run-commit c -N v --no-wait >/dev/null
	wait_until "what v says" console_says v 'fork n=2 .*memory=ok .*disk=ok'
	vmm=$(info v 'j["pid"]')
	dd if=/dev/zero of="$PANDO_HOME/filler" bs=4k 2>/dev/null || true
	for i in 1 2 3 4; do
		got=0
		was=$(info v 'j["generation"]')
		pando reset v --no-wait >"$work/stdout" 2>"$work/stderr" || got=$?
		now=$(info v 'j["generation"]')
		if [ "$got" -eq 0 ]; then
			[ "$now" != "$was" ] || fail "it says that it was reset"
		else
			[ -s "$work/stderr" ] || fail "no sentence"
			equal "its generation" "$now" "$was"
		fi
		kill -0 "$vmm"
	done
	rm "$PANDO_HOME/filler"
	end_daemon
	lives=$(pando logs v | grep -c 'fork n=2 ')
	status_is 0 pando reset v --no-wait
	more() { [ "$(pando logs v | grep -c 'fork n=2 ')" -gt "$lives" ]; }
	wait_until "v begins again" more
	equal "its process" "$(info v 'j["pid"]')" "$vmm"
	status_is 0 pando commit v
	status_is 0 pando verify
	status_is 0 pando delete --all -y
	equal "the segments left" "$(find "$PANDO_HOME/segments" -name '*.data')" ""
}

t a_full_disk_pauses_the_vm_and_room_lets_it_go_on
t a_vm_whose_disk_is_full_says_so_and_can_be_resumed
t a_full_disk_and_a_reset
finish
