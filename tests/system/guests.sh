#!/bin/sh
# Whole systems: Debian guests under pandod. Two machines are booted (1 and 2 CPUs), once; every test works on them or
# on branches of them. See guests/ for the tests, a file a subject.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

# The home on a file system of its own that can be filled, where we may mount one.
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=4g,mode=700 pando-test "$PANDO_HOME" 2>/dev/null; then
	own_filesystem=yes
else
	own_filesystem=no
fi

boots() { # alias, CPUs
	pando run -q -N "$1" --vcpu-count "$2" --mem-size 512 --fs-size-vm 1536
	equal "state of $1" "$(vm_field "$1" state)" running
}

it "a Debian machine boots until its agent answers" boots g 1
it "a Debian machine with 2 CPUs boots until its agent answers" boots g2 2

# SUBJECTS="copy faults" runs only those; ROUNDS=2 branches twice in a row instead of 20 times.
for subject in ${SUBJECTS:-execute copy branch faults}; do
	. "$here/guests/$subject.sh"
done
finish
