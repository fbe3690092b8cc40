// Asks transformers.js for masks, for tests/drop_in_tools.py: node drop_in_transformers.mjs FOLDER
import fs from 'node:fs';
import path from 'node:path';
import {createRequire} from 'node:module';
import {pathToFileURL} from 'node:url';

const require = createRequire(path.join(process.cwd(), 'package.json'));
const entry = require.resolve('@huggingface/transformers');
const {SamModel, AutoProcessor, RawImage, env} = await import(pathToFileURL(entry).href);
const folder = process.argv[2];
const job = JSON.parse(fs.readFileSync(path.join(folder, 'job.json')));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(job.model) + '/';
const name = path.basename(job.model);
const model = await SamModel.from_pretrained(name, {dtype: 'fp32'});
const processor = await AutoProcessor.from_pretrained(name);
const [height, width] = job.shape;
const image = new RawImage(new Uint8ClampedArray(fs.readFileSync(path.join(folder, 'image.raw'))), width, height, 3);
const found = [], scaled = [];
let used;
for (const [points, labels] of job.prompts) {
  const inputs = await processor(image, {input_points: [points], input_labels: [labels]});
  scaled.push(Array.from(inputs.input_points.data));
  if (!found.length) fs.writeFileSync(path.join(folder, 'pixels.raw'), Buffer.from(inputs.pixel_values.data.buffer));
  used = inputs.reshaped_input_sizes[0];
  const {pred_masks, iou_scores} = await model(inputs);
  const masks = await processor.post_process_masks(pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes);
  const scores = Array.from(iou_scores.data);
  const best = scores.indexOf(Math.max(...scores));
  const pixels = height * width;
  found.push(Buffer.from(masks[0].data.slice(best * pixels, (best + 1) * pixels)));
}
fs.writeFileSync(path.join(folder, 'masks.raw'), Buffer.concat(found));
fs.writeFileSync(path.join(folder, 'made.json'), JSON.stringify({points: scaled, used}));
