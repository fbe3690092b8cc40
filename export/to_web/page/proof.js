/** Shows what the golden prompts gave in this browser. */

import { nameOf } from './engine.js';

/** @typedef {import('./worker/golden.js').GoldenResult} GoldenResult */

const PROMPTS = { point: 'Click', box: 'Box', points: 'Clicks', refine: 'Mask' };

/**
 * Opens the dialogue.
 *
 * @param {{engine: string, threads: number, reasons: string[], results: GoldenResult[], isRight: boolean,
 *   milliseconds: {encoder: number, decoder: number}, side: number, precision: string,
 *   model: {architecture: string, checkpoint: string}}} about
 */
export function showProof(about) {
  const { results, isRight, milliseconds, reasons, model, precision, side } = about;
  const verdict = find('verdict');
  verdict.textContent = isRight
    ? 'Yes: the masks are those of PyTorch, and of the machine that made this page.'
    : 'No: this browser computes something else. Do not rely on its masks.';
  verdict.className = isRight ? 'good' : 'bad';
  const names = [...new Set(results.map((result) => result.prompt))];
  find('figures').replaceChildren(
    ...names.map((name) => makeRow(results.filter((result) => result.prompt === name))),
  );
  const first = results.flatMap((result) => result.violations)[0];
  find('about').replaceChildren(
    ...[
      `${nameOf(about)}: a photograph takes ${Math.round(milliseconds.encoder)} ms, a click ${Math.round(milliseconds.decoder)} ms.`,
      `${model.architecture} (${model.checkpoint}), ${precision}, ${side} pixels.`,
      ...reasons.map((reason) => `Left out: ${reason}.`),
      ...(first ? [`Outside the tolerance: ${first}.`] : []),
    ].map((textContent) => Object.assign(document.createElement('p'), { textContent })),
  );
  /** @type {HTMLDialogElement} */ (find('proof')).showModal();
}

/** @param {string} id */
const find = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** Returns a prompt's row. @param {GoldenResult[]} results beside PyTorch, and beside the same files at export */
function makeRow(results) {
  const row = document.createElement('tr');
  const isRight = results.every((result) => !result.violations.length);
  const [torch, own] = results.map((result) => result.figures);
  const cells = [
    PROMPTS[/** @type {keyof typeof PROMPTS} */ (results[0].prompt)],
    torch.mask_iou_mean.toFixed(4),
    torch.snr_db.toFixed(1),
    own ? own.mask_iou_mean.toFixed(4) : '',
    own ? own.snr_db.toFixed(1) : '',
    isRight ? '✓' : '✗',
  ];
  row.append(...cells.map((textContent) => Object.assign(document.createElement('td'), { textContent })));
  row.lastElementChild?.classList.add(isRight ? 'good' : 'bad');
  return row;
}
