#!/bin/sh
# make install: DESTDIR and PREFIX, and what lies there runs from there.
# shellcheck disable=SC2329,SC2317
. "$(dirname "$0")/lib.sh"
PANDO_IMAGES=$work/images
export PANDO_IMAGES

install_honours_destdir_and_prefix() {
	status_is 0 make -s B="$B" DESTDIR="$work/dest" PREFIX=/opt/pando install
	for f in bin/pando bin/pandod libexec/pando/pando-vmm libexec/pando/pando-agent; do
		[ -x "$work/dest/opt/pando/$f" ] || fail "$f is not there or not executable"
	done
	# everything of the build is there, and nothing outside the prefix
	(cd "$B" && find bin libexec share ! -type d | sort) >"$work/built"
	(cd "$work/dest/opt/pando" && find . ! -type d | sed 's|^\./||' | sort) >"$work/installed"
	comm -13 "$work/built" "$work/installed" >"$work/more"
	[ ! -s "$work/more" ] || fail "installed but not built: $(cat "$work/more")"
	equal "the number of files elsewhere" "$(find "$work/dest" ! -type d ! -path "$work/dest/opt/pando/*" | wc -l)" 0
	# twice is the same
	status_is 0 make -s B="$B" DESTDIR="$work/dest" PREFIX=/opt/pando install
}

an_installed_pando_runs_from_where_it_lies() {
	needs_kvm
	mv "$work/dest/opt/pando" "$work/moved"
	pando() { timeout -k 5 120 "$work/moved/bin/pando" "$@"; }
	status_is 0 pando version
	status_is 0 run_small -N a
	case $(readlink "/proc/$(info a 'j["pid"]')/exe") in
	"$work/moved/"*) ;;
	*) fail "its VMM is another: $(readlink "/proc/$(info a 'j["pid"]')/exe")" ;;
	esac
	status_is 0 pando delete -y a
}

t install_honours_destdir_and_prefix
t an_installed_pando_runs_from_where_it_lies
finish
