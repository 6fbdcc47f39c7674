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

# A machine that is forked alive, as a process of it sees it: fork(2) without another process id, by which OpenSSL would
# notice, and in one of both another generation.
make_as_if_branched() {
	cat >"$work/same_pid.c" <<'C'
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int getpid(void) { return 42; }
/* V8 keeps its code out of forks, which a machine's fork takes along. */
int madvise(void *at, size_t len, int advice) { return advice == MADV_DONTFORK ? 0 : (int)syscall(SYS_madvise, at, len, advice); }
C
	cat >"$work/fork.c" <<'C'
#include <unistd.h>
typedef void *env, *value;
int napi_create_function(env, const char *, unsigned long, value (*)(env, value), void *, value *);
int napi_create_int32(env, int, value *);
static value branch(env e, value info) { value v; (void)info; napi_create_int32(e, (int)fork(), &v); return v; }
value napi_register_module_v1(env e, value exports);
value napi_register_module_v1(env e, value exports) { (void)exports; napi_create_function(e, "branch", 6, branch, 0, &exports); return exports; }
C
	cc -D_GNU_SOURCE -shared -fPIC -o "$work/same_pid.so" "$work/same_pid.c"
	cc -shared -fPIC -o "$work/fork.node" "$work/fork.c"
	mkdir -p "$work/lib"
	cp "$B/share/pando/golden/files/guest/usr/lib/pando"/* "$work/lib/"
	sed "s#/usr/lib/pando#$work/lib#" "$B/share/pando/golden/files/guest/usr/lib/pando/openssl.cnf" >"$work/lib/openssl.cnf"
	printf '%032d\n' 1 >"$work/generation"
}

# Both lines of draws of one process that was branched: word by word the same, or none.
equal_words() { # file
	[ "$(wc -l <"$1")" = 2 ] || fail "these are not two lines of draws: $(cat "$1")"
	awk '{ for (i = 1; i <= NF; i++) { if (NR == 1) w[i] = $i; else n += w[i] == $i } } END { print n + 0 }' "$1"
}

openssl_draws_apart() {
	make_as_if_branched
	cat >"$work/draw.py" <<'P'
import os, ssl
ssl.RAND_bytes(16)
child = os.fork()
if child:
    os.waitpid(child, 0)
os.write(1, (ssl.RAND_bytes(16).hex() + " " + ssl.RAND_bytes(100000).hex()[:40] + "\n").encode())
P
	python3 -c 'import ssl; assert ssl.OPENSSL_VERSION_INFO >= (3, 0)' 2>/dev/null || skip "no Python with OpenSSL 3 here"
	LD_PRELOAD=$work/same_pid.so python3 "$work/draw.py" >"$work/as_it_is"
	equal "draws that are the same without" "$(equal_words "$work/as_it_is")" 2
	OPENSSL_CONF=$work/lib/openssl.cnf LD_PRELOAD=$work/same_pid.so python3 "$work/draw.py" >"$work/with"
	equal "draws that are the same with it" "$(equal_words "$work/with")" 0
	# Keys too, and what was there goes on.
	command -v openssl >/dev/null || return 0
	OPENSSL_CONF=$work/lib/openssl.cnf openssl list -random-instances >"$work/instances"
	[ "$(grep -c 'PANDO-KERNEL @ pando' "$work/instances")" = 3 ]
	OPENSSL_CONF=$work/lib/openssl.cnf openssl genpkey -algorithm ed25519 | grep -q 'PRIVATE KEY'
	OPENSSL_CONF=$work/lib/openssl.cnf openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout /dev/null 2>/dev/null | grep -q CERTIFICATE
}

nodes_draw_apart() {
	command -v node >/dev/null || skip "no Node here"
	make_as_if_branched
	cat >"$work/draw.js" <<'J'
const crypto = require('crypto'), fs = require('fs'), file = process.env.PANDO_GENERATION_FILE;
const branch = require('./fork.node'), { randomInt } = crypto;
const draw = () => [crypto.randomUUID({ disableEntropyCache: true }), Math.random(), crypto.randomUUID(), globalThis.crypto.randomUUID(), randomInt(2 ** 47), crypto.randomBytes(9).toString('hex'),
	crypto.getRandomValues(new Uint32Array(3)).join(), crypto.generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' }).x];
draw();
// randomInt() fills what it has ahead after the first draw.
setTimeout(() => {
	if (branch() === 0)
		fs.writeFileSync(file, '2'.repeat(32) + '\n', { flag: 'r+' });
	else
		while (fs.readFileSync(file, 'utf8')[0] !== '2');
	fs.writeSync(1, draw().join(' ') + '\n');
	// Not process.pid, which is what same_pid.c says; and no exit of a process that lacks its other threads.
	process.kill(Number(fs.readlinkSync('/proc/self')), 'SIGKILL');
}, 200);
J
	PANDO_GENERATION_FILE=$work/generation
	export PANDO_GENERATION_FILE
	two_lines() { [ "$(wc -l <"$1")" = 2 ]; }
	not env LD_PRELOAD="$work/same_pid.so" node --single-threaded "$work/draw.js" >"$work/as_it_is"
	wait_until "both have drawn" two_lines "$work/as_it_is"
	equal "draws that are the same without" "$(equal_words "$work/as_it_is")" 8
	printf '%032d\n' 1 >"$work/generation"
	not env NODE_OPTIONS="--require=$work/lib/node-random.cjs" LD_PRELOAD="$work/same_pid.so" node --single-threaded "$work/draw.js" >"$work/with"
	wait_until "both have drawn" two_lines "$work/with"
	equal "draws that are the same with it" "$(equal_words "$work/with")" 0
}

# With the addon and without; what was there goes on as it was.
nodes_start_anew() {
	command -v node >/dev/null || skip "no Node here"
	make_as_if_branched
	cat >"$work/api.mjs" <<'J'
import crypto, { randomUUID, randomInt } from 'node:crypto';
import assert from 'node:assert';
import { Worker } from 'node:worker_threads';
const some = new Set(), uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
let sum = 0;
for (let i = 0; i < 100000; i++) {
	const r = Math.random();
	assert(r >= 0 && r < 1);
	some.add(r);
	sum += r;
}
assert.equal(some.size, 100000);
assert(Math.abs(sum / 100000 - 0.5) < 0.01);
assert.equal(Math.random.name + Math.random.length, 'random0');
assert.equal(randomUUID, crypto.randomUUID);
assert.match(randomUUID(), uuid);
for (const options of [{}, { disableEntropyCache: false }, { disableEntropyCache: true }])
	assert.match(randomUUID(options), uuid);
assert.throws(() => randomUUID({ disableEntropyCache: 5 }), { code: 'ERR_INVALID_ARG_TYPE' });
assert.throws(() => randomUUID(null), { code: 'ERR_INVALID_ARG_TYPE' });
const ids = new Set();
for (let i = 0; i < 5000; i++)
	ids.add(randomUUID());
assert.equal(ids.size, 5000);
assert.match(globalThis.crypto.randomUUID(), uuid);
assert.throws(() => globalThis.crypto.randomUUID.call({}));
assert.throws(() => randomUUID(5), { code: 'ERR_INVALID_ARG_TYPE' });
assert.throws(() => randomInt(5, 5), { code: 'ERR_OUT_OF_RANGE' });
assert.throws(() => randomInt('x'), { code: 'ERR_INVALID_ARG_TYPE' });
assert.throws(() => randomInt(0, 2 ** 48), { code: 'ERR_OUT_OF_RANGE' });
const seen = new Set();
for (let i = 0; i < 1000; i++) {
	seen.add(randomInt(-3, 3));
	assert(randomInt(2 ** 48 - 1) < 2 ** 48 - 1);
}
assert.deepEqual([...seen].sort((a, b) => a - b), [-3, -2, -1, 0, 1, 2]);
assert.equal(await new Promise((done) => randomInt(7, 8, (e, n) => done(n))), 7);
const inWorker = await new Promise((done) => new Worker("require('worker_threads').parentPort.postMessage(String(Math.random))",
	{ eval: true }).on('message', done));
assert.doesNotMatch(inWorker, /native/);
J
	printf '%032d\n' 1 >"$work/generation"
	PANDO_GENERATION_FILE=$work/generation NODE_OPTIONS=--require=$work/lib/node-random.cjs node "$work/api.mjs"
	rm "$work/lib/node-random.node"
	PANDO_GENERATION_FILE=$work/generation NODE_OPTIONS=--require=$work/lib/node-random.cjs node "$work/api.mjs"
	# Whoever wants the same numbers again, and who is in no such machine.
	PANDO_GENERATION_FILE=$work/generation NODE_OPTIONS=--require=$work/lib/node-random.cjs node --random-seed=1 -e '
require("assert").match(String(Math.random), /native/)'
	PANDO_GENERATION_FILE=/nonexistent NODE_OPTIONS=--require=$work/lib/node-random.cjs node -e '
require("assert").match(String(Math.random), /native/)'
}

PYTHONDONTWRITEBYTECODE=1
export PYTHONDONTWRITEBYTECODE
it "pam_env reads what was given, and nothing else" pam_reads_what_was_given
it "shells read what was given, from both files" shells_read_what_was_given
it "OpenSSL draws apart in two branches, where it drew the same" openssl_draws_apart
it "Node draws apart in two branches, where it drew the same" nodes_draw_apart
it "what Node draws from is as it was but for that" nodes_start_anew
it "Python's random starts anew when the generation changes" pythons_start_anew
finish
