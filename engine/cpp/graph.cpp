#include "graph.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "include/bnew_engine.h"
#include "text.h"

namespace bnew {

std::string to_string(const Shape& shape) {
    std::string text = "(";  // of "(" + … GCC 12 warns without reason
    return text + std::to_string(shape.channels) + ", " + std::to_string(shape.height) + ", " +
           std::to_string(shape.width) + ")";
}

namespace {

constexpr std::pair<Op, const char*> kOps[] = {
    {Op::conv, "conv"},
    {Op::binary_conv, "binary_conv"},
    {Op::max_pool, "max_pool"},
    {Op::avg_pool, "avg_pool"},
    {Op::adaptive_avg_pool, "adaptive_avg_pool"},
    {Op::identity, "identity"},
    {Op::concat, "concat"},
    {Op::flatten, "flatten"},
    {Op::softmax, "softmax"},
};

constexpr std::pair<StepKind, const char*> kSteps[] = {
    {StepKind::scale, "scale"},     {StepKind::shift, "shift"},
    {StepKind::add, "add"},         {StepKind::multiply, "multiply"},
    {StepKind::prelu, "prelu"},     {StepKind::clamp, "clamp"},
    {StepKind::sigmoid, "sigmoid"}, {StepKind::hard_sigmoid, "hard_sigmoid"},
    {StepKind::sign, "sign"},
};

// The entry of a table that has the name, or null.
template <class Kind, size_t N>
const std::pair<Kind, const char*>* named(const std::pair<Kind, const char*> (&table)[N],
                                          std::string_view name) {
    const auto* found =
        std::find_if(std::begin(table), std::end(table), [&](auto& entry) { return name == entry.second; });
    return found == std::end(table) ? nullptr : found;
}

constexpr int kLargestSize = 1 << 20;               // of a dimension
constexpr int kLargestWindow = 4096;                // of a kernel, a stride, a dilation, a padding
constexpr int64_t kMostNumbers = int64_t{1} << 31;  // of a value or of weights

void expect(bool right, const std::string& sentence) {
    if (!right) throw Error(sentence);
}

// One object of the graph, whose fields are taken by name; what is left over is refused.
class Fields {
public:
    Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
        object.object(where_);
    }

    const Json* optional(const char* name) {
        known_.insert(name);
        return object_.find(name);
    }
    const Json& at(const char* name) {
        const Json* found = optional(name);
        expect(found, where_ + " has no '" + name + "'");
        return *found;
    }
    std::string what(const char* name) const { return where_ + ", '" + name + "'"; }
    std::string string(const char* name) { return at(name).string(what(name)); }
    int integer(const char* name, int least, int most) {
        return static_cast<int>(at(name).integer(what(name), least, most));
    }
    std::vector<int> integers(const char* name, size_t count, int least, int most = kLargestSize) {
        const auto& list = at(name).array(what(name));
        expect(list.size() == count, what(name) + " must have " + std::to_string(count) + " numbers");
        std::vector<int> numbers;
        for (const Json& item : list)
            numbers.push_back(static_cast<int>(item.integer(what(name), least, most)));
        return numbers;
    }
    std::vector<float> floats(const char* name, size_t count) {
        const auto& list = at(name).array(what(name));
        expect(list.size() == count, what(name) + " must have " + std::to_string(count) + " numbers");
        std::vector<float> numbers;
        for (const Json& item : list) numbers.push_back(static_cast<float>(item.number(what(name))));
        return numbers;
    }
    void done() const {
        for (const auto& [name, value] : object_.object(where_))
            expect(known_.count(name) > 0, where_ + " has " + quote(name) + ", which is not known");
    }

    const std::string& where() const { return where_; }
    void move_to(std::string where) { where_ = std::move(where); }

private:
    const Json& object_;
    std::string where_;
    std::set<std::string, std::less<>> known_;
};

class Reader {
public:
    Reader(const File& file, Budget& budget) : file_(file), budget_(budget) {}

