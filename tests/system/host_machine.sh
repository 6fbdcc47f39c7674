#!/bin/sh
# The test machine as a user has it: words, streams, statuses, what it sees of the host. Where this host's KVM boots
# Linux nobody needs it, and only what needs no machine is run.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

needs_machine() {
	[ "$where" = machine ] || skip "$where"
}

# A project of its own, so that every test knows what is in it.
project=$work/project
mkdir "$project"
: >"$project/pando.toml"
echo "${PANDO_MACHINE_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/pando/machine}" >"$work/.watch-also"

inside() {
	(cd "$project" && pando machine exec -q "$@")
}

wrong_words_are_answered_with_what_is_right() {
	status_is 2 pando machine
	contains stderr "$stderr" "start, status, exec, stop or delete"
	status_is 2 pando machine dance
	contains stderr "$stderr" dance
	status_is 2 pando machine start now
	status_is 2 pando machine exec
	contains stderr "$stderr" "no command"
	status_is 2 pando machine exec -e 1A=x -- true
	status_is 2 pando machine start --mem-size 12
	contains stderr "$stderr" --mem-size
	status_is 2 pando machine start --cpus 0
	status_is 2 pando machine exec --format json -- true
	PANDO_MACHINE_HOME=relative
	export PANDO_MACHINE_HOME
	status_is 2 pando machine status
	contains stderr "$stderr" PANDO_MACHINE_HOME
}

a_machine_that_is_not_there_is_said_to_be_absent() {
	PANDO_MACHINE_HOME=$work/nobody
	export PANDO_MACHINE_HOME
	equal state "$(pando machine status -q)" absent
	equal state "$(pando machine status --format json | json "j['state']")" absent
	status_is 125 pando machine exec -- true
	contains stderr "$stderr" "pando machine start"
	status_is 0 pando machine stop
	status_is 2 pando machine delete
	contains stderr "$stderr" --yes
	status_is 0 pando machine delete --yes
	not test -e "$PANDO_MACHINE_HOME"
}

a_machine_that_cannot_start_says_why() {
	PANDO_MACHINE_HOME=$work/small
	export PANDO_MACHINE_HOME
	status_is 1 pando machine start --mem-size 4T
	contains stderr "$stderr" "--mem-size"
	equal state "$(pando machine status -q)" absent
}

two_starts_at_once_are_one_machine() {
	needs_machine
	pando machine start --format json >"$work/first" 2>/dev/null &
	pando machine start --format json >"$work/second" 2>/dev/null
	wait $!
	equal pid "$(json "j['pid']" <"$work/first")" "$(json "j['pid']" <"$work/second")"
	equal state "$(pando machine status -q)" running
}

streams_and_status_are_the_commands() {
	needs_machine
	status_is 7 inside -- sh -c 'echo out; echo err >&2; exit 7'
	equal stdout "$stdout" out
	equal stderr "$stderr" err
	status_is 137 inside -- sh -c 'kill -9 $$'
	status_is 127 inside -- no-such-program
	contains stderr "$stderr" no-such-program
}

input_arrives_whole() {
	needs_machine
	head -c 3000000 /dev/urandom >"$work/bytes"
	equal sum "$(inside -- sha256sum <"$work/bytes")" "$(sha256sum <"$work/bytes")"
	equal "bytes without input" "$(inside -n -- wc -c)" 0
}

output_arrives_whole() {
	needs_machine
	inside -- cat <"$work/bytes" >"$work/back"
	cmp "$work/bytes" "$work/back"
	equal "bytes of a reader that leaves" "$(inside -- yes | head -c 4096 | wc -c)" 4096
}

words_reach_the_command_as_they_are() {
	needs_machine
	inside -- printf '[%s]' "a b" "" "it's" '$HOME `x` \ "' "line
line" -n >"$work/words"
	equal words "$(cat "$work/words")" "[a b][][it's][\$HOME \`x\` \\ \"][line
line][-n]"
}

# Without it the emulator may stand for ever: golden/files/machine/usr/libexec/pando/kvm-hold says why.
one_vm_is_always_there() {
	needs_machine
	inside -- sh -c 'ls -l "/proc/$(systemctl show -P MainPID pando-kvm-hold)/fd"' >"$work/held"
	contains "what is held" "$(cat "$work/held")" anon_inode:kvm-vcpu:0
}

# Guests on the first CPU of an emulated machine die of triple faults: host/testvm/machine.c says why.
commands_run_beside_the_first_cpu() {
	needs_machine
	equal "CPUs of a command" "$(inside -- nproc)" "$(pando machine status --format json | json "j['cpus']")"
	equal "CPUs of the machine" "$(inside -- nproc --all)" "$(($(inside -- nproc) + 1))"
	lacks "CPUs of a command" ",$(inside -- taskset -cp self | sed 's/.*: //')," ",0"
}

