# Sourced by ../guests.sh: a branch is somebody of its own before anyone can reach it. Works on a branch of g, called who.

# Fewer in the test machine, which is many times slower than a host whose KVM boots Linux.
if [ -e /run/pando-machine ]; then
	: "${CHILDREN:=6}"
fi
children=${CHILDREN:-32}

# In the guest: a program that draws 32 bytes in the first instant in which it sees another generation, and writes them down. It
# never sleeps until then, so that nothing is between the end of the hello and its draw but the processor's turn; then it ends.
start_drawing() { # vm
	pando execute "$1" --shell '
mkdir -p /root/draw
cat >/root/draw/draw.c <<"C"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

int
main(void)
{
	int fd = open("/run/pando/generation", O_RDONLY);
	char *now = mmap(NULL, 32, PROT_READ, MAP_SHARED, fd, 0);
	unsigned char drawn[32];
	char seen[33] = "", text[33] = "", path[64], whole[64];

	if (now == MAP_FAILED)
		return 1;
	memcpy(seen, now, 32);
	for (;;) {
		FILE *f;

		/* Somebody else writes there: it is read anew each time. */
		__asm__ volatile("" ::: "memory");
		if (memcmp(seen, now, 32) == 0)
			continue;
		if (getrandom(drawn, sizeof(drawn), 0) != sizeof(drawn))
			return 1;
		/* Written in place by the agent: whole once two looks agree. */
		do {
			memcpy(text, now, 32);
			usleep(1000);
		} while (memcmp(text, now, 32) != 0);
		snprintf(path, sizeof(path), "/root/draw/%s.part", text);
		f = fopen(path, "w");
		for (int i = 0; i < 32; i++)
			fprintf(f, "%02x", drawn[i]);
		fputc(10, f);
		fclose(f);
		snprintf(whole, sizeof(whole), "/root/draw/%s", text);
		return rename(path, whole) != 0;
	}
}
C
gcc -O2 -o /root/draw/draw /root/draw/draw.c
tmux new-session -d -s draw "nice /root/draw/draw"'
	pando execute "$1" -- pgrep -x draw >/dev/null
}

drawn() { # vm
	generation=$(vm_field "$1" generation)
	wait_until "$1 draws after it became itself" pando execute "$1" -- test -s "/root/draw/$generation"
	pando execute "$1" -- cat "/root/draw/$generation"
}

# The guest's clock was set in a handshake between the two moments told, to the host's of some moment of it: so it is
# behind by no more than lay between them. Beyond that it may be off by what `pando doctor --vm` takes for right.
clock_ms=100
clock_is_the_hosts() { # vm, began, ended (ns)
	clock_before=$(date +%s%N)
	clock_guest=$(pando execute "$1" -- date +%s%N)
	clock_after=$(date +%s%N)
	clock_late=$(($3 - $2 + clock_ms * 1000000))
	echo "the clock of $1: $(((clock_guest - clock_before) / 1000000)) ms after the question, the answer" \
		"$(((clock_after - clock_before) / 1000000)) ms, the handshake within $((($3 - $2) / 1000000)) ms"
	[ "$clock_guest" -ge $((clock_before - clock_late)) ] && [ "$clock_guest" -le $((clock_after + clock_ms * 1000000)) ] ||
		fail "the clock of $1 says $clock_guest, here it was $clock_before to $clock_after"
}

# Further than any handshake takes, so that a clock that is not set is seen.
clock_goes_wrong() { # vm
	pando execute "$1" -- date -s '1 hour ago'
}

# One line a VM: what must differ in each.
identity_of() { # vm
	pando execute "$1" --shell '
cat /etc/machine-id; hostname; cat /etc/hostname; cut -d" " -f2 /etc/ssh/ssh_host_ed25519_key.pub
cat /proc/sys/kernel/random/boot_id; cat /run/pando/generation
head -c 32 /dev/urandom | sha256sum | cut -d" " -f1
if command -v python3 >/dev/null; then python3 -c "import random; print(random.getrandbits(256))"; else echo "no python"; fi'
}

