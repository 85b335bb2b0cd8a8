#include "graph.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "graph_reader.h"
#include "include/bnew_error.h"
#include "ops/operator.h"
#include "ops/steps.h"
#include "text.h"

namespace bnew {
namespace {

constexpr size_t kMostDimensions = 8;  // of an output

}  // namespace

std::string to_string(const Shape& shape) {
    return "(" + std::to_string(shape.channels) + ", " + std::to_string(shape.height) + ", " +
           std::to_string(shape.width) + ")";
}

Graph Graph::read(const File& file, Budget& budget, const ImageSize& size) {
    return GraphReader(file, budget, size).read();
}

Graph GraphReader::read() {
    const Json json = Json::parse(file_.graph());
    Fields fields(json, "its graph");
    read_inputs(fields);
    if (const Json* classes = fields.optional("classes"))
        for (const Json& name : classes->array("its graph, 'classes'"))
            graph_.classes.push_back(name.string("its graph, 'classes'"));
    for (const Json& node : fields.at("nodes").array("its graph, 'nodes'")) read_node(node);
    read_outputs(fields);
    fields.done();
    const Shape& out = graph_.outputs[0].shape;
    expect(graph_.classes.empty() || (graph_.outputs.size() == 1 && out.height == 1 && out.width == 1 &&
                                      int64_t{out.channels} == static_cast<int64_t>(graph_.classes.size())),
           "its graph has " + std::to_string(graph_.classes.size()) + " classes, but its output is " +
               (graph_.outputs.size() == 1 ? to_string(out) : "not one vector"));
    return std::move(graph_);
}

void GraphReader::read_outputs(Fields& fields) {
    const Json* outputs = fields.optional("outputs");
    if (!outputs) {
        add_output(fields.string("output"), "its graph, 'output'");
        return;
    }
    std::set<std::string> names;
    for (const Json& json : outputs->array("its graph, 'outputs'")) {
        const std::string where = "its graph's output " + std::to_string(graph_.outputs.size());
        Fields entry(json, where);
        Output& output = add_output(entry.string("value"), where);
        if (entry.optional("name")) output.name = entry.string("name");
        if (const Json* whole = entry.optional("integers"))
            output.integers = whole->boolean(entry.what("integers"));
        if (!output.name.empty()) names.insert(output.name);
        if (const Json* size = entry.optional("size")) {
            const size_t count = size->array(entry.what("size")).size();
            expect(count <= kMostDimensions, entry.what("size") + " is too long");
            output.size = entry.integers("size", count, 1);
        }
        int64_t count = 1;
        for (int n : output.size) count = std::min(count * n, kMostNumbers + 1);
        const Shape& shape = output.shape;
        expect(count == int64_t{shape.channels} * shape.height * shape.width,
               entry.what("size") + " does not fit " + to_string(shape));
        entry.done();
    }
    expect(!graph_.outputs.empty(), "its graph has no outputs");
    expect(names.empty() || names.size() == graph_.outputs.size(),
           "its graph's outputs must each have a name of its own, or none");
}

Output& GraphReader::add_output(const std::string& name, const std::string& where) {
    Output output;
    output.value = find(name, where);
    expect(!value(output.value).bits, where + " is bits, and must be real");
    output.shape = value(output.value).shape;
    const Shape& shape = output.shape;
    output.size = {shape.channels, shape.height, shape.width};
    if (shape.height == 1 && shape.width == 1) output.size = {shape.channels};
    graph_.outputs.push_back(std::move(output));
    budget_.keep(static_cast<double>(sizeof(Output)), "its outputs");
    return graph_.outputs.back();
}

void GraphReader::read_inputs(Fields& fields) {
    const Json* inputs = fields.optional("inputs");
    if (!inputs) {
        read_only_input(fields.at("input"));
        return;
    }
    expect(size_.height == 0 && size_.width == 0,
           "it takes several inputs, and runs for those of its own sizes only");
    for (const Json& json : inputs->array("its graph, 'inputs'")) {
        Fields entry(json, "its graph's input " + std::to_string(graph_.inputs.size()));
        const auto shape = entry.integers("shape", 3, 1);
        read_input(entry, {shape[0], shape[1], shape[2]});
        entry.done();
    }
    expect(graph_.inputs.size() >= 2, "its graph's 'inputs' must be two or more: one alone is its 'input'");
}

// Reads what every input has, and adds its value of shape `size`.
void GraphReader::read_input(Fields& fields, const Shape& size) {
    budget_.add_input(size.channels, size.height, size.width);
    add_value(fields.string("name"), size, false, fields.where());
    if (const Json* dimensions = fields.optional("size")) {
        const size_t count = dimensions->array(fields.what("size")).size();
        expect(1 <= count && count <= 3, fields.what("size") + " must have 1 to 3 numbers");
        std::vector<int> whole = fields.integers("size", count, 1);
        whole.resize(3, 1);
        expect(!fields.optional("any_size") && whole == std::vector{size.channels, size.height, size.width},
               fields.what("size") + " does not fit " + to_string(size));
    }
    Normalisation& input = graph_.inputs.emplace_back();
    const bool mean = fields.optional("mean"), std = fields.optional("std");
    expect(mean == std, fields.where() + " has only one of 'mean' and 'std'");
    if (!mean) return;
    input.mean = fields.floats("mean", static_cast<size_t>(size.channels));
    input.std = fields.floats("std", static_cast<size_t>(size.channels));
    for (size_t c = 0; c < input.std.size(); ++c) {
        expect(input.std[c] > 0, fields.where() + " has an 'std' that is not above 0");
        expect((std::fabs(input.mean[c]) + 1.0) / input.std[c] <= std::numeric_limits<float>::max(),
               fields.where() + " has a 'mean' and an 'std' that make too large numbers of bytes");
    }
}

void GraphReader::read_only_input(const Json& json) {
    Fields fields(json, "its graph's input");
    const auto shape = fields.integers("shape", 3, 1);
    Shape size{shape[0], shape[1], shape[2]};
    const Json* any = fields.optional("any_size");
    expect(!any || any->boolean(fields.what("any_size")), fields.what("any_size") + " must be true");
    const int height = size.height, width = size.width;  // of the images that 'resize' is for
    if (size_.height != 0 || size_.width != 0) {
        expect(std::min(size_.height, size_.width) > 0 && std::max(size_.height, size_.width) <= kLargestSize,
               "the input size must be a height and a width of at least 1");
        const bool same = size_.height == height && size_.width == width;
        expect(any || same, "it runs for images of " + std::to_string(height) + " x " +
                                std::to_string(width) + " only: pack the network for any size");
        size.height = size_.height, size.width = size_.width;
    }
    read_input(fields, size);
    // The size to which image files are scaled. The engine itself does not read image files.
    if (fields.optional("resize")) {
        const auto resize = fields.integers("resize", 2, 1);
        expect(resize[0] >= height && resize[1] >= width,
               "its graph's input has a 'resize' that is smaller than its 'shape'");
    }
    fields.done();
}

int GraphReader::add_value(const std::string& name, const Shape& shape, bool bits, const std::string& where) {
    expect(!name.empty(), where + " gives a value without a name");
    expect(shape.channels <= kLargestSize && shape.height <= kLargestSize && shape.width <= kLargestSize &&
               int64_t{shape.channels} * shape.height <= kMostNumbers / shape.width,
           where + ": " + to_string(shape) + " is too large");
    expect(names_.emplace(name, static_cast<int>(graph_.values.size())).second,
           where + " gives " + quote(name) + ", a name that is taken");
    graph_.values.push_back({name, shape, bits});
    return static_cast<int>(graph_.values.size()) - 1;
}

int GraphReader::find(const std::string& name, const std::string& what) const {
    const auto found = names_.find(name);
    expect(found != names_.end(), what + " names " + quote(name) + ", which no node before gives");
    return found->second;
}

void GraphReader::keep(int64_t numbers, const std::string& where) {
    budget_.keep(4.0 * static_cast<double>(numbers), "what its nodes hold, up to " + where + ",");
}

std::vector<float> GraphReader::per_channel(const Json& name, int channels, const std::string& what) {
    const Tensor& tensor = file_.tensor(name.string(what));
    expect(tensor.shape.size() == 1 && (tensor.count == channels || tensor.count == 1),
           what + " must have " + std::to_string(channels) + " numbers, or 1");
    keep(channels, what);
    std::vector<float> numbers = to_floats(tensor, what);
    if (numbers.size() == 1) numbers.resize(static_cast<size_t>(channels), numbers[0]);
    return numbers;
}

void GraphReader::read_node(const Json& json) {
    std::string where = "node " + std::to_string(graph_.nodes.size());
    Node node;
    Fields fields(json, where);
    node.name = fields.string("name");
    where += " (" + quote(node.name) + ")";
    fields.move_to(where);
    const std::string op = fields.string("op");
    node.op = find_operator(op);
    expect(node.op && node.op->read, where + " has op " + quote(op) + ", which is not known");
    read_node_inputs(fields, node);
    node.shape = node.op->read(*this, fields, node);
    if (const Json* then = fields.optional("then"))
        for (const Json& step : then->array(fields.what("then")))
            node.then.push_back(read_step(step, node, where));
    if (fields.optional("output")) node.output = add_value(fields.string("output"), node.shape, false, where);
    if (const Json* sign = fields.optional("sign")) node.sign = read_sign(*sign, node, where);
    expect(node.output >= 0 || node.sign, where + " has neither 'output' nor 'sign'");
    fields.done();
    graph_.nodes.push_back(std::move(node));
}

void GraphReader::read_node_inputs(Fields& fields, Node& node) {
    if (node.op->takes == Takes::list) {
        for (const Json& name : fields.at("inputs").array(fields.what("inputs")))
            node.inputs.push_back(find(name.string(fields.what("inputs")), fields.what("inputs")));
        expect(!node.inputs.empty(), fields.what("inputs") + " is empty");
    } else if (node.op->takes != Takes::none) {
        node.inputs.push_back(find(fields.string("input"), fields.what("input")));
    }
    const bool bits = node.op->takes == Takes::bits;
    for (int input : node.inputs)
        expect(value(input).bits == bits, fields.where() + " takes " + (bits ? "bits" : "a real value") +
                                              ", and " + quote(value(input).name) + " is " +
                                              (bits ? "real" : "bits"));
}

Step GraphReader::read_step(const Json& json, const Node& node, const std::string& where) {
    const std::string what = where + ", a step of 'then'";
    const auto& entries = json.object(what);
    expect(entries.size() == 1, what + " must have one name");
    const auto& [name, argument] = entries[0];
    Step step;
    step.kind = find_step(name, step.activation);
    expect(step.kind, where + " has a step " + quote(name) + ", which is not known");
    step.kind->read(*this, argument, node.shape, where + ", step '" + name + "'", step);
    return step;
}

Sign GraphReader::read_sign(const Json& json, const Node& node, const std::string& where) {
    Fields fields(json, where + ", 'sign'");
    Sign sign;
    if (const Json* scale = fields.optional("scale"))
        sign.scale = per_channel(*scale, node.shape.channels, fields.what("scale"));
    if (const Json* shift = fields.optional("shift")) {
        sign.shift = per_channel(*shift, node.shape.channels, fields.what("shift"));
    } else {
        keep(node.shape.channels, fields.where());
        sign.shift.assign(static_cast<size_t>(node.shape.channels), 0.0f);
    }
    sign.output = add_value(fields.string("output"), node.shape, true, fields.where());
    fields.done();
    return sign;
}

}  // namespace bnew
