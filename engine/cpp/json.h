// A JSON reader for headers and graphs.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bnew {

class Json {
public:
    enum class Kind { null, boolean, number, string, array, object };

    // Reads a text that is one JSON value. Throws Error if it is not valid JSON, if a name comes twice in an
    // object, if values are nested more than 32 deep, and if there are more than 2^20 values.
    static Json parse(std::string_view text);

    Kind kind() const { return kind_; }
    bool is(Kind kind) const { return kind_ == kind; }

    // Each throws Error, with `what` in the message, if the value is of another kind.
    bool boolean(const std::string& what) const;
    double number(const std::string& what) const;
    int64_t integer(const std::string& what, int64_t least, int64_t most) const;
    const std::string& string(const std::string& what) const;
    const std::vector<Json>& array(const std::string& what) const;
    const std::vector<std::pair<std::string, Json>>& object(const std::string& what) const;

    // The value of an object's name; null if there is none.
    const Json* find(std::string_view name) const;

private:
    friend class JsonParser;

    Kind kind_ = Kind::null;
    bool boolean_ = false;
    double number_ = 0;
    std::string string_;
    std::vector<Json> array_;
    std::vector<std::pair<std::string, Json>> object_;
};

}  // namespace bnew
