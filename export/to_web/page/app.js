/** The page: connects the stage, the objects and the engine. */

import { Engine, WorkerError, nameOf } from './engine.js';
import { makeRow } from './list.js';
import { Objects } from './objects.js';
import { showProof } from './proof.js';
import { isolate, keepOffline } from './offline.js';
import { copy, download } from './save.js';
import { Stage } from './stage.js';

const GRID = 16; // clicks along a side, of everything mode
const SHOWN = 2048; // pixels of the longer side of the photograph that is drawn

/** @param {string} id */
const find = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
/** @param {string} id of a button or a field */
const field = (id) => /** @type {HTMLInputElement} */ (document.getElementById(id));

const objects = new Objects(render);
const stage = new Stage(find('stage'), { onClick, onBox, onHover });
const engine = new Engine(
  new URL(location.href).searchParams.get('engine'),
  ({ what, done, total }) => {
    const bar = /** @type {HTMLProgressElement} */ (find('loading'));
    if (what === 'load' && total) bar.value = done / total;
    else bar.removeAttribute('value');
    find('engine').textContent = what === 'check' ? 'checking…' : 'loading…';
  },
  (message) => {
    showEngine();
    say(message);
  },
);
/** @type {Promise<unknown>} */
let ready = Promise.resolve();
/** @type {Promise<unknown>} */
let queue = Promise.resolve(); // what a person asked for, in order
let isSearching = false;
/** @type {string | null} */
let photoName = null;

start();

async function start() {
  if (await isolate(onNewExport)) return; // the page loads again
  connect();
  ready = engine.open().then(showEngine);
  ready.catch((error) => {
    find('engine').textContent = 'not working';
    find('engine').className = 'badge bad';
    fail(error);
  });
  await ready;
  find('loading').className = 'done';
  keepOffline(say);
}

function onNewExport() {
  if (photoName) say('A new version of this page has arrived. Reload it when you are done.');
  else location.reload();
}

/**
 * Opens a photograph.
 *
 * @param {Blob} blob
 * @param {string} name
 */
function open(blob, name) {
  return enqueue(`Reading ${name}…`, async () => {
    await ready;
    const before = engine.photo;
    const about = await engine.encode(blob, name);
    const options = /** @type {const} */ ({ imageOrientation: 'from-image', ...shownSize(about) });
    const bitmap = await createImageBitmap(blob, options).catch(async (error) => {
      if (before) await engine.encode(before.blob, before.name); // which stays on the stage
      throw error;
    });
    stage.setPhoto(bitmap, about, engine.about);
    photoName = name;
    objects.clear();
    for (const [id, isHidden] of /** @type {[string, boolean][]} */ ([['empty', true], ['stage', false], ['tools', false], ['panel', false]])) {
      find(id).hidden = isHidden;
    }
    stage.element.focus({ preventScroll: true });
  });
}

/** @param {{width: number, height: number}} size */
function shownSize({ width, height }) {
  const scale = SHOWN / Math.max(width, height);
  if (scale >= 1) return {};
  const resizeWidth = Math.max(1, Math.round(width * scale));
  return { resizeWidth, resizeHeight: Math.max(1, Math.round(height * scale)), resizeQuality: /** @type {const} */ ('high') };
}

/** @param {number[]} point @param {number} label */
function onClick(point, label) {
  ask((object) => ({
    points: [...(object?.points ?? []), point],
    labels: [...(object?.labels ?? []), label],
    box: object?.box ?? null,
  }));
}

/** @param {number[]} box */
function onBox(box) {
  ask((object) => ({ points: object?.points ?? [], labels: object?.labels ?? [], box }));
}

/**
 * Asks for the selected object's mask, or for a new object's, with a prompt that has grown.
 *
 * @param {(object: import('./objects.js').MarkedObject | null) => {points: number[][], labels: number[], box: number[] | null}} grow
 */
function ask(grow) {
  hovered = null;
  const { photo } = stage;
  enqueue('', async () => {
    if (stage.photo !== photo) return; // another one was opened meanwhile
    const object = objects.selected;
    const prompt = grow(object);
    const { logits, score } = await engine.call('predict', prompt);
    objects.put(object, { ...prompt, logits, score });
  });
}

/** @type {number[] | null} */
let hovered = null; // where the pointer is, for the next preview
let isPreviewing = false;

/** @param {number[] | null} point */
async function onHover(point) {
  hovered = objects.selected || stage.tool === 'box' || isSearching ? null : point;
  if (!hovered) stage.setPreview(null);
  if (isPreviewing) return;
  isPreviewing = true;
  try {
    while (hovered) {
      const place = hovered;
      const { logits } = await engine.call('predict', { points: [place], labels: [1], box: null });
      if (!hovered) break;
      stage.setPreview(logits);
      if (hovered === place) hovered = null;
    }
  } catch (error) {
    fail(error);
  } finally {
    isPreviewing = false;
  }
}

function searchEverything() {
  if (isSearching) {
    engine.cancel();
    return;
  }
  const { photo } = stage;
  enqueue('', async () => {
    if (stage.photo !== photo) return;
    isSearching = true;
    render();
    try {
      const { found, best } = await engine.call('everything', { side: GRID }, ({ done, total }) =>
        busy(`Looking everywhere: ${Math.round((100 * done) / total)} %`),
      );
      objects.add(found.map((/** @type {any} */ { logits, score, point }) => ({ logits, score, points: [point], labels: [1], box: null })));
      say(found.length ? `${found.length} objects.` : `Nothing was sure enough (best score ${best.toFixed(2)}). Click an object instead.`);
    } finally {
      isSearching = false;
      render();
    }
  });
}

