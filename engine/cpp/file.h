// The container: a safetensors file (docs/format.md, "Container" and "Tensors").

#pragma once

#include <cstdint>
#include <map>
#include <span>
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

// A file, mapped into memory.
class Mapping {
public:
    // Throws Error. The message does not name the file.
    explicit Mapping(const std::string& path);
    ~Mapping();
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    std::span<const uint8_t> content() const { return {data_, size_}; }

private:
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

class File {
public:
    // Checks header and checksum of the content, which must outlive the File. Throws Error.
    explicit File(std::span<const uint8_t> content);

    // Throws Error if there is no such tensor.
    const Tensor& tensor(const std::string& name) const;
    const std::string& graph() const { return graph_; }
    // CRC-32 of the content, where its own digits count as zeros.
    uint32_t checksum() const { return checksum_; }
    uint64_t size() const { return content_.size(); }
    // The number of weights in all tensors: bits and real numbers.
    uint64_t weights() const;

private:
    void read_tensors(const Json& header, uint64_t data_begin);
    void check_sum(const Json* stored, uint64_t header_end);

    std::span<const uint8_t> content_;
    std::map<std::string, Tensor> tensors_;
    std::string graph_;
    uint32_t checksum_ = 0;
};

// The tensor's numbers as float32. Throws Error, with `what`, if they are integers.
std::vector<float> to_floats(const Tensor& tensor, const std::string& what);
std::vector<uint32_t> to_words(const Tensor& tensor, const std::string& what);

}  // namespace bnew
