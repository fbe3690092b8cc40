/**
 * Scales pictures as Pillow does: an antialiased bilinear filter in fixed point, the same bytes.
 *
 * Rows are scaled before columns; Pillow 13 does the columns of tall, narrow pictures first, and then
 * differs by a unit.
 */

const BITS = 22; // of a weight's fraction, as Pillow has for 8-bit pictures

/**
 * @typedef {object} Taps
 * @property {Int32Array} first the first input of each output
 * @property {Int32Array} count how many inputs it takes
 * @property {Int32Array} weights in fixed point, `size` per output
 * @property {number} size
 */

/**
 * Returns the inputs and weights of each output of an axis: a triangle as wide as the reduction.
 *
 * @param {number} inputs
 * @param {number} outputs
 * @returns {Taps}
 */
export function triangleTaps(inputs, outputs) {
  const scale = inputs / outputs;
  const support = Math.max(scale, 1);
  const size = Math.ceil(support) * 2 + 1;
  const taps = {
    first: new Int32Array(outputs),
    count: new Int32Array(outputs),
    weights: new Int32Array(outputs * size),
    size,
  };
  const values = new Float64Array(size);
  for (let i = 0; i < outputs; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const count = Math.min(Math.trunc(centre + support + 0.5), inputs) - first;
    let sum = 0;
    for (let k = 0; k < count; k++) {
      values[k] = Math.max(1 - Math.abs((k + first - centre + 0.5) * (1 / support)), 0);
      sum += values[k];
    }
    for (let k = 0; k < count; k++) {
      taps.weights[i * size + k] = Math.trunc(0.5 + (values[k] / sum) * 2 ** BITS);
    }
    taps.first[i] = first;
    taps.count[i] = count;
  }
  return taps;
}

/**
 * Scales rows of RGBA pixels horizontally; transparent ones are laid over white first.
 *
 * @param {Uint8ClampedArray} rgba
 * @param {number} width of the rows
 * @param {Uint8Array} out receives RGB rows
 * @param {number} outWidth
 */
export function scaleRows(rgba, width, out, outWidth) {
  const taps = triangleTaps(width, outWidth);
  const rows = rgba.length / (4 * width);
  layOverWhite(rgba);
  for (let y = 0; y < rows; y++) {
    const row = 4 * width * y;
    let to = 3 * outWidth * y;
    for (let x = 0; x < outWidth; x++) {
      let red = 1 << (BITS - 1);
      let green = red;
      let blue = red;
      let from = row + 4 * taps.first[x];
      const start = x * taps.size;
      for (let k = start; k < start + taps.count[x]; k++, from += 4) {
        const weight = taps.weights[k];
        red += rgba[from] * weight;
        green += rgba[from + 1] * weight;
        blue += rgba[from + 2] * weight;
      }
      out[to++] = red >> BITS;
      out[to++] = green >> BITS;
      out[to++] = blue >> BITS;
    }
  }
}

/**
 * Returns RGB rows scaled vertically.
 *
 * @param {Uint8Array} rgb
 * @param {number} width
 * @param {number} height
 * @param {number} outHeight
 */
export function scaleColumns(rgb, width, height, outHeight) {
  if (height === outHeight) return rgb;
  const taps = triangleTaps(height, outHeight);
  const line = 3 * width;
  const out = new Uint8Array(line * outHeight);
  for (let y = 0; y < outHeight; y++) {
    for (let i = 0; i < line; i++) {
      let sum = 1 << (BITS - 1);
      let from = taps.first[y] * line + i;
      const start = y * taps.size;
      for (let k = start; k < start + taps.count[y]; k++, from += line) {
        sum += rgb[from] * taps.weights[k];
      }
      out[y * line + i] = sum >> BITS;
    }
  }
  return out;
}

/** @param {Uint8ClampedArray} rgba */
function layOverWhite(rgba) {
  for (let i = 3; i < rgba.length; i += 4) {
    const alpha = rgba[i];
    if (alpha === 255) continue;
    for (let k = i - 3; k < i; k++) rgba[k] = (rgba[k] * alpha + 255 * (255 - alpha)) / 255;
  }
}
