#!/bin/sh
# What becomes of a VM after it was made: stopped, started, grown, checked out, deleted with its branches. With the small
# guest, which has no agent. In seconds.
# shellcheck disable=SC2329,SC2317 # tests are called by name
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES
cd "$work" || exit 2

# Boots the small guest with a power button, and waits until it works.
run_work() { # name, options
	name=$1
	shift
	pando_out=$(run_small -N "$name" "$@" -- mode=work button=1)
	wait_until "what $name says" console_says "$name" ready
}

stop_asks_the_guest_and_start_boots_it_again() {
	needs_kvm
	run_work a -l team=red
	id=$(info a 'j["id"]')
	generation=$(info a 'j["generation"]')
	vmm=$(info a 'j["pid"]')
	status_is 0 pando stop a
	equal stdout "$stdout" "$id"
	equal "its state" "$(vm_field a state)" stopped
	equal "why" "$(vm_field a reason)" "the guest powered off"
	gone "$vmm" || fail "its VMM lives"
	status_is 0 pando logs a
	contains "its console" "$stdout" "power button"
	status_is 0 pando stop a
	status_is 0 pando start a --no-wait
	equal stdout "$stdout" "$id"
	wait_until "what a says" console_says a ready
	lacks "its console" "$(pando logs a)" "power button"
	[ -s "$PANDO_HOME/vms/$id/console.old" ] || fail "its old console is gone"
	equal "its label" "$(info a 'j["labels"]["team"]')" red
	[ "$(info a 'j["generation"]')" != "$generation" ] || fail "it has its old generation"
	# it runs: nothing to do
	status_is 0 pando start a --no-wait
	equal "the number of segments" "$(find "$PANDO_HOME/segments" -name "$id.*.data" | wc -l)" 1
	equal "the number of bases" "$(find "$PANDO_HOME/bases" -type f | wc -l)" 1
}

a_guest_that_does_not_heed_goes_on_and_is_ended_by_force() {
	needs_kvm
	run_small -N deaf -- mode=work
	wait_until "what deaf says" console_says deaf ready
	status_is 6 pando stop deaf --timeout 1
	contains stderr "$stderr" 'vm "deaf" did not power off within 1 s'
	contains stderr "$stderr" "--force"
	not state_is deaf stopped || fail "it was stopped"
	status_is 0 pando stop deaf --force
	equal "its state" "$(vm_field deaf state)" stopped
	equal "why" "$(vm_field deaf reason)" "stopped by force"
	status_is 0 pando start deaf --no-wait
	wait_until "what deaf says" console_says deaf ready
	status_is 0 pando pause deaf
	status_is 4 pando stop deaf
	contains stderr "$stderr" "pando resume"
	status_is 4 pando start deaf
	contains stderr "$stderr" "pando resume"
	status_is 0 pando delete -y deaf
}

a_stop_that_waits_can_be_cut_short() {
	needs_kvm
	run_small -N stubborn -- mode=work >/dev/null
	wait_until "what stubborn says" console_says stubborn ready
	pando stop stubborn --timeout 3600 >"$work/waiting" 2>&1 &
	waiting=$!
	busy() { pando delete --dry-run --busy-timeout 0 stubborn 2>&1 | grep -q "being stopped"; }
	wait_until "it is being stopped" busy
	for verb in "branch --no-wait stubborn" "start stubborn" "resize stubborn --fs-size 64" "delete -y stubborn" "stop stubborn"; do
		# shellcheck disable=SC2086 # words
		status_is 4 pando $verb --busy-timeout 0
		contains "stderr of $verb" "$stderr" 'vm "stubborn" is being stopped'
	done
	status_is 0 pando stop --force stubborn
	wait "$waiting" || fail "the first stop: $(cat "$work/waiting")"
	pando delete -y stubborn >/dev/null
}

