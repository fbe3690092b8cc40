/** The photograph with its masks, and what a person does on it: click, drag, point with keys. */

import { contextOf, drawBox, drawCross, drawMask, drawPoint } from './drawing.js';
import { Upscaler } from './worker/masks.js';

/** @typedef {import('./objects.js').MarkedObject} MarkedObject */

const MAX_SIDE = 1600; // of the canvases, in pixels
const DRAG = 6; // pixels on the screen that make a drag of a click
const KEY_STEP = 0.02; // of the photograph's longer side, for an arrow key

/**
 * @typedef {object} Handlers what the stage reports, in the photograph's pixels
 * @property {(point: number[], label: number) => void} onClick
 * @property {(box: number[]) => void} onBox
 * @property {(point: number[] | null) => void} onHover
 */

/** The stage. */
export class Stage {
  /**
   * @param {HTMLElement} element holds three canvases of the same size
   * @param {Handlers} handlers
   */
  constructor(element, handlers) {
    this.element = element;
    this.handlers = handlers;
    const [picture, others, current] = element.querySelectorAll('canvas');
    this.layers = { picture, others, current };
    this.tool = 'add';
    /** @type {{bitmap: ImageBitmap, width: number, height: number, low: number, side: number} | null} */
    this.photo = null;
    /** @type {WeakMap<Float32Array, {mask: Uint8Array, area: number}>} */
    this.masks = new WeakMap();
    /** @type {{objects: MarkedObject[], selected: MarkedObject | null}} */
    this.shown = { objects: [], selected: null };
    /** @type {Float32Array | null} */
    this.preview = null;
    /** @type {number[] | null} */
    this.cursor = null;
    /** @type {number[] | null} */
    this.drag = null;
    this.#listen();
    new ResizeObserver(() => this.#fit()).observe(/** @type {HTMLElement} */ (element.parentElement));
  }

  /**
   * Shows another photograph.
   *
   * @param {ImageBitmap} bitmap as large as is shown, or larger
   * @param {{width: number, height: number}} size of the photograph
   * @param {{low: number, side: number}} sizes of the logits and of the canvas that they belong to
   */
  setPhoto(bitmap, { width, height }, { low, side }) {
    this.photo?.bitmap.close();
    this.photo = { bitmap, width, height, low, side };
    this.preview = this.cursor = null;
    this.element.parentElement?.style.setProperty('--ratio', String(width / height));
    this.#fit();
  }

  /**
   * Shows objects; the selected one with its points.
   *
   * @param {MarkedObject[]} objects
   * @param {MarkedObject | null} selected
   */
  setObjects(objects, selected) {
    this.shown = { objects, selected };
    this.preview = null;
    this.#drawOthers();
    this.#drawCurrent();
  }

  /** @param {Float32Array | null} logits of the object under the pointer */
  setPreview(logits) {
    this.preview = logits;
    this.#drawCurrent();
  }

  /** Fits the canvases into the space that there is. */
  #fit() {
    const space = this.element.parentElement?.getBoundingClientRect();
    if (!this.photo || !space || !space.width || !space.height) return;
    const { width, height, bitmap, side, low } = this.photo;
    const scale = Math.min(space.width / width, space.height / height);
    const [shownWidth, shownHeight] = [width * scale, height * scale];
    this.element.style.width = `${shownWidth}px`;
    this.element.style.height = `${shownHeight}px`;
    const density = Math.min(devicePixelRatio || 1, MAX_SIDE / Math.max(shownWidth, shownHeight));
    const size = {
      width: Math.max(1, Math.round(shownWidth * density)),
      height: Math.max(1, Math.round(shownHeight * density)),
    };
    for (const canvas of Object.values(this.layers)) Object.assign(canvas, size);
    this.upscaler = new Upscaler({ width, height }, size, side, low);
    this.masks = new WeakMap();
    const context = contextOf(this.layers.picture);
    context.imageSmoothingQuality = 'high';
    context.drawImage(bitmap, 0, 0, size.width, size.height);
    this.#drawOthers();
    this.#drawCurrent();
  }

