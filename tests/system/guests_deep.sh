#!/bin/sh
# The tree of live machines, long and wide: a Debian guest with much going on is branched many times in a row; and smaller
# guests make a deep tree and a wide one. ROUNDS=50 DEPTH=64 WIDTH=100 are the full sizes, for a host whose KVM boots Linux; in
# the test machine, which is many times slower, less is done when nothing is said.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
if [ -e /run/pando-machine ]; then
	: "${ROUNDS:=5}" "${DEPTH:=12}" "${WIDTH:=16}"
fi
: "${ROUNDS:=50}" "${DEPTH:=64}" "${WIDTH:=100}"
. "$here/guests/branch_work.sh"

# Beside the counter and the log of branch_work.sh: two processes that converse over TCP, every answer a function of all that was
# said before; and a database under constant transactions, each row made from the last.
start_more_work() { # vm
	pando execute "$1" --shell '
cat >/root/talk.py <<"W"
import os, socket, sys, time
# server: answers each number with the sum over all numbers so far; client: checks it, and notes how far they are.
if sys.argv[1] == "server":
    s = socket.create_server(("127.0.0.1", 7000))
    c, _ = s.accept()
    f, total = c.makefile("rwb"), 7
    for line in f:
        total = (total * 31 + int(line)) % 1000000007
        f.write(b"%d\n" % total)
        f.flush()
    sys.exit("the client is gone")
while True:
    try:
        c = socket.create_connection(("127.0.0.1", 7000))
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
f, n, total = c.makefile("rwb"), 0, 7
while True:
    n += 1
    total = (total * 31 + n) % 1000000007
    f.write(b"%d\n" % n)
    f.flush()
    got = f.readline()
    if got != b"%d\n" % total:
        open("/run/talk.failed", "w").write("at %d: %r, not %d\n" % (n, got, total))
        sys.exit(1)
    with open("/run/talk.new", "w") as o:
        o.write("%d\n" % n)
    os.rename("/run/talk.new", "/run/talk")
    time.sleep(0.5)
W
cat >/root/rows.py <<"W"
import sqlite3, time
d = sqlite3.connect("/root/rows.db", isolation_level=None)
d.execute("create table t (n integer primary key, sum integer)")
n, total = 0, 7
while True:
    d.execute("begin")
    for _ in range(3):
        n += 1
        total = (total * 31 + n) % 1000000007
        d.execute("insert into t values (?, ?)", (n, total))
    d.execute("commit")
    time.sleep(0.5)
W
tmux new-session -d -s server "python3 /root/talk.py server"
tmux new-session -d -s rows "python3 /root/rows.py"
tmux new-session -d -s client "python3 /root/talk.py client"'
	wait_until "the two processes of $1 converse" pando execute "$1" -- test -s /run/talk
	wait_until "the database of $1 has rows" more_rows "$1" 0
}

rows_of() { # vm
	pando execute "$1" -- python3 -c 'import sqlite3
print(sqlite3.connect("/root/rows.db", timeout=600).execute("select count(*) from t").fetchone()[0])'
}

more_rows() { # vm, rows
	[ "$(rows_of "$1")" -gt "$2" ]
}

talk_of() { # vm
	pando execute "$1" -- sh -c 'test ! -e /run/talk.failed && cat /run/talk'
}

all_goes_on() { # vm, count, place in the conversation, rows
	count_goes_on "$1" "$2"
	further() { [ "$(talk_of "$1")" -gt "$2" ]; }
	wait_until "the conversation in $1 goes on beyond $3" further "$1" "$3"
	wait_until "the database of $1 grows beyond $4 rows" more_rows "$1" "$4"
	pando execute "$1" -- test ! -e /run/talk.failed || fail "$1: $(pando execute "$1" -- cat /run/talk.failed)"
}

