#!/bin/sh
# Each VM in a scope of the real systemd, with small guests: root's where this is root, else the user's.
# shellcheck disable=SC2329,SC2317
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES

if [ "$(id -u)" = 0 ]; then
	user=
else
	user=--user
fi

# shellcheck disable=SC2086 # no word where this is root
control() {
	timeout 600 systemctl $user "$@"
}

needs_systemd() {
	needs_kvm
	command -v systemctl >/dev/null && control show -p Version >/dev/null 2>&1 || skip "no systemd answers here"
}

property() { # unit, name
	control show -P "$2" "$1"
}

# Where the home is in memory itself there is none.
limit_is() { # unit, MiB
	wanted=$(($2 * 1024 * 1024))
	[ "$(stat -f -c %T "$PANDO_HOME")" != tmpfs ] || wanted=infinity
	[ "$(property "$1" MemoryMax)" = "$wanted" ]
}

no_unit() { # unit
	! control list-units --all --plain --no-legend | grep -qF "$1"
}

vms_and_branches_are_scopes_with_their_limits() {
	needs_systemd
	run_small -q -N first --vcpu-count 2 >/dev/null
	wait_until "systemd is asked" scopes_are 'j["how"]' systemd
	wait_until "the VM is in its scope" is_in_its_own first
	unit=$(unit_of first)
	equal "the scope" "$(property "$unit" ActiveState)" active
	equal "its slice" "$(property "$unit" Slice)" pando.slice
	equal "its weight" "$(property "$unit" CPUWeight)" 200
	contains "its description" "$(property "$unit" Description)" first
	# The guest's 32 MiB twice, and 64.
	limit_is "$unit" 128 || fail "its limit is $(property "$unit" MemoryMax)"
	pando branch -q first --count 3 -n many --no-wait >/dev/null
	for vm in many-0 many-1 many-2; do
		wait_until "$vm is in its scope" is_in_its_own $vm
	done
	# Room for the three that hold its old pages, and for one more.
	wait_until "the limit is raised" limit_is "$unit" 256
	equal "VMs in a scope" "$(scopes 'j["vms"]')" 4
	pando doctor --format json >"$work/doctor" || :
	contains "doctor" "$(json '[f["detail"] for f in j["findings"] if f["id"] == "scopes"][0]' <"$work/doctor")" "each VM is a scope"
}

a_killed_one_takes_its_scope_with_it() {
	needs_systemd
	unit=$(unit_of many-0)
	kill -KILL "$(vm_field many-0 pid)"
	wait_until "its scope is gone" no_unit "$unit"
	wait_until "the others are still in theirs" scopes_are 'j["vms"]' 3
}

a_new_pandod_finds_them() {
	needs_systemd
	end_daemon
	pando status -q >/dev/null
	wait_until "systemd is asked again" scopes_are 'j["how"]' systemd
	wait_until "they are counted" scopes_are 'j["vms"]' 3
	is_in_its_own first || fail "first is elsewhere"
}

machined_lists_them() {
	needs_systemd
	[ -z "$user" ] || skip "only root registers machines"
	[ -e /run/dbus/system_bus_socket ] && command -v machinectl >/dev/null || skip "no machined here"
	control start systemd-machined || skip "machined does not start"
	run_small -q -N listed >/dev/null
	id=$(vm_field listed id)
	wait_until "it is listed" listed "pando-$id"
	equal "its class" "$(machine_field "pando-$id" Class)" vm
	equal "who made it" "$(machine_field "pando-$id" Service)" pando
	equal "its leader" "$(machine_field "pando-$id" Leader)" "$(vm_field listed pid)"
	equal "its unit" "$(machine_field "pando-$id" Unit)" "pando-$id.scope"
	pando branch -q listed -n other --no-wait >/dev/null
	other=$(vm_field other id)
	wait_until "its branch is listed" listed "pando-$other"
	pando delete -q -y other >/dev/null
	wait_until "its branch is gone" not listed "pando-$other"
	listed "pando-$id" || fail "it is gone with its branch"
	pando delete -q -y listed >/dev/null
	wait_until "it is gone, too" not listed "pando-$id"
}

listed() { # machine
	timeout 600 machinectl list --no-legend --no-pager | grep -q "^$1 "
}

machine_field() { # machine, property
	timeout 600 machinectl show "$1" -p "$2" --value
}

with_the_last_vm_the_last_scope_goes() {
	needs_systemd
	pando delete --all -q -y >/dev/null
	[ -s "$work/ids" ] || fail "there were none"
	# Other homes may have some of their own.
	for id in $(cat "$work/ids"); do
		wait_until "the scope of $id is gone" no_unit "pando-$id.scope"
	done
}

t vms_and_branches_are_scopes_with_their_limits
pando status -q >"$work/ids" 2>/dev/null
t a_killed_one_takes_its_scope_with_it
t a_new_pandod_finds_them
t machined_lists_them
t with_the_last_vm_the_last_scope_goes
finish
