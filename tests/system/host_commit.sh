#!/bin/sh
# Commits and what runs of them, with the small guest on this host's /dev/kvm, in seconds: what goes on in a VM of a
# commit, how much a second commit writes, tags and prefixes, a damaged store, a store in another home, deletions that are
# refused, and pandod killed at every stage.
# shellcheck disable=SC2329,SC2317 # tests are called by name
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES
cd "$work" || exit 2

# Pre-warmed VMMs of the pool belong to no VM, and come and go.
no_pool() {
	printf '[pool]\nsize = 0\n' >"$PANDO_HOME/pandod.toml"
	end_daemon
}

commit_field() { # commit, expression over j
	pando commit info "$1" --format json | json "$2"
}

base_of() { # folder of a materialized image
	sed -n 's/^[0-9]* [0-9]* [0-9]* [0-9]* -*[0-9]* //p' "$1/disk.base"
}

known_bases() { # images whose content is in the store, and that are there
	python3 -c '
import os, sqlite3, sys
for path, in sqlite3.connect("file:" + sys.argv[1] + "?mode=ro", uri=True).execute("select path from bases"):
    if os.path.exists(path):
        print(path)
' "$PANDO_HOME/state.db"
}

changed_disk() { # folder of a materialized image: the whole disk
	python3 - "$1" "$(base_of "$1")" <<-'END'
		import struct, sys
		folder, base = sys.argv[1:]
		data = open(folder + "/disk.data", "rb").read()
		disk = bytearray(open(base, "rb").read().ljust(len(data), b"\0"))
		for block, at, count, op, _ in struct.iter_unpack("<QQIIQ", open(folder + "/disk.index", "rb").read()):
		    n = count * 4096
		    disk[block * 4096:block * 4096 + n] = data[at * 4096:at * 4096 + n] if op == 1 else bytes(n)
		sys.stdout.buffer.write(disk)
	END
}

last_written() { # bytes that the last commit in the log wrote
	python3 -c 'import json, sys; print(json.load(sys.stdin)["written_bytes"])'
}

a_commit_is_printed_and_nothing_else() {
	needs_kvm
	no_pool
	run_small -N a -l team=red -- mode=work tick=20000 disk=1 dirty=200 >/dev/null
	wait_until "what a says" console_says a ready
	wait_until "what a says" console_says a tick
	held=$(holdings | grep -v 'segments/')
	status_is 0 pando commit a -m "the first" --tag one --tag also-one -l kind=golden
	printf '%s\n' "$stdout" | grep -Eqx '[0-9a-f]{64}' || fail "stdout is: $stdout"
	equal "its id by tag" "$(commit_field one 'j["id"]')" "$stdout"
	equal "its message" "$(commit_field one 'j["message"]')" "the first"
	equal "its label" "$(commit_field one 'j["labels"]["kind"]')" golden
	equal "its parent" "$(commit_field one 'j["parent"]')" None
	equal "what it has of memory" "$(commit_field one 'j["mem_mib"]')" 32
	equal "the VM's commit" "$(info a 'j["commit"]')" "$stdout"
	equal "what is held" "$(holdings | grep -v 'segments/')" "$held"
	counts_on a
	wait_until "a is well" console_says a 'fork n=2 .*memory=ok disk=ok'
	status_is 0 pando verify
	status_is 0 pando verify one
}

it_goes_on_after_the_vm_and_the_daemon_are_gone() {
	needs_kvm
	pando logs a | sed -n 's/.*fork n=2 .*history=//p' | head -n 1 >"$work/history"
	pando delete -y a >/dev/null
	end_daemon
	equal "the VMs left" "$(pando status -q)" ""
	status_is 0 pando run-commit one -N b --no-wait
	printf '%s\n' "$stdout" | grep -Eqx '[0-9a-f]{12}' || fail "stdout is: $stdout"
	wait_until "what b says" console_says b 'fork n=2 .*memory=ok disk=ok'
	counts_on b
	equal "its past" "$(pando logs b | sed -n 's/.*fork n=2 .*history=//p' | head -n 1 | cut -d, -f1)" \
		"$(cut -d, -f1 "$work/history")"
	[ "$(pando logs b | sed -n 's/.*fork n=2 .*history=//p' | head -n 1 | cut -d, -f2)" != \
		"$(cut -d, -f2 "$work/history")" ] || fail "two have one present"
	equal "its commit" "$(info b 'j["commit"]')" "$(commit_field one 'j["id"]')"
	equal "its parent" "$(info b 'j["parent"]')" None
	equal "the VMs on it" "$(commit_field one 'j["vms"]')" "['$(info b 'j["id"]')']"
}

