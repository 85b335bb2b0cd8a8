// An operator is one row of the table in table.cpp. Its functions are in the file of its family. Graph, plan,
// strips and executor know no operator by name.

#pragma once

#include <string_view>

#include "../arena.h"
#include "../graph_reader.h"
#include "../plan.h"

namespace bnew {

// The arguments of an operator's run: its stage, its inputs and its part of the result.
struct Call {
    const Kernels& kernels;
    const Stage& stage;
    const Epilogue& epilogue;  // with its views; an operator that is not fused has only `real` in it
    const Part& part;
    uint8_t* scratch;  // stage.scratch_bytes for this thread

    const Plan& plan;
    const Task& task;
    const Arena& arena;

    const Shape& shape(size_t i = 0) const;
    RealView real(size_t i = 0) const;
    BitsView bits(size_t i = 0) const;
};

// One real value, one of bits, a list of real ones as `inputs`, or no input.
enum class Takes { real, bits, list, none };

struct Operator {
    const char* name;
    Takes takes;
    // Reads and checks the node's fields, keeps them as its arguments, and returns the result's shape. Null:
    // an operator that only the planner uses, and no file.
    Shape (*read)(GraphReader&, Fields&, Node&);
    // Sets stage.prepared and the fields after it, and counts memory and work before that. May take the
    // weights out of the node's arguments. Null: there is nothing to prepare.
    void (*prepare)(Planner&, Stage&, Node&);
    // First and last row (plus 1) of its first input that output row y reads, including padding. Must not
    // decrease with y. Null: it cannot be computed in strips.
    Rows (*rows)(const Stage&, int y);
    // Whether a kernel computes it in parts, with an epilogue. Other operators compute the whole value.
    bool fused;
    void (*run)(const Call&);
};

// Null if there is none.
const Operator* find_operator(std::string_view name);

}  // namespace bnew
