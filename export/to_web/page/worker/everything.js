/** Finds the objects of a picture: a grid of clicks, whose masks are filtered as SAM's generator does. */

import { assemble } from './network.js';

const BATCH = 16; // clicks in a call
const OFFSET = 1; // in logits, of the stability score
const MAX_OVERLAP = 0.7; // IoU of boxes above which the mask with the lower score is left out

/**
 * @typedef {{logits: Float32Array, score: number, point: number[], box: number[]}} Found box in cells
 */

/**
 * Returns the masks of a grid of clicks that pass the thresholds, best first.
 *
 * @param {import('./network.js').Networks} networks
 * @param {any} embedding
 * @param {{height: number, width: number}} original
 * @param {[number, number]} resized (height, width) on the canvas
 * @param {{side: number, score: number, stability: number}} options clicks along a side; thresholds
 * @param {(done: number, total: number) => Promise<boolean>} report called after each batch; false stops
 * @returns {Promise<{found: Found[], best: number}>} best: the highest score of all masks
 */
export async function findEverything(networks, embedding, original, resized, options, report) {
  const points = grid(options.side, original);
  const { low, side } = networks;
  const used = resized.map((n) => Math.min(low, Math.ceil((n * low) / side)));
  /** @type {Found[]} */
  const candidates = [];
  let best = 0;
  for (let start = 0; start < points.length; start += BATCH) {
    const clicks = points.slice(start, start + BATCH);
    const prompts = clicks.map((point) => assemble({ points: [point], labels: [1], box: null }, original, resized));
    const answers = await networks.decode(embedding, prompts);
    answers.forEach(({ scores, masks }, i) => {
      for (let k = 1; k < 4; k++) {
        best = Math.max(best, scores[k]);
        if (!(scores[k] > options.score)) continue;
        const logits = masks.subarray(k * low * low, (k + 1) * low * low);
        const { stability, box } = inspect(logits, low, used);
        if (!(stability >= options.stability) || box[2] < box[0]) continue;
        candidates.push({ logits: logits.slice(), score: scores[k], point: clicks[i], box });
      }
    });
    if (!(await report(Math.min(start + BATCH, points.length), points.length))) break;
  }
  candidates.sort((a, b) => b.score - a.score);
  /** @type {Found[]} */
  const found = [];
  for (const candidate of candidates) {
    if (found.every((kept) => boxIou(kept.box, candidate.box) <= MAX_OVERLAP)) found.push(candidate);
  }
  return { found, best };
}

/**
 * Returns a grid of points (x, y) in pixels of a picture, each in the middle of its field.
 *
 * @param {number} side
 * @param {{height: number, width: number}} size
 */
function grid(side, { height, width }) {
  const steps = Array.from({ length: side }, (_, i) => (i + 0.5) / side);
  return steps.flatMap((y) => steps.map((x) => [x * width, y * height]));
}

/**
 * Returns the stability score and the box (x0, y0, x1, y1) of logits, in cells of the picture.
 *
 * @param {Float32Array} logits [low, low]
 * @param {number} low
 * @param {number[]} used rows and columns that the picture covers
 */
function inspect(logits, low, [rows, columns]) {
  let [narrow, wide, x0, y0, x1, y1] = [0, 0, low, low, -1, -1];
  for (let y = 0; y < rows; y++) {
    for (let x = 0, i = y * low; x < columns; x++, i++) {
      const value = logits[i];
      if (value > OFFSET) narrow++;
      if (value > -OFFSET) wide++;
      if (value > 0) {
        if (x < x0) x0 = x;
        if (x > x1) x1 = x;
        if (y < y0) y0 = y;
        y1 = y;
      }
    }
  }
  return { stability: narrow / wide, box: [x0, y0, x1, y1] };
}

/** @param {number[]} a @param {number[]} b */
function boxIou(a, b) {
  const area = (/** @type {number[]} */ [x0, y0, x1, y1]) => (x1 - x0 + 1) * (y1 - y0 + 1);
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]) + 1);
  const common = width * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]) + 1);
  return common / (area(a) + area(b) - common);
}