what_ended_by_itself_is_started_too() {
	needs_kvm
	for mode in off triple; do
		run_small -N "$mode" -- "mode=$mode" >/dev/null
		ended() { [ "$(vm_field "$mode" pid)" = "" ]; }
		wait_until "$mode ends" ended
		first=$(vm_field "$mode" generation)
		status_is 0 pando start "$mode" --no-wait
		wait_until "$mode ends" ended
		[ "$(vm_field "$mode" generation)" != "$first" ] || fail "$mode was not booted again"
		status_is 0 pando delete -y "$mode"
	done
	kill -9 "$(info a 'j["pid"]')"
	wait_until "a has failed" state_is a failed
	status_is 4 pando stop a
	contains stderr "$stderr" "nothing to stop"
	status_is 0 pando start a --no-wait
	wait_until "what a says" console_says a ready
}

a_guest_that_reboots_is_booted_again_from_its_disk() {
	needs_kvm
	run_small -N twice -- mode=reboot disk=1 >/dev/null
	wait_until "it says so" console_says twice 'rebooted, and the disk is as it was'
	counts_reboots() { [ "$(vm_field twice reboots)" = "$1" ]; }
	wait_until "the reboot is counted" counts_reboots 1
	state_is twice starting || fail "it is $(vm_field twice state)"
	contains "what the console said before" "$(cat -v "$PANDO_HOME/vms/$(vm_field twice id)/console.old")" rebooting
	status_is 0 pando branch twice -n kin --no-wait
	wait_until "what kin says" console_says kin 'memory=ok'
	status_is 0 pando delete -y -r twice
}

# The next pandod goes on with it. (What was begun when it was killed it takes for failed, as it does for any start.)
a_pandod_killed_before_a_reboot_is_done_leaves_it_to_the_next() {
	needs_kvm
	end_daemon
	(
		PANDO_FAULT=start.part
		export PANDO_FAULT
		run_small -N twice -- mode=reboot disk=1
	) >/dev/null
	wait_until "pandod dies amid the reboot" no_pandod
	wait_until "it says so" console_says twice 'rebooted, and the disk is as it was'
	wait_until "only what is in the tree runs" settled
	status_is 0 pando delete -y twice
}

a_guest_that_reboots_for_ever_fails_and_one_that_panics_at_once() {
	needs_kvm
	run_small -N for-ever -- mode=reset >/dev/null
	wait_until "for-ever has failed" state_is for-ever failed
	contains reason "$(vm_field for-ever reason)" "rebooted more than 5 times within 10 minutes"
	run_small -N panics -- mode=panic >/dev/null
	wait_until "panics has failed" state_is panics failed
	contains reason "$(vm_field panics reason)" "Kernel panic - not syncing: Attempted to kill init!"
	equal "its reboots" "$(vm_field panics reboots)" 0
	contains info "$(pando info for-ever)" "reboots"
	status_is 0 pando delete -y for-ever panics
}

branches_keep_what_they_share_with_one_that_was_stopped() {
	needs_kvm
	run_work shared
	status_is 0 pando branch shared -n kid --no-wait
	wait_until "what kid says" console_says kid 'memory=ok'
	pando disk export kid "$work/before.raw" >/dev/null
	status_is 0 pando stop shared
	status_is 0 pando start shared --no-wait
	wait_until "what shared says" console_says shared ready
	pando disk export kid "$work/after.raw" >/dev/null
	cmp "$work/before.raw" "$work/after.raw"
	e2fsck -fn "$work/after.raw" >&2
	# the branch of a branch of a started VM needs its base when all above it are gone
	status_is 0 pando branch shared -n kid2 --no-wait
	wait_until "what kid2 says" console_says kid2 'memory=ok'
	status_is 0 pando stop kid2 --force
	status_is 0 pando delete -y shared -r --dry-run
	status_is 0 pando stop kid --force
	status_is 0 pando delete -y shared
	status_is 0 pando start kid2 --no-wait
	wait_until "what kid2 says" console_says kid2 ready
	pando disk export kid2 "$work/kid2.raw" >/dev/null
	e2fsck -fn "$work/kid2.raw" >&2
	status_is 0 pando delete -y kid kid2
}

