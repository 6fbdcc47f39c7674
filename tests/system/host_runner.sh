#!/bin/sh
# tests/run itself, with programs of this script's own in place of tests, and what make builds for it.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
top=$here/../..

# A program among the tests: name, what it does.
program() {
	mkdir -p "$work/build/tests"
	printf '#!/bin/sh\n%s\n' "$2" >"$work/build/tests/$1"
	chmod +x "$work/build/tests/$1"
}

# tests/run with these unit tests; its answer is $work/said.
run_tests() { # status, names
	want=$1
	shift
	status=0
	B=$work/build UNIT_TESTS="$*" ONLY='' VERBOSE='' "$top/tests/run" unit >"$work/said" 2>&1 || status=$?
	cat "$work/said"
	equal status "$status" "$want"
}

program fine 'echo 1..1; echo "ok 1 - it is fine"'
program skips 'echo 1..1; echo "ok 1 - it is left out # SKIP because"'
program fails 'echo 1..2; echo "ok 1 - one"; echo "# the reason"; echo "not ok 2 - two"; exit 1'
program dies 'echo 1..2; echo "ok 1 - one"; kill -TERM $$'
program silent 'exit 0'

the_last_line_counts_all() {
	run_tests 1 fine skips fails dies silent
	equal "the last line" "$(tail -n 1 "$work/said")" "3 passed, 3 failed, 1 skipped"
	contains "what it said" "$(cat "$work/said")" "FAILED: unit/fails: two (the reason)"
	contains "what it said" "$(cat "$work/said")" "FAILED: unit/dies: runs all its tests (planned 2, reported 1"
	contains "what it said" "$(cat "$work/said")" "FAILED: unit/silent: reports its tests"
	contains "what it said" "$(cat "$work/said")" "skipped: unit/skips: it is left out (because)"
	run_tests 0 fine skips
	equal "the last line" "$(tail -n 1 "$work/said")" "1 passed, 0 failed, 1 skipped"
}

# Each waits for the other: one after the other they would never end.
programs_run_at_once() {
	for i in 1 2; do
		program "meets$i" "cd '$work'; touch came$i; n=0
until [ -e came$((3 - i)) ]; do n=\$((n + 1)); [ \$n -lt 6000 ] || exit 1; sleep 0.1; done
echo 1..1; echo 'ok 1 - met'"
	done
	JOBS=2 run_tests 0 meets1 meets2
}

what_a_program_says_stays_together() {
	for i in 1 2 3 4; do
		program "slow$i" "echo 1..1; for i in 1 2 3 4 5 6 7 8; do echo \"# line of $i\"; sleep 0.02; done; echo 'not ok 1 - no'; exit 1"
	done
	JOBS=4 run_tests 1 slow1 slow2 slow3 slow4
	sed -n 's/^ *# line of //p' "$work/said" | uniq -c >"$work/blocks"
	cat "$work/blocks"
	equal "blocks" "$(wc -l <"$work/blocks")" 4
}

what_runs_ends_with_it() {
	program hangs "echo \$\$ >'$work/pid'; exec sleep 1000000"
	B=$work/build UNIT_TESTS=hangs ONLY='' setsid "$top/tests/run" unit >/dev/null 2>&1 &
	runner=$!
	wait_until "it runs" test -s "$work/pid"
	kill -TERM "-$runner"
	wait "$runner" || :
	wait_until "the test ends" not kill -0 "$(cat "$work/pid")" 2>/dev/null
}

# However long all of it takes: what hangs says nothing.
only_what_hangs_is_ended() {
	program talks 'echo 1..1
until [ $(($(date +%s) - '"$(date +%s)"')) -gt 15 ]; do echo "# goes on"; sleep 0.2; done
echo "ok 1 - it has come to its end"'
	program hangs 'echo 1..2; echo "ok 1 - one"; exec sleep 1000000'
	SILENCE=10 run_tests 1 talks hangs
	equal "the last line" "$(tail -n 1 "$work/said")" "2 passed, 1 failed, 0 skipped"
	contains "what it said" "$(cat "$work/said")" "FAILED: unit/hangs: comes to an end (it was silent for 10 seconds"
}

# A script with lib.sh and its watch: seconds of standstill, what it runs.
watched() {
	printf '. "%s/lib.sh"\n%s\nfinish\n' "$here" "$2" >"$work/watched.sh"
	env -u PANDO_HOME STANDSTILL="$1" WATCH_EVERY=1 sh "$work/watched.sh" >"$work/said" 2>&1 || :
	cat "$work/said"
}

a_wait_ends_when_everything_stands_still_and_says_how_far_it_is() {
	watched 4 'asks() { echo "I ask" >&2; return 1; }
it "it comes" wait_until "it comes" asks'
	contains "what it said" "$(cat "$work/said")" "not ok 1 - it comes"
	grep -q 'waited [0-9]* s in vain: it comes; something moved [0-9]* s ago: [0-9]* files of' "$work/said"
}

a_wait_goes_on_while_something_moves() {
	watched 10 'grows() {
	(n=0; while [ $n -lt 75 ]; do n=$((n + 1)); echo $n >>"$work/grows"; sleep 0.2; done) &
	wait_until "it has grown" grep -qx 75 "$work/grows"
}
t grows'
	contains "what it said" "$(cat "$work/said")" "ok 1 - grows"
	lacks "what it said" "$(cat "$work/said")" "not ok"
}

a_command_that_stands_still_is_ended() {
	watched 4 'stands() {
	pando status
	pid=$(pandod_pid)
	kill -STOP "$pid"
	got=0
	pando status || got=$?
	kill -CONT "$pid"
	[ $got -ne 0 ]
}
t stands'
	contains "what it said" "$(cat "$work/said")" "ok 1 - stands"
	lacks "what it said" "$(cat "$work/said")" "not ok"
	grep -q '# nothing has moved for [0-9]* s; ending process [0-9]*: .*pando status' "$work/said"
}

# Programs that make would link for this target.
links() {
	make -C "$top" --no-print-directory -n B="$work/none" ONLY="$1" "$2" 2>/dev/null | sed -n 's/^echo "\(ld\|fuzz\) //p' | tr -d '"'
}

only_builds_only_what_it_runs() {
	equal "for one unit test" "$(links 'unit/test_toml$' check)" "$work/none/tests/test_toml"
	equal "for one fuzzer" "$(links 'fuzz/fuzz_toml$' check)" "$work/none/fuzz/fuzz_toml"
	equal "for nothing" "$(links 'unit/no-such-test' check-unit)" ""
	contains "for one script" "$(links 'system/host_daemon$' check-system)" "$work/none/bin/pandod"
	not grep -q tests/test_ <<X
$(links 'system/host_daemon$' check-system)
X
}

make_help_lists_what_there_is() {
	make -C "$top" --no-print-directory help >"$work/help"
	for target in check-unit check-kvm check-fuzz check-system images bench install ONLY= SAN= WERROR=1; do
		contains help "$(cat "$work/help")" "$target"
	done
}

t the_last_line_counts_all
t programs_run_at_once
t what_a_program_says_stays_together
t what_runs_ends_with_it
t only_what_hangs_is_ended
t a_wait_ends_when_everything_stands_still_and_says_how_far_it_is
t a_wait_goes_on_while_something_moves
t a_command_that_stands_still_is_ended
t only_builds_only_what_it_runs
t make_help_lists_what_there_is
finish
