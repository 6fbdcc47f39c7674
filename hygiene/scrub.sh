#!/bin/sh
# scrub.sh ROOT: takes out of the system that lies in the folder ROOT what must not be the same in two
# machines, and what tells about the machine it was made on. It says nothing when all is well, and
# fails with a sentence when something that had to go is still there.
#
# Runs with the rights of whoever owns ROOT; never on a system that runs: "/" is refused.
set -eu

die() {
	echo "scrub: $*" >&2
	exit 1
}

[ $# -eq 1 ] || die "usage: scrub.sh ROOT"
root=$(cd "$1" 2>/dev/null && pwd -P) || die "$1 is no folder"
[ "$root" != / ] || die "/ is the running system; give the folder of an image"
[ -d "$root/etc" ] || die "$root has no etc folder; it holds no system"

# Everything below a folder goes, the folder stays.
empty() {
	[ ! -L "$root/$1" ] && [ -d "$root/$1" ] || return 0
	find "$root/$1" -mindepth 1 -delete
}

# The files below a folder go; packages own the folders, with modes that matter.
empty_files() {
	[ ! -L "$root/$1" ] && [ -d "$root/$1" ] || return 0
	find "$root/$1" -mindepth 1 ! -type d -delete
}

# Who this machine is.
rm -f "$root"/etc/ssh/ssh_host_*_key "$root"/etc/ssh/ssh_host_*_key.pub
: >"$root/etc/machine-id"
chmod 0644 "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed" \
	"$root/var/lib/systemd/credential.secret" "$root/etc/hostid"
rm -f "$root"/var/lib/dhcp/* "$root"/var/lib/NetworkManager/secret_key \
	"$root"/var/lib/systemd/network/* 2>/dev/null || true

# Who may come in. The password field of root becomes "*": no password matches it.
if [ -f "$root/etc/shadow" ]; then
	sed -i 's/^root:[^:]*:/root:*:/' "$root/etc/shadow"
	chmod 0640 "$root/etc/shadow"
fi
rm -f "$root/etc/shadow-" "$root/etc/passwd-" "$root/etc/group-" "$root/etc/gshadow-" \
	"$root/etc/subuid-" "$root/etc/subgid-"
rm -rf "$root/root/.ssh"
rm -f "$root/etc/pando/authorized_keys"
rm -f "$root/root/.bash_history" "$root/root/.lesshst" "$root/root/.python_history"

# Where it came from: package lists, caches, logs, the builder's apt configuration and resolver.
empty var/lib/apt/lists
empty_files var/cache
empty_files var/log
empty_files var/backups
empty tmp
empty var/tmp
empty run
rm -f "$root/etc/apt/sources.list" "$root"/etc/apt/sources.list.d/* \
	"$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/resolv.conf" \
	"$root/etc/.pwd.lock" "$root/.dockerenv"
for folder in etc var/lib/dpkg; do
	[ ! -d "$root/$folder" ] ||
		find "$root/$folder" -type f \( -name '*.dpkg-old' -o -name '*.dpkg-dist' -o -name '*-old' \) -delete
done
chmod 1777 "$root/tmp" "$root/var/tmp"

# Say so rather than hope so.
left=$(find "$root/etc/ssh" -name 'ssh_host_*_key*' 2>/dev/null | head -n 1)
[ -z "$left" ] || die "$left is still there"
[ ! -s "$root/etc/machine-id" ] || die "$root/etc/machine-id is not empty"
open=$(awk -F: '$2 !~ /^[*!]/ { print $1 }' "$root/etc/shadow" 2>/dev/null || true)
[ -z "$open" ] || die "the account \"$open\" has a password or needs none"