what_a_stopped_vm_wrote_is_on_its_disk() {
	needs_kvm
	run_small -N disk -- mode=work button=1 disk=1 >/dev/null
	wait_until "what disk says" console_says disk 'disk ok'
	status_is 0 pando stop disk
	pando disk export disk "$work/one.raw" >/dev/null
	! cmp -s -n 8388608 "$work/one.raw" "$(small_image)" || fail "it wrote nothing"
	cp "$work/one.raw" "$work/kept.raw"
	status_is 0 pando start disk --no-wait
	wait_until "what disk says" console_says disk 'disk ok'
	status_is 0 pando delete -y disk
}

a_paused_vm_is_branched_and_stays_paused() {
	needs_kvm
	run_work still
	status_is 0 pando pause still
	lines=$(pando logs still | wc -c)
	status_is 0 pando branch still -n moves --no-wait
	wait_until "what moves says" console_says moves 'fork n=2 .*memory=ok'
	equal "the parent's state" "$(vm_field still state)" paused
	equal "the length of the parent's console" "$(pando logs still | wc -c)" "$lines"
	status_is 0 pando resume still
	wait_until "what still says" console_says still 'fork n=2 .*memory=ok'
	status_is 0 pando delete -y moves still
}

what_does_not_run_is_not_branched() {
	needs_kvm
	run_work ends
	status_is 0 pando stop ends
	status_is 4 pando branch ends --no-wait
	contains stderr "$stderr" 'vm "ends" is stopped'
	contains stderr "$stderr" "pando start"
	status_is 0 pando delete -y ends
}

a_checked_out_vm_is_meant_when_none_is_named() {
	needs_kvm
	mkdir -p "$work/project/below"
	cd "$work/project/below"
	status_is 3 pando head
	contains stderr "$stderr" "pando checkout"
	touch "$work/project/pando.toml"
	status_is 0 pando checkout a
	equal stdout "$stdout" "$(info a 'j["id"]')"
	[ -f "$work/project/.pando/head" ] || fail "it is kept elsewhere"
	status_is 0 pando head
	equal stdout "$stdout" "$(info a 'j["id"]')"
	status_is 0 pando branch --no-wait -n b -c
	contains stderr "$stderr" "pando: using vm a (checked out here)"
	contains stderr "$stderr" "b is checked out"
	status_is 0 pando info
	contains stderr "$stderr" "using vm b (checked out here)"
	equal "the VM of info" "$(pando info --format json -q 2>/dev/null | json 'j["alias"]')" b
	status_is 0 pando info -q
	equal "stderr of -q" "$stderr" ""
	# what is named wins, and PANDO_VM does
	equal "the VM that is named" "$(pando info a --format json | json 'j["alias"]')" a
	equal "the VM of PANDO_VM" "$(PANDO_VM=a pando info --format json | json 'j["alias"]')" a
	status_is 0 pando checkout -
	equal stdout "$stdout" "$(info a 'j["id"]')"
	status_is 0 pando checkout -
	equal stdout "$stdout" "$(info b 'j["id"]')"
	status_is 2 pando branch --count 2 -c --no-wait
	contains stderr "$stderr" "--checkout"
	status_is 3 pando checkout ghost
	status_is 2 pando checkout
	status_is 2 pando checkout a --none
	equal "the head after these" "$(pando head)" "$(info b 'j["id"]')"
	# elsewhere nothing is checked out
	cd "$work"
	status_is 3 pando head
}

