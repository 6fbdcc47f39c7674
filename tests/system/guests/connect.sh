# Sourced by ../guests.sh: `pando connect` in a terminal, which tmux is, and `pando tunnel`.

on_screen() { # tmux's words
	tmux -S "$screen" -f /dev/null "$@"
}

screen_shows() { # text, colours and all
	wait_until "\"$1\" on the screen" screen_has "$1" || {
		on_screen capture-pane -p
		fail "the screen does not show \"$1\""
	}
}

screen_has() {
	on_screen capture-pane -e -p | grep -qF -- "$1"
}

# One line, and Enter.
type_in() {
	on_screen send-keys -l "$1"
	on_screen send-keys Enter
}

# A local shell in a terminal of 80 x 24, and `pando connect` in it.
connect_on_screen() {
	command -v tmux >/dev/null || skip "no tmux here"
	# Of its own each time: a server that ends is not quite gone.
	screen=$(mktemp -u "$work/screen.XXXXXX")
	on_screen new-session -d -x 80 -y 24 "PS1='here>' exec sh"
	screen_shows 'here>'
	type_in 'BEFORE=$(stty -g)'
	type_in "$B/bin/pando connect $1"
	type_in 'PS1="gue""st>"; clear'
	screen_shows 'guest>'
}

# To the last flag.
screen_is_restored() {
	type_in 'test "$BEFORE" = "$(stty -g)" && echo rest""ored'
	screen_shows restored
}

a_shell_with_colours() {
	connect_on_screen g
	type_in 'printf "\033[31mr\145d\033[m \033[38;5;42mgr\145en\033[m\n"; echo "[$TERM] $(id -un) $0"'
	screen_shows '[31mred'
	screen_shows '[38;5;42mgreen'
	screen_shows 'root -'
	type_in 'exit 43'
	screen_shows 'here>'
	type_in 'echo status=$?'
	screen_shows status=43
	screen_is_restored
}

a_resize_arrives() {
	connect_on_screen g
	type_in 'stty size'
	screen_shows '24 80'
	type_in 'trap "stty size" WINCH'
	on_screen resize-window -x 101 -y 31
	screen_shows '31 101'
	on_screen send-keys '~.'
	screen_shows 'left "g"'
	screen_is_restored
}

an_interrupt_is_the_guests() {
	connect_on_screen g
	type_in 'sleep 98761'
	wait_until "the command runs in the guest" pando execute g -- pgrep -xf 'sleep 98761'
	on_screen send-keys C-c
	type_in 'echo int=$?'
	screen_shows int=130
	type_in 'clear; yes 7654321'
	screen_shows 7654321
	on_screen send-keys C-c
	type_in 'S=$?; clear; echo flood=$S'
	screen_shows flood=130
	type_in 'exit'
	screen_shows 'here>'
}

# Python's own text box: curses, the whole screen, in the guest.
a_full_screen_editor() {
	cat >"$work/edit.py" <<-'END'
		import curses, curses.textpad
		text = curses.wrapper(lambda s: curses.textpad.Textbox(s).edit())
		open("/root/edited", "w").write(text)
	END
	pando copy "$work/edit.py" g:/root/edit.py
	connect_on_screen g
	type_in 'python3 /root/edit.py'
	wait_until "the editor" screen_alternates 1
	on_screen send-keys -l 'first line'
	screen_shows 'first line'
	on_screen send-keys Down C-a
	on_screen send-keys -l 'second line'
	screen_shows 'second line'
	on_screen send-keys C-g
	wait_until "the editor's end" screen_alternates 0
	screen_shows 'guest>'
	equal "what was written" "$(pando execute g -- sh -c 'sed "s/ *$//" /root/edited | head -n 2 | tr "\n" ,')" \
		"first line,second line,"
	type_in 'exit'
	screen_shows 'here>'
}

screen_alternates() {
	[ "$(on_screen display-message -p '#{alternate_on}')" = "$1" ]
}

a_machine_that_dies_gives_the_terminal_back() {
	pando branch g -q -n mortal
	connect_on_screen mortal
	type_in 'printf "\033[?1049h\033[?25lIN\055IT"; cat'
	screen_shows IN-IT
	pando delete -y -q mortal
	screen_shows 'here>'
	type_in 'echo status=$?'
	screen_shows status=125
	screen_alternates 0 || fail "the alternate screen was left on"
	screen_is_restored
}

