#include "steps.h"

#include <cmath>
#include <iterator>

#include "../dispatch.h"
#include "../text.h"

namespace bnew {
namespace {

void read_numbers(GraphReader& reader, const Json& argument, const Shape& result, const std::string& place,
                  Step& step) {
    step.numbers = reader.per_channel(argument, result.channels, place);
}

void read_value(GraphReader& reader, const Json& argument, const Shape& result, const std::string& place,
                Step& step) {
    step.value = reader.find(argument.string(place), place);
    const Value& other = reader.value(step.value);
    const bool fits = (other.shape.height == result.height && other.shape.width == result.width) ||
                      (other.shape.height == 1 && other.shape.width == 1);
    expect(!other.bits && fits && result.channels % other.shape.channels == 0,
           place + ": " + quote(other.name) + " is " + (other.bits ? "bits" : to_string(other.shape)) +
               ", which does not fit " + to_string(result));
}

void read_bounds(GraphReader&, const Json& argument, const Shape&, const std::string& place, Step& step) {
    const auto& bounds = argument.array(place);
    expect(bounds.size() == 2, place + " must have two bounds");
    const auto bound = [&](const Json& json, float none) {
        return json.is(Json::Kind::null) ? none : static_cast<float>(json.number(place));
    };
    step.low = bound(bounds[0], -INFINITY);
    step.high = bound(bounds[1], INFINITY);
}

void read_nothing(GraphReader&, const Json& argument, const Shape&, const std::string& place, Step&) {
    expect(argument.object(place).empty(), place + " takes nothing");
}

constexpr StepKind kSteps[] = {
    {"scale", read_numbers, &StepChain::take_scale},
    {"shift", read_numbers, &StepChain::take_shift},
    {"add", read_value, &StepChain::take_add},
    {"multiply", read_value, &StepChain::take_multiply},
    {"prelu", read_numbers, &StepChain::take_activation},
    {"clamp", read_bounds, &StepChain::take_activation},
    {nullptr, read_nothing, &StepChain::take_activation},
};
static_assert(std::size(kSteps) == 7, "a row more or less: bring docs/format.md and its reader along");

}  // namespace

const StepKind* find_step(std::string_view name, int& activation) {
    activation = find_activation(name);
    for (const StepKind& kind : kSteps)
        if (kind.name ? name == kind.name : activation != kNoActivation) return &kind;
    return nullptr;
}

bool StepChain::take(const Step& step) { return (this->*step.kind->take)(step); }

bool StepChain::take_affine(const Step& step, bool is_shift) {
    // (x s + t) + o + b = (x s + (t + b)) + o: a shift after a sum moves before it.
    const bool early = !acted() && (join == Join::none || (join == Join::add && is_shift));
    Affine& affine = early ? before_ : after_;
    affine.scale.resize(step.numbers.size(), 1.0);
    affine.shift.resize(step.numbers.size(), 0.0);
    for (size_t c = 0; c < step.numbers.size(); ++c) {
        if (is_shift) {
            affine.shift[c] += step.numbers[c];
        } else {
            affine.scale[c] *= step.numbers[c];
            affine.shift[c] *= step.numbers[c];
        }
    }
    (is_shift ? affine.shifted : affine.scaled) = true;
    return true;
}

bool StepChain::take_join(const Step& step, Join kind) {
    if (join != Join::none || acted()) return false;
    join = kind;
    other = step.value;
    return true;
}

bool StepChain::take_activation(const Step& step) {
    if (acted()) return false;
    slope = step.numbers;
    activation = step.activation;
    low = step.low;
    high = step.high;
    return true;
}

}  // namespace bnew
