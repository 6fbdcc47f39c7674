# Sourced by ../guests.sh and ../guests_smp.sh: a guest at work is branched; memory and disk of every branch are of one instant.
#
# In the guest: a counter in a tmux session, kept in memory only and shown on its screen; and a writer that appends lines "n sum" to
# /root/log, each sum made from the last one, so that a line that is lost, doubled or torn is seen. Markers are appended to
# /root/markers, one a branch.

start_work() { # vm
	pando execute "$1" --shell '
cat >/root/writer <<"W"
#!/bin/bash
n=0 sum=7
while :; do
	n=$((n + 1))
	sum=$(((sum * 31 + n) % 1000000007))
	echo "$n $sum" >>/root/log
	sleep 1
done
W
cat >/root/counter <<"W"
#!/bin/bash
n=0
while :; do
	n=$((n + 1))
	echo "count $n"
	sleep 1
done
W
chmod +x /root/writer /root/counter
tmux new-session -d -s counter /root/counter
tmux new-session -d -s writer /root/writer
echo base >/root/markers
sync'
	wait_until "the writer of $1 writes" pando execute "$1" -- test -s /root/log
}

count_of() { # vm
	pando execute "$1" -- tmux capture-pane -p -t counter | awk '/^count / { n = $2 } END { print n + 0 }'
}

count_goes_on() { # vm, count
	wait_until "the count of $1 goes on beyond $2" count_is_beyond "$1" "$2"
}

count_is_beyond() { # vm, count
	[ "$(count_of "$1")" -gt "$2" ]
}

# The lines of a log follow from one another, to the last whole one.
check_log() { # file
	awk -v name="$1" '
		BEGIN { sum = 7 }
		{
			n++
			sum = (sum * 31 + n) % 1000000007
			if ($0 != n " " sum) {
				printf "%s: line %d is \"%s\", not \"%d %d\"\n", name, NR, $0, n, sum
				exit 1
			}
		}' "$1"
}

# Kills the VMM as a power cut would, replays the journal as the next boot would, and checks what is on the disk. Lines that were
# there before a sync must be; later ones may be lost or, as ext4 has it for appends within a block, read as NULs. Leaves the
# disk in $work/disk.img.
check_disk_after_a_power_cut() { # vm, marker, log at the branch
	durable=$(pando execute "$1" --shell 'wc -l </root/log; sync')
	kill -9 "$(vm_field "$1" pid)"
	wait_until "$1 is seen to have failed" state_is "$1" failed
	pando disk export -f "$1" "$work/disk.img"
	e2fsck -y -E journal_only "$work/disk.img" >"$work/fsck.log" 2>&1 || [ $? -le 1 ] || {
		cat "$work/fsck.log"
		return 1
	}
	e2fsck -fn "$work/disk.img"
	debugfs -R "dump /root/log $work/log.disk" "$work/disk.img" 2>/dev/null
	debugfs -R "dump /root/markers $work/markers.disk" "$work/disk.img" 2>/dev/null
	head -n "$durable" "$work/log.disk" >"$work/log.durable"
	equal "the durable lines" "$(wc -l <"$work/log.durable")" "$durable"
	check_log "$work/log.durable"
	lines=$(wc -l <"$3")
	[ "$durable" -ge "$lines" ] || fail "the log has $durable lines, fewer than the $lines at the branch"
	head -n "$lines" "$work/log.durable" | cmp - "$3"
	equal "the markers of $1" "$(cat "$work/markers.disk")" "$(printf 'base\n%s' "$2")"
	rm -f "$work/log.disk" "$work/log.durable" "$work/markers.disk"
}

mark() { # vm, marker
	pando execute "$1" -- sh -c "echo '$2' >>/root/markers && sync"
}

# One after the other, from a machine that goes on working.
branched_in_a_row() { # vm, times
	i=1
	while [ $i -le "$2" ]; do
		child=$1-row$i
		before=$(count_of "$1")
		pando execute "$1" -- cat /root/log | head -n -1 >"$work/log.before"
		pando branch "$1" -q -n "$child"
		mark "$child" "$child"
		# The count goes on from where the parent's was, and was not counted from the start again.
		first=$(count_of "$child")
		[ "$first" -ge "$before" ] || fail "the count of $child fell back from $before to $first"
		count_goes_on "$child" "$first"
		check_disk_after_a_power_cut "$child" "$child" "$work/log.before"
		pando delete -y -q "$child"
		equal "the markers of $1" "$(pando execute "$1" -- cat /root/markers)" base
		i=$((i + 1))
	done
	count_goes_on "$1" "$(count_of "$1")"
	pando execute "$1" -- cat /root/log | head -n -1 >"$work/log.parent"
	check_log "$work/log.parent"
}

