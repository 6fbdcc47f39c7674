#!/bin/sh
# The disk of a Debian guest by fio, beside a plain file in the folder that holds that disk, in the same run: the same fio,
# the same jobs. 4 KiB at random places (read, write, write and fsync), 128 KiB one after the other. O_DIRECT in the guest,
# so that its page cache answers nothing; the host's file goes through the host's page cache, as the VMM does.
#
#	B=build/plain sh tests/system/lib_in_machine.sh tests/bench/guests_fio.sh
set -eu
: "${B:=build/plain}" "${SECONDS_EACH:=10}" "${MEM:=512}"
. "$(dirname "$0")/../system/lib.sh"
set -e

jobs="randread:randread:4k: randwrite:randwrite:4k: fsync:randwrite:4k:--fsync=1 read:read:128k: write:write:128k:"

# What fio says of one job as JSON, in one line: operations a second, and percentiles of the time each takes in µs.
figures='import json, sys
text = sys.stdin.read()
job = json.loads(text[text.index("{"):])["jobs"][0]
part = job["read"] if job["read"]["total_ios"] else job["write"]
time = part["clat_ns"]["percentile"]
whole = job["sync"]["lat_ns"]["percentile"] if job.get("sync", {}).get("total_ios") else {k: 0 for k in time}
print(round(part["iops"], 1), *(round((time[k] + whole[k]) / 1000, 1) for k in ("50.000000", "99.000000")))'

command() { # job, file, direct
	IFS=: read -r name rw block more <<END
$1
END
	echo "--name=$name --filename=$2 --rw=$rw --bs=$block $more --direct=$3 --size=64m --ioengine=psync --time_based" \
		"--runtime=$SECONDS_EACH --randrepeat=1 --output-format=json"
}

boot_guest f --image test-fio --mem-size "$MEM"
# fio and its libraries, out of the guest: the machine here needs none of its own.
mkdir "$work/fio"
pando execute f -- sh -c 'tar -chC / -f - usr/bin/fio $(ldd /usr/bin/fio | grep -o "/[^ ]*" | sed "s|^/||")' | tar -xC "$work/fio"
loader=$(cd "$work/fio" && find . -name 'ld-linux*' | head -n 1)
libraries=$(cd "$work/fio" && find . -name '*.so*' -exec dirname {} \; | sort -u | sed "s|^\.|$work/fio|" | paste -sd:)
file=$PANDO_HOME/plain.dat
printf 'A guest of %d MiB, 1 vCPU, beside a plain file of its disk'"'"'s folder; fio, %d s each; load %s\n' "$MEM" "$SECONDS_EACH" \
	"$(cut -d' ' -f1-3 /proc/loadavg)"
printf '%-10s %12s %9s %9s   %12s %9s %9s   %6s\n' "" "guest op/s" "p50 us" "p99 us" "host op/s" "p50 us" "p99 us" "ratio"
for job in $jobs; do
	# shellcheck disable=SC2046 # words
	host=$("$work/fio/$loader" --library-path "$libraries" "$work/fio/usr/bin/fio" $(command "$job" "$file" 0) | python3 -c "$figures")
	guest=$(pando execute f -- sh -c "fio $(command "$job" /root/plain.dat 1)" | python3 -c "$figures")
	echo "${job%%:*} $guest $host" | awk '{ printf "%-10s %12s %9s %9s   %12s %9s %9s   %6.2f\n", $1, $2, $3, $4, $5, $6, $7, $2 / $5 }'
done
pando delete -y -q f >/dev/null
rm -f "$file"
