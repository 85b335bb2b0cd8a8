#include <algorithm>
#include <iterator>

#include "families.h"

namespace bnew {
namespace {

constexpr Takes real = Takes::real, bits = Takes::bits, list = Takes::list, none = Takes::none;

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
    {"rms_norm",          real, read_layer_norm,        prepare_rms_norm,          same_row,    true,  run_layer_norm},
    {"l2_norm",           real, read_layer_norm,        prepare_l2_norm,           same_row,    true,  run_layer_norm},
    {"group_norm",        real, read_group_norm,        prepare_group_norm,        nullptr,     true,  run_group_norm},
    {"identity",          real, read_alike,             nullptr,                   same_row,    true,  run_identity},
    {"concat",            list, read_concat,            nullptr,                   nullptr,     false, run_concat},
    {"concat_rows",       list, read_concat_rows,       nullptr,                   nullptr,     false, run_concat_rows},
    {"concat_columns",    list, read_concat_columns,    nullptr,                   nullptr,     false, run_concat_columns},
    {"flatten",           real, read_flatten,           nullptr,                   nullptr,     false, run_flatten},
    {"softmax",           real, read_alike,             prepare_softmax,           same_row,    true,  run_softmax},
    {"log_softmax",       real, read_alike,             prepare_log_softmax,       same_row,    true,  run_softmax},
    {"rearrange",         real, read_rearrange,         prepare_rearrange,         nullptr,     true,  run_rearrange},
    {"constant",          none, read_constant,          prepare_constant,          nullptr,     true,  run_constant},
    {"pad",               real, read_pad,               prepare_pad,               pad_rows,    true,  run_pad},
    {"resize_bilinear",   real, read_resize_bilinear,   prepare_resize_bilinear,   bilinear_rows, true, run_resize_bilinear},
    {"matmul",            list, read_matmul,            prepare_matmul,            nullptr,     true,  run_matmul},
    {"argmax",            real, read_argmax,            prepare_argmax,            nullptr,     false, run_argmax},
    {"to_real",           bits, nullptr,                nullptr,                   nullptr,     false, run_to_real},
};
// clang-format on
static_assert(std::size(kOperators) == 24,
              "a row more or less: bring docs/format.md, its reader and kRevision along");

}  // namespace

const Operator* find_operator(std::string_view name) {
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [&](const Operator& op) { return name == op.name; });
    return found == std::end(kOperators) ? nullptr : found;
}

}  // namespace bnew
