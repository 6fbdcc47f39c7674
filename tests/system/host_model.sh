#!/bin/sh
# Random sequences of run, branch, commit, run-commit, reset, kill, delete, gc, pause, stop, start and crash (kill -9 of pandod, at fault
# points and at random times), against a model of the tree: tests/system/model/model.h. SEQUENCES (60) is how many, SEED where to
# begin; the seed of a difference is told, and one sequence is repeated by SEED=that SEQUENCES=1. LOUD=1 tells each step.
# shellcheck disable=SC2329,SC2317
. "$(dirname "$0")/lib.sh"
SEQUENCES=${SEQUENCES:-60}
SEED=${SEED:-$(date +%s)}

# In memory where there is room: what is looked for is not how the disk syncs.
if [ -z "${TMPDIR:-}" ] && [ "$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')" -gt 1048576 ] 2>/dev/null; then
	ours=$(mktemp -d /dev/shm/pando-model.XXXXXX) && PANDO_HOME=$ours/home && mkdir -m 700 "$PANDO_HOME"
	echo "$ours" >"$work/.watch-also"
	trap 'cleanup_work; rm -rf "$ours"' EXIT
fi

sequences_of_a_tree_are_what_the_model_says() {
	needs_kvm
	# pre-warmed VMMs in half of the runs: they are no VM's
	printf '[pool]\nsize = %d\nflat_mib = 64\n' $((SEED % 2)) >"$PANDO_HOME/pandod.toml"
	mke2fs -q -t ext4 -F "$work/base.ext4" 4M >/dev/null
	echo "seed $SEED"
	"$B/tests/tree_model" "$PANDO_HOME" "$TINY" "$work/base.ext4" "$SEED" "$SEQUENCES" ${LOUD:+loud}
}

t sequences_of_a_tree_are_what_the_model_says
grep '^seed\|^# ' "$work/1.log" | sed 's/^#* */# /'
finish
