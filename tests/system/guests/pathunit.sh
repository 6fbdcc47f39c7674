# Sourced by ../guests.sh: golden images as people make them today, whose coding agent is started by a systemd .path unit on
# /etc/environment, with a keeper and start-pi-rpc.sh in tmux sessions. It fires in every child, whether what is written there
# is new or what was there; and doctor says beforehand when it will not.

# Speaks a little of pi's protocol, and says which environment it has.
pathunit_agent='#!/bin/sh
echo "{\"type\":\"ready\",\"who\":\"${WHO-nobody}\",\"generation\":\"$(cat /run/pando/generation)\"}"
while IFS= read -r line; do
	echo "{\"type\":\"agent_end\",\"who\":\"${WHO-nobody}\"}"
done'

# Everything afresh: two tmux sessions, one of which holds the FIFO open.
pathunit_start='#!/bin/bash
set -eu
set -a
. /etc/environment
set +a
mkdir -p /tmp/pi-rpc
tmux kill-session -t pi-rpc 2>/dev/null || true
tmux kill-session -t pi-keeper 2>/dev/null || true
rm -f /tmp/pi-rpc/in
mkfifo /tmp/pi-rpc/in
: >/tmp/pi-rpc/out
: >/tmp/pi-rpc/err
tmux new-session -d -s pi-keeper "sleep infinity > /tmp/pi-rpc/in"
tmux new-session -d -s pi-rpc -e "WHO=${WHO-nobody}" \
	"/usr/local/bin/pi --mode rpc < /tmp/pi-rpc/in > /tmp/pi-rpc/out 2> /tmp/pi-rpc/err"
echo started >>/root/pathunit.log'

pathunit_path='[Unit]
Description=Starts pi when its environment is there
[Path]
PathChanged=/etc/environment
Unit=pi-rpc.service
[Install]
WantedBy=multi-user.target'

pathunit_service='[Unit]
Description=pi in RPC mode
StartLimitIntervalSec=0
[Service]
Type=oneshot
RemainAfterExit=yes
EnvironmentFile=-/etc/environment
ExecStart=/usr/local/bin/start-pi-rpc.sh'

pathunit_set_up() {
	pando branch g -q -n image --env WHO=image
	printf '%s\n' "$pathunit_agent" >"$work/pi"
	printf '%s\n' "$pathunit_start" >"$work/start-pi-rpc.sh"
	printf '%s\n' "$pathunit_path" >"$work/pi-rpc.path"
	printf '%s\n' "$pathunit_service" >"$work/pi-rpc.service"
	chmod 755 "$work/pi" "$work/start-pi-rpc.sh"
	pando copy "$work/pi" image:/usr/local/bin/pi
	pando copy "$work/start-pi-rpc.sh" image:/usr/local/bin/start-pi-rpc.sh
	pando copy "$work/pi-rpc.path" image:/etc/systemd/system/pi-rpc.path
	pando copy "$work/pi-rpc.service" image:/etc/systemd/system/pi-rpc.service
	pando execute image -- systemctl daemon-reload
}

# What doctor finds that is no good: its lines "id detail".
problems() { # vm
	pando doctor --vm "$1" --format json |
		json '"\n".join(f["id"] + " " + f["detail"] for f in j["findings"] if f["verdict"] == "problem")'
}

# The agent of that child runs, has that environment and answers.
fired() { # vm, who
	wait_until "pi runs in $1" pando execute "$1" -- grep -q '"ready"' /tmp/pi-rpc/out
	out=$(pando execute "$1" -- cat /tmp/pi-rpc/out)
	contains "pi of $1" "$out" "\"who\":\"$2\""
	contains "pi of $1" "$out" "$(vm_field "$1" generation)"
	pando execute "$1" -- tmux has-session -t pi-keeper
	pando execute "$1" -- tmux has-session -t pi-rpc
	pando execute "$1" --shell 'echo "{\"type\":\"prompt\"}" >/tmp/pi-rpc/in'
	wait_until "pi of $1 answers" pando execute "$1" -- grep -q '"agent_end"' /tmp/pi-rpc/out
}

