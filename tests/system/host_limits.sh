#!/bin/sh
# Limits of a VM's disk: given at its start or while it runs, and had by branches and commits.
# shellcheck disable=SC2329
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES

limits_are() { # vm, bps, iops
	equal "the limits of $1" "$(info "$1" '(j["disk_bps"], j["disk_iops"])')" "($2, $3)"
}

limits_are_had_by_branches_and_by_vms_from_commits() {
	needs_kvm
	run_small -N slow --disk-bps 1M -- mode=flush pages=4
	limits_are slow 1048576 0
	status_is 0 pando limit slow --disk-iops 200
	limits_are slow 1048576 200
	contains "info" "$(pando info slow)" '1.0 MiB and 200 requests in a second'
	wait_until "what slow says" console_says slow 'flush 3 status=0'
	status_is 0 pando branch slow -n branch --no-wait
	limits_are branch 1048576 200
	status_is 0 pando commit slow --tag slow
	status_is 0 pando limit slow --disk-bps 0 --disk-iops 0
	limits_are slow 0 0
	limits_are branch 1048576 200
	status_is 0 pando run-commit slow -N again --no-wait
	limits_are again 1048576 200
	wait_until "what again says" console_says again 'status=0'
	end_daemon
	limits_are again 1048576 200
	# One that was told a limit knows it; it may be told another one.
	status_is 0 pando limit again --disk-bps 512K
	limits_are again 524288 200
}

limits_that_cannot_be_are_refused() {
	needs_kvm
	for bad in 1000 10X -1 "" 2000G; do
		status_is 2 pando limit slow --disk-bps "$bad"
		contains "the error" "$stderr" '--disk-bps'
	done
	status_is 2 pando limit slow
	contains "the error" "$stderr" 'which limit?'
	status_is 2 pando run --no-wait --disk-iops many
	limits_are slow 0 0
	printf '[machine]\ndisk_bps = 1000\n' >"$work/pando.toml"
	status_is 2 pando run --no-wait -C "$work/pando.toml"
	contains "the error" "$stderr" 'machine.disk_bps must be 65536'
	status_is 0 pando delete --all -y
}

t limits_are_had_by_branches_and_by_vms_from_commits
t limits_that_cannot_be_are_refused
finish
