/** Low-resolution logits to masks at any size, and masks to boxes, run lengths and polygons. */

import { resizedShape } from './picture.js';

/**
 * @typedef {object} Axis weights of a whole axis: output i is the sum of `weights[4 i + k]` times
 * input `cells[4 i + k]`, k = 0..3
 * @property {Int32Array} cells
 * @property {Float32Array} weights
 */

/**
 * Returns bilinear interpolation (align_corners=False, in float32 like torch) of an axis.
 *
 * @param {number} inputs
 * @param {number} outputs
 */
function bilinear(inputs, outputs) {
  const scale = Math.fround(inputs / outputs);
  const first = new Int32Array(outputs);
  const weight = new Float32Array(outputs);
  for (let i = 0; i < outputs; i++) {
    const centre = Math.max(Math.fround(Math.fround((i + 0.5) * scale) - 0.5), 0);
    first[i] = Math.min(Math.trunc(centre), inputs - 1);
    weight[i] = centre - first[i];
  }
  return { first, weight };
}

/**
 * Returns an axis scaled to the canvas, cropped to the picture and scaled to its size: the two steps
 * of segment-anything's `postprocess_masks` as one.
 *
 * @param {number} low side of the logits
 * @param {number} canvas side of the canvas
 * @param {number} resized side of the picture on the canvas
 * @param {number} size of the output
 * @returns {Axis}
 */
function makeAxis(low, canvas, resized, size) {
  const up = bilinear(low, canvas);
  const down = bilinear(resized, size);
  const axis = { cells: new Int32Array(4 * size), weights: new Float32Array(4 * size) };
  for (let i = 0; i < size; i++) {
    for (let side = 0; side < 2; side++) {
      const pixel = Math.min(down.first[i] + side, resized - 1);
      const share = side ? down.weight[i] : 1 - down.weight[i];
      const k = 4 * i + 2 * side;
      axis.cells[k] = up.first[pixel];
      axis.cells[k + 1] = Math.min(up.first[pixel] + 1, low - 1);
      axis.weights[k] = share * (1 - up.weight[pixel]);
      axis.weights[k + 1] = share * up.weight[pixel];
    }
  }
  return axis;
}

/** Scales logits [low, low] of a picture to masks of any size with its proportions. */
export class Upscaler {
  /**
   * @param {{height: number, width: number}} original size of the picture
   * @param {{height: number, width: number}} output size of the masks
   * @param {number} canvas side of the canvas
   * @param {number} low side of the logits
   */
  constructor(original, output, canvas, low) {
    const [height, width] = resizedShape(original.height, original.width, canvas);
    this.rows = makeAxis(low, canvas, height, output.height);
    this.columns = makeAxis(low, canvas, width, output.width);
    this.height = output.height;
    this.width = output.width;
    this.low = low;
  }

  /**
   * Returns the mask [height, width], 1 where the logit is above the threshold.
   *
   * @param {Float32Array} logits
   * @param {number} [threshold]
   */
  mask(logits, threshold = 0) {
    const { rows, columns, low, width, height } = this;
    const out = new Uint8Array(width * height);
    const row = new Float32Array(low);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < low; x++) {
        let sum = 0;
        for (let k = 4 * y; k < 4 * y + 4; k++) sum += rows.weights[k] * logits[rows.cells[k] * low + x];
        row[x] = sum;
      }
      for (let x = 0, k = 0, to = y * width; x < width; x++, k += 4, to++) {
        const { cells, weights } = columns;
        const value =
          weights[k] * row[cells[k]] +
          weights[k + 1] * row[cells[k + 1]] +
          weights[k + 2] * row[cells[k + 2]] +
          weights[k + 3] * row[cells[k + 3]];
        if (value > threshold) out[to] = 1;
      }
    }
    return out;
  }
}

/**
 * Returns COCO's box [x, y, width, height] of a mask, and its area in pixels.
 *
 * @param {Uint8Array} mask
 * @param {number} width
 */
export function measure(mask, width) {
  let [left, right, top, bottom, area] = [width, -1, Infinity, -1, 0];
  for (let i = 0, x = 0, y = 0; i < mask.length; i++) {
    if (mask[i]) {
      area++;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
    }
    if (++x === width) {
      x = 0;
      y++;
    }
  }
  const box = area ? [left, top, right - left + 1, bottom - top + 1] : [0, 0, 0, 0];
  return { box, area };
}

/**
 * Returns a mask as COCO's compressed run-length encoding, which runs down the columns.
 *
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} height
 */
export function encodeRle(mask, width, height) {
  const lengths = /** @type {number[]} */ ([]);
  let [current, run] = [0, 0];
  for (let x = 0; x < width; x++) {
    for (let y = 0, i = x; y < height; y++, i += width) {
      if (mask[i] === current) {
        run++;
      } else {
        lengths.push(run);
        [current, run] = [mask[i], 1];
      }
    }
  }
  lengths.push(run);
  let counts = '';
  lengths.forEach((length, i) => {
    let value = i > 2 ? length - lengths[i - 2] : length;
    for (let ended = false; !ended;) {
      const group = value & 31;
      value >>= 5;
      ended = value === (group & 16 ? -1 : 0);
      counts += String.fromCharCode(48 + (ended ? group : group | 32));
    }
  });
  return { size: [height, width], counts };
}

/**
 * Returns the outlines of a mask along the edges of its pixels, as an SVG path; holes turn the other
 * way round.
 *
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} height
 */
export function tracePath(mask, width, height) {
  const inside = (/** @type {number} */ x, /** @type {number} */ y) =>
    x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] === 1;
  const seen = new Uint8Array((width + 1) * (height + 1)); // upper edges that a path has taken
  let path = '';
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x < width; x++) {
      const opens = inside(x, y) && !inside(x, y - 1);
      if (opens && !seen[y * (width + 1) + x]) path += traceLoop(x, y, inside, seen, width + 1);
    }
  }
  return path;
}

const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // right, down, left, up

/**
 * Follows an outline with the mask on the right-hand side, from the upper edge of a pixel.
 *
 * @param {number} x0
 * @param {number} y0
 * @param {(x: number, y: number) => boolean} inside
 * @param {Uint8Array} seen
 * @param {number} stride of `seen`
 */
function traceLoop(x0, y0, inside, seen, stride) {
  let [x, y, way] = [x0, y0, 0];
  let path = `M${x} ${y}`;
  do {
    if (way === 0) seen[y * stride + x] = 1;
    x += STEPS[way][0];
    y += STEPS[way][1];
    // the pixels ahead, to the right and to the left of the corner
    const [dx, dy] = STEPS[way];
    const right = inside(x + (dx - dy - 1) / 2, y + (dy + dx - 1) / 2);
    const left = inside(x + (dx + dy - 1) / 2, y + (dy - dx - 1) / 2);
    const next = !right ? (way + 1) % 4 : left ? (way + 3) % 4 : way;
    if (next !== way) path += next % 2 ? `H${x}` : `V${y}`;
    way = next;
  } while (x !== x0 || y !== y0 || way !== 0);
  return `${path.replace(/[HV][\d-]+$/, '')}Z`;
}