eight_at_once() {
	needs_kvm
	status_is 0 pando run-commit one --count 8 -N e -l k=v --no-wait
	equal "the number of ids" "$(printf '%s\n' "$stdout" | grep -Ecx '[0-9a-f]{12}')" 8
	for i in 0 1 2 3 4 5 6 7; do
		wait_until "what e-$i says" console_says "e-$i" 'fork n=2 .*memory=ok disk=ok'
		pando logs "e-$i" | sed -n 's/.*fork n=2 .*history=//p' | head -n 1
	done >"$work/histories"
	equal "the number of pasts" "$(cut -d, -f1 "$work/histories" | sort -u | wc -l)" 1
	equal "the number of presents" "$(cut -d, -f2 "$work/histories" | sort -u | wc -l)" 8
	equal "their label" "$(info e-3 'j["labels"]["k"]')" v
	status_is 4 pando run-commit one -N e-3 --no-wait
	status_is 4 pando run-commit one --count 2 -N e --no-wait
	status_is 2 pando run-commit one --count 0 --no-wait
	status_is 2 pando run-commit one --count 100000 --no-wait
	status_is 3 pando run-commit nosuch --no-wait
	equal "the number of VMs" "$(pando status -q | wc -l)" 9
	for i in 1 2 3 4 5 6 7; do
		pando delete -y "e-$i" >/dev/null
	done
}

a_restored_vm_is_a_vm() {
	needs_kvm
	status_is 0 pando branch b -n bb --no-wait
	wait_until "what bb says" console_says bb 'fork n=3 .*memory=ok disk=ok'
	equal "the branch's commit" "$(info bb 'j["commit"]')" "$(info b 'j["commit"]')"
	wait_until "what b says" console_says b 'fork n=3 .*memory=ok disk=ok'
	status_is 0 pando branch b --count 3 -n bc --no-wait
	wait_until "what bc-2 says" console_says bc-2 'fork n=4 .*memory=ok disk=ok'
	status_is 0 pando pause b
	status_is 0 pando commit b --tag paused
	equal "the state of a paused VM" "$(info b 'j["state"]')" paused
	# the commit's disk is the VM's, block by block: as the base and what changed, and, where the base is gone, as
	# one file
	status_is 0 pando disk export b "$work/b.raw"
	flat=$PANDO_HOME/flat/$(commit_field paused 'j["id"]')
	status_is 0 pando run-commit paused -N same --no-wait
	[ ! -e "$flat/disk" ] || fail "the disk was copied"
	changed_disk "$flat" >"$work/changed.raw"
	cmp "$work/b.raw" "$work/changed.raw"
	pando delete -y same >/dev/null
	base=$(base_of "$flat")
	mv "$base" "$base.away"
	status_is 0 pando run-commit paused -N same --no-wait
	mv "$base.away" "$base"
	cmp "$work/b.raw" "$flat/disk"
	pando delete -y same >/dev/null
	status_is 0 pando resume b
	pando delete -y bc-0 >/dev/null
	pando delete -y bc-1 >/dev/null
	pando delete -y bc-2 >/dev/null
	# it boots from its disk
	status_is 0 pando stop bb --force
	status_is 0 pando start bb --no-wait
	wait_until "bb boots" console_says bb ready
	# and its memory, which lies on no image any more, is committed
	status_is 0 pando commit bb --tag booted
	status_is 0 pando run-commit booted -N booted --no-wait
	wait_until "what booted says" console_says booted 'fork n=2 .*memory=ok disk=ok'
	pando delete -y booted >/dev/null
	pando delete -y bb >/dev/null
}

the_second_commit_writes_little() {
	needs_kvm
	first=$(pando commit b --tag two --format json | last_written)
	second=$(pando commit b --tag three --format json | last_written)
	echo "$first, then $second bytes"
	[ "$second" -lt 131072 ] || fail "the second commit wrote $second bytes"
	equal "its parent" "$(commit_field three 'j["parent"]')" "$(commit_field two 'j["id"]')"
	status_is 0 pando history b -q
	equal "the first of b's history" "$(printf '%s\n' "$stdout" | head -n 1)" "$(commit_field three 'j["id"]')"
	equal "the last of it" "$(printf '%s\n' "$stdout" | tail -n 1)" "$(commit_field one 'j["id"]')"
	equal "the length of it" "$(printf '%s\n' "$stdout" | wc -l)" 4
	status_is 0 pando diff one three
	contains stdout "$stdout" "memory "
	status_is 0 pando diff one one --format json
	equal "what differs" "$(printf '%s' "$stdout" | json '(j["memory"]["pages"], j["disk"]["pages"])')" "(0, 0)"
	status_is 0 pando diff one three --format json
	[ "$(printf '%s' "$stdout" | json 'j["memory"]["pages"] > 0')" = True ] || fail "nothing differs: $stdout"
	status_is 0 pando verify
	# a child of the third is what the first was, and more
	status_is 0 pando branch three -n t --no-wait
	wait_until "what t says" console_says t 'fork n=[0-9]* .*memory=ok disk=ok'
	pando delete -y t >/dev/null
}