a_head_that_is_no_more_or_damaged_says_the_mend() {
	needs_kvm
	cd "$work/project"
	status_is 0 pando delete -y b
	for verb in "info" "pause" "branch --no-wait" "stop" "head" "logs"; do
		# shellcheck disable=SC2086 # words
		status_is 3 pando $verb
		contains "stderr of $verb" "$stderr" "pando checkout"
	done
	status_is 0 pando info a
	for damage in "a b" "../../etc/passwd" "$(printf 'x%.0s' $(seq 300))" "a
b
c"; do
		printf '%s\n' "$damage" >.pando/head
		status_is 2 pando info
		contains stderr "$stderr" "pando checkout"
	done
	head -c 100 /dev/urandom >.pando/head
	status_is 2 pando info
	rm .pando/head
	mkdir .pando/head
	status_is 2 pando info
	rmdir .pando/head
	printf 'a b\n' >.pando/head
	status_is 0 pando checkout a
	status_is 0 pando info
	status_is 0 pando checkout --none
	equal stdout "$stdout" ""
	status_is 3 pando head
	: >.pando/head # empty: none
	status_is 3 pando head
	[ "$(id -u)" != 0 ] || {
		printf 'a\n' >.pando/head
		chown 12345 .pando/head
		status_is 5 pando info
		contains stderr "$stderr" "another user"
	}
	rm -rf .pando
}

the_tree_and_info_tell_what_is_a_vms_own() {
	needs_kvm
	run_small -N big -- mode=work dirty=2000 >/dev/null
	wait_until "what big says" console_says big ready
	pando branch big -n small --no-wait >/dev/null
	wait_until "what small says" console_says small 'memory=ok'
	own() { info "$1" 'j["costs"]["memory_unique_bytes"] or 0'; }
	[ "$(own big)" -gt 0 ] || skip "this host's kernel does not let us see a VMM's memory"
	# the 8 MB were written before the branch: they are shared
	[ "$(own big)" -lt 4000000 ] || fail "the parent has $(own big) bytes for itself"
	[ "$(own small)" -lt 4000000 ] || fail "the branch has $(own small) bytes for itself"
	[ "$(info big 'j["costs"]["memory_shared_bytes"]')" -gt 8000000 ] || fail "nothing is shared"
	status_is 0 pando info big
	contains stdout "$stdout" "own memory"
	contains stdout "$stdout" "own disk"
	status_is 0 pando tree big
	printf '%s\n' "$stdout" | grep -q 'small (.*[KM]iB' || fail "the tree is: $stdout"
	# a parent's end does no harm to its branch, which then has it all for itself
	kill -9 "$(info big 'j["pid"]')"
	wait_until "big has failed" state_is big failed
	wait_until "small says more" console_says small 'fork n=2'
	[ "$(own small)" -gt 8000000 ] || fail "the branch has $(own small) bytes, its parent's end notwithstanding"
	status_is 0 pando branch small -n smaller --no-wait
	wait_until "what smaller says" console_says smaller 'fork n=3 .*memory=ok'
	status_is 0 pando delete -y -r big
}

a_subtree_is_deleted_by_name_only() {
	needs_kvm
	run_work top
	pando branch top -n mid --no-wait >/dev/null
	pando branch mid -n leaf --no-wait >/dev/null
	wait_until "what leaf says" console_says leaf 'memory=ok'
	status_is 4 pando delete -y top
	contains stderr "$stderr" "mid, leaf"
	contains stderr "$stderr" "pando delete -r"
	pando stop mid --force >/dev/null
	status_is 4 pando delete -y top
	contains stderr "$stderr" "1 living branch (leaf)"
	status_is 4 pando delete --dry-run top
	before=$(pando status -q | sort)
	status_is 0 pando delete -r --dry-run top
	equal "the ids" "$(printf '%s\n' "$stdout" | grep -Ecx '[0-9a-f]{12}')" 3
	contains stderr "$stderr" "nothing was"
	equal "what is there after it" "$(pando status -q | sort)" "$before"
	status_is 0 pando delete -r --dry-run --format json top
	equal "the number in JSON" "$(printf %s "$stdout" | json 'len(j["would_delete"])')" 3
	status_is 0 pando delete -r -y top
	equal "the number of ids" "$(printf '%s\n' "$stdout" | wc -l)" 3
}

