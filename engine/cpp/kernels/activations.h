// The activations, one per row: the name in a file and the formula. A formula is written once, on f16, so
// that all instruction sets give the same bits. If it need not be fast, it is written on a float, with
// each().

#pragma once

#include <cmath>
#include <cstddef>
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

template <size_t N>
inline f16 polynomial(f16 x, const float (&coefficients)[N]) {  // from the highest power to the constant
    f16 sum = all(coefficients[0]);
    for (size_t i = 1; i < N; ++i) sum = fma(sum, x, all(coefficients[i]));
    return sum;
}

// x P(x²) / Q(x²), an odd function that is exactly 1 from x = `limit` on.
template <size_t P, size_t Q>
inline f16 odd_rational(f16 x, float limit, const float (&p)[P], const float (&q)[Q]) {
    x = min(max(x, all(-limit)), all(limit));
    const f16 square = mul(x, x);
    const f16 y = div(mul(x, polynomial(square, p)), polynomial(square, q));
    return min(max(y, all(-1)), all(1));
}

// Minimax fits of degree 5 / 5 and 5 / 4 in x². With rounding, both have a relative error of 4e-7.
inline f16 erf(f16 x) {
    constexpr float p[] = {2.05003312e-06f, 2.84875161e-04f, 3.76551505e-03f,
                           5.27484082e-02f, 1.90404817e-01f, 1.12837911f};
    constexpr float q[] = {3.8090755e-05f,  1.16250059e-03f, 1.49690229e-02f,
                           1.14108339e-01f, 5.02074599e-01f, 1};
    return odd_rational(x, 3.92f, p, q);
}

inline f16 tanh(f16 x) {
    constexpr float p[] = {-1.22464122e-11f, 3.06428021e-08f, 2.80314434e-05f,
                           3.86951515e-03f,  1.36808619e-01f, 1};
    constexpr float q[] = {1.28904378e-06f, 3.94072558e-04f, 2.72501837e-02f, 4.70141947e-01f, 1};
    return odd_rational(x, 9, p, q);
}

// v / 2 (1 + erf(v / √2)), to 1e-6 for every v.
inline f16 gelu(f16 v, const Epilogue&) {
    const f16 half = mul(v, all(0.5f));
    return fma(half, erf(mul(v, all(0.70710678f))), half);
}

// v / 2 (1 + tanh(√(2 / π) (v + 0.044715 v³))), to 1e-6.
inline f16 gelu_tanh(f16 v, const Epilogue&) {
    const f16 half = mul(v, all(0.5f)), slope = fma(mul(v, v), all(0.035677408f), all(0.79788456f));
    return fma(half, tanh(mul(v, slope)), half);
}

// Processes a whole tile in one call. Not inlined, so that activations do not enlarge the code of the tiles.
template <auto Formula>
__attribute__((noinline)) void apply(f16* values, int count, const Epilogue& e) {
    for (int i = 0; i < count; ++i) values[i] = Formula(values[i], e);
}

constexpr struct {
    const char* name;
    void (*apply)(f16* values, int count, const Epilogue&);
} kActivations[] = {
    {"clamp", apply<clamp>}, {"sigmoid", apply<sigmoid>}, {"hard_sigmoid", apply<hard_sigmoid>},
    {"sign", apply<sign>},   {"gelu", apply<gelu>},       {"gelu_tanh", apply<gelu_tanh>},
};
static_assert(std::size(kActivations) == 6, "a row more or less: bring docs/format.md and its reader along");

const char* activation_name(int activation) {
    return activation < static_cast<int>(std::size(kActivations)) ? kActivations[activation].name : nullptr;
}

}  // namespace
}  // namespace bnew
