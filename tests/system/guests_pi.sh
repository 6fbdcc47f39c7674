#!/bin/sh
# A coding agent as people have it, in a Debian guest: pi, as npm has it, kept by `pando rpc`. The model that it asks is a server in
# the same guest (pi/server.py), so that a branch in the middle of an answer has both ends of that conversation.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

# In the test machine they are there already (lib_in_machine.sh).
if [ ! -e /run/pando-machine ]; then
	has_node_and_pi() {
		sh "$here/lib_before_guests_pi.sh"
	}
	it "a guest image with node, and pi, are made" has_node_and_pi
	[ $it_failed = 0 ] && [ $it_status != 77 ] || finish
fi

words=60 # of an answer, half a second each
go=/root/go

boots() {
	boot_guest coder --kernel test-node --rootfs test-node --mem-size 768 --fs-size-vm 1536
	pando copy "$B/tests/pi.tar" coder:/root/pi.tar
	pando copy "$here/pi/server.py" coder:/root/server.py
	pando copy "$here/pi/models.json" coder:/root/models.json
	pando execute coder -- sh -euc 'cd /root
		tar -xf pi.tar
		rm pi.tar
		mkdir -p .pi/agent project /etc/pando/rpc.d
		mv models.json .pi/agent
		tmux new-session -d -s model "python3 server.py 8077 500 /root/go 2>/root/server.log"
		node --version'
	configure coder keep
	wait_until "the model listens" model_listens
}

model_listens() {
	pando execute coder -- python3 -c 'import socket
socket.create_connection(("127.0.0.1", 8077))'
}

configure() { # vm, what to do on fork
	# What pi does at its start over a network, --offline forbids.
	cat >"$work/pi.conf" <<-END
		command = ["/root/node_modules/.bin/pi", "--mode", "rpc", "--offline", "--provider", "test", "--model", "test"]
		protocol = "pi"
		folder = "/root/project"
		on_fork = "$2"
		stop_s = 5
	END
	pando copy "$work/pi.conf" "$1:/etc/pando/rpc.d/pi.conf"
}

says() { # vm, offset, pattern: in the lines from there on
	pando rpc follow --once --from "$2" "$1" 2>"$work/notes" | grep -q -e "$3"
}

keeper_of() { # vm, what of its keeper's state
	pando rpc status --format json "$1" | json "j['agents'][0]['keeper']['$2']"
}

# Why pi in a machine may have ended.
tell_pi() { # vm
	pando rpc status "$1" >&2
	pando execute "$1" --shell 'echo "its stderr:"; tail -n 20 /tmp/pi-rpc/err; free -m
		dmesg | grep -iE "out of memory|killed process|segfault|general protection|trap" | tail -n 5
		journalctl -q --no-pager -n 20' >&2
}

# The id of the session that the coding agent is in, by its own word.
session_of() { # vm
	state_asked=$((${state_asked:-0} + 1))
	state_from=$(pando rpc send -q "$1" "{\"id\":\"state-$state_asked\",\"type\":\"get_state\"}")
	wait_until "pi in $1 says what its state is" says "$1" "$state_from" "\"id\":\"state-$state_asked\"" || exit 1
	pando rpc follow --once --from "$state_from" "$1" 2>"$work/notes" | grep "\"id\":\"state-$state_asked\"" >"$work/state"
	json '"%(sessionId)s" % j["data"] if j["success"] and j["data"]["model"]["id"] == "test" else exit("no state")' <"$work/state"
}

# Follows to the end of a prompt, which must be well, and looks at it.
done_well() { # vm, offset, words for lines.py
	done_vm=$1 done_from=$2
	shift 2
	pando rpc follow --from "$done_from" --until-done "$done_vm" >"$work/lines" 2>"$work/notes" ||
		{
			tell_pi "$done_vm"
			fail "the prompt in $done_vm was not done well: $(cat "$work/notes")"
		}
	python3 "$here/pi/lines.py" "$@" <"$work/lines"
}

every_line_is_whole() { # vm
	pando rpc follow --once "$1" 2>"$work/notes" >"$work/lines"
	python3 "$here/pi/lines.py" json <"$work/lines"
}

