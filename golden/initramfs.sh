#!/bin/sh
# initramfs.sh KERNEL_TREE INIT OUTPUT DISK_MODULES MODULE...
#
# Packs an initramfs (cpio, newc, uncompressed: unpacking then costs one copy) that holds INIT, the
# MODULEs with all they depend on, uncompressed and stripped, and modules/load, the order to load them in.
# KERNEL_TREE is an unpacked linux-image package in which depmod has run. A MODULE that the kernel has
# built in needs no file; one that ends in "?" may be missing. DISK_MODULES is the folder of the modules that
# the root will hold, or "-": modules/devices tells INIT which nodes in /dev load one when they are opened.
set -eu

die() {
	echo "pando-golden: $*" >&2
	exit 1
}

[ $# -ge 4 ] || die "usage: initramfs.sh KERNEL_TREE INIT OUTPUT DISK_MODULES MODULE..."
tree=$1 init=$2 output=$3 disk=$4
shift 4

for modules in "$tree"/usr/lib/modules/* "$tree"/lib/modules/*; do
	[ -e "$modules/modules.dep" ] && break
done
[ -e "$modules/modules.dep" ] || die "$tree holds no modules.dep; has depmod run?"

work=$(mktemp -d "${TMPDIR:-/tmp}/pando-initramfs.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$work/root/modules" "$work/root/dev" "$work/root/proc" "$work/root/root"
install -m 0755 "$init" "$work/root/init"
: >"$work/order"

for module; do
	name=${module%\?}
	# The kernel takes - and _ in a module's name for the same.
	pattern=$(printf '%s' "$name" | sed 's/[-_]/[-_]/g')
	line=$(grep -E "^([^:]*/)?$pattern\.ko(\.xz|\.zst|\.gz)?:" "$modules/modules.dep" || true)
	if [ -z "$line" ]; then
		grep -qE "/$pattern\.ko$" "$modules/modules.builtin" && continue
		[ "$module" != "$name" ] && continue
		die "the kernel ${modules##*/} has no module $name, neither as a file nor built in"
	fi
	# modules.dep names what a module needs, what is needed first coming last.
	# shellcheck disable=SC2086 # the words of the line are meant
	set -- ${line#*:}
	reversed=
	for dep; do
		reversed="$dep $reversed"
	done
	for dep in $reversed "${line%%:*}"; do
		grep -qxF "$dep" "$work/order" || echo "$dep" >>"$work/order"
	done
done

while read -r file; do
	base=${file##*/}
	name=${base%%.ko*}.ko
	case $base in
	*.xz) xz -dc "$modules/$file" ;;
	*.zst) zstd -qdc "$modules/$file" ;;
	*.gz) gzip -dc "$modules/$file" ;;
	*) cat "$modules/$file" ;;
	esac >"$work/root/modules/$name" || die "module $file does not unpack"
	# Without their signatures and type information: nothing enforces the former (the package's own
	# signature was checked when it was fetched), and checking it is a quarter of a boot's work.
	objcopy --strip-debug --remove-section=.BTF --remove-section=.BTF.base "$work/root/modules/$name" ||
		die "module $file is no object file that objcopy knows"
	echo "$name" >>"$work/root/modules/load"
done <"$work/order"

# depmod(8) lists "MODULE NODE TYPEMAJOR:MINOR". In the place of udev's rules: who may have a tunnel or a
# file system of one's own is asked when it is made, and not by the node's mode.
if [ "$disk" != - ]; then
	{
		sed 's/^#.*//; s/^[^ ]* \([^ ]*\) \([bc]\)\([0-9]*\):\([0-9]*\)$/\1 \2 \3 \4/' "$disk/modules.devname"
		! grep -q '/fuse\.ko$' "$disk/modules.builtin" || echo "fuse c 10 229"
	} | awk 'NF == 4 { print $0, $1 == "fuse" || $1 == "net/tun" ? "0666" : "0600" }' | LC_ALL=C sort -u >"$work/root/modules/devices"
fi

find "$work/root" -exec touch -h -d @"${SOURCE_DATE_EPOCH:-0}" {} +
(cd "$work/root" && find . | LC_ALL=C sort | cpio --quiet --reproducible -R 0:0 -H newc -o) >"$output.new" ||
	die "the initramfs cannot be written to $output (is the disk full?)"
mv "$output.new" "$output"
