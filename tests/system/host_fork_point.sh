#!/bin/sh
# Branches that go back to their fork point (`pando branch --keep-fork-point`, `pando reset`), with the small guest on this host's
# /dev/kvm, in seconds: several of one instant, a branch of a branch, with merged segments and commits, the frozen fork killed,
# VMs that stop; and pandod, and then its VMM, killed at every stage.
# shellcheck disable=SC2329,SC2317 # tests are called by name
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES
cd "$work" || exit 2

chain() { # vm, expression over j
	curl -s --unix-socket "$PANDO_HOME/pandod.sock" "http://p/v1/vms/$1/disk" | json "$2"
}

lives_of() { # vm, n: how often its guest began as its n-th generation
	pando logs "$1" | grep -c "fork n=$2 .*memory=ok disk=ok"
}

lived() { # vm, n, lives
	[ "$(lives_of "$1" "$2")" -ge "$3" ]
}

segments_are_chains() {
	for v in $(pando status -q); do
		chain "$v" '"\n".join(s["data"] for s in j["chain"])'
	done | sort -u >"$work/chains"
	find "$PANDO_HOME/segments" -name '*.data' | sort >"$work/files"
	cmp -s "$work/chains" "$work/files"
}

# The frozen forks that are kept: VMMs whose files are gone, but not they.
kept() {
	for p in $(vmm_pids); do
		case $(readlink "/proc/$p/fd/2") in "$PANDO_HOME"/vms/*" (deleted)") echo "$p" ;; esac
	done
}

# Its disk is what another branch of the fork point has, but for what a guest writes when it begins: one block.
same_disk() { # vm, vm
	pando disk export -f "$1" "$work/$1.raw" >/dev/null
	pando disk export -f "$2" "$work/$2.raw" >/dev/null
	python3 - "$work/$1.raw" "$work/$2.raw" <<-'END'
		import sys
		a, b = (open(p, "rb").read() for p in sys.argv[1:])
		assert len(a) == len(b), (len(a), len(b))
		odd = [i // 4096 for i in range(0, len(a), 4096) if a[i:i + 4096] != b[i:i + 4096]]
		assert len(odd) <= 1, odd
	END
}

branches_go_back_to_where_they_were_forked() {
	needs_kvm
	run_small -N base -- mode=work tick=20000 disk=1 dirty=300 redirty=1 >/dev/null
	wait_until "what base says" console_says base tick
	status_is 0 pando branch base --keep-fork-point --count 3 -n v -l team=red --no-wait
	for i in v-0 v-1 v-2; do
		wait_until "$i begins" lived $i 2 1
	done
	equal "where it goes" "$(info v-0 'j["reset_to"]')" fork-point
	equal "where base goes" "$(info base 'j["reset_to"]')" None
	id=$(info v-0 'j["id"]') pid=$(info v-0 'j["pid"]') was=$(info v-0 'j["generation"]')
	status_is 0 pando reset v-0 --no-wait
	equal "what it prints" "$stdout" "$id"
	contains stderr "$stderr" "back at its fork point"
	contains stderr "$stderr" "pages that it wrote dropped"
	wait_until "v-0 begins again" lived v-0 2 2
	counts_on v-0
	equal "its process" "$(info v-0 'j["pid"]')" "$pid"
	equal "its label" "$(info v-0 'j["labels"]["team"]')" red
	equal "its parent" "$(info v-0 'j["parent"]')" "$(info base 'j["id"]')"
	[ "$(info v-0 'j["generation"]')" != "$was" ] || fail "its generation is what it was"
	same_disk v-0 v-2
	for n in 3 4 5; do
		status_is 0 pando reset v-0 --no-wait --format json
		[ "$(printf '%s' "$stdout" | json '300 <= j["pages"] < 4000 and j["commit"] is None')" = True ] || fail "$stdout"
		wait_until "v-0 begins $n times" lived v-0 2 $n
		status_is 0 pando reset v-1 --no-wait -q
		wait_until "v-1 begins" lived v-1 2 $((n - 1))
	done
	wait_until "what they wrote goes" segments_are_chains
	counts_on base
	counts_on v-2
}

its_disk_is_merged_and_grows_meanwhile() {
	needs_kvm
	for i in 1 2 3 4 5 6 7 8 9 10; do
		pando branch v-2 -n "old-$i" --no-wait -q >/dev/null || fail "branch $i"
		pando delete -y "old-$i" >/dev/null
		pando branch base -n "older-$i" --no-wait -q >/dev/null || fail "branch $i"
		pando delete -y "older-$i" >/dev/null
	done
	pando resize v-2 --fs-size 24 >/dev/null
	status_is 0 pando reset v-2 --no-wait
	wait_until "v-2 begins again" lived v-2 2 2
	equal "its disk" "$(info v-2 'j["disk_mib"]')" 16
	same_disk v-2 v-1
	wait_until "what it wrote goes" segments_are_chains
}

commits_of_one_that_went_back_are_right() {
	needs_kvm
	pando commit v-1 --tag before >/dev/null
	wait_until "it goes on" counts_on v-1
	status_is 0 pando reset v-1 --no-wait
	equal "its commit" "$(info v-1 'j["commit"]')" None
	pando commit v-1 --tag after >/dev/null
	equal "its parent" "$(pando commit info after --format json | json 'j["parent"]')" None
	status_is 0 pando run-commit after -N w --no-wait
	wait_until "what w says" console_says w 'fork n=3 .*memory=ok disk=ok'
	status_is 0 pando commit w --tag later
	status_is 0 pando branch w --keep-fork-point -n x --no-wait
	wait_until "x begins" lived x 5 1
	status_is 0 pando commit x
	status_is 0 pando reset x --no-wait
	equal "its commit" "$(info x 'j["commit"]')" "$(pando commit info later --format json | json 'j["id"]')"
	wait_until "x begins again" lived x 5 2
	status_is 0 pando commit x --tag again
	status_is 0 pando verify
	status_is 0 pando run-commit again -N y --no-wait
	wait_until "what y says" console_says y 'fork n=6 .*memory=ok disk=ok'
	pando delete -y y >/dev/null
	# To a commit, and from then on to that.
	status_is 0 pando reset x after --no-wait
	equal "where it goes" "$(info x 'j["reset_to"]')" "$(pando commit info after --format json | json 'j["id"]')"
	pando delete -y -r w >/dev/null
}

a_branch_of_a_branch_has_its_own() {
	needs_kvm
	status_is 0 pando branch v-0 --keep-fork-point -n inner --no-wait
	wait_until "inner begins" lived inner 3 1
	status_is 0 pando branch inner -n plain --no-wait
	wait_until "plain begins" lived plain 4 1
	status_is 2 pando reset plain --no-wait
	contains stderr "$stderr" "is a branch, and its fork point is not kept"
	contains stderr "$stderr" "--keep-fork-point"
	status_is 0 pando reset v-0 --no-wait
	status_is 0 pando reset inner --no-wait
	wait_until "inner begins again" lived inner 3 2
	counts_on plain
	status_is 0 pando branch plain -n plainer --no-wait
	wait_until "plainer begins" lived plainer 5 1
	pando delete -y -r inner >/dev/null
	wait_until "what they wrote goes" segments_are_chains
}

one_that_stops_does_not_go_back() {
	needs_kvm
	pando branch base --keep-fork-point -n s --no-wait -q >/dev/null
	pando pause s >/dev/null
	status_is 0 pando reset s --no-wait
	equal "its state" "$(info s 'j["state"]')" starting
	pando stop s --force >/dev/null
	status_is 4 pando reset s --no-wait
	contains stderr "$stderr" "is stopped"
	equal "where it goes" "$(info s 'j["reset_to"]')" None
	status_is 0 pando start s --no-wait
	status_is 2 pando reset s --no-wait
	contains stderr "$stderr" "its fork point is not kept"
	pando delete -y s >/dev/null
}

a_frozen_fork_lives_as_long_as_its_branches() {
	needs_kvm
	pando delete -y v-0 v-1 v-2 >/dev/null
	wait_until "no frozen fork is left" nothing_kept
	pando branch base --keep-fork-point -n k --count 2 --no-wait -q >/dev/null
	equal "frozen forks" "$(kept | wc -l)" 1
	pando delete -y k-0 >/dev/null
	status_is 0 pando reset k-1 --no-wait
	# somebody kills it
	kill -9 "$(kept)"
	was=$(info k-1 'j["generation"]')
	status_is 2 pando reset k-1 --no-wait
	contains stderr "$stderr" "gone"
	contains stderr "$stderr" "--keep-fork-point"
	equal "its generation" "$(info k-1 'j["generation"]')" "$was"
	equal "where it goes" "$(info k-1 'j["reset_to"]')" None
	counts_on k-1
	wait_until "no file is left" segments_are_chains
	pando delete -y k-1 >/dev/null
}

nothing_kept() {
	[ -z "$(kept)" ]
}

kill_nine_while_branching() {
	needs_kvm
	end_daemon
	pando status -q >/dev/null
	for point in branch.parked branch.forked branch.started branch.kept branch.cut branch.first-made branch.made; do
		dies_at "$point" pando branch base --keep-fork-point -n k --count 2 --no-wait
		pando status -q >/dev/null
		# Those that are there can go back; those that are not keep nothing.
		for v in $(pando status -q); do
			[ "$v" = "$(info base 'j["id"]')" ] && continue
			wait_until "$v is met ($point)" met "$v"
			status_is 0 pando reset "$v" --no-wait
			pando delete -y "$v" >/dev/null
		done
		wait_until "no frozen fork is left ($point)" nothing_kept
		wait_until "no file is left ($point)" segments_are_chains
		counts_on base
	done
}

met() {
	case $(info "$1" 'j["state"]') in running | starting) pando logs "$1" | grep -q 'fork n=' ;; *) false ;; esac
}

kill_nine_while_resetting() {
	needs_kvm
	end_daemon
	pando status -q >/dev/null
	pando branch base --keep-fork-point -n k --count 2 --no-wait -q >/dev/null
	wait_until "k-0 begins" lived k-0 '[0-9]*' 1
	for point in reset.segment reset.entered reset.done reset.noted; do
		lives=$(lives_of k-0 '[0-9]*')
		vmm=$(info k-0 'j["pid"]')
		base=$(chain k-0 '[s["data"] for s in j["chain"]]')
		dies_at "$point" pando reset k-0 --no-wait
		equal "its process after $point" "$(info k-0 'j["pid"]')" "$vmm"
		equal "where it goes after $point" "$(info k-0 'j["reset_to"]')" fork-point
		counts_on k-0
		wait_until "no file is left ($point)" segments_are_chains
		case $point in
		reset.segment | reset.entered)
			equal "its chain after $point" "$(chain k-0 '[s["data"] for s in j["chain"]]')" "$base"
			;;
		*)
			[ "$(chain k-0 '[s["data"] for s in j["chain"]]')" != "$base" ] || fail "its chain after $point is $base"
			wait_until "it began again ($point)" lived k-0 '[0-9]*' $((lives + 1))
			same_disk k-0 k-1
			;;
		esac
		status_is 0 pando reset k-0 --no-wait
		wait_until "it begins after $point" lived k-0 '[0-9]*' $((lives + 1))
	done
}

both_killed_while_resetting() {
	needs_kvm
	for point in reset.segment reset.entered reset.done reset.noted; do
		vmm=$(info k-0 'j["pid"]')
		pando disk export -f k-0 "$work/before.raw" >/dev/null
		dies_at "$point" pando reset k-0 --no-wait
		case $point in
		reset.done | reset.noted) sleep 0.3 ;; # its guest writes
		esac
		kill -9 "$vmm"
		wait_until "its VMM is gone" gone "$vmm"
		wait_until "it failed ($point)" state_is k-0 failed
		wait_until "no file is left ($point)" segments_are_chains
		case $point in
		reset.segment | reset.entered)
			pando disk export -f k-0 "$work/after.raw" >/dev/null
			cmp "$work/before.raw" "$work/after.raw" || fail "its disk after $point is not what it was"
			;;
		*) same_disk k-0 k-1 ;;
		esac
		pando delete -y k-0 k-1 >/dev/null
		wait_until "no frozen fork is left ($point)" nothing_kept
		pando branch base --keep-fork-point -n k --count 2 --no-wait -q >/dev/null
		wait_until "k-0 begins" lived k-0 '[0-9]*' 1
		wait_until "k-1 begins" lived k-1 '[0-9]*' 1
	done
	pando delete --all -y >/dev/null
	wait_until "no frozen fork is left" nothing_kept
	equal "the files left" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" -mindepth 1 | grep -v prewarmed)" ""
}

t branches_go_back_to_where_they_were_forked
t its_disk_is_merged_and_grows_meanwhile
t commits_of_one_that_went_back_are_right
t a_branch_of_a_branch_has_its_own
t one_that_stops_does_not_go_back
t a_frozen_fork_lives_as_long_as_its_branches
t kill_nine_while_branching
t kill_nine_while_resetting
t both_killed_while_resetting
finish
