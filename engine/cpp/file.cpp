#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>

#include "crc32.h"
#include "include/bnew_error.h"
#include "text.h"

namespace bnew {

static_assert(std::endian::native == std::endian::little, "the file's numbers are little-endian");

namespace {

constexpr uint64_t kLargestHeader = 16 << 20;  // ten thousand layers need less

const char* const kNotOne = "it is not a packed model, or is cut short: pack the run again";
const char* const kDamaged = "it is damaged: copy it again, or pack the run again";
constexpr const char* kChecksum = "crc32";

std::optional<Dtype> dtype_of(const std::string& name) {
    if (name == "U32") return Dtype::u32;
    if (name == "F32") return Dtype::f32;
    if (name == "F16") return Dtype::f16;
    return std::nullopt;
}

// Converts an IEEE 754 half-precision number to float, exactly.
float from_half(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
    const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | mantissa << 13);
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

const std::string& text(const Json& metadata, const char* name) {
    const Json* value = metadata.find(name);
    if (!value) throw Error(std::string("its header has no '") + name + "' (" + kNotOne + ")");
    return value->string(std::string("'") + name + "' in its header");
}

}  // namespace

Mapping::Mapping(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe would block
    if (descriptor < 0) throw Error(std::string("could not be opened: ") + std::strerror(errno));
    struct stat status{};
    if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
        close(descriptor);
        throw Error("is not a file");
    }
    size_ = static_cast<size_t>(status.st_size);
    if (size_ == 0) {
        close(descriptor);
        throw Error(kNotOne);
    }
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    close(descriptor);
    if (mapped == MAP_FAILED) throw Error(std::string("could not be mapped: ") + std::strerror(errno));
    data_ = static_cast<const uint8_t*>(mapped);
}

Mapping::~Mapping() { munmap(const_cast<uint8_t*>(data_), size_); }

File::File(std::span<const uint8_t> content) : content_(content) {
    if (content.size() < 8) throw Error(kNotOne);
    uint64_t length;
    std::memcpy(&length, content.data(), 8);
    if (length > kLargestHeader || length > content.size() - 8) throw Error(kNotOne);
    const Json header = Json::parse({reinterpret_cast<const char*>(content.data()) + 8, length});
    const Json* metadata = header.find("__metadata__");
    if (!metadata || !metadata->is(Json::Kind::object))
        throw Error(std::string("its header has no '__metadata__': ") + kNotOne);
    if (text(*metadata, "format") != "bnew")
        throw Error("its format is not 'bnew': it is not a packed model");
    if (const std::string& version = text(*metadata, "version"); version != "1")
        throw Error("it is of version " + quote(version) +
                    ", and this engine reads version 1: get a newer engine");
    graph_ = text(*metadata, "graph");
    for (const auto& [name, value] : metadata->object("its header"))
        if (name != "format" && name != "version" && name != "graph" && name != kChecksum)
            throw Error("its header has " + quote(name) + " in '__metadata__', which is not known");
    read_tensors(header, 8 + length);
    check_sum(metadata->find(kChecksum), 8 + length);
}

void File::check_sum(const Json* stored, uint64_t header_end) {
    if (!stored) {
        checksum_ = crc32(0, content_.data(), content_.size());
        return;
    }
    // No JSON string can have these bytes: a quotation mark in it has a backslash before it.
    const std::string& digits = stored->string("the checksum in its header");
    const std::string field = std::string("\"") + kChecksum + "\":\"" + digits + '"';
    const std::string_view header(reinterpret_cast<const char*>(content_.data()), header_end);
    const size_t found = header.find(field);
    if (digits.size() != 8 || digits.find_first_not_of("0123456789abcdef") != std::string::npos ||
        found == std::string_view::npos)
        throw Error(std::string("the checksum in its header is not as it must be: ") + kDamaged);
    const size_t begin = found + field.size() - 9, end = begin + 8;
    const uint8_t zeros[8] = {'0', '0', '0', '0', '0', '0', '0', '0'};
    checksum_ = crc32(0, content_.data(), begin);
    checksum_ = crc32(checksum_, zeros, sizeof zeros);
    checksum_ = crc32(checksum_, content_.data() + end, content_.size() - end);
    if (checksum_ != std::stoul(digits, nullptr, 16))
        throw Error(std::string("its bytes do not have the checksum that its header says: ") + kDamaged);
}

