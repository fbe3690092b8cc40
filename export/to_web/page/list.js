/** The list of objects beside the photograph. */

/**
 * Returns a row: choose the object, or delete it.
 *
 * @param {import('./objects.js').MarkedObject} object
 * @param {import('./objects.js').Objects} objects
 */
export function makeRow({ id, name, colour, score }, objects) {
  const isSelected = id === objects.selected?.id;
  const row = Object.assign(document.createElement('li'), { className: isSelected ? 'selected' : '' });
  const choose = makeButton('name', () => objects.select(isSelected ? null : id));
  const chip = makeSpan('chip', '');
  chip.style.background = colour;
  const figure = makeSpan('score', `${Math.round(100 * score)} %`);
  figure.title = 'How well the network expects this mask to fit the object';
  choose.append(chip, makeSpan('', name), figure);
  choose.setAttribute('aria-pressed', String(isSelected));
  const remove = makeButton('delete', () => objects.remove(id));
  remove.textContent = '✕';
  remove.setAttribute('aria-label', `Delete ${name}`);
  row.append(choose, remove);
  return row;
}

/** @param {string} className @param {() => void} onclick */
function makeButton(className, onclick) {
  return Object.assign(document.createElement('button'), { className, onclick, type: 'button' });
}

/** @param {string} className @param {string} textContent */
function makeSpan(className, textContent) {
  return Object.assign(document.createElement('span'), { className, textContent });
}
