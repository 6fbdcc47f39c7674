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
