#include "layout.h"

#include <algorithm>
#include <limits>

#include "include/bnew_engine.h"

namespace bnew {
namespace {

constexpr size_t kLargeBytes = size_t{512} << 10;  // of a value that the second-level cache does not keep
constexpr size_t kStripBytes = size_t{384} << 10;  // of all values of a strip, so that it does keep them
constexpr int kMostStrips = 256;
constexpr int64_t kMostTasks = 1 << 18;  // of a layout, roughly: a network of many stages has fewer strips
// Of a band: neighbours both compute the rows that both need, which is the larger a share the fewer they are.
constexpr int kLeastRows = 8;
constexpr int kMostTries = 32;  // to end a segment earlier, so that it can be cut into bands

// Rows first to last - 1.
struct Rows {
    int first = 0, last = 0;
    int count() const { return last - first; }
    void include(Rows other) {
        if (other.count() <= 0) return;
        *this = count() <= 0 ? other : Rows{std::min(first, other.first), std::max(last, other.last)};
    }
    bool operator==(const Rows&) const = default;
};

// Stages first to last - 1, run in turns.
struct Segment {
    int first = 0, last = 0;
};

class Layouter {
public:
    Layouter(const Graph& graph, const Plan& plan)
        : graph_(graph), plan_(plan), readers_(plan.values.size()), makers_(plan.values.size(), -1) {
        for (size_t s = 0; s < plan.stages.size(); ++s) {
            for (int v : plan.stages[s].inputs) readers_[index(v)].push_back(static_cast<int>(s));
            if (plan.stages[s].other >= 0)
                readers_[index(plan.stages[s].other)].push_back(static_cast<int>(s));
            for (int v : {plan.stages[s].real, plan.stages[s].bits})
                if (v >= 0) makers_[index(v)] = static_cast<int>(s);
        }
        make_buffers();
    }

    Layout make(int bands) {
        bands_ = bands;
        if (bands > 0) find_segments();
        const int count = static_cast<int>(plan_.stages.size());
        auto segment = segments_.begin();
        for (int s = 0; s < count;) {
            if (segment != segments_.end() && segment->first == s) {
                run_in_strips(*segment);
                s = (segment++)->last;
            } else {
                strand_ = {};
                compute(s, 0, stage(s).shape.height);
                layout_.steps.push_back({std::move(strand_)});
                ++s;
            }
        }
        place();
        return std::move(layout_);
    }

private:
    static size_t index(int i) { return static_cast<size_t>(i); }
    const Stage& stage(int s) const { return plan_.stages[index(s)]; }
    Buffer& buffer(int value) { return layout_.buffers[index(value)]; }

    // ---------------------------------------------------------------------------------- buffers

    void make_buffers() {
        for (const Value& value : plan_.values) {
            Buffer& made = layout_.buffers.emplace_back();
            made.shape = value.shape;
            made.bits = value.bits;
        }
        // The input's channels may lie close together where only broadcasts read them.
        bool vectors = graph_.output == 0;
        for (const Stage& stage : plan_.stages) {
            const bool broadcasts = stage.op == Op::conv && !stage.conv.depthwise;
            for (int v : stage.inputs) vectors |= v == 0 && !broadcasts;
            vectors |= stage.other == 0;
            if (stage.op == Op::conv || stage.op == Op::binary_conv) widen_border(stage);
        }
        for (size_t v = 0; v < layout_.buffers.size(); ++v)
            set_strides(layout_.buffers[v], v == 0 && !vectors);
        first_row_.resize(layout_.buffers.size());
        for (size_t v = 0; v < layout_.buffers.size(); ++v) first_row_[v] = -layout_.buffers[v].top;
        in_strip_.resize(layout_.buffers.size());
    }

    void widen_border(const Stage& stage) {
        Buffer& in = buffer(stage.inputs[0]);
        const Node& node = graph_.nodes[index(stage.node)];
        in.top = std::max(in.top, node.top);
        in.left = std::max(in.left, node.left);
        in.bottom = std::max(in.bottom, node.bottom);
        in.right = std::max(in.right, node.right);
    }

