// classify MODEL.bnew IMAGE: prints the likeliest class and its number. IMAGE holds bytes: rows of pixels,
// each with its channels, as Image.open("cat.png").resize((width, height)).tobytes() of Pillow has them.

#include <bnew_engine.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>

int main(int argc, char** argv) try {
    if (argc != 3) throw bnew::Error("usage: classify MODEL.bnew IMAGE");
    const bnew::Model model(argv[1]);
    if (model.classes().empty()) throw bnew::Error("the file has no classes");
    std::ifstream file(argv[2], std::ios::binary);
    const std::vector<uint8_t> image(std::istreambuf_iterator<char>(file), {});
    if (image.size() != model.input_size()) throw bnew::Error("the image has another size than the input");
    std::vector<float> results(model.output_size());
    model.run(image.data(), 1, results.data());
    const auto best = std::max_element(results.begin(), results.end());
    const std::string& name = model.classes()[static_cast<size_t>(best - results.begin())];
    std::printf("%s %.9g\n", bnew::printable(name).c_str(), *best);
} catch (const std::exception& error) {
    std::fprintf(stderr, "classify: error: %s\n", error.what());
    return 2;
}
