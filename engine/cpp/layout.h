// Where values lie in memory, and in which order they are computed.

#pragma once

#include "plan.h"

namespace bnew {

// Bytes of a pixel's bits.
inline int64_t unit_of(int channels) {
    return channels <= 16 ? 2 : channels <= 32 ? 4 : round_up(channels, 64) / 8;
}

// Of the plan's stages: where that helps in strips of rows, in so many bands; or, with none, stage after
// stage.
Layout make_layout(const Graph& graph, const Plan& plan, int bands);

}  // namespace bnew