# The emulator leaves wrong flags after CMPXCHG16B: host/testvm/machine_qemu.c says how guests died of that.
its_cpus_have_no_cmpxchg16b() {
	needs_machine
	inside -- cat /proc/cpuinfo >"$work/cpus"
	grep -qw cx8 "$work/cpus"
	not grep -qw cx16 "$work/cpus"
}

environment_and_folder_are_as_asked() {
	needs_machine
	equal folder "$(inside -- pwd)" "$project"
	equal variable "$(inside -e "NAME=a 'b'" -- sh -c 'echo "$NAME"')" "a 'b'"
	equal folder "$(inside -w /var/lib -- pwd)" /var/lib
	equal pando "$(inside -- sh -c 'command -v pando')" "$B/bin/pando"
	lacks "PANDO_HOME in the machine" "$(inside -- sh -c 'echo "$PANDO_HOME"')" "$work"
}

each_command_sees_the_host_s_files_of_now() {
	needs_machine
	echo 1 >"$project/changes"
	echo 1 >"$project/vanishes"
	equal content "$(inside -- cat changes vanishes)" "1
1"
	echo 2 >"$project/changes"
	rm "$project/vanishes"
	mkdir "$project/new"
	echo 3 >"$project/new/file"
	equal content "$(inside -- sh -c 'cat changes new/file; test ! -e vanishes && echo gone')" "2
3
gone"
}

the_machine_does_not_write_to_the_host() {
	needs_machine
	inside -- sh -c 'echo machine >changes; echo machine >own'
	equal content "$(cat "$project/changes")" 2
	not test -e "$project/own"
	equal "what it wrote" "$(inside -- cat own)" machine
}

a_program_that_runs_survives_its_replacement() {
	needs_machine
	cp /bin/sleep "$project/program"
	inside -- sh -c './program 1000000 >/dev/null 2>&1 & echo $! >pid'
	cp /bin/true "$project/program.new"
	mv "$project/program.new" "$project/program"
	inside -- sh -c './program && kill -0 "$(cat pid)" && kill "$(cat pid)"'
}

a_background_process_does_not_hold_the_caller() {
	needs_machine
	equal output "$(inside -- sh -c 'sleep 1000000 & echo $! >sleeper; echo done')" done
	inside -- sh -c 'kill "$(cat sleeper)"'
}

a_signal_reaches_the_command() {
	needs_machine
	(cd "$project" && exec "$B/bin/pando" machine exec -q -n -- sh -c 'trap "echo told; exit 9" TERM; echo up; sleep 1000000 & wait') >"$work/told" &
	caller=$!
	wait_until "the command runs" grep -q up "$work/told"
	kill -TERM $caller
	status=0
	wait $caller || status=$?
	equal status "$status" 9
	contains output "$(cat "$work/told")" told
}

its_kvm_boots_linux() {
	needs_machine
	inside -- pando doctor --can-boot-linux -q
}

# What was sent was written down as sent, and lay in the machine's memory only.
what_was_copied_survives_the_machine_s_end() {
	needs_machine
	echo kept >"$project/kept"
	equal content "$(inside -- cat kept)" kept
	pando machine stop -q --force
	pando machine start -q
	equal "content after its end" "$(inside -- cat kept)" kept
}

sweep_machine() {
	needs_machine
	inside -w / -- rm -rf "$project"
}

t wrong_words_are_answered_with_what_is_right
t a_machine_that_is_not_there_is_said_to_be_absent
t a_machine_that_cannot_start_says_why

if "$B/bin/pando" doctor --can-boot-linux -q >/dev/null 2>&1; then
	where="this host's KVM boots Linux; it needs no machine"
else
	where=$(sh "$here/lib_where.sh" 2>"$work/where.log")
	case $where in
	machine) ;;
	none) where=$(tail -n 1 "$work/where.log") ;;
	*)
		cat "$work/where.log" >&2
		it "the machine starts" false
		finish
		;;
	esac
fi

t two_starts_at_once_are_one_machine
t streams_and_status_are_the_commands
t input_arrives_whole
t output_arrives_whole
t words_reach_the_command_as_they_are
t commands_run_beside_the_first_cpu
t one_vm_is_always_there
t its_cpus_have_no_cmpxchg16b
t environment_and_folder_are_as_asked
t each_command_sees_the_host_s_files_of_now
t the_machine_does_not_write_to_the_host
t a_program_that_runs_survives_its_replacement
t a_background_process_does_not_hold_the_caller
t a_signal_reaches_the_command
t its_kvm_boots_linux
t what_was_copied_survives_the_machine_s_end
it "nothing of this test stays in the machine" sweep_machine
finish
