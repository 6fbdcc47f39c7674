#!/bin/sh
# pandod and pando on this host's /dev/kvm, whatever it can run: with the small guest, which has no agent, so nothing
# waits for one. In seconds.
# shellcheck disable=SC2329,SC2317 # tests are called by name
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images # none: nothing here may depend on images that were built before
export PANDO_IMAGES

the_first_command_starts_the_daemon() {
	[ ! -e "$PANDO_HOME/pandod.sock" ] || fail "a daemon is there already"
	status_is 0 pando status
	[ -S "$PANDO_HOME/pandod.sock" ] || fail "no daemon answers"
	case $(stat -c %a "$PANDO_HOME/pandod.sock") in *00) ;; *) fail "others may talk to it" ;; esac
	kill -0 "$(pandod_pid)"
	status_is 0 pando status --format json
	equal "the number of VMs" "$(vms 'len(j)')" 0
}

run_prints_the_id_and_nothing_else_on_stdout() {
	needs_kvm
	status_is 0 run_small -N a -l team=red -- mode=work tick=100000
	printf '%s\n' "$stdout" | grep -Eqx '[0-9a-f]{12}' || fail "stdout is: $stdout"
	equal "the id that info gives" "$(info a 'j["id"]')" "$stdout"
	equal "the label" "$(info a 'j["labels"]["team"]')" red
	equal "the memory" "$(info a 'j["mem_mib"]')" 32
	wait_until "what a says" console_says a ready
}

a_branch_goes_on_where_its_parent_was() {
	needs_kvm
	status_is 0 pando branch a -n b --no-wait
	printf '%s\n' "$stdout" | grep -Eqx '[0-9a-f]{12}' || fail "stdout is: $stdout"
	equal "its parent" "$(info b 'j["parent"]')" "$(info a 'j["id"]')"
	wait_until "what b says" console_says b 'fork n=2 .*memory=ok'
	wait_until "what a says" console_says a 'fork n=2 .*memory=ok'
	[ "$(info a 'j["generation"]')" != "$(info b 'j["generation"]')" ] || fail "both have one generation"
	# what the parent said before is not the branch's console
	lacks "the text" "$(pando logs b)" ready
}

eight_children_of_one_instant() {
	needs_kvm
	status_is 0 pando branch a --count 8 -n c --no-wait
	equal "the number of ids" "$(printf '%s\n' "$stdout" | grep -Ecx '[0-9a-f]{12}')" 8
	for i in 0 1 2 3 4 5 6 7; do
		wait_until "what "c-$i" says" console_says "c-$i" 'fork n=3 .*memory=ok.*history=.*,.*,[0-9a-f]\{16\}'
	done
	# One past, eight presents. The picture may have been taken in the middle of the line before: its rest is in
	# each child's console too.
	for i in 0 1 2 3 4 5 6 7; do
		pando logs "c-$i" | sed -n 's/.*fork n=3 .*history=//p' | head -n 1
	done >"$work/histories"
	equal "the number of pasts" "$(cut -d, -f1,2 "$work/histories" | sort -u | wc -l)" 1
	cat "$work/histories"
	equal "the number of presents" "$(cut -d, -f3 "$work/histories" | sort -u | wc -l)" 8
	equal "the number of a's children" "$(info a 'len(j["children"])')" 9
}

the_tree_is_drawn() {
	needs_kvm
	status_is 0 pando tree
	contains stdout "$stdout" "a ("
	contains stdout "$stdout" "── b ("
	contains stdout "$stdout" "── c-7 ("
}

an_alias_is_given_once() {
	needs_kvm
	before=$(pando status -q | wc -l)
	status_is 4 run_small -N a
	contains stderr "$stderr" '"a"'
	status_is 4 pando branch a -n b --no-wait
	status_is 4 pando branch a --count 3 -n c --no-wait
	equal "the number of VMs" "$(pando status -q | wc -l)" "$before"
	status_is 0 pando alias b bee
	equal "the new name" "$(info bee 'j["alias"]')" bee
	status_is 3 pando info b
	status_is 4 pando alias bee a
	status_is 0 pando alias bee b
}

