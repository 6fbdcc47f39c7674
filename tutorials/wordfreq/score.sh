#!/bin/sh
# score.sh: 1000 points for each test passed, and how many times as fast as the original the child's
# program is, times 10, at most 999: speed decides between those that are equally right.
set -eu
cd /root/scoring
cp /root/program/wordfreq.o .
gcc -o wordfreq main.o wordfreq.o
gcc -o bench bench.o wordfreq.o reference.o
tests=$(sh test.sh ./wordfreq | tee /dev/stderr | sed -n 's/^tests: \([0-9]*\) passed.*/\1/p')
speed=$(./bench)
echo "$tests tests passed, $speed times as fast as the original"
echo "$tests $speed" | awk '{ s = $2 * 10; print $1 * 1000 + (s > 999 ? 999 : s) }'
