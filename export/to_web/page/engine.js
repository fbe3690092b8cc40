/** The page's side of the worker: calls with answers, and another engine when one stops working. */

/**
 * @typedef {{what: string, done: number, total: number}} Progress
 * @typedef {{id: number, progress?: Progress, result?: any, error?: {message: string, isExpected: boolean}}} Reply
 * @typedef {{resolve: (value: any) => void, reject: (error: Error) => void, onProgress: (progress: Progress) => void}} Waiting
 */

/** An error of the worker. */
export class WorkerError extends Error {
  /**
   * @param {string} message
   * @param {boolean} isExpected whether the message is a sentence for the person at the page
   */
  constructor(message, isExpected) {
    super(message);
    this.isExpected = isExpected;
  }
}

/** The engine in its worker. */
export class Engine {
  /**
   * @param {string | null} wanted engine to use; null: the best one
   * @param {(progress: Progress) => void} onProgress of opening
   * @param {(message: string) => void} onRestart called when another engine takes over
   */
  constructor(wanted, onProgress, onRestart) {
    this.wanted = wanted;
    this.onProgress = onProgress;
    this.onRestart = onRestart;
    /** @type {string[]} */
    this.excluded = [];
    /** @type {{blob: Blob, name: string} | null} */
    this.photo = null;
    /** @type {any} */
    this.about = null;
    /** @type {Map<number, Waiting>} */
    this.waiting = new Map();
    this.count = 0;
    /** @type {Promise<void> | undefined} */
    this.restarting = undefined;
    this.start();
  }

  start() {
    this.worker?.terminate();
    for (const { reject } of this.waiting.values()) reject(new WorkerError('the worker was replaced', false));
    this.waiting.clear();
    /** @type {WorkerError | null} */
    this.failure = null;
    this.worker = new Worker(new URL('./worker/worker.js', import.meta.url), { type: 'module' });
    this.worker.onmessage = ({ data }) => this.#receive(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      const error = new WorkerError(event.message || 'the worker could not start', false);
      this.failure = error; // of calls that come later, too
      for (const { reject } of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
  }

  /** Opens the engine; returns what the worker says of it. */
  async open() {
    const options = { wanted: this.wanted, excluded: this.excluded };
    this.about = await this.#send('open', options, this.onProgress);
    return this.about;
  }

  /**
   * Encodes a photograph.
   *
   * @param {Blob} blob
   * @param {string} name
   */
  async encode(blob, name) {
    const about = await this.call('encode', { blob, name });
    this.photo = { blob, name };
    return about;
  }

  /**
   * Calls a method of the worker; if the engine broke, once more in another one.
   *
   * @param {string} method
   * @param {any} [argument]
   * @param {(progress: Progress) => void} [onProgress]
   * @returns {Promise<any>}
   */
  async call(method, argument, onProgress = () => {}) {
    const worker = this.worker;
    try {
      return await this.#send(method, argument, onProgress);
    } catch (error) {
      // a file that could not be written is no fault of the engine
      if (!(error instanceof WorkerError) || error.isExpected || method === 'write') throw error;
      if (worker === this.worker) await (this.restarting ??= this.#restart(error.message));
      else await this.restarting;
      return this.#send(method, argument, onProgress);
    }
  }

  /** Stops a search for everything after the clicks that are being computed. */
  cancel() {
    this.#send('cancel', null, () => {}).catch(() => {});
  }

  /** @param {string} reason */
  async #restart(reason) {
    try {
      const broken = this.about?.engine;
      if (broken === 'webgpu') {
        this.excluded.push(broken);
        this.wanted = null;
      }
      this.start();
      await this.open();
      if (this.photo) await this.#send('encode', this.photo, () => {});
      this.onRestart(`${broken === 'webgpu' ? 'WebGPU' : 'The engine'} stopped (${reason}). Going on with ${nameOf(this.about)}.`);
    } finally {
      this.restarting = undefined;
    }
  }

  /**
   * @param {string} method
   * @param {any} argument
   * @param {(progress: Progress) => void} onProgress
   */
  #send(method, argument, onProgress) {
    return new Promise((resolve, reject) => {
      if (this.failure) throw this.failure;
      const id = ++this.count;
      this.waiting.set(id, { resolve, reject, onProgress });
      this.worker?.postMessage({ id, method, argument });
    });
  }

  /** @param {Reply} reply */
  #receive({ id, progress, result, error }) {
    const waiting = this.waiting.get(id);
    if (!waiting) return;
    if (progress) {
      waiting.onProgress(progress);
      return;
    }
    this.waiting.delete(id);
    if (error) waiting.reject(new WorkerError(error.message, error.isExpected));
    else waiting.resolve(result);
  }
}

/** Returns an engine's name as the page shows it. @param {{engine: string, threads: number}} about */
export function nameOf({ engine, threads }) {
  if (engine === 'webgpu') return 'WebGPU';
  return `WebAssembly, ${threads} ${threads === 1 ? 'thread' : 'threads'}`;
}