a_name_that_is_no_vm_is_an_error_everywhere() {
	for verb in "info ghost" "logs ghost" "branch ghost" "delete -y ghost" "pause ghost" "resume ghost" \
		"alias ghost x" "execute ghost -- true" "copy $TINY ghost:/tmp" "disk export ghost $work/x"; do
		# shellcheck disable=SC2086 # words
		status_is 3 pando $verb
		contains stderr "$stderr" ghost
		equal "stdout of pando $verb" "$stdout" ""
	done
	# a mistyped name is never taken for a command
	status_is 3 pando execute gost true
}

sizes_that_cannot_be_are_refused_before_anything_is_made() {
	needs_kvm
	before=$(pando status -q | wc -l)
	files=$(find "$PANDO_HOME" | wc -l)
	for wrong in "--mem-size 0" "--mem-size -1" "--mem-size 99999999" "--mem-size lots" "--mem-size 1" \
		"--vcpu-count 0" "--vcpu-count -3" "--vcpu-count 9" "--vcpu-count 1000000000000" "--vcpu-count two" \
		"--fs-size-vm 0" "--fs-size-vm -5" "--fs-size-vm 4" "--fs-size-vm 99999999999999999999"; do
		status_is 2 run_small $wrong
		[ -n "$stderr" ] || fail "no sentence for $wrong"
		equal "stdout for $wrong" "$stdout" ""
	done
	status_is 2 pando branch a --count 0 --no-wait
	status_is 2 pando branch a --count -1 --no-wait
	status_is 2 pando branch a --count 100000 --no-wait
	equal "the number of VMs" "$(pando status -q | wc -l)" "$before"
	equal "the number of files" "$(find "$PANDO_HOME" | wc -l)" "$files"
}

more_cpus_than_the_host_has_are_refused() {
	needs_kvm
	[ "$(nproc)" -lt 8 ] || skip "this host has 8 CPUs or more"
	status_is 2 run_small --vcpu-count 8
	contains stderr "$stderr" "$(nproc)"
}

names_that_are_no_names_are_refused() {
	needs_kvm
	for wrong in 0a1b2c3d4e5f "has space" "" -x "$(printf 'x%.0s' $(seq 100))" 'a/b' '../../etc'; do
		got=0
		pando run --no-wait --kernel "$TINY" --rootfs "$(small_image)" --mem-size 32 --fs-size-vm 16 \
			-N "$wrong" >"$work/stdout" 2>"$work/stderr" || got=$?
		equal "the status for the name '$wrong'" "$got" 2
		[ -s "$work/stderr" ] || fail "no sentence for '$wrong'"
	done
}

a_kernel_that_is_no_kernel_is_refused() {
	needs_kvm
	before=$(pando status -q | wc -l)
	echo "I am no kernel" >"$work/nokernel"
	for kernel in "$work/nokernel" "$B/bin/pando" "$(small_image)" /dev/null; do
		status_is 2 pando run --no-wait --kernel "$kernel" --rootfs "$(small_image)" --mem-size 32
		contains stderr "$stderr" kernel
	done
	status_is 3 pando run --no-wait --kernel "$work/absent" --rootfs "$(small_image)" --mem-size 32
	status_is 3 pando run --no-wait --kernel no-such-image --rootfs "$(small_image)" --mem-size 32
	contains stderr "$stderr" no-such-image
	head -c 3000 "$TINY" >"$work/short"
	status_is 2 pando run --no-wait --kernel "$work/short" --rootfs "$(small_image)" --mem-size 32
	contains stderr "$stderr" kernel
	equal "the number of VMs that live" "$(pando status -q | wc -l)" "$before"
}

