// Plans the run of a graph: stages, each an operator with its epilogue, and their schedules.

#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "aligned.h"
#include "graph.h"
#include "kernels.h"
#include "schedule.h"

namespace bnew {

class StepChain;

// The data that an operator prepares for its runs. Each operator derives its own struct, see ops/. It may
// point into itself, so it is neither copied nor moved.
struct Prepared {
    Prepared() = default;
    virtual ~Prepared() = default;
    Prepared(const Prepared&) = delete;
    Prepared& operator=(const Prepared&) = delete;
};

// A stage can be moved but not copied: it points into its own vectors.
struct Stage {
    Stage() = default;
    Stage(Stage&&) = default;
    Stage& operator=(Stage&&) = default;
    Stage(const Stage&) = delete;
    Stage& operator=(const Stage&) = delete;

    const Operator* op = nullptr;
    std::string name;
    std::vector<int> inputs;
    Shape shape;                           // of the result
    int real = -1, bits = -1, other = -1;  // values: two that are written, and one that is joined

    // Set by the operator's prepare.
    std::unique_ptr<Prepared> prepared;
    Border border;             // around its first input; read as zeros or clear bits
    bool reads_close = false;  // whether it can read an input whose channels lie close together
    size_t scratch_bytes = 0;  // for each thread
    // The time per number of its result on one core with AVX-512, roughly. The default is for writing it.
    double nanoseconds = 0.5;

    Epilogue epilogue;                    // without views: each run sets them for its arena
    std::vector<Aligned<float>> numbers;  // the arrays of the epilogue
};

struct Plan {
    bool is_output(int value) const {
        return std::find(outputs.begin(), outputs.end(), value) != outputs.end();
    }

    std::vector<Stage> stages;
    std::vector<Value> values;  // the graph's, then the planner's own
    size_t inputs = 0;          // the first values
    std::vector<int> outputs;
    // Segments of stages with large results run in strips, so that the result of one stage is still in the
    // cache when the next reads it. Their buffers hold only the rows that are needed at a time.
    Schedule strips;
    // For several threads on one image: a segment has a band for each thread, and each band runs in strips.
    Schedule bands;
    // Stage after stage: the buffer of every value holds all rows.
    Schedule whole;
    size_t scratch_bytes = 0;  // of each thread
};

// Makes a plan. Operators use its public functions to prepare their stages.
class Planner {
public:
    Planner(Graph& graph, const Kernels& kernels, int threads, Budget& budget);

    Plan make();

    const Kernels& kernels() const { return kernels_; }
    const Shape& shape_of(int value) const { return plan_.values[static_cast<size_t>(value)].shape; }

    // Count memory and work before they are spent. Throw Error if the budget is exceeded.
    void keep(double bytes, const std::string& name);
    void give_back(double bytes) { budget_.give_back(bytes); }
    void work(const Shape& results, double macs_per_number, const std::string& name);

    // Adds a stage that converts bits to real ±1. Returns the new value.
    int to_real(int bits, const std::string& name);
    // Adds a stage with a new value as its result. Returns this value.
    int insert(Stage stage);

private:
    void add_node(Node& node);
    void finish(Stage stage, const Node& node);
    Stage next(Stage stage);
    void add(Stage stage);
    int add_value(const Shape& shape);
    int repeated(int value, int channels, const std::string& name);
    template <class Numbers>
    const float* keep_numbers(Stage& stage, const Numbers& numbers, float filling = 0);
    void set_epilogue(Stage& stage, const StepChain& chain);
    void set_sign(Stage& stage, const Sign& sign);
    void check_run(const Schedule& schedule, int threads) const;

    Graph& graph_;
    const Kernels& kernels_;
    int threads_;
    Budget& budget_;
    Plan plan_;
};

// Takes the weights out of the graph's real convolutions. Throws Error if the network needs more memory or
// work than the budget has.
Plan make_plan(Graph& graph, const Kernels& kernels, int threads, Budget& budget);

}  // namespace bnew
