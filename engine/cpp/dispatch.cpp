#include "dispatch.h"

#include <algorithm>
#include <cstdlib>

#include "include/bnew_engine.h"

namespace bnew {

const std::vector<const Kernels*>& usable_kernels() {
    static const std::vector<const Kernels*> usable = [] {
        std::vector<const Kernels*> all = {
#if defined(__x86_64__)
            &avx512_kernels,
            &avx2_kernels,
#elif defined(__aarch64__)
            &neon_kernels,
#endif
            &scalar_kernels,
        };
        std::erase_if(all, [](const Kernels* kernels) { return !kernels->supported(); });
        return all;
    }();
    return usable;
}

const Kernels& choose_kernels(const std::string& name) {
    const char* forced = std::getenv("BNEW_ENGINE_ISA");
    const std::string wanted = !name.empty() ? name : forced ? forced : "";
    if (wanted.empty()) return *usable_kernels().front();
    std::string known;
    for (const Kernels* kernels : usable_kernels()) {
        if (kernels->name == wanted) return *kernels;
        known += (known.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw Error("the instruction set '" + wanted + "'" + (name.empty() ? " (BNEW_ENGINE_ISA)" : "") +
                " is not one that this machine can run: choose among " + known);
}

int find_activation(std::string_view name) {
    for (int i = 0; scalar_kernels.activation_name(i); ++i)
        if (name == scalar_kernels.activation_name(i)) return i;
    return kNoActivation;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->name);
    return names;
}

std::string instruction_set() { return choose_kernels("").name; }

}  // namespace bnew