# A kernel whose header names a version, as Linux's does and the small guest's does not.
a_host_that_boots_no_linux_says_so_before_anything_is_made() {
	needs_kvm
	! pando doctor --can-boot-linux -q >/dev/null 2>&1 || skip "this host boots Linux"
	before=$(pando status -q | wc -l)
	files=$(find "$PANDO_HOME" | wc -l)
	cp "$TINY" "$work/named"
	printf '\200\064' | dd of="$work/named" bs=1 seek=$((0x20e)) conv=notrunc 2>/dev/null
	status_is 1 pando run --no-wait --kernel "$work/named" --rootfs "$(small_image)" --mem-size 32 --fs-size-vm 16
	contains stderr "$stderr" "boots no Linux"
	contains stderr "$stderr" "pando machine start"
	equal stdout "$stdout" ""
	equal "the number of VMs" "$(pando status -q | wc -l)" "$before"
	equal "the number of files" "$(find "$PANDO_HOME" | wc -l)" "$files"
	# nor is an image built that could not run
	mkdir -p "$work/noimages"
	PANDO_IMAGES=$work/noimages
	export PANDO_IMAGES
	status_is 1 pando run --no-wait
	contains stderr "$stderr" "pando machine start"
	equal "what was built" "$(ls "$work/noimages")" ""
}

a_truncated_disk_image_is_refused() {
	needs_kvm
	image=$(small_image)
	for size in 0 1000 1048576 8384512; do
		head -c "$size" "$image" >"$work/cut.ext4"
		status_is 2 pando run --no-wait --kernel "$TINY" --rootfs "$work/cut.ext4" --mem-size 32 --fs-size-vm 16
		contains stderr "$stderr" cut.ext4
	done
}

a_config_is_read_and_its_mistakes_are_named() {
	needs_kvm
	mkdir -p "$work/project"
	cd "$work/project"
	printf '[machine]\nmem_size_mib = 32\nfs_size_vm_mib = 16\n[rootfs]\nname = "%s"\n[kernel]\nname = "%s"\n' \
		"$(small_image)" "$TINY" >pando.toml
	status_is 0 pando run --no-wait -N configured
	equal "the memory from the file" "$(info configured 'j["mem_mib"]')" 32
	pando delete -y configured >/dev/null
	mv pando.toml vers.toml
	status_is 0 pando run --no-wait -N configured --mem-size 48
	equal "the memory from the flag, which wins" "$(info configured 'j["mem_mib"]')" 48
	pando delete -y configured >/dev/null
	rm vers.toml

	printf '[machine]\nmem_size_mib = 32\nmem_sise_mib = 64\n' >pando.toml
	status_is 2 pando run --no-wait
	contains stderr "$stderr" "pando.toml:3:"
	contains stderr "$stderr" mem_sise_mib
	printf '[machine]\nmem_size_mib = "lots"\n' >pando.toml
	status_is 2 pando run --no-wait
	contains stderr "$stderr" "pando.toml:2:"
	contains stderr "$stderr" mem_size_mib
	printf '[machine]\nvcpu_count = 0\n' >pando.toml
	status_is 2 pando run --no-wait
	contains stderr "$stderr" vcpu_count
	printf '[machine\nvcpu_count = 1\n' >pando.toml
	status_is 2 pando run --no-wait
	contains stderr "$stderr" "pando.toml:1:9"
	printf 'name = 1979-02-30\n' >pando.toml
	status_is 2 pando run --no-wait
	contains stderr "$stderr" "pando.toml:1:"
}

pause_and_resume() {
	needs_kvm
	status_is 0 pando pause a
	equal "the state" "$(info a 'j["state"]')" paused
	one=$(pando logs a | wc -c)
	sleep 0.7
	equal "the length of a paused VM's console" "$(pando logs a | wc -c)" "$one"
	status_is 0 pando resume a
	[ "$(info a 'j["state"]')" != paused ] || fail "still paused"
}

