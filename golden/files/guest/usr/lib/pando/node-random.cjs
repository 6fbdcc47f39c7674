'use strict';
// Node's random numbers in machines that are forked alive.
//
// Two branches of a machine have the same processes, and with them the same generators:
//
//   OpenSSL's            randomBytes, getRandomValues, keys, TLS: it draws from the kernel (node-random.node)
//   Math.random          a generator of V8 that cannot be seeded: another one in its place, which starts anew
//                        whenever the machine's generation is another one
//   crypto.randomUUID    128 of them are made ahead: what is ahead is thrown away with the generation
//   crypto.randomInt     3 KiB are drawn ahead: likewise
//
// Loaded ahead of a program and in each of its workers by NODE_OPTIONS, which the guest's agent sets in all that
// it starts. Where there is no agent nothing is changed. With --random-seed Math.random is left alone: whoever
// asks for the same numbers again gets them.
//
// Not reached: Math of vm contexts, copies of a function that somebody took before this, and processes without
// NODE_OPTIONS (`pando doctor --vm` names them).
//
// Each draw costs some nanoseconds more, a look at memory.

const fs = require('fs');
const path = require('path');
const crypto = require('crypto');
const { syncBuiltinESMExports } = require('module');

const FILE = process.env.PANDO_GENERATION_FILE || '/run/pando/generation';

// A function whose number is another one whenever the generation is; null: no agent.
function watch() {
	let words, epoch = 0;
	try {
		const buffer = require(path.join(__dirname, 'node-random.node'));
		if (buffer instanceof ArrayBuffer)
			words = new Int32Array(buffer);
	} catch {
		// A Node that takes no addons, or not this one.
	}
	if (words) {
		let low = Atomics.load(words, 0), high = Atomics.load(words, 1);
		return () => {
			// Atomics: the compiler must not take the bytes for ones that only we change.
			const l = Atomics.load(words, 0), h = Atomics.load(words, 1);
			if (l !== low || h !== high) {
				low = l;
				high = h;
				epoch++;
			}
			return epoch;
		};
	}
	let fd;
	try {
		fd = fs.openSync(FILE, 'r');
	} catch {
		return null;
	}
	const seen = Buffer.alloc(32), now = Buffer.alloc(32);
	fs.readSync(fd, seen, 0, 32, 0);
	return () => {
		fs.readSync(fd, now, 0, 32, 0);
		if (!now.equals(seen)) {
			now.copy(seen);
			epoch++;
		}
		return epoch;
	};
}

// Bytes drawn ahead, for one generation: take() says where the next ones begin.
function pool(epoch, size) {
	const bytes = Buffer.alloc(size);
	let at = size, of = -1;
	const take = (n) => {
		const now = epoch();
		if (now !== of || at + n > size) {
			crypto.randomFillSync(bytes);
			of = now;
			at = 0;
		}
		at += n;
		return at - n;
	};
	return { bytes, take };
}

// xoshiro128**: V8's own is of the same family.
function generator(epoch) {
	const seed = new Int32Array(4);
	let of = epoch(), a = 0, b = 0, c = 0, d = 0;
	const anew = () => {
		do
			crypto.randomFillSync(seed);
		while (!(seed[0] | seed[1] | seed[2] | seed[3]));
		[a, b, c, d] = seed;
	};
	const next = () => {
		let r = Math.imul(b, 5);
		r = Math.imul((r << 7) | (r >>> 25), 9);
		const t = b << 9;
		c ^= a;
		d ^= b;
		b ^= c;
		a ^= d;
		c ^= t;
		d = (d << 11) | (d >>> 21);
		return r;
	};
	anew();
	return () => {
		const now = epoch();
		if (now !== of) {
			of = now;
			anew();
		}
		// 53 bits, as many as a number below 1 has.
		const high = next() >>> 6, low = next() >>> 5;
		return (high * 134217728 + low) / 9007199254740992;
	};
}

// In the place of that function, with its name and length.
function replace(object, name, make) {
	const old = Object.getOwnPropertyDescriptor(object, name);
	if (!old || typeof old.value !== 'function')
		return;
	const value = make(old.value);
	Object.defineProperty(value, 'name', { value: name, configurable: true });
	Object.defineProperty(value, 'length', { value: old.value.length, configurable: true });
	Object.defineProperty(object, name, { ...old, value });
}

const RANGE_MAX = 2 ** 48 - 1;

// As Node's own, with which everything is left that is not a good range.
function randomInt(epoch, old) {
	const { bytes, take } = pool(epoch, 3072);
	const draw = (min, range) => {
		const limit = 2 ** 48 - (2 ** 48 % range);
		for (;;) {
			const n = bytes.readUIntBE(take(6), 6);
			if (n < limit)
				return min + (n % range);
		}
	};
	return (...given) => {
		let [min, max, callback] = given;
		if (max === undefined || typeof max === 'function')
			[min, max, callback] = [0, min, max];
		if (!Number.isSafeInteger(min) || !Number.isSafeInteger(max) || max <= min || max - min > RANGE_MAX ||
			(callback !== undefined && typeof callback !== 'function'))
			return old(...given);
		if (!callback)
			return draw(min, max - min);
		process.nextTick(() => callback(undefined, draw(min, max - min)));
	};
}

const HEX = Array.from({ length: 256 }, (_, i) => i.toString(16).padStart(2, '0'));

function randomUUID(epoch, old) {
	const { bytes: b, take } = pool(epoch, 2048);
	return (options) => {
		// Node's own draws none ahead when it is asked not to, and says what is wrong with other options.
		if (options !== undefined && (options === null || typeof options !== 'object' ||
			(options.disableEntropyCache !== undefined && options.disableEntropyCache !== false)))
			return old(options);
		const i = take(16);
		return HEX[b[i]] + HEX[b[i + 1]] + HEX[b[i + 2]] + HEX[b[i + 3]] + '-' + HEX[b[i + 4]] + HEX[b[i + 5]] + '-' +
			HEX[(b[i + 6] & 0x0f) | 0x40] + HEX[b[i + 7]] + '-' + HEX[(b[i + 8] & 0x3f) | 0x80] + HEX[b[i + 9]] + '-' +
			HEX[b[i + 10]] + HEX[b[i + 11]] + HEX[b[i + 12]] + HEX[b[i + 13]] + HEX[b[i + 14]] + HEX[b[i + 15]];
	};
}

const epoch = watch();

if (epoch) {
	if (!process.execArgv.some((a) => /^--random[-_]seed/.test(a)))
		replace(Math, 'random', () => {
			const random = generator(epoch);
			return { random() { return random(); } }.random;
		});
	replace(crypto, 'randomUUID', (old) => randomUUID(epoch, old));
	replace(crypto, 'randomInt', (old) => randomInt(epoch, old));
	if (crypto.webcrypto)
		replace(Object.getPrototypeOf(crypto.webcrypto), 'randomUUID', (old) => ({
			randomUUID() {
				// Node's own says what is wrong with a `this` that is no Crypto.
				return this === crypto.webcrypto ? crypto.randomUUID() : old.call(this);
			}
		}).randomUUID);
	syncBuiltinESMExports();
}
