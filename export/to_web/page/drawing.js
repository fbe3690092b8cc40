/** Draws masks, boxes, points and a cross. */

/** Returns a canvas' drawing context. @param {HTMLCanvasElement} canvas */
export function contextOf(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
}

/**
 * Draws a box.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {number[]} box
 * @param {number} scale canvas pixels to a pixel of the photograph
 * @param {number} unit canvas pixels to a pixel on the screen
 * @param {string} colour
 */
export function drawBox(context, [x0, y0, x1, y1], scale, unit, colour) {
  for (const [style, width] of /** @type {[string, number][]} */ ([['#000a', 4], [colour, 2]])) {
    context.strokeStyle = style;
    context.lineWidth = width * unit;
    context.strokeRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
  }
}

/**
 * Draws a point: a plus on the object, a minus beside it.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {number[]} point
 * @param {number} label
 * @param {number} scale
 * @param {number} unit
 */
export function drawPoint(context, [x, y], label, scale, unit) {
  const [cx, cy, radius] = [x * scale, y * scale, 8 * unit];
  context.beginPath();
  context.arc(cx, cy, radius, 0, 2 * Math.PI);
  context.fillStyle = label ? '#0ca678' : '#e03131';
  context.fill();
  context.lineWidth = 2 * unit;
  context.strokeStyle = '#fff';
  context.stroke();
  context.beginPath();
  context.moveTo(cx - radius / 2, cy);
  context.lineTo(cx + radius / 2, cy);
  if (label) {
    context.moveTo(cx, cy - radius / 2);
    context.lineTo(cx, cy + radius / 2);
  }
  context.stroke();
}

/**
 * Draws the cross that the arrow keys move.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {number[]} point
 * @param {number} scale
 * @param {number} unit
 */
export function drawCross(context, [x, y], scale, unit) {
  for (const [style, width] of /** @type {[string, number][]} */ ([['#000', 4], ['#fff', 2]])) {
    context.strokeStyle = style;
    context.lineWidth = width * unit;
    context.beginPath();
    context.moveTo(x * scale - 12 * unit, y * scale);
    context.lineTo(x * scale + 12 * unit, y * scale);
    context.moveTo(x * scale, y * scale - 12 * unit);
    context.lineTo(x * scale, y * scale + 12 * unit);
    context.stroke();
  }
}

/**
 * Draws a mask and its edge over what an image holds.
 *
 * @param {ImageData} image
 * @param {Uint8Array} mask of the image's size
 * @param {string} colour #rrggbb
 * @param {number} opacity 0..1, inside the edge
 */
export function drawMask(image, mask, colour, opacity) {
  const { width, data } = image;
  const rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i]) continue;
    const isEdge = !mask[i - 1] || !mask[i + 1] || !mask[i - width] || !mask[i + width];
    data[4 * i] = rgb[0];
    data[4 * i + 1] = rgb[1];
    data[4 * i + 2] = rgb[2];
    data[4 * i + 3] = isEdge ? 255 : 255 * opacity;
  }
}
