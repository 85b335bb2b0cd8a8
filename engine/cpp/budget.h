// The memory and the work that a file may ask for, counted before they are spent.

#pragma once

#include <cstdint>
#include <string>

#include "include/bnew_engine.h"

namespace bnew {

// Limits both: by default, by the size of the file and the shape of the input, or else by the caller's limits
// (docs/format.md, "Limits").
class Budget {
public:
    // `weights` is the number of weights in the file: bits and real numbers.
    Budget(const Limits& limits, uint64_t file_bytes, uint64_t weights);

    // Must be called first, for each input: the limits grow with the image.
    void add_input(int64_t channels, int64_t height, int64_t width);

    // These three throw Error if a limit is exceeded. `what` begins the message.
    // Adds memory that the model keeps, or uses for a while and gives back.
    void keep(double bytes, const std::string& what);
    // Adds work per image, in real multiply-accumulates.
    void work(double macs, const std::string& what);
    // Checks the memory of one run, which is freed after it.
    void check_run(double bytes, const std::string& what) const;

    void give_back(double bytes) { kept_ -= bytes; }
    // The work of an image, so far.
    double macs() const { return macs_; }
    // The same limits with nothing spent.
    Budget fresh() const;

private:
    double units_;  // bytes of the file plus weights; the default limits grow with them
    double most_macs_, most_kept_, most_run_;
    bool macs_given_, bytes_given_;
    double places_ = 0, numbers_ = 0;  // of all inputs
    double macs_ = 0, kept_ = 0;
};

}  // namespace bnew
