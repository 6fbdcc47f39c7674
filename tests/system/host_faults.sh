#!/bin/sh
# pandod killed with SIGKILL at every stage of making, branching and starting a VM (fault points: common/fault.h). Each
# time the next command must find the truth: the tree as it was, or with what was made; the parent alive and counting; no
# process, segment, socket or namespace left over. With the small guest, in seconds.
# shellcheck disable=SC2329,SC2317 # tests are called by name
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES
cd "$work" || exit 2

# A fresh pair of parent and branch, so that the tree is more than one VM.
prepare() {
	pando delete --all -y -q >/dev/null 2>&1 || true
	run_small -N p -- mode=work tick=20000 disk=1 >/dev/null
	wait_until "what p says" console_says p tick
	pando branch p -n old --no-wait >/dev/null
	wait_until "what old says" console_says old tick
	# as the next daemon has them: through their control sockets
	end_daemon
	pando status -q >/dev/null
}

# What is held, but the segments' names (they go on), and of the sockets those that listen: connections come and go.
held() {
	holdings | grep -v '\.data$\|\.index$\|^sockets '
	awk -v home="$PANDO_HOME/" '$4 == "00010000" && index($0, home)' /proc/net/unix | wc -l
}

# All or nothing: nothing.
undone_at() { # point, count
	prepare
	tree_before=$(the_tree)
	held_before=$(held)
	segments_before=$(find "$PANDO_HOME/segments" -name '*.data' | wc -l)
	dies_at "$1" pando branch p --count "$2" -n new --no-wait
	tree_after=$(the_tree)
	equal "the tree" "$tree_after" "$tree_before"
	wait_until "only what is in the tree runs" settled
	equal "what is held" "$(held)" "$held_before"
	# once the fork has happened the parent is in a new segment: one more, and only that
	segments=$(find "$PANDO_HOME/segments" -name '*.data' | wc -l)
	[ "$segments" -ge "$segments_before" ] && [ "$segments" -le $((segments_before + 1)) ] ||
		fail "$segments segments, $segments_before before: $(holdings)"
	counts_on p
	counts_on old
	# and the disk can still be read, and the same branch be made
	pando disk export -f p "$work/p.raw" >/dev/null
	status_is 0 pando branch p --count "$2" -n new --no-wait
	equal "the number of VMs" "$(pando status -q | wc -l)" $(($2 + 2))
	pando disk export -f p "$work/p.raw" >/dev/null
}

branch_undone() {
	needs_kvm
	for point in branch.entered branch.segment branch.forked branch.started branch.cut; do
		undone_at "$point" 1
	done
}

branch_of_many_undone() {
	needs_kvm
	for point in branch.entered branch.segment branch.park-files branch.parked branch.forked branch.started branch.cut; do
		undone_at "$point" 3
	done
}

branch_made() {
	needs_kvm
	prepare
	dies_at branch.made pando branch p -n new --no-wait
	equal "the number of VMs" "$(pando status -q | wc -l)" 3
	equal "its parent" "$(vm_field new parent)" "$(vm_field p id)"
	for vm in p old new; do
		counts_on "$vm"
	done
	wait_until "only what is in the tree runs" settled
	status_is 0 pando delete -y -r p
	equal "the files left" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" -mindepth 1 | wc -l)" 0

	# some of many were made: these stay, the others go
	prepare
	dies_at branch.first-made pando branch p --count 3 -n new --no-wait
	equal "the number of VMs" "$(pando status -q | wc -l)" 3
	counts_on new-0
	counts_on p
	wait_until "only what is in the tree runs" settled
	equal "the folders" "$(find "$PANDO_HOME/vms" -mindepth 1 -maxdepth 1 | wc -l)" 3
}

create_undone() {
	needs_kvm
	pando delete --all -y -q >/dev/null
	for point in create.entered create.spawned create.booted create.started; do
		dies_at "$point" run_small -N c -- mode=work
		equal "the VMs after $point" "$(pando status -q)" ""
		wait_until "nothing runs" settled
		equal "the files left after $point" \
			"$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" -mindepth 1)" ""
	done
	dies_at create.made run_small -N c -- mode=work tick=20000
	equal "the VMs" "$(pando status -q | wc -l)" 1
	counts_on c
}

