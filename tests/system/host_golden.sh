#!/bin/sh
# Images: what is in them, what must not be, and what a build leaves behind when things go wrong. Builds the default image
# (it is needed anyway; the first time that fetches packages), and looks into it without mounting it.
. "$(dirname "$0")/lib.sh"

golden=$B/libexec/pando/pando-golden
scrub=$B/share/pando/golden/scrub.sh
PATH=$PATH:/usr/sbin:/sbin
echo "${PANDO_IMAGES:-${XDG_CACHE_HOME:-$HOME/.cache}/pando/images}" >"$work/.watch-also"

# A small system to scrub: as much of one as the rules are about.
fake_root() {
	mkdir -p "$1/etc/ssh" "$1/var/lib/systemd" "$1/var/log/journal" "$1/var/cache/apt" "$1/root/.ssh" "$1/tmp" "$1/var/tmp" \
		"$1/var/lib/apt/lists" "$1/run" "$1/etc/apt"
	echo key >"$1/etc/ssh/ssh_host_ed25519_key"
	echo key >"$1/etc/ssh/ssh_host_rsa_key.pub"
	echo moduli >"$1/etc/ssh/moduli"
	echo 0123456789abcdef0123456789abcdef >"$1/etc/machine-id"
	echo seed >"$1/var/lib/systemd/random-seed"
	echo line >"$1/var/log/journal/system.journal"
	echo list >"$1/var/lib/apt/lists/archive_Packages"
	echo "deb http://mirror.invalid/debian trixie main" >"$1/etc/apt/sources.list"
	echo key >"$1/root/.ssh/authorized_keys"
	printf 'root::19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n' >"$1/etc/shadow"
}

scrub_takes_out_who_a_machine_is_and_where_it_came_from() {
	fake_root "$work/r1"
	"$scrub" "$work/r1"
	[ -z "$(ls "$work/r1/etc/ssh" | grep ssh_host)" ]
	[ -e "$work/r1/etc/ssh/moduli" ]
	[ -e "$work/r1/etc/machine-id" ]
	[ ! -s "$work/r1/etc/machine-id" ]
	for gone in var/lib/systemd/random-seed var/log/journal/system.journal var/lib/apt/lists/archive_Packages etc/apt/sources.list \
		root/.ssh; do
		[ ! -e "$work/r1/$gone" ] || { echo "$gone is still there"; return 1; }
	done
	grep -q '^root:\*:' "$work/r1/etc/shadow"
	[ -d "$work/r1/var/log/journal" ]
}

scrub_refuses_the_running_system_and_what_is_no_system() {
	not "$scrub" / 2>"$work/e"
	grep -q 'running system' "$work/e"
	mkdir "$work/empty"
	not "$scrub" "$work/empty" 2>"$work/e"
	grep -q 'no system' "$work/e"
}

scrub_tells_of_an_account_that_needs_no_password() {
	fake_root "$work/r2"
	echo 'guest::19000:0:99999:7:::' >>"$work/r2/etc/shadow"
	not "$scrub" "$work/r2" 2>"$work/e"
	grep -q '"guest"' "$work/e"
}

wrong_words_are_status_two_with_a_sentence() {
	for words in "" "imag" "image --suite" "image --name .x" "image --name default" "image --suite Trixie!" "image extra" \
		"image --package" "image --package=" "image --package No_Name" "image --package=-x" "image --package a,b" "machine --package curl"; do
		status=0
		# shellcheck disable=SC2086 # words
		"$golden" $words >"$work/o" 2>"$work/e" || status=$?
		[ $status -eq 2 ] && [ ! -s "$work/o" ] && [ "$(wc -l <"$work/e")" = 1 ] || { echo "\"$words\": $status"; cat "$work/e"; return 1; }
	done
}

a_suite_that_is_none_is_named_and_leaves_nothing() {
	status=0
	XDG_CACHE_HOME=$work/cache PANDO_IMAGES=$work/images "$golden" image --suite nosuchsuite >"$work/o" 2>"$work/e" || status=$?
	[ $status -eq 1 ]
	grep -q '"nosuchsuite"' "$work/e"
	[ -z "$(ls -A "$work/images")" ]
	[ "$(ls -A "$work/cache/pando/golden")" = lock ]
}