    Graph read() {
        const Json json = Json::parse(file_.graph());
        Fields fields(json, "its graph");
        read_input(fields.at("input"));
        if (const Json* classes = fields.optional("classes"))
            for (const Json& name : classes->array("its graph, 'classes'"))
                graph_.classes.push_back(name.string("its graph, 'classes'"));
        for (const Json& node : fields.at("nodes").array("its graph, 'nodes'")) read_node(node);
        graph_.output = find(fields.string("output"), "its graph, 'output'");
        expect(!graph_.values[graph_.output].bits, "its graph's output is bits, and must be real");
        fields.done();
        const Shape& out = graph_.values[graph_.output].shape;
        expect(
            graph_.classes.empty() || (int64_t{out.channels} == static_cast<int64_t>(graph_.classes.size()) &&
                                       out.height == 1 && out.width == 1),
            "its graph has " + std::to_string(graph_.classes.size()) + " classes, but its output is " +
                to_string(out));
        return std::move(graph_);
    }

private:
    void read_input(const Json& json) {
        Fields fields(json, "its graph's input");
        const auto shape = fields.integers("shape", 3, 1);
        const Shape size{shape[0], shape[1], shape[2]};
        budget_.set_input(size.channels, size.height, size.width);
        add_value(fields.string("name"), size, false, "its graph's input");
        const bool mean = fields.optional("mean"), std = fields.optional("std");
        expect(mean == std, "its graph's input has only one of 'mean' and 'std'");
        if (mean) {
            graph_.mean = fields.floats("mean", static_cast<size_t>(size.channels));
            graph_.std = fields.floats("std", static_cast<size_t>(size.channels));
            for (size_t c = 0; c < graph_.std.size(); ++c) {
                expect(graph_.std[c] > 0, "its graph's input has an 'std' that is not above 0");
                expect((std::fabs(graph_.mean[c]) + 1.0) / graph_.std[c] <= std::numeric_limits<float>::max(),
                       "its graph's input has a 'mean' and an 'std' that make too large numbers of bytes");
            }
        }
        // How images in files are brought to size, which is for those who read them.
        if (fields.optional("resize")) {
            const auto resize = fields.integers("resize", 2, 1);
            expect(resize[0] >= size.height && resize[1] >= size.width,
                   "its graph's input has a 'resize' that is smaller than its 'shape'");
        }
        fields.done();
    }

    int add_value(const std::string& name, const Shape& shape, bool bits, const std::string& where) {
        expect(!name.empty(), where + " gives a value without a name");
        expect(shape.channels <= kLargestSize && shape.height <= kLargestSize &&
                   shape.width <= kLargestSize &&
                   int64_t{shape.channels} * shape.height <= kMostNumbers / shape.width,
               where + ": " + to_string(shape) + " is too large");
        expect(names_.emplace(name, static_cast<int>(graph_.values.size())).second,
               where + " gives " + quote(name) + ", a name that is taken");
        graph_.values.push_back({name, shape, bits});
        return static_cast<int>(graph_.values.size()) - 1;
    }

    int find(const std::string& name, const std::string& what) const {
        const auto found = names_.find(name);
        expect(found != names_.end(), what + " names " + quote(name) + ", which no node before gives");
        return found->second;
    }

    // Counts what a node keeps, before it does: a small file can name a large tensor many times.
    void take(int64_t numbers, const std::string& where) {
        budget_.keep(4.0 * static_cast<double>(numbers), "what its nodes hold, up to " + where + ",");
    }

    // Numbers per channel; one number stands for every channel.
    std::vector<float> per_channel(const Json& name, int channels, const std::string& what) {
        const Tensor& tensor = file_.tensor(name.string(what));
        expect(tensor.shape.size() == 1 && (tensor.count == channels || tensor.count == 1),
               what + " must have " + std::to_string(channels) + " numbers, or 1");
        take(channels, what);
        std::vector<float> numbers = to_floats(tensor, what);
        if (numbers.size() == 1) numbers.resize(static_cast<size_t>(channels), numbers[0]);
        return numbers;
    }

    void read_node(const Json& json) {
        std::string where = "node " + std::to_string(graph_.nodes.size());
        Node node;
        Fields fields(json, where);
        node.name = fields.string("name");
        where += " (" + quote(node.name) + ")";
        fields.move_to(where);
        const std::string op = fields.string("op");
        const auto* known = named(kOps, op);
        expect(known, where + " has op " + quote(op) + ", which is not known");
        node.op = known->first;
        read_inputs(fields, node);
        switch (node.op) {
            case Op::conv:
            case Op::binary_conv: read_conv(fields, node); break;
            case Op::max_pool:
            case Op::avg_pool:
            case Op::adaptive_avg_pool: read_pool(fields, node); break;
            case Op::identity:
            case Op::softmax: node.shape = input_shape(node); break;
            case Op::concat: node.shape = joined(node, where); break;
            case Op::flatten: node.shape = flattened(input_shape(node), where); break;
            case Op::to_real: throw Error(where + " is the engine's own");  // and has no name in kOps
        }
        if (const Json* then = fields.optional("then"))
            for (const Json& step : then->array(fields.what("then")))
                node.then.push_back(read_step(step, node, where));
        if (fields.optional("output"))
            node.output = add_value(fields.string("output"), node.shape, false, where);
        if (const Json* sign = fields.optional("sign")) node.sign = read_sign(*sign, node, where);
        expect(node.output >= 0 || node.sign, where + " has neither 'output' nor 'sign'");
        fields.done();
        graph_.nodes.push_back(std::move(node));
    }

