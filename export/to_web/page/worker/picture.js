/** Reads a photograph and makes the encoder's input of it, as the Python runtime does. */

import { PageError } from './files.js';
import { scaleColumns, scaleRows } from './resize.js';

const STRIP = 4_000_000; // pixels that are in memory as RGBA at a time
const MAX_PIXELS = 100_000_000;

/**
 * @typedef {object} Resized a picture on the canvas
 * @property {Uint8Array} rgb
 * @property {number} width
 * @property {number} height
 */

/**
 * Returns a file's picture, turned as its EXIF says, without conversion of colours.
 *
 * @param {Blob} blob
 * @param {string} name of the file, for the error
 * @throws {PageError} not a picture that this browser reads, or too large
 */
export async function openPicture(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      imageOrientation: 'from-image',
      colorSpaceConversion: 'none',
      premultiplyAlpha: 'none',
    });
  } catch {
    throw new PageError(await explain(blob, name));
  }
  if (bitmap.width * bitmap.height > MAX_PIXELS) {
    const size = `${bitmap.width}×${bitmap.height}`;
    bitmap.close();
    throw new PageError(`${name} has ${size} pixels, more than 100 million. Make it smaller first.`);
  }
  return bitmap;
}

/**
 * Returns why a file could not be opened, in a sentence.
 *
 * @param {Blob} blob
 * @param {string} name
 */
async function explain(blob, name) {
  const head = String.fromCharCode(...new Uint8Array(await blob.slice(0, 512).arrayBuffer()));
  if (!blob.size) return `${name} is empty.`;
  if (/ftyp(hei|hev|mif|msf)/.test(head)) {
    return `${name} is a HEIC picture, which this browser cannot read. Save it as JPEG or PNG first.`;
  }
  if (/<svg|<\?xml/i.test(head)) {
    return `${name} is a drawing (SVG), not a photograph. Save it as PNG first.`;
  }
  if (/^(\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM)/s.test(head)) {
    return `${name} is damaged, or too large for this browser's memory.`;
  }
  return `${name} is not a picture that this browser can read. JPEG, PNG and WebP work everywhere.`;
}

/**
 * Returns (height, width) of a picture whose longest side becomes `side`, at least 1.
 *
 * @param {number} height
 * @param {number} width
 * @param {number} side
 * @returns {[number, number]}
 */
export function resizedShape(height, width, side) {
  const scale = side / Math.max(height, width);
  const scaled = [height, width].map((n) => Math.max(1, Math.trunc(n * scale + 0.5)));
  return [scaled[0], scaled[1]];
}

/**
 * Returns a picture scaled to the canvas, a strip of rows at a time.
 *
 * @param {ImageBitmap} bitmap
 * @param {number} side of the canvas
 * @returns {Resized}
 */
export function resizePicture(bitmap, side) {
  const { width, height } = bitmap;
  const [outHeight, outWidth] = resizedShape(height, width, side);
  const rows = new Uint8Array(3 * outWidth * height);
  const step = Math.max(1, Math.min(height, Math.trunc(STRIP / width)));
  const canvas = new OffscreenCanvas(width, step);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  if (!context) throw new PageError('This browser gave no canvas to read the picture from.');
  for (let top = 0; top < height; top += step) {
    const count = Math.min(step, height - top);
    context.clearRect(0, 0, width, step);
    context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    const { data } = context.getImageData(0, 0, width, count);
    scaleRows(data, width, rows.subarray(3 * outWidth * top, 3 * outWidth * (top + count)), outWidth);
  }
  return { rgb: scaleColumns(rows, outWidth, height, outHeight), width: outWidth, height: outHeight };
}

/**
 * Returns the same for RGB pixels that are in memory already.
 *
 * @param {Uint8Array} rgb
 * @param {number} width
 * @param {number} height
 * @param {number} side of the canvas
 * @returns {Resized}
 */
export function resizePixels(rgb, width, height, side) {
  const [outHeight, outWidth] = resizedShape(height, width, side);
  const rgba = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let i = 0, k = 0; k < rgb.length; k++) rgba[(i = Math.trunc(k / 3) * 4 + (k % 3))] = rgb[k];
  const rows = new Uint8Array(3 * outWidth * height);
  scaleRows(rgba, width, rows, outWidth);
  return { rgb: scaleColumns(rows, outWidth, height, outHeight), width: outWidth, height: outHeight };
}

/**
 * Returns the encoder's `pixel_values` [1, 3, S, S]: normalised, zeros on the right and below.
 *
 * @param {Resized} picture
 * @param {{mean: number[], std: number[], stretch?: boolean}} preprocessing of the manifest
 * @param {number} side S
 */
export function normalise(picture, preprocessing, side) {
  let { mean, std } = preprocessing;
  if (preprocessing.stretch) {
    let low = 255;
    let high = 0;
    for (const value of picture.rgb) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    const span = Math.max(high - low, 1e-8);
    mean = mean.map((value) => low + span * value);
    std = std.map((value) => span * value);
  }
  const values = new Float32Array(3 * side * side);
  for (let channel = 0; channel < 3; channel++) {
    // float32 arithmetic, as numpy computes it
    const subtract = Math.fround(mean[channel]);
    const divide = Math.fround(std[channel]);
    const table = Float32Array.from({ length: 256 }, (_, i) => Math.fround(i - subtract) / divide);
    for (let y = 0; y < picture.height; y++) {
      let from = 3 * picture.width * y + channel;
      let to = side * (channel * side + y);
      for (let x = 0; x < picture.width; x++, from += 3) values[to++] = table[picture.rgb[from]];
    }
  }
  return values;
}
