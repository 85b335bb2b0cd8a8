// bnew-run MODEL.bnew [FLOATS]: an example of the C++ interface. FLOATS is a file of little-endian float32,
// one or more images NCHW; without it, one image of zeros. Prints the best class of each image, and the time.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <vector>

#include "include/bnew_engine.h"

namespace {

std::vector<float> read_floats(const char* path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw bnew::Error(std::string(path) + ": could not be opened");
    std::vector<float> numbers(static_cast<size_t>(file.tellg()) / sizeof(float));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(numbers.data()),
              static_cast<std::streamsize>(numbers.size() * sizeof(float)));
    return numbers;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) {
        std::fprintf(stderr, "usage: bnew-run MODEL.bnew [FLOATS]\n");
        return 2;
    }
    try {
        const bnew::Model model(argv[1]);
        const std::vector<float> images =
            argc == 3 ? read_floats(argv[2]) : std::vector<float>(model.input_size());
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
            std::printf(
                "%zu: %s\n", i,
                classes.empty() ? std::to_string(best).c_str() : classes[static_cast<size_t>(best)].c_str());
        }
        std::printf("%.3f ms an image, %s\n", time.count() / static_cast<double>(count), model.isa().c_str());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "bnew-run: error: %s\n", error.what());
        return 2;
    }
}