doctor_says_what_will_not_fire() {
	pathunit_set_up
	equal "problems of a sound machine" "$(problems image)" ""
	# Enabled, and started by nobody.
	pando execute image -- systemctl enable -q pi-rpc.path
	contains "problems" "$(problems image)" "not-active pi-rpc.path is enabled, but not active"
	status_is 1 pando doctor --vm image
	contains "the mend" "$stdout" "systemctl start pi-rpc.path"
	pando execute image -- systemctl start pi-rpc.path
	equal "problems once it is mended" "$(problems image)" ""
	status_is 0 pando doctor --vm image
	# It has fired: its service stays active, and a commit made now would never fire again.
	pando execute image -- touch /etc/environment
	wait_until "it fires" pando execute image -- test -s /root/pathunit.log
	wait_until "its service is active" pando execute image -- systemctl -q is-active pi-rpc.service
	contains "problems" "$(problems image)" "path pi-rpc.path will not start pi-rpc.service again"
	status_is 1 pando doctor --vm image
	contains "the mend" "$stdout" "systemctl stop pi-rpc.service"
	pando execute image -- systemctl stop pi-rpc.service
	equal "problems once it is mended" "$(problems image)" ""
	# One that fails.
	pando execute image --shell 'printf "[Service]\nType=oneshot\nExecStart=/bin/false\n" >/etc/systemd/system/broken.service
systemctl daemon-reload; systemctl start broken.service' || :
	contains "problems" "$(problems image)" "failed broken.service has failed: exit-code, status 1"
	pando execute image -- systemctl reset-failed broken.service
}

the_recipe_fires_in_every_child() {
	pando execute image --shell 'tmux kill-server; rm -rf /tmp/pi-rpc /root/pathunit.log; systemctl stop pi-rpc.service
systemctl is-active pi-rpc.path'
	commit=$(pando commit image -q --tag pathunit)
	# Different content in each.
	pando run-commit "$commit" -q --count 3 -N new --env 'WHO=child {index}'
	for i in 0 1 2; do fired new-$i "child $i"; done
	# The same content as there was at the commit.
	pando run-commit "$commit" -q --count 3 -N same --env WHO=image
	for i in 0 1 2; do fired same-$i image; done
	# And none at all.
	pando run-commit "$commit" -q -N bare
	fired bare nobody
	# Branches of a machine that has not fired since its service was stopped.
	pando execute bare --shell 'systemctl stop pi-rpc.service; tmux kill-server; rm -f /tmp/pi-rpc/out'
	pando branch bare -q --count 2 -n twig
	for i in 0 1; do fired twig-$i nobody; done
	for vm in new-0 new-1 new-2 same-0 same-1 same-2 twig-0 twig-1 bare; do
		equal "starts in $vm" "$(pando execute $vm -- grep -c started /root/pathunit.log)" \
			"$(case $vm in twig-*) echo 2 ;; *) echo 1 ;; esac)"
		pando delete -y -q $vm
	done
}

# `rpc start` holds over a stop and a start of the machine, and one that was stopped stays so.
kept_agents_come_back_with_the_machine() {
	pando branch g -q -n rebooted
	pando execute rebooted --shell 'mkdir -p /etc/pando/rpc.d
printf "command = \"echo boot >>/root/boots; exec cat\"\nstop_s = 2\n" >/etc/pando/rpc.d/kept.conf
printf "command = \"echo boot >>/root/others; exec cat\"\nstop_s = 2\n" >/etc/pando/rpc.d/other.conf'
	status_is 0 pando rpc start --name kept rebooted
	status_is 0 pando rpc start --name other rebooted
	status_is 0 pando rpc stop --name other rebooted
	pando stop rebooted -q --timeout 3600
	pando start rebooted -q
	wait_until "it runs again" pando execute rebooted --shell '[ "$(wc -l </root/boots)" -eq 2 ]'
	# Pulled off the mains.
	pando stop rebooted -q --force
	pando start rebooted -q
	wait_until "it runs again" pando execute rebooted --shell '[ "$(wc -l </root/boots)" -ge 2 ]'
	status_is 0 pando rpc status --name kept --format json rebooted
	contains "its state" "$stdout" '"running"'
	# A branch has it running, and starts no second one.
	before=$(pando execute rebooted -- cat /root/boots | wc -l)
	pando branch rebooted -q -n rebooted-2
	equal "starts in the branch" "$(pando execute rebooted-2 -- cat /root/boots | wc -l)" "$before"
	equal "starts of the one that was stopped" "$(pando execute rebooted -- cat /root/others | wc -l)" 1
	pando delete -y -q -r rebooted
}

it "doctor --vm says which path units will not fire, and what has failed" doctor_says_what_will_not_fire
it "a .path unit on /etc/environment fires in every child, with the same and with different content" the_recipe_fires_in_every_child
it "kept coding agents are started again with their machine" kept_agents_come_back_with_the_machine
pando delete -y -q -r image >/dev/null 2>&1 || :
pando commit delete pathunit >/dev/null 2>&1 || :