start_is_whole_or_not_at_all() {
	needs_kvm
	for point in start.part start.flattened start.entered start.spawned start.booted start.started start.made; do
		pando delete --all -y -q >/dev/null
		run_small -N s -- mode=work tick=20000 disk=1 >/dev/null
		wait_until "what s says" console_says s tick
		pando branch s -n kin --no-wait >/dev/null
		pando stop s --force >/dev/null
		pando disk export -f s "$work/s.raw" >/dev/null
		dies_at "$point" pando start s --no-wait
		case $point in
		start.part | start.flattened) want=stopped ;;
		start.made) want=starting ;;
		*) want=failed ;;
		esac
		equal "the state after $point" "$(vm_field s state)" "$want"
		wait_until "only what is in the tree runs ($point)" settled
		equal "unfinished bases after $point" "$(find "$PANDO_HOME/bases" -name '*.part')" ""
		pando disk export -f s "$work/s2.raw" >/dev/null
		case $point in
		start.booted | start.started | start.made) ;; # the guest has written since
		*) cmp "$work/s.raw" "$work/s2.raw" ;;
		esac
		counts_on kin
		status_is 0 pando start s --no-wait
		wait_until "s ticks" console_says s tick
		equal "the bases after $point" "$(find "$PANDO_HOME/bases" -type f | wc -l)" 1
		status_is 0 pando delete -y -r s
		equal "the files left after $point" \
			"$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" "$PANDO_HOME/bases" -mindepth 1)" ""
	done
}

a_vmm_killed_under_a_branch_is_the_only_loss() {
	needs_kvm
	pando delete --all -y -q >/dev/null
	prepare
	for i in 1 2 3 4 5; do
		pando branch p --count 4 -n "k$i" --no-wait >"$work/branch" 2>&1 &
		job=$!
		sleep 0.0$i
		kill -9 "$(info p 'j["pid"] or 0')" 2>/dev/null || true
		wait "$job" || true
		wait_until "p has failed" state_is p failed
		wait_until "only what is in the tree runs" settled
		counts_on old
		status_is 0 pando start p --no-wait
		wait_until "p ticks" console_says p tick
	done
	status_is 0 pando delete -y -r p
	equal "the files left" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" "$PANDO_HOME/bases" -mindepth 1)" ""
}

# state.db may come back without its last branches; a guest's flush reached the segment that it went on in since.
a_power_loss_that_takes_the_last_branch_from_the_database_keeps_the_parents_disk() {
	needs_kvm
	pando delete --all -y -q >/dev/null
	run_small -N p -- mode=work tick=20000 disk=1 >/dev/null
	wait_until "p ticks" console_says p tick
	end_daemon
	pando status -q >/dev/null # a start folds the log of the last pandod into the file
	end_daemon
	mkdir "$work/before"
	cp "$PANDO_HOME"/state.db* "$work/before/"
	for n in 1 2; do
		pando branch p -n "new$n" --no-wait -q >/dev/null
		counts_on p
		wait_until "p has written since" console_says p "fork n=$((n + 1)) .*disk=ok"
	done
	pando pause p
	pando disk export -f p "$work/before.raw" >/dev/null
	end_daemon
	for victim in $(vmm_pids); do
		kill -9 "$victim"
	done
	rm -f "$PANDO_HOME"/state.db*
	cp "$work"/before/state.db* "$PANDO_HOME/"
	pando disk export -f p "$work/after.raw" >/dev/null
	cmp "$work/before.raw" "$work/after.raw"
	equal "the number of VMs" "$(pando status -q | wc -l)" 1
	status_is 0 pando start p --no-wait
	wait_until "p ticks" console_says p tick
	# What lies in no table and cannot belong to a disk goes, as ever.
	status_is 0 pando delete -y -r p
	equal "the files left" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" "$PANDO_HOME/bases" -mindepth 1)" ""
}

# Or else no sanitizer finds anything in a VMM, however long one looks: the seal let no report out.
what_sanitizers_find_in_a_sealed_vmm_is_seen() {
	needs_kvm
	pando delete --all -y -q >/dev/null
	run_small -N faulty
	pando branch faulty -n kin --no-wait -q
	for v in kin faulty; do
		kill -SEGV "$(info "$v" 'j["pid"]')"
		wait_until "$v has failed" state_is "$v" failed
		findings >"$work/report"
		grep -q 'AddressSanitizer: SEGV' "$work/report"
		grep -q ' in main vmm/main.c:' "$work/report"
	done
	pando delete -y -q -r faulty
}

t branch_undone
t branch_of_many_undone
t branch_made
t create_undone
t start_is_whole_or_not_at_all
t a_vmm_killed_under_a_branch_is_the_only_loss
t a_power_loss_that_takes_the_last_branch_from_the_database_keeps_the_parents_disk
! sanitized || t what_sanitizers_find_in_a_sealed_vmm_is_seen
finish