    static void set_strides(Buffer& made, bool close) {
        const Shape& shape = made.shape;
        made.pixel = made.bits ? unit_of(shape.channels)
                     : close   ? shape.channels
                               : round_up(shape.channels, kGroup);
        made.row = (shape.width + made.left + made.right) * made.pixel;
        made.rows = shape.height + made.top + made.bottom;
    }

    size_t bytes_of(int value) {
        return value < 0 ? 0
                         : static_cast<size_t>(buffer(value).row_bytes()) * index(buffer(value).shape.height);
    }

    // Bits and values with a border have a place of their own, so that the border, cleared once, stays clear;
    // so have the values of strips, to lie close together. The others share: each takes the first gap between
    // those that live at the same time.
    void place() {
        const int count = static_cast<int>(layout_.buffers.size());
        for (Buffer& made : layout_.buffers)
            made.bytes = static_cast<size_t>(round_up(made.rows * made.row_bytes() + kSlack, kAlignment));
        size_t end = place_shared();
        layout_.bytes = static_cast<double>(end);
        for (int v = 0; v < count; ++v) {
            if (shares(v)) continue;
            buffer(v).offset = end;
            end += buffer(v).bytes * index(buffer(v).bands);
            layout_.bytes += static_cast<double>(buffer(v).bytes) * buffer(v).bands;
        }
        layout_.arena_bytes = end;
    }

    bool shares(int v) { return !buffer(v).bits && !buffer(v).has_border() && !in_strip_[index(v)]; }

    size_t place_shared() {
        // What a segment reads and writes lives from its beginning to its end.
        std::vector<int> begin(plan_.stages.size()), end(plan_.stages.size());
        for (size_t s = 0; s < plan_.stages.size(); ++s) begin[s] = end[s] = static_cast<int>(s);
        for (const Segment& segment : segments_) {
            for (int s = segment.first; s < segment.last; ++s) {
                begin[index(s)] = segment.first;
                end[index(s)] = segment.last - 1;
            }
        }
        std::vector<int> last_use(layout_.buffers.size(), -1);
        for (size_t v = 0; v < readers_.size(); ++v)
            for (int s : readers_[v]) last_use[v] = std::max(last_use[v], end[index(s)]);
        for (size_t s = 0; s < plan_.stages.size(); ++s)
            if (const int real = plan_.stages[s].real; real >= 0)
                last_use[index(real)] = std::max(last_use[index(real)], end[s]);
        last_use[index(graph_.output)] = static_cast<int>(plan_.stages.size());

        std::vector<int> live;  // by offset
        size_t total = 0;
        const auto take = [&](int v) {
            size_t offset = 0;
            for (int other : live) {
                if (buffer(other).offset >= offset + buffer(v).bytes) break;
                offset = std::max(offset, buffer(other).offset + buffer(other).bytes);
            }
            buffer(v).offset = offset;
            total = std::max(total, offset + buffer(v).bytes);
            live.insert(std::find_if(live.begin(), live.end(),
                                     [&](int other) { return buffer(other).offset > offset; }),
                        v);
        };
        if (shares(0)) take(0);
        for (size_t s = 0; s < plan_.stages.size(); ++s) {
            std::erase_if(live, [&](int v) { return last_use[index(v)] < begin[s]; });
            if (const int real = plan_.stages[s].real; real >= 0 && shares(real)) take(real);
        }
        return total;
    }

    // ----------------------------------------------------------------------------------- strips

    // Runs of stages that can be computed row by row and move much memory.
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

    // Whether each band has rows enough, and none writes rows of a value that is needed behind the segment
    // which another writes too.
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

