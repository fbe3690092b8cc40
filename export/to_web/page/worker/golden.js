/** Compares this browser's answers to the bundle's golden prompts with PyTorch's, as `verify` does. */

import { PageError, unpack } from './files.js';
import { assemble } from './network.js';
import { normalise, resizePixels } from './picture.js';

const PROMPTS = ['point', 'box', 'points', 'refine'];
const SMALL = 0.02; // share of a mask's pixels below which its changed pixels are counted
const TIE = 0.01;
const CEILING_DB = 200;
const LIMITS = /** @type {const} */ ({
  error: 'max', snr_db: 'min', cosine: 'min', score: 'max',
  mask_iou: 'min', mask_iou_mean: 'min', small_changed: 'max', best_kept: 'min',
});

/**
 * @typedef {{dtype: string, shape: number[], values: Float32Array | Uint8Array}} NumpyArray
 * @typedef {Record<string, number>} Figures
 * @typedef {{prompt: string, against: string, figures: Figures, violations: string[]}} GoldenResult
 */

/**
 * Returns the results of a bundle's golden prompts, and what an image and a prompt took.
 *
 * The mirrored picture is encoded before: an engine that gives one embedding for all pictures fails.
 *
 * @param {import('./network.js').Networks} networks
 * @param {Uint8Array<ArrayBuffer>} file `golden.npz`
 * @param {any} manifest
 * @returns {Promise<{results: GoldenResult[], milliseconds: {encoder: number, decoder: number}}>}
 */
export async function checkGolden(networks, file, manifest) {
  const arrays = await readNpz(file);
  const image = arrays.image;
  const [height, width] = image.shape;
  const picture = resizePixels(/** @type {Uint8Array} */ (image.values), width, height, networks.side);
  const pixels = normalise(picture, manifest.preprocessing, networks.side);
  await networks.encode(mirrored(pixels, networks.side));
  const start = performance.now();
  const embedding = await networks.encode(pixels);
  const encoded = performance.now();
  /** @type {GoldenResult[]} */
  const results = [];
  let decoded = 0; // the time of the last prompt: the first one is slower
  for (const name of PROMPTS) {
    const before = performance.now();
    const found = await answer(networks, embedding, arrays, name, picture);
    decoded = performance.now() - before;
    const judged = [['PyTorch', '', manifest.golden.tolerance]];
    if (manifest.golden.drift) judged.push(['the same files at export', 'own_', manifest.golden.drift]);
    for (const [against, prefix, tolerance] of judged) {
      const scores = arrays[`${name}_${prefix}scores`].values;
      const masks = arrays[`${name}_${prefix}low_res_masks`];
      const figures = compare(scores, masks, found);
      results.push({ prompt: name, against, figures, violations: violations(figures, tolerance) });
    }
  }
  return { results, milliseconds: { encoder: encoded - start, decoder: decoded } };
}

/**
 * Returns scores and thinned masks of a golden prompt.
 *
 * @param {import('./network.js').Networks} networks
 * @param {any} embedding
 * @param {Record<string, NumpyArray>} arrays
 * @param {string} name
 * @param {import('./picture.js').Resized} picture
 */
async function answer(networks, embedding, arrays, name, picture) {
  const numbers = (/** @type {string} */ key) => Array.from(arrays[`${name}_${key}`]?.values ?? []);
  const flat = numbers('point_coords');
  const [height, width] = arrays.image.shape;
  const box = numbers('boxes');
  const prompt = assemble(
    {
      points: flat.filter((_, i) => i % 2 === 0).map((x, i) => [x, flat[2 * i + 1]]),
      labels: numbers('point_labels'),
      box: box.length ? box : null,
    },
    { height, width },
    [picture.height, picture.width],
  );
  const mask = arrays[`${name}_mask_inputs`];
  if (mask) prompt.mask = /** @type {Float32Array} */ (mask.values);
  const [{ scores, masks }] = await networks.decode(embedding, [prompt]);
  return { scores, masks: thin(masks, networks.low, arrays[`${name}_low_res_masks`].shape[2]) };
}

/** @param {Float32Array} pixels [1, 3, S, S] @param {number} side S */
function mirrored(pixels, side) {
  const out = pixels.slice();
  for (let i = 0; i < out.length; i += side) out.subarray(i, i + side).reverse();
  return out;
}

/**
 * Returns every n-th row and column of masks [4, low, low].
 *
 * @param {Float32Array} masks
 * @param {number} low
 * @param {number} side rows that are kept
 */
function thin(masks, low, side) {
  const step = Math.ceil(low / side);
  const out = new Float32Array(4 * side * side);
  let to = 0;
  for (let k = 0; k < 4; k++) {
    for (let y = 0; y < low; y += step) {
      for (let x = 0; x < low; x += step) out[to++] = masks[(k * low + y) * low + x];
    }
  }
  return out;
}

/**
 * Returns the figures by which a golden prompt is judged.
 *
 * @param {ArrayLike<number>} scores [4], expected
 * @param {NumpyArray} expected masks [1, 4, side, side]
 * @param {{scores: Float32Array, masks: Float32Array}} found
 * @returns {Figures}
 */
