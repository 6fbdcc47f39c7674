# Sourced by ../guests.sh: the machine with one CPU is branched.
. "$here/guests/branch_work.sh"

it "work starts in the machine with 1 CPU" start_work g
it "branched $rounds times in a row, each branch goes on and its disk is sound" branched_in_a_row g "$rounds"
it "8 branches at once go on, apart from each other" eight_at_once g
it "a branch of a branch of a branch holds what each was given" branch_of_a_branch
it "generators of random numbers differ" generators_differ
it "monotonic clocks do not jump" clocks_do_not_jump
it "an open stream goes on in the parent" streams_at_a_branch
it "$((rounds * 5)) rounds of branch and delete leave nothing behind" rounds_leave_nothing
