# The harness of the system tests: sourced, not run. A script says
#
#   . "$(dirname "$0")/lib.sh"
#   it "a sentence" function      runs function in a subshell with set -eu; prints TAP
#   t a_sentence_as_function      likewise, the function's name being the sentence
#   finish                        the plan; status 1 when anything failed
#
# In the environment: B, the build folder. PANDO_HOME is made here, and everything in it is ended and removed at exit. What
# a function prints goes to its log and is shown when it fails.
#
# Limits follow progress, not the clock: a busy host may take its time. See "The watch" below.
set -u
: "${B:=build/plain}"
case $B in /*) ;; *) B=$PWD/$B ;; esac
export B
TINY=$B/tests/guest/tiny # the small guest of the KVM tests, which has no agent
PATH=$B/bin:$PATH
export PATH

work=$(mktemp -d "${TMPDIR:-/tmp}/pando-test.XXXXXX") || exit 2
PANDO_HOME=$work/home
export PANDO_HOME
mkdir -m 700 "$PANDO_HOME"
# In a build with sanitizers: what they find in any process here, daemons and VMMs too, is a file, and a failure.
ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=1:log_path=$work/finding
UBSAN_OPTIONS=${UBSAN_OPTIONS:+$UBSAN_OPTIONS:}halt_on_error=1:print_stacktrace=1:log_path=$work/finding
export ASAN_OPTIONS UBSAN_OPTIONS
it_number=0
it_failed=0

# The watch ends a command that stands still; one that moves for ever has this limit.
pando() {
	timeout -k 5 "$COMMAND_LIMIT" "$B/bin/pando" "$@"
}

# The watch: a process beside the script that looks every few seconds how far everything is. What was the same for
# STANDSTILL seconds stands still: the watch ends the pando commands that are under way, and waits end in vain. While
# something moves, it says every five minutes how far, so that tests/run does not take the script for one that hangs.
# A wait has WAIT_LIMIT, too, for there are guests whose consoles never stand still. All of them are minutes, which a
# test that goes well does not need on any host.
case $0 in
*/bench/*) : "${WATCH_EVERY:=60}" ;; # which measures
*) : "${WATCH_EVERY:=5}" ;;
esac
if [ -e /run/pando-machine ]; then
	: "${STANDSTILL:=900}" "${WAIT_LIMIT:=2400}" "${COMMAND_LIMIT:=7200}"
else
	: "${STANDSTILL:=300}" "${WAIT_LIMIT:=900}" "${COMMAND_LIMIT:=3600}"
fi

# The pando commands of this script, wherever they run: also those in a terminal that tmux has.
commands_under_way() {
	grep -l '^pando$' /proc/[0-9]*/comm 2>/dev/null | while read -r p; do
		p=${p%/comm}
		tr '\0' '\n' <"$p/environ" 2>/dev/null | grep -q "^PANDO_HOME=$PANDO_HOME\$" && echo "${p#/proc/}"
	done
	return 0
}

# One line: what there is of consoles, disks, memory, logs and what tests wrote; and the bytes that went through the
# commands that are under way. A wait that asks again and again is no progress: neither what it says, nor its commands, which
# are young. Nor is what the watch writes. Folders elsewhere that a script uses stand in .watch-also.
how_far() {
	if [ -e "$work/.watch-wait" ]; then
		set -- "$work/[0-9]*.log" "$work/stdout" "$work/stderr"
	else
		set -- '' '' ''
	fi
	# shellcheck disable=SC2046 # words
	find "$work" $(cat "$work/.watch-also" 2>/dev/null) -type f ! -name '.watch-*' ! -path "$1" ! -path "$2" ! -path "$3" \
		-printf '%s %b %T@\n' 2>/dev/null |
		awk '{ s += $1; b += $2; if ($3 > t) t = $3 } END {
			printf "%d files of %.0f bytes, %.0f KiB on disk, written at %.3f", NR, s, b / 2, t }'
	for p in $(commands_under_way); do
		# Started (in hundredths of a second) a minute ago or earlier.
		awk -v p="$p" '
			FILENAME == "/proc/uptime" { up = $1 }
			FILENAME ~ /stat$/ { age = up - $22 / 100 }
			/^[rw]char/ { n += $2 }
			END { if (age > 60) printf "; %.0f bytes through pando, process %d", n, p }' \
			/proc/uptime "/proc/$p/stat" "/proc/$p/io" 2>/dev/null
	done
	echo
}

