#!/usr/bin/env python3
"""What a Debian guest leaves in memory that it freed, by its settings: without KVM, in QEMU's own emulation and with
QEMU's balloon, so it says what the guest does, not what our VMM does (tests/bench/guests_memory.sh says that).

A process holds MIB of secrets and is killed. The guest's memory is a file here; compared with what it was when the process
was alive, the pages that differ and are not given back are what a branch would have copied: its own memory. Then: how many
pages hold a secret still.

    python3 tests/bench/guest_free.py [IMAGE FOLDER]        MIB=60 MEM=256 SETTINGS="1 0" ORDERS="4 0" PAUSE=12

The yardstick is MIB: what the process held.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

MIB = int(os.environ.get('MIB', '60'))
MEM = int(os.environ.get('MEM', '256'))
SETTINGS = os.environ.get('SETTINGS', '1 0').split()
ORDERS = os.environ.get('ORDERS', '4 0').split()
PAUSE = os.environ.get('PAUSE', '12')  # the guest's seconds; Linux reports after 2, in slices
PAGE = 4096
CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME', pathlib.Path.home() / '.cache')) / 'pando'  # pando-golden's
MARK = b'SeCr' + b'eT-of-'

# The marker is in no argument and no file: only the process that holds it makes it.
HOLD = f'''import mmap, time
m = mmap.mmap(-1, {MIB} << 20)
part = b'SeCr' + b'eT-of-' + b'a-process-'
for at in range(0, len(m), 4096):
    m[at:at + 32] = part + b'%012d' % at
open('/dev/shm/held', 'w').close()
time.sleep(1e6)
'''

INIT = f'''#!/bin/bash
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm
order=/sys/module/page_reporting/parameters/page_reporting_order
stop() {{ echo "STEP $*"; read -r _; }}
round() {{ # what
	rm -f /dev/shm/held
	python3 /hold.py & holder=$!
	until [ -e /dev/shm/held ]; do sleep 0.2; done
	sleep {PAUSE}
	stop "held $1"
	kill -9 $holder; wait $holder 2>/dev/null
	stop "ended $1"
	sleep {PAUSE}
	stop "settled $1"
}}
stty -echo
round none
modprobe virtio_balloon
sleep {PAUSE}
round "order=$(cat $order)"
for o in {' '.join(ORDERS)}; do
	echo $o >$order
	round "order=$o"
done
# What a commit could have done first: smaller blocks than usual for the time of a few reports.
echo 9 >$order
rm -f /dev/shm/held
python3 /hold.py & holder=$!
until [ -e /dev/shm/held ]; do sleep 0.2; done
sleep {PAUSE}
stop "held flush"
kill -9 $holder; wait $holder 2>/dev/null
echo 0 >$order
echo 1 >/proc/sys/vm/compact_memory
stop "ended flush"
sleep {PAUSE}
stop "settled flush"
echo o >/proc/sysrq-trigger
sleep 100
'''


def put(rootfs, name, text, work):
    path = work / 'put'
    path.write_text(text)
    subprocess.run(['debugfs', '-w', '-R', f'write {path} /{name}', rootfs], check=True, capture_output=True)
    subprocess.run(['debugfs', '-w', '-R', f'set_inode_field /{name} mode 0100755', rootfs], check=True,
                   capture_output=True)


def pages(path):
    """The pages of a file that are there; a hole is none."""
    fd = os.open(path, os.O_RDONLY)
    size, at, found = os.fstat(fd).st_size, 0, {}
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(fd, at, os.SEEK_HOLE)
        data = os.pread(fd, end - at, at)
        for i in range(0, len(data), PAGE):
            found[(at + i) // PAGE] = data[i:i + PAGE]
        at = end
    os.close(fd)
    return found


def run(image, init_on_free, work):
    rootfs, ram = work / 'rootfs', pathlib.Path('/dev/shm') / f'{work.name}.ram'
    shutil.copy(image / 'rootfs.ext4', rootfs)
    rootfs.chmod(0o600)
    put(rootfs, 'hold.py', HOLD, work)
    put(rootfs, 'measure', INIT, work)
    cmdline = ('console=ttyS0 root=/dev/vda rw rootflags=noinit_itable panic=-1 lsm=capability '
               'random.trust_cpu=on cryptomgr.notests audit=0 8250.nr_uarts=1 init=/measure '
               f'init_on_free={init_on_free} init_on_alloc=1')
    qemu = subprocess.Popen(
        ['qemu-system-x86_64', '-M', 'q35,memory-backend=ram', '-accel', 'tcg', '-cpu', 'max',
         '-smp', '1', '-m', str(MEM), '-object', f'memory-backend-file,id=ram,size={MEM}M,mem-path={ram},share=on',
         '-kernel', image / 'kernel', '-initrd', image / 'initrd', '-append', cmdline, '-nodefaults', '-no-user-config',
         '-display', 'none', '-no-reboot', '-serial', 'stdio',
         '-drive', f'if=none,id=d,file={rootfs},format=raw,cache=unsafe', '-device', 'virtio-blk-pci,drive=d',
         '-device', 'virtio-balloon-pci,free-page-reporting=on'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        before = {}
        for line in qemu.stdout:
            text = line.decode(errors='replace').strip()
            if os.environ.get('VERBOSE'):
                print('#', text, flush=True)
            if not text.startswith('STEP '):
                continue
            _, step, what = text.split(' ', 2)
            now = pages(ram)
            secrets = sum(MARK in p for p in now.values())
            if step == 'held':
                before, held = now, secrets
            else:
                own = sum(before.get(i) != p for i, p in now.items())
                print(f'init_on_free={init_on_free} {what:14} {step:8} own {own * PAGE / 2**20:7.1f} MiB   there '
                      f'{len(now) * PAGE / 2**20:7.1f} MiB   secrets {secrets:6} of {held}', flush=True)
            qemu.stdin.write(b'\n')
            qemu.stdin.flush()
    finally:
        qemu.kill()
        qemu.wait()
        ram.unlink(missing_ok=True)


def main():
    image = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else CACHE / 'images/default').resolve()
    print(f'A process of {MIB} MiB ended in a guest of {MEM} MiB ({image.name}); load {os.getloadavg()[0]:.1f}', flush=True)
    for init_on_free in SETTINGS:
        with tempfile.TemporaryDirectory(prefix='pando-free.') as folder:
            run(image, init_on_free, pathlib.Path(folder))


main()
