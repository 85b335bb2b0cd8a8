// Decides which stages are computed in strips, and the order of their rows.

#pragma once

#include "plan.h"

namespace bnew {

// Schedules the plan's stages. With bands, segments of large stages run in strips, in that many bands. With 0
// bands, stages run one after the other.
Schedule make_schedule(const Plan& plan, int bands);

}  // namespace bnew