# A name that apt would take for something else than a package is none either.
a_package_that_is_none_is_named_and_leaves_nothing() {
	for package in no-such-package-at-all libssl.+ nodejs-; do
		status=0
		PANDO_IMAGES=$work/no-packages "$golden" image --name more --package "$package" >"$work/o" 2>"$work/e" || status=$?
		[ $status -eq 1 ] && [ ! -s "$work/o" ]
		grep -q "no package \"$package\"" "$work/e"
		[ -z "$(ls -A "$work/no-packages")" ]
	done
}

a_package_more_is_in_that_image_alone() {
	PANDO_IMAGES=$work/more "$golden" image --name more --package bc --package=dc --package bc >"$work/folder.more"
	grep -q '^bc ' "$(cat "$work/folder.more")/packages"
	grep -q '^dc ' "$(cat "$work/folder.more")/packages"
	image=$(cat "$work/folder.more")
	e2fsck -fn "$image/rootfs.ext4"
	inside /usr/bin/bc >"$work/bc"
	[ -s "$work/bc" ]
	# The order and number of names are all one, and a second run builds nothing.
	PANDO_IMAGES=$work/more "$golden" image --name more --package dc --package bc >"$work/again" 2>"$work/e"
	cmp "$work/folder.more" "$work/again"
	[ ! -s "$work/e" ]
	not grep -q '^bc ' "$(cat "$work/folder")/packages"
	[ "$("$golden" image)" = "$(cat "$work/folder")" ]
}

the_default_image_is_built_and_then_only_looked_up() {
	"$golden" image >"$work/folder"
	# A build needs this program; a look does not.
	mkdir "$work/instead"
	printf '#!/bin/sh\necho "$0 $*" >>%s\nexit 1\n' "$work/was_built" >"$work/instead/debugfs"
	chmod +x "$work/instead/debugfs"
	[ "$(PATH=$work/instead:$PATH "$golden" image 2>"$work/e")" = "$(cat "$work/folder")" ]
	[ ! -s "$work/e" ]
	not test -e "$work/was_built"
	# and so it does, where there is none
	not env PATH="$work/instead:$PATH" PANDO_IMAGES="$work/unbuilt" "$golden" image >"$work/unbuilt.out" 2>&1
	grep -q debugfs "$work/was_built"
	[ "$(readlink -f "$(dirname "$(cat "$work/folder")")/default")" = "$(readlink -f "$(cat "$work/folder")")" ]
}

# A file's content from the image; fails when it is not there.
inside() { # path
	debugfs -R "cat $1" "$image/rootfs.ext4" 2>"$work/debugfs.err"
	not grep -q 'File not found' "$work/debugfs.err"
}
absent() {
	debugfs -R "stat $1" "$image/rootfs.ext4" 2>&1 | grep -q 'File not found'
}

