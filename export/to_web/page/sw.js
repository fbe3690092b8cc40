/**
 * The service worker: keeps the page's files, so that it works offline, and adds the headers that
 * threads need, whatever the server sends.
 */

const VERSION = 'pocketsam-' + "development"; // the exporter writes a hash of the files here

const scope = /** @type {any} */ (self);

scope.addEventListener('install', () => scope.skipWaiting());

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
  const isOurs = request.method === 'GET' && request.url.startsWith(scope.registration.scope);
  if (isOurs) event.respondWith(answer(request, event));
});

scope.addEventListener('message', (/** @type {any} */ event) => {
  event.waitUntil(keepAll(event.data.files).then(
    (failed) => event.source?.postMessage({ isKept: !failed, failed }),
  ));
});

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
