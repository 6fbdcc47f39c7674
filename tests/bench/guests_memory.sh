#!/bin/sh
# Memory that comes back, of Debian guests: a process of the parent's that holds MIB of secrets is ended in each of CHILDREN
# branches. What the branches have of the host's memory before and after, what ending it costs them in CPU time, and how
# many pages with the secret a commit of a branch would hold then. For each of the guest's settings:
#
#	init_on_free=1 or =0 (with init_on_alloc=1), on the command line
#	no balloon, free-page reporting of 2 MiB blocks (Linux's own choice), and of blocks of 4 KiB << ORDER
#
# The yardstick is MIB: what the process held. In the test machine:
#
#	B=build/plain sh tests/system/lib_in_machine.sh tests/bench/guests_memory.sh     MIB=300 CHILDREN=20 MEM=512 ORDERS="4 0"
set -eu
: "${B:=build/plain}" "${MIB:=300}" "${CHILDREN:=20}" "${MEM:=$((MIB + 212))}" "${ORDERS:=4 0}" "${SETTINGS:=1 0}"
. "$(dirname "$0")/../system/lib.sh"
set -e

# The marker is in no argument and no file: only the process that holds it makes it.
hold() { # vm
	pando execute "$1" -- sh -c "cat >/run/hold.py <<'END'
import mmap, sys, time
m = mmap.mmap(-1, int(sys.argv[1]) << 20)
part = b'SeCr' + b'eT-of-' + b'a-process-'
for at in range(0, len(m), 4096):
    m[at:at + 32] = part + b'%012d' % at
open('/run/held', 'w').close()
time.sleep(1e6)
END
rm -f /run/held
setsid python3 /run/hold.py $MIB </dev/null >/dev/null 2>&1 &
until [ -e /run/held ]; do sleep 0.2; done"
}

end_it() { # vm
	pando execute "$1" -- sh -c 'pkill -f /run/hold.py; while pgrep -f /run/hold.py >/dev/null; do sleep 0.1; done' || :
}

own_kib() { # vm
	info "$1" 'j["costs"]["memory_unique_bytes"] // 1024'
}

given_back() { # vm
	info "$1" 'j.get("balloon", {}).get("given_back_bytes", 0)'
}

# Until nothing more went back in two looks one after the other: Linux reports 2 s after something was freed, and in slices.
settle() { # vm…
	quiet=0 last=
	while [ $quiet -lt 2 ]; do
		sleep "${PAUSE:-5}"
		now=$(for vm; do given_back "$vm"; done | tr '\n' ' ')
		if [ "$now" = "$last" ]; then quiet=$((quiet + 1)); else quiet=0; fi
		last=$now
	done
}

cpu_ms() { # pid
	awk -v hz="$(getconf CLK_TCK)" '{ print int(($14 + $15) * 1000 / hz) }' "/proc/$1/stat"
}

# Pages with the marker in what a commit would hold: the memory of the VMM, which root may read, while the VM stands still.
secrets() { # vm
	pando pause "$1" >/dev/null
	python3 - "$(vm_field "$1" pid)" "$MEM" <<'END' || echo -
import array, sys
pid, mib = sys.argv[1], int(sys.argv[2])
mark, n = b'SeCr' + b'eT-of-', 0
with open(f'/proc/{pid}/maps') as maps, open(f'/proc/{pid}/mem', 'rb', 0) as mem, open(f'/proc/{pid}/pagemap', 'rb', 0) as table:
    for line in maps:
        first, last = (int(x, 16) for x in line.split()[0].split('-'))
        if last - first < mib << 19:
            continue
        table.seek(first // 4096 * 8)
        entries = array.array('Q', table.read((last - first) // 4096 * 8))
        for i, entry in enumerate(entries):
            if entry >> 62: # present or swapped
                mem.seek(first + i * 4096)
                n += mark in mem.read(4096)
print(n)
END
	pando resume "$1" >/dev/null
}

sum() {
	awk '{ s += $1 } END { printf "%d", s / 1024 }'
}

measure() { # what
	hold g
	settle g
	before=$(secrets g)
	names=$(pando branch g -q --count "$CHILDREN" -n b)
	started=$(for vm in $names; do own_kib "$vm"; done | sum)
	cpu=0
	for vm in $names; do
		pid=$(vm_field "$vm" pid)
		cpu=$((cpu - $(cpu_ms "$pid")))
		end_it "$vm"
		cpu=$((cpu + $(cpu_ms "$pid")))
	done
	ended=$(for vm in $names; do own_kib "$vm"; done | sum)
	# shellcheck disable=SC2086 # words
	settle $names
	after=$(for vm in $names; do own_kib "$vm"; done | sum)
	# shellcheck disable=SC2086
	set -- "$1" $names
	left=$(secrets "$2")
	printf '%-44s %8d %8d %8d %8d  %8d %8d\n' "$1" "$started" "$ended" "$after" $((cpu / CHILDREN)) "$before" "$left"
	for vm in $names; do pando delete -y -q "$vm" >/dev/null; done
	end_it g
	settle g
}

printf 'A process of %d MiB ended in each of %d branches of a Debian guest of %d MiB; load %s\n' "$MIB" "$CHILDREN" "$MEM" \
	"$(cut -d' ' -f1-3 /proc/loadavg)"
printf '%-44s %8s %8s %8s %8s  %8s %8s\n' "MiB of all branches' own; ms; pages" branched ended settled "cpu each" "secrets" "left"
for free in $SETTINGS; do
	boot_guest g --mem-size "$MEM" --cmdline "init_on_free=$free init_on_alloc=1"
	guest() { pando execute g -- sh -c "$1"; }
	guest 'modprobe -r virtio_balloon 2>/dev/null || :'
	[ -n "${NO_PLAIN:-}" ] || measure "init_on_free=$free, no balloon"
	guest 'modprobe virtio_balloon'
	settle g
	order=$(guest 'cat /sys/module/page_reporting/parameters/page_reporting_order')
	measure "init_on_free=$free, reporting, order $order"
	for order in $ORDERS; do
		guest "echo $order >/sys/module/page_reporting/parameters/page_reporting_order"
		measure "init_on_free=$free, reporting, order $order"
	done
	pando delete -y -q g >/dev/null
done