two_commits_of_one_vm_at_once() {
	needs_kvm
	for i in 1 2 3; do
		(
			got=0
			pando commit b >"$work/at-once.$i" 2>&1 || got=$?
			echo "status $got" >>"$work/at-once.$i"
		) &
	done
	wait
	for i in 1 2 3; do
		case $(cat "$work/at-once.$i") in
		*"status 0") ;;
		*) fail "$(cat "$work/at-once.$i")" ;;
		esac
	done
	status_is 0 pando verify
}

tags_and_prefixes() {
	needs_kvm
	id=$(commit_field one 'j["id"]')
	short=$(printf %.12s "$id")
	equal "by a beginning" "$(commit_field "$short" 'j["id"]')" "$id"
	status_is 3 pando commit info "$(printf %.3s "$id")"
	status_is 4 pando tag create one three
	contains stderr "$stderr" one
	status_is 4 pando commit b --tag one
	contains stderr "$stderr" "tag update"
	status_is 0 pando tag create spare one
	status_is 0 pando tag update spare three
	equal "where it leads" "$(commit_field spare 'j["id"]')" "$(commit_field three 'j["id"]')"
	status_is 3 pando tag update absent three
	status_is 0 pando tag list
	contains stdout "$stdout" also-one
	status_is 0 pando tag delete spare
	status_is 3 pando tag delete spare
	status_is 3 pando commit info spare
	for wrong in "has space" .hidden a/b "" "$id"; do
		got=0
		pando tag create "$wrong" one >"$work/stdout" 2>"$work/stderr" || got=$?
		case $got in 2 | 3) ;; *) fail "status $got for the tag '$wrong'" ;; esac
		[ -s "$work/stderr" ] || fail "no sentence for '$wrong'"
	done
	# another manifest whose name begins alike
	twin=$(printf %.8s "$id")$(printf '%056d' 0)
	cp "$PANDO_HOME/store/commits/$id.json" "$PANDO_HOME/store/commits/$twin.json"
	status_is 4 pando commit info "$(printf %.6s "$id")"
	contains stderr "$stderr" "$(printf %.12s "$id")"
	contains stderr "$stderr" "$(printf %.12s "$twin")"
	status_is 4 pando run-commit "$(printf %.8s "$id")" --no-wait
	status_is 4 pando branch "$(printf %.8s "$id")" --no-wait
	status_is 0 pando commit info "$(printf %.12s "$id")"
	rm "$PANDO_HOME/store/commits/$twin.json"
}

deletion_is_refused_by_name() {
	needs_kvm
	status_is 4 pando commit delete one
	status_is 4 pando commit delete -r one
	contains stderr "$stderr" b
	status_is 4 pando commit delete three
	pando stop b --force >/dev/null
	pando delete -y e-0 >/dev/null
	status_is 4 pando commit delete one
	status_is 0 pando commit delete -r --dry-run two
	contains stdout "$stdout" "$(commit_field three 'j["id"]')"
	status_is 0 pando commit delete -r two
	status_is 3 pando commit info two
	status_is 3 pando commit info three
	status_is 0 pando verify
	status_is 0 pando gc
	status_is 0 pando verify
	status_is 0 pando run-commit one -N again --no-wait
	wait_until "what again says" console_says again 'fork n=2 .*memory=ok disk=ok'
	# a stopped VM whose commits are gone boots, and begins a new history
	status_is 0 pando start b --no-wait
	wait_until "b ticks" console_says b tick
	status_is 0 pando commit b --tag fresh
	equal "its parent" "$(commit_field fresh 'j["parent"]')" None
	pando delete -y again >/dev/null
}

another_home_has_it_from_the_files() {
	needs_kvm
	other=$work/other
	mkdir -m 700 "$other"
	cp -r "$PANDO_HOME/store" "$other/store"
	(
		PANDO_HOME=$other
		export PANDO_HOME
		status_is 0 pando verify
		status_is 0 pando run-commit one -N elsewhere --no-wait
		wait_until "what it says" console_says elsewhere 'fork n=2 .*memory=ok disk=ok'
		status_is 0 pando commit elsewhere
		equal "its parent" "$(commit_field "$stdout" 'j["parent"]')" "$(commit_field one 'j["id"]')"
		end_home
	)
}

