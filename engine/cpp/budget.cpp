#include "budget.h"

#include <algorithm>

namespace bnew {
namespace {

constexpr double kMiB = 1 << 20;
constexpr int64_t kLargestLimit = int64_t{1} << 60;  // below, sums of sizes are exact

// Small networks never reach a limit. A weight is used once per place of the image. In a group, the weight
// and up to fifteen zeros are computed together, as real numbers even if it is a bit. The limit on work is
// twice that. A byte of the file counts like a weight, because a node without weights has only its
// description.
constexpr double kBaseMacs = 1LL << 31, kMacsPerUnitPlace = 32, kMostMacs = 1LL << 46;
constexpr double kBaseBytes = 64 * kMiB, kBytesPerUnit = 64, kMostBytes = 1LL << 34;
// A run may keep memory for the input's numbers, and for whole images of each layer's results: two numbers
// per output channel, and an output channel has 36 units or more.
constexpr double kBytesPerNumber = 1024, kBytesPerUnitPlace = 0.125;

std::string whole(double number) { return std::to_string(static_cast<int64_t>(std::min(number, 9e18))); }

}  // namespace

Budget::Budget(const Limits& limits, uint64_t file_bytes, uint64_t weights)
    : units_(static_cast<double>(file_bytes) + static_cast<double>(weights)),
      most_macs_(static_cast<double>(limits.max_macs)),
      most_kept_(static_cast<double>(limits.max_bytes)),
      most_run_(most_kept_),
      macs_given_(limits.max_macs != 0),
      bytes_given_(limits.max_bytes != 0) {
    for (const int64_t limit : {limits.max_macs, limits.max_bytes})
        if (limit < 0 || limit > kLargestLimit) throw Error("a limit must be from 0 to 2 to the power of 60");
    if (!macs_given_) most_macs_ = kBaseMacs;
    if (!bytes_given_) most_kept_ = most_run_ = std::min(kBaseBytes + kBytesPerUnit * units_, kMostBytes);
}

void Budget::add_input(int64_t channels, int64_t height, int64_t width) {
    const double places = static_cast<double>(height) * static_cast<double>(width);
    places_ += places;
    numbers_ += static_cast<double>(channels) * places;
    if (!macs_given_) most_macs_ = std::min(kBaseMacs + kMacsPerUnitPlace * units_ * places_, kMostMacs);
    if (!bytes_given_)
        most_run_ = std::min(most_kept_ + kBytesPerNumber * numbers_ + kBytesPerUnitPlace * units_ * places_,
                             kMostBytes);
}

void Budget::keep(double bytes, const std::string& what) {
    kept_ += bytes;
    if (kept_ > most_kept_)
        throw Error(what + " would take " + whole(kept_ / kMiB) + " MiB of memory: the limit" +
                    (bytes_given_ ? " is " : ", by the file's size, is ") + whole(most_kept_ / kMiB) +
                    " MiB; give a larger max_bytes if you trust it");
}

void Budget::work(double macs, const std::string& what) {
    macs_ += macs;
    if (macs_ > most_macs_)
        throw Error(what + " would take " + whole(macs_ / 1e6) +
                    " million multiply-accumulates for an image: the limit" +
                    (macs_given_ ? " is " : ", by the file's size and its input's shape, is ") +
                    whole(most_macs_ / 1e6) + " million; give a larger max_macs if you trust it");
}

void Budget::check_run(double bytes, const std::string& what) const {
    if (bytes > most_run_)
        throw Error(what + " would take " + whole(bytes / kMiB) + " MiB of memory: the limit" +
                    (bytes_given_ ? " is " : ", by the file's size and its input's shape, is ") +
                    whole(most_run_ / kMiB) + " MiB; give a larger max_bytes if you trust it");
}

Budget Budget::fresh() const {
    Budget budget = *this;
    budget.macs_ = budget.kept_ = 0;
    return budget;
}

}  // namespace bnew