/** @param {'download' | 'copy'} how */
function save(how) {
  const kind = /** @type {import('./worker/output.js').Kind} */ (field('kind').value);
  const { photo } = stage;
  const write = async () => {
    if (stage.photo !== photo) throw new WorkerError('Another photograph was opened meanwhile. Save it again.', true);
    const wanted = objects.all.map(({ id, colour, ...object }) => object);
    return engine.call('write', { kind, objects: wanted });
  };
  if (how === 'download') {
    enqueue('Writing…', async () => download(await write(), photoName ?? 'photo', kind));
    return;
  }
  // Safari wants the clipboard to be asked during the click, so it gets a promise of the file
  const blob = queue.then(write);
  const copied = copy(blob, kind);
  copied.catch(() => {}); // said below
  enqueue('Writing…', async () => {
    await copied;
    say('Copied.');
  });
}

/**
 * Does what a person asked for after what they asked for before; a failure is said and ends nothing.
 *
 * @param {string} what shown meanwhile
 * @param {() => Promise<void>} task
 */
function enqueue(what, task) {
  queue = queue.then(async () => {
    busy(what);
    find('message').hidden = true;
    try {
      await task();
    } catch (error) {
      fail(error);
    } finally {
      busy('');
    }
  });
  return queue;
}

/** Shows the objects and which buttons can be used. */
function render() {
  const { all, selected } = objects;
  stage.setObjects(all, selected);
  find('list').replaceChildren(...all.map((object) => makeRow(object, objects)));
  find('hint').hidden = all.length > 0;
  for (const id of ['download', 'copy', 'clear']) field(id).disabled = !all.length || isSearching;
  field('undo').disabled = !objects.canUndo || isSearching;
  field('new').disabled = !selected;
  find('everything').textContent = isSearching ? 'Stop' : 'Everything';
}

function showEngine() {
  const badge = find('engine');
  badge.textContent = engine.about.isRight ? nameOf(engine.about) : 'computes something else';
  badge.className = `badge ${engine.about.isRight ? 'good' : 'bad'}`;
  field('engine').disabled = false;
}

function connect() {
  const actions = {
    choose: () => find('file').click(),
    another: () => find('file').click(),
    sample: async () => open(await (await fetch('photo.jpg')).blob(), 'photo.jpg'),
    undo: () => objects.undo(),
    clear: () => objects.removeAll(),
    new: () => objects.select(null),
    everything: searchEverything,
    download: () => save('download'),
    copy: () => save('copy'),
    engine: () => showProof(engine.about),
  };
  for (const [id, action] of Object.entries(actions)) find(id).onclick = () => Promise.resolve(action()).catch(fail);
  const input = field('file');
  input.onchange = () => {
    if (input.files?.[0]) open(input.files[0], input.files[0].name);
    input.value = '';
  };
  for (const radio of document.getElementsByName('tool')) {
    radio.onchange = () => {
      stage.tool = /** @type {HTMLInputElement} */ (radio).value;
      stage.element.classList.toggle('box', stage.tool === 'box');
    };
  }
  document.onpaste = ({ clipboardData }) => take(clipboardData?.files, 'pasted.png');
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add('dropping');
  };
  document.ondragleave = (event) => !event.relatedTarget && document.body.classList.remove('dropping');
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove('dropping');
    if (!take(event.dataTransfer?.files, '')) say('That was no file. Drop a photograph from a folder.');
  };
  document.onkeydown = onKey;
}

/** @param {FileList | undefined} files @param {string} name of a file without one */
function take(files, name) {
  const file = files?.[0];
  if (file) open(file, file.name || name);
  return Boolean(file);
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  if (!photoName || target.closest('dialog, select')) return;
  const isCommand = event.ctrlKey || event.metaKey;
  if (event.key.toLowerCase() === 'z' && isCommand) objects.undo();
  else if (isCommand || event.altKey) return;
  else if (event.key === 'Enter' && !target.closest('button, label')) objects.select(null);
  else if (event.key === 'Escape' && isSearching) engine.cancel();
  else if (event.key === 'Escape') objects.select(null);
  else if (['Delete', 'Backspace'].includes(event.key) && objects.selected) objects.remove(objects.selected.id);
  else if (event.key.toLowerCase() === 'e') searchEverything();
  else return;
  event.preventDefault();
}

/** @param {string} text '': nothing is being done */
function busy(text) {
  find('busy').textContent = text;
  find('busy').hidden = !text;
}

/** @param {string} text */
function say(text) {
  const message = find('message');
  Object.assign(message, { textContent: text, className: 'message', hidden: false });
  setTimeout(() => message.textContent === text && (message.hidden = true), 8000);
}

/** @param {unknown} error */
function fail(error) {
  const isExpected = error instanceof WorkerError && error.isExpected;
  const reason = error instanceof Error ? error.message : String(error);
  const text = isExpected ? reason : `Something went wrong: ${reason}. Reload the page; if it stays, try a smaller photograph.`;
  Object.assign(find('message'), { textContent: text, className: 'message error', hidden: false });
}

/** Resolves when everything that a person has asked for is done; the tests wait for it. */
export const settled = () => queue;
