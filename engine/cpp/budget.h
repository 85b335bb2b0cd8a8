// What a file may ask for: memory and work, counted before they are spent.

#pragma once

#include <cstdint>
#include <string>

#include "include/bnew_engine.h"

namespace bnew {

// Bounds both by what the size of the file and the shape of the input justify, or by the caller's limits
// (docs/format.md, "Limits").
class Budget {
public:
    Budget(const Limits& limits, uint64_t file_bytes);

    // Comes first: a larger image justifies more work.
    void set_input(int64_t channels, int64_t height, int64_t width);

    // Each throws Error if it is too much. `what` begins the sentence.
    // Adds memory that the model keeps, or takes for a while to be made.
    void keep(double bytes, const std::string& what);
    // Adds work of each image, in real multiply-accumulates.
    void work(double macs, const std::string& what);
    // Memory of one run, which is free again after it.
    void check_run(double bytes, const std::string& what) const;
    // That many images in one call.
    void check_repeats(int64_t repeats) const;

    // The same limits, nothing spent.
    Budget fresh() const;

private:
    double file_bytes_;
    double most_macs_, most_kept_, most_run_;
    bool macs_given_, bytes_given_;
    double macs_ = 0, kept_ = 0;
};

}  // namespace bnew
