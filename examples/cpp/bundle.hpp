// A bundle's folder: its manifest, and the files that the manifest lists, each compared with its SHA-256.
#pragma once

#include <openssl/sha.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

using nlohmann::json;

inline std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string sha256(const std::string& bytes) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest);
  std::string text;
  for (const unsigned char byte : digest) (text += "0123456789abcdef"[byte >> 4]) += "0123456789abcdef"[byte & 15];
  return text;
}

class Bundle {
 public:
  explicit Bundle(const std::string& folder) : folder_(folder) {
    std::string text = ::read(folder + "/bundle.json");
    manifest = json::parse(text);
    const std::string format = manifest["format"];
    if (format.rfind("3.", 0) != 0) throw std::runtime_error("bundle.json has format " + format + ", this reads 3");
    const json& digest = manifest["digest"];  // of the manifest itself, with zeros in its place; older ones have none
    if (digest.is_null()) return;
    const size_t at = text.find(digest.get<std::string>());
    if (at == std::string::npos || sha256(text.replace(at, 64, 64, '0')) != digest)
      throw std::runtime_error("bundle.json is damaged: its SHA-256 is another");
  }

  std::string read(const std::string& name) {
    const std::string bytes = ::read(folder_ + "/" + name);
    if (manifest["files"][name]["sha256"] != sha256(bytes))
      throw std::runtime_error(name + " is damaged: its SHA-256 is not the manifest's");
    return bytes;
  }

  json manifest;

 private:
  std::string folder_;
};
