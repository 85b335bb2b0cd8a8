// bnew-run MODEL.bnew [FLOATS [RESULTS]]: an example of the C++ interface. FLOATS is a file of little-endian
// float32: one or more images, NCHW. Without it, the input is one image of zeros. Prints the best class of
// each image and the time, and writes all results to the file RESULTS.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

#include "include/bnew_engine.h"

namespace {

std::vector<float> read_floats(const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw bnew::Error(std::string(path) + ": could not be opened");
    const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
    std::vector<float> numbers(bytes.size() / sizeof(float));
    std::copy_n(bytes.data(), numbers.size() * sizeof(float), reinterpret_cast<char*>(numbers.data()));
    return numbers;
}

void write_floats(const char* path, const std::vector<float>& numbers) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(numbers.data()),
               static_cast<std::streamsize>(numbers.size() * sizeof(float)));
    if (!file.flush()) throw bnew::Error(std::string(path) + ": could not be written");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 4) {
        std::fprintf(stderr, "usage: bnew-run MODEL.bnew [FLOATS [RESULTS]]\n");
        return 2;
    }
    try {
        const bnew::Model model(argv[1]);
        if (model.inputs().size() > 1)
            throw bnew::Error(std::string(argv[1]) +
                              ": the network takes several inputs, and bnew-run gives one");
        if (model.outputs().size() > 1)
            throw bnew::Error(std::string(argv[1]) + ": the network has several results, and no classes");
        if (model.outputs()[0].integers)
            throw bnew::Error(std::string(argv[1]) +
                              ": its result is whole numbers, and no scores of classes");
        const std::vector<float> images =
            argc > 2 ? read_floats(argv[2]) : std::vector<float>(model.input_size());
        if (images.empty() || images.size() % model.input_size() != 0)
            throw bnew::Error(std::string(argv[2]) + ": not a whole number of images of " +
                              std::to_string(model.input_size()) + " numbers");
        const size_t count = images.size() / model.input_size();
        std::vector<float> results(count * model.output_size());
        const auto begin = std::chrono::steady_clock::now();
        model.run(images.data(), count, results.data());
        const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
        for (size_t i = 0; i < count; ++i) {
            const auto first = results.begin() + static_cast<std::ptrdiff_t>(i * model.output_size());
            const auto best =
                std::max_element(first, first + static_cast<std::ptrdiff_t>(model.output_size())) - first;
            const auto& classes = model.classes();
            const std::string name =
                classes.empty() ? std::to_string(best) : classes[static_cast<size_t>(best)];
            std::printf("%zu: %s\n", i, bnew::printable(name).c_str());
        }
        std::printf("%.3f ms an image, %s\n", time.count() / static_cast<double>(count), model.isa().c_str());
        if (argc == 4) write_floats(argv[3], results);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "bnew-run: error: %s\n", error.what());
        return 2;
    }
}
