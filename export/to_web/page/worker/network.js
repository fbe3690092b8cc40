/** The encoder and the decoder in onnxruntime-web: one engine, one picture at a time. */

import { PageError, fetchFile, unpack } from './files.js';

/**
 * @typedef {import('./files.js').Progress} Progress
 * @typedef {{name: string, threads: number}} EngineChoice `webgpu` or `wasm`
 * @typedef {{coords: number[][], labels: number[], mask?: Float32Array}} Prompt points (x, y) in
 *   pixels of the canvas and their labels, as SAM numbers them; a mask input of a quarter of its side
 * @typedef {{scores: Float32Array, masks: Float32Array}} Answer scores [4], masks [4, S/4, S/4]
 */

const FILES = {
  webgpu: ['onnxruntime/ort.jspi.bundle.min.mjs', 'onnxruntime/ort-wasm-simd-threaded.jspi.wasm.packed'],
  wasm: ['onnxruntime/ort.wasm.bundle.min.mjs', 'onnxruntime/ort-wasm-simd-threaded.wasm.packed'],
};

/**
 * Returns the engines that this browser offers, best first, and why the better ones are left out.
 *
 * @param {string | null} wanted `webgpu`, `wasm` (all threads) or `wasm1`; null: all of them
 * @returns {Promise<{choices: EngineChoice[], reasons: string[]}>}
 */
export async function findEngines(wanted) {
  if (typeof WebAssembly === 'undefined') {
    throw new PageError('This browser has no WebAssembly, or it is switched off; nothing can be computed here.');
  }
  const reasons = [];
  const choices = [];
  const noGpu = await findObstacle(wanted === 'webgpu');
  if (!noGpu) choices.push({ name: 'webgpu', threads: 1 });
  else reasons.push(noGpu);
  const cores = Math.max(1, Math.min(navigator.hardwareConcurrency || 1, 4));
  if (self.crossOriginIsolated && cores > 1) choices.push({ name: 'wasm', threads: cores });
  else if (cores > 1) reasons.push('no threads: the page is not isolated (it needs https or localhost)');
  choices.push({ name: 'wasm', threads: 1 });
  const known = { webgpu: 'webgpu', wasm: 'wasm', wasm1: 'wasm' };
  const kept = choices.filter(
    (choice) =>
      !wanted ||
      (choice.name === known[/** @type {keyof typeof known} */ (wanted)] &&
        (wanted !== 'wasm1' || choice.threads === 1)),
  );
  if (!kept.length) throw new PageError(`This browser has no engine "${wanted}". ${reasons.join('; ')}.`);
  return { choices: kept, reasons };
}

/**
 * Returns why WebGPU is not used; '' if it can be.
 *
 * @param {boolean} isForced a software adapter is taken as well
 */
async function findObstacle(isForced) {
  const gpu = /** @type {any} */ (navigator).gpu;
  if (!gpu) return 'no WebGPU in this browser';
  if (!('Suspending' in WebAssembly)) return "no WebGPU: this browser's WebAssembly cannot wait for it (JSPI)";
  const adapter = await gpu.requestAdapter().catch(() => null);
  if (!adapter) return 'no WebGPU adapter on this machine';
  const about = adapter.info ?? {};
  const isSoftware = about.isFallbackAdapter || /swiftshader|llvmpipe/i.test(`${about.architecture} ${about.description}`);
  return isSoftware && !isForced ? 'no WebGPU: the adapter is a slow one in software' : '';
}

/** Both networks in one engine. */
export class Networks {
  /**
   * @param {any} ort the module
   * @param {any} encoder
   * @param {any} decoder
   * @param {any} manifest
   */
  constructor(ort, encoder, decoder, manifest) {
    this.ort = ort;
    this.encoder = encoder;
    this.decoder = decoder;
    this.side = /** @type {number} */ (manifest.image_size);
    this.low = /** @type {number} */ (manifest.encoder.outputs[0].shape[2]) * 4;
    /** @type {Promise<any>} */
    this.queue = Promise.resolve();
  }

