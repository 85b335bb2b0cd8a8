// The steps of `then`: how each is read, and its line in an epilogue.

#pragma once

#include <string_view>
#include <vector>

#include "../graph_reader.h"
#include "../kernels.h"

namespace bnew {

// Collects steps that fit one epilogue. Scales and shifts are folded in double precision.
class StepChain {
public:
    // Adds the step if it fits. Returns whether it does.
    bool take(const Step& step);

    struct Affine {
        std::vector<double> scale, shift;  // one per channel; empty before the first step
        bool scaled = false, shifted = false;
    };

    Join join = Join::none;
    int other = -1;
    std::vector<float> slope;  // of prelu
    int activation = kNoActivation;
    float low = 0, high = 0;  // of clamp
    const Affine& before() const { return before_; }
    const Affine& after() const { return after_; }

    // take() for each kind of step, called through the table.
    bool take_scale(const Step& step) { return take_affine(step, false); }
    bool take_shift(const Step& step) { return take_affine(step, true); }
    bool take_add(const Step& step) { return take_join(step, Join::add); }
    bool take_multiply(const Step& step) { return take_join(step, Join::multiply); }
    bool take_activation(const Step& step);

private:
    bool acted() const {
        return activation != kNoActivation || !slope.empty() || after_.scaled || after_.shifted;
    }
    bool take_affine(const Step& step, bool is_shift);
    bool take_join(const Step& step, Join kind);

    Affine before_, after_;
};

struct StepKind {
    const char* name;  // null: any activation without an argument, named as in the kernels' table
    // Reads the step's argument; `place` begins the messages. Throws Error.
    void (*read)(GraphReader&, const Json& argument, const Shape& result, const std::string& place, Step&);
    bool (StepChain::*take)(const Step&);
};

// The kind of the step `name`; null if there is none. Sets `activation` to its row in the kernels' table, or
// to kNoActivation.
const StepKind* find_step(std::string_view name, int& activation);

}  // namespace bnew
