// Reads a bundle of convexport with onnxruntime-node: replays its golden images, then classifies images.
//
//     npm install --ignore-scripts
//     node classify.mjs [--precision fp32] BUNDLE [IMAGE ...]
//
// Prints a JSON line for the golden images and one for each image. Exits with 6 where the golden images disagree.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import ort from "onnxruntime-node";
import sharp from "sharp";
import { frame } from "../framing.mjs";

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

// A bundle's folder -> its manifest, and a function that reads the files which the manifest lists.
function openBundle(folder) {
  const text = readFileSync(join(folder, "bundle.json"), "utf8");
  const manifest = JSON.parse(text);
  if (!/^3\./.test(manifest.format)) throw new Error(`bundle.json has format ${manifest.format}, this reads 3`);
  if ((manifest.activation ?? "softmax") !== "softmax") throw new Error("several labels for one image are not read here");
  const { digest } = manifest; // of the manifest itself, with zeros in its place; older ones have none
  if (digest && sha256(text.replaceAll(digest, "0".repeat(64))) !== digest) {
    throw new Error("bundle.json is damaged: its SHA-256 is another");
  }
  const read = (name) => {
    const bytes = readFileSync(join(folder, name));
    if (sha256(bytes) !== manifest.files[name]?.sha256) throw new Error(`${name} is damaged: its SHA-256 is not the manifest's`);
    return bytes;
  };
  return { manifest, read };
}

// The bytes of an image -> uint8 [height, width, channels] of the network's size. sharp decodes a JPEG to the pixels
// that Pillow gives; it turns an image as its EXIF block says.
async function load(bytes, input) {
  const image = sharp(bytes).autoOrient().toColourspace("srgb").ensureAlpha();
  const { data, info } = await image.raw().toBuffer({ resolveWithObject: true });
  return frame({ data, width: info.width, height: info.height }, input).pixels;
}

async function classifier({ manifest, read }, precision) {
  const variant = manifest.variants[precision];
  if (!variant) throw new Error(`no ${precision} in this bundle: ${Object.keys(manifest.variants).join(", ")}`);
  // The exact 8-bit kernels on x86 without VNNI; they make no difference elsewhere.
  const options = { extra: { session: { x64quantprecision: "1" } } };
  const session = await ort.InferenceSession.create(read(variant.file), options);
  const { height, width, channels } = manifest.input;
  return async (pixels) => {
    const images = new ort.Tensor("uint8", pixels, [1, height, width, channels]);
    return (await session.run({ images })).probabilities.data;
  };
}

const best = (probabilities) => probabilities.reduce((top, value, i) => (value > probabilities[top] ? i : top), 0);

// What is compared are probabilities. `label` is the true class, where the network may be wrong, and `equal` counts the
// classes of the largest probability: an image near a tie may get either.
async function replay({ manifest, read }, answer, precision) {
  let equal = 0, largest = 0;
  for (const golden of manifest.golden) {
    const found = await answer(await load(read(golden.file), manifest.input));
    equal += best(found) === best(golden.probabilities);
    golden.probabilities.forEach((wanted, i) => (largest = Math.max(largest, Math.abs(wanted - found[i]))));
  }
  const allowed = manifest.variants[precision].golden_tolerance;
  const total = manifest.golden.length;
  return { golden: total, equal, largest_difference: largest, allowed, passed: largest <= allowed };
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { precision: { type: "string", default: "fp32" } },
});
const [folder, ...pictures] = positionals;
const bundle = openBundle(folder);
const answer = await classifier(bundle, values.precision);
const proof = await replay(bundle, answer, values.precision);
console.log(JSON.stringify(proof));
for (const source of pictures) {
  const probabilities = Array.from(await answer(await load(readFileSync(source), bundle.manifest.input)));
  const label = bundle.manifest.labels.en[best(probabilities)];
  console.log(JSON.stringify({ source, label, probabilities }));
}
process.exitCode = proof.passed ? 0 : 6;