files_that_differ_are_told() {
	needs_kvm
	mkdir -p "$work/tree/etc"
	echo one >"$work/tree/etc/one"
	echo two >"$work/tree/etc/two"
	mke2fs -q -t ext4 -d "$work/tree" "$work/first.ext4" 8M >/dev/null
	echo three >"$work/tree/etc/three"
	echo other >"$work/tree/etc/one"
	rm "$work/tree/etc/two"
	mke2fs -q -t ext4 -d "$work/tree" "$work/second.ext4" 8M >/dev/null
	for which in first second; do
		pando run --no-wait --kernel "$TINY" --rootfs "$work/$which.ext4" --mem-size 32 --fs-size-vm 16 \
			--cmdline mode=work -N "$which" >/dev/null
		wait_until "$which works" console_says "$which" ready
		pando commit "$which" --tag "with-$which" >/dev/null
	done
	status_is 0 pando diff with-first with-second
	contains stdout "$stdout" "files    1 added, 1 removed, 1 changed"
	contains stdout "$stdout" "+ /etc/three  6 B"
	contains stdout "$stdout" "- /etc/two"
	contains stdout "$stdout" "~ /etc/one  content"
	status_is 0 pando diff with-first with-second --format json
	equal "the changes" "$(printf '%s' "$stdout" | json 'sorted((c["what"], c["path"]) for c in j["files"]["changes"])')" \
		"[('added', '/etc/three'), ('changed', '/etc/one'), ('removed', '/etc/two')]"
	# a disk without one: said in a line, and pages and blocks are told all the same
	status_is 0 pando diff one with-first
	contains stderr "$stderr" "files are not compared: the first disk: no ext2, ext3 or ext4 file system is on it"
	contains stdout "$stdout" "disk "
	lacks stdout "$stdout" "files"
	equal "the processes left" "$(pgrep -P "$(pandod_pid)" -x pando-fsdiff)" ""
	pando delete -y first >/dev/null
	pando delete -y second >/dev/null
	pando commit delete with-first >/dev/null
	pando commit delete with-second >/dev/null
}

# Changes a byte of a file, and puts the check sum of a state right (common/wire/blob.c).
spoil_state() { # file
	python3 - "$1" <<-'END'
		import struct, sys
		def check(p):
		    prime, mask = 0x9e3779b97f4a7c15, (1 << 64) - 1
		    lane, h = [1, 2, 3, 4], len(p)
		    at = 0
		    while len(p) - at >= 32:
		        for i in range(4):
		            lane[i] = (lane[i] ^ struct.unpack_from("<Q", p, at + 8 * i)[0]) * prime & mask
		            lane[i] ^= lane[i] >> 29
		        at += 32
		    i = 0
		    while at < len(p):
		        word = int.from_bytes(p[at:at + 8], "little")
		        lane[i] = (lane[i] ^ word) * prime & mask
		        at, i = at + 8, i + 1
		    for l in lane:
		        h = (h ^ l) * prime & mask
		        h ^= h >> 32
		    return h
		p = bytearray(open(sys.argv[1], "rb").read())
		assert check(bytes(p[32:])) == struct.unpack_from("<Q", p, 24)[0]
		at = p.index(b"CPID")
		n = struct.unpack_from("<I", p, at + 8)[0]
		for i in range(n):
		    entry = at + 16 + 40 * i
		    if struct.unpack_from("<I", p, entry)[0] == 0x80000001:
		        edx = struct.unpack_from("<I", p, entry + 24)[0]
		        struct.pack_into("<I", p, entry + 24, edx | 1 << 31)  # 3DNow!: no CPU that runs this
		struct.pack_into("<Q", p, 24, check(bytes(p[32:])))
		open(sys.argv[1], "wb").write(p)
	END
}

