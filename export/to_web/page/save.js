/** Hands files to the person: as a download, or in the clipboard. */

import { WorkerError } from './engine.js';

const SUFFIXES = { cutout: '-cutout.png', mask: '-mask.png', svg: '.svg', json: '.json' };

/**
 * Downloads a file named after the photograph.
 *
 * @param {Blob} blob
 * @param {string} photo its name
 * @param {import('./worker/output.js').Kind} kind
 */
export function download(blob, photo, kind) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = `${photo.replace(/\.[^.]*$/, '')}${SUFFIXES[kind]}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/**
 * Puts a picture or a text into the clipboard.
 *
 * @param {Blob} blob
 * @throws {WorkerError} the browser does not allow it
 */
export async function copy(blob) {
  if (!navigator.clipboard) {
    throw new WorkerError('This browser copies on https and localhost only. Download it instead.', true);
  }
  try {
    if (blob.type === 'image/png') await navigator.clipboard.write([new ClipboardItem({ 'image/png': blob })]);
    else await navigator.clipboard.writeText(await blob.text());
  } catch {
    throw new WorkerError('The browser did not allow copying. Download it instead.', true);
  }
}
