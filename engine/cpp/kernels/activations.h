// The activations, one per row: the name in a file and the formula. A formula is written once, on f16, so
// that all instruction sets give the same bits. min() and max() return their second number if one is NaN: so
// a limit comes first, and NaN stays NaN.

#pragma once

#include <cstddef>
#include <iterator>
#include <limits>

#include "../kernels.h"

namespace bnew {
namespace {

inline f16 clamp(f16 v, const Epilogue& e) { return min(max(v, all(e.low)), all(e.high)); }

inline f16 hard_sigmoid(f16 v, const Epilogue&) {
    return min(max(fma(v, all(1.0f / 6), all(0.5f)), all(0)), all(1));
}

inline f16 hard_swish(f16 v, const Epilogue& e) { return mul(v, hard_sigmoid(v, e)); }

inline f16 sign(f16 v, const Epilogue&) { return choose(v, all(0), all(1), all(-1)); }

inline f16 abs(f16 v) { return add(max(mul(v, all(-1)), v), all(0)); }  // + 0: of -0 too it is +0

inline f16 absolute(f16 v, const Epilogue&) { return abs(v); }

inline f16 square_root(f16 v, const Epilogue&) { return sqrt(v); }

inline f16 reciprocal(f16 v, const Epilogue&) { return div(all(1), v); }

inline f16 softsign(f16 v, const Epilogue&) { return div(v, add(all(1), abs(v))); }

// To the nearest whole number, of two to the even one. From 2^23 on, all floats are whole.
inline f16 round(f16 v, const Epilogue&) {
    constexpr float kWhole = 0x1p23f;
    const f16 size = abs(v), whole = add(add(size, all(kWhole)), all(-kWhole));
    return choose(size, all(kWhole), v, choose(v, all(0), whole, mul(whole, all(-1))));
}

template <size_t N>
inline f16 polynomial(f16 x, const float (&coefficients)[N]) {  // from the highest power to the constant
    f16 sum = all(coefficients[0]);
    for (size_t i = 1; i < N; ++i) sum = fma(sum, x, all(coefficients[i]));
    return sum;
}

// --------------------------------------------------------------------------- exponentials and logarithms

// x = n ln 2 + r with a whole n and |r| <= ln 2 / 2.
struct Reduced {
    f16 n, r;
};

// Adding 1.5 · 2^23 rounds to a whole number, which then lies in the lowest bits.
constexpr float kWhole = 12582912;

inline Reduced reduced(f16 x) {
    const f16 n = add(fma(x, all(1.44269504f), all(kWhole)), all(-kWhole));
    return {n, fma(n, all(-1.42860677e-6f), fma(n, all(-0.693145752f), x))};  // ln 2 in two parts
}

// 2^n for whole n from -127 to 128, but 0 for -127 and infinity for 128.
inline f16 power(f16 n) { return as_exponent(add(n, all(kWhole + 127))); }

// (exp(r) - 1) / r, a minimax fit. Its relative error in exp(r) is 2e-9.
inline f16 slope_of_exp(f16 r) {
    constexpr float p[] = {1.38439530e-03f, 8.37414339e-03f, 4.16679978e-02f,
                           1.66664317e-01f, 4.99999940e-01f, 1};
    return polynomial(r, p);
}

// To 2e-7 relative; exactly 0 below -86.99, and infinity above 88.72.
inline f16 exp(f16 x) {
    const Reduced of = reduced(min(all(89), max(all(-87.3f), x)));
    const f16 half = power(add(of.n, all(-1)));  // 2^(n - 1), since 2^128 is no float
    return mul(fma(slope_of_exp(of.r), add(of.r, of.r), all(2)), half);
}

// exp(x) - 1 for x <= 0, to 3e-7 relative.
inline f16 exp_less_one(f16 x) {
    const Reduced of = reduced(max(all(-88), x));
    const f16 scale = power(of.n);
    return fma(scale, mul(slope_of_exp(of.r), of.r), add(scale, all(-1)));
}

// log((1 + s) / (1 - s)) for |s| <= 1/3, a minimax fit. Its relative error is 2e-9.
inline f16 log_of_ratio(f16 s) {
    constexpr float p[] = {2.81915456e-01f, 2.79576659e-01f, 4.00251150e-01f, 6.66663110e-01f, 2};
    return mul(s, polynomial(mul(s, s), p));
}

// log(1 + x) for x from 0 to 1, to 3e-7 relative.
inline f16 log_of_one_and(f16 x) { return log_of_ratio(div(x, add(all(2), x))); }

// To 3e-7; minus infinity at 0 and NaN below it.
inline f16 log(f16 x) {
    constexpr float kSmall = 0x1p-64f;  // below it, x is scaled: it may be too small to be normal
    const f16 normal = choose(x, all(kSmall), x, mul(x, all(0x1p64f)));
    const f16 e = add(exponent(normal), choose(x, all(kSmall), all(0), all(-64)));
    const f16 less = add(mantissa(normal), all(-1));
    const f16 rest = fma(e, all(1.42860677e-6f), log_of_ratio(div(less, add(all(2), less))));
    const f16 y = fma(e, all(0.693145752f), rest);
    constexpr float inf = std::numeric_limits<float>::infinity();
    const f16 outside = choose(x, all(0), all(-inf), all(std::numeric_limits<float>::quiet_NaN()));
    return choose(x, all(inf), x, choose(x, all(std::numeric_limits<float>::denorm_min()), y, outside));
}

inline f16 exponential(f16 v, const Epilogue&) { return exp(v); }

inline f16 logarithm(f16 v, const Epilogue&) { return log(v); }

// 1 + exp(-v): exactly 1 from v = 17 on.
inline f16 one_and_exp(f16 v) { return add(all(1), exp(mul(v, all(-1)))); }

inline f16 sigmoid(f16 v, const Epilogue&) { return div(all(1), one_and_exp(v)); }

inline f16 silu(f16 v, const Epilogue&) { return div(v, one_and_exp(v)); }

inline f16 elu(f16 v, const Epilogue&) { return choose(v, all(0), v, exp_less_one(min(all(0), v))); }

// max(v, 0) + log(1 + exp(-|v|)).
inline f16 softplus(f16 v, const Epilogue&) {
    return add(max(all(0), v), log_of_one_and(exp(mul(abs(v), all(-1)))));
}

// v tanh(log(1 + e)) = v n / (n + 2) with e = exp(v) and n = e (e + 2). From v = 20 on, it is v.
inline f16 mish(f16 v, const Epilogue&) {
    const f16 e = exp(min(all(20), v)), n = mul(e, add(e, all(2)));
    return mul(v, div(n, add(n, all(2))));
}

// ------------------------------------------------------------------------------------- erf and tanh

// x P(x²) / Q(x²), an odd function that is exactly 1 from x = `limit` on.
template <size_t P, size_t Q>
inline f16 odd_rational(f16 x, float limit, const float (&p)[P], const float (&q)[Q]) {
    x = min(all(limit), max(all(-limit), x));
    const f16 square = mul(x, x);
    const f16 y = div(mul(x, polynomial(square, p)), polynomial(square, q));
    return min(all(1), max(all(-1), y));
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

inline f16 hyperbolic_tangent(f16 v, const Epilogue&) { return tanh(v); }

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
    {"clamp", apply<clamp>},
    {"sigmoid", apply<sigmoid>},
    {"hard_sigmoid", apply<hard_sigmoid>},
    {"sign", apply<sign>},
    {"gelu", apply<gelu>},
    {"gelu_tanh", apply<gelu_tanh>},
    {"tanh", apply<hyperbolic_tangent>},
    {"exp", apply<exponential>},
    {"log", apply<logarithm>},
    {"sqrt", apply<square_root>},
    {"reciprocal", apply<reciprocal>},
    {"abs", apply<absolute>},
    {"elu", apply<elu>},
    {"softplus", apply<softplus>},
    {"mish", apply<mish>},
    {"silu", apply<silu>},
    {"hard_swish", apply<hard_swish>},
    {"softsign", apply<softsign>},
    {"round", apply<round>},
};
static_assert(std::size(kActivations) == 19, "a row more or less: bring docs/format.md and its reader along");

const char* activation_name(int activation) {
    return activation < static_cast<int>(std::size(kActivations)) ? kActivations[activation].name : nullptr;
}

}  // namespace
}  // namespace bnew