  /**
   * Opens a bundle's networks.
   *
   * @param {EngineChoice} choice
   * @param {any} manifest
   * @param {Record<string, string>} hashes of the page's files
   * @param {Progress} progress bytes of all files
   */
  static async open(choice, manifest, hashes, progress) {
    const [module, binary] = FILES[/** @type {keyof typeof FILES} */ (choice.name)];
    const names = [module, binary, manifest.encoder.file, manifest.decoder.file];
    const wanted = { ...hashes };
    for (const { file, sha256 } of [manifest.encoder, manifest.decoder]) wanted[file] = sha256;
    const arrived = names.map(() => [0, 0]);
    const [, packed, encoder, decoder] = await Promise.all(
      names.map((name, i) =>
        fetchFile(name, wanted[name], (done, total) => {
          arrived[i] = [done, total];
          progress(...sum(arrived));
        }),
      ),
    );
    // the module remembers its first number of threads, and a start that failed: one for each choice
    const ort = await import(new URL(`../${module}?threads=${choice.threads}`, import.meta.url).href);
    ort.env.logLevel = 'error';
    ort.env.wasm.numThreads = choice.threads;
    ort.env.wasm.wasmBinary = (await unpack(packed)).buffer;
    const options = {
      executionProviders: [choice.name],
      graphOptimizationLevel: 'all',
      extra: { session: { disable_quant_qdq: '1' } }, // weights of 8 bits are unpacked once
    };
    /** @type {any[]} */
    const sessions = [];
    try {
      for (const file of [encoder, decoder]) sessions.push(await ort.InferenceSession.create(file, options));
    } catch (error) {
      await sessions[0]?.release();
      throw error;
    }
    return new Networks(ort, sessions[0], sessions[1], manifest);
  }

  /** Frees the memory of both networks. */
  async release() {
    for (const session of [this.encoder, this.decoder]) await session.release();
  }

  /**
   * Returns the embedding of a picture.
   *
   * @param {Float32Array} pixels `pixel_values` [1, 3, S, S]
   */
  async encode(pixels) {
    const { ort, side } = this;
    const feeds = { pixel_values: new ort.Tensor('float32', pixels, [1, 3, side, side]) };
    const { image_embeddings: embedding } = await this.#run(this.encoder, feeds);
    return embedding;
  }

  /**
   * Returns the answers to prompts of the same number of points.
   *
   * @param {any} embedding
   * @param {Prompt[]} prompts
   * @returns {Promise<Answer[]>}
   */
  async decode(embedding, prompts) {
    const { low } = this;
    const [batch, points] = [prompts.length, prompts[0].labels.length];
    const mask = prompts[0].mask;
    const outputs = await this.#run(this.decoder, {
      image_embeddings: embedding,
      point_coords: this.#tensor(prompts.flatMap((p) => p.coords.flat()), [batch, points, 2]),
      point_labels: this.#tensor(prompts.flatMap((p) => p.labels), [batch, points]),
      mask_input: this.#tensor(mask ?? new Float32Array(low * low), [1, 1, low, low]),
      has_mask_input: this.#tensor([mask ? 1 : 0], [1]),
      orig_im_size: this.#tensor([0, 0], [2]),
    });
    const scores = await outputs.iou_predictions.getData();
    const masks = await outputs.low_res_masks.getData();
    const area = 4 * low * low;
    return prompts.map((_, i) => ({
      scores: scores.slice(4 * i, 4 * i + 4),
      masks: masks.slice(area * i, area * (i + 1)),
    }));
  }

  /**
   * @param {ArrayLike<number>} values
   * @param {number[]} shape
   */
  #tensor(values, shape) {
    return new this.ort.Tensor('float32', Float32Array.from(values), shape);
  }

  /**
   * Runs a session after those before: onnxruntime-web runs one at a time.
   *
   * @param {any} session
   * @param {Record<string, any>} feeds
   */
  #run(session, feeds) {
    const run = this.queue.then(() => session.run(feeds));
    this.queue = run.catch(() => {});
    return run;
  }
}

/**
 * @param {number[][]} pairs
 * @returns {[number, number]}
 */
function sum(pairs) {
  return [pairs.reduce((all, pair) => all + pair[0], 0), pairs.reduce((all, pair) => all + pair[1], 0)];
}

/**
 * Returns a prompt on the canvas as SAM's prompt encoder wants it: points first, then a box's corners,
 * or a not-a-point where there is no box.
 *
 * @param {{points: number[][], labels: number[], box: number[] | null}} prompt in pixels of the picture
 * @param {{height: number, width: number}} original
 * @param {[number, number]} resized (height, width) on the canvas
 * @returns {Prompt}
 */
export function assemble({ points, labels, box }, original, [height, width]) {
  const [sx, sy] = [width / original.width, height / original.height];
  const coords = points.map(([x, y]) => [x * sx, y * sy]);
  if (!box) return { coords: [...coords, [0, 0]], labels: [...labels, -1] };
  const [x0, y0, x1, y1] = box;
  return { coords: [...coords, [x0 * sx, y0 * sy], [x1 * sx, y1 * sy]], labels: [...labels, 2, 3] };
}

/**
 * Returns the index of the mask that answers a prompt: of an ambiguous one the best of three,
 * otherwise the single one (segment-anything's `SamOnnxModel.select_masks`).
 *
 * @param {Float32Array} scores [4]
 * @param {number} tokens points with the not-a-point or the corners
 */
export function chooseMask(scores, tokens) {
  if (tokens >= 3) return 0;
  return scores.indexOf(Math.max(scores[1], scores[2], scores[3]), 1);
}
