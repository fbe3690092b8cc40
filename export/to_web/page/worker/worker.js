/** The worker: opens the engine, encodes pictures, answers prompts, writes files. */

import { findEverything } from './everything.js';
import { PageError, fetchFile, fetchJson } from './files.js';
import { checkGolden } from './golden.js';
import { Upscaler } from './masks.js';
import { Networks, assemble, chooseMask, findEngines } from './network.js';
import { makeFile } from './output.js';
import { normalise, openPicture, resizePicture } from './picture.js';

/**
 * @typedef {{height: number, width: number}} Size
 * @typedef {{blob: Blob, name: string, size: Size, resized: [number, number], embedding: any}} Photo
 */

/** @type {Networks | undefined} */
let networks;
/** @type {any} */
let manifest;
/** @type {Photo | undefined} */
let photo;
let isCancelled = false;

const methods = {
  /**
   * Opens the first engine that computes what PyTorch computed.
   *
   * @param {{wanted: string | null, excluded: string[]}} options engines to take or to leave out
   * @param {(what: string, done: number, total: number) => void} report
   */
  async open({ wanted, excluded }, report) {
    const [site, read] = await Promise.all([fetchJson('site.json'), fetchJson('manifest.json')]);
    manifest = read;
    const golden = await fetchFile(manifest.golden.file, manifest.golden.sha256);
    const { choices, reasons } = await findEngines(wanted);
    const kept = choices.filter((choice) => !excluded.includes(choice.name));
    for (const [i, choice] of kept.entries()) {
      const isLast = i === kept.length - 1;
      try {
        networks = undefined;
        report('load', 0, 0);
        networks = await Networks.open(choice, manifest, site.files, (done, total) => report('load', done, total));
        report('check', 0, 0);
        const { results, milliseconds } = await checkGolden(networks, golden, manifest);
        const isRight = results.every((result) => !result.violations.length);
        if (isRight || isLast) return { ...describe(choice, reasons, isRight), results, milliseconds };
        reasons.push(`${choice.name} computes something else here (${results.find((r) => r.violations.length)?.violations[0]})`);
        await networks.release();
      } catch (error) {
        await networks?.release().catch(() => {}); // it may be broken altogether
        if (error instanceof PageError || isLast) throw error;
        reasons.push(`${choice.name} failed here (${firstLine(error)})`);
      }
    }
    throw new PageError(`No engine is left: ${reasons.join('; ')}.`);
  },

  /**
   * Encodes a photograph; prompts refer to it from then on.
   *
   * @param {{blob: Blob, name: string}} file
   */
  async encode({ blob, name }) {
    const start = performance.now();
    const bitmap = await openPicture(blob, name);
    const size = { height: bitmap.height, width: bitmap.width };
    const { side } = opened();
    const picture = resizePicture(bitmap, side);
    bitmap.close();
    const embedding = await opened().encode(normalise(picture, manifest.preprocessing, side));
    photo = { blob, name, size, resized: [picture.height, picture.width], embedding };
    return { ...size, ms: performance.now() - start };
  },

  /**
   * Answers a prompt.
   *
   * @param {{points: number[][], labels: number[], box: number[] | null}} prompt in the photograph's pixels
   */
  async predict(prompt) {
    const start = performance.now();
    const { size, resized, embedding } = current();
    const assembled = assemble(prompt, size, resized);
    const [{ scores, masks }] = await opened().decode(embedding, [assembled]);
    const chosen = chooseMask(scores, assembled.labels.length);
    const area = opened().low ** 2;
    const logits = masks.slice(chosen * area, (chosen + 1) * area);
    return { logits, score: scores[chosen], ms: performance.now() - start };
  },

  /**
   * Finds the photograph's objects.
   *
   * @param {{side: number}} options clicks along a side
   * @param {(what: string, done: number, total: number) => void} report
   */
  async everything({ side }, report) {
    const { size, resized, embedding } = current();
    isCancelled = false;
    const thresholds = manifest.thresholds ?? { pred_iou_thresh: 0.88, stability_score_thresh: 0.95 };
    const options = { side, score: thresholds.pred_iou_thresh, stability: thresholds.stability_score_thresh };
    return findEverything(opened(), embedding, size, resized, options, async (done, total) => {
      report('everything', done, total);
      await new Promise((resolve) => setTimeout(resolve)); // lets a request to cancel in
      return !isCancelled;
    });
  },

  cancel() {
    isCancelled = true;
  },

  /**
   * Returns objects as a file; see `makeFile`.
   *
   * @param {{kind: import('./output.js').Kind, objects: import('./output.js').Exported[]}} wanted
   */
  async write({ kind, objects }) {
    const { blob, name, size } = current();
    const { low, side } = opened();
    const upscaler = new Upscaler(size, size, side, low);
    return makeFile(kind, objects, { blob, name, size, upscaler });
  },
};

function opened() {
  if (!networks) throw new PageError('No engine is open. Reload the page.');
  return networks;
}

function current() {
  if (!photo) throw new PageError('There is no photograph yet.');
  return photo;
}

/**
 * @param {import('./network.js').EngineChoice} choice
 * @param {string[]} reasons
 * @param {boolean} isRight
 */
function describe(choice, reasons, isRight) {
  const { model, precision, image_size: side, grade } = manifest;
  return { engine: choice.name, threads: choice.threads, reasons, isRight, low: opened().low, side, precision, grade, model };
}

/** @param {unknown} error */
function firstLine(error) {
  return String(error instanceof Error ? error.message : error).split('\n')[0].slice(0, 200);
}

self.onmessage = async ({ data: { id, method, argument } }) => {
  const report = (/** @type {string} */ what, /** @type {number} */ done, /** @type {number} */ total) =>
    self.postMessage({ id, progress: { what, done, total } });
  try {
    const call = /** @type {(argument: any, report: any) => any} */ (methods[/** @type {keyof typeof methods} */ (method)]);
    self.postMessage({ id, result: await call.call(methods, argument, report) });
  } catch (error) {
    const isExpected = error instanceof PageError;
    self.postMessage({ id, error: { message: firstLine(error), isExpected } });
  }
};
