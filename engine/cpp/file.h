// The container: a safetensors file, mapped into memory (docs/format.md, "Container" and "Tensors").

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "json.h"

namespace bnew {

enum class Dtype { u32, f32, f16 };

struct Tensor {
    Dtype dtype;
    std::vector<int64_t> shape;
    const uint8_t* data;  // little-endian, not aligned
    int64_t count;        // of elements
};

class File {
public:
    // Maps the file and checks its header. Throws Error, without the file's name.
    explicit File(const std::string& path);
    ~File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    // Throws Error if there is no such tensor.
    const Tensor& tensor(const std::string& name) const;
    const std::string& graph() const { return graph_; }

private:
    void read_header();

    const uint8_t* data_ = nullptr;
    uint64_t size_ = 0;
    std::map<std::string, Tensor> tensors_;
    std::string graph_;
};

// The tensor's numbers as float32. Throws Error, with `what`, if they are integers.
std::vector<float> to_floats(const Tensor& tensor, const std::string& what);
std::vector<uint32_t> to_words(const Tensor& tensor, const std::string& what);

}  // namespace bnew
