// The page's own code, behind framing.mjs. Files come from the page itself, or from beside it on a server.

const $ = (id) => document.getElementById(id);

// A file by its name: inside the page (gzip, base64), or fetched from its folder.
async function file(name) {
  const inside = $(`file:${name}`);
  if (!inside) {
    const answer = await fetch(name);
    if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
    return new Uint8Array(await answer.arrayBuffer());
  }
  const text = atob(inside.textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  inside.remove();
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// An encoded image -> RGBA, upright, over white.
async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  return pixelsOf(bitmap, bitmap.width, bitmap.height);
}

function pixelsOf(drawable, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(drawable, 0, 0);
  return context.getImageData(0, 0, width, height);
}

const best = (values) => values.reduce((top, value, i) => (value > values[top] ? i : top), 0);

class Classifier {
  static async load() {
    const found = new Classifier();
    found.bundle = JSON.parse(new TextDecoder().decode(await file("bundle.json")));
    const address = URL.createObjectURL(new Blob([await file("runtime.mjs")], { type: "text/javascript" }));
    found.ort = await import(address);
    found.ort.env.wasm.numThreads = 1;
    found.ort.env.wasm.wasmBinary = (await file("runtime.wasm")).buffer;
    found.session = await found.ort.InferenceSession.create(await file("model.onnx"), { executionProviders: ["wasm"] });
    return found;
  }

  async answer(picture) {
    const { height, width, channels } = this.bundle.input;
    const { pixels, inverted } = frame(picture, this.bundle.input);
    const images = new this.ort.Tensor("uint8", pixels, [1, height, width, channels]);
    const { probabilities } = await this.session.run({ images });
    return { probabilities: Array.from(probabilities.data), pixels, inverted };
  }

  // The golden images: no probability may be further away than the export allows. Near a tie the label may be the other.
  async prove() {
    let equal = 0, largest = 0;
    for (const golden of this.bundle.golden) {
      const bytes = Uint8Array.from(atob(golden.data), (char) => char.charCodeAt(0));
      const { probabilities } = await this.answer(await decode(new Blob([bytes])));
      equal += best(probabilities) === best(golden.probabilities);
      golden.probabilities.forEach((wanted, i) => (largest = Math.max(largest, Math.abs(wanted - probabilities[i]))));
    }
    const total = this.bundle.golden.length;
    return { total, equal, largest, passed: largest <= this.bundle.golden_tolerance };
  }
}

function showProof({ total, equal, largest, passed }, seconds) {
  const box = $("proof");
  box.className = passed ? "good" : "bad";
  const distance = largest < 1e-6 ? "less than 0.000001" : largest.toPrecision(2);
  const allowed = bundle().golden_tolerance.toPrecision(2);
  const ties = total - equal ? ` ${total - equal} near a tie got the other label.` : "";
  box.textContent = passed
    ? `Proved: ${total} golden images give the export's probabilities within ${distance} (allowed: ${allowed}).${ties} ` +
      `${seconds.toFixed(1)} s.`
    : `This browser computes other answers than the export: ${equal} of ${total} golden images get the same label, ` +
      `and probabilities differ by up to ${distance} (allowed: ${allowed}). Do not trust what follows.`;
}

let classifier;
const bundle = () => classifier.bundle;

function showAnswer({ probabilities, pixels, inverted }, name) {
  const labels = bundle().labels[$("language").value];
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
  $("answer").hidden = false;
  $("label").textContent = labels[order[0]];
  $("source").textContent = inverted ? `${name}, inverted: dark ink on light paper` : name;
  $("bars").replaceChildren(...order.map((i) => {
    const row = document.createElement("li"), percent = `${(100 * probabilities[i]).toFixed(1)} %`;
    const bar = Object.assign(document.createElement("span"), { className: "bar" });
    bar.style.setProperty("--share", probabilities[i]);
    row.append(Object.assign(document.createElement("span"), { textContent: labels[i] }), bar,
      Object.assign(document.createElement("span"), { textContent: percent, className: "percent" }));
    return row;
  }));
  const { width, height, channels } = bundle().input;
  const seen = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) seen.data[4 * i + c] = pixels[i * channels + (channels === 3 ? c : 0)];
    seen.data[4 * i + 3] = 255;
  }
  Object.assign($("seen"), { width, height }).getContext("2d").putImageData(seen, 0, 0);
}

let last;
async function classify(picture, name) {
  last = { answer: await classifier.answer(picture), name };
  showAnswer(last.answer, name);
  return last.answer.probabilities;
}

async function classifyFile(chosen) {
  if (!chosen) return;
  stopCamera();
  try {
    await classify(await decode(chosen), chosen.name || "an image from the clipboard");
    $("problem").textContent = "";
  } catch (error) {
    $("problem").textContent = `${chosen.name}: this browser cannot decode it (${error.message})`;
  }
}

let stream, waiting;
function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  clearTimeout(waiting);
  stream = undefined;
  $("video").hidden = true;
  $("camera").textContent = "Use the camera";
  $("camera").setAttribute("aria-pressed", "false");
  $("answer").ariaLive = "polite";
}

async function toggleCamera() {
  if (stream) return stopCamera();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    $("problem").textContent = `No camera: ${error.message}. An image can be chosen instead.`;
    return;
  }
  $("problem").textContent = "";
  $("camera").textContent = "Stop the camera";
  $("camera").setAttribute("aria-pressed", "true");
  $("answer").ariaLive = "off"; // four answers a second would be read out
  const video = Object.assign($("video"), { hidden: false, srcObject: stream });
  await video.play();
  const look = async () => {
    if (!stream) return;
    await classify(pixelsOf(video, video.videoWidth, video.videoHeight), "the camera");
    waiting = setTimeout(look, 250);
  };
  await look();
}

function listen() {
  const names = { en: "English", fr: "français" };
  $("language").append(...Object.keys(bundle().labels).map((code) => new Option(names[code] || code, code)));
  $("languages").hidden = $("language").length < 2;
  $("language").onchange = () => last && showAnswer(last.answer, last.name);
  $("file").onchange = (event) => classifyFile(event.target.files[0]);
  $("camera").onclick = toggleCamera;
  $("camera").hidden = !navigator.mediaDevices?.getUserMedia;
  document.onpaste = (event) => classifyFile([...event.clipboardData.files][0]);
  document.ondragover = (event) => (event.preventDefault(), $("drop").classList.add("over"));
  document.ondragleave = (event) => event.relatedTarget || $("drop").classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    classifyFile(event.dataTransfer.files[0]);
  };
  for (const id of ["file", "camera"]) $(id).disabled = false;
  $("examples").replaceChildren(...bundle().golden.slice(0, 8).map((golden, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: "Classify this image" });
    const type = golden.file.endsWith(".png") ? "image/png" : "image/jpeg";
    const image = Object.assign(new Image(), { src: `data:${type};base64,${golden.data}`, alt: `golden image ${i + 1}` });
    button.append(image);
    button.onclick = async () => classifyFile(new File([Uint8Array.from(atob(golden.data), (c) => c.charCodeAt(0))], golden.file, { type }));
    return button;
  }));
}

async function start() {
  const started = performance.now();
  try {
    classifier = await Classifier.load();
    const proof = await classifier.prove();
    showProof(proof, (performance.now() - started) / 1000);
    listen();
    window.convexport = { proof, classifyFile: async (blob) => classify(await decode(blob), "an image") };
  } catch (error) {
    $("proof").className = "bad";
    $("proof").textContent = `The network could not be started: ${error.message}`;
    window.convexport = { failed: String(error) };
  }
}
start();
