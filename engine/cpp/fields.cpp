#include "fields.h"

#include "include/bnew_error.h"
#include "text.h"

namespace bnew {

void expect(bool right, const std::string& sentence) {
    if (!right) throw Error(sentence);
}

Fields::Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    object.object(where_);
}

const Json* Fields::optional(const char* name) {
    known_.insert(name);
    return object_.find(name);
}

const Json& Fields::at(const char* name) {
    const Json* found = optional(name);
    expect(found, where_ + " has no '" + name + "'");
    return *found;
}

std::string Fields::string(const char* name) { return at(name).string(what(name)); }

int Fields::integer(const char* name, int least, int most) {
    return static_cast<int>(at(name).integer(what(name), least, most));
}

const std::vector<Json>& Fields::list(const char* name, size_t count) {
    const auto& found = at(name).array(what(name));
    expect(found.size() == count, what(name) + " must have " + std::to_string(count) + " numbers");
    return found;
}

std::vector<int> Fields::integers(const char* name, size_t count, int least, int most) {
    std::vector<int> numbers;
    for (const Json& item : list(name, count))
        numbers.push_back(static_cast<int>(item.integer(what(name), least, most)));
    return numbers;
}

std::vector<float> Fields::floats(const char* name, size_t count) {
    std::vector<float> numbers;
    for (const Json& item : list(name, count)) numbers.push_back(static_cast<float>(item.number(what(name))));
    return numbers;
}

void Fields::done() const {
    for (const auto& [name, value] : object_.object(where_))
        expect(known_.count(name) > 0, where_ + " has " + quote(name) + ", which is not known");
}

}  // namespace bnew
