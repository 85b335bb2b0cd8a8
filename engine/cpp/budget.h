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
    // `weights` is how many weights the file has: a bit is one, and so is a real number.
    Budget(const Limits& limits, uint64_t file_bytes, uint64_t weights);

    // Comes first: a larger image justifies more work.
    void set_input(int64_t channels, int64_t height, int64_t width);

    // Each throws Error if it is too much. `what` begins the sentence.
    // Adds memory that the model keeps, or takes for a while and gives back.
    void keep(double bytes, const std::string& what);
    // Adds work of each image, in real multiply-accumulates.
    void work(double macs, const std::string& what);
    // Memory of one run, which is free again after it.
    void check_run(double bytes, const std::string& what) const;

    void give_back(double bytes) { kept_ -= bytes; }
    // The work of an image, so far.
    double macs() const { return macs_; }
    // The same limits, nothing spent.
    Budget fresh() const;

private:
    double units_;  // bytes of the file and weights: each justifies its share
    double most_macs_, most_kept_, most_run_;
    bool macs_given_, bytes_given_;
    double macs_ = 0, kept_ = 0;
};

}  // namespace bnew
