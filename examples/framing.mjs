// Framing as convexport's runtime does it, to the bit: pixels of any size -> uint8 [height, width, channels] of the
// network's size. docs/other-languages.md says it in words. No dependencies: for Node and for browsers.

const BITS = 22; // of every weight, behind the point
const GAP = 3; // pixels that a reduction leaves for each one of the result

// `picture` is {data, width, height}: RGBA as a canvas gives it, upright. `input` is the bundle's `input`.
// Gives {pixels, inverted}; `inverted` says that dark ink on light paper was found and turned.
export function frame(picture, input) {
  const flat = flatten(picture, input.channels);
  const inverted = input.ink === "light-on-dark" && onLightPaper(flat);
  const framed = toSize(flat, input, inverted ? 255 : 0);
  return { pixels: inverted ? framed.data.map((value) => 255 - value) : framed.data, inverted };
}

// RGBA -> gray or RGB, transparency over white.
function flatten({ data, width, height }, channels) {
  const found = new Uint8Array(width * height * channels);
  const pixel = [0, 0, 0];
  for (let i = 0, o = 0; i < data.length; i += 4, o += channels) {
    const alpha = data[i + 3];
    for (let c = 0; c < 3; c++) {
      const blended = 255 * (255 - alpha) + data[i + c] * alpha + 128;
      pixel[c] = alpha === 255 ? data[i + c] : ((blended >> 8) + blended) >> 8;
    }
    if (channels === 3) found.set(pixel, o);
    else found[o] = (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16;
  }
  return { data: found, width, height, channels };
}

// Whether more than half of the outermost pixels are brighter than 127.
function onLightPaper({ data, width, height, channels }) {
  let bright = 0, all = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x += y % (height - 1 || 1) && x === 0 && width > 1 ? width - 1 : 1) {
      let sum = 0;
      for (let c = 0; c < channels; c++) sum += data[(y * width + x) * channels + c];
      bright += sum > 127 * channels;
      all++;
    }
  }
  return 2 * bright > all;
}

function toSize(image, { width, height, framing = "crop", crop = 1, filter = "bicubic" }, fill) {
  if (image.width === width && image.height === height) return image;
  if (filter !== "bicubic") throw new Error(`the filter ${filter} is not in this reader, which has bicubic`);
  if (framing === "stretch") return resize(image, width, height, 0, 0, image.width, image.height);
  const across = image.width / width, down = image.height / height;
  if (framing === "crop") {
    const scale = crop * Math.min(across, down);
    const left = (image.width - scale * width) / 2, top = (image.height - scale * height) / 2;
    const right = Math.min(image.width - left, image.width), bottom = Math.min(image.height - top, image.height);
    return resize(image, width, height, Math.max(left, 0), Math.max(top, 0), right, bottom);
  }
  if (framing === "resize-crop") {
    const limited = image.width * height <= image.height * width; // whether the width limits the scale
    const [kept, side, other] = limited ? [width, image.width, image.height] : [height, image.height, image.width];
    const one = Math.max(kept, halfToEven(kept / crop));
    const two = Math.max(limited ? height : width, Math.trunc((one * other) / side));
    const [w, h] = limited ? [one, two] : [two, one];
    const x = halfToEven((w - width) / 2), y = halfToEven((h - height) / 2);
    const [left, right] = [(x * image.width) / w, ((x + width) * image.width) / w];
    const [top, bottom] = [(y * image.height) / h, ((y + height) * image.height) / h];
    return resize(image, width, height, left, top, right, bottom);
  }
  const scale = Math.min(width / image.width, height / image.height);
  const w = Math.max(1, halfToEven(image.width * scale)), h = Math.max(1, halfToEven(image.height * scale));
  const small = resize(image, w, h, 0, 0, image.width, image.height);
  const left = Math.floor((width - w) / 2), top = Math.floor((height - h) / 2), c = image.channels;
  const data = new Uint8Array(width * height * c).fill(fill);
  for (let y = 0; y < h; y++) data.set(small.data.subarray(y * w * c, (y + 1) * w * c), ((top + y) * width + left) * c);
  return { data, width, height, channels: c };
}

