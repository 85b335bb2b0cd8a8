// The graph of a packed file (docs/format.md, "Graph"), checked, with the shapes of all values.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "budget.h"
#include "file.h"

namespace bnew {

struct Operator;
struct StepKind;

struct Shape {
    int channels = 0, height = 0, width = 0;
    bool operator==(const Shape&) const = default;
};

std::string to_string(const Shape& shape);

struct Value {
    std::string name;  // empty: made by the planner
    Shape shape;
    bool bits = false;
};

struct Step {
    const StepKind* kind = nullptr;
    std::vector<float> numbers;  // scale, shift, prelu: one per channel
    int value = -1;              // add, multiply
    int activation = -1;         // row of the kernels' table
    float low = 0, high = 0;     // clamp
};

struct Sign {
    std::vector<float> scale, shift;  // one per channel; scale empty: 1
    int output = -1;
};

// The arguments of a node's operator. Each operator derives its own struct, see ops/.
struct Arguments {
    virtual ~Arguments() = default;
};

struct Node {
    const Operator* op = nullptr;
    std::string name;
    std::vector<int> inputs;
    std::shared_ptr<Arguments> arguments;
    std::vector<Step> then;
    int output = -1;  // real value, or -1
    std::optional<Sign> sign;
    Shape shape;  // of the result
};

// How bytes become numbers of an input: (b / 255 - mean) / std.
struct Normalisation {
    std::vector<float> mean, std;  // both empty, or one per channel
};

// A result of the network.
struct Output {
    int value = -1;
    std::string name;  // empty: it has none
    Shape shape;       // of the value
    std::vector<int>
        size;  // of an image's result in the user's hands, with the value's numbers in the order c, y, x
    bool integers = false;  // whether its numbers are whole
};

struct Graph {
    std::vector<Value> values;  // the inputs are the first
    std::vector<Normalisation> inputs;
    std::vector<Node> nodes;
    std::vector<Output> outputs;
    std::vector<std::string> classes;

    // `size` as for Model. Throws Error.
    static Graph read(const File& file, Budget& budget, const ImageSize& size);
};

}  // namespace bnew
