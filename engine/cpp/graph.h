// The graph of a packed file, checked: every name known, every shape worked out (docs/format.md, "Graph").

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "budget.h"
#include "file.h"

namespace bnew {

struct Shape {
    int channels = 0, height = 0, width = 0;
    bool operator==(const Shape&) const = default;
};

std::string to_string(const Shape& shape);

struct Value {
    std::string name;  // empty: the engine's own
    Shape shape;
    bool bits = false;
};

enum class Op {
    conv,
    binary_conv,
    max_pool,
    avg_pool,
    adaptive_avg_pool,
    identity,
    concat,
    flatten,
    softmax,
    to_real,  // the engine's own: bits as real ±1
};

const char* op_name(Op op);

enum class StepKind { scale, shift, add, multiply, prelu, clamp, sigmoid, hard_sigmoid, sign };

struct Step {
    StepKind kind;
    std::vector<float> numbers;  // scale, shift, prelu: one a channel
    int value = -1;              // add, multiply
    float low = 0, high = 0;     // clamp
};

struct Sign {
    std::vector<float> scale, shift;  // one a channel; scale empty: 1
    int output = -1;
};

struct Node {
    Op op = Op::identity;
    std::string name;
    std::vector<int> inputs;
    std::vector<Step> then;
    int output = -1;  // real value, or -1
    std::optional<Sign> sign;
    Shape shape;  // of the result

    // Of convolutions and pools.
    int kernel_y = 1, kernel_x = 1, stride_y = 1, stride_x = 1, dilation_y = 1, dilation_x = 1;
    int top = 0, left = 0, bottom = 0, right = 0;
    bool count_padding = false;

    // Of convolutions. Weights of a binary one: for each output channel the bits of a window, tap after tap.
    int groups = 1;
    std::vector<float> weights;
    std::vector<uint32_t> words;
};

struct Graph {
    std::vector<Value> values;  // the input is the first
    std::vector<Node> nodes;
    int output = -1;
    std::vector<float> mean, std;  // both empty, or one a channel
    std::vector<std::string> classes;

    // Throws Error.
    static Graph read(const File& file, Budget& budget);
};

}  // namespace bnew
