// Padding, as a node of its own or before a convolution that cannot have it.

#pragma once

#include "operator.h"

namespace bnew {

enum class PadMode { constant, reflect, replicate, circular };

// Prepares the stage, whose first input is padded.
void set_pad(Planner& planner, Stage& stage, const Border& padding, PadMode mode, float value);

}  // namespace bnew
