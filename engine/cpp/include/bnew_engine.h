// Runs packed binary networks: loads a .bnew file and computes logits of images. Needs no other library.
//
//     bnew::Model model("model.bnew", 2);
//     std::vector<float> logits(model.output_size());
//     model.run(image.data(), 1, logits.data());
//
// All errors are thrown as bnew::Error, a std::runtime_error whose what() is one sentence.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bnew_error.h"

namespace bnew {

// The most that a file may ask for. 0: a limit that follows from the file's size and its input's shape
// (docs/format.md, "Limits").
struct Limits {
    int64_t max_macs = 0;   // real multiply-accumulates per image
    int64_t max_bytes = 0;  // of the weights in memory, and of a run
};

// The size of images for which a network is loaded; zeros: the size for which it was packed. Another size
// needs a file for images of any size (docs/format.md, "Other sizes").
struct ImageSize {
    int height = 0, width = 0;
};

// The instruction sets that this machine can run, the best first: of avx512_vpopcntdq, avx2, neon and scalar.
std::vector<std::string> instruction_sets();

// The instruction set that is used: the best, or the one that the environment variable BNEW_ENGINE_ISA names.
std::string instruction_set();

// An input's or the output's channels, height and width.
struct Dimensions {
    int channels, height, width;
};

// One of the inputs of a network.
struct Input {
    std::string name;  // of several: of the parameter of the network's forward()
    Dimensions dimensions;
    bool normalises;  // whether the file has its mean and std, so that it takes bytes
};

// Images for one input: floats, NCHW; or bytes, NHWC, which are normalised with the file's mean and std. A
// vector is an image of 1 x 1.
using Batch = std::variant<const float*, const uint8_t*>;

// One of the results of a network: its name, which may be empty, and the sizes of its dimensions.
struct Result {
    std::string name;
    std::vector<int> size;
    size_t count;   // of numbers: the product of the sizes
    bool integers;  // whether they are whole numbers, such as the number of a class
};

// A named value of a network for one image, NCHW; bits as -1 and +1.
struct NamedValue {
    std::string name;
    Dimensions dimensions;
    std::vector<float> data;
};

struct StageTime {
    std::string name, op;
    double seconds;  // median over the repeats
};

class Model {
public:
    // Reads the file. `threads` includes the caller's thread. An empty `instruction_set` is the default one.
    explicit Model(const std::string& path, int threads = 1, const std::string& instruction_set = "",
                   const Limits& limits = {}, const ImageSize& size = {});
    // The same from a file's content, which is not used after the call.
    explicit Model(std::span<const uint8_t> content, int threads = 1, const std::string& instruction_set = "",
                   const Limits& limits = {}, const ImageSize& size = {});
    ~Model();
    Model(Model&&) noexcept;
    Model& operator=(Model&&) noexcept;

    std::vector<Input> inputs() const;
    Dimensions input() const;   // the first input's
    Dimensions output() const;  // of the first result
    std::vector<Result> outputs() const;
    std::vector<std::pair<std::string, Dimensions>> shapes() const;  // of all values that the file names
    size_t input_size() const;   // numbers of one image for the first input
    size_t output_size() const;  // numbers of its results, which run() writes one after the other
    int threads() const;
    const std::string& isa() const;
    const std::vector<std::string>& classes() const;
    const std::string& graph() const;  // JSON, see docs/format.md
    bool normalises() const;           // whether every input takes bytes
    uint32_t checksum() const;         // of the file, see docs/format.md
    double macs() const;               // the work per image, as Limits counts it

    // Computes `count` images, and writes output_size() numbers for each to `results`. Several threads may
    // call it at once. Throws Error if a number is not finite, or the network takes several inputs.
    void run(Batch images, size_t count, float* results) const { run({&images, 1}, count, results); }

    // The same for a network of several inputs: image i of each belongs to result i.
    void run(std::span<const Batch> inputs, size_t count, float* results) const;

    // Every named value of the network for one image, in the order in which they are computed.
    std::vector<NamedValue> values(std::span<const Batch> image) const;

    // The median time of each stage.
    std::vector<StageTime> profile(std::span<const Batch> image, int repeats) const;

private:
    friend struct Checks;
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// The checksum of a packed file's content, equal to Model::checksum() of a model loaded from it. Throws Error
// if the content is not a packed file.
uint32_t checksum(std::span<const uint8_t> content);

}  // namespace bnew