watch() { # the script
	watch_far='' watch_ends=TERM watch_sleep=''
	trap '[ -z "$watch_sleep" ] || kill "$watch_sleep"; exit' TERM
	watch_moved=$(date +%s)
	watch_said=$watch_moved
	while kill -0 "$1" 2>/dev/null && [ -d "$work" ]; do
		watch_now=$(date +%s)
		watch_is=$(how_far)
		if [ "$watch_is" != "$watch_far" ]; then
			watch_far=$watch_is watch_moved=$watch_now watch_ends=TERM
			echo "$watch_moved" >"$work/.watch-new" && mv "$work/.watch-new" "$work/.watch-moved"
		elif [ $((watch_now - watch_moved)) -ge "$STANDSTILL" ]; then
			for p in $(commands_under_way); do
				echo "# nothing has moved for $((watch_now - watch_moved)) s; ending process $p:" \
					"$(tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null)"
				kill "-$watch_ends" "$p" 2>/dev/null
				watch_ends=KILL
			done
		fi
		if [ $((watch_now - watch_said)) -ge 300 ] && [ "$watch_moved" -gt "$watch_said" ]; then
			watch_said=$watch_now
			echo "# under way: $(cat "$work/.watch-test" "$work/.watch-wait" 2>/dev/null | tr '\n' ';') $watch_is"
		fi
		sleep "$WATCH_EVERY" >/dev/null 2>&1 &
		watch_sleep=$!
		wait "$watch_sleep"
	done
}
date +%s >"$work/.watch-moved"
watch $$ </dev/null 2>/dev/null &
watch_pid=$!

# Prints what sanitizers found since this was asked last; fails when that is nothing.
findings() {
	set -- "$work"/finding.*
	[ -e "$1" ] || return 1
	cat "$@"
	rm -f "$@"
}

sanitized() {
	ldd "$B/libexec/pando/pando-vmm" 2>/dev/null | grep -q libasan
}

# Ends all VMs and the daemon of this home, politely first.
end_home() {
	[ -S "$PANDO_HOME/pandod.sock" ] || return 0
	pando delete --all -y -q >/dev/null 2>&1
	pid=$(pandod_pid)
	[ -z "$pid" ] || {
		kill "$pid" 2>/dev/null
		wait_until "pandod ends" gone "$pid"
	}
	for p in $(vmm_pids); do
		kill -KILL "$p" 2>/dev/null
	done
	return 0
}

cleanup_work() {
	end_home
	kill "$watch_pid" 2>/dev/null
	mountpoint -q "$PANDO_HOME" 2>/dev/null && umount "$PANDO_HOME"
	rm -rf "$work"
}
trap cleanup_work EXIT
trap 'exit 130' INT TERM HUP PIPE # PIPE: a reader that has enough, as head does

it() { # sentence, function [arguments…]
	it_number=$((it_number + 1))
	it_name=$1
	shift
	echo "test $it_number, $it_name" >"$work/.watch-test"
	# Not in an `if`: set -e would be off inside.
	(
		set -eu
		"$@"
	) >"$work/$it_number.log" 2>&1 </dev/null
	it_status=$?
	! findings >>"$work/$it_number.log" || it_status=1
	if [ $it_status -eq 77 ]; then
		echo "ok $it_number - $it_name # SKIP $(tail -n 1 "$work/$it_number.log")"
	elif [ $it_status -eq 0 ]; then
		echo "ok $it_number - $it_name"
	else
		it_failed=$((it_failed + 1))
		{
			tail -n 50 "$work/$it_number.log"
			tell_failed
		} | sed 's/^/# /'
		echo "not ok $it_number - $it_name"
	fi
}

# What is known of the VMs that have failed, or have not answered yet: why, and what their VMM and their console said last.
tell_failed() {
	[ -S "$PANDO_HOME/pandod.sock" ] || return 0
	for v in $(vms '" ".join(v["id"] for v in j if v["state"] in ("failed", "starting"))' 2>/dev/null); do
		echo "VM $v ($(vm_field "$v" alias)) is $(vm_field "$v" state): $(vm_field "$v" reason)"
		echo "its VMM's last lines:"
		pando logs "$v" --vmm --tail 10 2>&1
		echo "its console's last lines:"
		pando logs "$v" --tail 120 2>&1 | tr -cd '\11\12\40-\176'
	done
}

t() { # function whose name is the sentence
	it "$(printf %s "$1" | tr _ ' ')" "$1"
}

