#!/bin/sh
# What bench/guests_fio.sh needs and a guest cannot fetch: an image with fio. Runs on the host.
set -eu
: "${B:?}"
"$B/libexec/pando/pando-golden" image --name test-fio --package fio --no-default >&2
