#!/bin/sh
# customize.sh ROOT SPEC FILES SCRUB
#
# mmdebstrap runs this when the packages of an image are installed in the folder ROOT. It copies the
# tree FILES over it, masks what the file SPEC names, and ends with the program SCRUB.
#
# Runs as root of mmdebstrap's user namespace (as real root where that built the image); touches
# nothing outside ROOT and starts no program of the image.
set -eu

root=$1 spec=$2 files=$3 scrub=$4
# shellcheck source=/dev/null
. "$spec"

# The tree comes from a checkout, whose modes depend on its owner's umask.
(cd "$files" && find . -type d) | while read -r d; do
	[ -d "$root/$d" ] || install -d -m 0755 "$root/$d"
done
(cd "$files" && find . -type f) | while read -r f; do
	mode=0644
	[ -x "$files/$f" ] && mode=0755
	rm -f "$root/$f"
	install -m "$mode" "$files/$f" "$root/$f"
done
for link in $LINKS; do
	at=$root${link%%>*}
	mkdir -p "${at%/*}"
	ln -sfn "${link#*>}" "$at"
done

for unit in $MASK_UNITS; do
	rm -f "$root/etc/systemd/system/$unit"
	ln -s /dev/null "$root/etc/systemd/system/$unit"
done
# "Wants" of what is masked is a log line at every boot.
find "$root/etc/systemd/system" -path '*.wants/*' | while read -r link; do
	if [ -L "$root/etc/systemd/system/${link##*/}" ]; then rm -f "$link"; fi
done
mkdir -p "$root/etc/systemd/system-generators"
for generator in $MASK_GENERATORS; do
	ln -sfn /dev/null "$root/etc/systemd/system-generators/$generator"
done
ln -sfn /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"

# OpenSSL draws from the kernel in every program that reads the system's configuration: of a section that is
# there twice both count.
if [ -e "$root/usr/lib/pando/openssl.cnf" ] && [ -e "$root/etc/ssl/openssl.cnf" ]; then
	printf '\n# Random numbers in machines that are forked alive.\n.include /usr/lib/pando/openssl.cnf\n' >>"$root/etc/ssl/openssl.cnf"
fi
# Python reads .pth files of dist-packages outside of virtual environments only, and this everywhere.
if [ -e "$root/usr/lib/python3/dist-packages/pando_random.py" ]; then
	for f in "$root"/etc/python3*/sitecustomize.py; do
		[ ! -e "$f" ] || cat >>"$f" <<'EOF'

# Random numbers in machines that are forked alive, in virtual environments too.
import sys
if "pando_random" not in sys.modules:
    sys.path.append("/usr/lib/python3/dist-packages")
    try:
        import pando_random
    except Exception:
        pass
    sys.path.remove("/usr/lib/python3/dist-packages")
EOF
	done
fi

# The kernel's command line names the root, and there is nothing else.
echo "# Empty on purpose: the kernel's command line names the root." >"$root/etc/fstab"

exec "$scrub" "$root"
