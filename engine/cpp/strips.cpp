#include "strips.h"

#include <algorithm>
#include <limits>

#include "arena.h"
#include "ops/operator.h"

namespace bnew {
namespace {

constexpr size_t kLargeBytes = size_t{512} << 10;  // a larger value does not stay in the second-level cache
constexpr size_t kStripBytes = size_t{384} << 10;  // all values of a strip, to stay in that cache
constexpr int kMostStrips = 256;
constexpr int64_t kMostTasks = 1 << 18;  // of a schedule, roughly: a network of many stages has fewer strips
// Of a band. Two neighbours both compute the rows that both need; in small bands, that is a large share.
constexpr int kLeastRows = 8;
constexpr int kMostTries = 32;  // how many earlier ends of a segment to try, so that it can be cut into bands

void include(Rows& rows, Rows other) {
    if (other.count() <= 0) return;
    rows =
        rows.count() <= 0 ? other : Rows{std::min(rows.first, other.first), std::max(rows.last, other.last)};
}

class Scheduler {
public:
    Scheduler(const Plan& plan, int bands) : plan_(plan), bands_(bands), uses_(plan) {
        schedule_.buffers = make_buffers(plan);
        for (const Buffer& buffer : schedule_.buffers) first_row_.push_back(-buffer.border.top);
        done_.resize(plan.stages.size());
        held_.resize(schedule_.buffers.size());
    }

    Schedule make() {
        if (bands_ > 0) find_segments();
        const int count = static_cast<int>(plan_.stages.size());
        auto segment = segments_.begin();
        for (int s = 0; s < count;) {
            if (segment != segments_.end() && segment->first == s) {
                run_in_strips(*segment);
                s = (segment++)->last;
            } else {
                tasks_ = {};
                compute(s, 0, stage(s).shape.height);
                schedule_.turns.emplace_back().bands.push_back(std::move(tasks_));
                ++s;
            }
        }
        place_buffers(schedule_, plan_, segments_);
        return std::move(schedule_);
    }

private:
    static size_t index(int i) { return static_cast<size_t>(i); }
    const Stage& stage(int s) const { return plan_.stages[index(s)]; }
    Buffer& buffer(int value) { return schedule_.buffers[index(value)]; }
    const Buffer& buffer(int value) const { return schedule_.buffers[index(value)]; }

    // --------------------------------------------------------------------------------- segments

    // Finds sequences of stages that can be computed row by row and have large values.
    void find_segments() {
        const int count = static_cast<int>(plan_.stages.size());
        for (int s = 0; s < count;) {
            int end = s;
            while (end < count && row_by_row(end) && is_large(end)) ++end;
            const int least = std::max(s + 2, end - kMostTries);
            int last = end;
            while (last >= least && !can_be_cut({s, last})) --last;
            if (last >= least) {
                segments_.push_back({s, last});
                s = last;
            } else {
                s = std::max(end, s + 1);
            }
        }
    }

    // Whether each band has enough rows, and no two bands write the same row of a value that is read after
    // the segment.
    bool can_be_cut(const Segment& segment) const {
        if (bands_ == 1) return true;
        for (int s = segment.first; s < segment.last; ++s)
            if (stage(s).shape.height < kLeastRows * bands_) return false;
        for (int band = 0; band < bands_; ++band) {
            const std::vector<Rows> needed = rows_of(segment, band);
            for (int s = segment.first; s < segment.last; ++s)
                if (leaves(s, segment) && needed[index(s - segment.first)] != share(s, band)) return false;
        }
        return true;
    }

    Rows share(int s, int band) const {
        const int64_t height = stage(s).shape.height;
        return {static_cast<int>(height * band / bands_), static_cast<int>(height * (band + 1) / bands_)};
    }

    bool leaves(int s, const Segment& segment) const {
        const auto leaves = [&](int value) { return value >= 0 && !is_inside(value, segment); };
        return leaves(stage(s).real) || leaves(stage(s).bits);
    }