a_cpu_feature_that_is_missing_is_named() {
	needs_kvm
	[ "$(commit_field one '[f in j["cpu"]["features"] for f in ("sse2", "3dnow")]')" = "[True, False]" ] || fail "it needs $(commit_field one 'j["cpu"]')"
	status_is 0 pando commit info one
	contains stdout "$stdout" "needs of CPU"
	state=$PANDO_HOME/flat/$(commit_field one 'j["id"]')/state
	[ -e "$state" ] || {
		pando run-commit one -N for-its-state --no-wait >/dev/null
		pando delete -y for-its-state >/dev/null
	}
	cp "$state" "$work/state"
	chmod u+w "$state"
	spoil_state "$state"
	tree_before=$(the_tree)
	for how in 1 3; do
		status_is 1 pando run-commit one --count $how --no-wait
		contains stderr "$stderr" "this host lacks a CPU feature that the VM uses: 3dnow"
		equal "the tree" "$(the_tree)" "$tree_before"
	done
	cat "$work/state" >"$state"
	status_is 0 pando run-commit one -N well-again --no-wait
	pando delete -y well-again >/dev/null
}

a_commits_tree_is_drawn() {
	needs_kvm
	status_is 0 pando tree three --format json
	equal "the kinds and depths" "$(printf '%s' "$stdout" |
		json '[(n["kind"], n["depth"]) for n in j["nodes"] if n["kind"] == "commit"]')" \
		"[('commit', 0), ('commit', 1), ('commit', 2), ('commit', 3)]"
	equal "the commit that is meant" "$(printf '%s' "$stdout" | json 'j["commit"] == j["nodes"][3]["id"]')" True
	equal "the first" "$(printf '%s' "$stdout" | json 'j["nodes"][0]["id"]')" "$(commit_field one 'j["id"]')"
	# Those of others are not drawn, those that come from it are, with their branches.
	status_is 0 pando tree one
	contains stdout "$stdout" "[also-one one]"
	contains stdout "$stdout" "the first  <"
	contains stdout "$stdout" "└── "
	status_is 0 pando run-commit three -N from-three --no-wait
	status_is 0 pando branch from-three -n below --no-wait
	status_is 0 pando tree "$(commit_field three 'j["id"][:10]')"
	printf '%s\n' "$stdout" | grep -q '└── VM from-three ' || fail "drawn: $stdout"
	printf '%s\n' "$stdout" | grep -q '    └── VM below ' || fail "drawn: $stdout"
	status_is 0 pando tree three -q
	equal "the last of it" "$(printf '%s\n' "$stdout" | tail -n 1)" "$(info below 'j["id"]')"
	status_is 0 pando delete -r -y from-three
	status_is 3 pando tree nosuch
	status_is 2 pando tree one three
}

a_commit_of_another_format_version_is_refused() {
	needs_kvm
	other=$work/version
	mkdir -m 700 "$other"
	cp -r "$PANDO_HOME/store" "$other/store"
	id=$(commit_field fresh 'j["id"]')
	python3 - "$other/store/commits" "$id" "$work/new-id" <<-'END'
		import hashlib, sys
		folder, old, out = sys.argv[1:]
		text = open(f"{folder}/{old}.json", "rb").read().replace(b'"format":1', b'"format":2')
		new = hashlib.blake2b(text, digest_size=32).hexdigest()
		open(f"{folder}/{new}.json", "wb").write(text)
		open(out, "w").write(new)
	END
	new=$(cat "$work/new-id")
	(
		PANDO_HOME=$other
		export PANDO_HOME
		for words in "run-commit $new --no-wait" "commit info $new" "branch $new --no-wait" "diff $new one"; do
			# shellcheck disable=SC2086 # words
			status_is 1 pando $words
			contains stderr "$stderr" "format version 2"
		done
		status_is 0 pando commit list
		contains stderr "$stderr" "format version 2"
		status_is 1 pando verify
		equal "the VMs" "$(pando status -q)" ""
		end_home
	)
}

