# The harness of the system tests: sourced, not run. A script says
#
#   . "$(dirname "$0")/lib.sh"
#   it "a sentence" function      runs function in a subshell with set -eu; prints TAP
#   finish                        the plan; status 1 when anything failed
#
# In the environment: B, the build folder. PANDO_HOME is made here, and everything in it is ended and removed at exit. What
# a function prints goes to its log and is shown when it fails.
set -u
: "${B:=$PWD/build/plain}"
PATH=$B/bin:$PATH
export PATH

work=$(mktemp -d "${TMPDIR:-/tmp}/pando-test.XXXXXX") || exit 2
PANDO_HOME=$work/home
export PANDO_HOME
mkdir -m 700 "$PANDO_HOME"
it_number=0
it_failed=0

# Ends all VMs and the daemon of this home, politely first.
end_home() {
	[ -S "$PANDO_HOME/pandod.sock" ] || return 0
	timeout 60 pando delete --all -y -q >/dev/null 2>&1
	pid=$(pandod_pid)
	[ -z "$pid" ] || kill "$pid" 2>/dev/null
	wait_until 10 "pandod ends" not kill -0 "$pid" 2>/dev/null
	pkill -KILL -f "^pando-vmm.*$PANDO_HOME" 2>/dev/null
	return 0
}

cleanup_work() {
	end_home
	mountpoint -q "$PANDO_HOME" 2>/dev/null && umount "$PANDO_HOME"
	rm -rf "$work"
}
trap cleanup_work EXIT
trap 'exit 130' INT TERM HUP

it() { # sentence, function [arguments…]
	it_number=$((it_number + 1))
	it_name=$1
	shift
	# Not in an `if`: set -e would be off inside.
	(
		set -eu
		"$@"
	) >"$work/$it_number.log" 2>&1 </dev/null
	it_status=$?
	if [ $it_status -eq 77 ]; then
		echo "ok $it_number - $it_name # SKIP $(tail -n 1 "$work/$it_number.log")"
	elif [ $it_status -eq 0 ]; then
		echo "ok $it_number - $it_name"
	else
		it_failed=$((it_failed + 1))
		tail -n 30 "$work/$it_number.log" | sed 's/^/# /'
		echo "not ok $it_number - $it_name"
	fi
}

finish() {
	echo "1..$it_number"
	if [ $it_failed -gt 0 ]; then
		echo "# last lines of pandod's log:"
		tail -n 25 "$PANDO_HOME/pandod.log" 2>/dev/null | sed 's/^/# /'
		exit 1
	fi
	exit 0
}

skip() { # reason
	echo "$1"
	exit 77
}

fail() {
	echo "failed: $*"
	exit 1
}

not() {
	! "$@"
}

# Every step in here that could wait for ever is bounded.
wait_until() { # seconds, what, command…
	wait_limit=$(($(date +%s) + $1))
	wait_what=$2
	shift 2
	until "$@"; do
		[ "$(date +%s)" -lt "$wait_limit" ] || {
			echo "waited in vain: $wait_what"
			return 1
		}
		sleep 0.2
	done
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
	timeout 120 "$@" >"$work/stdout" 2>"$work/stderr" || got_status=$?
	stdout=$(cat "$work/stdout")
	stderr=$(cat "$work/stderr")
	[ "$got_status" = "$wanted_status" ] ||
		fail "status $got_status, not $wanted_status, of: $* (stdout: $stdout) (stderr: $stderr)"
}

# One member of a VM's JSON, strings without their quotes.
vm_field() { # vm, member
	pando info "$1" --format json | python3 -c '
import json, sys
v = json.load(sys.stdin)[sys.argv[1]]
print("" if v is None else v)' "$2"
}

pandod_pid() {
	curl -s --max-time 5 --unix-socket "$PANDO_HOME/pandod.sock" http://pando/v1/version 2>/dev/null |
		sed -n 's/.*"pid":\([0-9]*\).*/\1/p'
}

# The VMM processes of this home, by their open control sockets being below it: pid a line.
vmm_pids() {
	for p in /proc/[0-9]*; do
		[ "$(cat "$p/comm" 2>/dev/null)" = pando-vmm ] || continue
		ls -l "$p/fd" 2>/dev/null | grep -q "$PANDO_HOME/" && echo "${p#/proc/}"
	done
	return 0
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
