#!/bin/sh
# modules.sh KERNEL_TREE OUTPUT PATTERN...
#
# Copies the modules whose path (below kernel/, without .ko and what follows) matches a PATTERN, and all
# that they depend on, to OUTPUT/usr/lib/modules/RELEASE, and makes there what modprobe reads. A PATTERN
# is the shell's; one that ends in "/" is a folder with all below it, one that ends in "/." a folder's own
# modules only. KERNEL_TREE is an unpacked linux-image package in which depmod has run.
set -eu

die() {
	echo "pando-golden: $*" >&2
	exit 1
}

[ $# -ge 3 ] || die "usage: modules.sh KERNEL_TREE OUTPUT PATTERN..."
tree=$1 output=$2
shift 2
set -f # patterns are for names of modules, not of files here

for modules in "$tree/usr/lib/modules" "$tree/lib/modules"; do
	[ ! -d "$modules" ] || release=$(ls "$modules")
	[ ! -e "$modules/${release-}/modules.dep" ] || break
done
modules=$modules/${release-}
[ -e "$modules/modules.dep" ] || die "$tree holds no modules.dep; has depmod run?"
place=$output/usr/lib/modules/$release
mkdir -p "$place"

while IFS=: read -r file needs; do
	name=${file#kernel/}
	name=${name%%.ko*}
	for pattern; do
		case $pattern in
		*/) pattern=$pattern* ;;
		*/.) [ "${name%/*}" != "${pattern%/.}" ] || pattern=$name ;;
		esac
		# shellcheck disable=SC2254 # a pattern is meant
		case $name in
		$pattern)
			# modules.dep names all that a module needs, not only what it names itself.
			printf '%s\n' "$file" $needs
			break
			;;
		esac
	done
done <"$modules/modules.dep" | sort -u >"$output/list"
[ -s "$output/list" ] || die "no module of $release is any of: $*"
tar -c -C "$modules" -T "$output/list" | tar -x -C "$place"
rm "$output/list"
for file in modules.order modules.builtin modules.builtin.modinfo; do
	[ ! -e "$modules/$file" ] || cp "$modules/$file" "$place/"
done
# depmod wants the system's modules at lib/modules, which in the guest is a link.
ln -s usr/lib "$output/lib"
depmod -b "$output" "$release" || die "depmod failed on the modules of $release"
rm "$output/lib"
