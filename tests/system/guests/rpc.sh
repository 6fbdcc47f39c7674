# Sourced by ../guests.sh: coding agents that a machine keeps, and reports. The coding agent is a shell script
# that speaks a little of pi's protocol.

# A prompt is answered by so many numbered lines, each written in two halves, and an agent_end. A prompt that says "hold" is
# answered to the middle of the line in the middle, and further once there is /root/go. Fewer in the test machine, where a
# line takes a second when other machines have much to do.
rpc_lines=200
[ ! -e /run/pando-machine ] || rpc_lines=60
rpc_agent='#!/bin/sh
while IFS= read -r line; do
	echo "{\"type\":\"agent_start\"}"
	i=0
	while [ $i -lt LINES ]; do
		printf "{\"type\":\"x\",\"who\":\"%s\"," "$WHO"
		sleep 0.02
		case $i$line in HALF*hold*)
			touch /root/held
			until [ -e /root/go ]; do sleep 0.1; done
			;;
		esac
		printf "\"n\":%d}\n" $i
		i=$((i + 1))
	done
	case $line in *bad*) r=error ;; *) r=stop ;; esac
	echo "{\"type\":\"agent_end\",\"messages\":[{\"stopReason\":\"$r\"}]}"
done'

rpc_set_up() {
	pando branch g -q -n coder
	printf '%s\n' "$rpc_agent" | sed "s/LINES/$rpc_lines/; s/HALF/$((rpc_lines / 2))/" >"$work/agent.sh"
	printf 'command = ["sh", "/root/agent.sh"]\nprotocol = "pi"\nstop_s = 2\n%s\n' "$1" >"$work/pi.conf"
	pando execute coder -- mkdir -p /etc/pando/rpc.d
	pando copy "$work/agent.sh" coder:/root/agent.sh
	pando copy "$work/pi.conf" coder:/etc/pando/rpc.d/pi.conf
	status_is 0 pando rpc start coder
}

# Sends a prompt and waits until its answer is in the middle of a line; $from is where that begins.
rpc_is_held() {
	from=$(pando rpc send -q coder '{"type":"prompt","message":"hold"}')
	wait_until "the answer is in the middle of a line" pando execute coder -- test -e /root/held
}

# Whole lines of JSON, numbers in order from 0, and an end.
rpc_is_whole() {
	python3 - "$1" "$rpc_lines" <<-'END'
		import json, sys
		lines = [json.loads(l) for l in open(sys.argv[1])]
		n = [l["n"] for l in lines if l["type"] == "x"]
		assert n == list(range(int(sys.argv[2]))), n
		assert lines[-1]["type"] == "agent_end", lines[-1]
	END
}

a_prompt_is_done() {
	rpc_set_up ''
	status_is 0 pando rpc send --until-done coder '{"type":"prompt","message":"good"}'
	printf '%s\n' "$stdout" >"$work/lines"
	rpc_is_whole "$work/lines"
	status_is 1 pando rpc send --until-done coder '{"type":"prompt","message":"bad"}'
	status_is 2 pando rpc send coder '{"type":'
	contains "the error" "$stderr" JSON
	status_is 0 pando execute coder -- sh -c 'echo "{\"type\":\"prompt\"}" >/tmp/pi-rpc/in; sleep 1; tail -n 1 /tmp/pi-rpc/out'
	pando delete -y -q coder
}

a_branch_in_the_middle_of_a_line() {
	rpc_set_up 'on_fork = "keep"'
	rpc_is_held
	pando branch coder -q -n coder-2
	for vm in coder coder-2; do
		pando execute "$vm" -- touch /root/go
		status_is 0 pando rpc follow --from "$from" --until-done "$vm"
		printf '%s\n' "$stdout" >"$work/lines"
		rpc_is_whole "$work/lines"
	done
	pando delete -y -q -r coder
}

a_branch_restarts_its_own() {
	rpc_set_up 'on_fork = "restart"'
	rpc_is_held
	pando branch coder -q -n coder-2
	pando execute coder -- touch /root/go
	status_is 0 pando rpc follow --from "$from" --until-done coder
	printf '%s\n' "$stdout" >"$work/lines"
	rpc_is_whole "$work/lines"
	status_is 0 pando rpc send --until-done coder-2 '{"type":"prompt","message":"y"}'
	printf '%s\n' "$stdout" >"$work/lines"
	rpc_is_whole "$work/lines"
	# Every line of either is JSON, but for the one that was cut off, which followers do not show.
	status_is 0 pando rpc follow --once coder-2
	printf '%s\n' "$stdout" | python3 -c 'import json, sys; [json.loads(l) for l in sys.stdin]'
	pando delete -y -q -r coder
}

a_keeper_and_the_agent_are_killed() {
	rpc_set_up ''
	rpc_is_held
	pando rpc follow --from "$from" --until-done coder >"$work/lines" 2>"$work/notes" &
	reader=$!
	wait_until "its lines are followed" grep -q '"n":1}' "$work/lines"
	pando execute coder -- pkill -KILL -x pi-keeper || :
	pando execute coder -- systemctl restart pando-agent || :
	wait_until "the agent answers again" pando execute coder -- touch /root/go
	wait $reader
	rpc_is_whole "$work/lines"
	pando delete -y -q coder
}

reports_come_and_stay() {
	pando branch g -q -n worker
	pando execute worker -- sh -c 'cd /root && echo result >out.txt &&
		pando-agent report --score 0.75 --file out.txt --json "{\"tests\":12}"'
	status_is 0 pando reports --format json worker
	contains "the report" "$stdout" '"score":0.75'
	contains "the report" "$stdout" "$(vm_field worker id)"
	status_is 0 pando reports --fetch "$work/fetched" worker
	contains "its file" "$stdout" "$(printf 'result\n' | b2sum -l 256 | cut -d ' ' -f 1)"
	id=$(vm_field worker id)
	# A branch does not report what its parent did.
	pando execute worker -- pando-agent report --status blocked
	pando branch worker -q -n worker-2
	status_is 0 pando reports -q worker-2
	equal "reports of the branch" "$stdout" ""
	kill -9 "$(pandod_pid)"
	pando delete -y -q -r worker
	status_is 0 pando reports --format json "$id"
	contains "the report" "$stdout" '"score":0.75'
	contains "the report that nobody asked for before" "$stdout" '"status":"blocked"'
}

it "a prompt is sent, followed, and ends as it was done" a_prompt_is_done
it "a branch in the middle of a line leaves both sides with whole lines" a_branch_in_the_middle_of_a_line
it "a branch whose coding agent is restarted has whole lines, and so has its parent" a_branch_restarts_its_own
it "killing the keeper and restarting the agent loses no line" a_keeper_and_the_agent_are_killed
it "reports come with their files, and stay when their machine is gone" reports_come_and_stay