garbage_on_the_socket_does_not_hurt_the_daemon() {
	pid=$(pandod_pid)
	python3 - "$PANDO_HOME/pandod.sock" <<-'END'
		import os, random, socket, sys
		random.seed(7)
		def send(data, read=True):
		    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(3)
		    try:
		        s.sendall(data)
		        if read:
		            s.shutdown(socket.SHUT_WR)
		            while s.recv(4096): pass
		    except OSError: pass
		    s.close()
		send(b"")
		send(b"GET")
		send(b"\r\n\r\n\r\n")
		send(b"GET / HTTP/9.9\r\n\r\n")
		send(b"GET /v1/vms HTTP/1.1\r\n" + b"A: b\r\n" * 20000 + b"\r\n")
		send(b"GET /" + b"x" * 1000000 + b" HTTP/1.1\r\n\r\n")
		send(b"POST /v1/vms HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n{}")
		send(b"POST /v1/vms HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}")
		send(b"POST /v1/vms HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}", read=False)
		send(b"POST /v1/vms HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n")
		send(b"DELETE /v1/vms/%00%ff%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n")
		send(b"POST /v1/vms HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n" + b"[" * 2000000)
		for body in (b"[]", b"{", b'{"mem_mib":1e999}', b'{"alias":"\x00"}', b'{"nonsense":1}', b"[" * 5000, b'{"alias":"\\ud800"}'):
		    send(b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
		for i in range(200):
		    send(bytes(random.randrange(256) for _ in range(random.randrange(1, 400))), read=i % 4 != 0)
		# held open and silent: others are still served
		idle = []
		for i in range(50):
		    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b"GET /v1"); idle.append(s)
	END
	equal "the daemon's process" "$(pandod_pid)" "$pid"
	status_is 0 pando status
	[ ! -w /dev/kvm ] || kill -0 "$(info a 'j["pid"]')"
}

unknown_members_and_paths_are_named() {
	status_is 0 curl -s --max-time 10 --unix-socket "$PANDO_HOME/pandod.sock" http://pandod/v1/nothing
	contains stdout "$stdout" '"error"'
	status_is 0 curl -s --max-time 10 --unix-socket "$PANDO_HOME/pandod.sock" -d '{"mem_mibs":5}' \
		http://pandod/v1/vms
	contains stdout "$stdout" mem_mibs
}

kill_nine_of_one_vm_is_told_of_that_one_only() {
	needs_kvm
	kill -9 "$(info c-3 'j["pid"]')"
	is_failed() { [ "$(info c-3 'j["state"]')" = failed ]; }
	wait_until "is_failed" is_failed
	[ -n "$(info c-3 'j["reason"] or ""')" ] || fail "its state has no reason"
	for vm in a b c-0 c-7; do
		case $(info $vm 'j["state"]') in
		starting | running) ;;
		*) fail "$vm is $(info $vm 'j["state"]')" ;;
		esac
		kill -0 "$(info $vm 'j["pid"]')"
	done
	status_is 0 pando delete -y c-3
}

kill_nine_of_the_daemon_loses_nothing() {
	needs_kvm
	pid=$(pandod_pid)
	vms 'sorted((v["id"], v["alias"], v["pid"], v["parent"], v["state"], v["generation"]) for v in j)' >"$work/before"
	kill -9 "$pid"
	wait_until "pandod is gone" gone "$pid"
	status_is 0 pando status
	[ "$(pandod_pid)" != "$pid" ] || fail "the same daemon"
	vms 'sorted((v["id"], v["alias"], v["pid"], v["parent"], v["state"], v["generation"]) for v in j)' >"$work/after"
	equal "what is known after it" "$(cat "$work/after")" "$(cat "$work/before")"
	# and they are its own again
	status_is 0 pando branch b -n late --no-wait
	wait_until "what late says" console_says late 'memory=ok'
	status_is 0 pando pause b
	status_is 0 pando resume b
}

a_vm_that_dies_while_no_daemon_runs_is_found_dead() {
	needs_kvm
	pid=$(pandod_pid)
	victim=$(info late 'j["pid"]')
	kill -9 "$pid"
	kill -9 "$victim"
	wait_until "pandod is gone" gone "$pid"
	wait_until "the VMM is gone" gone "$victim"
	equal "its state" "$(info late 'j["state"]')" failed
	status_is 0 pando delete -y late
}

