// The bytes of a JPEG or PNG file -> RGBA, upright. libjpeg-turbo gives the pixels that Pillow gives.
#pragma once

#include <jpeglib.h>
#include <png.h>

#include <cstring>
#include <stdexcept>

#include "framing.hpp"

namespace pictures {

// The orientation of an EXIF block (1 to 8), or 1.
inline int orientation(const uint8_t* data, size_t size) {
  if (size < 14 || std::memcmp(data, "Exif\0\0", 6)) return 1;
  const uint8_t* tiff = data + 6;
  const size_t left = size - 6;
  const bool little = tiff[0] == 'I';
  const auto number = [&](size_t at, int bytes) {
    size_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= size_t(tiff[at + i]) << 8 * (little ? i : bytes - 1 - i);
    return value;
  };
  const size_t directory = number(4, 4);
  if (directory + 2 > left) return 1;
  for (size_t i = 0, at = directory + 2; i < number(directory, 2) && at + 12 <= left; ++i, at += 12)
    if (number(at, 2) == 0x0112) return int(number(at + 8, 2));
  return 1;
}

inline Picture upright(const Picture& from, int orientation) {
  if (orientation < 2 || orientation > 8) return from;
  const bool turned = orientation >= 5;
  const bool mirrored_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool mirrored_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Picture to{turned ? from.height : from.width, turned ? from.width : from.height, 4};
  to.data.resize(from.data.size());
  for (int y = 0; y < to.height; ++y)
    for (int x = 0; x < to.width; ++x) {
      int i = turned ? y : x, j = turned ? x : y;  // column and row of `from`
      if (mirrored_x) i = from.width - 1 - i;
      if (mirrored_y) j = from.height - 1 - j;
      std::memcpy(&to.data[(size_t(y) * to.width + x) * 4], &from.data[(size_t(j) * from.width + i) * 4], 4);
    }
  return to;
}

inline Picture jpeg(const std::string& bytes) {
  jpeg_decompress_struct reader;
  jpeg_error_mgr errors;
  reader.err = jpeg_std_error(&errors);
  errors.error_exit = [](j_common_ptr common) {
    char text[JMSG_LENGTH_MAX];
    common->err->format_message(common, text);
    jpeg_destroy(common);
    throw std::runtime_error(text);
  };
  jpeg_create_decompress(&reader);
  jpeg_mem_src(&reader, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  jpeg_save_markers(&reader, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&reader, TRUE);
  int turn = 1;
  for (jpeg_saved_marker_ptr mark = reader.marker_list; mark && turn == 1; mark = mark->next)
    turn = orientation(mark->data, mark->data_length);
  reader.out_color_space = JCS_EXT_RGBA;
  jpeg_start_decompress(&reader);
  Picture found{int(reader.output_width), int(reader.output_height), 4};
  found.data.resize(size_t(found.width) * found.height * 4);
  while (reader.output_scanline < reader.output_height) {
    JSAMPROW row = &found.data[size_t(reader.output_scanline) * found.width * 4];
    jpeg_read_scanlines(&reader, &row, 1);
  }
  jpeg_finish_decompress(&reader);
  jpeg_destroy_decompress(&reader);
  return upright(found, turn);
}

inline Picture png(const std::string& bytes) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_memory(&image, bytes.data(), bytes.size())) throw std::runtime_error(image.message);
  image.format = PNG_FORMAT_RGBA;
  image.flags |= PNG_IMAGE_FLAG_16BIT_sRGB;
  Picture found{int(image.width), int(image.height), 4};
  found.data.resize(PNG_IMAGE_SIZE(image));
  if (!png_image_finish_read(&image, nullptr, found.data.data(), 0, nullptr)) throw std::runtime_error(image.message);
  return found;
}

inline Picture decode(const std::string& bytes) {
  if (bytes.rfind("\xff\xd8\xff", 0) == 0) return jpeg(bytes);
  if (bytes.rfind("\x89PNG", 0) == 0) return png(bytes);
  throw std::runtime_error("neither JPEG nor PNG");
}

}  // namespace pictures
