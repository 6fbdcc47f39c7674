#!/bin/sh
# Swarms over real guests: what the unit tests show of the library, shown of the whole. One machine is booted; every test
# branches it.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$work" || exit 2

boots() {
	pando run -q -N base
}

# spec FILE HEAD: from = "base", a score command that prints what the child left in /root/score.
spec() {
	{
		printf 'from = "base"\n%s\n' "$2"
		printf '[score]\ncommand = ["cat", "/root/score"]\ntime_limit_s = 3600\n'
		cat
	} >"$1"
}

only_the_base_is_left() {
	equal "VMs that are left" "$(pando status -q | wc -l)" 1
}

event() { # folder, event, pattern: a line of the record
	grep "\"event\":\"$2\"" "$1/record.jsonl" | grep -e "$3"
}

best_child_wins_and_its_tree_comes_home() {
	mkdir given
	echo 20 >given/points
	spec best.toml 'collect = ["/root/tree"]
files = [{ from = "given", to = "/root/given" }]' <<'END'
[work]
command = "mkdir -p /root/tree/deep; echo $PANDO_CHILD >/root/tree/deep/who; chmod 700 /root/tree; echo $((POINTS + $(cat /root/given/points))) >/root/score"
[[child]]
name = "low"
env = { POINTS = "1" }
[[child]]
name = "high"
env = { POINTS = "3" }
[[child]]
name = "same"
count = 2
env = { POINTS = "3" }
END
	pando swarm run best.toml -o best >best.answer
	contains answer "$(cat best.answer)" "winner  high"
	contains answer "$(cat best.answer)" "which 3 children share"
	equal "the collected file" "$(cat best/winner/tree/deep/who)" high
	equal "the folder's mode" "$(stat -c %a best/winner/tree)" 700
	event best start "\"spec_sha256\":\"$(sha256sum best.toml | cut -d' ' -f1)\"" >/dev/null
	equal "children in the record" "$(grep -c '"event":"child"' best/record.jsonl)" 4
	only_the_base_is_left
}

scorer_that_prints_no_number_fails_the_swarm_with_a_sentence() {
	spec words.toml '' <<'END'
[[child]]
command = "echo done >/root/score"
END
	status_is 1 pando swarm run words.toml -o words
	contains stderr "$stderr" \
		'no winner: the child "child-0" has no score: the score command'\''s last line must be a number, not "done"'
	only_the_base_is_left
}

time_limit_ends_the_work_and_nothing_of_it_goes_on() {
	spec slow.toml 'keep_winner = true' <<'END'
[[child]]
name = "endless"
command = "sleep 1000000 & sleep 1000000"
time_limit_s = 2
[[child]]
name = "quick"
command = "echo 1 >/root/score"
END
	pando swarm run slow.toml -o slow --format json >slow.record
	cmp slow.record slow/record.jsonl
	event slow choice '"child":"endless","reason":"its command failed: its time limit was over"' >/dev/null
	equal "state of the kept winner" "$(vm_field slow-quick state)" running
	equal "score in the kept winner" "$(pando execute slow-quick -- cat /root/score)" 1
	pando delete -q -y slow-quick >/dev/null
	only_the_base_is_left
}

child_whose_vm_dies_starts_over_in_a_new_branch() {
	spec dies.toml '' <<'END'
[[child]]
name = "phoenix"
command = "while [ ! -e /root/go ]; do sleep 0.5; done; echo 5 >/root/score"
END
	pando swarm run dies.toml -o dies >dies.answer 2>dies.log &
	swarm=$!
	wait_until "the child works" grep -q "phoenix: working" dies.log
	first=$(sed -n 's/.*"vms":\["\([0-9a-f]*\)".*/\1/p' dies/record.jsonl)
	kill -KILL "$(vm_field "$first" pid)"
	wait_until "the child starts over" grep -q "phoenix: once more" dies.log
	wait_until "a new branch works" other_child_answers "$first"
	pando execute "$second" -- touch /root/go
	wait "$swarm"
	contains answer "$(cat dies.answer)" "winner  phoenix"
	event dies child '"attempts":2' >/dev/null
	only_the_base_is_left
}

# Leaves the id of a child other than $1 in $second.
other_child_answers() {
	base=$(vm_field base id)
	second=$(pando status -q | grep -v -e "$base" -e "$1") && pando execute "$second" -- true
}

interrupt_deletes_the_children_and_exits_with_7() {
	spec stop.toml 'parallel = 2' <<'END'
[[child]]
count = 3
command = ["sleep", "1000000"]
END
	"$B/bin/pando" swarm run stop.toml -o stop 2>stop.log &
	swarm=$!
	wait_until "two children work" two_work stop.log
	kill -TERM "$swarm"
	status=0
	wait "$swarm" || status=$?
	equal "exit status" "$status" 7
	event stop end '"exit_status":7' >/dev/null
	only_the_base_is_left
}

two_work() {
	[ "$(grep -c 'working$' "$1")" = 2 ]
}

what_a_killed_swarm_leaves_is_cleaned_by_its_name() {
	spec kill.toml '' <<'END'
[[child]]
count = 2
command = ["sleep", "1000000"]
END
	"$B/bin/pando" swarm run kill.toml -o kill 2>kill.log &
	swarm=$!
	wait_until "two children work" two_work kill.log
	kill -KILL "$swarm"
	wait "$swarm" || :
	equal "VMs that are left" "$(pando status -q | wc -l)" 3
	run=$(sed -n 's/.*"run":"\([^"]*\)".*/\1/p' kill/record.jsonl)
	status_is 2 pando swarm clean
	contains stderr "$stderr" "$run"
	pando swarm clean "$run"
	only_the_base_is_left
	status_is 3 pando swarm clean "$run"
}

vm_that_is_none_is_not_found() {
	printf 'from = "nobody"\n[score]\ncommand = ["true"]\n[[child]]\ncommand = ["true"]\n' >none.toml
	status_is 3 pando swarm run none.toml -o none
	contains stderr "$stderr" 'no VM named "nobody"'
}

it "a machine boots" boots
t best_child_wins_and_its_tree_comes_home
t scorer_that_prints_no_number_fails_the_swarm_with_a_sentence
t time_limit_ends_the_work_and_nothing_of_it_goes_on
t child_whose_vm_dies_starts_over_in_a_new_branch
t interrupt_deletes_the_children_and_exits_with_7
t what_a_killed_swarm_leaves_is_cleaned_by_its_name
t vm_that_is_none_is_not_found
finish