status_shows_those_with_all_labels() {
	needs_kvm
	pando branch a -n l1 --no-wait -l team=blue -l run=1 >/dev/null
	pando branch a -n l2 --no-wait -l team=blue -l run=2 >/dev/null
	equal "team=blue" "$(pando status -q -l team=blue | wc -l)" 2
	equal "both labels" "$(pando status -q -l team=blue --label run=2)" "$(info l2 'j["id"]')"
	equal "no such pair" "$(pando status -q -l team=red -l run=2)" ""
	status_is 2 pando status -l team
	status_is 0 pando delete -y l1 l2
}

a_disk_only_grows() {
	needs_kvm
	status_is 2 pando resize a
	status_is 2 pando resize a --fs-size 0
	status_is 2 pando resize a --fs-size lots
	status_is 2 pando resize a --fs-size 99999999999
	status_is 2 pando resize a --fs-size 15
	contains stderr "$stderr" 'vm "a": disk can only grow (now 16 MiB)'
	status_is 3 pando resize ghost --fs-size 64
	status_is 0 pando stop a
	status_is 0 pando resize a --fs-size 32
	contains stderr "$stderr" "when it is started"
	equal "the disk before" "$(vm_field a disk_mib)" 16
	status_is 2 pando resize a --fs-size 24
	contains stderr "$stderr" "now 32 MiB"
	status_is 0 pando start a --no-wait
	equal "the disk after" "$(vm_field a disk_mib)" 32
	wait_until "what a says" console_says a ready
	status_is 0 pando disk export -f a "$work/grown.raw"
	equal "the size of the image" "$(stat -c %s "$work/grown.raw")" 33554432
	e2fsck -fn "$work/grown.raw" >&2
}

a_disk_grows_under_a_running_guest() {
	needs_kvm
	run_small -N live -- mode=work disk=1 >/dev/null
	wait_until "what live says" console_says live ready
	status_is 0 pando branch live -n other --no-wait
	status_is 0 pando resize live --fs-size 48
	wait_until "what live says of its disk" console_says live 'disk sectors=98304 .*ok'
	equal "its disk" "$(vm_field live disk_mib)" 48
	equal "its branch's disk" "$(vm_field other disk_mib)" 16
	status_is 0 pando branch live -n grown --no-wait
	wait_until "what its branch says" console_says grown 'fork n=3 .*disk=ok'
	status_is 0 pando disk export -f grown "$work/grown.raw"
	equal "the size of the image" "$(stat -c %s "$work/grown.raw")" 50331648
	lacks "the console of its branch" "$(pando logs other)" "disk sectors"
	status_is 0 pando delete -y -r live
}

a_guest_gives_up_memory_when_it_is_asked() {
	needs_kvm
	run_small -N soft -- mode=balloon pages=4096 >/dev/null
	wait_until "what soft says" console_says soft full
	status_is 2 pando resize soft --mem-target 15
	status_is 2 pando resize soft --mem-target 33
	contains stderr "$stderr" 'vm "soft": a target of 33 MiB is more than the 32 MiB'
	status_is 0 pando resize soft --mem-target 26 --format json
	equal "the note" "$(printf '%s' "$stdout" | json 'j["note"]')" None
	wait_until "what soft says of its balloon" console_says soft 'balloon 1536'
	status_is 0 pando branch soft -n softer --no-wait
	for vm in soft softer; do
		equal "the target of $vm" "$(info "$vm" 'j["balloon"]["mem_target_mib"]')" 26
		equal "the balloon of $vm" "$(info "$vm" 'j["balloon"]["balloon_bytes"]')" 6291456
	done
	# The branch has given back what it reported at its fork, too.
	wait_until "what softer says" console_says softer 'given back zero=4096 kept=0 bad=0'
	equal "what softer gave back" "$(info softer 'j["balloon"]["given_back_bytes"]')" 16777216
	status_is 0 pando info soft
	contains stdout "$stdout" "to keep 26 MiB"
	status_is 0 pando resize soft --mem-target 32M
	wait_until "what soft says of its empty balloon" console_says soft 'balloon 0'
	# A guest without a driver.
	run_small -N hard -- mode=work >/dev/null
	status_is 0 pando resize hard --mem-target 16
	contains stderr "$stderr" "no driver of its guest"
	status_is 0 pando stop --force hard
	status_is 4 pando resize hard --mem-target 16
	contains stderr "$stderr" "start it first"
	status_is 0 pando delete -y -r soft hard
}