stopped_vmms_hold_up_no_daemon() {
	needs_kvm
	deaf=$(info b 'j["pid"]')
	was=$(info b 'j["state"]')
	kill -STOP "$deaf"
	# each leaves a question behind in the queue of its control socket, which is short
	for i in 1 2 3 4 5 6 7 8; do
		pid=$(pandod_pid)
		kill -9 "$pid"
		wait_until "pandod is gone" gone "$pid"
		status_is 0 pando status
		equal "its process" "$(info b 'j["pid"]')" "$deaf"
		equal "its state" "$(info b 'j["state"]')" "$was"
	done
	kill -0 "$(info c-0 'j["pid"]')"
	status_is 0 pando pause c-0
	status_is 0 pando resume c-0
	kill -CONT "$deaf"
	heard() { pando pause b >/dev/null; }
	wait_until "b is paused" heard
	status_is 0 pando resume b
	equal "its process" "$(info b 'j["pid"]')" "$deaf"
}

a_daemon_started_with_few_descriptors_takes_what_it_may_have() {
	needs_kvm
	vms 'sorted((v["id"], v["pid"], v["state"]) for v in j)' >"$work/before"
	pid=$(pandod_pid)
	kill -9 "$pid"
	wait_until "pandod is gone" gone "$pid"
	# the soft limit is the caller's matter, not the daemon's
	(ulimit -Sn 24 && exec "$B/bin/pandod")
	pid=$(pandod_pid)
	hard=$(sed -n 's/^Max open files *[0-9a-z]* *\([0-9a-z]*\).*/\1/p' "/proc/$pid/limits")
	soft=$(sed -n 's/^Max open files *\([0-9a-z]*\).*/\1/p' "/proc/$pid/limits")
	equal "its soft limit" "$soft" "$hard"
	vms 'sorted((v["id"], v["pid"], v["state"]) for v in j)' >"$work/after"
	equal "the VMs" "$(cat "$work/after")" "$(cat "$work/before")"
	kill -9 "$pid"
	wait_until "pandod is gone" gone "$pid"
	# With a hard limit that only some may raise, all VMs are what they are, whether they can be adopted or not; and
	# what is left is theirs, also of those that could not be adopted yet.
	for limit in 26 32; do
		(ulimit -n "$limit" && exec "$B/bin/pandod")
		vms 'sorted((v["id"], v["pid"], v["state"]) for v in j)' >"$work/after"
		equal "the VMs" "$(cat "$work/after")" "$(cat "$work/before")"
		pid=$(pandod_pid)
		if [ "$(sed -n 's/^Max open files *[0-9a-z]* *\([0-9a-z]*\).*/\1/p' "/proc/$pid/limits")" = "$limit" ]; then
			contains pandod.log "$(cat "$PANDO_HOME/pandod.log")" "start pandod with a higher limit"
			status_is 1 run_small -N more
			# Adoption tries again meanwhile, and may have the last descriptor: then the image cannot be opened.
			case $stderr in
			*"Too many open files"*) ;;
			*) contains stderr "$stderr" "may not open enough files for 1 more VM" ;;
			esac
		fi
		kill -9 "$pid"
		wait_until "pandod is gone" gone "$pid"
	done
	status_is 0 pando pause b
	status_is 0 pando resume b
}

two_daemons_do_not_share_a_home() {
	pid=$(pandod_pid)
	got=0
	timeout "$WAIT_LIMIT" "$B/bin/pandod" >"$work/stdout" 2>&1 || got=$?
	[ "$got" -ne 124 ] || fail "a second daemon runs beside the first"
	equal "the daemon's process" "$(pandod_pid)" "$pid"
}

many_commands_at_once_start_one_daemon() {
	kill -9 "$(pandod_pid)"
	for i in 1 2 3 4 5 6; do
		pando status -q >"$work/many.$i" 2>&1 &
	done
	wait
	for i in 2 3 4 5 6; do
		cmp "$work/many.1" "$work/many.$i" || {
			cat "$work/many.1" "$work/many.$i"
			return 1
		}
	done
	equal "the number of daemons" "$(home_pids pandod | wc -l)" 1
}

