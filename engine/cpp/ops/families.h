// The functions of the operators. Each family has a file.

#pragma once

#include "operator.h"

namespace bnew {

// A node without fields whose result has the shape of its input.
Shape read_alike(GraphReader&, Fields&, Node&);
Rows same_row(const Stage&, int y);

// identity.cpp
void run_identity(const Call&);

// conv.cpp
Shape read_conv(GraphReader&, Fields&, Node&);
void prepare_conv(Planner&, Stage&, Node&);
void run_conv(const Call&);

// binary_conv.cpp
Shape read_binary_conv(GraphReader&, Fields&, Node&);
void prepare_binary_conv(Planner&, Stage&, Node&);
void run_binary_conv(const Call&);
void run_to_real(const Call&);

// window.cpp
Rows window_rows(const Stage&, int y);

// pool.cpp
Shape read_max_pool(GraphReader&, Fields&, Node&);
Shape read_avg_pool(GraphReader&, Fields&, Node&);
Shape read_adaptive_avg_pool(GraphReader&, Fields&, Node&);
void prepare_max_pool(Planner&, Stage&, Node&);
void prepare_avg_pool(Planner&, Stage&, Node&);
void prepare_adaptive_avg_pool(Planner&, Stage&, Node&);
void run_pool(const Call&);
Shape read_resize_nearest(GraphReader&, Fields&, Node&);
void prepare_resize_nearest(Planner&, Stage&, Node&);
Rows resize_rows(const Stage&, int y);

// shape.cpp
Shape read_concat(GraphReader&, Fields&, Node&);
Shape read_concat_rows(GraphReader&, Fields&, Node&);
Shape read_concat_columns(GraphReader&, Fields&, Node&);
void run_concat(const Call&);
void run_concat_rows(const Call&);
void run_concat_columns(const Call&);
Shape read_flatten(GraphReader&, Fields&, Node&);
void run_flatten(const Call&);

// group_norm.cpp
struct NormArguments : Arguments {
    float eps = 0;
};
float read_eps(Fields& fields);
Shape read_group_norm(GraphReader&, Fields&, Node&);
void prepare_group_norm(Planner&, Stage&, Node&);
void run_group_norm(const Call&);

// layer_norm.cpp
Shape read_layer_norm(GraphReader&, Fields&, Node&);
void prepare_layer_norm(Planner&, Stage&, Node&);
void prepare_rms_norm(Planner&, Stage&, Node&);
void prepare_l2_norm(Planner&, Stage&, Node&);
void run_layer_norm(const Call&);

// softmax.cpp
void prepare_softmax(Planner&, Stage&, Node&);
void prepare_log_softmax(Planner&, Stage&, Node&);
void run_softmax(const Call&);

// rearrange.cpp
Shape read_rearrange(GraphReader&, Fields&, Node&);
void prepare_rearrange(Planner&, Stage&, Node&);
void run_rearrange(const Call&);

// constant.cpp
Shape read_constant(GraphReader&, Fields&, Node&);
void prepare_constant(Planner&, Stage&, Node&);
void run_constant(const Call&);

// pad.cpp
Shape read_pad(GraphReader&, Fields&, Node&);
void prepare_pad(Planner&, Stage&, Node&);
Rows pad_rows(const Stage&, int y);
void run_pad(const Call&);

// bilinear.cpp
Shape read_resize_bilinear(GraphReader&, Fields&, Node&);
void prepare_resize_bilinear(Planner&, Stage&, Node&);
Rows bilinear_rows(const Stage&, int y);
void run_resize_bilinear(const Call&);

// argmax.cpp
Shape read_argmax(GraphReader&, Fields&, Node&);
void prepare_argmax(Planner&, Stage&, Node&);
void run_argmax(const Call&);

// matmul.cpp
Shape read_matmul(GraphReader&, Fields&, Node&);
void prepare_matmul(Planner&, Stage&, Node&);
void run_matmul(const Call&);

}  // namespace bnew
