#!/bin/sh
# setup.sh: warms the machine once, before it is branched: keeps the original for comparison and
# compiles what no child needs to compile again. The scorer has its own copies of the tests and the
# benchmark, so that a child which changes them changes nothing.
set -eu
cd /root
cp -r program program.orig
mkdir scoring
cp program/* scoring
cd scoring
make -s reference.o bench.o main.o
sync