function halfToEven(value) {
  const below = Math.floor(value), rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2) ? below + 1 : below;
}

// A box of the image -> width x height: means of whole cells, then the width, then the height.
export function resize(image, width, height, left, top, right, bottom) {
  if (image.width === width && image.height === height && !left && !top && right === width && bottom === height) return image;
  const scaleX = (right - left) / width, scaleY = (bottom - top) / height;
  const across = Math.trunc(scaleX / GAP) || 1, down = Math.trunc(scaleY / GAP) || 1;
  if (across > 1 || down > 1) {
    const x = Math.max(0, Math.trunc(left - 1.5 * scaleX)), y = Math.max(0, Math.trunc(top - 1.5 * scaleY));
    const endX = Math.min(image.width, Math.ceil(right + 1.5 * scaleX));
    const endY = Math.min(image.height, Math.ceil(bottom + 1.5 * scaleY));
    image = reduce(image, across, down, x, y, endX, endY);
    [left, right, top, bottom] = [(left - x) / across, (right - x) / across, (top - y) / down, (bottom - y) / down];
  }
  return pass(pass(image, width, left, right, true), height, top, bottom, false);
}

// The rounded mean of every cell; those of the last row and column may be smaller.
function reduce({ data, width, channels }, across, down, x, y, endX, endY) {
  const w = Math.ceil((endX - x) / across), h = Math.ceil((endY - y) / down);
  const found = new Uint8Array(w * h * channels);
  for (let row = 0, o = 0; row < h; row++) {
    const y0 = y + row * down, y1 = Math.min(y0 + down, endY);
    for (let column = 0; column < w; column++) {
      const x0 = x + column * across, x1 = Math.min(x0 + across, endX), count = (x1 - x0) * (y1 - y0);
      for (let c = 0; c < channels; c++) {
        let sum = count >> 1;
        for (let i = y0; i < y1; i++) for (let j = x0; j < x1; j++) sum += data[(i * width + j) * channels + c];
        found[o++] = Math.floor((sum * Math.floor(2 ** 24 / count)) / 2 ** 24);
      }
    }
  }
  return { data: found, width: w, height: h, channels };
}

// Resizes one axis by the bicubic filter, widened with the scale, in fixed point.
function pass(image, size, start, end, horizontal) {
  const { data, width, height, channels } = image;
  const full = horizontal ? width : height;
  if (size === full && start === 0 && end === full) return image;
  [start, end] = [Math.fround(start), Math.fround(end)];
  const scale = Math.fround(end - start) / size, widened = Math.max(scale, 1), inverse = 1 / widened;
  const [w, h] = horizontal ? [size, height] : [width, size];
  const found = new Uint8ClampedArray(w * h * channels);
  const step = horizontal ? channels : width * channels; // from one source pixel to the next along the axis
  for (let position = 0; position < size; position++) {
    const center = start + (position + 0.5) * scale;
    const low = Math.max(Math.trunc(center - 2 * widened + 0.5), 0);
    const high = Math.min(Math.trunc(center + 2 * widened + 0.5), full);
    const weights = Array.from({ length: high - low }, (_, i) => bicubic((i + low - center + 0.5) * inverse));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const fixed = Int32Array.from(weights, (weight) => (weight / total) * 2 ** BITS + (weight < 0 ? -0.5 : 0.5));
    for (let other = 0, n = horizontal ? height : width; other < n; other++) {
      const from = horizontal ? other * width * channels + low * step : low * step + other * channels;
      const to = horizontal ? (other * w + position) * channels : (position * w + other) * channels;
      for (let c = 0; c < channels; c++) {
        let sum = 1 << (BITS - 1);
        for (let i = 0, at = from + c; i < fixed.length; i++, at += step) sum += data[at] * fixed[i];
        found[to + c] = sum >> BITS;
      }
    }
  }
  return { data: new Uint8Array(found.buffer), width: w, height: h, channels };
}

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}
