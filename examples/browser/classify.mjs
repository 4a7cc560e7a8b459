// Reads a bundle of convexport with onnxruntime-web: replays its golden images, then classifies images.
//
//     npm install --ignore-scripts
//     python -m http.server --directory ..       (the folder examples/, with a bundle in it)
//     http://127.0.0.1:8000/browser/?bundle=../lenet5-mnist-fp16/&precision=fp16
//
// Shows a JSON line for the golden images and one for each image. `convexport --web` makes one file of all this.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
import { frame } from "../framing.mjs";

const query = new URLSearchParams(location.search);
const folder = new URL(query.get("bundle") ?? "bundle/", location.href);
const precision = query.get("precision") ?? "fp32";
const out = document.getElementById("out");
ort.env.wasm.numThreads = 1;

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: the server answers ${answer.status}`);
  return answer;
}

// Browsers give `crypto.subtle` to pages of https and of this machine alone.
async function sha256(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A file that the manifest lists.
async function read(manifest, name) {
  const bytes = await (await fetched(new URL(name, folder))).arrayBuffer();
  if ((await sha256(bytes)) !== manifest.files[name]?.sha256) throw new Error(`${name} is damaged: its SHA-256 is not the manifest's`);
  return bytes;
}

// An encoded image -> uint8 [height, width, channels] of the network's size. The canvas decodes and turns it, without
// a change of colors; it must not scale it: its own scaling gives other pixels, and other labels.
async function load(blob, input) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // transparency over white
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return frame(context.getImageData(0, 0, bitmap.width, bitmap.height), input).pixels;
}

const best = (probabilities) => probabilities.reduce((top, value, i) => (value > probabilities[top] ? i : top), 0);

async function classifier(manifest) {
  const model = await read(manifest, manifest.variants[precision].file);
  const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
  const { height, width, channels } = manifest.input;
  return async (pixels) => {
    const images = new ort.Tensor("uint8", pixels, [1, height, width, channels]);
    return Array.from((await session.run({ images })).probabilities.data);
  };
}

// What is compared are probabilities. `label` is the true class, where the network may be wrong, and `equal` counts the
// classes of the largest probability: an image near a tie may get either.
async function replay(manifest, answer) {
  let equal = 0, largest = 0;
  for (const golden of manifest.golden) {
    const found = await answer(await load(new Blob([await read(manifest, golden.file)]), manifest.input));
    equal += best(found) === best(golden.probabilities);
    golden.probabilities.forEach((wanted, i) => (largest = Math.max(largest, Math.abs(wanted - found[i]))));
  }
  const allowed = manifest.variants[precision].golden_tolerance, total = manifest.golden.length;
  return { golden: total, equal, largest_difference: largest, allowed, passed: largest <= allowed };
}

async function start() {
  const text = await (await fetched(new URL("bundle.json", folder))).text();
  const manifest = JSON.parse(text);
  if (!/^3\./.test(manifest.format)) throw new Error(`bundle.json has format ${manifest.format}, this reads 3`);
  if ((manifest.activation ?? "softmax") !== "softmax") throw new Error("several labels for one image are not read here");
  const { digest } = manifest; // of the manifest itself, with zeros in its place; older ones have none
  const zeroed = new TextEncoder().encode(text.replaceAll(digest, "0".repeat(64)));
  if (digest && (await sha256(zeroed)) !== digest) throw new Error("bundle.json is damaged: its SHA-256 is another");
  const answer = await classifier(manifest);
  const proof = await replay(manifest, answer);
  out.textContent = JSON.stringify(proof) + "\n";
  const classify = async (source, blob) => {
    const probabilities = await answer(await load(blob, manifest.input));
    const record = { source, label: manifest.labels.en[best(probabilities)], probabilities };
    out.textContent += JSON.stringify(record) + "\n";
    return record;
  };
  document.getElementById("files").onchange = async (event) => {
    for (const file of event.target.files) await classify(file.name, file);
  };
  return { proof, classify };
}

window.reader = start();
window.reader.catch((error) => (out.textContent = error.message));
