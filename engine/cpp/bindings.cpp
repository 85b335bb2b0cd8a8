// The Python bindings. Arrays are checked in bnew_engine/__init__.py, which has the messages too.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "include/bnew_checks.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Of what packed files and the Python package bnew may ask; bnew/deploy/inference.py says which one it needs.
// Raise both with each new operator, argument of one, or function of this module.
constexpr int kRevision = 1;

template <class T>
using Images = nb::ndarray<const T, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<nb::numpy, float>;

Floats to_numpy(std::vector<float> data, const std::vector<size_t>& shape) {
    auto* kept = new std::vector<float>(std::move(data));
    nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
    return Floats(kept->data(), shape.size(), shape.data(), owner);
}

std::vector<size_t> shape_of(size_t count, const bnew::Dimensions& d) {
    return {count, static_cast<size_t>(d.channels), static_cast<size_t>(d.height),
            static_cast<size_t>(d.width)};
}

// A batch for each input.
using Inputs = std::vector<std::variant<Images<float>, Images<uint8_t>>>;

std::vector<bnew::Batch> batches(const Inputs& inputs) {
    std::vector<bnew::Batch> found;
    for (const auto& images : inputs)
        found.push_back(std::visit([](const auto& each) { return bnew::Batch(each.data()); }, images));
    return found;
}

Floats run(const bnew::Model& model, const Inputs& inputs) {
    const size_t count = std::visit([](const auto& images) { return images.shape(0); }, inputs.at(0));
    const auto given = batches(inputs);
    std::vector<float> results(count * model.output_size());
    {
        nb::gil_scoped_release release;
        model.run(given, count, results.data());
    }
    return to_numpy(std::move(results), {count, model.output_size()});
}

std::vector<std::tuple<std::string, Floats>> values(const bnew::Model& model, const Inputs& image) {
    const auto given = batches(image);
    std::vector<bnew::NamedValue> found;
    {
        nb::gil_scoped_release release;
        found = model.values(given);
    }
    std::vector<std::tuple<std::string, Floats>> result;
    for (auto& value : found)
        result.emplace_back(value.name, to_numpy(std::move(value.data), shape_of(1, value.dimensions)));
    return result;
}

Floats convolve(const bnew::Model& model, const std::string& name, const Images<float>& signs) {
    bnew::NamedValue value;
    {
        nb::gil_scoped_release release;
        const auto size = [&](size_t axis) { return static_cast<int>(signs.shape(axis)); };
        value = bnew::Checks::convolve(model, name, signs.data(), {size(1), size(2), size(3)});
    }
    return to_numpy(std::move(value.data), shape_of(1, value.dimensions));
}

std::vector<std::tuple<std::string, std::string, double>> profile(const bnew::Model& model,
                                                                  const Inputs& image, int repeats) {
    const auto given = batches(image);
    std::vector<bnew::StageTime> times;
    {
        nb::gil_scoped_release release;
        times = model.profile(given, repeats);
    }
    std::vector<std::tuple<std::string, std::string, double>> result;
    for (const auto& time : times) result.emplace_back(time.name, time.op, time.seconds);
    return result;
}

std::span<const uint8_t> bytes_of(const nb::bytes& content) {
    return {static_cast<const uint8_t*>(content.data()), content.size()};
}

bnew::ImageSize image_size(const std::tuple<int, int>& size) {
    return {std::get<0>(size), std::get<1>(size)};
}

nb::tuple dimensions(const bnew::Dimensions& d) { return nb::make_tuple(d.channels, d.height, d.width); }

}  // namespace

NB_MODULE(_engine, m) {
    nb::register_exception_translator(
        [](const std::exception_ptr& thrown, void* type) {
            try {
                std::rethrow_exception(thrown);
            } catch (const bnew::Error& error) {
                PyErr_SetObject(static_cast<PyObject*>(type), nb::str(error.what()).ptr());
            }
        },
        nb::exception<bnew::Error>(m, "EngineError", PyExc_ValueError).ptr());

    nb::class_<bnew::Model>(m, "Model")
        .def(
            "__init__",
            [](bnew::Model* self, nb::bytes path, int threads, const std::string& isa, int64_t max_macs,
               int64_t max_bytes, std::tuple<int, int> size) {
                const std::string name(path.c_str(), path.size());
                const nb::gil_scoped_release release;
                new (self) bnew::Model(name, threads, isa, {max_macs, max_bytes}, image_size(size));
            },
            "path"_a, "threads"_a, "isa"_a, "max_macs"_a, "max_bytes"_a, "size"_a)
        .def_static(
            "from_content",
            [](nb::bytes content, int threads, const std::string& isa, int64_t max_macs, int64_t max_bytes,
               std::tuple<int, int> size) {
                const auto bytes = bytes_of(content);
                const nb::gil_scoped_release release;
                return bnew::Model(bytes, threads, isa, {max_macs, max_bytes}, image_size(size));
            },
            "content"_a, "threads"_a, "isa"_a, "max_macs"_a, "max_bytes"_a, "size"_a)
        .def("run", run, "inputs"_a.noconvert())
        .def("values", values, "image"_a.noconvert())
        .def("convolve", convolve, "name"_a, "signs"_a)
        .def("profile", profile, "image"_a.noconvert(), "repeats"_a)
        .def_prop_ro("inputs",
                     [](const bnew::Model& model) {
                         std::vector<std::tuple<std::string, nb::tuple>> found;
                         for (const auto& each : model.inputs())
                             found.emplace_back(each.name, dimensions(each.dimensions));
                         return found;
                     })
        .def_prop_ro("outputs",
                     [](const bnew::Model& model) {
                         std::vector<std::tuple<std::string, std::vector<int>, size_t, bool>> found;
                         for (const auto& each : model.outputs())
                             found.emplace_back(each.name, each.size, each.count, each.integers);
                         return found;
                     })
        .def_prop_ro("shapes",
                     [](const bnew::Model& model) {
                         nb::dict found;
                         for (const auto& [name, shape] : model.shapes())
                             found[nb::str(name.data(), name.size())] = dimensions(shape);
                         return found;
                     })
        .def_prop_ro("threads", &bnew::Model::threads)
        .def_prop_ro("isa", &bnew::Model::isa)
        .def_prop_ro("classes", &bnew::Model::classes)
        .def_prop_ro("graph", &bnew::Model::graph)
        .def_prop_ro("checksum", &bnew::Model::checksum)
        .def_prop_ro("macs", &bnew::Model::macs);

    m.def(
        "checksum",
        [](nb::bytes content) {
            const auto bytes = bytes_of(content);
            const nb::gil_scoped_release release;
            return bnew::checksum(bytes);
        },
        "content"_a);
    m.attr("revision") = kRevision;
    m.def("instruction_sets", &bnew::instruction_sets);
    m.def("instruction_set", &bnew::instruction_set);
    m.def("register_peak", &bnew::Checks::register_peak, "instruction_set"_a, "seconds"_a,
          nb::call_guard<nb::gil_scoped_release>());
}
