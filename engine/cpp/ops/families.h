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
void run_concat(const Call&);
Shape read_flatten(GraphReader&, Fields&, Node&);
void run_flatten(const Call&);

// layer_norm.cpp
Shape read_layer_norm(GraphReader&, Fields&, Node&);
void prepare_layer_norm(Planner&, Stage&, Node&);
void run_layer_norm(const Call&);

// softmax.cpp
void run_softmax(const Call&);

}  // namespace bnew
