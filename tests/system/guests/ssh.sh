# Sourced by ../guests.sh: SSH into guests that have no network. Works on a branch of g, called shell, and on branches of that.

# Programs of this host that the guest's image has not got, with all they need, under their names.
bring() { # vm, program…
	bring_vm=$1
	shift
	mkdir -p "$work/brought"
	for program in "$@"; do
		pando execute "$bring_vm" -- sh -c 'command -v "$1"' sh "$program" >/dev/null && continue
		cp -L "$(command -v "$program")" "$work/brought/$program"
		for lib in $(ldd "$work/brought/$program" | grep -o '/[^ ]*'); do cp -L "$lib" "$work/brought/"; done
		pando copy -q "$work/brought/." "$bring_vm:/opt/brought"
		pando execute "$bring_vm" --shell 'cd /usr/local/bin
printf "#!/bin/sh\nexec /opt/brought/%s --library-path /opt/brought /opt/brought/%s \"\$@\"\n" "$(cd /opt/brought && ls ld-linux*)" "$1" >"$1"
chmod 755 "$1"' -- "$program"
	done
}

# Runs a command that must succeed and say nothing on stderr: no warning.
quietly() {
	status_is 0 "$@"
	equal "stderr of $*" "$stderr" ""
}

refused() { # what the key is, ssh's words…
	refused_what=$1
	shift
	status_is 255 "$@"
	contains "what ssh says of $refused_what" "$stderr" "Host key verification failed"
}

stock_programs_go_in() {
	for program in ssh scp rsync git; do
		command -v $program >/dev/null || skip "no $program on this host"
	done
	pando branch g -q -n shell --env "GREETING=it's me"
	pando ssh-config >"$work/ssh"
	quietly ssh -F "$work/ssh" shell.pando 'echo $((6 * 7)) "$GREETING"; hostname'
	equal "what ssh ran" "$stdout" "42 it's me
shell"
	status_is 9 ssh -F "$work/ssh" shell.pando 'exit 9'
	head -c 3000000 /dev/urandom >"$work/file"
	quietly scp -qF "$work/ssh" "$work/file" shell.pando:/root/file
	quietly scp -qF "$work/ssh" shell.pando:/root/file "$work/back"
	cmp "$work/file" "$work/back"
	bring shell rsync git
	mkdir -p "$work/tree/a"
	cp "$work/file" "$work/tree/a/b"
	quietly rsync -a -e "ssh -F $work/ssh" "$work/tree/" shell.pando:/root/tree/
	quietly rsync -a -e "ssh -F $work/ssh" shell.pando:/root/tree/ "$work/again/"
	diff -r "$work/tree" "$work/again"
	git init -q "$work/repository"
	cp "$work/file" "$work/repository/file"
	git -C "$work/repository" add file
	git -C "$work/repository" -c user.name=t -c user.email=t@example.org commit -qm one
	pando copy -q "$work/repository" shell:/root/repository
	# A package would have put this beside git.
	pando execute shell --shell 'command -v git-upload-pack >/dev/null || {
printf "#!/bin/sh\nexec git upload-pack \"\$@\"\n" >/usr/local/bin/git-upload-pack; chmod 755 /usr/local/bin/git-upload-pack; }'
	export GIT_SSH_COMMAND="ssh -F $work/ssh"
	quietly git clone -q ssh://shell.pando/root/repository "$work/clone"
	cmp "$work/file" "$work/clone/file"
}

a_branch_has_another_key_and_the_old_one_is_refused() {
	key=$(vm_field shell host_key)
	pando branch shell -q -n twig
	[ "$(vm_field twig host_key)" != "$key" ] || fail "twig has its parent's host key"
	quietly ssh -F "$work/ssh" twig.pando hostname
	equal "who answers" "$stdout" twig
	quietly ssh -F "$work/ssh" shell.pando hostname
	equal "who answers" "$stdout" shell
	echo "twig.pando $key" >"$work/old"
	refused "the parent's key" ssh -F "$work/ssh" -o KnownHostsCommand=none -o UserKnownHostsFile="$work/old" twig.pando true
	# The same name, another machine: no warning, and no going by what was.
	quietly pando ssh-proxy --known-host twig.pando twig.pando
	echo "$stdout" >"$work/old"
	pando delete -y -q twig
	pando branch shell -q -n twig
	quietly ssh -F "$work/ssh" twig.pando true
	refused "the key of the twig before" ssh -F "$work/ssh" -o KnownHostsCommand=none -o UserKnownHostsFile="$work/old" twig.pando true
	# A guest that makes itself another key is not believed either, by nobody.
	pando execute twig --shell 'rm /etc/ssh/ssh_host_ed25519_key*; ssh-keygen -qt ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key'
	refused "a key that nobody acknowledged" ssh -F "$work/ssh" twig.pando true
	status_is 125 pando execute --ssh twig -- true
	contains "the refusal" "$stderr" "SHA256:"
	pando delete -y -q twig
}

verbs_go_over_ssh() {
	status_is 7 pando execute --ssh shell -- sh -c 'echo out; echo err >&2; exit 7'
	equal stdout "$stdout" out
	equal stderr "$stderr" err
	equal "the sum in the guest" "$(pando execute -i --ssh shell -- sha256sum <"$work/file")" "$(sha256sum <"$work/file")"
	status_is 6 pando execute --ssh shell --timeout 5 -- sh -c 'sleep 4711 & sleep 4711'
	not pando execute shell -- pgrep -f 'sleep 471[1]'
	quietly pando copy -q --ssh "$work/tree" shell:/root/copied
	quietly pando copy -q --ssh shell:/root/copied "$work/copied"
	diff -r "$work/tree" "$work/copied"
}

a_machine_of_a_commit_lets_us_in() {
	pando commit shell -q --tag ssh >/dev/null
	pando run-commit ssh -q -N leaf
	[ "$(vm_field leaf host_key)" != "$(vm_field shell host_key)" ] || fail "leaf has the committed machine's host key"
	quietly ssh -F "$work/ssh" leaf.pando hostname
	equal "who answers" "$stdout" leaf
	pando delete -y -q leaf shell
	pando tag delete ssh
}

it "ssh, scp, rsync and git clone go into a branch without a warning" stock_programs_go_in
t a_branch_has_another_key_and_the_old_one_is_refused
t verbs_go_over_ssh
t a_machine_of_a_commit_lets_us_in