finish() {
	if [ $it_failed -gt 0 ]; then
		echo "# last lines of pandod's log:"
		tail -n 25 "$PANDO_HOME/pandod.log" 2>/dev/null | sed 's/^/# /'
	fi
	end_home # a leak is found at a process's end
	if findings >"$work/found"; then
		it_failed=$((it_failed + 1))
		it_number=$((it_number + 1))
		sed 's/^/# /' "$work/found"
		echo "not ok $it_number - sanitizers find nothing in what ends with the script"
	fi
	echo "1..$it_number"
	[ $it_failed -eq 0 ]
	exit
}

# Boots a Debian guest. In the test machine its programs lie where they always do, see golden/spec/machine.conf.
boot_guest() { # name, options of `pando run`…
	guest=$1
	shift
	pando run -q -N "$guest" "$@"
	[ ! -e /run/pando-machine ] || pando execute "$guest" -- sh -c 'echo 0 >/proc/sys/kernel/randomize_va_space'
}

skip() { # reason
	echo "$1"
	exit 77
}

fail() {
	echo "failed: $*" >&2
	exit 1
}

not() {
	! "$@"
}

# In vain when everything stands still, or at WAIT_LIMIT, and says how far it came.
wait_until() { # what, command…
	wait_what=$1
	shift
	wait_began=$(date +%s)
	echo "waits until $wait_what" >"$work/.watch-wait"
	until "$@"; do
		wait_now=$(date +%s)
		read -r wait_moved <"$work/.watch-moved" || wait_moved=$wait_began
		[ "$wait_moved" -gt "$wait_began" ] || wait_moved=$wait_began
		if [ $((wait_now - wait_moved)) -ge "$STANDSTILL" ] || [ $((wait_now - wait_began)) -ge "$WAIT_LIMIT" ]; then
			echo "waited $((wait_now - wait_began)) s in vain: $wait_what; something moved $((wait_now - wait_moved)) s" \
				"ago: $(how_far)" >&2
			rm -f "$work/.watch-wait"
			return 1
		fi
		sleep 0.2
	done
	rm -f "$work/.watch-wait"
}

equal() { # what, is, should be
	[ "$2" = "$3" ] || fail "$1 is \"$2\", not \"$3\""
}

contains() { # what, text, part
	case $2 in
	*"$3"*) ;;
	*) fail "$1 does not say \"$3\": $2" ;;
	esac
}

# Runs a command that must end with that status; its stderr is left in $stderr, its stdout in $stdout.
status_is() { # status, command…
	wanted_status=$1
	shift
	got_status=0
	(
		"$@"
	) >"$work/stdout" 2>"$work/stderr" || got_status=$?
	stdout=$(cat "$work/stdout")
	stderr=$(cat "$work/stderr")
	[ "$got_status" = "$wanted_status" ] ||
		fail "status $got_status, not $wanted_status, of: $* (stdout: $stdout) (stderr: $stderr)"
}

lacks() { # what, text, part
	case $2 in
	*"$3"*) fail "$1 says \"$3\": $2" ;;
	esac
}

# One value out of JSON on stdin: a Python expression over j.
json() {
	python3 -c 'import json, sys
j = json.load(sys.stdin)
print(eval(sys.argv[1]))' "$1"
}

info() { # vm, expression over j
	pando info "$1" --format json | json "$2"
}

# All VMs, as an expression over the list j.
vms() {
	pando status --format json | json "(lambda j: $1)(j['vms'] if isinstance(j, dict) else j)"
}

# No such process, or one that only waits to be reaped.
gone() { # pid
	! kill -0 "$1" 2>/dev/null || grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null
}

# Nobody takes connections any more: a process that was killed keeps its sockets until its last thread has ended.
no_pandod() {
	curl -s --max-time 5 --unix-socket "$PANDO_HOME/pandod.sock" http://pando/v1/version >/dev/null 2>&1
	[ $? -eq 7 ]
}

# Kills pandod; its VMs go on.
end_daemon() {
	pid=$(pandod_pid)
	[ -n "$pid" ] || return 0
	kill -9 "$pid" 2>/dev/null
	wait_until "pandod is gone" no_pandod
}

# Runs a command against a pandod that dies at that point.
dies_at() { # point, command…
	point=$1
	shift
	end_daemon
	got=0
	(
		PANDO_FAULT=$point
		export PANDO_FAULT
		pando status -q >/dev/null
		"$@"
	) >"$work/stdout" 2>"$work/stderr" || got=$?
	[ "$got" -ne 0 ] || fail "nothing died at $point: $(cat "$work/stdout")"
	[ "$got" -ne 124 ] || fail "the command hung at $point"
	wait_until "pandod dies at $point" no_pandod || fail "it lives: $(cat "$work/stderr")"
}

