// Reads a bundle of convexport with ONNX Runtime's C++ API: replays its golden images, then classifies images.
//
//     cmake -S . -B build && cmake --build build
//     build/classify BUNDLE PRECISION [IMAGE ...]
//
// Prints a JSON line for the golden images and one for each image. Exits with 6 where the golden images disagree.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <iostream>

#include "bundle.hpp"
#include "framing.hpp"
#include "pictures.hpp"

using Probabilities = std::vector<float>;

static size_t best(const Probabilities& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

class Classifier {
 public:
  Classifier(const std::string& folder, const std::string& precision) : bundle_(folder), precision_(precision) {
    if (manifest_.value("activation", "softmax") != "softmax") throw std::runtime_error("several labels for one image are not read here");
    if (!manifest_["variants"].contains(precision)) throw std::runtime_error("no " + precision + " in this bundle");
    const json& input = manifest_["input"];
    input_ = {input["height"], input["width"], input["channels"], input.value("framing", "crop"),
              input.value("ink", "any"), input.value("crop", 1.0)};
    if (input.value("filter", "bicubic") != "bicubic") throw std::runtime_error("this reader has the filter bicubic only");
    Ort::SessionOptions options;
    options.AddConfigEntry("session.x64quantprecision", "1");  // exact 8-bit kernels on x86 without VNNI
    const std::string model = bundle_.read(manifest_["variants"][precision]["file"]);
    session_ = Ort::Session(environment_, model.data(), model.size(), options);
  }

  // The bytes of an image -> a probability for each class.
  Probabilities answer(const std::string& bytes) {
    std::vector<uint8_t> pixels = frame(pictures::decode(bytes), input_);
    const std::array<int64_t, 4> shape{1, input_.height, input_.width, input_.channels};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value images =
        Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
    const char *taken = "images", *given = "probabilities";
    const auto found = session_.Run(Ort::RunOptions{nullptr}, &taken, &images, 1, &given, 1);
    const float* values = found[0].GetTensorData<float>();
    return {values, values + found[0].GetTensorTypeAndShapeInfo().GetElementCount()};
  }

  // What is compared are probabilities. `label` is the true class, where the network may be wrong, and `equal` counts
  // the classes of the largest probability: an image near a tie may get either.
  json replay() {
    size_t equal = 0;
    double largest = 0;
    for (const json& golden : manifest_["golden"]) {
      const Probabilities expected = golden["probabilities"];
      const Probabilities found = answer(bundle_.read(golden["file"]));
      equal += best(found) == best(expected);
      for (size_t i = 0; i < expected.size(); ++i) {
        const double difference = std::abs(double(expected[i]) - found[i]);
        if (!(difference <= largest)) largest = difference;  // NaN stays
      }
    }
    const double allowed = manifest_["variants"][precision_]["golden_tolerance"];
    const size_t total = manifest_["golden"].size();
    return {{"golden", total},
            {"equal", equal},
            {"largest_difference", largest},
            {"allowed", allowed},
            {"passed", largest <= allowed}};
  }

  std::string label(const Probabilities& values) const { return manifest_["labels"]["en"][best(values)]; }

 private:
  Bundle bundle_;
  json& manifest_ = bundle_.manifest;
  std::string precision_;
  Input input_;
  Ort::Env environment_{ORT_LOGGING_LEVEL_WARNING, "convexport"};
  Ort::Session session_{nullptr};
};

int main(int count, char** arguments) try {
  if (count < 3) throw std::runtime_error("usage: classify BUNDLE PRECISION [IMAGE ...]");
  Classifier classifier(arguments[1], arguments[2]);
  const json proof = classifier.replay();
  std::cout << proof << "\n";
  for (int i = 3; i < count; ++i) {
    const Probabilities found = classifier.answer(read(arguments[i]));
    std::cout << json{{"source", arguments[i]}, {"label", classifier.label(found)}, {"probabilities", found}} << "\n";
  }
  return proof["passed"] ? 0 : 6;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
