#!/bin/sh
# What a Debian guest takes here: boot until its agent answers, the round trip of `pando execute … true`, branches and VMs
# from a commit, one and CHILDREN at once, until their agents are ready, and the VMM's own memory (PSS less guest
# RAM). Run through make bench, which finds the place where Linux guests run.
#
#	sh tests/bench/guests.sh [--json]     ROUNDS=50 BOOTS=3 CHILDREN=32
set -eu
: "${B:=build/plain}" "${ROUNDS:=50}" "${BOOTS:=3}" "${CHILDREN:=32}"
json=
[ "${1:-}" != --json ] || json=1
. "$(dirname "$0")/../system/lib.sh"
set -e

now_us() {
	echo $(($(date +%s%N) / 1000))
}

timed() { # file, command…
	timed_file=$1
	shift
	timed_from=$(now_us)
	"$@" >/dev/null 2>"$work/timed.err" || {
		cat "$work/timed.err" >&2
		return 0 # what did not answer is not counted
	}
	echo $(($(now_us) - timed_from)) >>"$timed_file"
}

report() { # name, what the clock covers, tried, file
	touch "$4"
	sort -n "$4" | awk -v name="$1" -v clock="$2" -v tried="$3" -v json="$json" '
		{ v[NR] = $1 }
		function p(q) { return NR ? v[int(q / 100 * (NR - 1) + 0.5) + 1] : 0 }
		END {
			if (json)
				printf "{\"name\":\"%s\",\"clock\":\"%s\",\"tried\":%d,\"answered\":%d,\"p50_us\":%d,\"p90_us\":%d,\"p99_us\":%d,\"max_us\":%d}\n",
					name, clock, tried, NR, p(50), p(90), p(99), p(100)
			else
				printf "%-44s %11.1f %11.1f %11.1f %11.1f  %4d/%-4d  %s\n",
					name, p(50) / 1000, p(90) / 1000, p(99) / 1000, p(100) / 1000, NR, tried, clock
		}'
}

own_memory_kib() { # pid, guest MiB
	awk -v ram="$2" '
		/^[0-9a-f]+-[0-9a-f]+ / { size = 0; next }
		/^Size:/ { size = $2 }
		/^Pss:/ { if (size < ram * 1024) own += $2 }
		END { print own + 0 }' "/proc/$1/smaps"
}

[ -n "$json" ] || printf 'Debian guests of 512 MiB, 1 CPU\n%-44s %11s %11s %11s %11s  %9s  %s\n' \
	ms p50 p90 p99 max answered "the clock covers"
i=0
while [ $i -lt "$BOOTS" ]; do
	i=$((i + 1))
	timed "$work/boot" pando run -q -N "boot$i"
	[ $i -eq "$BOOTS" ] || pando delete -y -q "boot$i" >/dev/null
done
vm=boot$BOOTS
report "boot to agent ready" "pando run" "$BOOTS" "$work/boot"
i=0
while [ $i -lt "$ROUNDS" ]; do
	i=$((i + 1))
	timed "$work/true" pando execute "$vm" -- true
	timed "$work/local" true
done
report "date and /bin/true here, the yardstick" "this script" "$ROUNDS" "$work/local"
report "execute true" "pando execute -- true, process start included" "$ROUNDS" "$work/true"
# The guest's own clock: from a hello's arrival to its acknowledgement, and what each step has of it.
hellos() { # what, count, rounds, command that makes so many named "bench"…
	hellos_what=$1 hellos_count=$2 hellos_rounds=$3
	shift 3
	rm -f "$work"/hello.* "$work/request" "$work/first"
	i=0
	while [ $i -lt "$hellos_rounds" ]; do
		i=$((i + 1))
		timed "$work/request" "$@" -q --count "$hellos_count"
		k=0
		while [ $k -lt "$hellos_count" ]; do
			name=bench-$k
			[ "$hellos_count" -gt 1 ] || name=bench
			[ $k -gt 0 ] || timed "$work/first" pando execute $name -- true
			info $name '"\n".join("%s %d" % (s["step"], s["us"]) for s in j["hello"]["steps"] + [{"step": "total", "us": j["hello"]["total_us"]}])' \
				2>/dev/null | while read -r step us; do
				echo "$us" >>"$work/hello.$step"
			done
			pando delete -y -q $name >/dev/null 2>&1 || :
			k=$((k + 1))
		done
	done
	report "$hellos_what of $hellos_count until all are acknowledged" "pando $hellos_what --count $hellos_count" "$hellos_rounds" "$work/request"
	report "  then the first execute true" "pando execute -- true" "$hellos_rounds" "$work/first"
	for step in total random clock host-name machine-id boot-id seeds environment ssh-keys identity hooks units agents; do
		[ ! -e "$work/hello.$step" ] ||
			report "  in the guest: $step" "hello to acknowledgement" $((hellos_count * hellos_rounds)) "$work/hello.$step"
	done
}
few=$(((ROUNDS + 9) / 10))
hellos branch 1 "$ROUNDS" pando branch "$vm" -n bench
hellos branch "$CHILDREN" $few pando branch "$vm" -n bench
commit=$(pando commit "$vm" -q)
hellos run-commit 1 "$ROUNDS" pando run-commit "$commit" -N bench
hellos run-commit "$CHILDREN" $few pando run-commit "$commit" -N bench
own=$(own_memory_kib "$(info "$vm" 'j["pid"]')" 512)
if [ -n "$json" ]; then
	printf '{"name":"VMM own memory","unit":"KiB","value":%d}\n' "$own"
else
	printf '%-44s %11d KiB (PSS less guest RAM)\n' "VMM's own memory" "$own"
fi