  #drawOthers() {
    const { others } = this.layers;
    const { objects, selected } = this.shown;
    const context = contextOf(others);
    context.clearRect(0, 0, others.width, others.height);
    if (!this.upscaler) return;
    const image = context.createImageData(others.width, others.height);
    const drawn = objects
      .filter((object) => object !== selected)
      .map(({ logits, colour }) => ({ ...this.#maskOf(logits), colour }))
      .sort((a, b) => b.area - a.area); // small ones on top
    for (const { mask, colour } of drawn) drawMask(image, mask, colour, 0.45);
    context.putImageData(image, 0, 0);
  }

  #drawCurrent() {
    const { current } = this.layers;
    const { selected } = this.shown;
    const context = contextOf(current);
    context.clearRect(0, 0, current.width, current.height);
    if (!this.upscaler || !this.photo) return;
    const logits = selected?.logits ?? this.preview;
    if (logits) {
      const image = context.createImageData(current.width, current.height);
      drawMask(image, this.#maskOf(logits).mask, selected?.colour ?? '#ffffff', selected ? 0.5 : 0.35);
      context.putImageData(image, 0, 0);
    }
    const scale = current.width / this.photo.width;
    const unit = current.width / this.element.clientWidth;
    if (selected?.box) drawBox(context, selected.box, scale, unit, selected.colour);
    if (this.drag) drawBox(context, this.drag, scale, unit, '#ffffff');
    selected?.points.forEach((point, i) => drawPoint(context, point, selected.labels[i], scale, unit));
    if (this.cursor) drawCross(context, this.cursor, scale, unit);
  }

  /**
   * Returns a mask of the canvases' size, and its area.
   *
   * @param {Float32Array} logits
   */
  #maskOf(logits) {
    const kept = this.masks.get(logits);
    if (kept) return kept;
    const mask = /** @type {Upscaler} */ (this.upscaler).mask(logits);
    const made = { mask, area: mask.reduce((sum, value) => sum + value, 0) };
    this.masks.set(logits, made);
    return made;
  }

  /**
   * Returns where a pointer is in the photograph, cut off at its edges.
   *
   * @param {MouseEvent} event
   */
  #locate(event) {
    const area = this.element.getBoundingClientRect();
    const { width, height } = this.photo ?? { width: 1, height: 1 };
    const x = ((event.clientX - area.left) / area.width) * width;
    const y = ((event.clientY - area.top) / area.height) * height;
    return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
  }

  #listen() {
    const { element, handlers } = this;
    /** @type {{point: number[], event: PointerEvent, label: number} | null} */
    let pressed = null;
    element.addEventListener('contextmenu', (event) => event.preventDefault());
    element.addEventListener('pointerdown', (event) => {
      if (!this.photo || !event.isPrimary || ![0, 2].includes(event.button)) return; // no second finger
      const isNegative = event.button === 2 || event.altKey || event.ctrlKey || this.tool === 'remove';
      pressed = { point: this.#locate(event), event, label: isNegative ? 0 : 1 };
      this.cursor = null;
      if (this.tool === 'box' || event.pointerType === 'mouse') element.setPointerCapture(event.pointerId);
    });
    element.addEventListener('pointermove', (event) => {
      if (!this.photo || (pressed && event.pointerId !== pressed.event.pointerId)) return;
      if (!pressed) {
        if (event.pointerType === 'mouse') handlers.onHover(this.#locate(event));
        return;
      }
      const moved = Math.hypot(event.clientX - pressed.event.clientX, event.clientY - pressed.event.clientY);
      const draws = pressed.label === 1 && (this.tool === 'box' || event.pointerType === 'mouse');
      if (draws && moved > DRAG) {
        this.drag = boxOf(pressed.point, this.#locate(event));
        this.#drawCurrent();
      }
    });
    element.addEventListener('pointerup', (event) => {
      if (event.pointerId !== pressed?.event.pointerId) return;
      const { point, label } = pressed;
      const box = this.drag;
      pressed = this.drag = null;
      this.#drawCurrent();
      if (box) handlers.onBox(box);
      else if (this.tool !== 'box' || label === 0) handlers.onClick(point, label);
    });
    element.addEventListener('pointercancel', (event) => {
      if (event.pointerId !== pressed?.event.pointerId) return;
      pressed = this.drag = null;
      this.#drawCurrent();
    });
    element.addEventListener('pointerleave', () => !pressed && handlers.onHover(null));
    element.addEventListener('keydown', (event) => this.#press(event));
    element.addEventListener('blur', () => {
      this.cursor = null;
      this.#drawCurrent();
    });
  }

  /** Moves a cross by the arrow keys, and clicks there. @param {KeyboardEvent} event */
  #press(event) {
    if (!this.photo) return;
    const { width, height } = this.photo;
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[/** @type {keyof typeof ways} */ (event.key)];
    if (way) {
      const step = Math.max(width, height) * KEY_STEP * (event.shiftKey ? 0.2 : 1);
      const [x, y] = this.cursor ?? [width / 2, height / 2];
      this.cursor = [
        Math.min(Math.max(x + way[0] * step, 0), width),
        Math.min(Math.max(y + way[1] * step, 0), height),
      ];
      this.handlers.onHover(this.cursor);
      this.#drawCurrent();
    } else if (event.key === ' ' && this.cursor) {
      this.handlers.onClick(this.cursor, event.shiftKey || this.tool === 'remove' ? 0 : 1);
    } else {
      return;
    }
    event.preventDefault();
  }
}

/** @param {number[]} a @param {number[]} b */
const boxOf = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