it_starts_and_says_its_state() {
	pando rpc start -q coder
	session=$(session_of coder)
	[ -n "$session" ]
	pando execute coder -- cat /tmp/pi-rpc/err >"$work/complaints"
	equal "what it complains of" "$(cat "$work/complaints")" ""
	pando execute coder -- grep VmHWM "/proc/$(keeper_of coder program)/status"
	pando execute coder -- free -m
}

a_prompt_is_answered_to_its_end() {
	pando execute coder -- touch "$go"
	pando rpc send --until-done coder '{"type":"prompt","message":"count 5"}' >"$work/lines" || {
		tell_pi coder
		fail "the prompt was not done well"
	}
	python3 "$here/pi/lines.py" count 5 <"$work/lines"
	pando rpc send --until-done coder '{"type":"prompt","message":"run echo $((6 * 7)) | tee answer"}' >"$work/lines" || {
		tell_pi coder
		fail "the prompt with a tool call was not done well"
	}
	python3 "$here/pi/lines.py" says "the tool said: 42" <"$work/lines"
	equal "what its tool wrote" "$(pando execute coder -- cat /root/project/answer)" 42
	pando execute coder -- rm "$go"
}

# Branches coder while it answers; leaves in $from where that begins. The answer's last word waits for $go, which is made
# on each side for itself, so neither was at its end.
branch_during_an_answer() { # name
	from=$(pando rpc send -q coder "{\"type\":\"prompt\",\"message\":\"count $words\"}")
	wait_until "the answer begins" says coder "$from" '"delta":"w2 "'
	pando branch coder -q -n "$1"
	for side in coder "$1"; do
		! says "$side" "$from" '"type":"agent_end"' || fail "the answer in $side was at its end already"
	done
}

both_sides_finish() {
	branch_during_an_answer kept
	for side in kept coder; do
		pando execute "$side" -- touch "$go"
		done_well "$side" "$from" count "$words"
		every_line_is_whole "$side"
	done
	equal "starts of pi in the branch" "$(keeper_of kept starts)" 1
	# The conversation goes on in the branch, which was never connected to anything but itself.
	from=$(pando rpc send -q kept '{"type":"prompt","message":"count 3"}')
	done_well kept "$from" count 3
	pando execute coder -- rm "$go"
	pando delete -y -q kept
}

one_side_is_restarted() {
	# It is read when the coding agent is started.
	pando rpc stop -q coder
	configure coder restart
	pando rpc start -q coder
	session=$(session_of coder)
	branch_during_an_answer anew
	pando execute coder -- touch "$go"
	done_well coder "$from" count "$words"
	every_line_is_whole coder
	equal "the session of the parent" "$(session_of coder)" "$session"
	# Another pi, which knows nothing of that prompt; what the first one had written of it is there, and whole. (What is sent
	# while the first one is being ended may be read by it.)
	restarted() { [ "$(keeper_of anew starts)" = 2 ]; }
	wait_until "the branch has a pi of its own" restarted
	[ "$(session_of anew)" != "$session" ] || fail "the session of the branch is its parent's"
	status_is 1 pando rpc follow --from "$from" --until-done anew
	contains "the reason" "$stderr" "ended"
	pando execute anew -- touch "$go"
	from=$(pando rpc send -q anew '{"type":"prompt","message":"count 10"}')
	done_well anew "$from" count 10
	every_line_is_whole anew
	equal "starts of pi in the parent" "$(keeper_of coder starts)" 1
	equal "starts of pi in the branch" "$(keeper_of anew starts)" 2
	pando delete -y -q anew
}

it "a Debian machine with node boots and is given pi and a model" boots
[ $it_failed = 0 ] || finish
it "pi starts under rpc and says its state" it_starts_and_says_its_state
it "a prompt is answered to its end, and pi's tools work" a_prompt_is_answered_to_its_end
it "of a branch in the middle of an answer both sides finish it, each line whole" both_sides_finish
it "a branch whose pi is restarted has one of its own, its parent's finishes, each line whole" one_side_is_restarted
finish
