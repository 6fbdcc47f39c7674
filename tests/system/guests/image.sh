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
	pando execute signs -- tmux new-session -d -s u -x 80 -y 24 'echo "✻ ⎿ žluť"; exec sleep 1000000'
	pando execute signs -- tmux select-pane -t u -T '✻ busy'
	screen() { [ "$(pando execute signs -- tmux capture-pane -p -t u | head -n 1)" = '✻ ⎿ žluť' ]; }
	wait_until "the screen shows what was written" screen
	equal "the title" "$(pando execute signs -- tmux list-panes -t u -F '#{pane_title}')" '✻ busy'
	equal "a unit's LANG" "$(pando execute signs -- systemctl show-environment | grep ^LANG=)" LANG=C.UTF-8
	pando delete -y -q signs
}

modules_load_by_themselves() {
	pando branch g -q -n mods
	equal "a file seen through an overlay" "$(pando execute mods --shell 'mkdir /root/o && cd /root/o && mkdir l u w m && echo low >l/f &&
mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m && cat m/f')" low
	for kind in dummy bridge veth wireguard vxlan\ id\ 5\ dev\ lo\ dstport\ 4789; do
		# shellcheck disable=SC2086 # words
		pando execute mods -- ip link add name t0 type $kind || fail "no link of the kind $kind"
		pando execute mods -- ip link del t0
	done
	# As opened by a VPN's program of an ordinary user: the node is there before its module is.
	pando execute mods -- sh -c '! lsmod | grep -q "^tun "'
	pando execute mods -u nobody -- sh -c ': <>/dev/net/tun' || fail "/dev/net/tun cannot be opened"
	pando execute mods -- sh -c 'lsmod | grep -q "^tun "'
	pando execute mods -u nobody -- sh -c ': <>/dev/fuse' || fail "/dev/fuse cannot be opened"
	pando execute mods -- sh -c 'modprobe -a nf_tables nft_chain_nat iptable_nat br_netfilter && test -e /proc/sys/net/bridge'
	pando delete -y -q mods
}

# One process of each that has drawn before its machine is branched; the guest's own programs.
programs_draw_apart() {
	pando branch g -q -n draws
	pando execute draws --shell 'cd /root
cat >draw.py <<"P"
import os, random, ssl, time
ssl.RAND_bytes(16), random.random()
open("ready.py", "w").close()
while not os.path.exists("go"): time.sleep(0.1)
open("part", "w").write(ssl.RAND_bytes(16).hex() + "\n" + str(random.getrandbits(128)) + "\n")
os.rename("part", "drawn.py")
P
python3 -m venv --without-pip v && setsid v/bin/python draw.py >log 2>&1 </dev/null &'
	wait_until "Python has drawn" pando execute draws -- test -e /root/ready.py
	pando branch draws -q -n drawn --count 2
	for i in 0 1; do
		pando execute drawn-$i -- touch /root/go
		wait_until "drawn-$i draws" pando execute drawn-$i -- test -e /root/drawn.py
		pando execute drawn-$i -- cat /root/drawn.py >"$work/drawn.$i"
	done
	for field in 1 2; do
		[ "$(cat "$work"/drawn.[01] | awk "FNR % 2 == $field % 2" | sort -u | wc -l)" = 2 ] || fail "field $field is the same in both: $(cat "$work"/drawn.[01])"
	done
	equal "what OpenSSL draws from" "$(pando execute draws -- openssl list -random-instances | grep -c PANDO-KERNEL)" 3
	equal "Node's options" "$(pando execute draws -- printenv NODE_OPTIONS)" --require=/usr/lib/pando/node-random.cjs
	# The agent is a unit itself.
	equal "a unit's Node's options" "$(pando execute draws --shell 'tr "\0" "\n" </proc/$(systemctl show -p MainPID --value pando-agent)/environ | grep ^NODE_OPTIONS=')" \
		NODE_OPTIONS=--require=/usr/lib/pando/node-random.cjs
	for vm in drawn-0 drawn-1 draws; do
		pando delete -y -q $vm
	done
}

it "Python and OpenSSL of a virtual environment draw apart in branches" programs_draw_apart
it "modules of the kernel load when something asks for them" modules_load_by_themselves
it "the name of a branch resolves in it, and its parent's does not" its_name_resolves
it "tmux shows signs of UTF-8 without an option" tmux_shows_signs_of_utf8

a_full_disk_is_branched() {
	pando branch g -q -n full
	pando execute full --shell 'n=0; for s in 256M 64M 16M 4M 1M 256K 64K 16K 4K; do
while fallocate -l $s /root/fill.$n 2>/dev/null; do n=$((n + 1)); done; done; sync'
	pando execute full -- sh -c 'echo x >/root/more' && fail "the disk did not get full"
	pando branch full -q -n fuller --env "NEW=$(seq -s ' ' 800)"
	pando branch fuller -q -n fullest --env "NEW=$(seq -s ' ' 800)"
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