counts_that_cannot_be_are_refused() {
	needs_kvm
	before=$(holdings | grep -v '^sockets')
	for n in 0 -1 100000 1025 two ""; do
		status_is 2 pando branch a --count "$n" --no-wait
		[ -n "$stderr" ] || fail "no sentence for $n"
	done
	equal "what is held" "$(holdings | grep -v '^sockets')" "$before"
}

names_that_are_no_vm_are_errors_of_the_new_verbs() {
	for verb in "stop ghost" "start ghost" "stop a ghost" "resize ghost --fs-size 64" "checkout ghost" "delete --dry-run ghost"; do
		# shellcheck disable=SC2086 # words
		status_is 3 pando $verb
		contains stderr "$stderr" ghost
	done
	for verb in "head a" "stop --timeout 0" "stop --timeout soon" "stop -f -t 5 a" "checkout a b" "tree a b" \
		"resize --fs-size" "info a b"; do
		# shellcheck disable=SC2086 # words
		status_is 2 pando $verb
	done
}

two_at_once_end_with_a_sentence() {
	needs_kvm
	for round in 1 2 3; do
		pando branch a -n "x$round" --no-wait >"$work/at.1" 2>&1 &
		one=$!
		pando branch a -n "y$round" --no-wait >"$work/at.2" 2>&1 &
		two=$!
		pando stop a --force >"$work/at.3" 2>&1 &
		three=$!
		pando delete -y a >"$work/at.4" 2>&1 &
		four=$!
		for job in "$one 1" "$two 2" "$three 3" "$four 4"; do
			got=0
			wait "${job% *}" || got=$?
			# 3: the VM was deleted first
			case $got in
			0 | 3 | 4) ;;
			*) fail "status $got: $(cat "$work/at.${job#* }")" ;;
			esac
			[ -s "$work/at.${job#* }" ] || fail "not a word"
		done
		pando delete -y --all -q >/dev/null
		run_work a
	done
}

nothing_is_left_of_all_this() {
	needs_kvm
	status_is 0 pando delete --all -y
	equal "the number of VMMs" "$(vmm_pids | wc -l)" 0
	equal "the number of files left" \
		"$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" "$PANDO_HOME/bases" -mindepth 1 | wc -l)" 0
}

t stop_asks_the_guest_and_start_boots_it_again
t a_guest_that_does_not_heed_goes_on_and_is_ended_by_force
t a_stop_that_waits_can_be_cut_short
t what_ended_by_itself_is_started_too
t a_guest_that_reboots_is_booted_again_from_its_disk
t a_pandod_killed_before_a_reboot_is_done_leaves_it_to_the_next
t a_guest_that_reboots_for_ever_fails_and_one_that_panics_at_once
t branches_keep_what_they_share_with_one_that_was_stopped
t what_a_stopped_vm_wrote_is_on_its_disk
t a_paused_vm_is_branched_and_stays_paused
t what_does_not_run_is_not_branched
t a_checked_out_vm_is_meant_when_none_is_named
t a_head_that_is_no_more_or_damaged_says_the_mend
t the_tree_and_info_tell_what_is_a_vms_own
t a_subtree_is_deleted_by_name_only
t status_shows_those_with_all_labels
t a_disk_only_grows
t a_disk_grows_under_a_running_guest
t a_guest_gives_up_memory_when_it_is_asked
t counts_that_cannot_be_are_refused
t names_that_are_no_vm_are_errors_of_the_new_verbs
t two_at_once_end_with_a_sentence
t nothing_is_left_of_all_this
finish
