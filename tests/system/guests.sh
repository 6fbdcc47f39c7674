#!/bin/sh
# Whole systems: a Debian guest under pandod. One machine is booted; every test works on it or on branches of it. See
# guests/ for the tests, a file a subject.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

# The home on a file system of its own that can be filled, where we may mount one.
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=4g,mode=700 pando-test "$PANDO_HOME" 2>/dev/null; then
	own_filesystem=yes
else
	own_filesystem=no
fi

boots() {
	boot_guest g --mem-size 512 --fs-size-vm 1536
	equal "state of g" "$(vm_field g state)" running
}

it "a Debian machine boots until its agent answers" boots

# SUBJECTS="copy faults" runs only those; ROUNDS=2 branches twice in a row instead of 20 times.
for subject in ${SUBJECTS:-execute connect copy branch identity image ssh lifecycle commit rpc pathunit faults}; do
	. "$here/guests/$subject.sh"
	# What a test that failed has left would slow down all others.
	for vm in $(vms '" ".join(v["id"] for v in j if v["alias"] != "g")'); do
		pando delete -r -y -q "$vm" >/dev/null 2>&1 || :
	done
	# The home is small: no subject needs the commits of another, nor the images that were made of them.
	for commit in $(pando commit list -q 2>/dev/null); do
		pando commit delete -r "$commit" >/dev/null 2>&1 || :
	done
	pando gc >/dev/null 2>&1 || :
	echo "# the home after $subject: $(du -sk "$PANDO_HOME" | cut -f1) KiB"
done
finish
