#!/bin/sh
# score.sh: 1000 points for each test passed, and as many points as the child's program is times as fast as
# the original, at most 999: speed decides between those that are equally right.
set -eu
cd /root/scoring
cp /root/program/wordfreq.o .
gcc -o wordfreq main.o wordfreq.o
gcc -o bench bench.o wordfreq.o reference.o
tests=$(sh test.sh ./wordfreq | tee /dev/stderr | sed -n 's/^tests: \([0-9]*\) passed.*/\1/p')
speed=$(./bench)
echo "$tests tests passed, $speed times as fast as the original"
echo "$tests $speed" | awk '{ printf "%.1f\n", $1 * 1000 + ($2 > 999 ? 999 : $2) }'