    void read_inputs(Fields& fields, Node& node) {
        if (node.op == Op::concat) {
            for (const Json& name : fields.at("inputs").array(fields.what("inputs")))
                node.inputs.push_back(find(name.string(fields.what("inputs")), fields.what("inputs")));
            expect(!node.inputs.empty(), fields.what("inputs") + " is empty");
        } else {
            node.inputs.push_back(find(fields.string("input"), fields.what("input")));
        }
        const bool bits = node.op == Op::binary_conv;
        for (int input : node.inputs)
            expect(graph_.values[input].bits == bits,
                   fields.where() + " takes " + (bits ? "bits" : "a real value") + ", and " +
                       quote(graph_.values[input].name) + " is " + (bits ? "real" : "bits"));
    }

    const Shape& input_shape(const Node& node) const { return graph_.values[node.inputs[0]].shape; }

    void read_window(Fields& fields, Node& node, bool dilated) {
        const auto kernel = fields.integers("kernel", 2, 1, kLargestWindow);
        const auto stride = fields.integers("stride", 2, 1, kLargestWindow);
        const auto padding = fields.integers("padding", 4, 0, kLargestWindow);
        node.kernel_y = kernel[0], node.kernel_x = kernel[1];
        node.stride_y = stride[0], node.stride_x = stride[1];
        node.top = padding[0], node.left = padding[1], node.bottom = padding[2], node.right = padding[3];
        if (dilated) {
            const auto dilation = fields.integers("dilation", 2, 1, kLargestWindow);
            node.dilation_y = dilation[0], node.dilation_x = dilation[1];
        }
    }

    void read_conv(Fields& fields, Node& node) {
        read_window(fields, node, true);
        const std::string& where = fields.where();
        const Shape& in = input_shape(node);
        const auto channels = fields.integers("channels", 2, 1);
        expect(channels[0] == in.channels, where + " takes " + std::to_string(channels[0]) +
                                               " channels, but its input has " + std::to_string(in.channels));
        node.groups = fields.integer("groups", 1, kLargestSize);
        expect(channels[0] % node.groups == 0 && channels[1] % node.groups == 0,
               where + " has channels that its groups do not divide");
        node.shape = {
            channels[1],
            size_of(in.height, node.top + node.bottom, node.kernel_y, node.stride_y, node.dilation_y, where),
            size_of(in.width, node.left + node.right, node.kernel_x, node.stride_x, node.dilation_x, where)};
        const int64_t per_group = channels[0] / node.groups;
        const int64_t taps = int64_t{node.kernel_y} * node.kernel_x;
        expect(taps <= kMostNumbers / per_group && taps * per_group <= kMostNumbers / channels[1],
               where + " has too large a kernel");
        const Tensor& weight = file_.tensor(fields.string("weight"));
        take(weight.count, where);
        if (node.op == Op::conv) {
            expect(weight.shape == std::vector<int64_t>{channels[1], per_group, node.kernel_y, node.kernel_x},
                   fields.what("weight") + " has another shape than the node says");
            node.weights = to_floats(weight, fields.what("weight"));
        } else {
            const int64_t bits = taps * per_group, words = (bits + 31) / 32;
            // A count and its border's share are at most twice that, and exact in a float.
            expect(bits <= 1 << 23, where + " has too large a kernel for exact counts");
            expect(weight.shape == std::vector<int64_t>{channels[1], words},
                   fields.what("weight") + " has another shape than the node says");
            node.words = to_words(weight, fields.what("weight"));
            if (bits % 32 != 0)
                for (int64_t o = 0; o < channels[1]; ++o)
                    expect(node.words[static_cast<size_t>((o + 1) * words - 1)] >> bits % 32 == 0,
                           fields.what("weight") + " has bits set behind its end");
        }
    }

    static int size_of(int64_t size, int64_t padding, int64_t kernel, int64_t stride, int64_t dilation,
                       const std::string& where) {
        const int64_t room = size + padding - dilation * (kernel - 1) - 1;
        expect(room >= 0, where + " has a kernel larger than its padded input");
        expect(room / stride + 1 <= kLargestSize, where + " gives too large a result");
        return static_cast<int>(room / stride + 1);
    }

    void read_pool(Fields& fields, Node& node) {
        const auto size = fields.integers("size", 2, 1);
        const Shape& in = input_shape(node);
        node.shape = {in.channels, size[0], size[1]};
        if (node.op == Op::adaptive_avg_pool) return;
        read_window(fields, node, node.op == Op::max_pool);
        if (node.op == Op::avg_pool)
            node.count_padding = fields.at("count_padding").boolean(fields.what("count_padding"));
        // Every window must hold a place of the image, or its maximum and mean do not exist.
        check_windows(in.height, node.top, node.kernel_y, node.stride_y, node.dilation_y, size[0],
                      fields.where());
        check_windows(in.width, node.left, node.kernel_x, node.stride_x, node.dilation_x, size[1],
                      fields.where());
    }

