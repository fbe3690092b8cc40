/** The service worker: threads need its headers, and offline use its cache. */

const TRIED = 'pocketsam-reloaded';

/**
 * Starts the service worker; the page is loaded again once if that gives it threads.
 *
 * @returns {Promise<boolean>} whether the page is about to load again
 */
export async function isolate() {
  if (!('serviceWorker' in navigator)) return false;
  try {
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
 * Keeps all files of the page for offline use.
 *
 * @param {(message: string) => void} say
 */
export async function keepOffline(say) {
  const worker = navigator.serviceWorker?.controller;
  if (!worker) return;
  const site = await (await fetch('site.json')).json();
  navigator.serviceWorker.onmessage = ({ data }) => {
    document.documentElement.dataset.offline = data.isKept ? 'yes' : 'no';
    if (!data.isKept) say('There is no storage left for offline use; online, everything works.');
  };
  worker.postMessage({ files: ['index.html', 'site.json', 'manifest.json', ...Object.keys(site.files)] });
}
