#!/bin/sh
# VMs that go back to a commit (`pando reset`), with the small guest on this host's /dev/kvm, in seconds: to where they came
# from and to another commit, with branches, paused, two at once; what cannot be; and pandod, and then its VMM, killed at every
# stage.
# shellcheck disable=SC2329,SC2317 # tests are called by name
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES
cd "$work" || exit 2

commit_id() { # commit
	pando commit info "$1" --format json | json 'j["id"]'
}

chain() { # vm, expression over j
	curl -s --unix-socket "$PANDO_HOME/pandod.sock" "http://p/v1/vms/$1/disk" | json "$2"
}

lives_of() { # vm: how often its guest began as the commit's
	pando logs "$1" | grep -c 'fork n=2 .*memory=ok disk=ok'
}

lived() { # vm, lives
	[ "$(lives_of "$1")" -ge "$2" ]
}

# Each file below segments/ is of a chain; what a reset dropped goes a moment later.
segments_are_chains() {
	for v in $(pando status -q); do
		chain "$v" '"\n".join(s["data"] for s in j["chain"])'
	done | sort -u >"$work/chains"
	find "$PANDO_HOME/segments" -name '*.data' | sort >"$work/files"
	cmp -s "$work/chains" "$work/files"
}

# Its disk is the commit's, but for what a guest writes when it begins: block 1.
disk_is_the_commits() { # vm, commit
	pando disk export -f "$1" "$work/is.raw" >/dev/null
	python3 - "$work/is.raw" "$PANDO_HOME/flat/$(commit_id "$2")/disk" <<-'END'
		import sys
		a, b = (open(p, "rb").read() for p in sys.argv[1:])
		assert len(a) == len(b), (len(a), len(b))
		odd = [i // 4096 for i in range(0, len(a), 4096) if a[i:i + 4096] != b[i:i + 4096]]
		assert odd in ([], [1]), odd
	END
}

a_reset_is_printed_and_nothing_else() {
	needs_kvm
	run_small -N first -- mode=work tick=20000 disk=1 dirty=300 redirty=1 >/dev/null
	wait_until "what first says" console_says first tick
	pando commit first --tag one >/dev/null
	# On the image, which its pages go back to. (The first VM of a commit may run on what fills.)
	pando run-commit one -N v -l team=red --no-wait --wait-for full >/dev/null
	wait_until "v begins" lived v 1
	counts_on v
	id=$(info v 'j["id"]') pid=$(info v 'j["pid"]') was=$(info v 'j["generation"]')
	status_is 0 pando reset v --no-wait
	equal "what it prints" "$stdout" "$id"
	contains stderr "$stderr" "back at commit $(printf %.12s "$(commit_id one)")"
	contains stderr "$stderr" "pages that it wrote dropped"
	wait_until "v begins again" lived v 2
	counts_on v
	equal "its process" "$(info v 'j["pid"]')" "$pid"
	equal "its label" "$(info v 'j["labels"]["team"]')" red
	equal "its commit" "$(info v 'j["commit"]')" "$(commit_id one)"
	equal "its state" "$(info v 'j["state"]')" starting
	[ "$(info v 'j["generation"]')" != "$was" ] || fail "its generation is what it was"
	disk_is_the_commits v one
	wait_until "what it wrote goes" segments_are_chains
	equal "its chain" "$(chain v 'len(j["chain"])')" 1
	status_is 0 pando reset v --no-wait --format json
	equal "what the answer has" "$(printf '%s' "$stdout" | json 'sorted(j)')" \
		"['commit', 'pages', 'pause_us', 'took_us', 'vm']"
	[ "$(printf '%s' "$stdout" | json '300 <= j["pages"] < 2000')" = True ] || fail "pages: $stdout"
	equal "its VM" "$(printf '%s' "$stdout" | json 'j["vm"]["id"]')" "$id"
	wait_until "v begins a third time" lived v 3
}

many_times_and_two_at_once() {
	needs_kvm
	for i in 1 2 3 4 5 6 7 8; do
		pando reset v --no-wait -q >"$work/many.$i" 2>&1 &
		pando reset v --no-wait -q >"$work/many2.$i" 2>&1 || fail "$(cat "$work/many2.$i")"
		wait
		equal "the answer of $i" "$(cat "$work/many.$i")" "$(info v 'j["id"]')"
	done
	counts_on v
	wait_until "all that was dropped goes" segments_are_chains
	pando commit v --tag after >/dev/null
	equal "its commit's parent" "$(pando commit info after --format json | json 'j["parent"]')" "$(commit_id one)"
	status_is 0 pando verify
	status_is 0 pando run-commit after -N w --no-wait
	wait_until "what w says" console_says w 'fork n=3 .*memory=ok disk=ok'
	pando delete -y w >/dev/null
	# where it came from, and not what it was last committed as
	status_is 0 pando reset v --no-wait
	equal "its commit" "$(info v 'j["commit"]')" "$(commit_id one)"
}

another_commit_and_branches() {
	needs_kvm
	status_is 0 pando reset v after --no-wait
	contains stderr "$stderr" "all its memory dropped"
	wait_until "v is of another commit" console_says v 'fork n=3 .*memory=ok disk=ok'
	status_is 0 pando branch v -n kin --no-wait
	wait_until "what kin says" console_says kin 'fork n=4 .*memory=ok disk=ok'
	status_is 0 pando reset v --no-wait
	equal "where it goes by itself now" "$(info v 'j["commit"]')" "$(commit_id after)"
	# the branch reads what its parent dropped
	status_is 0 pando branch kin -n kin-2 --no-wait
	wait_until "what kin-2 says" console_says kin-2 'fork n=5 .*memory=ok disk=ok'
	equal "its parent" "$(info kin 'j["parent"]')" "$(info v 'j["id"]')"
	# nobody asked for its fork point to be kept
	status_is 2 pando reset kin --no-wait
	contains stderr "$stderr" "is a branch, and its fork point is not kept"
	status_is 0 pando reset kin after --no-wait
	contains stderr "$stderr" "pages that it wrote dropped"
	wait_until "what kin says" console_says kin 'fork n=3 .*memory=ok disk=ok'
	status_is 0 pando reset kin --no-wait
	counts_on kin-2
	status_is 0 pando branch kin-2 -n kin-3 --no-wait
	wait_until "what kin-3 says" console_says kin-3 'fork n=6 .*memory=ok disk=ok'
	# what was booted: likewise, and then it lies on the image
	status_is 2 pando reset first --no-wait
	contains stderr "$stderr" "did not start from a commit"
	status_is 0 pando reset first one --no-wait
	contains stderr "$stderr" "all its memory dropped"
	status_is 0 pando reset first --no-wait
	contains stderr "$stderr" "pages that it wrote dropped"
	wait_until "first begins again" lived first 1
	disk_is_the_commits first one
	for i in kin-3 kin-2 kin; do
		pando delete -y -r "$i" >/dev/null
	done
	wait_until "all that was dropped goes" segments_are_chains
}

what_cannot_be_is_refused() {
	needs_kvm
	held=$(holdings)
	status_is 3 pando reset v nosuch --no-wait
	status_is 3 pando reset nosuch --no-wait
	status_is 2 pando reset
	contains stderr "$stderr" "which VM?"
	status_is 2 pando reset v one more
	pando run --no-wait --kernel "$TINY" --rootfs "$(small_image)" --mem-size 48 --fs-size-vm 16 --cmdline mode=work \
		-N large >/dev/null
	wait_until "large works" console_says large ready
	pando commit large --tag large >/dev/null
	status_is 2 pando reset v large --no-wait
	contains stderr "$stderr" "has 32 MiB of memory and 1 vCPU"
	contains stderr "$stderr" "pando run-commit"
	pando stop large --force >/dev/null
	status_is 4 pando reset large large --no-wait
	contains stderr "$stderr" "is stopped"
	pando delete -y large >/dev/null
	equal "what is held" "$(holdings)" "$held"
	counts_on v
}

a_paused_vm_runs_afterwards_and_a_disk_shrinks() {
	needs_kvm
	lives=$(lives_of first)
	pando resize first --fs-size 24 >/dev/null
	equal "its disk" "$(info first 'j["disk_mib"]')" 24
	pando pause first >/dev/null
	status_is 0 pando reset first --no-wait
	equal "its state" "$(info first 'j["state"]')" starting
	wait_until "first begins again" lived first $((lives + 1))
	equal "its disk" "$(info first '(j["disk_mib"], j["resize_mib"])')" "(16, None)"
	counts_on first
	disk_is_the_commits first one
	# it boots from that disk, and may go back then, too
	pando stop first --force >/dev/null
	status_is 0 pando start first --no-wait
	wait_until "first boots" console_says first ready
	status_is 0 pando reset first --no-wait
	wait_until "what first says" lived first 1
}

a_commit_under_way_is_not_the_vms_that_was_reset() {
	needs_kvm
	for i in 1 2 3 4 5; do
		pando commit v --tag "race-$i" >"$work/race" 2>&1 &
		status_is 0 pando reset v one --no-wait
		wait
		status_is 0 pando commit v --tag "next-$i"
		parent=$(pando commit info "next-$i" --format json | json 'j["parent"]')
		[ "$parent" = "$(commit_id one)" ] || [ "$parent" = "$(commit_id "race-$i")" ] || fail "its parent is $parent"
		status_is 0 pando run-commit "next-$i" -N r --no-wait
		wait_until "what r says" console_says r 'fork n=[0-9]* .*memory=ok disk=ok'
		pando delete -y r >/dev/null
	done
	status_is 0 pando verify
}

kill_nine_while_resetting() {
	needs_kvm
	pando delete --all -y -q >/dev/null
	pando run-commit one -N k --no-wait >/dev/null
	wait_until "k begins" lived k 1
	end_daemon
	pando status -q >/dev/null
	for point in reset.segment reset.entered reset.done reset.noted; do
		lives=$(lives_of k)
		vmm=$(info k 'j["pid"]')
		base=$(chain k '[s["data"] for s in j["chain"]]')
		dies_at "$point" pando reset k --no-wait
		equal "its process after $point" "$(info k 'j["pid"]')" "$vmm"
		counts_on k
		wait_until "no file is left ($point)" segments_are_chains
		case $point in
		reset.segment | reset.entered)
			equal "its chain after $point" "$(chain k '[s["data"] for s in j["chain"]]')" "$base"
			equal "its lives after $point" "$(lives_of k)" "$lives"
			;;
		*)
			[ "$(chain k '[s["data"] for s in j["chain"]]')" != "$base" ] || fail "its chain after $point is $base"
			wait_until "it began again ($point)" lived k $((lives + 1))
			equal "its state after $point" "$(info k 'j["state"]')" starting
			disk_is_the_commits k one
			;;
		esac
		status_is 0 pando commit k
		status_is 0 pando verify
		status_is 0 pando reset k one --no-wait
		wait_until "it begins after $point" lived k $((lives + 1))
	done
}

