#!/bin/sh
# A machine that is branched and committed again and again goes on: its old segments are merged behind its back. The small
# guest checks its memory, and all of its disk at each hundredth fork point. ROUNDS (150; 5000 is what the machine is built
# for) is how often. Then pandod is killed at every stage of a merge, and a disk is full while merging.
# shellcheck disable=SC2329,SC2317 # tests are called by name
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES
ROUNDS=${ROUNDS:-150}
mkdir -p "$PANDO_HOME"
# Pre-warmed VMMs come and go.
printf '[pool]\nsize = 0\n' >"$PANDO_HOME/pandod.toml"

# The whole disk was right so often.
checks() { # vm
	pando logs "$1" 2>/dev/null | grep -c 'endless n=.*memory=ok disk=ok' || true
}

checked_again() { # vm, how often it was
	[ "$(checks "$1")" -gt "$2" ]
}

# Fork points until the guest checks its disk once more: it does so at each hundredth that it sees.
check_again() { # vm
	was=$(checks "$1")
	tries=0
	until checked_again "$1" "$was"; do
		[ $tries -lt 100 ] || fail "$1 does not check its disk"
		tries=$((tries + 1))
		endless "$1" 20 branch >/dev/null
		is_well "$1"
	done
}

is_well() { # vm
	! pando logs "$1" | grep -q 'BAD\|ERROR\|refused' || fail "$1 says: $(pando logs "$1" | grep 'BAD\|ERROR\|refused')"
}

chain_length() { # vm
	curl -s --unix-socket "$PANDO_HOME/pandod.sock" "http://p/v1/vms/$1/disk" | json 'len(j["chain"])'
}

endless() { # vm, rounds, branch|commit|both
	"$B/tests/endless" "$PANDO_HOME" "$@"
}

# What the VM reads, by a commit of it, is what its segments have.
disk_is_the_commits() { # vm
	pando pause "$1" >/dev/null
	at=$(pando commit "$1")
	pando disk export -f "$1" "$work/$1.raw" >/dev/null
	pando resume "$1" >/dev/null
	pando run-commit "$at" -N same --no-wait >/dev/null
	cmp "$work/$1.raw" "$PANDO_HOME/flat/$at/disk"
	pando delete -y same >/dev/null
}

# Commits are compared with what reading all would make of them.
fork_points_have_no_end() {
	needs_kvm
	PANDO_COMMIT_CHECK=1
	[ "$ROUNDS" -le 1000 ] || PANDO_COMMIT_CHECK=
	[ -n "$PANDO_COMMIT_CHECK" ] && export PANDO_COMMIT_CHECK || unset PANDO_COMMIT_CHECK
	run_small -N a -- mode=endless every=100 >/dev/null
	wait_until "a is ready" console_says a ready
	done=0
	while [ "$done" -lt "$ROUNDS" ]; do
		n=100
		[ $((ROUNDS - done)) -ge 100 ] || n=$((ROUNDS - done))
		endless a "$n" both >"$work/said"
		done=$((done + n))
		echo "rounds $done: $(head -n 1 "$work/said")" | tee -a "$work/times"
		is_well a
	done
	check_again a
	echo "checked $(checks a) times" | tee -a "$work/times"
	disk_is_the_commits a
	# what two fork points need, merged by sixteens in three zones
	[ "$(chain_length a)" -le 120 ] || fail "the chain has $(chain_length a) segments"
	status_is 0 pando verify
}

what_comes_of_its_last_commit_is_as_endless() {
	needs_kvm
	endless a 1 commit >"$work/said"
	status_is 0 pando run-commit "$(sed -n 2p "$work/said")" -N b --no-wait
	endless b 20 both >/dev/null
	check_again b
	disk_is_the_commits b
	pando delete -y b >/dev/null
}

relatives_go_on_by_themselves() {
	needs_kvm
	# children that live, and grandchildren, of a chain that is merged meanwhile
	status_is 0 pando branch a --count 3 -n c --no-wait
	for vm in a c-0 c-1 a c-0; do
		endless "$vm" 20 branch >/dev/null
	done
	status_is 0 pando branch c-0 -n d --no-wait
	endless d 20 both >/dev/null
	endless c-0 20 both >/dev/null
	pando delete -y c-1 >/dev/null
	for vm in a c-0 c-2 d; do
		check_again "$vm"
		disk_is_the_commits "$vm"
	done
	pando delete -y d >/dev/null
	pando delete -y c-0 >/dev/null
	pando delete -y c-2 >/dev/null
}

kill_nine_while_merging() {
	needs_kvm
	for point in merge.made merge.written merge.synced merge.entered merge.swapped merge.noted merge.swept; do
		end_daemon
		(
			PANDO_FAULT=$point
			export PANDO_FAULT
			pando status -q >/dev/null
			endless a 120 branch
		) >"$work/out" 2>&1 && fail "nothing died at $point"
		wait_until "pandod dies at $point" no_pandod
		# the next one has what the last one left, a branch perhaps
		for id in $(vms '" ".join(v["id"] for v in j if v["alias"] != "a")'); do
			pando delete -y "$id" >/dev/null
		done
		check_again a
		disk_is_the_commits a
		in_chain() {
			[ "$(find "$PANDO_HOME/segments" -name '*.data' | wc -l)" = "$(chain_length a)" ]
		}
		wait_until "the segments after $point are the chain's" in_chain
		[ "$(chain_length a)" -le 120 ] || fail "the chain has $(chain_length a) segments after $point"
	done
}

kill_nine_of_the_machine_itself() {
	needs_kvm
	# its disk at rest is the chain's, with merged segments in it
	was=$(chain_length a)
	kill -9 "$(info a 'j["pid"]')"
	failed() { [ "$(info a 'j["state"]')" = failed ]; }
	wait_until "a is failed" failed
	status_is 0 pando disk export -f a "$work/dead.raw"
	equal "the chain" "$(chain_length a)" "$was"
	status_is 0 pando start a --no-wait
	wait_until "a is ready" console_says a ready
	status_is 0 pando disk export -f a "$work/started.raw"
	cmp "$work/dead.raw" "$work/started.raw"
	pando delete -y a >/dev/null
	equal "the files left" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" -mindepth 1)" ""
}

t fork_points_have_no_end
t what_comes_of_its_last_commit_is_as_endless
t relatives_go_on_by_themselves
t kill_nine_while_merging
t kill_nine_of_the_machine_itself
[ ! -e "$work/times" ] || sed 's/^/# /' "$work/times"
finish
