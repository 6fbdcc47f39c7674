# Sourced by ../guests.sh: a guest has what programs expect of a machine. Works on branches of g.

its_name_resolves() {
	pando branch g -q -n named
	pando execute named -- python3 -c 'import socket; n = socket.gethostname(); print(n, socket.gethostbyname(n))' >"$work/named"
	equal "what it resolves to" "$(cat "$work/named")" "named 127.0.1.1"
	pando execute named -- getent hosts g && fail "the parent's name resolves in a branch"
	pando delete -y -q named
}

tmux_shows_signs_of_utf8() {
	pando branch g -q -n signs
	pando execute signs -- tmux new-session -d -s u -x 80 -y 24 'echo "✻ ⎿ žluť"; exec sleep 600'
	pando execute signs -- tmux select-pane -t u -T '✻ busy'
	screen() { [ "$(pando execute signs -- tmux capture-pane -p -t u | head -n 1)" = '✻ ⎿ žluť' ]; }
	wait_until 60 "the screen shows what was written" screen
	equal "the title" "$(pando execute signs -- tmux list-panes -t u -F '#{pane_title}')" '✻ busy'
	equal "a unit's LANG" "$(pando execute signs -- systemctl show-environment | grep ^LANG=)" LANG=C.UTF-8
	pando delete -y -q signs
}

it "the name of a branch resolves in it, and its parent's does not" its_name_resolves
it "tmux shows signs of UTF-8 without an option" tmux_shows_signs_of_utf8

a_full_disk_is_branched() {
	pando branch g -q -n full
	pando execute full --shell 'n=0; for s in 256M 64M 16M 4M 1M 256K 64K 16K 4K; do
while fallocate -l $s /root/fill.$n 2>/dev/null; do n=$((n + 1)); done; done; sync'
	pando execute full -- sh -c 'echo x >/root/more' && fail "the disk did not get full"
	pando branch full -q -n fuller --env "NEW=$(seq -s ' ' 800)"
	pando branch fuller -q -n fullest
	for vm in fuller fullest; do
		equal "hostname of $vm" "$(pando execute $vm -- hostname)" $vm
		equal "NEW of $vm" "$(pando execute $vm -- printenv NEW | tail -c 8)" "799 800"
		pando execute $vm -- sh -c 'echo x >/root/more' && fail "$vm has found room"
	done
	identity() { pando execute "$1" --shell 'cat /etc/machine-id; cut -d" " -f2 /etc/ssh/ssh_host_ed25519_key.pub'; }
	[ "$(for vm in full fuller fullest; do identity $vm; done | sort -u | wc -l)" = 6 ] || fail "they share what makes them apart"
	for vm in fullest fuller full; do
		pando delete -y -q $vm
	done
}

it "a machine whose disk is full can be branched, and its branches too" a_full_disk_is_branched