    // The rows that a band computes of each stage of the segment: its share of the values that are read after
    // the segment, and the rows that these need.
    std::vector<Rows> rows_of(const Segment& segment, int band) const {
        std::vector<Rows> rows(index(segment.last - segment.first));
        for (int s = segment.last - 1; s >= segment.first; --s) {
            const int height = stage(s).shape.height;
            Rows& own = rows[index(s - segment.first)];
            if (leaves(s, segment)) own = share(s, band);
            for (int value : {stage(s).real, stage(s).bits}) {
                if (value < 0) continue;
                for (int reader : uses_.readers[index(value)]) {
                    if (reader >= segment.last || rows[index(reader - segment.first)].count() == 0) continue;
                    const auto [first, last] = rows[index(reader - segment.first)];
                    if (stage(reader).other == value) include(own, {first, last});
                    // Padding is cleared together with the row beside it, so that row is needed too.
                    if (stage(reader).inputs[0] == value)
                        include(own, {std::clamp(rows_read(reader, first).first, 0, height - 1),
                                      std::clamp(rows_read(reader, last - 1).last, 1, height)});
                }
            }
        }
        return rows;
    }

    bool row_by_row(int s) const {
        if (!stage(s).op->rows) return false;
        // A 1×1 value that is joined with every place must be complete before.
        return stage(s).other < 0 ||
               plan_.values[index(stage(s).other)].shape.height == stage(s).shape.height;
    }

    bool is_large(int s) const {
        const auto bytes = [&](int value) { return value < 0 ? size_t{0} : buffer(value).image_bytes(); };
        return std::max({bytes(stage(s).inputs[0]), bytes(stage(s).real), bytes(stage(s).other)}) >=
               kLargeBytes;
    }

    bool is_inside(int value, const Segment& segment) const {
        const auto& readers = uses_.readers[index(value)];
        return !plan_.is_output(value) && !readers.empty() &&
               std::all_of(readers.begin(), readers.end(),
                           [&](int s) { return s >= segment.first && s < segment.last; });
    }

    void run_in_strips(const Segment& segment) {
        for (int s = segment.first; s < segment.last; ++s)
            for (int v : {stage(s).real, stage(s).bits})
                if (v >= 0 && is_inside(v, segment)) buffer(v).in_strips = true;
        each_inside(segment, [&](int v) {
            buffer(v).bands = bands_;
            buffer(v).rows = 0;
        });
        Turn turn;
        for (band_ = 0; band_ < bands_; ++band_) {
            band_rows_ = rows_of(segment, band_);
            band_first_ = segment.first;
            const int height = band_of(segment.first).count();
            const int64_t tasks = kMostTasks / (bands_ * static_cast<int64_t>(plan_.stages.size()));
            const int most = static_cast<int>(std::clamp<int64_t>(tasks, 1, kMostStrips));
            for (int rows = height;; rows /= 2) {
                tasks_ = {};
                if (cut_into_strips(segment, rows) <= kStripBytes || rows <= std::max(2, height / most))
                    break;
            }
            each_inside(segment, [&](int v) { buffer(v).rows = std::max(buffer(v).rows, held_[index(v)]); });
            turn.bands.push_back(std::move(tasks_));
        }
        band_ = 0;
        schedule_.turns.push_back(std::move(turn));
    }

    // Calls f for each value that is written and read within the segment's strips.
    template <class F>
    void each_inside(const Segment& segment, F f) const {
        for (int s = segment.first; s < segment.last; ++s)
            for (int v : {stage(s).real, stage(s).bits})
                if (v >= 0 && buffer(v).in_strips) f(v);
    }

    // In each round, the first stage computes `rows` more rows of its band, and every other stage all rows
    // that it can. Returns the size in bytes of the values inside.
    size_t cut_into_strips(const Segment& segment, int rows) {
        each_inside(segment, [&](int v) { held_[index(v)] = 0; });
        for (int s = segment.first; s < segment.last; ++s) {
            const int first = done_[index(s)] = band_of(s).first;
            for (int v : {stage(s).real, stage(s).bits})
                if (v >= 0 && buffer(v).in_strips)
                    first_row_[index(v)] = first == 0 ? -buffer(v).border.top : first;
        }
        const double share = static_cast<double>(rows) / std::max(1, band_of(segment.first).count());
        for (int round = 1; !all_done(segment); ++round) {
            for (int s = segment.first; s < segment.last; ++s) {
                int until = available(s, segment);
                if (starts(s, segment)) {
                    const double most = std::min(1.0, share * round) * band_of(s).count() + 0.999;
                    until = std::min(until, band_of(s).first + static_cast<int>(most));
                }
                if (until <= done_[index(s)]) continue;
                for (int v : {stage(s).real, stage(s).bits})
                    if (v >= 0 && buffer(v).in_strips) make_room(s, v, until);
                compute(s, done_[index(s)], until);
                done_[index(s)] = until;
            }
        }
        size_t bytes = 0;
        each_inside(segment,
                    [&](int v) { bytes += static_cast<size_t>(held_[index(v)] * buffer(v).row_bytes()); });
        return bytes;
    }