    // The rows that a band computes of each stage of the segment: its share of what is needed behind the
    // segment, and what that takes.
    std::vector<Rows> rows_of(const Segment& segment, int band) const {
        std::vector<Rows> rows(index(segment.last - segment.first));
        for (int s = segment.last - 1; s >= segment.first; --s) {
            const int height = stage(s).shape.height;
            Rows& own = rows[index(s - segment.first)];
            if (leaves(s, segment)) own = share(s, band);
            for (int value : {stage(s).real, stage(s).bits}) {
                if (value < 0) continue;
                for (int reader : readers_[index(value)]) {
                    if (reader >= segment.last || rows[index(reader - segment.first)].count() == 0) continue;
                    const auto [first, last] = rows[index(reader - segment.first)];
                    if (stage(reader).other == value) own.include({first, last});
                    // Where the padding alone is needed, so is the row beside it, with which it is cleared.
                    if (stage(reader).inputs[0] == value)
                        own.include({std::clamp(first_needed(reader, first), 0, height - 1),
                                     std::clamp(last_needed(reader, last - 1) + 1, 1, height)});
                }
            }
        }
        return rows;
    }

    bool row_by_row(int s) const {
        switch (stage(s).op) {
            case Op::conv:
            case Op::binary_conv:
            case Op::max_pool:
            case Op::avg_pool:
            case Op::identity: break;
            case Op::adaptive_avg_pool:
            case Op::concat:
            case Op::flatten:
            case Op::softmax:
            case Op::to_real: return false;
        }
        // A value that every place is joined with must be there in full.
        return stage(s).other < 0 ||
               plan_.values[index(stage(s).other)].shape.height == stage(s).shape.height;
    }

    bool is_large(int s) {
        return std::max({bytes_of(stage(s).inputs[0]), bytes_of(stage(s).real), bytes_of(stage(s).other)}) >=
               kLargeBytes;
    }

    bool is_inside(int value, const Segment& segment) const {
        const auto& readers = readers_[index(value)];
        return value != graph_.output && !readers.empty() &&
               std::all_of(readers.begin(), readers.end(),
                           [&](int s) { return s >= segment.first && s < segment.last; });
    }

    void run_in_strips(const Segment& segment) {
        for (int s = segment.first; s < segment.last; ++s)
            for (int v : {stage(s).real, stage(s).bits})
                if (v >= 0 && is_inside(v, segment)) in_strip_[index(v)] = true;
        each_inside(segment, [&](int v) {
            buffer(v).bands = bands_;
            buffer(v).rows = 0;
        });
        std::vector<Strand> strands;
        for (band_ = 0; band_ < bands_; ++band_) {
            band_rows_ = rows_of(segment, band_);
            band_first_ = segment.first;
            const int height = band_of(segment.first).count();
            const int64_t tasks = kMostTasks / (bands_ * static_cast<int64_t>(plan_.stages.size()));
            const int most = static_cast<int>(std::clamp<int64_t>(tasks, 1, kMostStrips));
            for (int rows = height;; rows /= 2) {
                strand_ = {};
                if (schedule(segment, rows) <= kStripBytes || rows <= std::max(2, height / most)) break;
            }
            each_inside(segment, [&](int v) { buffer(v).rows = std::max(buffer(v).rows, held_[index(v)]); });
            strands.push_back(std::move(strand_));
        }
        band_ = 0;
        layout_.steps.push_back(std::move(strands));
    }

    // Calls f for the values that the segment's strips hold.
    template <class F>
    void each_inside(const Segment& segment, F f) const {
        for (int s = segment.first; s < segment.last; ++s)
            for (int v : {stage(s).real, stage(s).bits})
                if (v >= 0 && in_strip_[index(v)]) f(v);
    }

