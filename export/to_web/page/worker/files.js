/** Fetches the page's files: with progress, unpacked, and only if their sha256 is the listed one. */

/** An error whose message is a sentence for the person at the page. */
export class PageError extends Error {}

/**
 * @typedef {(done: number, total: number) => void} Progress
 * Receives the bytes that have arrived and the bytes that are expected (0: unknown).
 */

/**
 * Returns a file's bytes.
 *
 * @param {string} name path relative to the page
 * @param {string | undefined} sha256 in hexadecimal; undefined: not checked
 * @param {Progress} [progress]
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 * @throws {PageError} the file is missing, or another one
 */
export async function fetchFile(name, sha256, progress = () => {}) {
  let bytes = await download(name, 'default', progress);
  if (sha256 === undefined || (await digest(bytes)) === sha256) return bytes;
  bytes = await download(name, 'reload', progress); // an older version may have been in a cache
  if ((await digest(bytes)) === sha256) return bytes;
  throw new PageError(`${name} is damaged or of another export (its sha256 differs): nothing was computed with it.`);
}

/**
 * Returns a JSON file's value.
 *
 * @param {string} name path relative to the page
 * @returns {Promise<any>}
 */
export async function fetchJson(name) {
  const bytes = await download(name, 'no-cache', () => {}); // no hash tells whether it is old
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new PageError(`${name} is not JSON. Export the page again.`);
  }
}

/**
 * @param {string} name
 * @param {RequestCache} cache
 * @param {Progress} progress
 */
async function download(name, cache, progress) {
  const address = new URL(`../${name}`, import.meta.url);
  let response;
  try {
    response = await fetch(address, { cache });
  } catch {
    throw new PageError(`${name} did not arrive. Are you offline? Reload the page when you are back.`);
  }
  if (!response.ok || !response.body) {
    throw new PageError(`${name} is missing on the server (${response.status}).`);
  }
  const total = Number(response.headers.get('Content-Length') ?? 0);
  const parts = [];
  let done = 0;
  try {
    for (const reader = response.body.getReader(); ;) {
      const { done: ended, value } = await reader.read();
      if (ended) break;
      parts.push(value);
      done += value.length;
      progress(done, total);
    }
  } catch {
    throw new PageError(`${name} did not arrive whole. Reload the page.`);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/**
 * Returns gzipped bytes unpacked.
 *
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {CompressionFormat} [format]
 */
export async function unpack(bytes, format = 'gzip') {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream(format));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Returns the sha256 of bytes in hexadecimal.
 *
 * Browsers offer `crypto.subtle` on https and localhost only, hence the second way.
 *
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
export async function digest(bytes) {
  const hash = crypto.subtle
    ? new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))
    : sha256(bytes);
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * Returns the SHA-256 of bytes (FIPS 180-4).
 *
 * @param {Uint8Array} bytes
 */
export function sha256(bytes) {
  const rounds = constants(64, 3);
  const state = Uint32Array.from(constants(8, 2));
  const padded = new Uint8Array(((bytes.length + 72) >> 6) << 6);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - 8, BigInt(bytes.length) * 8n);
  const words = new Uint32Array(64);
  for (let offset = 0; offset < padded.length; offset += 64) {
    for (let i = 0; i < 16; i++) words[i] = view.getUint32(offset + 4 * i);
    addBlock(state, words, rounds);
  }
  const out = new DataView(new ArrayBuffer(32));
  state.forEach((word, i) => out.setUint32(4 * i, word));
  return new Uint8Array(out.buffer);
}

/**
 * @param {Uint32Array} state
 * @param {Uint32Array} words the first 16 hold the block
 * @param {Uint32Array} rounds
 */
function addBlock(state, words, rounds) {
  for (let i = 16; i < 64; i++) {
    const a = words[i - 15];
    const b = words[i - 2];
    const low = turn(a, 7) ^ turn(a, 18) ^ (a >>> 3);
    const high = turn(b, 17) ^ turn(b, 19) ^ (b >>> 10);
    words[i] = words[i - 16] + low + words[i - 7] + high;
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    const choice = (e & f) ^ (~e & g);
    const majority = (a & b) ^ (a & c) ^ (b & c);
    const first = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + choice + rounds[i] + words[i]) | 0;
    const second = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + majority) | 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((value, i) => (state[i] += value));
}

/** @param {number} word @param {number} bits */
const turn = (word, bits) => (word >>> bits) | (word << (32 - bits));

/**
 * Returns the first 32 bits of the fractions of roots of the first primes.
 *
 * @param {number} count
 * @param {2 | 3} root square or cube root
 */
function constants(count, root) {
  const primes = /** @type {number[]} */ ([]);
  for (let n = 2; primes.length < count; n++) {
    if (primes.every((prime) => n % prime)) primes.push(n);
  }
  const power = root === 2 ? Math.sqrt : Math.cbrt;
  return Uint32Array.from(primes, (prime) => (power(prime) % 1) * 2 ** 32);
}