damage_is_named() {
	needs_kvm
	pando delete --all -y -q >/dev/null
	broken=$work/broken
	mkdir -m 700 "$broken"
	cp -r "$PANDO_HOME/store" "$broken/store"
	# Often in each of them: no commit reaches some of what they hold any more.
	find "$broken/store/packs" -name '*.pack' -size +4k -exec python3 -c '
import os, sys
for pack in sys.argv[1:]:
    with open(pack, "r+b") as f:
        for at in range(200, os.fstat(f.fileno()).st_size // 2, 100):
            f.seek(at); b = f.read(1); f.seek(at); f.write(bytes([b[0] ^ 1]))
' {} +
	(
		PANDO_HOME=$broken
		export PANDO_HOME
		status_is 1 pando verify
		[ -n "$stdout" ] || fail "no damage is named"
		status_is 1 pando verify --format json
		equal "the verdict" "$(printf '%s' "$stdout" | json 'j["sound"]')" False
		# Pages that are nowhere else cannot be saved.
		status_is 1 pando verify --repair --format json
		equal "the verdict" "$(printf '%s' "$stdout" | json 'j["sound"]')" False
		equal "a number" "$(printf '%s' "$stdout" | json 'j["chunks_saved"] >= 0')" True
		end_home
	)
}

the_pool_is_filled_and_used() {
	needs_kvm
	rm "$PANDO_HOME/pandod.toml"
	end_daemon
	pando run-commit one -N cold --no-wait --format json >"$work/cold"
	equal "from the pool" "$(json 'j["pooled"]' <"$work/cold")" 0
	full() { [ "$(vmm_pids | wc -l)" = 3 ]; }
	wait_until "two pre-warmed VMMs" full
	pando run-commit one --count 3 -N warm --no-wait --format json >"$work/warm"
	# or the third, when it was made ahead in the meantime
	case $(json 'j["pooled"]' <"$work/warm") in 2 | 3) ;; *) fail "from the pool: $(cat "$work/warm")" ;; esac
	for i in 0 1 2; do
		wait_until "what warm-$i says" console_says "warm-$i" 'fork n=2 .*memory=ok disk=ok'
	done
	pando delete --all -y -q >/dev/null
	end_daemon
	empty() { [ -z "$(vmm_pids)" ]; }
	wait_until "pre-warmed VMMs end with pandod" empty
	printf '[pool]\nsize = 3000\n' >"$PANDO_HOME/pandod.toml"
	status_is 1 pando status
	contains stderr "$stderr" "pool.size"
	no_pool
}

kill_nine_while_committing() {
	needs_kvm
	pando delete --all -y -q >/dev/null
	run_small -N p -- mode=work tick=20000 disk=1 dirty=100 >/dev/null
	wait_until "what p says" console_says p tick
	# as the next daemon has it: through its control socket
	end_daemon
	pando status -q >/dev/null
	for point in commit.entered branch.park-files commit.parked commit.state commit.memory commit.disk \
		commit.written; do
		tree_before=$(the_tree)
		held_before=$(holdings | grep -v 'segments/')
		commits_before=$(pando commit list -q | sort)
		dies_at "$point" pando commit p --tag "t-$point"
		equal "the tree after $point" "$(the_tree)" "$tree_before"
		wait_until "only what is in the tree runs ($point)" settled
		equal "what is held after $point" "$(holdings | grep -v 'segments/')" "$held_before"
		# every segment is the chain's
		equal "the segments after $point" "$(find "$PANDO_HOME/segments" -name '*.data' | wc -l)" \
			"$(curl -s --unix-socket "$PANDO_HOME/pandod.sock" http://p/v1/vms/p/disk | json 'len(j["chain"])')"
		case $point in
		commit.written) equal "the commits after $point" "$(pando commit list -q | wc -l)" \
			$(($(printf '%s\n' "$commits_before" | wc -l) + 1)) ;;
		*) equal "the commits after $point" "$(pando commit list -q | sort)" "$commits_before" ;;
		esac
		status_is 0 pando verify
		equal "what is unfinished in the store" "$(find "$PANDO_HOME/store" -name 'tmp.*')" ""
		counts_on p
		status_is 0 pando commit p
		pando disk export -f p "$work/p.raw" >/dev/null
	done
	pando delete -y p >/dev/null
	equal "the files left" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" -mindepth 1)" ""
}

kill_nine_while_spawning() {
	needs_kvm
	pando delete --all -y -q >/dev/null
	for point in spawn.entered spawn.sent spawn.started; do
		dies_at "$point" pando run-commit one --count 3 -N s --no-wait
		equal "the VMs after $point" "$(pando status -q)" ""
		wait_until "nothing runs ($point)" settled
		equal "the files left after $point" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" -mindepth 1)" ""
	done
	dies_at spawn.made pando run-commit one --count 3 -N s --no-wait
	equal "the number of VMs" "$(pando status -q | wc -l)" 3
	for i in 0 1 2; do
		counts_on "s-$i"
	done
	pando delete --all -y -q >/dev/null
	# the flat image
	for point in flat.changes flat.disk flat.memory; do
		rm -rf "$PANDO_HOME/flat"
		full=
		[ "$point" != flat.memory ] || full="--wait-for full"
		# shellcheck disable=SC2086 # words
		dies_at "$point" pando run-commit one --no-wait $full
		status_is 0 pando run-commit one -N f --no-wait
		wait_until "what f says" console_says f 'fork n=2 .*memory=ok disk=ok'
		pando delete -y f >/dev/null
	done
}

