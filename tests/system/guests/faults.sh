# Sourced by ../guests.sh: what breaks, and what must not break with it.

one_vmm_is_killed() {
	pando branch g -q --count 2 -n victim
	kill -9 "$(vm_field victim-0 pid)"
	wait_until "victim-0 is seen to have failed" state_is victim-0 failed
	contains "the reason" "$(vm_field victim-0 reason)" kill
	status_is 0 pando execute victim-1 -- true
	status_is 0 pando execute g -- true
	status_is 125 pando execute victim-0 -- true
	contains "the error" "$stderr" victim-0
	pando delete -y -q victim-0 victim-1
}

pandod_is_killed() {
	pando branch g -q -n survivor
	pando execute survivor -- sh -c 'echo begun; until [ -e /root/go ]; do sleep 0.1; done; echo still here' >"$work/survivor" &
	reader=$!
	wait_until "the stream is open" grep -q begun "$work/survivor"
	pando status -q >"$work/status.before"
	kill -9 "$(pandod_pid)"
	pando status -q >"$work/status.after"
	diff "$work/status.before" "$work/status.after"
	pando execute survivor -- touch /root/go
	wait $reader
	equal "the stream that was open" "$(cat "$work/survivor")" "$(printf 'begun\nstill here')"
	equal "state" "$(vm_field survivor state)" running
	pando execute survivor -- true
	pando branch survivor -q -n grandchild
	pando execute grandchild -- true
	pando delete -y -q -r survivor
	status_is 3 pando info grandchild
}

writer_has_no_room() {
	[ "$(info writer '(j["state"], "no room" in (j["reason"] or ""))')" = "('paused', True)" ]
}

# g stands still meanwhile: with it, which of the two is paused first could not be told.
host_disk_is_full() {
	[ "$own_filesystem" = yes ] || skip "needs root, to mount a small file system"
	pando branch g -q -n writer
	pando pause g -q
	# All but 30 MB.
	free_kib=$(df -k --output=avail "$PANDO_HOME" | tail -n 1)
	fallocate -l "$((free_kib - 30000))K" "$PANDO_HOME/filler"
	pid=$(pandod_pid)
	pando execute writer -- sh -c 'dd if=/dev/urandom of=/root/fill bs=1M count=100 conv=fsync && sha256sum /root/fill >/root/sum' \
		>"$work/dd" 2>&1 &
	dd=$!
	wait_until "the writer is paused" writer_has_no_room
	contains "status" "$(pando status)" '"writer" is paused: the host has no room'
	rm "$PANDO_HOME/filler"
	wait $dd || fail "dd in the guest: $(cat "$work/dd")"
	equal "state" "$(vm_field writer state)" running
	status_is 0 pando execute writer -- sh -c 'sync && echo 3 >/proc/sys/vm/drop_caches && sha256sum -c /root/sum'
	pando resume g -q
	status_is 0 pando execute g -- sh -c 'echo more >/root/more && sync'
	equal "pandod" "$(pandod_pid)" "$pid"
	pando delete -y -q writer
}

garbage_on_the_socket() {
	pid=$(pandod_pid)
	i=0
	while [ $i -lt 20 ]; do
		head -c 5000 /dev/urandom | timeout 300 socat -t 1 - "UNIX-CONNECT:$PANDO_HOME/pandod.sock" >/dev/null 2>&1 || :
		i=$((i + 1))
	done
	printf 'POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n' |
		timeout 300 socat -t 1 - "UNIX-CONNECT:$PANDO_HOME/pandod.sock" >/dev/null 2>&1 || :
	equal "pandod" "$(pandod_pid)" "$pid"
	status_is 0 pando status
}

wrong_kernels_and_disks() {
	head -c 100000 /dev/urandom >"$work/nokernel"
	status_is 2 pando run --kernel "$work/nokernel" --no-wait
	contains "the error" "$stderr" bzImage
	: >"$work/empty"
	status_is 2 pando run --rootfs "$work/empty" --no-wait
	images=${PANDO_IMAGES:-${XDG_CACHE_HOME:-$HOME/.cache}/pando/images}
	head -c 10000000 "$images/default/rootfs.ext4" >"$work/cut"
	status_is 2 pando run --rootfs "$work/cut" --no-wait
	contains "the error" "$stderr" "$work/cut"
	rm -f "$work/cut" "$work/empty" "$work/nokernel"
}

powers_off() {
	pando branch g -q -n off
	pando execute off -- systemctl poweroff >/dev/null 2>&1 || :
	wait_until "off has stopped" state_is off stopped
	pando delete -y -q off
}

it "killing one VMM ends that VM only" one_vmm_is_killed
it "killing pandod loses nothing" pandod_is_killed
it "a full disk under the guest pauses it, and with room it goes on and has lost nothing" host_disk_is_full
it "garbage on pandod's socket does it no harm" garbage_on_the_socket
it "a kernel that is none and a cut disk are refused by name" wrong_kernels_and_disks
it "a guest that powers off is stopped" powers_off
