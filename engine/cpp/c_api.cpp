// The interface of include/bnew.h.

#include "include/bnew.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "include/bnew_engine.h"

struct bnew_model {
    explicit bnew_model(bnew::Model&& loaded) : model(std::move(loaded)) {}

    bnew::Model model;
    std::vector<bnew::Input> inputs = model.inputs();
    std::vector<bnew::Result> results = model.outputs();
    std::vector<std::string> classes = model.classes();
};

namespace {

thread_local std::string kept;
thread_local const char* text = "";

void fail(const char* what) {
    try {
        kept = what;
        text = kept.c_str();
    } catch (...) {
        text = "there is not enough memory for the text of the error";
    }
}

// What `work` returns, or `failed` if it throws.
template <class Result, class Work>
Result guarded(Result failed, const Work& work) {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        fail("there is not enough memory");
    } catch (const std::exception& error) {
        fail(error.what());
    } catch (...) {
        fail("an unknown error");
    }
    return failed;
}

template <class... Pointers>
void check(const char* function, Pointers... pointers) {
    if ((... || (pointers == nullptr)))
        throw bnew::Error(std::string(function) + ": an argument is NULL, but must not be");
}

template <class Source>
bnew_model* load(const Source& source, const bnew_options* given) {
    const bnew_options options = given ? *given : bnew_options{};
    const std::string isa = options.instruction_set ? options.instruction_set : "";
    auto loaded = std::make_unique<bnew_model>(bnew::Model(source, options.threads ? options.threads : 1, isa,
                                                           {options.max_macs, options.max_bytes},
                                                           {options.height, options.width}));
    for (std::string& name : loaded->classes) name = bnew::printable(name);
    for (bnew::Input& input : loaded->inputs) input.name = bnew::printable(input.name);
    for (bnew::Result& result : loaded->results) result.name = bnew::printable(result.name);
    return loaded.release();
}

template <class Input>
int run(const char* function, const bnew_model* model, const Input* images, size_t count, float* results) {
    return guarded(1, [&] {
        check(function, model);
        if (count > 0) check(function, images, results);
        model->model.run(images, count, results);
        return 0;
    });
}

}  // namespace

const char* bnew_error(void) { return text; }

bnew_model* bnew_load(const char* path, const bnew_options* options) {
    return guarded<bnew_model*>(nullptr, [&] {
        check("bnew_load", path);
        return load(std::string(path), options);
    });
}

bnew_model* bnew_load_bytes(const void* content, size_t size, const bnew_options* options) {
    return guarded<bnew_model*>(nullptr, [&] {
        check("bnew_load_bytes", content);
        return load(std::span(static_cast<const uint8_t*>(content), size), options);
    });
}

void bnew_free(bnew_model* model) { delete model; }

void bnew_input_shape(const bnew_model* model, int shape[3]) {
    const bnew::Dimensions input = model->model.input();
    shape[0] = input.channels;
    shape[1] = input.height;
    shape[2] = input.width;
}

size_t bnew_input_size(const bnew_model* model) { return model->model.input_size(); }
size_t bnew_output_size(const bnew_model* model) { return model->model.output_size(); }

int bnew_run(const bnew_model* model, const float* images, size_t count, float* results) {
    return run("bnew_run", model, images, count, results);
}

int bnew_run_bytes(const bnew_model* model, const uint8_t* images, size_t count, float* results) {
    return run("bnew_run_bytes", model, images, count, results);
}

size_t bnew_input_count(const bnew_model* model) { return model->inputs.size(); }

const char* bnew_input_name(const bnew_model* model, size_t index) {
    return index < model->inputs.size() ? model->inputs[index].name.c_str() : nullptr;
}

const int* bnew_input_dimensions(const bnew_model* model, size_t index) {
    static_assert(sizeof(bnew::Dimensions) == 3 * sizeof(int));
    return index < model->inputs.size() ? &model->inputs[index].dimensions.channels : nullptr;
}

int bnew_input_bytes(const bnew_model* model, size_t index) {
    return index < model->inputs.size() && model->inputs[index].normalises;
}

int bnew_run_inputs(const bnew_model* model, const bnew_batch* batches, size_t count, float* results) {
    return guarded(1, [&] {
        check("bnew_run_inputs", model, batches);
        if (count > 0) check("bnew_run_inputs", results);
        std::vector<bnew::Batch> inputs;
        for (size_t i = 0; i < model->inputs.size(); ++i) {
            const auto& [floats, bytes] = batches[i];
            if (count > 0 && !floats == !bytes)
                throw bnew::Error("bnew_run_inputs: batch " + std::to_string(i) +
                                  " must have floats or bytes, and not both");
            inputs.push_back(bytes ? bnew::Batch(bytes) : bnew::Batch(floats));
        }
        model->model.run(inputs, count, results);
        return 0;
    });
}

size_t bnew_class_count(const bnew_model* model) { return model->classes.size(); }

const char* bnew_class_name(const bnew_model* model, size_t index) {
    return index < model->classes.size() ? model->classes[index].c_str() : nullptr;
}

size_t bnew_result_count(const bnew_model* model) { return model->results.size(); }

const char* bnew_result_name(const bnew_model* model, size_t index) {
    return index < model->results.size() ? model->results[index].name.c_str() : nullptr;
}

size_t bnew_result_dimensions(const bnew_model* model, size_t index) {
    return index < model->results.size() ? model->results[index].size.size() : 0;
}

const int* bnew_result_shape(const bnew_model* model, size_t index) {
    return index < model->results.size() ? model->results[index].size.data() : nullptr;
}

int bnew_result_integers(const bnew_model* model, size_t index) {
    return index < model->results.size() && model->results[index].integers;
}

const char* bnew_instruction_set(const bnew_model* model) { return model->model.isa().c_str(); }