eight_at_once() { # vm
	pando execute "$1" -- cat /root/log | head -n -1 >"$work/log.before"
	pando branch "$1" -q --count 8 -n "$1-eight"
	i=0
	while [ $i -lt 8 ]; do
		mark "$1-eight-$i" "marker $i"
		i=$((i + 1))
	done
	i=0
	while [ $i -lt 8 ]; do
		count_goes_on "$1-eight-$i" "$(count_of "$1-eight-$i")"
		equal "the markers of child $i" "$(pando execute "$1-eight-$i" -- cat /root/markers)" \
			"$(printf 'base\nmarker %d' $i)"
		i=$((i + 1))
	done
	count_goes_on "$1" "$(count_of "$1")"
	i=0
	while [ $i -lt 8 ]; do
		check_disk_after_a_power_cut "$1-eight-$i" "marker $i" "$work/log.before"
		pando delete -y -q "$1-eight-$i"
		i=$((i + 1))
	done
}

branch_of_a_branch() {
	pando branch g -q -n one
	mark one one
	pando branch one -q -n two
	mark two two
	pando branch two -q -n three
	equal "markers" "$(pando execute three -- cat /root/markers)" "$(printf 'base\none\ntwo')"
	equal "markers" "$(pando execute one -- cat /root/markers)" "$(printf 'base\none')"
	contains "the tree" "$(pando tree)" three
	status_is 4 pando delete -y one
	contains "the refusal" "$stderr" two
	pando delete -y -r -q one
	status_is 3 pando info three
}

# Two machines must not draw the same random numbers.
generators_differ() {
	pando branch g -q --count 3 -n rng
	for vm in g rng-0 rng-1 rng-2; do
		pando execute $vm -- sh -c 'head -c 32 /dev/urandom | sha256sum'
	done | sort -u >"$work/random"
	equal "different draws" "$(wc -l <"$work/random")" 4
	pando execute rng-0 -- dmesg | grep -qi 'crng reseeded due to virtual machine fork' ||
		fail "the kernel of a branch did not reseed"
	pando delete -y -q rng-0 rng-1 rng-2
}

clocks_do_not_jump() {
	# The guest's first look lies after this, its last one before the end: no more than that has passed between them.
	began=$(date +%s%N)
	pando execute g -- cat /proc/uptime >"$work/up.before"
	pando branch g -q -n clock
	pando execute clock -- cat /proc/uptime >"$work/up.child"
	pando execute g -- cat /proc/uptime >"$work/up.parent"
	took=$((($(date +%s%N) - began) / 1000000))
	for side in child parent; do
		awk -v took=$took -v side=$side 'FNR == 1 { t[NR] = $1 } END {
			d = (t[2] - t[1]) * 1000
			printf "%s: monotonic clock moved %d ms within %d ms\n", side, d, took
			exit !(d >= 0 && d <= took + 1000)
		}' "$work/up.before" "$work/up.$side"
	done
	pando delete -y -q clock
}

# A stream that is open goes on in the parent; the branch's processes go on without their reader.
streams_at_a_branch() {
	pando execute g -- sh -c 'rm -f /run/go; for i in 1 2 3 4 5 6 7 8; do
		echo $i
		[ $i -ne 4 ] || until [ -e /run/go ]; do sleep 0.1; done
	done' >"$work/stream" &
	reader=$!
	wait_until "the stream is in its middle" grep -q 4 "$work/stream"
	pando branch g -q -n streams
	pando execute streams -- true
	pando execute g -- touch /run/go
	wait $reader
	equal "what the parent's stream said" "$(tr '\n' ' ' <"$work/stream")" "1 2 3 4 5 6 7 8 "
	pando delete -y -q streams
}

rounds_leave_nothing() {
	holdings >"$work/before"
	i=0
	while [ $i -lt $((rounds * 5)) ]; do
		pando branch g -q -n round >/dev/null
		pando delete -y -q round >/dev/null
		i=$((i + 1))
	done
	# The parent writes to a new segment after each branch; those are its own and go with it.
	holdings >"$work/after"
	grep -v "/segments/$(vm_field g id)\." "$work/before" >"$work/before.others"
	grep -v "/segments/$(vm_field g id)\." "$work/after" >"$work/after.others"
	diff "$work/before.others" "$work/after.others"
}

# Fewer in the test machine, which is many times slower than a host whose KVM boots Linux.
if [ -e /run/pando-machine ]; then
	: "${ROUNDS:=6}"
fi
rounds=${ROUNDS:-20}