    Rows band_of(int s) const { return band_rows_[index(s - band_first_)]; }

    bool all_done(const Segment& segment) const {
        for (int s = segment.first; s < segment.last; ++s)
            if (done_[index(s)] < band_of(s).last) return false;
        return true;
    }

    // The stage of the segment that writes the value, or -1.
    int maker(int value, const Segment& segment) const {
        const int s = uses_.makers[index(value)];
        return s >= segment.first && s < segment.last ? s : -1;
    }

    bool starts(int s, const Segment& segment) const {
        return maker(stage(s).inputs[0], segment) < 0 &&
               (stage(s).other < 0 || maker(stage(s).other, segment) < 0);
    }

    // The end of the rows of the stage that can be computed now.
    int available(int s, const Segment& segment) const {
        int rows = band_of(s).last;
        if (const int by = maker(stage(s).inputs[0], segment);
            by >= 0 && done_[index(by)] < band_of(by).last) {
            int least = band_of(s).first;
            // The border above is cleared with the first row, so even a row that reads only padding waits.
            if (done_[index(by)] == band_of(by).first) return least;
            while (least < rows) {
                const int middle = (least + rows) / 2;
                if (rows_read(s, middle).last <= done_[index(by)]) {
                    least = middle + 1;
                } else {
                    rows = middle;
                }
            }
        }
        if (stage(s).other >= 0)
            if (const int by = maker(stage(s).other, segment); by >= 0)
                rows = std::min(rows, done_[index(by)]);
        return rows;
    }

    Rows rows_read(int s, int y) const { return stage(s).op->rows(stage(s), y); }

    // Makes space for the next rows of a stage's value, up to `last`, in place of rows that are no longer
    // needed.
    void make_room(int s, int value, int last) {
        Buffer& room = buffer(value);
        const int first = done_[index(s)];
        int& begin = first_row_[index(value)];
        if (first == band_of(s).first) {
            if (begin < first) add({Task::Kind::clear, value, band_, begin, first, {}, begin, begin});
        } else {
            const int keep = std::clamp(first_row_needed(value), begin, first);
            if (keep > begin) add({Task::Kind::move, value, band_, keep, first, {}, begin, keep});
            begin = keep;
        }
        if (last == room.shape.height && room.border.bottom > 0) {
            last += room.border.bottom;
            add({Task::Kind::clear, value, band_, last - room.border.bottom, last, {}, begin, begin});
        }
        held_[index(value)] = std::max(held_[index(value)], last - begin);
    }

    int first_row_needed(int value) const {
        int first = std::numeric_limits<int>::max();
        for (int s : uses_.readers[index(value)]) {
            const int next = done_[index(s)];
            if (next >= band_of(s).last) continue;
            if (stage(s).inputs[0] == value) first = std::min(first, rows_read(s, next).first);
            if (stage(s).other == value) first = std::min(first, next);
        }
        return first;
    }

    void add(const Task& task) { tasks_.push_back(task); }

    void compute(int s, int first, int last) {
        const auto begin = [&](int value) { return value < 0 ? 0 : first_row_[index(value)]; };
        const Stage& of = stage(s);
        add({Task::Kind::compute,
             s,
             band_,
             first,
             last,
             {begin(of.inputs.empty() ? -1 : of.inputs[0]), begin(of.other), begin(of.real), begin(of.bits)},
             0,
             0});
    }

    const Plan& plan_;
    int bands_;
    Uses uses_;
    Schedule schedule_;
    std::vector<Segment> segments_;

    // While a band of a segment is scheduled:
    int band_ = 0;
    std::vector<Task> tasks_;
    std::vector<Rows> band_rows_;  // of each stage of the segment
    int band_first_ = 0;           // the segment's first stage
    std::vector<int> done_;        // the row up to which each stage is computed
    std::vector<int> first_row_;   // the first row that each value's buffer holds now
    std::vector<int> held_;        // the most rows that each value's buffer has held
};

}  // namespace

Schedule make_schedule(const Plan& plan, int bands) { return Scheduler(plan, bands).make(); }

}  // namespace bnew
