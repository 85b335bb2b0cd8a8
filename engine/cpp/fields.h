// An object of the graph's JSON. Its fields are taken by name; unknown fields are refused.

#pragma once

#include <set>
#include <string>
#include <vector>

#include "json.h"

namespace bnew {

constexpr int kLargestSize = 1 << 20;  // of a dimension

// Throws Error with the sentence if `right` is false.
void expect(bool right, const std::string& sentence);

class Fields {
public:
    // `where` begins the messages. This and the functions below throw Error.
    Fields(const Json& object, std::string where);

    const Json* optional(const char* name);
    const Json& at(const char* name);
    std::string string(const char* name);
    int integer(const char* name, int least, int most);
    std::vector<int> integers(const char* name, size_t count, int least, int most = kLargestSize);
    std::vector<float> floats(const char* name, size_t count);
    // Refuses fields that have not been taken.
    void done() const;

    std::string what(const char* name) const { return where_ + ", '" + name + "'"; }
    const std::string& where() const { return where_; }
    void move_to(std::string where) { where_ = std::move(where); }

private:
    const std::vector<Json>& list(const char* name, size_t count);

    const Json& object_;
    std::string where_;
    std::set<std::string, std::less<>> known_;
};

}  // namespace bnew
