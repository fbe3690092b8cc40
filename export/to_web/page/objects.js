/** The objects that a person has marked, with undo. Objects are never changed, but replaced. */

/**
 * @typedef {object} MarkedObject
 * @property {number} id
 * @property {string} name
 * @property {string} colour
 * @property {number[][]} points (x, y) in the photograph's pixels
 * @property {number[]} labels 1: on the object, 0: not on it
 * @property {number[] | null} box (x0, y0, x1, y1)
 * @property {Float32Array} logits
 * @property {number} score
 *
 * @typedef {{objects: MarkedObject[], selected: number | null}} State `selected` is an id
 */

const COLOURS = ['#ff5a5f', '#2f80ed', '#f2b01e', '#12b886', '#9b5de5', '#ff8a3d', '#00b4d8', '#e64980', '#82c91e', '#8d6e63'];

/** All objects of a photograph. */
export class Objects {
  /** @param {() => void} onChange */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {State} */
    this.state = { objects: [], selected: null };
    /** @type {State[]} */
    this.past = [];
    this.count = 0;
  }

  /** Forgets everything, undo included: for another photograph. */
  clear() {
    this.state = { objects: [], selected: null };
    this.past = [];
    this.count = 0;
    this.onChange();
  }

  get all() {
    return this.state.objects;
  }

  get selected() {
    return this.all.find((object) => object.id === this.state.selected) ?? null;
  }

  get canUndo() {
    return this.past.length > 0;
  }

  /**
   * Puts an answer in place of the object that it belongs to, or adds an object; selects it. The answer
   * to an object that was removed meanwhile is dropped.
   *
   * @param {MarkedObject | null} object that was asked about; null: a new one
   * @param {Pick<MarkedObject, 'points' | 'labels' | 'box' | 'logits' | 'score'>} answer
   */
  put(object, answer) {
    const made = object ? { ...object, ...answer } : this.#make(answer);
    if (object && !this.all.some((other) => other.id === object.id)) return;
    const objects = object ? this.all.map((other) => (other.id === made.id ? made : other)) : [...this.all, made];
    this.#change({ objects, selected: made.id });
  }

  /** @param {Pick<MarkedObject, 'points' | 'labels' | 'box' | 'logits' | 'score'>[]} answers */
  add(answers) {
    this.#change({ objects: [...this.all, ...answers.map((answer) => this.#make(answer))], selected: null });
  }

  /** @param {number | null} id */
  select(id) {
    this.state = { ...this.state, selected: id };
    this.onChange();
  }

  /** @param {number} id */
  remove(id) {
    const selected = this.state.selected === id ? null : this.state.selected;
    this.#change({ objects: this.all.filter((object) => object.id !== id), selected });
  }

  removeAll() {
    if (this.all.length) this.#change({ objects: [], selected: null });
  }

  undo() {
    const before = this.past.pop();
    if (!before) return;
    this.state = before;
    this.onChange();
  }

  /** @param {Pick<MarkedObject, 'points' | 'labels' | 'box' | 'logits' | 'score'>} answer */
  #make(answer) {
    const id = ++this.count;
    return { id, name: `Object ${id}`, colour: COLOURS[(id - 1) % COLOURS.length], ...answer };
  }

  /** @param {State} state */
  #change(state) {
    this.past.push(this.state);
    this.state = state;
    this.onChange();
  }
}
