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
 * @param {Promise<Blob>} file that is being written
 * @param {import('./worker/output.js').Kind} kind
 * @throws {WorkerError} the file could not be written, or the browser does not allow copying
 */
export async function copy(file, kind) {
  let failure;
  const written = file.catch((error) => Promise.reject((failure = error)));
  written.catch(() => {}); // also where nobody waits for it
  const isPicture = kind === 'cutout' || kind === 'mask';
  try {
    if (!navigator.clipboard) {
      await written;
      throw new WorkerError('This browser copies on https and localhost only. Download it instead.', true);
    }
    const type = isPicture ? 'image/png' : 'text/plain';
    const data = isPicture ? written : written.then((blob) => blob.text()).then((text) => new Blob([text], { type }));
    await navigator.clipboard.write([new ClipboardItem({ [type]: data })]);
  } catch (error) {
    if (failure || error instanceof WorkerError) throw failure ?? error;
    throw new WorkerError('The browser did not allow copying. Download it instead.', true);
  }
}
