#!/bin/sh
# Each VM in a control group of its own, made by pandod where there is no systemd to ask: on this host, with small guests.
# shellcheck disable=SC2329,SC2317
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES

needs_groups() {
	needs_kvm
	printf '[scopes]\nuse = "cgroup"\n' >"$PANDO_HOME/pandod.toml"
	run_small -q -N first >/dev/null
	wait_until "it is known what there is" scopes_are_known
	[ "$(scopes 'j["how"]')" = cgroup ] || skip "no control groups can be made here: $(scopes 'j["detail"]')"
}

scopes_are_known() {
	[ "$(scopes 'j["how"]')" != unknown ]
}

group_there() { # id
	[ -n "$(find /sys/fs/cgroup -type d -name "pando-$1.scope" 2>/dev/null)" ]
}

vms_and_branches_have_groups_that_go_with_them() {
	needs_groups
	wait_until "the VM is in its group" is_in_its_own first
	pando branch -q first -n second --no-wait >/dev/null
	pando branch -q first --count 3 -n many --no-wait >/dev/null
	for vm in second many-0 many-1 many-2 first; do
		wait_until "$vm is in its group" is_in_its_own $vm
	done
	equal "VMs in a group" "$(scopes 'j["vms"]')" 5
	# The parent goes first: its group was left by all of its branches.
	ids=$(pando status -q)
	pando stop -q --force first >/dev/null
	first=$(vm_field first id)
	wait_until "the group of the VM that ended is gone" not group_there "$first"
	pando delete -q -y -r first >/dev/null
	for id in $ids; do
		wait_until "the group of $id is gone" not group_there "$id"
	done
}

a_new_pandod_finds_them() {
	needs_groups
	wait_until "the VM is in its group" is_in_its_own first
	id=$(vm_field first id)
	pando branch -q first -n second --no-wait >/dev/null
	other=$(vm_field second id)
	wait_until "the branch is in its group" is_in_its_own second
	end_daemon
	# One ends while nobody looks.
	kill -KILL "$(sed -n 1p "$(find /sys/fs/cgroup -type d -name "pando-$other.scope")/cgroup.procs")"
	pando status -q >/dev/null
	wait_until "it is known again" scopes_are 'j["how"]' cgroup
	wait_until "the empty group is swept" not group_there "$other"
	is_in_its_own first || fail "first is in $(group_of first)"
	wait_until "it is counted" scopes_are 'j["vms"]' 1
	pando delete -q -y -r first >/dev/null
	wait_until "its group is gone" not group_there "$id"
}

doctor_says_what_there_is() {
	needs_groups
	pando doctor --format json >"$work/doctor" || :
	contains "doctor" "$(json '[f["detail"] for f in j["findings"] if f["id"] == "scopes"][0]' <"$work/doctor")" "a control group of its own"
	pando delete -q -y -r first >/dev/null
	end_daemon
	printf '[scopes]\nuse = "none"\n' >"$PANDO_HOME/pandod.toml"
	run_small -q -N alone >/dev/null
	equal "how" "$(scopes 'j["how"]')" none
	sleep 0.5
	not is_in_its_own alone || fail "it has a group, and was to have none"
	pando delete -q -y alone >/dev/null
	end_daemon
	printf '[scopes]\nuse = "maybe"\n' >"$PANDO_HOME/pandod.toml"
	status_is 1 pando status
	contains "the refusal" "$stderr" 'scopes.use must be "auto", "systemd", "cgroup" or "none"'
	rm "$PANDO_HOME/pandod.toml"
}

t vms_and_branches_have_groups_that_go_with_them
t a_new_pandod_finds_them
t doctor_says_what_there_is
finish
