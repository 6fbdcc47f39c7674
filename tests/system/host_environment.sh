#!/bin/sh
# /etc/environment as pando-agent writes it, read by those who read it: pam_env itself, shells, and Python programs whose random
# numbers are kept apart by what golden images ship. No guest: the agent works below a folder.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

# Ends the agent of a test, whatever became of it.
end_agent() {
	[ ! -e "$work/agent.pid" ] || kill "$(cat "$work/agent.pid")" 2>/dev/null || :
}
trap 'end_agent; cleanup_work' EXIT

"$B/libexec/pando/pando-agent" --listen "unix:$work/agent.sock" --root "$work/root" 2>"$work/agent.log" &
echo $! >"$work/agent.pid"
mkdir -p "$work/root/etc"

# Says hello; the environment comes as JSON.
cat >"$work/hello.py" <<'P'
import json, os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
for _ in range(500):
    try:
        s.connect(sys.argv[1])
        break
    except OSError:
        time.sleep(0.01)
generation = os.urandom(16).hex()
s.sendall(json.dumps({"op": "hello", "id": "0a1b2c3d4e5f", "name": "x", "host_name": "x", "generation": generation,
    "kind": "new", "entropy": os.urandom(64).hex(), "wall_ns": time.time_ns(), "env": json.load(open(sys.argv[2]))}).encode() + b"\n")
f = s.makefile("rb")
assert json.loads(f.readline())["ok"]
while True:
    kind, _, _, n = __import__("struct").unpack("<BBHI", f.read(8))
    said = f.read(n)
    if kind == 39:
        break
    assert kind == 38, said
P

cat >"$work/values.py" <<'P'
values = {"PLAIN": "plain", "EMPTY": "", "BLANKS": " two  ", "TAB": "a\tb", "DOLLAR": "$HOME ${X} $(id)", "TICK": "`id`",
    "DOUBLE": 'say "yes"', "DOUBLE_END": '"', "SINGLE": "it's", "SINGLE_END": "'", "SINGLES": "'a' 'b'", "BACK": "a\\b\\\\c\\",
    "UTF8": "Žluťoučký kůň", "EQUALS": "a=b=c", "LONG": "x" * 1014, "SEMI": "a;b&c|d", "HOME_": "~/x", "PERCENT": "%n%%"}
held_back = {"HASH": "a#b", "LINES": "a\nPATH=/evil\n", "BOTH": "it's $x", "LONGER": "y" * 5000}
P
(cd "$work" && python3 -c 'import json, values as v
json.dump([k + "=" + x for k, x in (v.values | v.held_back).items()], open("env.json", "w"))')
python3 "$work/hello.py" "$work/agent.sock" "$work/env.json"

# pam_env of this host, called as a login does.
cat >"$work/pam.py" <<'P'
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
import values
pam = ctypes.CDLL("libpam.so.0")
talk = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
class Conv(ctypes.Structure):
    _fields_ = [("f", talk), ("p", ctypes.c_void_p)]
os.makedirs(sys.argv[1] + "/pam", exist_ok=True)
with open(sys.argv[1] + "/pam/pando-test", "w") as f:
    f.write("session required pam_env.so readenv=1 conffile=/dev/null user_readenv=0 envfile=%s/root/etc/environment\n" % sys.argv[1])
handle, conv = ctypes.c_void_p(), Conv(talk(lambda *a: 19), None)
r = pam.pam_start_confdir(b"pando-test", b"root", ctypes.byref(conv), (sys.argv[1] + "/pam").encode(), ctypes.byref(handle))
assert r == 0 and pam.pam_open_session(handle, 0) == 0, r
pam.pam_getenvlist.restype = ctypes.POINTER(ctypes.c_char_p)
seen, i = pam.pam_getenvlist(handle), 0
got = {}
while seen[i]:
    name, _, value = seen[i].decode().partition("=")
    got[name] = value
    i += 1
assert got == values.values, {k: got.get(k) for k in set(got) | set(values.values) if got.get(k) != values.values.get(k)}
P

pam_reads_what_was_given() {
	python3 -c 'import ctypes; ctypes.CDLL("libpam.so.0").pam_start_confdir' 2>/dev/null || skip "no PAM here that takes a folder"
	find /lib /usr/lib -name pam_env.so 2>/dev/null | grep -q . || skip "no pam_env here"
	python3 "$work/pam.py" "$work"
}

shells_read_what_was_given() {
	for shell in dash bash busybox; do
		command -v $shell >/dev/null || continue
		[ $shell != busybox ] || shell="busybox sh"
		env -i PATH="$PATH" $shell -c 'set -a
. "$1/root/etc/environment"
. "$1/root/etc/pando/environment"
exec python3 -c "
import os, sys
sys.path.insert(0, sys.argv[1])
import values
for k, v in (values.values | values.held_back).items():
    assert os.environ.get(k) == v, (k, os.environ.get(k), v)
" "$1"' sh "$work" || fail "$shell reads something else"
	done
}

# Each kind of draw of the module: the same again after the same seed, another one when the generation has changed meanwhile.
pythons_start_anew() {
	cat >"$work/draws.py" <<'P'
import os, sys
sys.path.insert(0, sys.argv[1])
import pando_random, random
path = os.environ["PANDO_GENERATION_FILE"]
def change():
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, os.urandom(16).hex().encode(), 0)
    os.close(fd)
random.seed(5)
random.gauss(0, 1)
state = random.getstate()
for draw in (lambda: random.random(), lambda: random.getrandbits(64), lambda: random.randint(0, 10**18),
        lambda: random.gauss(0, 1), lambda: random.choice(range(10**12)), lambda: random.randbytes(8),
        lambda: random.sample(range(10**6), 4), lambda: random.uniform(0, 1)):
    random.setstate(state)
    first = draw()
    random.setstate(state)
    assert draw() == first
    random.setstate(state)
    change()
    assert draw() != first
    # Once: what is seeded after that is the program's own affair.
    random.setstate(state)
    assert draw() == first
assert len({random.random() for _ in range(1000)}) == 1000
P
	PANDO_GENERATION_FILE=$work/root/run/pando/generation \
		python3 "$work/draws.py" "$here/../../golden/files/guest/usr/lib/python3/dist-packages"
	# Without an agent everything is as it was.
	PANDO_GENERATION_FILE=/nonexistent PYTHONPATH=$here/../../golden/files/guest/usr/lib/python3/dist-packages PYTHONDONTWRITEBYTECODE=1 \
		python3 -c 'import pando_random, random; random.seed(1); assert type(random._inst) is random.Random'
}

PYTHONDONTWRITEBYTECODE=1
export PYTHONDONTWRITEBYTECODE
it "pam_env reads what was given, and nothing else" pam_reads_what_was_given
it "shells read what was given, from both files" shells_read_what_was_given
it "Python's random starts anew when the generation changes" pythons_start_anew
finish