branches_and_commits_at_the_same_time_all_come() {
	needs_kvm
	jobs=
	for i in 1 2 3 4 5 6; do
		pando branch a -n "same-$i" --no-wait >"$work/same.$i" 2>&1 &
		jobs="$jobs $!"
		pando commit a >"$work/same-commit.$i" 2>&1 &
		jobs="$jobs $!"
	done
	for job in $jobs; do
		wait "$job" || fail "one of them failed: $(cat "$work"/same*.*)"
	done
	for i in 1 2 3 4 5 6; do
		wait_until "what "same-$i" says" console_says "same-$i" 'memory=ok'
		pando delete -y "same-$i" >/dev/null
	done
	equal "the number of commits" "$(pando commit list -q | wc -l)" 6
}

who_does_not_queue_is_told_what_is_under_way() {
	needs_kvm
	vmm=$(info a 'j["pid"]')
	kill -STOP "$vmm"
	pando branch a -n queued --no-wait >"$work/queued" 2>&1 &
	first=$!
	busy() { pando delete --dry-run -r --busy-timeout 0 a 2>&1 | grep -q "is being branched: try again"; }
	wait_until "a is being branched" busy
	status_is 4 pando branch a --no-wait --busy-timeout 0
	status_is 4 pando pause a --busy-timeout 200ms
	contains stderr "$stderr" 'vm "a" is being branched, and was for all the time this call may wait'
	# a caller that gives up leaves the queue
	timeout 1 "$B/bin/pando" branch a -n left --no-wait >"$work/left" 2>&1 || true
	kill -CONT "$vmm"
	wait "$first" || fail "$(cat "$work/queued")"
	status_is 0 pando delete -y queued
	status_is 3 pando info left
}

# The small guest has no agent: who waits for one waits until something ends it.
what_is_cancelled_leaves_no_vm_and_says_so() {
	needs_kvm
	vms 'sorted(v["id"] for v in j)' >"$work/before"
	for verb in "run --kernel $TINY --rootfs $(small_image) --mem-size 32 --fs-size-vm 16 --cmdline mode=work -N mine" \
		"branch a --count 3 -n mine"; do
		for signal in INT TERM KILL; do
			# shellcheck disable=SC2086 # words
			# A shell without job control has its background jobs ignore SIGINT, and so would pando.
			env --default-signal=INT "$B/bin/pando" $verb >"$work/out" 2>"$work/err" &
			job=$!
			made() { pando status | grep -q mine; }
			wait_until "its VMs are there" made
			kill -s "$signal" "$job"
			got=0
			wait "$job" || got=$?
			if [ "$signal" != KILL ]; then
				equal "status of pando $verb" "$got" 7
				contains stderr "$(cat "$work/err")" "is removed"
				vms 'sorted(v["id"] for v in j)' >"$work/after"
				equal "the VMs, once it has said so" "$(cat "$work/after")" "$(cat "$work/before")"
			fi
			equal "stdout of pando $verb" "$(cat "$work/out")" ""
			same() { [ "$(vms 'sorted(v["id"] for v in j)')" = "$(cat "$work/before")" ]; }
			wait_until "its VMs are gone" same
		done
	done
	# a client of another kind, that goes without waiting for an answer
	python3 - "$PANDO_HOME/pandod.sock" "$(info a 'j["id"]')" <<-'END'
		import socket, sys
		for i in range(20):
		    body = b'{"wait":false,"count":2}'
		    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
		    s.send(b"POST /v1/vms/%s/branch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" %
		           (sys.argv[2].encode(), len(body), b"Accept: application/x-ndjson\r\n" if i % 2 else b"", body))
		    s.close()
	END
	wait_until "its VMs are gone" same
	status_is 0 pando branch a -n after --no-wait
	status_is 0 pando delete -y after
}

