# Sourced by ../guests.sh: what `pando execute` promises.

streams_and_status() {
	status_is 7 pando execute g -- sh -c 'echo out; echo err >&2; exit 7'
	equal stdout "$stdout" out
	equal stderr "$stderr" err
}

arguments_arrive_as_they_are() {
	status_is 0 pando execute g -- printf '[%s]' 'a b' '$HOME' "it's" '"q"' '' 'a
b' '*'
	equal stdout "$stdout" "[a b][\$HOME][it's][\"q\"][][a
b][*]"
	status_is 0 pando execute g --shell 'echo a | tr a b'
	equal stdout "$stdout" b
}

hundred_megabytes_through_stdin() {
	head -c 100000000 /dev/urandom >"$work/big"
	there=$(pando execute -i g -- sha256sum <"$work/big" | cut -d ' ' -f 1)
	here_sum=$(sha256sum <"$work/big" | cut -d ' ' -f 1)
	rm "$work/big"
	equal "the sum in the guest" "$there" "$here_sum"
}

binary_output_is_exact() {
	pando execute g -- head -c 5000000 /dev/urandom >"$work/out.bin"
	equal "bytes of stdout" "$(stat -c %s "$work/out.bin")" 5000000
	pando execute -i g -- sh -c 'cat >/tmp/x; sha256sum </tmp/x; rm /tmp/x' <"$work/out.bin" >"$work/sum"
	equal "the sum of what came" "$(cut -d ' ' -f 1 "$work/sum")" \
		"$(sha256sum <"$work/out.bin" | cut -d ' ' -f 1)"
}

timeout_kills_the_group() {
	status_is 6 pando execute g --timeout 1 -- sleep 1000000
	status_is 6 pando execute g --timeout 1 -- sh -c 'sleep 1000001 & sleep 1000001'
	status_is 1 pando execute g -- pgrep -x sleep
}

signals_and_names() {
	status_is 137 pando execute g -- sh -c 'kill -9 $$'
	status_is 127 pando execute g -- no-such-program
	status_is 3 pando execute nosuch -- true
	contains "the error" "$stderr" nosuch
	status_is 0 pando execute g -w /tmp -e A='x y' -u nobody -- sh -c 'echo "$PWD $A $(id -un)"'
	equal stdout "$stdout" "/tmp x y nobody"
}

background_child_does_not_hang_the_call() {
	status_is 0 pando execute g -- sh -c 'sleep 1000000 & echo done'
	equal stdout "$stdout" done
	# It is there still.
	pando execute g -- pkill -x sleep
}

terminal_has_the_size_of_ours() {
	command -v script >/dev/null || skip "no script(1) here"
	script -qec 'stty rows 33 cols 77; pando execute -it g -- stty size' /dev/null </dev/null >"$work/tty"
	contains "stty in the guest" "$(cat "$work/tty")" "33 77"
}

many_at_once() {
	pids=
	for i in 1 2 3 4 5 6 7 8; do
		pando execute g -- sh -c "head -c 200000 /dev/zero | tr '\\0' $i" >"$work/many.$i" &
		pids="$pids $!"
	done
	for p in $pids; do
		wait "$p"
	done
	for i in 1 2 3 4 5 6 7 8; do
		equal "stream $i" "$(tr -d "$i" <"$work/many.$i" | wc -c) $(wc -c <"$work/many.$i")" "0 200000"
	done
}

agent_is_small() {
	kib=$(pando execute g -- sh -c "awk '/VmRSS/ { print \$2 }' /proc/\$(pgrep -xo pando-agent)/status")
	echo "resident: $kib KiB"
	[ "$kib" -lt 2048 ] || fail "the agent has $kib KiB resident"
}

absurd_agent_frame() {
	socket=$(vm_field g agent_socket)
	python3 - "$socket" <<'P'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(1800)
s.connect(sys.argv[1])
s.sendall(b"CONNECT 1024\n")
line = b""
while not line.endswith(b"\n"):
    line += s.recv(1)
assert line.startswith(b"OK "), line
s.sendall(b'{"op":"exec","argv":["cat"],"stdin":true}\n')
line = b""
while not line.endswith(b"\n"):
    line += s.recv(1)
assert b'"ok":true' in line, line
s.sendall(b"\x01\x00\x00\x00\xff\xff\xff\xff" + b"x" * 1000)
while s.recv(65536):
    pass
print("the agent closed the stream")
P
	status_is 0 pando execute g -- true
	pando execute g -- sh -c 'pkill -x cat; true'
}

it "stdout and stderr are apart and the status is the command's" streams_and_status
it "arguments arrive as they are" arguments_arrive_as_they_are
it "100 MB through stdin have the same SHA-256 in the guest" hundred_megabytes_through_stdin
it "binary output is exact" binary_output_is_exact
it "a timeout ends with 6 and leaves no process" timeout_kills_the_group
it "signals, missing programs, unknown VMs, cwd, env and user" signals_and_names
it "a background child does not hang the call" background_child_does_not_hang_the_call
it "a terminal in the guest has the size of ours" terminal_has_the_size_of_ours
it "eight commands at once keep their streams apart" many_at_once
it "the agent is resident in less than 2 MiB" agent_is_small
it "an agent frame of absurd length ends that stream only" absurd_agent_frame
