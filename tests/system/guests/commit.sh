# Sourced by ../guests.sh: a Debian machine at work is committed, and what was committed runs again. Works on a branch of g.
. "$here/guests/branch_work.sh"

committed_and_run_again() {
	pando branch g -q -n keep
	pando execute keep -- tmux has-session -t counter 2>/dev/null || start_work keep
	pando execute keep -- sh -c 'echo disk >/root/kept; echo memory >/run/kept'
	count=$(count_of keep)
	pando execute keep -- cat /root/log | head -n -1 >"$work/log.before"
	status_is 0 pando commit keep -m "at work" --tag kept
	echo "commit: $stderr"
	pando execute keep -- sh -c 'echo later >/root/kept'
	pando delete -y -q keep
	pid=$(pandod_pid)
	kill "$pid"
	wait_until "pandod ends" gone "$pid"
	status_is 0 pando verify kept
	status_is 0 pando run-commit kept -N back
	equal "its disk" "$(pando execute back -- cat /root/kept)" disk
	equal "its memory" "$(pando execute back -- cat /run/kept)" memory
	[ "$(count_of back)" -ge "$count" ] || fail "the count fell back from $count to $(count_of back)"
	count_goes_on back "$(count_of back)"
	pando execute back -- cat /root/log | head -n "$(wc -l <"$work/log.before")" | cmp - "$work/log.before"
	pando execute back -- cat /root/log | head -n -1 >"$work/log.back"
	check_log "$work/log.back"
}

four_of_one_commit() {
	id=$(pando commit info kept --format json | json 'j["id"]')
	status_is 0 pando run-commit "$(printf %.8s "$id")" --count 4 -N many
	for i in 0 1 2 3; do
		mark "many-$i" "marker $i"
	done
	for i in 0 1 2 3; do
		equal "the markers of many-$i" "$(pando execute "many-$i" -- cat /root/markers)" "$(printf 'base\nmarker %s' $i)"
		count_goes_on "many-$i" "$(count_of "many-$i")"
	done
	pando delete -y -q many-0 many-1 many-2 many-3
}

a_commit_of_what_a_commit_became() {
	pando execute back -- sh -c 'echo second >/root/kept; sync'
	status_is 0 pando commit back -m "second" --tag kept-2
	echo "commit: $stderr"
	pando history kept-2
	pando delete -y -q back
	status_is 0 pando run-commit kept-2 -N again
	equal "its disk" "$(pando execute again -- cat /root/kept)" second
	status_is 0 pando diff kept kept-2
	status_is 0 pando verify
	pando delete -y -q again
}

it "a commit outlives its machine and pandod, and what ran goes on" committed_and_run_again
it "four machines of one commit are apart" four_of_one_commit
it "a machine from a commit is committed again, and only what changed is written" a_commit_of_what_a_commit_became