function compare(scores, expected, found) {
  const area = expected.shape[2] * expected.shape[3];
  const masks = { mask_iou: 1, sum: 0, count: 0, small_changed: 0 };
  const size = Math.max(SMALL * area, 1);
  for (let k = 0; k < 4; k++) {
    let [common, union, wanted] = [0, 0, 0];
    for (let i = k * area; i < (k + 1) * area; i++) {
      const [a, b] = [expected.values[i] > 0, found.masks[i] > 0];
      if (a) wanted++;
      if (a && b) common++;
      if (a || b) union++;
    }
    if (wanted < size) {
      masks.small_changed = Math.max(masks.small_changed, (union - common) / size);
      continue;
    }
    const iou = union ? common / union : 1;
    masks.mask_iou = Math.min(masks.mask_iou, iou);
    masks.sum += iou;
    masks.count++;
  }
  return {
    ...distance(expected.values, found.masks),
    mask_iou: masks.mask_iou,
    mask_iou_mean: masks.count ? masks.sum / masks.count : 1,
    small_changed: masks.small_changed,
    score: Math.max(...found.scores.map((score, i) => Math.abs(score - scores[i]))),
    best_kept: keepsBest(Array.from(scores).slice(1), Array.from(found.scores).slice(1)) ? 1 : 0,
  };
}

/**
 * Returns the largest difference in standard deviations of the reference, SNR in dB and the cosine.
 *
 * @param {ArrayLike<number>} expected
 * @param {ArrayLike<number>} found
 */
function distance(expected, found) {
  let [signal, noise, other, product, largest, sum] = [0, 0, 0, 0, 0, 0];
  for (let i = 0; i < expected.length; i++) {
    const [a, b] = [expected[i], found[i]];
    const difference = Math.abs(a - b);
    signal += a * a;
    other += b * b;
    product += a * b;
    noise += difference * difference;
    sum += a;
    if (!(difference <= largest)) largest = difference; // NaN stays
  }
  const mean = sum / expected.length;
  const scale = Math.sqrt(Math.max(signal / expected.length - mean * mean, 0)) || 1;
  return {
    error: largest / scale,
    snr_db: noise ? Math.min(10 * Math.log10(signal / noise), CEILING_DB) : CEILING_DB,
    cosine: product / Math.sqrt(signal * other),
  };
}

/** @param {number[]} expected @param {number[]} found */
function keepsBest(expected, found) {
  const [first, second] = [...expected].sort((a, b) => b - a);
  if (first - second <= TIE) return true;
  return expected.indexOf(first) === found.indexOf(Math.max(...found));
}

/**
 * Returns the figures outside a tolerance, as sentences; NaN is outside of any.
 *
 * @param {Figures} figures
 * @param {Record<string, number>} tolerance
 */
function violations(figures, tolerance) {
  const limits = { ...tolerance, small_changed: tolerance.mask_iou > 0 ? 1 - tolerance.mask_iou : Infinity };
  return Object.entries(LIMITS)
    .filter(([key, kind]) => {
      const limit = limits[/** @type {keyof typeof limits} */ (key)];
      return kind === 'max' ? !(figures[key] <= limit) : !(figures[key] >= limit);
    })
    .map(([key]) => `${key} is ${figures[key].toPrecision(4)}`);
}

/**
 * Returns the arrays of a NumPy `.npz` file by name.
 *
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
export async function readNpz(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  /** @type {Record<string, NumpyArray>} */
  const arrays = {};
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new PageError('golden.npz is no zip file. Export the page again.');
  let entry = view.getUint32(end + 16, true);
  for (let i = view.getUint16(end + 10, true); i > 0; i--) {
    const [method, size] = [view.getUint16(entry + 10, true), view.getUint32(entry + 20, true)];
    const nameLength = view.getUint16(entry + 28, true);
    const local = view.getUint32(entry + 42, true);
    const name = new TextDecoder().decode(bytes.subarray(entry + 46, entry + 46 + nameLength));
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const packed = bytes.subarray(start, start + size);
    const data = method === 8 ? await unpack(packed, 'deflate-raw') : packed.slice();
    arrays[name.replace(/\.npy$/, '')] = readNpy(data, name);
    entry += 46 + nameLength + view.getUint16(entry + 30, true) + view.getUint16(entry + 32, true);
  }
  return arrays;
}

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {string} name
 * @returns {NumpyArray}
 */
function readNpy(bytes, name) {
  const length = new DataView(bytes.buffer).getUint16(8, true);
  const header = new TextDecoder('latin1').decode(bytes.subarray(10, 10 + length));
  const dtype = /'descr': '([^']+)'/.exec(header)?.[1] ?? '';
  const shape = (/'shape': \(([^)]*)\)/.exec(header)?.[1] ?? '').split(',').filter((n) => n.trim()).map(Number);
  const data = bytes.slice(10 + length).buffer;
  if (dtype === '|u1') return { dtype, shape, values: new Uint8Array(data) };
  if (dtype === '<f4') return { dtype, shape, values: new Float32Array(data) };
  if (dtype === '<f2') return { dtype, shape, values: Float32Array.from(new Uint16Array(data), fromHalf) };
  throw new PageError(`golden.npz: ${name} has the type ${dtype}, which this page does not read.`);
}

/** Returns the value of a float16's 16 bits. @param {number} bits */
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
