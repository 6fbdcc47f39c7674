#!/bin/sh
# VMs of a commit that start before their memory is there, with the small guest on this host's /dev/kvm: what they find
# there, branches and commits of them meanwhile, two at once, and what is left when pando-fill, a VMM or pandod is killed,
# a pack is damaged, or the commit is deleted.
# shellcheck disable=SC2329,SC2317 # tests are called by name
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES
cd "$work" || exit 2

# Those that fill: one that pandod keeps ready has no VM's userfaultfd.
fill_pids() {
	for fill_pid in $(home_pids pando-fill); do
		for fill_fd in /proc/"$fill_pid"/fd/*; do
			case $(readlink "$fill_fd") in
			*userfaultfd*) echo "$fill_pid" && break ;;
			esac
		done
	done
}

no_fill() {
	[ -z "$(fill_pids)" ]
}

needs_fill() {
	needs_kvm
	[ -r /dev/userfaultfd ] && [ -w /dev/userfaultfd ] || skip "/dev/userfaultfd is not there or not ours"
	pando delete --all -y -q >/dev/null
}

flat_of() { # commit
	echo "$PANDO_HOME/flat/$(pando commit info "$1" --format json | json 'j["id"]')"
}

is_made() { # commit
	[ -e "$(flat_of "$1")/boot" ]
}

# The next VM of the commit is the first.
cold() { # commit
	wait_until "nothing is filled" no_fill
	rm -rf "$(flat_of "$1")"
}

is_well() { # vm
	wait_until "what $1 says" console_says "$1" 'fork n=2 .*memory=ok'
}

it_is_what_was_committed() {
	needs_fill
	printf '[pool]\nsize = 0\n' >"$PANDO_HOME/pandod.toml"
	pando run --no-wait --kernel "$TINY" --rootfs "$(small_image)" --mem-size 96 --fs-size-vm 16 -N a \
		--cmdline "mode=work tick=200000 dirty=16384 noise=1" >/dev/null
	wait_until "what a says" console_says a tick
	pando commit a --tag one >/dev/null
	pando delete -y a >/dev/null
	status_is 0 pando run-commit one -N b --no-wait
	is_well b
	counts_on b
	wait_until "the image is made" is_made one
	wait_until "b says so" grep -q "all of the memory is there" "$PANDO_HOME/vms/$(info b 'j["id"]')/vmm.log"
	cp "$(flat_of one)/memory" "$work/memory"
	# the next one runs on the image
	status_is 0 pando run-commit one -N c --no-wait
	is_well c
	cold one
	status_is 0 pando run-commit one -N d --no-wait --wait-for full
	is_well d
	equal "what fills memory" "$(fill_pids)" ""
	cmp "$work/memory" "$(flat_of one)/memory"
	status_is 2 pando run-commit one --wait-for nothing
	for v in b c d; do
		pando delete -y "$v" >/dev/null
	done
}

what_was_wanted_first_is_kept_and_believed_no_further() {
	needs_fill
	touched=$(flat_of one).touched
	for text in "$(head -c 4000 /dev/urandom | base64)" '' ffff; do
		cold one
		printf '%s' "$text" >"$touched"
		status_is 0 pando run-commit one -N b --no-wait
		is_well b
		wait_until "the image is made" is_made one
		cmp "$work/memory" "$(flat_of one)/memory"
		pando delete -y b >/dev/null
	done
	cold one
	rm -f "$touched"
	status_is 0 pando run-commit one -N b --no-wait
	is_well b
	wait_until "the image is made" is_made one
	[ -s "$touched" ] || fail "what b wanted first was not written down"
	pando delete -y b >/dev/null
}

branches_and_commits_wait_for_the_whole() {
	needs_fill
	cold one
	status_is 0 pando run-commit one -N b --no-wait
	status_is 0 pando branch b -n bb --no-wait
	status_is 0 pando commit b --tag again
	wait_until "what bb says" console_says bb 'fork n=[23] .*memory=ok'
	status_is 0 pando run-commit again -N c --no-wait
	wait_until "what c says" console_says c 'fork n=[0-9]* .*memory=ok'
	for v in c bb b; do
		pando delete -y "$v" >/dev/null
	done
	status_is 0 pando verify
}

many_at_once_share_one_fill() {
	needs_fill
	cold one
	pando run-commit one --count 3 -N b --no-wait >"$work/b" 2>&1 &
	first=$!
	pando run-commit one --count 2 -N c --no-wait >"$work/c" 2>&1 &
	second=$!
	wait "$first" || fail "$(cat "$work/b")"
	wait "$second" || fail "$(cat "$work/c")"
	for v in b-0 b-1 b-2 c-0 c-1; do
		is_well "$v"
	done
	wait_until "the image is made" is_made one
	cmp "$work/memory" "$(flat_of one)/memory"
	pando delete --all -y -q >/dev/null
}

a_vmm_that_is_killed_takes_no_other_along() {
	needs_fill
	cold one
	status_is 0 pando run-commit one --count 2 -N b --no-wait
	kill -9 "$(vm_field b-0 pid)"
	is_well b-1
	wait_until "the image is made" is_made one
	cmp "$work/memory" "$(flat_of one)/memory"
	pando delete --all -y -q >/dev/null
	wait_until "nothing is filled" no_fill
}

has_failed() { # vm
	state_is "$1" failed
}

# Where it dies early the VM was not made yet, where it dies late its memory may be all there.
a_vm_fails_with_a_sentence_when_its_memory_cannot_come() {
	needs_fill
	pando run-commit again -N other --no-wait >/dev/null
	wait_until "what other says" console_says other 'memory=ok'
	wait_until "the image is made" is_made again
	cold one
	end_daemon
	(
		PANDO_FAULT=fill.batch:150
		export PANDO_FAULT
		pando status -q >/dev/null
	)
	if pando run-commit one -N b --no-wait >"$work/stdout" 2>"$work/stderr"; then
		wait_until "b fails" has_failed b
		info b 'j["reason"]' | grep -q "fills its memory ended" || fail "it says $(info b 'j["reason"]')"
		pando delete -y b >/dev/null
	else
		grep -q "fill" "$work/stderr" || fail "it says $(cat "$work/stderr")"
	fi
	counts_on other
	[ ! -e "$(flat_of one)/boot" ] || fail "an image was left that is not whole"
	# the next one is made first
	status_is 0 pando run-commit one -N c --no-wait
	is_well c
	pando delete -y c >/dev/null
	end_daemon
	wait_until "nothing is filled" no_fill
}

pandod_is_not_needed_once_it_runs() {
	needs_fill
	for point in fill.planned spawn.made; do
		cold one
		dies_at "$point" pando run-commit one -N b --no-wait
		if [ "$(vms 'len([v for v in j if v["alias"] == "b"])')" = 1 ]; then
			is_well b
			counts_on b
			status_is 0 pando branch b -n bb --no-wait
			wait_until "what bb says" console_says bb 'memory=ok'
			pando delete -y bb >/dev/null
			pando delete -y b >/dev/null
		fi
		wait_until "nothing is filled ($point)" no_fill
		wait_until "nothing is left ($point)" settled
		status_is 0 pando run-commit one -N c --no-wait
		is_well c
		pando delete -y c >/dev/null
	done
}

a_commit_is_deleted_while_its_memory_is_filled() {
	needs_fill
	pando delete --all -y -q >/dev/null
	cold one
	status_is 0 pando run-commit one -N b --no-wait
	status_is 4 pando commit delete one
	pando delete -y b >/dev/null
	status_is 0 pando commit delete one --recursive
	status_is 0 pando gc
	wait_until "nothing is filled" no_fill
	status_is 3 pando run-commit one --no-wait
	status_is 0 pando verify
}

damage_fails_this_vm_only() {
	needs_fill
	pando run --no-wait --kernel "$TINY" --rootfs "$(small_image)" --mem-size 96 --fs-size-vm 16 -N a \
		--cmdline "mode=work tick=200000 dirty=8192 noise=1" >/dev/null
	wait_until "what a says" console_says a tick
	pando commit a --tag two >/dev/null
	# a page of noise, which is stored as it is
	find "$PANDO_HOME/store/packs" -name '*.pack' -size +8M -exec python3 -c '
import sys
for pack in sys.argv[1:]:
    with open(pack, "r+b") as f:
        f.seek(16000000); b = f.read(1); f.seek(16000000); f.write(bytes([b[0] ^ 1]))
' {} +
	if pando run-commit two -N b --no-wait >"$work/stdout" 2>"$work/stderr"; then
		wait_until "b fails" has_failed b
		info b 'j["reason"]' | grep -q "damaged in the commit store" || fail "it says $(info b 'j["reason"]')"
	else
		grep -q "damaged" "$work/stderr" || fail "it says $(cat "$work/stderr")"
	fi
	counts_on a
	[ ! -e "$(flat_of two)/boot" ] || fail "an image was left that is not whole"
	status_is 1 pando run-commit two -N c --no-wait
	printf '%s' "$stderr" | grep -q "damaged" || fail "it says $stderr"
	pando delete --all -y -q >/dev/null
	wait_until "nothing is filled" no_fill
}

t it_is_what_was_committed
t what_was_wanted_first_is_kept_and_believed_no_further
t branches_and_commits_wait_for_the_whole
t many_at_once_share_one_fill
t a_vmm_that_is_killed_takes_no_other_along
t a_vm_fails_with_a_sentence_when_its_memory_cannot_come
t pandod_is_not_needed_once_it_runs
t a_commit_is_deleted_while_its_memory_is_filled
t damage_fails_this_vm_only
finish
