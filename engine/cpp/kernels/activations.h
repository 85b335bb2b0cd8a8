// The activations: a row each, its name in a file and its formula. A formula is written once, on f16, so that
// all instruction sets give the same bits; or on a single float, through each(), where it need not be fast.

#pragma once

#include <cmath>
#include <iterator>

#include "../kernels.h"

namespace bnew {
namespace {

template <class F>
inline f16 each(f16 v, F f) {
    float lanes[kGroup];
    store(lanes, v);
    for (float& lane : lanes) lane = f(lane);
    return load(lanes);
}

inline f16 clamp(f16 v, const Epilogue& e) { return min(max(v, all(e.low)), all(e.high)); }

inline f16 sigmoid(f16 v, const Epilogue&) {
    return each(v, [](float x) { return 1.0f / (1.0f + std::exp(-x)); });
}

inline f16 hard_sigmoid(f16 v, const Epilogue&) {
    return min(max(fma(v, all(1.0f / 6), all(0.5f)), all(0)), all(1));
}

inline f16 sign(f16 v, const Epilogue&) {
    return each(v, [](float x) { return x >= 0 ? 1.0f : -1.0f; });
}

// A whole tile in one call, never inlined, so that no activation swells the tiles.
template <auto Formula>
__attribute__((noinline)) void apply(f16* values, int count, const Epilogue& e) {
    for (int i = 0; i < count; ++i) values[i] = Formula(values[i], e);
}

constexpr struct {
    const char* name;
    void (*apply)(f16* values, int count, const Epilogue&);
} kActivations[] = {
    {"clamp", apply<clamp>},
    {"sigmoid", apply<sigmoid>},
    {"hard_sigmoid", apply<hard_sigmoid>},
    {"sign", apply<sign>},
};
static_assert(std::size(kActivations) == 4, "a row more or less: bring docs/format.md and its reader along");

const char* activation_name(int activation) {
    return activation < static_cast<int>(std::size(kActivations)) ? kActivations[activation].name : nullptr;
}

}  // namespace
}  // namespace bnew
