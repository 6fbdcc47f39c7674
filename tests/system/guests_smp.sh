#!/bin/sh
# A Debian guest with 2 CPUs at work is branched: as in guests/branch.sh with one.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
. "$here/guests/branch_work.sh"

boots_with_two() {
	boot_guest g2 --vcpu-count 2 --mem-size 512 --fs-size-vm 1536
	equal "state of g2" "$(vm_field g2 state)" running
	equal "its CPUs" "$(pando execute g2 -- nproc)" 2
}

it "a Debian machine with 2 CPUs boots until its agent answers" boots_with_two
it "work starts in the machine with 2 CPUs" start_work g2
it "with 2 CPUs: branched $rounds times in a row, each branch goes on and its disk is sound" branched_in_a_row g2 "$rounds"
it "with 2 CPUs: 8 branches at once go on, apart from each other" eight_at_once g2
finish