void File::read_tensors(const Json& header, uint64_t data_begin) {
    const uint64_t room = content_.size() - data_begin;
    std::vector<std::pair<int64_t, int64_t>> spans;
    for (const auto& [name, entry] : header.object("its header")) {
        if (name == "__metadata__") continue;
        const std::string what = "tensor " + quote(name);
        entry.object(what);
        const Json* dtype = entry.find("dtype");
        const Json* shape = entry.find("shape");
        const Json* offsets = entry.find("data_offsets");
        if (!dtype || !shape || !offsets || entry.object(what).size() != 3)
            throw Error(what + " must have dtype, shape and data_offsets, and nothing else");
        Tensor tensor{};
        const auto known = dtype_of(dtype->string(what + ", dtype"));
        if (!known)
            throw Error(what + " has dtype " + quote(dtype->string(what)) +
                        ": only U32, F32 and F16 are known");
        tensor.dtype = *known;
        tensor.count = 1;
        for (const Json& size : shape->array(what + ", shape")) {
            tensor.shape.push_back(size.integer(what + ", a size", 1, int64_t{1} << 40));
            if (__builtin_mul_overflow(tensor.count, tensor.shape.back(), &tensor.count) ||
                tensor.count > int64_t{1} << 40)
                throw Error(what + " is larger than its file");
        }
        const auto& pair = offsets->array(what + ", data_offsets");
        if (pair.size() != 2) throw Error(what + " must have two data_offsets");
        const int64_t begin = pair[0].integer(what + ", data_offsets", 0, static_cast<int64_t>(room));
        const int64_t end = pair[1].integer(what + ", data_offsets", begin, static_cast<int64_t>(room));
        if (end - begin != tensor.count * (tensor.dtype == Dtype::f16 ? 2 : 4))
            throw Error(what + " has another size than its shape says: " + kNotOne);
        tensor.data = content_.data() + data_begin + begin;
        spans.emplace_back(begin, end);
        tensors_.emplace(name, std::move(tensor));
    }
    std::sort(spans.begin(), spans.end());
    int64_t end = 0;
    for (const auto& span : spans) {
        if (span.first != end) throw Error(std::string("its tensors leave gaps or overlap: ") + kNotOne);
        end = span.second;
    }
    if (end != static_cast<int64_t>(room))
        throw Error(std::string("it goes on behind its last tensor, or ends before: ") + kNotOne);
}

uint64_t File::weights() const {
    uint64_t sum = 0;  // cannot overflow: each tensor lies in the file
    for (const auto& [name, tensor] : tensors_)
        sum += static_cast<uint64_t>(tensor.count) * (tensor.dtype == Dtype::u32 ? 32 : 1);
    return sum;
}

const Tensor& File::tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Error("it has no tensor " + quote(name));
    return found->second;
}

std::vector<float> to_floats(const Tensor& tensor, const std::string& what) {
    if (tensor.dtype == Dtype::u32) throw Error(what + " must be real, not U32");
    std::vector<float> values(static_cast<size_t>(tensor.count));
    if (tensor.dtype == Dtype::f32) {
        std::memcpy(values.data(), tensor.data, values.size() * 4);
    } else {
        for (size_t i = 0; i < values.size(); ++i) {
            uint16_t half;
            std::memcpy(&half, tensor.data + 2 * i, 2);
            values[i] = from_half(half);
        }
    }
    return values;
}

std::vector<uint32_t> to_words(const Tensor& tensor, const std::string& what) {
    if (tensor.dtype != Dtype::u32) throw Error(what + " must be U32, the words of binary weights");
    std::vector<uint32_t> words(static_cast<size_t>(tensor.count));
    std::memcpy(words.data(), tensor.data, words.size() * 4);
    return words;
}

}  // namespace bnew
