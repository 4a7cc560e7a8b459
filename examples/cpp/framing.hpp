// Framing as convexport's runtime does it, to the bit: RGBA of any size -> uint8 [height, width, channels] of the
// network's size. docs/other-languages.md says it in words; examples/framing.mjs is the same in JavaScript.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

struct Picture {
  int width = 0, height = 0, channels = 0;
  std::vector<uint8_t> data{};  // [height, width, channels]
};

struct Input {
  int height, width, channels;
  std::string framing, ink;
  double crop = 1.0;  // the share of the shorter side that the framing of this name keeps
};

namespace framing {

constexpr int kBits = 22;  // of every weight, behind the point
constexpr int kGap = 3;    // pixels that a reduction leaves for each one of the result

// RGBA -> gray or RGB, transparency over white.
inline Picture flatten(const Picture& rgba, int channels) {
  Picture found{rgba.width, rgba.height, channels};
  found.data.reserve(size_t(rgba.width) * rgba.height * channels);
  for (size_t i = 0; i < rgba.data.size(); i += 4) {
    const int alpha = rgba.data[i + 3];
    int pixel[3];
    for (int c = 0; c < 3; ++c) {
      const int blended = 255 * (255 - alpha) + rgba.data[i + c] * alpha + 128;
      pixel[c] = ((blended >> 8) + blended) >> 8;
    }
    if (channels == 3) found.data.insert(found.data.end(), pixel, pixel + 3);
    else found.data.push_back(uint8_t((pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16));
  }
  return found;
}

// Whether more than half of the outermost pixels are brighter than 127.
inline bool on_light_paper(const Picture& p) {
  int bright = 0, all = 0;
  for (int y = 0; y < p.height; ++y)
    for (int x = 0; x < p.width; ++x) {
      if (y && y < p.height - 1 && x && x < p.width - 1) continue;
      int sum = 0;
      for (int c = 0; c < p.channels; ++c) sum += p.data[(size_t(y) * p.width + x) * p.channels + c];
      bright += sum > 127 * p.channels;
      ++all;
    }
  return 2 * bright > all;
}

inline double bicubic(double x) {
  x = std::abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// Resizes one axis by the bicubic filter, widened with the scale, in fixed point. Build with -ffp-contract=off.
inline Picture pass(const Picture& from, int size, double start, double end, bool across) {
  const int full = across ? from.width : from.height, channels = from.channels;
  if (size == full && start == 0 && end == full) return from;
  const float first = float(start), last = float(end);
  const double scale = double(last - first) / size, widened = std::max(scale, 1.0), inverse = 1 / widened;
  Picture to{across ? size : from.width, across ? from.height : size, channels};
  to.data.resize(size_t(to.width) * to.height * channels);
  const size_t step = across ? channels : size_t(from.width) * channels;
  for (int position = 0; position < size; ++position) {
    const double center = first + (position + 0.5) * scale;
    const int low = std::max(int(center - 2 * widened + 0.5), 0);
    const int high = std::min(int(center + 2 * widened + 0.5), full);
    std::vector<double> weights;
    double total = 0;
    for (int i = low; i < high; ++i) total += weights.emplace_back(bicubic((i - center + 0.5) * inverse));
    std::vector<int> fixed;
    for (const double w : weights) fixed.push_back(int(w / total * (1 << kBits) + (w / total < 0 ? -0.5 : 0.5)));
    for (int other = 0, n = across ? from.height : from.width; other < n; ++other) {
      const size_t at = across ? (size_t(other) * from.width + low) * channels : low * step + size_t(other) * channels;
      const size_t out = (across ? size_t(other) * size + position : size_t(position) * to.width + other) * channels;
      for (int c = 0; c < channels; ++c) {
        int sum = 1 << (kBits - 1);
        for (size_t i = 0; i < fixed.size(); ++i) sum += from.data[at + c + i * step] * fixed[i];
        to.data[out + c] = uint8_t(std::clamp(sum >> kBits, 0, 255));
      }
    }
  }
  return to;
}

// The rounded mean of every cell; those of the last row and column may be smaller.
inline Picture reduce(const Picture& from, int across, int down, int x, int y, int end_x, int end_y) {
  Picture to{(end_x - x + across - 1) / across, (end_y - y + down - 1) / down, from.channels};
  for (int y0 = y; y0 < end_y; y0 += down)
    for (int x0 = x; x0 < end_x; x0 += across) {
      const int y1 = std::min(y0 + down, end_y), x1 = std::min(x0 + across, end_x);
      const uint64_t count = uint64_t(y1 - y0) * (x1 - x0);
      for (int c = 0; c < from.channels; ++c) {
        uint64_t sum = count / 2;
        for (int i = y0; i < y1; ++i)
          for (int j = x0; j < x1; ++j) sum += from.data[(size_t(i) * from.width + j) * from.channels + c];
        to.data.push_back(uint8_t(sum * ((1 << 24) / count) >> 24));
      }
    }
  return to;
}

// A box of the image -> width x height: means of whole cells, then the width, then the height.
inline Picture resize(Picture from, int width, int height, double left, double top, double right, double bottom) {
  const double scale_x = (right - left) / width, scale_y = (bottom - top) / height;
  const int across = std::max(int(scale_x / kGap), 1), down = std::max(int(scale_y / kGap), 1);
  if (across > 1 || down > 1) {
    const int x = std::max(0, int(left - 1.5 * scale_x)), y = std::max(0, int(top - 1.5 * scale_y));
    const int end_x = std::min(from.width, int(std::ceil(right + 1.5 * scale_x)));
    const int end_y = std::min(from.height, int(std::ceil(bottom + 1.5 * scale_y)));
    from = reduce(from, across, down, x, y, end_x, end_y);
    left = (left - x) / across, right = (right - x) / across, top = (top - y) / down, bottom = (bottom - y) / down;
  }
  return pass(pass(from, width, left, right, true), height, top, bottom, false);
}

inline Picture to_size(const Picture& p, const Input& input, uint8_t fill) {
  const int width = input.width, height = input.height;
  if (p.width == width && p.height == height) return p;
  if (input.framing == "stretch") return resize(p, width, height, 0, 0, p.width, p.height);
  if (input.framing == "crop") {
    const double scale = input.crop * std::min(double(p.width) / width, double(p.height) / height);
    const double left = (p.width - scale * width) / 2, top = (p.height - scale * height) / 2;
    return resize(p, width, height, std::max(left, 0.0), std::max(top, 0.0), std::min<double>(p.width - left, p.width),
                  std::min<double>(p.height - top, p.height));
  }
  if (input.framing == "resize-crop") {
    const bool limited = int64_t(p.width) * height <= int64_t(p.height) * width;  // whether the width limits the scale
    const int kept = limited ? width : height, side = limited ? p.width : p.height, other = limited ? p.height : p.width;
    const int one = std::max(kept, int(std::nearbyint(kept / input.crop)));
    const int two = std::max(limited ? height : width, int(double(int64_t(one) * other) / side));
    const double w = limited ? one : two, h = limited ? two : one;
    const double x = std::nearbyint((w - width) / 2), y = std::nearbyint((h - height) / 2);
    return resize(p, width, height, x * p.width / w, y * p.height / h, (x + width) * p.width / w,
                  (y + height) * p.height / h);
  }
  const double scale = std::min(double(width) / p.width, double(height) / p.height);
  const int w = std::max(1, int(std::nearbyint(p.width * scale))), h = std::max(1, int(std::nearbyint(p.height * scale)));
  const Picture small = resize(p, w, h, 0, 0, p.width, p.height);
  Picture canvas{width, height, p.channels, std::vector<uint8_t>(size_t(width) * height * p.channels, fill)};
  const int left = (width - w) / 2, top = (height - h) / 2, row = w * p.channels;
  for (int y = 0; y < h; ++y)
    std::copy_n(&small.data[size_t(y) * row], row, &canvas.data[(size_t(top + y) * width + left) * p.channels]);
  return canvas;
}

}  // namespace framing

// A decoded image, upright, as RGBA -> the network's pixels.
inline std::vector<uint8_t> frame(const Picture& rgba, const Input& input) {
  const Picture flat = framing::flatten(rgba, input.channels);
  const bool inverted = input.ink == "light-on-dark" && framing::on_light_paper(flat);
  Picture framed = framing::to_size(flat, input, inverted ? 255 : 0);
  if (inverted)
    for (uint8_t& value : framed.data) value = 255 - value;
  return framed.data;
}