    // Lets the first stage compute `rows` rows of its band, then each of the others all that it can, until
    // all is done. Returns the bytes that the values inside take.
    size_t schedule(const Segment& segment, int rows) {
        done_.resize(plan_.stages.size());
        held_.resize(layout_.buffers.size());
        each_inside(segment, [&](int v) { held_[index(v)] = 0; });
        for (int s = segment.first; s < segment.last; ++s) {
            const int first = done_[index(s)] = band_of(s).first;
            for (int v : {stage(s).real, stage(s).bits})
                if (v >= 0 && in_strip_[index(v)]) first_row_[index(v)] = first == 0 ? -buffer(v).top : first;
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
                    if (v >= 0 && in_strip_[index(v)]) make_room(s, v, until);
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

    // The stage of the segment that gives the value, or -1.
    int maker(int value, const Segment& segment) const {
        const int s = makers_[index(value)];
        return s >= segment.first && s < segment.last ? s : -1;
    }

    bool starts(int s, const Segment& segment) const {
        return maker(stage(s).inputs[0], segment) < 0 &&
               (stage(s).other < 0 || maker(stage(s).other, segment) < 0);
    }

    // Up to which row the stage can be computed by now.
    int available(int s, const Segment& segment) const {
        int rows = band_of(s).last;
        if (const int by = maker(stage(s).inputs[0], segment);
            by >= 0 && done_[index(by)] < band_of(by).last) {
            int least = band_of(s).first;
            // The border above is cleared with the first row, so a row of padding alone waits for that too.
            if (done_[index(by)] == band_of(by).first) return least;
            while (least < rows) {
                const int middle = (least + rows) / 2;
                if (last_needed(s, middle) < done_[index(by)]) {
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

    // The first and the last row of its input, padding included, that row y of a stage needs, and no row
    // after y needs one before: so of a pool it is the whole window, whose first place in the image is
    // another matter.
    int first_needed(int s, int y) const {
        const Stage& of = stage(s);
        if (of.op == Op::identity) return y;
        const Node& node = graph_.nodes[index(of.node)];
        return y * node.stride_y - node.top;
    }

    int last_needed(int s, int y) const {
        const Stage& of = stage(s);
        if (of.op == Op::identity) return y;
        const Node& node = graph_.nodes[index(of.node)];
        return y * node.stride_y - node.top + (node.kernel_y - 1) * node.dilation_y;
    }

    // Makes room for the next rows of a stage's value, up to `last`, where those stood that nobody needs any
    // more.
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
        if (last == room.shape.height && room.bottom > 0) {
            last += room.bottom;
            add({Task::Kind::clear, value, band_, last - room.bottom, last, {}, begin, begin});
        }
        held_[index(value)] = std::max(held_[index(value)], last - begin);
    }

    int first_row_needed(int value) const {
        int first = std::numeric_limits<int>::max();
        for (int s : readers_[index(value)]) {
            const int next = done_[index(s)];
            if (next >= band_of(s).last) continue;
            if (stage(s).inputs[0] == value) first = std::min(first, first_needed(s, next));
            if (stage(s).other == value) first = std::min(first, next);
        }
        return first;
    }

    void add(const Task& task) { strand_.push_back(task); }

    void compute(int s, int first, int last) {
        const auto begin = [&](int value) { return value < 0 ? 0 : first_row_[index(value)]; };
        const Stage& of = stage(s);
        add({Task::Kind::compute,
             s,
             band_,
             first,
             last,
             {begin(of.inputs[0]), begin(of.other), begin(of.real), begin(of.bits)},
             0,
             0});
    }

    const Graph& graph_;
    const Plan& plan_;
    Layout layout_;
    std::vector<std::vector<int>> readers_;  // of each value: stages
    std::vector<int> makers_;                // of each value: the stage, or -1
    std::vector<Segment> segments_;
    int bands_ = 0;
    std::vector<bool> in_strip_;  // of each value

    // While a band of a segment is scheduled:
    int band_ = 0;
    Strand strand_;
    std::vector<Rows> band_rows_;  // of each stage of the segment, which begins with
    int band_first_ = 0;
    std::vector<int> done_;       // the row up to which each stage is computed
    std::vector<int> first_row_;  // that the value's buffer holds now
    std::vector<int> held_;       // the most rows that it has held
};

}  // namespace

Layout make_layout(const Graph& graph, const Plan& plan, int bands) {
    return Layouter(graph, plan).make(bands);
}

}  // namespace bnew
