// Chooses the kernels.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace bnew {

// The kernels that this machine can run, the best first. Detected once.
const std::vector<const Kernels*>& usable_kernels();

// The kernels called `name`; if it is empty, those that BNEW_ENGINE_ISA names, else the best. Throws Error.
const Kernels& choose_kernels(const std::string& name);

// The activation's row in the kernels' table, or kNoActivation.
int find_activation(std::string_view name);

}  // namespace bnew
