// Which stages are computed in strips, and the order of their rows.

#pragma once

#include "plan.h"

namespace bnew {

// Of the plan's stages: where that helps in strips, in so many bands; or, with none, stage after stage.
Schedule make_schedule(const Plan& plan, int bands);

}  // namespace bnew
