/** The service worker: threads need its headers, and offline use its cache. */

const TRIED = 'pocketsam-reloaded';

/**
 * Starts the service worker; the page is loaded again once if that gives it threads.
 *
 * @param {() => void} onNewExport called when another export has taken this one's place: from now on
 *   its files are served
 * @returns {Promise<boolean>} whether the page is about to load again
 */
export async function isolate(onNewExport) {
  if (!('serviceWorker' in navigator)) return false;
  try {
    const waiting = (await navigator.serviceWorker.getRegistration())?.waiting;
    if (waiting) await take(waiting, onNewExport);
    await navigator.serviceWorker.register('sw.js', { updateViaCache: 'none' });
    if (crossOriginIsolated || sessionStorage.getItem(TRIED)) return false;
    await navigator.serviceWorker.ready;
    sessionStorage.setItem(TRIED, 'yes');
  } catch {
    return false; // private windows, storage switched off: one thread, online only
  }
  location.reload();
  return true;
}

/**
 * Asks a new export, all of which is here, to take the old one's place; it does unless another page runs
 * the old one. Waits a second for it: the browser first ends the old service worker.
 *
 * @param {ServiceWorker} waiting
 * @param {() => void} onNewExport
 */
async function take(waiting, onNewExport) {
  waiting.postMessage('take');
  await new Promise((resolve) => {
    navigator.serviceWorker.addEventListener('controllerchange', () => resolve(onNewExport()), { once: true });
    setTimeout(resolve, 1000);
  });
}

/**
 * Keeps all files of the page for offline use.
 *
 * @param {(message: string) => void} say
 */
export async function keepOffline(say) {
  const worker = navigator.serviceWorker?.controller;
  if (!worker) return;
  navigator.serviceWorker.onmessage = ({ data }) => {
    if (!('isKept' in data)) return;
    document.documentElement.dataset.offline = data.isKept ? 'yes' : 'no';
    if (data.isKept) return;
    const why = /quota/i.test(data.failed) ? 'there is no storage left' : data.failed;
    say(`The page could not be kept for offline use: ${why}. Online, everything works.`);
  };
  worker.postMessage('keep');
}
