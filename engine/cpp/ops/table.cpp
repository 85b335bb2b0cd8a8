#include <algorithm>
#include <iterator>

#include "families.h"

namespace bnew {
namespace {

constexpr Takes real = Takes::real, bits = Takes::bits, list = Takes::list;

// clang-format off
constexpr Operator kOperators[] = {
    // name              takes  read                    prepare                    rows         fused  run
    {"conv",              real, read_conv,              prepare_conv,              window_rows, true,  run_conv},
    {"binary_conv",       bits, read_binary_conv,       prepare_binary_conv,       window_rows, true,  run_binary_conv},
    {"max_pool",          real, read_max_pool,          prepare_max_pool,          window_rows, true,  run_pool},
    {"avg_pool",          real, read_avg_pool,          prepare_avg_pool,          window_rows, true,  run_pool},
    {"adaptive_avg_pool", real, read_adaptive_avg_pool, prepare_adaptive_avg_pool, nullptr,     true,  run_pool},
    {"resize_nearest",    real, read_resize_nearest,    prepare_resize_nearest,    resize_rows, true,  run_pool},
    {"layer_norm",        real, read_layer_norm,        prepare_layer_norm,        same_row,    true,  run_layer_norm},
    {"identity",          real, read_alike,             nullptr,                   same_row,    true,  run_identity},
    {"concat",            list, read_concat,            nullptr,                   nullptr,     false, run_concat},
    {"flatten",           real, read_flatten,           nullptr,                   nullptr,     false, run_flatten},
    {"softmax",           real, read_alike,             nullptr,                   nullptr,     false, run_softmax},
    {"to_real",           bits, nullptr,                nullptr,                   nullptr,     false, run_to_real},
};
// clang-format on
static_assert(std::size(kOperators) == 12, "a row more or less: bring docs/format.md and its reader along");

}  // namespace

const Operator* find_operator(std::string_view name) {
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [&](const Operator& op) { return name == op.name; });
    return found == std::end(kOperators) ? nullptr : found;
}

}  // namespace bnew