a_disk_is_exported_and_is_clean() {
	needs_kvm
	status_is 0 pando disk export a "$work/a.raw"
	equal "the size of the image" "$(stat -c %s "$work/a.raw")" 16777216
	e2fsck -fn "$work/a.raw" >&2
	status_is 4 pando disk export a "$work/a.raw"
	status_is 0 pando disk export -f a "$work/a.raw"
	cmp -n 8388608 "$work/a.raw" "$(small_image)"
}

a_guest_that_powers_off_is_stopped_not_failed() {
	needs_kvm
	status_is 0 run_small -N off -- mode=off
	is_stopped() { [ "$(info off 'j["state"]')" = stopped ]; }
	wait_until "is_stopped" is_stopped
	status_is 4 pando branch off --no-wait
	status_is 0 pando logs off
	contains stdout "$stdout" "powering off"
	status_is 0 pando delete -y off
	status_is 0 run_small -N triple -- mode=triple
	is_failed() { [ "$(info triple 'j["state"]')" = failed ]; }
	wait_until "is_failed" is_failed
	[ -n "$(info triple 'j["reason"] or ""')" ] || fail "no reason"
	status_is 0 pando delete -y triple
}

a_parent_is_not_deleted_under_its_children() {
	needs_kvm
	status_is 4 pando delete -y a
	contains stderr "$stderr" b
	kill -0 "$(info a 'j["pid"]')"
	pids=$(vms '" ".join(str(v["pid"]) for v in j if v["pid"])')
	status_is 0 pando delete -r -y a
	equal "the number of VMs left ($(pando status))" "$(pando status -q | wc -l)" 0
	for p in $pids; do
		gone "$p" || fail "process $p is still there"
	done
	equal "the number of files left" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" -mindepth 1 | wc -l)" 0
}

bad_usage_is_status_two_with_a_word_of_help() {
	for wrong in "nosuchverb" "run --nosuchoption" "run extra words" "branch --count" "execute" "delete" \
		"copy one" "status --format yaml" "disk export" "disk nosuch a b"; do
		# shellcheck disable=SC2086
		status_is 2 pando $wrong
		[ -n "$stderr" ] || fail "no sentence for pando $wrong"
		equal "stdout of pando $wrong" "$stdout" ""
	done
	status_is 2 pando statsu
	contains stderr "$stderr" status
}

t the_first_command_starts_the_daemon
t run_prints_the_id_and_nothing_else_on_stdout
t a_branch_goes_on_where_its_parent_was
t eight_children_of_one_instant
t the_tree_is_drawn
t an_alias_is_given_once
t a_name_that_is_no_vm_is_an_error_everywhere
t sizes_that_cannot_be_are_refused_before_anything_is_made
t more_cpus_than_the_host_has_are_refused
t names_that_are_no_names_are_refused
t a_kernel_that_is_no_kernel_is_refused
t a_host_that_boots_no_linux_says_so_before_anything_is_made
t a_truncated_disk_image_is_refused
t a_config_is_read_and_its_mistakes_are_named
t pause_and_resume
t garbage_on_the_socket_does_not_hurt_the_daemon
t unknown_members_and_paths_are_named
t kill_nine_of_one_vm_is_told_of_that_one_only
t kill_nine_of_the_daemon_loses_nothing
t a_vm_that_dies_while_no_daemon_runs_is_found_dead
t stopped_vmms_hold_up_no_daemon
t a_daemon_started_with_few_descriptors_takes_what_it_may_have
t two_daemons_do_not_share_a_home
t many_commands_at_once_start_one_daemon
t branches_and_commits_at_the_same_time_all_come
t who_does_not_queue_is_told_what_is_under_way
t what_is_cancelled_leaves_no_vm_and_says_so
t a_disk_is_exported_and_is_clean
t a_guest_that_powers_off_is_stopped_not_failed
t a_parent_is_not_deleted_under_its_children
t bad_usage_is_status_two_with_a_word_of_help
finish