a_branch_has_no_shell_of_its_parents() {
	connect_on_screen g
	type_in 'exec sleep 98762'
	wait_until "the command runs in the guest" pando execute g -- pgrep -xf 'sleep 98762'
	pando branch g -q -n sibling
	wait_until "the shell's end in the branch" not pando execute sibling -- pgrep -xf 'sleep 98762'
	status_is 0 pando execute g -- pgrep -xf 'sleep 98762'
	pando delete -y -q sibling
	on_screen send-keys Enter
	on_screen send-keys '~.'
	screen_shows 'left "g"'
	wait_until "the shell's end in the guest" not pando execute g -- pgrep -xf 'sleep 98762'
}

a_script_needs_no_terminal() {
	printf 'tty; echo "$0"; exit 9\n' >"$work/script"
	status=0
	out=$("$B/bin/pando" connect g <"$work/script") || status=$?
	equal "the status" "$status" 9
	contains "its output" "$out" "not a tty"
}

# A tunnel to that port of g in the background: $tunnel is its process, $local_port the port.
tunnel_to() {
	"$B/bin/pando" tunnel -q g "0:$1" >"$work/tunnel" 2>"$work/tunnel.err" &
	tunnel=$!
	wait_until "the tunnel" grep -q : "$work/tunnel"
	local_port=$(sed 's/.*://' "$work/tunnel")
}

two_hundred_requests() {
	pando execute g -- sh -c 'mkdir -p /root/www; head -c 65537 /dev/urandom >/root/www/page'
	# As python3 -m http.server, whose queue has 5 places: the rest would wait for the kernel's next tries.
	cat >"$work/web.py" <<-'END'
		import http.server as h, os
		open("/tmp/web.pid", "w").write(str(os.getpid()))
		h.ThreadingHTTPServer.request_queue_size = 256
		h.ThreadingHTTPServer(("127.0.0.1", 8123), h.SimpleHTTPRequestHandler).serve_forever()
	END
	pando copy "$work/web.py" g:/root/web.py
	web=$(pando execute -d g -w /root/www -- python3 /root/web.py)
	wait_until "the guest's server" pando execute g -- python3 -c \
		'import socket; socket.create_connection(("127.0.0.1", 8123))'
	pando copy g:/root/www/page "$work/page"
	tunnel_to 8123
	cat >"$work/get.py" <<-'END'
		import sys, urllib.request, concurrent.futures as f
		want = open(sys.argv[2], "rb").read()
		def get(i):
		    u = "http://127.0.0.1:%s/page?%d" % (sys.argv[1], i)
		    return urllib.request.urlopen(u, timeout=1800).read() == want
		with f.ThreadPoolExecutor(200) as p:
		    print(sum(p.map(get, range(200))))
	END
	good=$(timeout "$COMMAND_LIMIT" python3 "$work/get.py" "$local_port" "$work/page") || cat "$work/tunnel.err"
	equal "good answers" "$good" 200
	pando execute g -- sh -c 'kill $(cat /tmp/web.pid)'
	# Nothing listens there any more: closed, and said once.
	for i in 1 2 3; do
		python3 -c 'import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
try: assert not s.recv(1)
except ConnectionError: pass' "$local_port"
	done
	equal "complaints" "$(grep -c 'nothing listens on port 8123' "$work/tunnel.err")" 1
	kill "$tunnel"
	status=0
	wait "$tunnel" || status=$?
	equal "the tunnel's status" "$status" 0
	pando execute g --attach "$web" >/dev/null 2>&1 || true
}

a_tunnel_ends_with_its_machine() {
	pando branch g -q -n far
	"$B/bin/pando" tunnel -q far 0:80 >"$work/tunnel" 2>"$work/tunnel.err" &
	tunnel=$!
	wait_until "the tunnel" grep -q : "$work/tunnel"
	pando delete -y -q far
	status=0
	wait "$tunnel" || status=$?
	equal "the tunnel's status" "$status" 3
	contains "the sentence" "$(cat "$work/tunnel.err")" "the tunnel ends"
	status_is 3 pando tunnel nosuch 0:80
}

it "connect: a login shell with colours, and its status" a_shell_with_colours
it "connect: a resized terminal is resized in the guest" a_resize_arrives
it "connect: Ctrl-C goes to the guest, in a flood, too" an_interrupt_is_the_guests
it "connect: a full-screen editor" a_full_screen_editor
it "connect: the terminal is as it was when the machine dies" a_machine_that_dies_gives_the_terminal_back
it "connect: a branch has no shell of its parent's" a_branch_has_no_shell_of_its_parents
it "connect: a script on standard input needs no terminal" a_script_needs_no_terminal
it "tunnel: 200 parallel HTTP requests, and a port where nobody listens" two_hundred_requests
it "tunnel: it ends with its machine" a_tunnel_ends_with_its_machine
for screen in "$work"/screen.*; do
	[ ! -S "$screen" ] || on_screen kill-server 2>/dev/null || true
done