# The database as it lay on the disk when the power went, with its journal: sound, and its rows without a gap.
check_database() { # image, rows that were there
	rm -f "$work"/rows.db*
	debugfs -R "dump /root/rows.db $work/rows.db" "$1" 2>/dev/null
	debugfs -R "dump /root/rows.db-journal $work/rows.db-journal" "$1" 2>/dev/null
	[ -s "$work/rows.db-journal" ] || rm -f "$work/rows.db-journal"
	python3 - "$work/rows.db" "$2" <<-'W'
		import sqlite3, sys
		d = sqlite3.connect(sys.argv[1])
		assert d.execute("pragma integrity_check").fetchone()[0] == "ok"
		total, rows = 7, 0
		for n, s in d.execute("select n, sum from t order by n"):
		    rows += 1
		    total = (total * 31 + rows) % 1000000007
		    assert (n, s) == (rows, total), (n, s, rows, total)
		assert rows % 3 == 0 and rows >= int(sys.argv[2]), (rows, sys.argv[2])
	W
}

much_at_once() {
	boot_guest d --mem-size 384 --fs-size-vm 1536
	start_work d
	start_more_work d
}

branched_with_all_that() {
	i=1
	while [ $i -le "$ROUNDS" ]; do
		count=$(count_of d) talk=$(talk_of d) rows=$(rows_of d)
		pando execute d -- cat /root/log | head -n -1 >"$work/log.before"
		pando branch d -q -n "deep$i"
		mark "deep$i" "deep$i"
		all_goes_on "deep$i" "$count" "$talk" "$rows"
		now=$(rows_of "deep$i")
		check_disk_after_a_power_cut "deep$i" "deep$i" "$work/log.before"
		check_database "$work/disk.img" "$now"
		pando delete -y -q "deep$i"
		all_goes_on d "$count" "$talk" "$rows"
		equal "the markers of d" "$(pando execute d -- cat /root/markers)" base
		echo "round $i: count $count, conversation at $talk, $now rows"
		i=$((i + 1))
	done
	pando delete -y -q d
}

# Only those that are asked run: a hundred idle guests are a lot for a small host.
ask() { # vm, command…
	asked=$1
	shift
	pando resume -q "$asked" >&2
	pando execute "$asked" -- "$@"
	pando pause -q "$asked" >&2
}

# Into memory and onto the disk.
give() { # vm, marker
	ask "$1" sh -c "echo '$2' | tee -a /run/markers >>/root/markers && sync"
}

holds() { # vm, markers
	printf '%s\n\n%s\n' "$2" "$2" >"$work/should"
	ask "$1" sh -c 'cat /run/markers; echo; cat /root/markers' >"$work/is"
	diff "$work/should" "$work/is" >&2 || fail "memory and disk of $1 hold something else (<: they should)"
}

small_root() {
	boot_guest t0 --mem-size 160 --fs-size-vm 1536
	pando execute t0 -- sh -c 'echo root | tee /run/markers >/root/markers; sync'
	pando pause -q t0
}

deep_tree() {
	i=1
	while [ $i -le "$DEPTH" ]; do
		pando branch "t$((i - 1))" -q -n "t$i"
		give "t$i" "t$i"
		i=$((i + 1))
	done
	should=root i=0
	while [ $i -le "$DEPTH" ]; do
		[ $i -eq 0 ] || should=$(printf '%s\nt%d' "$should" $i)
		holds "t$i" "$should"
		i=$((i + 1))
	done
	equal "machines in the tree" "$(pando tree t0 --format json | grep -o '"id"' | wc -l)" $((DEPTH + 1))
	pando delete -y -r -q t1
}

wide_tree() {
	pando resume -q t0
	pando branch t0 -q --count "$WIDTH" -n w
	pando pause -q t0
	i=0
	while [ $i -lt "$WIDTH" ]; do
		pando pause -q "w-$i"
		i=$((i + 1))
	done
	i=0
	while [ $i -lt "$WIDTH" ]; do
		give "w-$i" "marker $i"
		i=$((i + 1))
	done
	i=0
	while [ $i -lt "$WIDTH" ]; do
		holds "w-$i" "$(printf 'root\nmarker %d' $i)"
		i=$((i + 1))
	done
	holds t0 root
	pando delete -y -r -q t0
}

it "work, a conversation and a database start in a Debian machine" much_at_once
it "branched $ROUNDS times in a row, all goes on and each disk and database is sound" branched_with_all_that
it "a small Debian machine boots" small_root
it "in a tree $DEPTH deep each machine holds its own markers" deep_tree
it "of $WIDTH children at once each holds its own markers" wide_tree
finish
