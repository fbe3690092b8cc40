/**
 * The service worker: keeps the page's files, so that it works offline, and adds the headers that
 * threads need, whatever the server sends.
 */

const VERSION = 'pocketsam-' + "development"; // the exporter writes a hash of the files here
const FILES = new Set(/** @type {string[]} */ (["development"])); // and here their names

const scope = /** @type {any} */ (self);

scope.addEventListener('install', (/** @type {any} */ event) => event.waitUntil(arrive()));

/**
 * Fetches a new export: it waits until all of it is here, and the old one stays whole, offline too. The
 * first one does not wait: the page asks for its files. Where there is no storage for two, the new one
 * works online.
 */
async function arrive() {
  const failed = scope.registration.active ? await keepAll([...FILES]) : '';
  if (failed) await caches.delete(VERSION);
  if (!scope.registration.active || /quota/i.test(failed)) await scope.skipWaiting();
  else if (failed) throw new Error(failed);
}

scope.addEventListener('activate', (/** @type {any} */ event) => {
  event.waitUntil(
    caches
      .keys()
      .then((names) => names.filter((name) => name.startsWith('pocketsam-') && name !== VERSION))
      .then((old) => Promise.all(old.map((name) => caches.delete(name))))
      .then(() => scope.clients.claim()),
  );
});

scope.addEventListener('fetch', (/** @type {any} */ event) => {
  const { request } = event;
  const name = keyOf(request.url).slice(scope.registration.scope.length);
  const isOurs = request.method === 'GET' && request.url.startsWith(scope.registration.scope) && FILES.has(name);
  if (isOurs) event.respondWith(answer(request, event)); // other files of the place are not the page's
});

scope.addEventListener('message', (/** @type {any} */ event) => {
  if (event.data === 'take') event.waitUntil(takeIfAlone(event.source));
  else if (event.data === 'keep') {
    event.waitUntil(keepAll([...FILES]).then((failed) => event.source?.postMessage({ isKept: !failed, failed })));
  }
});

/**
 * Takes the place of the old export, if no other page is open that runs it.
 *
 * @param {any} source the page that asks
 */
async function takeIfAlone(source) {
  const isAnother = (/** @type {any} */ page) => page.id !== source.id && page.url.startsWith(scope.registration.scope);
  for (let attempt = 0; attempt < 10; attempt++) {
    const pages = await scope.clients.matchAll({ type: 'window', includeUncontrolled: true });
    if (!pages.some(isAnother)) {
      await scope.skipWaiting();
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 100)); // a page that was reloaded leaves late
  }
}

/**
 * @param {Request} request
 * @param {any} event
 */
async function answer(request, event) {
  const key = keyOf(request.url);
  const cache = await caches.open(VERSION);
  if (request.cache !== 'reload') {
    const kept = await cache.match(key);
    if (kept) return isolated(kept);
  }
  // asks the server even if the browser has a copy: it may be an older export's
  const response = await fetch(key, { cache: request.cache === 'reload' ? 'reload' : 'no-cache' });
  if (response.ok && response.status === 200) {
    event.waitUntil(cache.put(key, response.clone()).catch(() => {})); // keepAll reports full storage
  }
  return isolated(response);
}

/**
 * Keeps files that are not kept yet; returns why it could not, or ''.
 *
 * @param {string[]} files
 */
async function keepAll(files) {
  const cache = await caches.open(VERSION);
  for (const name of files) {
    const key = keyOf(new URL(name, scope.registration.scope).href);
    if (await cache.match(key)) continue;
    try {
      await cache.add(new Request(key, { cache: 'no-cache' }));
    } catch (error) {
      return String(error);
    }
  }
  return '';
}

/** Returns the address that a file is kept by: without a query, a folder as its page. @param {string} url */
function keyOf(url) {
  const address = new URL(url);
  address.search = address.hash = '';
  if (address.pathname.endsWith('/')) address.pathname += 'index.html';
  return address.href;
}

/** Returns a response with the headers of an isolated page. @param {Response} response */
function isolated(response) {
  if (response.type === 'opaque' || response.status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set('Cross-Origin-Opener-Policy', 'same-origin');
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
  headers.set('Cross-Origin-Resource-Policy', 'same-origin');
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
