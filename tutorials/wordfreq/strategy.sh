#!/bin/sh
# strategy.sh NAME: what one child does. Changes /root/program by the patch of that name, builds it, and
# leaves its work as /root/result.patch. An agent would stand here in a real swarm.
set -eu
cd /root/program
patch -s -p1 <"/root/strategies/$1.patch"
make -s wordfreq.o
cd /root
diff -ruN -x '*.o' -x wordfreq -x bench program.orig program >result.patch || [ $? = 1 ]
wc -l <result.patch | sed 's/$/ lines of patch/'