differs() { # what, field in files, files…
	differs_what=$1 differs_field=$2
	shift 2
	for f in "$@"; do sed -n "${differs_field}p" "$f"; done | sort >"$work/field"
	[ "$(sort -u "$work/field" | wc -l)" -eq $# ] ||
		fail "$differs_what is not pairwise different: $(uniq -d "$work/field" | head -n 3)"
}

all_children_are_different() {
	pando branch g -q -n who
	start_drawing who
	identity_of who >"$work/id.who"
	clock_goes_wrong who
	began=$(date +%s%N)
	pando execute who -- cat /proc/uptime >"$work/up.before"
	began_branch=$(date +%s%N)
	pando branch who -q --count "$children" -n child
	ended_branch=$(date +%s%N)
	i=0
	while [ $i -lt "$children" ]; do
		vm=child-$i
		clock_is_the_hosts "$vm" "$began_branch" "$ended_branch"
		# Monotonic time goes on, by no more than has passed here.
		pando execute "$vm" -- cat /proc/uptime >"$work/up.child"
		took=$((($(date +%s%N) - began) / 1000000))
		awk -v took=$took 'FNR == 1 { t[NR] = $1 } END { d = (t[2] - t[1]) * 1000; exit !(d >= 0 && d <= took + 1000) }' \
			"$work/up.before" "$work/up.child" || fail "the monotonic clock of $vm jumped"
		identity_of "$vm" >"$work/id.$vm"
		drawn "$vm" >"$work/draw.$vm"
		# What the host was told is what is there.
		equal "host key of $vm" "ssh-ed25519 $(sed -n 4p "$work/id.$vm")" "$(vm_field "$vm" host_key)"
		equal "name of $vm" "$(sed -n 2p "$work/id.$vm")" "$vm"
		equal "generation of $vm" "$(sed -n 6p "$work/id.$vm")" "$(vm_field "$vm" generation)"
		i=$((i + 1))
	done
	drawn who >"$work/draw.who"
	differs "machine-id" 1 "$work"/id.*
	differs "the host name" 2 "$work"/id.*
	differs "/etc/hostname" 3 "$work"/id.*
	differs "the SSH host key" 4 "$work"/id.*
	differs "boot-id" 5 "$work"/id.*
	differs "the generation" 6 "$work"/id.*
	differs "/dev/urandom" 7 "$work"/id.*
	# The parent among them: its generator was changed, too.
	differs "getrandom in the first instant" 1 "$work"/draw.*
	if grep -q 'no python' "$work/id.who"; then
		echo "no Python in this image: its random was not tried"
	else
		differs "Python's random" 8 "$work"/id.*
	fi
	for f in "$work"/id.child-*; do
		for field in 1 4 5; do
			[ "$(sed -n "${field}p" "$f")" != "$(sed -n "${field}p" "$work/id.who")" ] || fail "$f has field $field of its parent"
		done
	done
	delete_children "$children" child
}

delete_children() { # count, name
	i=0
	while [ $i -lt "$1" ]; do
		pando delete -y -q "$2-$i"
		i=$((i + 1))
	done
}

# A process that runs since before the branch, if there is a Python for it.
pythons_draw_apart() {
	pando execute who -- sh -c 'command -v python3' >/dev/null || skip "no Python in this image"
	pando execute who --shell 'cat >/root/draw.py <<"P"
import os, random, time
random.seed(1)
while True:
    with open("/root/py.part", "w") as f:
        f.write("%d\n" % random.getrandbits(256))
    os.replace("/root/py.part", "/root/py")
    time.sleep(0.2)
P
tmux new-session -d -s py "python3 /root/draw.py"'
	wait_until "Python draws" pando execute who -- test -s /root/py
	pando branch who -q --count 3 -n py
	# The first that is written after the branch may have been drawn before it.
	for vm in who py-0 py-1 py-2; do
		for _ in 1 2; do
			pando execute $vm -- rm /root/py
			wait_until "Python draws in $vm" pando execute $vm -- test -s /root/py
		done
		pando execute $vm -- cat /root/py >"$work/py.$vm"
	done
	differs "a running Python's random" 1 "$work"/py.*
	delete_children 3 py
}

a_secret_is_in_one_child_only() {
	pando branch who -q --count 4 -n sec --env 'SECRET=for {index} of {id}' --env 'SAME=x'
	for i in 0 1 2 3; do
		id=$(vm_field sec-$i id)
		equal "/etc/environment of sec-$i" "$(pando execute sec-$i -- cat /etc/environment)" \
			"$(printf "SECRET='for %s of %s'\nSAME='x'" $i "$id" | sort)"
		equal "SECRET of sec-$i" "$(pando execute sec-$i -- printenv SECRET)" "for $i of $id"
		pando execute sec-$i -- grep -rlF "for $(((i + 1) % 4)) of" /etc /run /root /var/lib /tmp 2>/dev/null && fail "sec-$i knows its sister's"
		:
	done
	# Nothing is inherited.
	pando branch sec-0 -q -n heir
	equal "/etc/environment of heir" "$(pando execute heir -- cat /etc/environment)" ""
	status_is 1 pando execute heir -- printenv SECRET
	pando delete -y -q heir
	delete_children 4 sec
}

values_arrive_exactly() {
	lines=$(printf 'one\n"two" $HOME `id` \\n #3')
	pando env set DEFAULT=1 "BOTH=default" 2>/dev/null
	printf 'FROM_FILE="a # b"\nexport UTF8=Žluťoučký\n' >"$work/env"
	pando branch who -n exact --env "LINES_=$lines" --env "BOTH=its own" --env "QUOTE=it's" --env 'DOLLAR=$HOME' \
		--env-file "$work/env" >/dev/null 2>"$work/stderr"
	contains "the note" "$(cat "$work/stderr")" "LINES_ has a line break"
	equal LINES_ "$(pando execute exact -- printenv LINES_)" "$lines"
	equal BOTH "$(pando execute exact -- printenv BOTH)" "its own"
	equal DEFAULT "$(pando execute exact -- printenv DEFAULT)" 1
	equal QUOTE "$(pando execute exact -- printenv QUOTE)" "it's"
	equal DOLLAR "$(pando execute exact -- printenv DOLLAR)" '$HOME'
	equal FROM_FILE "$(pando execute exact -- printenv FROM_FILE)" 'a # b'
	equal UTF8 "$(pando execute exact -- printenv UTF8)" Žluťoučký
	# systemd reads both files, as it says it does.
	pando execute exact --shell 'cat >/etc/systemd/system/exact.service <<"U"
[Service]
Type=oneshot
EnvironmentFile=/etc/environment
EnvironmentFile=/etc/pando/environment
ExecStart=sh -c "printenv LINES_ >/root/lines; printenv QUOTE DOLLAR UTF8 FROM_FILE >/root/rest"
U
systemctl daemon-reload
systemctl start exact.service'
	equal "LINES_ in a unit" "$(pando execute exact -- cat /root/lines)" "$lines"
	equal "the rest in a unit" "$(pando execute exact -- cat /root/rest)" "$(printf "it's\n%s\nŽluťoučký\na # b" '$HOME')"
	pando env delete DEFAULT BOTH
	pando delete -y -q exact
	status_is 2 pando branch who -n bad --env "BELL=$(printf '\007')"
	contains "the refusal" "$stderr" '"BELL"'
}

what_must_see_it_is_restarted() {
	pando execute who --shell 'cat >/etc/systemd/system/reader.service <<"U"
[Service]
EnvironmentFile=/etc/environment
ExecStart=sh -c "printenv WHO >>/root/reader.log; exec sleep infinity"
U
mkdir -p /etc/pando
echo reader.service >/etc/pando/restart
systemctl daemon-reload
systemctl start reader.service || true'
	pando branch who -q -n reader --env WHO=child
	# It is started when the branch is there; what it does then takes its time.
	wait_until "the unit sees its own" pando execute reader -- sh -c 'tail -n 1 /root/reader.log | grep -qx child'
	# Anybody else's writing, once.
	lines=$(pando execute reader -- sh -c 'wc -l </root/reader.log')
	pando execute reader --shell 'echo WHO=other >/etc/environment.new; mv /etc/environment.new /etc/environment'
	wait_until "the unit sees it" pando execute reader -- sh -c 'tail -n 1 /root/reader.log | grep -qx other'
	equal "restarts" "$(pando execute reader -- sh -c 'wc -l </root/reader.log')" $((lines + 1))
	pando delete -y -q reader
	pando execute who -- rm /etc/pando/restart
}

a_failing_hook_is_no_branch() {
	pando execute who --shell 'mkdir -p /etc/pando/fork.d
printf "#!/bin/sh\necho no dice >&2\nexit 7\n" >/etc/pando/fork.d/10-bad
chmod +x /etc/pando/fork.d/10-bad'
	status_is 1 pando branch who -n bad
	contains "the error" "$stderr" "hooks: /etc/pando/fork.d/10-bad ended with status 7; it said: no dice"
	status_is 3 pando info bad
	equal "state of its parent" "$(vm_field who state)" running
	pando execute who --shell 'printf "#!/bin/sh\necho \"\$PANDO_OLD_NAME \$PANDO_NAME\" >/root/hook.log\n" >/etc/pando/fork.d/10-bad'
	pando branch who -q -n good
	equal "what the hook was told" "$(pando execute good -- cat /root/hook.log)" "who good"
	pando delete -y -q good
}

a_restored_and_a_restarted_machine() {
	key=$(vm_field who host_key)
	machine=$(pando execute who -- cat /etc/machine-id)
	clock_goes_wrong who
	pando commit who -q --tag identity >/dev/null
	began=$(date +%s%N)
	pando run-commit identity -q --count 2 -N back --env "N={index}"
	ended=$(date +%s%N)
	for i in 0 1; do
		[ "$(vm_field back-$i host_key)" != "$key" ] || fail "back-$i has the host key of the committed machine"
		equal "N of back-$i" "$(pando execute back-$i -- printenv N)" $i
		clock_is_the_hosts back-$i "$began" "$ended"
	done
	# One that is started again is who it was.
	key=$(vm_field back-0 host_key)
	machine=$(pando execute back-0 -- cat /etc/machine-id)
	status_is 0 pando stop back-0 --timeout 3600
	status_is 0 pando start back-0
	equal "its host key" "$(vm_field back-0 host_key)" "$key"
	equal "its machine-id" "$(pando execute back-0 -- cat /etc/machine-id)" "$machine"
	equal "its environment" "$(pando execute back-0 -- printenv N)" 0
	delete_children 2 back
	pando delete -y -q who
	pando tag delete identity
}

it "$children children of one machine differ in all that says who they are" all_children_are_different
it "Pythons that were forked draw different numbers" pythons_draw_apart
it "a secret given to one child is in no other" a_secret_is_in_one_child_only
it "values arrive exactly, whoever reads them" values_arrive_exactly
it "what must see a new environment is restarted, once" what_must_see_it_is_restarted
it "a branch whose hook fails is no branch" a_failing_hook_is_no_branch
it "machines of a commit are new ones, one that is started again is not" a_restored_and_a_restarted_machine
