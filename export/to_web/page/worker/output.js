/** Objects as files: a cut-out, a mask, COCO JSON, SVG; all at the photograph's size. */

import { PageError } from './files.js';
import { encodeRle, measure, tracePath } from './masks.js';

/**
 * @typedef {'cutout' | 'mask' | 'json' | 'svg'} Kind
 * @typedef {{name: string, logits: Float32Array, score: number, points: number[][], labels: number[],
 *   box: number[] | null}} Exported an object with the prompt that it answers
 * @typedef {{blob: Blob, name: string, size: {height: number, width: number},
 *   upscaler: import('./masks.js').Upscaler}} Source the photograph
 */

/**
 * Returns the objects as a file.
 *
 * @param {Kind} kind
 * @param {Exported[]} objects
 * @param {Source} source
 * @returns {Promise<Blob>}
 */
export async function makeFile(kind, objects, source) {
  const { upscaler } = source;
  if (kind === 'json') return new Blob([toCoco(objects, source)], { type: 'application/json' });
  if (kind === 'svg') return new Blob([toSvg(objects, source)], { type: 'image/svg+xml' });
  const union = new Uint8Array(upscaler.width * upscaler.height);
  for (const { logits } of objects) upscaler.mask(logits).forEach((value, i) => (union[i] |= value));
  return kind === 'mask' ? drawMask(union, source) : cutOut(union, source);
}

/**
 * @param {Uint8Array} mask
 * @param {Source} source
 */
async function cutOut(mask, { blob, size }) {
  // with its colour profile, as it is seen; the network takes the numbers as they are
  const bitmap = await createImageBitmap(blob, { imageOrientation: 'from-image' });
  const { canvas, context } = makeCanvas(size);
  const image = paint(context, mask, size, [0, 0, 0], 255);
  context.putImageData(image, 0, 0);
  context.globalCompositeOperation = 'source-in';
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.convertToBlob({ type: 'image/png' });
}

/**
 * @param {Uint8Array} mask
 * @param {Source} source
 */
async function drawMask(mask, { size }) {
  const { canvas, context } = makeCanvas(size);
  context.fillRect(0, 0, size.width, size.height);
  const image = context.getImageData(0, 0, size.width, size.height);
  mask.forEach((value, i) => value && image.data.fill(255, 4 * i, 4 * i + 3));
  context.putImageData(image, 0, 0);
  return canvas.convertToBlob({ type: 'image/png' });
}

/**
 * @param {OffscreenCanvasRenderingContext2D} context
 * @param {Uint8Array} mask
 * @param {{height: number, width: number}} size
 * @param {number[]} colour
 * @param {number} alpha
 */
function paint(context, mask, size, colour, alpha) {
  const image = context.createImageData(size.width, size.height);
  const pixels = new Uint32Array(image.data.buffer);
  const [red, green, blue] = colour;
  const value = ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  for (let i = 0; i < mask.length; i++) if (mask[i]) pixels[i] = value;
  return image;
}

/** @param {{height: number, width: number}} size */
function makeCanvas({ height, width }) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d');
  if (!context) {
    throw new PageError(`This browser has no memory for a picture of ${width}×${height} pixels. JSON and SVG need less.`);
  }
  return { canvas, context };
}

/**
 * Returns a COCO dataset of one image, with the prompts of each annotation.
 *
 * @param {Exported[]} objects
 * @param {Source} source
 */
function toCoco(objects, { name, size, upscaler }) {
  const marked = objects.map((object) => {
    const mask = upscaler.mask(object.logits);
    return { object, mask, ...measure(mask, size.width) };
  });
  const annotations = marked.filter(({ area }) => area).map(({ object, mask, box, area }, i) => {
    return {
      id: i + 1,
      image_id: 1,
      category_id: 1,
      iscrowd: 0,
      segmentation: encodeRle(mask, size.width, size.height),
      bbox: box,
      area,
      predicted_iou: object.score,
      prompt: { point_coords: object.points, point_labels: object.labels, box: object.box },
    };
  });
  const images = [{ id: 1, file_name: name, height: size.height, width: size.width }];
  return JSON.stringify({ images, categories: [{ id: 1, name: 'object' }], annotations }, null, 1);
}

/**
 * @param {Exported[]} objects
 * @param {Source} source
 */
function toSvg(objects, { size: { height, width }, upscaler }) {
  const paths = objects.map(({ name, logits }) => {
    const path = tracePath(upscaler.mask(logits), width, height);
    return `  <path fill-rule="evenodd" d="${path}"><title>${escape(name)}</title></path>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}">\n${paths.join('\n')}\n</svg>\n`;
}

/** @param {string} text */
const escape = (text) => text.replace(/[<>&"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