its_file_system_is_sound_and_holds_the_agent_of_this_build() {
	image=$(cat "$work/folder")
	e2fsck -fn "$image/rootfs.ext4"
	where=$(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$B/share/pando/golden/pando-agent.service")
	inside "$where" >"$work/agent"
	cmp "$work/agent" "$B/share/pando/golden/pando-agent"
	debugfs -R "stat /usr/bin/pando-agent" "$image/rootfs.ext4" 2>/dev/null | grep -qF "$where"
	debugfs -R "stat $where" "$image/rootfs.ext4" 2>/dev/null >"$work/stat"
	grep -q 'Mode:  0755' "$work/stat"
	grep -q 'User:     0   Group:     0 ' "$work/stat"
	[ "$(stat -c %a "$image/rootfs.ext4")" = 444 ]
}

it_has_no_identity_no_password_and_no_trace_of_the_build() {
	image=$(cat "$work/folder")
	for gone in /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_rsa_key /var/lib/systemd/random-seed /etc/apt/sources.list \
		/etc/apt/apt.conf.d/99mmdebstrap /etc/resolv.conf /root/.ssh /var/lib/dbus/machine-id; do
		absent "$gone" || { echo "$gone is in the image"; return 1; }
	done
	inside /etc/machine-id >"$work/id"
	[ ! -s "$work/id" ]
	inside /etc/shadow >"$work/shadow"
	not grep -vE '^[^:]+:[*!]' "$work/shadow"
	inside /etc/passwd | grep -q '^root:'
}

its_initramfs_loads_modules_after_what_they_need() {
	image=$(cat "$work/folder")
	mkdir "$work/initramfs"
	(cd "$work/initramfs" && cpio -id --quiet --no-absolute-filenames <"$image/initrd")
	[ -x "$work/initramfs/init" ]
	: >"$work/loaded"
	while read -r module; do
		[ -s "$work/initramfs/modules/$module" ]
		for dep in $(modinfo -F depends "$work/initramfs/modules/$module" | tr , ' '); do
			grep -qx "$(echo "$dep" | tr - _)" "$work/loaded" || { echo "$module comes before $dep"; return 1; }
		done
		echo "${module%.ko}" | tr - _ >>"$work/loaded"
	done <"$work/initramfs/modules/load"
	grep -qx ext4 "$work/loaded"
	grep -qx virtio_blk "$work/loaded"
	grep -qx virtio_balloon "$work/loaded"
	grep -q '"cmdline":"[^"]* init_on_free=1 ' "$image/image.json"
}

# As modprobe will see them: all that a module needs is there.
modules_that_containers_and_tunnels_need_are_on_its_disk() {
	image=$(cat "$work/folder")
	release=$(sed 's/.*"kernel_release":"\([^"]*\)".*/\1/' "$image/image.json")
	mkdir "$work/disk"
	debugfs -R "rdump /usr/lib/modules $work/disk" "$image/rootfs.ext4" 2>/dev/null
	ln -s . "$work/disk/lib"
	for module in overlay br_netfilter nf_tables nft_chain_nat nf_nat xt_MASQUERADE ip_tables iptable_nat ip6table_nat xt_conntrack \
		ip_vs veth bridge macvlan ipvlan vxlan dummy tun wireguard l2tp_ppp xfrm_user esp4 sch_htb cls_u32 act_mirred \
		dm_mod dm_crypt dm_thin_pool loop nbd zram btrfs xfs squashfs isofs nfs cifs 9p virtiofs vhost_net vhost_vsock uinput binfmt_misc; do
		modprobe -d "$work/disk" -S "$release" --show-depends "$module" >"$work/needs" || fail "$module"
		sed -n 's/^insmod \([^ ]*\).*/\1/p' "$work/needs" >"$work/needed"
		while read -r file; do
			[ -s "$file" ] || fail "$module needs $file"
		done <"$work/needed"
	done
	sed 's/: */\n/; s/ /\n/g' "$work/disk/modules/$release/modules.dep" | sed '/^$/d' | sort -u >"$work/needed"
	[ "$(wc -l <"$work/needed")" -gt 500 ]
	(cd "$work/disk/modules/$release" && xargs ls -d <"$work/needed" >/dev/null)
	# By an alias, as the kernel asks for it.
	for alias in fs-overlay fs-btrfs net-pf-15 rtnl-link-wireguard char-major-10-200; do
		modprobe -d "$work/disk" -S "$release" --show-depends "$alias" >/dev/null || fail "$alias"
	done
}

opening_a_device_loads_its_module() {
	grep -qx 'net/tun c 10 200 0666' "$work/initramfs/modules/devices"
	grep -qx 'fuse c 10 229 0666' "$work/initramfs/modules/devices"
	grep -qx 'loop-control c 10 237 0600' "$work/initramfs/modules/devices"
	not grep -vE '^[a-z/-]+ [bc] [0-9]+ [0-9]+ 0[0-7]{3}$' "$work/initramfs/modules/devices"
}

it_has_the_programs_that_scripts_expect() {
	image=$(cat "$work/folder")
	for program in /bin/ps /bin/pgrep /bin/free /bin/killall /bin/lsof /bin/column /sbin/ip /bin/ss /bin/ping /bin/nc.openbsd /bin/curl \
		/bin/wget /bin/git /bin/rsync /bin/less /bin/vim.tiny /bin/file /bin/jq /bin/bzip2 /bin/xz /bin/zip /bin/unzip /bin/sudo /bin/python3 \
		/bin/gcc /bin/make /bin/patch /bin/tmux /bin/ssh /bin/hostname /bin/openssl /sbin/modprobe; do
		debugfs -R "stat /usr$program" "$image/rootfs.ext4" 2>/dev/null | grep -qE 'Type: (regular|symlink)' || fail "/usr$program is not there"
	done
	inside /etc/ssl/certs/ca-certificates.crt | grep -q 'BEGIN CERTIFICATE'
	inside /etc/hosts | grep -q '^127\.0\.1\.1'
	inside /etc/default/locale | grep -qx 'LANG=C.UTF-8'
	inside /etc/locale.conf | grep -qx 'LANG=C.UTF-8'
	# Half of a default disk is its user's.
	debugfs -R stats "$image/rootfs.ext4" 2>/dev/null | awk '/^Free blocks:/ { free = $3 } /^Block count:/ { all = $3 }
		END { printf "%d of %d MiB are free\n", free / 256, all / 256; exit !(free * 10 >= all * 4) }'
}

what_keeps_random_numbers_apart_is_in_it() {
	image=$(cat "$work/folder")
	for f in openssl.cnf openssl-random.so node-random.cjs node-random.node; do
		inside "/usr/lib/pando/$f" >"$work/random"
		cmp "$work/random" "$B/share/pando/golden/files/guest/usr/lib/pando/$f"
	done
	inside /etc/ssl/openssl.cnf | tail -n 1 | grep -qx '.include /usr/lib/pando/openssl.cnf'
	inside "$(debugfs -R 'ls /etc' "$image/rootfs.ext4" 2>/dev/null | grep -o 'python3\.[0-9]*' | sed 's#.*#/etc/&/sitecustomize.py#')" |
		grep -q 'import pando_random'
	inside /etc/systemd/system.conf.d/pando.conf | grep -qx 'DefaultEnvironment=NODE_OPTIONS=--require=/usr/lib/pando/node-random.cjs'
}

init_is_no_command() {
	status=0
	"$B/share/pando/golden/init" 2>"$work/e" || status=$?
	[ $status -eq 2 ]
	grep -q 'first process' "$work/e"
}

two_builds_at_once_make_one_image() {
	for i in 1 2; do
		PANDO_IMAGES=$work/twice "$golden" image >"$work/twice.$i" 2>"$work/twice.$i.err" &
		eval "pid$i=\$!"
	done
	# shellcheck disable=SC2154 # set by the eval
	wait "$pid1"
	# shellcheck disable=SC2154
	wait "$pid2"
	cmp "$work/twice.1" "$work/twice.2"
	[ "$(find "$work/twice" -mindepth 1 -maxdepth 1 -type d | wc -l)" = 1 ]
}

a_killed_build_leaves_nothing_that_looks_like_an_image() {
	for after in 0.2 0.6 1.2; do
		PANDO_IMAGES=$work/killed setsid "$golden" image >/dev/null 2>&1 &
		pid=$!
		sleep $after
		kill -KILL -- "-$pid" 2>/dev/null || true
		wait $pid || true
		for f in "$work/killed"/*; do
			[ ! -e "$f" ] || [ -e "$f/image.json" ] || { echo "$f is half an image"; return 1; }
		done
	done
	folder=$(PANDO_IMAGES=$work/killed "$golden" image)
	e2fsck -fn "$folder/rootfs.ext4"
	[ -z "$(find "$work/killed" -name '.new-*')" ]
}

t scrub_takes_out_who_a_machine_is_and_where_it_came_from
t scrub_refuses_the_running_system_and_what_is_no_system
t scrub_tells_of_an_account_that_needs_no_password
t wrong_words_are_status_two_with_a_sentence
t init_is_no_command
t the_default_image_is_built_and_then_only_looked_up
t its_file_system_is_sound_and_holds_the_agent_of_this_build
t it_has_no_identity_no_password_and_no_trace_of_the_build
t its_initramfs_loads_modules_after_what_they_need
t modules_that_containers_and_tunnels_need_are_on_its_disk
t opening_a_device_loads_its_module
t it_has_the_programs_that_scripts_expect
t what_keeps_random_numbers_apart_is_in_it
t a_package_that_is_none_is_named_and_leaves_nothing
t a_package_more_is_in_that_image_alone
t two_builds_at_once_make_one_image
t a_killed_build_leaves_nothing_that_looks_like_an_image
t a_suite_that_is_none_is_named_and_leaves_nothing
finish