a_vm_deleted_while_it_is_committed() {
	needs_kvm
	run_small -N d -- mode=work tick=20000 disk=1 dirty=2000 >/dev/null
	wait_until "what d says" console_says d tick
	pando commit d --tag of-d >"$work/of-d" 2>&1 &
	job=$!
	sleep 0.05
	pando delete -y d >"$work/deleted" 2>&1 || grep -q "being committed" "$work/deleted" || fail "$(cat "$work/deleted")"
	if wait "$job"; then
		status_is 0 pando run-commit of-d -N od --no-wait
		wait_until "what od says" console_says od 'fork n=2 .*memory=ok disk=ok'
	fi
	pando delete --all -y -q >/dev/null
	status_is 0 pando verify
	equal "the files left" "$(find "$PANDO_HOME/vms" "$PANDO_HOME/segments" -mindepth 1)" ""
}

flat_images_are_bounded() {
	needs_kvm
	printf '[pool]\nsize = 0\nflat_mib = 0\n' >"$PANDO_HOME/pandod.toml"
	end_daemon
	pando run-commit one -N f --no-wait >/dev/null
	equal "images while it lives" "$(find "$PANDO_HOME/flat" -name memory | wc -l)" 1
	pando stop f --force >/dev/null
	pando run-commit fresh -N g --no-wait >/dev/null
	# the image of a stopped VM may go: its disk has links of its own to what changed
	[ ! -e "$PANDO_HOME/flat/$(commit_field one 'j["id"]')/memory" ] || fail "a stopped VM's image was kept"
	status_is 0 pando disk export -f f "$work/f.raw"
	# not so one that is its disk
	pando delete -y g >/dev/null
	known_bases >"$work/bases"
	while read -r base; do
		mv "$base" "$base.away"
	done <"$work/bases"
	pando run-commit fresh -N h --no-wait >/dev/null
	while read -r base; do
		mv "$base.away" "$base"
	done <"$work/bases"
	pando stop h --force >/dev/null
	pando run-commit one -N i --no-wait >/dev/null
	[ -e "$PANDO_HOME/flat/$(commit_field fresh 'j["id"]')/disk" ] || fail "a stopped VM's disk was removed"
	status_is 0 pando disk export -f h "$work/h.raw"
	pando delete --all -y -q >/dev/null
	pando gc >/dev/null
	equal "images of nobody" "$(find "$PANDO_HOME/flat" -mindepth 1 -type d | wc -l)" 0
}

commits_go_by_rule() {
	needs_kvm
	run_small -N r -- mode=work tick=20000 disk=1 dirty=50 >/dev/null
	wait_until "what r says" console_says r tick
	base=$(pando commit r -q -m base)
	for i in 1 2 3 4 5; do
		pando commit r -q -m "step $i" --keep-last 2
	done >"$work/line"
	pando commit list -q >"$work/held"
	equal "what is held of the line" "$(grep -Fxf "$work/held" "$work/line")" "$(tail -n 2 "$work/line")"
	status_is 0 pando commit info "$base"
	equal "the length of r's history" "$(pando history r -q | wc -l)" 6
	equal "the first two of it" "$(pando history r -q --limit 2 | wc -l)" 2
	contains "the history" "$(pando history r)" "(pruned)"
	# the tree does not break where one was pruned: neither downwards nor upwards, nor from there
	for from in "$base" "$(tail -n 1 "$work/line")" "$(head -n 1 "$work/line")"; do
		equal "the tree of ${from%"${from#????}"}" "$(pando tree "$from" --format json |
			json '[(n["depth"], n.get("pruned")) for n in j["nodes"] if n["kind"] == "commit"]')" \
			"[(0, False), (1, True), (2, True), (3, True), (4, False), (5, False)]"
	done
	contains "the drawing" "$(pando tree "$base")" "└── VM r "
	old=$(head -n 1 "$work/line")
	for verb in "run-commit --no-wait $old" "diff $base $old" "commit info $old" "tag create old $old"; do
		# shellcheck disable=SC2086 # words
		status_is 3 pando $verb
		contains stderr "$stderr" "was pruned"
	done
	equal "what expires" "$(pando commit r --format json -q --expire 1ms | json 'j["commit"]["expires_ms"] > 0')" True
	expired=$(pando history r -q --limit 1)
	# a VM's last commit stays, whatever it says
	status_is 0 pando prune
	equal "what went" "$stdout" ""
	contains stderr "$stderr" "1 in use"
	pando commit r -q --tag rule >/dev/null
	status_is 0 pando prune --dry-run
	equal "what would go" "$stdout" "$expired"
	status_is 0 pando prune -q
	equal "what went" "$stdout" "$expired"
	status_is 0 pando gc
	status_is 0 pando gc --cancel
	contains stderr "$stderr" "no gc is running"
	status_is 0 pando verify --repair
	contains stderr "$stderr" "0 chunks saved"
	status_is 0 pando verify
	status_is 0 pando run-commit rule -N rr --no-wait
	wait_until "what rr says" console_says rr 'fork n=[0-9]* .*memory=ok disk=ok'
	pando delete -y rr >/dev/null
	status_is 0 pando prune --older-than 1ms --keep-last 1 -l kind=nosuch
	equal "what has no such label" "$stdout" ""
	equal "a list of three" "$(pando commit list -q --limit 3)" "$(pando commit list -q | head -n 3)"
	equal "the list as JSON" "$(pando commit list --format json | json '[c["id"] for c in j["commits"]][:3]')" \
		"$(pando commit list --format json --limit 3 | json '[c["id"] for c in j["commits"]]')"
	for wrong in "prune x" "prune --keep-last 0" "prune --older-than never" "commit info --limit 3 x" \
		"commit list --expire 7d" "commit list --limit 0" "history --limit x"; do
		# shellcheck disable=SC2086 # words
		status_is 2 pando $wrong
	done
	pando delete -y r >/dev/null
}

