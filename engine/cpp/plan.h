// From a graph to what runs: stages, each an operator with its epilogue, and their schedules.

#pragma once

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

// What an operator makes of a node before it runs: each has its own kind, see ops/. It points into itself.
struct Prepared {
    Prepared() = default;
    virtual ~Prepared() = default;
    Prepared(const Prepared&) = delete;
    Prepared& operator=(const Prepared&) = delete;
};

// It points into its own vectors: it can be moved, and not be copied.
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
    int real = -1, bits = -1, other = -1;  // values written, and joined

    // Set by the operator's prepare.
    std::unique_ptr<Prepared> prepared;
    Border border;             // around its first input, that it reads as zeros or clear bits
    bool reads_close = false;  // also an input whose channels lie close together
    size_t scratch_bytes = 0;  // for each thread
    // Roughly what a number of its result takes on one core with AVX-512; writing it is the least.
    double nanoseconds = 0.5;

    Epilogue epilogue;                    // its views are filled in when a run binds the stage to its arena
    std::vector<Aligned<float>> numbers;  // that the epilogue points to
};

struct Plan {
    std::vector<Stage> stages;
    std::vector<Value> values;  // the graph's, then the planner's own
    int output = -1;
    // Segments of stages with large results run in strips, so that what one writes is still in the cache when
    // the next reads it, and their buffers hold no more rows than that takes.
    Schedule strips;
    // For several threads on one image: segments are cut into a band for each, in strips again.
    Schedule bands;
    // Stage after stage, every value there in full when its stage has run.
    Schedule whole;
    size_t scratch_bytes = 0;  // of each thread
};

// Makes a plan; what an operator may use of it when it is prepared.
class Planner {
public:
    Planner(Graph& graph, const Kernels& kernels, int threads, Budget& budget);

    Plan make();

    const Kernels& kernels() const { return kernels_; }
    const Shape& shape_of(int value) const { return plan_.values[static_cast<size_t>(value)].shape; }

    // Each counts what a stage keeps or does, before it does. Throws Error.
    void keep(double bytes, const std::string& name);
    void give_back(double bytes) { budget_.give_back(bytes); }
    void work(const Shape& results, double macs_per_number, const std::string& name);

    // Adds a stage that makes real ±1 of bits; their value.
    int to_real(int bits, const std::string& name);

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