    static void check_windows(int64_t size, int64_t before, int64_t kernel, int64_t stride, int64_t dilation,
                              int64_t count, const std::string& where) {
        const auto check = [&](int64_t i) {
            int64_t first = i * stride - before;
            const int64_t last = first + (kernel - 1) * dilation;
            if (first < 0) first += (-first + dilation - 1) / dilation * dilation;
            expect(first < size && first <= last, where + " has a window without a place in the image");
        };
        // Of those that begin in the image, the last says enough.
        for (int64_t i = 0; i < count && i * stride < before; ++i) check(i);
        check(count - 1);
    }

    static Shape flattened(const Shape& in, const std::string& where) {
        const int64_t all = int64_t{in.channels} * in.height * in.width;
        expect(all <= kLargestSize, where + " gives too large a vector");
        return {static_cast<int>(all), 1, 1};
    }

    Shape joined(const Node& node, const std::string& where) const {
        const Shape& first = input_shape(node);
        int64_t channels = 0;
        for (int input : node.inputs) {
            const Shape& part = graph_.values[input].shape;
            expect(part.height == first.height && part.width == first.width,
                   where + " joins values of different sizes");
            channels += part.channels;
        }
        expect(channels <= kLargestSize, where + " gives too many channels");
        return {static_cast<int>(channels), first.height, first.width};
    }

    Step read_step(const Json& json, const Node& node, const std::string& where) {
        const std::string what = where + ", a step of 'then'";
        const auto& entries = json.object(what);
        expect(entries.size() == 1, what + " must have one name");
        const auto& [name, value] = entries[0];
        const auto* known = named(kSteps, name);
        expect(known, where + " has a step " + quote(name) + ", which is not known");
        const std::string place = where + ", step '" + name + "'";
        Step step{};
        step.kind = known->first;
        switch (step.kind) {
            case StepKind::scale:
            case StepKind::shift:
            case StepKind::prelu: step.numbers = per_channel(value, node.shape.channels, place); break;
            case StepKind::add:
            case StepKind::multiply: step.value = joined_with(value, node.shape, place); break;
            case StepKind::clamp: {
                const auto& bounds = value.array(place);
                expect(bounds.size() == 2, place + " must have two bounds");
                const auto bound = [&](const Json& json, float none) {
                    return json.is(Json::Kind::null) ? none : static_cast<float>(json.number(place));
                };
                step.low = bound(bounds[0], -INFINITY);
                step.high = bound(bounds[1], INFINITY);
                break;
            }
            case StepKind::sigmoid:
            case StepKind::hard_sigmoid:
            case StepKind::sign: expect(value.object(place).empty(), place + " takes nothing"); break;
        }
        return step;
    }

    int joined_with(const Json& name, const Shape& shape, const std::string& place) const {
        const int value = find(name.string(place), place);
        const Value& other = graph_.values[value];
        const bool fits = (other.shape.height == shape.height && other.shape.width == shape.width) ||
                          (other.shape.height == 1 && other.shape.width == 1);
        expect(!other.bits && fits && shape.channels % other.shape.channels == 0,
               place + ": " + quote(other.name) + " is " + (other.bits ? "bits" : to_string(other.shape)) +
                   ", which does not fit " + to_string(shape));
        return value;
    }

    Sign read_sign(const Json& json, const Node& node, const std::string& where) {
        Fields fields(json, where + ", 'sign'");
        Sign sign;
        if (const Json* scale = fields.optional("scale"))
            sign.scale = per_channel(*scale, node.shape.channels, fields.what("scale"));
        if (const Json* shift = fields.optional("shift")) {
            sign.shift = per_channel(*shift, node.shape.channels, fields.what("shift"));
        } else {
            take(node.shape.channels, fields.where());
            sign.shift.assign(static_cast<size_t>(node.shape.channels), 0.0f);
        }
        sign.output = add_value(fields.string("output"), node.shape, true, fields.where());
        fields.done();
        return sign;
    }

    const File& file_;
    Budget& budget_;
    Graph graph_;
    std::map<std::string, int> names_;
};

}  // namespace

const char* op_name(Op op) {
    for (const auto& [known, name] : kOps)
        if (known == op) return name;
    return "to_real";
}

Graph Graph::read(const File& file, Budget& budget) { return Reader(file, budget).read(); }

}  // namespace bnew
