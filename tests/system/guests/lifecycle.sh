# Sourced by ../guests.sh: what becomes of a Debian machine after it was made. Works on a branch of g.

stopped_and_started() {
	pando branch g -q -n life
	pando execute life -- sh -c 'echo kept >/root/kept; echo lost >/run/lost'
	status_is 0 pando stop life --timeout 3600
	equal "its state" "$(vm_field life state)" stopped
	status_is 0 pando start life
	equal "its disk" "$(pando execute life -- cat /root/kept)" kept
	status_is 1 pando execute life -- test -e /run/lost
	pando execute g -- test ! -e /root/kept
}

reboots() {
	was=$(pando execute life -- cat /proc/sys/kernel/random/boot_id)
	pid=$(vm_field life pid)
	pando execute life -- sh -c 'echo again >/root/kept; sync'
	# The connection ends with the machine.
	pando execute life -n -- systemctl reboot >/dev/null 2>&1 || true
	is_another() {
		now=$(pando execute life -n -- cat /proc/sys/kernel/random/boot_id 2>/dev/null) && [ -n "$now" ] && [ "$now" != "$was" ]
	}
	wait_until "it runs again" is_another
	equal "its disk" "$(pando execute life -- cat /root/kept)" again
	equal "its reboots" "$(vm_field life reboots)" 1
	[ "$(vm_field life pid)" != "$pid" ] || fail "it is the same process"
	# and one that panics has failed, with what its kernel said
	pando branch life -q -n panics
	pando execute panics -n -- sh -c 'echo c >/proc/sysrq-trigger' >/dev/null 2>&1 || true
	wait_until "panics has failed" state_is panics failed
	contains reason "$(vm_field panics reason)" "Kernel panic - not syncing"
	pando delete -y -q panics
}

disk_and_filesystem_grow_live() {
	before=$(pando execute life -- df -m --output=size / | tail -n 1)
	status_is 0 pando resize life --fs-size 2048
	# The guest may not be done when the call is: the call is there to be made again.
	has_grown() {
		after=$(pando execute life -- df -m --output=size / | tail -n 1)
		[ "$after" -gt $((before + 400)) ] || {
			pando resize life --fs-size 2048
			return 1
		}
	}
	wait_until "the file system of $before MiB has grown" has_grown
	# what did not fit before
	pando execute life -- sh -c 'head -c 5000000 /dev/urandom >/root/more && sync'
	status_is 2 pando resize life --fs-size 1600
	contains "the error" "$stderr" "can only grow"
	wait_until "life ends" pando delete -y -q life
}

it "stop keeps the disk and loses the memory, start boots from it" stopped_and_started
it "a guest that reboots is booted again, one that panics has failed" reboots
it "a disk and its file system grow under a running guest" disk_and_filesystem_grow_live