the_tree() {
	vms 'sorted((v["id"], v["alias"] or "", v["state"], v["pid"] or 0) for v in j)'
}

counts_on() { # vm
	was=$(pando logs "$1" | sed -n 's/^tick //p' | tail -n 1)
	more() { [ "$(pando logs "$1" | sed -n 's/^tick //p' | tail -n 1)" != "$was" ]; }
	wait_until "$1 counts on" more "$1"
}

state_is() { # vm, state
	[ "$(vm_field "$1" state)" = "$2" ]
}

console_says() { # vm, basic regular expression
	pando logs "$1" 2>/dev/null | grep -q -- "$2"
}

# A small, real ext4 image that the small guest never looks at.
small_image() {
	[ -e "$work/small.ext4" ] || mke2fs -q -t ext4 -F "$work/small.ext4" 8M >/dev/null
	echo "$work/small.ext4"
}

# Boots the small guest; options first, then its command line after --.
run_small() {
	run_options=
	while [ $# -gt 0 ] && [ "$1" != -- ]; do
		run_options="$run_options $1"
		shift
	done
	[ $# -eq 0 ] || shift
	# shellcheck disable=SC2086 # words
	pando run --no-wait --kernel "$TINY" --rootfs "$(small_image)" --mem-size 32 --fs-size-vm 16 \
		--cmdline "${*:-mode=work}" $run_options
}

needs_kvm() {
	[ -r /dev/kvm ] && [ -w /dev/kvm ] || skip "/dev/kvm is not there or not ours"
	[ -e "$TINY" ] || fail "$TINY is missing; make tests"
}

# One member of a VM's JSON, strings without their quotes.
vm_field() { # vm, member
	pando info "$1" --format json | python3 -c '
import json, sys
v = json.load(sys.stdin)[sys.argv[1]]
print("" if v is None else v)' "$2"
}

# What pandod says of the scopes of its VMs.
scopes() { # expression over j
	curl -s --max-time 10 --unix-socket "$PANDO_HOME/pandod.sock" http://pando/v1/version | json "(lambda j: $1)(j['scopes'])"
}

scopes_are() { # expression over j, value
	[ "$(scopes "$1")" = "$2" ]
}

# The scope of a VM, whoever made it, and whether its process is in there.
unit_of() { # vm
	echo "pando-$(vm_field "$1" id).scope"
}

# The last part of the path of the group that the VM's process is in.
group_of() { # vm
	sed -n 's/^0::.*\///p' "/proc/$(vm_field "$1" pid)/cgroup"
}

is_in_its_own() { # vm
	[ "$(group_of "$1")" = "$(unit_of "$1")" ]
}

pandod_pid() {
	curl -s --max-time "$WAIT_LIMIT" --unix-socket "$PANDO_HOME/pandod.sock" http://pando/v1/version 2>/dev/null |
		sed -n 's/.*"pid":\([0-9]*\).*/\1/p'
}

# Processes that hold something of this home open, by the program's name: pid a line. (Their command lines and
# environments say nothing of it.)
home_pids() { # pando-vmm or pandod
	for p in /proc/[0-9]*; do
		[ "$(cat "$p/comm" 2>/dev/null)" = "$1" ] || continue
		# shellcheck disable=SC2010,SC2012 # the links' targets are looked at
		ls -l "$p/fd" 2>/dev/null | grep -qF " $PANDO_HOME/" && echo "${p#/proc/}"
	done
	return 0
}

vmm_pids() {
	home_pids pando-vmm
}

settled() { # the parked and the half-made end a moment after their socket did
	[ "$(vmm_pids | wc -l)" = "$(vms 'len([v for v in j if v["pid"]])')" ]
}

# What this home holds on the host: processes, files, sockets, namespaces. Two equal answers: nothing was left.
holdings() {
	echo "vmms $(vmm_pids | wc -l)"
	find "$PANDO_HOME/vms" "$PANDO_HOME/segments" 2>/dev/null | sort
	echo "sockets $(grep -c "$PANDO_HOME/" /proc/net/unix)"
	echo "namespaces $(for p in $(vmm_pids); do
		readlink "/proc/$p/ns/user" "/proc/$p/ns/net" "/proc/$p/ns/mnt"
	done | sort -u | wc -l)"
}
