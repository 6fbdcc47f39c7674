#!/bin/sh
# A hundred times create, branch, delete: nothing is left behind.
# shellcheck disable=SC2329,SC2317
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES
ROUNDS=${ROUNDS:-100}

# Control groups of VMs whose id this home has had: those of others come and go beside this test.
vm_groups() {
	find /sys/fs/cgroup -type d -name 'pando-*.scope' 2>/dev/null | while read -r group; do
		id=${group##*/pando-}
		grep -q "vm ${id%.scope}" "$PANDO_HOME/pandod.log" 2>/dev/null && echo "$group"
	done
}

# What is counted: processes of ours, files of the home, the daemon's descriptors and threads, namespaces on this
# host that belong to no other process than ours did, control groups of VMs.
counts() {
	echo "processes $(home_pids pando-vmm | wc -l) $(home_pids pandod | wc -l)"
	echo "files $(find "$PANDO_HOME" | wc -l)"
	echo "vms $(find "$PANDO_HOME/vms" -mindepth 1 2>/dev/null | wc -l)"
	echo "segments $(find "$PANDO_HOME/segments" -mindepth 1 2>/dev/null | wc -l)"
	echo "sockets $(grep -c "$PANDO_HOME" /proc/net/unix)"
	echo "groups $(vm_groups | wc -l)"
	echo "descriptors $(find "/proc/$(pandod_pid)/fd" -mindepth 1 | wc -l)"
	echo "namespaces $(find /proc/[0-9]*/ns -name net -o -name mnt -o -name user 2>/dev/null |
		while read -r ns; do readlink "$ns" 2>/dev/null; done | sort -u | wc -l)"
}

a_hundred_rounds_leave_no_process_socket_segment_or_namespace() {
	needs_kvm
	# One round first: what is made once (the daemon, its database) is there before the count.
	run_small -N first >/dev/null
	pando delete -y first >/dev/null
	counts >"$work/before"
	i=0
	while [ $i -lt "$ROUNDS" ]; do
		i=$((i + 1))
		run_small -q -N "r$i" >/dev/null
		pando branch -q "r$i" -n "s$i" --no-wait >/dev/null
		[ $((i % 10)) -ne 0 ] || pando branch -q "s$i" --count 3 --no-wait >/dev/null
		pando delete -q -r -y "r$i" >/dev/null
	done
	equal "the number of VMs left" "$(pando status -q | wc -l)" 0
	# A connection of the last command may take a moment to be gone.
	as_before() {
		counts >"$work/after"
		cmp -s "$work/before" "$work/after"
	}
	wait_until "all is as it was before" as_before ||
		fail "before: $(tr '\n' ' ' <"$work/before"); after: $(tr '\n' ' ' <"$work/after")"
}

t a_hundred_rounds_leave_no_process_socket_segment_or_namespace
finish
