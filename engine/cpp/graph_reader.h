// Reads a graph. Operators and steps use this interface to read their fields.

#pragma once

#include <map>
#include <string>
#include <vector>

#include "fields.h"
#include "graph.h"

namespace bnew {

constexpr int64_t kMostNumbers = int64_t{1} << 31;  // of a value or of weights

class GraphReader {
public:
    GraphReader(const File& file, Budget& budget, const ImageSize& size)
        : file_(file), budget_(budget), size_(size) {}

    Graph read();

    const File& file() const { return file_; }
    const Value& value(int index) const { return graph_.values[static_cast<size_t>(index)]; }
    // The shape of a node's first input.
    const Shape& input(const Node& node) const { return value(node.inputs[0]).shape; }

    // These three throw Error.
    // The index of the value `name`; `what` begins the message.
    int find(const std::string& name, const std::string& what) const;
    // Counts the numbers that a node will keep: a small file can name a large tensor many times.
    void keep(int64_t numbers, const std::string& where);
    // One number per channel of the tensor `name`. A tensor of one number is repeated for all channels.
    std::vector<float> per_channel(const Json& name, int channels, const std::string& what);

private:
    void read_inputs(Fields& fields);
    void read_input(Fields& fields, const Shape& size);
    void read_only_input(const Json& json);
    void read_outputs(Fields& fields);
    Output& add_output(const std::string& name, const std::string& where);
    void read_node(const Json& json);
    void read_node_inputs(Fields& fields, Node& node);
    Step read_step(const Json& json, const Node& node, const std::string& where);
    Sign read_sign(const Json& json, const Node& node, const std::string& where);
    int add_value(const std::string& name, const Shape& shape, bool bits, const std::string& where);

    const File& file_;
    Budget& budget_;
    const ImageSize size_;
    Graph graph_;
    std::map<std::string, int> names_;
};

}  // namespace bnew
