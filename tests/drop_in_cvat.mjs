// Runs CVAT's worker, for tests/drop_in_tools.py: node drop_in_cvat.mjs FOLDER WORKER.ts
// FOLDER/job.json has the decoder's path, the picture's size and the prompts; a prompt may take the
// low-resolution mask of the one before it.
import fs from 'node:fs';
import path from 'node:path';
import {createRequire} from 'node:module';
import {pathToFileURL} from 'node:url';

const [folder, worker] = process.argv.slice(2);
const require = createRequire(path.join(process.cwd(), 'package.json'));
const {transformSync} = require('esbuild');
const web = pathToFileURL(require.resolve('onnxruntime-web')).href;
const source = transformSync(fs.readFileSync(worker, 'utf8'), {loader: 'ts', format: 'esm'}).code;
const module = path.join(folder, 'worker.mjs');
fs.writeFileSync(module, source.replace('"onnxruntime-web"', JSON.stringify(web)));

let answered;
globalThis.self = {importScripts: true};
globalThis.onmessage = null;
globalThis.postMessage = (message) => answered(message);
const ask = (action, payload) => new Promise((resolve, reject) => {
  answered = (message) => (message.error ? reject(new Error(message.error)) : resolve(message.payload));
  globalThis.onmessage({data: {action, payload}});
});

await import(pathToFileURL(module).href);
const {env} = (await import(web)).default ?? (await import(web));
env.wasm.wasmPaths = undefined; // the page's own path is of CVAT's server
env.wasm.numThreads = 1;
const job = JSON.parse(fs.readFileSync(path.join(folder, 'job.json')));
const bytes = fs.readFileSync(path.join(folder, 'embedding.raw'));
const imageEmbeddings = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
await ask('init', {decoderURL: job.decoder});
let last = null;
const found = [];
for (const {coords, labels, refines} of job.prompts) {
  const [item] = await ask('decode', {
    imageEmbeddings,
    pointCoords: Float32Array.from(coords.flat()),
    pointLabels: Float32Array.from(labels),
    maskInput: refines ? last : null,
    width: job.width,
    height: job.height,
  });
  last = Float32Array.from(item.mask_input);
  found.push({bounds: item.bounds, points: Array.from(item.points)});
}
fs.writeFileSync(path.join(folder, 'found.json'), JSON.stringify(found));