both_killed_while_resetting() {
	needs_kvm
	for point in reset.segment reset.entered reset.done reset.noted; do
		lives=$(lives_of k)
		vmm=$(info k 'j["pid"]')
		pando disk export -f k "$work/before.raw" >/dev/null
		dies_at "$point" pando reset k --no-wait
		case $point in
		reset.done | reset.noted) sleep 0.3 ;; # its guest writes
		esac
		kill -9 "$vmm"
		wait_until "its VMM is gone" gone "$vmm"
		wait_until "it failed ($point)" state_is k failed
		wait_until "no file is left ($point)" segments_are_chains
		case $point in
		reset.segment | reset.entered)
			pando disk export -f k "$work/after.raw" >/dev/null
			cmp "$work/before.raw" "$work/after.raw" || fail "its disk after $point is not what it was"
			;;
		*) disk_is_the_commits k one ;;
		esac
		status_is 0 pando start k --no-wait
		wait_until "it boots ($point)" console_says k ready
		status_is 0 pando reset k one --no-wait
		wait_until "it begins after $point" lived k 1
	done
	pando delete -y k >/dev/null
	equal "the files left" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" -mindepth 1 | grep -v prewarmed)" ""
}

t a_reset_is_printed_and_nothing_else
t many_times_and_two_at_once
t another_commit_and_branches
t what_cannot_be_is_refused
t a_paused_vm_runs_afterwards_and_a_disk_shrinks
t a_commit_under_way_is_not_the_vms_that_was_reset
t kill_nine_while_resetting
t both_killed_while_resetting
finish
