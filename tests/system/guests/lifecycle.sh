# Sourced by ../guests.sh: what becomes of a Debian machine after it was made. Works on a branch of g.

stopped_and_started() {
	pando branch g -q -n life
	pando execute life -- sh -c 'echo kept >/root/kept; echo lost >/run/lost'
	status_is 0 pando stop life
	equal "its state" "$(vm_field life state)" stopped
	status_is 0 pando start life
	equal "its disk" "$(pando execute life -- cat /root/kept)" kept
	status_is 1 pando execute life -- test -e /run/lost
	pando execute g -- test ! -e /root/kept
}

disk_and_filesystem_grow_live() {
	before=$(pando execute life -- df -m --output=size / | tail -n 1)
	status_is 0 pando resize life --fs-size 2048
	after=$(pando execute life -- df -m --output=size / | tail -n 1)
	[ "$after" -gt $((before + 400)) ] || fail "the file system had $before MiB and has $after MiB"
	# what did not fit before
	pando execute life -- sh -c 'head -c 5000000 /dev/urandom >/root/more && sync'
	status_is 2 pando resize life --fs-size 1600
	contains "the error" "$stderr" "can only grow"
	wait_until 20 "life ends" pando delete -y -q life
}

it "stop keeps the disk and loses the memory, start boots from it" stopped_and_started
it "a disk and its file system grow under a running guest" disk_and_filesystem_grow_live