bad_usage() {
	for wrong in "commit list x" "commit info" "commit delete" "commit a b" "commit -r a" "commit list -m x" \
		"run-commit" "run-commit a b" "tag" "tag create x" "tag nosuch" "diff a" "gc x" "verify a b" \
		"history a b" "run-commit x --count many" "commit history a" "disk export a -" "help commit nosuch" \
		"commit -- a -m x"; do
		# shellcheck disable=SC2086 # words
		status_is 2 pando $wrong
		[ -n "$stderr" ] || fail "no sentence for pando $wrong"
		equal "stdout of pando $wrong" "$stdout" ""
	done
	for absent in "commit info nosuch" "commit delete nosuch" "history nosuch" "verify nosuch" "diff nosuch nosuch" \
		"tag create x nosuch" "run-commit nosuch"; do
		# shellcheck disable=SC2086 # words
		status_is 3 pando $absent
		contains stderr "$stderr" nosuch
	done
}

# What hands know of other tools: what is not right here says what is.
a_name_of_the_wrong_kind_is_told_apart() {
	needs_kvm
	run_small -N v >/dev/null
	id=$(pando commit v -q --tag its-tag -l app/part=one --expire 7d -m "its message")
	status_is 3 pando info its-tag
	contains stderr "$stderr" "pando run-commit its-tag"
	status_is 3 pando reset its-tag
	contains stderr "$stderr" "pando run-commit its-tag"
	status_is 3 pando run-commit v
	contains stderr "$stderr" "pando branch v"
	status_is 3 pando commit prune
	contains stderr "$stderr" "pando help prune"
	status_is 2 pando verify its-tag its-tag
	contains stderr "$stderr" "takes one commit"
	status_is 2 pando commit v --expire 7days
	contains stderr "$stderr" "7d"
	status_is 4 pando commit rm its-tag
	contains stderr "$stderr" "was last committed as it"
	status_is 0 pando commit inspect its-tag
	contains "its labels" "$stdout" "app/part=one"
	lacks "its labels" "$stdout" "pando.expires"
	contains "what is left of 7 days" "$stdout" "expires in   7 d"
	equal "commit ls" "$(pando commit ls -q | grep -c "$id")" 1
	contains "tag ls" "$(pando tag ls)" its-tag
	pando env ls >/dev/null
	status_is 0 pando help commit list
	status_is 0 pando tag rm its-tag
	pando commit v -q >/dev/null
	status_is 4 pando commit delete "$id"
	contains stderr "$stderr" "pando commit delete -r"
	pando delete -y v >/dev/null
}

t a_commit_is_printed_and_nothing_else
t it_goes_on_after_the_vm_and_the_daemon_are_gone
t eight_at_once
t a_restored_vm_is_a_vm
t the_second_commit_writes_little
t a_commits_tree_is_drawn
t files_that_differ_are_told
t two_commits_of_one_vm_at_once
t tags_and_prefixes
t deletion_is_refused_by_name
t another_home_has_it_from_the_files
t a_cpu_feature_that_is_missing_is_named
t a_commit_of_another_format_version_is_refused
t commits_go_by_rule
t damage_is_named
t the_pool_is_filled_and_used
t kill_nine_while_committing
t kill_nine_while_spawning
t a_vm_deleted_while_it_is_committed
t flat_images_are_bounded
t a_name_of_the_wrong_kind_is_told_apart
t bad_usage
finish
