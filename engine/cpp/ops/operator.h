// What the engine knows of an operator: one row of the table in table.cpp, whose functions are in the file of
// the operator's family. Graph, plan, strips and executor know no operator by name.

#pragma once

#include <string_view>

#include "../arena.h"
#include "../graph_reader.h"
#include "../plan.h"

namespace bnew {

// What a run sees of a stage and of its inputs.
struct Call {
    const Kernels& kernels;
    const Stage& stage;
    const Epilogue& epilogue;  // bound to the arena; of an operator without one, real alone is set
    const Part& part;
    uint8_t* scratch;  // stage.scratch_bytes for this thread

    const Plan& plan;
    const Task& task;
    const Arena& arena;

    const Shape& shape(size_t i = 0) const;
    RealView real(size_t i = 0) const;
    BitsView bits(size_t i = 0) const;
};

enum class Takes { real, bits, list };  // one real value, one of bits, or a list of real ones as `inputs`

struct Operator {
    const char* name;
    Takes takes;
    // Takes the node's fields, checks them, keeps them as its arguments; returns the result's shape. Null:
    // the engine's own, which no file names.
    Shape (*read)(GraphReader&, Fields&, Node&);
    // Makes what its runs need (stage.prepared and the fields beside it), and counts the memory and the work
    // of that first. May take the weights out of the node's arguments. Null: nothing to prepare.
    void (*prepare)(Planner&, Stage&, Node&);
    // The rows of its first input, padding included, that output row y reads. Neither end decreases with y.
    // Null: it cannot be computed in strips.
    Rows (*rows)(const Stage&, int y);
    // Whether a kernel computes it part by part, with an epilogue. All others are computed whole.
    bool fused;
    void (*run)(const Call&);
};

// Null if there is none.
const Operator* find_operator(std::string_view name);

}  // namespace bnew
